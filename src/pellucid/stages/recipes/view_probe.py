"""How long views take to be registered and fused: on pieces of them, on the clock."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.back_projectors import Matched
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Grid
from pellucid.core.views import View
from pellucid.stages.fusion.memory import peak_bytes
from pellucid.stages.fusion.plan import FusePlan
from pellucid.stages.fusion.views import nominal
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.pair_registration import nominal_transforms
from pellucid.stages.registration.register_files import RegisterPlan
from pellucid.stages.registration.registering import reference_channels, register_series
from pellucid.stages.registration.view_series import ViewSeries

Volume = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

PIECE = 96
"""Voxels of a side of the pieces that are registered, and of the world that is fused."""


@dataclass(frozen=True)
class _Piece(ViewSeries):
    """The middle of a view at one time point; of a view that is not there yet, a given volume."""

    whole: ViewSeries | None = None
    given: Volume | None = None

    @classmethod
    def of(cls, view: ViewSeries, given: Volume | None) -> "_Piece":
        own = {field.name: getattr(view, field.name) for field in dataclasses.fields(ViewSeries)}
        z, y, x = (min(n, PIECE) for n in view.shape)
        changed = {"shape": (z, y, x), "times": view.times[:1]}
        return cls(**{**own, **changed}, whole=view, given=given)

    def read(self, t: int, c: int) -> Volume:
        assert self.whole is not None
        if self.given is not None:
            return repeated(self.given, self.shape)
        volume = self.whole.read(t, c)
        return middle(volume, self.shape)


def middle(volume: Volume, shape: Sequence[int]) -> Volume:
    """The middle of a volume, of `shape` at most."""
    starts = [max(n - k, 0) // 2 for n, k in zip(volume.shape, shape, strict=True)]
    return volume[tuple(slice(a, a + k) for a, k in zip(starts, shape, strict=True))]


def repeated(piece: Volume, shape: Sequence[int]) -> Volume:
    """A volume of `shape` filled with `piece` and its mirror images."""
    for axis, size in enumerate(shape):
        both = np.concatenate([piece, np.flip(piece, axis)], axis)
        piece = np.take(both, np.arange(size) % both.shape[axis], axis)
    return piece


def register_seconds(plan: RegisterPlan, piece: Volume | None) -> float:
    """Seconds of a registration of files."""
    if plan.parameters.over_time == "none":
        return 0.0
    return _registering(plan.views, plan.parameters, plan.parameters.angles, plan.parameters.axis,
                        plan.psfs, plan.device, piece, plan.total)  # fmt: skip


def fuse_seconds(plan: FusePlan, piece: Volume | None) -> tuple[float, Volume]:
    """Seconds of a fusion, and what becomes of the middle of its world."""
    asked = plan.parameters
    seconds = 0.0
    if asked.transforms is None and asked.over_time != "none":
        channel = reference_channels(asked.reference, plan.views[0].series.channels)[0]
        known = [view[channel] for view in plan.upright_psfs]
        psfs = [None if psf is None else psf.values.astype(np.float32) for psf in known]
        times = 1 if asked.over_time == "once" else len(plan.views[0].series.times)
        seconds += _registering(
            [view.upright_series for view in plan.views], asked, asked.angles, asked.axis, psfs,
            plan.device, piece, times * (len(plan.views) - 1),
        )  # fmt: skip
    places = nominal(asked, plan.views)
    size = [min(n, PIECE) for n in plan.world.shape]
    low = [(n - k) // 2 for n, k in zip(plan.world.shape, size, strict=True)]
    world = plan.world.crop(low, [a + k for a, k in zip(low, size, strict=True)])
    begin = time.perf_counter()
    views = []
    for number, (placed, transform) in enumerate(zip(plan.views, places, strict=True)):
        shape = placed.recorded.shape
        counts = placed.read(0, 0) if piece is None else repeated(piece, shape)
        views.append(View(counts.astype(np.float32), placed.recorded, placed.to_recorded(transform),
                          plan.psf_of(number, 0), asked.background))  # fmt: skip
    reading, begin = time.perf_counter() - begin, time.perf_counter()
    iterations = asked.iterations
    done = fuse(
        views, world, how=asked.method, iterations=iterations, seed=asked.seed, device=plan.device,
        back_projector=None if iterations is None else Matched(),
        update="additive" if iterations is None else "alternating",
    )  # fmt: skip
    spent = time.perf_counter() - begin
    here, whole = (
        float(peak_bytes(plan.views, plan.psfs, places, w, iterations, plan.fields))
        for w in (world, plan.world)
    )
    waiting = 8 * sum(math.prod(view.recorded.shape) for view in plan.views)
    here, whole = here - waiting, whole - waiting
    share = whole * math.log2(whole) / (here * math.log2(here))
    seconds += (reading + spent * share) * math.prod(plan.shape)
    return seconds, done.image.cpu().numpy()


def _registering(
    views: Sequence[ViewSeries],
    parameters: RegistrationParameters,
    angles: Sequence[float],
    axis: str,
    psfs: Sequence[Float32 | None] | None,
    device: str,
    piece: Volume | None,
    total: int,
) -> float:
    """Seconds of `total` registrations: one of the pieces, times the voxels."""
    pieces = [_Piece.of(view, piece) for view in views[:2]]
    grids: list[Grid] = [p.grid for p in pieces]
    once = parameters.model_copy(update={"over_time": "each"})
    begin = time.perf_counter()
    register_series(
        pieces, once, nominal=nominal_transforms(pieces, angles[:2], axis),
        psfs=None if psfs is None else psfs[:2], device=device,
    )  # fmt: skip
    spent = time.perf_counter() - begin
    share = sum(math.prod(v.shape) for v in views[:2]) / sum(math.prod(g.shape) for g in grids)
    return spent * share * total
