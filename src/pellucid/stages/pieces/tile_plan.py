"""Tiles of a volume that is larger than the memory that may be used."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.coarsening import bin_factors
from pellucid.core.deconvolution import (
    Kernel,
    back_projector,
    blur_at,
    kernel_of,
    kernels_of,
    restorer,
    usable_psf,
)
from pellucid.core.fourier import Shape
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.psf_field import PsfExpansion, PsfField
from pellucid.core.replay import replayed_peak_bytes
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.tiling import Box, Tile, Tiling, halo_of, plan
from pellucid.data.pyramid import SHARD_CHUNKS, Triple, chunk_and_shard
from pellucid.errors import ParameterError, PlanError
from pellucid.stages.parameters import DeconvolveParameters

MARGIN = 0.95
"""Share of the room that tiles may plan with."""

BESIDE_BYTES = 130 * 2**20
"""Held beside the work and not before it: libraries and threads that start later, and freed memory
that the C library keeps (`benchmarks/large_volumes.py`)."""

SMALLEST_SAMPLE = 64
"""Voxels along an axis below which a sample is not made smaller."""

WRITER_SHARE = 16
"""A shard takes at most this part of the room: one waits to be encoded, and is encoded."""


@dataclass(frozen=True)
class TilePlan:
    """How one volume of a recording is cut.

    Parameters
    ----------
    tiling : cores and what is read for them
    shard_chunks : of the output, so that no two cores share a file
    sample_shape : of the part of a tile on which decisions are made, at most
    """

    tiling: Tiling
    shard_chunks: Triple
    sample_shape: Shape

    def sample(self, tile: Tile) -> Box:
        """The middle of what is read for a tile, on which decisions are made."""
        box = []
        for n, read in zip(self.sample_shape, tile.read, strict=True):
            size = min(n, read.stop - read.start)
            start = (read.start + read.stop - size) // 2
            box.append(slice(start, start + size))
        return box[0], box[1], box[2]


def plan_tiles(
    shape: Shape,
    psfs: tuple[Psf | PsfField, ...],
    parameters: DeconvolveParameters,
    itemsize: int,
    room_bytes: int | None,
    *,
    masked: bool = False,
) -> TilePlan:
    """Cut volumes of `shape` into the tiles that cost least of those that fit `room_bytes`.

    `masked` says that some of their voxels were never recorded, which takes more memory.

    Raises
    ------
    PlanError : not even the smallest tile fits
    ParameterError : `tile` is not made of whole chunks of the output
    """
    usable = [usable_psf(psf, shape) for psf in psfs]
    halo, reach = halo_and_reach(usable)
    widest = max(map(kernel_of, usable), key=_size)
    step = (1, 1, 1) if parameters.iterations else coarsest(usable, shape)

    def needed(read: Shape) -> int:
        voxels = math.prod(read)
        core = math.prod(max(n - 2 * h, 1) for n, h in zip(read, halo, strict=True))
        # one more tile is read meanwhile, and a core is being written: itself, and shards of it
        beside = voxels * itemsize + min(core, voxels) * 4 * 2
        return tile_peak_bytes(read, widest, parameters, masked=masked) + beside + BESIDE_BYTES

    room = planning_room(room_bytes)
    tiling = fitted_tiling(
        shape, parameters.tile, halo=halo, reach=reach, needed=needed, room_bytes=room, step=step
    )
    largest_read = max((box_shape(tile.read) for tile in tiling), key=math.prod)
    guarded = restorer(back_projector(parameters.method), None)
    sample = sample_shape(largest_read, widest, guarded, room - BESIDE_BYTES, masked=masked)
    return TilePlan(tiling, shard_chunks(tiling, room), sample)


def halo_and_reach(psfs: Sequence[Psf | PsfField]) -> tuple[Shape, Shape]:
    """Return the voxels beyond a core that decide it, and those by which a PSF enlarges an image."""
    boxes = [box for psf in psfs for box in kernels_of(psf)]
    reach = _largest([(b.shape[0] - 1, b.shape[1] - 1, b.shape[2] - 1) for b in boxes])
    return _largest([halo_of(box) for box in boxes]), reach


def _size(kernel: Kernel) -> int:
    return kernel.kernels.size if isinstance(kernel, PsfExpansion) else kernel.size


def planning_room(room_bytes: int | None) -> int:
    """Bytes that tiles may plan with, of those that there are."""
    return int(MARGIN * room_bytes) if room_bytes is not None else 2**62


def fitted_tiling(
    shape: Shape,
    core: Shape | None,
    *,
    halo: Shape,
    reach: Shape,
    needed: Callable[[Shape], int],
    room_bytes: int,
    step: Shape = (1, 1, 1),
    remedy: str = "crop the PSF",
) -> Tiling:
    """Return the tiling into cores that were asked for, or the one that costs least, within the room.

    Parameters
    ----------
    needed : memory for a tile that is read
    halo, reach, step, remedy : see `core.tiling.plan`

    Raises
    ------
    PlanError, ParameterError : see `plan_tiles`
    """
    chunk, _ = chunk_and_shard(shape)
    if core is None:
        return plan(
            shape, halo=halo, reach=reach, align=chunk, peak_bytes=needed, budget_bytes=room_bytes,
            step=step, remedy=remedy,
        )  # fmt: skip
    tiling = _asked_for(core, shape, chunk, halo, step)
    largest = max(needed(box_shape(tile.read)) for tile in tiling)
    if largest > room_bytes:
        raise PlanError(
            f"tile: cores of {tiling.core_shape} with halos of {halo} need "
            f"{largest / 2**20:.0f} MiB, and {room_bytes / 2**20:.0f} MiB may be used. "
            "Take a smaller tile, or leave it out."
        )
    return Tiling(shape, tiling.core_shape, halo, step, largest)


def tile_peak_bytes(
    shape: Shape, kernel: Kernel, parameters: DeconvolveParameters, *, masked: bool = False
) -> int:
    """Memory that the restoration of one tile takes."""
    problem, projector = meta_problem(shape, kernel, masked=masked), back_projector(parameters.method)
    if parameters.iterations is None:
        return replayed_peak_bytes(problem, projector)
    return restorer(projector, parameters.iterations).peak_bytes(problem)


def sample_shape(
    largest: Shape, kernel: Kernel, guarded: Accelerated | RichardsonLucy, room_bytes: int, *,
    masked: bool = False,
) -> Shape:  # fmt: skip
    """The most of a tile that can be restored with all decisions open: it takes twice the memory."""
    size = list(largest)
    while guarded.peak_bytes(meta_problem(_triple(size), kernel, masked=masked)) > room_bytes:
        axis = int(np.argmax(size))
        if size[axis] < 2 * SMALLEST_SAMPLE:
            break
        size[axis] = 3 * size[axis] // 4
    return _triple(size)


def meta_problem(
    shape: Shape, kernel: Kernel, origin: Shape = (0, 0, 0), *, masked: bool = False
) -> Problem:
    """A problem of tensors without memory, which carry the shapes through the arithmetic."""
    blur = blur_at(kernel, shape, origin, "meta")
    image = torch.empty(shape, dtype=torch.float32, device="meta")
    return Problem((Observation(image, blur, recorded=image.bool() if masked else None),))


def _asked_for(tile: Shape, shape: Shape, chunk: Triple, halo: Shape, step: Shape) -> Tiling:
    core = tuple(min(t, n) for t, n in zip(tile, shape, strict=True))
    if any(c % k and c < n for c, k, n in zip(core, chunk, shape, strict=True)) or min(core) < 1:
        raise ParameterError(
            f"tile: expected whole multiples of the output's chunks {chunk}, got {tile}."
        )
    z, y, x = core
    return Tiling(shape, (z, y, x), halo, step, 0)


def coarsest(psfs: Sequence[Psf | PsfField], shape: Shape) -> Shape:
    """What every tile's beginning must be a multiple of, so that all bin the same voxels."""
    steps = []
    for kernel in (psf.typical for psf in psfs):
        z, y, x = fwhm_px(kernel)
        widths = tuple(1.0 if n == 1 else w for n, w in zip(kernel.shape, (z, y, x), strict=True))
        known = all(math.isfinite(w) for w in widths)
        steps.append(bin_factors((widths[0], widths[1], widths[2]), shape)[-1] if known else (8, 8, 8))
    return _largest(steps)


def shard_chunks(tiling: Tiling, room_bytes: int) -> Triple:
    """The most chunks that make a shard within a core and within `WRITER_SHARE` of the room."""
    chunk, _ = chunk_and_shard(tiling.shape)
    most = []
    for core, c, n, limit in zip(tiling.core_shape, chunk, tiling.shape, SHARD_CHUNKS, strict=True):
        chunks = core // c
        whole = core >= n
        most.append(limit if whole else max(k for k in range(1, limit + 1) if chunks % k == 0))
    while max(most) > 1 and 4 * math.prod(most) * math.prod(chunk) * WRITER_SHARE > room_bytes:
        axis = int(np.argmax(most))
        most[axis] = max(k for k in range(1, most[axis]) if most[axis] % k == 0)
    return most[0], most[1], most[2]


def _triple(values: Sequence[int]) -> Shape:
    z, y, x = values
    return z, y, x


def _largest(triples: list[Shape]) -> Shape:
    z, y, x = (max(values) for values in zip(*triples, strict=True))
    return z, y, x


def box_shape(box: Box) -> Shape:
    """Return the voxels of a box along each axis."""
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x
