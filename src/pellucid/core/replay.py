"""The default restorer for a part of a volume: decided once on a sample, then repeated everywhere.

`Accelerated` decides by the photons it is given: its alpha, its start, how far every step is
continued and when to stop. Tiles that decided for themselves would differ where they meet. So it runs
once, on samples of the volume, and what it decided (`Schedule`) is replayed without further decisions
on every tile. Nothing in a replay depends on the tile as a whole: the start and all floors come with
the schedule, and a continued estimate keeps the light of every voxel's neighbourhood rather than that of
the tile (the last step is taken without continuation). All photons take part, as none need judge.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pellucid.core.accelerated import (
    LARGEST_STEP,
    LEAST_MOMENTUM,
    Accelerated,
    JudgedLevel,
    alpha_for,
)
from pellucid.core.back_projectors import BackProjector, Matched
from pellucid.core.coarsening import refined
from pellucid.core.fourier import Shape, empty
from pellucid.core.operators import Blur, Extended
from pellucid.core.passband import widths_of
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.richardson_lucy import peak_bytes
from pellucid.errors import InputError, ParameterError

BOLDEST_UNGUARDED = 1.0
"""Momentum of a replayed step at most: nobody takes a step back that was too bold, and without
scaling to the light of the whole the accepted momenta of up to 2 ran away (simulated points)."""


@dataclass(frozen=True)
class Stretch:
    """The steps on one grid.

    Parameters
    ----------
    binning : (z, y, x) of the grid
    start_momentum : continuation of what came from the coarser grid
    steps : (index of the back projector, momentum) of each
    """

    binning: Shape
    start_momentum: float
    steps: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Schedule:
    """Everything that a restoration decides by looking at its photons.

    Parameters
    ----------
    projectors : on the finest grid, with their alpha; coarse grids use the matched one
    stretches : from coarse to fine; the last is on the finest grid
    start : photons per object voxel of the flat start
    least_background : photons per voxel below which no background is taken
    neighbourhood : (z, y, x) voxels on either side within which a continuation keeps the light
    """

    projectors: tuple[BackProjector, ...]
    stretches: tuple[Stretch, ...]
    start: float
    least_background: float
    neighbourhood: Shape

    @property
    def coarsest(self) -> Shape:
        """The binning to which tiles must be aligned, so that all bin the same voxels."""
        return self.stretches[0].binning


def start_of(problems: Iterable[Problem]) -> float:
    """Return the flat start of samples together: their mean photons above background.

    For samples in memory; a volume on disk has its start measured in passing, with its noise.
    """
    light, mean, voxels = 0.0, 0.0, 0
    for problem in problems:
        o = problem.observations[0]
        light += float((o.image - o.background).sum(dtype=torch.float64))
        mean += float(o.image.sum(dtype=torch.float64))
        voxels += o.image.numel()
    if mean <= 0:
        raise InputError("Schedule: the samples hold no light. Choose others.")
    return max(light, 1e-3 * mean) / voxels


def decided(restorer: Accelerated, sample: Problem, start: float) -> Schedule:
    """Return what the guarded restorer decides on one sample.

    Parameters
    ----------
    start : of the whole volume, in photons per voxel above background
    """
    if len(sample.observations) != 1:
        raise ParameterError("decided: expected one view, got several. Fuse them in one piece.")
    path = restorer(sample).stats["path"]
    projector = restorer.back_projector.tuned(alpha_for(sample))
    projectors = tuple(dict.fromkeys((projector, Matched())))
    index = {type(p).__name__: i for i, p in enumerate(projectors)}
    stretches: list[Stretch] = []
    lost = 0.0
    for step in path:
        binning = tuple(step["binning"])
        if step["made_by"] == "start":
            stretches.append(Stretch(binning, min(step["momentum"], BOLDEST_UNGUARDED), ()))
        elif step["accepted"]:
            last = stretches[-1]
            momentum = min(step["momentum"], BOLDEST_UNGUARDED)
            if binning == (1, 1, 1):
                lost += step["momentum"] - momentum
            which = index[step["made_by"]] if binning == (1, 1, 1) else 0
            stretches[-1] = replace(last, steps=(*last.steps, (which, momentum)))
    return Schedule(
        projectors, _ending_plainly(stretches, lost), start,
        1e-3 * float(sample.observations[0].image.mean(dtype=torch.float64)), _neighbourhood(sample),
    )  # fmt: skip


def _neighbourhood(sample: Problem) -> Shape:
    """One width of the PSF: on simulated samples as good as the whole, and two are worse."""
    operator = sample.observations[0].operator
    assert isinstance(operator, Extended)
    z, y, x = (
        0 if n == 1 else math.ceil(w) if math.isfinite(w) else n // 2
        for w, n in zip(widths_of(operator.typical), operator.psf.shape, strict=True)
    )
    return z, y, x


def _ending_plainly(stretches: list[Stretch], lost: float) -> tuple[Stretch, ...]:
    """Take the last step without continuation; where there is none, one with the first projector.

    Steps are added for the momentum that was `lost` to the bound: one with momentum beta goes about as
    far as 1 + beta without.
    """
    last = stretches[-1]
    steps = last.steps or ((0, 0.0),)
    which, momentum = steps[-1]
    more = round((lost + momentum) / (1 + BOLDEST_UNGUARDED))
    ending = replace(last, steps=(*steps[:-1], *((which, BOLDEST_UNGUARDED),) * more, (which, 0.0)))
    return (*stretches[:-1], ending)


@dataclass(frozen=True)
class Replay:
    """The steps of a schedule, on one view, with a note of whether they still fit the data.

    `stats["likelihood"]` is the mean log-likelihood per photon after each step on the finest grid;
    `stats["ran_away"]` says that the last is below the first: this tile is unlike the samples.
    """

    schedule: Schedule

    def peak_bytes(self, problem: Problem) -> int:
        """Return the largest memory held at once, in bytes, images included."""
        return peak_bytes(problem, volumes=10, projector=self.schedule.projectors[0])

    def __call__(self, problem: Problem) -> Restored:
        schedule = self.schedule
        (o,) = problem.observations
        background = max(o.background, schedule.least_background)
        problem = Problem((Observation(o.image, o.operator, background),), problem.window)
        level = self._level(problem, schedule.stretches[0])
        x = before = (level.weight > 0).to(o.image.dtype).mul_(self._start(level.factors))
        for stretch, following in pairwise((*schedule.stretches, None)):
            assert stretch is not None
            x, before, scores = self._run(level, stretch, x, before, to_continue=following is not None)
            if following is not None:
                finer = self._level(problem, following)
                x, before = (_onto(v, level, finer) for v in (x, before))
                level = finer
        stats: dict[str, Any] = {
            "iterations": len(schedule.stretches[-1].steps),
            "likelihood": scores,
            "ran_away": not math.isfinite(scores[-1]) or scores[-1] < scores[0],
        }
        return Restored(problem.windowed(x).contiguous(), stats)

    def _run(
        self, level: JudgedLevel, stretch: Stretch, x: Tensor, before: Tensor, *, to_continue: bool
    ) -> tuple[Tensor, Tensor, list[float]]:
        """Return the estimate, the one before it, and the likelihoods on the way."""
        floor = 1e-6 * self._start(level.factors)
        near = self._near(level.factors)
        p = continued_locally(x, before, stretch.start_momentum, floor, near)
        models, score = level.judged(p)
        scores = [score]
        for projector, momentum in stretch.steps:
            before, x = x, level.corrected(p, models, projector)
            p = continued_locally(x, before, momentum, floor, near)
            models, score = level.judged(p)
            scores.append(score)
        if to_continue:
            return level.corrected(p, models, 0), x, scores
        return p, before, scores

    def _level(self, problem: Problem, stretch: Stretch) -> JudgedLevel:
        finest = stretch.binning == (1, 1, 1)
        projectors = self.schedule.projectors if finest else (Matched(),)
        # all photons judge as well, with the weight that they have: half of twice as many
        return JudgedLevel(problem, problem, 0.5, stretch.binning, projectors)

    def _near(self, binning: Shape) -> Shape:
        z, y, x = (-(-n // b) for n, b in zip(self.schedule.neighbourhood, binning, strict=True))
        return z, y, x

    def _start(self, binning: Shape) -> float:
        return self.schedule.start * math.prod(binning)


def continued_locally(x: Tensor, before: Tensor, beta: float, floor: float, near: Shape) -> Tensor:
    """Return x (x / before)^beta with the light of x in every neighbourhood of `near` voxels.

    Unlike `continued`, no voxel depends on any farther one.
    """
    if beta < LEAST_MOMENTUM or x is before:
        return x
    p = torch.add(before, floor, out=empty(tuple(x.shape), x))
    torch.div(x, p, out=p)
    steepest = LARGEST_STEP ** (1 / beta)
    p.clamp_(steepest**-2, steepest).pow_(beta).mul_(x)
    light = box_mean(x, near).add_(floor)
    return p.mul_(light.div_(box_mean(p, near).add_(floor)))


def box_mean(x: Tensor, radius: Shape) -> Tensor:
    """Return the mean over 2 radius + 1 voxels along each axis, of zeros beyond the border."""
    x = x[None, None]
    for axis, r in enumerate(radius):
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = 2 * r + 1, r
        x = torch.nn.functional.avg_pool3d(x, size, stride=1, padding=padding)
    return x[0, 0] if any(radius) else x[0, 0].clone()


def _onto(x: Tensor, level: JudgedLevel, finer: JudgedLevel) -> Tensor:
    coarse, fine = (lv.problem.observations[0].operator for lv in (level, finer))
    assert isinstance(coarse, Blur)
    assert isinstance(fine, Blur)
    z, y, x_ = (a // b for a, b in zip(level.factors, finer.factors, strict=True))
    return refined(x, coarse, fine, (z, y, x_))
