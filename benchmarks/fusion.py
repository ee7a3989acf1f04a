"""Fusion against the truth: single view, averages, resample-then-joint, joint on the original grids.

Records an object by two or four arms (true transforms are the nominal ones and a misplacement by
about 2 degrees, 1 % and 2 voxels), fuses the views with every method, and prints correlation with the
truth (as it is, and both at half the PSF's lateral width), the finest period along z, y and x that
correlates with the truth by 0.5 (voxels), the light kept, and CPU seconds, all in one process.

    python benchmarks/fusion.py                              # 48^3, two and four views, a few minutes
    python benchmarks/fusion.py --structure shells --peak 40 --views 2
    python benchmarks/fusion.py --registered                 # transforms from register(), not the true ones
    python benchmarks/fusion.py --data REAL_DATA        # measured PSFs, a real brain as the object
    python benchmarks/fusion.py --seeds 11 12 --peak 30 300  # medians over many cases
    python benchmarks/fusion.py --timing 256 --threads 2     # the command on one dual-view time point
"""

import argparse
import time
from collections.abc import Iterator
from math import radians
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

import fusion_medians
import fusion_timing
from fusion_methods import methods, scored
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import (
    DUAL_DEG,
    QUAD_DEG,
    MultiViewRecording,
    record_views,
    turned_arms,
)
from pellucid.core.noise import Noise
from pellucid.core.psf import crop_to_support
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import gaussian
from pellucid.core.registration import register
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.starts import view_turn
from pellucid.core.views import View

CAMERA = Camera(gain=1.0, offset=100.0, read_noise=1.5)
NOISE = Noise(gain=1.0, offset=100.0, read_noise=1.5)
BACKGROUND = 2.0


def views_of(recording: MultiViewRecording, registered: bool) -> tuple[list[View], str]:
    """Return views with the true transforms, or those that register() finds from the nominal angles."""
    views = [
        View(v.counts, v.grid, v.world_to_view, v.psf, 100 + BACKGROUND, NOISE)
        for v in recording.views
    ]
    if not registered:
        return views, ""
    first, *others = recording.views
    angles = DUAL_DEG if len(views) == 2 else QUAD_DEG
    found, notes = views[:1], []
    for other, view, angle in zip(others, views[1:], angles[1:], strict=True):
        start = time.perf_counter()
        nominal = view_turn(first.grid, other.grid, "y", radians(angle))
        result = register(
            first.counts,
            other.counts,
            fixed_spacing_um=first.grid.spacing_um,
            moving_spacing_um=other.grid.spacing_um,
            nominal=nominal.with_frames(source="fixed", target="moving"),
            fixed_psf=first.psf.values,
            moving_psf=other.psf.values,
        )
        seconds = time.perf_counter() - start
        frames = {"source": first.grid.frame, "target": other.grid.frame}
        from_world: Affine = result.fixed_to_moving.with_frames(**frames) @ first.world_to_view
        corners = recording.world.corners_um()
        errors = from_world.apply(corners) - other.world_to_view.apply(corners)
        error = np.linalg.norm(errors, axis=1).mean() / recording.world.spacing_um[0]
        found.append(View(view.image, view.grid, from_world, view.psf, view.background, NOISE))
        notes.append(f"{error:.2f} voxels, {seconds:.1f} s, converged {result.converged}")
    return found, "registration: " + "; ".join(notes)


def report(recording: MultiViewRecording, registered: bool, only: list[str]) -> None:
    """Print one line for each method."""
    views, note = views_of(recording, registered)
    if note:
        print(note)
    print(f"{'method':27}  ncc   half   z    y    x  (period)  light  iterations  CPU s")
    for method in methods():
        if not any(part in method.name for part in only):
            continue
        found = scored(method, views, recording, recording.world)
        z, y, x = found["period_px"]
        flag = "  ran away" if found["ran_away"] else ""
        print(
            f"{method.name:27} {found['ncc']:5.3f} {found['half']:5.3f} {z:4.1f} {y:4.1f} {x:4.1f}"
            f"          {found['light']:6.3f}  {found['iterations'] or '-'!s:>10} "
            f"{found['cpu_s']:8.1f}{flag}",
            flush=True,
        )


def recordings(
    arguments: argparse.Namespace, angles: tuple[float, ...]
) -> Iterator[tuple[str, MultiViewRecording]]:
    size = arguments.size
    world = Grid((size, size, size), 1.0, frame="world")
    psfs = [gaussian((9.4, 3.6, 3.6), (1.0, 1.0, 1.0))]
    objects: dict[str, Any] = {name: STRUCTURES[name] for name in arguments.structure}
    label = "Gaussian PSF 9.4 x 3.6 x 3.6 voxels"
    if arguments.data is not None:
        label = "measured PSFs"
        files = [f"mv_psf_measured/angle{round(angle):03}.tif" for angle in angles]
        psfs = [
            crop_to_support(prepare(tifffile.imread(arguments.data / file)), 0.98) for file in files
        ]
        brain = tifffile.imread(arguments.data / "mouse_brain_whole/brain.tif").astype(float)
        corner = [(n - size) // 2 for n in brain.shape]
        part = brain[tuple(slice(c, c + size) for c in corner)]
        edge = np.hanning(size + 2)[1:-1] ** 0.25  # a real part, brought to zero: dark beyond
        objects["brain"] = part * edge[:, None, None] * edge[:, None] * edge / part.max()
    for name, thing in objects.items():
        for peak in arguments.peak:
            arms = turned_arms(
                angles, world, psfs, planes_every=arguments.planes_every, misplaced=1.0, seed=3
            )
            recording = record_views(
                thing, world, arms, peak_photons=peak, background_photons=BACKGROUND,
                camera=CAMERA, seed=5,
            )  # fmt: skip
            yield f"{name}, {peak:g} photons, {len(angles)} views, {label}", recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4], choices=[2, 4])
    parser.add_argument("--structure", nargs="+", default=["filaments", "shells", "nuclei"])
    parser.add_argument("--peak", type=float, nargs="+", default=[100.0])
    parser.add_argument("--planes-every", type=int, default=2)
    parser.add_argument("--registered", action="store_true")
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--only", nargs="+", default=[""], help="methods or runs that contain one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", help="medians over these seeds, four PSFs")
    parser.add_argument("--cases", type=int, help="with --seeds: only so many, drawn at random")
    parser.add_argument("--log", type=Path, help="with --seeds: a line of JSON for each case")
    parser.add_argument("--timing", type=int, metavar="SIZE", help="time the command on SIZE^3 views")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.timing:
        fusion_timing.run(arguments.timing, arguments.threads, arguments.only)
        return
    for count in arguments.views:
        if arguments.seeds:
            fusion_medians.run(
                arguments.seeds, DUAL_DEG if count == 2 else QUAD_DEG, size=arguments.size,
                peaks=arguments.peak, structures=arguments.structure,
                planes_every=arguments.planes_every, log=arguments.log, only=arguments.only,
                most=arguments.cases,
            )  # fmt: skip
            continue
        for name, recording in recordings(arguments, DUAL_DEG if count == 2 else QUAD_DEG):
            print(f"\n{name}, {arguments.size}^3, planes every {arguments.planes_every} voxels")
            report(recording, arguments.registered, arguments.only)


if __name__ == "__main__":
    main()
