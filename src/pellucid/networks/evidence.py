"""What speaks for or against an answer where no truth is known, region by region.

Three questions, each asked of the physics: does the answer blurred again agree with the recording; how
far does the answer move when what the recording leaves open is settled otherwise (other noise, another
prior, half of the photons); and are the network's own features those of what it was trained on.
Wherever a statistic has no simple null distribution it is measured on a *twin*: the answer is taken for
the object, recorded anew with noise, and restored again (parametric bootstrap, Efron 1979).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pellucid.core.operators import Windowed
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, Triple
from pellucid.core.wrongness import (
    EMPTY,
    FWHM_PER_SIGMA,
    REGION,
    by_region,
    region_edges,
    supported_resolution_px,
)
from pellucid.networks.features import classical
from pellucid.networks.polish import Estimator
from pellucid.networks.training import dimmed, window_of
from pellucid.networks.wiener import wiener_step

Float64 = NDArray[np.float64]
SCALES_PX = (0.0, 1.0, 2.0, 4.0)
"""Widths (sigma) over which the residual is averaged before it is weighed."""

FEATURES = (
    *(f"residual at {s:g} px against its twin" for s in SCALES_PX),
    *(f"residual at {s:g} px" for s in SCALES_PX),
    "bias of the residual", "error of the twin", "error of the classical twin",
    "disagreement of two halves", "disagreement with the classical solution",
    "the same of the twin", "what the recording does not say", "detail beyond the recording",
    "few photons", "dimmer than the rest", "strangeness of the features",
)  # fmt: skip


DECISIVE = (
    "error of the twin", "error of the classical twin", "disagreement of two halves",
    "disagreement with the classical solution", "the same of the twin",
    "what the recording does not say",
)  # fmt: skip
"""What a verdict is made of: how far the answer moves where the recording leaves it open. The others
did not help it on structures and PSFs that no calibration saw (`benchmarks/networks.py`)."""


@dataclass(frozen=True)
class Evidence:
    """Features (z, y, x, len(FEATURES) - 1) of every region; inner features of the network (z, y, x, n)."""

    features: Float64
    inner: Float64


def resolution_px(problem: Problem) -> Triple:
    """Return the resolution that an answer is judged at: half the width of the first view's PSF."""
    operator = problem.observations[0].operator
    psf = operator.psf if isinstance(operator, Windowed) and hasattr(operator, "psf") else None
    if psf is None:
        return (1.0, 1.0, 1.0)
    return supported_resolution_px(Psf.normalised(psf.detach().cpu().double().clamp_min(0).numpy()))


def gather(problem: Problem, network: Estimator, x: Tensor, seed: int = 0) -> Evidence:
    """Return the evidence about the answer `x` on the object's grid; regions of the first view.

    Costs three more passes of the network and two classical solutions.
    """
    window, res = window_of(problem), resolution_px(problem)

    def seen(image: Tensor) -> Float64:
        values = image.detach().cpu().numpy()[window].astype(np.float64)
        return np.asarray(ndimage.gaussian_filter(values, np.asarray(res) / FWHM_PER_SIGMA))

    def rms(values: Float64) -> Float64:
        return np.sqrt(by_region(values**2))

    answer = seen(x)
    overall = max(float(np.sqrt((answer**2).mean())), 1e-9)
    light = np.maximum(rms(answer), EMPTY * overall)
    twin = recorded_again(problem, x, seed)
    x_twin = network.estimate(twin)
    halves = [seen(network.estimate(half)) for half in _halves(problem, seed)]
    plain, classical_twin = seen(classical(problem)), seen(classical(twin))
    o = problem.observations[0]
    signal = o.operator.forward(x)
    told = seen(wiener_step(signal, o.operator))
    here, there = _residual(o, x), _residual(twin.observations[0], x_twin)
    photons = by_region((o.image - o.background).cpu().numpy().astype(np.float64))
    blurred = np.sqrt(by_region(signal.cpu().numpy().astype(np.float64) ** 2))
    columns = [
        *(np.log((a + 1e-3) / (b + 1e-3)) for a, b in zip(here[:-1], there[:-1], strict=True)),
        *(np.log(a + 1e-3) for a in here[:-1]),
        np.log1p(np.abs(here[-1])),
        _log(rms(seen(x_twin) - answer) / light),
        _log(rms(classical_twin - answer) / light),
        _log(rms(halves[0] - halves[1]) / light),
        _log(rms(plain - answer) / light),
        _log(rms(classical_twin - seen(x_twin)) / light),
        _log(rms(told - answer) / light),
        _log(rms(answer) / np.maximum(blurred, EMPTY * overall)),
        -np.log(np.maximum(photons, 0) + 0.1),
        -np.log(rms(answer) / overall + 0.05),
    ]
    return Evidence(np.stack(columns, axis=-1), _inner(problem, network, answer.shape))


