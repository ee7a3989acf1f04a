"""Voxels that were never recorded have no weight: beside them an estimate is as beside a border."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from microscopes import LIGHT_SHEET, gaussian_psf, problem_for, recorded
from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.boundary import weight_of
from pellucid.core.coarsening import binned
from pellucid.core.deconvolution import deconvolve
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.noise import Noise
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.quality import measure, ncc, reblur_residual
from pellucid.core.replay import Replay, decided, start_of
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import Camera, nuclei, record
from pellucid.core.views import View

SHAPE = (24, 48, 64)
PSF = gaussian_psf((13, 11, 11), (4.0, 3.0, 3.0))


def restorers(problem):
    guarded = Accelerated()
    yield guarded
    yield RichardsonLucy(6)
    yield RichardsonLucy(3, WienerButterworth(alpha=1.0))
    yield RichardsonLucy(6, start="low-passed")
    yield Replay(decided(guarded, problem, start_of([problem])))


def masked(problem, mask, junk=0.0):
    (o,) = problem.observations
    image = torch.where(mask, o.image, torch.as_tensor(junk, dtype=o.image.dtype))
    return Problem((Observation(image, o.operator, o.background, mask),))


def test_a_mask_of_ones_changes_nothing_but_rounding():
    problem = problem_for(recorded())
    everywhere = masked(problem, torch.ones(problem.observations[0].image.shape, dtype=torch.bool))
    for plain, same in zip(restorers(problem), restorers(everywhere), strict=True):
        assert torch.allclose(plain(problem).image, same(everywhere).image, rtol=2e-3, atol=2e-2)


def test_what_stands_where_nothing_was_recorded_is_not_looked_at():
    problem = problem_for(recorded())
    mask = torch.ones(problem.observations[0].image.shape, dtype=torch.bool)
    mask[:, :12, :9] = mask[5:, 20:, 25:] = False
    zeros, junk = masked(problem, mask), masked(problem, mask, 1e4)
    for one, other in zip(restorers(zeros), restorers(junk), strict=True):
        assert torch.allclose(one(zeros).image, other(junk).image, rtol=1e-4, atol=1e-4), one


def test_a_masked_end_is_an_end_of_the_volume():
    seen = recorded()
    whole = problem_for(seen, dtype=torch.float64)
    mask = torch.ones(seen.counts.shape, dtype=torch.bool)
    mask[..., 22:] = False
    image = torch.from_numpy(seen.counts[..., :22].astype(np.float64))
    cut = Problem((Observation(image, Blur(torch.from_numpy(LIGHT_SHEET), image.shape), 2.0),))
    for restorer in (RichardsonLucy(8), RichardsonLucy(8, momentum="heavy-ball")):
        there = restorer(masked(whole, mask)).image[..., :22]
        assert torch.allclose(there, restorer(cut).image, rtol=1e-3)


def test_matched_iterations_climb_the_likelihood_of_what_was_recorded():
    problem = problem_for(recorded(), dtype=torch.float64)
    mask = torch.rand(problem.observations[0].image.shape, generator=torch.manual_seed(0)) > 0.3
    divergences = RichardsonLucy(12)(masked(problem, mask)).stats["i_divergence"]
    assert all(b < a for a, b in pairwise(divergences))


def test_sensitivity_is_the_adjoint_of_the_mask_and_binned_voxels_carry_their_share():
    problem = problem_for(recorded(), dtype=torch.float64)
    mask = torch.ones(problem.observations[0].image.shape, dtype=torch.bool)
    mask[:, :, :11] = False
    coarse = binned(masked(problem, mask), (1, 2, 2)).observations[0]
    assert coarse.recorded[0, 0, 4:7].tolist() == [0.0, 0.5, 1.0]
    assert torch.allclose(coarse.image[..., :5], torch.tensor(8.0, dtype=torch.float64))
    (o,) = masked(problem, mask).observations
    weight = weight_of(Problem((o,)), 1e-6)
    back = o.operator.adjoint(mask.double())
    seen = back > 0.02 * back.max()
    assert torch.allclose(weight[seen], 1 / back[seen])
    assert not weight[~seen].any()


@pytest.fixture(scope="module")
def holed():
    whole = record(nuclei, PSF, SHAPE, peak_photons=200.0, camera=Camera(gain=2.0), seed=5)
    mask = np.ones(SHAPE, bool)
    for plane in range(SHAPE[0]):
        mask[plane, :, : SHAPE[0] - plane] = mask[plane, :, SHAPE[2] - plane :] = False
    mask[:, :18, 26:40] = False
    return whole, mask


@pytest.mark.parametrize("iterations", [None, 10])
def test_beside_a_hole_the_result_is_as_good_as_beside_a_border(holed, iterations):
    whole, mask = holed
    counts = np.where(mask, whole.counts, 0)
    chosen = {"method": "matched", "iterations": iterations, "noise": Noise(2.0, 100.0, 2.0)}
    masked_result = deconvolve(counts, PSF, **chosen)
    edged = deconvolve(counts, PSF, **chosen, fill="none")
    result = masked_result.image.numpy()
    assert not result[~mask].any()
    assert masked_result.stats["fill"]["share"] == pytest.approx(1 - mask.mean())
    assert masked_result.stats["background"] == pytest.approx(104, rel=0.01)
    near = mask & (np.abs(np.arange(SHAPE[0]) - 12) < 9)[:, None, None]
    assert ncc(result[near][None], whole.truth[near][None]) > 0.05 + ncc(
        edged.image.numpy()[near][None], whole.truth[near][None]
    )
    if iterations is None:
        model = masked_result.models[0].numpy()
        judged = reblur_residual(counts, model, chosen["noise"], recorded=mask)
        assert judged.overall_chi2 == pytest.approx(1, abs=0.05)
        assert f"chi2 {judged.overall_chi2:.3f}" in masked_result.stats["residual"]


def test_measured_figures_are_of_the_recorded_voxels(holed):
    whole, mask = holed
    plain = measure(whole.counts, (0.3, 0.2, 0.2))
    quality = measure(np.where(mask, whole.counts, 0), (0.3, 0.2, 0.2))
    assert quality.background.level == pytest.approx(plain.background.level, rel=0.01)
    assert quality.percentiles[50.0] == pytest.approx(plain.percentiles[50.0], rel=0.02)
    assert any("never recorded" in note for note in quality.notes)
    assert not any("never recorded" in note for note in plain.notes)


@pytest.mark.parametrize("how", ["joint", "resample-then-joint", "average"])
def test_a_hole_in_one_view_is_filled_by_the_other(holed, how):
    whole, _ = holed
    first = whole.counts.copy()
    first[:, :30, :30] = 0
    second = record(nuclei, PSF, SHAPE, peak_photons=200.0, camera=Camera(gain=2.0), seed=5).counts.copy()
    second[:, 30:, 40:] = 0
    camera = Noise(2.0, 100.0, 2.0)
    views = [
        View(image, Grid(SHAPE, (0.2, 0.2, 0.2), frame=name), Affine.identity(source="world", target=name),
             PSF, noise=camera)
        for image, name in ((first, "a"), (second, "b"))
    ]  # fmt: skip
    world = Grid(SHAPE, (0.2, 0.2, 0.2), frame="world")
    image = fuse(views, world, how=how, iterations=6, back_projector=Matched()).image.numpy()
    holes = [np.s_[:, 4:24, 4:24], np.s_[:, 34:, 44:60]]
    wanted = whole.truth if how != "average" else whole.photons
    for hole in holes:
        assert ncc(image[hole], wanted[hole]) > 0.75
    assert image[holes[0]].mean() == pytest.approx(image[:, 4:24, 32:38].mean(), rel=1.5)
