"""Stitching of files: tiles linked and placed once, then blended block by block for all channels."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.blending import PlacedTile, blended_block, output_shape
from pellucid.core.flat_field import estimated_flat_field, tile_gains
from pellucid.core.geometry import Triple, as_triple
from pellucid.core.linking import linked, overlapping_pairs
from pellucid.core.noise import estimate_background
from pellucid.core.pairwise import Link, pairwise_shift
from pellucid.core.placement import Placement, place
from pellucid.data.output import create_output, stem
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription, ImageWriter, write_atomically
from pellucid.errors import InputError, ParameterError, PlanError
from pellucid.stages.deconvolve import Outcome
from pellucid.stages.events import FileDone, OnEvent, VolumeDone, Warned, ignore
from pellucid.stages.planning import chosen, gib
from pellucid.stages.resources import available_bytes
from pellucid.stages.stitch_parameters import StitchParameters
from pellucid.stages.tile_set import TileSet, margin_px, open_tiles

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

BLENDED_VOXELS = 4_000_000
"""Voxels that are blended at once inside a block of the output."""

BLENDED_BYTES = 48
"""For each of them: sums, weights, a tile's piece, and what its interpolation needs."""

LINKED_BYTES = 600 * 2**20
"""Of the search between two overlaps, which are averaged down to a bounded size."""

FEWEST_FOR_FLAT_FIELD = 10
"""Tiles below which the specimen does not average out of the shading."""


@dataclass(frozen=True)
class StitchPlan:
    """A stitching that fits the machine, and has not started."""

    parameters: StitchParameters
    tiles: TileSet
    pairs: tuple[tuple[int, int], ...]
    margin_px: Triple
    times: tuple[int, ...]
    channels: tuple[int, ...]
    reference: int
    available_bytes: int | None

    @property
    def output(self) -> Path:
        """Where the result goes."""
        return self.parameters.output.expanduser()

    def image(self, shape: Shape) -> ImageDescription:
        """What an output of this (z, y, x) shape holds."""
        first, wanted = self.tiles.recordings[0], self.parameters.dtype
        return ImageDescription(
            (len(self.times), len(self.channels), *shape),
            first.dtype.name if wanted == "as-input" else wanted,
            self.tiles.voxel_um,
            tuple(first.channels[c] for c in self.channels),
            first.time_step_s if len(self.times) == first.shape[0] else None,
        )

    @property
    def nominal_shape(self) -> Shape:
        """(z, y, x) of the output if the positions were right as they are."""
        return _shape_of(self.tiles, self.tiles.nominal_px)

    @property
    def peak_bytes(self) -> int:
        """Memory that the run needs at most: the output's block, and what is blended in it."""
        block = math.prod(_block_of(_writer(self, self.nominal_shape)))
        return 4 * block + BLENDED_BYTES * min(BLENDED_VOXELS, block) + LINKED_BYTES

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        names = self.tiles.names
        image = self.image(self.nominal_shape)
        content: dict[str, Any] = plain_json({
            "tiles": [
                {"name": name, "shape_zyx": shape, "nominal_px": at}
                for name, shape, at in zip(
                    names, self.tiles.shapes, self.tiles.nominal_px.tolist(), strict=True
                )
            ],
            "links": [[names[a], names[b]] for a, b in self.pairs],
            "margin_px": self.margin_px,
            "reference": self.tiles.recordings[0].channels[self.reference],
            "times": self.times,
            "channels": image.names,
            "output": str(self.output),
            "output_shape_tczyx": image.shape,
            "output_bytes": image.size_bytes,
            "voxel_um": self.tiles.voxel_um,
            "device": "cpu",
            "peak_bytes": self.peak_bytes,
            "available_bytes": self.available_bytes,
        })  # fmt: skip
        return content


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


def plan_stitching(parameters: StitchParameters) -> StitchPlan:
    """The plan of a run: tiles opened and compared, pairs chosen, memory and disk checked.

    Raises
    ------
    InputError, ParameterError, OutputError, PlanError : in one sentence, before any work
    """
    tiles = open_tiles(parameters)
    first = tiles.recordings[0]
    reference = chosen(parameters.reference, first.shape[1], "channel", first)
    if len(reference) > 1:
        raise ParameterError(f"reference: one channel registers, got {parameters.reference!r}.")
    if parameters.at_time >= first.shape[0]:
        raise ParameterError(
            f"at_time: expected 0 to {first.shape[0] - 1}, got {parameters.at_time}."
        )
    inputs = {path.resolve() for recording in tiles.recordings for path in recording.files}
    if parameters.output.expanduser().resolve() in inputs:
        raise ParameterError(f"output: {parameters.output} is a tile. Write to another name.")
    if parameters.flat_field not in ("none", "auto"):
        _flat_from_file(parameters.flat_field, tiles)
    pairs = overlapping_pairs(tiles.shapes, tiles.nominal_px)
    if not pairs and parameters.registration == "links":
        raise InputError(
            f"{parameters.inputs[0]}: no two tiles overlap at their positions. Check --overlap, the "
            "positions and their unit (micrometres), or take --registration none."
        )
    plan = StitchPlan(
        parameters, tiles, tuple(pairs), margin_px(parameters, tiles),
        chosen(parameters.time, first.shape[0], "time", first),
        chosen(parameters.channel, first.shape[1], "channel", first),
        reference[0], available_bytes("cpu"),
    )  # fmt: skip
    needed = plan.peak_bytes
    if plan.available_bytes is not None and needed > plan.available_bytes:
        raise PlanError(
            f"{plan.output.name}: stitching needs {gib(needed)} and {gib(plan.available_bytes)} are "
            "free. Free some memory."
        )
    return plan


