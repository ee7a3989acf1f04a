"""What a network sees of a problem: images on the object's grid, all of them in photons.

Per view three: the recording above background, one linear Wiener step of its operator, and the noise
level. All scale with the light, and the network has no constants, so what it predicts scales too.
A network that refines an estimate sees the Wiener step of what the estimate does not explain, added to
it, and the estimate: it starts from an answer that agrees with the recording. One that starts from the
classical solution sees the Wiener step as a fourth.
"""

from typing import Literal

import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.operators import Extended, LinearOperator, Windowed
from pellucid.core.problem import Observation, Problem
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.varying_blur import VaryingBlur
from pellucid.networks.wiener import continued, wiener_step

CHANNELS = 3
"""Images per view."""


Start = Literal["wiener", "classical"]


def channels(refining: bool, start: Start = "wiener") -> int:
    """Return images per view."""
    return CHANNELS + (refining or start == "classical")


def inputs_of(
    problem: Problem,
    estimate: Tensor | None = None,
    start: Start = "wiener",
    mean: float | None = None,
) -> Tensor:
    """Return (views * channels, z, y, x) photons on the object's grid; see the module.

    The second image of every view is what the network starts from: a Wiener step, or the classical
    solution, with the Wiener step after it. `mean` photons are those of the whole recording, where the
    problem is a part of it.
    """
    if start == "classical" and estimate is None:
        views, solution = [_view(o, None, mean) for o in problem.observations], classical(problem)
        return torch.cat([torch.stack([v[0], solution, v[2], v[1]]) for v in views])
    return torch.cat([_view(o, estimate, mean) for o in problem.observations])


def classical(problem: Problem) -> Tensor:
    """Return the classical solution on the object's whole grid."""
    extended = all(isinstance(o.operator, Extended) for o in problem.observations)
    restorer = Accelerated() if extended else RichardsonLucy(15, Matched())
    whole = Problem(problem.observations, tuple(slice(0, n) for n in problem.shape))  # type: ignore[arg-type]
    return restorer(whole).image


def positions_of(problem: Problem) -> Tensor:
    """Return (3, z, y, x) coordinates, -1 to 1 across the PSF field, 0 where nothing varies.

    For operators without a field, across the image along every axis.
    """
    operator = problem.observations[0].operator
    axes = []
    for axis, n in enumerate(problem.shape):
        places = torch.arange(n, dtype=torch.float32)
        if isinstance(operator, VaryingBlur):
            knots, step = operator.expansion.knots[axis], operator.expansion.spacing_um[axis]
            low, high = float(knots[0]), float(knots[-1])
            places = (places - operator.margin[axis]) * step + operator.origin_um[axis]
        elif isinstance(operator, Windowed):
            low, high = operator.margin[axis], operator.margin[axis] + operator.range_shape[axis] - 1
        else:
            low, high = 0.0, n - 1.0
        scaled = 2 * (places - low) / (high - low) - 1 if high > low else 0 * places
        axes.append(scaled.clamp(-1, 1).to(problem.observations[0].image.device))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _view(o: Observation, estimate: Tensor | None, mean: float | None) -> Tensor:
    signal = o.image - o.background
    raw = on_object(signal, o.operator)
    level = on_object(o.image, o.operator).clamp_min(0)
    # Smoothed, so that the noise level does not carry the noise.
    noise = _box(level + 1e-3 * (o.image.mean() if mean is None else mean)).sqrt()
    if estimate is None:
        return torch.stack([raw, wiener_step(signal, o.operator), noise])
    unexplained = signal - o.operator.forward(estimate)
    sharp = estimate + wiener_step(unexplained, o.operator)
    return torch.stack([raw, sharp, noise, estimate])


def on_object(image: Tensor, operator: LinearOperator) -> Tensor:
    """Return the image on the object's grid, its border continued; or sent back and normalised."""
    if isinstance(operator, Windowed):
        return continued(image, operator.margin, operator.domain_shape)
    seen = operator.adjoint(torch.ones_like(image))
    return operator.adjoint(image) / seen.clamp_min(1e-3 * float(seen.max()))


def _box(image: Tensor) -> Tensor:
    size = [3 if n > 2 else 1 for n in image.shape]
    return nn.avg_pool3d(
        image[None, None], size, stride=1, padding=[s // 2 for s in size], count_include_pad=False
    )[0, 0]
