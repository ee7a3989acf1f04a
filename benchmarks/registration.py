"""Registration against the truth: simulated dual views, ours and the peers that can be found.

    python benchmarks/registration.py                        twenty pairs of 128^3
    python benchmarks/registration.py --size 256             the same at 256^3
    python benchmarks/registration.py --far                  30 degrees, 40 voxels
    python benchmarks/registration.py --peers 3 --peer-python OTHER/bin/python
    python benchmarks/registration.py --failures 140 --size 64 --data FOLDER

Structures and seeds differ from those that the method was developed on (seeds 1000 and above).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.geometry import Affine, Grid
from pellucid.core.registration import Registration, register
from pellucid.core.simulation import STRUCTURES

PEERS = ("elastix", "ants", "simpleitk", "dipy", "greedy")
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
    if affine is not None:
        back = affine.inverse()
        # moving voxel y (inner indices) sees the object at back(y); both are offset by the margin
        offset = back.apply(np.full(3, -margin)) + margin
        wide = ndimage.affine_transform(wide, back.linear, offset, order=3, mode="constant")
    blurred = ndimage.gaussian_filter(wide, sigma_px)
    inner = (slice(margin, margin + size),) * 3
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


def cpu_seconds() -> float:
    """Return the CPU seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def corner_error(found: NDArray[np.float64], pair: Pair) -> float:
    """Return the mean distance (voxels) between where the corners land and where they should."""
    corners = Grid(pair.fixed.shape).corners_um()
    landed = corners @ found[:3, :3].T + found[:3, 3]
    return float(np.linalg.norm(landed - pair.fixed_to_moving.apply(corners), axis=1).mean())