def run_stitching(plan: StitchPlan, on_event: OnEvent = ignore) -> StitchOutcome:
    """Carry out `plan`: place the tiles, blend every time point and channel, write what was found."""
    record = RunRecord("stitch", plan.parameters.plain())
    outcome = StitchOutcome(len(plan.times) * len(plan.channels), names=plan.tiles.names)

    def warn(sentence: str) -> None:
        outcome.warnings.append(sentence)
        on_event(Warned(sentence))

    with record.timed("link and place"):
        levels = [_background(plan, c) for c in plan.channels]
        placed = outcome.placement = _placed(plan)
    for sentence in _doubts(plan, placed):
        warn(sentence)
    used = [link for link, kept in zip(placed.links, placed.kept, strict=True) if kept]
    with record.timed("flat field"):
        flats = [_flat(plan, c, b, warn) for c, b in zip(plan.channels, levels, strict=True)]
        gains = [_gains(plan, c, used, placed) for c in plan.channels]
    positions = placed.positions_px - placed.positions_px.min(axis=0)
    outcome.shape = shape = _shape_of(plan.tiles, positions)
    with record.timed("blend and write"), _writer(plan, shape) as out:
        for number, (t, c) in enumerate(np.ndindex(len(plan.times), len(plan.channels))):
            begin = time.perf_counter()
            tiles = [
                PlacedTile(tile, as_triple(at, "position"), float(gain), flats[c], levels[c])
                for tile, at, gain in zip(
                    plan.tiles.tiles(plan.times[t], plan.channels[c]), positions, gains[c], strict=True
                )
            ]
            for low, high in _blocks(shape, _block_of(out)):
                out.write(t, c, _blended(tiles, low, high), *low)
            name = f"t={plan.times[t]} c={plan.image(shape).names[c]}"
            on_event(VolumeDone(number, outcome.total, time.perf_counter() - begin, name))
    outcome.outputs.append(plan.output)
    outcome.outputs.append(_write_positions(plan, placed, positions, gains))
    with record.timed("checksums"):
        files = [path for recording in plan.tiles.recordings for path in recording.files]
        record.inputs = [fingerprint(path) for path in dict.fromkeys(files)]
    record.statistics.update(
        shape_zyx=shape, clipped_voxels=out.clipped, backgrounds=levels, gains=np.array(gains),
        warnings=outcome.warnings, placement=placed.to_dict(),
    )  # fmt: skip
    outcome.timings_s = record.timings_s
    outcome.records.append(write_record(record, plan.output))
    on_event(FileDone(plan.output, outcome.records[0]))
    return outcome


def _placed(plan: StitchPlan) -> Placement:
    if plan.parameters.registration == "none":
        return place(plan.tiles.nominal_px, [])
    tiles = plan.tiles.tiles(plan.parameters.at_time, plan.reference)
    level = _background(plan, plan.reference)

    def measure(a: int, b: int, expected: Triple, margin: Triple) -> Link | None:
        return pairwise_shift(
            tiles[a], tiles[b], expected, names=(a, b), margin_px=margin, background=level
        )

    return linked(measure, plan.tiles.nominal_px, plan.pairs, margin_px=plan.margin_px)


def _doubts(plan: StitchPlan, placed: Placement) -> Iterator[str]:
    """What a user should look at before trusting the picture."""
    if plan.parameters.registration == "none":
        return
    names = plan.tiles.names
    for group in placed.groups[1:]:
        some = ", ".join(names[tile] for tile in group[:4]) + (" ..." if len(group) > 4 else "")
        yield f"no believed link ties {some} to the other tiles: placed as the stage says"
    for link, kept, off in zip(placed.links, placed.kept, placed.residuals_px, strict=True):
        if not kept:
            why = link.reason or f"it disagrees with the others by {off:.3g} px"
            yield f"link {names[link.first]} - {names[link.second]} not used: {why}"


