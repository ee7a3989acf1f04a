"""What can be chosen when networks are trained and used."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pellucid.stages.parameters import (
    Names,
    Numbers,
    Parameters,
    Paths,
    SpacingUm,
    TileCores,
    TileMakers,
    TileMemory,
    TileResume,
    listed,
)


def _pair(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


Range = Annotated[tuple[float, float], BeforeValidator(_pair)]
Voxels = Annotated[tuple[int, int, int], BeforeValidator(listed)]
Polish = Annotated[
    Literal["auto", "0", "1", "2", "3"],
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
]
"""YAML reads 0 as a number."""

MIXTURE = (
    "filaments", "nuclei", "points", "grains", "vessels", "haze", "filaments+nuclei", "points+nuclei",
    "filaments+haze", "nuclei+haze", "points+haze", "grains+vessels",
)  # fmt: skip
"""Structures with edges and without, alone and in each other's light."""

STOPPING = ("shells", "meshes", "cells")


class TrainParameters(Parameters):
    """A recipe: everything that `pellucid train` can be told."""

    output: Path = Field(description="Folder of the model.")
    psf: Paths = Field(
        min_length=1, description="PSF file of the microscope, PSF field (.npz) for blur that varies, or a "
        "PSF for each of several views.",
    )  # fmt: skip
    angles: Numbers = Field(
        (), description="Nominal angle of each of several views in degrees, as 0,90."
    )
    axis: str = Field("y", description="Axis of the angles: z, y, x, or a vector z,y,x.")
    transforms: Path | None = Field(
        None, description="How several views stand, in place of angles: .json of register, ITK .txt."
    )
    voxel_um: SpacingUm = Field(None, description="Voxel size z,y,x of the images to restore.")
    modality: str = Field("unknown", description="Kind of microscope, kept in the card.")
    source: Literal["simulated", "teacher", "pairs"] = Field(
        "simulated", description="Simulated structures, recordings with the classical solution, pairs."
    )
    recordings: Paths = Field((), description="Recordings, for teacher and pairs.")
    truths: Paths = Field((), description="What they should become, in the same order, for pairs.")
    structures: Names = Field(MIXTURE, description="To train on.")
    held_out: Names = Field(STOPPING, description="Structures that stop the training.")
    peak_photons: Range = Field((15.0, 600.0), description="Brightest voxel, lowest and highest.")
    background_photons: Range = Field((0.5, 10.0), description="Background, lowest and highest.")
    shape: Voxels = Field((32, 64, 64), description="Voxels z,y,x of a simulated recording.")
    patch: Voxels = Field((24, 32, 32), description="Voxels z,y,x of a training patch.")
    steps: int = Field(4000, ge=1, description="At most this many, of all networks together.")
    batch: int = Field(1, ge=1, description="Patches a step.")
    reuse: int = Field(3, ge=1, description="Steps that one simulated recording serves.")
    learning_rate: float = Field(2e-3, gt=0, description="At the start.")
    validate_every: int = Field(100, ge=1, description="Steps between looks and checkpoints.")
    patience: int = Field(20, ge=1, description="Looks without a new best that end it.")
    passes: int = Field(1, ge=1, le=4, description="Networks, each refining the answer before it.")
    width: int = Field(16, ge=4, le=64, description="Features of the network.")
    calibration: int = Field(40, ge=2, description="Recordings that the verdict is fitted on.")
    calibrated_on: Names = Field(
        (), description="Structures that verdict and cure are fitted on; all, if none is given."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    licence: str = Field("not stated", description="Of the model, kept in the card.")
    seed: int = Field(0, description="Of everything.")
    overwrite: bool = Field(False, description="Replace a model that exists.")


class RestoreParameters(Parameters):
    """Everything that `pellucid restore` can be told."""

    input: Path = Field(description="A recording; of several views the first.")
    views: Names = Field((), description="The other views, in the order that the model knows.")
    transforms: Path | None = Field(
        None,
        description="File of transforms of several views, as fuse takes; else they are registered first.",
    )
    model: Path = Field(description="Folder of a model.")
    output: Path = Field(description=".ome.zarr, .ome.tif or .tif.")
    polish: Polish = Field("0", description="Physical iterations after the network.")
    verdict: Path | None = Field(None, description="Where to write the map of what to believe.")
    voxel_um: SpacingUm = Field(None, description="Overrides what the file says.")
    modality: str | None = Field(None, description="Refuse a model of another modality.")
    time: str | None = Field(None, description="Time points to take: 3, 0:3, or 0,2,5.")
    channel: str | None = Field(None, description="Channels to take, by number or name: 0,2.")
    fall_back: bool = Field(False, description="Shrink towards the classical solution where better.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    memory: TileMemory = None
    tile: TileCores = None
    cluster: TileMakers = None
    resume: TileResume = False
    overwrite: bool = Field(False, description="Replace outputs that exist.")


class ExportParameters(Parameters):
    """Everything that `pellucid model export` can be told."""

    model: Path = Field(description="Folder of a model.")
    output: Path = Field(description="Folder of the package.")
    name: str = Field("Pellucid restoration", description="Of the model, for its readers.")
    authors: Names = Field(("The Pellucid developers",), description="Of the model.")
    licence: str | None = Field(None, description="SPDX name of the licence; else the card's.")
    overwrite: bool = Field(False, description="Replace a package that exists.")
