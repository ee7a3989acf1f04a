"""The linear problem of one alignment step: how points change when a transform and a blur do.

Both images are linearised about the current transform, and the mean of the two is taken. Gain and
offset between the images, and where asked the difference of their blur, are unknowns of the same
system, which carries what noise adds to its sums.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.geometry import Affine, Grid, Triple
from pellucid.core.view_noise import NO_NOISE, ViewNoise, shared_noise

Matrix = NDArray[np.float64]

FEWEST_POINTS = 300
"""Below this many voxels in common, twelve parameters, gain and offset are not determined."""

GEOMETRY, SEEN, ONE, BLUR = slice(0, 12), 12, 13, slice(14, None)
"""Columns: linear part and shift row by row, the moving image, offset, entries of a covariance.

Each is stored contiguously, so that what holds columns has shape (columns, points).
"""

PAIRS = tuple((i, j) for i in range(3) for j in range(i, 3))


@dataclass(frozen=True)
class Level:
    """A view at one resolution: the image, where its voxels are, and the border not to be used.

    `border_um` is the width along z, y, x within which blur has mixed in what lies outside the
    view; `mask`, where given, is 1 on voxels that count.
    """

    image: Tensor
    grid: Grid
    border_um: Triple
    mask: Tensor | None = None
    noise: ViewNoise = NO_NOISE

    @cached_property
    def noise_between(self) -> ViewNoise:
        """The noise of values between voxels."""
        return self.noise.interpolated(self.grid)


@dataclass(frozen=True)
class Points:
    """Voxels of the fixed image: place relative to its centre (um), value, gradient per um.

    Places and gradients are (3, n), values (n,). `curvatures` (6, n), where the difference of blur
    is an unknown: what a unit of each entry of its covariance changes, the mean of both images.
    """

    places_um: Tensor
    values: Tensor
    gradients: Tensor
    grid: Grid
    noise: ViewNoise = NO_NOISE
    curvatures: Tensor | None = None

    def every(self, step: int) -> "Points":
        """Return every so many of the points, if enough are left."""
        if len(self.values) < 4 * step * FEWEST_POINTS:
            return self
        curvatures = None if self.curvatures is None else self.curvatures[:, ::step].contiguous()
        return replace(
            self,
            places_um=self.places_um[:, ::step].contiguous(),
            values=self.values[::step].contiguous(),
            gradients=self.gradients[:, ::step].contiguous(),
            curvatures=curvatures,
        )


def strongest_gradients(level: Level, most: int, share: float = 0.3) -> Points:
    """Return the voxels whose gradient is among the largest `share`, evenly thinned to `most`."""
    image, spacing = level.image, level.grid.spacing_um
    # every other voxel along each axis is enough where that leaves enough of them
    step = 2 if share * image.numel() > 2 ** sum(n > 1 for n in image.shape) * most else 1
    gradients = [_central_difference(image, axis, spacing[axis], step) for axis in range(3)]
    squared = gradients[0].square()
    squared.addcmul_(gradients[1], gradients[1]).addcmul_(gradients[2], gradients[2])
    squared *= inside(level)[::step, ::step, ::step]
    # a threshold from a sample of voxels is enough to choose voxels by
    sample = squared.ravel()[:: max(1, squared.numel() // 50_000)]
    sample = sample[sample > 0]
    if sample.numel() == 0:
        empty = image.new_zeros((3, 0))
        return Points(empty, image.new_zeros(0), empty, level.grid)
    threshold = sample.kthvalue(max(1, int((1 - share) * sample.numel()))).values
    index = torch.nonzero((squared > threshold).ravel())[:, 0]
    if index.numel() > most:
        index = index[torch.linspace(0, index.numel() - 1, most, device=index.device).long()]
    lattice = [step * i for i in torch.unravel_index(index, squared.shape)]
    places = torch.stack(
        [
            (i.to(image) - (n - 1) / 2) * s
            for i, n, s in zip(lattice, image.shape, spacing, strict=True)
        ]
    )
    chosen = torch.stack([g.ravel()[index] for g in gradients])
    return Points(places, image[tuple(lattice)], chosen, level.grid, level.noise)


@dataclass(frozen=True)
class Columns:
    """`values ~ matrix @ unknowns`, and what noise adds to the sums of its normal equations.

    `matrix` (columns, n) has GEOMETRY, SEEN, ONE and, where the points have curvatures, BLUR;
    `index` (n,) says which of the points they are.
    """

    matrix: Tensor
    values: Tensor
    index: Tensor
    noise_normal: Matrix
    noise_right: Matrix

    def normal(self) -> Matrix:
        """Return the sums of products of columns, noise included."""
        return _float64(self.matrix @ self.matrix.T)

    def noise_of_curvature(self) -> float:
        """Return the share of noise in the squares of the columns BLUR: that of the noisiest one."""
        total = _float64(self.matrix[BLUR].square().sum(1))
        noise = np.diag(self.noise_normal)[BLUR]
        return float((noise[total > 0] / total[total > 0]).max(initial=0.0))

    def right(self) -> Matrix:
        """Return the sums of columns times values, without what noise adds."""
        return _float64(self.matrix @ self.values) - self.noise_right


def columns_at(
    points: Points, moving: Level, current: Affine, centre: Matrix, scale_um: float
) -> Columns | None:
    """Return the columns over points that fall into the moving view; None when they are too few."""
    image, grid = moving.image, moving.grid
    to_index = grid.um_to_index @ current
    linear = image.new_tensor(to_index.linear)
    start = image.new_tensor(to_index.apply(centre))[:, None]
    places = torch.addmm(start, linear, points.places_um)
    border = np.asarray(moving.border_um) / grid.spacing_um
    low = image.new_tensor(border - 1e-3)[:, None]
    high = image.new_tensor(np.asarray(grid.shape) - 1 - border + 1e-3)[:, None]
    z, y, x = ((places >= low) & (places <= high)).unbind()
    use = z & y & x
    if moving.mask is not None:
        last = image.new_tensor(np.asarray(grid.shape) - 1)[:, None]
        nearest = torch.minimum(places.round().clamp_(min=0), last).long()
        use &= moving.mask[nearest.unbind()] > 0.5
    index = torch.nonzero(use)[:, 0]
    if index.numel() < FEWEST_POINTS:
        return None
    seen, slope = sample_with_gradient(image, places[:, index])
    value, slope_fixed = points.values[index], points.gradients[:, index]
    slope_moving = linear.T @ slope
    noise_moving = moving.noise_between
    noisy = points.noise.variance(value), noise_moving.variance(seen)
    # float32 sums of squares keep their digits only around the mean; the offset is free anyway
    seen, value = seen - seen.mean(), value - value.mean()
    # the ratio of spreads, not the slope of a fit: misalignment makes the slope too small
    spread = [
        max(float(v @ v) - float(n.sum()), 0.1 * float(v @ v), 1e-30)
        for v, n in zip((value, seen), noisy, strict=True)
    ]
    gain = (spread[0] / spread[1]) ** 0.5
    gradient = 0.5 * (slope_fixed + gain * slope_moving)
    lever = image.new_ones((4, index.numel()))
    lever[:3] = points.places_um[:, index] / scale_um
    size = BLUR.start + (0 if points.curvatures is None else len(PAIRS))
    matrix = image.new_empty((size, index.numel()))
    torch.mul(gradient[:, None], lever, out=matrix[GEOMETRY].view(3, 4, -1))
    matrix[SEEN], matrix[ONE] = seen, 1.0
    if points.curvatures is not None:
        matrix[BLUR] = points.curvatures[:, index]
    normal, right = np.zeros((size, size)), np.zeros(size)
    if points.noise.slope or points.noise.intercept or noise_moving.slope or noise_moving.intercept:
        turned = noise_moving.seen_through(current)
        views = _Noisy.of(points, points.noise, noisy[0], 1.0, slope_fixed)
        other = _Noisy.of(points, turned, noisy[1], gain, slope_moving)
        normal = views.of_changes(lever, size) + other.of_changes(lever, size)
        right = views.with_value(lever, size)
        normal[SEEN] = normal[:, SEEN] = other.with_value(lever, size)
        normal[SEEN, SEEN] = min(float(noisy[1].sum()), 0.9 * float(seen @ seen))
    return Columns(matrix, value, index, normal, right)


@dataclass(frozen=True)
class _Noisy:
    """The noise of one view at the points: what it adds to sums over them.

    `shared` (10, 10) is the covariance of the noise of a value, its gradient and its curvature
    (entries PAIRS), for a variance of one; `gain` scales the view to the fixed one. Gradients and
    curvatures are means of two views, so each view adds with half its weight.
    """

    shared: Matrix
    variance: float
    gain: float
    slope: float
    gradients: Tensor

    @classmethod
    def of(
        cls, points: Points, noise: ViewNoise, variance: Tensor, gain: float, gradients: Tensor
    ) -> "_Noisy":
        shared = shared_noise(noise.blur_um2, points.grid)
        return cls(shared, float(variance.mean()), gain, noise.slope, gradients)

    def of_changes(self, lever: Tensor, size: int) -> Matrix:
        """Return the sums of products of the columns GEOMETRY and BLUR, (size, size)."""
        half = (0.5 * self.gain) ** 2 * self.variance
        sums = np.zeros((size, size))
        sums[GEOMETRY, GEOMETRY] = half * np.kron(self.shared[1:4, 1:4], _float64(lever @ lever.T))
        if size > BLUR.start:
            sums[BLUR, BLUR] = half * lever.shape[1] * _of_unit_blur(self.shared)[4:, 4:]
        return sums

    def with_value(self, lever: Tensor, size: int) -> Matrix:
        """Return the sums of products of the columns GEOMETRY and BLUR with the view's values."""
        sums = np.zeros(size)
        # E[n dn] is half the gradient of the variance
        changes = (self.gradients @ lever.T).ravel()
        sums[GEOMETRY] = 0.25 * self.gain * self.slope * _float64(changes)
        if size > BLUR.start:
            curved = _of_unit_blur(self.shared)
            sums[BLUR] = 0.5 * self.gain * self.variance * lever.shape[1] * curved[0, 4:]
        return sums


