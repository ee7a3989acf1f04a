"""The verdict: a calibrated probability, region by region, that an answer is to be believed."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize, stats
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.wrongness import REGION, region_edges
from pellucid.errors import InputError
from pellucid.networks.evidence import FEATURES, FLOOR, Float64
from pellucid.networks.structures import BANK, Example, Light, simulate
from pellucid.networks.views import Microscope, Optics, Views, microscope_of

WRONG = 0.5
"""Error of a region, relative to its light, above which it is called wrong."""

ALARMS = 0.02
"""Share of the good regions that may be doubted, of whichever structure is worst when it is left out of
the calibration: other structures are to come, and the average over known ones would promise too much."""

SURE = 1e3
"""Weight of the condition that the weights add up to 1."""

NEAR = 0.25
"""Distance from `WRONG`, in powers of e, over which a region loses weight in the fit: what is far from it
on either side decides nothing."""

WIDENED = 1.25
"""Power of the fine structure that an answer lacks by which its error is taken to be larger. On
calibration recordings by a PSF that was not told 1 to 1.5 were alike, and a fit to each model worse."""

ROUNDS = 6
"""Rounds of fit and weights, which settle in three."""


@dataclass(frozen=True)
class Trust:
    """Estimate of every region's error, and how far the truth may be from it.

    The error is a weighted geometric mean of the measured ones, times a constant: if all were twice as
    large it would be, whatever is usual in a calibration. So the probability holds where more is wrong,
    or less, than there. It is larger where the answer lacks fine structure, as it does if the PSF is not
    the microscope's.

    Parameters
    ----------
    weights : of `FEATURES`, none below 0, together 1
    bias : logarithm of the constant
    detail : logarithm of the power of the answer's fine structure, relative to the rehearsal's, below which
        some is lacking: the median of a calibration
    spread : standard deviation of the logarithm of the error about its estimate
    limit : probability of being wrong above which a region counts as doubted: at most `ALARMS` of the
        good regions of any structure that the rest was not fitted on
    """

    weights: tuple[float, ...]
    bias: float
    spread: float
    limit: float
    detail: float

    def error(self, logs: Float64) -> Float64:
        """Return the error to expect of every region, relative to its light; of an evidence's `logs`."""
        return np.asarray(np.exp(self._log_error(logs)) - FLOOR)

    def believable(self, logs: Float64) -> Float64:
        """Return the probability, region by region, that the answer is not wrong."""
        return np.asarray(stats.norm.sf((self._log_error(logs) - _log(WRONG)) / self.spread))

    def _log_error(self, logs: Float64) -> Float64:
        return np.asarray(_widened(logs, self.detail) @ np.array(self.weights) + self.bias)

    def doubted(self, believable: Float64) -> NDArray[np.bool_]:
        """Return which regions are doubted, of the probabilities that `believable` returned."""
        return 1 - believable > self.limit

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a model's card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trust":
        """Return what a model's card holds."""
        try:
            weights = tuple(float(v) for v in values["weights"])
            if len(weights) != len(FEATURES):
                raise ValueError
            return cls(weights, *(float(values[k]) for k in ("bias", "spread", "limit", "detail")))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's verdict is not complete. Train it anew.") from error


