"""Tiles against the whole, by halo; and replayed decisions against the guarded restorer, on a truth.

    python benchmarks/tiling.py
"""

import argparse
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
from pellucid.core.tiling import Tiling, halo_of

BACKGROUND = 3.0
HALOS = (4, 5, 6, 8)


def microscopes() -> dict[str, Psf]:
    """PSFs with long and with short tails."""
    optics = {"na": 1.1, "wavelength_nm": 525, "refractive_index": 1.33}
    sheet = {**optics, "na": 0.8}
    found = {
        "Gaussian": gaussian((0.6, 0.25, 0.25), (0.3, 0.1, 0.1)),
        "light sheet": theoretical_psf("light-sheet", (0.25, 0.1625, 0.1625), sheet_fwhm_um=2.0, **sheet),
        "confocal": theoretical_psf("confocal", (0.2, 0.1, 0.1), excitation_nm=488, **optics),
        "widefield": theoretical_psf("widefield", (0.3, 0.15, 0.15), **{**optics, "na": 0.9}),
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


def by_halo(names: list[str]) -> None:
    """Print the largest error and the 99.9th percentile, as shares of the dynamic range."""
    print("PSF, restorer, halo in voxels: largest error, 99.9th percentile")
    shape = (24, 40, 384)
    structures = dict(zip(microscopes(), ("filaments", "points", "nuclei", "filaments"), strict=True))
    for name in names:
        psf = microscopes()[name]
        kernel = torch.from_numpy(roomy(psf))
        seen = recorded(structures[name], psf, shape, 300.0, 7)
        image = torch.from_numpy(seen.counts.astype(np.float32))
        whole = problem_of(image, kernel)
        start = start_of([whole])
        restorers = {
            "wiener-butterworth, 2": RichardsonLucy(2, METHODS["wiener-butterworth"], start=start),
            "matched, 10": RichardsonLucy(10, METHODS["matched"], start=start),
            "matched, 30": RichardsonLucy(30, METHODS["matched"], start=start),
            "auto": Replay(decided(Accelerated(), whole, start)),
        }
        width, chosen = fwhm_px(psf)[2], halo_of(kernel.numpy())[2]
        widths = {math.ceil(k * width): f"{k} FWHM" for k in HALOS}
        halos = sorted({**widths, chosen // 2: "half of ours", chosen: "ours"}.items())
        for said, restorer in restorers.items():
            expected = restorer(whole).image
            step = 8 if said == "auto" else 1
            for voxels, rule in halos:
                tiled = torch.empty_like(expected)
                for tile in Tiling(shape, (24, 40, 192), (0, 0, voxels), (8, 8, step), 0):
                    tiled[tile.core] = restorer(problem_of(image[tile.read], kernel)).image[tile.inner]
                error = (tiled - expected).abs() / float(expected.max() - expected.min())
                high = float(np.quantile(error.numpy(), 0.999))
                print(
                    f"{name:12s} {said:22s} {voxels:3d} ({rule:12s}) {float(error.max()):.1e}  {high:.1e}",
                    flush=True,
                )


def against_the_truth() -> None:
    """Print NCC of the guarded restorer, and what replaying another place's decisions loses."""
    print("microscope, structure, photons: NCC guarded, replayed - guarded, matched 20 - guarded")
    differences = []
    scored = list(microscopes().items())[:3]
    cases = itertools.product(scored, ("filaments", "points", "nuclei"), (30.0, 1000.0))
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--psf", nargs="*", default=list(microscopes()))
    parser.add_argument("--halos-only", action="store_true")
    asked = parser.parse_args()
    by_halo(asked.psf)
    if not asked.halos_only:
        against_the_truth()
