"""The verb for views in memory: register them where their places are not known, and fuse them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core import fusion as core
from pellucid.core.gauss_newton import Model
from pellucid.core.geometry import Affine, Grid, Triple, as_triple
from pellucid.core.psf import Psf
from pellucid.core.registration import Registration, register
from pellucid.core.starts import view_turn
from pellucid.core.views import View
from pellucid.errors import InputError, ParameterError
from pellucid.stages.work.resources import resolve_device

Array = npt.NDArray[Any] | torch.Tensor


@dataclass(frozen=True)
class Fused:
    """A fused volume, where it is, and how it came about.

    Parameters
    ----------
    image : (z, y, x) float32 counts of the first view above background, array or tensor as the views
    grid : its voxels, in the frame of the first view where views were registered
    registrations : from the first view to each other one; empty where transforms were given
    stats : what was measured on the way
    """

    image: Any
    grid: Grid
    registrations: tuple[Registration, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def voxel_um(self) -> Triple:
        """Voxel size (z, y, x) in micrometres."""
        return self.grid.spacing_um


def fuse(
    views: Sequence[View | Array],
    *,
    spacing_um: npt.ArrayLike | None = None,
    angles_deg: Sequence[float] | None = None,
    axis: str = "y",
    psfs: Sequence[Psf | Array] | Psf | None = None,
    model: Model = "affine",
    grid: Grid | None = None,
    method: core.Method = "joint",
    iterations: int | None = None,
    device: str | None = None,
) -> Fused:
    """One volume of several views of one object, deconvolved together or averaged.

    Parameters
    ----------
    views : `View`s, whose transforms are known; or arrays (z, y, x), which are registered here
    spacing_um : voxel size of the arrays: three micrometres for all, or three for each
    angles_deg : of each array about `axis`, such as (0, 90); (0, 0) where neither is turned
    psfs : one for each array, on its voxels and in its orientation; or one, that every view has in
        its own orientation
    model : what registration may find: translation, rigid, similarity, affine
    grid : of the result; None: isotropic over all views
    method : joint, resample-then-joint, average, content-average
    iterations : exactly this many; None stops when held-out photons say so
    device : "cpu", "cuda"; None: where the first view is

    Raises
    ------
    InputError : views that do not overlap, lack a PSF, or whose registration is not to be believed
    ParameterError : arrays without voxel size or angles

    Examples
    --------
    >>> from pellucid import View, Grid, Affine                                    # doctest: +SKIP
    >>> both = fuse([a, b], angles_deg=(0, 90), spacing_um=0.2, psfs=[psf])        # doctest: +SKIP
    >>> pellucid.write("both.ome.zarr", both.image, voxel_um=both.voxel_um)        # doctest: +SKIP
    """
    if not views:
        raise InputError("fuse: expected one view or more, got none.")
    registrations: tuple[Registration, ...] = ()
    known = [view for view in views if isinstance(view, View)]
    if known and len(known) < len(views):
        raise InputError("fuse: expected Views or arrays, got some of each. Make Views of all.")
    if not known:
        arrays: list[Any] = list(views)
        place = resolve_device(device) if device else None
        grids = _grids(arrays, spacing_um)
        kernels = _kernels(psfs, len(arrays))
        angles = _angles(angles_deg, arrays)
        registrations = _registered(arrays, grids, kernels, angles, axis, model, place)
        transforms = [Affine.identity(source="view 0", target="view 0")]
        for number, found in enumerate(registrations, 1):
            frames = {"source": "view 0", "target": f"view {number}"}
            transforms.append(found.fixed_to_moving.with_frames(**frames))
        known = [
            View(image, where, transform, psf)
            for image, where, transform, psf in zip(arrays, grids, transforms, kernels, strict=True)
        ]
    restored = core.fuse(
        known, grid, how=method, iterations=iterations,
        device=resolve_device(device) if device else None,
    )  # fmt: skip
    where = grid or Grid.from_dict(restored.stats["world"])
    is_tensor = isinstance(known[0].image, torch.Tensor)
    image = restored.image if is_tensor else restored.image.cpu().numpy()
    return Fused(image, where, registrations, restored.stats)


def _grids(arrays: Sequence[Array], spacing_um: npt.ArrayLike | None) -> list[Grid]:
    if spacing_um is None:
        raise ParameterError("fuse: arrays need their voxel size: spacing_um=(z, y, x) micrometres.")
    spacings = np.broadcast_to(np.asarray(spacing_um, dtype=np.float64), (len(arrays), 3))
    grids = []
    for number, (image, spacing) in enumerate(zip(arrays, spacings, strict=True)):
        if np.ndim(image) != 3:
            raise InputError(
                f"fuse: expected (z, y, x) views, got shape {tuple(np.shape(image))} for view "
                f"{number}. Give one channel and one time point."
            )
        z, y, x = (int(n) for n in np.shape(image))
        grids.append(Grid((z, y, x), as_triple(spacing, "spacing_um"), frame=f"view {number}"))
    return grids


def _kernels(psfs: Sequence[Psf | Array] | Psf | None, count: int) -> list[Psf | Array | None]:
    if psfs is None:
        return [None] * count
    if isinstance(psfs, Psf):
        psfs = [psfs]
    if len(psfs) not in (1, count):
        raise ParameterError(f"fuse: {len(psfs)} PSFs for {count} views. Give one, or one for each.")
    return [psfs[number % len(psfs)] for number in range(count)]


def _angles(angles_deg: Sequence[float] | None, arrays: Sequence[Array]) -> list[float]:
    if angles_deg is None and len(arrays) == 1:
        return [0.0]
    if angles_deg is None or len(angles_deg) != len(arrays):
        given = "none" if angles_deg is None else len(angles_deg)
        raise ParameterError(
            f"fuse: expected an angle for each of {len(arrays)} views, got {given}. State "
            "angles_deg=(0, 90); (0, 0) where neither is turned."
        )
    return list(angles_deg)


def _registered(
    arrays: Sequence[Array],
    grids: Sequence[Grid],
    psfs: Sequence[Psf | Array | None],
    angles_deg: Sequence[float],
    axis: str,
    model: Model,
    device: str | None,
) -> tuple[Registration, ...]:
    found = []
    for number in range(1, len(arrays)):
        turn = math.radians(angles_deg[number] - angles_deg[0])
        nominal = view_turn(grids[0], grids[number], axis, turn)
        result = register(
            arrays[0],
            arrays[number],
            fixed_spacing_um=grids[0].spacing_um,
            moving_spacing_um=grids[number].spacing_um,
            model=model,
            nominal=nominal.with_frames(source="fixed", target="moving"),
            fixed_psf=_values(psfs[0]),
            moving_psf=_values(psfs[number]),
            device=device,
        )
        if not result.converged:
            raise InputError(f"fuse: view {number} cannot be registered to view 0: {result.reason}")
        found.append(result)
    return tuple(found)


def _values(psf: Psf | Array | None) -> Any:
    return psf.values if isinstance(psf, Psf) else psf
