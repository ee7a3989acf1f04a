"""Plain Richardson-Lucy: the float64 formula, flux, the number of iterations, several views."""

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from microscopes import LIGHT_SHEET, gaussian_psf, problem_for, recorded
from pellucid.core.back_projectors import METHODS, Matched, Wiener
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.quality import ncc
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.errors import InputError, ParameterError, RunawayWarning


def reference(image, psf, background, iterations, margin, domain):
    """Richardson-Lucy with Bertero-Boccacci weights, written out in NumPy and float64."""
    window = tuple(slice(m, m + n) for m, n in zip(margin, image.shape, strict=True))

    def forward(x):
        full = fftconvolve(x, psf)
        start = [m + s // 2 for m, s in zip(margin, psf.shape, strict=True)]
        return full[tuple(slice(a, a + n) for a, n in zip(start, image.shape, strict=True))]

    def adjoint(y):
        canvas = np.zeros(domain)
        canvas[window] = y
        full = fftconvolve(canvas, psf[::-1, ::-1, ::-1])
        start = [s - 1 - s // 2 for s in psf.shape]
        return full[tuple(slice(a, a + n) for a, n in zip(start, domain, strict=True))]

    seen = adjoint(np.ones(image.shape))
    inside = seen > 0.02 * seen.max()
    x = np.where(inside, image.mean() - background, 0.0)
    for _ in range(iterations):
        ratio = image / (forward(x) + background)
        x = np.where(inside, x * adjoint(ratio) / np.where(inside, seen, 1), 0.0)
    return x[window]


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("psf_shape", [(9, 7, 7), (8, 6, 7)])
def test_equals_the_formula_in_float64(iterations, psf_shape):
    """n iterations are n, for odd and even PSFs, and the float32 path is the same to rounding."""
    psf = gaussian_psf(psf_shape, (4, 2.5, 2.5))
    recording = recorded(psf=psf, shape=(12, 20, 21))
    problem = problem_for(recording, psf, torch.float64)
    blur = problem.observations[0].operator
    expected = reference(
        recording.counts.astype(float), psf, 2.0, iterations, blur.margin, blur.domain_shape
    )
    found = RichardsonLucy(iterations)(problem).image
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-7 * expected.max())
    single = RichardsonLucy(iterations)(problem_for(recording, psf)).image
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-4 * expected.max())


def test_matched_iterations_raise_the_likelihood_every_time():
    stats = RichardsonLucy(15)(problem_for(recorded())).stats
    assert all(
        b < a for a, b in zip(stats["i_divergence"], stats["i_divergence"][1:], strict=False)
    )
    assert not stats["ran_away"]


def test_light_is_kept():
    recording = recorded(shape=(24, 40, 40), peak=1000)
    problem = problem_for(recording)
    blur = problem.observations[0].operator
    x = RichardsonLucy(20)(
        Problem(problem.observations, window=tuple(slice(n) for n in blur.domain_shape))
    ).image
    assert float(blur.forward(x).sum()) == pytest.approx(
        recording.counts.sum() - 2 * x.new_ones(blur.range_shape).sum().item(), rel=0.01
    )


def test_scaling_the_counts_scales_the_result():
    problem = problem_for(recorded())
    o = problem.observations[0]
    times_eight = Problem((Observation(8 * o.image, o.operator, 8 * o.background),))
    a, b = (RichardsonLucy(5)(p).image for p in (problem, times_eight))
    torch.testing.assert_close(8 * a, b, rtol=1e-4, atol=1e-5 * float(b.max()))


def test_an_unmatched_iteration_that_runs_away_says_so():
    with pytest.warns(RunawayWarning, match="use fewer"):
        restored = RichardsonLucy(40, Wiener(1e-3))(problem_for(recorded(peak=20)))
    assert restored.stats["ran_away"]
    assert torch.isfinite(restored.image).all()


