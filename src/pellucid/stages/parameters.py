"""What can be chosen: frozen models that serve the command line, YAML files, Python and the record.

Nothing heavy is imported here, so that `--help` stays quick.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pellucid.errors import ParameterError

Method = Literal[
    "matched", "gaussian", "butterworth", "wiener", "wiener-butterworth", "otf-masked-wiener"
]
Modality = Literal["widefield", "confocal", "two-photon", "light-sheet"]
Format = Literal["ome-zarr", "ome-tiff", "imagej-tiff"]
OutputType = Literal["float32", "uint16"]
OmeZarr = Literal["0.4", "0.5"]
Model = Literal["translation", "rigid", "similarity", "affine"]
OverTime = Literal["none", "once", "previous", "each", "smoothed"]

SUFFIXES: dict[str, str] = {"ome-zarr": ".ome.zarr", "ome-tiff": ".ome.tif", "imagej-tiff": ".tif"}


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


def listed(value: Any) -> Any:
    """One value or several, also as text with commas, as the sequence that they stand for."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    parts = [v.split(",") if isinstance(v, str) else [v] for v in values if v is not None]
    flat = tuple(p.strip() if isinstance(p, str) else p for part in parts for p in part)
    return None if value is None else flat


def _as_several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


def _cubed(value: Any) -> Any:
    """One size for all three axes, three sizes, or "auto" as (0, 0, 0)."""
    sizes = listed(value)
    if sizes in (None, ("none",)):
        return None
    return (0, 0, 0) if sizes == ("auto",) else sizes * 3 if len(sizes) == 1 else sizes


def size_in_bytes(value: Any) -> Any:
    """A size in words (2GiB, 500 MB) as bytes."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kmgt]?)(i?)b?\s*", value.lower())
    if found is None:
        raise ValueError("a size such as 2GiB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " kmgt".index(found[2] or " "))


Bytes = Annotated[int | None, BeforeValidator(size_in_bytes)]
Iterations = Annotated[int | None, BeforeValidator(_none_for_auto)]
Counts = Annotated[float | None, BeforeValidator(_none_for_auto)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(listed)]
FillOption = Annotated[
    float | Literal["auto", "none"],
    Field(
        description="What stands in voxels that were never recorded (corners of a deskewed volume, holes "
        "of a mosaic): a value, none, or auto to find it. They have no weight."
    ),
]
SpacingUm = Annotated[tuple[float, float, float] | None, BeforeValidator(listed)]
Chunks = Annotated[
    tuple[
        Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]
    ] | None,
    BeforeValidator(_cubed),
]
"""Of cores; zeros where the size is to be chosen."""
Sizes = Annotated[tuple[int, int, int] | None, BeforeValidator(listed)]
TileMemory = Annotated[
    Bytes,
    Field(description="Most memory to use, such as 2GiB; larger volumes are restored by tiles."),
]
TileCores = Annotated[
    Sizes, Field(description="Voxels z,y,x of the tiles' cores; else chosen.")
]
TileMakers = Annotated[
    str | None,
    Field(
        description="Who makes the tiles: local:N workers of this machine, tcp://host:port of a Dask "
        "scheduler, or a SLURM file (slurm.yaml)."
    ),
]
TileResume = Annotated[bool, Field(description="Go on with an interrupted run of tiles.")]
# A path may hold a comma, so these are not split.
Names = Annotated[tuple[str, ...], BeforeValidator(_as_several)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_several)]


class Parameters(BaseModel):
    """Base of every parameter model: frozen, and a name that does not exist is refused."""

    # in YAML, channel: 0 is a number, and typed it is text
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """The model of `values`; ParameterError in one sentence for what does not fit."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise parameter_error(error, list(cls.model_fields)) from None

    def plain(self) -> dict[str, Any]:
        """All parameters as JSON types, defaults included."""
        return self.model_dump(mode="json")


