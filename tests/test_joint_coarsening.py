"""Several views on coarser grids: the same object, seen by coarser cameras."""

import numpy as np
import pytest
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.coarsening import binned_image
from pellucid.core.fusion import fuse, joint_problem
from pellucid.core.geometry import Grid
from pellucid.core.joint_coarsening import (
    joint_binned,
    joint_binned_images,
    joint_binnings,
    joint_refined,
)
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.noise import Noise
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.views import View, brightened, prepared

WORLD = Grid((32, 36, 40), 1.0, frame="world")
PSF = gaussian((6.0, 3.0, 3.0), (1.0, 1.0, 1.0))
PHOTONS = Noise(1.0, 0.0, 0.0)
RECORDING = record_views(
    STRUCTURES["shells"], WORLD, turned_arms(DUAL_DEG, WORLD, [PSF], planes_every=2, misplaced=1.0, seed=4),
    peak_photons=200, background_photons=2.0, camera=Camera(gain=1.0, offset=0.0, read_noise=0.0), seed=6,
)  # fmt: skip
VIEWS = [
    View(v.counts, v.grid, v.world_to_view, v.psf, 2.0, PHOTONS, 1.0) for v in RECORDING.views
]
PROBLEM = joint_problem(brightened([prepared(v, None) for v in VIEWS], WORLD), WORLD)


def blob(problem, light):
    """A smooth object, the same whatever the grid: `light` photons per voxel at its brightest."""
    grid = problem.observations[0].operator.inner.world
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    away = (grid.index_to_um.apply(index) - WORLD.centre_um) / (5.0, 6.0, 7.0)
    return torch.from_numpy(light * np.exp(-0.5 * (away**2).sum(-1)).astype(np.float32))


@pytest.mark.parametrize("f", [2, 4])
def test_the_coarse_problem_is_the_recording_of_a_coarser_camera(f):
    coarse = joint_binned(PROBLEM, (f, f, f))
    binnings = [
        np.rint(np.divide(c.operator.inner.view.spacing_um, o.operator.inner.view.spacing_um))
        for c, o in zip(coarse.observations, PROBLEM.observations, strict=True)
    ]
    light = float(np.prod(binnings[0]))
    seen = [o.operator.forward(blob(coarse, light)) for o in coarse.observations]
    for image, o, c, factors in zip(
        seen, PROBLEM.observations, coarse.observations, binnings, strict=True
    ):
        z, y, x = factors.astype(int).tolist()
        expected = binned_image(o.operator.forward(blob(PROBLEM, 1.0)), (z, y, x))
        assert image.shape == expected.shape == c.image.shape
        assert float((image - expected).abs().max() / expected.max()) < 0.02 * f
        assert c.background == pytest.approx(o.background * z * y * x)
    back = joint_refined(blob(coarse, light), coarse, PROBLEM)
    assert float((back - blob(PROBLEM, 1.0)).abs().max()) < 0.02 * f**2


def test_axes_that_a_view_samples_coarsely_are_binned_less():
    # of its 16 planes, every second voxel, only two at a time make one
    first = joint_binned_images(PROBLEM, (4, 4, 4))[0]
    assert tuple(first.shape) == (8, 9, 10)
    assert joint_binnings(PROBLEM) == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    thin = Grid((12, 36, 40), 1.0, frame="world")
    lit = brightened([prepared(v, None) for v in VIEWS], thin)
    assert joint_binnings(joint_problem(lit, thin)) == [(1, 1, 1)]


def test_fusion_starts_coarse_and_ends_better_for_it():
    inner = (slice(4, -4),) * 3

    def score(restored):
        return ncc(restored.image.numpy()[inner], RECORDING.truth[inner])

    default = fuse(VIEWS, WORLD)
    assert [default.stats["path"][i]["binning"] for i in (0, -1)] == [(4, 4, 4), (1, 1, 1)]
    assert score(default) > score(fuse(VIEWS, WORLD, iterations=10, back_projector=Matched()))


def test_light_does_not_depend_on_the_levels():
    restored = Accelerated(max_iterations=1)(PROBLEM)
    light = sum(float((o.image - o.background).sum()) for o in PROBLEM.observations)
    models = sum(
        float((m - o.background).sum())
        for m, o in zip(restored.models, PROBLEM.observations, strict=True)
    )
    assert models == pytest.approx(light, rel=0.1)  # after one step of an unmatched projector