def ours(pair: Pair) -> tuple[Registration, float]:
    """Return our registration, and its CPU seconds."""
    before = cpu_seconds()
    found = register(pair.fixed, pair.moving, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    return found, cpu_seconds() - before


def peer(name: str, python: str, pair: Pair) -> tuple[float, float] | None:
    """Return a peer's corner error (voxels) and CPU seconds; None when it cannot be run."""
    script = Path(__file__).with_name("registration_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.npz"
        np.savez(path, fixed=pair.fixed, moving=pair.moving)
        run = subprocess.run(
            [python, str(script), name, str(path)], capture_output=True, text=True, check=False
        )
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:]
        print(f"{name}: skipped ({last[0] if last else 'no message'})")
        return None
    answer = json.loads(run.stdout.strip().splitlines()[-1])
    return corner_error(np.array(answer["matrix"]), pair), answer["seconds"]


def compare(args: argparse.Namespace) -> None:
    """Print the table of errors and seconds: ours on all cases, each peer on the first few."""
    far = {"rotation_deg": 30.0, "shift": 40.0 * args.size / 128} if args.far else {}
    names = list(STRUCTURES)
    mine: list[tuple[float, float]] = []
    theirs: dict[str, list[tuple[float, float]]] = {name: [] for name in PEERS}
    ours(simulate("shells", 32, 999, shift=2))  # loading libraries is not registration
    for case in range(args.first, args.first + args.cases):
        pair = simulate(names[case % len(names)], args.size, case, **far)
        found, seconds = ours(pair)
        error = corner_error(found.fixed_to_moving.matrix, pair)
        mine.append((error, seconds))
        print(
            f"{pair.name:14} error {error:7.3f}  said {np.mean(found.corner_sigma_um):6.3f}  "
            f"ncc {found.ncc_before:.2f} -> {found.ncc_after:.3f}  {seconds:5.2f} s  "
            f"{found.start}  {'' if found.converged else 'REFUSED: ' + found.reason}",
            flush=True,
        )
        for name in args.peer_names if case - args.first < args.peers else ():
            if (result := peer(name, args.peer_python, pair)) is not None:
                theirs[name].append(result)
                print(f"    {name:10} error {result[0]:7.3f}  {result[1]:6.2f} s", flush=True)
    print(f"\n{args.size}^3, errors are means over eight corners, in voxels")
    print("program      cases  median error  largest  median CPU s  ratio to ours")
    own_seconds = float(np.median([s for _, s in mine]))
    for name, results in {"pellucid": mine, **theirs}.items():
        if not results:
            print(f"{name:12} not run")
            continue
        error, seconds = np.array(results).T
        print(
            f"{name:12} {len(results):5}  {np.median(error):12.3f}  {error.max():7.2f}  "
            f"{np.median(seconds):12.2f}  {np.median(seconds) / own_seconds:13.1f}"
        )
    good = sum(error < 0.5 for error, _ in mine)
    print(f"pellucid within 0.5 voxel: {good} of {len(mine)}")


def random_blurs(rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return two anisotropic blurs (sigma in voxels) along different axes."""
    first, second, _ = rng.permutation(3)
    wide = rng.uniform(1.5, 4)
    fixed, moving = np.ones(3), np.ones(3)
    fixed[first] = moving[second] = wide
    return tuple(fixed), tuple(moving)


def verdict_cases(
    first: int, count: int, size: int, data: Path | None
) -> Iterator[tuple[str, bool, Pair]]:
    """Yield pairs, half right and half wrong in six ways: (kind, whether right, pair)."""
    files = {k: data / v for k, v in REAL.items() if data and (data / v).exists()}
    names = [*STRUCTURES, *files]
    kinds = ("other specimen", "other structure", "mirrored", "no overlap", "noise", "both noise")

    def wide(name: str, seed: int) -> NDArray[np.float32]:
        return real_object(files[name], size) if name in files else object_of(name, size, seed)

    for case in range(first, first + count):
        rng = np.random.default_rng([case, 11])
        name, photons = names[case // 2 % len(names)], float(rng.choice([20, 50, 200, 1000]))
        sigmas = random_blurs(rng)
        truth = random_affine(case, size, shift=0.12 * size)
        light = {"photons": photons, "background": 5.0}
        specimen = wide(name, case)
        right = case % 2 == 0
        kind = "right" if right else kinds[case // 2 % len(kinds)]
        seen = specimen
        if kind == "other specimen":
            simulated = name if name in STRUCTURES else "nuclei"
            seen = object_of(simulated, size, case + 500)
        elif kind == "other structure":
            seen = wide(names[(case // 2 + 1) % len(names)], case + 500)
        elif kind == "no overlap":
            # two neighbouring pieces of one specimen, a view's width and a third apart
            piece = object_of(list(STRUCTURES)[case % 4], 2 * size, case)
            n = specimen.shape[0]
            specimen, seen = (
                np.ascontiguousarray(piece[:n, :n, c : c + n]) for c in (0, 3 * size - n)
            )
        fixed = view(specimen, size, None, sigmas[0], seed=case, **light)
        moving = view(seen, size, truth, sigmas[1], seed=case + 1000, **light)
        if kind == "mirrored":
            moving = np.ascontiguousarray(np.flip(moving, int(rng.integers(3))))
        if "noise" in kind:
            moving = (rng.poisson(photons / 4, moving.shape) + 100).astype(np.uint16)
        if kind == "both noise":
            fixed = (rng.poisson(photons / 3, fixed.shape) + 100).astype(np.uint16)
        yield kind, right, Pair(f"{name}, {photons:.0f} photons", fixed, moving, truth)


def failures(args: argparse.Namespace) -> None:
    """Print how many wrong pairs are flagged, and how many right ones."""
    flagged: dict[str, list[bool]] = {}
    believed: list[tuple[float, float]] = []
    for kind, right, pair in verdict_cases(args.first, args.failures, args.size, args.data):
        found, seconds = ours(pair)
        error = corner_error(found.fixed_to_moving.matrix, pair)
        flagged.setdefault("right" if right else "wrong", []).append(not found.converged)
        if right and found.converged:
            believed.append((error, float(np.mean(found.corner_sigma_um))))
        if found.converged != right or (right and error > 1):
            print(
                f"{kind:16} {pair.name:32} error {error:7.2f} "
                f"said {np.mean(found.corner_sigma_um):.2f} fine {found.fine_ncc:.2f} "
                f"peak {found.peak:.1f} overlap {found.overlap:.2f} "
                f"{seconds:.1f} s {'believed' if found.converged else found.reason[:40]}",
                flush=True,
            )
    for name, answers in flagged.items():
        print(f"{name}: {sum(answers)} of {len(answers)} flagged ({np.mean(answers):.1%})")
    if believed:
        error, sigma = np.array(believed).T
        off, unsaid = error > 1, (error > 1) & (error > 3 * sigma)
        low, middle, high = np.quantile(error / sigma, [0.1, 0.5, 0.9])
        print(
            f"right and believed: {off.sum()} of {len(error)} off by more than a voxel, "
            f"{unsaid.sum()} of them by more than three stated sigmas; "
            f"error / sigma: 10 % {low:.2f}, median {middle:.2f}, 90 % {high:.2f}"
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--far", action="store_true", help="30 degrees and 40 voxels at 128^3")
    parser.add_argument("--peers", type=int, default=0, help="cases to run the peers on")
    parser.add_argument("--peer-names", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--failures", type=int, default=0, help="pairs, half of them wrong")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--data", type=Path, help="folder of recorded volumes, for --failures")
    args = parser.parse_args()
    if args.failures:
        failures(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
