"""Several views of one specimen over time and channels, opened, checked, and read one by one.

    first, second = open_views(["main/{c}/SPIMA", "main/{c}/SPIMB"])
    first.read(t=0, c=0)

All that can be known without reading pixels is checked here, in one sentence each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pellucid.core.geometry import Grid, Triple
from pellucid.data.bdv import views_in
from pellucid.data.recording import Recording, check_voxel_um, open_recording
from pellucid.data.source import Array
from pellucid.data.view_files import ViewFile, arms_in, find_view_files
from pellucid.errors import InputError, ParameterError, PellucidError
from pellucid.stages.pieces.volume_statistics import LazyVolume

Key = tuple[int, str]


class Sliced(Protocol):
    """A (z, y, x) volume of which parts are read."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    def __getitem__(self, box: Any) -> Any: ...


@dataclass(frozen=True)
class Stored:
    """Where one volume lies: the recording, and time point and channel inside it."""

    recording: Recording
    t: int
    c: int


@dataclass(frozen=True)
class ViewSeries:
    """One view: its volumes by time point and channel, none of them read yet.

    Parameters
    ----------
    name : as the user named it, short
    number : place among the views; its grid's frame is "view <number>"
    times : numbers of the time points, as file names number them, or 0, 1, ...
    channels : names of the channels
    shape : (z, y, x) of every volume
    voxel_um : (z, y, x) micrometres
    broken : why a volume cannot be read, by (number of the time point, channel name)
    """

    name: str
    number: int
    times: tuple[int, ...]
    channels: tuple[str, ...]
    shape: tuple[int, int, int]
    voxel_um: Triple
    dtype: np.dtype[Any]
    time_step_s: float | None
    broken: Mapping[Key, str]
    _stored: Mapping[Key, Stored] = field(repr=False, compare=False)

    @property
    def grid(self) -> Grid:
        """Where the voxels are, in the frame of this view: the first at the origin."""
        return Grid(self.shape, self.voxel_um, frame=f"view {self.number}")

    @property
    def sample(self) -> Recording:
        """One of the recordings that the volumes come from; all are alike."""
        return next(iter(self._stored.values())).recording

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the volumes come from, each once."""
        every = [path for stored in self._stored.values() for path in stored.recording.files]
        return tuple(dict.fromkeys(every))

    def read(self, t: int, c: int) -> Array:
        """(z, y, x) pixels as acquired; `t` and `c` count from 0 in `times` and `channels`.

        Raises
        ------
        InputError : a file that is damaged, or of another shape than the others
        """
        stored = self.stored(t, c)
        return stored.recording.read(stored.t, stored.c)

    def lazily(self, t: int, c: int) -> Sliced:
        """The same, read where it is sliced."""
        stored = self.stored(t, c)
        return LazyVolume(stored.recording, stored.t, stored.c)

    def stored(self, t: int, c: int) -> Stored:
        """Where a volume lies, to read parts of it; InputError for a damaged one."""
        key = (self.times[t], self.channels[c])
        if key in self.broken:
            raise InputError(self.broken[key])
        return self._stored[key]


def open_views(
    specs: Sequence[str | Path],
    *,
    voxel_um: Sequence[float] | None = None,
    axes: str | None = None,
    time: str | None = None,
    channel: str | None = None,
) -> tuple[ViewSeries, ...]:
    """The views that `specs` name, with the same time points and channels.

    Parameters
    ----------
    specs : each a file, a folder, an OME-Zarr or a pattern with {t} and {c} (see
        `data.view_files`); `dataset.xml#1` is view 1 of a dataset, `file::0,2` these channels of a
        file that holds several views. One folder alone may hold SPIMA and SPIMB, itself or in a folder
        for each channel; one dataset of BigDataViewer gives all its views
    voxel_um : z, y, x for all views, or three numbers for each; overrides the files
    axes : of the stored arrays, such as "tzyx", where the files are silent
    time : numbers of time points to take: "3", "0:3", "0:9:2", "0,2,5"
    channel : channels to take, by number or name

    Raises
    ------
    InputError : files that cannot be used, missing time points, views that do not fit together
    ParameterError : a selection that takes nothing, or too few views or voxel sizes
    """
    if len(specs) == 1:
        alone = Path(specs[0]).expanduser()
        several = views_in(alone) or arms_in(alone)
        specs = several if len(several) > 1 else specs
    if len(specs) < 2:
        raise ParameterError(
            f"views: expected two or more, got {len(specs)}. Name each view's file, folder or "
            "pattern, one folder that holds SPIMA and SPIMB, or one dataset of BigDataViewer."
        )
    spacings = _spacings(voxel_um, len(specs))
    views = tuple(
        open_view(spec, number, voxel_um=spacing, axes=axes, time=time, channel=channel)
        for number, (spec, spacing) in enumerate(zip(specs, spacings, strict=True))
    )
    for view in views[1:]:
        _check_alike(views[0], view)
    return views


def open_view(
    spec: str | Path,
    number: int = 0,
    *,
    voxel_um: Triple | None = None,
    axes: str | None = None,
    time: str | None = None,
    channel: str | None = None,
) -> ViewSeries:
    """One view; parameters and errors are those of `open_views`."""
    path, _, own_channels = str(spec).partition("::")
    files = find_view_files(path)
    stored, broken, sample = _stored_volumes(files, path, voxel_um, axes)
    every = {**dict.fromkeys(broken), **dict.fromkeys(stored)}
    numbers = sorted({t for t, _ in every})
    names = _in_order(files, sample)
    names = _taken(own_channels, names, path) if own_channels else names
    names = _taken(channel, names, path) if channel else names
    if time is None and files[0].time is not None:
        _check_gaps(numbers, path)
    times = _times(time, numbers, path)
    absent = [f"{t} of channel {c}" for t in times for c in names if (t, c) not in every]
    if absent:
        raise InputError(
            f"{path}: time point {', '.join(absent[:5])} is missing. Add it, or leave it out by "
            "selecting with time=... (--time)."
        )
    z, y, x = sample.shape[2:]
    wanted = {(t, c) for t in times for c in names}
    return ViewSeries(
        name=Path(path).name if Path(path).name not in ("", "{c}") else path,
        number=number,
        times=times,
        channels=names,
        shape=(z, y, x),
        voxel_um=sample.require_voxel_um(),
        dtype=sample.dtype,
        time_step_s=sample.time_step_s,
        broken={key: why for key, why in broken.items() if key in wanted},
        _stored={key: place for key, place in stored.items() if key in wanted},
    )


def _stored_volumes(
    files: Sequence[ViewFile], name: str, voxel_um: Triple | None, axes: str | None
) -> tuple[dict[Key, Stored], dict[Key, str], Recording]:
    """Where each volume lies, why the others cannot be read, and a recording like all."""
    stored: dict[Key, Stored] = {}
    failed: list[tuple[ViewFile, str]] = []
    sample: Recording | None = None
    for file in files:
        try:
            recording = open_recording(file.path, voxel_um=voxel_um, axes=axes)
            _check_one_time(file, recording)
            sample = sample or recording
            _check_same(recording, sample)
        except PellucidError as error:
            if len(files) == 1 or isinstance(error, ParameterError):
                raise
            failed.append((file, str(error)))
            continue
        for t, c in np.ndindex(recording.shape[:2]):
            number = recording.time_numbers[t] if file.time is None else file.time
            key = (number, _channel(file, recording, c))
            stored[key] = Stored(recording, t, c)
    if sample is None:
        raise InputError(f"{name}: none of its {len(files)} files can be read. {failed[0][1]}")
    broken = {
        (0 if file.time is None else file.time, _channel(file, sample, c)): why
        for file, why in failed
        for c in range(sample.shape[1])
    }
    return stored, broken, sample


def _channel(file: ViewFile, recording: Recording, c: int) -> str:
    """Name of channel `c` of a file: of its folder or pattern, of the file itself, or both."""
    own = recording.channels[c]
    if file.channel is None:
        return own
    return file.channel if recording.shape[1] == 1 else f"{file.channel} {own}"


def _check_one_time(file: ViewFile, recording: Recording) -> None:
    if file.time is not None and recording.shape[0] > 1:
        raise InputError(
            f"{file.path.name}: holds {recording.shape[0]} time points, and is one of several "
            "files that are time points themselves. Name one file, or state axes='zyx' (--axes)."
        )


def _check_same(recording: Recording, sample: Recording) -> None:
    if recording.shape[1:] != sample.shape[1:]:
        raise InputError(
            f"{recording.path.name}: (c, z, y, x) is {recording.shape[1:]}, and "
            f"{sample.shape[1:]} in {sample.path.name}. Export it again, or leave it out."
        )


def _in_order(files: Sequence[ViewFile], sample: Recording) -> tuple[str, ...]:
    names = [_channel(file, sample, c) for file in files for c in range(sample.shape[1])]
    return tuple(dict.fromkeys(names))


def _taken(selection: str, names: tuple[str, ...], where: str) -> tuple[str, ...]:
    taken: list[str] = []
    for part in (piece.strip() for piece in selection.split(",")):
        if part in names:
            taken.append(part)
        elif part.isdigit() and int(part) < len(names):
            taken.append(names[int(part)])
        else:
            raise ParameterError(
                f"channel: {part!r} is not in {where}; there is {', '.join(names)}."
            )
    if len(set(taken)) < len(taken):
        raise ParameterError(f"channel: {selection!r} takes a channel twice.")
    return tuple(taken)


def _check_gaps(numbers: Sequence[int], where: str) -> None:
    """Raise InputError where the numbers in file names leave a time point out."""
    step = min(np.diff(numbers).tolist(), default=1)
    missing = sorted(set(range(numbers[0], numbers[-1] + 1, step)) - set(numbers))
    if missing:
        raise InputError(
            f"{where}: time point{'s' if len(missing) > 1 else ''} {_listed(missing)} missing "
            f"between {numbers[0]} and {numbers[-1]}. Add what is missing, or select what is "
            "there with time=... (--time)."
        )


def _times(selection: str | None, numbers: Sequence[int], where: str) -> tuple[int, ...]:
    """The time points to take, by their numbers."""
    if selection is None:
        return tuple(numbers)
    taken: list[int] = []
    for part in (piece.strip() for piece in selection.split(",")):
        pieces = part.split(":")
        if part.isdigit():
            taken.append(int(part))
        elif len(pieces) in (2, 3) and all(p.isdigit() or not p for p in pieces) and part != "::":
            start, stop = (
                int(p) if p else d
                for p, d in zip(pieces[:2], (numbers[0], numbers[-1] + 1), strict=True)
            )
            step = int(pieces[2]) if len(pieces) == 3 and pieces[2] else 1
            taken += [t for t in range(start, stop, max(1, step)) if t <= numbers[-1]]
        else:
            raise ParameterError(f"time: expected numbers such as 3, 0:3 or 0,2,5, got {part!r}.")
    absent = sorted(set(taken) - set(numbers))
    if absent or not taken or len(set(taken)) < len(taken):
        what = f"{_listed(absent)}, not" if absent else "nothing, or something twice,"
        raise ParameterError(
            f"time: {selection!r} takes {what} in {where}, which has {_listed(numbers)}."
        )
    return tuple(taken)


def _spacings(voxel_um: Sequence[float] | None, count: int) -> list[Triple | None]:
    if voxel_um is None or len(voxel_um) == 0:
        return [None] * count
    if len(voxel_um) not in (3, 3 * count):
        raise ParameterError(
            f"voxel_um: expected z,y,x for all views or for each of {count}, got "
            f"{len(voxel_um)} numbers."
        )
    each = [check_voxel_um(voxel_um[i : i + 3]) for i in range(0, len(voxel_um), 3)]
    return [*each] if len(each) == count else [each[0]] * count


def _check_alike(first: ViewSeries, view: ViewSeries) -> None:
    if len(first.channels) != len(view.channels):
        raise InputError(
            f"{first.name} has {len(first.channels)} channels ({', '.join(first.channels)}) and "
            f"{view.name} {len(view.channels)} ({', '.join(view.channels)}). "
            "Select those that both have with channel=... (--channel)."
        )
    if first.times == view.times:
        return
    only = [
        f"{_listed(sorted(set(some.times) - set(other.times)))} only in {some.name}"
        for some, other in ((first, view), (view, first))
        if set(some.times) - set(other.times)
    ]
    raise InputError(
        f"{first.name} has {len(first.times)} time points and {view.name} {len(view.times)}: "
        f"{' and '.join(only)}. Select those that both have with time=... (--time)."
    )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:6])
    return f"{shown} and {len(numbers) - 6} more" if len(numbers) > 6 else shown
