"""Deconvolution of volumes larger than memory: tile by tile, interrupted at any time, gone on with.

Everything that a tile needs to know of its volume is measured once (`VolumeStatistics`, `Schedule`) and
kept in the list of finished parts; so a tile depends on the recording, this and its number alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core import back_projectors
from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import (
    Kernel,
    back_projector,
    blur_at,
    image_shape,
    in_photons,
    kernel_of,
    usable_psf,
)
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.replay import Replay, Schedule, Stretch, decided
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.tiling import Box, Tile, Tiling
from pellucid.data.manifest import Manifest
from pellucid.data.ome_zarr_writer import StoredArray
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.resumable_zarr import ResumableZarr, write_part
from pellucid.data.writer import ImageDescription
from pellucid.stages.deconvolution.planning import FilePlan, Plan
from pellucid.stages.pieces.pieces_run import deciding, going_on, head_of, make_pieces
from pellucid.stages.pieces.tile_plan import TilePlan
from pellucid.stages.pieces.volume_statistics import (
    LazyVolume,
    Place,
    VolumeStatistics,
    measured,
    rounded,
)
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import FileDone, OnEvent, Warned
from pellucid.stages.work.resources import describe_device, return_freed_memory

Float32 = npt.NDArray[np.float32]

WITHOUT_EFFECT = ("output", "overwrite", "resume", "report", "memory", "tile", "device", "format",
                  "cluster")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""


class Restorer(Protocol):
    """Anything that takes a problem and returns what it restored."""

    def __call__(self, problem: Problem, /) -> Restored: ...


@dataclass(frozen=True)
class VolumeTask:
    """One volume, and what is known of it: with a tile's number, all that a worker needs.

    Parameters
    ----------
    restorer : of every tile; it decides nothing by the tile that it sees
    """

    volume: LazyVolume
    kernel: Kernel
    statistics: VolumeStatistics
    restorer: Restorer
    device: str

    @cached_property
    def dark(self) -> frozenset[int]:
        """Numbers of the tiles without light."""
        return frozenset(self.statistics.empty)

    def read(self, tile: Tile) -> npt.NDArray[Any]:
        """Return the counts of a tile and its halo."""
        counts: npt.NDArray[Any] = self.volume[tile.read]
        return counts

    def restored(self, tile: Tile, counts: npt.NDArray[Any]) -> tuple[Float32, dict[str, Any]]:
        """Return the core of a tile in counts above background, and what the restorer said."""
        problem = self.problem(counts, tile.read)
        done = self.restorer(problem)
        light = problem.observations[0].keep_recorded(done.image)
        return self.core(tile, light), {"ran_away": bool(done.stats.get("ran_away", False))}

    def core(self, tile: Tile, light: Tensor) -> Float32:
        """Return the core of a tile in counts, of what was restored of it in photons."""
        core = light[tile.inner].mul(self.statistics.levels.gain).cpu().numpy()
        return np.ascontiguousarray(core)

    def problem(self, counts: npt.NDArray[Any], box: Box) -> Problem:
        """Return the problem of a part of the volume in photons, of the blur at its place."""
        image = torch.from_numpy(np.ascontiguousarray(counts, np.float32)).to(self.device)
        levels = self.statistics.levels
        photons, expected, _ = in_photons(image, levels.background, levels.camera)
        z, y, x = (part.start for part in box)
        blur = blur_at(self.kernel, image_shape(image), (z, y, x), self.device)
        fill = levels.fill
        seen = None
        if fill is not None and not (mask := fill.recorded(np.asarray(counts))).all():
            seen = torch.from_numpy(mask).to(self.device)
        return Problem((Observation(photons, blur, expected, seen),))


TileKey = tuple[int, int, int]
"""(t, c) in the output, and the number of a tile."""


@dataclass(frozen=True)
class RestoredTiles:
    """The task of restoring the tiles of all volumes of one output."""

    tiling: Tiling
    volumes: Mapping[Place, VolumeTask]
    stored: StoredArray

    def part(self, key: TileKey) -> str:
        """See `Task.part`."""
        t, c, index = key
        return f"t{t} c{c} tile {index}"

    def read(self, key: TileKey) -> list[npt.NDArray[Any]]:
        """Return the counts of a tile and its halo, to be taken out; none where there is no light."""
        t, c, index = key
        volume = self.volumes[t, c]
        return [] if index in volume.dark else [volume.read(self.tiling.tile(index))]

    def compute(
        self, key: TileKey, read: list[npt.NDArray[Any]]
    ) -> tuple[Float32 | None, dict[str, Any]]:
        """Return the core of a tile in counts above background, and what the restorer said."""
        if not read:
            return None, {}
        t, c, index = key
        return self.volumes[t, c].restored(self.tiling.tile(index), read.pop())

    def write(self, key: TileKey, made: tuple[Float32 | None, dict[str, Any]]) -> dict[str, Any]:
        """Write the core of a tile; returns what is listed of it."""
        t, c, index = key
        core, facts = made
        z, y, x = self.tiling.tile(index).core
        shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        return facts | write_part(self.stored, t, c, core, shape, (z.start, y.start, x.start))


def run_tiled(
    plan: Plan, file: FilePlan, on_event: OnEvent, engine: Engine = InProcess()
) -> tuple[Path, list[str]]:
    """Carry out one file of a plan by tiles; returns its record's path, and warnings.

    Raises
    ------
    PellucidError : reading or writing failed; what is finished stays, and can be gone on with
    """
    assert file.tiles is not None
    asked = plan.parameters
    warnings: list[str] = []
    record = RunRecord("deconvolve", asked.plain())
    return_freed_memory()
    record.inputs = [fingerprint(path) for path in [*file.recording.files, *asked.psf]]
    writer = _writer(plan, file, record)
    file.output.parent.mkdir(exist_ok=True)
    tiling = file.tiles.tiling
    with going_on(writer, "tile"):
        with record.timed("measure"):
            prepared = _prepared(plan, file, writer.done, engine)
        ran_away = make_tiles(
            tiling, prepared, writer, engine, record, on_event, computing="deconvolve"
        )
    volumes = [
        {
            "t": file.times[t], "c": file.channels[c], **task.statistics.to_json(),
            "schedule": _decisions(task.restorer),
            "tiles_that_ran_away": ran_away[t, c],
        }
        for (t, c), task in prepared.items()
    ]  # fmt: skip
    for place, count in ran_away.items():
        warnings.append(
            f"{file.name(*task_place(file, place))}: {count} tiles left the data; "
            "they are unlike the rest of the volume. Give a number of iterations."
        )
        on_event(Warned(warnings[-1]))
    record.statistics = {
        "device": describe_device(plan.device), "shape_tczyx": file.shape, "voxel_um": file.voxel_um,
        "peak_bytes_planned": tiling.peak_bytes, "tiles": len(tiling), "core_zyx": tiling.core_shape,
        "halo_zyx": tiling.halo, "halo_share": tiling.halo_share, "volumes": volumes,
    }  # fmt: skip
    path = write_record(record, file.output)
    on_event(FileDone(file.output, path))
    return path, warnings


def make_tiles(
    tiling: Tiling,
    volumes: Mapping[Place, VolumeTask],
    writer: ResumableZarr,
    engine: Engine,
    record: RunRecord,
    on_event: OnEvent,
    *,
    computing: str,
) -> Counter[Place]:
    """Make all tiles and the coarser levels; how many tiles of each volume left the data."""
    tiles = RestoredTiles(tiling, volumes, writer.stored_array(0))
    keys = [(*place, index) for place in volumes for index in range(len(tiling))]

    def named(key: TileKey) -> str:
        return f"{volumes[key[:2]].volume.name} tile {key[2]}"

    make_pieces(keys, tiles, writer, engine, record, on_event, computing=computing, named=named)
    return Counter(
        key[:2] for key in keys if writer.done.facts(tiles.part(key)).get("ran_away")
    )


def task_place(file: FilePlan, place: Place) -> Place:
    """(t, c) in the recording of (t, c) in the output."""
    return file.times[place[0]], file.channels[place[1]]


def _prepared(
    plan: Plan, file: FilePlan, done: Manifest, engine: Engine
) -> dict[Place, VolumeTask]:
    """What is known of every volume before its tiles: measured, decided, and listed by the engine."""
    assert file.tiles is not None
    asked, tiling = plan.parameters, file.tiles.tiling
    volumes = {
        (int(t), int(c)): LazyVolume(file.recording, *task_place(file, (t, c)))
        for t, c in np.ndindex(file.shape[:2])
    }
    known = measured(volumes, tiling, asked.background, asked.fill, engine, done)
    projector = back_projector(asked.method)
    kernels = {psf: kernel_of(usable_psf(psf, tiling.shape)) for psf in file.psfs}
    tasks = {}
    for place, volume in volumes.items():
        chosen: Restorer = Accelerated(projector, seed=asked.seed)
        if asked.iterations is not None:
            chosen = RichardsonLucy(asked.iterations, projector, start=known[place].start)
        kernel = kernels[file.psfs[place[1]]]
        tasks[place] = VolumeTask(volume, kernel, known[place], chosen, plan.device)
    if asked.iterations is not None:
        return tasks
    decisions = decided_by(scheduled, file.tiles, tasks, done, engine)
    replays = {place: Replay(schedule_of(schedule)) for place, schedule in decisions.items()}
    return {place: replace(t, restorer=replays.get(place, t.restorer)) for place, t in tasks.items()}


V = TypeVar("V", bound=VolumeTask)
Decide = Callable[[V, Problem], dict[str, Any]]
"""What all tiles of a volume repeat, in JSON types, from the problem of its typical tile."""


def decided_by(
    decide: Decide[V], tiles: TilePlan, volumes: Mapping[Place, V], done: Manifest, engine: Engine
) -> dict[Place, dict[str, Any]]:
    """What was decided of every volume that holds light, as it is listed."""
    deciding = DecidedVolumes(tiles, volumes, decide)
    lit = [place for place, task in volumes.items() if len(task.dark) < len(tiles.tiling)]
    engine.run(lit, deciding, done, lambda _: None)
    return {place: done.facts(deciding.part(place)) for place in lit}


@dataclass(frozen=True)
class DecidedVolumes(Generic[V]):
    """The task of deciding, on one tile of a volume (t, c), what all its tiles will repeat."""

    tiles: TilePlan
    volumes: Mapping[Place, V]
    decide: Decide[V]

    def part(self, key: Place) -> str:
        """See `Task.part`."""
        return "t{} c{} decided".format(*key)

    def read(self, key: Place) -> npt.NDArray[Any]:
        """Return the counts of the middle of the typical tile."""
        counts: npt.NDArray[Any] = self.volumes[key].volume[self._sample(key)]
        return counts

    def _sample(self, key: Place) -> Box:
        return self.tiles.sample(self.tiles.tiling.tile(self.volumes[key].statistics.typical))

    def compute(self, key: Place, read: npt.NDArray[Any]) -> dict[str, Any]:
        """Return what is decided, as it is listed."""
        return self.decide(self.volumes[key], self.volumes[key].problem(read, self._sample(key)))

    def write(self, key: Place, made: dict[str, Any]) -> dict[str, Any]:
        """Return what is listed of a volume."""
        return made


def scheduled(task: VolumeTask, sample: Problem) -> dict[str, Any]:
    """The schedule that the guarded restorer of a volume follows on a sample of it."""
    assert isinstance(task.restorer, Accelerated)
    return schedule_json(decided(task.restorer, sample, task.statistics.start))


def _decisions(restorer: Restorer) -> dict[str, Any] | None:
    return schedule_json(restorer.schedule) if isinstance(restorer, Replay) else None


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON types."""
    content = {
        "projectors": [[type(p).__name__, vars(p)] for p in schedule.projectors],
        "stretches": [asdict(stretch) for stretch in schedule.stretches],
        "start": schedule.start,
        "least_background": schedule.least_background,
        "neighbourhood": schedule.neighbourhood,
    }
    return {name: rounded(value) for name, value in content.items()}


