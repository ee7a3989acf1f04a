"""The commands about PSFs: `pellucid psf inspect | make | field | sheet | beads`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from pellucid.apps.options import given, options_of
from pellucid.apps.terminal import OK, print_json, say
from pellucid.stages.parameters import InputParameters, OpticsParameters
from pellucid.stages.psf.field_parameters import DepthFieldParameters, SheetParameters

psf_app = App(name="psf", help="Make, distill and inspect point spread functions.")

OpticsOptions: Any = options_of(OpticsParameters)
DepthFieldOptions: Any = options_of(DepthFieldParameters)
SheetOptions: Any = options_of(SheetParameters)
InputOptions: Any = options_of(InputParameters)
VoxelOptions: Any = options_of(InputParameters, without=frozenset({"axes", "time", "channel"}))
Optics = Annotated[OpticsOptions, Parameter(name="*")]
DepthField = Annotated[DepthFieldOptions, Parameter(name="*")]
Sheet = Annotated[SheetOptions, Parameter(name="*")]
Reading = Annotated[InputOptions, Parameter(name="*")]
Voxel = Annotated[VoxelOptions, Parameter(name="*")]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]


@psf_app.command
def inspect(
    file: Path, *, voxel: Voxel = VoxelOptions(), picture: Path | None = None, json: bool = False
) -> int:
    """Show the widths of a PSF, its transfer function, and what each back projector does to it.

    Parameters
    ----------
    file
        A PSF: TIFF, OME-Zarr or .npy; or a PSF field, .npz, whose positions and widths are shown.
    picture
        Write a picture (.png) of the PSF and of the transfer functions.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.apps.text import psf_text
    from pellucid.data.psf_field_file import is_field_file
    from pellucid.stages.psf.choice import prepared_psf
    from pellucid.stages.psf.files import inspect_psf

    if is_field_file(file):
        return _inspect_field(file, picture, json)
    psf = prepared_psf(file, InputParameters.checked(given(voxel)).voxel_um)
    said = inspect_psf(psf)
    print_json(said) if json else print(psf_text(file.name, said), end="")
    if picture is not None:
        from pellucid.apps.pictures import psf_picture

        psf_picture(psf, picture)
        if not json:
            say(f"wrote {picture}")
    return OK


@psf_app.command
def make(
    *,
    output: Output,
    optics: Optics = OpticsOptions(),
    voxel: Voxel = VoxelOptions(),
    overwrite: bool = False,
) -> int:
    """Compute a PSF from the objective's numbers and write it with its voxel size.

    Parameters
    ----------
    output
        .tif (ImageJ TIFF), .ome.tif or .ome.zarr.
    overwrite
        Replace an output that exists.
    """
    from pellucid.core.psf import fwhm_um
    from pellucid.stages.psf.files import make_psf

    spacing = InputParameters.checked(given(voxel)).voxel_um
    psf = make_psf(OpticsParameters.checked(given(optics)), spacing, output, overwrite=overwrite)
    widths = ", ".join(f"{w:.3g}" for w in fwhm_um(psf))
    say(f"{psf.shape} voxels, FWHM z, y, x: {widths} um")
    for note in psf.notes:
        say(f"note: {note}")
    say(f"wrote {output}")
    return OK


@psf_app.command
def field(
    *, output: Output, options: DepthField = DepthFieldOptions(), overwrite: bool = False
) -> int:
    """Compute how the PSF changes with depth in a sample of another refractive index.

    Parameters
    ----------
    output
        .npz; `pellucid deconvolve --psf` takes it.
    overwrite
        Replace an output that exists.
    """
    from pellucid.apps.psf_field_text import field_text
    from pellucid.stages.psf.field_files import make_depth_field

    asked = DepthFieldParameters.checked(given(options))
    made = make_depth_field(asked, output, overwrite=overwrite)
    print(field_text(made), end="")
    say(f"wrote {output}")
    return OK


@psf_app.command
def sheet(
    detection: Path, *, output: Output, options: Sheet = SheetOptions(), overwrite: bool = False
) -> int:
    """Make the PSF field of a light sheet with its waist, from the PSF of the detection alone.

    Parameters
    ----------
    detection
        A PSF of the objective, without the sheet: TIFF, OME-Zarr or .npy (`pellucid psf make`).
    output
        .npz; `pellucid deconvolve --psf` and recipes of `pellucid train` take it.
    overwrite
        Replace an output that exists.
    """
    from pellucid.apps.psf_field_text import field_text
    from pellucid.stages.psf.field_files import make_sheet_field

    asked = SheetParameters.checked(given(options))
    made = make_sheet_field(detection, asked, output, overwrite=overwrite)
    print(field_text(made), end="")
    say(f"wrote {output}")
    return OK


@psf_app.command
def beads(
    stack: Path,
    *,
    output: Output,
    options: Reading = InputOptions(),
    bead_um: float | None = None,
    field: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Distill the PSF that a stack of beads shows: find, reject, align, average, clean.

    Parameters
    ----------
    stack
        The bead stack: TIFF, OME-TIFF, OME-Zarr or .npy.
    output
        .tif (ImageJ TIFF), .ome.tif or .ome.zarr; .npz for a field.
    bead_um
        Diameter of the beads, to take their size out of the PSF.
    field
        Measure how the PSF changes over the stack, in place of one PSF.
    overwrite
        Replace an output that exists.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.apps.text import beads_text
    from pellucid.stages.psf.files import distill_file

    if field:
        return _bead_field(
            stack, InputParameters.checked(given(options)), output, bead_um, overwrite, json
        )
    found = distill_file(
        stack, InputParameters.checked(given(options)), output, bead_um=bead_um,
        overwrite=overwrite,
    )  # fmt: skip
    if json:
        print_json(
            {
                "used": found.used,
                "rejected": found.rejected,
                "fwhm_um": found.fwhm_um,
                "fwhm_spread_um": found.fwhm_spread_um,
                "notes": found.psf.notes,
                "output": output,
            }
        )
    else:
        print(beads_text(found), end="")
        say(f"wrote {output}")
    return OK


def _bead_field(
    stack: Path, reading: InputParameters, output: Path, bead_um: float | None,
    overwrite: bool, json: bool,
) -> int:  # fmt: skip
    from pellucid.apps.psf_field_text import field_text
    from pellucid.stages.psf.field_files import distill_field_file, field_figures

    found = distill_field_file(stack, reading, output, bead_um=bead_um, overwrite=overwrite)
    if json:
        print_json({**field_figures(found), "notes": found.field.notes, "output": output})
    else:
        print(field_text(found.field), end="")
        say(f"wrote {output}")
    return OK


def _inspect_field(file: Path, picture: Path | None, json: bool) -> int:
    from pellucid.apps.psf_field_text import field_text
    from pellucid.data.psf_field_file import read_psf_field
    from pellucid.errors import ParameterError
    from pellucid.stages.psf.field_files import inspect_field

    if picture is not None:
        raise ParameterError("picture: of one PSF, not of a field. Leave it out.")
    field = read_psf_field(file)
    print_json(inspect_field(field)) if json else print(field_text(field), end="")
    return OK
