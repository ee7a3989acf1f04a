"""The plan of a stitching: tiles opened and compared, overlaps chosen, memory and disk checked."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.blending import PlacedTile, output_shape
from pellucid.core.geometry import Triple, as_triple
from pellucid.core.linking import overlapping_pairs
from pellucid.data.output import create_output
from pellucid.data.pixels import check_exact
from pellucid.data.plain_json import plain_json
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription, ImageWriter
from pellucid.errors import InputError, ParameterError, PlanError
from pellucid.stages.pieces.piece_choice import gib
from pellucid.stages.selection import chosen
from pellucid.stages.stitching.parameters import OVERLAP, StitchParameters
from pellucid.stages.stitching.tile_set import TileSet, margin_px, open_tiles
from pellucid.stages.work.resources import available_bytes

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

BLENDED_VOXELS = 4_000_000
"""Voxels that are blended at once inside a block of the output."""

BLENDED_BYTES = 48
"""For each of them: sums, weights, a tile's piece, and what its interpolation needs."""

LINKED_BYTES = 600 * 2**20
"""Of the search between two overlaps, which are averaged down to a bounded size."""


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
    def notes(self) -> list[str]:
        """What was taken to be so, as nobody said it."""
        asked = self.parameters
        if asked.overlap or asked.positions is not None:
            return []
        return [
            f"no --overlap was given: neighbours are taken to share {OVERLAP:g} of a tile, give or take "
            "the margin that is searched. State it where they share more or less."
        ]

    @property
    def nominal_shape(self) -> Shape:
        """(z, y, x) of the output if the positions were right as they are."""
        return shape_of(self.tiles, self.tiles.nominal_px)

    @property
    def peak_bytes(self) -> int:
        """Memory that the run needs at most: the output's block, and what is blended in it."""
        block = math.prod(block_of(writer(self, self.nominal_shape)))
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
            "notes": self.notes,
            "device": "cpu",
            "peak_bytes": self.peak_bytes,
            "available_bytes": self.available_bytes,
        })  # fmt: skip
        return content


def plan_stitching(parameters: StitchParameters) -> StitchPlan:
    """The plan of a run: tiles opened and compared, pairs chosen, memory and disk checked.

    Raises
    ------
    InputError, ParameterError, OutputError, PlanError : in one sentence, before any work
    """
    tiles = open_tiles(parameters)
    first = tiles.recordings[0]
    if parameters.dtype == "as-input":
        check_exact(first.dtype, first.path.name)
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
        flat_from_file(parameters.flat_field, tiles)
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


def flat_from_file(path: str, tiles: TileSet) -> Float32:
    """The shading in an image file, of mean 1; InputError unless it fits the tiles."""
    recording = open_recording(path)
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


def shape_of(tiles: TileSet, positions: npt.NDArray[np.float64]) -> Shape:
    """(z, y, x) of the output when the tiles lie at these positions."""
    placed = [
        PlacedTile(tile, as_triple(at, "position"))
        for tile, at in zip(tiles.tiles(0, 0), positions, strict=True)
    ]
    return output_shape(placed)


def writer(plan: StitchPlan, shape: Shape) -> ImageWriter:
    """The output, checked and not yet begun."""
    asked = plan.parameters
    return create_output(
        plan.output, plan.image(shape), attributes={"command": "stitch", "config": asked.plain()},
        ome_zarr_version=asked.ome_zarr, overwrite=asked.overwrite,
    )  # fmt: skip


def block_of(out: ImageWriter) -> Shape:
    """The block that this output takes best: a shard, or whole rows of a few planes of a TIFF."""
    block: Shape | None = getattr(out, "block_zyx", None)
    if block is not None:
        return block
    depth, height, width = out.image.shape[2:]
    rows = min(height, max(1, BLENDED_VOXELS // width))
    return min(depth, max(1, BLENDED_VOXELS // (rows * width))), rows, width
