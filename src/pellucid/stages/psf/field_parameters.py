"""What can be chosen about a PSF field from theory."""

from pydantic import Field

from pellucid.stages.parameters import OpticsParameters, SpacingUm


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
