"""Registration of series: the transforms of all views at all time points.

    register_series(open_views([...]), RegistrationParameters(), nominal).world_to_view(t, view)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Affine
from pellucid.core.registration import Registration
from pellucid.core.transform_series import (
    WORLD,
    How,
    SeriesRegistration,
    ViewTransform,
    first_view,
)
from pellucid.core.transform_smoothing import Course
from pellucid.errors import ParameterError, PellucidError
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.pair_registration import Pairing
from pellucid.stages.registration.view_series import ViewSeries
from pellucid.stages.work.events import OnEvent, VolumeDone, VolumeFailed, Warned, ignore
from pellucid.stages.work.lanes import ReadAhead

Float32 = npt.NDArray[np.float32]
Key = tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """What came of one view at one time point: a registration, or why there is none."""

    registration: Registration | None
    reason: str

    @property
    def transform(self) -> Affine | None:
        """The transform, where it is believed."""
        found = self.registration
        return found.fixed_to_moving if found is not None and found.converged else None


def register_series(
    views: Sequence[ViewSeries],
    parameters: RegistrationParameters,
    on_event: OnEvent = ignore,
    *,
    nominal: Sequence[Affine] | None = None,
    given: SeriesRegistration | None = None,
    psfs: Sequence[Float32 | None] | None = None,
    device: str = "cpu",
    done: SeriesRegistration | None = None,
    on_partial: Callable[[SeriesRegistration], None] | None = None,
) -> SeriesRegistration:
    """Register every view to the first at every time point; one bad time point stops nothing.

    Parameters
    ----------
    views : opened by `open_views`
    on_event : hears of every view and time point, done or failed, and of outliers repaired
    nominal : for each view, how it is oriented: world to view (see `nominal_transforms`); None:
        like the first
    given : transforms to begin from, and to apply where `over_time` is "none"
    psfs : for each view (z, y, x) on its voxels, or None
    done : results of an interrupted run, whose registrations are taken over
    on_partial : is handed what there is after every time point, to be kept in case of interruption

    Returns
    -------
    `world_to_view(time, view)` for every time point number and view; `unmeasured` lists those whose
    own registration failed

    Raises
    ------
    ParameterError : a reference channel or a time point that is not there
    """
    numbers = range(1, len(views))
    pairing = Pairing(views, parameters, nominal, given, psfs, device)
    if parameters.over_time == "none":
        return _series(views, [pairing.applied(t, v) for t in views[0].times for v in numbers])
    known = _known(done)
    measured: dict[Key, Measured] = {}
    times = _times_to_register(views[0], parameters)
    channels = reference_channels(parameters.reference, views[0].channels)
    missing = [t for t in times if any((t, v) not in known for v in numbers)]
    count = len(views) - 1
    total = count if parameters.over_time == "once" else len(times) * count
    with ReadAhead(missing, lambda t: _read(views, t, channels)) as ahead:
        reading = iter(ahead)
        for time_point in times:
            if time_point in missing:
                _, future = next(reading)
                volumes = future.result()
            for view in numbers:
                key = (time_point, view)
                begin = time.perf_counter()
                if key in known:
                    measured[key] = known[key]
                else:
                    measured[key] = _measure(pairing, volumes, time_point, view, measured)
                what = f"{views[view].name} t={time_point}"
                _tell(on_event, measured[key], len(measured) - 1, total, what, begin)
            if on_partial is not None:
                on_partial(_series(views, _raw(measured, pairing)))
            if parameters.over_time == "once" and all(
                measured[time_point, v].transform is not None for v in numbers
            ):
                break
    if parameters.over_time == "once":
        return _series(views, _reused(views, measured, pairing, time_point))
    return _series(views, _settled(views, measured, pairing, parameters, on_event))


def reference_channels(reference: str, names: Sequence[str]) -> tuple[int, ...]:
    """Places of the channels that register, whose sum is taken; ParameterError if not there."""
    if reference == "sum" and "sum" not in names:
        return tuple(range(len(names)))
    places = []
    for part in (piece.strip() for piece in reference.split(",")):
        if part in names:
            places.append(list(names).index(part))
        elif part.isdigit() and int(part) < len(names):
            places.append(int(part))
        else:
            raise ParameterError(
                f"reference: {part!r} is no channel; there is {', '.join(names)}, 0 to "
                f"{len(names) - 1}, and sum."
            )
    return tuple(dict.fromkeys(places))


def _times_to_register(view: ViewSeries, parameters: RegistrationParameters) -> tuple[int, ...]:
    wanted = parameters.at_time
    if parameters.over_time != "once" or wanted is None:
        return view.times
    if wanted not in view.times:
        raise ParameterError(
            f"at_time: expected one of the time points {view.times[0]} to {view.times[-1]} that "
            f"are taken, got {wanted}."
        )
    return (wanted,)


def _read(
    views: Sequence[ViewSeries], time_point: int, channels: Sequence[int]
) -> list[Float32 | str]:
    """The volume of each view that registers, or why there is none."""
    place = views[0].times.index(time_point)
    volumes: list[Float32 | str] = []
    for view in views:
        try:
            parts = [view.read(place, c).astype(np.float32) for c in channels]
        except (PellucidError, OSError) as error:
            volumes.append(str(error))
            continue
        volume: Float32 = np.sum(parts, axis=0) if len(parts) > 1 else parts[0]
        bad = volume.size - int(np.isfinite(volume).sum())
        volumes.append(
            f"{view.name} t={time_point}: {bad} of {volume.size} voxels are NaN or infinite. "
            "Replace them, or leave this time point out."
            if bad
            else volume
        )
    return volumes


def _measure(
    pairing: Pairing,
    volumes: Sequence[Float32 | str],
    time_point: int,
    view: int,
    measured: Mapping[Key, Measured],
) -> Measured:
    unread = [volumes[v] for v in (0, view) if isinstance(volumes[v], str)]
    if unread:
        return Measured(None, str(unread[0]))
    before = [
        found.transform
        for (_, v), found in measured.items()
        if v == view and found.transform is not None
    ]
    placed = {
        v: found.transform
        for (t, v), found in measured.items()
        if t == time_point and found.transform is not None
    }
    arrays = [None if isinstance(volume, str) else volume for volume in volumes]
    found = pairing.register(arrays, time_point, view, before[-1] if before else None, placed)
    return Measured(found, found.reason)


def _tell(
    on_event: OnEvent, found: Measured, index: int, total: int, what: str, begin: float
) -> None:
    seconds = time.perf_counter() - begin
    if found.transform is not None:
        on_event(VolumeDone(index, total, seconds, what))
    else:
        on_event(VolumeFailed(index, total, what, f"{what}: {found.reason}"))


def _known(done: SeriesRegistration | None) -> dict[Key, Measured]:
    """Registrations of an earlier run that need not be done again."""
    return {
        (t.time, t.view): Measured(t.registration, t.registration.reason)
        for t in (done.transforms if done else ())
        if t.registration is not None
    }


def _series(views: Sequence[ViewSeries], transforms: Sequence[ViewTransform]) -> SeriesRegistration:
    times = views[0].times
    firsts = [first_view(t) for t in times]
    order = sorted([*firsts, *transforms], key=lambda t: (times.index(t.time), t.view))
    return SeriesRegistration(times, len(views), tuple(order))


def _raw(measured: Mapping[Key, Measured], pairing: Pairing) -> list[ViewTransform]:
    return [_as_found(key, found, pairing) for key, found in measured.items()]


def _as_found(key: Key, found: Measured, pairing: Pairing) -> ViewTransform:
    time_point, view = key
    transform = found.transform
    if transform is None:
        start = pairing.start(time_point, view)
        return ViewTransform(time_point, view, start, "failed", found.reason, found.registration)
    placed = transform.with_frames(source=WORLD, target=f"view {view}")
    return ViewTransform(time_point, view, placed, "registered", "", found.registration)


def _reused(
    views: Sequence[ViewSeries], measured: Mapping[Key, Measured], pairing: Pairing, at: int
) -> list[ViewTransform]:
    """The transforms of time point `at` for all."""
    transforms = []
    for view in range(1, len(views)):
        tried = [t for (t, v), m in measured.items() if v == view and m.transform is not None]
        key = (tried[-1] if tried else at, view)
        found = _as_found(key, measured[key], pairing)
        how: How = "reused" if found.believed else "failed"
        for t in views[0].times:
            reused = replace(found, time=t, how=how, registration=None)
            transforms.append(found if t == found.time else reused)
    return transforms


def _settled(
    views: Sequence[ViewSeries],
    measured: Mapping[Key, Measured],
    pairing: Pairing,
    parameters: RegistrationParameters,
    on_event: OnEvent,
) -> list[ViewTransform]:
    """Failures and outliers repaired from their neighbours in time; smoothed where asked for."""
    times = views[0].times
    settled: list[ViewTransform] = []
    for view in range(1, len(views)):
        found = [_as_found((t, view), measured[t, view], pairing) for t in times]
        if not any(f.believed for f in found):
            settled += found
            continue
        course = Course(times, [f.world_to_view if f.believed else None for f in found], views[0].grid)
        outliers = course.outliers(max(views[view].voxel_um))
        course = course.without(outliers)
        for place, transform in enumerate(found):
            if place in outliers or not transform.believed:
                why = transform.reason or "It contradicts the time points around it."
                transform = replace(
                    transform, world_to_view=course.predicted(place), how="repaired", reason=why
                )
                if place in outliers:
                    on_event(Warned(f"{views[view].name} t={transform.time}: an outlier, repaired."))
            elif parameters.over_time == "smoothed" and int(course.known.sum()) > 2:
                smooth = course.smoothed(place, parameters.smooth_over)
                transform = replace(transform, world_to_view=smooth, how="smoothed")
            settled.append(transform)
    return settled
