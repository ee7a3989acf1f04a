"""Quality against the truth, at equal cost: the default restorer, matched Richardson-Lucy, and peers.

Records four structures at three light levels through three theoretical microscopes and, where real
data is present, through measured PSFs; restores each with every method; prints one table of the gaps
to matched Richardson-Lucy at its best iteration up to 60, and one of how near automatic stopping
comes to the best estimate on its own path. Cost is counted in iterations of four FFTs on the padded
grid, everything included but the set-up (one transform of the PSF, one of the sensitivity).

    python benchmarks/quality.py                     # all, about 15 minutes on 2 cores
    python benchmarks/quality.py --light 40 --microscope confocal
    python benchmarks/quality.py --borders           # boundary handling, a table of its own
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import torch
from scipy import ndimage

from pellucid.core import accelerated
from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import BackProjector, Matched, OtfMaskedWiener, WienerButterworth
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, crop_to_support, fwhm_px
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.errors import RunawayWarning

SHAPE = (40, 80, 80)
BACKGROUND = 2.0
MOST_MATCHED = 60
MEASURED = {
    "SPIM 0 deg, measured": "mv_psf_measured/angle000.tif",
    "SPIM 90 deg, measured": "mv_psf_measured/angle090.tif",
    "lattice, measured": "psf_lls_measured/psf_lls_61x128x128.tif",
    "confocal, from beads": "confocal_grid/psf_averaged.tif",
}


def microscopes(data: Path | None) -> dict[str, Psf]:
    spacing = (0.2, 0.1, 0.1)
    optics = {"na": 1.1, "wavelength_nm": 525, "refractive_index": 1.33}
    psfs = {
        "light-sheet": theoretical_psf(
            "light-sheet",
            (0.25, 0.1625, 0.1625),
            na=0.8,
            wavelength_nm=525,
            refractive_index=1.33,
            sheet_fwhm_um=2.0,
        ),
        "confocal": theoretical_psf("confocal", spacing, excitation_nm=488, **optics),
        "widefield": theoretical_psf("widefield", spacing, shape=(49, 49, 49), **optics),
    }
    if data is not None:
        for name, file in MEASURED.items():
            psfs[name] = crop_to_support(prepare(tifffile.imread(data / file)), 0.98)
    return {name: crop_to_support(psf, 0.995) for name, psf in psfs.items()}


@dataclass
class Case:
    """One recording with its truth, and scores of estimates against it."""

    name: str
    problem: Problem
    truth: np.ndarray
    half_width: list[float]
    smooth_truth: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.smooth_truth = ndimage.gaussian_filter(self.truth, self.half_width)

    def scores(self, x: torch.Tensor) -> np.ndarray:
        """Return (NCC, NCC at half the PSF's width) of an object or its window."""
        window = x if x.shape == self.truth.shape else self.problem.windowed(x)
        image = window.double().numpy()
        smooth = ndimage.gaussian_filter(image, self.half_width)
        return np.array([ncc(image, self.truth), ncc(smooth, self.smooth_truth)])


def make_case(structure: str, microscope: str, psf: Psf, peak: float, seed: int) -> Case:
    shape = tuple(min(n, 2 * s) if s == 1 else n for n, s in zip(SHAPE, psf.shape, strict=True))
    recording = record(
        STRUCTURES[structure],
        psf.values,
        shape,
        peak_photons=peak,
        background_photons=BACKGROUND,
        camera=Camera(1.0, 0.0, 0.0),
        seed=seed,
    )
    image = torch.from_numpy(recording.counts.astype(np.float32))
    blur = Blur(torch.from_numpy(psf.values.astype(np.float32)), image.shape)
    sigma = [w / 2 / 2.3548 for w in fwhm_px(psf)]
    problem = Problem((Observation(image, blur, BACKGROUND),))
    return Case(f"{structure}, {microscope}, {peak:g}", problem, recording.truth, sigma)


def per_iteration(
    case: Case, projector: BackProjector, iterations: int, **options: str
) -> np.ndarray:
    """Return scores (iteration, 2) of plain Richardson-Lucy; NaN once it is no longer finite."""
    scores: list[np.ndarray] = []
    with watched(RichardsonLucy, case, scores), warnings.catch_warnings():
        warnings.simplefilter("ignore", RunawayWarning)
        RichardsonLucy(iterations, projector, **options)(case.problem)
    scores += [np.full(2, np.nan)] * (iterations - len(scores))
    return np.array(scores)


class watched:
    """While open, score every estimate that a restorer makes, without changing what it does."""

    def __init__(self, restorer: type, case: Case, scores: list) -> None:
        self.restorer, self.case, self.scores = restorer, case, scores

    def __enter__(self) -> None:
        from pellucid.core import richardson_lucy as module

        self.classes = (module._NoMomentum, module._HeavyBall, module._BiggsAndrews)
        self.judge = accelerated._Climb._judge
        self.learn = [c.__dict__["learn"] for c in self.classes]
        for c, original in zip(self.classes, self.learn, strict=True):
            c.learn = self._learning(original)
        accelerated._Climb._judge = self._judging(self.judge)

    def __exit__(self, *_: object) -> None:
        for c, original in zip(self.classes, self.learn, strict=True):
            c.learn = original
        accelerated._Climb._judge = self.judge

    def _learning(self, original: Callable) -> Callable:
        def learn(momentum, corrected):
            self.scores.append(self.case.scores(corrected))
            return original(momentum, corrected)

        return learn

    def _judging(self, original: Callable) -> Callable:
        def judge(climb, p, made_by, momentum):
            result = original(climb, p, made_by, momentum)
            if climb.level.factors == (1, 1, 1) and climb.path[-1].accepted:
                self.scores.append((climb.cost, self.case.scores(p)))
            return result

        return judge


def default_path(case: Case, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return costs and scores of the default's accepted estimates, and what the whole run cost."""
    path: list = []
    with watched(Accelerated, case, path):
        tolerance = 0.0 if most > 40 else Accelerated().tolerance
        restored = Accelerated(max_iterations=most, tolerance=tolerance)(case.problem)
    costs, scores = zip(*path, strict=True)
    return np.array(costs), np.array(scores), restored.stats["cost_iterations"]


def within(costs: np.ndarray, scores: np.ndarray, budget: float) -> np.ndarray:
    """Return the scores of the last estimate made within a budget."""
    affordable = np.flatnonzero(costs <= budget)
    return scores[affordable[-1]] if len(affordable) else np.full(2, np.nan)


def judged(case: Case) -> dict[str, np.ndarray]:
    """Return the gap (matched at its best minus method) of each method: NCC, NCC at half width."""
    matched = per_iteration(case, Matched(), MOST_MATCHED)
    best = matched.max(axis=0)
    costs, scores, whole = default_path(case, most=40)
    _, long, _ = default_path(case, most=100)
    published = WienerButterworth(alpha=0.05)
    omw = OtfMaskedWiener(alpha=0.005)
    rows = {
        "default, cost 3": within(costs, scores, 3.5),
        "default, cost 5": within(costs, scores, 5.5),
        "default, stopped": scores[-1],
        "default, at most 100": long[-1],
        "WB published, 1": per_iteration(case, published, 1, start="raw")[-1],
        "WB published, 3": per_iteration(case, published, 3, start="raw")[-1],
        "WB from flat, 3": per_iteration(case, published, 3)[-1],
        "OMW published, 2": per_iteration(case, omw, 2, start="raw")[-1],
        "matched, 3": matched[2],
        "matched, 10": matched[9],
        "heavy-ball, 15": per_iteration(case, Matched(), 15, momentum="heavy-ball")[-1],
        "Biggs-Andrews, 15": per_iteration(case, Matched(), 15, momentum="biggs-andrews")[-1],
    }
    gaps = {name: best - found for name, found in rows.items()}
    gaps["stop, from its path's best"] = scores.max(axis=0) - scores[-1]
    gaps["_cost"] = np.array([whole, 1 + matched[:, 0].argmax()])
    return gaps


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    for microscope, psf in microscopes(arguments.data).items():
        if arguments.microscope and arguments.microscope not in microscope:
            continue
        for peak in arguments.light:
            for s, structure in enumerate(STRUCTURES):
                yield microscope, make_case(structure, microscope, psf, peak, arguments.seed + s)


def print_table(title: str, rows: list[dict[str, np.ndarray]]) -> None:
    costs = np.array([row["_cost"] for row in rows])
    print(
        f"\n## {title}: {len(rows)} recordings; default stopped after a median cost of "
        f"{np.median(costs[:, 0]):.1f} (most {costs[:, 0].max():.1f}); "
        f"matched was best at iteration {np.median(costs[:, 1]):.0f}"
    )
    print("| gap to matched at its best | NCC median | worst | NCC at half width median | worst |")
    print("|---|--:|--:|--:|--:|")
    for name in (n for n in rows[0] if not n.startswith("_")):
        gap = np.array([row[name] for row in rows])
        gap = np.where(np.isfinite(gap), gap, 1.0)
        median, worst = np.median(gap, axis=0), gap.max(axis=0)
        print(
            f"| {name} | {median[0]:.4f} | {worst[0]:.4f} | {median[1]:.4f} | {worst[1]:.4f} |",
            flush=True,
        )


def borders(arguments: argparse.Namespace) -> None:
    """Compare what is done about the light beyond the border: nothing, mirrors, or an extended object."""
    print("| microscope | boundary | NRMSE within one PSF of the border | NRMSE inside |")
    print("|---|---|--:|--:|")
    for microscope, psf in microscopes(None).items():
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(arguments.seed, arguments.seed + 3):
            for structure in ("shells", "nuclei"):
                case = make_case(structure, microscope, psf, 400.0, seed)
                for name, x in with_each_boundary(case, psf).items():
                    found.setdefault(name, []).append(border_errors(x, case.truth, psf))
        for name, errors in found.items():
            near, inside = np.median(errors, axis=0)
            print(f"| {microscope} | {name} | {near:.3f} | {inside:.3f} |", flush=True)


def with_each_boundary(case: Case, psf: Psf, iterations: int = 20) -> dict[str, np.ndarray]:
    observation = case.problem.observations[0]
    image, kernel = observation.image, torch.from_numpy(psf.values.astype(np.float32))
    dark = Blur(kernel, image.shape, extended=False)
    reach = [min(n // 2, s - 1) for n, s in zip(psf.shape, image.shape, strict=True)]
    mirrored = torch.from_numpy(np.pad(image.numpy(), [(r, r) for r in reach], mode="symmetric"))
    wide = Blur(kernel, tuple(mirrored.shape), extended=False)
    inner = tuple(slice(r, r + n) for r, n in zip(reach, image.shape, strict=True))
    run = RichardsonLucy(iterations)
    return {
        "zero outside": run(Problem((Observation(image, dark, BACKGROUND),))).image.numpy(),
        "mirrored image": run(
            Problem((Observation(mirrored, wide, BACKGROUND),), window=inner)
        ).image.numpy(),
        "extended object, weighted": run(case.problem).image.numpy(),
        "default (extended, guarded)": Accelerated()(case.problem).image.numpy(),
    }


def border_errors(x: np.ndarray, truth: np.ndarray, psf: Psf) -> tuple[float, float]:
    """Return the NRMSE (relative to the truth's rms) near the border and inside, at half PSF width."""
    sigma = [w / 2 / 2.3548 for w in fwhm_px(psf)]
    x, truth = (ndimage.gaussian_filter(v, sigma) for v in (x, truth))
    depth = [max(2, round(w)) for w in fwhm_px(psf)]
    inside = np.zeros(truth.shape, dtype=bool)
    inside[tuple(slice(d, -d) for d in depth)] = True
    rms = np.sqrt(np.mean(truth**2))
    near, far = (np.sqrt(np.mean((x - truth)[m] ** 2)) / rms for m in (~inside, inside))
    return float(near), float(far)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of real data with measured PSFs")
    parser.add_argument("--light", type=float, nargs="+", default=[40, 400, 4000])
    parser.add_argument("--microscope", help="only those whose name contains this")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--borders", action="store_true", help="boundary handling instead")
    arguments = parser.parse_args()
    if arguments.borders:
        return borders(arguments)
    tables: dict[str, list[dict[str, np.ndarray]]] = {}
    for microscope, case in cases(arguments):
        tables.setdefault(microscope, []).append(judged(case))
    for microscope, rows in tables.items():
        print_table(microscope, rows)
    print_table("all", [row for rows in tables.values() for row in rows])


if __name__ == "__main__":
    main()
