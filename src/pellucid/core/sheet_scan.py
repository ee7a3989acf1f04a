"""A light sheet that moves, and a camera that keeps one plane at each of its positions.

Plane t of the image is sum_d h(d) * (E_t e)(t - d), where h(d) is the PSF at the distance d from the
plane and * is the convolution in the plane. So planes alone are transformed, those along y once for
all, and what is summed is the PSF's depth: nothing loops over sheet positions.
"""

import scipy.fft
import torch
from torch import Tensor

from pellucid.core.fourier import Shape, fast_shape
from pellucid.core.operators import Windowed
from pellucid.errors import InputError


class SheetScan(Windowed):
    """At each sheet position illuminate, blur, keep the detected plane; the object extends beyond.

    `pellucid.core.illumination` makes the light of a sheet with its waist, and of crossed sheets. It
    runs on the CPU. Restorers take it with the matched back projector: `Accelerated(Matched())`.

    Parameters
    ----------
    psf : (z, y, x) of the detection, centred at size // 2
    illumination : (t, d, x) light at sheet position t, in the object plane t - (d - size // 2) of
        the PSF's plane d, along x of the object (`domain_shape[2]` voxels); constant along y
    image_shape : (t, y, x)
    """

    def __init__(self, psf: Tensor, illumination: Tensor, image_shape: Shape) -> None:
        before = [n - 1 - n // 2 for n in psf.shape]
        z, y, x = (n + k - 1 for n, k in zip(image_shape, psf.shape, strict=True))
        expected = (image_shape[0], psf.shape[0], x)
        if tuple(illumination.shape) != expected:
            raise InputError(
                f"SheetScan: expected an illumination (t, d, x) of shape {expected}, got "
                f"{tuple(illumination.shape)}. Give it on the object, which extends beyond the image."
            )
        self.domain_shape, self.range_shape = (z, y, x), image_shape
        self.margin = (before[0], before[1], before[2])
        self.psf, self.illumination = psf, illumination
        _, self.height, self.width = fast_shape((1, y, x))
        self.grid = (z, self.height, self.width)
        rows = scipy.fft.rfft(psf.numpy(), n=self.height, axis=1)
        # the image's first voxel sees the object from its first one to the PSF's size on
        self.transfers = scipy.fft.fft(rows, n=self.width, axis=2)

    def __repr__(self) -> str:
        return f"SheetScan(psf{tuple(self.psf.shape)}, {self.range_shape})"

    @property
    def bytes_beyond_mean(self) -> int:
        """Memory of transfers, illumination and the spectra in flight beyond those of one `Blur`."""
        z, height, width = self.grid
        spectrum = z * (height // 2 + 1) * width * self.transfers.itemsize
        return int(self.transfers.nbytes + self.illumination.nbytes + 2 * spectrum)

    def forward(self, x: Tensor) -> Tensor:
        t, height, width = self.range_shape
        depth = len(self.psf)
        rows = scipy.fft.rfft(x.numpy(), n=self.height, axis=1)
        light = self.illumination.numpy()
        total = 0
        for d, transfer in enumerate(self.transfers):
            lit = rows[depth - 1 - d : depth - 1 - d + t] * light[:, d, None, :]
            total = total + scipy.fft.fft(lit, n=self.width, axis=2, overwrite_x=True) * transfer
        image = scipy.fft.irfft(scipy.fft.ifft(total, axis=2), n=self.height, axis=1)
        y0, x0 = (n - 1 for n in self.psf.shape[1:])
        return torch.from_numpy(image[:, y0 : y0 + height, x0 : x0 + width].copy())

    def adjoint(self, y: Tensor) -> Tensor:
        t, height, width = self.range_shape
        depth = len(self.psf)
        y0, x0 = (n - 1 for n in self.psf.shape[1:])
        padded = torch.zeros(t, self.height, self.width, dtype=y.dtype)
        padded[:, y0 : y0 + height, x0 : x0 + width] = y
        spectrum = scipy.fft.fft(scipy.fft.rfft(padded.numpy(), axis=1), axis=2)
        rows = torch.zeros(
            self.domain_shape[0], self.height // 2 + 1, self.domain_shape[2],
            dtype=torch.complex64 if y.dtype == torch.float32 else torch.complex128,
        ).numpy()  # fmt: skip
        for d, transfer in enumerate(self.transfers):
            back = scipy.fft.ifft(spectrum * transfer.conj(), axis=2, overwrite_x=True)
            back = back[:, :, : self.domain_shape[2]] * self.illumination.numpy()[:, d, None, :]
            rows[depth - 1 - d : depth - 1 - d + t] += back
        out = scipy.fft.irfft(rows, n=self.height, axis=1)[:, : self.domain_shape[1]]
        return torch.from_numpy(out.copy())
