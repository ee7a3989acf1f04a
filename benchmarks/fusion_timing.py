"""One dual-view time point through `pellucid fuse` as a user runs it: seconds, their split, memory.

Called by `fusion.py --timing SIZE`. The command runs in a process of its own on two TIFF files of
SIZE^3 voxels; its record says where the seconds went, the system how much memory it held at most.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import pellucid
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import nuclei

VOXEL_UM = (0.5, 0.5, 0.5)
RUNS = {
    "default": [],
    "10 iterations": ["--iterations", "10"],
    "content average": ["--method", "content-average"],
}
PARTS = ("checksums", "register", "wait for reading", "fuse", "write", "projections")


def simulate(folder: Path, size: int) -> None:
    """Write a.tif, b.tif and psf.tif: two arms of a misplaced diSPIM."""
    world = Grid((size,) * 3, VOXEL_UM)
    psf = gaussian((3.0, 1.2, 1.2), VOXEL_UM)
    arms = turned_arms(DUAL_DEG, world, [psf], misplaced=1.0, seed=3)
    recording = record_views(nuclei, world, arms, peak_photons=200, seed=5)
    for name, view in zip("ab", recording.views, strict=True):
        pellucid.write(folder / f"{name}.tif", view.counts, voxel_um=VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM)


def measured(folder: Path, name: str, options: list[str], threads: int) -> str:
    """Return one line of the table: what a run of the command took."""
    code = "import sys; from pellucid.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["fuse", "a.tif", "b.tif", "--angles", "0,90", "--psf", "psf.tif", "--overwrite",
             "-o", "fused.ome.zarr", "--json", *options]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    dry = [sys.executable, "-c", code, *words, "--dry-run"]
    plan = subprocess.run(dry, cwd=folder, capture_output=True, env=environment, check=True)
    planned = json.loads(plan.stdout)["peak_bytes"] / 2**30
    begin = time.perf_counter()
    with (folder / "said.json").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=folder, stdout=said, env=environment
        )
        _, status, used = os.wait4(run.pid, 0)
    wall = time.perf_counter() - begin
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode != 0:
        raise SystemExit(f"pellucid fuse ended with {run.returncode}")
    seconds = json.loads((folder / "said.json").read_text())["timings_s"]
    rest = wall - sum(seconds.values())
    cells = [f"{seconds.get(part, 0.0):6.1f}" for part in PARTS]
    return (
        f"| {name:15} | {wall:6.1f} | {used.ru_utime + used.ru_stime:6.1f} | {' | '.join(cells)} | "
        f"{rest:5.1f} | {used.ru_maxrss / 2**20:5.2f} | {planned:5.2f} |"
    )


def run(size: int, threads: int, only: Sequence[str] = ("",)) -> None:
    """Print the table for two views of `size`^3 voxels; runs whose name contains one of `only`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder, size)
        print(f"\nTwo views of {size}^3 voxels, {threads} threads; seconds of the clock in each part\n")
        columns = " | ".join(("run", "whole", "CPU", *PARTS, "start", "GiB at most", "planned"))
        print(f"| {columns} |")
        print("|---" * (len(PARTS) + 6) + "|")
        for run_name, options in RUNS.items():
            if any(part in run_name for part in only):
                print(measured(folder, run_name, options, threads), flush=True)
