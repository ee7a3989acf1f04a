"""The microscope of several views, as a network is trained for it: PSFs, and how the views stand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.deconvolution import blur_of
from pellucid.core.fourier import Shape
from pellucid.core.fusion import all_lit, covered, joint_problem
from pellucid.core.geometry import Affine, Grid, Triple
from pellucid.core.joint_operators import reached_box
from pellucid.core.operators import LinearOperator
from pellucid.core.problem import Problem, Window
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.views import LitView, View, brightened, prepared


@dataclass(frozen=True)
class Microscope:
    """The operators of all views on one object, and the part of it that they are asked about."""

    operators: tuple[LinearOperator, ...]
    window: Window


MOST_TURNED_DEG = 10.0
"""Degrees by which views may stand otherwise than those that a network was trained on."""


@dataclass(frozen=True)
class Views:
    """Views that stand at angles to one object.

    Parameters
    ----------
    psfs : of each view, on its voxels and in its orientation, with their spacing
    linears : (3, 3) for each view, from directions of the object to directions of the view, z y x
    spacing_um : voxels of the object
    """

    psfs: tuple[Psf, ...]
    linears: tuple[NDArray[np.float64], ...]
    spacing_um: Triple

    @classmethod
    def of(cls, psfs: Sequence[Psf], transforms: Sequence[Affine], spacing_um: Triple) -> "Views":
        """Return the views that `transforms` place in one world."""
        return cls(tuple(psfs), tuple(t.linear for t in transforms), spacing_um)

    def turned_deg(self, transforms: Sequence[Affine]) -> list[float]:
        """Return by how much each view stands otherwise, relative to the first."""
        angles = []
        for own, other in zip(self.linears, transforms, strict=True):
            here = _rotation(own) @ _rotation(self.linears[0]).T
            there = _rotation(other.linear) @ _rotation(transforms[0].linear).T
            cosine = (np.trace(here.T @ there) - 1) / 2
            angles.append(math.degrees(math.acos(float(np.clip(cosine, -1, 1)))))
        return angles

    def microscope(self, shape: Shape, seed: int = 0) -> Microscope:
        """Return the microscope that records an object of `shape` by all views, and not more of it.

        Where the voxels of the views lie between those of the object follows from `seed`.
        """
        rng = np.random.default_rng([seed, 9])
        world = Grid(shape, self.spacing_um, frame="world")
        views = []
        for v, (psf, linear) in enumerate(zip(self.psfs, self.linears, strict=True)):
            assert psf.spacing_um is not None
            spacing, frame = np.asarray(psf.spacing_um), f"view {v}"
            turn = Affine.from_linear(linear, source="world", target=frame)
            corners = turn.apply(world.corners_um()) / spacing
            first = corners.min(0) - rng.uniform(0, 1, 3)
            z, y, x = (int(n) for n in np.ceil(corners.max(0) - first).astype(int) + 1)
            placed = Affine.translation(-first * spacing, source=frame, target=frame) @ turn
            grid = Grid((z, y, x), psf.spacing_um, frame=frame)
            volume = math.prod(grid.spacing_um) / abs(float(np.linalg.det(linear)))
            views.append(LitView(torch.zeros(grid.shape), grid, placed, psf, 1.0, 1.0, 0.0, volume, 1.0))
        problem = joint_problem(views, world)
        assert problem.window is not None
        return Microscope(tuple(o.operator for o in problem.observations), problem.window)


Optics = Psf | PsfField | Views
"""What a network is trained for."""


def microscope_of(psf: Optics, shape: Shape, seed: int = 0) -> Microscope:
    """Return the microscope that records a volume of `shape`."""
    if isinstance(psf, Views):
        return psf.microscope(shape, seed)
    blur = blur_of(psf, shape)
    return Microscope((blur,), blur.window)


def joint_views(views: Sequence[View], world: Grid, device: str) -> tuple[Problem, Tensor, float]:
    """Return the problem of recordings as networks are trained on: each view where it shows `world`.

    Returns
    -------
    The problem; 1 where a voxel of `world` lies in some view's image, else 0; and the first view's counts
    per photon.

    Raises
    ------
    InputError : a view that is dark beside others, or that does not reach `world`
    """
    seen = [_filled(prepared(view, device)) for view in views]
    lit = [boxed(view, world) for view in brightened(all_lit(seen), world)]
    return joint_problem(lit, world), covered(lit, world), lit[0].gain


def _filled(view: LitView) -> LitView:
    """Return the view with background where nothing was recorded: networks know no holes."""
    if view.recorded is None:
        return view
    return replace(view, photons=view.photons.masked_fill(~view.recorded, view.background))


def boxed(view: LitView, world: Grid) -> LitView:
    """Return the part of a view in which it shows `world`, and no more: as networks are trained."""
    box = reached_box(view.grid, view.world_to_view, (1, 1, 1), world)
    if box is None:
        return view
    grid = view.grid.crop([part.start for part in box], [part.stop for part in box])
    mask = None if view.recorded is None else view.recorded[box].contiguous()
    return replace(view, photons=view.photons[box].contiguous(), grid=grid, recorded=mask)


def _rotation(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation that comes closest, mirrored where the map mirrors."""
    u, _, v = np.linalg.svd(linear)
    nearest: NDArray[np.float64] = u @ v
    return nearest
