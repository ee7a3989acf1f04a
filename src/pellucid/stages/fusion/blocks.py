"""Fusion of views larger than memory: block by block, interrupted at any time, gone on with.

What every block needs to know of its views is measured once (`KnownViews`) and kept in the list of finished
parts; so a block depends on the recordings, this and its number alone.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.averaging import Weighting
from pellucid.core.fused_blocks import (
    KnownViews,
    StoredView,
    fused_part,
    measured_views,
    read_part,
)
from pellucid.core.geometry import Grid
from pellucid.core.iteration_choice import iterations_borne, typical_part
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.tiling import Box, Tiling
from pellucid.core.transform_series import SeriesRegistration
from pellucid.data.ome_zarr_writer import StoredArray
from pellucid.data.output import stem
from pellucid.data.record import RunRecord, write_record
from pellucid.data.resumable_zarr import ResumableZarr, listed_head, write_part
from pellucid.data.writer import remove
from pellucid.errors import InputError
from pellucid.stages.fusion import registration as registering
from pellucid.stages.fusion.block_plan import planned_blocks, weighting_of, whole_chunks
from pellucid.stages.fusion.memory import stated_restorer
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.plan import FusePlan, believed_places, side_outputs
from pellucid.stages.fusion.world import cropped, world_grid
from pellucid.stages.pieces.piece_choice import is_begun, workplace_of
from pellucid.stages.pieces.pieces_run import deciding, going_on, head_of, make_pieces
from pellucid.stages.pieces.tile_plan import TilePlan, box_shape
from pellucid.stages.pieces.volume_statistics import LazyVolume
from pellucid.stages.work.engine import Engine
from pellucid.stages.work.events import OnEvent
from pellucid.stages.work.resources import describe_device, return_freed_memory

Float32 = npt.NDArray[np.float32]
Place = tuple[int, int]
Measured = tuple[KnownViews, tuple[int, Grid, list[npt.NDArray[Any] | None]] | None]
"""What all blocks share; and the block that decides, its middle, and the counts of it."""
BlockKey = tuple[int, int, int]
"""(t, c) in the output, and the number of a block."""

WITHOUT_EFFECT = ("output", "overwrite", "resume", "memory", "tile", "device", "cluster", "projections")
"""Parameters that do not decide a result, or whose effect the head of the list states itself."""

FOUND = "transforms found"
"""Where the list of finished parts keeps the transforms, for a run that goes on."""


@dataclass(frozen=True)
class BlocksMade:
    """What came of a fusion by blocks.

    Parameters
    ----------
    resumed : blocks that an earlier run had finished
    decided : iterations of each volume, where none were stated
    """

    record: Path
    transforms: SeriesRegistration
    resumed: int
    decided: tuple[int, ...]
    outputs: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class MeasuredVolumes:
    """The task of measuring and deciding, once for each (t, c), what all its blocks share.

    Where no number of iterations is stated, the middle of one typical block decides it for all.
    """

    tiles: TilePlan
    world: Grid
    views: dict[Place, tuple[StoredView, ...]]
    parameters: FuseParameters
    device: str

    def part(self, key: Place) -> str:
        """See `Task.part`."""
        return "t{} c{} measured".format(*key)

    def read(self, key: Place) -> Measured:
        """Read all voxels; what is measured, and what decides the iterations where they are open."""
        known = measured_views(self.views[key], self.world)
        if weighting_of(self.parameters) is not None or self.parameters.iterations is not None:
            return known, None
        tiling = self.tiles.tiling
        cores = [part_of(self.world, tile.core) for tile in tiling]
        typical = typical_part(known, cores)
        part = part_of(self.world, self.tiles.sample(tiling.tile(typical)))
        return known, (typical, part, read_part(known, part))

    def compute(self, key: Place, read: Measured) -> dict[str, Any]:
        """Return what was measured, and the iterations that were decided, as they are listed."""
        known, sample = read
        if sample is None:
            return {**known.to_dict(), "iterations": self.parameters.iterations}
        typical, part, counts = sample
        count = iterations_borne(
            known, part, counts, stated_restorer(1, known.start), device=self.device,
            seed=self.parameters.seed,
        )  # fmt: skip
        return {**known.to_dict(), "iterations": count, "decided_on_block": typical}

    def write(self, key: Place, made: dict[str, Any]) -> dict[str, Any]:
        """Return what is listed of the views of a volume."""
        return made


@dataclass(frozen=True)
class FusedBlocks:
    """The task of fusing the blocks of all volumes of one output."""

    tiling: Tiling
    world: Grid
    volumes: dict[Place, KnownViews]
    iterations: dict[Place, int | None]
    parameters: FuseParameters
    device: str
    stored: StoredArray

    def part(self, key: BlockKey) -> str:
        """See `Task.part`."""
        return "t{} c{} block {}".format(*key)

    def read(self, key: BlockKey) -> list[npt.NDArray[Any] | None]:
        """Return the counts of each view that decide a block, to be taken out."""
        t, c, index = key
        return read_part(self.volumes[t, c], part_of(self.world, self.tiling.tile(index).read))

    def compute(self, key: BlockKey, read: list[npt.NDArray[Any] | None]) -> Float32 | None:
        """Return the core of a block in counts of the first view; None where no view sees it."""
        if all(counts is None for counts in read):
            return None
        t, c, index = key
        known, tile = self.volumes[t, c], self.tiling.tile(index)
        part = part_of(self.world, tile.read)
        image = fused_part(known, part, read, self._how(t, c), device=self.device)
        read.clear()
        return np.ascontiguousarray(image[tile.inner].cpu().numpy())

    def write(self, key: BlockKey, made: Float32 | None) -> dict[str, Any]:
        """Write the core of a block; returns what is listed of it."""
        t, c, index = key
        core = self.tiling.tile(index).core
        z, y, x = (part.start for part in core)
        return write_part(self.stored, t, c, made, box_shape(core), (z, y, x))

    def _how(self, t: int, c: int) -> RichardsonLucy | Weighting:
        weighting, count = weighting_of(self.parameters), self.iterations[t, c]
        if weighting is not None:
            return weighting
        assert count is not None  # stated, or decided in measuring
        return stated_restorer(count, self.volumes[t, c].start)


def part_of(world: Grid, box: Box) -> Grid:
    """A box of voxels of the world."""
    return world.crop([part.start for part in box], [part.stop for part in box])


def run_in_blocks(
    plan: FusePlan, record: RunRecord, on_event: OnEvent, engine: Engine
) -> BlocksMade:
    """Carry out a plan that has blocks; the record is written beside the output.

    Raises
    ------
    PellucidError : reading or writing failed; what is finished stays, and can be gone on with
    """
    plan, found = _registered(plan, record, on_event)
    assert plan.blocks is not None
    tiling = plan.blocks.tiling
    return_freed_memory()
    views = {place: _stored(plan, found, place) for place in np.ndindex(plan.shape)}
    writer = _writer(plan, found, record)
    with going_on(writer, "block"):
        resumed = sum("block" in part for part in writer.done)
        with record.timed("measure"):
            measuring = MeasuredVolumes(plan.blocks, plan.world, views, plan.parameters, plan.device)
            engine.run(list(views), measuring, writer.done, lambda _: None)
            facts = {place: writer.done.facts(measuring.part(place)) for place in views}
        volumes = {place: KnownViews.from_dict(views[place], facts[place]) for place in views}
        iterations = {place: facts[place]["iterations"] for place in views}
        blocks = FusedBlocks(
            tiling, plan.world, volumes, iterations, plan.parameters, plan.device,
            writer.stored_array(0),
        )  # fmt: skip
        keys = [(*place, index) for place in volumes for index in range(len(tiling))]
        series = plan.views[0].series

        def named(key: BlockKey) -> str:
            t, c, index = key
            return f"t={series.times[t]} c={series.channels[c]} block {index}"

        make_pieces(keys, blocks, writer, engine, record, on_event, computing="fuse", named=named)
        outputs = _write_beside(plan, found)
    record.statistics = {
        "device": describe_device(plan.device), "world": plan.world.to_dict(),
        "peak_bytes_planned": tiling.peak_bytes, "tiles": len(tiling), "core_zyx": tiling.core_shape,
        "halo_zyx": tiling.halo, "halo_share": tiling.halo_share, "resumed_tiles": resumed,
        "volumes": [{"t": t, "c": c, **facts[t, c]} for t, c in views],
        "transforms": registering.to_json(found),
        "psfs": [[None if psf is None else list(psf.notes) for psf in view] for view in plan.psfs],
    }  # fmt: skip
    path = write_record(record, plan.output)
    decided = tuple(facts[place]["iterations"] for place in views if "decided_on_block" in facts[place])
    return BlocksMade(path, found, resumed, decided, [plan.output, *outputs])


def _registered(
    plan: FusePlan, record: RunRecord, on_event: OnEvent
) -> tuple[FusePlan, SeriesRegistration]:
    """The transforms, those of an interrupted run if any, and the plan with the blocks that they give."""
    asked = plan.parameters
    if asked.transforms is not None or asked.over_time == "none":
        return plan, registering.found_transforms(plan, on_event)
    times = plan.views[0].series.times
    kept = listed_head(plan.output).get(FOUND, []) if asked.resume and is_begun(plan.output) else []
    if {one["time"] for one in kept} == set(times):
        content = {"times": times, "views": len(plan.views), "transforms": kept}
        found = registering.from_json(content)
    else:
        with record.timed("register"):
            found = registering.found_transforms(plan, on_event)
    places = list(believed_places(plan, found).values())
    world = cropped(asked, world_grid(asked, plan.views, places))
    if asked.tile is not None:
        asked = asked.model_copy(update={"tile": whole_chunks(asked.tile, world.shape)})
    plan = replace(plan, world=world, parameters=asked)
    return replace(plan, blocks=planned_blocks(plan, places, workplace_of(asked))), found


def _stored(
    plan: FusePlan, found: SeriesRegistration, place: Place
) -> tuple[StoredView, ...]:
    """The views of a volume, none of them read; InputError for one that cannot be, or whose place
    is not known."""
    t, c = place
    views = []
    for number, placed in enumerate(plan.views):
        transform = found.at(found.times[t], number)
        if not transform.believed:
            raise InputError(
                f"{placed.series.name} t={found.times[t]}: not registered. {transform.reason} "
                "Leave the time point out (--time)."
            )
        where = placed.series.stored(t, c)
        views.append(
            StoredView(
                LazyVolume(where.recording, where.t, where.c), placed.recorded,
                placed.to_recorded(transform.world_to_view), plan.psfs[number][c],
                plan.parameters.background, field=placed.field_to_recorded(transform.field),
                fill=plan.parameters.fill,
            )
        )  # fmt: skip
    return tuple(views)


def _writer(plan: FusePlan, found: SeriesRegistration, record: RunRecord) -> ResumableZarr:
    assert plan.blocks is not None
    asked = plan.parameters
    decides = deciding(asked, WITHOUT_EFFECT)
    head = {
        **decides, **head_of(record, plan.blocks.tiling, plan.device),
        "world": plan.world.to_dict(), FOUND: registering.to_json(found)["transforms"],
    }  # fmt: skip
    return ResumableZarr(
        plan.output, plan.image(plan.world), head=head, resume=asked.resume,
        shard_chunks=plan.blocks.shard_chunks, version=asked.ome_zarr,
        attributes={"command": "fuse", "config": decides}, overwrite=asked.overwrite,
    )  # fmt: skip


def _write_beside(plan: FusePlan, found: SeriesRegistration) -> list[Path]:
    """Write the transforms, in place of what an earlier run left."""
    given = {path.resolve() for path in (plan.parameters.transforms,) if path is not None}
    for path in side_outputs(plan.output):
        if path.resolve() not in given:
            remove(path)
    beside = plan.output.with_name(stem(plan.output))
    return registering.write_all(found, plan.views, plan.parameters, beside)

