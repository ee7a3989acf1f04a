"""Views on few voxels, read piece by piece: what is registered first where views are larger than memory."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Grid, Triple, as_triple
from pellucid.data.pyramid_levels import coarser_level
from pellucid.stages.view_series import ViewSeries
from pellucid.stages.volume_statistics import LazyVolume

Float32 = npt.NDArray[np.float32]
Volumes = tuple[LazyVolume, ...]
"""Channels that are summed."""

COARSE_VOXELS = 2_000_000
"""Of a view on which everything is registered first: `core.descent` would take no more either."""

SLAB_VOXELS = 16_000_000
"""Read at a time while a view without a pyramid is averaged down."""


def few_voxels(
    volumes: Volumes, grid: Grid, most_voxels: int = COARSE_VOXELS
) -> tuple[Float32, Grid]:
    """The sum of channels on at most about that many voxels: from the file's pyramid, or averaged."""
    images = []
    for volume in volumes:
        level, factor = coarser_level(volume.recording, most_voxels)
        within = _averaging(level.shape[2:], grid.spacing_um, factor, most_voxels)
        images.append(_averaged(LazyVolume(level, volume.t, volume.c), within))
        whole = [a * b for a, b in zip(factor, within, strict=True)]
    total = images[0] if len(images) == 1 else np.sum(images, axis=0)
    origin = grid.index_to_um.apply((np.asarray(whole) - 1) / 2)
    spacing = np.asarray(grid.spacing_um) * whole
    return total, Grid(total.shape, as_triple(spacing, "spacing"), as_triple(origin, "origin"), grid.frame)


def _averaging(
    shape: Sequence[int], spacing_um: Triple, factor: tuple[int, int, int], most_voxels: int
) -> list[int]:
    """Voxels to average along each axis, powers of two, the finest axis first."""
    size, step = list(shape), [s * f for s, f in zip(spacing_um, factor, strict=True)]
    within = [1, 1, 1]
    while math.prod(size) > most_voxels:
        axis = min((a for a in range(3) if size[a] > 1), key=lambda a: step[a])
        within[axis], step[axis], size[axis] = within[axis] * 2, step[axis] * 2, -(-size[axis] // 2)
    return within


def _averaged(volume: LazyVolume, factor: Sequence[int]) -> Float32:
    """The means over whole blocks of voxels, read slab by slab; a rest at the end is left out."""
    z, y, x = (n // f for n, f in zip(volume.shape, factor, strict=True))
    means = np.empty((z, y, x), np.float32)
    planes = max(1, SLAB_VOXELS // (volume.shape[1] * volume.shape[2] * factor[0]))
    for first in range(0, z, planes):
        last = min(first + planes, z)
        box = (
            slice(first * factor[0], last * factor[0]),
            slice(0, y * factor[1]),
            slice(0, x * factor[2]),
        )
        slab = np.asarray(volume[box], dtype=np.float32)
        blocks = slab.reshape(last - first, factor[0], y, factor[1], x, factor[2])
        means[first:last] = blocks.mean(axis=(1, 3, 5))
    return means


def volumes_of(view: ViewSeries, t: int, channels: Sequence[int]) -> Volumes:
    stored = [view.stored(t, c) for c in channels]
    return tuple(LazyVolume(place.recording, place.t, place.c) for place in stored)
