"""Restoration of a recording by a model: the answer, its polish, its verdict, its record."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.deconvolution import as_volume, image_shape
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.writer import ImageWriter
from pellucid.errors import PellucidError
from pellucid.networks.evidence import rehearsal
from pellucid.networks.features import classical
from pellucid.networks.polish import Polished
from pellucid.networks.share import Share, fallen_back
from pellucid.networks.trust import Trust, as_map
from pellucid.stages.networks.judging import Judgement
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.networks.planning import plan_restoring
from pellucid.stages.networks.tiles import run_network_tiles
from pellucid.stages.networks.training import photon_problem
from pellucid.stages.pieces.volume_statistics import LazyVolume, Place
from pellucid.stages.screening import screen
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import (
    FileDone,
    OnEvent,
    VolumeDone,
    VolumeFailed,
    Warned,
    ignore,
)
from pellucid.stages.work.resources import failure, return_freed_memory
from pellucid.stages.work.workplace import opened_engine

Float32 = npt.NDArray[np.float32]


def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore a recording and write it with its record; returns the statistics."""
    plan = plan_restoring(parameters)
    with opened_engine(parameters.cluster) as engine:
        return run_restoring(plan, ignore, engine)


def failures(names: Sequence[str], stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Volumes that could not be restored, and why, of the statistics of a run."""
    told = zip(names, stats["volumes"], strict=True)
    return [(name, said["failed"]) for name, said in told if "failed" in said]


def run_restoring(
    plan: RestorePlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics, with those of every volume."""
    return_freed_memory()
    parameters = plan.parameters
    record = RunRecord("restore", parameters.plain())
    record.inputs = [fingerprint(path) for path in (*plan.recording.files, parameters.model)]
    if plan.tiles is not None:
        run_network_tiles(plan, record, on_event, engine)
        return record.statistics
    volumes = plan.volumes

    def restored(place: Place) -> tuple[list[Float32], dict[str, Any]]:
        return _restored(plan, volumes[place], on_event)

    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in plan.writers(plan.image)]
        names = {place: volume.name for place, volume in volumes.items()}
        told = each_volume(names, restored, outs, record, on_event, plan.device)
    for said, volume in zip(told, volumes.values(), strict=True):
        said |= {"t": volume.t, "c": volume.c}
    finish(record, told, outs, on_event)
    return record.statistics


def each_volume(
    names: Mapping[Place, str], restored: Callable[[Place], tuple[list[Float32], dict[str, Any]]],
    outs: Sequence[ImageWriter], record: RunRecord, on_event: OnEvent, device: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Restore and write volume after volume; returns what is recorded of each.

    One that cannot be restored becomes NaN, and the series goes on; if none can, nothing is written.

    Parameters
    ----------
    restored : what is written of a volume, for every output, and what is recorded of it
    """
    told: list[dict[str, Any]] = []
    for number, (place, name) in enumerate(names.items(), 1):
        begin = time.perf_counter()
        try:
            made, stats = restored(place)
        except (PellucidError, MemoryError, torch.OutOfMemoryError) as error:
            why = failure(error, name, device)
            if all("failed" in one for one in told) and number == len(names):
                raise why from error
            stats = {"failed": str(why)}
            made = [np.full(out.image.shape[2:], np.nan, np.float32) for out in outs]
        for out, image in zip(outs, made, strict=True):
            out.write(*place, image)
        seconds = time.perf_counter() - begin
        record.timings_s["restore"] = record.timings_s.get("restore", 0.0) + seconds
        told.append({"seconds": seconds, **stats})
        if "failed" in stats:
            on_event(VolumeFailed(number, len(names), name, stats["failed"]))
        else:
            on_event(VolumeDone(number, len(names), seconds, name))
    return told


def finish(
    record: RunRecord, told: Sequence[dict[str, Any]], outs: Sequence[ImageWriter], on_event: OnEvent
) -> None:
    """Write the record of what was `told` of every volume beside every output."""
    record.statistics |= {"failed_volumes": sum("failed" in one for one in told), "volumes": told}
    for out in outs:
        on_event(FileDone(out.path, write_record(record, out.path)))


def _restored(
    plan: RestorePlan, volume: LazyVolume, on_event: OnEvent
) -> tuple[list[Float32], dict[str, Any]]:
    """What is written of a volume, the image first, and what is recorded of it."""
    counts, asks = volume[:, :, :], plan.parameters.verdict is not None
    screened = screen(counts, volume.name)
    for sentence in screened.warnings:
        on_event(Warned(sentence))
    if screened.is_empty:
        dark = np.zeros(volume.shape, np.float32)
        sure = {"believable": 1.0, "doubtful_regions": 0} if asks else {}
        return [dark, dark + 1][: 1 + asks], {"iterations": 0, "warnings": screened.warnings, **sure}
    image, judged, stats = answered(
        counts, plan.restorer, plan.psf, plan.card, fall_back=plan.parameters.fall_back, verdict=asks,
        device=plan.device,
    )  # fmt: skip
    made = [image] if judged is None else [image, judged]
    seen = {"warnings": screened.warnings, "notes": screened.notes}
    return [part.numpy().astype(np.float32) for part in made], {**stats, **seen}


def answered(
    counts: npt.NDArray[Any], restorer: Polished, psf: Psf | PsfField, card: dict[str, Any], *,
    fall_back: bool, verdict: bool, device: str,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    """Return the answer (z, y, x) in counts, the map of what to believe if asked for, and statistics."""
    problem, gain = photon_problem(as_volume(counts).to(device), psf)
    image, judged, stats = answer_of(problem, restorer, card, fall_back=fall_back, verdict=verdict)
    return image * gain, judged, stats


def answer_of(
    problem: Problem, restorer: Polished, card: dict[str, Any], *, fall_back: bool, verdict: bool
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """The same of a problem in photons, of one view or of several."""
    x, stats = restorer.polished(problem)
    image, judged = problem.windowed(x).cpu(), None
    if verdict or fall_back:
        plain = classical(problem)
        evidence, said = rehearsal(problem, plain), Judgement(None, None)
        if fall_back:
            share = Share.from_dict(card["share"]).of(evidence.squares(restorer.network))
            image, said = fallen_back(image, problem.windowed(plain).cpu(), share), Judgement(None, share)
        if verdict:
            trust = Trust.from_dict(card["trust"])
            believed = trust.believable(evidence.logs(restorer.network, x))
            said = Judgement(believed, said.share, trust.limit)
            judged = as_map(believed, image_shape(image))
        stats |= said.statistics
    return image, judged, stats
