"""The time that `pellucid plan` says against the time that `pellucid run` takes, case by case.

    python benchmarks/recipes.py [CASE ...]

Every case is made anew (simulated specimens, seeds of their own), planned with its probe, and run, both by
the processor's clock, so that other programs do not count. Printed: seconds as estimated and as taken for
each step, their ratio, and what the probe itself took. Use one thread (OMP_NUM_THREADS=1): the processor's
seconds of several are not a time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import pellucid
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.stages.recipes import probe as recipe_probe
from pellucid.stages.recipes import run as recipe_run
from pellucid.stages.recipes import view_probe as recipe_view_probe
from pellucid.stages.recipes.parameters import recipe_of
from pellucid.stages.recipes.plan import plan_recipe
from pellucid.stages.recipes.probe import estimated_seconds
from pellucid.stages.recipes.run import run_recipe

VOXEL_UM = (0.3, 0.1, 0.1)
WIDTHS_UM = (0.9, 0.28, 0.28)
ISOTROPIC_UM = (0.16, 0.16, 0.16)
Steps = list[Any]


def specimen(shape: tuple[int, int, int], seed: int, structure: str = "filaments") -> np.ndarray:
    """Counts of a simulated specimen."""
    psf = gaussian(WIDTHS_UM, VOXEL_UM)
    seen = record(
        STRUCTURES[structure], psf.values, shape, peak_photons=200.0, background_photons=5.0,
        camera=Camera(), seed=seed,
    )  # fmt: skip
    return seen.counts


def save_psf(voxel_um: tuple[float, float, float] = VOXEL_UM) -> None:
    """Write psf.tif."""
    pellucid.write("psf.tif", gaussian(WIDTHS_UM, voxel_um).values.astype(np.float32), voxel_um=voxel_um)


def whole() -> Steps:
    """One volume in one piece, iterations by evidence."""
    pellucid.write("raw.ome.zarr", specimen((48, 448, 448), 11), voxel_um=VOXEL_UM)
    save_psf()
    return [{"deconvolve": {"inputs": "raw.ome.zarr", "psf": "psf.tif"}}, "measure"]


def plain() -> Steps:
    """Four time points, ten matched iterations."""
    volume = specimen((32, 256, 384), 12, "nuclei")
    pellucid.write("raw.ome.zarr", np.stack([volume] * 4)[:, None], voxel_um=VOXEL_UM)
    save_psf()
    fixed = {"method": "matched", "iterations": 10}
    return [{"deconvolve": {"inputs": "raw.ome.zarr", "psf": "psf.tif", **fixed}}]


def tiles() -> Steps:
    """One volume by tiles, iterations by evidence."""
    pellucid.write("raw.ome.zarr", specimen((48, 512, 512), 13, "nuclei"), voxel_um=VOXEL_UM)
    save_psf()
    return [{"deconvolve": {"inputs": "raw.ome.zarr", "psf": "psf.tif", "tile": "48,256,256"}}]


def mosaic(*, keep: bool) -> Steps:
    """Nine tiles."""
    scene = specimen((32, 620, 620), 14)
    rng = np.random.default_rng(14)
    for r, c in np.ndindex(3, 3):
        y, x = 200 * r + int(rng.integers(0, 4)), 200 * c + int(rng.integers(0, 4))
        cut = scene[:, y : y + 216, x : x + 216]
        pellucid.write(f"t_{r}_{c}.ome.tif", cut, voxel_um=VOXEL_UM)
    save_psf()
    return [
        {"stitch": {"inputs": "t_{y}_{x}.ome.tif", "overlap": "0,0.08,0.08", "picture": False},
         "keep": keep},
        {"deconvolve": {"inputs": [{"step": "stitch"}], "psf": "psf.tif"}},
    ]  # fmt: skip


def scan() -> Steps:
    """A stage scan, stood up and deconvolved."""
    pellucid.write("raw.ome.zarr", specimen((160, 128, 256), 15), voxel_um=(0.25, 0.16, 0.16))
    save_psf(ISOTROPIC_UM)
    return [
        {"deskew": {"input": "raw.ome.zarr", "step_um": 0.25, "angle_deg": 45, "frame": "view"}},
        {"deconvolve": {"psf": "psf.tif", "psf_voxel_um": ISOTROPIC_UM}},
    ]  # fmt: skip


def views() -> Steps:
    """Two views at right angles, registered and fused."""
    volume = specimen((144, 144, 144), 16, "nuclei").astype(np.float32)
    turned = np.rot90(volume, 1, (0, 2)).copy()
    for name, counts in (("a", volume), ("b", np.roll(turned, (2, 1, -2), (0, 1, 2)))):
        pellucid.write(f"{name}.ome.zarr", counts.round().astype(np.uint16), voxel_um=ISOTROPIC_UM)
    save_psf(ISOTROPIC_UM)
    return [
        {"register": {"inputs": ["a.ome.zarr", "b.ome.zarr"], "angles": "0,90", "model": "rigid"}},
        {"fuse": {"psf": "psf.tif", "projections": False}},
    ]


CASES: dict[str, Callable[[], Steps]] = {
    "whole": whole, "plain": plain, "tiles": tiles, "scan": scan, "views": views,
    "mosaic, one pass": lambda: mosaic(keep=False), "mosaic, two steps": lambda: mosaic(keep=True),
}  # fmt: skip


def measured(name: str) -> None:
    """Plan and run one case, and print what came of it."""
    for module in (recipe_probe, recipe_view_probe, recipe_run):
        module.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recipe = recipe_of({"folder": "out", "steps": CASES[name]()}, "recipe")
        plan = plan_recipe(recipe)
        begin = time.process_time()
        said = estimated_seconds(plan)
        probe, begin = time.process_time() - begin, time.process_time()
        outcome = run_recipe(plan)
        spent = time.process_time() - begin
        os.chdir("/")
    for job in plan.jobs:
        took = outcome.seconds[job.title]
        told = said[job.name]
        ratio = "      -" if told is None else f"{told / took:7.2f}"
        print(f"{name:<18} {job.title:<20} {told or float('nan'):9.1f} {took:9.1f} {ratio}", flush=True)
    total = sum(s or 0.0 for s in said.values())
    print(
        f"{name:<18} {'all':<20} {total:9.1f} {spent:9.1f} {total / spent:7.2f}   probe {probe:.1f} s",
        flush=True,
    )


def main() -> None:
    """Measure the cases that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    print(f"{'case':<18} {'step':<20} {'estimate':>9} {'taken':>9} {'ratio':>7}")
    for name in parser.parse_args().cases:
        measured(name)


if __name__ == "__main__":
    main()
