"""The bank of structures that networks learn from: simulated objects of many kinds and densities."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pellucid.core.operators import LinearOperator
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.simulation import STRUCTURES, Shape, Volume, filaments
from pellucid.errors import ParameterError


def meshes(shape: Shape, seed: int, *, count: int | None = None, radius_px: float = 0.9) -> Volume:
    """Return (z, y, x) thin straight tubes that join near neighbours, like a reticulum; 0 to about 1.

    The voxels are taken as isotropic; `count` nodes default to one per 3,000 voxels.
    """
    rng = np.random.default_rng(seed)
    size = np.array(shape)
    nodes = rng.uniform(0, size, (max(6, int(np.prod(size)) // 3_000) if count is None else count, 3))
    nodes[:, size == 1] = 0
    volume = np.zeros(shape)
    for i, node in enumerate(nodes):
        distance = np.linalg.norm(nodes - node, axis=1)
        for j in np.argsort(distance)[1:4]:
            if i < j:
                steps = np.arange(0, distance[j], 0.25)[:, None] / max(distance[j], 1e-9)
                places = np.rint(node + steps * (nodes[j] - node)).astype(int)
                inside = np.all((places >= 0) & (places < size), axis=1)
                np.add.at(volume, tuple(places[inside].T), rng.uniform(0.4, 1.0))
    blurred = ndimage.gaussian_filter(volume, np.where(size > 1, radius_px, 0), mode="constant")
    return _unit_peak(blurred)


def membranes(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) folded sheets of unequal brightness, like membranes of a tissue; 0 to about 1.

    Where a smooth random field crosses zero; `count` sets its cells, by default one per 4,000 voxels.
    """
    field, other = (_random_field(shape, seed, count, part) for part in (0, 1))
    slope = np.sqrt(sum(np.gradient(field, axis=a) ** 2 for a in range(3) if shape[a] > 1))
    distance = field / np.maximum(slope, 1e-3)
    return _unit_peak(np.exp(-0.5 * (distance / 0.75) ** 2) * np.exp(0.5 * other))


def clouds(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) dense texture without edges, like cytoplasm; 0 to about 1."""
    rough, smooth = _random_field(shape, seed, count, 0, 0.25), _random_field(shape, seed, count, 1)
    return _unit_peak(np.exp(0.7 * rough + 0.9 * smooth))


def grains(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) solid balls of unequal size and brightness, like granules; 0 to about 1."""
    rng = np.random.default_rng(seed)
    seeds = _scattered(shape, rng, count, 3_000)
    radius = rng.uniform(1.5, 4) * rng.uniform(0.6, 1.5, shape)
    distance, nearest = _around(seeds)
    ball = 1 / (1 + np.exp(2 * (distance - radius[nearest])))
    return _unit_peak(rng.uniform(0.2, 1.0, shape)[nearest] * ball)


