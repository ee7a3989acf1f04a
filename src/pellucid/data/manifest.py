"""What of a long run is done: a file of JSON lines that survives any interruption.

The first line states what the run is (parameters and inputs); every other line is one finished part.
A line is written only after the part itself is on the disk, so a part may be done twice and is never
believed done when it is not.

Several processes, on several machines, may finish parts of one run. Each appends to a list of its own
beside the manifest (appending to one file from many machines loses lines on NFS), and whoever opens the
manifest next takes these lists in.
"""

import json
import os
import threading
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
            # the line that an interruption cut short is written over
            os.truncate(path, _length_of_whole_lines(path))
            for file in files_beside(path, TASK_SUFFIX):
                file.unlink(missing_ok=True)  # late workers of the run before write nothing more
            self.take_in()
        else:
            for file in files_beside(path):
                file.unlink(missing_ok=True)
            path.write_bytes(b"")
            self._append(_line(self._head))
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
        self._append(_part_line(part, facts))
        self.note(part, facts)

    def note(self, part: str, facts: Mapping[str, Any] | None = None) -> None:
        """Remember that `part` is done, which a list beside the manifest says already."""
        self._done[part] = plain_json(facts or {})

    def take_in(self) -> None:
        """Move what the lists beside the manifest hold into it."""
        for file in files_beside(self.path, LIST_SUFFIX):
            lines = _whole_lines(file)
            if lines and not differences(lines[0], json.loads(json.dumps(self._head))):
                new = {line["part"]: line["facts"] for line in lines[1:]}
                on_disk = {line["part"] for line in _whole_lines(self.path)[1:]}
                self._append(b"".join(_part_line(p, new[p]) for p in new if p not in on_disk))
                self._done |= new
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the manifest and what lies beside it: the run is over."""
        remove_manifest(self.path)

    def _append(self, lines: bytes) -> None:
        _append(self.path, lines)


LIST_SUFFIX = ".list.jsonl"
TASK_SUFFIX = ".task"


def files_beside(path: Path, suffix: str = "") -> list[Path]:
    """Lists and tasks of other processes that belong to the manifest at `path`."""
    endings = (suffix,) if suffix else (LIST_SUFFIX, TASK_SUFFIX)
    return sorted(
        file
        for file in path.parent.iterdir()
        if file.name.startswith(f"{path.name}.") and file.name.endswith(endings)
    )


def process_of(path: Path) -> int:
    """Return the number that the process that keeps a list has on its machine."""
    return int(path.name.removesuffix(LIST_SUFFIX).split("-")[-2])


def remove_manifest(path: Path) -> None:
    """Delete a manifest and what lies beside it."""
    for file in [path, *files_beside(path)]:
        file.unlink(missing_ok=True)


def record_beside(
    path: Path, process: str, part: str, facts: Mapping[str, Any] | None = None
) -> None:
    """Record that `part` is done in the list that `process` keeps beside the manifest at `path`.

    Raises
    ------
    OutputError : there is no manifest: the run is over, or its disk is not the one seen here
    """
    own = path.with_name(f"{path.name}.{process}{LIST_SUFFIX}")
    line = _part_line(part, facts)
    with _listing:
        try:
            _append(own, line)
        except FileNotFoundError:
            _begin_list(own, path, part, line)


_listing = threading.Lock()
"""A process lists one part at a time: two threads would both begin its list with a head."""


def _begin_list(own: Path, path: Path, part: str, line: bytes) -> None:
    try:
        with path.open("rb") as manifest:
            head = manifest.readline()
    except FileNotFoundError:
        raise OutputError(
            f"{path}: no such manifest, so {part!r} cannot be listed. Is the run over?"
        ) from None
    own.touch()
    try:
        _append(own, head + line)
    except OSError:
        own.unlink(missing_ok=True)  # a list without its head says nothing
        raise
    synchronise_folder(own.parent)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _part_line(part: str, facts: Mapping[str, Any] | None) -> bytes:
    return _line({"part": part, "facts": plain_json(facts or {})})


def _append(path: Path, lines: bytes) -> None:
    """Append whole lines to a file that is there, on the disk when this returns; or nothing at all."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
    try:
        length = os.fstat(handle).st_size
        try:
            written = os.write(handle, lines)
            if written < len(lines):
                os.write(handle, lines[written:])  # says why: the disk is full
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, length)
            raise
    finally:
        os.close(handle)


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
        changed = [_input_changed(sentence) for sentence in changed]
        raise OutputError(
            f"{path.name}: cannot be resumed, since the run was begun otherwise: "
            f"{'; '.join(changed[:4])}. Restore that, or begin anew with --overwrite."
        )


def _input_changed(sentence: str) -> str:
    """Spare the checksums of an input that is another."""
    name, was, _ = sentence.partition(" was [")
    return f"{name.removeprefix('input ')} has changed" if name.startswith("input ") and was else sentence


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
