"""The bank of structures that networks learn from: simulated objects of many kinds and densities."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pellucid.core.operators import LinearOperator
from pellucid.core.problem import Observation, Problem, Window
from pellucid.core.simulation import STRUCTURES, Shape, Volume
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
    return np.asarray(blurred / max(float(np.percentile(blurred, 99.95)), 1e-12))


def membranes(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) folded sheets of unequal brightness, like membranes of a tissue; 0 to about 1.

    Where a smooth random field crosses zero; `count` sets its cells, by default one per 4,000 voxels.
    """
    field, other = (_random_field(shape, seed, count, part) for part in (0, 1))
    slope = np.sqrt(sum(np.gradient(field, axis=a) ** 2 for a in range(3) if shape[a] > 1))
    distance = field / np.maximum(slope, 1e-3)
    volume = np.exp(-0.5 * (distance / 0.75) ** 2) * np.exp(0.5 * other)
    return np.asarray(volume / max(float(np.percentile(volume, 99.95)), 1e-12))


def clouds(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) dense texture without edges, like cytoplasm; 0 to about 1."""
    rough, smooth = _random_field(shape, seed, count, 0, 0.25), _random_field(shape, seed, count, 1)
    volume = np.exp(0.7 * rough + 0.9 * smooth)
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
    **STRUCTURES, "meshes": meshes, "membranes": membranes, "clouds": clouds
}  # fmt: skip
"""Every structure by name; each takes (shape, seed) and a `count`."""

VOXELS_EACH = {
    "filaments": 16_000, "shells": 40_000, "points": 3_000, "nuclei": 30_000, "meshes": 3_000,
    "membranes": 4_000, "clouds": 4_000,
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
