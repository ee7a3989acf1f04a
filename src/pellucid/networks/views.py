"""The microscope of several views, as a network is trained for it: PSFs, and how the views stand."""

import itertools
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
from pellucid.core.geometry import Affine, Grid, Triple, as_triple
from pellucid.core.joint_operators import reached_box
from pellucid.core.operators import LinearOperator
from pellucid.core.problem import Problem, Window
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.views import LitView, View, brightened, hollow, prepared, psfs_of

MOST_TURNED_DEG = 10.0
"""Degrees by which views may stand otherwise than those that a network was trained on."""


@dataclass(frozen=True)
class Microscope:
    """The operators of all views on one object, and the part of it that they are asked about."""

    operators: tuple[LinearOperator, ...]
    window: Window


@dataclass(frozen=True)
class Views:
    """Views that stand at angles to one object.

    Parameters
    ----------
    psfs : of each view, on its voxels and in its orientation, with their spacing; or the fields of PSFs
    transforms : of each view, from micrometres of the object to micrometres of the view
    spacing_um : voxels of the object
    """

    psfs: tuple[Psf | PsfField, ...]
    transforms: tuple[Affine, ...]
    spacing_um: Triple

    @classmethod
    def turned(
        cls, psfs: Sequence[Psf | PsfField], turns: Sequence[Affine], spacing_um: Triple
    ) -> "Views":
        """Return the views that are turned so, the middles of their fields on each other."""
        middles = [_middle_um(psf) for psf in psfs]
        placed = (
            Affine.from_linear(turn.linear, translation_um=middle - turn.linear @ middles[0])
            for turn, middle in zip(turns, middles, strict=True)
        )
        return cls(tuple(psfs), tuple(placed), spacing_um)

    @property
    def varies(self) -> bool:
        """Whether the PSF of any view does."""
        return any(isinstance(psf, PsfField) for psf in self.psfs)

    @property
    def typical(self) -> list[Psf]:
        """The PSF of each view, or the mean one."""
        return [psf.typical if isinstance(psf, PsfField) else psf for psf in self.psfs]

    def turned_deg(self, transforms: Sequence[Affine]) -> list[float]:
        """Return by how much each view stands otherwise, relative to the first."""
        angles = []
        for own, other in zip(self.transforms, transforms, strict=True):
            here = _rotation(own.linear) @ _rotation(self.transforms[0].linear).T
            there = _rotation(other.linear) @ _rotation(transforms[0].linear).T
            cosine = (np.trace(here.T @ there) - 1) / 2
            angles.append(math.degrees(math.acos(float(np.clip(cosine, -1, 1)))))
        return angles

    def microscope(self, shape: Shape, seed: int = 0) -> Microscope:
        """Return the microscope that records an object of `shape` by all views, and not more of it.

        Where it lies in the views' fields, and their voxels between those of the object, follows from
        `seed`: at 0 in the middle of the fields.
        """
        rng = np.random.default_rng([seed, 9])
        low, high = self._box_um()
        free = high - low - (np.asarray(shape) - 1) * self.spacing_um
        part = rng.uniform(0, 1, 3) if seed else np.full(3, 0.5)
        origin = low + np.where(free > 0, part, 0.5) * free
        world = Grid(shape, self.spacing_um, as_triple(origin, "origin"), "world")
        views = []
        for v, (psf, transform) in enumerate(zip(self.psfs, self.transforms, strict=True)):
            assert psf.spacing_um is not None
            spacing, frame = np.asarray(psf.spacing_um), f"view {v}"
            place = transform.with_frames(source="world", target=frame)
            corners = place.apply(world.corners_um()) / spacing
            first = corners.min(0) - rng.uniform(0, 1, 3)
            z, y, x = (int(n) for n in np.ceil(corners.max(0) - first).astype(int) + 1)
            grid = Grid((z, y, x), psf.spacing_um, as_triple(first * spacing, "origin"), frame)
            views.append(unlit(grid, place, psf))
        problem = joint_problem(views, world)
        assert problem.window is not None
        return Microscope(tuple(o.operator for o in problem.observations), problem.window)

    def _box_um(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The box (z, y, x), um of the object, of the views' fields; one point where nothing varies."""
        corners = [np.zeros((0, 3))]
        for psf, transform in zip(self.psfs, self.transforms, strict=True):
            if isinstance(psf, PsfField):
                ends = [psf.positions_um.min(0), psf.positions_um.max(0)]
                box = np.array(list(itertools.product(*np.transpose(ends))))
                corners.append(transform.inverse().apply(box))
        every = np.concatenate(corners)
        return (every.min(0), every.max(0)) if len(every) else (np.zeros(3), np.zeros(3))


def _middle_um(psf: Psf | PsfField) -> NDArray[np.float64]:
    if not isinstance(psf, PsfField):
        return np.zeros(3)
    middle: NDArray[np.float64] = (psf.positions_um.min(0) + psf.positions_um.max(0)) / 2
    return middle


Optics = Psf | PsfField | Views
"""What a network is trained for."""


def varies(optics: Optics) -> bool:
    """Say whether blur differs from place to place."""
    return optics.varies if isinstance(optics, Views) else isinstance(optics, PsfField)


def microscope_of(psf: Optics, shape: Shape, seed: int = 0) -> Microscope:
    """Return the microscope that records a volume of `shape`."""
    if isinstance(psf, Views):
        return psf.microscope(shape, seed)
    blur = blur_of(psf, shape)
    return Microscope((blur,), blur.window)


def unlit(grid: Grid, place: Affine, psf: Psf | PsfField, device: str = "cpu") -> LitView:
    """Return a view, or a part of one, as bright as any other, without an image."""
    # a field counts from the first voxel of the whole view, which is where its frame begins
    whole = Grid(grid.shape, grid.spacing_um, frame=grid.frame)
    dark = hollow(whole, place, psf)
    mean, field = psfs_of(dark)
    return LitView(
        torch.zeros(grid.shape, device=device), grid, place, mean, 1.0, 1.0, 0.0, dark.voxel_um3, 1.0,
        psf_field=field,
    )  # fmt: skip


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
