"""Networks against the classical solution: quality, generality, inventions, and whether the verdict knows.

`train` makes one model per structure, ours and a plain U-Net of equal size; `matrix` tests each on every
structure, with and without polish; `verdict` calibrates on some structures and judges on others, and on
a PSF that no model was trained with.

    python benchmarks/networks.py train --steps 400 MODELS
    python benchmarks/networks.py verdict MODELS   # before the matrix, which falls back by it
    python benchmarks/networks.py matrix MODELS
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.core.operators import Blur
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf, crop_to_support
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc, psnr
from pellucid.core.wrongness import wrongness
from pellucid.networks.evidence import Squares, error_of, rehearsal, resolution_px, squares_of
from pellucid.networks.features import Start, classical, inputs_of
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, fallen_back, fit_share
from pellucid.networks.structures import BANK, Example, Light, simulate
from pellucid.networks.training import (
    Schedule,
    SimulatedPairs,
    Trainer,
    held_out_pairs,
)
from pellucid.networks.trust import (
    WRONG,
    Trust,
    calibration_case,
    fit,
    recorded,
    scores,
)
from pellucid.networks.views import Microscope
from pellucid.stages.networks.parameters import MIXTURE, STOPPING

SHAPE = (32, 64, 64)
TRAINED_ON = {
    "filaments": ("points", "meshes"),
    "shells": ("nuclei", "points"),
    "filaments+nuclei": STOPPING,
}
"""What is trained on, and the structures that stop the training; filaments+nuclei stands for the recipe's
own mixture."""


def operator(sheet_um: float = 2.0, shape: tuple[int, int, int] = SHAPE) -> Blur:
    psf = theoretical_psf(
        "light-sheet", (0.25, 0.1625, 0.1625), na=0.8, wavelength_nm=525, refractive_index=1.33,
        sheet_fwhm_um=sheet_um,
    )  # fmt: skip
    kernel = crop_to_support(psf, 0.95).values.astype(np.float32)
    return Blur(torch.from_numpy(kernel / kernel.sum()), shape)


class PlainUNet(torch.nn.Module):
    """A U-Net as commonly used: the raw image over its maximum in, three scales, biases; equal in size."""

    def __init__(self, width: int = 12, seed: int = 0, planar: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        size, around = ((1, 3, 3), (0, 1, 1)) if planar else ((3, 3, 3), (1, 1, 1))
        self.step = (1, 2, 2) if planar else (2, 2, 2)

        def block(before: int, after: int) -> torch.nn.Sequential:
            conv = torch.nn.Conv3d
            return torch.nn.Sequential(
                conv(before, after, size, padding=around), torch.nn.ReLU(),
                conv(after, after, size, padding=around), torch.nn.ReLU(),
            )  # fmt: skip

        w = width
        self.down = torch.nn.ModuleList([block(1, w), block(w, 2 * w)])
        self.bottom = block(2 * w, 2 * w)
        self.up = torch.nn.ModuleList([block(4 * w, w), block(2 * w, w)])
        self.out = torch.nn.Conv3d(w, 1, 1)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        raw = inputs[:, :1]
        scale = raw.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        wanted = [-n % s**2 for n, s in zip(raw.shape[2:], self.step, strict=True)]
        x = torch.nn.functional.pad(
            raw / scale, [p for n in reversed(wanted) for p in (0, n)], mode="replicate"
        )
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = torch.nn.functional.max_pool3d(x, self.step)
        x = self.bottom(x)
        for level, skip in zip(self.up, reversed(skips), strict=True):
            finer = torch.nn.functional.interpolate(x, scale_factor=tuple(map(float, self.step)))
            x = level(torch.cat([finer, skip], 1))
        z, y, x_ = raw.shape[2:]
        slope = 0.1 if self.training else 0.0
        out = torch.nn.functional.leaky_relu(self.out(x), slope)
        return (out * scale)[:, 0, :z, :y, :x_]


STARTS: dict[str, Start] = {"ours": "wiener", "added": "classical"}
"""Our networks by what they start from."""


def new_net(name: str, seed: int = 0) -> torch.nn.Module:
    if name == "unet":
        return PlainUNet(seed=seed)
    return RestorationNet(Architecture(start=STARTS[name]), seed)


def train(folder: Path, steps: int, names: list[str]) -> None:
    """Train every model, and print what it cost; the mixture for ours only, twice as long."""
    folder.mkdir(parents=True, exist_ok=True)
    blur = operator()
    print("| net | trained on | parameters | steps | CPU s | held-out NRMSE |")
    print("|---|---|--:|--:|--:|--:|")
    for kinds, held in sorted(TRAINED_ON.items(), key=lambda k: "+" not in k[0]):
        supply = SimulatedPairs((blur,), MIXTURE if "+" in kinds else (kinds,), seed=1)
        mixed = "+" in kinds
        for name in names:
            path = folder / f"{name}-{kinds}.safetensors"
            if path.exists() or (mixed and name == "unet"):
                continue
            net = new_net(name)
            supply = replace(supply, start=STARTS.get(name, "wiener"))
            taken = 2 * steps if mixed else steps
            schedule = Schedule(steps=taken, reuse=3, validate_every=100, patch=(24, 32, 32))
            trainer = Trainer(net, supply, held_out_pairs(supply, held, 4), schedule)
            begin = time.process_time()
            trainer.run()
            spent = time.process_time() - begin
            save_file(trainer.best, path)
            error = min(row["held_out"] for row in trainer.curve)
            print(
                f"| {name} | {kinds} | {count_parameters(net)} | {trainer.step} | {spent:.0f} "
                f"| {error:.3f} |",
                flush=True,
            )


def loaded(folder: Path, name: str, kinds: str) -> torch.nn.Module:
    net = new_net(name)
    net.load_state_dict(load_file(folder / f"{name}-{kinds}.safetensors"))
    return net.eval()


@dataclass(frozen=True)
class AnyNet:
    """A net of any make as an estimator, so that all are polished and judged alike."""

    net: torch.nn.Module

    def estimate(self, problem: Problem) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.net(inputs_of(problem)[None])[0]
        return out


UNSEEN = {
    "filaments": ("shells", "membranes"), "shells": ("filaments", "meshes"),
    "filaments+nuclei": ("membranes", "clouds"),
}  # fmt: skip
"""What neither training nor its end nor calibration sees, and the cure is tested on first."""

PSFS = {"its own": (2.0, 2.0), "another, told": (3.0, 3.0), "another, not told": (3.0, 2.0)}
"""Thickness of the sheet (um) that records, and of the one that the restorer is told."""


FIRST = (5000, 37000)
"""First seeds of calibration and of the test; the method was designed on the former alone."""


def figures(x: Tensor, example: Example) -> list[float]:
    """PSNR, NCC, wrong regions, false and missing structure of an answer on the object's grid."""
    window = example.problem.part
    image, truth = x[window].numpy(), example.truth[window].numpy()
    off = wrongness(image, truth, resolution_px(example.problem))
    wrong = float(off.exceeds(WRONG).mean())
    return [psnr(image, truth), ncc(image, truth), wrong, off.false_structure, off.missing_structure]


