"""PSF fields as files: from theory, with a record of how."""

from functools import cache
from pathlib import Path

from pellucid.core.depth_field import depth_field
from pellucid.core.optics import Layers, Optics
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import focus_um
from pellucid.data.psf_field_file import check_field_output, write_psf_field
from pellucid.data.record import RunRecord, write_record
from pellucid.errors import ParameterError
from pellucid.stages.psf_choice import computed_psf
from pellucid.stages.psf_field_parameters import DepthFieldParameters


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