def _of_unit_blur(shared: Matrix) -> Matrix:
    """Return the covariance with curvatures replaced by what a unit of covariance changes."""
    factor = np.ones(10)
    factor[4:] = [0.5 if i == j else 1.0 for i, j in PAIRS]
    return shared * np.outer(factor, factor)


def with_curvatures(points: Points, fixed: Level, moving: Level, fixed_to_moving: Affine) -> Points:
    """Return the points, with the curvatures that make the difference of blur an unknown."""
    linear = fixed_to_moving.linear

    def column(point_um: Matrix) -> Tensor:
        return points.places_um.new_tensor(point_um)[:, None]

    centre = fixed.grid.centre_um
    here = _curvatures(fixed, points.places_um + column(centre))
    places = points.places_um.new_tensor(linear) @ points.places_um
    there = _curvatures(moving, places + column(fixed_to_moving.apply(centre)))
    # of the moving image's curvatures, c(fixed) = A^T c(moving) A
    turn = [
        [linear[a, i] * linear[b, j] + (linear[b, i] * linear[a, j] if a != b else 0.0)
         for i, j in PAIRS] for a, b in PAIRS
    ]  # fmt: skip
    there = there.new_tensor(np.array(turn)).T @ there
    gain = _spread(fixed.image) / max(_spread(moving.image), 1e-30)
    factor = column(np.array([0.25 if i == j else 0.5 for i, j in PAIRS]))
    return replace(points, curvatures=(here + gain * there) * factor)


