"""Views registered on few voxels, as before a fusion by blocks, against the same views registered whole.

    python benchmarks/coarse_registration.py --side 176 --seeds 3

Two simulated views at a right angle, of more voxels than registration looks at; in OME-Zarr with a pyramid,
and without one. Errors are those of the corners of the first view, in voxels.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import pellucid
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES
from pellucid.core.transform_series import SeriesRegistration
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.registration.coarse_views import coarsened, to_fine
from pellucid.stages.registration.pair_registration import nominal_transforms
from pellucid.stages.registration.registering import register_series
from pellucid.stages.registration.view_series import ViewSeries, open_views


def registered(views: list[ViewSeries], *, few: bool) -> tuple[SeriesRegistration, float]:
    """The transforms, and processor seconds."""
    begin = time.process_time()
    used = coarsened(views) if few else views
    nominal = nominal_transforms(used, (0.0, 90.0), "y")
    found = register_series(used, RegistrationParameters(), nominal=nominal)
    found = to_fine(found, used) if few else found
    return found, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=176)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    world = Grid((asked.side,) * 3, 1.0)
    psf = gaussian((5.0, 2.2, 2.2), world.spacing_um)
    print(f"{'':20} whole: error, sigma, CPU s     with a pyramid                 without one")
    for seed in range(31, 31 + asked.seeds):
        for structure in ("filaments", "nuclei"):
            arms = turned_arms(DUAL_DEG, world, [psf], misplaced=1.0, seed=seed)
            seen = record_views(STRUCTURES[structure], world, arms, peak_photons=150, seed=seed)
            first, second = (view.world_to_view for view in seen.views)
            truth = second @ first.inverse()
            words = [
                _row(found, truth, seen.views[0].grid)
                for found in _all(seen.views, Path(tempfile.mkdtemp()))
            ]
            print(f"{structure:10} seed {seed:4} {'   '.join(words)}", flush=True)


def _all(recorded, folder: Path):  # type: ignore[no-untyped-def]
    names = {"zarr": [], "npy": []}
    for name, view in zip("ab", recorded, strict=True):
        names["zarr"].append(str(folder / f"{name}.ome.zarr"))
        names["npy"].append(str(folder / f"{name}.npy"))
        pellucid.write(names["zarr"][-1], view.counts, voxel_um=(1.0, 1.0, 1.0))
        np.save(names["npy"][-1], view.counts)
    with_levels, without = (list(open_views(n, voxel_um=(1.0, 1.0, 1.0))) for n in names.values())
    yield registered(with_levels, few=False)
    yield registered(with_levels, few=True)
    yield registered(without, few=True)


def _row(made: tuple[SeriesRegistration, float], truth: Affine, grid: Grid) -> str:
    found, seconds = made
    one = found.at(0, 1)
    assert one.registration is not None
    corners = grid.corners_um()
    off = np.linalg.norm(one.world_to_view.apply(corners) - truth.apply(corners), axis=1).max()
    sigma = max(one.registration.corner_sigma_um)
    return f"{off:7.3f} {sigma:7.3f} {seconds:7.1f}" + ("" if one.believed else " not believed")


if __name__ == "__main__":
    main()
