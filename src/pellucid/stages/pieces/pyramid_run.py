"""The coarser levels of an image that is made part by part: parts themselves, for any engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.data.ome_zarr_writer import StoredLevel
from pellucid.data.resumable_zarr import ResumableZarr
from pellucid.data.source import Array
from pellucid.stages.work.engine import Engine

ShardKey = tuple[int, int, int]
"""(t, c) of the image, and the number of a shard of the level."""


@dataclass(frozen=True)
class LevelShards:
    """The task of averaging one level into the next, shard by shard."""

    number: int
    level: StoredLevel

    def part(self, key: ShardKey) -> str:
        """See `Task.part`."""
        return "level {} t{} c{} shard {}".format(self.number, *key)

    def read(self, key: ShardKey) -> Array:
        """Return the means, made chunk by chunk as they are read: a shard's voxels are eight times it."""
        return self.level.means(*key)

    def compute(self, key: ShardKey, read: Array) -> Array:
        """Return them as they are."""
        return read

    def write(self, key: ShardKey, made: Array) -> dict[str, Any]:
        """Write a shard; nothing is to be listed of it but its name."""
        self.level.write(*key, made)
        return {}


def make_levels(writer: ResumableZarr, engine: Engine) -> None:
    """Make what is missing of the levels of an image whose finest is whole, one level after another."""
    for number in range(1, len(writer.levels)):
        task = LevelShards(number, writer.stored_level(number))
        keys = [
            (int(t), int(c), int(index))
            for t, c, index in np.ndindex(*writer.image.shape[:2], len(task.level.shards))
        ]
        engine.run(keys, task, writer.done, lambda _: None)
