"""Voxels that were never recorded: the fill of deskewed, stitched, fused or padded volumes.

Such volumes hold one constant, mostly 0, where no camera looked, and the camera's offset is about 100.
Taken for a recording it is an edge of 100 counts. Where a volume was interpolated beside its fill, the
values between the two are not a recording either: the fill is taken as many voxels wider.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.sampling import Array, blocks_of, constant_tiles
from pellucid.errors import InputError

LEAST_SHARE = 1e-3
"""Of the voxels: less is not worth a mask."""

MOST_SPECKS = 0.005
"""Voxels that are fill among others or others in fill, in the faces between fill and others: none where
a mask was cut, many where photons are counted one by one on a dark ground (0.009 to 0.1)."""

LEAST_LEVELS = 4
"""Grey levels between the fill and the darkest recorded voxel, at least."""

WIDEST_RAMP = 6
"""Voxels beside the fill that interpolation may have mixed with it, at most."""

SAMPLE = (16, 64, 64)
"""Voxels of a block in which fill is looked for: small, so that many places of a volume are seen."""

FEWEST_VOXELS = 1000
"""Recorded voxels below which nothing is decided."""


@dataclass(frozen=True)
class Fill:
    """What stands where nothing was recorded.

    Parameters
    ----------
    value : counts of the fill
    below : counts under which a voxel is fill, or more than half fill; None: only the value is
    margin_px : voxels around the fill that are mixed with it
    """

    value: float
    below: float | None = None
    margin_px: int = 0

    def recorded(self, counts: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which voxels of (z, y, x) counts were recorded."""
        fill: NDArray[np.bool_] = counts == self.value
        if self.below is not None:
            fill |= counts < self.below
        return ~_widened(fill, self.margin_px)

    def spread(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Return the counts with the fill's value in every voxel that was not recorded."""
        return np.where(self.recorded(counts), counts, counts.dtype.type(self.value))


FillChoice = float | Literal["auto", "none"] | Fill
"""Of voxels that were never recorded: their value, found by `find_fill`, or there are none."""


def find_fill(blocks: list[NDArray[Any]]) -> Fill | None:
    """Return the fill of a volume, seen in (z, y, x) blocks of it; None where there is none.

    It is constant over whole tiles of 4 x 8 x 8 voxels and cut out without specks, and all other values
    begin farther above it than they spread at their own dark end (lowest tenth), and at least
    `LEAST_LEVELS` grey levels; where it was interpolated with them, those a few voxels away do.
    So no photon count is fill, whose 0 is next to 1, and no black that values reach continuously.
    """
    constants = np.concatenate([constant_tiles(b) for b in blocks])
    if constants.size == 0:
        return None
    values, counts = np.unique(constants, return_counts=True)
    value = float(values[counts.argmax()])
    fills = [b == value for b in blocks]
    share = sum(int(f.sum()) for f in fills) / sum(f.size for f in fills)
    below = sum(int((b < value).sum()) for b in blocks) / sum(b.size for b in blocks)
    if share < LEAST_SHARE or share == 1 or below > 0.01 * (1 - share) or _specks(fills) > MOST_SPECKS:
        return None
    step = _grey_level(blocks)
    for margin in range(WIDEST_RAMP + 1):
        inner = [_inner(b.shape, margin) for b in blocks]
        away = [
            b[i][~_widened(f, margin)[i]] for b, f, i in zip(blocks, fills, inner, strict=True)
        ]
        others = np.concatenate(away).astype(np.float64)
        if others.size < FEWEST_VOXELS:
            return None
        first, tenth = (float(v) for v in np.quantile(others, [1e-4, 0.1]))
        gap = first - value
        if gap > tenth - first and gap >= LEAST_LEVELS * step and gap > 0:
            return Fill(value, value + gap / 2, margin)
    return None


def chosen_fill(blocks: list[NDArray[Any]], choice: FillChoice) -> Fill | None:
    """Return the fill that was asked for; a value that is given needs no evidence."""
    if choice == "none":
        return None
    if isinstance(choice, Fill):
        return choice
    found = find_fill(blocks)
    if choice == "auto" or (found is not None and found.value == choice):
        return found
    return Fill(float(choice)) if _holds(blocks[0].dtype, float(choice)) else None


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return value.is_integer() and limits.min <= value <= limits.max


def fill_of(volume: Array, choice: FillChoice) -> Fill | None:
    """Return the fill of a volume, in memory or lazily sliced, that was asked for."""
    if choice == "none" or isinstance(choice, Fill):
        return None if choice == "none" else choice
    return chosen_fill(blocks_of(volume, "fill", size=SAMPLE), choice)


def recorded(counts: NDArray[Any], choice: FillChoice) -> tuple[NDArray[np.bool_] | None, Fill | None]:
    """Return which voxels of a volume (z, y, x) were recorded, and the fill; None where all were."""
    fill = fill_of(counts, choice)
    mask = None if fill is None else fill.recorded(counts)
    if fill is not None and mask is not None and not mask.any():
        raise InputError(
            f"fill: every voxel is taken as never recorded, as all hold {fill.value:g} or lie beside it. "
            "State another value, or none."
        )
    return (None, None) if mask is None or mask.all() else (mask, fill)


def fill_facts(fill: Fill | None, mask: NDArray[np.bool_] | None) -> dict[str, Any]:
    """Return what a record says: the value that was taken for fill, and its share of the voxels."""
    if fill is None or mask is None:
        return {}
    share = 1 - float(mask.mean())
    note = (
        f"{share:.1%} of the voxels hold {fill.value:g} and were taken as never recorded: they have no "
        "weight, and are 0 in the result"
    )
    return {"fill": {"value": fill.value, "margin_px": fill.margin_px, "share": share, "note": note}}


def _widened(fill: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    if by == 0 or not fill.any():
        return fill
    size = [2 * by + 1 if n > 1 else 1 for n in fill.shape]
    wide: NDArray[np.bool_] = ndimage.maximum_filter(fill.view(np.uint8), size).view(np.bool_)
    return wide


def _inner(shape: tuple[int, ...], by: int) -> tuple[slice, ...]:
    """The voxels of a block whose neighbours, `by` voxels away, lie in the block too."""
    return tuple(slice(by, n - by) if n > 2 * by else slice(None) for n in shape)


def _specks(fills: list[NDArray[np.bool_]]) -> float:
    """Voxels unlike all their neighbours along z, y and x, in those where fill and others meet."""
    alone = meet = 0
    for fill in fills:
        unlike = np.ones_like(fill)
        for axis, n in enumerate(fill.shape):
            if n < 3:
                continue
            change = np.diff(fill, axis=axis)
            meet += int(change.sum())
            ends = np.delete(change, -1, axis) & np.delete(change, 0, axis)
            unlike &= np.pad(ends, [(1, 1) if a == axis else (0, 0) for a in range(3)])
        alone += int(unlike.sum())
    return alone / max(meet, 1)


def _grey_level(blocks: list[NDArray[Any]]) -> float:
    """Step between grey levels; 0 where values are continuous."""
    if blocks[0].dtype.kind in "iu":
        return 1.0
    values = np.concatenate([b.ravel()[:: max(1, b.size // 20_000)] for b in blocks])
    distinct = np.unique(values)
    few = 1 < distinct.size < values.size // 20
    return float(np.diff(distinct).min()) if few else 0.0
