"""Sums of weighted convolutions on one FFT grid: what a blur that varies costs, and no more.

The image sum_k h_k * (w_k x) needs one forward transform for each term and one inverse for all; its
transpose sum_k w_k (h_k* y) one forward and one inverse each. Where the weights vary with depth
alone, the transforms along y and x are shared as well: only those along z are done for each term.
A CPU tensor goes through SciPy's FFT in slabs that stay in cache, as in `pellucid.core.fourier`.
"""

import threading
from collections.abc import Sequence

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.fourier import SLAB, Finish, Shape, empty, in_parallel

Real = NDArray[np.floating]
Spectrum = NDArray[np.complexfloating]


def mix_slabs(
    volume: Tensor,
    weights: Sequence[Tensor],
    transfers: Sequence[Tensor],
    grid: Shape,
    out_shape: Shape,
    finish: Finish,
) -> None:
    """Hand the first `out_shape` voxels of sum_k h_k * (w_k volume) to `finish`, by planes.

    Parameters
    ----------
    volume : (z, y, x), no larger than `grid`
    weights : broadcastable to the volume, axes of one voxel where they do not vary
    transfers : half spectra of `grid`, one for each weight
    """
    if volume.device.type == "cpu":
        _Slabs(transfers, grid, depth_only(weights)).mix(
            volume.numpy(), [w.numpy() for w in weights], out_shape, finish
        )
        return
    total: Tensor | None = None
    for weight, transfer in zip(weights, transfers, strict=True):
        spectrum = torch.fft.rfftn(volume * weight, s=grid).mul_(transfer)
        total = spectrum if total is None else total.add_(spectrum)
    z, y, x = out_shape
    finish(slice(0, z), torch.fft.irfftn(total, s=grid)[:z, :y, :x])


def unmixed(
    volume: Tensor,
    weights: Sequence[Tensor],
    transfers: Sequence[Tensor],
    grid: Shape,
    out_shape: Shape,
    gain: Tensor | None = None,
) -> Tensor:
    """Return the first `out_shape` voxels of sum_k w_k (h_k correlated with `volume`).

    Parameters
    ----------
    weights : broadcastable to `out_shape`
    gain : real half spectrum that the volume is filtered by beforehand; None: not at all
    """
    if volume.device.type == "cpu":
        out = empty(out_shape, volume)
        _Slabs(transfers, grid, depth_only(weights)).unmix(
            volume.numpy(), [w.numpy() for w in weights], out.numpy(),
            None if gain is None else gain.numpy(),
        )  # fmt: skip
        return out
    spectrum = torch.fft.rfftn(volume, s=grid)
    if gain is not None:
        spectrum *= gain
    z, y, x = out_shape
    total = torch.zeros(out_shape, dtype=volume.dtype, device=volume.device)
    for weight, transfer in zip(weights, transfers, strict=True):
        total += weight * torch.fft.irfftn(spectrum * transfer.conj(), s=grid)[:z, :y, :x]
    return total


def depth_only(weights: Sequence[Tensor]) -> bool:
    """Say whether no weight varies along y or x, so that transforms along them are shared."""
    return all(tuple(w.shape[1:]) == (1, 1) for w in weights)


