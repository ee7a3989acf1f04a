"""The plan of a restoration by a model: all that is known before work starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.output import create_output
from pellucid.data.plain_json import plain_json
from pellucid.data.recording import Recording
from pellucid.data.writer import (
    ImageDescription,
    ImageWriter,
)
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.pieces.piece_choice import (
    tiles_json,
)
from pellucid.stages.pieces.tile_plan import TilePlan
from pellucid.stages.pieces.volume_statistics import LazyVolume, Place
from pellucid.stages.selection import time_step_s
from pellucid.stages.work.resources import describe_device


@dataclass(frozen=True)
class RestorePlan:
    """A restoration by a model that can be done, and has not started.

    Parameters
    ----------
    times, channels : indices that are taken, in the order of the output
    peak_bytes : of one volume, or of one tile where there are `tiles`
    """

    parameters: RestoreParameters
    network: Network
    psf: Psf | PsfField
    card: dict[str, Any]
    recording: Recording
    times: tuple[int, ...]
    channels: tuple[int, ...]
    device: str
    peak_bytes: int
    available_bytes: int | None
    tiles: TilePlan | None = None

    @property
    def restorer(self) -> Polished:
        """The network with its polish."""
        polish = self.parameters.polish
        return Polished(self.network, None if polish == "auto" else int(polish))

    @property
    def output(self) -> Path:
        """Of the image."""
        return self.parameters.output.expanduser()

    @property
    def outputs(self) -> list[Path]:
        """The image, and the map of what to believe where that is asked for."""
        verdict = self.parameters.verdict
        return [self.output] if verdict is None else [self.output, verdict.expanduser()]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x) of the output."""
        z, y, x = self.recording.shape[2:]
        return len(self.times), len(self.channels), z, y, x

    @property
    def image(self) -> ImageDescription:
        """Of the restored recording."""
        names = tuple(self.recording.channels[c] for c in self.channels)
        return ImageDescription(
            self.shape, "float32", self.recording.require_voxel_um(), names,
            time_step_s(self.recording, self.times),
        )  # fmt: skip

    @property
    def volumes(self) -> dict[Place, LazyVolume]:
        """The volumes that are taken, by their place (t, c) in the output."""
        return {
            (t, c): LazyVolume(self.recording, time, channel)
            for t, time in enumerate(self.times)
            for c, channel in enumerate(self.channels)
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        asked, recording = self.parameters, self.recording
        file = {
            "input": str(recording.path),
            "input_shape_tczyx": recording.shape,
            "input_dtype": recording.dtype.name,
            "output": str(self.output),
            "output_shape_tczyx": self.shape,
            "output_dtype": self.image.dtype,
            "output_bytes": self.image.size_bytes * (1 + (asked.verdict is not None)),
            "verdict": asked.verdict,
            "voxel_um": self.image.voxel_um,
            "times": self.times,
            "channels": dict(zip(self.image.names, self.channels, strict=True)),
            **tiles_json(self.tiles),
            "peak_bytes": self.peak_bytes,
        }
        said: dict[str, Any] = plain_json({
            "model": asked.model, "operator": self.card["operator"], "passes": len(self.card["networks"]),
            "polish": asked.polish, "fall_back": asked.fall_back, "device": describe_device(self.device),
            "available_bytes": self.available_bytes, "memory_bytes": asked.memory, "volumes": self.total,
            "files": [file],
        })  # fmt: skip
        return said

    @property
    def is_judged(self) -> bool:
        """Whether evidence about the answer is wanted."""
        return self.parameters.fall_back or self.parameters.verdict is not None

    @property
    def names(self) -> list[str]:
        """Of the volumes, for people."""
        return [volume.name for volume in self.volumes.values()]

    @property
    def total(self) -> int:
        """Number of (z, y, x) volumes."""
        return len(self.times) * len(self.channels)

    @property
    def steps(self) -> int:
        """Number of volumes, or of their tiles, twice where these are judged before."""
        return self.total * (1 if self.tiles is None else len(self.tiles.tiling) * (1 + self.is_judged))

    def writers(self) -> list[ImageWriter]:
        """The outputs, the image first, checked and not yet begun."""
        replaces = self.parameters.overwrite
        return [create_output(path, self.image, overwrite=replaces) for path in self.outputs]
