"""Even light: the shading that all tiles share, and how bright each tile is against the others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from pellucid.core.pairwise import Link, Tile

Float32 = NDArray[np.float32]

ORDER = 3
"""Cosines per axis that describe the shading: more would follow the specimen."""

SHADING_LINKS = 4
"""Links of one direction from which on their common ratio is taken for shading, not for gains."""

PLANES = 24
"""Planes of each tile that are looked at, evenly spread."""


def estimated_flat_field(tiles: Sequence[Tile], background: float = 0.0) -> Float32:
    """Return the (y, x) shading that the tiles have in common, of mean 1.

    The median over planes of all tiles, each divided by its own mean, described by a few cosines;
    it takes tiles enough (about ten) for the specimen to average out.
    """
    ratios = []
    for tile in tiles:
        planes = np.unique(
            np.linspace(0, tile.shape[0] - 1, min(PLANES, tile.shape[0])).astype(int)
        )
        mean = np.mean([np.asarray(tile[int(z)], np.float64) for z in planes], axis=0) - background
        if mean.mean() > 0:
            ratios.append(mean / mean.mean())
    if not ratios:
        return np.ones(tiles[0].shape[1:], np.float32)
    waves = dctn(np.median(ratios, axis=0), norm="ortho")
    low = np.zeros_like(waves)
    low[:ORDER, :ORDER] = waves[:ORDER, :ORDER]
    smooth = np.maximum(idctn(low, norm="ortho"), 0.05)
    flat: Float32 = (smooth / smooth.mean()).astype(np.float32)
    return flat


def tile_gains(count: int, links: Sequence[Link]) -> NDArray[np.float64]:
    """Return how bright each tile is, of geometric mean 1, from the ratios that its links measured.

    Least squares on logarithms, weakly held at 1, so that tiles without links keep their light. What
    all links of one direction have in common is shading (the right border of every tile against the
    left), and would add up from tile to tile: it is taken out where there are links enough to see it.
    """
    ratios = np.log([link.brightness for link in links])
    direction = [_direction(link) for link in links]
    for one in set(direction):
        same = np.array([other == one for other in direction])
        if same.sum() >= SHADING_LINKS:
            ratios[same] -= np.median(ratios[same])
    normal, right = 0.01 * np.eye(count), np.zeros(count)
    for link, ratio in zip(links, ratios, strict=True):
        a, b = link.first, link.second
        normal[[a, b], [a, b]] += 1.0
        normal[[a, b], [b, a]] -= 1.0
        right[b] += ratio
        right[a] -= ratio
    gains = np.linalg.solve(normal, right)
    spread: NDArray[np.float64] = np.exp(gains - gains.mean())
    return spread


def _direction(link: Link) -> tuple[int, ...]:
    """Return along which axes the second tile lies from the first: (0, 0, 1), (0, 1, -1), ..."""
    largest = max(abs(s) for s in link.shift_px)
    return tuple(round(s / largest) if largest > 0 else 0 for s in link.shift_px)
