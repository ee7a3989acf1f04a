"""Registration in chunks of views that are deformed, against one affine map and chunks alone.

    python benchmarks/chunk_registration.py [REAL_DATA] [--size 160] [--chunk 40] [--seed 7000] [--corner]

Two views of one object, blurred by (4, 1, 1) and (1, 1, 4) voxels, the second deformed by plane waves
of 3 voxels, 250 to 500 voxels long; on top, a fifth of the chunks that were believed get a false
transform. Errors are distances to the truth on a lattice over the view. With REAL_DATA also recorded
volumes as the object: semi-synthetic. The deformation is made by cubic splines and shares no code with
what is tested.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.back_projectors import Matched
from pellucid.core.chunk_registration import Chunk, chunked, moving_box, register_chunk
from pellucid.core.field_fit import ChunkMeasurement, fit_field
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.psf import Psf
from pellucid.core.quality import ncc
from pellucid.core.registration import register
from pellucid.core.simulation import STRUCTURES
from pellucid.core.views import View

Array = NDArray[np.float64]
SIGMAS_PX = ((4.0, 1.0, 1.0), (1.0, 1.0, 4.0))
AMPLITUDE_PX, WAVES = 3.0, 3
FALSE_SHARE, FALSE_PX = 0.2, (2.0, 15.0)
REAL = {"mouse brain": "mouse_brain_whole/brain.tif"}


def deformation(seed: int) -> Callable[[Array], Array]:
    """Return a displacement (..., 3) of points (..., 3), voxels: a few long plane waves."""
    rng = np.random.default_rng([seed, 3])
    directions = rng.normal(size=(WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = 2 * np.pi * directions / rng.uniform(250, 500, (WAVES, 1))
    phases = rng.uniform(0, 2 * np.pi, WAVES)
    weights = rng.normal(size=(WAVES, 3))
    weights *= AMPLITUDE_PX / np.abs(weights).sum(0)

    def displaced(points: Array) -> Array:
        result: Array = np.cos(points @ waves.T + phases) @ weights
        return result

    return displaced


def object_of(source: str, size: int, seed: int, data: Path | None) -> Array:
    """Return an object (size)^3 of largest value 1: painted, or recorded and without its background."""
    if source in STRUCTURES:
        painted = np.asarray(STRUCTURES[source]((size,) * 3, seed), dtype=np.float64)
        painted = ndimage.gaussian_filter(painted, 0.7)
        return painted / painted.max()
    assert data is not None
    volume = tifffile.imread(data / REAL[source]).astype(np.float64)
    start = [max(0, (n - size) // 2) for n in volume.shape]
    part = volume[tuple(slice(a, a + size) for a in start)]
    part = np.clip(part - np.percentile(part, 1), 0, None)
    return part / np.percentile(part, 99.99)


def views_of(
    thing: Array, displaced: Callable[[Array], Array], photons: float, seed: int
) -> list[NDArray[np.float32]]:
    """Return both views as recorded: moving(p + u(p)) is fixed(p), each with its own blur and noise."""
    q = np.moveaxis(np.indices(thing.shape), 0, -1).astype(np.float64)
    p = q
    for _ in range(12):
        p = q - displaced(p)
    moved = ndimage.map_coordinates(thing, np.moveaxis(p, -1, 0), order=3).clip(0)
    rng = np.random.default_rng([seed, 9])
    recorded = []
    for volume, sigma in zip((thing, moved), SIGMAS_PX, strict=True):
        seen = ndimage.gaussian_filter(volume, sigma).clip(0)
        recorded.append(rng.poisson(seen * photons / seen.max() + 2).astype(np.float32))
    return recorded


def measured_chunks(
    views: list[NDArray[np.float32]], coarse: Affine, core: int
) -> list[ChunkMeasurement]:
    """Return what the registration of every chunk found."""
    shape = views[0].shape
    fixed, moving = (Grid(v.shape, frame=f) for v, f in zip(views, ("fixed", "moving"), strict=True))
    found = []
    for tile in chunked(fixed, (core,) * len(shape)):
        part = fixed.crop([s.start for s in tile.read], [s.stop for s in tile.read])
        box = moving_box(part, moving, coarse)
        if box is None:
            half = tuple(n / 2 for n in part.extent_um)
            found.append(ChunkMeasurement(tile.index, tuple(part.centre_um), half, reason="Outside."))
            continue
        lies = moving.crop([s.start for s in box], [s.stop for s in box])
        chunk = Chunk(tile.index, views[0][tile.read], views[1][box], part, lies)
        found.append(register_chunk(chunk, coarse))
    return found


def made_false(
    chunks: list[ChunkMeasurement], seed: int
) -> tuple[list[ChunkMeasurement], set[int]]:
    """Return the chunks, a fifth of the believed ones displaced at random, and which these are."""
    rng = np.random.default_rng([seed, 5])
    believed = [c.index for c in chunks if c.transform is not None]
    chosen = set(rng.permutation(believed)[: round(FALSE_SHARE * len(believed))].tolist())
    told = []
    for chunk in chunks:
        if chunk.index in chosen:
            way = rng.normal(size=3)
            away = way / np.linalg.norm(way) * rng.uniform(*FALSE_PX)
            moved = Affine.translation(away, source="moving", target="moving") @ chunk.transform
            chunk = replace(chunk, transform=moved)
        told.append(chunk)
    return told, chosen


def errors(placed: Callable[[Array], Array], truth: Callable[[Array], Array], size: int) -> Array:
    """Return the distances (voxels) on a lattice over all but the outermost 4 voxels."""
    axis = np.linspace(4, size - 5, 14)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    found: Array = np.linalg.norm(placed(points) - points - truth(points), axis=-1)
    return found


def alone(chunks: list[ChunkMeasurement], coarse: Affine) -> Callable[[Array], Array]:
    """Return the map that every chunk has for itself, the coarse one where it has none."""
    centres = np.array([c.centre_um for c in chunks])

    def placed(points: Array) -> Array:
        nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
        moved = coarse.apply(points)
        for number, chunk in enumerate(chunks):
            mine = nearest == number
            if chunk.transform is not None and mine.any():
                moved[mine] = chunk.transform.apply(points[mine])
        return moved

    return placed


def worst_corner(placed: Affine, truth: Callable[[Array], Array], size: int) -> list[int]:
    """Return the first voxels of the block of 72^3, 4 from the border, in the corner most wrong."""
    index = np.array(list(np.ndindex(2, 2, 2)))
    points = np.where(index, size - 5.0, 4.0)
    wrong = np.linalg.norm(placed.apply(points) - points - truth(points), axis=1)
    return [int(n) for n in np.where(index[wrong.argmax()], size - 76, 4)]


def fused_ncc(thing, views, coarse, field, how, start) -> float:
    """Return the correlation of 72^3 fused voxels with the object blurred by one voxel."""
    world = Grid(thing.shape, frame="fixed").crop(start, [n + 72 for n in start])
    psfs = []
    for sigma in SIGMAS_PX:
        delta = np.zeros((25, 25, 25))
        delta[12, 12, 12] = 1
        psfs.append(Psf.normalised(ndimage.gaussian_filter(delta, sigma), (1.0, 1.0, 1.0)))
    still = Affine.identity(source="fixed", target="first")
    both = [
        View(views[0], Grid(thing.shape, frame="first"), still, psfs[0], 2.0, brightness=1.0),
        View(views[1], Grid(thing.shape, frame="moving"), coarse if field is None else field.affine,
             psfs[1], 2.0, brightness=1.0, field=field),
    ]  # fmt: skip
    options = {"iterations": 10, "back_projector": Matched()} if how == "joint" else {}
    image = fuse(both, world, how=how, **options).image.numpy()
    part = tuple(slice(n, n + 72) for n in start)
    return float(ncc(image, ndimage.gaussian_filter(thing, 1.0)[part]))


def case(source: str, arguments: argparse.Namespace, seed: int) -> None:
    """Print one line of the table."""
    thing = object_of(source, arguments.size, seed, arguments.data)
    truth = deformation(seed)
    views = views_of(thing, truth, arguments.photons, seed)
    begin = time.process_time()
    whole = register(*views, fixed_spacing_um=1, moving_spacing_um=1)
    coarse_s, coarse = time.process_time() - begin, whole.fixed_to_moving
    begin = time.process_time()
    chunks = measured_chunks(views, coarse, arguments.chunk)
    chunk_s = time.process_time() - begin
    believed = [c for c in chunks if c.transform is not None]
    wrong = {
        c.index for c in believed
        if np.linalg.norm(
            c.transform.apply(c.centre_um) - c.centre_um - truth(np.array(c.centre_um))) > 1
    }  # fmt: skip
    begin = time.process_time()
    fit = fit_field(coarse, Grid(thing.shape, frame="fixed"), chunks)
    fit_s = time.process_time() - begin
    told, false = made_false(chunks, seed)
    robust = fit_field(coarse, Grid(thing.shape, frame="fixed"), told)
    out = {c.index for c in robust.outliers}
    middle = [arguments.size // 2 - 36] * 3
    fused = worst_corner(coarse, truth, arguments.size) if arguments.corner else middle
    print(
        f"| {source} | {len(believed)}/{len(chunks)} ({len(wrong)} wrong) | "
        + " | ".join(
            f"{np.median(e):.2f}, {e.max():.2f}"
            for e in (
                errors(coarse.apply, truth, arguments.size),
                errors(alone(chunks, coarse), truth, arguments.size),
                errors(fit.field.apply, truth, arguments.size),
                errors(alone(told, coarse), truth, arguments.size),
                errors(robust.field.apply, truth, arguments.size),
            )
        )
        + f" | {len(out & false)}/{len(false)}, {len(out - false - wrong)} | "
        + f"{coarse_s:.1f} + {chunk_s:.1f} + {fit_s:.1f} "
        + f"({1e6 * (coarse_s + chunk_s + fit_s) / thing.size:.1f}) | "
        + " | ".join(
            f"{fused_ncc(thing, views, coarse, field, how, fused):.3f}"
            for how in ("average", "joint")
            for field in (None, fit.field)
        )
        + " |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="folder of the real data")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--chunk", type=int, default=40)
    parser.add_argument("--photons", type=float, default=200)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--sources", nargs="*")
    parser.add_argument("--corner", action="store_true", help="fuse where one affine map is worst")
    arguments = parser.parse_args()
    sources = arguments.sources or [*STRUCTURES, *(REAL if arguments.data else ())]
    print(
        "| object | chunks believed | one affine: median, worst | chunks alone | field | chunks alone, "
        "a fifth false | field | false found, good rejected | CPU s whole + chunks + fit (us/voxel) | "
        "NCC average: affine | field | joint: affine | field |"
    )
    for number, source in enumerate(sources):
        case(source, arguments, arguments.seed + number)


if __name__ == "__main__":
    main()
