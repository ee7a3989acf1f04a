"""Deconvolution of volumes larger than memory: tile by tile, interrupted at any time, gone on with.

Everything that a tile needs to know of its volume is measured once (`VolumeStatistics`, `Schedule`) and
kept in the list of finished parts; so a tile depends on the recording, this and its number alone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core import back_projectors
from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import back_projector, in_photons, roomy, usable_psf
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.replay import Replay, Schedule, Stretch, decided
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.tiling import Tile
from pellucid.data.record import RunRecord, fingerprint, package_versions, write_record
from pellucid.data.resumable_zarr import ResumableZarr, manifest_path
from pellucid.data.writer import ImageDescription
from pellucid.errors import PellucidError
from pellucid.stages.engine import run_tasks
from pellucid.stages.events import FileDone, OnEvent, TileDone, Warned
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.planning import FilePlan, Plan
from pellucid.stages.resources import describe_device, return_freed_memory
from pellucid.stages.volume_statistics import LazyVolume, VolumeStatistics, measured

Float32 = npt.NDArray[np.float32]

WITHOUT_EFFECT = ("output", "overwrite", "resume", "report", "memory", "tile", "device", "format")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""


@dataclass(frozen=True)
class VolumeTask:
    """One volume, and what is known of it: with a tile's number, all that a worker needs.

    Parameters
    ----------
    schedule : the decisions that every tile repeats; None for a given number of iterations
    """

    volume: LazyVolume
    kernel: Float32
    statistics: VolumeStatistics
    schedule: Schedule | None
    parameters: DeconvolveParameters
    device: str

    def read(self, tile: Tile) -> npt.NDArray[Any]:
        """Return the counts of a tile and its halo."""
        counts: npt.NDArray[Any] = self.volume[tile.read]
        return counts

    def restored(self, tile: Tile, counts: npt.NDArray[Any]) -> tuple[Float32, dict[str, Any]]:
        """Return the core of a tile in counts above background, and what the restorer said."""
        statistics = self.statistics
        restorer = self._restorer()
        done = restorer(self.problem(counts))
        core = done.image[tile.inner].mul(statistics.gain).cpu().numpy()
        return np.ascontiguousarray(core), {"ran_away": bool(done.stats["ran_away"])}

    def problem(self, counts: npt.NDArray[Any]) -> Problem:
        """Return the problem of a tile in photons."""
        image = torch.from_numpy(np.ascontiguousarray(counts, np.float32)).to(self.device)
        photons, expected, _ = in_photons(image, self.statistics.background, self.statistics.camera)
        z, y, x = image.shape
        blur = Blur(torch.from_numpy(self.kernel).to(self.device), (z, y, x))
        return Problem((Observation(photons, blur, expected),))

    def _restorer(self) -> Replay | RichardsonLucy:
        if self.schedule is not None:
            return Replay(self.schedule)
        assert self.parameters.iterations is not None
        projector = back_projector(self.parameters.method)
        return RichardsonLucy(self.parameters.iterations, projector, start=self.statistics.start)


def run_tiled(plan: Plan, file: FilePlan, on_event: OnEvent) -> tuple[Any, list[str]]:
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
    volumes = []
    with _can_go_on(file), writer:
        total = len(file.tiles.tiling) * file.shape[0] * file.shape[1]
        for t, c in np.ndindex(file.shape[:2]):
            task, prepared_s = _prepared(plan, file, writer, t, c)
            record.timings_s["measure"] = record.timings_s.get("measure", 0.0) + prepared_s
            ran_away = _run_volume(file, task, writer, (t, c), total, record, on_event)
            if ran_away:
                warnings.append(
                    f"{file.name(file.times[t], file.channels[c])}: {ran_away} tiles left the data; "
                    "they are unlike the rest of the volume. Give a number of iterations."
                )
                on_event(Warned(warnings[-1]))
            volumes.append({
                "t": file.times[t], "c": file.channels[c], **asdict(task.statistics),
                "schedule": None if task.schedule is None else schedule_json(task.schedule),
                "tiles_that_ran_away": ran_away,
            })  # fmt: skip
    tiling = file.tiles.tiling
    record.statistics = {
        "device": describe_device(plan.device), "shape_tczyx": file.shape, "voxel_um": file.voxel_um,
        "peak_bytes_planned": tiling.peak_bytes, "tiles": len(tiling), "core_zyx": tiling.core_shape,
        "halo_zyx": tiling.halo, "halo_share": tiling.halo_share, "volumes": volumes,
    }  # fmt: skip
    path = write_record(record, file.output)
    on_event(FileDone(file.output, path))
    return path, warnings


def _run_volume(
    file: FilePlan,
    task: VolumeTask,
    writer: ResumableZarr,
    place: tuple[int, int],
    total: int,
    record: RunRecord,
    on_event: OnEvent,
) -> int:
    """Restore and write the tiles of one volume that are not there yet; returns how many ran away."""
    assert file.tiles is not None
    tiling = file.tiles.tiling
    t, c = place
    empty = set(task.statistics.empty)
    name = file.name(*task_place(file, place))
    parts = {index: f"t{t} c{c} tile {index}" for index in range(len(tiling))}

    def read(index: int) -> Any:
        begin = time.perf_counter()
        # in a list, which lets go of the counts once they are photons
        counts = None if index in empty else [task.read(tiling.tile(index))]
        record.timings_s["read"] = record.timings_s.get("read", 0.0) + time.perf_counter() - begin
        return counts

    def compute(index: int, counts: Any) -> Any:
        begin = time.perf_counter()
        core, facts = (None, {}) if counts is None else task.restored(tiling.tile(index), counts.pop())
        seconds = time.perf_counter() - begin
        record.timings_s["deconvolve"] = record.timings_s.get("deconvolve", 0.0) + seconds
        return core, {**facts, "seconds": round(seconds, 3)}

    def write(index: int, made: Any) -> None:
        begin = time.perf_counter()
        core, facts = made
        box = tiling.tile(index).core
        z, y, x = (part.stop - part.start for part in box)
        origin = (box[0].start, box[1].start, box[2].start)
        writer.put_part(parts[index], t, c, core, (z, y, x), origin, facts)
        record.timings_s["write"] = record.timings_s.get("write", 0.0) + time.perf_counter() - begin
        number = sum("tile" in part for part in writer.done)
        on_event(TileDone(number, total, facts["seconds"], f"{name} tile {index}"))

    run_tasks([i for i, part in parts.items() if part not in writer.done], read, compute, write)
    return sum(bool(writer.done.facts(part).get("ran_away")) for part in parts.values())


def task_place(file: FilePlan, place: tuple[int, int]) -> tuple[int, int]:
    """(t, c) in the recording of (t, c) in the output."""
    return file.times[place[0]], file.channels[place[1]]


def _prepared(
    plan: Plan, file: FilePlan, writer: ResumableZarr, t: int, c: int
) -> tuple[VolumeTask, float]:
    """What is known of a volume: from the list of parts, or measured now and listed."""
    assert file.tiles is not None
    begin = time.perf_counter()
    asked, tiling = plan.parameters, file.tiles.tiling
    volume = LazyVolume(file.recording, *task_place(file, (t, c)))
    psf = file.psfs[c]
    assert isinstance(psf, Psf)  # the plan cuts nothing of which the blur varies
    kernel = roomy(usable_psf(psf, volume.shape))
    part = f"t{t} c{c} measured"
    make = partial(VolumeTask, volume, kernel, parameters=asked, device=plan.device)
    if part not in writer.done:
        statistics = measured(volume, tiling, asked.background)
        schedule = None
        if asked.iterations is None and len(statistics.empty) < len(tiling):
            sample = file.tiles.sample(tiling.tile(statistics.typical))
            unscheduled = make(statistics=statistics, schedule=None)
            restorer = Accelerated(back_projector(asked.method), seed=asked.seed)
            problem = unscheduled.problem(volume[sample])
            schedule = decided(restorer, problem, statistics.start)
            del problem
        writer.done.record(part, {
            "statistics": asdict(statistics),
            "schedule": None if schedule is None else schedule_json(schedule),
        })  # fmt: skip
    # As it was listed, so that a run that goes on knows exactly the same.
    facts = writer.done.facts(part)
    listed = dict(facts["statistics"], empty=tuple(facts["statistics"]["empty"]))
    decisions = facts["schedule"]
    task = make(
        statistics=VolumeStatistics(**listed),
        schedule=None if decisions is None else schedule_of(decisions),
    )
    return task, time.perf_counter() - begin


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON types."""
    return {
        "projectors": [[type(p).__name__, vars(p)] for p in schedule.projectors],
        "stretches": [asdict(stretch) for stretch in schedule.stretches],
        "start": schedule.start,
        "least_background": schedule.least_background,
        "neighbourhood": schedule.neighbourhood,
    }


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
    decides = {k: v for k, v in asked.plain().items() if k not in WITHOUT_EFFECT}
    inputs = {f"input {i.path}": (i.size_bytes, i.checksum) for i in record.inputs}
    tiling = file.tiles.tiling
    head = {
        **decides, **inputs, "core": tiling.core_shape, "halo": tiling.halo, "step": tiling.step,
        "device": plan.device.partition(":")[0], "pellucid": package_versions()["pellucid"],
    }  # fmt: skip
    image = ImageDescription(
        file.shape, asked.dtype, file.voxel_um, file.channel_names, file.time_step_s
    )
    return ResumableZarr(
        file.output, image, head=head, resume=asked.resume, shard_chunks=file.tiles.shard_chunks,
        version=asked.ome_zarr, attributes={"command": "deconvolve", "config": decides},
        overwrite=asked.overwrite,
    )  # fmt: skip


@contextmanager
def _can_go_on(file: FilePlan) -> Iterator[None]:
    try:
        yield
    except PellucidError as error:
        if not manifest_path(file.output).is_file():
            raise
        hint = "Finished tiles are kept: put that right, and go on with --resume."
        why = str(error).replace("the output is not kept", "the tile is lost")
        raise type(error)(f"{why} {hint}") from error
