"""The default restorer: Richardson-Lucy that is fast, knows when to stop, and cannot run away.

Three ideas, each measured in `benchmarks/quality.py`:

*Coarse to fine.* A few iterations on binned grids, where an FFT costs an eighth, do what tens of
iterations do on the fine one (`pellucid.core.coarsening`).
*Unmatched steps and momentum.* On the finest grid the mismatch goes back through an unmatched
projector (Guo et al. 2020), and every step is continued geometrically: x <- x (x / x_before)^beta,
the exponential form of the vector extrapolation of Biggs & Andrews (1997), which keeps x positive.
*Held-out photons.* A share of the photons is set aside by binomial thinning before anything starts.
A step is kept only if it makes those photons more likely; one that fails is retried without
momentum, then with the matched projector, and then the iteration stops. So the result explains
photons that it has not seen better than any estimate before it on the finest grid.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.core.back_projectors import (
    BackProjector,
    Matched,
    WienerButterworth,
    back_projection,
)
from pellucid.core.boundary import constant_where_seen, weight_of
from pellucid.core.coarsening import bin_factors, binned, refined
from pellucid.core.fourier import Shape, empty
from pellucid.core.joint_coarsening import (
    is_joint,
    joint_binned,
    joint_binned_images,
    joint_binnings,
    joint_refined,
)
from pellucid.core.noise import Noise, thin
from pellucid.core.operators import Extended
from pellucid.core.passband import band_edge_px, widths_of
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.richardson_lucy import correct, flat_start, peak_bytes
from pellucid.errors import ParameterError

LEAST_FACTOR = 0.05
"""One step dims no voxel below this share of itself: negative lobes do not blacken it for good."""

LEAST_SENSITIVITY = 0.1
"""Share of the largest sensitivity below which border voxels are not corrected more strongly."""

LARGEST_STEP = 20.0
"""Momentum brightens no voxel by more than this factor a step, and dims none by more than its square."""

THINNED_PLANES = 8
"""Planes thinned at a time."""

LEAST_MOMENTUM = 1e-3
"""Momentum below which there is none."""

COARSE_BUDGET = 0.25
"""Cost of the iterations on each coarse grid, in iterations on the finest one."""

MOST_COARSE = 8
"""Iterations on one coarse grid at most."""

BOLDER, CALMER, BOLDEST = 1.2, 0.5, 3.0
"""Momentum grows by the first after a step that helped, shrinks by the second after one that did not."""


@dataclass(frozen=True)
class Accelerated:
    """Guarded, coarse-to-fine, automatically stopped Richardson-Lucy.

    Parameters
    ----------
    back_projector : for the finest grid; its alpha, if open, is set from the photon numbers
    max_iterations : bound on the iterations on the finest grid
    tolerance : two steps that gain less than this share of the climb on their grid are the last
    held_out : share of the photons that judge and take no other part
    momentum : beta of the first geometric continuation, adapted from then on; 0 for none
    seed : of the thinning
    """

    back_projector: BackProjector = WienerButterworth(cutoff_fwhm=2**-0.5)
    max_iterations: int = 40
    tolerance: float = 0.01
    held_out: float = 0.05
    momentum: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.01 <= self.held_out <= 0.5:
            raise ParameterError(f"held_out must lie between 0.01 and 0.5, got {self.held_out}.")
        if self.max_iterations < 1:
            raise ParameterError(f"max_iterations must be 1 or more, got {self.max_iterations}.")

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes, images included; as measured."""
        return peak_bytes(problem, volumes=4, images=5, projector=self.back_projector)

    def __call__(self, problem: Problem) -> Restored:
        kept, held = thinned(problem, self.held_out, self.seed)
        projectors = _distinct(self.back_projector.tuned(alpha_for(kept)), Matched())
        climb: _Climb | None = None
        path: list[Step] = []
        for factors in reversed(_binnings(problem)):
            finest = factors == (1, 1, 1)
            level = JudgedLevel(
                kept, held, self.held_out, factors, projectors if finest else (Matched(),)
            )
            climb = _Climb(level, self.momentum, self.tolerance, path, climb)
            climb.run(self.max_iterations if finest else coarse_iterations(factors) - 1)
        assert climb is not None
        share = 1 - self.held_out
        image = problem.windowed(climb.p) / share
        models = tuple(model / share for model in climb.models)
        return Restored(image, _stats(path, projectors, self.held_out, self.max_iterations), models)


