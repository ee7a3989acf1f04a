"""The plan of a restoration by a model: all that is known before work starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.output import check_not_input, create_output
from pellucid.data.plain_json import plain_json
from pellucid.data.recording import Recording
from pellucid.data.writer import (
    ImageDescription,
    ImageWriter,
)
from pellucid.errors import OutputError
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
class NetworkPlan:
    """What a restoration of one view and one of several have in common.

    Parameters
    ----------
    peak_bytes : of one volume, or of one tile where volumes are cut
    available_bytes : that may be used; None where nobody says
    """

    parameters: RestoreParameters
    network: Network
    card: dict[str, Any]
    device: str
    peak_bytes: int
    available_bytes: int | None

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
    def written(self) -> list[Path]:
        """All files that are made, but for records."""
        return self.outputs

    @property
    def is_judged(self) -> bool:
        """Whether evidence about the answer is wanted."""
        return self.parameters.fall_back or self.parameters.verdict is not None

    def check_names(self, read: Iterable[Path]) -> None:
        """OutputError where an output is one of the files that are `read`, or another output."""
        for path in self.written:
            check_not_input(path, read)
        if len({path.resolve() for path in self.written}) < len(self.written):
            raise OutputError(
                f"{self.parameters.verdict}: the verdict would replace the image. Name another."
            )

    def writers(self, image: ImageDescription) -> list[ImageWriter]:
        """The outputs that hold an `image` each, what is restored first, checked and not yet begun."""
        overwrite = self.parameters.overwrite
        return [create_output(path, image, overwrite=overwrite) for path in self.outputs]

    def said(self, volumes: int, image: ImageDescription, read: Mapping[str, Any]) -> dict[str, Any]:
        """The plan as JSON types, of `volumes` written as an `image`; what is `read`, by its names."""
        asked = self.parameters
        file = {
            "output": str(self.output), "output_shape_tczyx": image.shape, "output_dtype": image.dtype,
            "output_bytes": image.size_bytes * len(self.outputs),
            "verdict": asked.verdict, "voxel_um": image.voxel_um, "peak_bytes": self.peak_bytes,
        }  # fmt: skip
        said: dict[str, Any] = plain_json({
            "model": asked.model, "operator": self.card["operator"], "passes": len(self.card["networks"]),
            "polish": asked.polish, "fall_back": asked.fall_back, "device": describe_device(self.device),
            "available_bytes": self.available_bytes, "memory_bytes": asked.memory, "volumes": volumes,
            "files": [{**read, **file}],
        })  # fmt: skip
        return said


@dataclass(frozen=True)
class RestorePlan(NetworkPlan):
    """A restoration by a model that can be done, and has not started.

    Parameters
    ----------
    times, channels : indices that are taken, in the order of the output
    tiles : how volumes are cut; None: not at all
    """

    psf: Psf | PsfField
    recording: Recording
    times: tuple[int, ...]
    channels: tuple[int, ...]
    tiles: TilePlan | None = None

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
        recording = self.recording
        return self.said(self.total, self.image, {
            "input": str(recording.path),
            "input_shape_tczyx": recording.shape,
            "input_dtype": recording.dtype.name,
            "times": self.times,
            "channels": dict(zip(self.image.names, self.channels, strict=True)),
            **tiles_json(self.tiles),
        })  # fmt: skip

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
