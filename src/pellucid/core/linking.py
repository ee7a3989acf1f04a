"""Linking: which tiles to compare, and a second look where the first contradicts the rest."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.core.geometry import Triple, as_triple
from pellucid.core.pairwise import Link
from pellucid.core.placement import Placement, place

Matrix = NDArray[np.float64]
Measure = Callable[[int, int, Triple, Triple], Link | None]

LEAST_OVERLAP_PX = 6
"""Along each axis: thinner overlaps have no inside once the borders are left out."""

SECOND_MARGIN_PX = 3.0
"""How far from where all other links put it the second look at a link searches."""


def overlapping_pairs(
    shapes: Sequence[tuple[int, ...]], nominal_px: Matrix
) -> list[tuple[int, int]]:
    """Return the pairs of tiles that overlap as the stage says, those at corners included.

    Corner overlaps are small, and yet what tells which of two contradicting links is wrong.
    """
    sizes = np.asarray(shapes, np.float64).reshape(-1, 3)
    low, high = np.asarray(nominal_px), np.asarray(nominal_px) + sizes
    pairs = []
    for a in range(len(sizes) - 1):
        common = np.minimum(high[a], high[a + 1 :]) - np.maximum(low[a], low[a + 1 :])
        enough = np.minimum(LEAST_OVERLAP_PX, np.minimum(sizes[a], sizes[a + 1 :]))
        pairs += [(a, a + 1 + int(b)) for b in np.flatnonzero((common >= enough).all(axis=1))]
    return pairs


def linked(
    measure: Measure,
    nominal_px: Matrix,
    pairs: Sequence[tuple[int, int]],
    *,
    margin_px: Triple,
    on_pair: Callable[[int], Any] = lambda number: None,
) -> Placement:
    """Return where the tiles are, from the links that `measure` finds between pairs of them.

    A link that the placement rejects is measured once more, near where the other links put it: a
    search over tens of voxels may take the wrong one of two similar places. It is believed again
    only if fine structure correlates there, so that a false link stays out.

    Parameters
    ----------
    measure : (first, second, expected shift, margin) to a link, such as `pairwise_shift`
    nominal_px : (n, 3) positions that the stage reports
    pairs : of tiles that overlap, from `overlapping_pairs`
    margin_px : how far off the stage may be between two tiles, along each axis
    on_pair : told the number of each pair that was measured
    """
    nominal = np.asarray(nominal_px, np.float64)
    links: list[Link] = []
    for number, (a, b) in enumerate(pairs):
        link = measure(a, b, as_triple(nominal[b] - nominal[a], "shift"), margin_px)
        links += [] if link is None else [link]
        on_pair(number)
    stage_sigma = max(max(margin_px) / 2.0, 1.0)
    placed = place(nominal, links, stage_sigma_px=stage_sigma)
    group = {tile: number for number, tiles in enumerate(placed.groups) for tile in tiles}
    again = list(links)
    near = as_triple(np.minimum(margin_px, SECOND_MARGIN_PX), "margin")
    for number, link in enumerate(links):
        a, b = link.first, link.second
        if placed.kept[number] or group[a] != group[b]:
            continue
        shift = as_triple(placed.positions_px[b] - placed.positions_px[a], "shift")
        second = measure(a, b, shift, near)
        if second is not None and second.believed:
            again[number] = second
    if again == links:
        return placed
    return place(nominal, again, stage_sigma_px=stage_sigma)
