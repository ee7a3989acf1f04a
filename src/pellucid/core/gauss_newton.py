"""Second-order alignment of two images of one object on their strongest gradients.

Each step linearises both images about the current transform and takes the mean of the two gradients
(efficient second-order minimisation, Malis 2004; Benhimane and Malis 2004): the step is then right
to second order without second derivatives. Gain and offset between the images are unknowns of the
same linear system, so the fit does not see contrast or background.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.geometry import Affine, Grid, Triple
from pellucid.core.view_noise import NO_NOISE, ViewNoise

Model = Literal["translation", "rigid", "similarity", "affine"]
Matrix = NDArray[np.float64]

FEWEST_POINTS = 300
"""Below this many voxels in common, twelve parameters, gain and offset are not determined."""

LONGEST_STEP = 4.0
"""Voxels: the images' linear range is about one blur width, so that longer steps are guesses."""


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


@dataclass(frozen=True)
class Points:
    """Voxels of the fixed image: place relative to its centre (um), value, gradient per um."""

    places_um: Tensor
    values: Tensor
    gradients: Tensor
    noise: ViewNoise = NO_NOISE


@dataclass(frozen=True)
class Fit:
    """Where an alignment ended: the transform, how well it explains the data, and how it got there.

    `settled` says whether the last step was below the tolerance.
    """

    fixed_to_moving: Affine
    ncc: float
    ncc_start: float
    points: int
    iterations: int
    settled: bool


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
        empty = image.new_zeros((0, 3))
        return Points(empty, image.new_zeros(0), empty)
    threshold = sample.kthvalue(max(1, int((1 - share) * sample.numel()))).values
    index = torch.nonzero((squared > threshold).ravel())[:, 0]
    if index.numel() > most:
        index = index[torch.linspace(0, index.numel() - 1, most, device=index.device).long()]
    lattice = step * torch.stack(torch.unravel_index(index, squared.shape), dim=1)
    middle = (np.asarray(image.shape) - 1) / 2
    places = (lattice.to(image) - image.new_tensor(middle)) * image.new_tensor(spacing)
    chosen = torch.stack([g.ravel()[index] for g in gradients], dim=1)
    return Points(places, image[lattice.unbind(1)], chosen, level.noise)


def align(
    fixed: Level,
    moving: Level,
    start: Affine,
    model: Model,
    *,
    points: Points,
    iterations: int = 20,
    tolerance: float = 0.005,
) -> Fit:
    """Return the transform near `start` that best explains the fixed points by the moving image.

    Parameters
    ----------
    start : fixed to moving, micrometres
    points : of `fixed`, from `strongest_gradients`
    tolerance : stop when no corner moves by more than this share of the fixed level's finest voxel
    """
    centre, scale_um = fixed.grid.centre_um, _half_um(fixed.grid)
    corners = fixed.grid.corners_um() - centre
    voxel_um = min(s for s, n in zip(fixed.grid.spacing_um, fixed.grid.shape, strict=True) if n > 1)
    flat = np.array(fixed.grid.shape) == 1
    basis = _basis(model, scale_um, flat)
    current, best, ncc_start = start, Fit(start, -1.0, -1.0, 0, 0, False), -1.0
    for iteration in range(1, iterations + 1):
        system = _linearise(points, moving, current, centre, scale_um)
        if system is None:
            break
        ncc_start = system.ncc if iteration == 1 else ncc_start
        if system.ncc > best.ncc:
            best = Fit(current, system.ncc, ncc_start, system.count, iteration, False)
        linear, shift = _solve(system, basis, scale_um)
        step = float(np.abs(corners @ linear.T + shift).max()) / voxel_um
        shorten = min(1.0, LONGEST_STEP / max(step, 1e-12))
        update = Affine.from_linear(
            _on_model(np.eye(3) + shorten * linear, model, flat),
            centre_um=centre,
            translation_um=shorten * shift,
            source=start.source,
            target=start.source,
        )
        if step < tolerance:
            return Fit(current @ update, best.ncc, ncc_start, system.count, iteration, True)
        current = current @ update
    return best


@dataclass(frozen=True)
class _System:
    """Normal equations of one step: 12 geometric unknowns, gain, offset."""

    normal: Matrix
    right: Matrix
    count: int
    ncc: float


