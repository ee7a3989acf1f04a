"""The transforms of a fusion: registered as `pellucid register` does, or from a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.transform_series import (
    SeriesRegistration,
    transform_from_dict,
)
from pellucid.data.plain_json import plain_json
from pellucid.data.transform_exchange import affine_to_itk
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.plan import FusePlan
from pellucid.stages.fusion.views import PlacedSeries, nominal
from pellucid.stages.registration.coarse_views import coarsened, to_coarse, to_fine
from pellucid.stages.registration.given_transforms import applied, read_given, start_transforms
from pellucid.stages.registration.pair_registration import nominal_transforms
from pellucid.stages.registration.registering import reference_channels, register_series
from pellucid.stages.work.events import Event, OnEvent, VolumeDone, VolumeFailed, Warned


def found_transforms(
    plan: FusePlan,
    on_event: OnEvent,
    *,
    done: SeriesRegistration | None = None,
    on_partial: Callable[[SeriesRegistration], None] | None = None,
) -> SeriesRegistration:
    """The transforms of all views at all time points; what failed is said, and is in the result.

    Parameters
    ----------
    done : what an interrupted run found
    on_partial : is handed what there is after every time point
    """
    parameters = plan.parameters
    if parameters.transforms is not None:
        assert plan.given is not None
        return plan.given

    def only_trouble(event: Event) -> None:
        # the volumes that a fusion counts are fused ones
        if isinstance(event, VolumeFailed):
            on_event(Warned(event.why))
        elif not isinstance(event, VolumeDone):
            on_event(event)

    upright = [view.upright_series for view in plan.views]
    channel = reference_channels(parameters.reference, upright[0].channels)[0]
    known = [view[channel] for view in plan.upright_psfs]
    psfs = [None if psf is None else psf.values.astype(np.float32) for psf in known]
    if plan.blocks is None or parameters.over_time == "none":
        return register_series(
            upright, parameters, only_trouble, nominal=nominal(parameters, plan.views),
            given=plan.given, psfs=psfs, device=plan.device, done=done, on_partial=on_partial,
        )  # fmt: skip
    coarse = coarsened(upright)
    found = register_series(
        coarse, parameters, only_trouble,
        nominal=nominal_transforms(coarse, parameters.angles, parameters.axis),
        given=None if plan.given is None else to_coarse(plan.given, coarse),
        psfs=None if any(view.is_coarser for view in coarse) else psfs, device=plan.device,
    )  # fmt: skip
    return to_fine(found, coarse)


def given_transforms(
    parameters: FuseParameters, views: Sequence[PlacedSeries]
) -> SeriesRegistration | None:
    """The transforms of a file, to apply (`transforms`) or to begin from (`start`); None: neither."""
    upright = [view.upright_series for view in views]
    path = parameters.transforms
    if path is None:
        return start_transforms(parameters, upright)
    path = path.expanduser()
    return applied(read_given(path, upright), views[0].series.times, path)


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
