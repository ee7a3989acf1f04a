"""Pairs of views of one object with a known transform between them, for `registration.py`.

Structures and seeds differ from those that the method was developed on (seeds 1000 and above).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.geometry import Affine
from pellucid.core.simulation import STRUCTURES

REAL = {
    "mouse brain": "mouse_brain_whole/brain.tif",
    "pollen": "pollen/pollen.tif",
    "nuclei": "nuclei_confocal/raw.tif",
    "light-sheet nuclei": "nuclei_lightsheet/klb_img.tif",
}
FIXED_SIGMA_PX, MOVING_SIGMA_PX = (4.0, 1.0, 1.0), (1.0, 1.0, 4.0)


@dataclass(frozen=True)
class Pair:
    """Two views of one object, and the transform between them (voxels of 1 um)."""

    name: str
    fixed: NDArray[np.uint16]
    moving: NDArray[np.uint16]
    fixed_to_moving: Affine


def random_affine(
    seed: int, size: int, *, rotation_deg: float = 10, stretch: float = 0.05, shift: float = 15
) -> Affine:
    """Return a map about the centre: any axis, at most these degrees, fractions and voxels."""
    rng = np.random.default_rng([seed, 77])
    axis = rng.normal(size=3)
    angle = np.deg2rad(rotation_deg) * rng.uniform(0.3, 1)
    return Affine.from_params(
        rotation_rad=axis / np.linalg.norm(axis) * angle,
        scale=1 + rng.uniform(-stretch, stretch, 3),
        shear=rng.uniform(-stretch, stretch, 3),
        translation_um=rng.uniform(-shift, shift, 3),
        centre_um=(size - 1) / 2,
        source="fixed",
        target="moving",
    )


def object_of(structure: str, size: int, seed: int) -> NDArray[np.float32]:
    """Return an object of (1.5 size)^3, smooth enough for splines to move it to 1e-3."""
    wide = int(1.5 * size)
    painted = STRUCTURES[structure]((wide, wide, wide), seed)
    smooth = ndimage.gaussian_filter(painted.astype(np.float32), 1.0)
    return smooth / np.percentile(smooth, 99.9)


def view(
    wide: NDArray[np.float32],
    size: int,
    affine: Affine | None,
    sigma_px: tuple[float, ...],
    *,
    photons: float,
    background: float,
    seed: int,
) -> NDArray[np.uint16]:
    """Return what a microscope of Gaussian blur records of an object, moved by `affine`."""
    margin = (wide.shape[0] - size) // 2
    # SciPy's Gaussian ends at four sigma: nothing beyond that reaches the view
    halo = min(margin, int(4 * max(sigma_px) + 0.5))
    first, length = margin - halo, size + 2 * halo
    if affine is None:
        wide = wide[(slice(first, first + length),) * 3]
    else:
        back = affine.inverse()
        # voxel y of the view sees the object at back(y); the object begins a margin before the view
        offset = back.apply(np.full(3, -halo)) + margin
        wide = ndimage.affine_transform(
            wide, back.linear, offset, output_shape=(length,) * 3, order=3, mode="constant"
        )
    blurred = ndimage.gaussian_filter(wide, sigma_px)
    inner = (slice(halo, halo + size),) * 3
    mean = photons * np.clip(blurred[inner], 0, None) + background
    rng = np.random.default_rng([seed, 5])
    return (rng.poisson(mean) + rng.normal(100, 2, mean.shape)).round().clip(0).astype(np.uint16)


def simulate(
    structure: str,
    size: int,
    seed: int,
    *,
    photons: float = 200,
    background: float = 5,
    rotation_deg: float = 10,
    shift: float = 15,
) -> Pair:
    """Return a dual-view pair of one simulated object under orthogonal anisotropic blur."""
    wide = object_of(structure, size, seed)
    truth = random_affine(seed, size, rotation_deg=rotation_deg, shift=shift)
    fixed = view(
        wide, size, None, FIXED_SIGMA_PX, photons=photons, background=background, seed=seed
    )
    moving = view(
        wide,
        size,
        truth,
        MOVING_SIGMA_PX,
        photons=0.6 * photons,
        background=2 * background,
        seed=seed + 1000,
    )
    return Pair(f"{structure} {seed}", fixed, moving, truth)


def real_object(path: Path, size: int) -> NDArray[np.float32]:
    """Return the middle of a recorded volume as an object of (1.5 size)^3, dark where it ends."""
    recorded = tifffile.imread(path).astype(np.float32)
    while recorded.ndim > 3:
        recorded = recorded[0]
    recorded = np.clip(recorded - np.percentile(recorded, 20), 0, None)
    wide = int(1.5 * size)
    volume = np.zeros((wide,) * 3, np.float32)
    lengths = [min(n, wide) for n in recorded.shape]
    first = [(n - k) // 2 for n, k in zip(recorded.shape, lengths, strict=True)]
    source = tuple(slice(a, a + k) for a, k in zip(first, lengths, strict=True))
    target = tuple(slice((wide - k) // 2, (wide - k) // 2 + k) for k in lengths)
    volume[target] = recorded[source]
    smooth = ndimage.gaussian_filter(volume, 1.0)
    return smooth / np.percentile(smooth, 99.9)


def cached(folder: Path | None, name: str, make: Callable[[], Pair]) -> Pair:
    """Return the pair of that name from the folder, made and kept there if it is not there yet."""
    if folder is None:
        return make()
    path = folder / f"{name.replace(' ', '_')}.npz"
    if not path.exists():
        pair = make()
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, fixed=pair.fixed, moving=pair.moving,
                     matrix=pair.fixed_to_moving.matrix, name=pair.name)  # fmt: skip
        part.replace(path)
    with np.load(path) as kept:
        affine = Affine(kept["matrix"], source="fixed", target="moving")
        return Pair(str(kept["name"]), kept["fixed"], kept["moving"], affine)


def random_blurs(rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return two anisotropic blurs (sigma in voxels) along different axes."""
    first, second, _ = rng.permutation(3)
    wide = rng.uniform(1.5, 4)
    fixed, moving = np.ones(3), np.ones(3)
    fixed[first] = moving[second] = wide
    return tuple(fixed), tuple(moving)


