"""Blending: any block of the stitched volume from the tiles that touch it, and nothing else.

Weights rise from each tile's border along each axis and depend only on where a voxel lies in its
tile, so that neighbouring blocks meet without a seam and blocks may be made in any order. A tile is
interpolated once, by its fraction of a voxel, with the four-point cubic of Keys (1981).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.core.geometry import Triple
from pellucid.core.pairwise import Tile

Float32 = NDArray[np.float32]
Shape = tuple[int, int, int]

RAMP_SHARE = 0.1
"""Part of a tile, at each end, over which its weight rises from zero to one."""

HALF = 0.5 - 1e-6
"""Of a voxel that a tile reaches beyond its outermost ones, which stand for it: places are never whole."""


@dataclass(frozen=True)
class PlacedTile:
    """A tile, its place (voxels of the output, may be fractional), and its light.

    Its counts become `(counts - background) / (flat * gain) + background`.
    """

    tile: Tile
    position_px: Triple
    gain: float = 1.0
    flat: Float32 | None = None
    background: float = 0.0

    def touches(self, low: Shape, high: Shape) -> bool:
        """Whether any voxel of the tile falls into the block."""
        return all(
            p < b and p + n > a
            for p, n, a, b in zip(self.position_px, self.tile.shape, low, high, strict=True)
        )


def output_shape(tiles: Sequence[PlacedTile]) -> Shape:
    """Return the smallest (z, y, x) that holds all tiles, whose positions begin at zero."""
    ends = np.array([np.add(t.position_px, t.tile.shape) for t in tiles])
    z, y, x = (int(n) for n in np.floor(ends.max(0) + HALF))
    return z, y, x


def blended_block(tiles: Sequence[PlacedTile], low: Shape, high: Shape) -> Float32:
    """Return (z, y, x) counts of the block [low, high); zero where no tile is.

    Reads of each tile only what falls into the block, and two voxels around it.
    """
    shape = tuple(b - a for a, b in zip(low, high, strict=True))
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for placed in tiles:
        if not placed.touches(low, high):
            continue
        first = np.maximum(np.ceil(np.subtract(placed.position_px, HALF)).astype(int), low)
        size = np.array(placed.tile.shape)
        last = np.minimum(np.floor(placed.position_px + size - 1 + HALF).astype(int) + 1, high)
        if (last <= first).any():
            continue
        values, weight = _sampled(placed, first, last)
        where = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, low, strict=True))
        total[where] += weight * values
        weights[where] += weight
    seen = weights > 0
    return np.divide(total, weights, out=np.zeros_like(total), where=seen)


def _sampled(
    placed: PlacedTile, first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[Float32, Float32]:
    """Return the tile's counts and weights at the output voxels [first, last)."""
    begin = first - np.asarray(placed.position_px)
    whole = np.floor(begin + 1e-6).astype(int)
    fraction = np.where(np.abs(begin - whole) < 1e-6, 0.0, begin - whole)
    count, size = last - first, np.array(placed.tile.shape)
    low, high = np.maximum(whole - 1, 0), np.minimum(whole + count + 2, size)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    values: Float32 = np.asarray(placed.tile[z, y, x]).astype(np.float32)
    values -= placed.background
    if placed.flat is not None:
        values /= placed.flat[y, x]
    values /= placed.gain
    values += placed.background
    weight = np.ones((1, 1, 1), np.float32)
    for axis in range(3):
        # border voxels stand for what lies beyond the tile
        index = np.arange(whole[axis] - 1, whole[axis] + count[axis] + 2)
        index = np.clip(index, 0, size[axis] - 1) - low[axis]
        padded = values.take(index, axis)
        taps = _cubic(float(fraction[axis]))
        cuts = [padded.take(np.arange(k, k + count[axis]), axis) for k in range(4)]
        values = np.sum([w * cut for w, cut in zip(taps, cuts, strict=True) if w], axis=0)
        shape = [-1 if a == axis else 1 for a in range(3)]
        profile = _ramp(begin[axis] + np.arange(count[axis]), int(size[axis]))
        weight = weight * profile.reshape(shape)
    return values, weight


def _cubic(t: float) -> tuple[np.float32, ...]:
    """Return the weights of voxels -1, 0, 1, 2 for a place `t` after voxel 0 (Keys, a = -1/2)."""
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    return tuple(np.float32(w) for w in weights)


def _ramp(index: NDArray[np.float64], size: int) -> Float32:
    if size == 1:
        return np.ones(len(index), np.float32)
    width = max(RAMP_SHARE * size, 1.0)
    depth = np.clip((np.minimum(index, size - 1 - index) + 0.5) / width, 1e-3, 1.0)
    profile: Float32 = (np.sin(0.5 * np.pi * depth) ** 2).astype(np.float32)
    return profile
