"""One view registered to another as the series wants it: starts, fallbacks, and what else to try."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Affine, Axis
from pellucid.core.registration import Registration, StartName, register
from pellucid.core.transform_series import WORLD, SeriesRegistration, ViewTransform
from pellucid.errors import ParameterError
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.view_series import ViewSeries

Float32 = npt.NDArray[np.float32]
STARTS = ("auto", "identity", "translation", "projections", "search")


def nominal_transforms(
    views: Sequence[ViewSeries], angles_deg: Sequence[float], axis: str
) -> list[Affine]:
    """World to view for each view, as its nominal angle has it; middles lie on middles.

    Parameters
    ----------
    angles_deg : one for each view; relative to the first's. Empty: none is turned
    axis : z, y or x, or a vector as text: "0,1,0.1" (z, y, x)
    """
    if len(angles_deg) not in (0, len(views)):
        raise ParameterError(
            f"angles: expected one for each of the {len(views)} views "
            f"({', '.join(view.name for view in views)}), got {len(angles_deg)}."
        )
    return centred(views, turns_of(list(angles_deg) or [0.0] * len(views), axis))


def turns_of(angles_deg: Sequence[float], axis: str) -> list[Affine]:
    """How each view is turned against the first by its nominal angle."""
    if not all(math.isfinite(angle) for angle in angles_deg):
        raise ParameterError(f"angles: expected finite degrees, got {tuple(angles_deg)}.")
    about = parsed_axis(axis)
    return [Affine.rotation(about, math.radians(angle - angles_deg[0])) for angle in angles_deg]


def centred(views: Sequence[ViewSeries], turns: Sequence[Affine]) -> list[Affine]:
    """World to view for each view, oriented as `turns` have it, with middles on middles."""
    first = views[0].grid.centre_um
    return [
        Affine.from_linear(
            turn.linear, translation_um=view.grid.centre_um - turn.linear @ first,
            source=WORLD, target=f"view {number}",
        )
        for number, (view, turn) in enumerate(zip(views, turns, strict=True))
    ]  # fmt: skip


def check_stated(angles_deg: Sequence[float], alternative: str, *, transforms: bool) -> None:
    """ParameterError where neither angles nor transforms were stated: how views lie is not guessed."""
    if not angles_deg and not transforms:
        raise ParameterError(
            "angles: needed, and not given. State the nominal angle of each view in degrees, such as "
            f"--angles 0,90 (0,0 if neither is turned), or give transforms by {alternative}."
        )


def parsed_axis(axis: str) -> Axis:
    """An axis typed as z, y, x or as a vector z,y,x."""
    if axis in ("z", "y", "x"):
        return axis  # type: ignore[return-value]
    try:
        vector = tuple(float(part) for part in axis.split(","))
    except ValueError:
        vector = ()
    if len(vector) != 3 or not all(map(math.isfinite, vector)) or not any(vector):
        raise ParameterError(f"axis: expected z, y, x, or a vector such as 0,1,0, got {axis!r}.")
    return vector


@dataclass
class Pairing:
    """Registers pairs of views of one series, and remembers what was tried in vain."""

    views: Sequence[ViewSeries]
    parameters: RegistrationParameters
    nominal: Sequence[Affine] | None
    given: SeriesRegistration | None
    psfs: Sequence[Float32 | None] | None
    device: str
    _advice: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nominal is None:
            self.nominal = nominal_transforms(self.views, (), "y")

    def start(self, time_point: int, view: int) -> Affine:
        """The given or nominal transform, world to view."""
        assert self.nominal is not None
        if self.given is None:
            return self.nominal[view]
        found = self.given.nearest(time_point, view).world_to_view
        return found.with_frames(source=WORLD, target=f"view {view}")

    def applied(self, time_point: int, view: int) -> ViewTransform:
        """The given or nominal transform as a result; failed where the file says so."""
        place = self.start(time_point, view)
        near = None if self.given is None else self.given.nearest(time_point, view)
        if near is not None and not near.believed:
            return ViewTransform(time_point, view, place, "failed", near.reason)
        field = None if near is None else near.field
        return ViewTransform(time_point, view, place, "given", field=field)

    def register(
        self,
        volumes: Sequence[Float32 | None],
        time_point: int,
        view: int,
        before: Affine | None,
        placed: Mapping[int, Affine],
    ) -> Registration:
        """Register `view` to the first view; world to view, in the frames "fixed" and "moving".

        Parameters
        ----------
        before : the last transform of this view that was believed
        placed : transforms of other views of this time point
        """
        if self.parameters.over_time == "previous" and before is not None:
            found = self._pair(volumes, 0, view, start=before)
            if found.converged:
                return found
        found = self._pair(volumes, 0, view, start=self._start(time_point, view))
        neighbour = view - 1
        if not found.converged and neighbour in placed and volumes[neighbour] is not None:
            via = self._pair(volumes, neighbour, view, start=None)
            if via.converged:
                composed = via.fixed_to_moving.matrix @ placed[neighbour].matrix
                transform = Affine(composed, "fixed", "moving")
                return replace(via, fixed_to_moving=transform, start=f"{via.start}, via view {neighbour}")
        if found.converged:
            return found
        return replace(found, reason=f"{found.reason}{self._advised(volumes, view)}")

    def _start(self, time_point: int, view: int) -> Affine | StartName | None:
        if self.given is not None:
            return self.start(time_point, view).with_frames(source="fixed", target="moving")
        name = self.parameters.start
        return None if name == "auto" else name  # type: ignore[return-value]

    def _pair(
        self,
        volumes: Sequence[Float32 | None],
        fixed: int,
        moving: int,
        *,
        start: Affine | StartName | None,
        nominal: Affine | None = None,
        mirrored: int | None = None,
    ) -> Registration:
        assert self.nominal is not None
        first, second = volumes[fixed], volumes[moving]
        assert first is not None
        assert second is not None
        turn = nominal or self.nominal[moving] @ self.nominal[fixed].inverse()
        if mirrored is not None:
            second = np.ascontiguousarray(np.flip(second, mirrored))
        options: dict[str, Any] = {}
        if self.psfs is not None and mirrored is None:
            options = {"fixed_psf": self.psfs[fixed], "moving_psf": self.psfs[moving]}
        return register(
            first,
            second,
            fixed_spacing_um=self.views[fixed].voxel_um,
            moving_spacing_um=self.views[moving].voxel_um,
            model=self.parameters.model,
            start=start,
            nominal=turn.with_frames(source="fixed", target="moving"),
            device=self.device,
            **options,
        )

    def _advised(self, volumes: Sequence[Float32 | None], view: int) -> str:
        """What else would register: the opposite angle, or a mirrored axis. Tried once a view."""
        if view not in self._advice:
            self._advice[view] = self._other_orientation(volumes, view)
        return self._advice[view]

    def _other_orientation(self, volumes: Sequence[Float32 | None], view: int) -> str:
        assert self.nominal is not None
        first, second = volumes[0], volumes[view]
        assert first is not None
        assert second is not None
        if first.std() == 0 or second.std() == 0:
            return ""
        angle_deg, backwards = self._backwards(view)
        if 1.0 < abs(angle_deg) < 179.0:
            found = self._pair(volumes, 0, view, start="translation", nominal=backwards)
            if found.converged:
                return f" With the opposite sign it would be believed: the angle may be {-angle_deg:g}."
        for mirrored, name in ((2, "x"), (1, "y"), (0, "z")):
            if second.shape[mirrored] == 1:
                continue
            found = self._pair(volumes, 0, view, start="translation", mirrored=mirrored)
            if found.converged:
                return f" Mirrored along {name} it would be believed: flip that axis of the view."
        if abs(angle_deg) <= 1.0 and self.given is None:
            return " The views were taken as not turned; if they are, give --angles such as 0,90."
        return ""

    def _backwards(self, view: int) -> tuple[float, Affine]:
        """The nominal angle in degrees, and the turn by its opposite."""
        assert self.nominal is not None
        linear = self.nominal[view].linear
        cosine = float(np.clip((np.trace(linear) - 1) / 2, -1, 1))
        fixed, moving = self.views[0].grid, self.views[view].grid
        shift = moving.centre_um - linear.T @ fixed.centre_um
        back = Affine.from_linear(linear.T, translation_um=shift, source="fixed", target="moving")
        return self._sign(linear) * math.degrees(math.acos(cosine)), back

    @staticmethod
    def _sign(linear: npt.NDArray[np.float64]) -> float:
        # the largest component of the axis counts as positive, as for an axis named z, y or x
        turned = np.array([linear[2, 1] - linear[1, 2], linear[0, 2] - linear[2, 0],
                           linear[1, 0] - linear[0, 1]])  # fmt: skip
        return -1.0 if turned[np.argmax(np.abs(turned))] > 0 else 1.0
