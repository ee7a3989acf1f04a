"""Generality: networks trained on one structure and tested on another, and what they invent.

Ours, a DenseDeconNet-like network and a plain U-Net of our size, each trained on points, filaments,
shells, nuclei or networks (tubes that join), with the same recordings, patches and steps; each tested
on all five, bare and polished. Planes of 96x96, a PSF of 4.5 px. Every training and every test is kept
in the folder: the same command goes on where it was interrupted, and prints the tables of what is there.

    python benchmarks/network_matrix.py --out FOLDER
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nn
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from networks import AnyNet, PlainUNet
from pellucid.core.deconvolution import blur_of
from pellucid.core.problem import Problem
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import psnr
from pellucid.networks.features import classical as classical_solution
from pellucid.networks.model import Architecture, RestorationNet, count_parameters
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.structures import Example, simulate
from pellucid.networks.training import Pair, pair_of, relative_error

SHAPE, PATCH = (1, 96, 96), (1, 48, 48)
"""Voxels of a recording and of a training patch; one plane, so that 45 trainings take minutes."""

PLANAR = SHAPE[0] == 1
REACH_PX = (1.0, 4.5, 4.5)
PSF = gaussian(REACH_PX, (1.0, 1.0, 1.0), (1, 17, 17))

STRUCTURES = ("points", "filaments", "shells", "nuclei", "networks")
RULE = "\n|---|" + "--:|" * len(STRUCTURES)
RECORDINGS, TESTS = 40, 2
"""Simulated recordings of each structure: that a training sees, and that a network is tested on."""

DARK = 0.05
"""Share of a truth's brightness (its 99.9th percentile) below which there is nothing but noise."""


class DenseDeconNet(torch.nn.Module):
    """A network after DenseDeconNet, of its published size, on one view (Guo et al. 2020, supplement).

    Densely connected convolutions without biases at two scales, 4 to 8 features each, every one normalised
    by the statistics of what is in the batch, also when it is used. Volumes are scaled to 0..1, so the
    unit of light is lost; `Peer` finds it again in the recording.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            conv, norm = torch.nn.Conv3d, torch.nn.BatchNorm3d
            size, step = ((1, 3, 3), (1, 2, 2)) if PLANAR else ((3, 3, 3), (2, 2, 2))
            around = tuple(n // 2 for n in size)
            sizes = {
                "c1": (1, 4), "c2": (4, 8), "c3": (12, 4), "c4": (16, 4), "c6": (8, 4),
                "c7": (12, 4), "c8": (16, 8), "c9": (8, 4), "c10": (4, 8), "c11": (12, 4),
                "c12": (16, 8), "c15": (4, 1),
            }  # fmt: skip
            self.convs = torch.nn.ModuleDict(
                {k: conv(a, b, size, padding=around, bias=False) for k, (a, b) in sizes.items()}
            )
            self.convs["c5"] = conv(4, 8, step, stride=step, bias=False)
            self.convs["up"] = torch.nn.ConvTranspose3d(8, 4, step, stride=step, bias=False)
            self.norms = torch.nn.ModuleDict(
                {
                    k: norm(c.out_channels, eps=1e-4, track_running_stats=False)
                    for k, c in self.convs.items()
                }
            )
            self.entry = norm(1, eps=1e-4, track_running_stats=False)
            for c in self.convs.values():
                torch.nn.init.trunc_normal_(c.weight, std=0.1)

    def _layer(self, name: str, *parts: Tensor) -> Tensor:
        x: Tensor = self.norms[name](self.convs[name](torch.cat(parts, 1)))
        return x if name == "up" else nn.leaky_relu(x, 0.2) if name == "c15" else nn.relu(x)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, z, y, x), in a unit of its own, of the first of (n, channels, z, y, x) images."""
        raw, layer = unit_range(inputs[:, :1]), self._layer
        z, y, x = raw.shape[2:]
        odd = [p for n in (x, y, 0 if PLANAR else z) for p in (0, n % 2)]
        c1 = layer("c1", self.entry(nn.pad(raw, odd, mode="replicate")))
        c2 = layer("c2", c1)
        c3 = layer("c3", c1, c2)
        c4 = layer("c4", c2, c1, c3)
        c5 = layer("c5", c4)
        c6 = layer("c6", c5)
        c7 = layer("c7", c5, c6)
        c8 = layer("c8", c6, c5, c7)
        c9 = layer("c9", c8)
        c10 = layer("c10", c9)
        c11 = layer("c11", c9, c10)
        c12 = layer("c12", c10, c9, c11)
        out = layer("c15", nn.relu(layer("up", c12) + c1))
        return out[:, 0, :z, :y, :x]