WRONG = ("other specimen", "other structure", "mirrored", "no overlap", "noise", "both noise")


def verdict_pair(case: int, kind: str, size: int, files: dict[str, Path]) -> Pair:
    """Return a pair of a random structure, light and blur, broken as `kind` says."""
    names = [*STRUCTURES, *files]

    def wide(name: str, seed: int) -> NDArray[np.float32]:
        return real_object(files[name], size) if name in files else object_of(name, size, seed)

    rng = np.random.default_rng([case, 11])
    name, photons = names[case // 2 % len(names)], float(rng.choice([20, 50, 200, 1000]))
    sigmas = random_blurs(rng)
    truth = random_affine(case, size, shift=0.12 * size)
    light = {"photons": photons, "background": 5.0}
    specimen = wide(name, case)
    seen = specimen
    if kind == "other specimen":
        seen = object_of(name if name in STRUCTURES else "nuclei", size, case + 500)
    elif kind == "other structure":
        seen = wide(names[(case // 2 + 1) % len(names)], case + 500)
    elif kind == "no overlap":
        # two neighbouring pieces of one specimen, a view's width and a third apart
        piece = object_of(list(STRUCTURES)[case % 4], 2 * size, case)
        n = specimen.shape[0]
        specimen, seen = (np.ascontiguousarray(piece[:n, :n, c : c + n]) for c in (0, 3 * size - n))
    fixed = view(specimen, size, None, sigmas[0], seed=case, **light)
    moving = view(seen, size, truth, sigmas[1], seed=case + 1000, **light)
    if kind == "mirrored":
        moving = np.ascontiguousarray(np.flip(moving, int(rng.integers(3))))
    if "noise" in kind:
        moving = (rng.poisson(photons / 4, moving.shape) + 100).astype(np.uint16)
    if kind == "both noise":
        fixed = (rng.poisson(photons / 3, fixed.shape) + 100).astype(np.uint16)
    return Pair(f"{name}, {photons:.0f} photons", fixed, moving, truth)


def verdict_cases(
    first: int, count: int, size: int, data: Path | None, cache: Path | None
) -> Iterator[tuple[str, bool, Pair]]:
    """Yield pairs, half right and half wrong in six ways: (kind, whether right, pair)."""
    files = {k: data / v for k, v in REAL.items() if data and (data / v).exists()}
    for case in range(first, first + count):
        right = case % 2 == 0
        kind = "right" if right else WRONG[case // 2 % len(WRONG)]
        name = f"verdict {size} {len(files)} {case}"
        yield kind, right, cached(cache, name, partial(verdict_pair, case, kind, size, files))
