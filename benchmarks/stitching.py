"""Stitching of semi-synthetic tiles with a truth: errors of placement with false links.

    python benchmarks/stitching.py REAL_DATA [--peer PYTHON]

Tiles cut from a real volume at known places, each with noise and shading of its own; the stage is
off by a few voxels; a tenth of the links get wrong content: turned, from elsewhere in the specimen,
displaced, or empty. Against a spanning tree of the best
correlations, which is what placing tiles one after the other amounts to.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from pellucid.core.flat_field import estimated_flat_field
from pellucid.core.linking import linked, overlapping_pairs
from pellucid.core.pairwise import Link, pairwise_shift

ROWS, COLUMNS = 4, 4

# Overlap as part of a tile, and voxels that the stage may be off by: "brain thin" leaves overlaps of
# -3 to 24 voxels, some of which nobody can link.
CASES = {"cortex": (0.18, 8), "brain": (0.30, 4), "brain thin": (0.18, 8)}
FALSE_KINDS = ("turned", "elsewhere", "displaced", "empty")


def tiles_of(volume, seed, overlap, off):
    """Return tiles, their true positions, and where the stage says they are."""
    rng = np.random.default_rng(seed)
    depth, height, width = volume.shape
    size = [int((n - 20) / (1 + (k - 1) * (1 - overlap))) for n, k in
            ((height, ROWS), (width, COLUMNS))]  # fmt: skip
    tiles, true, stage = [], [], []
    for row, column in np.ndindex(ROWS, COLUMNS):
        nominal = np.array([4, 10 + row * size[0] * (1 - overlap),
                            10 + column * size[1] * (1 - overlap)])  # fmt: skip
        at = np.rint(nominal + rng.uniform([-2, -off, -off], [2, off, off])).astype(int)
        z, y, x = np.clip(at, 0, [8, height - size[0], width - size[1]])
        cut = volume[z : z + depth - 8, y : y + size[0], x : x + size[1]].astype(float)
        slope = np.linspace(-1, 1, size[1]) * rng.uniform(-0.15, 0.15)
        light = 200 * cut / np.percentile(cut, 99) * rng.uniform(0.8, 1.2) * (1 + slope)
        tiles.append(rng.poisson(light + 5).astype(np.float32))
        true.append((z, y, x))
        stage.append(nominal)
    return tiles, np.array(true, float), np.array(stage)


def false_content(tiles, b, kind, rng):
    """Return what stands in for tile `b` in a false link."""
    if kind == "turned":
        return tiles[b][::-1, ::-1, ::-1]
    if kind == "elsewhere":
        # another place of the same specimen, with structure of the same kind
        return tiles[(b + 6) % len(tiles)]
    if kind == "displaced":
        # the right content at a wrong place: it correlates as a true link does
        return np.roll(tiles[b], (1, *rng.integers(4, 12, 2)), axis=(0, 1, 2))
    return rng.poisson(5.0, tiles[b].shape).astype(np.float32)


def placed_with_false_links(tiles, stage, seed, false_share, off):
    """Return Pellucid's placement, the links of the first look, and which pairs are false."""
    rng = np.random.default_rng(1000 + seed)
    pairs = overlapping_pairs([tile.shape for tile in tiles], stage)
    chosen = rng.choice(len(pairs), round(false_share * len(pairs)), replace=False)
    false = {pairs[n]: false_content(tiles, pairs[n][1], FALSE_KINDS[k % 4], rng)
             for k, n in enumerate(chosen)}  # fmt: skip
    first_look = {}

    def measure(a, b, expected, margin):
        link = pairwise_shift(tiles[a], false.get((a, b), tiles[b]), expected, names=(a, b),
                              margin_px=margin)  # fmt: skip
        if link is not None:
            first_look.setdefault((a, b), link)
        return link

    placed = linked(measure, stage, pairs, margin_px=(5.0, 2 * off + 1.0, 2 * off + 1.0))
    return placed, list(first_look.values()), set(false)


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


