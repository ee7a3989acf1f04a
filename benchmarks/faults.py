"""Kill -9 at random moments, go on until complete: is the result that of one run, byte for byte?

    python benchmarks/faults.py --kills 20
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import pellucid
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record

VOXEL_UM = (0.3, 0.1, 0.1)
SHAPE = (16, 384, 640)
RUN = "import sys; from pellucid.apps.cli import main; sys.exit(main())"


def make(folder: Path) -> None:
    """Write raw.ome.zarr and psf.tif."""
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = record(
        STRUCTURES["filaments"], psf.values, SHAPE, peak_photons=300.0, background_photons=5.0,
        camera=Camera(), seed=1,
    )  # fmt: skip
    pellucid.write(folder / "raw.ome.zarr", seen.counts, voxel_um=VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM)


def started(folder: Path, output: str, *more: str) -> subprocess.Popen[bytes]:
    """The command, running."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "deconvolve", "raw.ome.zarr", "--psf", "psf.tif", "-o", output,
         "--tile", "16,128,128", "--iterations", "4", *more],
        cwd=folder, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def chunks(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of an output but its metadata, which hold times and its name."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "zarr.json")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def main() -> None:
    """Kill so many runs, and print what was lost and whether the results are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        begin = time.perf_counter()
        assert started(folder, "straight.ome.zarr").wait() == 0
        whole_s = time.perf_counter() - begin
        expected = chunks(folder / "straight.ome.zarr")
        kills = equal = results = lost = 0
        listed = folder / "killed.ome.zarr.parts.jsonl"
        while kills < asked.kills:
            finished = 0
            while True:
                run = started(folder, "killed.ome.zarr", "--resume", "--overwrite")
                try:
                    code = run.wait(timeout=rng.uniform(0.3, 1.0) * whole_s)
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.wait()
                    kills += 1
                    if (folder / "killed.ome.zarr").exists():
                        # killed between the rename and the end: complete, which the bytes must show
                        listed.unlink(missing_ok=True)
                        break
                    now = listed.read_bytes().count(b"\n") if listed.is_file() else 0
                    lost += now < finished
                    finished = now
                    continue
                assert code == 0, "a run that goes on failed"
                break
            results += 1
            equal += chunks(folder / "killed.ome.zarr") == expected
            subprocess.run(["rm", "-r", str(folder / "killed.ome.zarr")], check=True)
            print(
                f"{kills} kills over {results} results: {equal} of {results} equal byte for byte, "
                f"{lost} times a finished tile was lost; an uninterrupted run takes {whole_s:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
