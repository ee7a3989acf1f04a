"""Everything that `pellucid stitch` can be told; nothing heavy is imported here."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pellucid.stages.parameters import (
    Counts,
    InputParameters,
    Names,
    Numbers,
    OmeZarr,
    SpacingUm,
    listed,
)

StitchType = Literal["as-input", "float32"]


Places = Annotated[tuple[int, ...], BeforeValidator(listed)]

OVERLAP = 0.1
"""Part of a tile that neighbours share where nobody says; what most acquisitions use."""


class StitchParameters(InputParameters):
    """Everything that `pellucid stitch` can be told."""

    inputs: Names = Field(
        min_length=1,
        description="Tiles: files, a folder, or a pattern with indices such as tile_{y}_{x}.tif.",
    )
    output: Path = Field(description="A file: .ome.zarr, .ome.tif or .tif.")
    positions: Path | None = Field(
        None, description="CSV or JSON with name,z,y,x of each tile in micrometres."
    )
    grid: str | None = Field(None, description="ROWSxCOLUMNS, where files are numbered in order.")
    order: Literal["raster", "snake"] = Field(
        "raster", description="Of the numbered files: snake turns round after every row."
    )
    missing: Places = Field(
        (), description="Places of the order, from 0, for which there is no file: 3,7."
    )
    overlap: Numbers = Field(
        (), description="Part of a tile that its neighbour repeats: one number (0.1) or z,y,x."
    )
    registration: Literal["links", "none"] = Field(
        "links", description="none trusts the positions as they are."
    )
    reference: str = Field("0", description="Channel that registers, by number or name.")
    at_time: int = Field(0, ge=0, description="Time point that registers, from 0; all follow it.")
    margin_um: SpacingUm = Field(
        None,
        description="How far off two tiles may be, z,y,x; else a twentieth of a tile, at least ten "
        "voxels (in z a quarter of the planes at most).",
    )
    flat_field: str = Field(
        "none", description="none, auto (from the tiles themselves, ten or more), or an image FILE."
    )
    gains: Literal["auto", "none"] = Field(
        "auto", description="Make tiles equally bright by what they show in common."
    )
    background: Counts = Field(
        None, description="Counts of the empty regions, camera offset included; auto measures it."
    )
    picture: bool = Field(True, description="Draw the placement and its links beside the output.")
    dtype: StitchType = Field("as-input", description="float32 keeps what interpolation gives.")
    ome_zarr: OmeZarr = Field("0.5", description="0.4 for older Fiji and BigStitcher.")
    overwrite: bool = Field(False, description="Replace outputs that exist.")

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: str | None) -> str | None:
        if grid is not None and not re.fullmatch(r"[1-9]\d*[xX][1-9]\d*", grid):
            raise ValueError("ROWSxCOLUMNS such as 3x4")
        return grid

    @field_validator("overlap")
    @classmethod
    def _check_overlap(cls, overlap: tuple[float, ...]) -> tuple[float, ...]:
        if len(overlap) not in (0, 1, 3) or not all(0 <= share < 0.9 for share in overlap):
            raise ValueError("one share from 0 to 0.9, or three for z,y,x")
        return overlap

    @model_validator(mode="after")
    def _check_layout(self) -> "StitchParameters":
        if self.positions is not None and self.grid is not None:
            raise ValueError("either positions or a grid, since both say where tiles are")
        return self

    @property
    def overlap_zyx(self) -> tuple[float, float, float]:
        """The overlap along each axis."""
        z, y, x = self.overlap if len(self.overlap) == 3 else (self.overlap or (OVERLAP,)) * 3
        return z, y, x

    @property
    def rows_columns(self) -> tuple[int, int]:
        """The grid as numbers."""
        assert self.grid is not None
        rows, columns = self.grid.lower().split("x")
        return int(rows), int(columns)
