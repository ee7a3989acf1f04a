"""A light sheet with its waist: a network trained from the PSF field, against the classical solutions.

`field` writes the PSF field and the recipe, `pellucid train` makes the model, `compare` restores
64 x 256 x 256 recordings that a `SheetScan` made of structures that the network was trained on and others
(foam and stripes are of this benchmark alone), `speed` times larger recordings as well. The loop over
sheet positions is timed on a few of them: with our convolutions, and with whole complex transforms, as
the paper's release convolves.

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
from scipy import ndimage
from torch import Tensor

from networks import cured
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
from pellucid.core.simulation import Volume
from pellucid.core.wrongness import wrongness
from pellucid.data.psf_field_file import read_psf_field, write_psf_field
from pellucid.networks.evidence import resolution_px
from pellucid.networks.polish import Polished
from pellucid.networks.share import Share
from pellucid.networks.structures import BANK, VOXELS_EACH, simulate
from pellucid.networks.wiener import places_of
from pellucid.stages.networks.loading import load_network

SHAPE = (64, 256, 256)
SPACING_UM = (0.25, 0.1625, 0.1625)
SHEET = GaussianSheet(1.6, 488)
ITERATIONS, TIMED = 20, 2
SHAPES = (SHAPE, (128, 256, 256), (280, 328, 204))
"""Recordings that are timed; the last has the size of the volumes of DenseDeconNet's example."""

FIRST_SEED = 4242
ANSWERS = {
    "recording": "recording", "network": "network", "polished": "network, polished",
    "cured": "network, cured", "classical": "classical, low rank",
    "matched": "matched RL, scanned sheet",
}  # fmt: skip

RECIPE = """output: {folder}/model
psf: {folder}/field.npz
modality: light-sheet
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


def foam(shape: Shape, seed: int, *, count: int) -> Volume:
    """Walls between cells that fill all space, thin and of unequal brightness; nothing trains on it."""
    rng = np.random.default_rng(seed)
    cell = np.zeros(shape, dtype=int)
    cell[tuple(rng.integers(0, shape, (count, 3)).T)] = np.arange(1, count + 1)
    nearest = ndimage.distance_transform_edt(cell == 0, return_distances=False, return_indices=True)
    cell = cell[tuple(nearest)]
    wall = ndimage.maximum_filter(cell, 2) - ndimage.minimum_filter(cell, 2)
    walls = ndimage.gaussian_filter(np.where(wall > 0, 0.3 + 0.7 * (wall % 7) / 6, 0.0), 0.7)
    return np.asarray(walls / np.percentile(walls, 99.95))


def stripes(shape: Shape, seed: int, *, count: int) -> Volume:
    """Fibres with bands at even distances, like muscle, in dim cytoplasm; nothing trains on it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    volume = np.full(shape, 0.03)
    for _ in range(count):
        angle, width, period = rng.uniform(0, np.pi), rng.uniform(4, 10), rng.uniform(7, 14)
        a, b, c = rng.uniform(0, shape)
        along = np.cos(angle) * (x - c) + np.sin(angle) * (y - b)
        across = np.cos(angle) * (y - b) - np.sin(angle) * (x - c)
        fibre = 1 / (1 + np.exp(np.minimum(np.hypot(across, z - a) - width, 50)))
        bands = np.exp(3 * (np.cos(2 * np.pi * along / period) - 1))
        volume += rng.uniform(0.3, 1.0) * fibre * (0.15 + 0.85 * bands)
    return np.asarray(volume / np.percentile(volume, 99.95))


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


def compare(folder: Path, kinds: list[str], seeds: int, answers: list[str]) -> None:
    BANK.update(foam=foam, stripes=stripes), VOXELS_EACH.update(foam=6_000, stripes=60_000)
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
        rows: dict[str, list[list[float]]] = {}
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            example = simulate((light,), kind, seed)
            o = example.problem.observations[0]
            truth = example.problem.windowed(example.truth).numpy()
            p = Problem((Observation(o.image, varying, o.background),))
            ways: dict[str, Callable[[], Tensor]] = {
                "recording": lambda o=o: o.image - o.background,
                "network": lambda p=p: p.windowed(network.estimate(p)),
                "polished": lambda p=p: Polished(network)(p).image,
                "cured": lambda p=p: p.windowed(cured(network, share, p)),
                "classical": lambda p=p: Accelerated()(p).image,
                "matched": lambda e=example: matched(e.problem).image,
            }
            for name in answers:
                image, seconds = timed(ways[name])
                off = wrongness(image, truth, resolution_px(example.problem))
                found = [psnr(image, truth), ncc(image, truth), float(off.exceeds(0.5).mean())]
                rows.setdefault(name, []).append([*found, off.false_structure, seconds])
        for name, values in rows.items():
            quality, likeness, wrong, false, seconds = np.mean(values, axis=0)
            print(
                f"| {kind} | {ANSWERS[name]} | {quality:.2f} | {likeness:.3f} | {wrong:.1%} "
                f"| {false:.2%} | {seconds:.1f} | {loop / max(seconds, 1e-3):.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["field", "compare", "speed"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, s)) for s in SHAPES])
    parser.add_argument("--kinds", nargs="+", default=["shells", "membranes"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--answers", nargs="+", choices=list(ANSWERS), default=list(ANSWERS))
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
        compare(asked.folder, asked.kinds, asked.seeds, asked.answers)


if __name__ == "__main__":
    main()