def schedule_of(content: dict[str, Any]) -> Schedule:
    """The schedule that `schedule_json` wrote."""
    stretches = [
        Stretch(
            tuple(s["binning"]), s["start_momentum"], tuple((int(i), float(b)) for i, b in s["steps"])
        )
        for s in content["stretches"]
    ]
    projectors = [getattr(back_projectors, name)(**given) for name, given in content["projectors"]]
    return Schedule(
        tuple(projectors), tuple(stretches), content["start"], content["least_background"],
        tuple(content["neighbourhood"]),
    )  # fmt: skip


def _writer(plan: Plan, file: FilePlan, record: RunRecord) -> ResumableZarr:
    assert file.tiles is not None
    asked = plan.parameters
    decides, tiling = deciding(asked, WITHOUT_EFFECT), file.tiles.tiling
    head = {**decides, **head_of(record, tiling, plan.device), "step": tiling.step}
    image = ImageDescription(
        file.shape, asked.dtype, file.voxel_um, file.channel_names, file.time_step_s
    )
    return ResumableZarr(
        file.output, image, head=head, resume=asked.resume, shard_chunks=file.tiles.shard_chunks,
        version=asked.ome_zarr, attributes={"command": "deconvolve", "config": decides},
        overwrite=asked.overwrite,
    )  # fmt: skip

