"""Multiscale levels: which there are, and the mean that makes the next one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.data.source import Array

Triple = tuple[int, int, int]

# A level is the last when it fits one screen and one request.
SMALLEST_LEVEL = 256
# An axis is halved while its spacing is below this times the finest spacing, so that coarse z
# waits until x and y have caught up (some viewers also fail on levels with halved z).
NEAR_ISOTROPIC = 1.5
# Chunks that make a shard of a volume.
SHARD_CHUNKS = (2, 4, 4)


@dataclass(frozen=True)
class Level:
    """One level: `shape` in voxels, and `factor` how many voxels of level 0 one of its spans."""

    shape: Triple
    factor: Triple


def plan_levels(shape: Triple, voxel_um: tuple[float, float, float]) -> list[Level]:
    """Levels from full size down to at most 256 voxels a side; all triples (z, y, x)."""
    levels = [Level(shape, (1, 1, 1))]
    while max(levels[-1].shape) > SMALLEST_LEVEL:
        last = levels[-1]
        spacing = [um * f for um, f in zip(voxel_um, last.factor, strict=True)]
        # Only axes that can still be halved vote on what is finest; a flat z never does.
        finest = min(s for s, n in zip(spacing, last.shape, strict=True) if n > 1)
        halved = [
            2 if n > 1 and s < NEAR_ISOTROPIC * finest else 1
            for s, n in zip(spacing, last.shape, strict=True)
        ]
        z, y, x = (-(-n // h) for n, h in zip(last.shape, halved, strict=True))
        fz, fy, fx = (f * h for f, h in zip(last.factor, halved, strict=True))
        levels.append(Level((z, y, x), (fz, fy, fx)))
    return levels


def chunk_and_shard(
    shape: Triple, shard_chunks: Triple = SHARD_CHUNKS
) -> tuple[Triple, Triple]:
    """Chunk (about 1 Mvoxel, the unit of reading) and shard (a file; a whole number of chunks).

    A shard is what one writer holds at a time: 128 MiB of float32, unless `shard_chunks` says less.
    """
    chunk_limit, per_shard = ((1, 512, 512), (1, 8, 8)) if shape[0] == 1 else (
        (64, 128, 128), shard_chunks
    )  # fmt: skip
    chunk = [min(n, limit) for n, limit in zip(shape, chunk_limit, strict=True)]
    shard = [
        c * min(-(-n // c), count)
        for n, c, count in zip(shape, chunk, per_shard, strict=True)
    ]  # fmt: skip
    return (chunk[0], chunk[1], chunk[2]), (shard[0], shard[1], shard[2])


def mean_down(block: Array, factor: Triple) -> Array:
    """Means over `factor` (1 or 2 along each axis) of a (z, y, x) block, in the block's type.

    The last voxel of an odd side is the mean of the voxels that are there. Integers are rounded.
    """
    # float32 sums eight 16-bit integers exactly.
    working: Any = np.float64 if block.dtype.itemsize > 4 or (block.dtype.kind in "ui" and (
        block.dtype.itemsize > 2
    )) else np.float32  # fmt: skip
    means = block.astype(working, copy=False)
    for axis, step in enumerate(factor):
        if step == 1:
            continue
        size = means.shape[axis]
        whole = [slice(None)] * 3
        whole[axis] = slice(0, size - size % 2, 2)
        second = list(whole)
        second[axis] = slice(1, None, 2)
        pairs = means[tuple(whole)] + means[tuple(second)]
        pairs *= 0.5
        if size % 2:
            last = [slice(None)] * 3
            last[axis] = slice(size - 1, None)
            pairs = np.concatenate([pairs, means[tuple(last)]], axis=axis)
        means = pairs
    if block.dtype.kind in "ui":
        means = np.rint(means)
    return means.astype(block.dtype, copy=False)
