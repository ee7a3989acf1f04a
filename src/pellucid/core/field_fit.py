"""A smooth field from transforms measured chunk by chunk, of which some are false.

Chunk c measured its mean displacement d_c, and, where it was free to, how displacement changes across
it. With m_c the means of the spline's basis over the chunk, the coefficients x minimise

    sum_c w_c |m_c x - d_c|^2 / (s_c^2 + t^2)  +  K x' P x / a^2  +  |u|^2 / R^2

s_c is the chunk's own uncertainty, t what the uncertainties do not tell, P the bending energy of K
unknowns, a how much the field bends and R how far chunks are displaced at most, in um. Every chunk is
judged by the field of all others (leave one out, in closed form): it is right with a Gaussian of the
predicted width, or false and anywhere within R. The probability of the first is its weight w_c
(iterated), and the a that makes all chunks likeliest when each is predicted by the others is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from pellucid.core.bending import penalties
from pellucid.core.gauss_newton import Model
from pellucid.core.geometry import Affine, Grid, Triple
from pellucid.core.transform_field import TransformField, axis_weights, control_points
from pellucid.errors import InputError, ParameterError

Array = NDArray[np.float64]
Shape = tuple[int, int, int]

MOST_INTERVALS = 8
"""Along an axis, unless asked for: the normal equations have the cube of it unknowns."""

AMPLITUDES, COARSE_STEP = 9, 4.0
"""Tried from a field as stiff as noise allows on, this factor apart; then half and twice the best."""

ROUNDS = 15
"""Of reweighting at one amplitude; weights that still move by less than 0.01 are settled."""

FALSE_SHARE = 0.1
"""Expected before anything is seen."""

MOST_STEEP = 0.5
"""Of a field, um per um; one specimen is not stretched by half, and at 1 a field may fold."""

LEAST_EXTRA_VOXELS = 0.1
"""Added to every chunk's uncertainty, of the finest voxel, one component: where structure is uneven
within a chunk, its transform is that of the structure and not of the middle. Chunks of nuclei, 64
voxels wide in a field of 3 voxels, were off by 0.1 where their uncertainties said 0.03."""

MOST_INFLATION = 100.0
"""Of a predicted chunk's variance over a measured one's: those on which all hangs say little of noise."""

MEDIAN_CHI2_3 = 2.366
"""Median of the squared length of a normal vector of three components."""

CENTRE_SHARE: dict[Model, float] = {"translation": 1, "rigid": 4, "similarity": 5, "affine": 10}
"""A corner's variance over the centre's. Of n points spread evenly over a box, each of variance v, the
centre has v / n per component; a rotation adds 3 v / n at a corner, a scale 3 v / n, and each of the
nine entries of a linear part v / n, over three components."""


@dataclass(frozen=True)
class ChunkMeasurement:
    """What the registration of one chunk found.

    Parameters
    ----------
    index : number of the chunk
    centre_um, half_um : the box that was registered, in the fixed frame: its middle and half its size
    transform : fixed to moving; None where there is none to be believed
    model : what the transform was allowed to be
    corner_sigma_um : one standard deviation of the box's corners, of three components together
    reason : why there is no transform
    """

    index: int
    centre_um: Triple
    half_um: Triple
    transform: Affine | None = None
    model: Model = "translation"
    corner_sigma_um: float = float("inf")
    reason: str = ""

    @property
    def centre_sigma_um(self) -> float:
        """One standard deviation of the centre, per component."""
        return float(self.corner_sigma_um / np.sqrt(3 * CENTRE_SHARE[self.model]))


@dataclass(frozen=True)
class ChunkVerdict:
    """What the field makes of one chunk.

    Parameters
    ----------
    index : number of the chunk
    used : whether its transform counts; else the field says where it lies
    reason : why it does not count
    residual_um : distance between its centre's place and where all other chunks put it; NaN: unmeasured
    sigma_um : one standard deviation of the field at its centre, of three components together
    """

    index: int
    used: bool
    reason: str
    residual_um: float
    sigma_um: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        residual = None if np.isnan(self.residual_um) else self.residual_um
        return {**vars(self), "residual_um": residual}


@dataclass(frozen=True)
class FieldFit:
    """A field, and what speaks for it.

    Parameters
    ----------
    field : fixed to moving
    chunks : a verdict on each
    amplitude_um : how much the field was let bend, root mean square of L^2 times the second derivative
    extra_sigma_um : by how much chunks scatter beyond what their uncertainties say, per component
    """

    field: TransformField
    chunks: tuple[ChunkVerdict, ...]
    amplitude_um: float
    extra_sigma_um: float

    @property
    def outliers(self) -> tuple[ChunkVerdict, ...]:
        """Chunks that were measured, and are contradicted by the others."""
        return tuple(c for c in self.chunks if not c.used and not np.isnan(c.residual_um))


def fit_field(
    coarse: Affine,
    fixed: Grid,
    chunks: Sequence[ChunkMeasurement],
    *,
    intervals: Shape | None = None,
) -> FieldFit:
    """Return the smooth field that the chunks agree on, and a verdict on each of them.

    Parameters
    ----------
    coarse : the map that the chunks' transforms are displacements from, fixed to moving
    fixed : voxels of the fixed view, which the field covers
    chunks : all of them, those without a transform too: they are filled from the field
    intervals : of the control points along each axis; None: one for each chunk, at most 8

    Raises
    ------
    InputError : no chunk has a transform
    """
    measured = [c for c in chunks if c.transform is not None]
    if not measured:
        why = chunks[0].reason if chunks else "There are none."
        raise InputError(f"chunks: none of {len(chunks)} could be registered. {why}")
    if any(c.centre_sigma_um <= 0 or not np.isfinite(c.centre_sigma_um) for c in measured):
        raise ParameterError("chunks: expected a positive, finite corner_sigma_um of each transform.")
    knots = control_points(fixed, intervals or _intervals(fixed, chunks))
    finest = min(s for s, n in zip(fixed.spacing_um, fixed.shape, strict=True) if n > 1)
    problem = _Problem.of(coarse, knots, measured, (LEAST_EXTRA_VOXELS * finest) ** 2)
    state = _likeliest(problem, knots, coarse)
    field = TransformField(coarse, knots, problem.coefficients(state, knots)).straightened()
    verdicts = _verdicts(problem, state, chunks, knots)
    return FieldFit(field, verdicts, state.amplitude_um, state.extra_um2**0.5)


@dataclass(frozen=True)
class _Problem:
    """The measured chunks as linear equations: rows (n, 4, unknowns), values (n, 4, 3).

    Of a chunk of which only the mean counts, the other three rows are zero.
    """

    rows: Array
    values: Array
    counts: NDArray[np.int64]
    variances_um2: Array
    bending: Array
    level: Array
    range_um: float

    @classmethod
    def of(
        cls, coarse: Affine, knots: Grid, chunks: Sequence[ChunkMeasurement], least_um2: float
    ) -> "_Problem":
        rows = np.stack([_chunk_rows(knots, c) for c in chunks])
        values = np.stack([_chunk_values(coarse, c) for c in chunks])
        # a transform that could not stretch says nothing about how displacement changes
        counts = np.array([4 if c.model == "affine" else 1 for c in chunks])
        for row, value, count in zip(rows, values, counts, strict=True):
            row[count:], value[count:] = 0, 0
        variances = np.array([c.centre_sigma_um**2 + least_um2 for c in chunks])
        farthest = float(np.linalg.norm(values[:, 0], axis=1).max())
        range_um = max(farthest, 10 * float(np.sqrt(np.median(variances))))
        return cls(rows, values, counts, variances, *penalties(knots), range_um)

    def coefficients(self, state: "_State", knots: Grid) -> Array:
        return state.solution.reshape(*knots.shape, 3)


@dataclass(frozen=True)
class _State:
    """One fit: what it assumed, and how likely it makes every chunk given all the others."""

    amplitude_um: float
    extra_um2: float
    weights: Array
    solution: Array
    covariance: Array
    distances_um: Array
    expected_um: Array
    evidence: float


def _likeliest(problem: _Problem, knots: Grid, coarse: Affine) -> _State:
    """Return the fit with the likeliest amplitude, from the stiffest on; none that may fold."""
    noise = float(np.sqrt(np.median(problem.variances_um2)))
    scatter = float(np.median(np.abs(problem.values[:, 0] - np.median(problem.values[:, 0], axis=0))))
    unknown = np.ones(len(problem.rows)), scatter**2
    tried: dict[float, _State] = {}
    best: _State | None = None

    def attempt(amplitude: float) -> None:
        nonlocal best
        start = unknown if best is None else (best.weights, best.extra_um2)
        state = tried[amplitude] = _settled(problem, amplitude, *start)
        field = TransformField(coarse, knots, problem.coefficients(state, knots))
        if best is None or (
            state.evidence > best.evidence and field.straightened().steepest <= MOST_STEEP
        ):
            best = state

    for step in range(AMPLITUDES):
        attempt(2 * noise * COARSE_STEP**step)
        last = list(tried.values())[-2:]
        if step >= 4 and all(s.amplitude_um > best.amplitude_um for s in last):  # type: ignore[union-attr]
            break
    middle = best.amplitude_um  # type: ignore[union-attr]
    for finer in (0.5, 2.0):
        attempt(middle * finer)
    return best  # type: ignore[return-value]


def _settled(problem: _Problem, amplitude_um: float, weights: Array, extra_um2: float) -> _State:
    """Return the fit whose weights are what it says of the chunks."""
    state = _fitted(problem, amplitude_um, weights, extra_um2)
    for _ in range(ROUNDS):
        before, state = state, _fitted(problem, amplitude_um, state.weights, state.extra_um2)
        if np.abs(before.weights - state.weights).max() < 0.01:
            break
    return state


def _fitted(problem: _Problem, amplitude_um: float, weights: Array, extra_um2: float) -> _State:
    rows, values = problem.rows, problem.values
    variance = problem.variances_um2 + extra_um2
    n, k, unknowns = rows.shape
    trust = weights / variance
    scaled = (rows * np.sqrt(trust)[:, None, None]).reshape(-1, unknowns)
    normal = scaled.T @ scaled + unknowns / amplitude_um**2 * problem.bending
    # how far chunks are apart at most is how far the field as a whole may be from the coarse map
    normal += problem.level / problem.range_um**2
    # float64 keeps the digits that count when the unknowns differ in size by no more than this
    factor = cho_factor(normal + 1e-13 * np.trace(normal) / unknowns * np.eye(unknowns), lower=True)
    right = (rows * trust[:, None, None]).reshape(-1, unknowns).T @ values.reshape(-1, 3)
    solution = cho_solve(factor, right)
    covariance = cho_solve(factor, np.eye(unknowns))
    spread = np.einsum("nku,nlu->nkl", (rows.reshape(-1, unknowns) @ covariance).reshape(n, k, -1), rows)
    # leave one out: residual (1 - H)^-1 r, variance of the prediction S (1 - H)^-1
    rest = np.eye(k) - spread * trust[:, None, None]
    residual = np.linalg.solve(rest, values - rows @ solution)
    predicted = spread @ np.linalg.inv(rest) + variance[:, None, None] * np.eye(k)
    distance = np.linalg.norm(residual[:, 0], axis=1)
    # a prediction's variance follows that of what it is made from
    inflation = np.minimum(predicted[:, 0, 0] / variance, MOST_INFLATION)
    extra = _extra(distance**2 / inflation, problem.variances_um2)
    right_log, false_log = _densities(problem, residual, predicted)
    top = np.maximum(right_log, false_log)
    total = top + np.log(np.exp(right_log - top) + np.exp(false_log - top))
    return _State(
        amplitude_um, extra, np.exp(right_log - total), solution, covariance, distance,
        np.sqrt(3 * predicted[:, 0, 0]), float(total.sum()),
    )  # fmt: skip


def _densities(problem: _Problem, residual: Array, predicted: Array) -> tuple[Array, Array]:
    """Return the logarithms of the densities of what was measured, were it right or false."""
    volume = 4 / 3 * np.pi * problem.range_um**3
    right = np.empty(len(residual))
    for i, count in enumerate(problem.counts):
        part, own = residual[i, :count], predicted[i, :count, :count]
        own = (own + own.T) / 2
        squared = float(np.sum(part * np.linalg.solve(own, part)))
        right[i] = -1.5 * np.linalg.slogdet(2 * np.pi * own)[1] - 0.5 * squared
    false = -problem.counts * np.log(volume)
    return np.log(1 - FALSE_SHARE) + right, np.log(FALSE_SHARE) + false


def _extra(squared_um2: Array, variances_um2: Array) -> float:
    """Return the variance t^2 with which half of the chunks lie within the median of chi^2_3."""
    low, high = 0.0, float(squared_um2.max()) + 1e-300
    if np.median(squared_um2 / variances_um2) <= MEDIAN_CHI2_3:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.median(squared_um2 / (variances_um2 + middle)) > MEDIAN_CHI2_3:
            low = middle
        else:
            high = middle
    return high


def _verdicts(
    problem: _Problem, state: _State, chunks: Sequence[ChunkMeasurement], knots: Grid
) -> tuple[ChunkVerdict, ...]:
    verdicts, number = [], 0
    for chunk in chunks:
        row = _chunk_rows(knots, chunk)[0]
        sigma = float(np.sqrt(3 * row @ state.covariance @ row))
        if chunk.transform is None:
            verdicts.append(ChunkVerdict(chunk.index, False, chunk.reason, float("nan"), sigma))
            continue
        distance, expected = state.distances_um[number], state.expected_um[number]
        used = bool(state.weights[number] >= 0.5)
        reason = "" if used else (
            f"Contradicted by its neighbours: it lies {distance:.3g} um from where they put it, and "
            f"{expected:.2g} um were to be expected."
        )  # fmt: skip
        verdicts.append(ChunkVerdict(chunk.index, used, reason, float(distance), sigma))
        number += 1
    return tuple(verdicts)


def _intervals(fixed: Grid, chunks: Sequence[ChunkMeasurement]) -> Shape:
    """Return one interval for each chunk along an axis, few enough to solve for."""
    centres = np.array([c.centre_um for c in chunks])
    z, y, x = (
        min(MOST_INTERVALS, len(np.unique(np.round(centres[:, axis] / fixed.spacing_um[axis]))))
        for axis in range(3)
    )
    return z, y, x


def _chunk_rows(knots: Grid, chunk: ChunkMeasurement) -> Array:
    """Return (4, unknowns): the basis' mean over a chunk, and half its change across each axis.

    Two Gauss points per axis, at +- half / sqrt(3): there a change has the variance of the mean.
    """
    means, changes = [], []
    for axis in range(3):
        ends = chunk.centre_um[axis] + np.array([-1, 1]) * chunk.half_um[axis] / np.sqrt(3)
        low, high = axis_weights(knots, axis, ends)
        means.append((low + high) / 2)
        changes.append((high - low) / 2)
    rows = [np.einsum("i,j,k->ijk", *means).ravel()]
    for axis in range(3):
        factors = [changes[a] if a == axis else means[a] for a in range(3)]
        rows.append(np.einsum("i,j,k->ijk", *factors).ravel())
    return np.stack(rows)


def _chunk_values(coarse: Affine, chunk: ChunkMeasurement) -> Array:
    """Return (4, 3): the displacement A^-1 T of the chunk's middle, and its change across each axis."""
    assert chunk.transform is not None
    own = coarse.inverse() @ chunk.transform
    centre = np.asarray(chunk.centre_um)
    change = (own.linear - np.eye(3)).T * np.asarray(chunk.half_um)[:, None] / np.sqrt(3)
    return np.concatenate([(own.apply(centre) - centre)[None], change])
