"""The transforms of a fusion: nominal, from a file, or registered once or at each time point."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.geometry import Affine
from pellucid.core.registration import Registration, register
from pellucid.core.transform_series import (
    SeriesRegistration,
    ViewTransform,
    first_view,
    transform_from_dict,
)
from pellucid.data.plain_json import plain_json
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import InputError, PellucidError
from pellucid.stages.fuse_parameters import FuseParameters
from pellucid.stages.fuse_views import PlacedSeries, nominal_transforms


def found_transforms(
    parameters: FuseParameters,
    views: Sequence[PlacedSeries],
    device: str,
    say: Callable[[str], None],
) -> SeriesRegistration:
    """The transforms of all views at all time points; what failed is said, and is in the result."""
    times = views[0].series.times
    if parameters.transforms is not None:
        return _from_file(parameters.transforms, times, len(views))
    nominal = nominal_transforms(parameters, views)
    found: list[ViewTransform] = []
    for t, time in enumerate(times):
        found.append(first_view(time))
        for v in range(1, len(views)):
            if parameters.registration == "none":
                found.append(ViewTransform(time, v, nominal[v], "given"))
            elif parameters.registration == "once" and t > 0:
                found.append(ViewTransform(time, v, found[v].world_to_view, "reused"))
            else:
                found.append(_registered(parameters, views, v, t, nominal[v], device))
                if not found[-1].believed:
                    say(f"{views[v].series.name} t={time}: {found[-1].reason}")
        if t == 0:
            _check_first(parameters, views, found, device)
    return SeriesRegistration(times, len(views), tuple(found))


def to_json(found: SeriesRegistration) -> dict[str, Any]:
    """Everything about the transforms as JSON types."""
    content: dict[str, Any] = plain_json(
        {
            "times": found.times,
            "views": found.views,
            "transforms": [transform.to_dict() for transform in found.transforms],
        }
    )
    return content


def from_json(content: dict[str, Any]) -> SeriesRegistration:
    """The transforms that `to_json` wrote."""
    transforms = tuple(transform_from_dict(record) for record in content["transforms"])
    return SeriesRegistration(tuple(content["times"]), content["views"], transforms)


def write_transforms(found: SeriesRegistration, output: Path) -> list[Path]:
    """Write OUTPUT_transforms.json, and an ITK text file of each view's first believed one."""
    stem = output.name.removesuffix(".zarr").removesuffix(".tif").removesuffix(".ome")
    paths = [output.with_name(f"{stem}_transforms.json")]
    with plain_errors(paths[0]):
        write_atomically(paths[0], json.dumps(to_json(found), indent=1) + "\n")
        for view in range(1, found.views):
            transform = next(
                (t for t in found.transforms if t.view == view and t.believed), None
            )
            if transform is not None:
                paths.append(output.with_name(f"{stem}_view{view}.itk.txt"))
                write_atomically(paths[-1], itk_text(transform.world_to_view))
    return paths


def itk_text(affine: Affine) -> str:
    """An affine map as an ITK transform file: XYZ, micrometres, from the fixed (world) view."""
    linear, offset = affine.linear[::-1, ::-1], affine.offset_um[::-1]
    numbers = " ".join(repr(float(v)) for v in [*linear.ravel(), *offset])
    return (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def _registered(
    parameters: FuseParameters,
    views: Sequence[PlacedSeries],
    v: int,
    t: int,
    nominal: Affine,
    device: str,
) -> ViewTransform:
    time = views[0].series.times[t]
    try:
        result = _register(parameters, views, v, t, nominal, device)
    except PellucidError as error:
        return ViewTransform(time, v, nominal, "failed", str(error))
    there = result.fixed_to_moving.with_frames(source="world", target=views[v].frame)
    how: Any = "registered" if result.converged else "failed"
    return ViewTransform(time, v, there, how, result.reason, result)


def _register(
    parameters: FuseParameters,
    views: Sequence[PlacedSeries],
    v: int,
    t: int,
    nominal: Affine,
    device: str,
) -> Registration:
    channel = _channel(parameters, views[0])
    fixed, moving = (view.stood_up(view.read(t, channel)) for view in (views[0], views[v]))
    return register(
        np.ascontiguousarray(fixed, np.float32),
        np.ascontiguousarray(moving, np.float32),
        fixed_spacing_um=views[0].upright.spacing_um,
        moving_spacing_um=views[v].upright.spacing_um,
        model=parameters.model,
        nominal=nominal.with_frames(source="fixed", target="moving"),
        device=device,
    )


def _check_first(
    parameters: FuseParameters,
    views: Sequence[PlacedSeries],
    found: Sequence[ViewTransform],
    device: str,
) -> None:
    """Refuse a whole run whose angles have the wrong sign: every time point would fail alike."""
    mirrored = nominal_transforms(parameters, views, sign=-1.0)
    for v, transform in enumerate(found):
        if transform.believed or mirrored[v] == nominal_transforms(parameters, views)[v]:
            continue
        try:
            other = _register(parameters, views, v, 0, mirrored[v], device)
        except PellucidError:
            continue
        if other.converged:
            angles = ",".join(f"{-a:g}" for a in (parameters.angles or (0.0, 90.0)))
            raise InputError(
                f"{views[v].series.name}: does not agree with {views[0].series.name} at this angle, "
                f"and does at the opposite one. Try --angles {angles.replace('-0', '0')}."
            )


def _channel(parameters: FuseParameters, view: PlacedSeries) -> int:
    names, wanted = view.series.channels, parameters.register_channel
    if wanted is None:
        return 0
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise InputError(f"register_channel: {wanted!r} is not there; there is {', '.join(names)}.")


def _from_file(path: Path, times: tuple[int, ...], views: int) -> SeriesRegistration:
    try:
        given = from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except PellucidError as error:
        raise InputError(f"{path.name}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path.name}: is no file of transforms ({error!r:.80}). Give what fuse or register wrote."
        ) from error
    if given.views != views:
        raise InputError(f"{path.name}: transforms of {given.views} views, and there are {views}.")
    if len(given.times) == 1:
        only = given.transforms
        repeated = [
            ViewTransform(t, one.view, one.world_to_view, "given") for t in times for one in only
        ]
        return SeriesRegistration(times, views, tuple(repeated))
    if missing := sorted(set(times) - set(given.times)):
        raise InputError(f"{path.name}: has no transforms of time point {missing[0]}.")
    return SeriesRegistration(times, views, given.transforms)
