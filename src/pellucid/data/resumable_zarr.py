"""An OME-Zarr output that survives its run: kept as `.partial` when interrupted, gone on with later."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorstore

from pellucid.data.manifest import Manifest, synchronise
from pellucid.data.ome_zarr_writer import OmeZarrWriter, StoredArray
from pellucid.data.pyramid import Triple
from pellucid.data.source import Array
from pellucid.data.writer import ImageDescription, remove


def manifest_path(output: Path) -> Path:
    """Where the finished parts of `output` are listed while it is made."""
    return output.with_name(output.name + ".parts.jsonl")


def listed_head(output: Path) -> dict[str, Any]:
    """What the list of an interrupted run says that decides it; nothing where there is none."""
    try:
        with manifest_path(output).open("rb") as lines:
            head: dict[str, Any] = json.loads(lines.readline())
    except (OSError, ValueError):
        return {}
    return head


def listed_core(output: Path) -> Triple | None:
    """The "core" that the list of an interrupted run states; None where there is none."""
    z, y, x = listed_head(output).get("core", (0, 0, 0))
    return (z, y, x) if z else None


def write_part(
    stored: StoredArray, t: int, c: int, block: Array | None, shape: Triple, origin: Triple
) -> dict[str, Any]:
    """Write one part (None: zeros, which take no space); returns what is to be listed of it."""
    span = (0.0, 0.0) if block is None else stored.write(t, c, block, origin)
    return {"voxels": shape, "c": c, "range": span}


class ResumableZarr(OmeZarrWriter):
    """An OME-Zarr image whose finished parts are listed beside it, each once it is on the disk.

    `<path>.partial` and `<path>.parts.jsonl` stay where a run ends early, however it ends; the final
    name appears with the last part, and then the list goes. Coarser levels are parts too, and whoever
    writes level 0 has them made (`stored_level`).

    Parameters
    ----------
    head : what decides the result; see `Manifest`
    resume : go on with what is there, if there is anything
    shard_chunks : chunks along each axis that make a file; see `OmeZarrWriter`

    Raises
    ------
    OutputError : what is there belongs to a run of other inputs or parameters, which it names
    """

    def __init__(
        self,
        path: str | Path,
        image: ImageDescription,
        *,
        head: Mapping[str, Any],
        resume: bool,
        shard_chunks: Triple = (2, 4, 4),
        version: Literal["0.4", "0.5"] = "0.5",
        attributes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(
            path, image, version=version, attributes=attributes, overwrite=overwrite,
            shard_chunks=shard_chunks,
        )  # fmt: skip
        self._head, self._resume = head, resume

    def count(self, facts: Mapping[str, Any]) -> None:
        """Take note of a part that is written and listed, by the facts that `write_part` gave."""
        self._count_written(facts["voxels"])
        c = facts["c"]
        (low, high), known = facts["range"], self._range[c]
        with self._lock:
            self._range[c] = (min(known[0], low), max(known[1], high))

    def _begin(self) -> None:
        listed = manifest_path(self.path)
        goes_on = self._resume and self.partial_path.is_dir() and listed.is_file()
        self.done = Manifest(listed, self._head, resume=goes_on)
        if not goes_on:
            remove(self.partial_path)
            super()._begin()
            synchronise(self.partial_path)
            return
        for lock in self.partial_path.rglob("*.__lock"):
            lock.unlink()  # of a write that was cut short
        self._stores = [
            tensorstore.open(
                {**self._array_spec(number, level), "open": True, "create": True}
            ).result()
            for number, level in enumerate(self.levels)
        ]
        for part in self.done:
            facts = self.done.facts(part)
            if "voxels" in facts:
                self.count(facts)

    def _finish(self) -> None:
        """Nothing but the end: `stages.pieces_run.make_pieces` makes the levels, part by part."""
        self._complete()

    def _discard(self) -> None:
        """Keep everything: it is what the next run goes on with."""

    def _ended(self, complete: bool) -> None:
        if complete:
            self.done.remove()