def sample_with_gradient(image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return trilinear values (n,) and gradients (n, 3) per voxel at fractional indices (n, 3).

    Every place must lie within the image. A singleton axis has no gradient.
    """
    sizes = image.new_tensor([max(n - 2, 0) for n in image.shape])
    low = torch.minimum(places.floor().clamp_(min=0), sizes)
    fz, fy, fx = (places - low).unbind(1)
    iz, iy, ix = low.long().unbind(1)
    _, ny, nx = image.shape
    step_z, step_y, step_x = (
        s if n > 1 else 0 for s, n in zip((ny * nx, nx, 1), image.shape, strict=True)
    )
    base = (iz * ny + iy) * nx + ix
    flat = image.ravel()

    def edge(offset: int) -> tuple[Tensor, Tensor]:
        first = torch.take(flat, base + offset)
        rise = torch.take(flat, base + (offset + step_x)) - first
        return torch.addcmul(first, rise, fx), rise

    (v00, r00), (v01, r01) = edge(0), edge(step_y)
    (v10, r10), (v11, r11) = edge(step_z), edge(step_z + step_y)
    dy0, dy1 = v01 - v00, v11 - v10
    w0, w1 = torch.addcmul(v00, dy0, fy), torch.addcmul(v10, dy1, fy)
    s0, s1 = torch.lerp(r00, r01, fy), torch.lerp(r10, r11, fy)
    gz = w1 - w0
    gradient = torch.stack([gz, torch.lerp(dy0, dy1, fz), torch.lerp(s0, s1, fz)], dim=1)
    return torch.addcmul(w0, gz, fz), gradient


@dataclass(frozen=True)
class _Bias:
    """What noise adds to the normal equations: to sums of geometry times value, of geometry times
    the moving image, and of squares of the moving image."""

    with_fixed: Matrix
    with_moving: Matrix
    of_moving: float


@dataclass(frozen=True)
class _Columns:
    """The linearised problem: `values ~ matrix @ (12 geometric unknowns, gain, offset)`."""

    matrix: Tensor
    values: Tensor
    index: Tensor
    bias: _Bias

    def gain(self) -> float:
        """Return the slope between the images, not made smaller by the noise of the moving one."""
        seen = self.matrix[:, 12]
        return float(seen @ self.values) / max(float(seen @ seen) - self.bias.of_moving, 1e-30)


def _columns(
    points: Points, moving: Level, current: Affine, centre: Matrix, scale_um: float
) -> _Columns | None:
    """Return the columns over points that fall into the moving view; None when they are too few."""
    image, grid = moving.image, moving.grid
    to_index = grid.um_to_index @ current
    linear = image.new_tensor(to_index.linear)
    places = points.places_um @ linear.T + image.new_tensor(to_index.apply(centre))
    border = image.new_tensor(np.asarray(moving.border_um) / grid.spacing_um)
    last = image.new_tensor(np.asarray(grid.shape) - 1)
    use = ((places >= border - 1e-3) & (places <= last - border + 1e-3)).all(1)
    if moving.mask is not None:
        nearest = torch.minimum(places.round().clamp_(min=0), last).long()
        use &= moving.mask[nearest.unbind(1)] > 0.5
    index = torch.nonzero(use)[:, 0]
    if index.numel() < FEWEST_POINTS:
        return None
    seen, slope = sample_with_gradient(image, places[index])
    value, slope_fixed, slope_moving = points.values[index], points.gradients[index], slope @ linear
    noise_moving = moving.noise.interpolated(grid)
    noisy_fixed = float(points.noise.variance(value).sum())
    noisy_moving = float(noise_moving.variance(seen).sum())
    # float32 sums of squares keep their digits only around the mean; the offset is free anyway
    seen, value = seen - seen.mean(), value - value.mean()
    # the ratio of spreads, not the slope of a fit: misalignment makes the slope too small
    spread_fixed, spread_moving = float(value @ value), float(seen @ seen)
    gain = (
        max(spread_fixed - noisy_fixed, 0.1 * spread_fixed)
        / max(spread_moving - noisy_moving, 0.1 * spread_moving, 1e-30)
    ) ** 0.5
    gradient = 0.5 * (slope_fixed + gain * slope_moving)
    lever = torch.nn.functional.pad(points.places_um[index] / scale_um, (0, 1), value=1.0)
    geometry = (gradient[:, :, None] * lever[:, None, :]).reshape(-1, 12)
    ones = torch.ones_like(seen)
    # E[n dn] is half the gradient of the variance; the mean of two gradients has half of it again
    with_fixed = 0.25 * points.noise.slope * (slope_fixed.T @ lever).ravel()
    with_moving = 0.25 * gain * noise_moving.slope * (slope_moving.T @ lever).ravel()
    noisy_moving = min(noisy_moving, 0.9 * spread_moving)
    return _Columns(
        torch.cat([geometry, seen[:, None], ones[:, None]], dim=1),
        value,
        index,
        _Bias(_float64(with_fixed), _float64(with_moving), noisy_moving),
    )


def _linearise(
    points: Points, moving: Level, current: Affine, centre: Matrix, scale_um: float
) -> _System | None:
    columns = _columns(points, moving, current, centre, scale_um)
    if columns is None:
        return None
    normal = (columns.matrix.T @ columns.matrix).double().cpu().numpy()
    right = (columns.matrix.T @ columns.values).double().cpu().numpy()
    # both are centred, so that sums of squares are variances
    energy_seen = max(float(normal[12, 12]), 1e-30)
    energy_value = max(float(columns.values.double().square().sum()), 1e-30)
    ncc = float(right[12] / np.sqrt(energy_seen * energy_value))
    bias = columns.bias
    right[:12] -= bias.with_fixed
    normal[:12, 12] -= bias.with_moving
    normal[12, :12] -= bias.with_moving
    normal[12, 12] -= bias.of_moving
    return _System(normal, right, int(normal[13, 13]), ncc)


def corner_sigma_um(
    fixed: Level,
    moving: Level,
    fixed_to_moving: Affine,
    model: Model,
    *,
    points: Points,
    block_um: float,
    blur_unknown: bool = False,
) -> Matrix:
    """Return one standard deviation of the eight corners' positions, um, (8,).

    From the normal matrix of the fit, with what is left unexplained summed over blocks of
    `block_um` first (a cluster-robust, or sandwich, covariance): blur makes neighbouring residuals
    one and the same, and counting them as independent would make the answer many times too sure.
    Where `blur_unknown`, the difference of the views' blur counts as six more unknowns: in smooth
    specimens a little more blur looks like a little less stretch.
    """
    centre, scale_um = fixed.grid.centre_um, _half_um(fixed.grid)
    columns = _columns(points, moving, fixed_to_moving, centre, scale_um)
    if columns is None:
        return np.full(8, np.inf)
    design = _design(_basis(model, scale_um, np.array(fixed.grid.shape) == 1))
    matrix = columns.matrix
    if blur_unknown:
        curvature = _curvature(fixed, points.places_um[columns.index])
        design = np.pad(design, ((0, curvature.shape[1]), (0, curvature.shape[1])))
        design[14:, -curvature.shape[1] :] = np.eye(curvature.shape[1])
        matrix = torch.cat([matrix, curvature], dim=1)
    residual = columns.values - columns.gain() * matrix[:, 12]
    cell = ((points.places_um[columns.index] / block_um).floor() + 512).long()
    label = (cell[:, 0] * 1024 + cell[:, 1]) * 1024 + cell[:, 2]
    names, member = torch.unique(label, return_inverse=True)
    scores = matrix.new_zeros((len(names), matrix.shape[1]))
    scores.index_add_(0, member, matrix * residual[:, None])
    projected = scores.double().cpu().numpy() @ design
    normal = design.T @ (matrix.T @ matrix).double().cpu().numpy() @ design
    inverse = np.linalg.pinv(normal, rcond=1e-12, hermitian=True)
    spread = inverse @ (projected.T @ projected) @ inverse
    arms = np.pad(
        (fixed.grid.corners_um() - centre) / scale_um, ((0, 0), (0, 1)), constant_values=1
    )
    sigma = np.empty(8)
    for corner, arm in enumerate(arms):
        moves = np.kron(np.eye(3), arm) @ design[:12]
        sigma[corner] = np.sqrt(np.trace(moves @ spread @ moves.T))
    return sigma


def _curvature(fixed: Level, places_um: Tensor) -> Tensor:
    """Return (n, k): what a unit of each entry of a blur's covariance changes at the places."""
    middle = fixed.image.new_tensor((np.asarray(fixed.image.shape) - 1) / 2)
    z, y, x = (places_um / fixed.image.new_tensor(fixed.grid.spacing_um) + middle).round().long().T
    _, ny, nx = fixed.image.shape
    index = (z * ny + y) * nx + x
    axes = [axis for axis, n in enumerate(fixed.image.shape) if n > 1]
    pairs = [(i, j) for i in axes for j in axes if i <= j]
    curves = [
        second_difference(fixed.image, index, i, j, fixed.grid) * (0.5 if i == j else 1.0)
        for i, j in pairs
    ]
    return torch.stack(curves, dim=1)


def _solve(system: _System, basis: Matrix, scale_um: float) -> tuple[Matrix, Matrix]:
    """Return the step as a linear part (per um) and a shift of the centre (um)."""
    free = basis.shape[1]
    design = _design(basis)
    normal, right = design.T @ system.normal @ design, design.T @ system.right
    size = np.sqrt(np.maximum(np.diag(normal), 1e-30))
    scaled = normal / size[:, None] / size
    scaled[np.diag_indices(free)] += 1e-4
    scaled += 1e-9 * np.eye(free + 2)
    solution = np.linalg.solve(scaled, right / size) / size
    parameters = (basis @ solution[:free]).reshape(3, 4)
    return parameters[:, :3] / scale_um, parameters[:, 3]


def _float64(values: Tensor) -> Matrix:
    array: Matrix = values.double().cpu().numpy()
    return array


def _design(basis: Matrix) -> Matrix:
    """Return the (14, k + 2) map from what is free, gain and offset to all fourteen unknowns."""
    free = basis.shape[1]
    design = np.zeros((14, free + 2))
    design[:12, :free] = basis
    design[12, free] = design[13, free + 1] = 1
    return design


def _half_um(grid: Grid) -> float:
    return max(n * s for n, s in zip(grid.shape, grid.spacing_um, strict=True) if n > 1) / 2


def _basis(model: Model, scale_um: float, flat: NDArray[np.bool_]) -> Matrix:
    """Return (12, k): the columns of (linear part | shift), row by row, that the model may move.

    An axis of one voxel (2D) neither moves nor mixes with the others.
    """
    columns: list[Matrix] = []

    def add(*entries: tuple[int, int, float]) -> None:
        if any(flat[row] or (column < 3 and flat[column]) for row, column, _ in entries):
            return
        block = np.zeros((3, 4))
        for row, column, value in entries:
            block[row, column] = value
        columns.append(block.ravel())

    for row in range(3):
        add((row, 3, 1.0))
    if model in ("rigid", "similarity"):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            add((i, j, 1.0), (j, i, -1.0))
    if model == "similarity":
        add(*((i, i, 1.0) for i in range(3) if not flat[i]))
    if model == "affine":
        for row in range(3):
            for column in range(3):
                add((row, column, 1.0))
    return np.stack(columns, axis=1)


def _on_model(linear: Matrix, model: Model, flat: NDArray[np.bool_]) -> Matrix:
    """Return the nearest matrix that the model allows: a rotation, a scaled rotation, any."""
    if model == "translation":
        return np.eye(3)
    if model == "affine":
        return linear
    left, stretch, right = np.linalg.svd(linear)
    turn: Matrix = left @ right
    if model == "rigid":
        return turn
    # along a flat axis the matrix is 1 and stays so
    scale = (stretch.sum() - flat.sum()) / (3 - flat.sum())
    return turn * np.where(flat, 1.0, scale)


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
    if sizes[i] == 1 or sizes[j] == 1:
        return image.new_zeros(index.shape)
    a, b = steps[i], steps[j]
    if i == j:
        curve = flat[index + a] - 2 * flat[index] + flat[index - a]
    else:
        curve = flat[index + a + b] - flat[index + a - b] - flat[index - a + b]
        curve = (curve + flat[index - a - b]) / 4
    return curve / (spacing[i] * spacing[j])


def inside(level: Level) -> Tensor:
    """Return where the border is far enough away, and the mask, if any, allows."""
    usable = torch.ones(level.image.shape, dtype=torch.bool, device=level.image.device)
    if level.mask is not None:
        usable &= level.mask > 0.5
    for axis, n in enumerate(level.image.shape):
        if n == 1:
            continue
        width = int(np.ceil(level.border_um[axis] / level.grid.spacing_um[axis] - 1e-6))
        # the outermost planes have no central difference, unless there is nothing but such planes
        width = max(width, 1 if n > 4 else 0)
        usable.narrow(axis, 0, min(width, n)).fill_(False)
        usable.narrow(axis, max(0, n - width), min(width, n)).fill_(False)
    return usable
