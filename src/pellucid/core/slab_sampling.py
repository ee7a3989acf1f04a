"""What the voxels of a view hold of an object on finer voxels, at any angle, nothing left out.

A view is often coarser than the object in one direction: planes a micrometre apart, pixels of a sixth
of that. Sampling the object at the centres of such voxels would see every sixth plane of it. Here the
light between two planes is shared linearly between them, which is the same as reading the PSF between
its recorded planes by linear interpolation.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.field_resampling import FieldResample
from pellucid.core.fourier import Shape
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.operators import LinearOperator
from pellucid.core.resampling import Resample
from pellucid.core.transform_field import TransformField

ALIGNED = 1e-6
"""Fraction of a voxel within which grids are taken to be aligned."""


MOST_SLIDE = 0.25
"""Object voxels by which planes may slide against the next and still count as standing upright."""


class SlabSample(LinearOperator):
    """Mean of an object around the voxel centres of a view, over triangles as wide as its voxels.

    Along view axes whose planes are `n` object voxels apart (rounded; 1 where the view is the finer)
    the object is sampled at 2 n - 1 places with the weights of a triangle, along the normal of the
    planes: also right for a sheared grid, whose axis is not the normal. A flat object gives the same
    flat image whatever the voxel sizes: values are densities.

    Parameters
    ----------
    world : grid of the object
    view : grid of the image, in the frame that `world_to_view` reaches
    world_to_view : maps micrometres of `world.frame` to micrometres of `view.frame`
    field : the same, where it varies: samples are taken through its inverse, and how many and with
        what weights is that of `world_to_view`
    """

    def __init__(
        self, world: Grid, view: Grid, world_to_view: Affine, field: TransformField | None = None
    ) -> None:
        self.world, self.view, self.world_to_view, self.field = world, view, world_to_view, field
        back = None if field is None else field.inverse(view)
        self.domain_shape, self.range_shape = world.shape, view.shape
        counts = _samples_per_voxel(world, view, world_to_view)
        self._sample: LinearOperator
        if _slide_voxels(world, view, world_to_view, counts) > MOST_SLIDE:
            self._sample = _WeightedSum(
                [
                    (weight, _sampling(world, view, shift_um, world_to_view, back))
                    for shift_um, weight in _triangle(view, world_to_view, counts)
                ]
            )
        else:
            z, y, x = counts.tolist()
            pool = TrianglePool(view.shape, (z, y, x))
            fine = pool.fine_grid(view)
            self._sample = pool @ _sampling(world, fine, np.zeros(3), world_to_view, back)

    def __repr__(self) -> str:
        return f"SlabSample({self.world!r}, {self.view!r}, {self.world_to_view!r})"

    def forward(self, x: Tensor) -> Tensor:
        return self._sample.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._sample.adjoint(y)


class TrianglePool(LinearOperator):
    """Means over triangles as wide as coarse voxels: from `counts` times finer voxels, on each axis.

    Fine voxel n - 1 + i n lies at the centre of coarse voxel i.
    """

    def __init__(self, shape: Shape, counts: Shape) -> None:
        self.counts, self.range_shape = counts, shape
        z, y, x = (m * n + n - 1 for m, n in zip(shape, counts, strict=True))
        self.domain_shape = (z, y, x)

    def fine_grid(self, grid: Grid) -> Grid:
        """Return where the fine voxels are when the coarse ones are at `grid`."""
        counts = np.asarray(self.counts)
        origin = grid.index_to_um.apply((1 - counts) / counts)
        spacing = np.asarray(grid.spacing_um) / counts
        return Grid(
            self.domain_shape,
            as_triple(spacing, "spacing"),
            as_triple(origin, "origin"),
            grid.frame,
        )

    def forward(self, x: Tensor) -> Tensor:
        for axis, (n, size) in enumerate(zip(self.counts, self.range_shape, strict=True)):
            if n > 1:
                terms = [x[_every(axis, k, n, size)] * w for k, w in _weights(n)]
                x = sum(terms[1:], start=terms[0])
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for axis, (n, size) in enumerate(zip(self.counts, self.range_shape, strict=True)):
            if n > 1:
                shape = [self.domain_shape[a] if a == axis else m for a, m in enumerate(y.shape)]
                fine = y.new_zeros(shape)
                for k, weight in _weights(n):
                    fine[_every(axis, k, n, size)].add_(y, alpha=weight)
                y = fine
        return y


class _WeightedSum(LinearOperator):
    """sum of weight * operator."""

    def __init__(self, parts: list[tuple[float, LinearOperator]]) -> None:
        self.parts = parts
        self.domain_shape, self.range_shape = parts[0][1].domain_shape, parts[0][1].range_shape

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(self.range_shape)
        for weight, operator in self.parts:
            y.add_(operator.forward(x), alpha=weight)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(self.domain_shape)
        for weight, operator in self.parts:
            x.add_(operator.adjoint(y), alpha=weight)
        return x


class StridedSample(LinearOperator):
    """Every `steps`-th voxel from `offset` on, zero outside: sampling where voxels meet voxels.

    What `Resample` gives between grids that are aligned, in a hundredth of its time.
    """

    def __init__(self, domain: Shape, range_shape: Shape, steps: Shape, offset: Shape) -> None:
        self.domain_shape, self.range_shape = domain, range_shape
        source, target = [], []
        for size, n, step, start in zip(domain, range_shape, steps, offset, strict=True):
            first = max(0, -(start // step))
            last = min(n, (size - 1 - start) // step + 1)
            target.append(slice(first, max(first, last)))
            begin = start + first * step
            source.append(slice(begin, begin + max(last - first, 0) * step, step))
        self._source, self._target = tuple(source), tuple(target)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(self.range_shape)
        y[self._target] = x[self._source]
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(self.domain_shape)
        x[self._source] = y[self._target]
        return x


def sampling_variance_px(world: Grid, view: Grid, world_to_view: Affine) -> NDArray[np.float64]:
    """Return the variance, in voxels^2 of the view (z, y, x), by which `SlabSample` blurs.

    A triangle n voxels wide on either side has (n^2 - 1) / 6; linear interpolation at a part p
    of an object voxel has p (1 - p), on average over all places 1 / 6.
    """
    distances = plane_distances_um(np.asarray(view.spacing_um), world_to_view)
    counts = _samples_per_voxel(world, view, world_to_view)
    voxels = distances / counts  # of the samples, um
    variance = voxels**2 * (counts**2 - 1) / 6
    index_map = (world.um_to_index @ world_to_view.inverse() @ view.index_to_um).matrix[:3]
    whole = np.abs(index_map[:, :3] - np.rint(index_map[:, :3])).max(1) < ALIGNED
    part = index_map[:, 3] % 1
    between = np.where(whole, part * (1 - part), 1 / 6)  # object voxels^2, on each of its axes
    variance += _normals(world_to_view) ** 2 @ (between * np.asarray(world.spacing_um) ** 2)
    seen: NDArray[np.float64] = variance / distances**2
    return seen


def plane_distances_um(
    spacing_um: NDArray[np.float64], world_to_view: Affine
) -> NDArray[np.float64]:
    """Return how far apart neighbouring planes z, y, x of a view lie in the world, (3,)."""
    distances: NDArray[np.float64] = spacing_um / np.linalg.norm(world_to_view.linear, axis=1)
    return distances


def _sampling(
    world: Grid,
    view: Grid,
    shift_um: NDArray[np.float64],
    world_to_view: Affine,
    back: TransformField | None,
) -> LinearOperator:
    """Return the cheapest exact sampling of the object at the voxels of the view, shifted.

    `back`, where it is given, leads from the view to the world in place of the affine map.
    """
    shift = Affine.translation(shift_um, source=world.frame, target=world.frame)
    if back is not None:
        return FieldResample(world, view, back.followed_by(shift))
    view_to_world = shift @ world_to_view.inverse()
    index_map = (world.um_to_index @ view_to_world @ view.index_to_um).matrix
    whole = np.rint(index_map)
    steps, offset = np.diag(whole)[:3].astype(int).tolist(), whole[:3, 3].astype(int).tolist()
    aligned = np.array_equal(whole[:3, :3], np.diag(steps)) and min(steps) > 0
    # the last voxel of a view a thousand voxels long is then off by a thousandth at most
    if aligned and np.abs(index_map - whole).max() < ALIGNED:
        return StridedSample(world.shape, view.shape, tuple(steps), tuple(offset))
    return Resample(world, view, view_to_world)


def _triangle(
    view: Grid, world_to_view: Affine, counts: NDArray[np.int64]
) -> list[tuple[NDArray[np.float64], float]]:
    """Return the offsets (um, in the world) at which a voxel is sampled, and their weights."""
    distances = plane_distances_um(np.asarray(view.spacing_um), world_to_view)
    along_axes = [
        [(normal * distance * (k + 1 - n) / n, weight) for k, weight in _weights(n)]
        for normal, distance, n in zip(
            _normals(world_to_view), distances, counts.tolist(), strict=True
        )
    ]
    return [(z[0] + y[0] + x[0], z[1] * y[1] * x[1]) for z, y, x in product(*along_axes)]


def _weights(n: int) -> list[tuple[int, float]]:
    """Return the 2 n - 1 weights of a triangle with sum 1, numbered from 0."""
    return [(k, (1 - abs(k + 1 - n) / n) / n) for k in range(2 * n - 1)]


def _every(axis: int, start: int, step: int, size: int) -> tuple[slice, ...]:
    taken = slice(start, start + (size - 1) * step + 1, step)
    return tuple(taken if a == axis else slice(None) for a in range(3))


def _slide_voxels(
    world: Grid, view: Grid, world_to_view: Affine, counts: NDArray[np.int64]
) -> float:
    """Return how far sampled planes slide sideways against their neighbours, in object voxels."""
    steps = np.linalg.inv(world_to_view.linear).T * np.asarray(view.spacing_um)[:, None]
    distances = plane_distances_um(np.asarray(view.spacing_um), world_to_view)
    slides = steps - _normals(world_to_view) * distances[:, None]
    return float((np.linalg.norm(slides / world.spacing_um, axis=1) * (counts > 1)).max())


def _samples_per_voxel(world: Grid, view: Grid, world_to_view: Affine) -> NDArray[np.int64]:
    """Return how many object voxels lie between neighbouring planes of the view, 1 at least."""
    distances = plane_distances_um(np.asarray(view.spacing_um), world_to_view)
    voxels = 1 / np.linalg.norm(_normals(world_to_view) / world.spacing_um, axis=1)
    counts = np.maximum(np.rint(distances / voxels), 1).astype(np.int64)
    several: NDArray[np.int64] = np.where(np.asarray(view.shape) > 1, counts, 1)
    return several


def _normals(world_to_view: Affine) -> NDArray[np.float64]:
    """Return unit normals of the view's planes z, y, x in the world, (3, 3)."""
    # row d of the linear part is the gradient of view coordinate d
    gradients = world_to_view.linear
    normals: NDArray[np.float64] = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return normals
