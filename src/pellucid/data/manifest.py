"""What of a long run is done: a file of JSON lines that survives any interruption.

The first line states what the run is (parameters and inputs); every other line is one finished part.
A line is written only after the part itself is on the disk, so a part may be done twice and is never
believed done when it is not.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pellucid.data.plain_json import plain_json
from pellucid.errors import OutputError

MANIFEST_VERSION = 1


class Manifest:
    """Finished parts of one run, appended and synchronised one line at a time.

    Parameters
    ----------
    path : of the JSON lines
    head : what decides the result: parameters and fingerprints of inputs, as JSON
    resume : go on with what is there; otherwise start anew

    Raises
    ------
    OutputError : what is there belongs to a run of other inputs or parameters, which it names

    Examples
    --------
    >>> done = Manifest(Path("run.jsonl"), {"iterations": 10})            # doctest: +SKIP
    >>> done.record("tile 3", {"seconds": 1.5})                           # doctest: +SKIP
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self._head = {"manifest_version": MANIFEST_VERSION, **plain_json(head)}
        self._done: dict[str, dict[str, Any]] = {}
        lines = _whole_lines(path) if resume else []
        if lines:
            _check_same(lines[0], self._head, path)
            self._done = {line["part"]: line["facts"] for line in lines[1:]}
        if lines:
            # the line that an interruption cut short is written over
            os.truncate(path, _length_of_whole_lines(path))
        else:
            path.write_bytes(b"")
            self._append(self._head)
            synchronise_folder(path.parent)

    def __contains__(self, part: str) -> bool:
        return part in self._done

    def __len__(self) -> int:
        return len(self._done)

    def __iter__(self) -> Iterator[str]:
        return iter(self._done)

    def facts(self, part: str) -> dict[str, Any]:
        """Return what was recorded with a finished part."""
        return self._done[part]

    def record(self, part: str, facts: Mapping[str, Any] | None = None) -> None:
        """Record that `part` is done; whatever belongs to it must be on the disk already."""
        content = plain_json(facts or {})
        self._append({"part": part, "facts": content})
        self._done[part] = content

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def synchronise(path: Path) -> None:
    """Return once a file, or all files below a folder, and their names are on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            synchronise(entry)
        synchronise_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def synchronise_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk, where the system can promise that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _length_of_whole_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    text = path.read_bytes()[: _length_of_whole_lines(path)]
    try:
        return [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise OutputError(
            f"{path}: a line of this manifest is damaged. Start without resuming."
        ) from error


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    if changed := differences(found, json.loads(json.dumps(wanted))):
        raise OutputError(
            f"{path.name}: cannot be resumed, since the run was begun otherwise: "
            f"{'; '.join(changed[:4])}. Restore that, or begin anew with --overwrite."
        )


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
