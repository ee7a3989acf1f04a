"""Views placed for a network: by a file or registered, of its own number and voxels, and what all show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.geometry import Affine, Grid
from pellucid.core.registration import register
from pellucid.core.transform_series import WORLD, SeriesRegistration
from pellucid.core.views import View, hollow, proposed_world
from pellucid.errors import InputError
from pellucid.networks.views import MOST_TURNED_DEG, Views
from pellucid.stages.networks.optics import check_spacing, voxels_of
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.given_transforms import applied, read_given
from pellucid.stages.registration.pair_registration import centred
from pellucid.stages.registration.registering import register_series
from pellucid.stages.registration.view_series import ViewSeries
from pellucid.stages.work.events import Event, OnEvent, VolumeDone, VolumeFailed, Warned, ignore


def check_views(views: Sequence[ViewSeries], optics: Views, model: str) -> None:
    """Refuse views of another number, or of other voxels, than a model is for."""
    check_count(len(views), optics, model)
    for view, psf in zip(views, optics.psfs, strict=True):
        check_spacing(view.voxel_um, voxels_of(psf), view.name)


def check_count(count: int, optics: Views, model: str) -> None:
    """Refuse another number of views than a model is for."""
    if count != len(optics.psfs):
        raise InputError(
            f"{model}: a model for {len(optics.psfs)} views, got {count}. Name each view once, in the "
            "order that it was trained for."
        )


def given_places(
    path: Path, optics: Views, views: Sequence[ViewSeries]
) -> SeriesRegistration:
    """The transforms of a file for these views; InputError where they are of others."""
    given = applied(read_given(path, views), views[0].times, path)
    check_places(optics, views, given)
    return given


def registered(
    optics: Views, views: Sequence[ViewSeries], device: str, on_event: OnEvent = ignore
) -> SeriesRegistration:
    """The views registered, from where the model has them; InputError where one time point fails."""

    def only_trouble(event: Event) -> None:
        # the volumes that are counted are restored ones
        if isinstance(event, VolumeFailed):
            on_event(Warned(event.why))
        elif not isinstance(event, VolumeDone):
            on_event(event)

    psfs = [psf.values.astype(np.float32) for psf in optics.typical]
    found = register_series(
        views, RegistrationParameters.checked({}), only_trouble, nominal=nominal(optics, views),
        psfs=psfs, device=device,
    )  # fmt: skip
    if found.failures:
        failed = found.failures[0]
        raise InputError(
            f"{views[failed.view].name}: not registered at time point {failed.time}. "
            f"{failed.reason} Or register by `pellucid register`, and give its transforms."
        )
    check_places(optics, views, found)
    return found


def nominal(optics: Views, views: Sequence[ViewSeries]) -> list[Affine]:
    """World to view for each view, as the model has it; middles lie on middles."""
    return centred(views, optics.transforms)


def places(
    optics: Views, views: Sequence[ViewSeries], found: SeriesRegistration | None
) -> list[list[Affine]]:
    """The transforms of all views at each time point; the model's own where none are known."""
    if found is None:
        return [nominal(optics, views)]
    return [[found.world_to_view(t, v.number) for v in views] for t in views[0].times]


def views_at(
    views: Sequence[ViewSeries], optics: Views, found: SeriesRegistration, t: int, c: int
) -> list[View]:
    """One volume of every view, read and placed, with the model's PSFs; `t` and `c` count from 0."""
    read = []
    for view, psf in zip(views, optics.psfs, strict=True):
        transform = found.at(views[0].times[t], view.number)
        counts = np.asarray(view.lazily(t, c)[:, :, :], np.float32)
        read.append(View(counts, view.grid, transform.world_to_view, psf, field=transform.field))
    return read


def check_places(optics: Views, views: Sequence[ViewSeries], found: SeriesRegistration) -> None:
    """Refuse views that stand otherwise than those of the model, at any time point."""
    for transforms in places(optics, views, found):
        check_turned(optics, transforms, [view.name for view in views])


def check_turned(optics: Views, transforms: Sequence[Affine], names: Sequence[str]) -> None:
    """Refuse views that stand otherwise than those of the model."""
    for name, angle in zip(names, optics.turned_deg(transforms), strict=True):
        if angle > MOST_TURNED_DEG:
            raise InputError(
                f"{name}: turned {angle:.0f} degrees against the view that the model was trained for. Name "
                "the views in the model's order, or train a model for these."
            )


def shared_world(
    optics: Views, over_time: Sequence[Sequence[Affine]], views: Sequence[ViewSeries]
) -> Grid:
    """The voxels of the result: what all views show at all time points."""
    empty = [
        hollow(view.grid, place)
        for transforms in over_time
        for view, place in zip(views, transforms, strict=True)
    ]
    return proposed_world(empty, cover="overlap", spacing_um=optics.spacing_um)


def placed(arrays: Sequence[Any], optics: Views, device: str) -> list[View]:
    """Arrays on the voxels of the model's views, each registered to the first.

    Raises
    ------
    InputError : a registration that is not to be believed
    """
    first, *others = (
        Grid(tuple(np.shape(image)), voxels_of(psf), frame=f"view {v}")
        for v, (image, psf) in enumerate(zip(arrays, optics.psfs, strict=True))
    )
    identity = Affine.identity(source=WORLD, target="view 0")
    views = [View(arrays[0], first, identity, optics.psfs[0])]
    for v, grid in enumerate(others, 1):
        linear = (optics.transforms[v] @ optics.transforms[0].inverse()).linear
        shift = grid.centre_um - linear @ first.centre_um
        result = register(
            arrays[0], arrays[v], fixed_spacing_um=first.spacing_um, moving_spacing_um=grid.spacing_um,
            nominal=Affine.from_linear(linear, translation_um=shift, source="fixed", target="moving"),
            fixed_psf=optics.typical[0].values, moving_psf=optics.typical[v].values, device=device,
        )  # fmt: skip
        if not result.converged:
            raise InputError(f"restore: view {v} cannot be registered to view 0: {result.reason}")
        transform = result.fixed_to_moving.with_frames(source=WORLD, target=grid.frame)
        views.append(View(arrays[v], grid, transform, optics.psfs[v]))
    return views