def models(folder: Path) -> list[tuple[str, Any]]:
    found = []
    for kinds in TRAINED_ON:
        for name in ("ours", "unet"):
            if (folder / f"{name}-{kinds}.safetensors").exists():
                net = loaded(folder, name, kinds)
                own = Network(net) if isinstance(net, RestorationNet) else AnyNet(net)
                found.append((f"{name}, {kinds}", own))
    return found


def matrix(folder: Path, seeds: int, kinds: list[str]) -> None:
    """Print trained on x tested on: quality; what is wrong, false, missing; before and after cures.

    "Above classical" is the gain in PSNR, with twice its standard error over the recordings, and the least.
    """
    print("| trained on | tested on | answer | PSNR | above classical | worst | NCC | wrong | false "
          "| missing | CPU s |")  # fmt: skip
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for kind in kinds:
        rows: dict[tuple[str, str], list[list[float]]] = {}
        for seed in range(seeds):
            example = simulate((operator(),), kind, 9000 + seed)
            p = example.problem
            answers: list[tuple[str, str, Any]] = [("none", "classical", partial(classical, p))]
            for name, net in models(folder):
                answers.append((name, "network", partial(net.estimate, p)))
                if name.startswith("unet"):
                    answers.append((name, "polished", partial(Polished(net).estimate, p)))
                share_path = folder / f"share-{name.split(', ')[1]}.json"
                if name.startswith("ours") and share_path.exists():
                    share = Share.from_dict(json.loads(share_path.read_text()))
                    answers.append((name, "cured", partial(cured, net, share, p)))
            for name, what, answer in answers:
                begin = time.process_time()
                x = answer()
                spent = time.process_time() - begin
                rows.setdefault((name, what), []).append([*figures(x, example), spent])
        reference = np.array(rows["none", "classical"])[:, 0]
        for (name, what), values in rows.items():
            p_, n, w, f, m, t = np.mean(values, axis=0)
            above = np.array(values)[:, 0] - reference
            error = 2 * above.std(ddof=1) / np.sqrt(len(above)) if len(above) > 1 else float("nan")
            print(
                f"| {name} | {kind} | {what} | {p_:.2f} | {above.mean():+.2f} ± {error:.2f} "
                f"| {above.min():+.2f} | {n:.3f} | {w:.1%} | {f:.2%} | {m:.2%} | {t:.2f} |",
                flush=True,
            )


