"""The verdict: a calibrated probability, region by region, that an answer is to be believed."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from pellucid.core.deconvolution import blur_of
from pellucid.core.fourier import Shape
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.wrongness import REGION, region_edges, wrongness
from pellucid.errors import InputError
from pellucid.networks.evidence import DECISIVE, FEATURES, Evidence, resolution_px
from pellucid.networks.structures import BANK, Example, Light, simulate
from pellucid.networks.training import window_of

WRONG = 0.5
"""Error of a region, relative to its light, above which it is called wrong."""

ALARMS = 0.02
"""Share of the good regions that may be doubted, in whichever calibration recording is worst: other
structures are to come, and the average over known ones would promise too much."""

RIDGE = 3.0
"""Strength of the ridge of the regression, in regions."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Trust:
    """Logistic regression from evidence to the probability that a region is wrong.

    Parameters
    ----------
    weights : of `FEATURES`, none below 0, and of the constant
    mean, scale : of the features where it was fitted
    familiar : mean of the network's innermost features on what it was trained on
    whitening : (n, n), by which differences from it become standard normal there
    slope, shift : of the log-odds, from recordings that the weights were not fitted on
    limit : probability of being wrong above which a region counts as doubted: at most `ALARMS` of the
        good regions of any recording that the weights were not fitted on
    """

    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    familiar: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]
    slope: float = 1.0
    shift: float = 0.0
    limit: float = 0.5

    def believable(self, evidence: Evidence) -> Float64:
        """Return the probability, region by region, that the answer is not wrong."""
        x = complete(evidence, np.array(self.familiar), np.array(self.whitening))
        odds = _design(x, np.array(self.mean), np.array(self.scale)) @ np.array(self.weights)
        return np.asarray(1 / (1 + np.exp(np.clip(self.slope * odds + self.shift, -50, 50))))

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
            names = ("weights", "mean", "scale", "familiar")
            flat = [tuple(float(v) for v in values[k]) for k in names]
            whitening = tuple(tuple(float(v) for v in row) for row in values["whitening"])
            odds = float(values["slope"]), float(values["shift"]), float(values.get("limit", 0.5))
            trust = cls(flat[0], flat[1], flat[2], flat[3], whitening, *odds)
            if len(trust.weights) != len(FEATURES) + 1:
                raise ValueError
            return trust
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's verdict is not complete. Train it anew.") from error


def calibration_case(
    psf: Psf | PsfField, shape: Shape, light: Light, seed: int, kinds: tuple[str, ...] = tuple(BANK)
) -> Example:
    """Return a recording to calibrate on: of any structure, with the PSF, another one, or a wrong one.

    Two of four are recorded by the PSF itself; one by another, which the restorer is told; and one by
    another that it is not told.
    """
    rng = np.random.default_rng([seed, 8])
    kind = kinds[seed % len(kinds)]
    case = int(rng.integers(4))
    factors = np.exp(rng.uniform(-0.35, 0.35, 2)) if case > 1 else np.ones(2)
    other = stretched(psf, (float(factors[0]), float(factors[1]), float(factors[1])))
    believed = blur_of(other if case == 2 else psf, shape)
    if case < 3:
        return simulate((believed,), kind, seed, light)
    really = blur_of(other, shape)
    made = simulate((really,), kind, seed, light)
    o = made.problem.observations[0]
    truth = torch.zeros(believed.domain_shape)
    truth[believed.window] = made.truth[really.window]
    return Example(Problem((Observation(o.image, believed, o.background),)), truth, kind)


def stretched(psf: Psf | PsfField, factors: tuple[float, float, float]) -> Psf | PsfField:
    """Return the PSF, or every PSF of a field, `factors` (z, y, x) times as wide, in a fitting box."""
    if factors == (1.0, 1.0, 1.0):
        return psf
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


def wrong_regions(problem: Problem, x: Tensor, truth: Tensor) -> NDArray[np.bool_]:
    """Return where the answer `x` errs by more than `WRONG`, region by region, at the resolution that
    the recording supports; both on the object's grid."""
    window = window_of(problem)
    return wrongness(x[window], truth[window], resolution_px(problem)).exceeds(WRONG)


