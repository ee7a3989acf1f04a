"""The guarded restorer: it stops by itself, never runs away, and its evidence is in the stats."""

import numpy as np
import pytest
import torch

from microscopes import LIGHT_SHEET, gaussian_psf, problem_for, recorded
from pellucid.core.accelerated import Accelerated, alpha_for, continued, thinned
from pellucid.core.back_projectors import Matched, Wiener, WienerButterworth
from pellucid.core.coarsening import bin_factors, binned, binned_image, refined
from pellucid.core.operators import Blur, binned_psf
from pellucid.core.problem import Observation, Problem
from pellucid.core.quality import ncc
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.errors import ParameterError


@pytest.mark.parametrize("peak", [10.0, 1000.0])
@pytest.mark.parametrize("structure", ["filaments", "shells", "points", "nuclei"])
def test_as_good_as_matched_at_its_best_of_forty(structure, peak):
    recording = recorded(structure, peak, seed=21)
    problem = problem_for(recording)
    x = Accelerated()(problem).image
    best = max(ncc(RichardsonLucy(n)(problem).image, recording.truth) for n in (5, 10, 20, 40))
    assert ncc(x, recording.truth) > best - (0.06 if peak < 100 else 0.02)


@pytest.mark.parametrize("projector", [Wiener(1e-4), WienerButterworth(alpha=1e-3), Matched()])
def test_cannot_run_away_however_reckless_the_projector_and_however_long(projector):
    """Dim data and an alpha far too small: the plain form explodes, the guarded one does not."""
    recording = recorded(peak=15, seed=5)
    problem = problem_for(recording)
    plain = RichardsonLucy(60, Matched())(problem).image
    guarded = Accelerated(projector, max_iterations=200, tolerance=0.0)(problem)
    assert ncc(guarded.image, recording.truth) > ncc(plain, recording.truth) - 0.02
    assert guarded.stats["stopped_by"] == "held-out photons lost"


def test_the_evidence_rises_from_one_accepted_estimate_to_the_next():
    stats = Accelerated()(problem_for(recorded())).stats
    for binning in {step["binning"] for step in stats["path"]}:
        accepted = [
            s["likelihood"] for s in stats["path"] if s["binning"] == binning and s["accepted"]
        ]
        assert accepted == sorted(accepted)
    costs = [step["cost"] for step in stats["path"]]
    assert costs == sorted(costs)
    assert costs[-1] == stats["cost_iterations"]


def test_the_models_are_what_the_recording_would_be_without_noise():
    recording = recorded(peak=400)
    restored = Accelerated()(problem_for(recording))
    residual = (recording.counts - restored.models[0].numpy()) / np.sqrt(recording.photons)
    assert 0.8 < float(np.mean(residual**2)) < 1.1


def test_the_same_seed_gives_the_same_result():
    problem = problem_for(recorded())
    a, b = (Accelerated(seed=3)(problem).image for _ in range(2))
    assert torch.equal(a, b)


def test_thinned_halves_are_independent_and_add_up():
    recording = recorded(peak=50)
    problem = problem_for(recording)
    kept, held = thinned(problem, 0.3, seed=0)
    image = problem.observations[0].image
    torch.testing.assert_close(kept.observations[0].image + held.observations[0].image, image)
    assert float(held.observations[0].image.sum() / image.sum()) == pytest.approx(0.3, abs=0.01)
    residual = [p.observations[0].image - s * image for p, s in ((kept, 0.7), (held, 0.3))]
    assert float((residual[0] + residual[1]).abs().max()) < 1e-3
    expected = torch.from_numpy(recording.photons)
    noise = [
        (p.observations[0].image - s * expected) / expected.sqrt()
        for p, s in ((kept, 0.7), (held, 0.3))
    ]
    correlation = torch.corrcoef(torch.stack([n.flatten() for n in noise]))[0, 1]
    assert abs(float(correlation)) < 4 / image.numel() ** 0.5


def test_alpha_is_larger_in_the_dark():
    dim, bright = (alpha_for(problem_for(recorded(peak=p))) for p in (5, 5000))
    assert dim > 2 * bright
    assert bright == pytest.approx(0.6, abs=0.05)