def peers(python, tiles, stage, share, seed):
    """Return the positions that multiview-stitcher finds, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/tiles.npz", tiles=np.array(tiles), stage=stage)
        script = Path(__file__).with_name("stitching_peers.py")
        run = subprocess.run([python, script, f"{folder}/tiles.npz", str(share), str(seed)],
                             capture_output=True, text=True)  # fmt: skip
    if run.returncode:
        print(f"multiview-stitcher, seed {seed}: {run.stderr.strip().splitlines()[-1]}")
        return None, 0.0
    said = json.loads(run.stdout.strip().splitlines()[-1])
    print(f"multiview-stitcher, seed {seed}: {said['false']} of {said['pairs']} pairs made false")
    return np.array(said["positions_px"]), said["cpu_s"]


def errors(found, true):
    """Return distances from the truth once a common shift is taken out."""
    off = found - true
    return np.linalg.norm(off - np.median(off, axis=0), axis=1)


def real_pair(folder):
    """Print where the second of two real tiles lies, and how well the overlap agrees there."""
    first, second = (tifffile.imread(folder / f"tile{n}.tif") for n in (0, 1))
    link = pairwise_shift(first[None], second[None], (0.0, 0.0, 832.0), margin_px=(0.0, 30.0, 45.0))
    _, y, x = link.shift_px
    print(f"\nreal pair: second tile at y {y:.2f}, x {x:.2f} px from the first, sigma "
          f"{link.sigma_px:.3f}, fine structure {link.ncc:.3f}")  # fmt: skip
    for down, right in ((0, 832), (round(y), round(x))):
        a, b = first[20:-20, right:], second[20 - down : -20 - down, : first.shape[1] - right]
        agree = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        print(f"  overlap at y {down}, x {right}: correlation of counts {agree:.3f}")


def shading_left(volume, seed):
    """Print the spread of a known shading, and of what is left of it after estimation."""
    tiles, _, _ = tiles_of(volume, seed, *CASES["cortex"])
    height, width = tiles[0].shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    shade = 1.2 - 0.3 * (x**2 + 0.7 * y**2) + 0.15 * x
    shade /= shade.mean()
    found = estimated_flat_field([5 + (tile - 5) * shade for tile in tiles], 5.0)
    print(f"shading of seed {seed}: {shade.std():.3f} (one deviation, of its mean), left after "
          f"estimation from {len(tiles)} tiles {(shade / found).std():.3f}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--shares", type=float, nargs="*", default=[0.0, 0.1], help="of false links")
    parser.add_argument("--peer", help="a Python that has multiview-stitcher")
    parser.add_argument("--placing-only", action="store_true")
    options = parser.parse_args()
    sources = {
        "cortex": tifffile.imread(options.data / "mouse_cortex_stpt/signal.tif")[:, :560, :],
        "brain": tifffile.imread(options.data / "mouse_brain_whole/brain.tif")[100:160],
    }
    print("| source | false | method | median px | worst px | links | false kept | true dropped | CPU s |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for name in options.cases:
        overlap, off = CASES[name]
        volume = sources[name.split()[0]]
        for share in options.shares:
            rows = {"stage": [], "spanning tree": [], "Pellucid": []}
            kept = dropped = links = 0
            spent = peer_s = 0.0
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                tiles, true, stage = tiles_of(volume, seed, overlap, off)
                begin = time.process_time()
                placed, first, false = placed_with_false_links(tiles, stage, seed, share, off)
                spent += time.process_time() - begin
                marked = [((k.first, k.second) in false, bool(used))
                          for k, used in zip(placed.links, placed.kept, strict=True)]  # fmt: skip
                links += len(marked)
                kept += sum(wrong and used for wrong, used in marked)
                dropped += sum(not wrong and not used for wrong, used in marked)
                rows["stage"].append(errors(stage, true))
                rows["spanning tree"].append(errors(spanning_tree(len(tiles), first), true))
                rows["Pellucid"].append(errors(placed.positions_px, true))
                if options.peer:
                    found, used_s = peers(options.peer, tiles, stage, share, seed)
                    peer_s += used_s
                    if found is not None:
                        rows.setdefault("multiview-stitcher", []).append(errors(found, true))
            for method, each in rows.items():
                off_px = np.concatenate(each)
                mine = f"{links} | {kept} | {dropped} | {spent:.1f}" if method == "Pellucid" else " | | |"
                mine = f" | | | {peer_s:.1f}" if method == "multiview-stitcher" else mine
                print(f"| {name} | {share:.0%} | {method} | {np.median(off_px):.3f} | "
                      f"{off_px.max():.3f} | {mine} |", flush=True)  # fmt: skip
    if options.placing_only:
        return
    real_pair(options.data / "tiles_2d")
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        shading_left(sources["cortex"], seed)


if __name__ == "__main__":
    main()
