"""Which plain iterations to run when a number of them is asked for: medians over seeds, objects, PSFs.

Called by `fusion.py --seeds`. Every case is one object (structure and seed), one PSF and one photon
count; every method that a number of iterations could mean is run on it with that number.
"""

import json
import random
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Grid
from pellucid.core.multiview import MultiViewRecording, record_views, turned_arms
from pellucid.core.noise import Noise
from pellucid.core.psf import Psf, crop_to_support, fwhm_px
from pellucid.core.psf_theory import gaussian, theoretical_psf
from pellucid.core.quality import ncc
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.views import View
from pellucid.errors import RunawayWarning

CAMERA = Camera(gain=1.0, offset=100.0, read_noise=1.5)
NOISE = Noise(gain=1.0, offset=100.0, read_noise=1.5)
BACKGROUND, BORDER = 2.0, 4
COUNTS = (3, 10)
MANY = 30
"""Of the matched projector alone: an unmatched one has long passed its best."""
PLAIN = {
    "matched": (Matched(), "additive"),
    "matched, view after view": (Matched(), "alternating"),
    "WB": (WienerButterworth(cutoff_fwhm=2**-0.5), "additive"),
    "WB, view after view": (WienerButterworth(cutoff_fwhm=2**-0.5), "alternating"),
}


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


def scored(recording: MultiViewRecording) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every method's name and its scores on one recording."""
    views = [
        View(v.counts, v.grid, v.world_to_view, v.psf, 100 + BACKGROUND, NOISE)
        for v in recording.views
    ]
    inner = (slice(BORDER, -BORDER),) * 3
    truth = recording.truth[inner]
    sigma = min(fwhm_px(recording.views[0].psf)) / 2 / 2.3548
    half = ndimage.gaussian_filter(recording.truth, sigma)[inner]
    asked: list[tuple[str, dict[str, Any]]] = [("guarded", {})]
    for count, (name, (projector, update)) in product((*COUNTS, MANY), PLAIN.items()):
        if count == MANY and projector != Matched():
            continue
        options = {"iterations": count, "back_projector": projector, "update": update}
        asked.append((f"{count} {name}", options))
    for name, options in asked:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RunawayWarning)
            whole = fuse(views, recording.world, **options).image.numpy()
        yield name, {
            "ncc": ncc(whole[inner], truth),
            "half": ncc(ndimage.gaussian_filter(whole, sigma)[inner], half),
            "light": float(whole[inner].sum() / truth.sum()),
            "ran_away": bool(caught),
        }


def run(
    seeds: list[int], angles: tuple[float, ...], *, size: int, peaks: list[float],
    structures: list[str], planes_every: int, log: Path | None,
) -> None:  # fmt: skip
    """Print the table of medians over all cases; `log` gets a JSON line for each case and method."""
    world = Grid((size, size, size), 1.0, frame="world")
    found: dict[str, list[dict[str, Any]]] = {}
    cases = list(product(seeds, peaks, psfs().items(), structures))
    random.Random(0).shuffle(cases)  # so that a run which is cut short has seen some of each
    for number, (seed, peak, (psf_name, psf), structure) in enumerate(cases):
        arms = turned_arms(
            angles, world, [psf], planes_every=planes_every, misplaced=1.0, seed=seed + 100
        )
        recording = record_views(
            STRUCTURES[structure], world, arms, peak_photons=peak,
            background_photons=BACKGROUND, camera=CAMERA, seed=seed,
        )  # fmt: skip
        for name, scores in scored(recording):
            found.setdefault(name, []).append(scores)
            if log is not None:
                case = {"views": len(angles), "seed": seed, "peak": peak, "psf": psf_name,
                        "structure": structure, "method": name, **scores}  # fmt: skip
                with log.open("a") as lines:
                    lines.write(json.dumps(case) + "\n")
        if number % 8 == 7 or number == len(cases) - 1:
            print(table(found, f"{len(angles)} views, {number + 1} of {len(cases)} cases"), flush=True)


def table(found: dict[str, list[dict[str, Any]]], title: str) -> str:
    """Return medians as lines; `best` counts the cases in which a method leads those of its number."""
    whole = min(len(scores) for scores in found.values())
    values = {name: np.array([s["ncc"] for s in scores[:whole]]) for name, scores in found.items()}
    lines = [f"\n{title}", f"{'iterations':28}  ncc   10 %   half   light  best  ran away"]
    for name, scores in found.items():
        number = name.split()[0]
        rivals = [v for other, v in values.items() if other.split()[0] == number]
        best = int((values[name] >= np.max(rivals, axis=0)).sum())
        half, light = (np.median([s[key] for s in scores]) for key in ("half", "light"))
        lines.append(
            f"{name:28} {np.median(values[name]):5.3f} {np.percentile(values[name], 10):5.3f}  "
            f"{half:5.3f}  {light:6.3f} {best:5}  {sum(s['ran_away'] for s in scores):5}"
        )
    return "\n".join(lines)
