"""The demonstration of networks: blur that varies, a structure never seen, its verdict and its cure."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.apps.demo_part import Part, table
from pellucid.apps.pictures import comparison_picture
from pellucid.apps.report import Section
from pellucid.apps.terminal import say
from pellucid.core.deconvolution import blur_of, usable_psf
from pellucid.core.illumination import GaussianSheet, light_sheet_scan
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import crop_to_support
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import psnr
from pellucid.core.sheet_scan import SheetScan
from pellucid.core.wrongness import REGION, wrongness
from pellucid.networks.evidence import rehearsal, resolution_px
from pellucid.networks.features import classical
from pellucid.networks.share import Share, fallen_back
from pellucid.networks.structures import specimen
from pellucid.networks.trust import WRONG, Trust, as_map, scores
from pellucid.stages.deconvolution.arrays import write
from pellucid.stages.networks.loading import load_network

SHAPE = (24, 64, 224)
VOXEL_UM = (0.25, 0.1625, 0.1625)
SHEET = GaussianSheet(1.2, 488)
MODEL = Path(__file__).parent / "demo_model"
"""Trained by `benchmarks/demo_model.py` on filaments and points; it and its calibration saw no cells."""

KNOWN, UNKNOWN = "filaments", "cells"
PEAK_PHOTONS, BACKGROUND, SEED = 80.0, 2.0, 11
CURED = "cured.ome.zarr"
HEADS = ["", "seconds", f"PSNR, {KNOWN}", f"{UNKNOWN}", f"false structure, {KNOWN}", f"{UNKNOWN}"]

PLACES = 7
"""Places along the sheet at which the PSF is told to the solvers."""


def microscope(shape: tuple[int, int, int] = SHAPE) -> SheetScan:
    """A light sheet that is thin in the middle of the field and several times as thick at its ends."""
    psf = theoretical_psf(
        "widefield", VOXEL_UM, na=0.8, wavelength_nm=525, refractive_index=1.33, shape=(25, 21, 21)
    )
    values = crop_to_support(psf, 0.97).values
    detection = torch.from_numpy((values / values.sum()).astype(np.float32))
    return light_sheet_scan(detection, shape, VOXEL_UM, SHEET)


def psf_field() -> PsfField:
    """The PSFs that beads along the sheet would show."""
    light = microscope()
    places = np.linspace(0, SHAPE[2] - 1, PLACES)
    columns = [light.illumination[0, :, round(x) + light.margin[2]] for x in places]
    psfs = np.stack([(light.psf * c[:, None, None]).double().numpy() for c in columns])
    at_um = np.array([(0.0, 0.0, round(x) * VOXEL_UM[2]) for x in places])
    return PsfField(psfs, at_um, VOXEL_UM, ("a sheet of 1.2 um with its waist",))


def varying_blur(output: Path) -> Part:
    """Restore a recording whose blur varies, of a structure known to the network and of one that is not."""
    say(f"recording {KNOWN} and {UNKNOWN} with a light sheet that is thick at its ends")
    truth, image = _recorded(microscope())
    network, field, card = load_network(MODEL)
    assert isinstance(field, PsfField)
    operator = blur_of(usable_psf(field, SHAPE), SHAPE)
    problem = Problem((Observation(image, operator, BACKGROUND),))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Tensor]) -> Tensor:
        begin = time.perf_counter()
        answer = work()
        seconds[name] = time.perf_counter() - begin
        return answer

    images = {"recorded": (image - BACKGROUND).clamp_min(0)}
    plain = timed("classical", lambda: classical(problem))
    images["classical"] = problem.windowed(plain)
    x = timed("network", lambda: network.estimate(problem))
    images["network"] = problem.windowed(x)
    begin = time.perf_counter()
    evidence = rehearsal(problem, plain)
    share = Share.from_dict(card["share"]).of(evidence.squares(network))
    trust = Trust.from_dict(card["trust"])
    believable = trust.believable(evidence.logs(network, x))
    images["cured"] = fallen_back(images["network"], images["classical"], share)
    seconds["cured"] = time.perf_counter() - begin + seconds["network"] + seconds["classical"]
    write(output / CURED, images["cured"].numpy(), voxel_um=VOXEL_UM, overwrite=True)
    rows = [HEADS, *(_row(name, v, truth, problem, seconds) for name, v in images.items())]
    wrong = wrongness(images["network"], truth, resolution_px(problem)).exceeds(WRONG)
    lines = ["", *table(rows), "", *_verdict_words(trust, believable, wrong, share)]
    shown = {**images, "doubt": as_map(1 - believable, SHAPE), "truth": truth}
    png = comparison_picture({k: v.numpy() for k, v in shown.items()}, VOXEL_UM)
    sections = [
        Section("Blur that varies, and a structure that the network never saw", rows=rows),
        Section("Verdict and cure", pictures=[(f"Left {KNOWN}, right {UNKNOWN}", png)],
                sentences=lines[-3:]),
    ]  # fmt: skip
    return Part(
        "restore", "a light sheet whose blur varies", lines, {"networks.png": png}, (CURED,), sections
    )


def _recorded(light: SheetScan) -> tuple[Tensor, Tensor]:
    """The object in photons, known structure on the left, and its recording."""
    truth, other = (specimen(kind, light.domain_shape, SEED) for kind in (KNOWN, UNKNOWN))
    truth[:, :, truth.shape[2] // 2 :] = other[:, :, truth.shape[2] // 2 :]
    emitted = torch.from_numpy(truth.astype(np.float32))
    mean = light.forward(emitted).clamp_min(0)
    scale = PEAK_PHOTONS / float(mean.max())
    photons = np.random.default_rng(SEED).poisson((mean * scale + BACKGROUND).numpy())
    return emitted[light.window] * scale, torch.from_numpy(photons.astype(np.float32))


def _row(
    name: str, image: Tensor, truth: Tensor, problem: Problem, seconds: Mapping[str, float]
) -> list[str]:
    middle, left, right = SHAPE[2] // 2, [], []
    for half in (slice(0, middle), slice(middle, None)):
        one, other = image[:, :, half].numpy(), truth[:, :, half].numpy()
        left.append(f"{psnr(one, other):.2f}")
        right.append(f"{wrongness(one, other, resolution_px(problem)).false_structure:.2%}")
    return [name, f"{seconds[name]:.2f}" if name in seconds else "", *left, *right]


def _verdict_words(
    trust: Trust,
    believable: npt.NDArray[np.float64],
    wrong: npt.NDArray[np.bool_],
    share: npt.NDArray[np.float64],
) -> list[str]:
    middle = SHAPE[2] // 2 // REGION[2]
    halves = [(KNOWN, slice(0, middle)), (UNKNOWN, slice(middle, None))]
    doubted = trust.doubted(believable)
    told = scores(believable, wrong, trust.limit)
    said = ", ".join(
        f"{doubted[:, :, half].mean():.1%} of {kind} ({wrong[:, :, half].mean():.1%} are wrong)"
        for kind, half in halves
    )
    shares = ", ".join(f"{share[:, :, half].mean():.0%} of {kind}" for kind, half in halves)
    judged = "no region is wrong"
    if wrong.any():
        judged = f"of the wrong regions it finds {told['found']:.0%}, AUROC {told['auroc']:.3f}"
    return [
        f"the verdict on the network doubts {said}; the network never saw {UNKNOWN}",
        f"{judged}; of the good ones it doubts {told['false_alarms']:.1%}",
        f"the cure keeps this share of what the network adds to the classical solution: {shares}",
    ]
