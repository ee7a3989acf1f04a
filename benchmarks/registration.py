"""Registration against the truth: simulated dual views, ours and the peers that can be found.

    python benchmarks/registration.py                        twenty pairs of 128^3
    python benchmarks/registration.py --size 256             the same at 256^3
    python benchmarks/registration.py --far                  30 degrees, 40 voxels
    python benchmarks/registration.py --starts               where each way to start leads
    python benchmarks/registration.py --peers 3 --peer-python OTHER/bin/python
    python benchmarks/registration.py --size 256 --memory
    python benchmarks/registration.py --failures 140 --size 64 --data FOLDER

Pairs come from `registration_pairs.py`; `--cache FOLDER` keeps them: making a pair takes longer than
registering it. OMP_NUM_THREADS=1 makes our CPU seconds those of the work, not of threads that wait.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pellucid.core.geometry import Grid
from pellucid.core.registration import Registration, register
from pellucid.core.simulation import STRUCTURES
from registration_pairs import Pair, cached, simulate, verdict_cases

PEERS = (
    "elastix", "ants", "simpleitk", "dipy", "greedy", "stitcher-ants", "stitcher-elastix",
)  # fmt: skip


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
        make = partial(simulate, names[case % len(names)], args.size, case, **far)
        pair = cached(args.cache, f"{'far' if far else 'near'} {args.size} {case}", make)
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
                print(f"    {name:16} error {result[0]:7.3f}  {result[1]:6.2f} s", flush=True)
    print(f"\n{args.size}^3, errors are means over eight corners, in voxels")
    print("program           cases  median error  largest  median CPU s  ratio to ours")
    own_seconds = float(np.median([s for _, s in mine]))
    for name, results in {"pellucid": mine, **theirs}.items():
        if not results:
            print(f"{name:17} not run")
            continue
        error, seconds = np.array(results).T
        print(
            f"{name:17} {len(results):5}  {np.median(error):12.3f}  {error.max():7.2f}  "
            f"{np.median(seconds):12.2f}  {np.median(seconds) / own_seconds:13.1f}"
        )
    good = sum(error < 0.5 for error, _ in mine)
    print(f"pellucid within 0.5 voxel: {good} of {len(mine)}")


def starts(args: argparse.Namespace) -> None:
    """Print how often each start leads to the truth, and what it costs."""
    names = list(STRUCTURES)
    print("pairs  start        within 0.5 voxel  median CPU s")
    for kind, far in (("near", {}), ("far", {"rotation_deg": 30.0, "shift": 40.0 * args.size / 128})):
        for start in ("identity", "translation", "projections", "search", None):
            good, seconds = 0, []
            for case in range(args.first, args.first + args.cases):
                make = partial(simulate, names[case % len(names)], args.size, case, **far)
                pair = cached(args.cache, f"{kind} {args.size} {case}", make)
                before = cpu_seconds()
                found = register(pair.fixed, pair.moving, fixed_spacing_um=1.0,
                                 moving_spacing_um=1.0, start=start)  # fmt: skip
                seconds.append(cpu_seconds() - before)
                good += corner_error(found.fixed_to_moving.matrix, pair) < 0.5
            print(f"{kind:5}  {start or 'auto':11}  {good:9} of {args.cases:<4}  "
                  f"{np.median(seconds):.2f}", flush=True)  # fmt: skip


def failures(args: argparse.Namespace) -> None:
    """Print how many wrong pairs are flagged, and how many right ones, off or not."""
    flagged: dict[str, list[bool]] = {}
    right_flags: list[tuple[bool, float]] = []
    believed: list[tuple[float, float]] = []
    for kind, right, pair in verdict_cases(
        args.first, args.failures, args.size, args.data, args.cache
    ):
        found, seconds = ours(pair)
        error = corner_error(found.fixed_to_moving.matrix, pair)
        flagged.setdefault("right" if right else "wrong", []).append(not found.converged)
        if right:
            right_flags.append((not found.converged, error))
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
    flags, errors = np.array(right_flags).T
    for name, group in (
        ("within one voxel", flags[errors <= 1]),
        ("off by more than one voxel", flags[errors > 1]),
    ):
        print(f"  right, {name}: {group.sum():.0f} of {len(group)} flagged")
    if believed:
        error, sigma = np.array(believed).T
        off, unsaid = error > 1, (error > 1) & (error > 3 * sigma)
        low, middle, high = np.quantile(error / sigma, [0.1, 0.5, 0.9])
        print(
            f"right and believed: {off.sum()} of {len(error)} off by more than a voxel, "
            f"{unsaid.sum()} of them by more than three stated sigmas; "
            f"error / sigma: 10 % {low:.2f}, median {middle:.2f}, 90 % {high:.2f}"
        )


def memory(args: argparse.Namespace) -> None:
    """Print the peak of resident memory beyond the two views as they are given, right and wrong."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    structure = next(iter(STRUCTURES))
    make = partial(simulate, structure, args.size, args.first)
    pair = cached(args.cache, f"near {args.size} {args.first}", make)
    ours(simulate("shells", 32, 999, shift=2))  # loading libraries is not registration
    noise = np.random.default_rng(0).poisson(20, pair.moving.shape).astype(np.uint16)
    for name, moving in (("right", pair.moving), ("wrong", noise)):
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        register(pair.fixed, moving, fixed_spacing_um=1.0, moving_spacing_um=1.0)
        used = resident("VmHWM") - before
        print(
            f"{args.size}^3 {name}: {used / 2**20:.0f} MiB beyond the views, "
            f"{used / (2 * pair.fixed.size):.1f} bytes per voxel of both",
            flush=True,
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
    parser.add_argument("--memory", action="store_true", help="the peak of resident memory")
    parser.add_argument("--starts", action="store_true", help="all ways to start, near and far")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cache", type=Path, help="folder to keep simulated pairs in")
    parser.add_argument("--data", type=Path, help="folder of recorded volumes, for --failures")
    args = parser.parse_args()
    if args.starts:
        starts(args)
    elif args.failures:
        failures(args)
    elif args.memory:
        memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
