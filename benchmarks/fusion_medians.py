"""Every way to fuse over many cases: medians over seeds, objects, PSFs and photon counts.

Called by `fusion.py --seeds`. Every case is one object (structure and seed), one PSF and one photon
count, and all methods see the same recordings.
"""

import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fusion_methods import methods, scored
from pellucid.core.geometry import Grid
from pellucid.core.multiview import record_views, turned_arms
from pellucid.core.noise import Noise
from pellucid.core.psf import Psf, crop_to_support
from pellucid.core.psf_theory import gaussian, theoretical_psf
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.views import View

CAMERA = Camera(gain=1.0, offset=100.0, read_noise=1.5)
NOISE = Noise(gain=1.0, offset=100.0, read_noise=1.5)
BACKGROUND = 2.0


def psfs() -> dict[str, Psf]:
    """PSFs by name, on isotropic voxels; none of them is the one that choices were made with."""
    sheets = [
        theoretical_psf(
            "light-sheet", (voxel,) * 3, na=na, wavelength_nm=525, refractive_index=1.33,
            sheet_fwhm_um=thick,
        )
        for na, voxel, thick in ((0.8, 0.2, 2.0), (0.5, 0.3, 4.0))
    ]  # fmt: skip
    return {
        "Gaussian 6 x 3 x 3": gaussian((6.0, 3.0, 3.0), (1.0, 1.0, 1.0)),
        "Gaussian 12 x 4 x 4": gaussian((12.0, 4.0, 4.0), (1.0, 1.0, 1.0)),
        "light sheet, NA 0.8": unit(crop_to_support(sheets[0], 0.98)),
        "light sheet, NA 0.5": unit(crop_to_support(sheets[1], 0.98)),
    }


def unit(psf: Psf) -> Psf:
    """Return the same voxels, called one micrometre."""
    return Psf.normalised(psf.values, (1.0, 1.0, 1.0), psf.notes)


def run(
    seeds: list[int], angles: tuple[float, ...], *, size: int, peaks: list[float],
    structures: list[str], planes_every: int, log: Path | None, only: Sequence[str] = ("",),
    most: int | None = None,
) -> None:  # fmt: skip
    """Print the table of medians over all cases; `log` gets a JSON line for each case and method.

    With `most`, only so many cases, drawn at random, always the same.
    """
    world = Grid((size, size, size), 1.0, frame="world")
    found: dict[str, list[dict[str, Any]]] = {}
    cases = list(product(seeds, peaks, psfs().items(), structures))
    random.Random(0).shuffle(cases)  # so that a run which is cut short has seen some of each
    cases = cases[:most]
    for number, (seed, peak, (psf_name, psf), structure) in enumerate(cases):
        arms = turned_arms(
            angles, world, [psf], planes_every=planes_every, misplaced=1.0, seed=seed + 100
        )
        recording = record_views(
            STRUCTURES[structure], world, arms, peak_photons=peak,
            background_photons=BACKGROUND, camera=CAMERA, seed=seed,
        )  # fmt: skip
        views = [
            View(v.counts, v.grid, v.world_to_view, v.psf, 100 + BACKGROUND, NOISE)
            for v in recording.views
        ]
        for method in methods():
            if not any(part in method.name for part in only):
                continue
            scores = scored(method, views, recording, world)
            found.setdefault(method.name, []).append(scores)
            if log is not None:
                case = {"views": len(angles), "seed": seed, "peak": peak, "psf": psf_name,
                        "structure": structure, "method": method.name, **scores}  # fmt: skip
                with log.open("a") as lines:
                    lines.write(json.dumps(case) + "\n")
        if number % 8 == 7 or number == len(cases) - 1:
            print(table(found, f"{len(angles)} views, {number + 1} of {len(cases)} cases"), flush=True)


def table(found: dict[str, list[dict[str, Any]]], title: str) -> str:
    """Return medians as a table.

    `against` is the median difference to 30 matched joint iterations, with the worst and the best.
    """
    whole = min(len(scores) for scores in found.values())
    columns = "ncc | against | worst | best | lowest ncc | half | z | y | x | light | CPU s | ran away"
    lines = [f"\n{title}\n", f"| method | {columns} |", "|---" * 13 + "|"]
    matched = found.get("joint, matched 30")
    for name, scores in found.items():
        kept = scores[:whole]
        values = np.array([s["ncc"] for s in kept])
        other = np.nan if matched is None else np.array([s["ncc"] for s in matched[:whole]])
        gaps = values - other
        half, light, seconds = (np.median([s[key] for s in kept]) for key in ("half", "light", "cpu_s"))
        z, y, x = np.median([s["period_px"] for s in kept], axis=0)
        lines.append(
            f"| {name} | {np.median(values):.3f} | {np.median(gaps):+.3f} | {gaps.min():+.3f} | "
            f"{gaps.max():+.3f} | {values.min():.3f} | {half:.3f} | {z:.1f} | {y:.1f} | {x:.1f} | "
            f"{light:.3f} | {seconds:.2f} | {sum(s['ran_away'] for s in kept)} |"
        )
    return "\n".join(lines)