def calibration_case(
    psf: Optics, shape: Shape, light: Light, seed: int, kinds: tuple[str, ...] = tuple(BANK)
) -> Example:
    """Return a recording to calibrate on: of any structure or two, with the PSF, another, or a wrong one.

    Two of four are recorded by the PSF itself; one by another, which the restorer is told; and one by
    another that it is not told. Every other recording mixes two of the `kinds`.
    """
    rng = np.random.default_rng([seed, 8])
    case = int(rng.integers(4))
    factors = np.exp(rng.uniform(-0.35, 0.35, 2)) if case > 1 else np.ones(2)
    kind = kinds[seed // 2 % len(kinds)]
    if seed % 2 and len(kinds) > 1:
        kind = "+".join(rng.choice(kinds, 2, replace=False))
    other = stretched(psf, (float(factors[0]), float(factors[1]), float(factors[1])))
    told = microscope_of(other if case == 2 else psf, shape, seed)
    return recorded(kind, seed, microscope_of(other, shape, seed) if case > 1 else told, told, light)


def recorded(
    kind: str, seed: int, really: Microscope, told: Microscope, light: Light = Light()
) -> Example:
    """Return what one microscope records as a problem for another; the truth on the latter's grid."""
    made = simulate(really.operators, kind, seed, light)
    truth = torch.zeros(told.operators[0].domain_shape)
    truth[told.window] = made.truth[really.window]
    observations = (
        Observation(o.image, operator, o.background)
        for o, operator in zip(made.problem.observations, told.operators, strict=True)
    )
    return Example(Problem(tuple(observations), told.window), truth, kind)


def stretched(psf: Optics, factors: tuple[float, float, float]) -> Optics:
    """Return the PSF, or every PSF of a field or of views, `factors` (z, y, x) times as wide."""
    if factors == (1.0, 1.0, 1.0):
        return psf
    if isinstance(psf, Views):
        wider = [stretched(one, factors) for one in psf.psfs]
        return replace(psf, psfs=tuple(one for one in wider if not isinstance(one, Views)))
    if isinstance(psf, PsfField):
        wide = np.stack([_stretched(values, factors) for values in psf.psfs])
        return PsfField(wide, psf.positions_um, psf.spacing_um, psf.notes)
    return Psf.normalised(_stretched(psf.values, factors), psf.spacing_um, psf.notes)


def _stretched(values: Float64, factors: tuple[float, float, float]) -> Float64:
    half = [
        int(np.ceil(max(f, 1.0) * (n // 2))) if n > 1 else 0
        for f, n in zip(factors, values.shape, strict=True)
    ]
    axes = [
        (np.arange(2 * h + 1) - h) / f + n // 2
        for h, f, n in zip(half, factors, values.shape, strict=True)
    ]
    out = ndimage.map_coordinates(values, np.meshgrid(*axes, indexing="ij"), order=1)
    return np.asarray(out * (values.sum() / out.sum()))


def fit(logs: list[Float64], errors: list[Any], kinds: list[str]) -> Trust:
    """Return what the evidence's `logs` say of the `errors` of every region, of recordings of `kinds`.

    Each structure is left out of a fit of its own, and what these fits say of it gives the spread, so
    that probabilities are not too sure of what is new, and the limit.
    """
    detail = float(np.median([np.mean(v[..., -1]) for v in logs]))
    tables = [_widened(v, detail).reshape(-1, len(FEATURES)) for v in logs]
    x, y = np.concatenate(tables), _log(np.concatenate([np.ravel(e) for e in errors]))
    of_region = np.repeat([set(k.split("+")) for k in kinds], [len(t) for t in tables])
    left_out = []
    for structure in sorted(set().union(*of_region)):
        out = np.array([structure in held for held in of_region])
        if not out.all():
            weights, bias = _least_squares(x[~out], y[~out])
            left_out.append((x[out] @ weights + bias, y[out]))
    weights, bias = _least_squares(x, y)
    left_out = left_out or [(x @ weights + bias, y)]
    told, true = (np.concatenate(parts) for parts in zip(*left_out, strict=True))
    spread = float(np.sqrt(np.average((true - told) ** 2, weights=_nearness(true, told))))
    spread = max(spread, FLOOR)
    good = [t[y <= _log(WRONG)] for t, y in left_out]
    limit = max(
        float(np.quantile(stats.norm.cdf((g - _log(WRONG)) / spread), 1 - ALARMS)) for g in good if g.size
    )
    return Trust(tuple(float(v) for v in weights), bias, spread, limit, detail)


def _widened(logs: Float64, detail: float) -> Float64:
    """Return the logarithms of the errors, larger where the answer lacks fine structure."""
    return np.asarray(logs[..., :-1] + WIDENED * (detail - logs[..., -1:]).clip(0))


def _least_squares(x: Float64, y: Float64) -> tuple[Float64, float]:
    """Return weights of the columns of `x`, none below 0 and together 1, and the bias, that fit `y`."""
    weights, bias = np.eye(x.shape[1])[0], 0.0
    for _ in range(ROUNDS):
        near = _nearness(y, x @ weights + bias)
        x_mean, y_mean = np.average(x, axis=0, weights=near), float(np.average(y, weights=near))
        root = np.sqrt(near / near.sum())
        design = np.concatenate([root[:, None] * (x - x_mean), np.full((1, x.shape[1]), SURE)])
        weights = optimize.nnls(design, np.append(root * (y - y_mean), SURE))[0]
        weights = weights / weights.sum()
        bias = y_mean - float(x_mean @ weights)
    return weights, bias


def _nearness(true: Float64, told: Float64) -> Float64:
    # The mean of both, so that neither the noise of the estimate nor how much is wrong here selects.
    return np.asarray(np.exp(-np.abs((true + told) / 2 - _log(WRONG)) / NEAR) + 1e-9)


def _log(error: Any) -> Any:
    return np.log(error + FLOOR)


def scores(believable: Float64, wrong: Any, limit: float = 0.5) -> dict[str, float]:
    """Return AUROC, expected calibration error (10 bins), false alarms among good regions."""
    doubt, bad = 1 - np.ravel(believable), np.ravel(wrong).astype(bool)
    order = stats.rankdata(doubt)  # ties share their rank
    n, m = int(bad.sum()), int((~bad).sum())
    auroc = (order[bad].sum() - n * (n + 1) / 2) / (n * m) if n and m else float("nan")
    bins = np.minimum((doubt * 10).astype(int), 9)
    error = sum(
        (bins == b).mean() * abs(doubt[bins == b].mean() - bad[bins == b].mean())
        for b in np.unique(bins)
    )
    alarms = float((doubt[~bad] > limit).mean()) if m else float("nan")
    found = float((doubt[bad] > limit).mean()) if n else float("nan")
    return {
        "regions": float(bad.size), "wrong": float(bad.mean()), "auroc": float(auroc),
        "calibration_error": float(error), "false_alarms": alarms, "found": found,
    }  # fmt: skip


def as_map(believable: Float64, shape: Shape, part: Window | None = None) -> Tensor:
    """Return what is known of regions on the voxels of the image, or of a part of it, (z, y, x) float32."""
    values = believable
    for axis, (n, r, seen) in enumerate(zip(shape, REGION, part or [slice(None)] * 3, strict=True)):
        edges = region_edges(n, r)
        voxels = np.arange(n)[seen]
        values = values.take(np.searchsorted(edges[1:-1], voxels, side="right"), axis=axis)
    return torch.from_numpy(values.astype(np.float32))
