"""What speaks for or against an answer where no truth is known, region by region.

Three errors, each measured as the error against a truth would be (`core.wrongness`):

- of a *rehearsal*: the classical solution, which no training has misled, is taken for the object, recorded
  anew with noise, and restored like the recording (parametric bootstrap, Efron 1979). What the answer to
  that should have been is known, and it holds what this specimen holds, which the network may never
  have seen;
- of the answer against the classical solution, twiced (Tukey 1977: what it loses when it is
  restored once more is added to it), so that it is less smooth;
- of what a linear filter makes of the answer recorded without noise: what the blur takes away is the
  prior's word alone.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.joint_coarsening import is_joint
from pellucid.core.operators import Windowed
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.psf import Psf, Triple
from pellucid.core.wrongness import errors, moments, supported_resolution_px
from pellucid.networks.features import classical
from pellucid.networks.polish import Estimator
from pellucid.networks.training import window_of
from pellucid.networks.view_sampling import linear_estimate, object_psf

FEATURES = (
    "error of a rehearsal", "disagreement with the classical solution", "what the recording does not say",
)  # fmt: skip

REHEARSALS = 3
"""Rehearsals whose squared errors are averaged: a single one adds 10 % of noise of its own."""

COMPARED = REHEARSALS + 2
"""Pairs of images that are compared: every rehearsal, and the answer with two others."""

FLOOR = 0.01
"""Error below which no difference counts."""

Evidence = NDArray[np.float64]
"""Logarithms (z, y, x, len(FEATURES)) of the errors of every region."""


def resolution_px(problem: Problem) -> Triple:
    """Return the resolution that an answer is judged at: half the width of the first view's PSF.

    Of views at angles to the object, on every axis that of the one which is sharpest along it.
    """
    if is_joint(problem):
        each = [supported_resolution_px(object_psf(o.operator)) for o in problem.observations]
        z, y, x = (min(widths) for widths in zip(*each, strict=True))
        return z, y, x
    operator = problem.observations[0].operator
    psf = operator.psf if isinstance(operator, Windowed) and hasattr(operator, "psf") else None
    if psf is None:
        return (1.0, 1.0, 1.0)
    return supported_resolution_px(Psf.normalised(psf.detach().cpu().double().clamp_min(0).numpy()))


def gather(
    problem: Problem, network: Estimator, x: Tensor, plain: Tensor | None = None, seed: int = 0
) -> Evidence:
    """Return the evidence about the answer `x` on the object's grid; regions of the window.

    Costs `REHEARSALS` passes of the network and two classical solutions.

    Parameters
    ----------
    plain : the classical solution on the object's grid, where it is known
    """
    plain = classical(problem) if plain is None else plain
    return evidence_of(compared(problem, network, x, plain, seed=seed))


def compared(
    problem: Problem, network: Estimator, x: Tensor, plain: Tensor, *, part: Window | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:  # fmt: skip
    """Return (`COMPARED`, 6, z, y, x) what `evidence_of` has to know of the regions in a part of the image.

    Parameters
    ----------
    part : whole regions, with as much of the image around them as a network sees; None: all
    """
    twiced = (2 * plain - classical(without_noise(problem, plain))).clamp_min(0)
    measured = [
        _moments(problem, network.estimate(recorded_again(problem, plain, seed + i)), plain, part)
        for i in range(REHEARSALS)
    ]
    measured.append(_moments(problem, x, twiced, part))
    images = [o.operator.forward(x) for o in problem.observations]
    return np.stack([*measured, _moments(problem, linear_estimate(problem, images), x, part)])


def evidence_of(measured: NDArray[np.float64]) -> Evidence:
    """Return the evidence from what was `compared` of all regions: brightness is a matter of the whole."""
    *rehearsed, disagreement, unsaid = map(errors, measured)
    columns = [np.sqrt(np.mean(np.square(rehearsed), axis=0)), disagreement, unsaid]
    return np.asarray(np.log(np.stack(columns, axis=-1) + FLOOR))


def error_of(problem: Problem, x: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Return the error of every region of `x` relative to the light of `truth` there, at the resolution
    that the recording supports; both on the object's grid. 1 where the truth is empty."""
    return errors(_moments(problem, x, truth))


def _moments(
    problem: Problem, x: Tensor, truth: Tensor, part: Window | None = None
) -> NDArray[np.float64]:
    window = window_of(problem)
    return moments(x[window], truth[window], resolution_px(problem), part)


def without_noise(problem: Problem, x: Tensor) -> Problem:
    """Return the problem that the object `x` would pose if light came without noise."""
    means = [o.operator.forward(x).clamp_min(0) + o.background for o in problem.observations]
    observations = (
        Observation(mean, o.operator, o.background)
        for mean, o in zip(means, problem.observations, strict=True)
    )
    return Problem(tuple(observations), problem.window)


def recorded_again(problem: Problem, x: Tensor, seed: int) -> Problem:
    """Return the problem that the object `x` would pose: its images with photon noise drawn anew."""
    rng = np.random.default_rng([seed, 6])
    observations = []
    for o in without_noise(problem, x).observations:
        drawn = rng.poisson(o.image.detach().cpu().numpy()).astype(np.float32)
        again = torch.from_numpy(drawn).to(o.image.device)
        observations.append(Observation(again, o.operator, o.background))
    return Problem(tuple(observations), problem.window)