@dataclass(frozen=True)
class Step:
    """One estimate that was judged: how it was made, and what the held-out photons said.

    Parameters
    ----------
    binning : (z, y, x) of the grid
    made_by : name of the back projector, or "start"
    momentum : beta of the continuation
    likelihood : mean log-likelihood per held-out photon, up to a constant of the recording
    accepted : whether it became the estimate
    cost : FFTs spent so far, in iterations (four FFTs) on the finest grid
    """

    binning: Shape
    made_by: str
    momentum: float
    likelihood: float
    accepted: bool
    cost: float


class JudgedLevel:
    """The problem on one grid: models, corrections, and the score of the held-out photons."""

    def __init__(
        self,
        kept: Problem,
        held: Problem,
        held_out: float,
        factors: Shape,
        projectors: tuple[BackProjector, ...],
    ) -> None:
        self.factors, self.projectors = factors, projectors
        if is_joint(kept):
            self.problem = joint_binned(kept, factors)
            self.held = joint_binned_images(held, factors)
        else:
            self.problem = binned(kept, factors)
            judges = self.problem if held is kept else binned(held, factors)
            self.held = [o.image for o in judges.observations]
        self.held_ratio = held_out / (1 - held_out)
        # the thinned photons of a nearly dark recording may sum to nothing, or less
        self.photons = max(sum(float(image.sum(dtype=torch.float64)) for image in self.held), 1.0)
        self.backwards = [
            [back_projection(o.operator, projector) for o in self.problem.observations]
            for projector in projectors
        ]
        self.weight = weight_of(self.problem, LEAST_SENSITIVITY)
        self.cost = math.prod(self.problem.shape) / math.prod(kept.shape)

    def judged(self, p: Tensor) -> tuple[list[Tensor], float]:
        """Return the expected images of p, and the mean log-likelihood per held-out photon.

        Images are never below the background's thousandth; the likelihood is up to a constant.
        """
        models, total = [], 0.0
        for o, held in zip(self.problem.observations, self.held, strict=True):
            model, terms = self._judged_view(o, held, p)
            models.append(model)
            total += terms
        return models, total / self.photons

    def _judged_view(self, o: Observation, held: Tensor, p: Tensor) -> tuple[Tensor, float]:
        model = empty(tuple(o.image.shape), o.image)
        terms: dict[int, float] = {}

        def finish(planes: slice, slab: Tensor) -> None:
            o.keep_recorded(slab, planes).clamp_min_(-0.999 * o.background).add_(o.background)
            model[planes] = slab
            gain = slab.log().mul_(held[planes]).sub_(slab, alpha=self.held_ratio)
            terms[planes.start] = float(gain.sum(dtype=torch.float64))

        o.operator.forward_slabs(p, finish)
        return model, sum(terms[start] for start in sorted(terms))

    def corrected(self, p: Tensor, models: list[Tensor], projector: int) -> Tensor:
        """Return p times one plus the mismatch sent back."""
        ratios = [
            o.keep_recorded(torch.div(o.image, model, out=empty(tuple(model.shape), model)).sub_(1))
            for o, model in zip(self.problem.observations, models, strict=True)
        ]
        x = empty(tuple(p.shape), p).copy_(p)
        correct(x, self.backwards[projector], ratios, self.weight, least=LEAST_FACTOR)
        return x

    def correct_in_place(self, p: Tensor, models: list[Tensor], projector: int) -> Tensor:
        """Return p, changed to what `corrected` returns; the models are used up."""
        for o, model in zip(self.problem.observations, models, strict=True):
            o.keep_recorded(torch.div(o.image, model, out=model).sub_(1))
        correct(p, self.backwards[projector], models, self.weight, least=LEAST_FACTOR)
        return p


