"""The verdict: a calibrated probability, region by region, that an answer is to be believed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.noise import Noise
from pellucid.core.problem import Observation, Problem
from pellucid.core.residual import reblur_residual
from pellucid.errors import InputError
from pellucid.networks.wiener import wiener_step
from pellucid.networks.polish import Estimator, smooth
from pellucid.networks.training import dimmed, window_of

REGION = (8, 16, 16)
"""Voxels of a region."""

WRONG = 0.5
"""Relative error of a region, both smoothed over 3 voxels, above which it is called wrong."""

FEATURES = (
    "spread of the residual", "brightness of the residual", "correlation of the residual",
    "disagreement of two halves of the photons", "photons", "texture away from the training set",
)  # fmt: skip

Float64 = NDArray[np.float64]
PHOTONS = Noise(gain=1.0, offset=0.0, read_noise=0.0)


@dataclass(frozen=True)
class Evidence:
    """What speaks for or against every region: (z, y, x, feature), and its texture (z, y, x, 3)."""

    features: Float64
    texture: Float64


@dataclass(frozen=True)
class Trust:
    """Logistic regression from evidence to the probability that a region is wrong.

    Parameters
    ----------
    weights : one for each of `FEATURES`, and the constant last
    mean, scale : of the features where it was fitted
    familiar, spread : mean and standard deviation of the training set's texture
    """

    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    familiar: tuple[float, ...]
    spread: tuple[float, ...]

    def believable(self, evidence: Evidence) -> Float64:
        """Return the probability, region by region, that the answer is not wrong."""
        x = _complete(evidence, np.array(self.familiar), np.array(self.spread))
        z = (x - np.array(self.mean)) / np.array(self.scale)
        w = np.array(self.weights)
        return np.asarray(1 / (1 + np.exp(np.clip(z @ w[:-1] + w[-1], -50, 50))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trust":
        """Return what a model's card holds."""
        try:
            return cls(**{k: tuple(float(v) for v in values[k]) for k in cls.__annotations__})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's verdict is not complete. Train it anew.") from error


def gather(problem: Problem, network: Estimator, x: Tensor, seed: int = 0) -> Evidence:
    """Return the evidence about the answer `x` on the object's grid; first view of the problem.

    Costs two more passes of the network, on complementary halves of the photons.
    """
    o = problem.observations[0]
    model = o.operator.forward(x).clamp_min(0) + o.background
    residual = reblur_residual(o.image, model, PHOTONS, region=REGION)
    halves = [network.estimate(half) for half in _halves(problem, seed)]
    window = window_of(problem)
    apart = smooth(halves[0] - halves[1], 3)[window]
    both = smooth(halves[0] + halves[1], 3)[window]
    noise = max(o.background, 1e-3) ** 0.5
    lag = np.nanmax(np.nan_to_num(residual.lag_z), axis=-1)
    light = _regions(o.image - o.background, _mean)
    features = np.stack(
        [
            np.arcsinh(np.nan_to_num(residual.chi2_z)),
            np.arcsinh(np.abs(np.nan_to_num(residual.bias_z))),
            np.arcsinh(lag),
            np.log(_regions(apart, _rms) + 0.1 * noise) - np.log(_regions(both, _rms) + noise),
            np.log(np.maximum(light, 0) + 0.1),
        ],
        axis=-1,
    )
    return Evidence(features, _texture(o, problem))


def wrong_regions(x: Tensor, truth: Tensor, window: tuple[slice, slice, slice], floor: float) -> Any:
    """Return where `x` errs by more than `WRONG`, region by region; `floor` photons are no error."""
    error = _regions((smooth(x, 3) - smooth(truth, 3))[window], _rms)
    light = _regions(smooth(truth, 3)[window], _rms)
    return error > WRONG * (light + floor)


def fit(evidence: list[Evidence], wrong: list[Any], familiar: list[Evidence]) -> Trust:
    """Return the regression of `wrong` regions on evidence; `familiar` is of what was trained on.

    Newton's method with a ridge of one region's worth, so that separable data give finite weights.
    """
    y = np.concatenate([np.asarray(w).ravel() for w in wrong]).astype(np.float64)
    if not 0 < y.sum() < y.size:
        raise InputError(
            "trust: the calibration holds no wrong region, or only such. Calibrate on more structures."
        )
    known = np.concatenate([e.texture.reshape(-1, e.texture.shape[-1]) for e in familiar])
    centre, spread = known.mean(axis=0), known.std(axis=0) + 1e-3
    x = np.concatenate([_complete(e, centre, spread).reshape(-1, len(FEATURES)) for e in evidence])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    design = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    used = np.ones(design.shape[1], bool)
    while True:
        w = np.zeros(design.shape[1])
        w[used] = _newton(design[:, used], y)
        # Evidence against an answer never speaks for it, whatever a small calibration says.
        against = used & (w < 0)
        against[[FEATURES.index("photons"), -1]] = False
        if not against.any():
            break
        used &= ~against
    return Trust(*(tuple(float(v) for v in part) for part in (w, mean, scale, centre, spread)))


