"""Where restored volumes go: straight to the output, or to integers once their range is known."""

import math
import tempfile
from contextlib import ExitStack
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pellucid.data.output import create_output
from pellucid.data.pixels import IntegerScale
from pellucid.data.writer import ImageDescription, ImageWriter, plain_errors
from pellucid.stages.deconvolution.planning import FilePlan
from pellucid.stages.parameters import DeconvolveParameters

Float32 = npt.NDArray[np.float32]


class Sink(Protocol):
    """Takes (z, y, x) float32 volumes of one file, then makes it or lets it vanish."""

    def write(self, t: int, c: int, volume: Float32) -> None:
        """Take the volume at (t, c) of the output."""
        ...

    def finish(self) -> dict[str, float]:
        """Give the output its final name; returns what is to be recorded of its numbers."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind."""
        ...


def open_sink(file: FilePlan, parameters: DeconvolveParameters) -> Sink:
    """The sink of one file; its output is begun under a name that looks unfinished."""
    file.output.parent.mkdir(exist_ok=True)
    if parameters.dtype == "float32":
        return FloatSink(_writer(file, parameters, IntegerScale()))
    return IntegerSink(file, parameters)


class FloatSink:
    """Writes volumes as they come."""

    def __init__(self, writer: ImageWriter) -> None:
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(writer)

    def write(self, t: int, c: int, volume: Float32) -> None:
        self._writer.write(t, c, volume)

    def finish(self) -> dict[str, float]:
        self._stack.close()
        return {}

    def abandon(self) -> None:
        self._stack.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


class IntegerSink:
    """Keeps float32 volumes in a nameless file until all are there, then scales them to integers.

    One scale serves the whole file, so that its volumes stay comparable; nothing is clipped.
    """

    def __init__(self, file: FilePlan, parameters: DeconvolveParameters) -> None:
        self._file, self._parameters = file, parameters
        self._low, self._high = math.inf, -math.inf
        with plain_errors(file.output):
            self._waiting = tempfile.TemporaryFile(dir=file.output.parent)
        self._bytes = math.prod(file.shape[2:]) * 4

    def write(self, t: int, c: int, volume: Float32) -> None:
        finite = volume[np.isfinite(volume)]
        if finite.size:
            self._low = min(self._low, float(finite.min()))
            self._high = max(self._high, float(finite.max()))
        with plain_errors(self._file.output):
            self._waiting.seek(self._offset(t, c))
            self._waiting.write(np.ascontiguousarray(np.nan_to_num(volume)).tobytes())
            self._waiting.flush()

    def finish(self) -> dict[str, float]:
        known = self._high >= self._low
        scale = IntegerScale.from_range(
            self._low if known else 0.0, self._high if known else 0.0, self._parameters.dtype
        )
        writer = _writer(self._file, self._parameters, scale)
        z, y, x = self._file.shape[2:]
        with self._waiting, writer:
            for t, c in np.ndindex(self._file.shape[:2]):
                self._waiting.seek(self._offset(t, c))
                block = np.frombuffer(self._waiting.read(self._bytes), np.float32)
                writer.write(t, c, block.reshape(z, y, x))
        return {"integer_scale": scale.factor, "clipped_voxels": writer.clipped}

    def abandon(self) -> None:
        self._waiting.close()

    def _offset(self, t: int, c: int) -> int:
        return (t * self._file.shape[1] + c) * self._bytes


def _writer(file: FilePlan, parameters: DeconvolveParameters, scale: IntegerScale) -> ImageWriter:
    image = ImageDescription(
        file.shape, parameters.dtype, file.voxel_um, file.channel_names, file.time_step_s
    )
    return create_output(
        file.output,
        image,
        attributes={"command": "deconvolve", "config": parameters.plain()},
        scale=scale,
        ome_zarr_version=parameters.ome_zarr,
        overwrite=parameters.overwrite,
    )
