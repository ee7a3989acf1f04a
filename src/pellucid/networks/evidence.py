"""What speaks for or against an answer where no truth is known, region by region.

It comes from rehearsals (parametric bootstrap, Efron 1979): the classical solution, which no training has
misled, is taken for the object, recorded anew with noise, and restored like the recording. What the
answer should have been is known, and it holds what this specimen holds, which the network may never have
seen. Two errors, each measured as the error against a truth would be (`core.wrongness`), make the verdict:

- of the network in a rehearsal;
- of its answer against the classical solution, to which is added what that loses when it is restored once
  more (twicing, Tukey 1977), so that it is less smooth.

Both are blind to a PSF that is not the microscope's, as rehearsals are recorded by it. But an answer
that was blurred by a wider PSF than was told holds less structure finer than the resolution than the
rehearsal's, which lost it only once.

The cure compares the network with the classical solution in a second rehearsal, of a sharpened object:
the classical solution is smoother than what it is the solution of, and restores itself too well.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.joint_coarsening import is_joint
from pellucid.core.operators import Windowed
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.psf import Psf, Triple
from pellucid.core.replay import box_mean, continued_locally
from pellucid.core.wrongness import (
    by_region,
    errors,
    moments,
    seen_at,
    supported_resolution_px,
)
from pellucid.networks.features import classical, recorded_part
from pellucid.networks.polish import Estimator
from pellucid.networks.view_sampling import object_psf

FEATURES = ("error of a rehearsal", "disagreement with the classical solution")

TWIN_ITERATIONS = 3
"""Iterations on the finest grid of a rehearsed classical solution, where that of the recording takes some
nine: with four the cure is as good, with two not."""

SHARPENING = 0.5
"""Power of what stands out of its neighbourhood by which the rehearsed object is sharper than the classical
solution: without it the cure trusts a network that was never shown points too much."""

SUMS = 14
"""Of every region: moments of the rehearsal and of the answer, and two powers of fine structure."""

FLOOR = 0.01
"""Error below which no difference counts."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Squares:
    """Mean squared errors of every region (z, y, x): of the classical solution, of the network's answer,
    and the mean product of both errors; in any unit."""

    plain: Float64
    answer: Float64
    product: Float64

    def blended(self, share: Float64) -> Float64:
        """Return the mean squared error of every region, of `share` of the network's answer and for the
        rest the classical solution."""
        rest = 1 - share
        return np.asarray(
            share**2 * self.answer + rest**2 * self.plain + 2 * share * rest * self.product
        )


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


@dataclass(frozen=True)
class Rehearsal:
    """A sharpened classical solution, recorded anew, and what it is restored to classically.

    Parameters
    ----------
    problem : of the recording
    plain : its classical solution
    sharp : this sharpened, the object of the rehearsal; all three on the object's grid
    again : the problem that it poses
    twin : the classical solution of that
    """

    problem: Problem
    plain: Tensor
    sharp: Tensor
    again: Problem
    twin: Tensor

    def squares(self, network: Estimator, part: Window | None = None) -> Squares:
        """Return what network and classical solution err in the rehearsal; a pass of the network.

        Parameters
        ----------
        part : whole regions of the image, which holds what surrounds them; None: all
        """
        return squares_of(self.problem, network.estimate(self.again), self.twin, self.sharp, part)

    def logs(self, network: Estimator, x: Tensor, seed: int = 0) -> Float64:
        """Return what speaks against the answer `x` on the object's grid; a pass of the network.

        Logarithms (z, y, x, len(FEATURES) + 1) of the errors of every region of the first view, and last
        of the power of what is finer than the resolution in the answer, relative to the rehearsal's; of
        all regions together.

        Parameters
        ----------
        network : what rehearses: the bare one, as polish moves it by less than a rehearsal tells
        """
        return logs_of(self.sums(network, x, seed))

    def sums(
        self, network: Estimator, x: Tensor, seed: int = 0, part: Window | None = None
    ) -> Float64:
        """Return (`SUMS`, z, y, x) what `logs_of` has to know of the regions of a part of the image."""
        problem, plain = self.problem, self.plain
        rehearsed = network.estimate(recorded_again(problem, plain, seed))
        missed = moments_of(problem, rehearsed, plain, part)
        fine = [fine_power(problem, values, part) * missed[0] for values in (x, rehearsed)]
        del rehearsed
        apart = moments_of(problem, x, (plain + self.sharp - self.twin).clamp_min_(0), part)
        return np.concatenate([missed, apart, np.stack(fine)])


