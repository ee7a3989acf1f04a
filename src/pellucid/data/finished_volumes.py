"""Volumes of a series that wait beside its output until all are there, so that a run can go on.

    fused.ome.zarr.unfinished/
      finished.jsonl    the manifest: what was asked, of which inputs; a line for each finished volume
      t3c0.npy          the volume, renamed from a scratch name once it is whole

The output itself is made at the end, under its final name only when complete; integers then know their
range. That costs the disk space of the volumes a second time while the run lasts.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.data.manifest import Manifest, synchronise_folder
from pellucid.data.plain_json import plain_json
from pellucid.data.writer import plain_errors, remove, write_atomically
from pellucid.errors import OutputError

Volume = npt.NDArray[np.float32]
Place = tuple[int, int]


def waiting_folder(output: Path) -> Path:
    """Where the volumes of `output` wait."""
    return output.with_name(output.name + ".unfinished")


class FinishedVolumes:
    """The finished volumes of one series; made by `begin`.

    Attributes
    ----------
    folder : where they wait
    statistics : (t, c) -> what was measured on each finished volume
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self.statistics: dict[Place, dict[str, Any]] = {}
        for part in manifest:
            t, c = (int(number) for number in part.split())
            if self._path(t, c).is_file():
                self.statistics[t, c] = manifest.facts(part)

    @classmethod
    def begin(
        cls, output: Path, run: Mapping[str, Any], *, resume: bool, anew: bool
    ) -> "FinishedVolumes":
        """Begin a series, or go on with the one that was interrupted.

        Parameters
        ----------
        run : JSON that identifies the run: parameters, and inputs with their checksums
        resume : keep what is finished; there need not be anything
        anew : drop what is there

        Raises
        ------
        OutputError : an interrupted run is there and neither was asked; or `resume` where the run
            is another one, with what changed
        """
        folder = waiting_folder(output)
        if folder.exists() and not (resume or anew):
            raise OutputError(
                f"{folder.name}: an interrupted run of this output. Go on with --resume, or "
                "begin anew with --overwrite."
            )
        with plain_errors(output):
            if not resume:
                remove(folder)
            folder.mkdir(exist_ok=True)
            return cls(folder, Manifest(folder / "finished.jsonl", run, resume=resume))

    @property
    def worth_keeping(self) -> bool:
        """Whether there is anything that a resumed run need not do again."""
        return bool(self.statistics) or any(p.name != "run.json" for p in self.folder.glob("*.json"))

    def put(self, t: int, c: int, volume: Volume, statistics: Mapping[str, Any]) -> None:
        """Keep a finished volume; it counts only once it is whole on the disk."""
        target = self._path(t, c)
        scratch = target.with_suffix(".writing")
        with plain_errors(target):
            with scratch.open("wb") as file:
                np.save(file, np.ascontiguousarray(volume, np.float32))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, target)
            synchronise_folder(self.folder)
            self._manifest.record(f"{t} {c}", statistics)
        self.statistics[t, c] = self._manifest.facts(f"{t} {c}")

    def get(self, t: int, c: int) -> Volume:
        """A finished volume, mapped."""
        volume: Volume = np.load(self._path(t, c), mmap_mode="r")
        return volume

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep JSON that all volumes share, such as their registration."""
        write_atomically(self.folder / f"{name}.json", json.dumps(plain_json(dict(content))))

    def kept(self, name: str) -> dict[str, Any] | None:
        """What was kept under `name`; None where nothing was."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def remove(self) -> None:
        """Drop everything: the output is complete."""
        remove(self.folder)

    def _path(self, t: int, c: int) -> Path:
        return self.folder / f"t{t}c{c}.npy"
