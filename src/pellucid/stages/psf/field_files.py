"""PSF fields as files: from theory or from beads, with a record of how."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.core.bead_field import BeadField, distill_field
from pellucid.core.deconvolution import FIELD_ACCURACY
from pellucid.core.depth_field import depth_field
from pellucid.core.illumination import GaussianSheet, light_sheet_field
from pellucid.core.optics import Layers, Optics
from pellucid.core.psf import Psf, fwhm_um
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import focus_um
from pellucid.data.psf_field_file import check_field_output, write_psf_field
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.errors import InputError, ParameterError
from pellucid.stages.parameters import InputParameters
from pellucid.stages.psf.choice import computed_psf, prepared_psf
from pellucid.stages.psf.field_parameters import DepthFieldParameters, SheetParameters
from pellucid.stages.psf.files import bead_stack


def make_depth_field(
    parameters: DepthFieldParameters, output: Path, *, overwrite: bool
) -> PsfField:
    """Compute the field of a refractive-index mismatch and write it with its record."""
    asked = parameters
    check_field_output(output, overwrite)
    if asked.voxel_um is None or asked.sample_index is None or asked.planes is None:
        raise ParameterError(
            "field: needs the image's voxels and planes and the sample's index. For example "
            "--voxel-um 0.3,0.1,0.1 --planes 60 --sample-index 1.38."
        )
    if len(asked.wavelength_nm) > 1 or len(asked.excitation_nm) > 1:
        raise ParameterError("wavelength_nm: expected one for one field. Make one file a channel.")
    spacing, planes, sample = asked.voxel_um, asked.planes, asked.sample_index
    wave = asked.wavelength_nm[0] if asked.wavelength_nm else None
    excitation = asked.excitation_nm[0] if asked.excitation_nm else None

    def layers(depth_um: float) -> Layers:
        return Layers(
            sample, depth_um, asked.coverslip_um, asked.coverslip_index,
            working_distance_um=asked.working_distance_um,
        )  # fmt: skip

    @cache
    def psf_of(depth_um: float) -> Psf:
        return computed_psf(
            asked, spacing, wave, excitation, planes=planes, layers=layers(depth_um)
        )

    @cache
    def z_of(depth_um: float) -> float:
        optics = Optics(asked.na or 0, wave or 0, asked.refractive_index or 0, layers(depth_um))
        return focus_um(optics) - asked.first_um

    psf_of(0.0)  # complains of missing or impossible numbers in its own words
    last_um = asked.first_um + (planes - 1) * spacing[0]
    field = depth_field(psf_of, z_of, last_um * sample / (asked.refractive_index or 1.0))
    write_psf_field(output, field, overwrite=overwrite)
    record = RunRecord("psf field", parameters.plain())
    record.statistics = {"psfs": len(field.psfs), "shape_zyx": field.shape, "notes": field.notes}
    write_record(record, output)
    return field


def make_sheet_field(
    detection: Path, parameters: SheetParameters, output: Path, *, overwrite: bool
) -> PsfField:
    """Write the field of a light sheet with its waist, from the PSF of the detection, with its record."""
    asked = parameters
    check_field_output(output, overwrite)
    psf = prepared_psf(detection, asked.voxel_um)
    if psf.spacing_um is None:
        raise ParameterError("voxel_um: the PSF file states none. Give --voxel-um z,y,x.")
    if psf.shape[0] < 2:
        raise InputError(f"{detection.name}: one plane, which no sheet can light unevenly. Give a stack.")
    sheet = GaussianSheet(asked.fwhm_um, asked.wavelength_nm, asked.refractive_index)
    field = light_sheet_field(psf, asked.columns, sheet, waist_um=asked.waist_um)
    write_psf_field(output, field, overwrite=overwrite)
    record = RunRecord("psf sheet", asked.plain())
    record.inputs = [fingerprint(detection)]
    record.statistics = {"psfs": len(field.psfs), "shape_zyx": field.shape, "notes": field.notes}
    write_record(record, output)
    return field


def distill_field_file(
    path: Path,
    parameters: InputParameters,
    output: Path,
    *,
    bead_um: float | None,
    overwrite: bool,
) -> BeadField:
    """Measure the PSF field of a bead stack and write it with its record."""
    check_field_output(output, overwrite)
    recording, counts = bead_stack(path, parameters)
    found = distill_field(counts, recording.require_voxel_um(), bead_um=bead_um)
    write_psf_field(output, found.field, overwrite=overwrite)
    record = RunRecord("psf beads", {**parameters.plain(), "bead_um": bead_um, "field": True})
    record.inputs = [fingerprint(file) for file in recording.files]
    record.statistics = {**field_figures(found), "notes": found.field.notes}
    record.statistics["beads"] = {
        "used": [asdict(bead) for bead in found.used],
        "rejected": [asdict(bead) for bead in found.rejected],
    }
    write_record(record, output)
    return found


def field_figures(found: BeadField) -> dict[str, Any]:
    """What was measured of a field of beads, as JSON types."""
    return {
        "beads_used": len(found.used),
        "beads_rejected": len(found.rejected),
        "variation": str(found.variation),
        "unexplained": found.unexplained,
        "unexplained_by_mean": found.unexplained_by_mean,
        "positions_um": found.field.positions_um.tolist(),
        "fwhm_um": found.fwhm_um.tolist(),
    }


def inspect_field(field: PsfField) -> dict[str, Any]:
    """Positions, widths and kernels needed of a PSF field, as JSON types."""
    widths = [fwhm_um(Psf.normalised(psf, field.spacing_um)) for psf in field.psfs]
    return {
        "psfs": len(field.psfs),
        "shape_zyx": field.shape,
        "voxel_um": field.spacing_um,
        "positions_um": field.positions_um.tolist(),
        "fwhm_um": widths,
        "kernels": field.expanded(FIELD_ACCURACY).rank,
        "notes": field.notes,
    }