def parameter_error(error: ValidationError, names: list[str]) -> ParameterError:
    """The first complaint of pydantic as a sentence, with the name that may have been meant."""
    # a name that does not exist is why another is missing
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    name = str(first["loc"][0]) if first["loc"] else "parameters"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."
        return ParameterError(f"{name}: no such parameter. {hint}")
    if first["type"] == "missing" and len(first["loc"]) > 1:
        return ParameterError(f"{name}: expected more numbers, such as z,y,x.")
    if first["type"] == "missing":
        missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]
        flags = " ".join(f"--{one.replace('_', '-')}" for one in missing)
        return ParameterError(f"{', '.join(missing)}: needed, and not given ({flags}). See --help.")
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ParameterError(f"{name}: expected {said}, got {first['input']!r}.")


class OpticsParameters(Parameters):
    """The objective's numbers, from which a PSF is computed where none is given."""

    modality: Modality | None = Field(None, description="The kind of microscope.")
    na: float | None = Field(None, gt=0, description="Numerical aperture of the objective.")
    wavelength_nm: Numbers = Field(
        (), description="Emission wavelength; one for all channels or one for each (461,525)."
    )
    refractive_index: float | None = Field(
        None, description="Of the immersion: air 1.0, water 1.333, glycerol 1.45, oil 1.515."
    )
    excitation_nm: Numbers = Field(
        (), description="Excitation wavelength (confocal, two-photon); one or one for each channel."
    )
    pinhole_airy_units: float = Field(1.0, description="Diameter of the confocal pinhole.")
    sheet_fwhm_um: float | None = Field(None, description="Thickness (FWHM) of the light sheet.")
    illumination_na: float | None = Field(
        None, description="Aperture that makes the light sheet, in place of its thickness."
    )
    psf_shape: Sizes = Field(None, description="Voxels z,y,x of the computed PSF; else chosen.")

    def stated(self) -> list[str]:
        """Names of the optics that were given."""
        return [
            name
            for name, field in OpticsParameters.model_fields.items()
            if getattr(self, name) != field.default
        ]


class InputParameters(Parameters):
    """How input files are to be understood where they do not say it themselves."""

    voxel_um: SpacingUm = Field(
        None, description="Voxel size z,y,x in micrometres; overrides what the file says."
    )
    axes: str | None = Field(
        None, description="Axes of the stored array, such as tzyx, where the file is silent."
    )
    time: str | None = Field(None, description="Time points to take: 3, 0:3, or 0,2,5.")
    channel: str | None = Field(None, description="Channels to take, by number or name: 0,2.")
    image: int | None = Field(
        None, ge=0, description="Which image or view of a file that holds several, from 0; as file.xml#1."
    )


class MeasureParameters(InputParameters):
    """Everything that `pellucid measure` can be told."""

    input: str = Field(description="A TIFF, OME-TIFF, OME-Zarr or .npy.")
    output: Path | None = Field(None, description="Write the figures as JSON to this file.")
    fill: FillOption = "auto"
    overwrite: bool = Field(False, description="Replace an output that exists.")


class DeconvolveParameters(OpticsParameters, InputParameters):
    """Everything that `pellucid deconvolve` can be told."""

    inputs: Names = Field(min_length=1, description="Files, folders or patterns.")
    output: Path = Field(
        description="A file (.ome.zarr, .ome.tif, .tif), or a folder where there are many inputs."
    )
    psf: Paths = Field(
        (), description="PSF file; one for all channels, or repeated, one for each channel."
    )
    psf_voxel_um: SpacingUm = Field(
        None, description="Voxel size z,y,x of the PSF file where it does not say it."
    )
    method: Method = Field("wiener-butterworth", description="The back projector.")
    iterations: Iterations = Field(
        None, ge=1, le=1000, description="Exactly this many; auto stops by evidence."
    )
    background: Counts = Field(
        None, description="Counts of the empty regions, camera offset included; auto measures it."
    )
    fill: FillOption = "auto"
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    dtype: OutputType = Field("float32", description="uint16 is scaled, and the scale is kept.")
    format: Format = Field("ome-zarr", description="Of the outputs, where the output is a folder.")
    ome_zarr: OmeZarr = Field("0.5", description="0.4 for older Fiji and BigStitcher.")
    memory: TileMemory = None
    tile: TileCores = None
    cluster: TileMakers = None
    resume: TileResume = False
    overwrite: bool = Field(False, description="Replace outputs that exist.")
    report: bool = Field(False, description="Write a report with pictures beside each output.")
    seed: int = Field(0, description="Of the photon splitting that decides when to stop.")


