"""Transforms of several views over time: what was found, what was repaired, what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.core.geometry import Affine
from pellucid.core.registration import Registration
from pellucid.core.transform_field import TransformField
from pellucid.errors import InputError, ParameterError

How = Literal["first", "given", "registered", "reused", "smoothed", "repaired", "failed"]
WORLD = "world"


@dataclass(frozen=True)
class ViewTransform:
    """Where one view lies at one time point.

    Parameters
    ----------
    time : number of the time point
    view : number of the view; 0 is the first, which is the world
    world_to_view : maps micrometres of the world, the first view, to those of the view; its frames
        are "world" and "view <number>"
    how : "first" (the first view: the identity), "given", "registered", "reused" from another time
        point, "smoothed" over time, "repaired" from its neighbours in time, or "failed": not to
        be believed, the best guess
    reason : one sentence: why it failed or was repaired; empty otherwise
    registration : what was measured at this time point, believed or not; None where nothing was
    field : the same from "world" to the view where it was registered in chunks; `world_to_view` is
        the affine map that comes closest
    """

    time: int
    view: int
    world_to_view: Affine
    how: How
    reason: str = ""
    registration: Registration | None = None
    field: TransformField | None = None

    @property
    def believed(self) -> bool:
        """Whether the transform may be used."""
        return self.how != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "field"}
        measured = self.registration
        return {
            **record,
            "world_to_view": self.world_to_view.to_dict(),
            "registration": None if measured is None else measured.to_dict(),
            **({} if self.field is None else {"field": self.field.to_dict()}),
        }


@dataclass(frozen=True)
class SeriesRegistration:
    """The transforms of all views at all time points.

    Parameters
    ----------
    times : numbers of the time points
    views : how many, the first counted
    transforms : one for each time point and view that was done so far
    """

    times: tuple[int, ...]
    views: int
    transforms: tuple[ViewTransform, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", {(t.time, t.view): t for t in self.transforms})

    def at(self, time: int, view: int) -> ViewTransform:
        """The transform of `view` at the time point numbered `time`; InputError if not there."""
        found: Mapping[tuple[int, int], ViewTransform] = self._found  # type: ignore[attr-defined]
        if (time, view) not in found:
            raise InputError(
                f"transforms: expected time points {self.times} and views 0 to {self.views - 1}, "
                f"got time point {time}, view {view}."
            )
        return found[time, view]

    def world_to_view(self, time: int, view: int) -> Affine:
        """Map micrometres of the world (the first view) to micrometres of `view`."""
        return self.at(time, view).world_to_view

    def nearest(self, time: int, view: int) -> ViewTransform:
        """The transform of `view` at the time point nearest to `time`; InputError if none."""
        known = [transform for transform in self.transforms if transform.view == view]
        if not known:
            raise InputError(f"transforms: there are views 0 to {self.views - 1}, and no {view}.")
        return min(known, key=lambda transform: abs(transform.time - time))

    @property
    def unmeasured(self) -> tuple[ViewTransform, ...]:
        """Those whose own registration failed, whether or not their neighbours repaired them."""
        return tuple(
            t
            for t in self.transforms
            if not t.believed
            or (t.how == "repaired" and not (t.registration and t.registration.converged))
        )

    @property
    def failures(self) -> tuple[ViewTransform, ...]:
        """Those that are not to be believed."""
        return tuple(transform for transform in self.transforms if not transform.believed)

    @property
    def repaired(self) -> tuple[ViewTransform, ...]:
        """Outliers that were replaced by what their neighbours in time say."""
        return tuple(transform for transform in self.transforms if transform.how == "repaired")


def first_view(time: int) -> ViewTransform:
    """Return the transform of the first view, which is the world."""
    return ViewTransform(time, 0, Affine.identity(source=WORLD, target="view 0"), "first")


def registration_from_dict(record: Mapping[str, Any]) -> Registration:
    """Return the registration that `Registration.to_dict` wrote."""
    names = set(Registration.__dataclass_fields__)
    if missing := sorted(names - set(record)):
        raise ParameterError(f"Registration: expected the keys {missing} as well. Register again.")
    values: dict[str, Any] = {name: _tuples(record[name]) for name in names}
    sigmas: Sequence[float | None] = record["corner_sigma_um"]
    values["corner_sigma_um"] = tuple(float("inf") if s is None else s for s in sigmas)
    values["fixed_to_moving"] = Affine.from_dict(record["fixed_to_moving"])
    return Registration(**values)


def transform_from_dict(record: Mapping[str, Any]) -> ViewTransform:
    """Return the transform that `ViewTransform.to_dict` wrote."""
    names = set(ViewTransform.__dataclass_fields__)
    if set(record) | {"field"} != names:
        raise ParameterError(f"transform: expected the keys {sorted(names)}, got {sorted(record)}.")
    measured = record["registration"]
    return ViewTransform(
        record["time"],
        record["view"],
        Affine.from_dict(record["world_to_view"]),
        record["how"],
        record["reason"],
        None if measured is None else registration_from_dict(measured),
        TransformField.from_dict(record["field"]) if "field" in record else None,
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
