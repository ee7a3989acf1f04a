"""Metadata of a Zarr folder: small JSON files, read without opening any array."""

import json
from pathlib import Path
from typing import Any

from pellucid.errors import InputError


def zarr_attributes(path: Path) -> dict[str, Any]:
    """Attributes of the Zarr group or array at `path`, of version 2 or 3; {} if it has none."""
    if (path / "zarr.json").is_file():
        found: dict[str, Any] = read_json(path / "zarr.json").get("attributes", {})
        return found
    return read_json(path / ".zattrs") if (path / ".zattrs").is_file() else {}


def is_array(path: Path) -> bool:
    """Whether `path` is a Zarr array itself."""
    if (path / "zarr.json").is_file():
        return bool(read_json(path / "zarr.json").get("node_type") == "array")
    return (path / ".zarray").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a metadata file; raises InputError when it is cut short or not an object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path.parent.name}: {path.name} is not complete JSON ({error}). "
            "The store is damaged: copy or export it again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path.parent.name}: {path.name} holds no metadata. Export it again.")
    return content


def is_zarr(path: Path) -> bool:
    """Whether `path` is a Zarr group or array, of version 2 or 3."""
    return path.suffix.lower() == ".zarr" or any(
        (path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray")
    )


def is_n5(path: Path) -> bool:
    """Whether `path` is an N5 container or array."""
    return path.is_dir() and (path / "attributes.json").is_file()