def unit_range(volumes: Tensor) -> Tensor:
    """Return every volume of the batch scaled to 0..1."""
    axes = tuple(range(1, volumes.ndim))
    low, high = volumes.amin(axes, keepdim=True), volumes.amax(axes, keepdim=True)
    return (volumes - low) / (high - low).clamp_min(1e-6)


def dense_error(predicted: Tensor, truth: Tensor, inputs: Tensor) -> Tensor:
    """DenseDeconNet's loss for one view: MSE - ln((1 + SSIM) / 2) - 1.3 min, SSIM over the whole volume."""
    wanted = unit_range(truth)
    p, w = predicted.mean(), wanted.mean()
    covariance = ((predicted - p) * (wanted - w)).mean()
    variances = predicted.var(correction=0) + wanted.var(correction=0)
    ssim = (
        (2 * p * w + 1e-4) * (2 * covariance + 9e-4) / ((p**2 + w**2 + 1e-4) * (variances + 9e-4))
    )
    return (predicted - wanted).square().mean() - ((1 + ssim) / 2).log() - 1.3 * predicted.min()


Rate = Callable[[int, int], float]


@dataclass(frozen=True)
class Contender:
    """A network, what its training minimises, and its learning rate at a step of how many."""

    make: Callable[[int], torch.nn.Module]
    error: Callable[[Tensor, Tensor, Tensor], Tensor]
    rate: Rate


def falling(step: int, steps: int) -> float:
    return 2e-3 * max(1e-2, 0.5 * (1 + math.cos(math.pi * step / steps)))


CONTENDERS = {
    "ours": Contender(
        lambda seed: RestorationNet(Architecture(volumetric=not PLANAR), seed),
        relative_error,
        falling,
    ),
    "DenseDeconNet-like": Contender(
        DenseDeconNet, dense_error, lambda step, _: 0.04 * 0.98 ** (step / 150)
    ),
    "U-Net": Contender(lambda seed: PlainUNet(UNET_WIDTH, seed, PLANAR), relative_error, falling),
}
UNET_WIDTH = 12
"""Features with which the U-Net has about as many weights as ours."""


@dataclass(frozen=True)
class Peer(AnyNet):
    """A peer as an estimator, in the photons of the recording."""

    def estimate(self, problem: Problem) -> Tensor:
        out = super().estimate(problem)
        if not isinstance(self.net, DenseDeconNet):
            return out
        # its unit is that in which it explains the recording best
        out, o = out.clamp_min(0), problem.observations[0]
        seen = o.operator.forward(out)
        return out * float(
            (seen * (o.image - o.background)).sum() / seen.square().sum().clamp_min(1e-12)
        )


@cache
def recorded(structure: str, seed: int, what: str, index: int) -> Example:
    """A recording to train on or to test with; the same for every network."""
    offset = {"train": 100_000, "test": 900_000}[what]
    kind = "meshes" if structure == "networks" else structure
    return simulate((blur_of(PSF, SHAPE),), kind, offset + 1000 * seed + index)


@cache
def learned(structure: str, seed: int) -> list[Pair]:
    examples = (recorded(structure, seed, "train", i) for i in range(RECORDINGS))
    return [pair_of(e.problem, e.truth) for e in examples]


