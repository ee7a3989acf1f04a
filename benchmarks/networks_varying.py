"""A light sheet with its waist: a network trained from the PSF field, against the classical solutions.

`field` writes the PSF field and the recipe, `pellucid train` makes the model, `compare` restores a
64 x 256 x 256 recording that a `SheetScan` made of structures that the network never saw, `speed` times
larger recordings as well. The loop over sheet positions is timed on a few of them: with our convolutions,
and with whole complex transforms, as the paper's release convolves.

    python benchmarks/networks_varying.py field FOLDER
    pellucid train FOLDER/recipe.yaml
    python benchmarks/networks_varying.py compare FOLDER
    python benchmarks/networks_varying.py speed FOLDER
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from networks import shrunk
from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.deconvolution import blur_of, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.illumination import GaussianSheet, light_sheet_scan
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import crop_to_support
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc, psnr
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.sheet_scan import SheetScan
from pellucid.core.wrongness import wrongness
from pellucid.data.psf_field_file import read_psf_field, write_psf_field
from pellucid.networks.evidence import resolution_px
from pellucid.networks.polish import Polished
from pellucid.networks.share import Share
from pellucid.networks.structures import simulate
from pellucid.networks.wiener import places_of
from pellucid.stages.networks.restoring import load_network

SHAPE = (64, 256, 256)
SPACING_UM = (0.25, 0.1625, 0.1625)
SHEET = GaussianSheet(1.6, 488)
ITERATIONS, TIMED = 20, 2
SHAPES = (SHAPE, (128, 256, 256), (280, 328, 204))
"""Recordings that are timed; the last has the size of the volumes of DenseDeconNet's example."""

RECIPE = """output: {folder}/model
psf: {folder}/field.npz
modality: light-sheet
structures: [filaments, nuclei, points, filaments+nuclei, points+nuclei]
held_out: [shells, meshes]
steps: {steps}
passes: {passes}
width: {width}
calibration: {calibration}
"""


def detection() -> Tensor:
    psf = theoretical_psf(
        "widefield",
        SPACING_UM,
        na=0.8,
        wavelength_nm=525,
        refractive_index=1.33,
        shape=(25, 25, 25),
    )
    values = crop_to_support(psf, 0.97).values
    return torch.from_numpy((values / values.sum()).astype(np.float32))


def scan(shape: tuple[int, int, int] = SHAPE) -> SheetScan:
    return light_sheet_scan(detection(), shape, SPACING_UM, SHEET)