def _background(plan: StitchPlan, c: int) -> float:
    """Counts that are no light: the lowest that the middle planes of the tiles show."""
    if plan.parameters.background is not None:
        return plan.parameters.background
    tiles = plan.tiles.tiles(plan.parameters.at_time, c)
    return min(float(estimate_background(np.asarray(t[t.shape[0] // 2])[None])) for t in tiles)


def _flat(plan: StitchPlan, c: int, level: float, warn: Any) -> Float32 | None:
    asked, tiles = plan.parameters.flat_field, plan.tiles.tiles(plan.parameters.at_time, c)
    if asked == "none":
        return None
    if asked != "auto":
        return _flat_from_file(asked, plan.tiles)
    if len(tiles) < FEWEST_FOR_FLAT_FIELD and c == plan.channels[0]:
        warn(
            f"flat field from {len(tiles)} tiles: ten or more are needed for the specimen to average "
            "out; compare with --flat-field none"
        )
    return estimated_flat_field(tiles, level)


def _flat_from_file(path: str, tiles: TileSet) -> Float32:
    recording = open_recording(path, voxel_um=(1.0, 1.0, 1.0))
    height, width = tiles.shapes[0][1:]
    if recording.shape != (1, 1, 1, height, width):
        raise InputError(
            f"{recording.path.name}: a flat field is one plane of {height} x {width}, as the tiles "
            f"are; this is {recording.shape} (t, c, z, y, x)."
        )
    plane: Float32 = recording.read()[0].astype(np.float32)
    if not np.isfinite(plane).all() or plane.min() <= 0:
        raise InputError(f"{recording.path.name}: a flat field is positive everywhere.")
    flat: Float32 = plane / plane.mean()
    return flat


def _gains(
    plan: StitchPlan, c: int, used: list[Link], placed: Placement
) -> npt.NDArray[np.float64]:
    count = len(plan.tiles.recordings)
    if plan.parameters.gains == "none" or not used:
        return np.ones(count)
    if c == plan.reference:
        return tile_gains(count, used)
    # another channel has light of its own: measured again where the tiles were found to lie
    tiles, level = plan.tiles.tiles(plan.parameters.at_time, c), _background(plan, c)
    links = []
    for link in used:
        a, b = link.first, link.second
        shift = as_triple(placed.positions_px[b] - placed.positions_px[a], "shift")
        found = pairwise_shift(
            tiles[a], tiles[b], shift, names=(a, b), margin_px=(1.0, 1.0, 1.0), background=level
        )
        links += [] if found is None else [found]
    return tile_gains(count, links)


def _shape_of(tiles: TileSet, positions: npt.NDArray[np.float64]) -> Shape:
    placed = [
        PlacedTile(tile, as_triple(at, "position"))
        for tile, at in zip(tiles.tiles(0, 0), positions, strict=True)
    ]
    return output_shape(placed)


def _writer(plan: StitchPlan, shape: Shape) -> ImageWriter:
    asked = plan.parameters
    return create_output(
        plan.output, plan.image(shape), attributes={"command": "stitch", "config": asked.plain()},
        ome_zarr_version=asked.ome_zarr, overwrite=asked.overwrite,
    )  # fmt: skip


def _block_of(out: ImageWriter) -> Shape:
    """The block that this output takes best: a shard, or whole rows of a few planes of a TIFF."""
    block: Shape | None = getattr(out, "block_zyx", None)
    if block is not None:
        return block
    depth, height, width = out.image.shape[2:]
    rows = min(height, max(1, BLENDED_VOXELS // width))
    return min(depth, max(1, BLENDED_VOXELS // (rows * width))), rows, width


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


def _write_positions(
    plan: StitchPlan,
    placed: Placement,
    positions: npt.NDArray[np.float64],
    gains: list[npt.NDArray[np.float64]],
) -> Path:
    """Write where the tiles are, as `--positions` takes it, with links and residuals."""
    names = plan.tiles.names
    voxel = np.array(plan.tiles.voxel_um or (1.0, 1.0, 1.0))
    moved = placed.positions_px - plan.tiles.nominal_px
    tiles = [
        dict(zip(("name", "z", "y", "x"), (name, *(at * voxel)), strict=True))
        | {"position_px": at, "from_stage_px": off - np.median(moved, axis=0),
           "gains": [float(gain[number]) for gain in gains]}
        for number, (name, at, off) in enumerate(zip(names, positions, moved, strict=True))
    ]  # fmt: skip
    content = {
        "unit": "micrometre" if plan.tiles.voxel_um else "voxel",
        "voxel_um": plan.tiles.voxel_um,
        "tiles": tiles,
        **{k: v for k, v in placed.to_dict().items() if k != "positions_px"},
    }
    path = plan.output.with_name(f"{stem(plan.output)}_positions.json")
    write_atomically(path, json.dumps(plain_json(content), indent=1, allow_nan=False) + "\n")
    return path
