"""Linear operators: what the microscope does to an object, with exact adjoints.

Operators compose as the equation is written: `Blur(psf, shape) @ Resample(...)`. `adjoint` is always
the exact transpose of `forward`, which `pellucid.testing.dot_test` checks; the unmatched back
projectors that speed up Richardson-Lucy are separate objects (`pellucid.core.back_projectors`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from pellucid.core.fourier import (
    Finish,
    Shape,
    fast_shape,
    filter_slabs,
    filtered,
    transfer_function,
)
from pellucid.errors import InputError


class LinearOperator(ABC):
    """A linear map from an object on `domain_shape` to an image on `range_shape`, both (z, y, x)."""

    domain_shape: Shape
    range_shape: Shape

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the image of the object `x`."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return the exact transpose of `forward`, applied to `y`."""

    def forward_slabs(self, x: Tensor, finish: Finish) -> None:
        """Hand the image of `x` to `finish`, by planes where that saves passes over memory."""
        finish(slice(0, self.range_shape[0]), self.forward(x))

    def __matmul__(self, inner: "LinearOperator") -> "Composed":
        return Composed(self, inner)


class Composed(LinearOperator):
    """`outer @ inner`: first `inner`, then `outer`."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.domain_shape != inner.range_shape:
            raise InputError(
                f"Composed: expected the outer operator to take what the inner one gives, got "
                f"{outer.domain_shape} after {inner.range_shape}. Build both on the same grid."
            )
        self.outer, self.inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


class Windowed(LinearOperator):
    """An operator whose image lies voxel by voxel before a part of the object.

    Attributes
    ----------
    grid : of the FFTs
    margin : voxels of object before the image on each axis: image voxel i is object voxel i + margin
    """

    grid: Shape
    margin: Shape

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The part of the object that lies behind the image."""
        z, y, x = (slice(m, m + n) for m, n in zip(self.margin, self.range_shape, strict=True))
        return z, y, x


class Extended(Windowed):
    """A blur of an object that may extend beyond its image, on one FFT grid.

    Attributes
    ----------
    psf : the PSF, or the mean one
    """

    psf: Tensor

    @property
    @abstractmethod
    def typical(self) -> "Blur":
        """The stationary blur that comes closest: a `Blur` itself."""

    @abstractmethod
    def binned(self, factors: Shape, image_shape: Shape) -> "Extended":
        """Return the blur that a camera with voxels `factors` times larger sees."""


class Blur(Extended):
    """Convolution of an object with a PSF, seen in a window of `image_shape`; nothing wraps around.

    The object extends beyond the image by the reach of the PSF (`extended=True`), because light from
    outside the field falls into it; or it ends with the image (`extended=False`), and what lies
    outside is dark. The first needs no assumption about the border and is what restorers use.

    Parameters
    ----------
    psf : (z, y, x) tensor, any size, odd or even, smaller or larger than the image; centre at index
        size // 2; used as it is (its sum is the flux that an object voxel sends)
    image_shape : (z, y, x) of the recorded image
    extended : whether the object extends beyond the image

    Attributes
    ----------
    domain_shape : shape of the object; equal to the FFT grid when extended
    range_shape : shape of the image
    margin : voxels of object before the image on each axis: image voxel i is object voxel i + margin
    """

    def __init__(self, psf: Tensor, image_shape: Shape, *, extended: bool = True) -> None:
        if psf.ndim != 3:
            raise InputError(
                f"Blur: expected a (z, y, x) PSF, got shape {tuple(psf.shape)}. "
                "Give a 2D PSF a leading axis of 1."
            )
        if not extended:
            psf = _within_reach(psf, image_shape)
        self.psf = psf
        self.range_shape = image_shape
        # a kernel index k is an offset k - n // 2: light moves up to n - 1 - n // 2 voxels forward
        # (from before the image) and n // 2 voxels backward (from behind it)
        before = [n - 1 - n // 2 for n in psf.shape]
        behind = [n // 2 for n in psf.shape]
        sizes = zip(image_shape, before, behind, strict=True)
        if extended:
            self.grid = fast_shape(_triple(n + a + b for n, a, b in sizes))
            self.margin, self.domain_shape = _triple(before), self.grid
        else:
            self.grid = fast_shape(_triple(n + max(a, b) for n, a, b in sizes))
            self.margin, self.domain_shape = (0, 0, 0), image_shape
        origin = _triple(n // 2 + m for n, m in zip(psf.shape, self.margin, strict=True))
        self.transfer = transfer_function(psf, self.grid, origin)

    def __repr__(self) -> str:
        return f"Blur(psf{tuple(self.psf.shape)}, {self.range_shape})"

    @property
    def typical(self) -> "Blur":
        return self

    def binned(self, factors: Shape, image_shape: Shape) -> "Blur":
        return Blur(binned_psf(self.psf, factors), image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return filtered(x, self.transfer, self.grid, self.range_shape)

    def forward_slabs(self, x: Tensor, finish: Finish) -> None:
        filter_slabs(x, self.transfer, self.grid, self.range_shape, finish)

    def adjoint(self, y: Tensor) -> Tensor:
        return filtered(y, self.transfer, self.grid, self.domain_shape, conjugate=True)


def binned_psf(psf: Tensor, factors: Shape) -> Tensor:
    """Return the PSF between blocks: object and camera both seen through a box, flux kept."""
    for axis, f in enumerate(factors):
        if f == 1:
            continue
        # the blur between two blocks at distance k f is sum_d psf(d) triangle(d - k f) / f
        n = psf.shape[axis]
        reach = max(n // 2, n - 1 - n // 2) // f + 1
        offsets = torch.arange(n) - n // 2
        places = f * torch.arange(-reach, reach + 1)
        triangle = (1 - (offsets[None, :] - places[:, None]).abs() / f).clamp_min(0)
        weights = triangle.to(dtype=psf.dtype, device=psf.device)
        psf = torch.tensordot(weights, psf, dims=([1], [axis])).movedim(0, axis)
    return psf.contiguous()


def _triple(values: Iterable[int]) -> Shape:
    z, y, x = values
    return z, y, x


def _within_reach(psf: Tensor, image_shape: Shape) -> Tensor:
    """Crop the PSF to the offsets that join two voxels of the image: no other is ever used."""
    for axis, n in enumerate(image_shape):
        size = psf.shape[axis]
        reach_low, reach_high = min(size // 2, n - 1), min(size - 1 - size // 2, n - 1)
        if reach_low + reach_high + 1 < size:
            # keep the centre at index size // 2 of the cropped kernel
            low = max(reach_low, reach_high)
            psf = psf.narrow(axis, size // 2 - low, min(2 * low + 1, size - (size // 2 - low)))
    return psf.contiguous()
