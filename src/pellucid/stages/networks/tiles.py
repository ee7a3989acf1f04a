"""Volumes larger than memory restored by a network: tile by tile, interrupted at any time, gone on with.

What the network takes from the whole (levels, mean photons) is measured once, and how often the answer is
polished is decided once, so that a tile's answer is that of the whole within its halo.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.deconvolution import in_photons, roomy, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.tiling import halo_of
from pellucid.data.manifest import Manifest
from pellucid.data.record import RunRecord, write_record
from pellucid.data.resumable_zarr import ResumableZarr, listed_core
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.stages.deconvolution.tiling_run import VolumeTask, decided_by, make_tiles, volume_task
from pellucid.stages.pieces.piece_choice import shared_out, tiles_json
from pellucid.stages.pieces.pieces_run import deciding, going_on, head_of
from pellucid.stages.pieces.tile_plan import (
    BESIDE_BYTES,
    TilePlan,
    box_shape,
    fitted_tiling,
    planning_room,
    shard_chunks,
)
from pellucid.stages.pieces.volume_statistics import Place, VolumeStatistics, measured
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.engine import Engine
from pellucid.stages.work.events import FileDone, OnEvent
from pellucid.stages.work.resources import describe_device, return_freed_memory

if TYPE_CHECKING:
    from pellucid.stages.networks.restoring import RestorePlan

WITHOUT_EFFECT = ("output", "overwrite", "resume", "memory", "tile", "device", "cluster")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""


def without_tiles(plan: "RestorePlan") -> str:
    """Why a restoration cannot be made by tiles, and what would let it; empty where it can."""
    asked = plan.parameters
    if not asked.output.name.lower().endswith(".zarr"):
        return "Tiles are written as OME-Zarr: name a .ome.zarr output"
    if not isinstance(plan.psf, Psf):
        return "Tiles need one PSF for all places, and this model is for blur that varies"
    if plan.network.weights.architecture.start == "classical":
        return "This model starts from the classical solution, which is decided on the whole volume"
    unfit = {"--verdict": asked.verdict is not None, "--fall-back": asked.fall_back}
    named = " and ".join(name for name, is_asked in unfit.items() if is_asked)
    why = "which needs a rehearsal on the whole volume: leave it out"
    return f"Tiles do without {named}, {why}" if named else ""


def planned_tiles(plan: "RestorePlan", place: Workplace, *, goes_on: bool) -> TilePlan:
    """The tiles that cost least of those that fit.

    Raises
    ------
    PlanError : not even the smallest tile fits
    ParameterError : a tile that is not made of whole chunks of the output
    """
    asked, shape = plan.parameters, plan.shape[2:]
    assert isinstance(plan.psf, Psf)
    kernel = roomy(usable_psf(plan.psf, shape))
    halo = tile_halo(plan.restorer, kernel, shape)
    itemsize = plan.recording.dtype.itemsize

    def needed(read: Shape) -> int:
        voxels = int(np.prod(read))
        core = int(np.prod([max(n - 2 * h, 1) for n, h in zip(read, halo, strict=True)]))
        # one more tile is read meanwhile, and a core is being written: itself, and shards of it
        beside = voxels * itemsize + min(core, voxels) * 4 * 2
        return plan.restorer.peak_bytes(_meta_problem(kernel, read)) + 12 * voxels + beside + BESIDE_BYTES

    def within(room_bytes: int | None) -> TilePlan:
        room, (z, y, x) = planning_room(room_bytes), (n - 1 for n in kernel.shape)
        tiling = fitted_tiling(
            shape, core, halo=halo, reach=(z, y, x), needed=needed, room_bytes=room,
            step=plan.network.step,
        )  # fmt: skip
        largest = max((box_shape(tile.read) for tile in tiling), key=lambda s: int(np.prod(s)))
        return TilePlan(tiling, shard_chunks(tiling, room), largest)

    core = asked.tile or (listed_core(plan.output) if goes_on else None)
    tiles = within(place.room_bytes)
    return tiles if core else shared_out(tiles, plan.total, place, within)


def tile_halo(restorer: Polished, kernel: npt.NDArray[np.float32], shape: Shape) -> Shape:
    """Voxels beyond a core that decide it: the network's, and those of the blur where it is polished."""
    assert isinstance(restorer.network, Network)
    own = restorer.network.halo(_meta_problem(kernel, shape))
    polished = (0, 0, 0) if restorer.iterations == 0 else halo_of(kernel)
    z, y, x = (0 if n == 1 else a + b for a, b, n in zip(own, polished, shape, strict=True))
    return z, y, x


