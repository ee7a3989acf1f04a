"""What a network sees of a problem: images on the object's grid, all of them in photons.

Per view three: the recording above background, one linear Wiener step of its operator, and the noise
level. All scale with the light, and the network has no constants, so what it predicts scales too.
A network that refines an estimate sees the Wiener step of what the estimate does not explain, added to
it, and the estimate: it starts from an answer that agrees with the recording. One that starts from the
classical solution sees the Wiener step as a fourth.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.fourier import empty
from pellucid.core.joint_coarsening import is_joint, is_view
from pellucid.core.operators import Extended, LinearOperator, Windowed
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.varying_blur import VaryingBlur
from pellucid.networks.view_sampling import (
    flux_of,
    parts_of,
    sampled_view,
    varying_box,
    wiener_steps,
)
from pellucid.networks.wiener import continued

CHANNELS = 3
"""Images per view."""

BORDER = 4
"""Voxels beyond the images that a network is asked about; beyond these its answer is continued."""

Start = Literal["wiener", "classical"]


def channels(refining: bool, start: Start = "wiener") -> int:
    """Return images per view."""
    return CHANNELS + (refining or start == "classical")


def inputs_of(
    problem: Problem,
    estimate: Tensor | None = None,
    start: Start = "wiener",
    part: Window | None = None,
    mean: float | None = None,
) -> Tensor:
    """Return (views * channels, z, y, x) photons on a part of the object's grid; None: on all of it.

    The second image of every view is what the network starts from: a Wiener step, or the classical
    solution, with the Wiener step after it. `mean` photons are those of the whole recording, where the
    problem is a part of it.
    """
    z, y, x = part = part or whole(problem)
    size = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    each = channels(estimate is not None, start)
    out = empty((each * len(problem.observations), *size), problem.observations[0].image)
    signals = [
        _fill(out[v * each : (v + 1) * each], o, estimate, part, mean)
        for v, o in enumerate(problem.observations)
    ]
    shown = list(out[::each]) if estimate is None else None
    for v, step in enumerate(wiener_steps(problem, signals, part, shown)):
        out[v * each + 1] = step if estimate is None else step.add_(estimate[part])
    if start == "classical" and estimate is None:
        out[3::each], out[1::each] = out[1::each].clone(), classical(problem)[z, y, x]
    return out


def whole(problem: Problem) -> Window:
    """Return the slices of all of the object's grid."""
    z, y, x = (slice(0, n) for n in problem.shape)
    return z, y, x


def recorded_part(problem: Problem) -> Window:
    """Return what a network is asked about: the part of the object behind the images, and `BORDER` more.

    Of views at angles to it the part that is asked for, and `BORDER` more; all of it where an image lies
    otherwise.
    """
    if is_joint(problem) and problem.window is not None:
        z, y, x = (
            slice(max(0, w.start - BORDER), min(n, w.stop + BORDER))
            for w, n in zip(problem.window, problem.shape, strict=True)
        )
        return z, y, x
    windows = [o.operator.window for o in problem.observations if isinstance(o.operator, Windowed)]
    if len(windows) < len(problem.observations):
        return whole(problem)
    z, y, x = (
        slice(
            max(0, min(w.start for w in seen) - BORDER), min(n, max(w.stop for w in seen) + BORDER)
        )
        for n, *seen in zip(problem.shape, *windows, strict=True)
    )
    return z, y, x


def classical(problem: Problem, most: int = 40) -> Tensor:
    """Return the classical solution on the object's whole grid, of `most` fine iterations at most."""
    extended = all(isinstance(o.operator, Extended) for o in problem.observations)
    guarded = Accelerated(max_iterations=most)
    coarse_first = extended or is_joint(problem)
    restorer = guarded if coarse_first else RichardsonLucy(min(15, most), Matched())
    return restorer(Problem(problem.observations, whole(problem))).image


