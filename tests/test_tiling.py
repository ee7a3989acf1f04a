"""Tiles partition the volume, and restoring by tiles is restoring the whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import METHODS
from pellucid.core.boundary import seen_through
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.quality import ncc
from pellucid.core.replay import Replay, box_mean, continued_locally, decided, start_of
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.core.tiling import Tiling, halo_of, plan
from pellucid.errors import PlanError

sizes = st.tuples(*[st.integers(1, 40)] * 3)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.sampled_from([(1, 1, 1), (2, 4, 4)]))
def test_cores_partition_the_volume_and_lie_within_what_is_read(shape, core, halo, step):
    times = np.zeros(shape, int)
    tiling = Tiling(shape, core, halo, step, 0)
    for tile in tiling:
        times[tile.core] += 1
        for c, r, h, s, n in zip(tile.core, tile.read, halo, step, shape, strict=True):
            assert max(c.start - h, 0) >= r.start
            assert r.start % s == 0
            assert min(c.stop + h, n) <= r.stop <= n
            assert r.stop % s == 0 or r.stop == n
    assert (times == 1).all()


def bytes_of(shape):
    return 40 * int(np.prod(shape))


@pytest.mark.parametrize("budget", [30, 100, 300, 10_000])
def test_a_plan_fits_and_is_aligned(budget):
    tiling = plan(
        (200, 500, 500), halo=(8, 8, 8), reach=(9, 9, 9), align=(32, 64, 64),
        peak_bytes=bytes_of, budget_bytes=budget * 2**20, step=(2, 4, 4),
    )  # fmt: skip
    assert tiling.peak_bytes <= budget * 2**20
    for tile in tiling:
        read = [r.stop - r.start for r in tile.read]
        assert bytes_of(read) <= tiling.peak_bytes
        assert all(c.start % a == 0 for c, a in zip(tile.core, (32, 64, 64), strict=True))
    assert budget < 10_000 or len(tiling) == 1


def test_two_cores_have_one_neighbour_each_and_fit_where_that_does():
    shape, halo = (64, 256, 256), (52, 79, 79)
    asked = {"halo": halo, "reach": (9, 9, 9), "align": (64, 128, 128), "peak_bytes": math.prod}
    tiling = plan(shape, budget_bytes=64 * 207 * 207, **asked)
    assert tiling.counts == (1, 2, 2)
    assert max(math.prod(p.stop - p.start for p in tile.read) for tile in tiling) == tiling.peak_bytes
    with pytest.raises(PlanError):
        plan(shape, budget_bytes=64 * 207 * 207 - 1, **asked)


def test_a_plan_that_cannot_fit_says_what_it_needs():
    with pytest.raises(PlanError, match=r"smallest.*core of \(32, 64, 64\).*needs"):
        plan(
            (200, 500, 500), halo=(8, 8, 8), reach=(9, 9, 9), align=(32, 64, 64),
            peak_bytes=bytes_of, budget_bytes=2**20,
        )  # fmt: skip


def recording(shape=(48, 64, 192), seed=3):
    rng = np.random.default_rng(seed)
    kernel = np.exp(-0.5 * sum(
        (a / s) ** 2 for a, s in zip(np.ogrid[-6:7, -4:5, -4:5], (2.4, 1.5, 1.5), strict=True)
    ))  # fmt: skip
    psf = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
    truth = np.zeros(shape, np.float32)
    points = [rng.integers(0, n, 400) for n in shape]
    np.add.at(truth, tuple(points), rng.uniform(2000, 20000, 400))
    blur = Blur(psf, shape, extended=False)
    image = rng.poisson(blur.forward(torch.from_numpy(truth)).numpy().clip(0) + 20.0)
    return torch.from_numpy(image.astype(np.float32)), psf


def problem_of(image, psf):
    z, y, x = image.shape
    return Problem((Observation(image, Blur(psf, (z, y, x)), 20.0),))


def restorer_of(name, whole):
    start = start_of([whole])
    if name == "guarded":
        return Replay(decided(Accelerated(), whole, start))
    return RichardsonLucy(10 if name == "matched" else 2, METHODS[name], start=start)


def in_a_box_with_room(psf):
    return torch.from_numpy(roomy(Psf.normalised(psf.double().numpy())))


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("name", ["matched", "wiener-butterworth", "guarded"])
def test_tiles_equal_the_whole_without_seams(name, width):
    image, psf = recording()
    psf = in_a_box_with_room(psf)
    whole = problem_of(image, psf)
    restorer = restorer_of(name, whole)
    expected = restorer(whole).image
    step = restorer.schedule.coarsest if name == "guarded" else (1, 1, 1)
    tiled = torch.empty_like(expected)
    for tile in Tiling((48, 64, 192), (48, 64, width), halo_of(psf.numpy()), step, 0):
        part = restorer(problem_of(image[tile.read].contiguous(), psf))
        assert not part.stats["ran_away"]
        tiled[tile.core] = part.image[tile.inner]
    error = (tiled - expected).abs() / float(expected.max() - expected.min())
    assert float(error.max()) < 1e-3
    assert float(np.quantile(error.numpy(), 0.999)) < 1e-4
    assert seam(tiled, width) == pytest.approx(seam(expected, width), rel=1e-2)
    spoiled = tiled.clone()
    spoiled[..., width : 2 * width] *= 1.1
    assert seam(spoiled, width) != pytest.approx(seam(expected, width), rel=1e-2)


def seam(image, width):
    """Mean gradient across the borders of cores, as a share of that elsewhere."""
    gradient = image.diff(dim=-1).abs().mean(dim=(0, 1))
    borders = torch.arange(width, image.shape[-1], width) - 1
    return float(gradient[borders].mean() / gradient.mean())


def test_a_halo_has_the_size_of_the_psf_and_none_on_a_flat_axis():
    _, psf = recording((24, 24, 24))
    z, y, x = halo_of(psf.numpy())
    assert z > y == x >= 5 * 3.5
    tails = psf + 0.002 * (1 - torch.linspace(-1, 1, 9) ** 2)
    assert halo_of(in_a_box_with_room(tails).numpy())[2] >= x
    assert halo_of(psf[6:7].numpy())[0] == 0


@pytest.mark.parametrize("structure", ["filaments", "nuclei"])
def test_the_schedule_of_a_sample_restores_another_place_nearly_as_well(structure):
    _, psf = recording((24, 24, 24))
    recorded = record(
        STRUCTURES[structure], psf.numpy(), (32, 48, 192), peak_photons=300.0,
        background_photons=20.0, camera=Camera(1.0, 0.0, 0.0), seed=21,
    )  # fmt: skip
    image, truth = torch.from_numpy(recorded.counts.astype(np.float32)), recorded.truth[..., 96:]
    sample, other = (problem_of(image[..., s].contiguous(), psf) for s in (slice(0, 96), slice(96, 192)))
    replayed = Replay(decided(Accelerated(), sample, start_of([sample])))(other).image
    guarded = Accelerated()(other).image
    assert ncc(replayed.numpy(), truth) > ncc(guarded.numpy(), truth) - 0.02
    assert ncc(replayed.numpy(), truth) > ncc(image[..., 96:].numpy(), truth) + 0.02


@pytest.mark.parametrize("planes", [1, 5, 17, 40])
def test_neighbourhoods_are_averaged_the_same_by_slabs_of_any_depth(planes):
    random = np.random.default_rng(planes)
    x, before = (torch.from_numpy(random.uniform(1, 2, (planes, 9, 9)).astype("f4")) for _ in range(2))
    found = continued_locally(x, before.clone(), 0.5, 1e-6, (4, 2, 2))
    p = x * (x / (before + 1e-6)) ** 0.5
    light = box_mean(x, (4, 2, 2)) / box_mean(p, (4, 2, 2))
    torch.testing.assert_close(found, p * light, rtol=1e-5, atol=1e-5)
    middle = np.pad(x.numpy(), 4)[planes // 2 : planes // 2 + 9, 6:11, 6:11].mean()
    assert float(box_mean(x, (4, 2, 2))[planes // 2, 4, 4]) == pytest.approx(middle, rel=1e-5)


def test_tabled_weights_are_those_of_the_adjoint():
    _, psf = recording((24, 24, 24))
    lopsided = torch.nn.functional.pad(psf, (3, 0, 0, 1, 2, 0))
    for shape in ((20, 30, 26), (3, 40, 5)):
        blur = Blur(lopsided, shape)
        expected = blur.adjoint(torch.ones(shape))
        found = torch.cat([seen_through(blur)[z : z + 1] for z in range(blur.domain_shape[0])])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
