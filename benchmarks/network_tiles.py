"""A network's answer by tiles against the whole, and what the halo costs.

    python benchmarks/network_tiles.py [--field]
    python benchmarks/network_tiles.py [--field] --judged
    python benchmarks/network_tiles.py [--field] [--judged] --memory 1100MiB 700MiB
    python benchmarks/network_tiles.py --photons

A model is trained briefly on filaments and nuclei; shells are restored in one piece and by tiles. Largest
and 99.9th percentile of the difference, relative to the range of the whole; at the faces of the volume,
where the padding differs, at the borders of cores, and elsewhere. "auto" decides on one tile, and takes
all photons. With `--field`, the blur varies along y and x. With `--judged`, verdict and cure: how far the
maps and shares are apart, beside how far two verdicts in one piece are whose rehearsals draw other noise;
and the error against the truth. With `--memory`, the largest memory of the command, in a process of its
own, beside what it may use. With `--photons`, the error against the truth, unpolished and polished as often
as "auto" decides: with all photons, and with those alone that do not judge.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pellucid
from pellucid.core.accelerated import thinned
from pellucid.core.deconvolution import as_volume, blur_of, roomy
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.psf_field_file import write_psf_field
from pellucid.data.record import read_record
from pellucid.networks.evidence import rehearsal
from pellucid.networks.features import classical
from pellucid.networks.polish import Polished
from pellucid.networks.structures import Light, simulate
from pellucid.networks.trust import Trust, as_map
from pellucid.stages.networks.loading import load_network
from pellucid.stages.networks.parameters import RestoreParameters, TrainParameters
from pellucid.stages.networks.restoring import restore
from pellucid.stages.networks.training import photon_problem, train

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


def make(folder: Path, steps: int, *, field: bool, calibration: int) -> np.ndarray:
    """Write PSF or field, model and recording; returns the truth, of any brightness."""
    psf = gaussian((0.9, 0.35, 0.35), VOXEL_UM)
    if field:
        write_psf_field(folder / "psf.npz", varying())
        example = simulate((blur_of(varying(), SHAPE),), "shells", 21, Light((100.0, 100.0), (5.0, 5.0)))
        o = example.problem.observations[0]
        counts = (100 + 2 * o.image.numpy()).round().astype(np.uint16)
        truth = example.problem.windowed(example.truth).numpy()
    else:
        pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM)
        seen = record(
            STRUCTURES["shells"], psf.values, SHAPE, peak_photons=100.0, background_photons=5.0, seed=21
        )
        counts, truth = seen.counts, seen.truth
    pellucid.write(folder / "raw.ome.zarr", counts, voxel_um=VOXEL_UM)
    asked = {
        "output": folder / "model", "psf": folder / ("psf.npz" if field else "psf.tif"), "steps": steps,
        "validate_every": steps // 2, "shape": "24,48,48", "patch": "24,32,32", "width": 8, "passes": 2,
        "calibration": calibration, "structures": ("filaments", "nuclei"),
    }  # fmt: skip
    train(TrainParameters.checked(asked))
    return np.asarray(truth)


def varying() -> PsfField:
    """PSFs at the corners of the volume and at the middles of two of its edges."""
    height, width = ((n - 1) * step for n, step in zip(SHAPE[1:], VOXEL_UM[1:], strict=True))
    fwhm_um = [
        (0.8, 0.3, 0.3), (0.9, 0.35, 0.35), (1.0, 0.4, 0.3), (0.9, 0.4, 0.4), (1.0, 0.45, 0.35),
        (1.1, 0.5, 0.45),
    ]  # fmt: skip
    places = [(0.0, y, x) for y in (0.0, height) for x in (0.0, width / 2, width)]
    return PsfField.of([gaussian(w, VOXEL_UM) for w in fwhm_um], places)


def restored(folder: Path, name: str, **asked: object) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Restore the recording; the image, processor seconds, and the record's statistics."""
    output, begin = folder / name, time.process_time()
    given = {"input": folder / "raw.ome.zarr", "model": folder / "model", "output": output}
    restore(RestoreParameters.checked({**given, "overwrite": True, **asked}))
    spent = time.process_time() - begin
    return pellucid.open(output).read(), spent, read_record(output)["statistics"]


