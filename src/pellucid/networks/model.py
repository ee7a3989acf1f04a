"""The network: small, without constants, blind to the unit of light."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.errors import ParameterError
from pellucid.networks.features import Start, channels

LEAK = 0.1
"""Slope of the last rectifier in training, so that a dark voxel can still learn."""


@dataclass(frozen=True)
class Architecture:
    """What a network is made of.

    Parameters
    ----------
    views : recordings of one object that go in
    volumetric : False for images of one plane
    width : features at either scale
    positioned : whether features are weighted by where they are, for blur that varies
    refining : whether it refines the estimate of a network before it
    start : what it adds to: one Wiener step, or the classical solution, which it then cannot be far from
        where it has nothing to say
    """

    views: int = 1
    volumetric: bool = True
    width: int = 22
    positioned: bool = False
    refining: bool = False
    start: Start = "wiener"

    def __post_init__(self) -> None:
        if self.views < 1 or not 4 <= self.width <= 64:
            raise ParameterError(
                f"network: expected 1 or more views and a width of 4 to 64, got {self.views}, "
                f"{self.width}."
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def channels(self) -> int:
        """Images that go in for each view."""
        return channels(self.refining, self.start)


class RestorationNet(torch.nn.Module):
    """Two scales of convolutions on blocks of 2 x 2 x 2 voxels, predicting what its start lacks.

    Homogeneous of degree one: net(k inputs) = k net(inputs), because there are no biases and no
    normalisation (Mohan et al. 2020, for denoising), so that it meets any brightness with the same
    answer and any tile with the same rule. Blocks of voxels become features first and last
    (Shi et al. 2016), which divides the cost by the size of a block. An output voxel sees inputs
    within `receptive_radius` voxels.
    """

    def __init__(self, architecture: Architecture = Architecture(), seed: int = 0) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.block = (2, 2, 2) if a.volumetric else (1, 2, 2)
        cells = 8 if a.volumetric else 4
        w = a.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = self._conv(cells * a.channels * a.views, w)
            self.fine = self._conv(w, w)
            self.down = torch.nn.Conv3d(w, w, self.block, stride=self.block, bias=False)
            self.coarse = torch.nn.ModuleList([self._conv(w, w) for _ in range(3)])
            self.up = torch.nn.ConvTranspose3d(w, w, self.block, stride=self.block, bias=False)
            self.join = self._conv(w, w)
            self.tail = self._conv(w, cells)
            self.place = torch.nn.Linear(3, w) if a.positioned else None
        torch.nn.init.zeros_(self.tail.weight)
        if self.place is not None:
            torch.nn.init.zeros_(self.place.weight)
            torch.nn.init.zeros_(self.place.bias)

    def _conv(self, before: int, after: int) -> torch.nn.Conv3d:
        size = (3, 3, 3) if self.architecture.volumetric else (1, 3, 3)
        return torch.nn.Conv3d(before, after, size, padding=(size[0] // 2, 1, 1), bias=False)

    @property
    def receptive_radius(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) beyond which an input does not reach an output.

        Four convolutions at half resolution and three at a quarter reach 4 * 2 + 3 * 4 voxels, and
        the blocks up to one of 4 more.
        """
        return (24, 24, 24) if self.architecture.volumetric else (0, 24, 24)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Return (n, z, y, x) photons of n objects from (n, views * channels, z, y, x) inputs, any size.

        Parameters
        ----------
        places : (n, 3, z, y, x) coordinates, for a positioned network
        """
        shape = inputs.shape[2:]
        padded, x, deep = self._encoded(inputs, places)
        x = nn.relu(self.join(x + self.up(deep)))
        missing = _from_blocks(self.tail(x), self.block)[:, 0]
        # Views share the start: the mean of theirs.
        start = padded[:, 1 :: self.architecture.channels].mean(dim=1)
        out = nn.leaky_relu(start + missing, LEAK if self.training else 0.0)
        return out[:, : shape[0], : shape[1], : shape[2]]

    def inner(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the innermost features (n, width, z / 4, y / 4, x / 4), what the net sees in its inputs.

        Planes are not divided; sizes are rounded up.
        """
        return self._encoded(inputs, places)[2]

    def _encoded(self, inputs: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        padded = _padded(inputs, [2 * b for b in self.block])
        x = nn.relu(self.head(_to_blocks(padded, self.block)))
        if self.place is not None:
            if places is None:
                raise ParameterError("network: trained with positions, which it needs. Give them.")
            blocks = nn.avg_pool3d(_padded(places, [2 * b for b in self.block]), self.block)
            x = x * (1 + self.place(blocks.movedim(1, -1)).movedim(-1, 1))
        x = x + nn.relu(self.fine(x))
        deep = nn.relu(self.down(x))
        for conv in self.coarse:
            deep = deep + nn.relu(conv(deep))
        return padded, x, deep


def count_parameters(net: torch.nn.Module) -> int:
    """Return the number of trained numbers."""
    return sum(p.numel() for p in net.parameters())


def _padded(values: Tensor, multiple: list[int]) -> Tensor:
    wanted = [-n % m for n, m in zip(values.shape[2:], multiple, strict=True)]
    pads = [p for n in reversed(wanted) for p in (0, n)]
    return nn.pad(values, pads, mode="replicate") if any(wanted) else values


def _to_blocks(values: Tensor, block: tuple[int, int, int]) -> Tensor:
    n, c, z, y, x = values.shape
    a, b, d = block
    cut = values.reshape(n, c, z // a, a, y // b, b, x // d, d).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cut.reshape(n, c * a * b * d, z // a, y // b, x // d)


def _from_blocks(values: Tensor, block: tuple[int, int, int]) -> Tensor:
    n, c, z, y, x = values.shape
    a, b, d = block
    cut = values.reshape(n, c // (a * b * d), a, b, d, z, y, x).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cut.reshape(n, c // (a * b * d), z * a, y * b, x * d)
