"""Tasks of the form of a deconvolution's tiles that do nothing, to weigh what the engine itself costs."""

from dataclasses import dataclass
from typing import Any

Key = tuple[int, int, int]


@dataclass(frozen=True)
class TrivialTiles:
    """Keys, parts and facts are those of tiles; nothing is read, computed or written."""

    def part(self, key: Key) -> str:
        t, c, index = key
        return f"t{t} c{c} tile {index}"

    def read(self, key: Key) -> None:
        return None

    def compute(self, key: Key, read: None) -> None:
        return None

    def write(self, key: Key, made: None) -> dict[str, Any]:
        return {"ran_away": False, "voxels": [256, 256, 256], "c": 0, "range": [0.123456789, 1234.56789]}