def memory(folder: Path, allowed: str, more: Sequence[str]) -> None:
    """Print the largest memory of a restoration that may use so much, or that it was refused."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "restore", "raw.ome.zarr", "--model", "model", "--polish", "0",
         "-o", "tiled.ome.zarr", "--overwrite", "--memory", allowed, *more],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"allowed {allowed}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return
    said = {"tiles": 1, **read_record(folder / "tiled.ome.zarr")["statistics"]}
    used = int((folder / "peak.txt").read_text()) / 1024
    print(
        f"allowed {allowed}: {used:.0f} MiB used, {said['tiles']} tiles of {said.get('core_zyx')}, halo "
        f"{said.get('halo_zyx')}, {said.get('halo_share', 0):.0%} read twice", flush=True,
    )


def judged(folder: Path, truth: np.ndarray) -> None:
    """Print how far verdict and cure by tiles are from those in one piece."""
    asks = {"polish": "0", "fall_back": True, "verdict": folder / "map.ome.zarr"}
    made = {}
    for name, more in (("whole", {}), ("tiles", {"tile": CORE})):
        image, seconds, said = restored(folder, f"{name}.ome.zarr", **asks, **more)
        made[name] = image, pellucid.open(folder / "map.ome.zarr").read(), said["volumes"][0], seconds
    image, believed, said, one = made["whole"]
    tiled, mapped, told, many = made["tiles"]
    other = other_verdict(folder)
    off = np.abs(tiled - image) / np.ptp(image)
    for name, seen in (("tiles", mapped), ("other noise", other)):
        apart = np.abs(seen - believed)
        print(
            f"verdict, {name}: mean difference {apart.mean():.4f}, largest {apart.max():.3f}, correlation "
            f"{np.corrcoef(seen.ravel(), believed.ravel())[0, 1]:.4f}", flush=True,
        )
    for name, one_said in (("whole", said), ("tiles", told)):
        print(f"{name}: " + ", ".join(
            f"{key} {one_said[key]:.4g}" for key in ("believable", "doubtful_regions", "network_share")
        ))  # fmt: skip
    print(f"cure: largest difference {off.max():.1e}, 99.9 % {np.quantile(off, 0.999):.1e}")
    print(f"error against the truth: whole {error(image, truth):.4f}, tiles {error(tiled, truth):.4f}")
    print(f"CPU s: whole {one:.1f}, tiles {many:.1f}", flush=True)


def error(image: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square difference after the best gain, relative to the truth's."""
    gain = float((image * truth).sum() / (image * image).sum())
    return float(np.sqrt(((gain * image - truth) ** 2).mean() / (truth**2).mean()))


def other_verdict(folder: Path) -> np.ndarray:
    """The map in one piece whose rehearsals draw other noise."""
    network, psf, card = load_network(folder / "model")
    problem, _ = photon_problem(as_volume(pellucid.open(folder / "raw.ome.zarr").read()), psf)
    logs = rehearsal(problem, classical(problem), 1001).logs(network, network.estimate(problem), 1000)
    return as_map(Trust.from_dict(card["trust"]).believable(logs), SHAPE).numpy()


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
    parser.add_argument("--field", action="store_true")
    parser.add_argument("--judged", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        calibration = 24 if asked.judged else 2
        truth = make(folder, asked.steps, field=asked.field, calibration=calibration)
        more = ["--fall-back", "--verdict", "map.ome.zarr"] if asked.judged else []
        for allowed in asked.memory:
            memory(folder, allowed, more)
        if asked.memory:
            return
        if asked.judged:
            judged(folder, truth)
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