def train(contender: Contender, structure: str, seed: int, steps: int) -> torch.nn.Module:
    """Return a network trained for so many steps, of one patch each; no step depends on the contender."""
    net, pairs = contender.make(seed), learned(structure, seed)
    optimiser = torch.optim.Adam(net.parameters())
    rng = np.random.default_rng([seed, 11])
    for step in range(steps):
        pair = pairs[int(rng.integers(len(pairs)))]
        cuts = [_cut(pair, rng) for _ in range(3)]
        here = max(cuts, key=lambda c: float(pair.truth[c].sum()))  # empty corners teach little
        inputs, truth = pair.inputs[:, *here][None], pair.truth[here][None]
        optimiser.param_groups[0]["lr"] = contender.rate(step, steps)
        optimiser.zero_grad()
        contender.error(net(inputs), truth, inputs).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net.eval()


def _cut(pair: Pair, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    starts = [
        int(rng.integers(w.start, w.stop - n + 1)) for w, n in zip(pair.window, PATCH, strict=True)
    ]
    z, y, x = (slice(a, a + n) for a, n in zip(starts, PATCH, strict=True))
    return z, y, x


def invented(
    answer: NDArray[np.floating], truth: NDArray[np.floating], reach_px: tuple[float, ...]
) -> float:
    """Return the share of an answer's light in structure where the truth has none within a PSF's width.

    None is less than `DARK` of the truth's brightness; structure is what is brighter than that.
    """
    axes = np.ogrid[tuple(slice(-math.ceil(r), math.ceil(r) + 1) for r in reach_px)]
    ball = sum((a / r) ** 2 for a, r in zip(axes, reach_px, strict=True)) <= 1
    level = DARK * float(np.percentile(truth, 99.9))
    empty = ndimage.maximum_filter(truth, footprint=ball) < level
    return float(answer[empty & (answer > level)].sum() / max(float(answer.clip(0).sum()), 1e-12))


Figures = dict[str, float]


def test(estimate: Callable[[Problem], Tensor], structure: str, seed: int) -> Figures:
    """Return what is measured of an estimator on the test recordings of one structure, averaged."""
    rows = []
    for i in range(TESTS):
        example = recorded(structure, seed, "test", i)
        window = example.problem.part
        answer, truth = estimate(example.problem)[window].numpy(), example.truth[window].numpy()
        reference = classical(structure, seed, i)[window].numpy()
        rows.append(
            {
                "psnr": psnr(answer, truth), "over_classical": psnr(answer, truth) - psnr(reference, truth),
                "to_classical": psnr(answer, reference), "invented": invented(answer, truth, REACH_PX),
            }
        )  # fmt: skip
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


@cache
def classical(structure: str, seed: int, index: int) -> Tensor:
    return classical_solution(recorded(structure, seed, "test", index).problem)


Results = dict[str, dict[str, Figures]]


def run(folder: Path, seeds: int, steps: int) -> None:
    """Train and test whatever the folder does not hold yet, seed by seed."""
    settings = {
        "steps": steps,
        "shape": SHAPE,
        "patch": PATCH,
        "recordings": RECORDINGS,
        "tests": TESTS,
    }
    kept, now = folder / "settings.json", json.dumps(settings)
    if kept.exists() and kept.read_text() != now:
        raise SystemExit(
            f"{folder}: begun with {kept.read_text()}, asked for {now}. Choose another folder."
        )
    kept.write_text(now)
    for seed in range(seeds):
        whole = folder / f"classical-{seed}.json"
        if not whole.exists():
            _keep(whole, {s: {"answer": test(classical_solution, s, seed)} for s in STRUCTURES})
        for trained_on in STRUCTURES:
            for name, contender in CONTENDERS.items():
                results = _path(folder, name, trained_on, seed)
                weights = results.with_suffix(".safetensors")
                if results.exists():
                    continue
                begin = time.process_time()
                if weights.exists():
                    net = contender.make(seed).eval()
                    net.load_state_dict(load_file(weights))
                else:
                    net = train(contender, trained_on, seed, steps)
                    partial = weights.with_suffix(".partial")
                    save_file(net.state_dict(), partial)
                    partial.rename(weights)
                spent = time.process_time() - begin
                bare = Network(net) if isinstance(net, RestorationNet) else Peer(net)
                tests = {
                    s: {
                        "bare": test(bare.estimate, s, seed),
                        "polished": test(Polished(bare).estimate, s, seed),
                    }
                    for s in STRUCTURES
                }
                _keep(results, tests)
                print(
                    f"{results.stem}: {count_parameters(net)} weights, {spent:.0f} CPU s",
                    flush=True,
                )
        learned.cache_clear(), recorded.cache_clear(), classical.cache_clear()


def _keep(path: Path, results: Results) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1))
    partial.rename(path)


