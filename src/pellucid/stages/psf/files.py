"""PSFs as files: made from optics, distilled from beads, inspected."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.core.back_projectors import METHODS, BackProjector
from pellucid.core.beads import BeadPsf, distill
from pellucid.core.psf import Psf, Triple, fwhm_px, fwhm_um
from pellucid.data.output import create_output
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import Recording
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, ParameterError
from pellucid.stages.measuring import opened
from pellucid.stages.parameters import InputParameters, OpticsParameters
from pellucid.stages.psf.choice import back_projector_figures, computed_psf


def make_psf(
    optics: OpticsParameters, spacing_um: Triple | None, output: Path, *, overwrite: bool
) -> Psf:
    """Compute a theoretical PSF and write it with its voxel size and record."""
    if spacing_um is None:
        raise ParameterError("voxel_um: a PSF needs a voxel size. Give --voxel-um z,y,x.")
    if len(optics.wavelength_nm) > 1 or len(optics.excitation_nm) > 1:
        raise ParameterError("wavelength_nm: expected one for one PSF. Make one file a channel.")
    wave = optics.wavelength_nm[0] if optics.wavelength_nm else None
    excitation = optics.excitation_nm[0] if optics.excitation_nm else None
    psf = computed_psf(optics, spacing_um, wave, excitation)
    record = RunRecord("psf make", {**optics.plain(), "voxel_um": spacing_um})
    write_psf(psf, output, record, overwrite=overwrite)
    return psf


def distill_file(
    path: Path,
    parameters: InputParameters,
    output: Path,
    *,
    bead_um: float | None,
    overwrite: bool,
) -> BeadPsf:
    """Distill the PSF of a bead stack and write it with its voxel size and record."""
    recording, counts = bead_stack(path, parameters)
    found = distill(counts, recording.require_voxel_um(), bead_um=bead_um)
    record = RunRecord("psf beads", {**parameters.plain(), "bead_um": bead_um})
    record.inputs = [fingerprint(file) for file in recording.files]
    record.statistics["beads"] = {
        "used": [asdict(bead) for bead in found.used],
        "rejected": [asdict(bead) for bead in found.rejected],
        "fwhm_um": found.fwhm_um,
        "fwhm_spread_um": found.fwhm_spread_um,
    }
    write_psf(found.psf, output, record, overwrite=overwrite)
    return found


def bead_stack(path: Path, parameters: InputParameters) -> tuple[Recording, NDArray[Any]]:
    """A recording of beads and its one (z, y, x) volume that `parameters` choose."""
    recording = opened(path, parameters)
    if recording.shape[0] > 1 or (recording.shape[1] > 1 and parameters.channel is None):
        if parameters.channel is None or parameters.time is None:
            raise InputError(
                f"{recording.path.name}: {recording.shape[0]} time points and "
                f"{recording.shape[1]} channels. Choose one: --channel 0, --time 0."
            )
    t, c = _single(parameters.time, "time"), _single(parameters.channel, "channel")
    return recording, recording.read(t, c)


def write_psf(psf: Psf, output: Path, record: RunRecord, *, overwrite: bool) -> None:
    """Write `psf` as float32 with its voxel size; its notes go into the record beside it."""
    z, y, x = psf.shape
    image = ImageDescription((1, 1, z, y, x), "float32", psf.spacing_um, ("PSF",))
    attributes = {"notes": list(psf.notes)}
    with create_output(output, image, attributes=attributes, overwrite=overwrite) as out:
        out.write(0, 0, psf.values.astype(np.float32))
    record.statistics.update(notes=psf.notes, shape_zyx=psf.shape, fwhm_px=fwhm_px(psf))
    write_record(record, output)


def inspect_psf(psf: Psf) -> dict[str, Any]:
    """Widths, share of light and back projector figures of a PSF, as JSON types."""
    projectors: dict[str, BackProjector] = dict(METHODS)
    return {
        "shape_zyx": psf.shape,
        "voxel_um": psf.spacing_um,
        "fwhm_px": fwhm_px(psf),
        "fwhm_um": fwhm_um(psf) if psf.spacing_um else None,
        "peak_share": float(psf.values.max()),
        "notes": psf.notes,
        "back_projectors": {
            name: vars(figures) for name, figures in back_projector_figures(psf, projectors).items()
        },
    }


def _single(selection: str | None, name: str) -> int:
    if selection is None:
        return 0
    if not selection.isdigit():
        raise ParameterError(f"{name}: expected one number, got {selection!r}.")
    return int(selection)
