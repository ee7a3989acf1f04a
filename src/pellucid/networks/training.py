"""Training: from pairs of problem and truth to weights, the same for the same seed, resumable.

Step k draws its pair from (seed, k) alone, so the state of a training is its weights, the optimiser's
moments, the best weights so far and the learning curve; resumed and uninterrupted runs are equal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pellucid.core.noise import Noise, thin
from pellucid.core.operators import LinearOperator
from pellucid.core.problem import Observation, Problem, Window
from pellucid.errors import InputError, ParameterError, PlanError
from pellucid.networks import team
from pellucid.networks.features import Start, inputs_of, positions_of
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.restorer import Network
from pellucid.networks.structures import BANK, Light, simulate

Tensors = dict[str, Tensor]

NEGLIGIBLE = 1e-4
"""An error, in parts of a patch's light, below which nothing is to be gained."""


@dataclass(frozen=True)
class Pair:
    """What goes in, (views * 3, z, y, x), and what should come out, (z, y, x), on the object's grid.

    Parameters
    ----------
    window : where the truth counts
    places : (3, z, y, x) coordinates, for networks that know where they are
    """

    inputs: Tensor
    truth: Tensor
    window: Window
    places: Tensor


class Pairs(Protocol):
    """An endless supply of pairs, each following from its index."""

    def __call__(self, index: int) -> Pair: ...


def pair_of(
    problem: Problem, truth: Tensor, before: Network | None = None, start: Start = "wiener"
) -> Pair:
    """Return the pair of a problem and its truth, on the object's grid or on the problem's window.

    With a network `before`, the inputs are those of one that refines its answer.
    """
    whole = torch.zeros(problem.shape, dtype=torch.float32)
    windowed = problem.windowed(whole)
    if tuple(truth.shape) == problem.shape:
        whole = truth
    elif truth.shape == windowed.shape:
        windowed[...] = truth
    else:
        raise InputError(
            f"pair: expected a truth of shape {tuple(windowed.shape)}, got {tuple(truth.shape)}. "
            "Image and truth must have the same voxels."
        )
    estimate = None if before is None else before.estimate(problem)
    return Pair(inputs_of(problem, estimate, start), whole, problem.part, positions_of(problem))


@dataclass(frozen=True)
class SimulatedPairs:
    """Pairs from the user's own operators and the bank of structures; no experimental truth needed.

    Parameters
    ----------
    operators : one for each view
    elsewhere : the same at other places of a field that is larger than what is simulated at once
    before : the network whose answers are to be refined
    """

    operators: tuple[LinearOperator, ...]
    kinds: tuple[str, ...]
    light: Light = Light()
    seed: int = 0
    window: Window | None = None
    elsewhere: tuple[tuple[LinearOperator, ...], ...] = ()
    before: Network | None = None
    start: Start = "wiener"

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ParameterError("structures: too few, none is given. " f"Choose of {', '.join(BANK)}.")

    def __call__(self, index: int) -> Pair:
        rng = np.random.default_rng([self.seed, index, 3])
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        seed = int(rng.integers(2**31))
        sets = (self.operators, *self.elsewhere)
        operators = sets[int(rng.integers(len(sets)))]
        example = simulate(operators, kind, seed, self.light, self.window)
        return pair_of(example.problem, example.truth, self.before, self.start)


@dataclass(frozen=True)
class RecordedPairs:
    """Pairs from recordings and their truths or teachers' answers, dimmed at random by thinning.

    Thinning a recording's photons is what a shorter exposure would have recorded, wherever a voxel
    is; flips and rotations would put structure where the blur is another.
    """

    problems: tuple[Problem, ...]
    truths: tuple[Tensor, ...]
    seed: int = 0
    dimmest: float = 0.3
    before: Network | None = None
    start: Start = "wiener"

    def __post_init__(self) -> None:
        if not self.problems or len(self.problems) != len(self.truths):
            raise InputError(
                f"pairs: expected as many truths as recordings and at least one, got "
                f"{len(self.problems)} recordings and {len(self.truths)} truths."
            )
        for i, (problem, truth) in enumerate(zip(self.problems, self.truths, strict=True)):
            for image in (*(o.image for o in problem.observations), truth):
                if not bool(torch.isfinite(image).all()):
                    raise InputError(f"pair {i}: NaN or infinite voxels. Leave it out.")
                if float(image.max()) <= float(image.min()):
                    raise InputError(f"pair {i}: a constant image teaches nothing. Leave it out.")

    def __call__(self, index: int) -> Pair:
        rng = np.random.default_rng([self.seed, index, 3])
        which = int(rng.integers(len(self.problems)))
        share = float(rng.uniform(self.dimmest, 1.0))
        problem = dimmed(self.problems[which], share, int(rng.integers(2**31)))
        return pair_of(problem, self.truths[which] * share, self.before, self.start)


