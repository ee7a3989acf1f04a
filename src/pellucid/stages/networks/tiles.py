"""Volumes larger than memory restored by a network: tile by tile, interrupted at any time, gone on with.

What the network takes from the whole (levels, mean photons) is measured once, and how often the answer is
polished is decided once, so that a tile's answer is that of the whole within its halo. A verdict, or the
cure, takes one pass over the tiles more, before (`judging`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import Kernel, in_photons, kernel_of, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.problem import Problem
from pellucid.core.psf_field import PsfExpansion
from pellucid.core.replay import Replay, decided
from pellucid.core.tiling import Tile
from pellucid.core.wrongness import REGION
from pellucid.data.manifest import Manifest
from pellucid.data.record import RunRecord, write_record
from pellucid.data.resumable_zarr import ResumableZarr, listed_core
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.share import fallen_back
from pellucid.stages.deconvolution.tiling_run import (
    Float32,
    VolumeTask,
    decided_by,
    make_tiles,
    schedule_json,
    schedule_of,
)
from pellucid.stages.networks.judging import (
    LISTED_BYTES,
    SUMMED_BYTES,
    judged_bytes,
    judgements,
    make_map,
)
from pellucid.stages.pieces.piece_choice import shared_out, tiles_json
from pellucid.stages.pieces.pieces_run import deciding, going_on, head_of
from pellucid.stages.pieces.tile_plan import (
    BESIDE_BYTES,
    TilePlan,
    box_shape,
    coarsest,
    fitted_tiling,
    halo_and_reach,
    meta_problem,
    planning_room,
    sample_shape,
    shard_chunks,
)
from pellucid.stages.pieces.volume_statistics import Place, VolumeStatistics, measured
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.engine import Engine
from pellucid.stages.work.events import FileDone, OnEvent, Warned
from pellucid.stages.work.resources import describe_device, return_freed_memory

if TYPE_CHECKING:
    from pellucid.stages.networks.restoring import RestorePlan

WITHOUT_EFFECT = ("output", "overwrite", "resume", "memory", "tile", "device", "cluster")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""


def without_tiles(plan: "RestorePlan") -> str:
    """Why a restoration cannot be made by tiles, and what would let it; empty where it can."""
    asked = plan.parameters
    if not all(path.name.lower().endswith(".zarr") for path in (asked.output, asked.verdict) if path):
        return "Tiles are written as OME-Zarr: name a .ome.zarr output"
    if plan.network.weights.architecture.start == "classical":
        return "This model starts from the classical solution, which is decided on the whole volume"
    return ""


def planned_tiles(plan: "RestorePlan", place: Workplace, *, goes_on: bool) -> TilePlan:
    """The tiles that cost least of those that fit.

    Raises
    ------
    PlanError : not even the smallest tile fits
    ParameterError : a tile that is not made of whole chunks of the output
    """
    asked, shape, itemsize = plan.parameters, plan.shape[2:], plan.recording.dtype.itemsize
    psf = usable_psf(plan.psf, shape)
    kernel, (light, reach) = kernel_of(psf), halo_and_reach([psf])
    halo, step = tile_halo(plan, kernel, light), plan.network.step
    if asked.fall_back:
        z, y, x = (max(pair) for pair in zip(step, coarsest([psf], shape), strict=True))
        step = (z, y, x)  # both are powers of two

    listed = int((LISTED_BYTES * plan.total + SUMMED_BYTES) * np.prod(shape, dtype=float))

    def needed(read: Shape) -> int:
        voxels = int(np.prod(read))
        core = int(np.prod([max(n - 2 * h, 1) for n, h in zip(read, halo, strict=True)]))
        # one more tile is read meanwhile, and a core is being written: itself, and shards of it
        beside = voxels * itemsize + min(core, voxels) * 4 * 2
        problem = _widest_problem(kernel, read)
        peak = plan.restorer.peak_bytes(problem)
        if plan.is_judged:
            peak = judged_bytes(problem, plan.restorer) + listed
        return peak + 12 * voxels + beside + BESIDE_BYTES

    remedy = "train a narrower network of fewer passes (width, passes)"
    if plan.is_judged:
        remedy = "leave --verdict and --fall-back out"

    def within(room_bytes: int | None) -> TilePlan:
        room = planning_room(room_bytes)
        tiling = fitted_tiling(
            shape, core, halo=halo, reach=reach, needed=needed, room_bytes=room, step=step, remedy=remedy
        )
        sample = max((box_shape(tile.read) for tile in tiling), key=lambda s: int(np.prod(s)))
        if asked.fall_back:
            sample = sample_shape(sample, kernel, Accelerated(), room - BESIDE_BYTES)
        return TilePlan(tiling, shard_chunks(tiling, room), sample)

    core = asked.tile or (listed_core(plan.output) if goes_on else None)
    tiles = within(place.room_bytes)
    return tiles if core else shared_out(tiles, plan.total, place, within)


def tile_halo(plan: "RestorePlan", kernel: Kernel, light: Shape) -> Shape:
    """Voxels beyond a core that decide it: the network's, and those of the blur (`light`) where the answer
    is polished or set against the classical solution."""
    own = plan.network.halo(meta_problem(plan.shape[2:], kernel))
    physical = plan.is_judged or plan.restorer.iterations != 0
    least = REGION if plan.is_judged else (0, 0, 0)
    z, y, x = (
        0 if n == 1 else max(a + physical * b, r)
        for a, b, r, n in zip(own, light, least, plan.shape[2:], strict=True)
    )
    return z, y, x


def _widest_problem(kernel: Kernel, shape: Shape) -> Problem:
    """The problem of a tile in the middle of a field, where most of its places take part."""
    if not isinstance(kernel, PsfExpansion):
        return meta_problem(shape, kernel)
    sizes = zip(kernel.knots, kernel.spacing_um, shape, strict=True)
    z, y, x = (round((k[0] + k[-1]) / (2 * step)) - n // 2 for k, step, n in sizes)
    return meta_problem(shape, kernel, (z, y, x))


@dataclass(frozen=True)
class NetworkVolume(VolumeTask):
    """One volume for a network, and what is known of it.

    Parameters
    ----------
    plain : the classical solution, where the answer is set against it
    share : of the answer beside that solution, region by region; None: all of the answer
    """

    restorer: Polished
    plain: Replay | None = None
    share: npt.NDArray[np.float64] | None = None

    def restored(self, tile: Tile, counts: npt.NDArray[Any]) -> tuple[Float32, dict[str, Any]]:
        """Return the core of a tile in counts above background, and whether the cure left the data."""
        problem = self.problem(counts, tile.read)
        light = self.restorer(problem).image
        if self.share is None:
            return self.core(tile, light), {}
        assert self.plain is not None
        plain = self.plain(problem)
        light = fallen_back(light, plain.image, self.share, self.volume.shape, tile.read)
        return self.core(tile, light), {"ran_away": plain.stats["ran_away"]}


def run_network_tiles(
    plan: "RestorePlan", record: RunRecord, on_event: OnEvent, engine: Engine
) -> None:
    """Carry out a plan that has tiles, and write its record.

    Raises
    ------
    PellucidError : reading or writing failed; what is finished stays, and can be gone on with
    """
    assert plan.tiles is not None
    return_freed_memory()
    tiling, verdict = plan.tiles.tiling, plan.parameters.verdict
    writer = _writer(plan, record, resumed=False)
    with going_on(writer, "tile"):
        with record.timed("measure"):
            tasks = _prepared(plan, writer.done, engine)
        judged = judgements(plan, tasks, writer.done, engine, record, on_event)
        if plan.parameters.fall_back:
            tasks = {p: replace(task, share=judged[p].share) for p, task in tasks.items()}
        lost = make_tiles(tiling, tasks, writer, engine, record, on_event, computing="restore")
        if verdict is not None:
            # made of what the list holds, and whole before the image is: neither looks finished alone
            with _writer(plan, record, resumed=len(writer.done) > 0, path=verdict) as mapped:
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
            _said(task) | (judged[p].statistics(plan.parameters) if p in judged else {})
            for p, task in tasks.items()
        ],
    }  # fmt: skip
    for path in (plan.output, verdict):
        if path is not None:
            on_event(FileDone(path, write_record(record, path)))


def _writer(
    plan: "RestorePlan", record: RunRecord, *, resumed: bool, path: Path | None = None
) -> ResumableZarr:
    assert plan.tiles is not None
    asked, tiling = plan.parameters, plan.tiles.tiling
    decides = deciding(asked, WITHOUT_EFFECT)
    head = {**decides, **head_of(record, tiling, plan.device), "step": tiling.step}
    return ResumableZarr(
        path or plan.output, plan.image, head=head, resume=asked.resume,
        shard_chunks=plan.tiles.shard_chunks, attributes={"command": "restore", "config": decides},
        overwrite=asked.overwrite or resumed,
    )  # fmt: skip


def _prepared(
    plan: "RestorePlan", done: Manifest, engine: Engine
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
