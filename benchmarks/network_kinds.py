"""Which kind of network: ours, one like Richardson-Lucy, and an unrolled scheme, trained for the same time.

All see the same recordings of a light sheet (32 x 64 x 64), and learn for as many CPU seconds; then each
restores structures trained on and others. `rl-like` is after Li et al. (Nat. Methods 19:1427, 2022):
learned forward and backward projections of the recording itself, a quotient and a product, at two scales,
so it needs no PSF. `unrolled` takes three steps down the Poisson misfit with the true operator, each
followed by a small network (after Monga, Li & Eldar, IEEE Signal Process. Mag. 38:18, 2021).

    python benchmarks/network_kinds.py --seconds 60 --seeds 2
"""

import argparse
import itertools
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.deconvolution import blur_of
from pellucid.core.operators import Extended
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import psnr
from pellucid.networks.features import CHANNELS, classical
from pellucid.networks.model import RestorationNet, count_parameters
from pellucid.networks.structures import Example, simulate
from pellucid.networks.training import (
    Pair,
    Schedule,
    SimulatedPairs,
    Trainer,
    held_out_pairs,
    pair_of,
)

SHAPE, SPACING_UM = (32, 64, 64), (0.25, 0.1625, 0.1625)
TRAINED = ("filaments", "nuclei", "points", "filaments+nuclei")
HELD_OUT, TESTED = ("shells", "meshes"), ("filaments", "nuclei", "membranes", "clouds")
STEPS_UNROLLED, FEATURES = 3, 8

Conv = partial(torch.nn.Conv3d, kernel_size=3, padding=1, bias=False)