def field() -> PsfField:
    """The PSFs that an emitter has at nine places along the sheet."""
    light = scan()
    psfs, places = [], []
    for x in np.linspace(0, SHAPE[2] - 1, 9):
        column = light.illumination[0, :, round(x) + light.margin[2]]
        psfs.append((light.psf * column[:, None, None]).double().numpy())
        places.append((0.0, 0.0, round(x) * SPACING_UM[2]))
    assert len(places_of(light)) == 3
    return PsfField(
        np.stack(psfs), np.array(places), SPACING_UM, ("a sheet of 1.6 um with its waist",)
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    out = work()
    return out, time.process_time() - start


def loop_seconds(light: SheetScan) -> tuple[float, float]:
    """CPU seconds of the iterations as a loop: at each position light, blur, keep a plane, and back.

    With the convolutions of this package, which transform what is not zero alone, and with whole complex
    transforms of the same grid.
    """
    blur = Blur(light.psf, light.range_shape)
    lit, plane = torch.rand(blur.domain_shape), torch.zeros(light.range_shape)
    grid = blur.domain_shape
    otf = scipy.fft.fftn(light.psf.numpy().astype(np.complex64), s=grid)

    def position(t: int) -> None:
        blur.forward(lit * lit)
        plane[t] = 1.0
        lit.add_(blur.adjoint(plane) * lit, alpha=1e-9)

    def whole_position() -> None:
        for transfer in (otf, otf.conj()):
            spectrum = scipy.fft.fftn((lit * lit).numpy().astype(np.complex64), overwrite_x=True)
            scipy.fft.ifftn(spectrum * transfer, overwrite_x=True).real * lit.numpy()

    _, ours = timed(lambda: [position(10 + t) for t in range(TIMED)])
    _, whole = timed(lambda: [whole_position() for _ in range(TIMED)])
    positions = ITERATIONS * light.range_shape[0] / TIMED
    return positions * ours, positions * whole


def speed(folder: Path, shapes: list[Shape]) -> None:
    """Print CPU seconds of every way, and their ratios, for recordings of several sizes."""
    network, psf, _ = load_network(folder / "model")
    print("| recording | answer | CPU s | s per Mvoxel | loop / this | whole transforms / this |")
    print("|---|---|--:|--:|--:|--:|")
    for shape in shapes:
        light, varying = scan(shape), blur_of(usable_psf(psf, shape), shape)
        loop, whole = loop_seconds(light)

        def say(
            name: str,
            seconds: float,
            shape: Shape = shape,
            loop: float = loop,
            whole: float = whole,
        ) -> None:
            each = seconds / math.prod(shape) * 1e6
            print(
                f"| {'x'.join(map(str, shape))} | {name} | {seconds:.2f} | {each:.3f} "
                f"| {loop / seconds:.0f} | {whole / seconds:.0f} |",
                flush=True,
            )

        say("loop over positions, whole complex transforms", whole)
        say("loop over positions", loop)
        o = simulate((light,), "membranes", 4242).problem.observations[0]
        problem = Problem((Observation(o.image, varying, o.background),))
        del light, o
        first, *others = (timed(lambda p=problem: network.estimate(p))[1] for _ in range(4))
        say("network, first recording", first)
        say("network, others", min(others))
        say("classical, low rank", timed(lambda p=problem: Accelerated()(p))[1])


def compare(folder: Path, kinds: list[str]) -> None:
    light = scan()
    network, psf, card = load_network(folder / "model")
    varying, share = blur_of(usable_psf(psf, SHAPE), SHAPE), Share.from_dict(card["share"])
    matched, (loop, _) = RichardsonLucy(ITERATIONS, Matched()), loop_seconds(light)
    print(f"loop over {SHAPE[0]} positions, {ITERATIONS} iterations: {loop:.0f} CPU s "
          f"(from {TIMED} positions)")  # fmt: skip
    print(
        "| structure | answer | PSNR | NCC | wrong regions | false structure | CPU s | loop / this |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for kind in kinds:
        example = simulate((light,), kind, 4242)
        o = example.problem.observations[0]
        truth = example.problem.windowed(example.truth).numpy()
        low_rank = Problem((Observation(o.image, varying, o.background),))
        answers: list[tuple[str, Callable[[], Tensor]]] = [
            ("recording", lambda o=o: o.image - o.background),
            ("network", lambda p=low_rank: p.windowed(network.estimate(p))),
            ("network, polished", lambda p=low_rank: Polished(network)(p).image),
            ("network, shrunk", lambda p=low_rank: p.windowed(shrunk(network, share, p))),
            ("classical, low rank", lambda p=low_rank: Accelerated()(p).image),
            ("matched RL, scanned sheet", lambda e=example: matched(e.problem).image),
        ]
        for name, answer in answers:
            image, seconds = timed(answer)
            off = wrongness(image, truth, resolution_px(example.problem))
            print(
                f"| {kind} | {name} | {psnr(image, truth):.2f} | {ncc(image, truth):.3f} "
                f"| {off.exceeds(0.5).mean():.1%} | {off.false_structure:.2%} | {seconds:.1f} "
                f"| {loop / max(seconds, 1e-3):.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["field", "compare", "speed"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, s)) for s in SHAPES])
    parser.add_argument("--kinds", nargs="+", default=["shells", "membranes"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "field":
        asked.folder.mkdir(parents=True, exist_ok=True)
        write_psf_field(asked.folder / "field.npz", field(), overwrite=True)
        (asked.folder / "recipe.yaml").write_text(RECIPE.format(**vars(asked)))
        assert read_psf_field(asked.folder / "field.npz").psfs.shape[0] == 9
    elif asked.what == "speed":
        sizes = [tuple(int(n) for n in shape.split("x")) for shape in asked.shapes]
        speed(asked.folder, [(z, y, x) for z, y, x in sizes])
    else:
        compare(asked.folder, asked.kinds)


if __name__ == "__main__":
    main()