@pytest.mark.parametrize("momentum", ["heavy-ball", "biggs-andrews"])
def test_momentum_gets_further_in_as_many_iterations(momentum):
    problem = problem_for(recorded(peak=1000))
    plain = RichardsonLucy(10)(problem).stats["i_divergence"][-1]
    fast = RichardsonLucy(10, momentum=momentum)(problem).stats["i_divergence"][-1]
    assert fast < plain


@pytest.mark.filterwarnings("ignore::pellucid.errors.RunawayWarning")
@pytest.mark.parametrize("start", ["flat", "raw", "low-passed"])
@pytest.mark.parametrize("method", METHODS)
def test_every_projector_improves_on_the_recording(method, start):
    recording = recorded(peak=400)
    found = RichardsonLucy(3, METHODS[method], start=start)(problem_for(recording)).image
    assert ncc(found, recording.truth) > ncc(recording.counts, recording.truth)


@pytest.mark.parametrize("update", ["additive", "alternating"])
def test_two_views_are_better_than_one(update):
    """Orthogonal blur: each view is sharp where the other is not."""
    psfs = (LIGHT_SHEET, np.ascontiguousarray(LIGHT_SHEET.transpose(2, 1, 0)))
    shape = (32, 32, 32)
    side = max(max(p.shape) for p in psfs)
    padded = [np.pad(p, [((side - n) // 2,) * 2 for n in p.shape]) for p in psfs]
    views = [recorded("filaments", 200, shape, psf=p) for p in padded]
    scale = views[0].truth.max() / views[1].truth.max()
    observations = tuple(
        Observation(
            torch.from_numpy(v.counts.astype(np.float32)) * s,
            Blur(torch.from_numpy(p).float(), shape),
            2.0 * s,
        )
        for v, p, s in zip(views, padded, (1.0, float(scale)), strict=True)
    )
    window = observations[0].operator.window
    joint = RichardsonLucy(10, update=update)(Problem(observations, window)).image
    alone = RichardsonLucy(10)(Problem(observations[:1], window)).image
    assert ncc(joint, views[0].truth) > ncc(alone, views[0].truth) + 0.02


def test_a_point_does_not_move():
    for shape in ((5, 5, 5), (4, 6, 4)):
        psf = gaussian_psf(shape, (2, 2, 2))
        image = np.zeros((11, 12, 13))
        image[5, 6, 7] = 1000
        blurred = fftconvolve(image, psf, mode="full")
        start = [s // 2 for s in psf.shape]
        seen = blurred[tuple(slice(a, a + n) for a, n in zip(start, image.shape, strict=True))]
        blur = Blur(torch.from_numpy(psf), image.shape)
        data = torch.from_numpy(seen.clip(0) + 0.1)
        found = RichardsonLucy(30)(Problem((Observation(data, blur, 0.1),))).image
        assert np.unravel_index(int(found.argmax()), found.shape) == (5, 6, 7)


def test_peak_bytes_covers_the_volumes_held():
    problem = problem_for(recorded())
    o = problem.observations[0]
    # the object, the recording, the mismatch and two half spectra are held at once
    held = 4 * np.prod(problem.shape) + 2 * 4 * o.image.numel() + 2 * 4 * np.prod(o.operator.grid)
    assert held < RichardsonLucy().peak_bytes(problem) < 2 * held


def test_bad_parameters_are_refused():
    with pytest.raises(ParameterError, match="iterations"):
        RichardsonLucy(0)
    with pytest.raises(ParameterError, match="Drop momentum"):
        RichardsonLucy(5, Wiener(), momentum="heavy-ball")
    assert RichardsonLucy(5, Matched(), momentum="heavy-ball").iterations == 5


def test_observations_must_fit_their_operators_and_each_other():
    blur = Blur(torch.ones(3, 3, 3), (5, 5, 5))
    with pytest.raises(InputError, match="Build the operator"):
        Observation(torch.ones(4, 5, 5), blur)
    other = Blur(torch.ones(5, 5, 5), (12, 5, 5))
    with pytest.raises(InputError, match="same object grid"):
        Problem((Observation(torch.ones(5, 5, 5), blur), Observation(torch.ones(12, 5, 5), other)))