def _newton(design: Float64, y: Float64) -> Float64:
    w = np.zeros(design.shape[1])
    ridge = np.diag([*[1.0] * (design.shape[1] - 1), 1e-6])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -50, 50)))
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(curvature, design.T @ (y - p) - ridge @ w)
        w = w + step
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(w)


def scores(believable: Float64, wrong: Any) -> dict[str, float]:
    """Return AUROC, expected calibration error (10 bins) and false alarms among good regions."""
    doubt, bad = 1 - np.ravel(believable), np.ravel(wrong).astype(bool)
    order = np.argsort(np.argsort(doubt, kind="stable"), kind="stable") + 1.0
    n, m = int(bad.sum()), int((~bad).sum())
    auroc = (order[bad].sum() - n * (n + 1) / 2) / (n * m) if n and m else float("nan")
    bins = np.minimum((doubt * 10).astype(int), 9)
    error = sum(
        (bins == b).mean() * abs(doubt[bins == b].mean() - bad[bins == b].mean())
        for b in np.unique(bins)
    )
    alarms = float((doubt[~bad] > 0.5).mean()) if m else float("nan")
    return {
        "regions": float(bad.size), "wrong": float(bad.mean()), "auroc": float(auroc),
        "calibration_error": float(error), "false_alarms": alarms,
    }  # fmt: skip


def as_map(believable: Float64, shape: tuple[int, int, int]) -> Tensor:
    """Return the probabilities on the voxels of the image, (z, y, x) float32."""
    edges = [_edges(n, r) for n, r in zip(shape, REGION, strict=True)]
    out = torch.empty(shape)
    for cell in np.ndindex(*believable.shape):
        out[tuple(slice(e[c], e[c + 1]) for e, c in zip(edges, cell, strict=True))] = float(
            believable[cell]
        )
    return out


def _complete(evidence: Evidence, centre: Float64, spread: Float64) -> Float64:
    away = np.sqrt((((evidence.texture - centre) / spread) ** 2).mean(axis=-1))
    return np.concatenate([evidence.features, np.log1p(away)[..., None]], axis=-1)


def _halves(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    first = dimmed(problem, 0.5, seed)
    second = tuple(
        Observation((o.image - f.image).clamp_min(0), o.operator, 0.5 * o.background)
        for o, f in zip(problem.observations, first.observations, strict=True)
    )
    return first, Problem(second, problem.window)


def _texture(o: Observation, problem: Problem) -> Float64:
    """Peakedness of the Wiener step, and how unevenly it changes along the axes, region by region."""
    sharp = smooth(wiener_step(o.image - o.background, o.operator), 3)[window_of(problem)]
    mean, rms = _regions(sharp.abs(), _mean), _regions(sharp, _rms)
    fourth = _regions(sharp.square(), _rms)
    small = max(o.background, 1e-3) ** 0.5
    slopes = [
        _regions(torch.diff(sharp, dim=a, prepend=sharp.narrow(a, 0, 1)), _rms) for a in range(3)
    ]
    total = np.sqrt(sum(s**2 for s in slopes))
    return np.stack(
        [
            np.log((rms + small) / (mean + small)),
            np.log((fourth**0.5 + small) / (rms + small)),
            np.log((total + small) / (rms + small)),
        ],
        axis=-1,
    )


def _edges(n: int, region: int) -> list[int]:
    return [*range(0, region * max(1, n // region), region), n]


def _regions(image: Tensor, statistic: Any) -> Float64:
    values = image.detach().cpu().numpy().astype(np.float64)
    edges = [_edges(n, r) for n, r in zip(values.shape, REGION, strict=True)]
    out = np.zeros(tuple(len(e) - 1 for e in edges))
    for cell in np.ndindex(*out.shape):
        here = tuple(slice(e[c], e[c + 1]) for e, c in zip(edges, cell, strict=True))
        out[cell] = statistic(values[here])
    return out


def _mean(values: Float64) -> float:
    return float(values.mean())


def _rms(values: Float64) -> float:
    return float(np.sqrt((values**2).mean()))
