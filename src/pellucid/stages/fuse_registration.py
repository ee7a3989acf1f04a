"""The transforms of a fusion: registered as `pellucid register` does, or from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pellucid.core.transform_series import (
    SeriesRegistration,
    ViewTransform,
    transform_from_dict,
)
from pellucid.data.plain_json import plain_json
from pellucid.data.transform_exchange import affine_to_itk
from pellucid.data.transform_file import read_transforms, write_transforms
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import InputError
from pellucid.stages.events import Event, OnEvent, VolumeDone, VolumeFailed, Warned
from pellucid.stages.fuse_parameters import FuseParameters
from pellucid.stages.fuse_views import PlacedSeries, nominal
from pellucid.stages.register_files import given_transforms
from pellucid.stages.registering import register_series


def found_transforms(
    parameters: FuseParameters, views: Sequence[PlacedSeries], device: str, on_event: OnEvent
) -> SeriesRegistration:
    """The transforms of all views at all time points; what failed is said, and is in the result."""

    def only_trouble(event: Event) -> None:
        # the volumes that a fusion counts are fused ones
        if isinstance(event, VolumeFailed):
            on_event(Warned(event.why))
        elif not isinstance(event, VolumeDone):
            on_event(event)

    upright = [view.upright_series for view in views]
    times = views[0].series.times
    if parameters.transforms is not None:
        return applied(read_transforms(parameters.transforms), times, len(views), parameters.transforms)
    return register_series(
        upright, parameters, only_trouble, nominal=nominal(parameters, views), device=device,
        given=given_transforms(parameters, upright),
    )  # fmt: skip


def applied(
    given: SeriesRegistration, times: tuple[int, ...], views: int, path: Path
) -> SeriesRegistration:
    """Transforms of a file for `times`: its own, or its only ones for all."""
    if given.views != views:
        raise InputError(f"{path.name}: transforms of {given.views} views, and there are {views}.")
    if len(given.times) == 1:
        repeated = [
            ViewTransform(
                t, one.view, one.world_to_view, "given" if one.believed else "failed", one.reason
            )
            for t in times
            for one in given.transforms
        ]
        return SeriesRegistration(times, views, tuple(repeated))
    if missing := sorted(set(times) - set(given.times)):
        raise InputError(f"{path.name}: has no transforms of time point {missing[0]}.")
    kept = tuple(one for one in given.transforms if one.time in times)
    return SeriesRegistration(times, views, kept)


def to_json(found: SeriesRegistration) -> dict[str, Any]:
    """Everything about the transforms as JSON types."""
    records = [transform.to_dict() for transform in found.transforms]
    content: dict[str, Any] = plain_json(
        {"times": found.times, "views": found.views, "transforms": records}
    )
    return content


def from_json(content: dict[str, Any]) -> SeriesRegistration:
    """The transforms that `to_json` wrote."""
    transforms = tuple(transform_from_dict(record) for record in content["transforms"])
    return SeriesRegistration(tuple(content["times"]), content["views"], transforms)


def write_all(
    found: SeriesRegistration,
    views: Sequence[PlacedSeries],
    parameters: FuseParameters,
    beside: Path,
) -> list[Path]:
    """Write `beside`_transforms.json, and an ITK text file of each view's first believed one."""
    paths = [beside.with_name(f"{beside.name}_transforms.json")]
    names = [view.series.name for view in views]
    write_transforms(paths[0], found, [v.upright for v in views], names, parameters.plain())
    for number in range(1, found.views):
        believed = [t for t in found.transforms if t.view == number and t.believed]
        if believed:
            paths.append(beside.with_name(f"{beside.name}_view{number}.itk.txt"))
            with plain_errors(paths[-1]):
                write_atomically(paths[-1], affine_to_itk(believed[0].world_to_view))
    return paths
