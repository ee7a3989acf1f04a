"""Networks of two views: starts, networks, classical solutions, of one view and of both, beside the truth.

Two arms at about a right angle, each blurred along its own axis, record structures that no network saw; the
truth is that of the simulation. Networks are trained here, on filaments, nuclei and points, for `--steps`,
and stopped by shells. Seconds are of the processor, operators and filters included.

    OMP_NUM_THREADS=1 python benchmarks/network_views.py --steps 1000
    OMP_NUM_THREADS=1 python benchmarks/network_views.py --steps 1000 --sheet

With `--sheet` each arm has a light sheet with its waist, so that its PSF varies along x of its own image.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.geometry import Affine
from pellucid.core.illumination import GaussianSheet, light_sheet_field
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc, psnr
from pellucid.networks.features import classical, recorded_part
from pellucid.networks.model import Architecture
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.structures import Example, Light, simulate
from pellucid.networks.training import Schedule, SimulatedPairs, held_out_pairs, trained
from pellucid.networks.view_sampling import parts_of, sampled_view, wiener_steps
from pellucid.networks.views import Views
from pellucid.networks.wiener import _polynomial, wiener_step

UM = 0.1625
PLANES_EVERY, COLUMNS = 2, 128
SHAPE, PIECE = (64, 64, 64), (40, 40, 40)
SEEN = ("filaments", "nuclei", "points", "filaments+nuclei")
UNSEEN = ("meshes", "membranes", "clouds")
PEAKS, SEEDS = (20.0, 200.0), range(7001, 7004)
SMALL_TURN_RAD = (0.02, 0.03, -0.02)
"""How far the second arm of the recordings stands from where the networks were trained to have it."""


Turn = tuple[float, float, float]


def arms(count: int, turn_rad: Turn = (0.0, 0.0, 0.0), sheet: GaussianSheet | None = None) -> Views:
    """One arm, or two of them at a right angle but for a small turn."""
    spacing = (PLANES_EVERY * UM, UM, UM)
    psf: Psf | PsfField = gaussian(
        (7 * UM, 3 * UM, 3 * UM), spacing, (21 // PLANES_EVERY | 1, 11, 11)
    )
    if sheet is not None:
        detection = gaussian((2.2, 3 * UM, 3 * UM), spacing, (31 // PLANES_EVERY | 1, 11, 11))
        psf = light_sheet_field(detection, COLUMNS, sheet)
    other = Affine.rotation("y", np.pi / 2) @ Affine.from_params(rotation_rad=turn_rad)
    return Views.turned([psf, psf][:count], [Affine.identity(), other][:count], (UM, UM, UM))


def network(count: int, steps: int, sheet: GaussianSheet | None) -> Network:
    """A network of so many views, trained."""
    views = arms(count, sheet=sheet)
    microscopes = [views.microscope(PIECE, seed) for seed in range(8)]
    first = microscopes[0]
    alike = tuple(m.operators for m in microscopes[1:] if m.window == first.window)
    supply = SimulatedPairs(first.operators, SEEN, Light(), 1, first.window, alike)
    begin = time.process_time()
    net, training = trained(
        Architecture(views=count, positioned=views.varies), supply, held_out_pairs(supply, ("shells",), 4),
        Schedule(steps, reuse=3, patch=(24, 32, 32), seed=1),
    )  # fmt: skip
    best = min(row["held_out"] for row in training.curve)
    spent = time.process_time() - begin
    print(f"trained {count} view(s) for {training.step} steps: {best:.3f} on shells, {spent:.0f} s")
    return Network(net)


def example_of(
    kind: str, seed: int, peak: float, shape: Shape, sheet: GaussianSheet | None = None
) -> Example:
    """A recording by both arms, the second a little turned."""
    microscope = arms(2, SMALL_TURN_RAD, sheet).microscope(shape, seed)
    light = Light((peak, peak), (2.0, 2.0), (1.0, 1.0))
    return simulate(microscope.operators, kind, seed, light, microscope.window)


def signals_of(problem: Problem) -> list[Tensor]:
    return [o.image - o.background for o in problem.observations]


def own_grid(problem: Problem) -> Tensor:
    """Wiener steps of the views, each in its own voxels, then sampled and averaged."""
    part, out = recorded_part(problem), torch.zeros(problem.shape)
    for signal, o in zip(signals_of(problem), problem.observations, strict=True):
        blur, _ = parts_of(o.operator)
        out[part] += sampled_view(wiener_step(signal, blur)[blur.window], o.operator, part)
    return out / len(problem.observations)


def chebyshev(problem: Problem) -> Tensor:
    """The mean of the polynomials that stand for the Wiener filter of an operator without a PSF."""
    pairs = zip(signals_of(problem), problem.observations, strict=True)
    return torch.stack([_polynomial(s, o.operator) for s, o in pairs]).mean(dim=0)


def together(problem: Problem) -> Tensor:
    everywhere = tuple(slice(0, n) for n in problem.shape)
    return torch.stack(wiener_steps(problem, signals_of(problem), everywhere)).mean(dim=0)


def ways(one: Network, both: Network) -> dict[str, tuple[int, Callable[[Problem], Tensor]]]:
    """What is compared: of how many views, and how."""
    return {
        "start": (1, together),
        "network": (1, one.estimate),
        "classical": (1, classical),
        "start, Chebyshev": (2, chebyshev),
        "start, each view by itself": (2, own_grid),
        "start, one step of both": (2, together),
        "network, bare": (2, both.estimate),
        "network, polished": (2, Polished(both).estimate),
        "classical, jointly": (2, classical),
    }


def measured(
    example: Example, way: Callable[[Problem], Tensor], views: int
) -> tuple[float, float, float]:
    """PSNR and NCC with the truth in the window, and seconds of the processor."""
    problem = Problem(example.problem.observations[:views], example.problem.window)
    begin = time.process_time()
    answer = way(problem)[problem.window].clamp_min(0)
    spent = time.process_time() - begin
    truth = example.truth[problem.window].numpy()
    return psnr(answer.numpy(), truth), ncc(answer.numpy(), truth), spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sheet", action="store_true", help="a light sheet of 1 um in each arm")
    parser.add_argument("--large", type=int, default=128, help="side of the volume that is timed")
    asked = parser.parse_args()
    sheet = GaussianSheet(1.0, 488) if asked.sheet else None
    one, both = (network(count, asked.steps, sheet) for count in (1, 2))
    compared = ways(one, both)
    cases = [(kind, peak) for kind in UNSEEN for peak in PEAKS]
    print("PSNR (dB) and NCC, mean of", len(SEEDS), "seeds;", SHAPE, "voxels")
    print("views | way |", " | ".join(f"{k} {p:.0f}" for k, p in cases), "| seconds")
    for name, (views, way) in compared.items():
        cells, spent = [], []
        for kind, peak in cases:
            found = [measured(example_of(kind, s, peak, SHAPE, sheet), way, views) for s in SEEDS]
            quality, agreement, seconds = np.mean(found, axis=0)
            cells.append(f"{quality:.1f} {agreement:.3f}")
            spent.append(seconds)
        print(f"{views} | {name} |", " | ".join(cells), f"| {np.mean(spent):.2f}", flush=True)
    shape = (asked.large, asked.large, asked.large)
    print("seconds of", shape, "voxels:")
    for name in ("network, bare", "network, polished", "classical, jointly"):
        views, way = compared[name]
        quality, agreement, seconds = measured(
            example_of("meshes", 7009, 100.0, shape, sheet), way, views
        )
        print(f"{name}: {seconds:.1f} s, PSNR {quality:.1f}, NCC {agreement:.3f}", flush=True)


if __name__ == "__main__":
    main()
