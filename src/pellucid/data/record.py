"""The run record: what went in, what was asked, what was measured, how long it took. As JSON."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pellucid.data.plain_json import plain_json
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.data.zarr_json import zarr_attributes
from pellucid.errors import InputError, OutputError

RECORD_VERSION = 1
PACKAGES = ("pellucid", "numpy", "scipy", "torch", "tifffile", "zarr", "tensorstore")

# Whole files are read up to here; beyond it, as much again would cost more than the work.
WHOLE_FILE_BYTES = 256 * 2**20
SAMPLE_BYTES = 2**20
SAMPLES = 64


@dataclass(frozen=True)
class Fingerprint:
    """What identifies an input: `coverage` says how much of it the checksum has seen.

    Parameters
    ----------
    modified : time of last change, ISO 8601, UTC
    checksum : "blake2b:" and 32 hexadecimal digits
    coverage : "everything"; or, above 256 MiB, "64 samples of 1 MiB" of a file and
        "names, sizes and metadata" of a folder
    """

    path: str
    size_bytes: int
    modified: str
    checksum: str
    coverage: str


@dataclass
class RunRecord:
    """Filled while a run goes on, written at its end by `write_record`.

    Parameters
    ----------
    command : the verb that ran, such as "deconvolve"
    parameters : everything that was chosen, defaults included
    inputs : fingerprints, in the order of use
    statistics : what was measured (background, noise, iterations kept, clipped voxels, ...)
    timings_s : seconds of each part
    """

    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Fingerprint] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: package_versions())
    started: str = field(default_factory=lambda: _iso(time.time()))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds of a `with` block to `timings_s[part]`.

        Examples
        --------
        >>> record = RunRecord("deconvolve")
        >>> with record.timed("read"):
        ...     pass
        >>> list(record.timings_s)
        ['read']
        """
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[part] = self.timings_s.get(part, 0.0) + time.perf_counter() - begin

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types only; NaN and infinity become null."""
        content: dict[str, Any] = plain_json(dataclasses.asdict(self))
        return {"record_version": RECORD_VERSION, **content}


def fingerprint(path: str | Path) -> Fingerprint:
    """Fingerprint of a file or an OME-Zarr folder: of all its bytes up to 256 MiB, sampled beyond.

    A sampled checksum is fast and finds a wrong, truncated or re-exported file, and not a change
    of single voxels; its `coverage` says so.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder_fingerprint(path)
        status = path.stat()
        digest = hashlib.blake2b(digest_size=16)
        digest.update(str(status.st_size).encode())
        with path.open("rb") as file:
            if status.st_size <= WHOLE_FILE_BYTES:
                coverage = "everything"
                while piece := file.read(SAMPLE_BYTES):
                    digest.update(piece)
            else:
                coverage = f"{SAMPLES} samples of 1 MiB"
                # The first is the head, the last the tail, where formats keep their tables.
                for i in range(SAMPLES):
                    file.seek((status.st_size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check its name.") from error
    return Fingerprint(
        str(path), status.st_size, _iso(status.st_mtime), f"blake2b:{digest.hexdigest()}", coverage
    )


def write_record(record: RunRecord, output_path: str | Path) -> Path:
    """Write `record` beside an output, and into it when it is an OME-Zarr; returns the file beside.

    Raises
    ------
    OutputError : there is no output, or its folder cannot be written
    """
    output_path = Path(output_path)
    if not output_path.exists():
        raise OutputError(f"{output_path}: no such output, so there is nothing to record.")
    content = record.to_json()
    beside = output_path.with_name(output_path.name + ".pellucid.json")
    with plain_errors(beside):
        if output_path.is_dir():
            _write_into_zarr(output_path, content)
        write_atomically(beside, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return beside


def read_record(output_path: str | Path) -> dict[str, Any]:
    """The record of an output, from inside it or from beside it; raises InputError if neither."""
    output_path = Path(output_path)
    beside = output_path.with_name(output_path.name + ".pellucid.json")
    if output_path.is_dir():
        inside = zarr_attributes(output_path).get("pellucid", {}).get("record")
        if isinstance(inside, dict):
            return inside
    if not beside.is_file():
        raise InputError(f"{output_path}: has no run record; was it written by Pellucid?")
    content: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    return content


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, without importing them."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _folder_fingerprint(path: Path) -> Fingerprint:
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    states = [entry.stat() for entry in files]
    size = sum(state.st_size for state in states)
    everything = size <= WHOLE_FILE_BYTES
    digest = hashlib.blake2b(digest_size=16)
    for entry, state in zip(files, states, strict=True):
        digest.update(f"{entry.relative_to(path).as_posix()}:{state.st_size};".encode())
        if everything or entry.name in ("zarr.json", ".zattrs", ".zarray"):
            digest.update(entry.read_bytes())
    newest = max([path.stat().st_mtime, *(state.st_mtime for state in states)])
    coverage = "everything" if everything else "names, sizes and metadata"
    checksum = f"blake2b:{digest.hexdigest()}"
    return Fingerprint(str(path), size, _iso(newest), checksum, coverage)


def _write_into_zarr(path: Path, content: dict[str, Any]) -> None:
    target = path / ("zarr.json" if (path / "zarr.json").is_file() else ".zattrs")
    document = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    attributes = document.setdefault("attributes", {}) if target.name == "zarr.json" else document
    attributes.setdefault("pellucid", {})["record"] = content
    write_atomically(target, json.dumps(document, indent=1, allow_nan=False))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")