def fit(
    evidence: list[Evidence],
    wrong: list[Any],
    familiar: list[Evidence],
    used: tuple[str, ...] = DECISIVE,
) -> Trust:
    """Return the regression of `wrong` regions on the features `used` of the evidence.

    No weight is negative: what speaks against an answer on a small calibration is not let speak for it.
    The slope of the log-odds is fitted on recordings that each were left out of the fit of the weights,
    in five parts, so that probabilities are not too sure.

    Parameters
    ----------
    familiar : evidence on what the network was trained on
    """
    y = np.concatenate([np.asarray(w).ravel().astype(np.float64) for w in wrong])
    if not 0 < y.sum() < y.size:
        raise InputError(
            "trust: the calibration holds no wrong region, or only such. Calibrate on more structures."
        )
    centre, whitening = _familiarity(familiar)
    tables = [complete(e, centre, whitening).reshape(-1, len(FEATURES)) for e in evidence]
    x = np.concatenate(tables)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    design = _design(x, mean, scale)
    allowed = np.array([*(name in used for name in FEATURES), True])
    part = np.concatenate([np.full(len(t), i % 5) for i, t in enumerate(tables)])
    unseen = np.zeros(len(y))
    for k in np.unique(part):
        rest = part != k
        if 0 < y[rest].sum() < rest.sum():
            unseen[~rest] = design[~rest] @ _increasing(design[rest], y[rest], allowed)
    slope, shift = newton(np.column_stack([unseen, np.ones(len(y))]), y, 1.0)
    slope = max(float(slope), 0.0)
    doubt = 1 / (1 + np.exp(-np.clip(slope * unseen + shift, -50, 50)))
    which = np.concatenate([np.full(len(t), i) for i, t in enumerate(tables)])
    good = [doubt[(which == i) & (y == 0)] for i in range(len(tables))]
    limit = max(float(np.quantile(g, 1 - ALARMS)) for g in good if g.size)
    return Trust(
        _plain(_increasing(design, y, allowed)), _plain(mean), _plain(scale), _plain(centre),
        tuple(_plain(row) for row in whitening), slope, float(shift), limit,
    )  # fmt: skip


def _increasing(design: Float64, y: Float64, allowed: NDArray[np.bool_]) -> Float64:
    """Return the regression's weights, the most negative set to 0 one after another; 0 if not allowed."""
    used = allowed.copy()
    while True:
        weights = np.zeros(len(used))
        weights[used] = newton(design[:, used], y, RIDGE)
        worst = int(np.argmin(weights[:-1]))
        if weights[worst] >= 0:
            return weights
        used[worst] = False


def newton(design: Float64, y: Float64, ridge: float) -> Float64:
    """Return logistic regression's weights, by Newton's method; the constant is the last column."""
    w = np.zeros(design.shape[1])
    penalty = np.diag([*[ridge] * (design.shape[1] - 1), 1e-6])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -50, 50)))
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(curvature, design.T @ (y - p) - penalty @ w)
        w = w + step / max(1.0, float(np.abs(step).max()) / 3)
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(w)


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


def as_map(believable: Float64, shape: Shape) -> Tensor:
    """Return the probabilities on the voxels of the image, (z, y, x) float32."""
    values = believable
    for axis, (n, r) in enumerate(zip(shape, REGION, strict=True)):
        values = np.repeat(values, np.diff(region_edges(n, r)), axis=axis)
    return torch.from_numpy(values.astype(np.float32))


def complete(evidence: Evidence, centre: Float64, whitening: Float64) -> Float64:
    """Return all features, the strangeness of the network's own ones last."""
    away = np.zeros(evidence.features.shape[:-1])
    if len(centre) and evidence.inner.shape[-1] == len(centre):
        away = np.log1p((((evidence.inner - centre) @ whitening) ** 2).mean(axis=-1))
    return np.concatenate([evidence.features, away[..., None]], axis=-1)


def _familiarity(familiar: list[Evidence]) -> tuple[Float64, Float64]:
    """Mean and whitening of the innermost features, their covariance shrunk towards its diagonal."""
    known = np.concatenate(
        [e.inner.reshape(math.prod(e.inner.shape[:-1]), e.inner.shape[-1]) for e in familiar]
    )
    if known.shape[1] == 0:
        return np.zeros(0), np.zeros((0, 0))
    covariance = np.atleast_2d(np.cov(known.T))
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance)) + 1e-4 * np.eye(len(covariance))
    return known.mean(axis=0), np.linalg.inv(np.linalg.cholesky(covariance)).T


def _design(x: Float64, mean: Float64, scale: Float64) -> Float64:
    # Bounded, so that what no calibration saw does not decide alone.
    z = np.clip((x - mean) / scale, -3, 3)
    return np.concatenate([z, np.ones((*z.shape[:-1], 1))], axis=-1)


def _plain(values: Float64) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