class _Slabs:
    """The transforms on the CPU: planes along x and y, rows along z, a few at a time."""

    def __init__(self, transfers: Sequence[Tensor], grid: Shape, shared: bool) -> None:
        self.transfers: list[Spectrum] = [t.numpy() for t in transfers]
        self.dtype = self.transfers[0].dtype
        self.grid, self.shared = grid, shared
        self.half = grid[2] // 2 + 1
        self.own = threading.local()

    def mix(self, volume: Real, weights: list[Real], out_shape: Shape, finish: Finish) -> None:
        depth, height, _ = self.grid
        mz, nz = len(volume), out_shape[0]
        planes = np.empty((max(mz, nz), height, self.half), dtype=self.dtype)
        if self.shared:
            self._to_planes(volume, planes)
            in_parallel(lambda rows: self._mix_columns(planes, rows, weights, mz, nz), height)
            self._to_volume(planes, out_shape, finish)
            return
        total = np.zeros((depth, height, self.half), dtype=self.dtype)
        for weight, transfer in zip(weights, self.transfers, strict=True):
            self._to_planes(volume, planes, weight)

            def add(rows: slice, transfer: Spectrum = transfer) -> None:
                columns = self._columns(planes, rows, mz)
                total[:, rows] += np.multiply(columns, transfer[:, rows], out=columns)

            in_parallel(add, height)

        def back(rows: slice) -> None:
            planes[:nz, rows] = scipy.fft.ifft(total[:, rows], axis=0, overwrite_x=True)[:nz]

        in_parallel(back, height)
        self._to_volume(planes, out_shape, finish)

    def unmix(self, volume: Real, weights: list[Real], out: Real, gain: Real | None) -> None:
        depth, height, _ = self.grid
        mz, nz = len(volume), len(out)
        planes = np.empty((max(mz, nz), height, self.half), dtype=self.dtype)
        self._to_planes(volume, planes)

        def keep(here: slice, values: Tensor) -> None:
            out[here] = values.numpy()

        if self.shared:
            in_parallel(
                lambda rows: self._unmix_columns(planes, rows, weights, gain, mz, nz), height
            )
            self._to_volume(planes, out.shape, keep)
            return
        total = np.empty((depth, height, self.half), dtype=self.dtype)

        def forward(rows: slice) -> None:
            total[:, rows] = self._columns(planes, rows, mz)
            if gain is not None:
                total[:, rows] *= gain[:, rows]

        in_parallel(forward, height)
        out[...] = 0
        for weight, transfer in zip(weights, self.transfers, strict=True):

            def back(rows: slice, transfer: Spectrum = transfer) -> None:
                columns = total[:, rows] * transfer[:, rows].conj()
                planes[:nz, rows] = scipy.fft.ifft(columns, axis=0, overwrite_x=True)[:nz]

            def add(here: slice, values: Tensor, weight: Real = weight) -> None:
                out[here] += values.numpy() * (weight[here] if len(weight) > 1 else weight)

            in_parallel(back, height)
            self._to_volume(planes, out.shape, add)

    def _mix_columns(
        self, planes: Spectrum, rows: slice, weights: list[Real], mz: int, nz: int
    ) -> None:
        total = np.zeros((self.grid[0], rows.stop - rows.start, self.half), dtype=self.dtype)
        for weight, transfer in zip(weights, self.transfers, strict=True):
            columns = self._columns(planes, rows, mz, weight)
            total += np.multiply(columns, transfer[:, rows], out=columns)
        planes[:nz, rows] = scipy.fft.ifft(total, axis=0, overwrite_x=True)[:nz]

    def _unmix_columns(
        self, planes: Spectrum, rows: slice, weights: list[Real], gain: Real | None,
        mz: int, nz: int,
    ) -> None:  # fmt: skip
        spectrum = self._columns(planes, rows, mz)
        if gain is not None:
            spectrum *= gain[:, rows]
        total = np.zeros((nz, *spectrum.shape[1:]), dtype=self.dtype)
        for weight, transfer in zip(weights, self.transfers, strict=True):
            columns = spectrum * transfer[:, rows].conj()
            total += weight * scipy.fft.ifft(columns, axis=0, overwrite_x=True)[:nz]
        planes[:nz, rows] = total

    def _columns(
        self, planes: Spectrum, rows: slice, mz: int, weight: Real | None = None
    ) -> Spectrum:
        """Return the transform along z of a few rows, in a buffer that the thread keeps."""
        if not hasattr(self.own, "buffer"):
            self.own.buffer = np.empty((self.grid[0], SLAB, self.half), dtype=self.dtype)
        columns = self.own.buffer[:, : rows.stop - rows.start]
        columns[:mz] = planes[:mz, rows] if weight is None else planes[:mz, rows] * weight
        columns[mz:] = 0
        return np.asarray(scipy.fft.fft(columns, axis=0, overwrite_x=True))

    def _to_planes(self, volume: Real, planes: Spectrum, weight: Real | None = None) -> None:
        height = volume.shape[1]

        def transform(here: slice) -> None:
            values = volume[here]
            if weight is not None:
                values = values * (weight[here] if len(weight) > 1 else weight)
            part = planes[here]
            part[:, :height] = scipy.fft.rfft(values, n=self.grid[2], axis=2)
            part[:, height:] = 0
            part[...] = scipy.fft.fft(part, axis=1, overwrite_x=True)

        in_parallel(transform, len(volume))

    def _to_volume(self, planes: Spectrum, out_shape: Sequence[int], finish: Finish) -> None:
        nz, ny, nx = out_shape

        def transform(here: slice) -> None:
            rows = scipy.fft.ifft(planes[here], axis=1, overwrite_x=True)[:, :ny]
            values = scipy.fft.irfft(rows, n=self.grid[2], axis=2, overwrite_x=True)[:, :, :nx]
            finish(here, torch.from_numpy(values))

        in_parallel(transform, nz)
