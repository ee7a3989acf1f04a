"""`Network`: a trained network as a restorer like any other."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.core.problem import Problem, Restored
from pellucid.errors import InputError
from pellucid.networks.features import inputs_of, positions_of
from pellucid.networks.model import RestorationNet


@dataclass(frozen=True)
class Network:
    """The answer of a trained network: one Wiener step, or the classical solution, and one pass.

    Deterministic, and independent of what else is in the field beyond `halo`, but for the reach of
    the Wiener step's ringing.

    Parameters
    ----------
    weights : of the network
    refining : networks that each refine the answer so far, made to agree with the recording by the
        Wiener step of what it does not explain
    """

    weights: RestorationNet
    refining: tuple[RestorationNet, ...] = ()

    def halo(self, problem: Problem) -> tuple[int, int, int]:
        """Return voxels (z, y, x) around a tile that its answer depends on."""
        radius, passes = self.weights.receptive_radius, 1 + len(self.refining)
        margins = [getattr(o.operator, "margin", (0, 0, 0)) for o in problem.observations]
        z, y, x = (passes * (r + 2 * max(m[a] for m in margins)) for a, r in enumerate(radius))
        return z, y, x

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes: inputs, features, and the FFT's grids."""
        a = self.weights.architecture
        cells = math.prod(self.weights.block)
        volumes = 6 * a.views + 10 + 5 * a.width / cells
        return int(4 * volumes * math.prod(problem.shape))

    def estimate(self, problem: Problem) -> Tensor:
        """Return the object on its whole grid, (z, y, x) photons."""
        a = self.weights.architecture
        if len(problem.observations) != a.views:
            raise InputError(
                f"Network: trained for {a.views} views, got {len(problem.observations)}. "
                "Use a model trained for as many."
            )
        if (problem.observations[0].operator.range_shape[0] > 1) != a.volumetric:
            raise InputError(
                f"Network: trained for {'volumes' if a.volumetric else 'images of one plane'}, "
                f"got {problem.observations[0].operator.range_shape}. Use a model for these."
            )
        places = positions_of(problem)[None] if a.positioned else None
        estimate: Tensor | None = None
        with torch.no_grad():
            for net in (self.weights, *self.refining):
                inputs = inputs_of(problem, estimate, net.architecture.start)
                estimate = net.to(inputs.device).eval()(inputs[None], places)[0]
        assert estimate is not None
        return estimate

    def inner(self, problem: Problem) -> tuple[Tensor, tuple[int, ...]]:
        """Return the first network's innermost features (width, z, y, x), and voxels per feature."""
        places = positions_of(problem)[None] if self.weights.architecture.positioned else None
        inputs = inputs_of(problem, start=self.weights.architecture.start)
        with torch.no_grad():
            features = self.weights.to(inputs.device).eval().inner(inputs[None], places)[0]
        return features, tuple(b * b for b in self.weights.block)

    def __call__(self, problem: Problem) -> Restored:
        return restored(problem, self.estimate(problem), {"restorer": "network"})


def restored(problem: Problem, x: Tensor, stats: dict[str, object]) -> Restored:
    """Return `x` in the problem's window with the images that it explains."""
    models = tuple(o.operator.forward(x).clamp_min_(0) + o.background for o in problem.observations)
    return Restored(problem.windowed(x).clone(), stats, models)
