"""A network's answer by tiles against the whole, and what the halo costs.

    python benchmarks/network_tiles.py
    python benchmarks/network_tiles.py --memory 1100MiB 700MiB
    python benchmarks/network_tiles.py --photons

A model is trained briefly on filaments and nuclei; shells are restored in one piece and by tiles. Largest
and 99.9th percentile of the difference, relative to the range of the whole; at the faces of the volume,
where the padding differs, at the borders of cores, and elsewhere. "auto" decides on one tile, and takes
all photons. With `--memory`, the largest memory of the command, in a process of its own, beside what it may
use. With `--photons`, the error against the truth, unpolished and polished as often as "auto" decides: with
all photons, and with those alone that do not judge.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pellucid
from pellucid.core.accelerated import thinned
from pellucid.core.deconvolution import roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.record import read_record
from pellucid.networks.polish import Polished
from pellucid.stages.networks.parameters import RestoreParameters, TrainParameters
from pellucid.stages.networks.restoring import load_network, restore
from pellucid.stages.networks.training import train

VOXEL_UM = (0.3, 0.15, 0.15)
SHAPE, CORE = (32, 256, 384), (32, 128, 128)
COMMAND = """
import sys
from pathlib import Path
from pellucid.apps.cli import main
ended = main()
Path("peak.txt").write_text(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(ended)
"""
"""The peak is asked of the process itself: that of children begins with their parent's."""
FACE = 4
"""Voxels that count as the face of a volume."""


def make(folder: Path, steps: int) -> None:
    """Write PSF, model and recording."""
    psf = gaussian((0.9, 0.35, 0.35), VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM)
    seen = record(
        STRUCTURES["shells"], psf.values, SHAPE, peak_photons=100.0, background_photons=5.0, seed=21
    )
    pellucid.write(folder / "raw.ome.zarr", seen.counts, voxel_um=VOXEL_UM)
    asked = {
        "output": folder / "model", "psf": folder / "psf.tif", "steps": steps, "validate_every": steps // 2,
        "shape": "24,48,48", "patch": "24,32,32", "width": 8, "calibration": 2, "passes": 2,
        "structures": ("filaments", "nuclei"),
    }  # fmt: skip
    train(TrainParameters.checked(asked))


def restored(folder: Path, name: str, **asked: object) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Restore the recording; the image, processor seconds, and the record's statistics."""
    output, begin = folder / name, time.process_time()
    given = {"input": folder / "raw.ome.zarr", "model": folder / "model", "output": output}
    restore(RestoreParameters.checked({**given, "overwrite": True, **asked}))
    spent = time.process_time() - begin
    return pellucid.open(output).read(), spent, read_record(output)["statistics"]


def memory(folder: Path, allowed: str) -> None:
    """Print the largest memory of a restoration that may use so much."""
    subprocess.run(
        [sys.executable, "-c", COMMAND, "restore", "raw.ome.zarr", "--model", "model", "--polish", "0",
         "-o", "tiled.ome.zarr", "--overwrite", "--memory", allowed],
        cwd=folder, check=True,
    )  # fmt: skip
    said = {"tiles": 1, **read_record(folder / "tiled.ome.zarr")["statistics"]}
    used = int((folder / "peak.txt").read_text()) / 1024
    print(
        f"allowed {allowed}: {used:.0f} MiB used, {said['tiles']} tiles of {said.get('core_zyx')}, halo "
        f"{said.get('halo_zyx')}, {said.get('halo_share', 0):.0%} read twice", flush=True,
    )


@dataclass(frozen=True)
class Given:
    """An answer that is there already."""

    answer: torch.Tensor

    def estimate(self, problem: Problem) -> torch.Tensor:
        return self.answer


def photons(folder: Path) -> None:
    """Print errors relative to the truth's root mean square, as a table."""
    network, psf, _ = load_network(folder / "model")
    assert isinstance(psf, Psf)
    blur = Blur(torch.from_numpy(roomy(psf)), (32, 96, 96))
    counted = Camera(offset=0.0, read_noise=0.0)
    print("| structure, photons | iterations | unpolished | all photons | nine tenths |")
    kinds, peaks, seeds = ("shells", "points", "filaments"), (30.0, 100.0, 400.0), (51, 52)
    for kind, peak, seed in itertools.product(kinds, peaks, seeds):
        seen = record(
            STRUCTURES[kind], psf.values, blur.range_shape, peak_photons=peak, background_photons=5.0,
            camera=counted, seed=seed,
        )  # fmt: skip
        problem = Problem((Observation(torch.from_numpy(seen.counts.astype(np.float32)), blur, 5.0),))
        start, truth = network.estimate(problem), torch.from_numpy(seen.truth)
        count = int(str(Polished(Given(start))(problem).stats["iterations"]))
        kept, _ = thinned(problem, 0.1, 0)
        answers = [
            start,
            Polished(Given(start), count).estimate(problem),
            Polished(Given(0.9 * start), count).estimate(kept) / 0.9,
        ]
        errors = [float((problem.windowed(x) - truth).norm() / truth.norm()) for x in answers]
        said = " | ".join(f"{e:.4f}" for e in errors)
        print(f"| {kind}, {peak:.0f} | {count} | {said} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory", nargs="+", default=[])
    parser.add_argument("--photons", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, asked.steps)
        for allowed in asked.memory:
            memory(folder, allowed)
        if asked.memory:
            return
        if asked.photons:
            photons(folder)
            return
        border = np.zeros(SHAPE, bool)
        border[:, 126:130] = border[:, :, 126:130] = border[:, :, 254:258] = True
        face = np.ones(SHAPE, bool)
        face[FACE:-FACE, FACE:-FACE, FACE:-FACE] = False
        print("| polish | largest | 99.9 % | faces | cores' borders | elsewhere | halo | CPU s |")
        for polish in ("0", "2", "auto"):
            whole, one, _ = restored(folder, "whole.ome.zarr", polish=polish)
            tiled, many, said = restored(folder, "tiled.ome.zarr", polish=polish, tile=CORE)
            off = np.abs(tiled - whole) / np.ptp(whole)
            parts = [off[face], off[border & ~face], off[~border & ~face]]
            print(
                f"| {polish} | {off.max():.1e} | {np.quantile(off, 0.999):.1e} | "
                + " | ".join(f"{part.max():.1e}" for part in parts)
                + f" | {tuple(said['halo_zyx'])} | {one:.1f}, {many:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