def vessels(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) thick tubes, solid, hollow or both, like vessels or neurites; 0 to about 1."""
    rng = np.random.default_rng([seed, 9])
    distance, _ = _around(filaments(shape, seed, count=count) > 0.1)
    radius = rng.uniform(2, 6) * np.exp(0.2 * _random_field(shape, seed, None, 2))
    wall, solid = np.exp(-0.5 * (distance - radius) ** 2), 1 / (1 + np.exp(2 * (distance - radius)))
    hollow = rng.choice([0.0, 0.5, 1.0])
    light = np.exp(0.4 * _random_field(shape, seed, None, 3))
    return _unit_peak(light * (hollow * wall + (1 - hollow) * solid))


def haze(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) light without edges at all scales, of any contrast, like stain; 0 to about 1.

    Amplitudes fall with a power of the frequency; nothing is counted.
    """
    rng = np.random.default_rng([seed, 6])
    rate = np.sqrt(sum(np.square(f) for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    power = rng.uniform(0.5, 1.0) * sum(n > 1 for n in shape)
    spectrum = np.fft.fftn(rng.normal(size=shape)) * np.maximum(rate, 1 / 64) ** -power
    spectrum[0, 0, 0] = 0
    field = np.fft.ifftn(spectrum).real
    return _unit_peak(np.exp(rng.uniform(0.1, 1.2) * field / field.std()))


def cells(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) soft bodies with dark nuclei and faint texture, like cytoplasm; 0 to about 1."""
    rng = np.random.default_rng(seed)
    distance, nearest = _around(_scattered(shape, rng, count, 30_000))
    distance += 2 * _random_field(shape, seed, None, 4)
    radius, edge = rng.uniform(8, 16), rng.uniform(0.5, 3)
    body = 1 / (1 + np.exp((distance - radius) / edge))
    dark = 0.7 / (1 + np.exp(2 * (distance - 0.45 * radius)))
    texture = np.exp(0.2 * _random_field(shape, seed, None, 7, 0.2))
    return _unit_peak(rng.uniform(0.3, 1.0, shape)[nearest] * body * (1 - dark) * texture)


def _scattered(shape: Shape, rng: np.random.Generator, count: int | None, per: int) -> NDArray[np.bool_]:
    """Return True at random voxels, by default one `per` so many."""
    count = max(3, int(np.prod(shape)) // per) if count is None else count
    seeds = np.zeros(shape, dtype=bool)
    seeds[tuple(rng.integers(0, shape, (count, 3)).T)] = True
    return seeds


def _around(seeds: NDArray[np.bool_]) -> tuple[Volume, tuple[NDArray[np.intp], ...]]:
    """Return the distance of every voxel to the nearest of the `seeds`, and the index of that."""
    distance, nearest = ndimage.distance_transform_edt(~seeds, return_indices=True)
    return distance, tuple(nearest)


def _unit_peak(volume: Volume) -> Volume:
    return np.asarray(volume / max(float(np.percentile(volume, 99.95)), 1e-12))


def _random_field(
    shape: Shape, seed: int, count: int | None, part: int, finer: float = 1.0
) -> Volume:
    """Return Gaussian random values of variance 1, correlated over the size of a cell."""
    voxels = float(np.prod([max(n, 16) for n in shape]))
    cell = (voxels / count if count else 4_000.0) ** (1 / 3)
    noise = np.random.default_rng([seed, part, 5]).normal(size=shape)
    sigma = np.where(np.array(shape) > 1, 0.3 * finer * cell, 0)
    field = ndimage.gaussian_filter(noise, sigma)
    return np.asarray((field - field.mean()) / field.std())


BANK: dict[str, Callable[..., Volume]] = {
    **STRUCTURES, "meshes": meshes, "membranes": membranes, "clouds": clouds, "grains": grains,
    "vessels": vessels, "haze": haze, "cells": cells,
}  # fmt: skip
"""Every structure by name; each takes (shape, seed) and a `count`."""

VOXELS_EACH = {
    "filaments": 16_000, "shells": 40_000, "points": 3_000, "nuclei": 30_000, "meshes": 3_000,
    "membranes": 4_000, "clouds": 4_000, "grains": 3_000, "vessels": 30_000, "haze": 4_000,
    "cells": 30_000,
}  # fmt: skip
"""Voxels per object at density 1, as in the structures' own defaults."""


@dataclass(frozen=True)
class Light:
    """How bright recordings are: drawn log-uniformly between the two ends of each range.

    Parameters
    ----------
    peak_photons : mean photons in the brightest voxel of the blurred image, background aside
    background_photons : photons per voxel that come from elsewhere
    density : objects per volume, relative to the structures' defaults
    """

    peak_photons: tuple[float, float] = (15.0, 600.0)
    background_photons: tuple[float, float] = (0.5, 10.0)
    density: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        for name, ends in vars(self).items():
            if not 0 < ends[0] <= ends[1] < float("inf"):
                raise ParameterError(f"{name}: expected 0 < lowest <= highest, got {ends}.")


def specimen(kind: str, shape: Shape, seed: int, density: float = 1.0) -> Volume:
    """Return a (z, y, x) object of one `kind`, or of several joined by "+" with unequal contrast."""
    rng = np.random.default_rng([seed, 1])
    volume = np.zeros(shape)
    for i, name in enumerate(kind.split("+")):
        if name not in BANK:
            raise ParameterError(f"structures: there is no {name!r}. Choose of {', '.join(BANK)}.")
        # A thin volume shows the objects of the slab that it was cut from.
        voxels = float(np.prod([max(n, 16) for n in shape]))
        count = max(3, round(density * voxels / VOXELS_EACH[name]))
        weight = 1.0 if i == 0 else float(rng.uniform(0.2, 1.0))
        volume += weight * BANK[name](shape, seed + 7919 * i, count=count)
    return volume


@dataclass(frozen=True)
class Example:
    """A simulated problem and the object (z, y, x) behind it, in photons, on the object's grid."""

    problem: Problem
    truth: Tensor
    kind: str


def simulate(
    operators: tuple[LinearOperator, ...],
    kind: str,
    seed: int,
    light: Light = Light(),
    window: Window | None = None,
    recorded_by: tuple[LinearOperator, ...] | None = None,
) -> Example:
    """Record a specimen of `kind` through every operator, with photon noise; all follows from `seed`.

    Parameters
    ----------
    recorded_by : the microscope as it really is, where the problem's `operators` are not quite it; on
        the same grids
    """
    rng = np.random.default_rng([seed, 2])
    peak, background, density = (
        float(np.exp(rng.uniform(*np.log(ends)))) for ends in vars(light).values()
    )
    shape = operators[0].domain_shape
    objects = specimen(kind, shape, seed, density).astype(np.float32)
    truth = torch.from_numpy(objects)
    images = [o.forward(truth).clamp_min(0) for o in recorded_by or operators]
    scale = peak / max(max(float(i.max()) for i in images), 1e-12)
    observations = tuple(
        Observation(
            torch.from_numpy(rng.poisson((image * scale + background).numpy()).astype(np.float32)),
            operator,
            background,
        )
        for image, operator in zip(images, operators, strict=True)
    )
    return Example(Problem(observations, window), truth * scale, kind)
