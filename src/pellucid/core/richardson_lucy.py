"""Richardson-Lucy as published: matched or unmatched, any number of views, with or without momentum.

`pellucid.core.accelerated` is the restorer to use; this one is the textbook, for comparison and for
those who want exactly n iterations of a known scheme.
"""

import math
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid.core.back_projectors import BackProjector, Matched, back_projection
from pellucid.core.boundary import Weight, constant_where_seen, weight_of
from pellucid.core.fourier import SLAB, empty
from pellucid.core.operators import Blur, LinearOperator
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.sheet_scan import SheetScan
from pellucid.core.varying_blur import VaryingBlur
from pellucid.errors import ParameterError, RunawayWarning

LEAST_SENSITIVITY = 1e-6
"""Share of the largest sensitivity below which voxels are not corrected more strongly."""


@dataclass(frozen=True)
class RichardsonLucy:
    """Joint Richardson-Lucy: x <- x (1 + sum_v B_v(y_v / (A_v x + b_v) - 1) / sum_v A_v* 1).

    With B_v the adjoint of A_v this is x * sum_v A_v*(y_v / (A_v x + b_v)) / sum_v A_v* 1: Poisson
    maximum likelihood with the boundary weights of Bertero & Boccacci (2005), so that nothing is
    assumed about what lies outside the images. With an unmatched back projector (Guo et al. 2020) it
    is faster and no longer a likelihood ascent: it can run away, and `stats["ran_away"]` says when.

    Parameters
    ----------
    iterations : exactly this many
    back_projector : one for all views
    start : "flat" (the mean), "raw" (the image itself, one view only: the release's choice, noisy at
        low light) or "low-passed" (the matched-filtered image); or the photons per voxel of a flat
        one, which parts of a volume are to share
    momentum : "none", "heavy-ball" (as deconwolf) or "biggs-andrews" (1997, vector extrapolation);
        for the matched projector
    update : "additive" takes all views at once, "alternating" one after the other
    """

    iterations: int = 10
    back_projector: BackProjector = Matched()
    start: Literal["flat", "raw", "low-passed"] | float = "flat"
    momentum: Literal["none", "heavy-ball", "biggs-andrews"] = "none"
    update: Literal["additive", "alternating"] = "additive"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ParameterError(
                f"RichardsonLucy: iterations must be 1 or more, got {self.iterations}."
            )
        if self.momentum != "none" and self.back_projector != Matched():
            raise ParameterError(
                "RichardsonLucy: momentum is for the matched back projector; an unmatched one is fast "
                "already and becomes unstable. Drop momentum, or use Accelerated."
            )

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes, images included."""
        kept_for_momentum = {"none": 0, "heavy-ball": 1, "biggs-andrews": 5}[self.momentum]
        weights = len(problem.observations) - 1 if self.update == "alternating" else 0
        volumes = 1 + kept_for_momentum + weights
        return peak_bytes(problem, volumes=volumes, projector=self.back_projector)

    def __call__(self, problem: Problem) -> Restored:
        divergences: list[float] = []
        x = deque(self.estimates(problem, divergences), maxlen=1).pop()
        stats: dict[str, Any] = {
            "iterations": len(divergences),
            "i_divergence": divergences,
            "ran_away": ran_away(divergences),
        }
        if stats["ran_away"]:
            warnings.warn(
                f"{type(self.back_projector).__name__} ran away from the data after "
                f"{divergences.index(min(divergences)) + 1} iterations: use fewer, a larger alpha, "
                "or the guarded restorer (iterations=None).",
                RunawayWarning,
                stacklevel=2,
            )
        return Restored(problem.windowed(x).contiguous(), stats)

    def estimates(self, problem: Problem, divergences: list[float]) -> Iterator[Tensor]:
        """Yield the whole object after every iteration, to be looked at before the next one.

        Parameters
        ----------
        divergences : the mean I-divergence of the first view before each iteration is appended
        """
        views = range(len(problem.observations))
        backwards = [back_projection(o.operator, self.back_projector) for o in problem.observations]
        weight_of_all = weight_of(problem, LEAST_SENSITIVITY)
        x = _start(problem, self.start, weight_of_all)
        if self.update == "additive":
            groups, weights = [list(views)], [weight_of_all]
        else:
            alone = [Problem((o,), problem.window) for o in problem.observations]
            groups, weights = [[v] for v in views], [weight_of(p, LEAST_SENSITIVITY) for p in alone]
        del weight_of_all
        momentum: _NoMomentum | _HeavyBall = _MOMENTA[self.momentum]()
        for _ in range(self.iterations):
            p = momentum.continued(x)
            for group, weight in zip(groups, weights, strict=True):
                ratios: list[Tensor] = []  # lets go of the last ones before the next are made
                for v in group:
                    ratios.append(mismatch(problem.observations[v], p, divergences if v == 0 else []))
                if not math.isfinite(divergences[-1]):
                    break
                correct(p, [backwards[v] for v in group], ratios, weight)
            if not math.isfinite(divergences[-1]):
                yield x
                return
            momentum.learn(p)
            x = p
            yield x


def mismatch(o: Observation, x: Tensor, divergences: list[float]) -> Tensor:
    """Return y / (A x + b) - 1; append the mean I-divergence of y from A x + b to `divergences`.

    The divergence sum(y log(y / m) - y + m) / voxels is taken on at most about 16 slabs.
    """
    ratio = empty(tuple(o.image.shape), o.image)
    # relative to the data, never absolute; in float64, so that threads do not change it
    floor = 1e-6 * max(o.mean, 1e-30)
    every = max(1, o.image.shape[0] // (16 * SLAB))
    sums: list[tuple[float, float]] = []

    def finish(planes: slice, model: Tensor) -> None:
        o.keep_recorded(model, planes).clamp_min_(floor).add_(o.background)
        y = o.image[planes]
        torch.div(y, model, out=ratio[planes])
        if planes.start // SLAB % every == 0:
            terms = o.keep_recorded(torch.xlogy(y, ratio[planes]).sub_(y).add_(model), planes)
            voxels = terms.numel() if o.recorded is None else float(o.recorded[planes].sum())
            sums.append((float(terms.sum(dtype=torch.float64)), voxels))
        o.keep_recorded(ratio[planes].sub_(1), planes)

    o.operator.forward_slabs(x, finish)
    divergences.append(sum(total for total, _ in sums) / max(sum(count for _, count in sums), 1))
    return ratio


def correct(
    x: Tensor,
    backwards: Sequence[LinearOperator],
    ratios: list[Tensor],
    weight: Weight,
    *,
    least: float = 0.0,
) -> None:
    """Multiply x in place by 1 + weight * (the views' mismatches, sent back), at least by `least`."""
    others: Tensor | None = None
    for backward, ratio in zip(backwards[:-1], ratios[:-1], strict=True):
        back = backward.forward(ratio)
        others = back if others is None else others.add_(back)

    def finish(planes: slice, back: Tensor) -> None:
        if others is not None:
            back.add_(others[planes])
        x[planes].mul_(back.mul_(weight[planes]).add_(1).clamp_min_(least))

    backwards[-1].forward_slabs(ratios[-1], finish)


class _NoMomentum:
    """Every step starts from the last estimate. What `continued` returns is corrected in place."""

    def continued(self, x: Tensor) -> Tensor:
        return x

    def learn(self, corrected: Tensor) -> None:
        pass


class _HeavyBall:
    """x + (k - 1) / (k + 2) (x - x before), after Nesterov; what deconwolf calls SHB (Wang 2022)."""

    def __init__(self) -> None:
        self.k = 0
        self.before: Tensor | None = None

    def continued(self, x: Tensor) -> Tensor:
        before = x if self.before is None else self.before
        p = torch.lerp(before, x, 1 + self.weight()).clamp_min_(0)
        self.before = x
        self.k += 1
        return p

    def weight(self) -> float:
        return max(self.k - 1, 0) / (self.k + 2)

    def learn(self, corrected: Tensor) -> None:
        pass


class _BiggsAndrews(_HeavyBall):
    """x + a (x - x before), a = <g, g before> / <g before, g before> of the last two corrections g."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Tensor] = []
        self.p: Tensor | None = None

    def continued(self, x: Tensor) -> Tensor:
        p = super().continued(x)
        self.p = p.clone()
        return p

    def weight(self) -> float:
        if len(self.steps) < 2:
            return 0.0
        before, last = self.steps
        length = torch.sum(before * before, dtype=torch.float64).clamp_min(1e-30)
        ratio = float(torch.sum(last * before, dtype=torch.float64) / length)
        return min(max(ratio, 0.0), 1.0)

    def learn(self, corrected: Tensor) -> None:
        assert self.p is not None
        self.steps = [*self.steps[-1:], corrected - self.p]


_MOMENTA: dict[str, type[_NoMomentum] | type[_HeavyBall]] = {
    "none": _NoMomentum,
    "heavy-ball": _HeavyBall,
    "biggs-andrews": _BiggsAndrews,
}


def ran_away(divergences: list[float]) -> bool:
    """Say whether an iteration left the data: it fits worse than its start did.

    The divergence of an unmatched iteration is not monotone, so a small rise means nothing.
    """
    last = divergences[-1]
    return not math.isfinite(last) or last > max(divergences[0], 3 * min(divergences))


def flat_start(problem: Problem, weight: Weight) -> Tensor:
    """Return a constant object that explains the total light, dark where it is not visible."""
    views = problem.observations
    light = sum(o.light for o in views)
    level = max(light, 1e-3 * sum(o.mean for o in views))
    return constant_where_seen(problem, weight, level / len(views))


def peak_bytes(
    problem: Problem, *, volumes: int, projector: BackProjector, images: int = 2
) -> int:
    """Return bytes held at once by an iteration on `problem`.

    With one view through a constant blur: the objects, images and half spectra that are counted here,
    and nothing else (`benchmarks/restorer_memory.py`). Otherwise dense weights, samples and sums of spectra
    come on top, for which seven more objects are taken.

    Parameters
    ----------
    volumes, images : objects and images of one view alive at the peak, the recording among them
    """
    element = problem.observations[0].image.element_size()
    first = problem.observations[0].operator
    is_masked = any(o.recorded is not None for o in problem.observations)
    is_plain = len(problem.observations) == 1 and isinstance(first, Blur)
    volumes += is_masked and is_plain  # the dense weight
    is_matched = projector == Matched()
    if not is_plain:
        volumes += 2 if is_matched else 7
    total: float = volumes * math.prod(problem.shape) * element
    half = 0
    for o in problem.observations:
        operator: Any = getattr(o.operator, "outer", o.operator)
        half = math.prod(operator.grid[:2]) * (operator.grid[2] // 2 + 1)
        total += (images if is_plain else 3) * o.image.numel() * element
        total += o.image.numel() if o.recorded is not None else 0
        spectra = 1 if is_matched else 1.5 if is_plain and projector.filters_matched else 2
        total += spectra * half * 2 * element
        if isinstance(operator, (VaryingBlur, SheetScan)):
            total += operator.bytes_beyond_mean + half * 2 * element  # and the sum of spectra
    return int(1.03 * (total + half * 2 * element))  # and the spectrum in flight


def _start(problem: Problem, kind: str | float, weight: Weight) -> Tensor:
    if not isinstance(kind, str):
        return constant_where_seen(problem, weight, kind)
    flat = flat_start(problem, weight)
    if kind == "flat":
        return flat
    if kind == "raw" and len(problem.observations) > 1:
        raise ParameterError(
            "RichardsonLucy: start='raw' is for one view, whose voxels are the object's. "
            "Use 'flat' or 'low-passed' for several."
        )
    images = [o.keep_recorded((o.image - o.background).clamp_min_(0)) for o in problem.observations]
    if kind == "low-passed":
        back = _summed(
            o.operator.adjoint(i) for o, i in zip(problem.observations, images, strict=True)
        )
        return back.mul_(weight[:])
    raw = flat.clone()
    problem.windowed(raw)[...] = images[0]
    return raw.clamp_min_(1e-3 * float(flat.max()))


def _summed(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total.add(term)
    return total
