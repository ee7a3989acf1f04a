"""Checks that any operator or restorer can be put through; public, for those who write their own."""

import torch

from pellucid.core.operators import LinearOperator


def dot_test(operator: LinearOperator, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> float:
    """Return the relative mismatch of <A x, y> and <x, A* y> for random x and y.

    Zero to rounding (about 1e-15 in float64, 1e-6 in float32) when `adjoint` is the exact transpose
    of `forward`. The operator must hold its tensors in `dtype`.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(operator.domain_shape, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(operator.range_shape, generator=generator, dtype=torch.float64).to(dtype)
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    left = torch.dot(forward.flatten().double(), y.flatten().double())
    right = torch.dot(x.flatten().double(), adjoint.flatten().double())
    scale = forward.double().norm() * y.double().norm()
    return float((left - right).abs() / scale)
