"""Volumes of a series that wait beside its output until all are there, so that a run can go on.

    fused.ome.zarr.unfinished/
      run.json          what was asked, and of which inputs: a run goes on only where both are the same
      finished.jsonl    one line for each finished volume: its place, and what was measured
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.statistics: dict[Place, dict[str, Any]] = {}

    @classmethod
    def begin(cls, output: Path, run: Mapping[str, Any], *, resume: bool, anew: bool) -> "FinishedVolumes":
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
        waiting = cls(waiting_folder(output))
        wanted = json.loads(json.dumps(plain_json(run)))
        if waiting.folder.exists() and not resume and not anew:
            raise OutputError(
                f"{waiting.folder.name}: an interrupted run of this output. Go on with --resume, or "
                "begin anew with --overwrite."
            )
        if resume and (waiting.folder / "run.json").is_file():
            before = json.loads((waiting.folder / "run.json").read_text(encoding="utf-8"))
            if changed := differences(before, wanted):
                raise OutputError(
                    f"{waiting.folder.name}: cannot be resumed, since it was begun otherwise: "
                    f"{'; '.join(changed[:4])}. Restore that, or begin anew with --overwrite."
                )
            waiting._look()
            return waiting
        with plain_errors(output):
            remove(waiting.folder)
            waiting.folder.mkdir()
            write_atomically(waiting.folder / "run.json", json.dumps(wanted, indent=1))
        return waiting

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
            os.replace(scratch, target)
            said = plain_json({"t": t, "c": c, "statistics": dict(statistics)})
            with (self.folder / "finished.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(said) + "\n")
        self.statistics[t, c] = said["statistics"]

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

    def _look(self) -> None:
        lines = self.folder / "finished.jsonl"
        for line in lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else ():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the run ended
            if self._path(said["t"], said["c"]).is_file():
                self.statistics[said["t"], said["c"]] = said["statistics"]


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, in words: "parameters.iterations was 10, is 20"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            sentence
            for key in keys
            for sentence in differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    if before == now:
        return []
    return [f"{name} was {_short(before)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
