"""Volumes with voxels that were never recorded: what fill does to noise, background and result.

    python benchmarks/coverage.py

A simulated recording (camera offset 100, gain 2) is cut as a deskewed parallelogram and as a mosaic
with holes, 0 where it is cut. NCC with the truth is taken over the recorded voxels within a PSF width
of the cut, and over all recorded ones: fill found (`fill="auto"`); fill taken for counts, with noise and
background known ("edge") and measured with it ("none"); and the uncut recording for comparison.
Structures and seeds were not used to choose anything.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from pellucid.apps.cli import main
from pellucid.core.deconvolution import deconvolve
from pellucid.core.noise import estimate_background, estimate_noise
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.recording import open_recording
from pellucid.stages.deconvolution.arrays import write

SPACING_UM = (0.4, 0.16, 0.16)
SHAPE = (40, 128, 160)
NEAR_PX = 6
BACKGROUND = 104.0
GAIN = 2.0


def parallelogram(shape: tuple[int, int, int]) -> np.ndarray:
    """Which voxels of a deskewed volume were recorded."""
    z, _, x = np.indices(shape)
    return (x >= 1.5 * (shape[0] - 1 - z)) & (x < shape[2] - 1.5 * z)


def mosaic(shape: tuple[int, int, int]) -> np.ndarray:
    """Which voxels of a mosaic of tiles that do not line up were recorded."""
    mask = np.ones(shape, bool)
    mask[:, :24, :70] = mask[:, -20:, 90:] = mask[:, 50:90, 60:84] = mask[-6:, :, :80] = False
    return mask


CUTS = {"parallelogram": parallelogram, "mosaic": mosaic}


def compare(seeds: int) -> None:
    """Print background, gain and NCC of every cut, structure and restorer."""
    psf = gaussian((1.2, 0.4, 0.4), SPACING_UM)
    print("cut            structure  fill   background  gain        NCC near   all     (uncut: near, all)")
    for iterations, name in ((None, "guarded"), (10, "10 matched")):
        print(name)
        totals: dict[tuple[str, str], list[tuple[float, ...]]] = {}
        for structure in STRUCTURES:
            for seed in range(70, 70 + seeds):
                seen = record(
                    STRUCTURES[structure], psf.values, SHAPE, peak_photons=200.0,
                    camera=Camera(gain=GAIN), seed=seed,
                )  # fmt: skip
                chosen = {"method": "wiener-butterworth" if iterations is None else "matched",
                          "iterations": iterations}  # fmt: skip
                uncut = deconvolve(seen.counts, psf, **chosen).image.numpy()
                for cut, masked in CUTS.items():
                    mask = masked(SHAPE)
                    near = mask & (ndimage.distance_transform_edt(mask) <= NEAR_PX)
                    counts = np.where(mask, seen.counts, 0).astype(np.uint16)
                    for fill in ("auto", "edge", "none"):
                        how = "none" if fill == "none" else "auto"
                        level = float(estimate_background(counts, fill=how))
                        noise = estimate_noise(counts, fill=how)
                        gain = noise.gain
                        known = {"background": level, "noise": noise} if fill == "edge" else {}
                        asked = "auto" if fill == "auto" else "none"
                        done = deconvolve(counts, psf, fill=asked, **known, **chosen).image.numpy()
                        scores = [ncc(v[w][None], seen.truth[w][None]) for v in (done, uncut)
                                  for w in (near, mask)]  # fmt: skip
                        row = (level, gain, *scores)
                        totals.setdefault((cut, fill), []).append(row)
                        figures = "{:.3f}      {:.3f}   ({:.3f}, {:.3f})".format(*scores)
                        print(f"{cut:14} {structure:10} {fill:6} {level:8.2f} {gain:9.3f}       {figures}",
                              flush=True)  # fmt: skip
        for (cut, fill), rows in totals.items():
            mean, worst = np.mean(rows, axis=0), np.max(np.abs(np.array(rows)[:, 0] / BACKGROUND - 1))
            figures = "NCC near {:.3f} all {:.3f} (uncut {:.3f} {:.3f})".format(*mean[2:])
            print(f"mean {cut:14} {fill:6} background {mean[0]:.2f} (worst {worst:.1%} off) "
                  f"gain {mean[1]:.3f} {figures}")  # fmt: skip


def tiles_against_whole() -> None:
    """Print the largest difference between tiles and one piece, in the range of the whole."""
    psf = gaussian((1.2, 0.4, 0.4), SPACING_UM)
    shape = (40, 256, 256)
    seen = record(STRUCTURES["nuclei"], psf.values, shape, peak_photons=200.0, seed=71)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place / "psf.tif", psf.values.astype(np.float32), voxel_um=SPACING_UM)
        for cut, masked in CUTS.items():
            counts = np.where(masked(shape), seen.counts, 0).astype(np.uint16)
            write(place / f"{cut}.ome.zarr", counts, voxel_um=SPACING_UM)
            images = []
            for name, tile in (("whole", ()), ("tiles", ("--tile", "40,128,128"))):
                output = place / f"{cut}-{name}.ome.zarr"
                main(["deconvolve", str(place / f"{cut}.ome.zarr"), "--psf", str(place / "psf.tif"), "-o",
                      str(output), "--method", "matched", "--iterations", "10", *tile])  # fmt: skip
                images.append(open_recording(output).read(0, 0))
            error = np.abs(images[1] - images[0]).max() / np.ptp(images[0])
            print(f"tiles against whole, {cut}: at most {error:.1e} of the range")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="recordings of each structure")
    compare(parser.parse_args().seeds)
    tiles_against_whole()