class _Climb:
    """The guarded iteration on one grid, started from the coarser one's result.

    `x` is the last corrected estimate, and `p` its continuation: the estimate that was judged.
    """

    def __init__(
        self,
        level: JudgedLevel,
        momentum: float,
        tolerance: float,
        path: list[Step],
        coarser: "_Climb | None",
    ) -> None:
        self.level, self.momentum, self.path = level, momentum, path
        self.tolerance = tolerance
        self.accepted_scores: list[float] = []
        if coarser is None:
            self.x = before = flat_start(level.problem, level.weight)
            self.cost = 0.0
        else:
            self.x, before = coarser.refined_onto(level)
            self.cost = coarser.cost
        self.p = continued(self.x, before, self.momentum)
        self.models, self.score = self._judge(self.p, "start", self.momentum)

    def run(self, most: int) -> None:
        """Step while the held-out photons gain, `most` times at most; each projector in turn."""
        done = 0
        for projector in range(len(self.level.projectors)):
            while done < most and self._step(projector):
                done += 1
                if self._flattened():
                    return

    def _flattened(self) -> bool:
        """Say whether the last two steps gained next to nothing of the climb on this grid."""
        scores = self.accepted_scores
        return len(scores) > 3 and scores[-1] - scores[-3] < self.tolerance * (
            scores[-1] - scores[0]
        )

    def refined_onto(self, level: JudgedLevel) -> tuple[Tensor, Tensor]:
        """Return the next estimate and the one before it on a finer grid, which will judge them."""
        x = self.level.corrected(self.p, self.models, 0)
        self.cost += 0.5 * self.level.cost
        if is_joint(level.problem):
            seen = constant_where_seen(level.problem, level.weight, 1.0)
            p, before = (
                joint_refined(v, self.level.problem, level.problem).mul_(seen) for v in (x, self.x)
            )
            return p, before
        coarse, fine = (lv.problem.observations[0].operator for lv in (self.level, level))
        assert isinstance(coarse, Extended)
        assert isinstance(fine, Extended)
        ratio_z, ratio_y, ratio_x = (
            a // b for a, b in zip(self.level.factors, level.factors, strict=True)
        )
        ratio = (ratio_z, ratio_y, ratio_x)
        return refined(x, coarse, fine, ratio), refined(self.x, coarse, fine, ratio)

    def _step(self, projector: int) -> bool:
        """Take one step, with momentum if that helps, without if not; say whether either did."""
        x = self.level.corrected(self.p, self.models, projector)
        self.cost += 0.5 * self.level.cost
        name = type(self.level.projectors[projector]).__name__
        for beta in (self.momentum, 0.0):
            p = continued(x, self.x, beta)
            models, score = self._judge(p, name, beta)
            if score > self.score:
                self.momentum = min(self.momentum * (BOLDER if beta else 1), BOLDEST)
                self.x = x
                self.p, self.models, self.score = p, models, score
                return True
            self.momentum *= CALMER
            if p is x:
                break
        return False

    def _judge(self, p: Tensor, made_by: str, momentum: float) -> tuple[list[Tensor], float]:
        models, score = self.level.judged(p)
        self.cost += 0.5 * self.level.cost
        accepted = made_by == "start" or score > self.score
        step = Step(self.level.factors, made_by, momentum, score, accepted, self.cost)
        self.path.append(step)
        if accepted:
            self.accepted_scores.append(score)
        return models, score


def continued(x: Tensor, before: Tensor, beta: float) -> Tensor:
    """Return x (x / before)^beta with the light of x: geometric momentum."""
    if beta < LEAST_MOMENTUM or x is before:
        return x
    p = torch.add(before, 1e-6 * float(x.mean(dtype=torch.float64)), out=empty(tuple(x.shape), x))
    torch.div(x, p, out=p)
    steepest = steepest_ratio(beta)
    p.clamp_(steepest**-2, steepest).pow_(beta).mul_(x)
    return p.mul_(float(x.sum(dtype=torch.float64) / p.sum(dtype=torch.float64)))


