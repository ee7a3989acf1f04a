"""Weighted averages of registered views: blended at their borders, or led by what each sees sharply."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.core.blur_matching import gaussian_blurred
from pellucid.core.field_resampling import sampled
from pellucid.core.fourier import Shape
from pellucid.core.geometry import Affine, Grid
from pellucid.core.resampling import Resample
from pellucid.core.tiling import Box
from pellucid.core.transform_field import TransformField

Weighting = Literal["average", "content-average"]

BORDER_SHARE = 0.1
"""Part of a view's length, at each end, over which its weight rises from zero to one."""

FINE_SIGMA_VOXELS, WIDE_SIGMA_VOXELS = 1.5, 4.0
"""Of content weights: structure finer than the first counts, averaged over the second. Preibisch et
al. use 20 and 40 pixels, for contrast over cells; sharpness shows at the scale of the blur."""

LEAST_WEIGHT = 1e-4
"""Sum of border weights below which a voxel is not seen by any view."""


def border_weights(
    shape: Shape, share: float = BORDER_SHARE, part: Box | None = None
) -> Tensor:
    """Return (z, y, x) weights: 1 inside, falling as a squared cosine towards the borders.

    Half a voxel beyond the border it would reach zero, so that every voxel counts for something.

    Parameters
    ----------
    part : of the view; None: all of it
    """
    box = part or tuple(slice(0, n) for n in shape)
    weights = torch.ones([p.stop - p.start for p in box], dtype=torch.float64)
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        ramp = max(share * n, 1.0)
        index = np.arange(box[axis].start, box[axis].stop)
        depth = np.minimum(np.minimum(index, n - 1 - index) + 0.5, ramp) / ramp
        profile = torch.from_numpy(np.sin(0.5 * np.pi * depth) ** 2)
        weights *= profile.reshape([-1 if a == axis else 1 for a in range(3)])
    return weights


def content_weights(image: Tensor, grid: Grid) -> Tensor:
    """Return the local energy of fine structure, G_wide * (I - G_fine * I)^2; all at least 0.

    The content-based weights of Preibisch et al. (2008, SPIE 6914), which approximate local entropy:
    a view counts where it shows detail that a blurred view does not.
    """
    spacing = np.diag(np.asarray(grid.spacing_um) ** 2)
    detail = image - gaussian_blurred(image, grid, spacing * FINE_SIGMA_VOXELS**2)
    return gaussian_blurred(detail.square_(), grid, spacing * WIDE_SIGMA_VOXELS**2).clamp_min_(0)


def averaged(
    images: Sequence[Tensor],
    grids: Sequence[Grid],
    world_to_views: Sequence[Affine],
    world: Grid,
    weighting: Weighting = "average",
    fields: Sequence[TransformField | None] | None = None,
    recorded: Sequence[Tensor | None] | None = None,
    *,
    borders: Sequence[Tensor] | None = None,
    fills: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted average of views on `world`, 0 where none sees it, and where any does.

    Parameters
    ----------
    images : (z, y, x) each, background subtracted, of equal brightness
    grids, world_to_views : where each view's voxels are
    fields : in place of the transforms, for each view that has one
    recorded : for each view, which voxels count; None: all
    weighting : "average" (border weights) or "content-average" (times content weights)
    borders, fills : weights of the images' voxels, and what stands in where they do not reach, for
        images that are parts of views; None: of each image itself, and its mean
    """
    total = images[0].new_zeros(world.shape)
    weights, seen = torch.zeros_like(total), torch.zeros_like(total)
    fields = fields or [None] * len(images)
    borders = borders or [border_weights(grid.shape) for grid in grids]
    recorded = recorded or [None] * len(images)
    fills = fills or [
        float(image.mean() if mask is None else image[mask].mean())
        for image, mask in zip(images, recorded, strict=True)
    ]
    for image, grid, world_to_view, field, own, fill, mask in zip(
        images, grids, world_to_views, fields, borders, fills, recorded, strict=True
    ):
        sample = sampled(grid, world, world_to_view, field)
        border = own.to(image)
        border = sample.forward(border if mask is None else border * mask)
        on_world, inside = on_other_grid(image, sample, fill, mask)
        weight = border = border * inside
        if weighting == "content-average":
            weight = border * content_weights(on_world, world)
        total += weight * on_world
        weights += weight
        seen += border
    anywhere = seen > LEAST_WEIGHT
    floor = 1e-12 * float(weights.max())
    return (total / weights.clamp_min(floor)).masked_fill_(~anywhere, 0), anywhere


def on_other_grid(
    image: Tensor, sample: Resample, fill: float | None = None, recorded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the image resampled, `fill` or its mean where it does not reach, and where it does.

    Voxels that half belong to the image are not half as bright: interpolation is renormalised.
    """
    if recorded is None:
        support = sample.forward(torch.ones_like(image))
    else:
        support, image = sample.forward(recorded.to(image)), image * recorded
    inside = support > 0.5
    values = sample.forward(image) / support.clamp_min(0.5)
    return torch.where(inside, values, image.mean() if fill is None else fill), inside
