"""Resampling: a volume on one grid, seen at the voxel centres of another.

Interpolation is trilinear, and outside the source everything is zero (a point less than one voxel
outside still sees the border voxel fade). Work goes in blocks of the target, each reading only the
box of the source that it needs: memory stays bounded, and coordinates stay small enough for float32
to hold them to 1e-5 voxel however large the volume is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from pellucid.core.geometry import Affine, Grid
from pellucid.core.operators import LinearOperator
from pellucid.errors import FrameError, InputError

BLOCK = (64, 128, 128)
"""Target voxels per block: 16 MB of coordinates in float32, and a source box that fits a cache."""

Box = tuple[slice, slice, slice]


class Resample(LinearOperator):
    """Trilinear sampling of images on `source` at the voxel centres of `target`, zero outside.

    Parameters
    ----------
    source, target : the grids that `forward` reads and writes
    target_to_source : maps micrometres of `target.frame` to micrometres of `source.frame`

    Raises
    ------
    FrameError
        when `target_to_source` does not lead from the target's frame to the source's

    Notes
    -----
    No smoothing comes before: to sample on coarser voxels, blur first.
    """

    def __init__(self, source: Grid, target: Grid, target_to_source: Affine) -> None:
        frames = (target_to_source.source, target_to_source.target)
        if frames != (target.frame, source.frame):
            raise FrameError(
                f"Resample: expected target_to_source to lead from the target's frame "
                f"{target.frame!r} to the source's {source.frame!r}, got {frames[0]!r} -> "
                f"{frames[1]!r}. Invert it if it points the other way."
            )
        self.source, self.target, self.target_to_source = source, target, target_to_source
        self.domain_shape, self.range_shape = source.shape, target.shape
        index_map = source.um_to_index @ target_to_source @ target.index_to_um
        self._index_map = index_map.matrix

    def __repr__(self) -> str:
        return f"Resample({self.source!r}, {self.target!r}, {self.target_to_source!r})"

    def forward(self, x: Tensor) -> Tensor:
        """Return the (z, y, x) image on the target grid of an image on the source grid."""
        self._check(x, self.domain_shape, "the source grid")
        y = x.new_zeros(self.range_shape)
        for block, box in self._blocks():
            places = self._places(block, box, x)
            y[block] = grid_sample(x[box][None, None], places, align_corners=False)[0, 0]
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the exact transpose: every target voxel given back to the eight it came from."""
        self._check(y, self.range_shape, "the target grid")
        x = y.new_zeros(self.domain_shape)
        for block, box in self._blocks():
            places = self._places(block, box, y)
            # the derivative of grid_sample by its image, without running grid_sample first
            given_back, _ = torch.ops.aten.grid_sampler_3d_backward(
                y[block][None, None], x[box][None, None], places, 0, 0, False, [True, False]
            )
            x[box] += given_back[0, 0]
        return x

    def _check(self, volume: Tensor, shape: tuple[int, ...], where: str) -> None:
        if tuple(volume.shape) != shape or not volume.is_floating_point():
            raise InputError(
                f"Resample: expected a floating-point volume of shape {shape} on {where}, got "
                f"{volume.dtype} of shape {tuple(volume.shape)}."
            )

    def _blocks(self) -> Iterator[tuple[Box, Box]]:
        """Yield every block of the target that sees the source, and the box of source it sees."""
        corners = np.array(list(np.ndindex(2, 2, 2)))
        for block in self._target_blocks():
            ends = np.array([(s.start, s.stop - 1) for s in block])
            reached = self._apply(np.where(corners, ends[:, 1], ends[:, 0]))
            box = self._source_box(reached.min(0), reached.max(0))
            if box is not None:
                yield block, box

    def _target_blocks(self) -> Iterator[Box]:
        counts = (-(-n // b) for n, b in zip(self.range_shape, BLOCK, strict=True))
        for start in np.ndindex(*counts):
            low = np.array(start) * BLOCK
            yield _box(low, np.minimum(low + BLOCK, self.range_shape))

    def _source_box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box | None:
        """Return the voxels of the source that places between `low` and `high` see; None: none."""
        first = np.maximum(np.floor(low).astype(np.int64) - 1, 0)
        last = np.minimum(np.ceil(high).astype(np.int64) + 2, self.domain_shape)
        return _box(first, last) if (first < last).all() else None

    def _apply(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = points @ self._index_map[:3, :3].T + self._index_map[:3, 3]
        return moved

    def _places(self, block: Box, box: Box, like: Tensor) -> Tensor:
        """Return where the block's voxels fall in the box, as grid_sample counts: xyz, -1 to 1."""
        start = np.array([s.start for s in block])
        size = np.array([s.stop - s.start for s in box])
        # voxel centre i of n is at (2 i + 1) / n - 1; the offset is exact because it is subtracted
        # in float64 before anything is rounded
        offset = self._apply(start) - [s.start for s in box]
        scale = self._index_map[:3, :3] * (2 / size)[:, None]
        offset = (2 * offset + 1) / size - 1
        along = [torch.arange(s.stop - s.start, dtype=torch.float64) for s in block]
        places = torch.empty((1, *(len(a) for a in along), 3), dtype=like.dtype, device=like.device)
        for axis in range(3):
            z, y, x = (a * w for a, w in zip(along, scale[axis].tolist(), strict=True))
            planes = (z[:, None] + y + offset[axis])[:, :, None].to(like)
            places[0, ..., 2 - axis] = planes + x.to(like)
        return places


def resample(image: Tensor, source: Grid, target: Grid, *, target_to_source: Affine) -> Tensor:
    """Return `image` sampled trilinearly at the voxel centres of `target`; zero outside.

    Parameters
    ----------
    image : (z, y, x) floating-point counts on `source`
    source, target : the grids of the image and of the result
    target_to_source : maps micrometres of `target.frame` to micrometres of `source.frame`

    Returns
    -------
    (z, y, x) tensor on `target`, of the image's precision and device

    Raises
    ------
    InputError
        when the image is not a floating-point volume on `source`
    FrameError
        when `target_to_source` does not lead from the target's frame to the source's

    Examples
    --------
    >>> grid = Grid((1, 1, 4), spacing_um=1.0)
    >>> half = Affine.translation((0, 0, 0.5))
    >>> resample(torch.tensor([[[0.0, 2.0, 4.0, 6.0]]]), grid, grid, target_to_source=half)
    tensor([[[1., 3., 5., 3.]]])
    """
    return Resample(source, target, target_to_source).forward(image)


def _box(low: NDArray[Any], high: NDArray[Any]) -> Box:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x