def recorded_again(problem: Problem, x: Tensor, seed: int) -> Problem:
    """Return the problem that the object `x` would pose: its images with photon noise drawn anew."""
    rng = np.random.default_rng([seed, 6])
    observations = []
    for o in problem.observations:
        mean = o.operator.forward(x).clamp_min(0) + o.background
        drawn = rng.poisson(mean.detach().cpu().numpy()).astype(np.float32)
        observations.append(Observation(torch.from_numpy(drawn).to(mean.device), o.operator, o.background))
    return Problem(tuple(observations), problem.window)


def _residual(o: Observation, x: Tensor) -> list[Float64]:
    """Mean squares of the Pearson residual averaged over several scales, 1 where all is noise; its mean.

    All are divided by what independent noise of unit variance would leave.
    """
    model = (o.operator.forward(x).clamp_min(0) + max(o.background, 1e-3)).cpu().numpy()
    pearson = (o.image.cpu().numpy().astype(np.float64) - model) / np.sqrt(model)
    squares = []
    for sigma in SCALES_PX:
        widths = np.where(np.array(pearson.shape) > 1, sigma, 0.0)
        left = np.prod([1 / (2 * np.sqrt(np.pi) * w) if w > 0.5 else 1.0 for w in widths])
        averaged = ndimage.gaussian_filter(pearson, widths, mode="reflect")
        squares.append(by_region(averaged**2) / left)
    counts = np.prod([n / g for n, g in zip(pearson.shape, squares[0].shape, strict=True)])
    return [*squares, by_region(pearson) * np.sqrt(counts)]


def _halves(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    first = dimmed(problem, 0.5, seed)
    second = tuple(
        Observation((o.image - f.image).clamp_min(0), o.operator, 0.5 * o.background)
        for o, f in zip(problem.observations, first.observations, strict=True)
    )
    return first, Problem(second, problem.window)


def _inner(problem: Problem, network: Estimator, shape: tuple[int, ...]) -> Float64:
    """Directions of the network's innermost features, averaged over every region; none: no columns."""
    grid = tuple(max(1, n // r) for n, r in zip(shape, REGION, strict=True))
    source = getattr(network, "network", network)  # a polished one has that of its network
    if not hasattr(source, "inner"):
        return np.zeros((*grid, 0))
    features, block = source.inner(problem)
    values = features.cpu().numpy().astype(np.float64)
    edges = []
    for w, n, r, b in zip(window_of(problem), shape, REGION, block, strict=True):
        edges.append([(w.start + e) // b for e in region_edges(n, r)])
    out = np.zeros((*grid, len(values)))
    for cell in np.ndindex(*grid):
        here = tuple(slice(e[c], max(e[c + 1], e[c] + 1)) for e, c in zip(edges, cell, strict=True))
        out[cell] = values[(slice(None), *here)].mean(axis=(1, 2, 3))
    size = np.linalg.norm(out, axis=-1, keepdims=True)
    return np.asarray(out / np.maximum(size, 1e-3 * max(float(size.max()), 1e-12)))


def _log(ratio: Float64) -> Float64:
    return np.log(ratio + 1e-2)
