"""The network: small, without constants, blind to the unit of light."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.errors import ParameterError
from pellucid.networks.features import Start, channels

COARSE = 2
"""Convolutions on blocks of 4 x 4 x 4 voxels."""

FINE = 2
"""Convolutions on blocks of 2 x 2 x 2 voxels, once they know of their surroundings."""

LEAK = 0.1
"""Slope of the last rectifier in training, so that a dark voxel can still learn."""

TINY = 1e-12
"""Squared photons, so that nothing is shared out where there is nothing."""


@dataclass(frozen=True)
class Architecture:
    """What a network is made of.

    Parameters
    ----------
    views : recordings of one object that go in
    volumetric : False for images of one plane
    width : features of a block of 2 x 2 x 2 voxels; those of 4 x 4 x 4 have twice as many
    positioned : whether features are weighted by where they are, for blur that varies
    refining : whether it refines the estimate of a network before it
    start : what it adds to: one Wiener step, or the classical solution, which it then cannot be far from
        where it has nothing to say
    """

    views: int = 1
    volumetric: bool = True
    width: int = 16
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
    """Few features of blocks of 2 x 2 x 2 voxels, more of blocks of 4 x 4 x 4: what its start lacks.

    Where the start is little but noise, in diffuse light, it is not corrected voxel by voxel but withheld:
    of every block the share a^2 / (a^2 + b^2) is kept, a and b features that speak for and against it.

    Homogeneous of degree one: net(k inputs) = k net(inputs), because there are no biases and no
    normalisation (Mohan et al. 2020, for denoising), so that it meets any brightness with the same
    answer and any tile with the same rule. Blocks of voxels become features first and last
    (Shi et al. 2016); the surroundings are looked at on blocks of blocks, and then with them known on
    blocks. An output voxel sees inputs within `receptive_radius` voxels.
    """

    def __init__(self, architecture: Architecture = Architecture(), seed: int = 0) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.block = (2, 2, 2) if a.volumetric else (1, 2, 2)
        size = (3, 3, 3) if a.volumetric else (1, 3, 3)
        around, cells = (size[0] // 2, 1, 1), math.prod(self.block)
        w, deep = a.width, 2 * a.width
        conv = partial(torch.nn.Conv3d, bias=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = conv(a.channels * a.views, w, self.block, stride=self.block)
            self.down = conv(w, deep, self.block, stride=self.block)
            self.coarse = torch.nn.ModuleList(
                [conv(deep, deep, size, padding=around) for _ in range(COARSE)]
            )
            self.up = torch.nn.ConvTranspose3d(deep, w, self.block, stride=self.block, bias=False)
            self.fine = torch.nn.ModuleList([conv(w, w, size, padding=around) for _ in range(FINE)])
            self.judge = conv(w, 2, 1)
            self.tail = conv(w, cells, size, padding=around)
            self.place = torch.nn.Linear(3, deep) if a.positioned else None
        torch.nn.init.zeros_(self.tail.weight)
        if self.place is not None:
            torch.nn.init.zeros_(self.place.weight)
            torch.nn.init.zeros_(self.place.bias)

    @property
    def receptive_radius(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) beyond which an input does not reach an output.

        Three convolutions at half resolution and two at a quarter reach 3 * 2 + 2 * 4 voxels, and the
        blocks up to one of 4 less 1 more.
        """
        reach = 2 * (FINE + 1) + 4 * COARSE + 3
        return (reach, reach, reach) if self.architecture.volumetric else (0, reach, reach)

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """Return (n, z, y, x) photons of n objects from (n, views * channels, z, y, x) inputs, any size.

        Parameters
        ----------
        places : (n, 3, z, y, x) coordinates, for a positioned network
        """
        z, y, x = inputs.shape[2:]
        padded = _padded(inputs, self._step)
        fine, deep = self._encoded(padded, places)
        fine = fine + self.up(deep)
        for look in self.fine:
            fine = fine + look(fine).relu_()
        # Views share the start: the mean of theirs.
        start = padded[:, 1 :: self.architecture.channels].mean(dim=1)
        with torch.autocast(fine.device.type, enabled=False):  # rounding would show, times the start
            speaks = self.judge(fine.float()).square()
        kept = speaks[:, 0] / (speaks[:, 0] + speaks[:, 1]).clamp_min(TINY)
        out = _plus_blocks(start, kept, self.tail(fine), self.block)
        out = nn.leaky_relu(out, LEAK) if self.training else out.relu_()
        return out[:, :z, :y, :x]

    @property
    def _step(self) -> list[int]:
        return [b * b for b in self.block]

    def _encoded(self, padded: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        # Neighbouring features side by side in memory: convolutions of so few run twice as fast.
        x = padded.contiguous(memory_format=torch.channels_last_3d)
        fine = nn.relu(self.head(x))
        deep = nn.relu(self.down(fine))
        if self.place is not None:
            if places is None:
                raise ParameterError("network: trained with positions, which it needs. Give them.")
            a, b, c = self._step
            corners = places[:, :, ::a, ::b, ::c].movedim(1, -1)
            deep = deep * (1 + self.place(corners).movedim(-1, 1))
        for conv in self.coarse:
            deep = deep + nn.relu(conv(deep))
        return fine, deep


def count_parameters(net: torch.nn.Module) -> int:
    """Return the number of trained numbers."""
    return sum(p.numel() for p in net.parameters())


def _padded(values: Tensor, multiple: list[int]) -> Tensor:
    wanted = [-n % m for n, m in zip(values.shape[2:], multiple, strict=True)]
    pads = [p for n in reversed(wanted) for p in (0, n)]
    return nn.pad(values, pads, mode="replicate") if any(wanted) else values


def _plus_blocks(
    start: Tensor, kept: Tensor, features: Tensor, block: tuple[int, int, int]
) -> Tensor:
    """Return the share `kept` of the start of every block, plus its features laid out as its voxels."""
    n, _, z, y, x = features.shape
    a, b, c = block
    cells = features.reshape(n, a, b, c, z, y, x).permute(0, 4, 1, 5, 2, 6, 3)
    share = kept.reshape(n, z, 1, y, 1, x, 1)
    return (start.reshape(cells.shape) * share).add_(cells).reshape(start.shape)
