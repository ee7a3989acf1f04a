"""The verb for tiles in memory: place them by what they show in common, and blend them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pellucid.core.blending import PlacedTile, blended_block, output_shape
from pellucid.core.flat_field import tile_gains
from pellucid.core.geometry import Triple, as_triple
from pellucid.core.linking import linked, overlapping_pairs
from pellucid.core.noise import estimate_background
from pellucid.core.pairwise import Link, pairwise_shift
from pellucid.core.placement import Placement, place
from pellucid.errors import InputError, ParameterError
from pellucid.stages.screening import screen
from pellucid.stages.stitching.tile_set import default_margin_px

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stitched:
    """A mosaic, and where its tiles are.

    Parameters
    ----------
    image : (z, y, x) or (y, x) float32 counts, as the tiles; 0 where no tile is
    positions_px : (tiles, 3) of each tile's first voxel in `image`, z, y, x
    placement : all links with their residuals, and which were kept
    gains : by which the light of each tile was divided
    """

    image: npt.NDArray[np.float32]
    positions_px: npt.NDArray[np.float64]
    placement: Placement
    gains: npt.NDArray[np.float64]

    @property
    def unlinked(self) -> tuple[int, ...]:
        """Numbers of the tiles that no believed link ties to the others, placed as the stage says."""
        return tuple(tile for group in self.placement.groups[1:] for tile in group)


def stitch(
    tiles: Sequence[Array],
    positions_px: npt.ArrayLike,
    *,
    margin_px: npt.ArrayLike | None = None,
    registration: Literal["links", "none"] = "links",
    gains: Literal["auto", "none"] = "auto",
    background: float | None = None,
) -> Stitched:
    """One image of overlapping tiles, all placed at once by what they show in common.

    Parameters
    ----------
    tiles : two arrays or more, all (z, y, x) or all (y, x) counts
    positions_px : (tiles, 3) or (tiles, 2) of each tile's first voxel as the stage says, in voxels
    margin_px : how far off two tiles may be, z, y, x; None: a twentieth of a tile, at least ten voxels
    registration : "none" trusts the positions as they are
    gains : "auto" makes tiles equally bright by what they show in common
    background : counts of the empty regions, camera offset included; None measures it

    Raises
    ------
    InputError : fewer than two tiles, planes mixed with stacks, NaN, or no two that overlap
    ParameterError : positions or a margin that do not fit the tiles

    Notes
    -----
    Positions are the robust least-squares solution of all pairwise shifts (Preibisch et al. 2009); a
    link that the others contradict is left out and says why.

    Examples
    --------
    >>> scene = np.random.default_rng(0).poisson(100.0, (64, 120))
    >>> whole = stitch([scene[:, :70], scene[:, 50:]], [(0, 0), (0, 47)])
    >>> whole.image.shape, whole.positions_px[1].round(1).tolist()
    ((64, 120), [0.0, 0.0, 50.0])
    """
    volumes, nominal = _checked(tiles, positions_px)
    shapes = [volume.shape for volume in volumes]
    pairs = overlapping_pairs(shapes, nominal)
    if registration not in ("links", "none") or gains not in ("auto", "none"):
        raise ParameterError(
            f"stitch: expected registration 'links' or 'none' and gains 'auto' or 'none', got "
            f"{registration!r} and {gains!r}."
        )
    if registration == "links" and not pairs:
        raise InputError(
            "stitch: no two tiles overlap at their positions. Check positions_px (voxels, z y x), or "
            "take registration='none'."
        )
    margin = default_margin_px(shapes[0]) if margin_px is None else _margin(margin_px)

    def measure(a: int, b: int, expected: Triple, within: Triple) -> Link | None:
        return pairwise_shift(volumes[a], volumes[b], expected, names=(a, b), margin_px=within)

    placed = (
        place(nominal, []) if registration == "none"
        else linked(measure, nominal, pairs, margin_px=margin)
    )  # fmt: skip
    used = [link for link, kept in zip(placed.links, placed.kept, strict=True) if kept]
    found = tile_gains(len(volumes), used) if used and gains == "auto" else np.ones(len(volumes))
    middles = (volume[len(volume) // 2][None] for volume in volumes)
    level = background
    if level is None:
        level = min(float(estimate_background(plane)) for plane in middles)
    positions = placed.positions_px - placed.positions_px.min(axis=0)
    lying = [
        PlacedTile(volume, as_triple(at, "position"), float(gain), None, level)
        for volume, at, gain in zip(volumes, positions, found, strict=True)
    ]
    image = blended_block(lying, (0, 0, 0), output_shape(lying))
    return Stitched(image[0] if np.ndim(tiles[0]) == 2 else image, positions, placed, found)


def _checked(
    tiles: Sequence[Array], positions_px: npt.ArrayLike
) -> tuple[list[Array], npt.NDArray[np.float64]]:
    """Tiles as (z, y, x) and positions as (tiles, 3), the lowest along each axis at 0."""
    arrays = [np.asarray(tile) for tile in tiles]
    dimensions = {array.ndim for array in arrays}
    if len(arrays) < 2 or dimensions not in ({2}, {3}) or any(a.size == 0 for a in arrays):
        raise InputError(
            "stitch: expected two tiles or more, all (z, y, x) or all (y, x), got shapes "
            f"{[a.shape for a in arrays]}. Give one channel and one time point."
        )
    for number, array in enumerate(arrays):
        screen(array, f"tile {number}")
    axes = dimensions.pop()
    nominal = np.asarray(positions_px, np.float64)
    if nominal.shape not in ((len(arrays), 3), (len(arrays), axes)) or not np.isfinite(nominal).all():
        raise ParameterError(
            f"positions_px: expected {len(arrays)} finite positions of {axes} voxels, got shape "
            f"{nominal.shape}."
        )
    nominal = np.pad(nominal, ((0, 0), (3 - nominal.shape[1], 0)))
    return [a[None] if axes == 2 else a for a in arrays], nominal - nominal.min(axis=0)


def _margin(margin_px: npt.ArrayLike) -> Triple:
    values = np.broadcast_to(np.asarray(margin_px, np.float64), 3)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ParameterError(f"margin_px: expected voxels z, y, x of 0 or more, got {margin_px!r}.")
    return as_triple(values, "margin_px")
