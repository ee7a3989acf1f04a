"""One volume for a network, tile by tile."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.replay import Replay
from pellucid.core.tiling import Tile
from pellucid.networks.polish import Polished
from pellucid.networks.share import fallen_back
from pellucid.stages.deconvolution.tiling_run import (
    Float32,
    VolumeTask,
)


@dataclass(frozen=True)
class NetworkVolume(VolumeTask):
    """One volume for a network, and what is known of it.

    Parameters
    ----------
    plain : the classical solution, where the answer is set against it
    share : of the answer beside that solution, region by region; None: all of the answer
    """

    restorer: Polished
    plain: Replay | None = None
    share: npt.NDArray[np.float64] | None = None

    def restored(self, tile: Tile, counts: npt.NDArray[Any]) -> tuple[Float32, dict[str, Any]]:
        """Return the core of a tile in counts above background, and whether the cure left the data."""
        problem = self.problem(counts, tile.read)
        light = self.restorer(problem).image
        if self.share is None:
            return self.core(tile, light), {}
        assert self.plain is not None
        plain = self.plain(problem)
        light = fallen_back(light, plain.image, self.share, self.volume.shape, tile.read)
        return self.core(tile, light), {"ran_away": plain.stats["ran_away"]}
