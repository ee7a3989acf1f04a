"""Tiled against whole: error by halo, for matched, unmatched and replayed guarded restoration.

    python benchmarks/tiling.py
"""

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import METHODS
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.replay import Replay, Schedule, decided, start_of
from pellucid.core.tiling import Tiling

SHAPE, CORE, BACKGROUND = (32, 48, 384), (32, 48, 192), 20.0


def recording(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points blurred by a Gaussian (FWHM 5.7, 3.5, 3.5 voxels; radius 6, 4, 4), with photon noise."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[-6:7, -4:5, -4:5]
    kernel = np.exp(-0.5 * sum((a / s) ** 2 for a, s in zip(axes, (2.4, 1.5, 1.5), strict=True)))
    psf = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
    truth = np.zeros(SHAPE, np.float32)
    np.add.at(truth, tuple(rng.integers(0, n, 400) for n in SHAPE), rng.uniform(2e3, 2e4, 400))
    clean = Blur(psf, SHAPE, extended=False).forward(torch.from_numpy(truth)).numpy().clip(0)
    return torch.from_numpy(rng.poisson(clean + BACKGROUND).astype(np.float32)), psf


def problem_of(image: torch.Tensor, psf: torch.Tensor) -> Problem:
    """The problem of one tile."""
    z, y, x = image.shape
    return Problem((Observation(image, Blur(psf, (z, y, x)), BACKGROUND),))


def main() -> None:
    """Print a table: largest error and 99.9th percentile, as shares of the dynamic range."""
    image, psf = recording(seed=11)
    whole = problem_of(image, psf)
    start = start_of([whole])
    schedules = {
        "matched, 10": Schedule.plain(METHODS["matched"], 10, start),
        "wiener-butterworth, 2": Schedule.plain(METHODS["wiener-butterworth"], 2, start),
        "guarded, replayed": decided(Accelerated(), whole, start),
    }
    print("restorer, halo in x (PSF radii of 4 voxels): largest error, 99.9th percentile, "
          "largest error farther than 24 voxels from the volume's ends")
    for name, schedule in schedules.items():
        restorer = Replay(schedule)
        expected = restorer(whole).image
        for halo in (8, 16, 32, 48, 64, 96):
            tiled = torch.empty_like(expected)
            for tile in Tiling(SHAPE, CORE, (0, 0, halo), schedule.coarsest, 0):
                part = restorer(problem_of(image[tile.read].contiguous(), psf)).image
                tiled[tile.core] = part[tile.inner]
            error = (tiled - expected).abs() / float(expected.max() - expected.min())
            largest, high = float(error.max()), float(np.quantile(error.numpy(), 0.999))
            inside = float(error[..., 24:-24].max())
            line = f"{name:22s} {halo / 4:3.0f} radii  {largest:.1e}  {high:.1e}  {inside:.1e}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
