"""The problem a restorer solves: observations of one object, and what comes out."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.operators import LinearOperator, Windowed
from pellucid.errors import InputError

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Observation:
    """One recording: image ~ Poisson(operator(object) + background).

    Parameters
    ----------
    image : (z, y, x) photons on the device; see `photons` for what a camera gives
    operator : from the object to this image
    background : expected photons per voxel that do not come from the object, above 0
    recorded : 1 where the camera looked, 0 where it did not (and the image is anything finite), or
        the share of a binned voxel that was recorded; None: everywhere. What was not recorded has no
        weight, as what lies outside the image has none
    """

    image: Tensor
    operator: LinearOperator
    background: float = 0.0
    recorded: Tensor | None = None

    def __post_init__(self) -> None:
        if tuple(self.image.shape) != self.operator.range_shape:
            raise InputError(
                f"Observation: expected an image of shape {self.operator.range_shape} for its "
                f"operator, got {tuple(self.image.shape)}. Build the operator on the image's shape."
            )
        if self.recorded is not None and self.recorded.shape != self.image.shape:
            raise InputError(
                f"Observation: expected `recorded` of the image's shape {tuple(self.image.shape)}, got "
                f"{tuple(self.recorded.shape)}."
            )

    @property
    def voxels(self) -> float:
        """Number of voxels that were recorded."""
        if self.recorded is None:
            return self.image.numel()
        return float(self.recorded.sum(dtype=torch.float64))

    @property
    def photons(self) -> float:
        """Sum of the image where it was recorded."""
        seen = self.image if self.recorded is None else self.image * self.recorded
        return float(seen.sum(dtype=torch.float64))

    @property
    def mean(self) -> float:
        """Photons per recorded voxel."""
        if self.recorded is None:
            return float(self.image.mean(dtype=torch.float64))
        return self.photons / max(self.voxels, 1.0)

    @property
    def light(self) -> float:
        """Photons above background per recorded voxel."""
        if self.recorded is None:
            return float((self.image - self.background).mean(dtype=torch.float64))
        return self.mean - self.background

    def keep_recorded(self, values: Tensor, planes: slice = slice(None)) -> Tensor:
        """Return `values` of those planes, changed in place: times the share that was recorded."""
        return values if self.recorded is None else values.mul_(self.recorded[planes])


@dataclass(frozen=True)
class Problem:
    """Observations of one object, and the window of it that is asked for.

    Parameters
    ----------
    observations : one or more, of one object: equal domain shapes
    window : the part of the object that a restorer returns; None: the image of a single
        `Blur`, `VaryingBlur` or `SheetScan`, else the whole domain
    """

    observations: tuple[Observation, ...]
    window: Window | None = None

    def __post_init__(self) -> None:
        shapes = {o.operator.domain_shape for o in self.observations}
        if len(shapes) != 1:
            raise InputError(
                f"Problem: expected observations of one object, got object shapes {sorted(shapes)}. "
                "Give every operator the same object grid."
            )

    @property
    def shape(self) -> Shape:
        """Shape (z, y, x) of the object."""
        return self.observations[0].operator.domain_shape

    @property
    def part(self) -> Window:
        """What of the object is asked for, as slices from its first voxel to its last."""
        operator, wanted = self.observations[0].operator, self.window
        if wanted is None and len(self.observations) == 1 and isinstance(operator, Windowed):
            wanted = operator.window
        ends = wanted or (slice(None),) * 3
        z, y, x = (slice(*e.indices(n)[:2]) for e, n in zip(ends, self.shape, strict=True))
        return z, y, x

    def windowed(self, x: Tensor) -> Tensor:
        """Return the part of the object that is asked for."""
        return x[self.part]


@dataclass(frozen=True)
class Restored:
    """An estimate of the object, and the evidence for it.

    Parameters
    ----------
    image : (z, y, x) photons per voxel, not negative
    stats : what the restorer measured on the way; plain numbers, strings and lists
    models : the expected images A x + b of the estimate, where the restorer has them: what the
        recordings would be without noise if the estimate were the object
    """

    image: Tensor
    stats: dict[str, Any] = field(default_factory=dict)
    models: tuple[Tensor, ...] = ()


def sensitivities(problem: Problem) -> list[Tensor]:
    """Return A_v* 1 for every observation: how much of a voxel's light each image collects."""
    return [
        o.operator.adjoint(o.keep_recorded(torch.ones_like(o.image))).clamp_min_(0)
        for o in problem.observations
    ]
