"""Do reading, arithmetic and writing overlap? Tiles restored between a slow disk to read and to write.

The disk is simulated: it takes as long as the arithmetic alone took, or a share of that, so that a run
without overlap takes up to twice as long.

    python benchmarks/overlap.py
"""

import time

import numpy as np
import torch

from pellucid.core.back_projectors import METHODS
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_theory import gaussian
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.stages.engine import run_tasks

SHAPE, TILES = (96, 160, 160), 12


def main() -> None:
    """Print the wall time against the larger of the disk's and the arithmetic's own."""
    psf = torch.from_numpy(roomy(gaussian((0.7, 0.25, 0.25), (0.3, 0.1, 0.1))))
    counts = np.random.default_rng(0).poisson(30.0, SHAPE).astype(np.uint16)
    restorer = RichardsonLucy(2, METHODS["wiener-butterworth"], start=25.0)

    def compute(_: int, read: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(read.astype(np.float32))
        return restorer(Problem((Observation(image, Blur(psf, SHAPE), 5.0),))).image

    compute(0, counts)
    for share in (0.3, 1.0, 2.0):
        begin = time.perf_counter()
        for tile in range(TILES):
            compute(tile, counts)
        alone = time.perf_counter() - begin
        disk = share * alone / TILES

        def read(_: int, seconds: float = 0.6 * disk) -> np.ndarray:
            time.sleep(seconds)
            return counts.copy()

        def write(_: int, made: torch.Tensor, seconds: float = 0.4 * disk) -> None:
            time.sleep(seconds)

        begin = time.perf_counter()
        run_tasks(range(TILES), read, compute, write)
        wall = time.perf_counter() - begin
        larger = max(alone, share * alone)
        print(
            f"disk {share:g} of the arithmetic: {alone:.2f} s arithmetic alone, {share * alone:.2f} s disk "
            f"alone, together {wall:.2f} s: {wall / larger:.2f} of the larger, "
            f"{wall / (alone + share * alone):.2f} of the sum",
            flush=True,
        )


if __name__ == "__main__":
    main()
