"""Stitching of semi-synthetic tiles with a truth: errors of placement with false links.

    python benchmarks/stitching.py REAL_DATA

Tiles cut from a real volume at known places, each with noise and shading of its own; the stage is
off by up to 8 voxels; a tenth of the links get wrong content. Against a spanning tree of the best
correlations, which is what placing tiles one after the other amounts to.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from pellucid.core.pairwise import Link, pairwise_shift
from pellucid.core.placement import place

ROWS, COLUMNS, OVERLAP = 4, 4, 0.18


def tiles_of(volume, seed):
    """Return tiles, their true positions, and where the stage says they are."""
    rng = np.random.default_rng(seed)
    depth, height, width = volume.shape
    size = [int((n - 20) / (1 + (k - 1) * (1 - OVERLAP))) for n, k in
            ((height, ROWS), (width, COLUMNS))]  # fmt: skip
    tiles, true, stage = [], [], []
    for row, column in np.ndindex(ROWS, COLUMNS):
        nominal = np.array([4, 10 + row * size[0] * (1 - OVERLAP),
                            10 + column * size[1] * (1 - OVERLAP)])  # fmt: skip
        at = np.rint(nominal + rng.uniform([-2, -8, -8], [2, 8, 8])).astype(int)
        z, y, x = np.clip(at, 0, [8, height - size[0], width - size[1]])
        cut = volume[z : z + depth - 8, y : y + size[0], x : x + size[1]].astype(float)
        slope = np.linspace(-1, 1, size[1]) * rng.uniform(-0.15, 0.15)
        light = 200 * cut / np.percentile(cut, 99) * rng.uniform(0.8, 1.2) * (1 + slope)
        tiles.append(rng.poisson(light + 5).astype(np.float32))
        true.append((z, y, x))
        stage.append(nominal)
    return tiles, np.array(true, float), np.array(stage)


def links_of(tiles, stage, seed, false_share):
    """Return measured links, a share of them with wrong content in the second tile."""
    rng = np.random.default_rng(1000 + seed)
    pairs = [(a, b) for a in range(len(tiles)) for b in (a + 1, a + COLUMNS)
             if b < len(tiles) and (b != a + 1 or b % COLUMNS)]  # fmt: skip
    false = set(rng.choice(len(pairs), round(false_share * len(pairs)), replace=False).tolist())
    links = []
    for number, (a, b) in enumerate(pairs):
        second = tiles[b][::-1, ::-1, ::-1] if number in false else tiles[b]
        link = pairwise_shift(tiles[a], second, tuple(stage[b] - stage[a]), names=(a, b),
                              margin_px=(5.0, 17.0, 17.0))  # fmt: skip
        if link is not None:
            links.append((link, number in false))
    return links


def spanning_tree(count, links: list[Link]):
    """Return positions from a spanning tree of the best correlations."""
    graph = csr_matrix(([1.01 - k.ncc for k in links],
                        ([k.first for k in links], [k.second for k in links])),
                       shape=(count, count))  # fmt: skip
    tree = minimum_spanning_tree(graph)
    order, before = breadth_first_order(tree + tree.T, 0, directed=False)
    shift = {(k.first, k.second): np.array(k.shift_px) for k in links}
    at = np.zeros((count, 3))
    for tile in order[1:]:
        a = before[tile]
        at[tile] = at[a] + (shift[a, tile] if (a, tile) in shift else -shift[tile, a])
    return at


def errors(found, true):
    """Return distances from the truth once a common shift is taken out."""
    off = found - true
    return np.linalg.norm(off - np.median(off, axis=0), axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10)
    options = parser.parse_args()
    sources = {
        "cortex": tifffile.imread(options.data / "mouse_cortex_stpt/signal.tif")[:, :560, :],
        "brain": tifffile.imread(options.data / "mouse_brain_whole/brain.tif")[100:160],
    }
    print("| source | false | method | median px | worst px | false kept | true dropped | CPU s |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for name, volume in sources.items():
        for share in (0.0, 0.1):
            rows = {"stage": [], "spanning tree": [], "Pellucid": []}
            kept = dropped = 0
            begin = time.process_time()
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                tiles, true, stage = tiles_of(volume, seed)
                marked = links_of(tiles, stage, seed, share)
                links = [link for link, _ in marked]
                placed = place(stage, links)
                kept += sum(f and k for (_, f), k in zip(marked, placed.kept, strict=True))
                dropped += sum(not f and not k for (_, f), k in
                               zip(marked, placed.kept, strict=True))  # fmt: skip
                rows["stage"].append(errors(stage, true))
                rows["spanning tree"].append(errors(spanning_tree(len(tiles), links), true))
                rows["Pellucid"].append(errors(placed.positions_px, true))
            spent = time.process_time() - begin
            for method, each in rows.items():
                off = np.concatenate(each)
                mine = f"{kept} | {dropped} | {spent:.1f}" if method == "Pellucid" else " | |"
                print(f"| {name} | {share:.0%} | {method} | {np.median(off):.3f} | "
                      f"{off.max():.3f} | {mine} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
