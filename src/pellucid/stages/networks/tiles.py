"""Volumes larger than memory restored by a network: tile by tile, interrupted at any time, gone on with.

What the network takes from the whole (levels, mean photons) is measured once, and how often the answer is
polished is decided once, so that a tile's answer is that of the whole within its halo. A verdict, or the
cure, takes one pass over the tiles more, before (`judging`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import in_photons, kernel_of, usable_psf
from pellucid.core.problem import Problem
from pellucid.core.replay import Replay, decided
from pellucid.data.manifest import Manifest
from pellucid.data.record import RunRecord, write_record
from pellucid.data.resumable_zarr import ResumableZarr
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.stages.deconvolution.tiling_run import (
    decided_by,
    make_tiles,
    schedule_json,
    schedule_of,
)
from pellucid.stages.networks.judging import judgements, make_map
from pellucid.stages.networks.network_volume import NetworkVolume
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.pieces.piece_choice import tiles_json
from pellucid.stages.pieces.pieces_run import deciding, going_on, head_of
from pellucid.stages.pieces.volume_statistics import Place, VolumeStatistics, measured
from pellucid.stages.work.engine import Engine
from pellucid.stages.work.events import FileDone, OnEvent, Warned
from pellucid.stages.work.resources import describe_device

WITHOUT_EFFECT = ("output", "overwrite", "resume", "memory", "tile", "device", "cluster")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""


def run_network_tiles(
    plan: RestorePlan, record: RunRecord, on_event: OnEvent, engine: Engine
) -> None:
    """Carry out a plan that has tiles, and write its record.

    Raises
    ------
    PellucidError : reading or writing failed; what is finished stays, and can be gone on with
    """
    assert plan.tiles is not None
    tiling, (output, *maps) = plan.tiles.tiling, plan.outputs
    writer = _writer(plan, record, output, resumed=False)
    with going_on(writer, "tile"):
        with record.timed("measure"):
            tasks = _prepared(plan, writer.done, engine)
        judged = judgements(plan, tasks, writer.done, engine, record, on_event)
        if plan.parameters.fall_back:
            tasks = {p: replace(task, share=judged[p].share) for p, task in tasks.items()}
        lost = make_tiles(tiling, tasks, writer, engine, record, on_event, computing="restore")
        for path in maps:
            # made of what the list holds, and whole before the image is: neither looks finished alone
            with _writer(plan, record, path, resumed=len(writer.done) > 0) as mapped:
                make_map(tiling, judged, mapped, engine, record)
    for p, count in lost.items():
        on_event(Warned(
            f"{plan.volumes[p].name}: the classical solution of {count} tiles left the data; they are "
            "unlike the rest of the volume. Leave --fall-back out, or restore a crop."
        ))  # fmt: skip
    record.statistics = {
        "device": describe_device(plan.device), "shape_tczyx": plan.shape,
        "peak_bytes_planned": tiling.peak_bytes, **tiles_json(plan.tiles),
        "volumes": [
            _said(task) | (judged[p].statistics if p in judged else {})
            for p, task in tasks.items()
        ],
    }  # fmt: skip
    for path in plan.outputs:
        on_event(FileDone(path, write_record(record, path)))


def _writer(plan: RestorePlan, record: RunRecord, path: Path, *, resumed: bool) -> ResumableZarr:
    assert plan.tiles is not None
    asked, tiling = plan.parameters, plan.tiles.tiling
    decides = deciding(asked, WITHOUT_EFFECT)
    head = {**decides, **head_of(record, tiling, plan.device), "step": tiling.step}
    return ResumableZarr(
        path, plan.image, head=head, resume=asked.resume,
        shard_chunks=plan.tiles.shard_chunks, attributes={"command": "restore", "config": decides},
        overwrite=asked.overwrite or resumed,
    )  # fmt: skip


def _prepared(
    plan: RestorePlan, done: Manifest, engine: Engine
) -> dict[Place, NetworkVolume]:
    """What is known of every volume before its tiles: measured, decided, and listed by the engine."""
    assert plan.tiles is not None
    volumes = plan.volumes
    known = measured(volumes, plan.tiles.tiling, None, "auto", engine, done)
    kernel = kernel_of(usable_psf(plan.psf, plan.shape[2:]))
    tasks = {
        place: NetworkVolume(
            volume, kernel, _unmasked(known[place]), _told(plan.restorer, known[place]), plan.device
        )
        for place, volume in volumes.items()
    }
    falls_back = plan.parameters.fall_back
    if plan.restorer.iterations is not None and not falls_back:
        return tasks
    decide = decisions if falls_back else polished
    for place, facts in decided_by(decide, plan.tiles, tasks, done, engine).items():
        task = tasks[place]
        restorer = replace(task.restorer, iterations=facts["iterations"])
        plain = Replay(schedule_of(facts["schedule"])) if falls_back else None
        tasks[place] = replace(task, restorer=restorer, plain=plain)
    return tasks


def polished(task: NetworkVolume, sample: Problem) -> dict[str, Any]:
    """How often the answer of a sample is polished until photons held out object."""
    return {"iterations": task.restorer(sample).stats["iterations"]}


def decisions(task: NetworkVolume, sample: Problem) -> dict[str, Any]:
    """What `polished` says, and the schedule of the classical solution."""
    schedule = decided(Accelerated(), sample, task.statistics.start)
    return {**polished(task, sample), "schedule": schedule_json(schedule)}


def _told(restorer: Polished, statistics: VolumeStatistics) -> Polished:
    """The restorer, told the mean photons of the whole volume."""
    assert isinstance(restorer.network, Network)
    levels = statistics.levels
    _, expected, _ = in_photons(torch.zeros(1), levels.background, levels.camera)
    return replace(
        restorer, network=replace(restorer.network, mean_photons=statistics.start + expected)
    )


def _unmasked(statistics: VolumeStatistics) -> VolumeStatistics:
    """Of networks no voxel is left out, as they were trained on recordings without holes."""
    return replace(statistics, levels=replace(statistics.levels, fill_value=None))


def _said(task: NetworkVolume) -> dict[str, Any]:
    said = {"t": task.volume.t, "c": task.volume.c, **task.statistics.to_json()}
    return {**said, "iterations": task.restorer.iterations or 0}  # none where there is no light