def steepest_ratio(beta: float) -> float:
    """Return the ratio of two estimates that momentum beta makes a factor of `LARGEST_STEP` of, as far as
    single precision holds its square."""
    return float(LARGEST_STEP ** min(1 / beta, 14.0))


def coarse_iterations(factors: Shape) -> int:
    """Return how many iterations a coarse grid gets: `COARSE_BUDGET` worth, one at least."""
    return min(max(round(COARSE_BUDGET * math.prod(factors)), 1), MOST_COARSE)


def alpha_for(problem: Problem) -> float:
    """Return alpha for the photon numbers: 0.6 in bright recordings, more in dim ones.

    The signal s is the mean signal photons per voxel, weighted by brightness: sum(s^2) / sum(s), with
    the Poisson part of the sum of squares taken off. 0.6 (1 + 10 / s) is within the flat optimum from
    8 to 8000 photons at the peak, on structures and PSFs other than the benchmark's.
    """
    squares = total = 0.0
    for o in problem.observations:
        signal = o.keep_recorded(o.image - o.background)
        total += float(signal.sum(dtype=torch.float64))
        squares += float(signal.square_().sum(dtype=torch.float64))
        squares -= o.photons
    brightness = squares / total if total > 0 else 0.0
    return 0.6 * (1 + 10 / max(brightness, 1.0))


def thinned(problem: Problem, held_out: float, seed: int) -> tuple[Problem, Problem]:
    """Return two problems with independent noise: of the photons kept, and of those held out.

    Image photons and backgrounds are split in the ratio (1 - held_out) : held_out, binomially.
    """
    kept, held = [], []
    for v, o in enumerate(problem.observations):
        generator = torch.Generator(o.image.device).manual_seed(seed + v)
        photons = Noise(gain=1.0, offset=0.0, read_noise=0.0)
        image, rest = (empty(tuple(o.image.shape), o.image) for _ in range(2))
        for z in range(0, len(image), THINNED_PLANES):  # the draws need many times their planes
            planes = slice(z, z + THINNED_PLANES)
            image[planes], rest[planes] = thin(o.image[planes], photons, 1 - held_out, generator)
        background = max(o.background, 1e-3 * o.mean)
        if o.recorded is not None:
            nowhere = o.recorded == 0
            image.masked_fill_(nowhere, (1 - held_out) * background)
            rest.masked_fill_(nowhere, held_out * background)
        unlit = (1 - held_out) * background
        kept.append(Observation(image.clamp_min_(0), o.operator, unlit, o.recorded))
        held.append(Observation(rest, o.operator, held_out * background, o.recorded))
    return Problem(tuple(kept), problem.window), Problem(tuple(held), problem.window)


def _binnings(problem: Problem) -> list[Shape]:
    if is_joint(problem):
        return joint_binnings(problem)
    operators = [o.operator for o in problem.observations]
    if len(operators) > 1 or not isinstance(operators[0], Extended):
        return [(1, 1, 1)]
    widths = widths_of(operators[0].typical)
    if not all(math.isfinite(w) for w in widths):
        widths = band_edge_px(operators[0].typical)
    return bin_factors(widths, operators[0].range_shape)


def _distinct(*projectors: BackProjector) -> tuple[BackProjector, ...]:
    return tuple(dict.fromkeys(projectors))


def _stats(
    path: list[Step], projectors: tuple[BackProjector, ...], held_out: float, most: int
) -> dict[str, Any]:
    fine = [step for step in path if step.binning == (1, 1, 1)]
    if sum(step.accepted for step in fine[1:]) >= most:
        stopped = "max_iterations"
    else:
        stopped = "next to nothing gained" if fine[-1].accepted else "held-out photons lost"
    return {
        "iterations": sum(step.accepted for step in fine[1:]),
        "cost_iterations": path[-1].cost,
        "stopped_by": stopped,
        "held_out": held_out,
        "back_projectors": [repr(projector) for projector in projectors],
        "path": [asdict(step) for step in path],
    }
