"""Even light: the shading that all tiles share, and how bright each tile is against the others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from pellucid.core.pairwise import Link, Tile

Float32 = NDArray[np.float32]

ORDER = 3
"""Cosines per axis that describe the shading: more would follow the specimen."""

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

    Least squares on logarithms, weakly held at 1, so that tiles without links keep their light.
    """
    normal, right = 0.01 * np.eye(count), np.zeros(count)
    for link in links:
        a, b, ratio = link.first, link.second, np.log(link.brightness)
        normal[[a, b], [a, b]] += 1.0
        normal[[a, b], [b, a]] -= 1.0
        right[b] += ratio
        right[a] -= ratio
    gains = np.linalg.solve(normal, right)
    spread: NDArray[np.float64] = np.exp(gains - gains.mean())
    return spread
