"""Transforms of a series as a JSON file: everything that was measured, and where voxels are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pellucid.core.geometry import Affine, Grid
from pellucid.core.transform_series import SeriesRegistration, transform_from_dict
from pellucid.data.plain_json import plain_json
from pellucid.data.transform_exchange import affine_from_itk, affine_from_matrix_text
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import InputError, PellucidError

VERSION = 1


def write_transforms(
    path: Path,
    series: SeriesRegistration,
    grids: Sequence[Grid],
    names: Sequence[str],
    parameters: Mapping[str, Any],
) -> None:
    """Write transforms, the grids and names of the views, and how they came about, as JSON."""
    content = {
        "pellucid_transforms": VERSION,
        "convention": "target point = matrix @ source point; z, y, x; micrometres",
        "parameters": parameters,
        "views": [
            {"name": name, "grid": grid.to_dict()}
            for name, grid in zip(names, grids, strict=True)
        ],
        "times": series.times,
        "transforms": [transform.to_dict() for transform in series.transforms],
    }
    with plain_errors(path):
        write_atomically(path, json.dumps(plain_json(content), indent=1, allow_nan=False) + "\n")


def read_transforms(path: Path) -> SeriesRegistration:
    """The transforms that `write_transforms` wrote; InputError for any other file."""
    content = _json(path)
    if not isinstance(content, dict) or content.get("pellucid_transforms") != VERSION:
        raise InputError(f"{path.name}: not a file of transforms that this Pellucid writes.")
    try:
        transforms = tuple(transform_from_dict(record) for record in content["transforms"])
        return SeriesRegistration(tuple(content["times"]), len(content["views"]), transforms)
    except (KeyError, TypeError, PellucidError) as error:
        raise InputError(f"{path.name}: damaged ({error}). Register again.") from error


def is_transforms(path: Path) -> bool:
    """Whether a JSON file says that `write_transforms` wrote it; InputError where it is no JSON."""
    content = _json(path)
    return isinstance(content, dict) and "pellucid_transforms" in content


def read_views(path: Path) -> list[tuple[str, Grid]]:
    """The names and grids of the views whose transforms `write_transforms` wrote."""
    try:
        return [(view["name"], Grid.from_dict(view["grid"])) for view in _json(path)["views"]]
    except (KeyError, TypeError, PellucidError) as error:
        raise InputError(f"{path.name}: not a file of transforms that this Pellucid writes.") from error


def read_affine(path: Path, spacings: Sequence[Sequence[float]]) -> Affine:
    """The one transform in a file: JSON of an `Affine`, ITK text (.txt, .tfm), or a 4x4 matrix.

    Parameters
    ----------
    spacings : z, y, x micrometres of the fixed and of the moving view: matrices of the diSPIM tools
        (.tmx, .txt without ITK's header) count in voxels
    """
    if path.suffix.lower() == ".json":
        content = _json(path)
        try:
            return Affine.from_dict(content)
        except (PellucidError, TypeError, ValueError) as error:
            raise InputError(f"{path.name}: holds no transform ({error})") from error
    text = _text(path)
    try:
        if text.startswith("#Insight Transform File"):
            return affine_from_itk(text)
        return affine_from_matrix_text(text, spacings[0], spacings[1])
    except PellucidError as error:
        raise InputError(f"{path.name}: {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path.name}: is no JSON, or truncated (line {error.lineno}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: cannot be read as transforms ({why}).") from error