def _meta_problem(kernel: npt.NDArray[np.float32], shape: Shape) -> Problem:
    # tensors without memory carry the shapes through the arithmetic
    blur = Blur(torch.empty(kernel.shape, dtype=torch.float32, device="meta"), shape)
    return Problem((Observation(torch.empty(shape, dtype=torch.float32, device="meta"), blur),))


def run_network_tiles(
    plan: "RestorePlan", record: RunRecord, on_event: OnEvent, engine: Engine
) -> Path:
    """Carry out a plan that has tiles; returns the path of its record.

    Raises
    ------
    PellucidError : reading or writing failed; what is finished stays, and can be gone on with
    """
    assert plan.tiles is not None
    return_freed_memory()
    tiling = plan.tiles.tiling
    asked = plan.parameters
    decides = deciding(asked, WITHOUT_EFFECT)
    head = {**decides, **head_of(record, tiling, plan.device), "step": tiling.step}
    writer = ResumableZarr(
        plan.output, plan.image, head=head, resume=asked.resume, shard_chunks=plan.tiles.shard_chunks,
        attributes={"command": "restore", "config": decides}, overwrite=asked.overwrite,
    )  # fmt: skip
    with going_on(writer, "tile"):
        with record.timed("measure"):
            tasks = _prepared(plan, writer.done, engine)
        make_tiles(tiling, tasks, writer, engine, record, on_event, computing="restore")
    record.statistics = {
        "device": describe_device(plan.device), "shape_tczyx": plan.shape,
        "peak_bytes_planned": tiling.peak_bytes, **tiles_json(plan.tiles),
        "volumes": [_said(task) for task in tasks.values()],
    }  # fmt: skip
    path = write_record(record, plan.output)
    on_event(FileDone(plan.output, path))
    return path


def _prepared(plan: "RestorePlan", done: Manifest, engine: Engine) -> dict[Place, VolumeTask]:
    """What is known of every volume before its tiles: measured, decided, and listed by the engine."""
    assert plan.tiles is not None
    assert isinstance(plan.psf, Psf)
    volumes = plan.volumes
    known = measured(volumes, plan.tiles.tiling, None, "auto", engine, done)
    tasks = {
        place: volume_task(
            volume, plan.psf, _unmasked(known[place]), _told(plan.restorer, known[place]), plan.device
        )
        for place, volume in volumes.items()
    }
    if plan.restorer.iterations is not None:
        return tasks
    for place, facts in decided_by(polished, plan.tiles, tasks, done, engine).items():
        told = tasks[place].restorer
        assert isinstance(told, Polished)
        tasks[place] = replace(tasks[place], restorer=replace(told, iterations=facts["iterations"]))
    return tasks


def polished(task: VolumeTask, counts: npt.NDArray[Any]) -> dict[str, Any]:
    """How often the answer of a sample is polished until photons held out object."""
    return {"iterations": task.restorer(task.problem(counts)).stats["iterations"]}


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


def _said(task: VolumeTask) -> dict[str, Any]:
    assert isinstance(task.restorer, Polished)
    said = {"t": task.volume.t, "c": task.volume.c, **task.statistics.to_json()}
    return {**said, "iterations": task.restorer.iterations or 0}  # none where there is no light
