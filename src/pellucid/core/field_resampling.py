"""Resampling through a field of transforms: one more linear operator, with its exact adjoint."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.geometry import Affine, Grid
from pellucid.core.resampling import Box, Resample
from pellucid.core.transform_field import TransformField

EVERY = 8
"""Voxels between the places at which the displacement within a block is looked at for its extremes."""


class FieldResample(Resample):
    """Trilinear sampling of images on `source` where a field takes the voxel centres of `target`.

    Parameters
    ----------
    source, target : the grids that `forward` reads and writes
    field : from micrometres of `target.frame` to micrometres of `source.frame`
    """

    def __init__(self, source: Grid, target: Grid, field: TransformField) -> None:
        super().__init__(source, target, field.affine)
        self.field = field
        self._weights = field.weights(target)
        # a displacement, um, as voxels of the source
        self._to_voxels = source.um_to_index.linear @ field.affine.linear
        # between two places that are looked at, the displacement changes by no more
        apart_um = EVERY / 2 * float(np.linalg.norm(target.spacing_um))
        largest = float(np.linalg.norm(self._to_voxels, ord=2))
        self._margin = np.ceil(1.5 * field.steepest * apart_um * largest)

    def __repr__(self) -> str:
        return f"FieldResample({self.source!r}, {self.target!r}, {self.field!r})"

    def _blocks(self) -> Iterator[tuple[Box, Box]]:
        for block in self._target_blocks():
            corners = np.array([(s.start, s.stop - 1) for s in block], dtype=np.float64)
            reached = self._apply(np.stack(np.meshgrid(*corners, indexing="ij"), -1).reshape(-1, 3))
            moved = self._extremes(block)
            box = self._source_box(reached.min(0) + moved[0], reached.max(0) + moved[1])
            if box is not None:
                yield block, box

    def _extremes(self, block: Box) -> NDArray[np.float64]:
        """Return the least and the largest displacement in a block, (2, 3) voxels of the source."""
        rows = [
            weights[np.unique(np.append(np.arange(part.start, part.stop, EVERY), part.stop - 1))]
            for weights, part in zip(self._weights, block, strict=True)
        ]
        moved = np.einsum(
            "ai,bj,ck,ijkd->abcd", *rows, self.field.coefficients_um, optimize=True
        ).reshape(-1, 3) @ self._to_voxels.T
        return np.stack([moved.min(0) - self._margin, moved.max(0) + self._margin])

    def _places(self, block: Box, box: Box, like: Tensor) -> Tensor:
        places = super()._places(block, box, like)
        size = np.array([s.stop - s.start for s in box])
        coefficients = self.field.coefficients_um @ (self._to_voxels * (2 / size)[:, None]).T
        # grid_sample counts x, y, z
        spline = torch.from_numpy(coefficients[..., ::-1].copy()).to(like)
        rows = [
            torch.from_numpy(weights[part]).to(like)
            for weights, part in zip(self._weights, block, strict=True)
        ]
        for matrix in rows:
            # the axis in front is expanded and goes behind the others: z, y, x, then d is in front
            spline = torch.tensordot(spline, matrix, dims=([0], [1]))
        places[0] += spline.permute(1, 2, 3, 0)
        return places


def sampled(
    source: Grid, target: Grid, target_to_source: Affine, field: TransformField | None
) -> Resample:
    """Return the sampling of `source` at the voxels of `target`, through the field where there is one."""
    if field is None:
        return Resample(source, target, target_to_source)
    return FieldResample(source, target, field)
