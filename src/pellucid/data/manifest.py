"""What of a long run is done: a file of JSON lines that survives any interruption.

The first line states what the run is (parameters and inputs); every other line is one finished part.
A line is written only after the part itself is on the disk, so a part may be done twice and is never
believed done when it is not.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
    >>> with Manifest(Path("run.jsonl"), {"iterations": 10}) as done:     # doctest: +SKIP
    ...     done.record("tile 3", {"seconds": 1.5})
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self._head = {"manifest_version": MANIFEST_VERSION, **plain_json(head)}
        self._done: dict[str, dict[str, Any]] = {}
        lines = _whole_lines(path) if resume else []
        if lines:
            _check_same(lines[0], self._head, path)
            self._done = {line["part"]: line["facts"] for line in lines[1:]}
        self._file = path.open("r+b" if lines else "wb")
        if lines:
            # the line that an interruption cut short is written over
            self._file.truncate(_length_of_whole_lines(path))
            self._file.seek(0, os.SEEK_END)
        else:
            self._append(self._head)
            _sync_folder(path.parent)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is recorded stays."""
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def synchronise(path: Path) -> None:
    """Return once a file, or all files below a folder, and their names are on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            synchronise(entry)
        _sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
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
    changed = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in dict.fromkeys([*found, *wanted])
        if found.get(name) != wanted.get(name)
    ]
    if changed:
        raise OutputError(
            f"{path.name}: cannot resume, since {'; '.join(changed)[:400]}. "
            "Run with what it was, or start without resuming."
        )
