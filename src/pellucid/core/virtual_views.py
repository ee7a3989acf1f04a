"""The back projector that knows the other views (Preibisch et al. 2014, Nat. Methods 11:645).

What one view shows makes some contents of the other ("virtual") views likely and others not. Sent back
together, a mismatch goes through the compound kernel

    b_v = f_v* . prod over the others w of (f_v* (x) f_w (x) f_w*)

(f* is f mirrored, (x) convolution, . the product of voxels): narrower than f_v, so that an iteration
sharpens more. Their "efficient Bayesian" form; published in the world's frame, here in each view's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from torch import Tensor

from pellucid.core.back_projectors import BackProjector
from pellucid.core.fourier import transfer_function
from pellucid.core.geometry import Triple
from pellucid.core.operators import Blur
from pellucid.core.psf import Psf
from pellucid.core.rotated_psf import rotated_psf
from pellucid.errors import ParameterError


@dataclass(frozen=True, eq=False)
class VirtualViews(BackProjector):
    """The compound kernels of several views; `fuse` makes them when given `VirtualViews()`.

    Parameters
    ----------
    kernels : each view's blur, and the mirror image of its b_v: (z, y, x) centred at size // 2, sum 1
    """

    kernels: tuple[tuple[Blur, Tensor], ...] = field(default=(), repr=False)

    def transfer(self, blur: Blur) -> Tensor:
        for known, kernel in self.kernels:
            if known is blur:
                # what Blur does with its PSF, so that conj() goes back through it as the adjoint does
                z, y, x = (n // 2 + m for n, m in zip(kernel.shape, blur.margin, strict=True))
                flux = float(blur.transfer[0, 0, 0].abs())
                there = transfer_function(kernel * flux, blur.grid, (z, y, x))
                return there.conj().resolve_conj()
        raise ParameterError(
            "VirtualViews: expected a blur of one of the views it was made for. Pass VirtualViews() "
            "to fuse(), which makes it for its views, or use another back projector."
        )


def virtual_views(
    blurs: Sequence[Blur],
    psfs: Sequence[Psf],
    world_to_views: Sequence[NDArray[np.float64]],
    spacings_um: Sequence[Triple],
) -> VirtualViews:
    """Return the compound kernels of views, each in its own frame.

    Parameters
    ----------
    blurs : of the views, in the problem that will be solved
    psfs, spacings_um : each on voxels of its view
    world_to_views : linear parts (3, 3) of the views' transforms
    """
    kernels = []
    for v, blur in enumerate(blurs):
        own = psfs[v].values
        compound = own.copy()
        for w, other in enumerate(psfs):
            if w != v:
                across = world_to_views[w] @ np.linalg.inv(world_to_views[v])
                turned = rotated_psf(other, spacings_um[w], across, spacings_um[v]).values
                shared = fftconvolve(turned, turned[::-1, ::-1, ::-1])
                compound *= fftconvolve(_wide(own, shared.shape), shared, mode="same")[
                    _middle(own.shape, shared.shape)
                ].clip(0)
                compound /= compound.sum()
        kernel = torch.from_numpy(compound).to(blur.psf)
        kernels.append((blur, kernel))
    return VirtualViews(tuple(kernels))


def _wide(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the values with empty voxels around, no smaller than `shape`, the same centre."""
    grown = [max(m - n, 0) // 2 + 1 for n, m in zip(values.shape, shape, strict=True)]
    return np.pad(values, [(g, g) for g in grown])


def _middle(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(max(m - n, 0) // 2 + 1, max(m - n, 0) // 2 + 1 + n)
        for n, m in zip(own, shape, strict=True)
    )
