"""Real recordings that no network learned from, judged by photons that no answer saw.

    python benchmarks/networks_real.py REAL_DATA

For each recording a network is trained on simulated structures alone, blurred by the recording's PSF. Half
of the recording's photons are restored; the other half judges: each answer is blurred again and compared
with it. "Likelihood" is the Poisson log-likelihood of the photons held out above that of an even image,
in nats per photon. That noise of the two halves is independent holds as far as the measured gain does.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from networks import MIXTURE, SHAPE
from networks_varying import timed
from pellucid.core.accelerated import thinned
from pellucid.core.deconvolution import usable_psf
from pellucid.core.operators import Blur
from pellucid.core.problem import Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc
from pellucid.networks.features import classical
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.training import Schedule, SimulatedPairs, Trainer, held_out_pairs
from pellucid.stages.networks.training import photon_problem

PLANE_STEP = 5
"""Planes of the measured light-sheet PSF that make one of the recording: neither states its voxels."""


@dataclass(frozen=True)
class Recording:
    file: str
    psf: Callable[[Path], Psf]


def light_sheet(data: Path) -> Psf:
    """A measured light-sheet PSF, planes summed to those of the recording."""
    psf = prepare(tifffile.imread(data / "mv_psf_measured/angle000.tif")).values
    half = PLANE_STEP // 2
    centre = int(np.argmax(psf.sum(axis=(1, 2))))
    planes = min(centre - half, len(psf) - 1 - centre - half) // PLANE_STEP
    first = centre - half - planes * PLANE_STEP
    wide = psf[first : first + (2 * planes + 1) * PLANE_STEP]
    return Psf.normalised(wide.reshape(-1, PLANE_STEP, *psf.shape[1:]).sum(axis=1))


def confocal(data: Path) -> Psf:
    """Of an objective that is not stated: taken as 0.8 in water, an embryo of 0.1 mm."""
    return theoretical_psf(
        "confocal",
        (1.74, 0.8, 0.8),
        na=0.8,
        wavelength_nm=610,
        excitation_nm=561,
        refractive_index=1.33,
    )


def widefield(data: Path) -> Psf:
    return theoretical_psf(
        "widefield", (0.3, 0.13, 0.13), na=1.45, wavelength_nm=461, refractive_index=1.512,
        shape=(39, 63, 63),
    )  # fmt: skip


RECORDINGS = {
    "nuclei, light sheet": Recording("nuclei_lightsheet/klb_img.tif", light_sheet),
    "nuclei of an embryo, confocal": Recording("embryo_8cell/raw.tif", confocal),
    "nucleus, widefield": Recording("wf_dapi/raw.tif", widefield),
}


def trained(psf: Psf, steps: int) -> tuple[Network, float]:
    """Return a network for a PSF and its error on structures held out."""
    kernel = torch.from_numpy(psf.values.astype(np.float32))
    supply = SimulatedPairs((Blur(kernel, SHAPE),), MIXTURE, seed=1)
    net = RestorationNet(Architecture(), 0)
    schedule = Schedule(steps=steps, reuse=3, validate_every=100, patch=(24, 32, 32))
    trainer = Trainer(net, supply, held_out_pairs(supply, ("shells", "meshes"), 4), schedule)
    trainer.run()
    net.load_state_dict(trainer.best)
    return Network(net.eval()), min(row["held_out"] for row in trainer.curve)


def judged(held: Problem, x: Tensor) -> tuple[float, float]:
    """NCC of the answer blurred again with the photons held out, and their likelihood per photon."""
    o = held.observations[0]
    model = (o.operator.forward(x) + o.background).clamp_min(1e-3)
    even = o.image.mean().expand_as(o.image)
    gained = o.image * (model.log() - even.log()) - (model - even)
    return ncc(model, o.image.numpy()), float(gained.double().sum() / o.image.double().sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", choices=list(RECORDINGS), default=list(RECORDINGS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| recording | photons at most | answer | NCC with the photons held out | likelihood | CPU s |"
    )
    print("|---|--:|---|--:|--:|--:|")
    for name in asked.only:
        counts = tifffile.imread(asked.data / RECORDINGS[name].file)
        psf = usable_psf(RECORDINGS[name].psf(asked.data), counts.shape)
        problem, _ = photon_problem(torch.from_numpy(counts.astype(np.float32)), psf)
        kept, held = thinned(problem, 0.5, seed=1)
        (network, error), spent = timed(partial(trained, psf, asked.steps))
        answers: dict[str, Callable[[], Tensor]] = {
            f"network (trained in {spent:.0f} s, held-out NRMSE {error:.3f})": partial(
                network.estimate, kept
            ),
            "network, polished": partial(Polished(network).estimate, kept),
            "network, polished, not gated": partial(Polished(network, gated=False).estimate, kept),
            "network, 3 iterations, not gated": partial(Polished(network, 3, False).estimate, kept),
            "classical": partial(classical, kept),
        }
        brightest = float(problem.observations[0].image.max())
        halves = ncc(kept.observations[0].image, held.observations[0].image.numpy())
        print(f"| {name} | {brightest:.0f} | the other half itself | {halves:.4f} | | |")
        for what, answer in answers.items():
            x, seconds = timed(answer)
            agreement, likelihood = judged(held, x)
            print(
                f"| {name} | {brightest:.0f} | {what} | {agreement:.4f} | {likelihood:.4f} "
                f"| {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
