"""How many plain iterations a problem bears, as photons that were set aside say it; one part for all."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.core.accelerated import JudgedLevel, thinned
from pellucid.core.back_projectors import Matched
from pellucid.core.fused_blocks import KnownViews, seen_of
from pellucid.core.fusion import joint_problem
from pellucid.core.geometry import Grid
from pellucid.core.problem import Problem
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.sampling import to_numpy

MOST = 60
"""Iterations that are tried."""

TOLERANCE = 0.001
"""Two iterations that gain less than this share of the climb are the last. Plain ones are small steps: ten
times as much, as in `Accelerated`, ends bright recordings too soon (`benchmarks/block_iterations.py`)."""

HELD_OUT = 0.5
"""Share of the photons that judge. They are not lost: all take part in what is then made. With 5 % the
counts of parts differed by a quarter in dim recordings, and were too high there."""


def borne_iterations(
    restorer: RichardsonLucy, problem: Problem, *, seed: int = 0
) -> tuple[int, list[float]]:
    """Return the number of iterations that photons set aside bear out, and what they said of each.

    As in `Accelerated`, some photons take no part in the iteration; while it makes them more likely, it
    finds the object rather than the noise.

    Parameters
    ----------
    restorer : of the matched projector; its number of iterations does not count
    seed : of the thinning
    """
    kept, held = thinned(problem, HELD_OUT, seed)
    judge = JudgedLevel(kept, held, HELD_OUT, (1, 1, 1), (Matched(),))
    start = restorer.start if isinstance(restorer.start, str) else (1 - HELD_OUT) * restorer.start
    scores: list[float] = []
    for x in replace(restorer, iterations=MOST, start=start).estimates(kept, []):
        scores.append(judge.judged(x)[1])
        if len(scores) > 3 and scores[-1] - scores[-3] < TOLERANCE * (scores[-1] - scores[0]):
            break
    return 1 + scores.index(max(scores)), scores


def iterations_borne(
    known: KnownViews,
    part: Grid,
    read: Sequence[NDArray[Any] | None],
    restorer: RichardsonLucy,
    *,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> int:
    """Return how many iterations the photons of a part of the world bear; 1 where no view sees it.

    Parameters
    ----------
    read : of each view, by `read_part`
    """
    seen = list(seen_of(known, part, read, device).values())
    return borne_iterations(restorer, joint_problem(seen, part), seed=seed)[0] if seen else 1


def typical_part(known: KnownViews, parts: Sequence[Grid]) -> int:
    """Return the place of the part that stands for all: half of the light lies in darker ones.

    Judged by the light of each part in the first of the views that see it; reads all of them once.
    """
    light = []
    for part in parts:
        counts = ((v, v.stored.reached_from(part)) for v in known.views)
        view, box = next(((v, box) for v, box in counts if box is not None), (known.views[0], None))
        mean = 0.0 if box is None else float(to_numpy(view.stored.volume[box]).mean()) - view.level
        light.append(max(mean, 0.0) * math.prod(part.shape))
    order = np.argsort(light, kind="stable")
    total = np.cumsum(np.asarray(light)[order])
    return int(order[np.searchsorted(total, total[-1] / 2)])