class ViewParameters(Parameters):
    """How several views of one specimen are to be read."""

    voxel_um: Numbers = Field(
        (), description="Voxel size z,y,x in micrometres, for all views or for each in turn."
    )
    axes: str | None = Field(
        None, description="Axes of the stored array, such as tzyx, where the file is silent."
    )
    time: str | None = Field(
        None, description="Numbers of the time points to take: 3, 0:3, or 0,2,5."
    )
    channel: str | None = Field(None, description="Channels to take, by number or name: 0,2.")
    angles: Numbers = Field(
        (),
        description="Nominal angle of each view in degrees: 0,90; 0,0 if neither is turned. Needed, "
        "unless a file gives transforms.",
    )
    axis: str = Field("y", description="Axis of the angles: z, y, x, or a vector z,y,x.")


class RegistrationParameters(Parameters):
    """How views are registered to the first, over time and channels."""

    model: Model = Field("affine", description="What a transform may be.")
    start: str = Field(
        "auto",
        description="auto, identity (the nominal angle alone), translation, projections, search, or "
        "a file of transforms (.json, ITK .txt, .tmx, BigStitcher .xml).",
    )
    over_time: OverTime = Field(
        "each",
        description="none (apply the start), once (one time point for all), previous (each from the "
        "one before), each (alone), smoothed (each, then smoothed over time).",
    )
    at_time: int | None = Field(
        None, description="Number of the time point that registers where it is done once."
    )
    smooth_over: float = Field(
        2.0, gt=0, description="Time points over which transforms are smoothed (one sigma)."
    )
    reference: str = Field(
        "0", description="Channel that registers, by number or name; 0,1 or sum adds channels up."
    )


class RegisterParameters(RegistrationParameters, ViewParameters):
    """Everything that `pellucid register` can be told."""

    inputs: Names = Field(
        min_length=1,
        description="Each view: a file, a folder, a pattern with {t} and {c}, or dataset.xml#1; the first "
        "is fixed. One dataset of BigDataViewer gives all its views.",
    )
    output: Path = Field(description="The file of transforms, .json.")
    psf: Paths = Field((), description="PSF file; one for all views, or one for each.")
    psf_voxel_um: SpacingUm = Field(
        None, description="Voxel size z,y,x of the PSF files where they do not say it."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    itk: Path | None = Field(None, description="Folder for ITK transforms, a .txt for each.")
    bigstitcher: Path | None = Field(
        None,
        description="BigStitcher file to write, .xml: a copy of the views' own dataset, with what was "
        "found.",
    )
    picture: Path | None = Field(None, description="Picture of the transforms over time, .png.")
    registered: Path | None = Field(
        None, description="Folder for the views on the first view's voxels, OME-Zarr."
    )
    chunks: Chunks = Field(
        None,
        description="auto, or voxels of the first view (one number or z,y,x): register in chunks of "
        "this size, and fit one smooth field to them.",
    )
    cluster: str | None = Field(
        None,
        description="Who registers the chunks: local:N workers of this machine, tcp://host:port of a "
        "Dask scheduler, or a SLURM file (slurm.yaml).",
    )
    resume: bool = Field(False, description="Go on with an interrupted registration in chunks.")
    overwrite: bool = Field(False, description="Replace outputs that exist.")
