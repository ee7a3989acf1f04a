"""`pellucid.fuse`: views in memory, with their transforms or with angles only."""

from functools import cache

import numpy as np
import pytest
import torch

import pellucid
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import filaments
from pellucid.errors import InputError, ParameterError

WORLD = Grid((32, 32, 32), 1.0)


@cache
def recorded():
    psf = gaussian((6.0, 3.0, 3.0), (1.0, 1.0, 1.0))
    arms = turned_arms(DUAL_DEG, WORLD, [psf], misplaced=0.5, seed=2)
    return record_views(filaments, WORLD, arms, peak_photons=200, seed=4)


def views():
    return [pellucid.View(v.counts, v.grid, v.world_to_view, v.psf) for v in recorded().views]


def test_views_with_transforms_become_one_volume():
    fused = pellucid.fuse(views(), grid=WORLD)
    assert isinstance(fused.image, np.ndarray)
    assert fused.grid == WORLD
    assert fused.registrations == ()
    alone = pellucid.fuse(views()[:1], grid=WORLD)
    assert ncc(fused.image, recorded().truth) > ncc(alone.image, recorded().truth) + 0.02


def test_arrays_are_registered_from_their_angles():
    seen = recorded().views
    arrays, psfs = [v.counts for v in seen], [v.psf for v in seen]
    fused = pellucid.fuse(arrays, angles_deg=DUAL_DEG, spacing_um=1.0, psfs=psfs)
    (found,) = fused.registrations
    assert isinstance(found, pellucid.Registration)
    assert found.converged
    assert fused.grid.frame == "view 0"
    assert fused.voxel_um[0] == pytest.approx(1.0, abs=0.05)
    # the first arm stands in the world, turned by nothing: both ways lead to one image
    known = pellucid.fuse(views(), grid=WORLD)
    here = Grid(WORLD.shape, 1.0, frame="view 0")
    again = pellucid.fuse(
        arrays, angles_deg=DUAL_DEG, spacing_um=1.0, psfs=psfs[:1], grid=here
    )
    assert ncc(again.image[4:-4, 4:-4, 4:-4], known.image[4:-4, 4:-4, 4:-4]) > 0.97


def test_tensors_stay_tensors_and_an_average_needs_no_psf():
    tensors = [torch.from_numpy(v.counts.astype(np.float32)) for v in recorded().views]
    fused = pellucid.fuse(tensors, angles_deg=(0, 90), spacing_um=1.0, method="average")
    assert isinstance(fused.image, torch.Tensor)


def test_what_arrays_need_is_said():
    arrays = [v.counts for v in recorded().views]
    with pytest.raises(ParameterError, match="voxel size"):
        pellucid.fuse(arrays)
    with pytest.raises(ParameterError, match="an angle for each of 2 views, got none"):
        pellucid.fuse(arrays, spacing_um=1.0)
    with pytest.raises(ParameterError, match="3 PSFs for 2 views"):
        pellucid.fuse(arrays, spacing_um=1.0, psfs=[np.ones((3, 3, 3))] * 3)
    with pytest.raises(InputError, match="some of each"):
        pellucid.fuse([arrays[0], views()[1]], spacing_um=1.0)
    with pytest.raises(InputError, match=r"got shape \(32, 32\) for view 1"):
        pellucid.fuse([arrays[0], arrays[1][0]], spacing_um=1.0)
    with pytest.raises(InputError, match="view 1 cannot be registered to view 0: The moving view"):
        pellucid.fuse([arrays[0], np.zeros((32, 32, 32))], angles_deg=(0, 90), spacing_um=1.0)
    with pytest.raises(InputError, match="none"):
        pellucid.fuse([])
