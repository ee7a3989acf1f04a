"""What is measured of a whole volume before its first tile: samples, and one pass over all voxels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pellucid.core.deconvolution import SUPPOSED_PHOTONS, in_photons
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.sampling import block_means, blocks_of
from pellucid.core.tiling import Box, Tiling
from pellucid.data.recording import Recording
from pellucid.errors import InputError

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
SAMPLED_VOXELS = 4_000_000
SLAB_PLANES = 64

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

    @property
    def camera(self) -> Noise:
        """The camera as used: always taken at its word."""
        return Noise(self.gain, self.offset, self.read_noise)


def measured(volume: LazyVolume, tiling: Tiling, background: float | None) -> VolumeStatistics:
    """Measure a volume: noise and background from samples, the rest in one pass, core by core."""
    noise = estimate_noise(volume)
    level = float(estimate_background(volume)) if background is None else background
    camera = _camera(volume, noise, level)
    sigma = math.sqrt(max(float(noise.variance(level)), 0.0)) if noise.reliable else 0.0
    dark_block = level + DARK_BLOCK_SIGMAS * sigma / 16
    dark_voxel = level + DARK_VOXEL_SIGMAS * sigma
    every = max(1, math.prod(volume.shape) // SAMPLED_VOXELS)
    samples: list[Any] = []
    lights, total, empty = [], 0.0, []
    lowest, highest = math.inf, -math.inf
    for tile in tiling:
        light, brightest_block, brightest = 0.0, -math.inf, -math.inf
        for slab in _slabs(volume, tile.core):
            photons, expected, _ = in_photons(torch.from_numpy(slab.astype(np.float32)), level, camera)
            total += float(photons.sum(dtype=torch.float64))
            light += float(photons.sub_(expected).sum(dtype=torch.float64))
            brightest = max(brightest, float(slab.max()))
            lowest = min(lowest, float(slab.min()))
            brightest_block = max(brightest_block, float(block_means([slab], None).max(initial=level)))
            samples.append(slab.ravel()[::every].copy())
        lights.append(light)
        highest = max(highest, brightest)
        if brightest_block <= dark_block and brightest <= dark_voxel:
            empty.append(tile.index)
    check_background(background, lowest, highest)
    values = np.percentile(np.concatenate(samples), PERCENTILES)
    voxels = math.prod(volume.shape)
    return VolumeStatistics(
        level, noise.as_dict(), camera.gain, camera.offset, camera.read_noise,
        start=max(sum(lights), 1e-3 * total) / voxels,
        percentiles={f"{p:g}": float(v) for p, v in zip(PERCENTILES, values, strict=True)},
        dark_block=dark_block, dark_voxel=dark_voxel, empty=tuple(empty),
        typical=_typical(lights, set(empty)),
    )  # fmt: skip


def _camera(volume: LazyVolume, noise: Noise, background: float) -> Noise:
    """The camera that turns counts into photons; where unknown, the brightest voxels hold 1000."""
    if noise.reliable and noise.gain > 0:
        return Noise(noise.gain, min(noise.offset, background), noise.read_noise)
    sampled = np.concatenate([block.ravel() for block in blocks_of(volume, "deconvolve")])
    bright, brightest = float(np.quantile(sampled, 0.999)), float(sampled.max())
    top = max(bright, background + 0.1 * (brightest - background))
    gain = (top - background) / SUPPOSED_PHOTONS if top > background else 1.0
    return Noise(gain, background, 0.0)


def _slabs(volume: LazyVolume, core: Box) -> Iterator[Any]:
    z, y, x = core
    for start in range(z.start, z.stop, SLAB_PLANES):
        planes = slice(start, min(start + SLAB_PLANES, z.stop))
        slab = volume[planes, y, x]
        if slab.dtype.kind == "f" and not np.isfinite(slab).all():
            raise InputError(
                f"{volume.recording.path.name}: voxels that are NaN or infinite in planes "
                f"{planes.start} to {planes.stop - 1}. Replace them before deconvolving."
            )
        yield slab


def _typical(lights: list[float], empty: set[int]) -> int:
    lit = sorted((light, i) for i, light in enumerate(lights) if i not in empty)
    if not lit:
        return 0
    share = np.cumsum([max(light, 0.0) for light, _ in lit])
    return lit[min(int(np.searchsorted(share, share[-1] / 2)), len(lit) - 1)][1]
