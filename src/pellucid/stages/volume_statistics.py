"""What is measured of a whole volume before its first tile: samples, and one pass over all voxels."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.core.coverage import Fill, FillChoice, fill_of
from pellucid.core.deconvolution import camera_as_used
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.sampling import block_means
from pellucid.core.tiling import Box, Tiling
from pellucid.data.recording import Recording
from pellucid.errors import InputError

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
SAMPLED_VOXELS = 4_000_000
SLAB_PLANES, SLAB_ROWS, SLAB_VOXELS = 64, 128, 4_000_000
"""What is measured at a time: whole chunks of what Pellucid writes, 100 MiB with all copies."""

DARK_BLOCK_SIGMAS, DARK_VOXEL_SIGMAS = 8.0, 8.0
"""A core is empty where no mean of 4 x 8 x 8 voxels, and no voxel, stands out by so many standard
deviations of the noise at the background. The background is that of the darkest 2 % of such means,
2.4 deviations below the middle of empty ones, so that chance has 5.6 left."""


@dataclass(frozen=True)
class LazyVolume:
    """One time point and channel of a recording, sliced like an array and read on demand."""

    recording: Recording
    t: int
    c: int

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.recording.shape[2:]
        return z, y, x

    def __getitem__(self, box: Any) -> Any:
        return self.recording.read(self.t, self.c, *box)


@dataclass(frozen=True)
class VolumeStatistics:
    """What all tiles of a volume share.

    Parameters
    ----------
    background : counts of the empty regions
    noise : of the camera; where it cannot be measured, `reliable` is False
    gain : counts per photon that are used
    offset, read_noise : counts, as used
    start : mean photons above background: the flat start
    percentiles : of the counts, by name
    dark_block, dark_voxel : counts below which a core is empty
    empty : cores without light; they become zeros
    typical : the core that stands for the others: half of the light lies in darker ones
    fill_value, fill_below, fill_margin_px : of voxels that were never recorded (`Fill`), where there
        are any; they take no part in all the above
    recorded_share : of the voxels
    """

    background: float
    noise: dict[str, Any]
    gain: float
    offset: float
    read_noise: float
    start: float
    percentiles: dict[str, float]
    dark_block: float
    dark_voxel: float
    empty: tuple[int, ...]
    typical: int
    fill_value: float | None = None
    fill_below: float | None = None
    fill_margin_px: int = 0
    recorded_share: float = 1.0

    @property
    def fill(self) -> Fill | None:
        """What stands where nothing was recorded."""
        if self.fill_value is None:
            return None
        return Fill(self.fill_value, self.fill_below, self.fill_margin_px)

    @property
    def camera(self) -> Noise:
        """The camera as used: always taken at its word."""
        return Noise(self.gain, self.offset, self.read_noise)


def measured(
    volume: LazyVolume, tiling: Tiling, background: float | None, choice: FillChoice = "auto"
) -> VolumeStatistics:
    """Measure a volume: noise and background from samples, the rest in one pass, core by core."""
    fill = fill_of(volume, choice)
    fill_known: FillChoice = fill or "none"
    noise = estimate_noise(volume, fill=fill_known)
    level = float(estimate_background(volume, fill=fill_known)) if background is None else background
    camera = camera_as_used(volume, noise, level, fill)
    sigma = math.sqrt(max(float(noise.variance(level)), 0.0)) if noise.reliable else 0.0
    dark_block = level + DARK_BLOCK_SIGMAS * sigma / 16
    dark_voxel = level + DARK_VOXEL_SIGMAS * sigma
    every = max(1, math.prod(volume.shape) // SAMPLED_VOXELS)
    samples: list[Any] = []
    # no photons are left at this count, and below
    floor = float(np.float32(camera.offset - camera.read_noise**2 / camera.gain))
    lights, total, empty, voxels = [], 0.0, [], 0
    lowest, highest = math.inf, -math.inf
    for tile in tiling:
        lit, recorded, brightest_block, brightest = 0.0, 0, level, -math.inf
        for slab, least, most in _slabs(volume, tile.core):
            seen = None if fill is None else fill.recorded(slab)
            if fill is None or seen is None or seen.all():
                means, light, known = block_means([slab], None), slab, slab
            else:
                means = block_means([fill.spread(slab)], fill.value)
                light, known = np.where(seen, slab.astype(np.float32), np.float32(floor)), slab[seen]
                if known.size == 0:
                    continue
                least, most = float(known.min()), float(known.max())
            lit, recorded = lit + _sum_above(light, floor), recorded + known.size
            lowest, brightest = min(lowest, least), max(brightest, most)
            brightest_block = max(brightest_block, float(means.max(initial=level)))
            samples.append(known.ravel()[::every].copy())
        voxels += recorded
        total += lit / camera.gain
        lights.append(_rounded((lit - recorded * (level - floor)) / camera.gain))
        highest = max(highest, brightest)
        if brightest_block <= dark_block and brightest <= dark_voxel:
            empty.append(tile.index)
    if voxels == 0:
        raise InputError(
            "fill: every voxel is taken as never recorded. State another value, or none (--fill none)."
        )
    check_background(background, lowest, highest)
    values = np.percentile(np.concatenate(samples), PERCENTILES)
    share = voxels / math.prod(volume.shape)
    fill = None if share == 1 else fill
    return VolumeStatistics(
        level, noise.as_dict(), camera.gain, camera.offset, camera.read_noise,
        start=_rounded(max(sum(lights), 1e-3 * total) / voxels),
        percentiles={f"{p:g}": float(v) for p, v in zip(PERCENTILES, values, strict=True)},
        dark_block=dark_block, dark_voxel=dark_voxel, empty=tuple(empty),
        typical=_typical(lights, set(empty)), fill_value=None if fill is None else fill.value,
        fill_below=None if fill is None else fill.below,
        fill_margin_px=0 if fill is None else fill.margin_px, recorded_share=share,
    )  # fmt: skip


def _rounded(value: float) -> float:
    """Six digits: more would depend on the order in which voxels are added."""
    return float(f"{value:.6g}")


def _sum_above(slab: Any, floor: float) -> float:
    """Sum of what exceeds `floor`.

    Planes are added voxel by voxel first: one order on every machine, and no copy of the slab.
    """
    added = np.zeros(slab.shape[1:], np.float32)
    for plane in slab:
        added += np.maximum(plane.astype(np.float32, copy=False), np.float32(floor))
    return float(added.sum(dtype=np.float64)) - floor * int(slab.size)


def _slabs(volume: LazyVolume, core: Box) -> Iterator[tuple[Any, float, float]]:
    """Counts of a core, slab by slab, with the least and the most of each."""
    z, y, x = core
    rows = max(SLAB_VOXELS // (SLAB_PLANES * (x.stop - x.start)) // SLAB_ROWS, 1) * SLAB_ROWS
    starts = itertools.product(range(z.start, z.stop, SLAB_PLANES), range(y.start, y.stop, rows))
    for start, first in starts:
        planes = slice(start, min(start + SLAB_PLANES, z.stop))
        slab = volume[planes, slice(first, min(first + rows, y.stop)), x]
        least, most = float(slab.min()), float(slab.max())
        if not math.isfinite(least + most):  # a NaN is both the least and the most
            raise InputError(
                f"{volume.recording.path.name}: voxels that are NaN or infinite in planes "
                f"{planes.start} to {planes.stop - 1}. Replace them before deconvolving."
            )
        yield slab, least, most


def _typical(lights: list[float], empty: set[int]) -> int:
    lit = sorted((light, i) for i, light in enumerate(lights) if i not in empty)
    if not lit:
        return 0
    share = np.cumsum([max(light, 0.0) for light, _ in lit])
    return lit[min(int(np.searchsorted(share, share[-1] / 2)), len(lit) - 1)][1]
