"""Placement: the positions of all tiles at once, from links some of which are wrong.

Least squares over all links, each weighed by its own uncertainty, with the stage's positions as a
weak prior for what no link reaches. Links that contradict the rest are found by iteratively
reweighted least squares with a bounded influence (an L1 start, then truncation), and reported.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from pellucid.core.pairwise import Link

Matrix = NDArray[np.float64]

LEAST_SIGMA_PX = 0.03
"""No link is surer than this: interpolation and unlike noise leave as much."""

REJECTED_SIGMA, LEAST_REJECTED_PX = 4.0, 0.7
"""A link is rejected when its residual exceeds so many voxels, and so many of its own deviations."""

SOFT_SIGMA = 2.0
"""From so many of its own deviations on, a link that is kept loses influence (Cauchy's weights): fits
on thin overlaps are surer of themselves than they are right."""

ROUNDS = 30
"""Reweightings; grids of a hundred tiles settle within ten."""


@dataclass(frozen=True)
class Placement:
    """Where the tiles are.

    Attributes
    ----------
    positions_px : (n, 3) of each tile's first voxel, z, y, x
    links : the links that were given
    residuals_px : (links,) length of what each link disagrees by
    kept : (links,) whether it took part
    groups : numbers of the tiles that links hold together, the largest group first
    cycles_px : closing error of the shortest closed path through each kept link
    """

    positions_px: Matrix
    links: tuple[Link, ...]
    residuals_px: Matrix
    kept: NDArray[np.bool_]
    groups: tuple[tuple[int, ...], ...]
    cycles_px: Matrix

    def held_only_by(self, weak: Sequence[bool]) -> tuple[int, ...]:
        """Return the tiles all of whose kept links are `weak`, of tiles that any holds."""
        held: dict[int, bool] = {}
        for link, kept, doubtful in zip(self.links, self.kept, weak, strict=True):
            for tile in (link.first, link.second) if kept else ():
                held[tile] = held.get(tile, True) and doubtful
        return tuple(sorted(tile for tile, doubtful in held.items() if doubtful))

    def to_dict(self) -> dict[str, Any]:
        """Return the placement as JSON-ready numbers and strings."""
        return {
            "positions_px": self.positions_px.tolist(),
            "groups": [list(group) for group in self.groups],
            "cycle_error_px": _summary(self.cycles_px),
            "residual_px": _summary(self.residuals_px[self.kept]),
            "links": [
                {**vars(link), "residual_px": float(residual), "kept": bool(kept)}
                for link, residual, kept in zip(
                    self.links, self.residuals_px, self.kept, strict=True
                )
            ],
        }


def place(nominal_px: Matrix, links: Sequence[Link], *, stage_sigma_px: float = 10.0) -> Placement:
    """Return the positions that agree best with the links that agree with each other.

    Parameters
    ----------
    nominal_px : (n, 3) positions that the stage reports
    links : measured shifts; those not believed are listed, and do not take part
    stage_sigma_px : how far off the stage may be: the weight of the prior
    """
    nominal = np.asarray(nominal_px, np.float64)
    count = len(nominal)
    ends = np.array([(a.first, a.second) for a in links], int).reshape(-1, 2)
    shifts = np.array([a.shift_px for a in links], np.float64).reshape(-1, 3)
    sigma = np.array([max(a.sigma_px, LEAST_SIGMA_PX) for a in links])
    believed = np.array([a.believed for a in links], bool)
    proof = _proof(links)
    information = np.where(believed, proof / np.square(sigma), 0.0)
    weight, kept = information.copy(), believed.copy()
    limit = np.maximum(REJECTED_SIGMA * sigma, LEAST_REJECTED_PX)
    for turn in range(ROUNDS):
        positions = _solved(nominal, ends, shifts, weight, stage_sigma_px)
        residual = _residuals(positions, ends, shifts)
        if turn < ROUNDS // 2:
            # the L1 norm: no single link can pull its neighbours with it
            weight = information / np.maximum(residual / sigma, 1.0)
            continue
        before, kept = kept, believed & (residual <= limit)
        weight = np.where(kept, information, 0.0)
        weight /= 1.0 + np.square(residual / (SOFT_SIGMA * sigma))
        if turn > ROUNDS // 2 + 5 and np.array_equal(before, kept):
            break
    positions = _solved(nominal, ends, shifts, weight, stage_sigma_px)
    return Placement(
        positions,
        tuple(links),
        _residuals(positions, ends, shifts),
        kept,
        _groups(count, ends[kept]),
        _cycles(count, ends[kept], shifts[kept]),
    )


def _proof(links: Sequence[Link]) -> Matrix:
    """Return how much of each link's signal is shared, as a ratio to what is not, at most 10."""
    squared = np.square([np.clip(a.ncc, 0.0, 0.99) for a in links])
    ratio: Matrix = np.clip(squared / (1.0 - squared), 1e-3, 10.0)
    return ratio


def _solved(
    nominal: Matrix, ends: NDArray[np.int64], shifts: Matrix, weight: Matrix, stage_sigma: float
) -> Matrix:
    """Return the minimiser of sum w |p_b - p_a - d|^2 + |p - nominal|^2 / stage_sigma^2."""
    count, number = len(nominal), len(ends)
    rows = np.repeat(np.arange(number), 2)
    values = np.tile([-1.0, 1.0], number)
    incidence = sparse.csr_matrix((values, (rows, ends.ravel())), shape=(number, count))
    weighted = incidence.T @ sparse.diags(weight) if number else sparse.csr_matrix((count, 0))
    prior = 1.0 / stage_sigma**2
    normal = (weighted @ incidence + prior * sparse.identity(count)).tocsc()
    # solved for what the links add to the nominal positions: large numbers cancel beforehand
    right = weighted @ (shifts - incidence @ nominal)
    moved = np.column_stack([spsolve(normal, right[:, axis]) for axis in range(3)])
    positions: Matrix = nominal + moved
    return positions


def _residuals(positions: Matrix, ends: NDArray[np.int64], shifts: Matrix) -> Matrix:
    off = positions[ends[:, 1]] - positions[ends[:, 0]] - shifts
    length: Matrix = np.linalg.norm(off, axis=1)
    return length


def _groups(count: int, ends: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    graph = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    number, label = connected_components(graph, directed=False)
    groups = [tuple(np.flatnonzero(label == i).tolist()) for i in range(number)]
    return tuple(sorted(groups, key=lambda group: (-len(group), group)))


def _cycles(count: int, ends: NDArray[np.int64], shifts: Matrix) -> Matrix:
    """Return the closing errors of the shortest cycles, each counted once."""
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for number, (a, b) in enumerate(ends.tolist()):
        neighbours[a].append((b, number))
        neighbours[b].append((a, number))
    seen: dict[frozenset[int], float] = {}
    for number, (a, b) in enumerate(ends.tolist()):
        path = _path_around(neighbours, a, b, number)
        if path is None or frozenset([*path, number]) in seen:
            continue
        at, total = a, np.zeros(3)
        for step in path:
            forward = ends[step, 0] == at
            total += shifts[step] if forward else -shifts[step]
            at = int(ends[step, 1] if forward else ends[step, 0])
        seen[frozenset([*path, number])] = float(np.linalg.norm(total - shifts[number]))
    return np.array(list(seen.values()))


def _path_around(
    neighbours: list[list[tuple[int, int]]], start: int, end: int, without: int
) -> list[int] | None:
    """Return the links of the shortest path from `start` to `end` that avoids one link."""
    came: dict[int, tuple[int, int]] = {start: (-1, -1)}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        if at == end:
            path = []
            while at != start:
                at, link = came[at]
                path.append(link)
            return path[::-1]
        for other, link in neighbours[at]:
            if link != without and other not in came:
                came[other] = (at, link)
                queue.append(other)
    return None


def _summary(values: Matrix) -> dict[str, float] | None:
    if not values.size:
        return None
    return {"median": float(np.median(values)), "largest": float(values.max())}
