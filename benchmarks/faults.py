"""Kill -9 at random moments, go on until complete: is the result that of one run, byte for byte?

    python benchmarks/faults.py --kills 20 --of process      # the run itself
    python benchmarks/faults.py --kills 7 --of worker        # one of two local workers
    python benchmarks/faults.py --kills 7 --of client        # the command, with its two local workers
    python benchmarks/faults.py --kills 7 --of scheduler     # of two workers that were started apart

After every kill but that of a worker (whose tiles another makes) the run goes on with --resume. A tile
is lost where it was listed before a kill and is not listed after it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import pellucid
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record

VOXEL_UM = (0.3, 0.1, 0.1)
SHAPE = (12, 256, 512)
RUN = "import sys; from pellucid.apps.cli import main; sys.exit(main())"
OUTPUT = "killed.ome.zarr"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def make(folder: Path, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write raw.ome.zarr and psf.tif."""
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = record(
        STRUCTURES["filaments"], psf.values, shape, peak_photons=300.0, background_photons=5.0,
        camera=Camera(), seed=1,
    )  # fmt: skip
    pellucid.write(folder / "raw.ome.zarr", seen.counts, voxel_um=VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM)


def started(folder: Path, output: str, *more: str) -> subprocess.Popen[bytes]:
    """The command, running."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "deconvolve", "raw.ome.zarr", "--psf", "psf.tif", "-o", output,
         "--tile", "12,128,128", "--iterations", "4", *more],
        cwd=folder, **QUIET,
    )  # fmt: skip


def chunks(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of an output but its metadata, which hold times and its name."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "zarr.json")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def listed(folder: Path) -> set[str]:
    """Parts that any list of the run names."""
    lines = [
        line
        for file in folder.glob(f"{OUTPUT}.parts.jsonl*")
        if file.name.endswith(".jsonl")
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    return {json.loads(line)["part"] for line in lines if b'"part"' in line}


@contextmanager
def dask_processes(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Give the address and the process of a scheduler with two workers."""
    where = folder / "where.json"
    where.unlink(missing_ok=True)
    command = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*command, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
         "--no-dashboard", "--scheduler-file", str(where)], cwd=folder, **QUIET,
    )  # fmt: skip
    while not (where.is_file() and where.read_text()):
        time.sleep(0.1)
    address = json.loads(where.read_text())["address"]
    workers = [
        subprocess.Popen(
            [*command, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny",
             "--no-dashboard", "--death-timeout", "5"], cwd=folder, **QUIET,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        yield address, scheduler
    finally:
        for process in (scheduler, *workers):
            process.kill()
            process.wait()


@dataclass
class Count:
    """What came of the kills of one kind."""

    kills: int = 0
    results: int = 0
    equal: int = 0
    lost: int = 0
    finished: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """Where results are made, what they must be, and how long an uninterrupted run takes."""

    folder: Path
    expected: dict[str, bytes]
    rng: np.random.Generator
    most: int

    def one_result(self, count: Count, of: str) -> None:
        """Kill on the way until one result is there."""
        while self._interrupted(count, of):
            now = listed(self.folder)
            count.finished.append(sum("tile" in part for part in now))
        count.results += 1
        count.equal += chunks(self.folder / OUTPUT) == self.expected
        for path in self.folder.glob(f"{OUTPUT}*"):
            subprocess.run(["rm", "-r", str(path)], check=True)

    def _interrupted(self, count: Count, of: str) -> bool:
        """Start or go on, and kill at a random moment; whether the run needs to go on."""
        before = listed(self.folder)
        more = ["--resume", "--overwrite"]
        if of == "scheduler":
            with dask_processes(self.folder) as (address, scheduler):
                run = started(self.folder, OUTPUT, *more, "--cluster", address)
                return self._killed(count, run, before, lambda: scheduler.pid)
        if of in ("worker", "client"):
            more += ["--cluster", "local:2"]
        run = started(self.folder, OUTPUT, *more)
        return self._killed(count, run, before, self._worker if of == "worker" else lambda: run.pid)

    def _killed(self, count: Count, run, before: set[str], victim) -> bool:  # type: ignore[no-untyped-def]
        goal = len(before) + int(self.rng.integers(0, 6))
        while run.poll() is None and len(listed(self.folder)) < goal:
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, 1.0))
        process = victim() if run.poll() is None and count.kills < self.most else None
        if process is not None:
            known = listed(self.folder)
            os.kill(process, signal.SIGKILL)
            count.kills += 1
            print(f"{count.kills}: {sum('tile' in part for part in known)} of 8 tiles finished", flush=True)
        code = run.wait()
        if (self.folder / OUTPUT).exists():
            # killed between the rename and the end: complete, which the bytes must show
            for path in self.folder.glob(f"{OUTPUT}.parts.jsonl*"):
                path.unlink()
            return False
        assert code != 0, "a run that ended well left no output"
        if process is not None:
            count.lost += not known <= listed(self.folder)
        return True

    def _worker(self) -> int | None:
        """A worker that has listed something, if there is one."""
        lists = sorted(self.folder.glob(f"{OUTPUT}.parts.jsonl.*.list.jsonl"))
        alive = [int(path.name.split("-")[-2]) for path in lists]
        alive = [pid for pid in alive if Path(f"/proc/{pid}").exists()]
        return int(self.rng.choice(alive)) if alive else None


def main() -> None:
    """Kill so many, and print what was lost and whether the results are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", choices=("process", "worker", "client", "scheduler"), default="process")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        assert started(folder, "straight.ome.zarr").wait() == 0
        expected = chunks(folder / "straight.ome.zarr")
        trial = Trial(folder, expected, np.random.default_rng(asked.seed), asked.kills)
        count = Count()
        while count.kills < asked.kills:
            trial.one_result(count, asked.of)
            print(
                f"{asked.of}: {count.kills} kills over {count.results} results: {count.equal} of "
                f"{count.results} equal byte for byte, {count.lost} times a finished tile was lost "
                f"(tiles finished when a run ended early: {count.finished} of 8)",
                flush=True,
            )


if __name__ == "__main__":
    main()
