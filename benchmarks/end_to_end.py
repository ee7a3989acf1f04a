"""Read, deconvolve, write: how long each part of a whole run takes, for a 256x512x512 uint16 stack.

    python benchmarks/end_to_end.py                       # about 10 minutes on 2 cores
    python benchmarks/end_to_end.py --shape 64 256 256

The stack is simulated, written as an OME-TIFF, and given to `pellucid deconvolve` in a process of its
own, as a user would; the shares are those that the run record states.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.simulation import nuclei, record
from pellucid.data.tiff_writer import write_tiff
from pellucid.data.writer import ImageDescription

VOXEL_UM = (0.3, 0.1625, 0.1625)
OPTICS = {"na": 0.8, "wavelength_nm": 525, "refractive_index": 1.33, "sheet_fwhm_um": 2.0}


def write_stack(path: Path, shape: tuple[int, int, int]) -> None:
    psf = theoretical_psf("light-sheet", VOXEL_UM, **OPTICS)
    counts = record(nuclei, psf.values, shape, peak_photons=300, seed=1).counts
    image = ImageDescription((1, 1, *shape), counts.dtype, VOXEL_UM)
    write_tiff(path, [counts], image, kind="ome")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[256, 512, 512])
    parser.add_argument("--iterations", default="auto")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    with tempfile.TemporaryDirectory() as folder:
        stack, output = Path(folder) / "stack.ome.tif", Path(folder) / "sharp.ome.zarr"
        write_stack(stack, shape)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTICS.items()]
        command = [
            sys.executable, "-c", "from pellucid.apps.cli import main; raise SystemExit(main())",
            "deconvolve", str(stack), "-o", str(output),
            "--modality=light-sheet", f"--iterations={arguments.iterations}", *options,
        ]  # fmt: skip
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - begin
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        record_json = json.loads(Path(f"{output}.pellucid.json").read_text())
    voxels = float(np.prod(shape))
    print(
        f"\n{shape[0]}x{shape[1]}x{shape[2]} uint16, iterations {arguments.iterations}: {wall:.1f} s wall, "
        f"{usage.ru_utime + usage.ru_stime:.1f} s CPU, {voxels / wall / 1e6:.2f} Mvoxel/s, "
        f"peak {usage.ru_maxrss / 2**20:.2f} GiB ({usage.ru_maxrss * 1024 / voxels:.0f} bytes a voxel)"
    )
    print("| part | seconds | share of the wall time |")
    print("|---|--:|--:|")
    for part, seconds in record_json["timings_s"].items():
        print(f"| {part} | {seconds:.2f} | {seconds / wall:.1%} |")


if __name__ == "__main__":
    main()
