"""Blur that varies: exact adjoints, two ways to one image, flux, and the limit of one PSF."""

import numpy as np
import pytest
import torch

from pellucid.core.accelerated import Accelerated, alpha_for
from pellucid.core.back_projectors import (
    Gaussian,
    Matched,
    WienerButterworth,
    back_projection,
)
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import STRUCTURES, filaments
from pellucid.core.varying_blur import TiledBlur, VaryingBlur
from pellucid.errors import InputError, ParameterError
from pellucid.testing import dot_test

VOXEL_UM = (1.0, 1.0, 1.0)


def widening(places, size=(9, 9, 9)):
    """A Gaussian that widens with depth along z and with distance along x, at (z, x) places."""
    psfs, at = [], []
    for z, x in places:
        widths = (2.0 + 0.05 * z, 2.0, 2.0 + 0.03 * x)
        psfs.append(gaussian(widths, VOXEL_UM, size).values)
        at.append((z, 0.0, x))
    return PsfField(np.stack(psfs), np.array(at), VOXEL_UM)


LATERAL = widening([(z, x) for z in (0, 8, 16) for x in (0, 7, 14, 20)])
DEPTH = widening([(z, 0.0) for z in (0, 5, 10, 16)])


@pytest.mark.parametrize("field", [LATERAL, DEPTH], ids=["lateral", "depth"])
def test_adjoint_is_exact(field):
    assert dot_test(VaryingBlur.of(field, (17, 10, 21), dtype=torch.float64)) < 1e-14
    assert dot_test(VaryingBlur.of(field, (17, 10, 21)), dtype=torch.float32) < 1e-6


@pytest.mark.parametrize("field", [LATERAL, DEPTH], ids=["lateral", "depth"])
def test_every_point_sends_the_psf_of_its_place(field):
    """The dense operator, column by column."""
    blur = VaryingBlur.of(field, (17, 10, 21), accuracy=1e-6, dtype=torch.float64)
    for place in ((0, 0, 0), (8, 5, 14), (16, 9, 20), (3, 4, 11)):
        x = torch.zeros(blur.domain_shape, dtype=torch.float64)
        x[tuple(p + m for p, m in zip(place, blur.margin, strict=True))] = 1
        psf = blur.expansion.psf_at(place)
        canvas = np.zeros(np.array(blur.range_shape) + 8)
        canvas[tuple(slice(p, p + 9) for p in place)] = psf
        expected = canvas[4:-4, 4:-4, 4:-4]
        np.testing.assert_allclose(blur.forward(x).numpy(), expected, atol=1e-12)


def test_the_expansion_meets_the_accuracy_and_interpolates_a_smooth_field():
    assert LATERAL.expanded(1e-3).error < 1e-3
    assert LATERAL.expanded(1e-3).rank < len(LATERAL.psfs)
    between = gaussian((2.0 + 0.05 * 5, 2.0, 2.0 + 0.03 * 11), VOXEL_UM, (9, 9, 9)).values
    found = LATERAL.expanded(1e-5).psf_at((5.0, 3.0, 11.0))
    assert np.linalg.norm(found - between) < 2e-3 * np.linalg.norm(between)


def test_scattered_positions_follow_the_same_field():
    rng = np.random.default_rng(1)
    places = rng.uniform(0, (16, 20), (40, 2))
    places[:4] = [(0, 0), (0, 20), (16, 0), (16, 20)]
    found = widening(places).expanded(1e-4).psf_at((6.0, 3.0, 9.0))
    between = gaussian((2.3, 2.0, 2.27), VOXEL_UM, (9, 9, 9)).values
    assert np.linalg.norm(found - between) < 5e-3 * np.linalg.norm(between)


def test_a_field_of_one_psf_is_its_blur():
    psf = gaussian((2.0, 2.0, 3.0), VOXEL_UM, (7, 8, 9)).values
    field = PsfField(np.stack([psf, psf]), [[0, 0, 0], [9, 0, 0]], VOXEL_UM)
    varying, plain = VaryingBlur.of(field, (10, 11, 12)), Blur(torch.tensor(psf), (10, 11, 12))
    assert varying.expansion.rank == 1
    x = torch.rand(plain.domain_shape)
    torch.testing.assert_close(varying.forward(x), plain.forward(x.double()).float())


