"""Which files are tiles, and where the microscope says that they lie.

Three ways: indices in the names (`tile_{y}_{x}.tif`), a grid that was walked through in order, or a
file of positions in micrometres.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data.inputs import check_input_path, find_inputs, natural_key
from pellucid.errors import InputError, ParameterError

Triple = tuple[float, float, float]
INDEX = re.compile(r"(\{[zyx]\})")


@dataclass(frozen=True)
class TileFile:
    """A tile and its place (z, y, x): in tiles from the first, or in what a table says.

    Parameters
    ----------
    unit : "tile"; "micrometre" or "voxel" of a table
    """

    path: Path
    place: Triple
    unit: str = "tile"


def has_indices(spec: str) -> bool:
    """Whether a pattern has {z}, {y} or {x} in it."""
    return any("{" + axis + "}" in spec for axis in "zyx")


def tiles_by_index(spec: str) -> list[TileFile]:
    """Tiles whose names hold their indices: `tile_{y}_{x}.tif`. What is missing is left out.

    Raises
    ------
    InputError : no file fits, or two have the same place
    """
    text = str(Path(spec).expanduser())
    expression, seen = "", set()
    for part in INDEX.split(text):
        axis = part[1:-1]
        if INDEX.fullmatch(part):
            expression += f"(?P={axis})" if axis in seen else rf"(?P<{axis}>\d+)"
            seen.add(axis)
        else:
            expression += re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    star = Path(INDEX.sub("*", text))
    root = Path(star.anchor or ".")
    found: dict[Triple, Path] = {}
    for path in sorted(root.glob(str(star.relative_to(star.anchor))), key=natural_key):
        match = re.fullmatch(expression, path.as_posix())
        if match is None or path.name.endswith(".partial"):
            continue
        z, y, x = (float(match.groupdict().get(axis, 0)) for axis in "zyx")
        if (z, y, x) in found:
            raise InputError(f"{path.name} and {found[z, y, x].name}: the same place. Remove one.")
        found[z, y, x] = check_input_path(path)
    if not found:
        raise InputError(
            f"{spec}: no file matches this pattern. {{z}}, {{y}} and {{x}} stand for the number of "
            "the tile along an axis, * for anything."
        )
    low = np.min(list(found), axis=0)
    return [TileFile(path, _triple(np.subtract(at, low))) for at, path in found.items()]


def tiles_in_order(
    files: Sequence[Path], rows: int, columns: int, order: str, missing: Sequence[int]
) -> list[TileFile]:
    """Tiles of a grid that was walked through row by row; "snake" goes back along every other row.

    Raises
    ------
    ParameterError : files and places do not add up
    """
    beyond = [n for n in missing if not 0 <= n < rows * columns]
    if beyond:
        raise ParameterError(f"missing: place {beyond[0]} is outside 0..{rows * columns - 1}.")
    places = [n for n in range(rows * columns) if n not in set(missing)]
    if len(places) != len(files):
        raise ParameterError(
            f"grid: {rows} x {columns} has {len(places)} places and there are {len(files)} files. "
            "Say which places have none with --missing, or name the files by index: tile_{y}_{x}.tif."
        )
    tiles = []
    for n, path in zip(places, files, strict=True):
        row, column = divmod(n, columns)
        if order == "snake" and row % 2:
            column = columns - 1 - column
        tiles.append(TileFile(path, (0.0, float(row), float(column))))
    return tiles


def tiles_by_position(files: Sequence[Path], table: Path) -> list[TileFile]:
    """Tiles at the positions that a CSV or JSON file gives in micrometres, by name.

    A CSV has a header with name, y, x and perhaps z; a JSON is a list of such objects, or has one
    under "tiles" (as `pellucid stitch` writes it), and may state "unit": "voxel" beside it.

    Raises
    ------
    InputError : a table that cannot be understood, or a tile that it does not name
    """
    at, unit = _positions(table)
    tiles = []
    for path in files:
        place = at.get(path.name, at.get(path.name.split(".")[0]))
        if place is None:
            raise InputError(
                f"{table.name}: has no position for {path.name}. Add it, or leave the tile out."
            )
        tiles.append(TileFile(path, place, unit))
    return tiles


def find_tiles(specs: Sequence[str]) -> list[Path]:
    """The files that `specs` name, each once: files, folders or glob patterns."""
    files = [path for spec in specs for path in find_inputs(spec)]
    return list({path.resolve(): path for path in files}.values())


def _positions(table: Path) -> tuple[dict[str, Triple], str]:
    """Positions by name, and their unit."""
    table = table.expanduser()
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: cannot be read as text. Give a CSV or JSON file.") from error
    rows: Any
    unit = "micrometre"
    if table.suffix.lower() == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise InputError(f"{table.name}: is no JSON ({error}).") from error
        if isinstance(rows, dict):
            unit, rows = rows.get("unit", unit), rows.get("tiles", [])
        if unit not in ("micrometre", "voxel"):
            raise InputError(
                f"{table.name}: expected the unit micrometre or voxel, got {unit!r}. Correct it."
            )
    else:
        rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    found: dict[str, Triple] = {}
    for number, row in enumerate(rows, 1):
        try:
            z, y, x = float(row.get("z") or 0.0), float(row["y"]), float(row["x"])
            name = Path(str(row["name"]).strip()).name
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{table.name}: tile {number} lacks a name or numbers. Expected the columns "
                "name,z,y,x in micrometres, such as tile_0.tif,0,0,184.3."
            ) from error
        if not np.isfinite([z, y, x]).all() or name in found:
            raise InputError(f"{table.name}: {name} has no finite position, or two of them.")
        found[name] = (z, y, x)
    if not found:
        raise InputError(f"{table.name}: names no tiles. Expected the columns name,z,y,x.")
    return found, unit


def _triple(values: Any) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x