def dimmed(problem: Problem, share: float, seed: int) -> Problem:
    """Return the problem as a shorter exposure would pose it: `share` of the photons, drawn anew."""
    if share >= 1:
        return problem
    photons = Noise(gain=1.0, offset=0.0, read_noise=0.0)
    observations = []
    for v, o in enumerate(problem.observations):
        generator = torch.Generator(o.image.device).manual_seed(seed + v)
        kept = thin(o.image, photons, share, generator)[0].clamp_min_(0)
        observations.append(Observation(kept, o.operator, share * o.background))
    return Problem(tuple(observations), problem.window)


@dataclass(frozen=True)
class Schedule:
    """How long and in what steps to train.

    Parameters
    ----------
    steps : at most this many
    batch : patches per step, all of one pair
    reuse : steps that one pair serves, each with patches of its own
    patch : voxels (z, y, x) of a patch at most
    learning_rate : of Adam at the start, falling to nothing by a cosine
    validate_every : steps between looks at the held-out structures
    patience : looks without a new best after which training ends
    """

    steps: int = 2000
    batch: int = 1
    reuse: int = 1
    patch: tuple[int, int, int] = (32, 48, 48)
    learning_rate: float = 2e-3
    validate_every: int = 100
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.reuse, self.validate_every, self.patience, *self.patch) < 1:
            raise ParameterError("schedule: expected steps, batch, patch and patience of 1 or more.")


