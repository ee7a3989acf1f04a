"""Is this registration to be believed? A measurement on the aligned views, apart from the fit.

The fit maximises agreement, so agreement alone flatters it: two different specimens also reach
some. What a wrong answer cannot fake is a peak: when one view is slid against the other, the
agreement of fine structure must be best where the registration says, and must stand far above all
other places.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.core.blur_matching import gaussian_blurred
from pellucid.core.fit_columns import Level, border_planes, inside
from pellucid.core.fourier import fast_shape, rfftn
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.resampling import resample

FINE_VOXELS = 4.0
"""Structure coarser than this is the specimen's envelope, on which any two specimens agree."""

REACH_VOXELS = 12
"""How far the views are slid against each other; well beyond the width of the peak."""

FEWEST_VOXELS = 200
"""In common; fewer say nothing about agreement."""


@dataclass(frozen=True)
class Agreement:
    """How well two aligned views agree.

    `ncc` is that of all structure in the shared volume, `fine_ncc` that of fine structure alone,
    and `peak` how many standard deviations the latter stands above its values at other
    displacements. `overlap` is the shared volume as a share of the smaller view's.
    """

    ncc: float
    fine_ncc: float
    peak: float
    overlap: float


def agreement(fixed: Level, moving: Level, fixed_to_moving: Affine) -> Agreement:
    """Return how well two views, blurred alike, agree under a transform."""
    overlap = shared_volume(fixed.grid, moving.grid, fixed_to_moving)
    warped, mask = _shared(inside(fixed), fixed.grid, moving, fixed_to_moving)
    if int(mask.sum()) < FEWEST_VOXELS:
        return Agreement(0.0, 0.0, 0.0, overlap)
    ncc = _correlation(fixed.image, warped, mask)
    first, second = _fine((fixed.image, warped), mask)
    surface, distance = _slid(first, second, mask)
    fine = float(surface[distance == 0])
    others = surface[distance > REACH_VOXELS / 2]
    spread = float(others.square().mean().sqrt())
    return Agreement(ncc, fine, fine / max(spread, 1e-12), overlap)


def correlation(fixed: Level, moving: Level, fixed_to_moving: Affine) -> float:
    """Return `Agreement.ncc` alone, from every other voxel along each axis."""
    image, usable, grid = fixed.image[::2, ::2, ::2], inside(fixed)[::2, ::2, ::2], fixed.grid
    z, y, x = image.shape
    thinned = Grid(
        (z, y, x),
        as_triple(2 * np.asarray(grid.spacing_um), "spacing_um"),
        grid.origin_um,
        grid.frame,
    )
    warped, mask = _shared(usable, thinned, moving, fixed_to_moving)
    return _correlation(image, warped, mask) if int(mask.sum()) >= FEWEST_VOXELS else 0.0


def _shared(
    usable: Tensor, grid: Grid, moving: Level, fixed_to_moving: Affine
) -> tuple[Tensor, Tensor]:
    """Return the moving image on the fixed grid, and 1 where both views may be used."""
    warped = resample(moving.image, moving.grid, grid, target_to_source=fixed_to_moving)
    usable = usable & _lands_off_the_border(grid, moving, fixed_to_moving)
    if moving.mask is not None:
        seen = resample(moving.mask, moving.grid, grid, target_to_source=fixed_to_moving)
        usable &= seen > 0.999
    return warped, usable.to(warped)


def _lands_off_the_border(grid: Grid, moving: Level, fixed_to_moving: Affine) -> Tensor:
    """Return for which voxels of the grid all neighbours in the moving view may be used."""
    to_index = (moving.grid.um_to_index @ fixed_to_moving @ grid.index_to_um).matrix
    like = moving.image
    z, y, x = (torch.arange(n, device=like.device).to(like) for n in grid.shape)
    within = torch.ones(grid.shape, dtype=torch.bool, device=like.device)
    for row, n, width in zip(to_index, moving.grid.shape, border_planes(moving), strict=False):
        of_z, of_y, of_x, start = row.tolist()
        # relative to the middle, so that both ends are one comparison
        planes = of_z * z[:, None] + of_y * y + (start - (n - 1) / 2)
        within &= (planes[:, :, None] + of_x * x).abs_() <= (n - 1) / 2 - width + 1e-3
    return within


def shared_volume(fixed: Grid, moving: Grid, fixed_to_moving: Affine) -> float:
    """Return the volume that both views see, as a share of the smaller view's, 0 to 1."""
    steps = [np.linspace(-0.5, n - 0.5, 2 * min(n, 24) + 1)[1::2] for n in fixed.shape]
    places = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    to_index = moving.um_to_index @ fixed_to_moving @ fixed.index_to_um
    seen = to_index.apply(places)
    share = ((seen > -0.5) & (seen < np.asarray(moving.shape) - 0.5)).all(1).mean()
    volume = float(np.prod(fixed.extent_um))
    other = float(np.prod(moving.extent_um) / abs(np.linalg.det(fixed_to_moving.linear)))
    return float(min(1.0, share * volume / min(volume, other)))


def _correlation(first: Tensor, second: Tensor, mask: Tensor) -> float:
    a, b = (image[mask > 0].double() for image in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-30))


def _fine(images: tuple[Tensor, Tensor], mask: Tensor) -> list[Tensor]:
    """Return images less their local mean over the mask, of unit variance, zero outside."""
    z, y, x = mask.shape
    index_grid = Grid((z, y, x))
    covariance = np.diag([0.0 if n == 1 else FINE_VOXELS**2 for n in mask.shape])
    weight = gaussian_blurred(mask, index_grid, covariance).clamp_min(0.05)
    fine = []
    for image in images:
        image = (image - image[mask > 0].mean()) * mask
        image = (image - gaussian_blurred(image, index_grid, covariance) / weight) * mask
        fine.append(image / image.square().sum().sqrt().clamp_min(1e-30))
    return fine


def _slid(first: Tensor, second: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return correlations at displacements up to REACH_VOXELS, and their distance from none."""
    reach = [REACH_VOXELS if n > 1 else 0 for n in mask.shape]
    z, y, x = (n + r for n, r in zip(mask.shape, reach, strict=True))
    shape = fast_shape((z, y, x))

    def spectrum(image: Tensor) -> Tensor:
        return rfftn(image, shape)

    places = [
        torch.arange(-r, r + 1, device=mask.device) % n for r, n in zip(reach, shape, strict=True)
    ]

    def near(product: Tensor) -> Tensor:
        # axis by axis: what is not asked for is not transformed further
        for axis in range(2):
            product = torch.fft.ifft(product, dim=axis).index_select(axis, places[axis])
        whole: Tensor = torch.fft.irfft(product, n=shape[2], dim=2)
        return whole.index_select(2, places[2])

    shared = spectrum(mask)
    product = near(spectrum(first).conj() * spectrum(second))
    one = near(spectrum(first.square()).conj() * shared)
    other = near(shared.conj() * spectrum(second.square()))
    surface = product / (one * other).clamp_min(1e-6).sqrt()
    steps = [torch.arange(-r, r + 1, dtype=torch.float32, device=mask.device) for r in reach]
    distance = torch.stack(torch.meshgrid(*steps, indexing="ij")).square().sum(0).sqrt()
    return surface, distance