def positions_of(problem: Problem, part: Window | None = None) -> Tensor:
    """Return (3, z, y, x) coordinates, -1 to 1 across the PSF field, 0 where nothing varies.

    For operators without a field, across the image along every axis. For views at angles to the object,
    across the fields of all.
    """
    if is_joint(problem):
        return _positions_of_views(problem, part or whole(problem))
    operator = problem.observations[0].operator
    axes = []
    for axis, (n, seen) in enumerate(zip(problem.shape, part or whole(problem), strict=True)):
        places = torch.arange(seen.start, seen.stop, dtype=torch.float32)
        if isinstance(operator, VaryingBlur):
            knots, step = operator.expansion.knots[axis], operator.expansion.spacing_um[axis]
            low, high = float(knots[0]), float(knots[-1])
            places = (places - operator.margin[axis]) * step + operator.origin_um[axis]
        elif isinstance(operator, Windowed):
            low, high = (
                operator.margin[axis],
                operator.margin[axis] + operator.range_shape[axis] - 1,
            )
        else:
            low, high = 0.0, n - 1.0
        scaled = 2 * (places - low) / (high - low) - 1 if high > low else 0 * places
        axes.append(scaled.clamp(-1, 1).to(problem.observations[0].image.device))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _positions_of_views(problem: Problem, part: Window) -> Tensor:
    operators = [o.operator for o in problem.observations]
    world = parts_of(operators[0])[1].world
    axes = []
    for axis, (low, high) in enumerate(zip(*varying_box(operators), strict=True)):
        voxels = np.arange(part[axis].start, part[axis].stop)
        places = world.origin_um[axis] + voxels * world.spacing_um[axis]
        varies = high - low > world.spacing_um[axis]
        scaled = 2 * (places - low) / (high - low) - 1 if varies else 0 * places
        axes.append(torch.from_numpy(scaled).float().clamp(-1, 1))
    like = problem.observations[0].image
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).to(like.device)


def _fill(
    out: Tensor, o: Observation, estimate: Tensor | None, part: Window, mean: float | None
) -> Tensor:
    """Fill all but the Wiener step, and return the signal that this is made of."""
    signal, flux = o.image - o.background, flux_of(o.operator)
    shown = on_object(signal, o.operator, part)
    torch.div(shown, flux, out=out[0])
    # Smoothed, so that the noise level does not carry the noise.
    level = (shown + o.background).clamp_min_(0)
    level.add_(1e-3 * (o.image.mean() if mean is None else mean))
    out[2] = _box(level).sqrt_().div_(flux)
    if estimate is not None:
        signal -= o.operator.forward(estimate)
        out[3] = estimate[part]
    return signal


def on_object(image: Tensor, operator: LinearOperator, part: Window) -> Tensor:
    """Return the image on a part of the object, its border continued; or sent back, normalised."""
    if isinstance(operator, Windowed):
        ends = zip(operator.window, part, strict=True)
        (z, depth), (y, height), (x, width) = (
            (w.start - p.start, p.stop - p.start) for w, p in ends
        )
        return continued(image, (z, y, x), (depth, height, width))
    if is_view(operator):
        return sampled_view(image, operator, part)
    seen = operator.adjoint(torch.ones_like(image))
    return (operator.adjoint(image) / seen.clamp_min(1e-3 * float(seen.max())))[part]


def _box(image: Tensor) -> Tensor:
    """Return means over 3 x 3 x 3 voxels, over fewer at the border."""
    for axis, n in enumerate(image.shape):
        if n < 3:
            continue
        total, counts = image.clone(), torch.full([n if a == axis else 1 for a in range(3)], 1 / 3)
        total.narrow(axis, 1, n - 1).add_(image.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(image.narrow(axis, 1, n - 1))
        counts.narrow(axis, 0, 1).fill_(1 / 2), counts.narrow(axis, n - 1, 1).fill_(1 / 2)
        image = total.mul_(counts.to(total))
    return image
