"""The cure: how much of a network's answer is better than the classical solution, region by region.

Polish alone does not remove what a network invents, since an invention hides where the recording says
little. So the answer is shrunk towards the classical solution, which has no training to be misled by:
x = c + s (network - c). The share s that makes the error least is known wherever the truth is, and is
linear regression on the same evidence that the verdict is made of. It is fitted on structures and PSFs
that the network was not trained on too.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as nn
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.problem import Problem, Window
from pellucid.core.wrongness import REGION, by_region
from pellucid.errors import InputError
from pellucid.networks.evidence import FEATURES, Evidence
from pellucid.networks.training import window_of
from pellucid.networks.trust import as_map

RIDGE = 0.02
"""Strength of the ridge, relative to the weight of all regions."""

WIDEST = (-0.5, 1.5)
"""Best shares beyond these count as these: where answers hardly differ, noise alone decides."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Best:
    """The share that would have been best in every region, and how much hangs on it (z, y, x)."""

    share: Float64
    weight: Float64


@dataclass(frozen=True)
class Share:
    """Linear regression from evidence to the network's share of the answer.

    Parameters
    ----------
    weights : of `FEATURES`, and of the constant
    mean, scale : of the features where it was fitted
    """

    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def of(self, evidence: Evidence) -> Float64:
        """Return the network's share in every region, 0 to 1."""
        z = _standard(evidence, np.array(self.mean), np.array(self.scale))
        return np.asarray((z @ np.array(self.weights)).clip(0, 1))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a model's card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Share":
        """Return what a model's card holds."""
        try:
            flat = [tuple(float(v) for v in values[k]) for k in ("weights", "mean", "scale")]
            if [len(v) - len(FEATURES) for v in flat] != [1, 0, 0]:
                raise ValueError
            return cls(*flat)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's cure is not complete. Train it anew.") from error


def best_share(problem: Problem, answer: Tensor, plain: Tensor, truth: Tensor) -> Best:
    """Return the best share of `answer` against the classical solution `plain`, on the object's grid."""
    window = window_of(problem)
    before, moved, true = (v[window].double().numpy() for v in (plain, answer, truth))
    moved, light = moved - before, max(float((true**2).mean()), 1e-12)
    weight = by_region(moved**2)
    share = by_region(moved * (true - before)) / np.maximum(weight, 1e-9 * light)
    return Best(share.clip(*WIDEST), weight / light)


def fit_share(evidence: list[Evidence], best: list[Best]) -> Share:
    """Return the regression that makes the squared error of the blend least over all recordings.

    Every recording counts alike, whatever its brightness and however far the answers are apart.
    """
    x = np.concatenate([e.reshape(-1, len(FEATURES)) for e in evidence])
    y = np.concatenate([b.share.ravel() for b in best])
    w = np.concatenate([(b.weight / max(float(b.weight.sum()), 1e-12)).ravel() for b in best])
    if w.sum() <= 0:
        return Share((*[0.0] * len(FEATURES), 0.0), (0.0,) * len(FEATURES), (1.0,) * len(FEATURES))
    mean = np.average(x, axis=0, weights=w)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w)) + 1e-6
    z = _standard(x, mean, scale)
    ridge = RIDGE * w.sum() * np.diag([*[1.0] * len(FEATURES), 1e-9])
    weights = np.linalg.solve((z * w[:, None]).T @ z + ridge, (z * w[:, None]).T @ y)
    flat = [tuple(float(v) for v in values) for values in (weights, mean, scale)]
    return Share(*flat)


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
    size = [r // 2 + 1 if n > r // 2 else 1 for n, r in zip((z, y, x), REGION, strict=True)]
    size = [s + 1 - s % 2 for s in size]
    wide = as_map(share, of or (z, y, x), part).to(answer.device)[None, None]
    smooth = nn.avg_pool3d(wide, size, 1, [s // 2 for s in size], count_include_pad=False)[0, 0]
    return plain + smooth * (answer - plain)


def _standard(x: Float64, mean: Float64, scale: Float64) -> Float64:
    z = np.clip((x - mean) / scale, -3, 3)
    return np.concatenate([z, np.ones((*z.shape[:-1], 1))], axis=-1)
