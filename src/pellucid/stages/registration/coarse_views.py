"""Views on few voxels, read piece by piece: what is registered where views are larger than memory.

    coarse = coarsened(views)
    found = to_fine(register_series(coarse, parameters), coarse)
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.descent import peak_bytes
from pellucid.core.geometry import Affine, Grid, Triple, as_triple
from pellucid.core.transform_series import SeriesRegistration
from pellucid.data.pyramid_levels import coarser_level
from pellucid.errors import InputError
from pellucid.stages.pieces.volume_statistics import LazyVolume
from pellucid.stages.registration.view_series import Sliced, ViewSeries

Float32 = npt.NDArray[np.float32]
Volumes = tuple[Sliced, ...]
"""Channels that are summed."""

COARSE_VOXELS = 2_000_000
"""Of a view on which everything is registered first: `core.descent` would take no more either."""

SLAB_VOXELS = 16_000_000
"""Read at a time while a view without a pyramid is averaged down."""


@dataclass(frozen=True)
class CoarseView(ViewSeries):
    """A view that is averaged down as it is read.

    Parameters
    ----------
    fine : the view; None only where dataclasses ask for it
    origin_um : where the first coarse voxel lies in the frame of `fine`
    """

    fine: ViewSeries | None = None
    origin_um: Triple = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, view: ViewSeries) -> "CoarseView":
        """The view on `COARSE_VOXELS` at most; as it is where it has no more."""
        own = {field.name: getattr(view, field.name) for field in dataclasses.fields(ViewSeries)}
        sound = next(
            (t, c) for t, time in enumerate(view.times) for c, name in enumerate(view.channels)
            if (time, name) not in view.broken
        )  # fmt: skip
        grid = _grid_of(view.grid, *_coarser(view.lazily(*sound), view.grid, COARSE_VOXELS)[1:])
        changed = {"shape": grid.shape, "voxel_um": grid.spacing_um}
        return cls(**{**own, **changed}, fine=view, origin_um=grid.origin_um)

    @property
    def is_coarser(self) -> bool:
        """Whether anything is averaged."""
        assert self.fine is not None
        return self.shape != self.fine.shape

    def read(self, t: int, c: int) -> npt.NDArray[Any]:
        """Means of pixels; see `ViewSeries.read`."""
        assert self.fine is not None
        image, _ = few_voxels((self.fine.lazily(t, c),), self.fine.grid, COARSE_VOXELS)
        if image.shape != self.shape:
            raise InputError(
                f"{self.name} t={self.times[t]}: its pyramid is another than that of other time points. "
                "Export it again."
            )
        return image


def coarsened(views: Sequence[ViewSeries]) -> list[CoarseView]:
    """The views on few voxels each."""
    return [CoarseView.of(view) for view in views]


def to_fine(found: SeriesRegistration, views: Sequence[CoarseView]) -> SeriesRegistration:
    """Transforms between coarse views as those between the views themselves."""
    return _moved(found, [np.asarray(view.origin_um) for view in views])


def to_coarse(given: SeriesRegistration, views: Sequence[CoarseView]) -> SeriesRegistration:
    """Affine transforms between views as those between the same on few voxels."""
    return _moved(given, [-np.asarray(view.origin_um) for view in views])


def _moved(series: SeriesRegistration, by_um: Sequence[npt.NDArray[np.float64]]) -> SeriesRegistration:
    """The transforms where the origin of every view lies elsewhere."""

    def moved(place: Affine, view: int) -> Affine:
        before = Affine.translation(-by_um[0], source=place.source, target=place.source)
        after = Affine.translation(by_um[view], source=place.target, target=place.target)
        return after @ place @ before

    transforms = []
    for one in series.transforms:
        place = moved(one.world_to_view, one.view)
        found = one.registration
        if found is not None:
            found = dataclasses.replace(found, fixed_to_moving=moved(found.fixed_to_moving, one.view))
        transforms.append(dataclasses.replace(one, world_to_view=place, registration=found, field=None))
    return dataclasses.replace(series, transforms=tuple(transforms))


def coarse_peak_bytes(views: Sequence[CoarseView]) -> int:
    """Memory of registering coarse views: a slab as it is read, two views, and their registration."""
    read = 8 * SLAB_VOXELS if any(view.is_coarser for view in views) else 0
    pairs = [(views[0].grid, view.grid) for view in views[1:]]
    waiting = max(16 * (math.prod(one.shape) + math.prod(two.shape)) for one, two in pairs)
    return read + waiting + max(peak_bytes(*pair) for pair in pairs)


def few_voxels(
    volumes: Volumes, grid: Grid, most_voxels: int = COARSE_VOXELS
) -> tuple[Float32, Grid]:
    """The sum of channels on at most about that many voxels: from the file's pyramid, or averaged."""
    images = []
    for volume in volumes:
        level, factor, within = _coarser(volume, grid, most_voxels)
        images.append(_averaged(level, within))
    total = images[0] if len(images) == 1 else np.sum(images, axis=0)
    return total, _grid_of(grid, factor, within)


def _coarser(
    volume: Sliced, grid: Grid, most_voxels: int
) -> tuple[Sliced, Sequence[int], Sequence[int]]:
    """A level of the pyramid, how many voxels one of it spans, and how many of it are averaged."""
    factor = (1, 1, 1)
    if isinstance(volume, LazyVolume):
        level, factor = coarser_level(volume.recording, most_voxels)
        volume = LazyVolume(level, volume.t, volume.c)
    return volume, factor, _averaging(volume.shape, grid.spacing_um, factor, most_voxels)


def _grid_of(grid: Grid, factor: Sequence[int], within: Sequence[int]) -> Grid:
    """Where means over `factor * within` voxels lie, and over how many of them."""
    whole = np.array(factor) * within
    shape = [-(-n // f) // w for n, f, w in zip(grid.shape, factor, within, strict=True)]
    origin = grid.index_to_um.apply((whole - 1) / 2)
    spacing = np.asarray(grid.spacing_um) * whole
    size = (shape[0], shape[1], shape[2])
    return Grid(size, as_triple(spacing, "spacing"), as_triple(origin, "origin"), grid.frame)


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


def _averaged(volume: Sliced, factor: Sequence[int]) -> Float32:
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