def _path(folder: Path, name: str, trained_on: str, seed: int) -> Path:
    return folder / f"{name}-{trained_on}-{seed}.json"


def tables(folder: Path) -> None:
    """Print the means over the seeds of whatever is there."""
    found = sorted(folder.glob("classical-*.json"))
    references = [json.loads(p.read_text()) for p in found]
    print(f"\nclassical solution ({len(found)} seeds)\n\n| | {' | '.join(STRUCTURES)} |{RULE}")
    for key, shown in (("psnr", "{:.2f}"), ("invented", "{:.2%}")):
        means = [np.mean([r[s]["answer"][key] for r in references]) for s in STRUCTURES]
        print(f"| {key} | " + " | ".join(shown.format(m) for m in means) + " |")
    summary = []
    for name in CONTENDERS:
        cells: dict[tuple[str, str], list[dict[str, Figures]]] = {}
        whole = [
            s
            for s in range(len(found))
            if all(_path(folder, name, a, s).exists() for a in STRUCTURES)
        ]
        if not whole:
            print(f"\n{name}: not all trained yet")
            continue
        for trained_on, seed in itertools.product(STRUCTURES, whole):
            for tested_on, figures in json.loads(
                _path(folder, name, trained_on, seed).read_text()
            ).items():
                cells.setdefault((trained_on, tested_on), []).append(figures)
        for key, title, shown in (
            ("over_classical", "PSNR above the classical solution's (dB)", "{:+.2f}"),
            ("invented", "invented light", "{:.2%}"),
        ):
            print(f"\n{name}, {title}, bare / polished ({len(whole)} seeds)\n")
            print(f"| trained on \\ tested on | {' | '.join(STRUCTURES)} |{RULE}")
            for a in STRUCTURES:
                row = [
                    " / ".join(
                        shown.format(np.mean([c[w][key] for c in cells[a, b]]))
                        for w in ("bare", "polished")
                    )
                    for b in STRUCTURES
                ]
                print(f"| {a} | {' | '.join(row)} |")
        for which in ("bare", "polished"):
            summary.append((name, which, cells))
    print("\n| network | answer | above classical: own, others, worst (dB) | invented: own, others, worst "
          "| PSNR to classical: own, others |\n|---|---|--:|--:|--:|")  # fmt: skip
    for name, which, cells in summary:
        own, others = [
            {
                k: [
                    np.mean([c[which][k] for c in v])
                    for (a, b), v in cells.items()
                    if (a == b) is same
                ]
                for k in ("over_classical", "invented", "to_classical")
            }
            for same in (True, False)
        ]
        over, false, to = (
            [own[k], others[k]] for k in ("over_classical", "invented", "to_classical")
        )
        print(
            f"| {name} | {which} | {np.mean(over[0]):+.2f}, {np.mean(over[1]):+.2f}, {min(over[1]):+.2f} "
            f"| {np.mean(false[0]):.2%}, {np.mean(false[1]):.2%}, {max(false[1]):.2%} "
            f"| {np.mean(to[0]):.1f}, {np.mean(to[1]):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="where trainings and results are kept"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    run(asked.out, asked.seeds, asked.steps)
    tables(asked.out)


if __name__ == "__main__":
    main()
