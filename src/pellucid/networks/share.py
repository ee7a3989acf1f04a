"""The cure: how much of a network's answer is better than the classical solution, region by region.

Polish alone does not remove what a network invents, since an invention hides where the recording says
little. So the answer is shrunk towards the classical solution, which has no training to be misled by:
x = c + s (network - c). In a rehearsal (`networks.evidence`) the share s that makes the error least follows
from the errors of both, region by region, without any fit. It is fair but for one thing: an object that
is a classical solution already is restored classically better than a real one. How much better is one
number, fitted on structures and PSFs that the network was not trained on too.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as nn
from numpy.typing import NDArray
from scipy import ndimage, optimize
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.problem import Window
from pellucid.core.wrongness import REGION
from pellucid.errors import InputError
from pellucid.networks.evidence import Squares
from pellucid.networks.trust import as_map

NEAR = 3
"""Regions along each axis whose errors are taken together: those of one are noisy."""

LARGEST = 3.0
"""Most that a rehearsed error of the classical solution is corrected by, up or down."""

DOUBTED = 1e-3
"""Weight of keeping the correction at 1, beside the relative squared error of all recordings."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """The rule that makes the network's share of the answer of the errors in a rehearsal.

    Parameters
    ----------
    correction : what the classical solution errs on a real object, relative to what it errs in a rehearsal
    """

    correction: float = 1.0

    def of(self, rehearsed: Squares) -> Float64:
        """Return the network's share in every region, 0 to 1; decided by it and its neighbours."""
        answer = _smooth(rehearsed.answer)
        plain = self.correction**2 * _smooth(rehearsed.plain)
        product = self.correction * _smooth(rehearsed.product)
        apart = plain + answer - 2 * product
        share = (plain - product) / np.maximum(apart, 1e-9 * plain.max() + 1e-30)
        return np.asarray(share.clip(0, 1))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a model's card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Share":
        """Return what a model's card holds."""
        try:
            return cls(float(values["correction"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's cure is not complete. Train it anew.") from error


def fit_share(rehearsed: list[Squares], true: list[Squares]) -> Share:
    """Return the rule that makes the blends' squared errors least, relative to the classical solution's.

    Every recording counts alike, whatever its brightness and however far the answers are apart; what
    becomes worse than the classical solution counts twice.
    """

    def loss(log_correction: float) -> float:
        rule = Share(float(np.exp(log_correction)))
        lost = np.array([
            t.blended(rule.of(r)).mean() / max(float(t.plain.mean()), 1e-30) - 1
            for r, t in zip(rehearsed, true, strict=True)
        ])  # fmt: skip
        return float(np.mean(lost + lost.clip(0))) + DOUBTED * log_correction**2

    most = np.log(LARGEST)
    found = optimize.minimize_scalar(loss, bounds=(-most, most), method="bounded", options={"xatol": 1e-3})
    return Share(float(np.exp(found.x)))


def fallen_back(
    answer: Tensor, plain: Tensor, share: Float64, of: Shape | None = None, part: Window | None = None
) -> Tensor:
    """Return the classical solution `plain` and `share` of what the answer adds to it.

    The seams of the regions are averaged over half a region.

    Parameters
    ----------
    of, part : shape of the image whose regions these are, and what of it is answered; None: all of it
    """
    z, y, x = answer.shape
    smooth = as_map(share, of or (z, y, x), part).to(answer.device)[None, None]
    for axis, (n, r) in enumerate(zip((z, y, x), REGION, strict=True)):
        if n > r // 2:
            half = (r // 2 + 1) // 2
            size, around = [1, 1, 1], [0, 0, 0]
            size[axis], around[axis] = 2 * half + 1, half
            smooth = nn.avg_pool3d(smooth, size, 1, around, count_include_pad=False)
    return plain + smooth[0, 0] * (answer - plain)


def _smooth(values: Float64) -> Float64:
    return np.asarray(ndimage.uniform_filter(values, NEAR, mode="nearest"))
