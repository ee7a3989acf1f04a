"""Two views of a volume larger than the memory that is allowed, fused by blocks: memory, time, equality.

    python benchmarks/fused_blocks.py --side 384 --memory 2GiB --iterations 3
    python benchmarks/fused_blocks.py --side 192 --tile 64,128,128 --compare
    python benchmarks/fused_blocks.py --side 256 256 512 --memory 1GiB --register --iterations 2

A simulated pair of 128^3 voxels is repeated along all axes, so that any size costs little to make. The
command runs in a process of its own; its peak of resident memory is what the system says. With --register
the command registers the views first; sides that are no multiples of 128 do not fit together then. With
--compare the same is fused in one piece as well, and the two are compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pellucid
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import filaments

UNIT = 128
COMMAND = """
import sys
from pathlib import Path
from pellucid.apps.cli import main
ended = main()
Path("peak.txt").write_text(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(ended)
"""
"""The peak is asked of the process itself: `wait4` begins with that of the process that started it."""


def made(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write a pair of views at a right angle, the first of `shape`, and their PSF."""
    psf = gaussian((4.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    world = Grid((UNIT,) * 3, 1.0)
    arms = turned_arms(DUAL_DEG, world, [psf], misplaced=0.0, seed=2)
    seen = record_views(filaments, world, arms, peak_photons=200, seed=4)
    for name, view, (z, y, x) in zip("ab", seen.views, (shape, shape[::-1]), strict=True):
        volume = np.tile(view.counts, [-(-n // UNIT) for n in (z, y, x)])[:z, :y, :x]
        pellucid.write(folder / f"{name}.ome.zarr", volume, voxel_um=(1.0, 1.0, 1.0))
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=(1, 1, 1))


def fused(folder: Path, output: str, *more: str) -> dict[str, Any]:
    """Run the command; its processor seconds, its peak in MiB, and what the record says."""
    words = [
        "fuse", "a.ome.zarr", "b.ome.zarr", "--angles", "0,90", "--psf", "psf.tif",
        "--no-projections", "-o", output, *more,
    ]  # fmt: skip
    run = subprocess.Popen([sys.executable, "-c", COMMAND, *words], cwd=folder)
    _, status, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"pellucid fuse ended with {run.returncode}")
    record = json.loads((folder / f"{output}.pellucid.json").read_text())
    statistics = record["statistics"]
    voxels = np.prod(statistics["world"]["shape"])
    processor_s = used.ru_utime + used.ru_stime
    kept = ("peak_bytes_planned", "tiles", "core_zyx", "halo_zyx", "halo_share")
    return {
        "output": output, "world": statistics["world"]["shape"], "processor_s": round(processor_s, 1),
        "processor_s_per_Mvoxel": round(processor_s / voxels * 1e6, 3),
        "peak_MiB": round(int((folder / "peak.txt").read_text()) / 1024), "timings_s": record["timings_s"],
        **{name: statistics[name] for name in kept if name in statistics},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, nargs="+", default=[384], help="one for all axes, or z y x")
    parser.add_argument("--memory", default=None)
    parser.add_argument("--tile", default=None)
    parser.add_argument("--iterations", default="5")
    parser.add_argument("--register", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where views are, or are to be kept")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    if not (folder / "psf.tif").exists():
        z, y, x = asked.side * 3 if len(asked.side) == 1 else asked.side
        made(folder, (z, y, x))
    cut = ["--memory", asked.memory] if asked.memory else []
    cut += ["--tile", asked.tile] if asked.tile else []
    count = [] if asked.iterations == "auto" else ["--iterations", asked.iterations]
    count += ["--overwrite"] if asked.register else ["--overwrite", "--over-time", "none"]
    print(json.dumps(fused(folder, "blocks.ome.zarr", *cut, *count)), flush=True)
    if asked.compare:
        print(json.dumps(fused(folder, "whole.ome.zarr", *count)), flush=True)
        whole, blocks = (pellucid.open(folder / f"{n}.ome.zarr").read() for n in ("whole", "blocks"))
        error = np.abs(whole - blocks) / np.ptp(whole)
        print(f"largest error {error.max():.2g}, 99.9th percentile {np.quantile(error, 0.999):.2g}")


if __name__ == "__main__":
    main()