def test_flux_is_exact_at_any_rank():
    blur = VaryingBlur.of(LATERAL, (17, 10, 21), rank=2, dtype=torch.float64)
    x = torch.zeros(blur.domain_shape, dtype=torch.float64)
    x[blur.window][4:-4, 4:-4, 4:-4] = torch.rand(9, 2, 13, dtype=torch.float64)
    torch.testing.assert_close(blur.forward(x).sum(), x.sum())


def test_blended_tiles_come_to_the_same_image():
    blur = VaryingBlur.of(LATERAL, (17, 10, 21), accuracy=1e-6, dtype=torch.float64)
    tiled = TiledBlur(blur.expansion, (5, 1, 6), blur)
    assert dot_test(tiled) < 1e-14
    x = torch.rand(blur.domain_shape, dtype=torch.float64)
    error = (tiled.forward(x) - blur.forward(x)).norm() / blur.forward(x).norm()
    assert error < 1e-3


def test_a_binned_blur_is_the_blur_of_the_binned_camera():
    """A smooth object, blurred then binned, against binned then blurred."""
    blur = VaryingBlur.of(LATERAL, (16, 12, 20), dtype=torch.float64)
    coarse = blur.binned((2, 2, 2), (8, 6, 10))
    x = torch.ones(blur.domain_shape, dtype=torch.float64)
    fine = blur.forward(x).reshape(8, 2, 6, 2, 10, 2).sum((1, 3, 5))
    again = coarse.forward(torch.full(coarse.domain_shape, 8.0, dtype=torch.float64))
    torch.testing.assert_close(again, fine, rtol=2e-3, atol=0)


def recorded(field, shape, peak, seed, paint=filaments):
    blur = VaryingBlur.of(field, shape)
    truth = torch.from_numpy(paint(blur.domain_shape, seed)).float() * peak
    mean = blur.forward(truth).clamp_min(0) + 2
    image = torch.poisson(mean, generator=torch.Generator().manual_seed(seed))
    return Problem((Observation(image, blur, 2.0),)), truth[blur.window]


def correlation(a, b):
    return float(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


STRONG = PsfField(
    np.stack([gaussian((3 + w, 2 + w, 2 + w), VOXEL_UM, (15, 13, 13)).values for w in (0, 1, 2)]),
    [[0, 0, 0], [0, 0, 15], [0, 0, 31]],
    VOXEL_UM,
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_unmatched_way_back_is_faster(structure):
    """At equal cost, with the alpha of the photons, on seeds that chose no parameter."""
    problem, truth = recorded(STRONG, (16, 32, 32), 200.0, 301, STRUCTURES[structure])
    unmatched = WienerButterworth(cutoff_fwhm=2**-0.5).tuned(alpha_for(problem))
    slow, fast = RichardsonLucy(5)(problem), RichardsonLucy(5, unmatched)(problem)
    assert correlation(fast.image, truth) > correlation(slow.image, truth)


def test_both_ways_back_have_an_exact_adjoint():
    blur = VaryingBlur.of(STRONG, (16, 32, 32))
    for projector in (WienerButterworth(alpha=0.6, cutoff_fwhm=2**-0.5), Matched()):
        assert dot_test(back_projection(blur, projector), dtype=torch.float32) < 1e-6


def test_the_guarded_restorer_solves_a_varying_blur_better_than_with_one_psf():
    problem, truth = recorded(STRONG, (16, 32, 32), 400.0, 4)
    varying = Accelerated()(problem)
    o = problem.observations[0]
    one = Accelerated()(Problem((Observation(o.image, o.operator.typical, o.background),)))
    assert len({step["binning"] for step in varying.stats["path"]}) > 1
    assert correlation(varying.image, truth) > correlation(one.image, truth)
    assert correlation(varying.image, truth) > correlation(o.image, truth) + 0.05
    assert Accelerated().peak_bytes(problem) > 0


def test_refuses_what_cannot_be_done():
    psf = np.ones((2, 3, 3, 3)) / 27
    with pytest.raises(InputError, match="same position"):
        PsfField(psf, np.zeros((2, 3)), VOXEL_UM)
    with pytest.raises(InputError, match="one position for every PSF"):
        PsfField(psf, np.zeros((3, 3)), VOXEL_UM)
    with pytest.raises(ParameterError, match="accuracy must lie"):
        LATERAL.expanded(0.0)
    with pytest.raises(ParameterError, match="cannot go back"):
        back_projection(VaryingBlur.of(DEPTH, (17, 10, 21)), Gaussian())
