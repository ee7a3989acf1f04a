"""The demonstration of deconvolution: a recording, `pellucid deconvolve`, and the gain in figures."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from pellucid.apps.demo_part import Part, table
from pellucid.apps.pictures import comparison_picture, section_picture
from pellucid.apps.report import Section, stopping_words, volume_section
from pellucid.apps.terminal import say
from pellucid.core.deconvolution import deconvolve
from pellucid.core.psf import FWHM_PER_SIGMA, Psf, Triple, fwhm_px
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.quality import measure, ncc
from pellucid.core.simulation import Camera, Recording, filaments, record, shells
from pellucid.data.record import RunRecord, read_record
from pellucid.data.recording import open_recording
from pellucid.errors import InputError
from pellucid.stages.deconvolution.arrays import write
from pellucid.stages.deconvolution.deconvolve import run
from pellucid.stages.deconvolution.planning import plan_deconvolution
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.psf.files import write_psf

Volume = npt.NDArray[np.floating[Any]]

SHAPE = (48, 160, 160)
VOXEL_UM = (0.3, 0.108, 0.108)
OPTICS: dict[str, Any] = {
    "modality": "light-sheet",
    "na": 0.8,
    "wavelength_nm": 525.0,
    "refractive_index": 1.33,
    "sheet_fwhm_um": 2.5,
}
PEAK_PHOTONS = 150.0
CAMERA = Camera(gain=2.0, offset=100.0, read_noise=2.5)
SEED = 7
# Matched Richardson-Lucy is run this long, until it is as good.
MATCHED_ITERATIONS = (10, 20, 30, 60)
# A measured or computed PSF on disk may come without a voxel size, as the image with it.
UNKNOWN_UM = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Trial:
    """One way to restore the recording: how good, and at what cost."""

    name: str
    iterations: float
    seconds: float
    ncc: float
    fine_ncc: float

    def row(self) -> list[str]:
        """As cells of a table."""
        return [
            self.name,
            f"{self.iterations:.3g}",
            f"{self.seconds:.2f}",
            f"{self.ncc:.3f}",
            f"{self.fine_ncc:.3f}",
        ]


IMAGES = ("raw.ome.zarr", "restored.ome.zarr")
HEADS = ["", "iterations' worth of FFTs", "seconds", "NCC", "NCC at half the PSF's width"]


def on_simulation(output: Path) -> Part:
    """Deconvolve a simulated recording, written into the folder `output`."""
    say("recording a known object with a simulated light-sheet microscope")
    psf = theoretical_psf(spacing_um=VOXEL_UM, **OPTICS)
    seen = record(cell, psf.values, SHAPE, peak_photons=PEAK_PHOTONS, camera=CAMERA, seed=SEED)
    write(output / "raw.ome.zarr", seen.counts, voxel_um=VOXEL_UM, overwrite=True)
    write_psf(psf, output / "psf.tif", RunRecord("psf make", OPTICS), overwrite=True)
    restored, volume, record_json = _restored(output, output / "raw.ome.zarr", output / "psf.tif")
    trials = _trials(seen, psf, restored, volume)
    lines = [*table([HEADS, *(trial.row() for trial in trials)])]
    lines += ["", *_own_evidence(seen.counts, restored, volume, VOXEL_UM)]
    lines.append(_speed_words(trials))
    pictures = {"recorded": seen.counts, "restored": restored, "truth": seen.truth}
    png = comparison_picture(pictures, VOXEL_UM)
    sections = [
        Section(
            "Deconvolution, against the truth", rows=[HEADS, *(trial.row() for trial in trials)]
        ),
        volume_section("Deconvolution, seen", png, volume),
        Section("Deconvolution, notes", sentences=lines[len(trials) + 2 :]),
    ]
    return Part(
        "deconvolve", "a simulated light-sheet microscope", lines, {"picture.png": png}, IMAGES,
        sections, record_json,
    )  # fmt: skip


def on_real_data(output: Path, data: Path) -> Part:
    """Deconvolve raw.tif in the folder `data` with the PSF beside it."""
    raw, kernel = data / "raw.tif", data / "psf_computed.tif"
    for path in (raw, kernel):
        if not path.is_file():
            raise InputError(f"{path}: no such file. A demonstration needs raw.tif and its PSF.")
    recording = open_recording(raw)
    say(f"deconvolving {raw}")
    spacing = recording.voxel_um or UNKNOWN_UM
    restored, volume, record_json = _restored(output, raw, kernel, spacing)
    counts = recording.read()
    lines = _own_evidence(counts, restored, volume, spacing)
    if recording.voxel_um is None:
        lines.append("the file states no voxel size: taken as 1 um, so lengths are in voxels")
    dips = [centre_dip(image) for image in (counts, restored)]
    lines.append(
        f"centre of the object over its brightest rim (a hollow bead: 0 is best): "
        f"{dips[0]:.2f} recorded, {dips[1]:.2f} restored"
    )
    write(output / "raw.ome.zarr", counts, voxel_um=spacing, overwrite=True)
    pair = {"recorded": counts, "restored": restored}
    png = section_picture(pair, recording.voxel_um, object_centre(restored))
    inside = ("cut through the centre, across z (above) and y (below)", png)
    sections = [
        Section("Measured", sentences=lines),
        Section("Inside", pictures=[inside]),
        volume_section("Outside", comparison_picture(pair, recording.voxel_um), volume),
    ]
    return Part("deconvolve", str(data), lines, {"picture.png": png}, IMAGES, sections, record_json)


def _restored(
    output: Path, raw: Path, psf: Path, voxel_um: Triple | None = None
) -> tuple[Volume, dict[str, Any], dict[str, Any]]:
    """What `pellucid deconvolve` makes of a file, and its record: of the volume, and whole."""
    target = output / "restored.ome.zarr"
    parameters = DeconvolveParameters.checked(
        {"inputs": (str(raw),), "psf": (psf,), "output": target, "voxel_um": voxel_um,
         "overwrite": True}
    )  # fmt: skip
    run(plan_deconvolution(parameters))
    content = read_record(target)
    return open_recording(target).read(), content["statistics"]["volumes"][0], content


def cell(shape: tuple[int, int, int], seed: int) -> Volume:
    """Filaments and membranes."""
    return filaments(shape, seed) + 0.6 * shells(shape, seed + 1)


def _trials(seen: Recording, psf: Psf, restored: Volume, volume: Mapping[str, Any]) -> list[Trial]:
    """The recording, our restoration, and matched Richardson-Lucy until it is as good."""
    sigma = [0.5 * width / FWHM_PER_SIGMA for width in fwhm_px(psf)]
    fine = gaussian_filter(seen.truth, sigma)

    def trial(name: str, image: Volume, iterations: float, seconds: float) -> Trial:
        return Trial(name, iterations, seconds, ncc(image, seen.truth), ncc(image, fine))

    counts = seen.counts.astype(np.float32)
    cost = float(volume.get("cost_iterations", volume["iterations"]))
    ours = trial("pellucid, default", restored, cost, volume["seconds"])
    trials = [trial("recorded", counts, 0, 0), ours]
    for count in MATCHED_ITERATIONS:
        begin = time.perf_counter()
        image = deconvolve(counts, psf, method="matched", iterations=count).image.cpu().numpy()
        seconds = time.perf_counter() - begin
        trials.append(trial(f"matched RL, {count} iterations", image, count, seconds))
        if trials[-1].ncc >= ours.ncc:
            break
    return trials


def _speed_words(trials: list[Trial]) -> str:
    ours, matched = trials[1], trials[2:]
    reached = next((trial for trial in matched if trial.ncc >= ours.ncc), None)
    if reached is None:
        best = max(matched, key=lambda trial: trial.ncc)
        return (
            f"matched Richardson-Lucy does not reach this NCC in {matched[-1].iterations:g} "
            f"iterations (best {best.ncc:.3f} at {best.iterations:g}, {best.seconds:.1f} s)"
        )
    return (
        f"matched Richardson-Lucy needs {reached.iterations:g} iterations for this NCC: "
        f"{reached.iterations / ours.iterations:.1f} times the FFTs, "
        f"{reached.seconds / ours.seconds:.1f} times the seconds"
    )


def _own_evidence(
    counts: npt.NDArray[Any],
    restored: Volume,
    volume: Mapping[str, Any],
    spacing: Triple,
) -> list[str]:
    """Resolution before and after, whether the result explains the recording, why it stopped."""
    before, after = measure(counts, spacing), measure(restored, spacing)
    lines = [stopping_words(volume)]
    for name, a, b in (
        ("lateral", before.lateral_resolution_um, after.lateral_resolution_um),
        ("axial", before.axial_resolution_um, after.axial_resolution_um),
    ):
        if a and b:
            lines.append(
                f"{name} resolution (decorrelation): {a:.3g} um recorded, {b:.3g} restored"
            )
    lines.append(f"blurred again: {volume['residual']}")
    return lines


def object_centre(image: npt.NDArray[Any]) -> tuple[int, int, int]:
    """The voxel (z, y, x) in the middle of what is brighter than half of the maximum."""
    places = np.argwhere(_above_background(image) > 0.5)
    z, y, x = np.round((places.min(axis=0) + places.max(axis=0)) / 2).astype(int)
    return int(z), int(y), int(x)


def centre_dip(image: npt.NDArray[Any]) -> float:
    """Level at the centre of an object over its brightest along the y and x through the centre.

    The level is a mean of 3^3 voxels.
    """
    bright = _above_background(image)
    z, y, x = object_centre(image)
    centre = bright[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].mean()
    rim = np.mean([bright[z, y].max(), bright[z, :, x].max()])
    return float(centre / rim)


def _above_background(image: npt.NDArray[Any]) -> Volume:
    """The image lightly smoothed, 0 at its background and 1 at its maximum."""
    soft = gaussian_filter(image.astype(np.float64), 0.5)
    bright = soft - np.percentile(soft, 5)
    return np.asarray(bright / bright.max())
