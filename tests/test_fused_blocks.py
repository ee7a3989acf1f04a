"""Fusion block by block: blocks are the parts of the whole, and read only what they need."""

import numpy as np
import pytest
import torch

from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.fused_blocks import (
    StoredView,
    fused_block,
    halo_of_views,
    measured_views,
)
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.noise import Noise
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import Camera
from pellucid.core.views import View
from pellucid.errors import InputError

WORLD = Grid((20, 20, 84), 1.0, frame="world")
PSF = gaussian((2.6, 1.5, 1.5), (1.0, 1.0, 1.0))
PHOTONS = Noise(1.0, 0.0, 0.0)
CORES = [(slice(0, 20), slice(0, 20), slice(a, min(a + 28, 84))) for a in (0, 28, 56)]
WB = WienerButterworth(cutoff_fwhm=2**-0.5, alpha=0.6)


class Read:
    """An array that notes what is read of it."""

    def __init__(self, values):
        self.values, self.shape, self.voxels = values, values.shape, 0

    def __getitem__(self, key):
        part = self.values[key]
        self.voxels += part.size
        return part


def scattered(shape, seed):
    rng = np.random.default_rng(seed)
    thing = np.zeros(shape)
    thing[tuple((rng.random((60, 3)) * np.array(shape)).astype(int).T)] = rng.uniform(0.3, 1, 60)
    return thing + 0.02


RECORDING = record_views(
    scattered, WORLD, turned_arms(DUAL_DEG, WORLD, [PSF], misplaced=0.5, seed=4), peak_photons=400,
    background_photons=5.0, camera=Camera(gain=1.0, offset=0.0, read_noise=0.0), seed=6,
)  # fmt: skip


def stored(**known):
    return [
        StoredView(Read(v.counts), v.grid, v.world_to_view, v.psf, 5.0, PHOTONS, **known)
        for v in RECORDING.views
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 6, "back_projector": Matched()},
        {"iterations": 3, "back_projector": Matched(), "update": "alternating"},
        {"iterations": 2, "back_projector": WB},
    ],
    ids=["matched", "view after view", "unmatched"],
)
def test_blocks_are_the_parts_of_the_whole(options):
    views = [
        View(v.counts, v.grid, v.world_to_view, v.psf, 5.0, PHOTONS, 1.0) for v in RECORDING.views
    ]
    whole = fuse(views, WORLD, **options).image
    known = measured_views(stored(brightness=1.0), WORLD)
    halo = halo_of_views(stored(), WORLD)
    assert halo[2] < 28 < WORLD.shape[2] / 2
    blocks = [fused_block(known, WORLD, core, halo=halo, **options) for core in CORES]
    error = float((torch.cat(blocks, 2) - whole).abs().max() / whole.max())
    assert error < 2e-4
    # the halo is what makes them so
    bare = [fused_block(known, WORLD, core, halo=(0, 0, 0), **options) for core in CORES]
    assert float((torch.cat(bare, 2) - whole).abs().max() / whole.max()) > 2 * error


def test_a_block_reads_what_it_needs_of_each_view():
    views = stored(brightness=1.0)
    known = measured_views(views, WORLD)
    for view in views:
        view.volume.voxels = 0
    fused_block(known, WORLD, CORES[0], halo=(0, 0, 4), iterations=1)
    # the second view, turned, sees the middle of the world, and of that the block's border
    shares = [view.volume.voxels / view.volume.values.size for view in views]
    assert 28 / 84 < shares[0] < 0.5
    assert 0.03 < shares[1] < 0.1


def test_brightness_and_start_are_measured_on_the_whole():
    dim = stored()
    dim[1] = StoredView(
        Read(RECORDING.views[1].counts // 2), *list(vars(dim[1]).values())[1:4], 2.5, PHOTONS
    )
    known = measured_views(dim, WORLD)
    assert known.views[0].brightness == 1.0
    assert known.views[1].brightness == pytest.approx(0.47, abs=0.06)
    first, second = (float(np.mean(view.volume.values)) for view in dim)
    assert known.start == pytest.approx((first - 5 + second - 2.5) / 2, rel=0.01)


def test_a_place_that_the_first_view_does_not_see_keeps_its_units():
    first, second = stored(brightness=1.0)
    aside = Affine.translation((0, 0, 500.0), source="world", target=first.world_to_view.target)
    away = StoredView(first.volume, first.grid, aside, first.psf, 5.0, PHOTONS, 1.0)
    both = measured_views([first, second], WORLD)
    # with the first view elsewhere, its voxels still say what a value is
    half = measured_views([away, second], WORLD)
    options = {"halo": (0, 0, 8), "iterations": 4}
    middle = (slice(3, 17), slice(3, 17), slice(37, 47))
    seen, alone = (fused_block(k, WORLD, middle, **options) for k in (both, half))
    assert float(alone.sum() / seen.sum()) == pytest.approx(1, abs=0.1)
    nowhere = measured_views([away, second], WORLD)
    nowhere = type(nowhere)(nowhere.views[:1], nowhere.start)
    assert not fused_block(nowhere, WORLD, middle, **options).any()


def test_a_dark_view_is_named():
    views = stored()
    views[1] = StoredView(np.full(views[1].grid.shape, 5.0), *list(vars(views[1]).values())[1:])
    with pytest.raises(InputError, match="shows no light above its background of 5 counts"):
        measured_views(views, WORLD)


def test_blocks_leave_out_what_was_never_recorded_as_the_whole_does():
    camera = Noise(1.0, 100.0, 0.0)
    cut = []
    for view in RECORDING.views:
        counts = view.counts + 100
        counts[:6, :, : counts.shape[2] // 3] = 0
        cut.append(counts)
    whole = fuse(
        [View(c, v.grid, v.world_to_view, psf=v.psf, background=105.0, noise=camera)
         for c, v in zip(cut, RECORDING.views, strict=True)],
        world=WORLD, iterations=4, back_projector=Matched(),
    )  # fmt: skip
    views = [
        StoredView(c, v.grid, v.world_to_view, v.psf, 105.0, camera)
        for c, v in zip(cut, RECORDING.views, strict=True)
    ]
    known = measured_views(views, WORLD)
    assert all(one.fill is not None and one.fill.value == 0 for one in known.views)
    halo = halo_of_views(views, WORLD)
    blocks = [fused_block(known, WORLD, core, halo=halo, iterations=4) for core in CORES]
    error = torch.cat(blocks, 2).sub(whole.image).abs()
    assert float(error.max()) < 1e-3 * float(whole.image.max())
