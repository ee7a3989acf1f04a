"""Memory of a fusion, by shapes alone: tensors without memory go through the arithmetic."""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.fourier import Shape
from pellucid.core.fused_blocks import StoredView
from pellucid.core.fusion import joint_problem
from pellucid.core.geometry import Affine, Grid
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.tiling import Box
from pellucid.core.views import LitView
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.views import PlacedSeries
from pellucid.stages.pieces.tile_plan import box_shape

SAMPLING_SHARE = 1.2
"""Memory of the joint restorer over its bare volumes: voxels between planes; measured 1.08."""

AVERAGE_VOLUMES = 7
"""Volumes of a block that an average holds at once, and of what is read of the views; measured 5.8."""

JUDGED_BYTES = 12
"""Per voxel of the views, where a block decides the iterations: photons kept, set aside, and expected."""


def peak_bytes(
    views: Sequence[PlacedSeries],
    psfs: Sequence[tuple[Psf | None, ...]],
    transforms: Sequence[Affine],
    world: Grid,
    iterations: int | None,
    fields: Sequence[PsfField | None] = (),
) -> int:
    """Memory that the fusion of one volume in one piece takes, the views that wait included."""
    recorded = sum(math.prod(view.recorded.shape) for view in views)
    if any(psf is None for channel in psfs for psf in channel):
        return 4 * (6 * math.prod(world.shape) + 3 * recorded)
    widest = [max(channel, key=_size) for channel in psfs]
    lit = [
        # tensors without memory carry the shapes through the arithmetic
        LitView(torch.empty(v.recorded.shape, device="meta"), v.recorded, v.to_recorded(transform),
                psf, 1.0, 1.0, 0.0, 1.0, 1.0, psf_field=field)
        for v, psf, transform, field in zip(
            views, widest, transforms, fields or [None] * len(views), strict=True
        )
    ]  # fmt: skip
    restorer = Accelerated() if iterations is None else stated_restorer(iterations, "flat")
    needed = restorer.peak_bytes(joint_problem(lit, world))
    return int(SAMPLING_SHARE * needed) + 8 * recorded + 8 * math.prod(world.shape)


def _size(psf: Psf | None) -> int:
    return 0 if psf is None else psf.values.size


def stated_restorer(
    iterations: int, start: Literal["flat"] | float
) -> RichardsonLucy:
    """The restorer of a stated number of iterations; blocks are given a start that all of them share."""
    return RichardsonLucy(iterations, Matched(), start=start, update="alternating")


def block_peak_bytes(
    views: Sequence[StoredView],
    world: Grid,
    read: Shape,
    parameters: FuseParameters,
    itemsize: int,
) -> int:
    """Memory that the fusion of one block takes, where all views see it; one more is read meanwhile."""
    low = [(n - r) // 2 for n, r in zip(world.shape, read, strict=True)]
    part = world.crop(low, [a + r for a, r in zip(low, read, strict=True)])
    boxes = [(view, view.reached_from(part)) for view in views]
    seen = [(view, box) for view, box in boxes if box is not None]
    voxels = sum(math.prod(box_shape(box)) for _, box in seen)
    waiting = 2 * itemsize * voxels
    if parameters.method == "joint" and parameters.iterations is None:
        waiting += JUDGED_BYTES * voxels
    if not seen or parameters.method != "joint":
        return waiting + 4 * AVERAGE_VOLUMES * (math.prod(read) + voxels)
    lit = [_hollow(view, box) for view, box in seen]
    restorer = stated_restorer(parameters.iterations or 1, 1.0)
    return waiting + restorer.peak_bytes(joint_problem(lit, part))


def _hollow(view: StoredView, box: Box) -> LitView:
    """A box of a view without pixels: shapes alone go through the arithmetic."""
    grid = view.grid.crop([part.start for part in box], [part.stop for part in box])
    photons = torch.empty(grid.shape, device="meta")
    return LitView(
        photons, grid, view.world_to_view, view.psf, 1.0, 1.0, 0.0, 1.0, 1.0, view.field
    )
