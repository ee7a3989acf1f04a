"""Everything that `pellucid fuse` can be told; nothing heavy is imported here."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pellucid.stages.parameters import (
    Bytes,
    Counts,
    FillOption,
    Iterations,
    Names,
    OmeZarr,
    OpticsParameters,
    OutputType,
    Paths,
    RegistrationParameters,
    Sizes,
    SpacingUm,
    ViewParameters,
)

FuseMethod = Literal["joint", "resample-then-joint", "average", "content-average"]


class FuseParameters(OpticsParameters, ViewParameters, RegistrationParameters):
    """Everything that `pellucid fuse` can be told."""

    inputs: Names = Field(min_length=1, description="Views: files, folders, patterns, or dataset.xml#1.")
    output: Path = Field(description="A file: .ome.zarr, .ome.tif or .tif.")
    stage_scan: Names = Field(
        (), description="step,angle[,direction] of raw stage scans; one for all views or for each."
    )
    psf: Paths = Field((), description="PSF file: one that every view has, or one for each view.")
    psf_voxel_um: SpacingUm = Field(None, description="Voxel size z,y,x of the PSF file.")
    method: FuseMethod = Field("joint", description="How views become one volume.")
    iterations: Iterations = Field(
        None, ge=1, le=1000,
        description="Exactly this many matched ones, view after view; auto stops by evidence.",
    )  # fmt: skip
    background: Counts = Field(
        None, description="Counts of the empty regions, camera offset included; auto measures it."
    )
    background_image: Paths = Field(
        (), description="Image of the empty field to subtract; one, or one for each view."
    )
    transforms: Path | None = Field(
        None,
        description="File of transforms to apply in place of registration: .json of fuse or register, "
        "BigStitcher .xml, ITK .txt, .tmx.",
    )
    spacing_um: float | None = Field(
        None, gt=0, description="Isotropic voxel of the result; else the finest of the views."
    )
    cover: Literal["all", "overlap"] = Field("all", description="What the result covers.")
    crop: str | None = Field(
        None, description="auto (what is above background), or z0:z1,y0:y1,x0:x1 of the result."
    )
    registered_views: bool = Field(False, description="Write the views on the result's voxels too.")
    projections: bool = Field(
        True, description="Write maximum projections, also while turning; =false leaves them out."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    fill: FillOption = "auto"
    dtype: OutputType = Field("float32", description="uint16 is scaled, and the scale is kept.")
    ome_zarr: OmeZarr = Field("0.5", description="0.4 for older Fiji and BigStitcher.")
    memory: Bytes = Field(
        None, description="Most memory to use, such as 4GiB; what is larger is fused by blocks."
    )
    tile: Sizes = Field(None, description="Voxels z,y,x of the result's blocks; else chosen.")
    cluster: str | None = Field(
        None,
        description="Who makes the blocks: local:N workers of this machine, tcp://host:port of a Dask "
        "scheduler, or a SLURM file (slurm.yaml).",
    )
    overwrite: bool = Field(False, description="Replace outputs that exist.")
    resume: bool = Field(False, description="Go on with an interrupted run.")
    seed: int = Field(0, description="Of the photon splitting that decides when to stop.")
