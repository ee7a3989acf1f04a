"""Do reading, arithmetic and writing overlap? Tiles restored between a slow disk to read and to write.

The disk is simulated: it only waits, as long as the arithmetic alone took, or a share of that, so that a
run without overlap takes up to twice as long. Either the reads and the writes wait apart (two disks, or
one that does both at once), or both wait for one disk.

    python benchmarks/overlap.py
"""

import argparse
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid.core.back_projectors import METHODS
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_theory import gaussian
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.data.manifest import Manifest
from pellucid.stages.work.engine import Done, InProcess

SHAPE = (96, 160, 160)


@dataclass(frozen=True)
class SlowDisk:
    """The task of restoring one tile over and over, from and to a disk of so many seconds a tile."""

    read_s: float
    write_s: float
    disk: Any = nullcontext()

    def part(self, key: int) -> str:
        return f"tile {key}"

    def read(self, key: int) -> np.ndarray:
        with self.disk:
            time.sleep(self.read_s)
        return self.counts

    def compute(self, key: int, read: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(read.astype(np.float32))
        return self.restorer(Problem((Observation(image, Blur(self.psf, SHAPE), 5.0),))).image

    def write(self, key: int, made: torch.Tensor) -> dict[str, Any]:
        with self.disk:
            time.sleep(self.write_s)
        return {}

    @cached_property
    def counts(self) -> np.ndarray:
        return np.random.default_rng(0).poisson(30.0, SHAPE).astype(np.uint16)

    @cached_property
    def psf(self) -> torch.Tensor:
        return torch.from_numpy(roomy(gaussian((0.7, 0.25, 0.25), (0.3, 0.1, 0.1))))

    @cached_property
    def restorer(self) -> RichardsonLucy:
        return RichardsonLucy(2, METHODS["wiener-butterworth"], start=25.0)


def main() -> None:
    """Print the wall time against the larger of the disk's and the arithmetic's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 1.0, 2.0])
    asked = parser.parse_args()
    free = SlowDisk(0.0, 0.0)
    free.compute(0, free.read(0))
    for share in asked.shares:
        for disks in ("apart", "one"):
            begin = time.perf_counter()
            for tile in range(3):
                free.compute(tile, free.counts)
            disk_s = share * (time.perf_counter() - begin) / 3
            lock = threading.Lock() if disks == "one" else nullcontext()
            slow = SlowDisk(0.6 * disk_s, 0.4 * disk_s, lock)
            slow.compute(0, slow.counts)
            with tempfile.TemporaryDirectory() as place:
                listed = Manifest(Path(place) / "tiles.jsonl", {})
                done: list[Done[int]] = []
                begin = time.perf_counter()
                InProcess().run(range(asked.tiles), slow, listed, done.append)
                wall = time.perf_counter() - begin
            computing, waiting = sum(d.timings_s["compute"] for d in done), asked.tiles * disk_s
            if disks == "apart":
                waiting *= 0.6
            # the first tile is read and the last written with nothing beside
            ends = wall - disk_s
            larger = max(computing, waiting)
            print(
                f"disk {share:g} of the arithmetic, reads and writes {disks}: {computing:.2f} s "
                f"arithmetic, {waiting:.2f} s disk, together {wall:.2f} s: {wall / larger:.2f} of the "
                f"larger ({ends / larger:.2f} without the first read and the last write), "
                f"{wall / (computing + asked.tiles * disk_s):.2f} of the sum",
                flush=True,
            )


if __name__ == "__main__":
    main()
