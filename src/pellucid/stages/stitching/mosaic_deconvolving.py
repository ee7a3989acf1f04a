"""Stitching and deconvolution in one pass: tiles of a mosaic are blended as they are deconvolved.

The stitched image is never on a disk. It is a recording like any other, of which each block that is
read is blended from the microscope's tiles that touch it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data.pixels import IntegerScale, to_dtype
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import Recording
from pellucid.data.source import RECORDING_AXES, Array, Calibration
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError
from pellucid.stages.deconvolution.deconvolve import run
from pellucid.stages.deconvolution.planning import Plan, plan_recordings
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.stitching.parameters import StitchParameters
from pellucid.stages.stitching.plan import StitchPlan, plan_stitching
from pellucid.stages.stitching.stitching import (
    Mosaic,
    StitchOutcome,
    place_tiles,
    warning,
    write_positions,
)
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import OnEvent, ignore


@dataclass(frozen=True)
class MosaicPlan:
    """A stitching and deconvolution that fits the machine, and has not started.

    `deconvolution` is planned for the shape that the positions give as they are.
    """

    stitching: StitchPlan
    deconvolution: Plan

    @property
    def parameters(self) -> DeconvolveParameters:
        """Of the deconvolution."""
        return self.deconvolution.parameters


@dataclass(frozen=True)
class MosaicSource:
    """The stitched image as a file would offer it; blocks are blended when they are read.

    Parameters
    ----------
    mosaic : None where only the shape is known yet
    """

    image: ImageDescription
    files: tuple[Path, ...]
    mosaic: Mosaic | None = None

    @property
    def axes(self) -> str:
        return RECORDING_AXES

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.image.dtype)

    @property
    def calibration(self) -> Calibration:
        return Calibration(
            self.image.voxel_um or (None, None, None), self.image.names, self.image.time_step_s
        )

    def read(self, selection: tuple[slice, ...]) -> Array:
        """Blend one block of one time point and channel, in the type that a stitched file has."""
        if self.mosaic is None:
            raise InputError("mosaic: its tiles are not placed yet. Read it once they are.")
        t, c, *box = selection
        z, y, x = box
        counts = self.mosaic.block(
            t.start, c.start, (z.start, y.start, x.start), (z.stop, y.stop, x.stop)
        )
        pixels: Array = to_dtype(counts, self.dtype, IntegerScale())[0]
        return pixels[None, None]


def plan_mosaic(stitching: StitchParameters, deconvolving: DeconvolveParameters) -> MosaicPlan:
    """The plan of both: tiles, PSF, memory and disk checked; nothing computed."""
    plan = plan_stitching(stitching)
    image = plan.image(plan.nominal_shape)
    return MosaicPlan(plan, plan_recordings(deconvolving, [_recording(plan, image)]))


def run_mosaic(
    plan: MosaicPlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> StitchOutcome:
    """Carry out `plan`: place the tiles, then deconvolve the mosaic while it is blended.

    Where it is cut, each worker of `engine` blends what it deconvolves.
    """
    tiles = plan.stitching
    record = RunRecord("stitch", tiles.parameters.plain())
    outcome = StitchOutcome(plan.deconvolution.total, names=tiles.tiles.names)
    mosaic = place_tiles(tiles, record, warning(outcome, on_event))
    outcome.placement, outcome.shape = mosaic.placement, mosaic.shape
    positions = write_positions(mosaic)
    recording = _recording(tiles, tiles.image(mosaic.shape), positions, mosaic)
    sharp = run(plan_recordings(plan.parameters, [recording]), on_event, engine)
    record.inputs = [fingerprint(path) for path in tiles.tiles.files]
    record.statistics.update(mosaic.facts(), warnings=list(outcome.warnings))
    outcome.outputs += [*sharp.outputs, positions]
    outcome.records += [*sharp.records, write_record(record, positions)]
    outcome.failures += sharp.failures
    outcome.warnings += sharp.warnings
    outcome.timings_s = record.timings_s
    return outcome


class MosaicRecording(Recording):
    """A stitched image that was never written; it travels as where its tiles lie."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _recording_of, (self.path, self._source)


def _recording(
    plan: StitchPlan,
    image: ImageDescription,
    positions: Path | None = None,
    mosaic: Mosaic | None = None,
) -> Recording:
    # the positions are an input too: tiles that lie elsewhere are another mosaic
    files = (*plan.tiles.files, *(() if positions is None else (positions,)))
    source = MosaicSource(image, files, mosaic)
    return _recording_of(Path(f"mosaic of {len(plan.tiles.names)} tiles"), source)


def _recording_of(name: Path, source: MosaicSource) -> Recording:
    stated = source.calibration
    return MosaicRecording(
        name, source.image.shape, source.dtype, stated.spacing_um, stated.channels,
        stated.time_step_s, source.files, source,
    )  # fmt: skip
