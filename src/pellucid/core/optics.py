"""The objective's numbers: what they must satisfy, and the lengths that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.errors import ParameterError

# What objectives for cover glasses are corrected for (ISO 8255-1).
DESIGN_COVERSLIP_UM = 170.0
DESIGN_COVERSLIP_INDEX = 1.515
# Full width at half maximum of a Gaussian beam in units of its 1/e^2 radius.
FWHM_PER_WAIST = float(np.sqrt(2.0 * np.log(2.0)))


@dataclass(frozen=True)
class Layers:
    """What lies between the emitter and the objective, where it is not what the design expects.

    Parameters
    ----------
    sample_index : refractive index around the emitter
    depth_um : of the emitter below the cover glass
    coverslip_um, coverslip_index : the cover glass in use; the design's is 170 um of 1.515
    design_index : immersion index of the design; None: the immersion in use
    working_distance_um : of the design, through its immersion
    """

    sample_index: float
    depth_um: float = 0.0
    coverslip_um: float = DESIGN_COVERSLIP_UM
    coverslip_index: float = DESIGN_COVERSLIP_INDEX
    design_index: float | None = None
    working_distance_um: float = 150.0

    def __post_init__(self) -> None:
        _check_index("sample_index", self.sample_index)
        _check_index("coverslip_index", self.coverslip_index)
        if self.design_index is not None:
            _check_index("design_index", self.design_index)
        if not (0.0 <= self.depth_um < 1e4 and 0.0 <= self.coverslip_um < 1e4):
            raise ParameterError(
                "Layers: expected a depth and a cover glass between 0 and 10000 um, got "
                f"{self.depth_um!r} and {self.coverslip_um!r}. Give micrometres."
            )


@dataclass(frozen=True)
class Optics:
    """An objective and the light it collects.

    Parameters
    ----------
    na : numerical aperture
    wavelength_nm : of the emission, in vacuum
    refractive_index : of the immersion (and of the sample, unless `layers` says otherwise)
    layers : sample, cover glass and immersion where they differ from the design (Gibson-Lanni)

    Raises
    ------
    ParameterError : an aperture that the immersion cannot carry; a wavelength in other units

    Examples
    --------
    >>> round(Optics(na=1.1, wavelength_nm=525, refractive_index=1.33).airy_radius_um, 3)
    0.291
    """

    na: float
    wavelength_nm: float
    refractive_index: float
    layers: Layers | None = None

    def __post_init__(self) -> None:
        check_wavelength_nm("wavelength_nm", self.wavelength_nm)
        _check_index("refractive_index", self.refractive_index)
        if not self.na > 0.0:
            raise ParameterError(f"na: expected a positive numerical aperture, got {self.na!r}.")
        if self.na >= self.refractive_index:
            raise ParameterError(
                f"na: expected an aperture below the refractive index {self.refractive_index:g}, "
                f"got {self.na:g}. NA = n sin(angle), so this objective needs another immersion: "
                "give its index (air 1.0, water 1.333, glycerol 1.45, oil 1.515)."
            )

    @property
    def wavelength_um(self) -> float:
        """Vacuum wavelength in micrometres."""
        return self.wavelength_nm * 1e-3

    @property
    def aperture_na(self) -> float:
        """The aperture that light from the sample can fill, up to its critical angle."""
        if self.layers is None:
            return self.na
        # Grazing light carries no energy into the objective; 0.1 % keeps the phase finite.
        return min(self.na, 0.999 * self.layers.sample_index, 0.999 * self.layers.coverslip_index)

    @property
    def airy_radius_um(self) -> float:
        """First dark ring, 0.61 wavelength / NA (Born and Wolf, 8.5.2)."""
        return 0.61 * self.wavelength_um / self.na

    @property
    def axial_width_um(self) -> float:
        """Axial FWHM of the focus, 0.88 wavelength / (n - sqrt(n^2 - NA^2)) (uniform pupil)."""
        return 0.88 * self.wavelength_um / _axial_span(self.refractive_index, self.aperture_na)

    def at(self, wavelength_nm: float) -> Optics:
        """The same objective at another wavelength."""
        return Optics(self.na, wavelength_nm, self.refractive_index, self.layers)


def nyquist_um(optics: Optics, excitation_nm: float | None = None) -> tuple[float, float]:
    """Largest voxel (axial, lateral) in micrometres that keeps all that the microscope transmits.

    Half the period of the finest detail: wavelength / (4 NA) laterally, wavelength /
    (2 (n - sqrt(n^2 - NA^2))) axially. With `excitation_nm` for a product of excitation and
    detection through the same objective (confocal), whose bands add.
    """
    lateral_per_um = 4.0 * optics.na / optics.wavelength_um
    span = _axial_span(optics.refractive_index, optics.aperture_na)
    axial_per_um = 2.0 * span / optics.wavelength_um
    share = 1.0 if excitation_nm is None else 1.0 + optics.wavelength_nm / excitation_nm
    return 1.0 / (axial_per_um * share), 1.0 / (lateral_per_um * share)


def sheet_fwhm_um(illumination_na: float, excitation_nm: float) -> float:
    """Thickness (FWHM) of a Gaussian light sheet at its waist.

    The waist is wavelength / (pi NA), NA being that of the 1/e^2 cone (in the medium).
    """
    check_wavelength_nm("excitation_nm", excitation_nm)
    if not 0.0 < illumination_na < 1.5:
        raise ParameterError(
            f"illumination_na: expected an aperture between 0 and 1.5, got {illumination_na!r}."
        )
    return FWHM_PER_WAIST * excitation_nm * 1e-3 / (np.pi * illumination_na)


def check_wavelength_nm(name: str, wavelength_nm: float) -> None:
    """Refuses a wavelength that is not light in nanometres."""
    if 200.0 <= wavelength_nm <= 3000.0:
        return
    hint = ""
    if 0.2 <= wavelength_nm <= 3.0:
        hint = f" {wavelength_nm:g} looks like micrometres: give {1000.0 * wavelength_nm:g}."
    raise ParameterError(f"{name}: expected nanometres, 200 to 3000, got {wavelength_nm!r}.{hint}")


def _check_index(name: str, index: float) -> None:
    if not 1.0 <= index <= 2.5:
        raise ParameterError(
            f"{name}: expected a refractive index from 1.0 to 2.5, got {index!r} "
            "(air 1.0, water 1.333, glycerol 1.45, oil 1.515)."
        )


def _axial_span(index: float, na: float) -> float:
    """n - sqrt(n^2 - NA^2), without cancellation at low apertures."""
    return na**2 / (index + float(np.sqrt(index**2 - na**2)))