class Trainer:
    """A training under way: `run` takes it on, `state` and `load` carry it over an interruption.

    Several processes that train together (`networks.team`) each take pairs and patches of their own.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        pairs: Pairs,
        held_out: tuple[Pair, ...],
        schedule: Schedule = Schedule(),
        device: str = "cpu",
    ) -> None:
        if not held_out:
            raise ParameterError("training: expected held-out pairs to stop by, got none.")
        self.net, self.pairs, self.held_out = net.to(device), pairs, held_out
        self.schedule, self.device = schedule, device
        self.learning = team.averaging(self.net)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=schedule.learning_rate)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.best = _copied(net)
        self._latest: tuple[int, Pair] | None = None

    @property
    def is_done(self) -> bool:
        """Whether all steps are taken, or no look of late was better."""
        if self.step >= self.schedule.steps:
            return True
        errors = [row["held_out"] for row in self.curve]
        return bool(errors) and len(errors) - 1 - int(np.argmin(errors)) >= self.schedule.patience

    def run(
        self, steps: int | None = None, on_look: Callable[["Trainer"], None] | None = None
    ) -> None:
        """Train for so many `steps`, or to the end; `on_look` is called after every validation."""
        until = self.schedule.steps if steps is None else self.step + steps
        losses: list[float] = []
        if not self.curve:
            # What it starts from counts: no training ends worse, however Adam leaps at first.
            self.curve.append({"step": 0, "held_out": self._mean_error()})
        try:
            while self.step < until and not self.is_done:
                losses.append(self._take_step())
                if self.step % self.schedule.validate_every == 0 or self.step == self.schedule.steps:
                    self._look(float(np.mean(losses)))
                    losses = []
                    if on_look is not None:
                        on_look(self)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise PlanError(
                f"training: out of memory at step {self.step}. Take a smaller patch or batch; the "
                "last checkpoint is kept, and the run resumes from it."
            ) from error

    def _take_step(self) -> float:
        inputs, truth, places = self._batch()
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.net.train()
        self.optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda")):
            predicted = self.learning(inputs, places)
        loss = relative_error(predicted.float(), truth, inputs)
        if not bool(torch.isfinite(loss)):
            raise InputError(
                f"training: the error became {float(loss)} at step {self.step}. Look for NaN in the "
                "pairs, or lower the learning rate; the last checkpoint is kept."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _rate(self) -> float:
        """Return the learning rate: a cosine that ends at a hundredth."""
        rate = 0.5 * (1 + math.cos(math.pi * self.step / self.schedule.steps))
        return self.schedule.learning_rate * max(rate, 1e-2)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        member, members = team.member()
        index = self.step // self.schedule.reuse * members + member
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self.pairs(index))
        pair = self._latest[1]
        rng = np.random.default_rng([self.schedule.seed, self.step, 4, *([member] if member else [])])
        cuts = []
        for _ in range(self.schedule.batch):
            # Empty corners teach little: of three places take the brightest.
            options = [_cut(pair, self.schedule.patch, rng) for _ in range(3)]
            cuts.append(max(options, key=lambda c: float(pair.truth[c].sum())))
        stacks = (
            torch.stack([pair.inputs[:, *c] for c in cuts]),
            torch.stack([pair.truth[c] for c in cuts]),
            torch.stack([pair.places[:, *c] for c in cuts]),
        )
        inputs, truth, here = (s.to(self.device) for s in stacks)
        return inputs, truth, here

    def _look(self, training_error: float) -> None:
        error = self._mean_error()
        if error < min(row["held_out"] for row in self.curve):
            self.best = _copied(self.net)
        self.curve.append({"step": self.step, "training": training_error, "held_out": error})

    def _mean_error(self) -> float:
        """Return the geometric mean: of every structure the same part of its error counts."""
        errors = [max(self._held_out_error(pair), NEGLIGIBLE) for pair in self.held_out]
        error = float(np.exp(np.mean(np.log(errors))))
        return team.from_first(error, self.device)

    def _held_out_error(self, pair: Pair) -> float:
        self.net.eval()
        places = pair.places[None].to(self.device)
        with torch.no_grad():
            out = self.net(pair.inputs[None].to(self.device), places)[0].cpu()
        truth = pair.truth[pair.window]
        return float((out[pair.window] - truth).norm() / truth.norm().clamp_min(1e-12))

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return tensors and JSON values from which `load` goes on."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
        return tensors, {"step": self.step, "curve": self.curve}

    def load(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Go on from what `state` returned; InputError if it belongs to another network."""
        try:
            self.net.load_state_dict(_part(tensors, "net."))
            self.best = _part(tensors, "best.")
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, "adam.").items():
                index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
            groups = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
            self.step, self.curve = int(values["step"]), list(values["curve"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                "checkpoint: it belongs to a network of another make. Train into another output."
            ) from error


def relative_error(predicted: Tensor, truth: Tensor, inputs: Tensor) -> Tensor:
    """Return the logarithms of the rms and of the mean absolute error of every patch, added and averaged.

    So that every patch asks for the same part of its error, be it large, of points, or a hundredth of the
    light, in diffuse structure. The squares alone would leave dim structure to chance, the absolute values
    alone points.
    """
    axes = (1, 2, 3)
    level = inputs[:, 0].square().mean(axes).sqrt() + inputs[:, 2].mean(axes)
    off = (predicted - truth) / level[:, None, None, None]
    squares, absolute = off.square().mean(axes), off.abs().mean(axes)
    return (0.5 * (squares + NEGLIGIBLE**2).log() + (absolute + NEGLIGIBLE).log()).mean()


def trained(
    architecture: Architecture, pairs: Pairs, held_out: tuple[Pair, ...], schedule: Schedule
) -> tuple[RestorationNet, Trainer]:
    """Return the best network of a whole training, ready to use, and the training."""
    net = RestorationNet(architecture, schedule.seed)
    trainer = Trainer(net, pairs, held_out, schedule)
    trainer.run()
    net.load_state_dict(trainer.best)
    return net.eval(), trainer


def held_out_pairs(supply: SimulatedPairs, kinds: tuple[str, ...], count: int) -> tuple[Pair, ...]:
    """Return `count` pairs of structures that training does not see, with seeds of their own."""
    both = set(kinds) & set(supply.kinds)
    if both:
        raise ParameterError(
            f"held_out: {', '.join(sorted(both))} is also trained on. Hold out other structures."
        )
    other = replace(supply, kinds=kinds, seed=supply.seed + 1_000_003)
    return tuple(other(i) for i in range(count))


def _cut(pair: Pair, patch: tuple[int, int, int], rng: np.random.Generator) -> Window:
    slices = []
    for n, size, seen in zip(pair.truth.shape, patch, pair.window, strict=True):
        size = min(n, size)
        low, high = max(0, seen.start - size // 4), min(n, seen.stop + size // 4) - size
        start = int(rng.integers(min(low, n - size), max(min(high, n - size), min(low, n - size)) + 1))
        slices.append(slice(start, start + size))
    return slices[0], slices[1], slices[2]


def _copied(net: torch.nn.Module) -> Tensors:
    return {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
