"""What each voxel's light contributes to the images, and the weights that follow from it.

Where the object extends beyond the image, a voxel near the border sends part of its light past the
camera. The update of Richardson-Lucy is divided by what arrives (Bertero & Boccacci 2005). For one
constant blur that is the PSF summed over a box, which takes few values: they are kept in a small table
instead of a volume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.core.fourier import empty
from pellucid.core.operators import Blur
from pellucid.core.problem import Problem, sensitivities

UNSEEN = 0.02
"""Share of the largest sensitivity below which an object voxel is not seen: it stays dark."""


@dataclass(frozen=True)
class Tabled:
    """A volume of few distinct profiles: voxel (z, y, x) is table[iz[z], iy[y], ix[x]].

    Parameters
    ----------
    table : (z, y, x) distinct values
    places : for each axis of the volume, where in the table its planes, rows and columns are
    """

    table: Tensor
    places: tuple[Tensor, Tensor, Tensor]

    def __getitem__(self, planes: slice) -> Tensor:
        """Return those planes; one for all, to broadcast, where they are equal."""
        z, y, x = self.places
        rows = z[planes]
        if len(rows) > 1 and bool((rows == rows[0]).all()):
            rows = rows[:1]
        part = self.table.index_select(0, rows).index_select(1, y)
        return part.index_select(2, x)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Tabled":
        """Return the volume with every value changed."""
        return replace(self, table=change(self.table))


Weight = Tensor | Tabled
"""What `weight[planes]` gives planes of."""


def seen_through(blur: Blur) -> Tabled:
    """Return A* 1 of an extended blur: the PSF summed over what of it falls into the image."""
    table, places = blur.psf.double(), []
    for axis, (m, n, size, k) in enumerate(
        zip(blur.margin, blur.range_shape, blur.domain_shape, blur.psf.shape, strict=True)
    ):
        # image voxel i sees object voxel p, counted from the image's first, through kernel index
        # i - p + k // 2
        first = k // 2 - (torch.arange(size) - m)
        ends = torch.stack([first.clamp(0, k), (first + n).clamp(0, k)], dim=1)
        distinct, place = torch.unique(ends, dim=0, return_inverse=True)
        index = torch.arange(k)
        inside = (index >= distinct[:, :1]) & (index < distinct[:, 1:])
        table = torch.tensordot(inside.to(table), table, dims=([1], [axis])).movedim(0, axis)
        places.append(place.to(table.device))
    return Tabled(table.to(blur.psf).contiguous().clamp_min_(0), (places[0], places[1], places[2]))


def weight_of(problem: Problem, floor: float) -> Weight:
    """Return 1 / summed sensitivity, at most 1 / (`floor` of the largest), 0 for what no image sees."""
    first, recorded = problem.observations[0].operator, problem.observations[0].recorded
    alone = len(problem.observations) == 1 and recorded is None
    if alone and type(first) is Blur and first.domain_shape == first.grid:
        return seen_through(first).mapped(lambda seen: inverse(seen, floor))
    seen = sensitivities(problem)
    return inverse(sum(seen[1:], start=seen[0]), floor, unseen_by_all(seen))


def unseen_by_all(seen: Sequence[Tensor]) -> Tensor:
    """Return where every view's sensitivity is below `UNSEEN` of the largest of any view.

    Of one view's, not of their sum: a part of the object that one of several views sees is then judged
    alike whether the others are at hand or not.
    """
    least = UNSEEN * max(float(one.max()) for one in seen)
    unseen = seen[0] < least
    for one in seen[1:]:
        unseen &= one < least
    return unseen


def inverse(total: Tensor, floor: float, unseen: Tensor | None = None) -> Tensor:
    """Return 1 / sensitivity, 0 where it is `unseen`: else where it is below `UNSEEN` of the largest."""
    largest = float(total.max())
    if unseen is None:
        unseen = total < UNSEEN * largest
    return total.clamp_min(floor * largest).reciprocal_().masked_fill_(unseen, 0)


def constant_where_seen(problem: Problem, weight: Weight, level: float) -> Tensor:
    """Return an object of `level` wherever its light arrives."""
    x = empty(tuple(problem.shape), problem.observations[0].image)
    for z in range(0, len(x), 16):
        x[z : z + 16] = (weight[z : z + 16] > 0).to(x.dtype).mul_(level)
    return x
