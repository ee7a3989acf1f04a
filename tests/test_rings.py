"""The house keeps its rings: apps -> stages -> {networks, data} -> core, never back."""

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


def imported_rings(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {n.split(".")[1] for n in names if n.startswith("pellucid.")} & set(MAY_IMPORT)


def test_imports_never_point_back():
    root = Path(pellucid.__file__).parent
    for ring, allowed in MAY_IMPORT.items():
        for path in (root / ring).rglob("*.py"):
            assert imported_rings(path) <= allowed, f"{path.relative_to(root)} imports outwards"
