"""Deconvolution of files: over recordings, time points and channels, with a record of each."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.deconvolution import deconvolve
from pellucid.core.psf import fwhm_um
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.errors import PellucidError
from pellucid.stages.deconvolution.planning import FilePlan, Plan
from pellucid.stages.deconvolution.sinks import Sink, open_sink
from pellucid.stages.deconvolution.tiling_run import run_tiled
from pellucid.stages.screening import Screening, screen
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, VolumeFailed, Warned, ignore
from pellucid.stages.work.lanes import ReadAhead, WriteBehind
from pellucid.stages.work.resources import describe_device, failure

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """One (z, y, x) volume: where it comes from, and its place (t, c) in the output."""

    file: FilePlan
    place: tuple[int, int]

    @property
    def source(self) -> tuple[int, int]:
        """(t, c) in the recording."""
        return self.file.times[self.place[0]], self.file.channels[self.place[1]]

    @property
    def name(self) -> str:
        """File, time point and channel in words."""
        return self.file.name(*self.source)

    @property
    def is_first(self) -> bool:
        """Whether the file begins with this one."""
        return self.place == (0, 0)

    @property
    def is_last(self) -> bool:
        """Whether the file is complete after this one."""
        t, c = self.file.shape[:2]
        return self.place == (t - 1, c - 1)


@dataclass(frozen=True)
class Read:
    """A volume in memory, what was seen in it, and how long it took."""

    volume: npt.NDArray[Any]
    screening: Screening
    seconds: float


@dataclass
class Outcome:
    """What came of a run.

    Parameters
    ----------
    total : number of volumes that were to be restored
    outputs, records : paths of finished outputs and of their records
    failures : (volume, reason) of what could not be restored
    warnings : sentences about the inputs
    """

    total: int
    outputs: list[Path] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        return {
            "volumes": self.total,
            "outputs": [str(path) for path in self.outputs],
            "records": [str(path) for path in self.records],
            "failures": [{"volume": name, "reason": why} for name, why in self.failures],
            "warnings": self.warnings,
        }


def run(plan: Plan, on_event: OnEvent = ignore, engine: Engine = InProcess()) -> Outcome:
    """Carry out `plan`: read, restore and write every volume, with a record beside every output.

    Volumes that are cut into tiles are made by `engine`, the others by this process.

    A volume that fails in a series becomes NaN (zero in integers), and the series goes on; a file
    of which every volume failed gets no output. An error in writing ends the run; nothing that is
    unfinished then looks finished.

    Raises
    ------
    PellucidError : the only volume failed, or an output could not be written
    """
    whole = [file for file in plan.files if file.tiles is None]
    jobs = [Job(file, place) for file in whole for place in np.ndindex(file.shape[:2])]
    with (
        _Series(plan, on_event) as series,
        WriteBehind() as writing,
        ReadAhead(jobs, _read) as volumes,
    ):
        for job, reading in volumes:
            series.take(job, reading, writing)
    outcome = series.outcome
    for file in plan.files:
        if file.tiles is not None:
            path, warnings = run_tiled(plan, file, on_event, engine)
            outcome.outputs.append(file.output)
            outcome.records.append(path)
            outcome.warnings += warnings
    return outcome


def _read(job: Job) -> Read:
    begin = time.perf_counter()
    volume = job.file.recording.read(*job.source)
    screening = screen(volume, job.name)
    return Read(volume, screening, time.perf_counter() - begin)


@dataclass
class _FileRun:
    """One file in the making: its record grows with its volumes."""

    file: FilePlan
    record: RunRecord
    volumes: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    sink: Sink | None = None

    def spend(self, part: str, seconds: float) -> None:
        self.record.timings_s[part] = self.record.timings_s.get(part, 0.0) + seconds


class _Series:
    """The run as a whole. Sinks belong to the writing thread, and to this one once that stopped."""

    def __init__(self, plan: Plan, on_event: OnEvent) -> None:
        self.plan, self.on_event = plan, on_event
        self.outcome = Outcome(plan.total)
        self._begun: _FileRun | None = None
        self._open: list[_FileRun] = []
        self._index = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for begun in self._open:
            if begun.sink is not None:
                begun.sink.abandon()

    def take(self, job: Job, reading: Future[Read], writing: WriteBehind) -> None:
        """Restore one volume and hand it on to be written."""
        if job.is_first:
            self._begun = _FileRun(job.file, self._new_record(job.file))
        begun = self._begun
        assert begun is not None
        volume = self._restored(begun, job, reading)
        self._index += 1
        writing.put(lambda: self._write(begun, job, volume))
        if job.is_last:
            writing.put(lambda: self._finish(begun))

    def _restored(self, begun: _FileRun, job: Job, reading: Future[Read]) -> Float32:
        try:
            read = reading.result()
            begun.spend("read", read.seconds)
            for sentence in read.screening.warnings:
                self.outcome.warnings.append(sentence)
                self.on_event(Warned(sentence))
            begin = time.perf_counter()
            image, stats = self._compute(job, read)
        except (PellucidError, MemoryError, torch.OutOfMemoryError) as error:
            return self._failed(begun, job, failure(error, job.name, self.plan.device))
        seconds = time.perf_counter() - begin
        begun.spend("deconvolve", seconds)
        t, c = job.source
        seen = {"warnings": read.screening.warnings, "notes": read.screening.notes}
        begun.volumes.append({"t": t, "c": c, "seconds": seconds, **seen, **stats})
        self.on_event(VolumeDone(self._index, self.plan.total, seconds, job.name))
        return image

    def _compute(self, job: Job, read: Read) -> tuple[Float32, dict[str, Any]]:
        if read.screening.is_empty:
            return np.zeros(read.volume.shape, np.float32), {}
        psf = job.file.psfs[job.place[1]]
        asked = self.plan.parameters
        restored = deconvolve(
            read.volume,
            psf,
            method=asked.method,
            iterations=asked.iterations,
            background=asked.background,
            device=self.plan.device,
            seed=asked.seed,
            fill=asked.fill,
        )
        return restored.image.cpu().numpy(), restored.stats

    def _failed(self, begun: _FileRun, job: Job, error: PellucidError) -> Float32:
        if self.plan.total == 1:
            raise error
        begun.failed += 1
        t, c = job.source
        why = str(error)
        begun.volumes.append({"t": t, "c": c, "failed": why})
        self.outcome.failures.append((job.name, why))
        self.on_event(VolumeFailed(self._index, self.plan.total, job.name, why))
        return np.full(job.file.shape[2:], np.nan, np.float32)

    def _write(self, begun: _FileRun, job: Job, volume: Float32) -> None:
        begin = time.perf_counter()
        if begun.sink is None:
            begun.sink = open_sink(begun.file, self.plan.parameters)
            self._open.append(begun)
        begun.sink.write(*job.place, volume)
        begun.spend("write", time.perf_counter() - begin)

    def _finish(self, begun: _FileRun) -> None:
        assert begun.sink is not None
        begin = time.perf_counter()
        record = begun.record
        if begun.failed == len(begun.volumes):
            begun.sink.abandon()
            self._open.remove(begun)
            return
        numbers = begun.sink.finish()
        self._open.remove(begun)
        begun.spend("write", time.perf_counter() - begin)
        files = [*begun.file.recording.files, *self.plan.parameters.psf]
        record.inputs = [fingerprint(path) for path in files]
        record.statistics.update({**numbers, "failed_volumes": begun.failed})
        record.statistics["volumes"] = begun.volumes
        path = write_record(record, begun.file.output)
        self.outcome.outputs.append(begun.file.output)
        self.outcome.records.append(path)
        self.on_event(FileDone(begun.file.output, path))

    def _new_record(self, file: FilePlan) -> RunRecord:
        record = RunRecord("deconvolve", self.plan.parameters.plain())
        record.statistics = {
            "device": describe_device(self.plan.device),
            "shape_tczyx": file.shape,
            "voxel_um": file.voxel_um,
            "peak_bytes_planned": file.peak_bytes,
            "psfs": {
                name: {"shape_zyx": p.shape, "fwhm_um": fwhm_um(p.typical), "notes": p.notes}
                for name, p in zip(file.channel_names, file.psfs, strict=True)
            },
        }
        return record
