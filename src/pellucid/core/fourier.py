"""Convolution on FFT grids: the one place that knows which FFT runs on which device.

A CPU tensor goes through SciPy's FFT (BSD; about twice as fast as torch's on processors without MKL
tuning) in slabs that stay in cache: planes are transformed along x and y, then every few rows along z,
multiplied by the transfer function and transformed back before they leave the cache. Passes over
voxels that are known to be zero, or that nobody asks for, are skipped. Any other device goes through
torch. Both give the same numbers to rounding.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]
Finish = Callable[[slice, Tensor], None]
"""What is done to planes of a result while they are in cache: finish(planes, values); may be called
from several threads at once, for different planes; the values may be overwritten, not kept."""

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


def rfftn(volume: Tensor, shape: Shape) -> Tensor:
    """Return the half spectrum of `volume`, zero-padded to `shape`."""
    if volume.device.type == "cpu":
        return torch.from_numpy(scipy.fft.rfftn(volume.numpy(), s=shape))
    spectrum: Tensor = torch.fft.rfftn(volume, s=shape)
    return spectrum


def irfftn(spectrum: Tensor, shape: Shape) -> Tensor:
    """Return the real volume of `shape` that has this half spectrum."""
    if spectrum.device.type == "cpu":
        return torch.from_numpy(scipy.fft.irfftn(spectrum.resolve_conj().numpy(), s=shape))
    volume: Tensor = torch.fft.irfftn(spectrum, s=shape)
    return volume


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
    if kernel.device.type == "cpu":
        return torch.from_numpy(_transfer_in_slabs(kernel.numpy(), grid, origin))
    padded = torch.zeros(grid, dtype=kernel.dtype, device=kernel.device)
    padded[tuple(slice(n) for n in kernel.shape)] = kernel
    centred: Tensor = torch.roll(padded, [-o for o in origin], dims=(0, 1, 2))
    spectrum: Tensor = torch.fft.rfftn(centred)
    return spectrum


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an uninitialised tensor of `like`'s dtype and device.

    On the CPU through NumPy, which asks for huge pages: torch's come 4 kB at a time, and fetching
    them costs as much as a pass over the volume.
    """
    if like.device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype=like.numpy().dtype))
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def filtered(
    volume: Tensor,
    transfer: Tensor,
    grid: Shape,
    out_shape: Shape,
    *,
    conjugate: bool = False,
    gain: Tensor | None = None,
) -> Tensor:
    """Return the first `out_shape` voxels of `volume`, zero-padded to `grid`, filtered.

    Parameters
    ----------
    volume : (z, y, x), no larger than `grid`, float32 or float64
    transfer : half spectrum of `grid`, on the volume's device; may be real
    conjugate : filter by the complex conjugate of `transfer`: correlation, not convolution
    gain : real half spectrum by which to multiply as well; half the memory of a second transfer
    """
    out = empty(out_shape, volume)

    def keep(planes: slice, values: Tensor) -> None:
        out[planes] = values

    filter_slabs(volume, transfer, grid, out_shape, keep, conjugate=conjugate, gain=gain)
    return out


def filter_slabs(
    volume: Tensor,
    transfer: Tensor,
    grid: Shape,
    out_shape: Shape,
    finish: Finish,
    *,
    conjugate: bool = False,
    gain: Tensor | None = None,
) -> None:
    """Filter as `filtered` does, and hand the result to `finish` a few planes at a time.

    What would be a pass over a volume of its own happens while its planes are in cache, and the
    result need not be stored. A device other than the CPU hands over all planes at once.
    """
    if volume.device.type == "cpu":
        factors = (transfer.numpy(), None if gain is None else gain.numpy())
        _filter_on_cpu(volume.numpy(), factors, grid, out_shape, finish, conjugate)
        return
    spectrum = torch.fft.rfftn(volume, s=grid)
    spectrum *= transfer.conj() if conjugate else transfer
    if gain is not None:
        spectrum *= gain
    z, y, x = out_shape
    finish(slice(0, z), torch.fft.irfftn(spectrum, s=grid)[:z, :y, :x])