def cured(net: Any, share: Share, problem: Problem) -> Tensor:
    """What `--fall-back` answers, on the object's grid."""
    x, plain, window = net.estimate(problem), classical(problem), problem.part
    part = share.of(rehearsal(problem, plain).squares(net))
    x = x.clone()
    x[window] = fallen_back(x[window], plain[window], part)
    return x


WORSE = 0.75
"""An error that nobody would call a matter of where the line is drawn."""

DRAWS = 500
"""Times that the recordings of a row are drawn again for its interval."""


@dataclass(frozen=True)
class Judged:
    """What was gathered of one recording, and what the truth says of it."""

    kind: str
    logs: np.ndarray
    rehearsed: Squares
    error: np.ndarray
    true: Squares


def verdict(folder: Path, seeds: int, calibration: int) -> None:
    """Print how well the verdict knows, on structures and PSFs outside training and calibration."""
    print("| trained on | tested on | PSF | regions | wrong | told | error / told | AUROC, 95 % "
          f"| calibration error, 95 % | false alarms | found | of errors > {WORSE} |")  # fmt: skip
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for kinds, unseen in UNSEEN.items():
        if not (folder / f"ours-{kinds}.safetensors").exists():
            continue
        known = gathered(folder, kinds, "calibration", calibration)
        share = fit_share([j.rehearsed for j in known], [j.true for j in known])
        (folder / f"share-{kinds}.json").write_text(json.dumps(share.as_dict()))
        trust = fitted(known)
        (folder / f"trust-{kinds}.json").write_text(json.dumps(trust.as_dict()))
        structures = sorted({part for j in known for part in j.kind.split("+")})
        apart = []
        for name in structures:
            rest = [j for j in known if name not in j.kind]
            apart += judgement(fitted(rest), [j for j in known if name in j.kind])
        print(row(kinds, "each of its calibration, left out", "all", apart))
        groups = {name: gathered(folder, kinds, name, seeds) for name in PSFS}
        groups["all three"] = [j for found in groups.values() for j in found]
        for name, found in groups.items():
            print(row(kinds, ", ".join(unseen), name, judgement(trust, found)), flush=True)


def fitted(known: list[Judged]) -> Trust:
    return fit([j.logs for j in known], [j.error for j in known], [j.kind for j in known])


def judgement(trust: Trust, found: list[Judged]) -> list[np.ndarray]:
    """Of every recording, for every region: probability of being believable, error told, true error, and
    whether it is doubted."""
    out = []
    for j in found:
        told = trust.believable(j.logs)
        columns = (told, trust.error(j.logs), j.error, trust.doubted(told))
        out.append(np.stack([c.ravel().astype(float) for c in columns]))
    return out


