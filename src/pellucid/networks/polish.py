"""The cure: a network's answer taken on by the physics, as far as held-out photons agree."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.accelerated import thinned
from pellucid.core.joint_coarsening import is_view
from pellucid.core.problem import Observation, Problem, Restored, sensitivities
from pellucid.errors import ParameterError
from pellucid.networks.features import whole
from pellucid.networks.restorer import Network, restored
from pellucid.networks.view_sampling import sampled_view

MOST_ITERATIONS = 3
"""Iterations that "auto" may take."""

DARKEST = 0.02
"""Share of the back-projected light below which no voxel starts: what is zero stays zero for good."""

DOUBT_Z = 3.0
"""Standard deviations of the local residual at which the gate is half open."""


class Estimator(Protocol):
    """What can be polished: it answers on the object's whole grid."""

    def estimate(self, problem: Problem) -> Tensor: ...


@dataclass(frozen=True)
class Polished:
    """A network's answer as the start of a few matched Richardson-Lucy iterations.

    Parameters
    ----------
    network : any estimator, usually a `Network`
    iterations : exactly this many; None: at most 3, as many as make photons held out from them more
        likely, and then of all photons
    gated : correct only where the answer, blurred again, contradicts the recording beyond its noise,
        so that believable regions keep the network's noise suppression
    held_out : share of the photons that judge
    """

    network: Estimator
    iterations: int | None = None
    gated: bool = True
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations is not None and not 0 <= self.iterations <= 100:
            raise ParameterError(f"polish: expected 0 to 100 iterations, got {self.iterations}.")

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes, beside the images."""
        own = 4 * (8 + 4 * len(problem.observations)) * math.prod(problem.shape)
        if not isinstance(self.network, Network):
            return own
        network = self.network.peak_bytes(problem)
        return network if self.iterations == 0 else max(network, self.network.kept_bytes(problem) + own)

    def estimate(self, problem: Problem) -> Tensor:
        """Return the polished object on its whole grid."""
        return self.polished(problem)[0]

    def __call__(self, problem: Problem) -> Restored:
        return restored(problem, *self.polished(problem))

    def polished(self, problem: Problem) -> tuple[Tensor, dict[str, object]]:
        """Return the polished object on its whole grid, and what was done to it."""
        x, taken = self._polished(problem, self.network.estimate(problem))
        return x, {"restorer": "network, polished", "iterations": taken, "gated": self.gated}

    def _polished(self, problem: Problem, start: Tensor) -> tuple[Tensor, int]:
        if self.iterations == 0:
            return start, 0
        seen = _total(sensitivities(problem))
        weight = seen.clamp_min(0.05 * seen.max()).reciprocal()
        x = torch.maximum(start, DARKEST * _back(problem, weight))
        count = self._borne(problem, x, weight) if self.iterations is None else self.iterations
        if count == 0:
            return start, 0
        for _ in range(count):
            x = x * (_back_ratio(problem, x) * weight)
        gate = contradiction(problem, start, weight) if self.gated else 1.0
        return start + gate * (x - start), count

    def _borne(self, problem: Problem, x: Tensor, weight: Tensor) -> int:
        """Return how many iterations of the other photons make those held out more likely."""
        kept, held = thinned(problem, self.held_out, self.seed)
        share = 1 - self.held_out
        x = x * share
        best = _likelihood(held, x, self.held_out / share)
        for taken in range(MOST_ITERATIONS):
            x = x * (_back_ratio(kept, x) * weight)
            likely = _likelihood(held, x, self.held_out / share)
            if likely <= best:
                return taken
            best = likely
        return MOST_ITERATIONS


def contradiction(problem: Problem, x: Tensor, weight: Tensor) -> Tensor:
    """Return 0 to 1 on the object's grid: how surely A x + b contradicts the recording nearby.

    The Pearson residual is averaged over 5 x 5 x 5 voxels and scaled to a standard deviation of one
    under Poisson noise; the gate opens half at `DOUBT_Z` and wholly at twice that.
    """
    gate = torch.zeros_like(x)
    for o in problem.observations:
        model = o.operator.forward(x).clamp_min(0) + max(o.background, 1e-3)
        z = smooth((o.image - model) / model.sqrt(), 5)
        z = z * math.sqrt(math.prod(min(5, n) for n in o.image.shape))
        doubt = ((z.abs() - 0.5 * DOUBT_Z) / (1.5 * DOUBT_Z)).clamp(0, 1)
        margin = getattr(o.operator, "margin", None)
        if is_view(o.operator):
            wide = sampled_view(doubt, o.operator, whole(problem))
        elif margin is not None:
            wide = torch.zeros_like(x)
            wide[tuple(slice(m, m + n) for m, n in zip(margin, doubt.shape, strict=True))] = doubt
        else:
            wide = (o.operator.adjoint(doubt) * weight).clamp(0, 1)
        gate = torch.maximum(gate, wide)
    return smooth(gate, 3)


def smooth(image: Tensor, width: int) -> Tensor:
    """Return running means over cubes of `width` voxels, an odd number; borders are averaged over less."""
    size = [width if n >= width else 1 for n in image.shape]
    return nn.avg_pool3d(
        image[None, None], size, 1, [s // 2 for s in size], count_include_pad=False
    )[0, 0]


def _total(images: list[Tensor]) -> Tensor:
    return torch.stack(images).sum(dim=0)


def _back(problem: Problem, weight: Tensor) -> Tensor:
    signals = ((o.image - o.background).clamp_min(0) for o in problem.observations)
    pairs = zip(problem.observations, signals, strict=True)
    return _total([o.operator.adjoint(s).clamp_min(0) for o, s in pairs]) * weight


def _model(o: Observation, x: Tensor) -> Tensor:
    floor = 1e-6 * float(o.image.abs().mean()) + 1e-12
    return o.operator.forward(x).clamp_min(floor) + o.background


def _back_ratio(problem: Problem, x: Tensor) -> Tensor:
    return _total(
        [o.operator.adjoint(o.image / _model(o, x)).clamp_min(0) for o in problem.observations]
    )


def _likelihood(held: Problem, x: Tensor, scale: float) -> float:
    """Poisson log-likelihood of the photons held out, of `x` scaled to their share."""
    total = 0.0
    for o in held.observations:
        model = _model(o, x * scale)
        total += float((o.image * model.log() - model).sum(dtype=torch.float64))
    return total