def logs_of(sums: Float64) -> Float64:
    """Return `Rehearsal.logs` of the sums over all regions: brightness is a matter of the whole."""
    logs = np.log(np.stack([errors(sums[:6]), errors(sums[6:12])], axis=-1) + FLOOR)
    fine, usual = sums[12:].sum(axis=(1, 2, 3)) + 1e-30 * sums[0].sum()
    return np.concatenate([logs, np.full((*logs.shape[:3], 1), np.log(fine / usual))], axis=-1)


def rehearsal(problem: Problem, plain: Tensor, seed: int = 1) -> Rehearsal:
    """Return the rehearsal of a recording with its classical solution; a short classical solution."""
    sharp, part = plain.clone(), recorded_part(problem)
    sharp[part] = sharpened(plain[part], resolution_px(problem))
    again = recorded_again(problem, sharp, seed)
    return Rehearsal(problem, plain, sharp, again, classical(again, TWIN_ITERATIONS))


def fine_power(problem: Problem, x: Tensor, part: Window | None = None) -> Float64:
    """Return the mean square, region by region, of what is finer than the resolution in an object."""
    values, coarse = seen_at(problem.windowed(x), resolution_px(problem), part)
    return by_region((values - coarse) ** 2)


def sharpened(x: Tensor, resolution_px: Triple) -> Tensor:
    """Return `x` times a power of what it is relative to its neighbourhood, which keeps its light."""
    z, y, x_ = (math.ceil(r) for r in resolution_px)
    floor = 1e-3 * float(x.mean(dtype=torch.float64)) + 1e-12
    return continued_locally(x, box_mean(x, (z, y, x_)), SHARPENING, floor, (z, y, x_))


def squares_of(
    problem: Problem, answer: Tensor, plain: Tensor, truth: Tensor, part: Window | None = None
) -> Squares:
    """Return the errors of a network's answer and of the classical solution; all on the object's grid."""
    true, box = problem.windowed(truth), part or (slice(None),) * 3
    off, other = (
        (problem.windowed(v)[box] - true[box]).double().cpu().numpy() for v in (plain, answer)
    )
    return Squares(by_region(off**2), by_region(other**2), by_region(off * other))


def error_of(problem: Problem, x: Tensor, truth: Tensor) -> Float64:
    """Return the error of every region of `x` relative to the light of `truth` there, at the resolution
    that the recording supports; both on the object's grid. 1 where the truth is empty."""
    return errors(moments_of(problem, x, truth))


def moments_of(problem: Problem, x: Tensor, truth: Tensor, part: Window | None = None) -> Float64:
    """Return what `core.wrongness.errors` has to know of every region; both on the object's grid."""
    return moments(problem.windowed(x), problem.windowed(truth), resolution_px(problem), part)


def recorded_again(problem: Problem, x: Tensor, seed: int) -> Problem:
    """Return the problem that the object `x` would pose: its images with photon noise drawn anew."""
    rng = np.random.default_rng([seed, 6])
    observations = []
    for o in problem.observations:
        mean = o.operator.forward(x).clamp_min_(0) + o.background
        drawn = rng.poisson(mean.detach().cpu().numpy()).astype(np.float32)
        again = torch.from_numpy(drawn).to(o.image.device)
        observations.append(Observation(again, o.operator, o.background))
    return Problem(tuple(observations), problem.window)
