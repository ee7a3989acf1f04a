"""Tiles: disjoint cores of a volume, each restored with a margin around it that is thrown away."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.core.fourier import Shape, fast_shape
from pellucid.core.psf import fwhm_px
from pellucid.errors import PlanError

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Tile:
    """One core, and what must be read to restore it; both in voxels of the volume."""

    index: int
    core: Box
    read: Box

    @property
    def inner(self) -> Box:
        """The core within what was read."""
        z, y, x = (
            slice(c.start - r.start, c.stop - r.start)
            for c, r in zip(self.core, self.read, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class Tiling:
    """Cores that partition a volume.

    Parameters
    ----------
    shape : (z, y, x) of the volume
    core_shape : of every core but those that the volume's end cuts
    halo : voxels read beyond a core on each side, at least
    step : what is read begins at multiples of this, so that binning meets the same voxels
    peak_bytes : of the largest tile
    """

    shape: Shape
    core_shape: Shape
    halo: Shape
    step: Shape
    peak_bytes: int

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def counts(self) -> Shape:
        """Cores along each axis."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.core_shape, strict=True))
        return z, y, x

    @property
    def halo_share(self) -> float:
        """Voxels read more than once, as a share of the volume's."""
        read = sum(math.prod(s.stop - s.start for s in tile.read) for tile in self)
        return float(read / math.prod(self.shape) - 1)

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(i) for i in range(len(self)))

    def tile(self, index: int) -> Tile:
        """Return one tile; tiles are numbered with x fastest."""
        _, y, x = self.counts
        place = (index // (y * x), index // x % y, index % x)
        core, read = [], []
        for i, n, c, h, s in zip(
            place, self.shape, self.core_shape, self.halo, self.step, strict=True
        ):
            start, stop = i * c, min((i + 1) * c, n)
            core.append(slice(start, stop))
            read.append(slice(max(start - h, 0) // s * s, min(-(-(stop + h) // s) * s, n)))
        return Tile(index, (core[0], core[1], core[2]), (read[0], read[1], read[2]))


HALO_FWHM, HALO_TAILS, TAILS = 5.0, 1.6, 0.99
"""Halo in widths of the PSF, and in radii that hold `TAILS` of its light along an axis; the larger
counts: what `benchmarks/tiling.py` measures to leave less than 1e-3 for PSFs with and without tails."""


def halo_of(psf: NDArray[np.floating]) -> Shape:
    """Return the voxels beyond a core that decide it; 4 PSF radii on an axis without a width."""
    halo, values = [], psf.astype(np.float64)
    for axis, (width, n) in enumerate(zip(fwhm_px(values), psf.shape, strict=True)):
        wide = HALO_FWHM * width if math.isfinite(width) else 4 * (n // 2)
        halo.append(0 if n == 1 else math.ceil(max(wide, HALO_TAILS * _radius(values, axis))))
    return halo[0], halo[1], halo[2]


def _radius(psf: NDArray[np.float64], axis: int) -> int:
    """Return the voxels on either side of the centre that hold `TAILS` of the light along an axis."""
    light = psf.sum(axis=tuple(a for a in range(3) if a != axis))
    distance = np.abs(np.arange(len(light)) - len(light) // 2)
    within = np.cumsum(np.bincount(distance, weights=light))
    return int(np.searchsorted(within, TAILS * within[-1]))


def plan(
    shape: Shape,
    *,
    halo: Shape,
    reach: Shape,
    align: Shape,
    peak_bytes: Callable[[Shape], int],
    budget_bytes: int,
    step: Shape = (1, 1, 1),
    remedy: str = "crop the PSF",
) -> Tiling:
    """Return the tiling that costs least of those whose tiles fit.

    Cost is that of the FFTs over all tiles, N log N of each tile's FFT grid.

    Parameters
    ----------
    halo : that the restorer states
    reach : voxels by which the PSF enlarges an image to its FFT grid
    align : output chunk or shard; cores are whole multiples of it
    peak_bytes : memory to restore an image of a shape
    step : see `Tiling`
    remedy : beside more memory, in the words of a refusal

    Raises
    ------
    PlanError : not even a tile of one chunk fits; says what it would need
    """
    sizes = [_core_sizes(n, a) for n, a in zip(shape, align, strict=True)]
    best: tuple[float, Tiling] | None = None
    for z, y, x in itertools.product(*sizes):
        core = (z, y, x)
        largest = _largest_read(shape, core, halo, step)
        peak = peak_bytes(largest)
        if peak <= budget_bytes:
            tiling = Tiling(shape, core, halo, step, peak)
            cost = len(tiling) * _fft_cost(largest, reach)
            if best is None or cost < best[0]:
                best = cost, tiling
    if best is None:
        smallest = tuple(s[0] for s in sizes)
        z, y, x = smallest
        needed = peak_bytes(_largest_read(shape, (z, y, x), halo, step))
        raise PlanError(
            f"tiles: the smallest, a core of {smallest} with a halo of {halo}, needs "
            f"{needed / 2**20:.0f} MiB, and {budget_bytes / 2**20:.0f} MiB may be used. "
            f"Allow more memory, or {remedy}."
        )
    return best[1]


def _core_sizes(size: int, align: int) -> list[int]:
    """Multiples of `align` that divide an axis into different numbers of cores, smallest first."""
    chunks = -(-size // align)
    return [min(k * align, size) for k in sorted({-(-chunks // count) for count in range(1, chunks + 1)})]


def _largest_read(shape: Shape, core: Shape, halo: Shape, step: Shape) -> Shape:
    z, y, x = (  # a core has no more neighbours than there are
        min(n, c + min(-(-n // c) - 1, 2) * (h + s - 1))
        for n, c, h, s in zip(shape, core, halo, step, strict=True)
    )
    return z, y, x


def _fft_cost(image: Shape, reach: Shape) -> float:
    z, y, x = (n + r for n, r in zip(image, reach, strict=True))
    voxels = math.prod(fast_shape((z, y, x)))
    return voxels * math.log2(max(voxels, 2))
