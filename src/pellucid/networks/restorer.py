"""`Network`: a trained network as a restorer like any other."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.joint_coarsening import is_view
from pellucid.core.operators import Windowed
from pellucid.core.problem import Problem, Restored, Window
from pellucid.errors import InputError
from pellucid.networks.features import channels, inputs_of, positions_of, recorded_part
from pellucid.networks.model import RestorationNet
from pellucid.networks.view_sampling import count_places, parts_of
from pellucid.networks.wiener import closed_grid, continued, places_of

_CAPABILITIES: dict[str, Any] = getattr(
    torch.cpu, "get_capabilities", dict
)()  # torch 2.9 and later
HALVED = bool(_CAPABILITIES.get("avx512_bf16", False))
"""Whether this processor multiplies bfloat16 in hardware, twice as fast as float32."""


@dataclass(frozen=True)
class Network:
    """The answer of a trained network: one Wiener step, or the classical solution, and one pass.

    Deterministic on one kind of processor, and independent of what else is in the field beyond `halo`,
    but for the reach of the Wiener step's ringing. What the network adds to its start, and
    what it keeps of it, is computed in bfloat16 where the processor can, which moves the answer by some
    thousandths.

    Parameters
    ----------
    weights : of the network
    refining : networks that each refine the answer so far, made to agree with the recording by the
        Wiener step of what it does not explain
    mean_photons : of the recording of which problems are parts; None: a problem's own
    """

    weights: RestorationNet
    refining: tuple[RestorationNet, ...] = ()
    mean_photons: float | None = None

    @property
    def step(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) at whose multiples a tile begins, so that its blocks are those of the whole."""
        z, y, x = (b * b for b in self.weights.block)
        return z, y, x

    def halo(self, problem: Problem) -> tuple[int, int, int]:
        """Return voxels (z, y, x) around a tile that its answer depends on."""
        radius, passes = self.weights.receptive_radius, 1 + len(self.refining)
        margins = [getattr(o.operator, "margin", (0, 0, 0)) for o in problem.observations]
        z, y, x = (passes * (r + 2 * max(m[a] for m in margins)) for a, r in enumerate(radius))
        return z, y, x

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes, beside the images: of a Wiener step, or of the
        features (`benchmarks/network_tiles.py`)."""
        a, whole = self.weights.architecture, math.prod(problem.shape)
        part = math.prod(s.stop - s.start for s in recorded_part(problem))
        inputs: int = a.views * channels(bool(self.refining), a.start) * part
        # an image before its transform, the transform, and what comes of it; else a few steps of a solver
        step = max(
            3 * math.prod(closed_grid(o.operator)[1]) if isinstance(o.operator, Windowed) else 8 * whole
            for o in problem.observations
        )
        # the inputs in another order, and in bfloat16; features, what looks at them, and their sum
        features = 1.5 * inputs + 3 * a.width / math.prod(self.weights.block) * part
        alone = self.kept_bytes(problem) + int(4 * (inputs + whole + max(step, features)))
        if a.start == "wiener":
            return alone
        return max(alone, Accelerated().peak_bytes(problem) + 4 * inputs)

    def kept_bytes(self, problem: Problem) -> int:
        """Return bytes of filters and transfer functions, which stay as long as the problem."""
        kept, operators = 0, [o.operator for o in problem.observations]
        for operator in operators:
            if isinstance(operator, Windowed):
                for place in places_of(operator):
                    kept += math.prod(closed_grid(operator)[1]) + place.share.numel()
                kept += len(getattr(operator, "transfers", "1")) * math.prod(operator.grid)
            elif is_view(operator):
                blur, _ = parts_of(operator)
                kept += 2 * count_places(operators) * math.prod(problem.shape)
                kept += len(getattr(blur, "transfers", "1")) * math.prod(blur.grid)
        return 4 * kept

    def estimate(self, problem: Problem) -> Tensor:
        """Return the object on its whole grid, (z, y, x) photons; beyond the images continued."""
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
        z, y, x = part = recorded_part(problem)
        places = positions_of(problem, part)[None] if a.positioned else None
        estimate: Tensor | None = None
        for net in (self.weights, *self.refining):
            answer = self._answer(net, problem, estimate, part, places)
            estimate = continued(answer, (z.start, y.start, x.start), problem.shape)
            del answer
        assert estimate is not None
        return estimate

    def _answer(
        self,
        net: RestorationNet,
        problem: Problem,
        estimate: Tensor | None,
        part: Window,
        places: Tensor | None,
    ) -> Tensor:
        """What one pass says on a part of the object; its inputs are gone before the next are made."""
        inputs = inputs_of(problem, estimate, net.architecture.start, part, self.mean_photons)
        halved = HALVED and inputs.device.type == "cpu"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=halved):
            answer: Tensor = net.to(inputs.device).eval()(inputs[None], places)[0]
        return answer

    def __call__(self, problem: Problem) -> Restored:
        return restored(problem, self.estimate(problem), {"restorer": "network"})


def restored(problem: Problem, x: Tensor, stats: dict[str, object]) -> Restored:
    """Return `x` in the problem's window with the images that it explains."""
    models = tuple(o.operator.forward(x).clamp_min_(0) + o.background for o in problem.observations)
    return Restored(problem.windowed(x).clone(), stats, models)