def row(kinds: str, tested: str, name: str, recordings: list[np.ndarray]) -> str:
    """One line of the table, with intervals over recordings, which are what is independent."""
    told, expected, error, doubted = np.concatenate(recordings, axis=1)
    wrong, doubted = error > WRONG, doubted > 0
    rng, draws = np.random.default_rng(0), []
    for _ in range(DRAWS):
        again = [recordings[i] for i in rng.integers(len(recordings), size=len(recordings))]
        believed, _, off, _ = np.concatenate(again, axis=1)
        s = scores(believed, off > WRONG)
        draws.append((s["auroc"], s["calibration_error"]))
    (low, least), (high, most) = np.nanpercentile(draws, (2.5, 97.5), axis=0)
    s = scores(told, wrong)
    alarms, found, worse = (
        f"{doubted[which].mean():.1%}" if which.any() else "none"
        for which in (~wrong, wrong, error > WORSE)
    )
    return (
        f"| {kinds} | {tested} | {name} | {error.size} | {wrong.mean():.1%} | {1 - told.mean():.1%} "
        f"| {np.median(error / expected):.2f} | {s['auroc']:.3f} ({low:.3f}, {high:.3f}) "
        f"| {s['calibration_error']:.3f} ({least:.3f}, {most:.3f}) | {alarms} | {found} | {worse} |"
    )


def gathered(folder: Path, kinds: str, group: str, count: int) -> list[Judged]:
    """Restore, judge and compare with the truth what the verdict is fitted or tested on; kept in a file."""
    path = folder / f"judged-{kinds}-{group.replace(', ', '-').replace(' ', '-')}.npz"
    net = Network(loaded(folder, "ours", kinds))  # type: ignore[arg-type]
    cases = list(cases_of(kinds, group, count))
    found = read_judged(path) if path.exists() else []
    for case in cases[len(found) :]:
        found.append(judged(net, case()))
    np.savez(path, **{name: np.stack([v[i] for v in map(plain_values, found)])
                      for i, name in enumerate(KEPT)})  # fmt: skip
    return found[: len(cases)]


KEPT = ("kind", "logs", "rehearsed", "error", "true")


def plain_values(j: Judged) -> tuple[Any, ...]:
    rehearsed, true = (np.stack(list(vars(s).values())) for s in (j.rehearsed, j.true))
    return j.kind, j.logs, rehearsed, j.error, true


def cases_of(kinds: str, group: str, count: int) -> Iterator[Callable[[], Example]]:
    """What makes the recordings of a group, one after another."""
    if group == "calibration":
        psf = Psf.normalised(operator().psf.numpy(), (0.25, 0.1625, 0.1625))
        seen = tuple(k for k in BANK if k not in UNSEEN[kinds])
        for i in range(count):
            yield partial(calibration_case, psf, SHAPE, Light(), FIRST[0] + i, seen)
        return
    really, told = (Microscope((o,), o.window) for o in map(operator, PSFS[group]))
    for i in range(count):
        for kind in UNSEEN[kinds]:
            yield partial(recorded, kind, FIRST[1] + i, really, told)


def read_judged(path: Path) -> list[Judged]:
    with np.load(path) as file:
        rows = zip(*(file[name] for name in KEPT), strict=True)
        return [Judged(str(k), e, Squares(*r), off, Squares(*t)) for k, e, r, off, t in rows]


def judged(net: Network, case: Example) -> Judged:
    p, x, plain = case.problem, net.estimate(case.problem), classical(case.problem)
    evidence, true = rehearsal(p, plain), squares_of(p, x, plain, case.truth)
    error = error_of(p, x, case.truth)
    return Judged(case.kind, evidence.logs(net, x), evidence.squares(net), error, true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "matrix", "verdict"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", default=list(BANK))
    parser.add_argument("--nets", nargs="+", default=["ours", "unet"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "train":
        train(asked.folder, asked.steps, asked.nets)
    elif asked.what == "verdict":
        verdict(asked.folder, asked.seeds, asked.calibration)
    else:
        matrix(asked.folder, asked.seeds, asked.kinds)


if __name__ == "__main__":
    main()
