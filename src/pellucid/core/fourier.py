"""Convolution on FFT grids: the one place that knows which FFT runs on which device.

A CPU tensor goes through SciPy's FFT (BSD; about twice as fast as torch's on processors without MKL
tuning) in slabs that stay in cache: planes are transformed along x and y, then every few rows along z,
multiplied by the transfer function and transformed back before they leave the cache. Passes over
voxels that are known to be zero, or that nobody asks for, are skipped. Any other device goes through
torch. Both give the same numbers to rounding.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import scipy.fft
import torch
from torch import Tensor

Shape = tuple[int, int, int]

SLAB = 4
"""Planes or rows per slab: few enough for the cache, enough to hide Python (measured 1 to 16)."""


def fast_shape(shape: Shape) -> Shape:
    """Return the next FFT-friendly size on each axis: products of 2, 3 and 5."""
    z, y, x = (scipy.fft.next_fast_len(n, real=True) for n in shape)
    return z, y, x


def frequencies(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return frequencies in cycles per voxel on the half spectrum of `shape`, broadcastable, float64.

    From `fftfreq`, so that the zero frequency is exact for even and odd sizes alike.
    """
    z, y, x = shape
    return (
        torch.fft.fftfreq(z, dtype=torch.float64)[:, None, None],
        torch.fft.fftfreq(y, dtype=torch.float64)[None, :, None],
        torch.fft.rfftfreq(x, dtype=torch.float64)[None, None, :],
    )


def transfer_function(kernel: Tensor, grid: Shape, origin: Shape) -> Tensor:
    """Return the half spectrum of `kernel` on `grid` with the kernel's index `origin` put at zero.

    Parameters
    ----------
    kernel : (z, y, x), no larger than `grid`
    origin : may lie outside the kernel; indices are taken modulo `grid`

    Returns
    -------
    (z, y, x // 2 + 1) complex tensor, of the kernel's precision and device
    """
    padded = torch.zeros(grid, dtype=kernel.dtype, device=kernel.device)
    padded[tuple(slice(n) for n in kernel.shape)] = kernel
    centred: Tensor = torch.roll(padded, [-o for o in origin], dims=(0, 1, 2))
    spectrum: Tensor = torch.fft.rfftn(centred)
    return spectrum


def filtered(
    volume: Tensor, transfer: Tensor, grid: Shape, out_shape: Shape, *, conjugate: bool = False
) -> Tensor:
    """Return the first `out_shape` voxels of `volume`, zero-padded to `grid`, filtered.

    Parameters
    ----------
    volume : (z, y, x), no larger than `grid`, float32 or float64
    transfer : half spectrum of `grid`, on the volume's device
    conjugate : filter by the complex conjugate of `transfer`: correlation, not convolution
    """
    if volume.device.type != "cpu":
        spectrum = torch.fft.rfftn(volume, s=grid)
        spectrum *= transfer.conj() if conjugate else transfer
        z, y, x = out_shape
        whole: Tensor = torch.fft.irfftn(spectrum, s=grid)
        return whole[:z, :y, :x]
    out = np.empty(out_shape, dtype=volume.numpy().dtype)
    _filter_in_slabs(volume.numpy(), transfer.numpy(), grid, out, conjugate)
    return torch.from_numpy(out)


def _filter_in_slabs(
    volume: np.ndarray, transfer: np.ndarray, grid: Shape, out: np.ndarray, conjugate: bool
) -> None:
    depth, height, width = grid
    nz, ny, nx = out.shape
    mz = volume.shape[0]
    spectrum = np.empty(transfer.shape, dtype=transfer.dtype)

    def to_spectrum(planes: slice) -> None:
        rows = scipy.fft.rfft(volume[planes], n=width, axis=2)
        spectrum[planes] = scipy.fft.fft(rows, n=height, axis=1, overwrite_x=True)

    def times_transfer(rows: slice) -> None:
        columns = scipy.fft.fft(spectrum[:mz, rows], n=depth, axis=0)
        columns *= transfer[:, rows].conj() if conjugate else transfer[:, rows]
        spectrum[:nz, rows] = scipy.fft.ifft(columns, axis=0, overwrite_x=True)[:nz]

    def to_volume(planes: slice) -> None:
        rows = scipy.fft.ifft(spectrum[planes], axis=1)[:, :ny]
        out[planes] = scipy.fft.irfft(rows, n=width, axis=2, overwrite_x=True)[:, :, :nx]

    _in_parallel(to_spectrum, mz)
    _in_parallel(times_transfer, height)
    _in_parallel(to_volume, nz)


def _in_parallel(work: Callable[[slice], None], length: int) -> None:
    """Run `work` on slabs of 0..length, in torch's number of threads."""
    threads = min(torch.get_num_threads(), -(-length // SLAB))
    bounds = np.linspace(0, length, threads + 1).astype(int)

    def share(i: int) -> None:
        for start in range(bounds[i], bounds[i + 1], SLAB):
            work(slice(start, min(start + SLAB, bounds[i + 1])))

    if threads <= 1:
        share(0)
    else:
        list(_pool().map(share, range(threads)))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pellucid-fft")