def _filter_on_cpu(
    volume: NDArray[np.floating],
    factors: tuple[NDArray[np.inexact], NDArray[np.floating] | None],
    grid: Shape,
    out_shape: Shape,
    finish: Finish,
    conjugate: bool,
) -> None:
    transfer, gain = factors
    depth, height, width = grid
    nz, ny, nx = out_shape
    mz, my, _ = volume.shape
    half = width // 2 + 1
    dtype = np.result_type(transfer.dtype, np.complex64)
    spectrum = np.empty((max(mz, nz), height, half), dtype=dtype)
    # every slab is transformed in place, and a thread keeps its columns: temporaries of a megabyte
    # go back to the system when freed, and fetching their pages again costs as much as the transform
    own = threading.local()

    def to_spectrum(planes: slice) -> None:
        part = spectrum[planes]
        part[:, :my] = scipy.fft.rfft(volume[planes], n=width, axis=2)
        part[:, my:] = 0
        part[...] = scipy.fft.fft(part, axis=1, overwrite_x=True)

    def times_transfer(rows: slice) -> None:
        if not hasattr(own, "columns"):
            own.columns = np.empty((depth, SLAB, half), dtype=dtype)
        columns = own.columns[:, : rows.stop - rows.start]
        columns[:mz] = spectrum[:mz, rows]
        columns[mz:] = 0
        columns = scipy.fft.fft(columns, axis=0, overwrite_x=True)
        columns *= transfer[:, rows].conj() if conjugate else transfer[:, rows]
        if gain is not None:
            columns *= gain[:, rows]
        spectrum[:nz, rows] = scipy.fft.ifft(columns, axis=0, overwrite_x=True)[:nz]

    def to_volume(planes: slice) -> None:
        rows = scipy.fft.ifft(spectrum[planes], axis=1, overwrite_x=True)[:, :ny]
        values = scipy.fft.irfft(rows, n=width, axis=2, overwrite_x=True)[:, :, :nx]
        finish(planes, torch.from_numpy(values))

    in_parallel(to_spectrum, mz)
    in_parallel(times_transfer, height)
    in_parallel(to_volume, nz)


def _transfer_in_slabs(
    kernel: NDArray[np.floating], grid: Shape, origin: Shape
) -> NDArray[np.complexfloating]:
    """Return the half spectrum of a kernel that fills few of the grid's planes and rows."""
    depth, height, width = grid
    z, y, x = (
        (np.arange(n) - o) % size for n, o, size in zip(kernel.shape, origin, grid, strict=True)
    )
    dtype = np.result_type(kernel.dtype, np.complex64)
    spectrum = np.zeros((depth, height, width // 2 + 1), dtype=dtype)
    lines = np.zeros((len(y), width), dtype=kernel.dtype)

    def columns(rows: slice) -> None:
        spectrum[:, rows] = scipy.fft.fft(spectrum[:, rows], axis=0)

    for place, plane in zip(z, kernel, strict=True):
        lines[:, x] = plane
        spectrum[place, y] = scipy.fft.rfft(lines, axis=1)
        spectrum[place] = scipy.fft.fft(spectrum[place], axis=0, overwrite_x=True)
    in_parallel(columns, height)
    return spectrum


def in_parallel(work: Callable[[slice], None], length: int) -> None:
    """Run `work` on slabs of 0..length, in torch's number of threads."""
    threads = min(torch.get_num_threads(), -(-length // SLAB))
    bounds = np.linspace(0, length, threads + 1).astype(int)

    def share(i: int) -> None:
        for start in range(bounds[i], bounds[i + 1], SLAB):
            work(slice(start, min(start + SLAB, bounds[i + 1])))

    if threads <= 1:
        share(0)
    else:
        list(_pool(torch.get_num_threads()).map(share, range(threads)))


_making_a_pool = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _making_a_pool:
        return _new_pool(threads)


@cache
def _new_pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that each compute alone: torch would split a slab among threads of its own."""
    all_here = threading.Barrier(threads)

    def alone() -> None:
        torch.get_num_threads()  # torch sets this thread up at its first call, and would undo ours
        torch.set_num_threads(1)

    def wait(_: int) -> None:
        all_here.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="pellucid-fft", initializer=alone)
    list(pool.map(wait, range(threads)))
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    # the threads do not come along into a forked process: waiting for them would never end
    os.register_at_fork(after_in_child=_new_pool.cache_clear)
