"""What a network sees of a problem: images on the object's grid, all of them in photons.

Per view three: the recording above background, one linear Wiener step of its operator, and the noise
level. All scale with the light, and the network has no constants, so what it predicts scales too.
"""

import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.fourier import filtered, transfer_function
from pellucid.core.operators import Blur, LinearOperator
from pellucid.core.problem import Observation, Problem

ALPHA = 0.01
"""Strength of the Wiener step, relative to the operator's gain: one for all images, so it is linear."""

CHEBYSHEV_STEPS = 5
"""Steps that stand for the Wiener filter where the operator is no convolution."""

CHANNELS = 3
"""Images per view."""


def inputs_of(problem: Problem) -> Tensor:
    """Return (views * 3, z, y, x) photons on the object's grid; see the module."""
    return torch.cat([_view(o) for o in problem.observations])


def positions(shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return (3, z, y, x) coordinates from -1 to 1 across the object."""
    axes = [torch.linspace(-1, 1, n, device=like.device) if n > 1 else like.new_zeros(1) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _view(o: Observation) -> Tensor:
    signal = o.image - o.background
    operator = o.operator
    raw = on_object(signal, operator)
    sharp = wiener_step(signal, operator)
    level = on_object(o.image, operator).clamp_min(0)
    # Smoothed, so that the noise level does not carry the noise.
    noise = _box(level + 1e-3 * o.image.mean()).sqrt()
    return torch.stack([raw, sharp, noise])


def on_object(image: Tensor, operator: LinearOperator) -> Tensor:
    """Return the image on the object's grid, its border continued; or sent back and normalised."""
    margin = getattr(operator, "margin", None)
    if margin is not None:
        return _continued(image, margin, operator.domain_shape)
    seen = operator.adjoint(torch.ones_like(image))
    return operator.adjoint(image) / seen.clamp_min(1e-3 * float(seen.max()))


def wiener_step(signal: Tensor, operator: LinearOperator) -> Tensor:
    """Return (A* A + alpha) ^ -1 A* of the signal: by one filter for a `Blur`, else by a polynomial.

    The polynomial is Chebyshev's (Golub & Varga 1961) on [alpha, 1 + alpha] times |A|^2, of fixed
    degree: linear in the signal, and as deterministic as the operator.
    """
    if isinstance(operator, Blur) and operator.domain_shape == operator.grid:
        depth, height, width = operator.psf.shape
        centre = (depth // 2, height // 2, width // 2)
        otf = transfer_function(operator.psf, operator.grid, centre)
        power = otf.abs().square()
        filter_ = otf.conj() / (power + ALPHA * power.max())
        wide = _continued(signal, operator.margin, operator.domain_shape)
        return filtered(wide, filter_.resolve_conj(), operator.grid, operator.domain_shape)
    back = operator.adjoint(signal)
    ones = operator.forward(torch.ones_like(back))
    gain = float(operator.adjoint(ones).max())
    shift = ALPHA * gain
    middle, half = shift + gain / 2, gain / 2
    x, step, rate = torch.zeros_like(back), torch.zeros_like(back), 0.0
    for k in range(CHEBYSHEV_STEPS):
        residual = back - operator.adjoint(operator.forward(x)) - shift * x if k else back
        beta = 0.0 if k == 0 else (0.5 if k == 1 else 0.25) * (half * rate) ** 2
        rate = 1 / middle if k == 0 else 1 / (middle - beta / rate)
        step = rate * residual + beta * step
        x = x + step
    return x


def _continued(image: Tensor, margin: tuple[int, int, int], shape: tuple[int, int, int]) -> Tensor:
    pads = [(m, n - m - s) for m, n, s in zip(margin, shape, image.shape, strict=True)]
    flat = [p for pair in reversed(pads) for p in pair]
    return nn.pad(image[None, None], flat, mode="replicate")[0, 0]


def _box(image: Tensor) -> Tensor:
    size = [3 if n > 2 else 1 for n in image.shape]
    return nn.avg_pool3d(
        image[None, None], size, stride=1, padding=[s // 2 for s in size], count_include_pad=False
    )[0, 0]
