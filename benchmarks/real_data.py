"""Real recordings: pictures, resolution before and after, and whether the result explains the recording.

    python benchmarks/real_data.py FOLDER_OF_REAL_DATA --pictures OUT

Three widely known stacks: a hollow bead in widefield (its centre should be dark), a confocal line pattern
with the PSF of its own beads, and a nucleus in widefield with a PSF from the objective's numbers.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tifffile

from pellucid.core.beads import distill
from pellucid.core.deconvolution import deconvolve
from pellucid.core.decorrelation import volume_decorrelation
from pellucid.core.psf import Psf
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import theoretical_psf


@dataclass
class Stack:
    name: str
    counts: np.ndarray
    psf: Psf
    voxel_um: tuple[float, float, float]


def stacks(data: Path) -> list[Stack]:
    read = tifffile.imread
    grid_um = (0.2, 0.05, 0.05)
    return [
        Stack("bead_shell", read(data / "bead_shell/raw.tif"),
              prepare(read(data / "bead_shell/psf_computed.tif")), (0.2, 0.2, 0.2)),
        Stack("confocal_grid", read(data / "confocal_grid/raw_vertical_grid_1AU.tif"),
              distill(read(data / "confocal_grid/beads.tif"), grid_um).psf, grid_um),
        Stack("wf_dapi", read(data / "wf_dapi/raw.tif"),
              theoretical_psf("widefield", (0.3, 0.13, 0.13), na=1.45, wavelength_nm=461,
                              refractive_index=1.512, shape=(79, 127, 127)), (0.3, 0.13, 0.13)),
    ]  # fmt: skip


def centre_dip(volume: np.ndarray) -> float:
    """Return the centre of a bright shell relative to its rim: the mean over the lines y and x."""
    bright = np.clip(volume - 0.5 * volume.max(), 0, None)
    z, y, x = (round(float(c)) for c in np.array(np.nonzero(bright)).mean(axis=1))
    lines = volume[z, y, :], volume[z, :, x]
    return float(
        np.mean(
            [line[c - 2 : c + 3].min() / line.max() for line, c in zip(lines, (x, y), strict=True)]
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    print(
        "| recording | method | s | cost | lateral um | axial um | centre of the shell | residual |"
    )
    print("|---|---|--:|--:|--:|--:|--:|---|")
    for stack in stacks(arguments.data):
        shown = {"raw": stack.counts.astype(float)}
        show(stack, "raw", stack.counts.astype(np.float32), "", "", "")
        for name, options in {
            "default": {}, "matched 60": {"method": "matched", "iterations": 60},
        }.items():  # fmt: skip
            begin = time.perf_counter()
            found = deconvolve(stack.counts, stack.psf, **options)
            seconds = f"{time.perf_counter() - begin:.1f}"
            cost = f"{found.stats.get('cost_iterations', found.stats['iterations']):.0f}"
            shown[name] = found.image.numpy()
            show(stack, name, shown[name], seconds, cost, found.stats.get("residual", ""))
        if arguments.pictures:
            picture(stack, shown, arguments.pictures)


def show(
    stack: Stack, name: str, volume: np.ndarray, seconds: str, cost: str, verdict: str
) -> None:
    measured = volume_decorrelation(volume, stack.voxel_um)
    lateral, axial = (
        f"{r.resolution_um:.3f}" if r is not None and r.resolution_um else "-"
        for r in (measured.lateral, measured.axial)
    )
    dip = f"{centre_dip(volume - volume.min()):.2f}" if stack.name == "bead_shell" else ""
    print(
        f"| {stack.name} | {name} | {seconds} | {cost} | {lateral} | {axial} | {dip} | {verdict} |",
        flush=True,
    )


def picture(stack: Stack, shown: dict[str, np.ndarray], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, len(shown), figsize=(4 * len(shown), 8), squeeze=False)
    aspect = stack.voxel_um[0] / stack.voxel_um[2]
    for column, (name, volume) in enumerate(shown.items()):
        top = np.percentile(volume, 99.9)
        axes[0, column].imshow(volume.max(axis=0), cmap="gray", vmax=max(top, volume.max() * 0.3))
        axes[1, column].imshow(
            volume.max(axis=1), cmap="gray", vmax=max(top, volume.max() * 0.3), aspect=aspect
        )
        axes[0, column].set_title(f"{stack.name}: {name}")
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(folder / f"{stack.name}.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
