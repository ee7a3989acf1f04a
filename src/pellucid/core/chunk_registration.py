"""One chunk of a view registered to its place in the other view: the model that its structure supports.

Whole volumes are registered by `registration.register`; chunks by the same, begun where a coarse
registration of everything puts them, and held to what a chunk can know. `field_fit` makes one field of
all chunks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pellucid.core.field_fit import MOST_STEEP, ChunkMeasurement
from pellucid.core.gauss_newton import Model
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.registration import MODELS, Registration, register
from pellucid.core.tiling import Box, Tiling
from pellucid.core.verdict import shared_volume
from pellucid.errors import ParameterError

Shape = tuple[int, int, int]

CHUNK_VOXELS = 96
"""Finest voxels along a chunk's core where nobody says: with its overlap 120, the size at which whole
views are registered reliably. Where structure is dense, 43 were enough in
`benchmarks/chunk_registration.py`."""

OVERLAP_SHARE = 0.125
"""Of the core, added on each side: the border within which blur is not matched is lost again."""

FEWEST_VOXELS = 16
"""Along an axis of what is registered; fewer leave no structure inside the border."""

REACH_SHARE = 0.15
"""Of what is registered, added around it in the moving view: how far off the coarse map may be."""

LEAST_LIKENESS = 0.02
"""Correlation of neighbouring voxels; noise alone has 0, within 0.003 at 1e5 voxels."""

LEAST_OVERLAP = 0.3
"""Of a chunk, in the moving view; less has too few voxels in common once blur has taken the borders."""


def chunked(fixed: Grid, core_shape: Shape | None, psf_shape: Shape | None = None) -> Tiling:
    """Return the chunks of a fixed view: cores that partition it, read with their overlap.

    Parameters
    ----------
    core_shape : voxels of a core, or None: cubes of about 96 of the finest voxels. The view is shared
        out evenly, so that no core is a sliver
    psf_shape : voxels of the fixed view's PSF, where it is known

    Raises
    ------
    ParameterError : cores that are too small to be registered
    """
    flat = [n == 1 for n in fixed.shape]
    finest = min(s for s, f in zip(fixed.spacing_um, flat, strict=True) if not f)
    asked = core_shape or tuple(max(1, round(CHUNK_VOXELS * finest / s)) for s in fixed.spacing_um)
    z, y, x = (
        math.ceil(n / max(1, round(n / size))) for n, size in zip(fixed.shape, asked, strict=True)
    )
    core = (z, y, x)
    halo = [
        0 if n == c else math.ceil(OVERLAP_SHARE * c) for n, c in zip(fixed.shape, core, strict=True)
    ]
    needed = [1 if f else FEWEST_VOXELS for f in flat]
    if psf_shape is not None:
        needed = [max(n, 1 if f else p) for n, p, f in zip(needed, psf_shape, flat, strict=True)]
    read = [min(n, c + h) for n, c, h in zip(fixed.shape, core, halo, strict=True)]
    if any(r < n for r, n in zip(read, needed, strict=True)):
        raise ParameterError(
            f"chunks: expected at least {tuple(needed)} voxels (z, y, x) to register"
            f"{'' if psf_shape is None else ', the size of the PSF'}, got cores of {core} with an "
            f"overlap of {tuple(halo)}. Choose larger chunks."
        )
    return Tiling(fixed.shape, core, (halo[0], halo[1], halo[2]), (1, 1, 1), 0)


def moving_box(fixed_chunk: Grid, moving: Grid, coarse: Affine) -> Box | None:
    """Return the part of the moving view in which a chunk is looked for; None where it lies outside."""
    if shared_volume(fixed_chunk, moving, coarse) < LEAST_OVERLAP:
        return None
    corners = moving.um_to_index.apply(coarse.apply(fixed_chunk.corners_um()))
    low, high = corners.min(0), corners.max(0)
    reach = np.where(np.asarray(moving.shape) > 1, np.maximum(8, REACH_SHARE * (high - low)), 0)
    start = np.maximum(np.floor(low - reach), 0).astype(int)
    stop = np.minimum(np.ceil(high + reach) + 1, moving.shape).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return z, y, x


@dataclass(frozen=True)
class Chunk:
    """One chunk of the fixed view and the part of the moving view where it should be.

    Parameters
    ----------
    index : number of the chunk
    fixed, moving : (z, y, x) counts of both parts
    fixed_grid, moving_grid : where their voxels are, in the frames "fixed" and "moving"
    """

    index: int
    fixed: NDArray[np.generic] | Tensor
    moving: NDArray[np.generic] | Tensor
    fixed_grid: Grid
    moving_grid: Grid


def register_chunk(
    chunk: Chunk,
    coarse: Affine,
    *,
    model: Model = "affine",
    fixed_psf: ArrayLike | None = None,
    moving_psf: ArrayLike | None = None,
    device: str | torch.device | None = None,
) -> ChunkMeasurement:
    """Return where a chunk lies, with the richest model up to `model` that is believed.

    Without the verdict's belief in any, the measurement has no transform and says why.

    Parameters
    ----------
    coarse : where to begin, "fixed" to "moving"
    """
    fixed, moving = chunk.fixed_grid, chunk.moving_grid
    centre = as_triple(fixed.centre_um, "centre")
    half = as_triple(np.asarray(fixed.extent_um) / 2, "half")
    for image, name in ((chunk.fixed, "fixed"), (chunk.moving, "moving")):
        if likeness(image) < LEAST_LIKENESS:
            reason = f"Empty: the {name} view shows no structure here."
            return ChunkMeasurement(chunk.index, centre, half, reason=reason)
    # `register` counts from the first voxel of each part
    to_chunk = Affine.translation(fixed.origin_um, source="fixed", target="fixed")
    from_part = Affine.translation(-np.asarray(moving.origin_um), source="moving", target="moving")
    start = from_part @ coarse @ to_chunk
    first: Registration | None = None
    for tried in _ladder(model):
        found = register(
            chunk.fixed, chunk.moving, fixed_spacing_um=fixed.spacing_um,
            moving_spacing_um=moving.spacing_um, model=tried, start=start, nominal=start,
            fixed_psf=fixed_psf, moving_psf=moving_psf, device=device,
        )  # fmt: skip
        first = first or found
        sigma = float(np.mean(found.corner_sigma_um))
        own = (start.inverse() @ found.fixed_to_moving).linear - np.eye(3)
        if found.converged and 0 < sigma < np.inf and np.linalg.norm(own) <= MOST_STEEP:
            transform = from_part.inverse() @ found.fixed_to_moving @ to_chunk.inverse()
            return ChunkMeasurement(chunk.index, centre, half, transform, tried, sigma)
    assert first is not None
    reason = first.reason or "The transform is not that of a part of one specimen."
    return ChunkMeasurement(chunk.index, centre, half, reason=reason)


def likeness(image: NDArray[np.generic] | Tensor) -> float:
    """Return the correlation of neighbouring voxels along x: 0 for noise, towards 1 for structure."""
    if not isinstance(image, Tensor):
        image = torch.as_tensor(np.asarray(image, dtype=np.float32))
    values = image - image.mean()
    energy = float(values.square().mean())
    # equal voxels differ from their mean by rounding alone
    if energy <= (1e-6 * float(image.abs().max())) ** 2 or values.shape[-1] < 2:
        return 0.0
    return float((values[..., 1:] * values[..., :-1]).mean()) / energy


def _ladder(model: Model) -> tuple[Model, ...]:
    """Return the models to try, from the one asked for to the one of fewest parameters."""
    if model not in MODELS:
        raise ParameterError(f"chunks: expected a model of {MODELS}, got {model!r}.")
    models: tuple[Model, ...] = ("affine", "similarity", "rigid", "translation")
    rest = models[models.index(model) :]
    # between an affine map and a rigid one, a similarity adds nothing that the field would use
    return tuple(m for m in rest if m == model or m != "similarity")