class RLLike(torch.nn.Module):
    """Learned projections of the recording, its quotient by them, and a product: coarse, then fine."""

    def __init__(self, seed: int = 0, width: int = FEATURES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.coarse, self.fine = (
            torch.nn.ModuleList(
                [Conv(inputs, width), Conv(width, width), Conv(width, 1), Conv(inputs, width),
                 Conv(width, width), Conv(width, 1)]
            )
            for inputs in (1, 2)
        )  # fmt: skip

    def _iterated(self, parts: torch.nn.ModuleList, seen: Tensor, guess: Tensor) -> Tensor:
        level = seen.mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        stack = guess if guess is seen else torch.cat([seen, guess], 1)
        projected = parts[2](nn.softplus(parts[1](nn.softplus(parts[0](stack / level)))))
        quotient = (seen / level + 1e-2) / (nn.softplus(projected) + 1e-2)
        stack = quotient if guess is seen else torch.cat([quotient, guess / level], 1)
        factor = parts[5](nn.softplus(parts[4](nn.softplus(parts[3](stack)))))
        return guess.clamp_min(0) * nn.softplus(factor)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Return (n, z, y, x) of the first of (n, channels, z, y, x) images, the recording."""
        seen = inputs[:, :1]
        odd = [p for n in reversed(seen.shape[2:]) for p in (0, n % 2)]
        even = nn.pad(seen, odd, mode="replicate")
        small = nn.avg_pool3d(even, 2)
        rough = self._iterated(self.coarse, small, small)
        start = nn.interpolate(rough, scale_factor=2, mode="trilinear", align_corners=False)
        z, y, x = seen.shape[2:]
        return self._iterated(self.fine, even, start)[:, 0, :z, :y, :x]


class Unrolled(torch.nn.Module):
    """Steps with the true operator, each followed by a small network; on whole recordings."""

    def __init__(self, blur: Extended, seed: int = 0, width: int = FEATURES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blur = blur
        self.seen = blur.adjoint(torch.ones(blur.range_shape)).clamp_min(0.05)
        self.parts = torch.nn.ModuleList(
            torch.nn.Sequential(
                Conv(CHANNELS + 2, width), torch.nn.ReLU(), Conv(width, width), torch.nn.ReLU(),
                Conv(width, 1),
            )
            for _ in range(STEPS_UNROLLED)
        )  # fmt: skip
        for part in self.parts:
            torch.nn.init.zeros_(part[-1].weight)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Return (1, z, y, x) from the (1, channels, z, y, x) images of one object."""
        x = inputs[0, 1].clamp_min(0)
        seen, noise = inputs[0, 0][self.blur.window], inputs[0, 2][self.blur.window]
        for part in self.parts:
            misfit = _Exact.apply((seen - _Exact.apply(x, self.blur, True)) / noise**2, self.blur, False)
            step = misfit / self.seen * inputs[0, 2] ** 2
            stack = torch.cat([inputs[0], x[None], step[None]])[None]
            x = x + part(stack)[0, 0]
            x = nn.leaky_relu(x, 0.1) if self.training else x.relu()
        return x[None]


class _Exact(torch.autograd.Function):
    """The operator, or its adjoint, whose gradient is the other one."""

    @staticmethod
    def forward(ctx, x, blur, ahead):  # type: ignore[no-untyped-def]
        ctx.blur, ctx.ahead = blur, ahead
        return blur.forward(x) if ahead else blur.adjoint(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad.contiguous()
        return (ctx.blur.adjoint(grad) if ctx.ahead else ctx.blur.forward(grad)), None, None


def microscope() -> Extended:
    """A light sheet of 1.6 um."""
    psf = theoretical_psf(
        "light-sheet", SPACING_UM, na=0.8, wavelength_nm=525, refractive_index=1.33,
        sheet_fwhm_um=1.6, shape=(17, 17, 17),
    )  # fmt: skip
    return blur_of(psf, SHAPE)


def learned(net: torch.nn.Module, schedule: Schedule, blur: Extended, seconds: float, seed: int) -> int:
    """Train for so many CPU seconds, pairs included; returns the steps that fit."""
    pairs = SimulatedPairs((blur,), TRAINED, seed=seed)
    held_out = held_out_pairs(pairs, HELD_OUT, 4)
    # so that the learning rate has come down when time is up, a step is timed first
    trial = Trainer(net, pairs, held_out, schedule)
    trial.run(steps=3)
    begin = time.process_time()
    trial.run(steps=2 * schedule.reuse)
    each = (time.process_time() - begin) / (2 * schedule.reuse)
    steps = max(10, round(seconds / each))
    schedule = replace(schedule, steps=steps, validate_every=max(1, steps // 8))
    trainer = Trainer(net, pairs, held_out, schedule)
    trainer.run()
    net.load_state_dict(trainer.best)
    net.eval()
    return trainer.step


def answer(net: torch.nn.Module, pair: Pair) -> Tensor:
    with torch.no_grad():
        return net(pair.inputs[None], pair.places[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    blur = microscope()
    whole = Schedule(reuse=3, patch=blur.domain_shape, patience=100)
    patches = replace(whole, patch=(24, 32, 32))
    kinds = {
        "ours": (RestorationNet, patches),
        "rl-like": (RLLike, patches),
        "unrolled": (partial(Unrolled, blur), whole),
    }
    examples = [
        simulate((blur,), kind, 91_000 + i) for kind, i in itertools.product(TESTED, range(3))
    ]
    print("| kind | weights | steps | " + " | ".join(TESTED) + " | CPU s |")
    print("|---|--:|--:|" + "--:|" * (len(TESTED) + 1))
    rows = [classical(e.problem) for e in examples]
    print(_row("classical", "", "", rows, examples, _seconds(lambda: classical(examples[0].problem))))
    for (name, (made, schedule)), seed in itertools.product(kinds.items(), range(asked.seeds)):
        net = made(seed=seed)
        steps = learned(net, schedule, blur, asked.seconds, seed)
        pairs = [pair_of(e.problem, e.truth) for e in examples]
        answers = [answer(net, p) for p in pairs]
        # its inputs are part of its time: ours and the unrolled one begin with a Wiener step
        took = _seconds(lambda: answer(net, pair_of(examples[0].problem, examples[0].truth)))  # noqa: B023
        print(_row(name, count_parameters(net), steps, answers, examples, took), flush=True)


def _seconds(work) -> float:  # type: ignore[no-untyped-def]
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _row(
    name: str, weights: object, steps: object, answers: list[Tensor], examples: list[Example], took: float
) -> str:
    scores: dict[str, list[float]] = {kind: [] for kind in TESTED}
    for a, e in zip(answers, examples, strict=True):
        window = e.problem.observations[0].operator.window  # type: ignore[attr-defined]
        scores[e.kind].append(psnr(a[window].numpy(), e.truth[window].numpy()))
    cells = " | ".join(f"{np.mean(scores[k]):.2f}" for k in TESTED)
    return f"| {name} | {weights} | {steps} | {cells} | {took:.3f} |"


if __name__ == "__main__":
    main()
