"""What can be chosen about a PSF field from theory, and about one of a light sheet."""

from pydantic import Field

from pellucid.stages.parameters import OpticsParameters, Parameters, SpacingUm


class DepthFieldParameters(OpticsParameters):
    """Everything that `pellucid psf field` can be told."""

    voxel_um: SpacingUm = Field(
        None, description="Voxel size z,y,x in micrometres; z is the way of the stage."
    )
    sample_index: float | None = Field(None, description="Refractive index around the emitters.")
    planes: int | None = Field(None, ge=2, description="Planes of the image to be deconvolved.")
    first_um: float = Field(
        0.0, ge=0, description="Way of the stage from the cover glass in focus to the first plane."
    )
    coverslip_um: float = Field(170.0, description="Thickness of the cover glass.")
    coverslip_index: float = Field(1.515, description="Refractive index of the cover glass.")
    working_distance_um: float = Field(150.0, description="Working distance of the objective.")


class SheetParameters(Parameters):
    """Everything that `pellucid psf sheet` can be told."""

    fwhm_um: float = Field(description="Thickness (FWHM) of the light sheet at its waist.")
    wavelength_nm: float = Field(description="Of the light of the sheet, in vacuum.")
    columns: int = Field(ge=2, description="Voxels of the image along x, the way of the light.")
    waist_um: float | None = Field(
        None, description="x of the waist from the image's first voxel; else the middle."
    )
    refractive_index: float = Field(1.333, description="Of the medium.")
    voxel_um: SpacingUm = Field(
        None, description="Voxel size z,y,x of the image, where the PSF file is silent."
    )
