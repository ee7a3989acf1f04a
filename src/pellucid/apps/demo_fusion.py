"""The demonstration of fusion: two arms, `pellucid fuse`, and what the second view adds."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.apps.demo_deconvolution import CAMERA, OPTICS, PEAK_PHOTONS, SEED, cell
from pellucid.apps.demo_part import Part, table
from pellucid.apps.fusion_text import fuse_lines
from pellucid.apps.pictures import section_picture
from pellucid.apps.report import Section
from pellucid.apps.terminal import say
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, MultiViewRecording, record_views, turned_arms
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import ncc
from pellucid.core.resampling import resample
from pellucid.core.resolution import resolution_along_axes
from pellucid.core.transform_series import WORLD
from pellucid.core.views import View
from pellucid.data.record import RunRecord, read_record
from pellucid.data.recording import open_recording
from pellucid.stages.deconvolution.arrays import write
from pellucid.stages.fusion.fusing import FuseOutcome, run_fusion
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.planning import plan_fusion
from pellucid.stages.psf.files import write_psf

Volume = npt.NDArray[np.floating[Any]]

SHAPE = (96, 96, 96)
VOXEL_UM = 0.1625
PLANES_EVERY = 2
"""Fine voxels between the planes that an arm records."""

MISPLACED = 1.0
"""The second arm is off its nominal place by about 2 degrees, 1 % and 2 voxels."""

ARMS = ("SPIMA", "SPIMB")
HEADS = ["", "NCC", "z (um)", "y (um)", "x (um)", "seconds"]


@dataclass(frozen=True)
class Seen:
    """One image of the object on the voxels of the truth, and what it cost."""

    name: str
    image: Volume
    seconds: float | None = None

    def row(self, truth: Volume) -> list[str]:
        """As cells of a table: agreement with the truth away from the borders."""
        inner = tuple(slice(n // 8, n - n // 8) for n in truth.shape)
        image, known = self.image[inner], truth[inner]
        periods = resolution_along_axes(image, known)
        return [
            self.name,
            f"{ncc(image, known):.3f}",
            *(f"{period * VOXEL_UM:.2f}" for period in periods),
            "" if self.seconds is None else f"{self.seconds:.1f}",
        ]


def dual_view(output: Path) -> Part:
    """Fuse two simulated views, written into folders of TIFF as diSPIM tools do."""
    say("recording a known object with two arms at a right angle")
    seen = _recorded(output)
    patterns = [str(output / arm / f"{arm}_{{t}}.tif") for arm in ARMS]
    angles = ",".join(f"{angle:g}" for angle in DUAL_DEG)
    say(
        f"pellucid fuse {' '.join(patterns)} --angles {angles} --psf {output / 'psf_view.tif'} "
        f"--registered-views --projections=false -o {output / 'fused.ome.zarr'}"
    )
    asked: dict[str, Any] = {
        "inputs": patterns, "angles": angles, "psf": (output / "psf_view.tif",),
        "projections": False, "overwrite": True,
    }  # fmt: skip
    joint = _fused(asked, output / "fused.ome.zarr", registered_views=True)
    averaged = _fused(
        asked, output / "average.ome.zarr", method="average",
        transforms=output / "fused_transforms.json",
    )  # fmt: skip
    images = _compared(output, seen, joint, averaged)
    rows = [HEADS, *(image.row(seen.truth) for image in images[1:])]
    notes = [_registration_words(seen, joint), *fuse_lines(joint)]
    notes.append("z, y, x: finest period that correlates with the truth by 0.5")
    shown = {image.name: image.image for image in images if image.name != ALONE}
    z, y, x = (n // 2 for n in seen.truth.shape)
    png = section_picture(shown, seen.world.spacing_um, (z, y, x), rows=("xy", "xz"))
    caption = "cut through the middle: xy above, xz below; contrast of each its own"
    sections = [
        Section("Two views fused, against the truth", rows=rows),
        Section("Two views fused, seen", pictures=[(caption, png)]),
        Section("Two views fused, notes", sentences=notes),
    ]
    return Part(
        "fuse", "two simulated light sheets at a right angle", ["", *table(rows), "", *notes],
        {"fusion.png": png}, ("fused.ome.zarr",), sections, read_record(output / "fused.ome.zarr"),
    )  # fmt: skip


ALONE = "view A deconvolved alone"


def _recorded(output: Path) -> MultiViewRecording:
    """Record the object, and write SPIMA/SPIMA_0.tif, SPIMB/SPIMB_0.tif and the PSF of an arm."""
    world = Grid(SHAPE, (VOXEL_UM,) * 3, frame=WORLD)
    psf = theoretical_psf(spacing_um=world.spacing_um, **OPTICS)
    arms = turned_arms(
        DUAL_DEG, world, [psf], planes_every=PLANES_EVERY, misplaced=MISPLACED, seed=SEED
    )
    seen = record_views(cell, world, arms, peak_photons=PEAK_PHOTONS, camera=CAMERA, seed=SEED)
    for arm, view in zip(ARMS, seen.views, strict=True):
        (output / arm).mkdir(exist_ok=True)
        path = output / arm / f"{arm}_0.tif"
        write(path, view.counts, voxel_um=view.grid.spacing_um, overwrite=True)
    record = RunRecord("psf make", OPTICS)
    write_psf(seen.views[0].psf, output / "psf_view.tif", record, overwrite=True)
    return seen


def _fused(asked: dict[str, Any], target: Path, **more: Any) -> FuseOutcome:
    """What `pellucid fuse` makes of the files."""
    parameters = FuseParameters.checked({**asked, "output": target, **more})
    return run_fusion(plan_fusion(parameters))


def _compared(
    output: Path, seen: MultiViewRecording, joint: FuseOutcome, averaged: FuseOutcome
) -> list[Seen]:
    """The truth, and what the views show one by one, averaged and fused, on its voxels."""
    world = Grid.from_dict(read_record(output / "fused.ome.zarr")["statistics"]["world"])

    def on_truth(name: str) -> Volume:
        image = torch.from_numpy(open_recording(output / name).read().astype(np.float32))
        same = Affine.identity(source=seen.world.frame, target=world.frame)
        there: Volume = resample(image, world, seen.world, target_to_source=same).numpy()
        return there

    first = seen.views[0]
    begin = time.perf_counter()
    alone = fuse([View(first.counts, first.grid, first.world_to_view, first.psf)], seen.world)
    seconds = time.perf_counter() - begin
    return [
        Seen("truth", seen.truth),
        Seen("view A", on_truth("fused_view0.ome.zarr")),
        Seen("view B", on_truth("fused_view1.ome.zarr")),
        Seen("average", on_truth("average.ome.zarr"), averaged.timings_s["fuse"]),
        Seen(ALONE, alone.image.cpu().numpy(), seconds),
        Seen("joint", on_truth("fused.ome.zarr"), joint.timings_s["fuse"]),
    ]


def _registration_words(seen: MultiViewRecording, joint: FuseOutcome) -> str:
    """How far the corners of the object are from where they truly are."""
    errors = _corner_errors(seen, joint)
    return (
        f"registration error at the corners: {errors[0]:.2f} voxels on average (the nominal angle "
        f"alone: {errors[1]:.1f}), {joint.timings_s['register']:.1f} s"
    )


def _corner_errors(seen: MultiViewRecording, joint: FuseOutcome) -> list[float]:
    """Mean distance of the object's corners from where they are, voxels: as found, as nominal."""
    assert joint.transforms is not None
    found = joint.transforms.world_to_view(joint.transforms.times[0], 1)
    corners = seen.world.corners_um()
    true = seen.views[1].world_to_view.apply(corners)
    nominal = turned_arms(DUAL_DEG, seen.world, [seen.views[1].psf], planes_every=PLANES_EVERY)[1]
    return [
        float(np.linalg.norm(place.apply(corners) - true, axis=1).mean()) / VOXEL_UM
        for place in (found, nominal.world_to_view)
    ]