def test_momentum_keeps_the_light_and_the_sign():
    x, before = torch.rand(4, 5, 6) + 0.1, torch.rand(4, 5, 6) + 0.1
    p = continued(x, before, 1.5)
    assert float(p.sum()) == pytest.approx(float(x.sum()), rel=1e-5)
    assert float(p.min()) > 0
    assert continued(x, before, 0.0) is x


def test_momentum_may_become_as_small_as_a_climb_makes_it():
    # Halved at every refusal: 20 ** (1 / beta) is no number below 0.03.
    x, before = torch.rand(4, 5, 6) + 0.1, torch.rand(4, 5, 6) + 0.1
    for beta in (0.05, 0.02, 0.0011):
        p = continued(x, before, beta)
        torch.testing.assert_close(p, x, rtol=5 * beta, atol=0)


def test_widefield_haze_does_not_break_it():
    z, y, x = np.ogrid[-8:9, -10:11, -10:11]
    width = 2.0 + 0.9 * np.abs(z)
    psf = np.exp(-((y**2 + x**2) / width**2)) / width**2
    psf = psf / psf.sum()
    recording = recorded("shells", 200, psf=psf)
    problem = problem_for(recording, psf)
    found = Accelerated()(problem).image
    assert ncc(found, recording.truth) > ncc(RichardsonLucy(20)(problem).image, recording.truth)


def test_bad_parameters_are_refused():
    with pytest.raises(ParameterError, match="held_out"):
        Accelerated(held_out=0.9)
    with pytest.raises(ParameterError, match="max_iterations"):
        Accelerated(max_iterations=0)


def test_binning_follows_the_blur():
    assert bin_factors((8.0, 3.6, 3.6), (64, 64, 64)) == [
        (1, 1, 1),
        (2, 1, 1),
        (4, 2, 2),
        (8, 4, 4),
    ]
    assert bin_factors((3.0, 3.0, 3.0), (1, 64, 64), levels=2) == [(1, 1, 1), (1, 2, 2)]
    assert bin_factors((3.0, 3.0, 3.0), (10, 10, 10)) == [(1, 1, 1)]


def test_binned_photons_are_the_sums_of_blocks():
    image = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    found = binned_image(image, (2, 1, 2))
    torch.testing.assert_close(found[0, :, 0], image[:, :, :2].sum(dim=(0, 2)))
    assert binned_image(image, (1, 2, 1)).shape == (2, 2, 4)


@pytest.mark.parametrize("size", [9, 10])
def test_a_binned_psf_is_the_psf_between_blocks(size):
    """Two ways: bin what a block-constant object looks like, or blur the blocks with the binned PSF."""
    psf = torch.from_numpy(gaussian_psf((size,) * 3, (3, 3, 3)))
    coarse_psf = binned_psf(psf, (2, 2, 2))
    blocks = torch.zeros(12, 12, 12, dtype=torch.float64)
    blocks[4:8, 5:9, 3:7] = torch.rand(4, 4, 4, dtype=torch.float64)
    fine = blocks
    for axis in range(3):
        fine = fine.repeat_interleave(2, dim=axis)
    blurred = Blur(psf, (24, 24, 24), extended=False).forward(fine / 8)
    expected = binned_image(blurred, (2, 2, 2))
    found = Blur(coarse_psf, (12, 12, 12), extended=False).forward(blocks)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_refining_keeps_light_and_place():
    psf = torch.from_numpy(LIGHT_SHEET).float()
    fine = Blur(psf, (24, 40, 40))
    problem = Problem((Observation(torch.ones(24, 40, 40), fine, 1.0),))
    coarse = binned(problem, (2, 2, 2)).observations[0].operator
    x = torch.zeros(coarse.domain_shape)
    m = coarse.margin
    x[m[0] + 6, m[1] + 10, m[2] + 10] = (
        8.0  # coarse image voxel (6, 10, 10): fine voxels 12..13, 20..21
    )
    found = refined(x, coarse, fine, (2, 2, 2))[fine.window]
    assert float(found.sum()) == pytest.approx(8.0)
    grid = torch.arange(24.0)
    assert float((found.sum(dim=(1, 2)) * grid).sum() / found.sum()) == pytest.approx(12.5)
