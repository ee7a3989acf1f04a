"""Fusion against the truth: single view, averages, resample-then-joint, joint on the original grids.

Records an object by two or four arms (true transforms are the nominal ones and a misplacement by
about 2 degrees, 1 % and 2 voxels), fuses the views with every method, and prints correlation with the
truth (as it is, and both at half the PSF's lateral width), the finest period along z, y and x that
correlates with the truth by 0.5 (voxels), the light kept, and seconds, all in one process.

    python benchmarks/fusion.py                              # 48^3, two and four views, a few minutes
    python benchmarks/fusion.py --structure shells --peak 40 --views 2
    python benchmarks/fusion.py --registered                 # transforms from register(), not the true ones
    python benchmarks/fusion.py --data REAL_DATA        # measured PSFs, a real brain as the object
    python benchmarks/fusion.py --seeds 11 12 --peak 30 300  # medians of plain iterations over many cases
    python benchmarks/fusion.py --timing 256 --threads 2     # the command on one dual-view time point
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import radians
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from scipy import ndimage

import fusion_medians
import fusion_timing
from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import (
    DUAL_DEG,
    QUAD_DEG,
    MultiViewRecording,
    record_views,
    turned_arms,
)
from pellucid.core.noise import Noise
from pellucid.core.psf import crop_to_support, fwhm_px
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.registration import register
from pellucid.core.resolution import resolution_along_axes
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.starts import view_turn
from pellucid.core.views import View
from pellucid.core.virtual_views import VirtualViews
from pellucid.errors import RunawayWarning

CAMERA = Camera(gain=1.0, offset=100.0, read_noise=1.5)
NOISE = Noise(gain=1.0, offset=100.0, read_noise=1.5)
BACKGROUND = 2.0
BORDER = 4


@dataclass(frozen=True)
class Method:
    """One way to fuse, by name; `views` is 1 for the single view."""

    name: str
    options: dict[str, Any]
    views: int | None = None


def methods() -> Iterator[Method]:
    wb = WienerButterworth(cutoff_fwhm=2**-0.5)
    yield Method("single view, guarded", {"how": "joint"}, 1)
    yield Method("average", {"how": "average"})
    yield Method("content average", {"how": "content-average"})
    for how in ("resample-then-joint", "joint"):
        short = "resampled" if how == "resample-then-joint" else "joint"
        for n in (10, 30):
            yield Method(f"{short}, matched {n}", plain(how, n, Matched()))
        yield Method(f"{short}, matched 10 alt", plain(how, 10, Matched(), "alternating"))
        for n in (1, 2, 3):
            yield Method(f"{short}, WB {n}", plain(how, n, wb))
        for n in (1, 2, 3):
            yield Method(f"{short}, WB {n} alt", plain(how, n, wb, "alternating"))
        for n in (3, 10):
            yield Method(f"{short}, virtual views {n}", plain(how, n, VirtualViews()))
        yield Method(f"{short}, guarded", {"how": how})


def plain(how: str, n: int, projector: Any, update: str = "additive") -> dict[str, Any]:
    return {"how": how, "iterations": n, "back_projector": projector, "update": update}


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


def report(recording: MultiViewRecording, registered: bool, only: str) -> None:
    """Print one line for each method."""
    views, note = views_of(recording, registered)
    if note:
        print(note)
    inner = (slice(BORDER, -BORDER),) * 3
    truth = recording.truth[inner]
    sigma = min(fwhm_px(recording.views[0].psf)) / 2 / 2.3548
    half = ndimage.gaussian_filter(recording.truth, sigma)[inner]
    print(f"{'method':27}  ncc   half   z    y    x  (period)  light  iterations  seconds")
    for method in methods():
        if only not in method.name:
            continue
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RunawayWarning)
            restored = fuse(views[: method.views], recording.world, **method.options)
        seconds = time.perf_counter() - start
        whole = restored.image.numpy()
        image, soft = whole[inner], ndimage.gaussian_filter(whole, sigma)[inner]
        z, y, x = resolution_along_axes(image, truth)
        light = image.sum() / truth.sum()
        iterations = restored.stats.get("iterations", "-")
        flag = "  ran away" if caught else ""
        print(
            f"{method.name:27} {ncc(image, truth):5.3f} {ncc(soft, half):5.3f} {z:4.1f} {y:4.1f} "
            f"{x:4.1f}          {light:6.3f}  {iterations!s:>10} {seconds:8.1f}{flag}",
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
    parser.add_argument("--only", default="", help="methods or runs whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", help="medians over these seeds, four PSFs")
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
                planes_every=arguments.planes_every, log=arguments.log,
            )  # fmt: skip
            continue
        for name, recording in recordings(arguments, DUAL_DEG if count == 2 else QUAD_DEG):
            print(f"\n{name}, {arguments.size}^3, planes every {arguments.planes_every} voxels")
            report(recording, arguments.registered, arguments.only)


if __name__ == "__main__":
    main()
