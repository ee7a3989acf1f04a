"""Tiles against the whole, by halo; and replayed decisions against the guarded restorer, on a truth.

    python benchmarks/tiling.py
"""

import itertools
import math

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import METHODS
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, crop_to_support, fwhm_px
from pellucid.core.psf_theory import gaussian, theoretical_psf
from pellucid.core.quality import ncc
from pellucid.core.replay import Replay, decided, start_of
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import STRUCTURES, Camera, Recording, record
from pellucid.core.tiling import Tiling

BACKGROUND = 3.0


def microscopes() -> dict[str, Psf]:
    """PSFs with long and with short tails."""
    optics = {"na": 1.1, "wavelength_nm": 525, "refractive_index": 1.33}
    sheet = {**optics, "na": 0.8}
    found = {
        "Gaussian": gaussian((0.6, 0.25, 0.25), (0.3, 0.1, 0.1)),
        "light sheet": theoretical_psf("light-sheet", (0.25, 0.1625, 0.1625), sheet_fwhm_um=2.0, **sheet),
        "confocal": theoretical_psf("confocal", (0.2, 0.1, 0.1), excitation_nm=488, **optics),
    }
    return {name: crop_to_support(psf, 0.995) for name, psf in found.items()}


def recorded(structure: str, psf: Psf, shape: tuple[int, int, int], peak: float, seed: int) -> Recording:
    """A structure seen through `psf`."""
    return record(
        STRUCTURES[structure], psf.values, shape, peak_photons=peak, background_photons=BACKGROUND,
        camera=Camera(1.0, 0.0, 0.0), seed=seed,
    )  # fmt: skip


def problem_of(image: torch.Tensor, kernel: torch.Tensor) -> Problem:
    """The problem of one tile."""
    z, y, x = image.shape
    return Problem((Observation(image.contiguous(), Blur(kernel, (z, y, x)), BACKGROUND),))


def by_halo() -> None:
    """Print the largest error and the 99.9th percentile, as shares of the dynamic range."""
    print("PSF, restorer, halo in FWHM: largest error, 99.9th percentile")
    shape = (24, 40, 384)
    for (name, psf), structure in zip(
        microscopes().items(), ("filaments", "points", "nuclei"), strict=True
    ):
        kernel = torch.from_numpy(roomy(psf))
        seen = recorded(structure, psf, shape, 300.0, 7)
        image = torch.from_numpy(seen.counts.astype(np.float32))
        whole = problem_of(image, kernel)
        start = start_of([whole])
        restorers = {
            "matched, 10": RichardsonLucy(10, METHODS["matched"], start=start),
            "wiener-butterworth, 2": RichardsonLucy(2, METHODS["wiener-butterworth"], start=start),
            "auto": Replay(decided(Accelerated(), whole, start)),
        }
        for (said, restorer), halo in itertools.product(restorers.items(), (2, 4, 6, 8)):
            expected = restorer(whole).image
            tiled = torch.empty_like(expected)
            voxels = math.ceil(halo * fwhm_px(psf)[2])
            for tile in Tiling(shape, (24, 40, 192), (0, 0, voxels), (8, 8, 8), 0):
                tiled[tile.core] = restorer(problem_of(image[tile.read], kernel)).image[tile.inner]
            error = (tiled - expected).abs() / float(expected.max() - expected.min())
            high = float(np.quantile(error.numpy(), 0.999))
            print(f"{name:12s} {said:22s} {halo}  {float(error.max()):.1e}  {high:.1e}", flush=True)


def against_the_truth() -> None:
    """Print NCC of the guarded restorer, and what replaying another place's decisions loses."""
    print("microscope, structure, photons: NCC guarded, replayed - guarded, matched 20 - guarded")
    differences = []
    cases = itertools.product(microscopes().items(), ("filaments", "points", "nuclei"), (30.0, 1000.0))
    for seed, ((name, psf), structure, peak) in enumerate(cases):
        kernel = torch.from_numpy(roomy(psf))
        seen = recorded(structure, psf, (24, 64, 192), peak, 500 + seed)
        image = torch.from_numpy(seen.counts.astype(np.float32))
        sample, other = (problem_of(part, kernel) for part in image.split(96, dim=2))
        truth = seen.truth[..., 96:]
        start = start_of([problem_of(image, kernel)])
        scores = [
            ncc(restorer(other).image.numpy(), truth)
            for restorer in (
                Accelerated(), Replay(decided(Accelerated(), sample, start)),
                RichardsonLucy(20, METHODS["matched"], start=start),
            )
        ]  # fmt: skip
        differences.append([score - scores[0] for score in scores[1:]])
        print(
            f"{name:12s} {structure:10s} {peak:5g}  {scores[0]:.4f}  "
            + "  ".join(f"{d:+.4f}" for d in differences[-1]),
            flush=True,
        )
    found = np.array(differences)
    print("mean", np.round(found.mean(0), 4), "worst", np.round(found.min(0), 4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    against_the_truth()
    by_halo()
