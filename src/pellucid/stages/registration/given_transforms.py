"""Transforms in a file, to begin from (`--start`) or to apply (`--transforms`): of these views, or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pellucid.core.transform_series import WORLD, SeriesRegistration, ViewTransform, first_view
from pellucid.data.bdv import setups_in
from pellucid.data.bigstitcher import read_bigstitcher_series
from pellucid.data.transform_file import is_transforms, read_affine, read_transforms, read_views
from pellucid.errors import InputError, ParameterError
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.pair_registration import STARTS
from pellucid.stages.registration.view_series import ViewSeries


def start_transforms(
    parameters: RegistrationParameters, views: Sequence[ViewSeries]
) -> SeriesRegistration | None:
    """The transforms of a file that `start` names; None where it names a way to start.

    Raises
    ------
    ParameterError : neither a way to start nor a file
    InputError : as `read_given`
    """
    if parameters.start in STARTS:
        return None
    path = Path(parameters.start).expanduser()
    if not path.is_file():
        raise ParameterError(
            f"start: expected {', '.join(STARTS)} or a file of transforms, got "
            f"{parameters.start!r}, which is neither."
        )
    return read_given(path, views)


def read_given(path: Path, views: Sequence[ViewSeries]) -> SeriesRegistration:
    """The transforms in a file of Pellucid or BigStitcher, or the one in ITK text or a matrix.

    Raises
    ------
    InputError : a file of other views than these, or of none
    """
    if path.suffix.lower() == ".xml":
        dataset = dataset_of(views)
        first = None if dataset is None else [setups[0] for setups in dataset[1]]
        return read_bigstitcher_series(path, [view.grid for view in views], first)
    if path.suffix.lower() == ".json" and is_transforms(path):
        _check_views(path, views)
        return read_transforms(path)
    if len(views) != 2:
        raise InputError(
            f"{path.name}: one transform for {len(views)} views. Give a .json of Pellucid."
        )
    placed = read_affine(path, [view.voxel_um for view in views])
    time_point = views[0].times[0]
    one = ViewTransform(time_point, 1, placed.with_frames(source=WORLD, target="view 1"), "given")
    return SeriesRegistration((time_point,), 2, (first_view(time_point), one))


def applied(
    given: SeriesRegistration, times: tuple[int, ...], path: Path
) -> SeriesRegistration:
    """Transforms of a file for `times`: its own, or its only ones for all."""
    views = given.views
    if len(given.times) == 1:
        repeated = [
            replace(_as_given(one), time=t, registration=None)
            for t in times
            for one in given.transforms
        ]
        return SeriesRegistration(times, views, tuple(repeated))
    if missing := sorted(set(times) - set(given.times)):
        raise InputError(f"{path.name}: has no transforms of time point {missing[0]}.")
    kept = tuple(_as_given(one) for one in given.transforms if one.time in times)
    if len(kept) < len(times) * views:
        raise InputError(f"{path.name}: lacks transforms of some views or time points. Register again.")
    return SeriesRegistration(times, views, kept)


def dataset_of(
    views: Sequence[ViewSeries],
) -> tuple[Path, tuple[tuple[int, ...], ...]] | None:
    """The XML of the one dataset that all views come from, and the setups of each; else None."""
    samples = [view.sample for view in views]
    described = {sample.files[0].resolve() for sample in samples}
    path = samples[0].files[0]
    if len(described) > 1 or path.suffix.lower() != ".xml":
        return None
    return path, tuple(setups_in(path, sample.image) for sample in samples)


def _check_views(path: Path, views: Sequence[ViewSeries]) -> None:
    """Raise InputError where the file's transforms are of other views than these."""
    stored = read_views(path)
    if len(stored) != len(views):
        raise InputError(
            f"{path.name}: transforms of {len(stored)} views, and there are {len(views)}."
        )
    names, known = [view.name for view in views], [name for name, _ in stored]
    if names != known and sorted(names) == sorted(known):
        raise InputError(
            f"{path.name}: transforms of {', '.join(known)}, in this order. Name the views alike."
        )
    for view, (name, grid) in zip(views, stored, strict=True):
        here = view.grid
        if here.shape != grid.shape or not np.allclose(here.spacing_um, grid.spacing_um, rtol=1e-3):
            raise InputError(
                f"{path.name}: transforms of {name} with {grid.shape} voxels of {grid.spacing_um} um, and "
                f"{view.name} has {here.shape} of {here.spacing_um}. Register these views."
            )


def _as_given(one: ViewTransform) -> ViewTransform:
    return one if one.how in ("first", "failed") else replace(one, how="given")
