"""Registration of the demonstration's two views with their PSFs given, and with blur from the views alone.

    python benchmarks/given_psfs.py --seeds 11 12 13 14 15 16 --peaks 15 5
    python benchmarks/given_psfs.py --seeds 7 9 10 --trust 0.05

`--trust` puts another value in the place of `descent.PSF_TRUST`: the standard deviation to which the
widths of a given PSF are believed. The demonstration's own light comes first, then the peaks (photons).
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

from pellucid.apps import demo_fusion
from pellucid.core import descent


def errors(seed: int, peak: float) -> list[float]:
    """Mean corner errors in voxels: with PSFs, without."""
    demo_fusion.SEED, demo_fusion.PEAK_PHOTONS = seed, peak
    found = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        seen = demo_fusion._recorded(folder)
        asked: dict[str, Any] = {
            "inputs": [str(folder / arm / f"{arm}_{{t}}.tif") for arm in demo_fusion.ARMS],
            "angles": ",".join(f"{angle:g}" for angle in demo_fusion.DUAL_DEG),
            "method": "average", "projections": False, "overwrite": True,
        }  # fmt: skip
        for psf in ((folder / "psf_view.tif",), ()):
            outcome = demo_fusion._fused({**asked, "psf": psf}, folder / "fused.ome.zarr")
            found.append(demo_fusion._corner_errors(seen, outcome)[0])
    return found


def main() -> None:
    """Print a line for each light and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--peaks", type=float, nargs="*", default=[])
    parser.add_argument("--trust", type=float, default=descent.PSF_TRUST)
    options = parser.parse_args()
    descent.PSF_TRUST = options.trust
    print("peak photons  seed  PSFs given  not given   (voxels)")
    for peak in [demo_fusion.PEAK_PHOTONS, *options.peaks]:
        for seed in options.seeds:
            given, alone = errors(seed, peak)
            print(f"{peak:12g}  {seed:4d}  {given:10.2f}  {alone:9.2f}", flush=True)


if __name__ == "__main__":
    main()
