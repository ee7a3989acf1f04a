"""The number of iterations that one block decides for all, against the whole's and against the default.

    python benchmarks/block_iterations.py --chosen      # the recordings that the tolerance was chosen on
    python benchmarks/block_iterations.py               # others

Two simulated views at a right angle, a world of 80 x 48 x 80 voxels. The count is decided on the whole, and
as `pellucid fuse --memory` decides it: on the middle of the typical one of four blocks. Then all blocks are
fused with that number, and the whole by the guarded default; both are compared with the truth.
"""

import argparse
from dataclasses import replace

import numpy as np

from pellucid.core.fused_blocks import (
    StoredView,
    block_restorer,
    fused_part,
    halo_of_views,
    measured_views,
    read_part,
)
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Grid
from pellucid.core.iteration_choice import iterations_borne, typical_part
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import STRUCTURES
from pellucid.core.tiling import Tiling
from pellucid.core.views import View

WORLD = Grid((80, 48, 80), 1.0)
CORE = (40, 48, 40)
CHOSEN = (
    ("nuclei", 30, (4.0, 2.5, 2.5), 2, 22), ("nuclei", 80, (5.0, 2.2, 2.2), 1, 5),
    ("filaments", 30, (6.0, 2.5, 2.5), 1, 7), ("filaments", 300, (6.0, 2.5, 2.5), 1, 4),
    ("shells", 1000, (6.0, 3.0, 3.0), 1, 6), ("shells", 40, (6.0, 2.8, 2.8), 1, 41),
)  # fmt: skip
OTHERS = (
    ("filaments", 1000, (4.0, 2.0, 2.0), 2, 23), ("filaments", 60, (8.0, 2.8, 2.8), 1, 24),
    ("shells", 150, (5.0, 2.4, 2.4), 2, 25), ("nuclei", 40, (7.0, 2.0, 2.0), 1, 51),
    ("nuclei", 500, (4.5, 2.6, 2.6), 2, 52), ("points", 300, (6.0, 2.6, 2.6), 1, 27),
)  # fmt: skip
"""Structure, photons at the peak, FWHM of the PSF (z, y, x), planes a step, seed."""


def trial(structure: str, peak: float, fwhm: tuple[float, ...], every: int, seed: int) -> dict[str, float]:
    """The counts, and how well each result agrees with the truth."""
    psf = gaussian(fwhm, WORLD.spacing_um)
    arms = turned_arms(DUAL_DEG, WORLD, [psf], planes_every=every, misplaced=0.5, seed=seed)
    seen = record_views(STRUCTURES[structure], WORLD, arms, peak_photons=peak, seed=seed)
    stored = [StoredView(v.counts, v.grid, v.world_to_view, v.psf) for v in seen.views]
    known = measured_views(stored, WORLD)
    plain = block_restorer(known, 1, update="alternating")
    whole = iterations_borne(known, WORLD, read_part(known, WORLD), plain)
    tiling = Tiling(WORLD.shape, CORE, halo_of_views(stored, WORLD), (1, 1, 1), 0)
    cores = [part(tile.core) for tile in tiling]
    typical = typical_part(known, cores)
    count = iterations_borne(known, cores[typical], read_part(known, cores[typical]), plain)
    image = np.zeros(WORLD.shape, np.float32)
    for tile in tiling:
        box = part(tile.read)
        made = fused_part(known, box, read_part(known, box), replace(plain, iterations=count))
        image[tile.core] = made[tile.inner].numpy()
    default = fuse(
        [View(v.counts, v.grid, v.world_to_view, v.psf) for v in seen.views], WORLD
    ).image.numpy()
    return {
        "whole": whole, "block": count, "blocks": ncc(image, seen.truth),
        "default": ncc(default, seen.truth),
    }  # fmt: skip


def part(box: tuple[slice, slice, slice]) -> Grid:
    """A box of the world."""
    return WORLD.crop([s.start for s in box], [s.stop for s in box])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chosen", action="store_true", help="those that the tolerance was chosen on")
    asked = parser.parse_args()
    print(f"{'':34} iterations of       NCC with the truth of")
    print(f"{'structure, photons, FWHM, planes':34} whole block     blocks  default difference")
    for structure, peak, fwhm, every, seed in CHOSEN if asked.chosen else OTHERS:
        found = trial(structure, peak, fwhm, every, seed)
        name = f"{structure} {peak} {'x'.join(f'{w:g}' for w in fwhm)} {every}"
        off = found["blocks"] - found["default"]
        print(f"{name:34} {found['whole']:5} {found['block']:5}   {found['blocks']:8.4f} "
              f"{found['default']:8.4f} {off:+10.4f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
