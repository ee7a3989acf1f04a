"""Richardson-Lucy against its peers: time, memory and error on one volume, and the FFTs' floor.

    python benchmarks/speed.py --python PEERS/bin/python --deconwolf PATH/TO/dw

Every contender runs in a process of its own, warms up once, and then takes its turn round after
round, so that a drift of the machine hits all alike. All have the same number of threads and all
include the transform of the PSF. Only deconwolf, a program and not a library, is given the
difference between two runs, so that its start, files and FFT planning do not count.

Peers live in other environments (`--python`, once for each); what none of them can import is left
out by name. See benchmarks/README.md for what each peer does at the border.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np

from speed_peers import CONTENDERS, FLOOR, OURS, Array, Shape, grid_of, slug

PEERS = str(Path(__file__).with_name("speed_peers.py"))
SEARCH = 2
"""Voxels at the border that are left out where a result is compared shifted."""


class Worker:
    """A contender in its process, warmed up; `missing` says why there is none."""

    def __init__(
        self, index: int, folder: Path, settings: dict[str, Any], pythons: list[str]
    ) -> None:
        self.contender = CONTENDERS[index]
        self.runs: list[dict[str, float]] = []
        self.missing, self.peak_mb = "", 0.0
        threads = {
            f"{name}_NUM_THREADS": str(settings["threads"]) for name in ("OMP", "MKL", "OPENBLAS")
        }
        for python in pythons:
            with open(folder / "errors.txt", "w") as errors:
                self._process = subprocess.Popen(
                    [python, PEERS, "--work", str(index), str(folder), json.dumps(settings)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                    env={**os.environ, **threads},
                )  # fmt: skip
            first = self._answer()
            if "peak_mb" in first:
                self.peak_mb, self.missing = first["peak_mb"], ""
                return
            last = (folder / "errors.txt").read_text().strip().splitlines()[-1:]
            self.missing = first.get("missing") or (last or ["it failed"])[0]
            self.stop()

    def run(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        self.runs.append(self._answer())

    def median(self, quantity: str) -> float:
        return statistics.median(run[quantity] for run in self.runs)

    def stop(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer


def compared(result: Array, reference: Array) -> tuple[float, Shape]:
    """Return the largest error by the largest value at the best whole-voxel shift, and that shift.

    A result that is shifted by (0, 0, 1) shows at voxel x + 1 what the reference shows at x.
    """
    best: tuple[float, Shape] = (np.inf, (0, 0, 0))
    if not np.isfinite(result).all():
        return best
    inner = tuple(slice(SEARCH, n - SEARCH) for n in reference.shape)
    for shift in product(range(-1, 2), repeat=3):
        moved = result[
            tuple(
                slice(SEARCH + s, n - SEARCH + s) for s, n in zip(shift, result.shape, strict=True)
            )
        ]
        squared = float(((moved - reference[inner]) ** 2).mean())
        best = min(best, (squared, shift), key=lambda pair: pair[0])
    shift = best[1]
    if any(shift):
        result = np.roll(result, [-s for s in shift], axis=(0, 1, 2))[inner]
        reference = reference[inner]
    return float(np.abs(result - reference).max() / reference.max()), shift


def table(workers: list[Worker], folder: Path, job_shape: Shape, psf_shape: Shape) -> str:
    """Return the table: one row per contender, ratios within each group."""
    lines = [
        f"{'':14}{'border':22}{'wall s':>8}{'CPU s':>8}{'x FFTs':>8}{'x ours':>8}"
        f"{'peak MB':>9}{'B/voxel':>9}{'x grid':>8}{'error':>10}  shift"
    ]
    voxels = np.prod(job_shape)
    for group in dict.fromkeys(c.handling.group for c in CONTENDERS):
        here = [w for w in workers if w.contender.handling.group == group and w.runs]
        cpu = {w.contender.name: w.median("cpu_s") for w in here}
        lines += [""] if here else []
        for worker in here:
            c, mine = worker.contender, worker.median("cpu_s")
            grid_mb = np.prod(grid_of(job_shape, psf_shape, c.handling.border)) * 4 / 2**20
            row = f"{c.name:14}{c.handling!s:22}{worker.median('wall_s'):8.2f}{mine:8.2f}"
            for other in (FLOOR, OURS):
                row += f"{mine / cpu[other]:8.2f}" if other in cpu else f"{'':8}"
            if c.name != FLOOR:
                result = np.load(folder / f"{slug(c.key)}.npy")
                error, shift = compared(result, np.load(folder / f"{slug(repr(c.handling))}.npy"))
                row += f"{worker.peak_mb:9.0f}{worker.peak_mb * 2**20 / voxels:9.1f}"
                row += f"{worker.peak_mb / grid_mb:8.1f}{error:10.1e}  "
                row += str(shift) if any(shift) else "none"
            lines.append(row)
    missing = [f"left out: {w.contender.key}: {w.missing}" for w in workers if w.missing]
    return "\n".join(lines + ([""] if missing else []) + missing)


def measure(
    shape: Shape, psf_shape: Shape, settings: dict[str, Any], *,
    pythons: list[str], runs: int, only: str = "", log: IO[str] = sys.stderr,
) -> str:  # fmt: skip
    """Run the peers whose name has `only` in it, the FFTs and ours; return the table."""
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        sizes = [json.dumps(values) for values in (shape, psf_shape, settings)]
        # in a process of its own: a child's peak memory counts from its parent's
        subprocess.run([sys.executable, PEERS, "--prepare", name, *sizes], check=True)
        workers = []
        for index, contender in enumerate(CONTENDERS):
            if only in contender.name or contender.name in (FLOOR, OURS):
                print(f"warming up {contender.key}", file=log, flush=True)
                workers.append(Worker(index, folder, settings, [sys.executable, *pythons]))
        for _ in range(runs):
            for worker in workers:
                if not worker.missing:
                    worker.run()
        for worker in workers:
            worker.stop()
        return table(workers, folder, shape, psf_shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="128,256,256", help="z,y,x of the volume")
    parser.add_argument("--psf-shape", default="63,63,63", help="z,y,x of the PSF")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--python", action="append", default=[], help="an interpreter with peers")
    parser.add_argument("--deconwolf", default="dw", help="the program")
    parser.add_argument("--only", default="", help="peers with this in their name")
    args = parser.parse_args()
    shape, psf_shape = (tuple(map(int, a.split(","))) for a in (args.shape, args.psf_shape))
    settings = {
        "iterations": args.iterations, "threads": args.threads, "deconwolf": args.deconwolf
    }  # fmt: skip
    start = os.getloadavg()
    rows = measure(shape, psf_shape, settings, pythons=args.python, runs=args.runs, only=args.only)
    print(
        f"{args.iterations} iterations, {args.shape} float32, PSF {args.psf_shape}, "
        f"{args.threads} threads, median of {args.runs}; load {start[0]:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores"
    )
    print(rows)


if __name__ == "__main__":
    main()
