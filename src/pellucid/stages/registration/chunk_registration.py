"""Registration in chunks: coarse on few voxels, each chunk from there, one smooth field from all.

No view is ever whole in memory. A chunk is described by its number and a plan that all share
(`ChunkTask`), so an engine may do it anywhere, and a run that was interrupted goes on.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.chunk_registration import (
    Chunk,
    chunked,
    moving_box,
    register_chunk,
)
from pellucid.core.descent import peak_bytes
from pellucid.core.field_fit import ChunkMeasurement, FieldFit, fit_field
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.registration import Registration
from pellucid.core.tiling import Tiling
from pellucid.core.transform_series import (
    WORLD,
    SeriesRegistration,
    ViewTransform,
    first_view,
    registration_from_dict,
)
from pellucid.data.manifest import Manifest
from pellucid.errors import InputError, ParameterError, PellucidError
from pellucid.stages.parameters import Model, RegisterParameters
from pellucid.stages.registration.coarse_views import (
    COARSE_VOXELS,
    SLAB_VOXELS,
    CoarseView,
    Volumes,
    coarsened,
    to_coarse,
    to_fine,
)
from pellucid.stages.registration.pair_registration import Pairing, nominal_transforms
from pellucid.stages.registration.registering import reference_channels
from pellucid.stages.registration.view_series import ViewSeries
from pellucid.stages.work.engine import Done, Engine, InProcess
from pellucid.stages.work.events import OnEvent, TileDone, Warned

Float32 = npt.NDArray[np.float32]
Pair = tuple[int, int]
"""Places of a time point and of a view."""
ChunkKey = tuple[int, int, int]
"""Place of the time point, number of the view, number of the chunk."""

@dataclass(frozen=True)
class ChunkTask:
    """The task of registering all chunks of all views and time points; see `engine.Task`.

    Parameters
    ----------
    grids : of the views, in the frame "fixed" for the first and "moving" for all others
    volumes : of each view and time point, the first view's too
    coarse : fixed to moving
    psfs : one for each view, or None
    """

    tiling: Tiling
    grids: tuple[Grid, ...]
    volumes: Mapping[Pair, Volumes]
    coarse: Mapping[Pair, Affine]
    model: Model
    psfs: tuple[Float32 | None, ...] | None
    device: str

    def part(self, key: ChunkKey) -> str:
        """See `Task.part`."""
        t, view, index = key
        return f"t{t} view {view} chunk {index}"

    def read(self, key: ChunkKey) -> Chunk | ChunkMeasurement:
        """Return the chunk and where it may lie; or why it cannot be had, as a measurement."""
        t, view, index = key
        tile = self.tiling.tile(index)
        fixed = _part(self.grids[0], tile.read)
        box = moving_box(fixed, self.grids[view], self.coarse[t, view])
        try:
            if box is None:
                raise InputError("Outside: the other view does not reach here.")
            moving = _part(self.grids[view], box)
            pair = _summed(self.volumes[t, 0], tile.read), _summed(self.volumes[t, view], box)
        except PellucidError as error:
            centre, half = fixed.centre_um, np.asarray(fixed.extent_um) / 2
            return ChunkMeasurement(
                index, as_triple(centre, "centre"), as_triple(half, "half"), reason=str(error)
            )
        return Chunk(index, *pair, fixed, moving)

    def compute(self, key: ChunkKey, read: Chunk | ChunkMeasurement) -> ChunkMeasurement:
        """Return what was measured of the chunk."""
        if isinstance(read, ChunkMeasurement):
            return read
        t, view, _ = key
        psfs: dict[str, Any] = {}
        if self.psfs is not None:
            psfs = {"fixed_psf": self.psfs[0], "moving_psf": self.psfs[view]}
        return register_chunk(
            read, self.coarse[t, view], model=self.model, device=self.device, **psfs
        )

    def write(self, key: ChunkKey, made: ChunkMeasurement) -> dict[str, Any]:
        """Return what is listed of the chunk: all of it."""
        found = made.transform
        return {**vars(made), "transform": None if found is None else found.to_dict()}


def register_chunks(
    views: Sequence[ViewSeries],
    parameters: RegisterParameters,
    manifest: tuple[Path, Mapping[str, Any]],
    on_event: OnEvent,
    *,
    given: SeriesRegistration | None = None,
    psfs: tuple[Float32 | None, ...] | None = None,
    device: str = "cpu",
    engine: Engine = InProcess(),
) -> tuple[SeriesRegistration, dict[str, Any]]:
    """Register every view to the first in chunks at every time point; fields, and what they rest on.

    Parameters
    ----------
    manifest : where finished chunks are listed, and what decides the result
    given : transforms to begin from
    psfs : for each view (z, y, x) on its voxels, or None
    """
    tiling = chunks_of(views[0], parameters, psfs)
    listed = Manifest(manifest[0], {**manifest[1], "core": tiling.core_shape}, resume=parameters.resume)
    pairs = [(t, v) for t in range(len(views[0].times)) for v in range(1, len(views))]
    coarse = _Coarse(views, parameters, given, device)
    starts = {pair: coarse.listed(pair, listed) for pair in pairs}
    good = {pair: start.fixed_to_moving for pair, start in starts.items() if start.converged}
    channels = reference_channels(parameters.reference, views[0].channels)
    volumes = {
        (t, v): tuple(views[v].lazily(t, c) for c in channels)
        for t, v in {*good, *((t, 0) for t, _ in good)}
    }  # fmt: skip
    grids = tuple(
        dataclasses.replace(view.grid, frame="moving" if view.number else "fixed") for view in views
    )
    task = ChunkTask(
        tiling, grids, volumes, good, parameters.model, psfs, device
    )
    keys = [(*pair, index) for pair in good for index in range(len(tiling))]

    finished = itertools.count(sum(task.part(key) in listed for key in keys))

    def tell(done: Done[ChunkKey]) -> None:
        t, view, index = done.key
        what = f"{views[view].name} t={views[0].times[t]} chunk {index}"
        seconds = done.timings_s.get("compute", 0.0)
        on_event(TileDone(next(finished), len(keys), seconds, what))

    engine.run(keys, task, listed, tell)
    transforms = [first_view(t) for t in views[0].times]
    report: dict[str, Any] = {}
    for t, v in pairs:
        name = f"t={views[0].times[t]} view {v}"
        facts = [listed.facts(task.part((t, v, i))) for i in range(len(tiling)) if (t, v) in good]
        place, said = _fitted(views, (t, v), starts[t, v], [_measurement(f) for f in facts])
        transforms.append(place)
        report[name] = said
        if said["rejected"]:
            on_event(Warned(f"{name}: {said['summary']}"))
    series = SeriesRegistration(views[0].times, len(views), tuple(transforms))
    return series, {"core_zyx": tiling.core_shape, "overlap_zyx": tiling.halo, "fields": report}


def chunks_of(
    first: ViewSeries,
    parameters: RegisterParameters,
    psfs: Sequence[Float32 | None] | None,
) -> Tiling:
    """The chunks of the first view; ParameterError where they are too small, or time is smoothed over."""
    if parameters.over_time not in ("each", "none"):
        raise ParameterError(
            f"over_time: {parameters.over_time} is not done in chunks. Take each, or none to refine "
            "the transforms of a file (--start FILE) without registering as a whole first."
        )
    asked = parameters.chunks if parameters.chunks and any(parameters.chunks) else None
    psf = None if psfs is None or psfs[0] is None else psfs[0].shape
    return chunked(first.grid, asked, None if psf is None else (psf[0], psf[1], psf[2]))


def chunk_peak_bytes(views: Sequence[ViewSeries], tiling: Tiling) -> int:
    """Memory of registering one chunk, with the next one read meanwhile, or everything coarsely."""
    read = [min(n, c + 2 * h) for n, c, h in zip(tiling.shape, tiling.core_shape, tiling.halo, strict=True)]
    fixed = Grid((read[0], read[1], read[2]), views[0].voxel_um)
    # turned by 45 degrees, the box around a chunk is twice as wide; it is found 15 % around
    wide = math.prod(read) * math.prod(views[0].voxel_um) * 4
    voxels = max(wide / math.prod(view.voxel_um) for view in views[1:])
    side = max(1, round(voxels ** (1 / 3)))
    chunk = 8 * (math.prod(read) + side**3) + peak_bytes(fixed, Grid((side, side, side), views[0].voxel_um))
    return int(max(chunk, 8 * SLAB_VOXELS + 80 * COARSE_VOXELS))


@dataclass
class _Coarse:
    """Whole views registered on few voxels, one time point after the other."""

    views: Sequence[ViewSeries]
    parameters: RegisterParameters
    given: SeriesRegistration | None
    device: str
    _read: dict[Pair, Float32] = field(default_factory=dict)

    def listed(self, pair: Pair, listed: Manifest) -> Registration:
        """The coarse registration of a view, fixed to moving: from the list, or found and listed now."""
        part = f"t{pair[0]} view {pair[1]} coarse"
        if part not in listed:
            try:
                found = self._found(pair)
            except PellucidError as error:
                found = _unfounded(str(error))
            listed.record(part, found.to_dict())
        return registration_from_dict(listed.facts(part))

    def _found(self, pair: Pair) -> Registration:
        t, v = pair
        time_point = self.views[0].times[t]
        if self.parameters.over_time == "none":
            return dataclasses.replace(
                _unfounded(""), fixed_to_moving=self._start(pair), converged=True, start="given"
            )
        coarse = self._coarse
        nominal = nominal_transforms(coarse, self.parameters.angles, self.parameters.axis)
        given = None if self.given is None else to_coarse(self.given, coarse)
        pairing = Pairing(coarse, self.parameters, nominal, given, None, self.device)
        images = [self._image(t, n) if n in (0, v) else None for n in range(len(coarse))]
        found = pairing.register(images, time_point, v, None, {})
        place = found.fixed_to_moving.with_frames(source=WORLD, target=f"view {v}")
        one = ViewTransform(time_point, v, place, "registered", "", found)
        (fine,) = to_fine(SeriesRegistration((time_point,), len(coarse), (one,)), coarse).transforms
        assert fine.registration is not None
        return fine.registration

    def _start(self, pair: Pair) -> Affine:
        t, v = pair
        if self.given is not None:
            found = self.given.nearest(self.views[0].times[t], v).world_to_view
        else:
            found = nominal_transforms(self.views, self.parameters.angles, self.parameters.axis)[v]
        return found.with_frames(source="fixed", target="moving")

    @cached_property
    def _coarse(self) -> list[CoarseView]:
        return coarsened(self.views)

    def _image(self, t: int, v: int) -> Float32:
        """A view on few voxels; the first one is kept for the views that follow."""
        if (t, v) not in self._read:
            self._read = {key: kept for key, kept in self._read.items() if key == (t, 0)}
            channels = reference_channels(self.parameters.reference, self.views[0].channels)
            parts = [self._coarse[v].read(t, c) for c in channels]
            self._read[t, v] = np.sum(parts, axis=0, dtype=np.float32)
        return self._read[t, v]


def _summed(volumes: Volumes, box: tuple[slice, slice, slice]) -> Float32:
    parts = [np.asarray(volume[box], dtype=np.float32) for volume in volumes]
    total: Float32 = parts[0] if len(parts) == 1 else np.sum(parts, axis=0, dtype=np.float32)
    return total


def _part(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    return grid.crop([s.start for s in box], [s.stop for s in box])


def _measurement(facts: Mapping[str, Any]) -> ChunkMeasurement:
    found, sigma = facts["transform"], facts["corner_sigma_um"]
    return ChunkMeasurement(
        facts["index"], as_triple(facts["centre_um"], "centre"), as_triple(facts["half_um"], "half"),
        None if found is None else Affine.from_dict(found), facts["model"],
        math.inf if sigma is None else sigma, facts["reason"],
    )  # fmt: skip


def _fitted(
    views: Sequence[ViewSeries],
    pair: Pair,
    coarse: Registration,
    chunks: Sequence[ChunkMeasurement],
) -> tuple[ViewTransform, dict[str, Any]]:
    """The field of one view at one time point, and what is to be recorded of it."""
    t, v = pair
    time_point, frames = views[0].times[t], {"source": WORLD, "target": f"view {v}"}
    start = coarse.fixed_to_moving
    failed = ViewTransform(
        time_point, v, start.with_frames(**frames), "failed",
        f"As a whole, on few voxels: {coarse.reason}", coarse,
    )  # fmt: skip
    if not coarse.converged:
        return failed, {"summary": failed.reason, "rejected": 0, "chunks": []}
    fixed = dataclasses.replace(views[0].grid, frame="fixed")
    try:
        fit = fit_field(start, fixed, chunks)
    except InputError as error:
        failed = dataclasses.replace(failed, reason=str(error))
        return failed, {"summary": str(error), "rejected": 0, "chunks": [vars(c) for c in chunks]}
    found = fit.field.with_frames(**frames)
    place = ViewTransform(time_point, v, found.affine, "registered", "", coarse, found)
    return place, _report(fit, chunks)


def _report(fit: FieldFit, chunks: Sequence[ChunkMeasurement]) -> dict[str, Any]:
    used = [c for c in fit.chunks if c.used]
    filled = [c for c in fit.chunks if np.isnan(c.residual_um)]
    kinds = Counter("empty" if c.reason.startswith("Empty") else "outside" if c.reason.startswith("Outside")
                    else "not believed" for c in filled)  # fmt: skip
    words = [f"{len(used)} of {len(chunks)} chunks count"]
    words += [f"{count} {kind}" for kind, count in kinds.items()]
    words += [f"{len(fit.outliers)} contradicted by their neighbours"] if fit.outliers else []
    return {
        "summary": ", ".join(words) + f"; the field bends by up to {fit.field.largest_um:.3g} um.",
        "rejected": len(chunks) - len(used),
        "largest_um": fit.field.largest_um,
        "steepest": fit.field.steepest,
        "extra_sigma_um": fit.extra_sigma_um,
        "median_sigma_um": float(np.median([c.sigma_um for c in fit.chunks])),
        "models": dict(Counter(c.model for c in chunks if c.transform is not None)),
        "chunks": [
            {**verdict.to_dict(), "centre_um": chunk.centre_um}
            for verdict, chunk in zip(fit.chunks, chunks, strict=True)
        ],
    }


def _unfounded(reason: str) -> Registration:
    none = ((0.0,) * 3,) * 3
    identity = Affine.identity(source="fixed", target="moving")
    return Registration(
        identity, "affine", False, reason, "none", 0.0, 0.0, 0.0, 0.0, 0.0, (math.inf,) * 8, none, 0
    )
