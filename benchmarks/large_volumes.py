"""Deconvolution larger than memory: peak memory measured, cost per voxel, overlap of disk and arithmetic.

A simulated block is repeated to the size that is asked for, written as OME-Zarr, and restored by the
command itself in a process of its own.

    python benchmarks/large_volumes.py --mib 128 1024 --memory 1GiB
    python benchmarks/large_volumes.py --linked-gib 16 1 --memory 2GiB --iterations 1 --method matched

A linked volume is float32 Zarr whose files are hard links to two: one of a specimen, which fills a
quarter of it, and one of a dark camera.
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
import zarr

import pellucid
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.output import create_output
from pellucid.data.writer import ImageDescription

VOXEL_UM = (0.3, 0.1, 0.1)
BLOCK = (64, 128, 128)
RUN = "import sys; from pellucid.apps.cli import main; sys.exit(main())"


def make(folder: Path, mib: int) -> tuple[int, int, int]:
    """Write raw.ome.zarr of `mib` MiB (a multiple of 64) of uint16 and psf.tif; returns the shape."""
    psf = gaussian((0.7, 0.25, 0.25), VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM, overwrite=True)
    block = record(
        STRUCTURES["filaments"], psf.values, BLOCK, peak_photons=300.0, background_photons=5.0,
        camera=Camera(), seed=1,
    ).counts  # fmt: skip
    planes = 256 if mib >= 128 else 128
    shape = (planes, 512, mib * 2**20 // (planes * 512 * 2))
    image = ImageDescription((1, 1, *shape), "uint16", VOXEL_UM)
    with create_output(folder / "raw.ome.zarr", image, overwrite=True) as out:
        for z in range(0, shape[0], 128):
            for y in range(0, shape[1], 512):
                for x in range(0, shape[2], 512):
                    room = zip((128, 512, 512), shape, (z, y, x), strict=True)
                    part = tuple(slice(min(a, n - o)) for a, n, o in room)
                    tiled = np.tile(block, (2, 4, 4))[part]
                    out.write(0, 0, tiled, z, y, x)
    return shape


def link(folder: Path, gib: int) -> tuple[int, int, int]:
    """Make raw.zarr of `gib` GiB of float32 from two files; returns the shape."""
    psf = gaussian((0.7, 0.25, 0.25), VOXEL_UM)
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=VOXEL_UM, overwrite=True)
    shard, shape = (128, 512, 512), {1: (256, 512, 2048), 2: (256, 1024, 2048)}.get(
        gib, (512, 2048, 256 * gib)
    )
    array = zarr.create_array(
        folder / "raw.zarr", shape=shape, shards=shard, chunks=(64, 128, 128), dtype="float32",
        overwrite=True, fill_value=0,
    )  # fmt: skip
    for place, structure, peak in ((0, "filaments", 300.0), (1, "filaments", 1e-6)):
        seen = record(
            STRUCTURES[structure], psf.values, BLOCK, peak_photons=peak, background_photons=5.0,
            camera=Camera(), seed=1 + place,
        ).counts  # fmt: skip
        x = slice(place * 512, place * 512 + 512)
        array[:128, :512, x] = np.tile(seen.astype(np.float32), (2, 4, 4))
    columns = shape[2] // 512
    for z, y, x in np.ndindex(shape[0] // 128, shape[1] // 512, columns):
        target = folder / f"raw.zarr/c/{z}/{y}/{x}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(folder / f"raw.zarr/c/0/0/{int(x >= max(columns // 4, 1))}")
    return shape


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[128, 1024], help="of uint16")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--iterations", default="2")
    parser.add_argument("--method", default="wiener-butterworth")
    parser.add_argument("--linked-gib", type=int, nargs="+", default=[])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place)
        sizes = [(f"{gib} GiB linked", link, gib) for gib in asked.linked_gib] or [
            (f"{mib} MiB", make, mib) for mib in asked.mib
        ]
        for name, making, size in sizes:
            shape = making(folder, size)
            raw = "raw.ome.zarr" if making is make else "raw.zarr"
            command = [
                sys.executable, "-c", RUN, "deconvolve", raw, "--psf", "psf.tif", "-o",
                "sharp.ome.zarr", "--memory", asked.memory, "--iterations", asked.iterations,
                "--method", asked.method, "--voxel-um", ",".join(map(str, VOXEL_UM)), "--overwrite",
            ]  # fmt: skip
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
            wall = time.perf_counter() - begin
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            said = json.loads((folder / "sharp.ome.zarr.pellucid.json").read_text())
            statistics, seconds = said["statistics"], said["timings_s"]
            voxels = float(np.prod(shape))
            cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            tiles = {k: statistics.get(k) for k in ("tiles", "core_zyx", "halo_zyx", "halo_share")}
            tiles["empty"] = sum(len(v["empty"]) for v in statistics.get("volumes", ()) if "empty" in v)
            print(
                f"{name} {shape}, --memory {asked.memory}: {tiles}; peak of the process "
                f"{used.ru_maxrss / 2**10:.0f} MiB, planned "
                f"{statistics['peak_bytes_planned'] / 2**20:.0f} MiB for the tile; {wall:.1f} s wall, "
                f"{cpu / voxels * 1e6:.3f} CPU s and {wall / voxels * 1e6:.3f} s a million voxels; "
                f"parts {({k: round(v, 1) for k, v in seconds.items()})}",
                flush=True,
            )


if __name__ == "__main__":
    main()
