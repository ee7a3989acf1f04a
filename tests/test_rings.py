"""The house keeps its rings, apps -> stages -> {networks, data} -> core, and the floors of its stages."""

import ast
from pathlib import Path

import pellucid

MAY_IMPORT = {
    "core": {"core"},
    "networks": {"networks", "core"},
    "data": {"data", "core"},
    "stages": {"stages", "networks", "data", "core"},
    "apps": {"apps", "stages", "networks", "data", "core"},
}

FLOORS = (
    ("parameters", "selection", "screening"), ("work",), ("pieces", "measuring"), ("psf",),
    ("deconvolution", "registration", "deskewing"), ("fusion", "stitching", "networks"), ("recipes",),
)  # fmt: skip
"""Of the stages, from below: what is on one of them imports what is below it, and itself."""


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.startswith("pellucid.")}


def test_imports_never_point_back():
    root = Path(pellucid.__file__).parent
    for ring, allowed in MAY_IMPORT.items():
        for path in (root / ring).rglob("*.py"):
            rings = {name.split(".")[1] for name in imported_names(path)} & set(MAY_IMPORT)
            assert rings <= allowed, f"{path.relative_to(root)} imports outwards"


def test_no_stage_imports_from_the_floor_above_it():
    stages = Path(pellucid.__file__).parent / "stages"
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    assert {p.stem for p in stages.iterdir()} - {"__init__", "__pycache__"} == set(floor)
    for path in stages.glob("*/*.py"):
        room = path.parent.name
        imported = {n.split(".")[2] for n in imported_names(path) if n.count(".") > 1 and ".stages." in n}
        above = {r for r in imported - {room} if floor[r] >= floor[room]}
        assert not above, f"{path.relative_to(stages)} imports from {above}"
