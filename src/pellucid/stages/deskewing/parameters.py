"""What can be chosen about stage scans: how they were recorded, and how they are stood up."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pellucid.stages.parameters import InputParameters, OmeZarr, Parameters, SpacingUm

if TYPE_CHECKING:
    from pellucid.core.deskew import StageScan

DeskewType = Literal["as-input", "float32"]


class ScanParameters(Parameters):
    """How a stage-scanned or oblique stack was recorded."""

    step_um: float = Field(gt=0, description="Distance that the stage travels between two planes.")
    angle_deg: float = Field(
        gt=0, le=90, description="Between the sheet and the stage's travel: 45 for a diSPIM."
    )
    direction: int = Field(
        1, description="1 if a resting structure moves towards smaller x with every plane, else -1."
    )

    def scan(self, pixel_um: tuple[float, float]) -> "StageScan":
        """The geometry, with camera pixels of (y, x) micrometres."""
        from pellucid.core.deskew import StageScan

        return StageScan(self.step_um, math.radians(self.angle_deg), pixel_um, self.direction)


class DeskewParameters(ScanParameters, InputParameters):
    """Everything that `pellucid deskew` can be told."""

    input: str = Field(description="One recording: TIFF, OME-TIFF, OME-Zarr, .npy.")
    output: Path = Field(description="A file: .ome.zarr, .ome.tif or .tif.")
    pixel_um: float | None = Field(
        None, gt=0, description="Camera pixel in the specimen; overrides what the file says."
    )
    frame: Literal["coverslip", "view"] = Field(
        "coverslip", description="x along the stage, or (view) z along the detection axis."
    )
    spacing_um: SpacingUm = Field(
        None, description="Voxels z,y,x of the result; else the camera's pixel, isotropic."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1.")
    dtype: DeskewType = Field("as-input", description="float32 keeps what interpolation gives.")
    ome_zarr: OmeZarr = Field("0.5", description="0.4 for older Fiji and BigStitcher.")
    overwrite: bool = Field(False, description="Replace outputs that exist.")
