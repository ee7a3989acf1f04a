"""Networks against the classical solution: quality, generality, inventions, and whether the verdict knows.

`train` makes one model per structure, ours and a plain U-Net of equal size; `matrix` tests each on every
structure, with and without polish; `verdict` calibrates on some structures and judges on others, and on
a PSF that no model was trained with.

    python benchmarks/networks.py train --steps 400 MODELS
    python benchmarks/networks.py matrix MODELS
    python benchmarks/networks.py verdict MODELS
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import crop_to_support
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc, psnr
from pellucid.networks.features import inputs_of
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Polished
from pellucid.networks.structures import BANK, simulate
from pellucid.networks.training import Schedule, SimulatedPairs, Trainer, held_out_pairs
from pellucid.networks.trust import fit, gather, scores, wrong_regions

SHAPE = (32, 64, 64)
TRAINED_ON = {
    "filaments": ("points", "meshes"),
    "shells": ("nuclei", "points"),
    "filaments+nuclei": ("shells", "meshes"),
}
"""What is trained on, and the structures that stop the training."""


MIXTURE = ("filaments", "nuclei", "points", "filaments+nuclei", "points+nuclei")
"""What the model of several structures is trained on; shells and meshes are held out."""


def operator(sheet_um: float = 2.0, shape: tuple[int, int, int] = SHAPE) -> Blur:
    psf = theoretical_psf(
        "light-sheet", (0.25, 0.1625, 0.1625), na=0.8, wavelength_nm=525, refractive_index=1.33,
        sheet_fwhm_um=sheet_um,
    )  # fmt: skip
    kernel = crop_to_support(psf, 0.95).values.astype(np.float32)
    return Blur(torch.from_numpy(kernel / kernel.sum()), shape)


class PlainUNet(torch.nn.Module):
    """A U-Net as commonly used: the raw image over its maximum in, three scales, biases; equal in size."""

    def __init__(self, width: int = 12, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)

        def block(before: int, after: int) -> torch.nn.Sequential:
            conv = torch.nn.Conv3d
            return torch.nn.Sequential(
                conv(before, after, 3, padding=1), torch.nn.ReLU(),
                conv(after, after, 3, padding=1), torch.nn.ReLU(),
            )  # fmt: skip

        w = width
        self.down = torch.nn.ModuleList([block(1, w), block(w, 2 * w)])
        self.bottom = block(2 * w, 2 * w)
        self.up = torch.nn.ModuleList([block(4 * w, w), block(2 * w, w)])
        self.out = torch.nn.Conv3d(w, 1, 1)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        raw = inputs[:, :1]
        scale = raw.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        wanted = [-n % 4 for n in raw.shape[2:]]
        x = torch.nn.functional.pad(
            raw / scale, [p for n in reversed(wanted) for p in (0, n)], mode="replicate"
        )
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = torch.nn.functional.max_pool3d(x, 2)
        x = self.bottom(x)
        for level, skip in zip(self.up, reversed(skips), strict=True):
            x = level(torch.cat([torch.nn.functional.interpolate(x, scale_factor=2), skip], 1))
        z, y, x_ = raw.shape[2:]
        slope = 0.1 if self.training else 0.0
        out = torch.nn.functional.leaky_relu(self.out(x), slope)
        return (out * scale)[:, 0, :z, :y, :x_]


def new_net(name: str, seed: int = 0) -> torch.nn.Module:
    return RestorationNet(Architecture(), seed) if name == "ours" else PlainUNet(seed=seed)


def train(folder: Path, steps: int, names: list[str]) -> None:
    """Train every model, and print what it cost; the mixture for ours only, twice as long."""
    folder.mkdir(parents=True, exist_ok=True)
    blur = operator()
    print("| net | trained on | parameters | steps | CPU s | held-out NRMSE |")
    print("|---|---|--:|--:|--:|--:|")
    for kinds, held in TRAINED_ON.items():
        supply = SimulatedPairs((blur,), MIXTURE if "+" in kinds else (kinds,), seed=1)
        mixed = "+" in kinds
        for name in names:
            path = folder / f"{name}-{kinds}.safetensors"
            if path.exists() or (mixed and name != "ours"):
                continue
            net = new_net(name)
            taken = 2 * steps if mixed else steps
            schedule = Schedule(steps=taken, validate_every=50, patch=(24, 32, 32))
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


def inventions(x: np.ndarray, truth: np.ndarray) -> float:
    """Share of the light that lies where the truth, blurred by 2 voxels, has under 2 % of its maximum."""
    wide = ndimage.gaussian_filter(truth, 2.0)
    return float(x[wide < 0.02 * wide.max()].sum() / max(x.sum(), 1e-9))


def matrix(folder: Path, seeds: int) -> None:
    """Print trained on x tested on: PSNR, NRMSE, inventions and seconds, plain and polished."""
    blur = operator()
    print("| trained on | tested on | answer | PSNR | NCC | inventions | CPU s |")
    print("|---|---|---|--:|--:|--:|--:|")
    nets = [
        (f"{name}, {kinds}", AnyNet(loaded(folder, name, kinds)))
        for kinds in TRAINED_ON for name in ("ours", "unet")
        if (folder / f"{name}-{kinds}.safetensors").exists()
    ]  # fmt: skip
    for kind in BANK:
        rows: dict[tuple[str, str], list[list[float]]] = {}
        for seed in range(seeds):
            example = simulate((blur,), kind, 9000 + seed)
            problem = example.problem
            truth = problem.windowed(example.truth).numpy()
            contenders: list[tuple[str, str, Any]] = [
                ("none", "classical", lambda p: Accelerated()(p).image)
            ]
            for name, net in nets:
                contenders.append((name, "network", lambda p, n=net: p.windowed(n.estimate(p))))
                for gated in (True, False):
                    polished = Polished(net, gated=gated)
                    what = "polished, gated" if gated else "polished"
                    contenders.append((name, what, lambda p, n=polished: p.windowed(n.estimate(p))))
            for name, what, answer in contenders:
                begin = time.process_time()
                image = answer(problem).numpy()
                spent = time.process_time() - begin
                figures = [psnr(image, truth), ncc(image, truth), inventions(image, truth), spent]
                rows.setdefault((name, what), []).append(figures)
        for (name, what), values in rows.items():
            p, n, i, s = np.mean(values, axis=0)
            print(f"| {name} | {kind} | {what} | {p:.2f} | {n:.3f} | {100 * i:.2f} % | {s:.2f} |")


def verdict(folder: Path, seeds: int) -> None:
    """Print how well the verdict knows, on structures and a PSF outside training and calibration."""
    print("| trained on | tested on | PSF | regions | wrong | AUROC | calibration error | false alarms |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for kinds, held in TRAINED_ON.items():
        if not (folder / f"ours-{kinds}.safetensors").exists():
            continue
        net = AnyNet(loaded(folder, "ours", kinds))
        own = MIXTURE if "+" in kinds else (kinds,)
        seen = {*own, *held}

        def judged(kind: str, seed: int, sheet_um: float = 2.0, net: AnyNet = net) -> Any:
            # The recording is made with one sheet, and explained with the one of the training.
            made = simulate((operator(sheet_um),), kind, seed)
            o, blur = made.problem.observations[0], operator()
            problem = Problem((Observation(o.image, blur, o.background),))
            x = net.estimate(problem)
            truth = torch.zeros_like(x)
            truth[blur.window] = made.problem.windowed(made.truth)
            floor = max(o.background, 1.0) ** 0.5
            return gather(problem, net, x), wrong_regions(x, truth, blur.window, floor)

        calibration = [(k, judged(k, 5000 + i)) for i in range(seeds) for k in seen if "+" not in k]
        familiar = [c[0] for k, c in calibration if k in own]
        trust = fit([c[0] for _, c in calibration], [c[1] for _, c in calibration], familiar)
        unseen = [k for k in BANK if k not in seen]
        for sheet in (2.0, 4.0):
            for group in [unseen] if unseen else [["nuclei", "shells"]]:
                found = [judged(k, 7000 + i, sheet) for i in range(seeds) for k in group]
                s = scores(
                    np.concatenate([trust.believable(e).ravel() for e, _ in found]),
                    np.concatenate([w.ravel() for _, w in found]),
                )
                psf = "trained on" if sheet == 2.0 else "sheet twice as thick"
                print(
                    f"| {kinds} | {', '.join(group)} | {psf} | {s['regions']:.0f} | {s['wrong']:.1%} "
                    f"| {s['auroc']:.3f} | {s['calibration_error']:.3f} | {s['false_alarms']:.1%} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "matrix", "verdict"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--nets", nargs="+", default=["ours", "unet"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "train":
        train(asked.folder, asked.steps, asked.nets)
    else:
        {"matrix": matrix, "verdict": verdict}[asked.what](asked.folder, asked.seeds)


if __name__ == "__main__":
    main()