def _spread(image: Tensor) -> float:
    """Return one standard deviation of a sample of the voxels."""
    return float(image.ravel()[:: max(1, image.numel() // 50_000)].std())


def _curvatures(level: Level, places_um: Tensor) -> Tensor:
    """Return the second derivatives (6, n) at the voxels nearest to places (3, n), off the border."""
    grid = level.grid
    flat: Tensor | int = 0
    for place, origin, spacing, n in zip(
        places_um, grid.origin_um, grid.spacing_um, grid.shape, strict=True
    ):
        low, high = (1, n - 2) if n > 2 else (0, n - 1)
        flat = flat * n + ((place - origin) / spacing).round_().clamp_(low, high).long()
    assert isinstance(flat, Tensor)
    return torch.stack([second_difference(level.image, flat, i, j, grid) for i, j in PAIRS])


def sample_with_gradient(image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return trilinear values (n,) and gradients (3, n) per voxel at fractional indices (3, n).

    Every place must lie within the image. A singleton axis has no gradient.
    """
    sizes = image.new_tensor([max(n - 2, 0) for n in image.shape])[:, None]
    low = torch.minimum(places.floor().clamp_(min=0), sizes)
    fz, fy, fx = (places - low).unbind()
    iz, iy, ix = low.long().unbind()
    _, ny, nx = image.shape
    step_z, step_y, step_x = (
        s if n > 1 else 0 for s, n in zip((ny * nx, nx, 1), image.shape, strict=True)
    )
    base = (iz * ny + iy) * nx + ix
    flat = image.ravel()

    def edge(offset: int) -> tuple[Tensor, Tensor]:
        first = flat.index_select(0, base + offset)
        rise = flat.index_select(0, base + (offset + step_x)) - first
        return torch.addcmul(first, rise, fx), rise

    (v00, r00), (v01, r01) = edge(0), edge(step_y)
    (v10, r10), (v11, r11) = edge(step_z), edge(step_z + step_y)
    dy0, dy1 = v01 - v00, v11 - v10
    w0, w1 = torch.addcmul(v00, dy0, fy), torch.addcmul(v10, dy1, fy)
    s0, s1 = torch.lerp(r00, r01, fy), torch.lerp(r10, r11, fy)
    gz = w1 - w0
    gradient = torch.stack([gz, torch.lerp(dy0, dy1, fz), torch.lerp(s0, s1, fz)])
    return torch.addcmul(w0, gz, fz), gradient


def _float64(values: Tensor) -> Matrix:
    array: Matrix = values.double().cpu().numpy()
    return array


def _central_difference(image: Tensor, axis: int, spacing_um: float, step: int) -> Tensor:
    """Return the derivative per um at every `step`-th voxel along each axis.

    It is zero on the two border planes and along a singleton axis.
    """
    z, y, x = (slice(None, None, 1 if a == axis else step) for a in range(3))
    lines = image[z, y, x].movedim(axis, 0)
    slope = lines.new_zeros((-(-len(lines) // step), *lines.shape[1:]))
    above = lines[step + 1 :: step]
    below = lines[step - 1 :: step][: len(above)]
    torch.sub(above, below, out=slope[1 : 1 + len(above)]).div_(2 * spacing_um)
    return slope.movedim(0, axis)


def second_difference(image: Tensor, index: Tensor, i: int, j: int, grid: Grid) -> Tensor:
    """Return the second derivative along axes i and j (per um^2) at flat indices off the border."""
    flat = image.ravel()
    _, ny, nx = image.shape
    steps, sizes, spacing = (ny * nx, nx, 1), image.shape, grid.spacing_um
    if sizes[i] < 3 or sizes[j] < 3:
        return image.new_zeros(index.shape)
    a, b = steps[i], steps[j]

    def at(offset: int) -> Tensor:
        return flat.index_select(0, index + offset)

    if i == j:
        curve = at(a).add_(at(-a)).sub_(at(0), alpha=2)
    else:
        curve = at(a + b).sub_(at(a - b)).sub_(at(b - a)).add_(at(-a - b)).div_(4)
    return curve.div_(spacing[i] * spacing[j])


def inside(level: Level) -> Tensor:
    """Return where the border is far enough away, and the mask, if any, allows."""
    usable = torch.ones(level.image.shape, dtype=torch.bool, device=level.image.device)
    if level.mask is not None:
        usable &= level.mask > 0.5
    for axis, width in enumerate(border_planes(level)):
        n = level.image.shape[axis]
        usable.narrow(axis, 0, min(width, n)).fill_(False)
        usable.narrow(axis, max(0, n - width), min(width, n)).fill_(False)
    return usable


def border_planes(level: Level) -> list[int]:
    """Return how many planes at both ends of each axis are not to be used."""
    planes = []
    for n, border, spacing in zip(
        level.image.shape, level.border_um, level.grid.spacing_um, strict=True
    ):
        # the outermost planes have no central difference, unless there is nothing but such planes
        width = max(int(np.ceil(border / spacing - 1e-6)), 1 if n > 4 else 0)
        planes.append(width if n > 1 else 0)
    return planes
