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
from pellucid.core.boundary import constant_where_seen
from pellucid.core.coarsening import refined
from pellucid.core.fourier import Shape, empty
from pellucid.core.operators import Extended
from pellucid.core.passband import widths_of
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.richardson_lucy import peak_bytes
from pellucid.errors import InputError, ParameterError

BOX_PLANES = 16
"""Planes whose neighbourhoods are averaged at a time."""

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
    light, mean, voxels = 0.0, 0.0, 0.0
    for problem in problems:
        o = problem.observations[0]
        light += o.light * o.voxels
        mean += o.photons
        voxels += o.voxels
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
        1e-3 * sample.observations[0].mean, _neighbourhood(sample),
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
        return replayed_peak_bytes(problem, self.schedule.projectors[0])

    def __call__(self, problem: Problem) -> Restored:
        schedule = self.schedule
        (o,) = problem.observations
        background = max(o.background, schedule.least_background)
        problem = Problem((Observation(o.image, o.operator, background, o.recorded),), problem.window)
        level = self._level(problem, schedule.stretches[0])
        x = constant_where_seen(level.problem, level.weight, self._start(level.factors))
        estimates = [x]
        for stretch, following in pairwise((*schedule.stretches, None)):
            assert stretch is not None
            del x  # the list holds the only references, so that a stretch can let go of them
            x, before, scores = self._run(level, stretch, estimates, to_continue=following is not None)
            if following is not None:
                finer = self._level(problem, following)
                estimates = [_onto(v, level, finer) for v in (x, before)]
                level = finer
            del before
        stats: dict[str, Any] = {
            "iterations": len(schedule.stretches[-1].steps),
            "likelihood": scores,
            "ran_away": not math.isfinite(scores[-1]) or scores[-1] < scores[0],
        }
        return Restored(problem.windowed(x).contiguous(), stats)

    def _run(
        self,
        level: JudgedLevel,
        stretch: Stretch,
        estimates: list[Tensor],
        *,
        to_continue: bool,
    ) -> tuple[Tensor, Tensor, list[float]]:
        """Return the estimate, the one before it, and the likelihoods on the way.

        Two volumes are held at once: `continued_locally` turns the older into the continuation of the
        newer, which a correction then changes in place.

        Parameters
        ----------
        estimates : the estimate, and the one before it if there is one; emptied
        """
        floor = 1e-6 * self._start(level.factors)
        near = self._near(level.factors)
        x, before = estimates[0], estimates[-1]
        estimates.clear()
        p = continued_locally(x, before, stretch.start_momentum, floor, near)
        del before
        models, score = level.judged(p)
        scores = [score]
        for projector, momentum in stretch.steps:
            if p is x:
                p = copied(x)
            before, x = x, level.correct_in_place(p, models, projector)
            del p, models
            p = continued_locally(x, before, momentum, floor, near)
            del before
            models, score = level.judged(p)
            scores.append(score)
        if to_continue:
            if p is x:
                p = copied(x)
            return level.correct_in_place(p, models, 0), x, scores
        return p, x, scores

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


def replayed_peak_bytes(problem: Problem, projector: BackProjector) -> int:
    """Return the memory that a replay holds at once: see `peak_bytes`."""
    return peak_bytes(problem, volumes=2, projector=projector)


def copied(x: Tensor) -> Tensor:
    """Return a copy, in huge pages."""
    return empty(tuple(x.shape), x).copy_(x)


def continued_locally(
    x: Tensor, before: Tensor, beta: float, floor: float, near: Shape
) -> Tensor:
    """Return x (x / before)^beta with the light of x in every neighbourhood of `near` voxels.

    Unlike `continued`, no voxel depends on any farther one. `before` becomes the result.
    """
    if beta < LEAST_MOMENTUM or before is x:
        return x
    p = before.add_(floor)
    torch.div(x, p, out=p)
    steepest = LARGEST_STEP ** (1 / beta)
    p.clamp_(steepest**-2, steepest).pow_(beta).mul_(x)
    light = empty(tuple(x.shape), x)
    for start in range(0, len(x), BOX_PLANES):
        planes = slice(start, start + BOX_PLANES)
        around = slice(max(start - near[0], 0), start + BOX_PLANES + near[0])
        kept = slice(start - around.start, start - around.start + BOX_PLANES)
        means = (box_mean(v[around], near)[kept].add_(floor) for v in (x, p))
        light[planes] = next(means).div_(next(means))
    return p.mul_(light)


def box_mean(x: Tensor, radius: Shape) -> Tensor:
    """Return the mean over 2 radius + 1 voxels along each axis, of zeros beyond the border."""
    x = x[None, None]
    for axis, r in enumerate(radius):
        if r == 0:
            continue
        padding, size = [0] * 6, [1, 1, 1]
        padding[4 - 2 * axis], padding[5 - 2 * axis], size[axis] = r, r, 2 * r + 1
        # padded here, as pooling refuses what is smaller than its window
        x = torch.nn.functional.avg_pool3d(torch.nn.functional.pad(x, padding), size, stride=1)
    return x[0, 0] if any(radius) else x[0, 0].clone()


def _onto(x: Tensor, level: JudgedLevel, finer: JudgedLevel) -> Tensor:
    coarse, fine = (lv.problem.observations[0].operator for lv in (level, finer))
    assert isinstance(coarse, Extended)
    assert isinstance(fine, Extended)
    z, y, x_ = (a // b for a, b in zip(level.factors, finer.factors, strict=True))
    return refined(x, coarse, fine, (z, y, x_))
