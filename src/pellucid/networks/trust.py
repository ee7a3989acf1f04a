"""The verdict: a calibrated probability, region by region, that an answer is to be believed."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from pellucid.core.deconvolution import blur_of
from pellucid.core.fourier import Shape
from pellucid.core.operators import Extended
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.wrongness import REGION, region_edges
from pellucid.errors import InputError
from pellucid.networks.evidence import FEATURES, Evidence, error_of
from pellucid.networks.structures import BANK, Example, Light, simulate

WRONG = 0.5
"""Error of a region, relative to its light, above which it is called wrong."""

ALARMS = 0.02
"""Share of the good regions that may be doubted, of whichever structure is worst when it is left out of
the calibration: other structures are to come, and the average over known ones would promise too much."""

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
    limit : probability of being wrong above which a region counts as doubted: at most `ALARMS` of the
        good regions of any structure that the weights were not fitted on
    """

    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    limit: float = 0.5

    def believable(self, evidence: Evidence) -> Float64:
        """Return the probability, region by region, that the answer is not wrong."""
        odds = _design(evidence, np.array(self.mean), np.array(self.scale)) @ np.array(self.weights)
        return 1 - _probability(odds)

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
            names = ("weights", "mean", "scale")
            weights, mean, scale = (tuple(float(v) for v in values[k]) for k in names)
            if [len(v) - len(FEATURES) for v in (weights, mean, scale)] != [1, 0, 0]:
                raise ValueError
            return cls(weights, mean, scale, float(values["limit"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("model: the card's verdict is not complete. Train it anew.") from error


def calibration_case(
    psf: Psf | PsfField, shape: Shape, light: Light, seed: int, kinds: tuple[str, ...] = tuple(BANK)
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
    told = blur_of(other if case == 2 else psf, shape)
    return recorded(kind, seed, blur_of(other, shape) if case > 1 else told, told, light)


def recorded(kind: str, seed: int, really: Extended, told: Extended, light: Light = Light()) -> Example:
    """Return what one microscope records as a problem for another; the truth on the latter's grid."""
    made = simulate((really,), kind, seed, light)
    o = made.problem.observations[0]
    truth = torch.zeros(told.domain_shape)
    truth[told.window] = made.truth[really.window]
    return Example(Problem((Observation(o.image, told, o.background),)), truth, kind)


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
    return error_of(problem, x, truth) > WRONG


def fit(evidence: list[Evidence], wrong: list[Any], kinds: list[str]) -> Trust:
    """Return the regression of `wrong` regions on the evidence, of recordings of `kinds`.

    No weight is negative: what speaks against an answer on a small calibration is not let speak for it.
    Each structure is left out of a fit of its own, and what these fits say of it gives the slope of the
    log-odds, so that probabilities are not too sure of what is new, and the limit.
    """
    y = np.concatenate([np.asarray(w).ravel().astype(np.float64) for w in wrong])
    if not 0 < y.sum() < y.size:
        raise InputError(
            "trust: the calibration holds no wrong region, or only such. Calibrate on more structures."
        )
    tables = [e.reshape(-1, len(FEATURES)) for e in evidence]
    x = np.concatenate(tables)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    design = _design(x, mean, scale)
    of_region = np.repeat([set(k.split("+")) for k in kinds], [len(t) for t in tables])
    unseen = []
    for structure in sorted(set().union(*of_region)):
        out = np.array([structure in held for held in of_region])
        if 0 < y[~out].sum() < (~out).sum():
            unseen.append((design[out] @ _increasing(design[~out], y[~out]), y[out]))
    weights = _increasing(design, y)
    unseen = unseen or [(design @ weights, y)]
    odds, true = (np.concatenate(parts) for parts in zip(*unseen, strict=True))
    slope, shift = newton(np.column_stack([odds, np.ones(len(odds))]), true, 1.0)
    slope = max(float(slope), 0.0)
    limit = max(
        float(np.quantile(_probability(slope * odds[true == 0] + shift), 1 - ALARMS))
        for odds, true in unseen if (true == 0).any()
    )  # fmt: skip
    weights = slope * weights + shift * (np.arange(len(weights)) == len(FEATURES))
    return Trust(_plain(weights), _plain(mean), _plain(scale), limit)


def _increasing(design: Float64, y: Float64) -> Float64:
    """Return the regression's weights, the most negative set to 0 one after another."""
    used = np.ones(design.shape[1], bool)
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
        p = _probability(design @ w)
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


def _probability(odds: Float64) -> Float64:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -50, 50))))


def _design(x: Float64, mean: Float64, scale: Float64) -> Float64:
    # Bounded, so that what no calibration saw does not decide alone.
    z = np.clip((x - mean) / scale, -3, 3)
    return np.concatenate([z, np.ones((*z.shape[:-1], 1))], axis=-1)


def _plain(values: Float64) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
