"""Stitching of files: tiles linked and placed once, then blended block by block for all channels."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.blending import PlacedTile, blended_block
from pellucid.core.flat_field import estimated_flat_field, tile_gains
from pellucid.core.geometry import Triple, as_triple
from pellucid.core.linking import linked
from pellucid.core.noise import check_background, estimate_background
from pellucid.core.pairwise import THIN_PX, Link, is_thin, pairwise_shift
from pellucid.core.placement import Placement, place
from pellucid.data.output import stem
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.writer import write_atomically
from pellucid.stages.deconvolution.deconvolve import Outcome
from pellucid.stages.stitching.plan import (
    BLENDED_VOXELS,
    Float32,
    Shape,
    StitchPlan,
    block_of,
    flat_from_file,
    shape_of,
    writer,
)
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, Warned, ignore

Light = tuple[Float32 | None, float]

WITHOUT_EFFECT = frozenset({"output", "overwrite", "picture"})
"""Parameters that change nothing about where tiles are and what is blended of them."""

FEWEST_FOR_FLAT_FIELD = 10
"""Tiles below which the specimen does not average out of the shading."""


@dataclass
class StitchOutcome(Outcome):
    """What came of a stitching: where the tiles are, and how far links disagree."""

    names: tuple[str, ...] = ()
    placement: Placement | None = None
    shape: Shape = (0, 0, 0)
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def rejected(self) -> list[tuple[str, str, str]]:
        """Names of the two tiles of each link that did not take part, and why."""
        assert self.placement is not None
        return [
            (self.names[k.first], self.names[k.second], k.reason or f"disagrees by {off:.3g} px")
            for k, used, off in zip(
                self.placement.links, self.placement.kept, self.placement.residuals_px, strict=True
            )
            if not used
        ]

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        assert self.placement is not None
        return {
            **super().to_json(),
            "shape_zyx": self.shape,
            "placement": self.placement.to_dict(),
            "timings_s": self.timings_s,
        }


@dataclass(frozen=True)
class Mosaic:
    """Tiles placed for good: any block of the stitched image, blended when it is wanted.

    Parameters
    ----------
    positions_px : (tiles, 3) of each tile's first voxel in the output
    light : flat field and background of each channel of the recordings
    gains : of the tiles, for each channel of the output
    shape : (z, y, x) of the output
    """

    plan: StitchPlan
    placement: Placement
    positions_px: npt.NDArray[np.float64]
    light: dict[int, Light]
    gains: list[npt.NDArray[np.float64]]
    shape: Shape

    def block(self, t: int, c: int, low: Shape, high: Shape) -> Float32:
        """(z, y, x) counts of the block [low, high) at time point and channel (t, c) of the output."""
        channel = self.plan.channels[c]
        flat, level = self.light[channel]
        tiles = [
            PlacedTile(tile, as_triple(at, "position"), float(gain), flat, level)
            for tile, at, gain in zip(
                self.plan.tiles.tiles(self.plan.times[t], channel), self.positions_px, self.gains[c],
                strict=True,
            )
        ]  # fmt: skip
        return _blended(tiles, low, high)

    def facts(self) -> dict[str, Any]:
        """What a record says of the mosaic."""
        return {
            "shape_zyx": self.shape,
            "notes": self.plan.notes,
            "backgrounds": [self.light[c][1] for c in self.plan.channels],
            "gains": np.array(self.gains),
            "placement": self.placement.to_dict(),
        }


def place_tiles(plan: StitchPlan, record: RunRecord, warn: Callable[[str], None]) -> Mosaic:
    """The tiles linked, placed and made equally bright; nothing is blended yet."""
    with record.timed("flat field"):
        used_channels = dict.fromkeys([plan.reference, *plan.channels])
        light = {c: _light(plan, c, warn) for c in used_channels}
    with record.timed("link and place"):
        placed = _placed(plan, light[plan.reference])
    for sentence in _doubts(plan, placed):
        warn(sentence)
    used = [link for link, kept in zip(placed.links, placed.kept, strict=True) if kept]
    with record.timed("gains"):
        gains = [_gains(plan, c, light[c], used, placed) for c in plan.channels]
    positions = placed.positions_px - placed.positions_px.min(axis=0)
    return Mosaic(plan, placed, positions, light, gains, shape_of(plan.tiles, positions))


def run_stitching(plan: StitchPlan, on_event: OnEvent = ignore) -> StitchOutcome:
    """Carry out `plan`: place the tiles, blend every time point and channel, write what was found."""
    record = RunRecord("stitch", plan.parameters.plain())
    outcome = StitchOutcome(len(plan.times) * len(plan.channels), names=plan.tiles.names)
    mosaic = place_tiles(plan, record, warning(outcome, on_event))
    outcome.placement, outcome.shape = mosaic.placement, mosaic.shape
    with record.timed("blend and write"), writer(plan, mosaic.shape) as out:
        for number, (t, c) in enumerate(np.ndindex(len(plan.times), len(plan.channels))):
            begin = time.perf_counter()
            for low, high in _blocks(mosaic.shape, block_of(out)):
                out.write(t, c, mosaic.block(t, c, low, high), *low)
            name = f"t={plan.times[t]} c={plan.image(mosaic.shape).names[c]}"
            on_event(VolumeDone(number, outcome.total, time.perf_counter() - begin, name))
    outcome.outputs += [plan.output, write_positions(mosaic)]
    with record.timed("checksums"):
        record.inputs = [fingerprint(path) for path in plan.tiles.files]
    record.statistics.update(
        mosaic.facts(), clipped_voxels=out.clipped, warnings=outcome.warnings
    )
    outcome.timings_s = record.timings_s
    outcome.records.append(write_record(record, plan.output))
    on_event(FileDone(plan.output, outcome.records[0]))
    return outcome


def warning(outcome: Outcome, on_event: OnEvent) -> Callable[[str], None]:
    """What notes a sentence in an outcome and says it."""

    def warn(sentence: str) -> None:
        outcome.warnings.append(sentence)
        on_event(Warned(sentence))

    return warn


def _placed(plan: StitchPlan, light: Light) -> Placement:
    if plan.parameters.registration == "none":
        return place(plan.tiles.nominal_px, [])
    flat, level = light
    tiles = plan.tiles.tiles(plan.parameters.at_time, plan.reference, flat, level)

    def measure(a: int, b: int, expected: Triple, margin: Triple) -> Link | None:
        return pairwise_shift(tiles[a], tiles[b], expected, names=(a, b), margin_px=margin)

    return linked(measure, plan.tiles.nominal_px, plan.pairs, margin_px=plan.margin_px)


def _doubts(plan: StitchPlan, placed: Placement) -> Iterator[str]:
    """What a user should look at before trusting the picture."""
    if plan.parameters.registration == "none":
        return
    names = plan.tiles.names
    for group in placed.groups[1:]:
        some = ", ".join(names[tile] for tile in group[:4]) + (" ..." if len(group) > 4 else "")
        yield f"no believed link ties {some} to the other tiles: placed as the stage says"
    shapes = plan.tiles.shapes
    thin = [is_thin(shapes[k.first], shapes[k.second], k.shift_px) for k in placed.links]
    for tile in placed.held_only_by(thin):
        yield f"{names[tile]} hangs on overlaps of fewer than {THIN_PX} voxels: it may be voxels off"
    for link, kept, off in zip(placed.links, placed.kept, placed.residuals_px, strict=True):
        if not kept:
            why = link.reason or f"it disagrees with the others by {off:.3g} px"
            yield f"link {names[link.first]} - {names[link.second]} not used: {why}"


def _background(plan: StitchPlan, c: int) -> float:
    """Counts that are no light: the lowest that the middle planes of the tiles show."""
    tiles = plan.tiles.tiles(plan.parameters.at_time, c)
    middles = (np.asarray(tile[tile.shape[0] // 2])[None] for tile in tiles)
    if (stated := plan.parameters.background) is not None:
        ends = np.array([(plane.min(), plane.max()) for plane in middles], np.float64)
        check_background(stated, float(ends.min()), float(ends.max()))
        return stated
    return min(float(estimate_background(plane)) for plane in middles)


def _light(plan: StitchPlan, c: int, warn: Callable[[str], None]) -> Light:
    """Return the flat field of a channel, if any, and the counts that are no light."""
    level = _background(plan, c)
    asked, tiles = plan.parameters.flat_field, plan.tiles.tiles(plan.parameters.at_time, c)
    if asked == "none":
        return None, level
    if asked != "auto":
        return flat_from_file(asked, plan.tiles), level
    if len(tiles) < FEWEST_FOR_FLAT_FIELD and c == plan.reference:
        warn(
            f"flat field from {len(tiles)} tiles: ten or more are needed for the specimen to average "
            "out; compare with --flat-field none"
        )
    return estimated_flat_field(tiles, level), level


def _gains(
    plan: StitchPlan, c: int, light: Light, used: list[Link], placed: Placement
) -> npt.NDArray[np.float64]:
    count = len(plan.tiles.recordings)
    if plan.parameters.gains == "none" or not used:
        return np.ones(count)
    if c == plan.reference:
        return tile_gains(count, used)
    # another channel has light of its own: measured again where the tiles were found to lie
    flat, level = light
    tiles = plan.tiles.tiles(plan.parameters.at_time, c, flat, level)
    links = []
    for link in used:
        a, b = link.first, link.second
        shift = as_triple(placed.positions_px[b] - placed.positions_px[a], "shift")
        found = pairwise_shift(tiles[a], tiles[b], shift, names=(a, b), margin_px=(1.0, 1.0, 1.0))
        links += [] if found is None else [found]
    return tile_gains(count, links)


def _blocks(shape: Shape, block: Shape, start: Shape = (0, 0, 0)) -> Iterator[tuple[Shape, Shape]]:
    """First and last corner of each block of a volume."""
    for cell in np.ndindex(*(-(-n // b) for n, b in zip(shape, block, strict=True))):
        z, y, x = (i * b for i, b in zip(cell, block, strict=True))
        d, h, w = (min(i * b + b, n) for i, b, n in zip(cell, block, shape, strict=True))
        a, b, c = start
        yield (z + a, y + b, x + c), (d + a, h + b, w + c)


def _blended(tiles: list[PlacedTile], low: Shape, high: Shape) -> Float32:
    """One block of the output, blended a few planes at a time, so that memory stays bounded."""
    depth, height, width = (b - a for a, b in zip(low, high, strict=True))
    rows = min(height, max(1, BLENDED_VOXELS // width))
    step = (max(1, BLENDED_VOXELS // (rows * width)), rows, width)
    block = np.empty((depth, height, width), np.float32)
    for first, last in _blocks((depth, height, width), step, low):
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, low, strict=True))
        block[inside] = blended_block(tiles, first, last)
    return block


def write_positions(mosaic: Mosaic) -> Path:
    """Write where the tiles are, as `--positions` takes it, with links and residuals."""
    plan, placed = mosaic.plan, mosaic.placement
    names = plan.tiles.names
    voxel = np.array(plan.tiles.voxel_um or (1.0, 1.0, 1.0))
    moved = placed.positions_px - plan.tiles.nominal_px
    tiles = [
        dict(zip(("name", "z", "y", "x"), (name, *(at * voxel)), strict=True))
        | {"position_px": at, "from_stage_px": off - np.median(moved, axis=0),
           "gains": [float(gain[number]) for gain in mosaic.gains]}
        for number, (name, at, off) in enumerate(zip(names, mosaic.positions_px, moved, strict=True))
    ]  # fmt: skip
    content = {
        "unit": "micrometre" if plan.tiles.voxel_um else "voxel",
        "voxel_um": plan.tiles.voxel_um,
        "parameters": {k: v for k, v in plan.parameters.plain().items() if k not in WITHOUT_EFFECT},
        "tiles": tiles,
        **{k: v for k, v in placed.to_dict().items() if k != "positions_px"},
    }
    path = plan.output.with_name(f"{stem(plan.output)}_positions.json")
    write_atomically(path, json.dumps(plain_json(content), indent=1, allow_nan=False) + "\n")
    return path
