"""PSFs from the objective's numbers: Gaussian, widefield, confocal, two-photon, light sheet.

Every voxel holds the average of the model over its extent. Where no shape is given it is odd and as
large as needed to hold 99 % of the light, up to 129 voxels an axis. A widefield PSF has no end in z
(every plane holds the same light), so it reaches six axial widths to either side: give `shape` to
see further, up to twice the depth of the stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from scipy.special import erf

from pellucid.core.diffraction import (
    Array,
    Profile,
    focal_shift_um,
    scalar_intensity,
    through_pinhole,
    vectorial_intensity,
    voxels,
)
from pellucid.core.optics import Layers, Optics, check_wavelength_nm, nyquist_um
from pellucid.core.optics import sheet_fwhm_um as gaussian_sheet_fwhm_um
from pellucid.core.psf import FWHM_PER_SIGMA, Psf, Triple, check_spacing_um
from pellucid.errors import ParameterError

Modality = Literal["widefield", "confocal", "two-photon", "light-sheet"]
Shape = tuple[int | None, int | None, int | None]

LIGHT_WITHIN = 0.99
LARGEST_HALF = 64
WIDEFIELD_WIDTHS = 6.0
# Above this sine of the aperture angle the polarisation widens the focus by more than 3 %.
VECTORIAL_FROM = 0.6


def theoretical_psf(
    modality: Modality,
    spacing_um: Triple,
    *,
    na: float,
    wavelength_nm: float,
    refractive_index: float,
    shape: Shape | None = None,
    vectorial: bool | None = None,
    layers: Layers | None = None,
    excitation_nm: float | None = None,
    pinhole_airy_units: float = 1.0,
    sheet_fwhm_um: float | None = None,
    illumination_na: float | None = None,
) -> Psf:
    """The PSF of a microscope from its numbers.

    Parameters
    ----------
    modality : "widefield", "confocal", "two-photon" or "light-sheet"
    spacing_um : voxel size (z, y, x) in micrometres
    na, wavelength_nm, refractive_index, layers : see `Optics`; the wavelength is the emission's
    shape : voxels (z, y, x), None (for all or one) to choose; (1, None, None) for a 2D image
    vectorial : polarisation taken into account; None decides by the aperture
    excitation_nm : confocal and two-photon; light sheet with `illumination_na`
    pinhole_airy_units : diameter of the confocal pinhole; 1 is 1.22 wavelength / NA
    sheet_fwhm_um, illumination_na : thickness of the light sheet, or the aperture that makes it

    Raises
    ------
    ParameterError : a number that is impossible, missing, or in another unit

    Examples
    --------
    >>> psf = theoretical_psf("light-sheet", (0.3, 0.1, 0.1), na=1.1, wavelength_nm=525,
    ...                       refractive_index=1.33, sheet_fwhm_um=1.0, shape=(9, 15, 15))
    >>> psf.shape
    (9, 15, 15)
    """
    optics = Optics(na, wavelength_nm, refractive_index, layers)
    if modality == "widefield":
        return widefield(optics, spacing_um, shape, vectorial=vectorial)
    if modality == "light-sheet":
        sheet = _sheet(sheet_fwhm_um, illumination_na, excitation_nm)
        return light_sheet(optics, spacing_um, shape, sheet_fwhm_um=sheet, vectorial=vectorial)
    if modality not in get_args(Modality):
        raise ParameterError(
            f"modality: expected one of {', '.join(get_args(Modality))}, got {modality!r}."
        )
    if excitation_nm is None:
        raise ParameterError(
            f"excitation_nm: a {modality} PSF needs the excitation wavelength in nanometres."
        )
    if modality == "two-photon":
        return two_photon(optics.at(excitation_nm), spacing_um, shape, vectorial=vectorial)
    return confocal(
        optics, spacing_um, shape, excitation_nm=excitation_nm,
        pinhole_airy_units=pinhole_airy_units, vectorial=vectorial,
    )  # fmt: skip


def focus_um(optics: Optics) -> float:
    """Stage position at which an emitter is in focus, from where one at the cover glass is.

    Paraxially the depth times immersion index / sample index; high apertures focus elsewhere, and
    the brightest point counts. The stage's way is the z of images and of PSFs alike.
    """
    if optics.layers is None:
        return 0.0
    model = _focus_model(optics, None)
    shift = focal_shift_um(lambda depth: model(optics, np.zeros(1), depth)[0], optics)
    layers = optics.layers
    return layers.depth_um * optics.refractive_index / layers.sample_index + shift


def _sheet(fwhm_um: float | None, na: float | None, excitation_nm: float | None) -> float:
    if fwhm_um is not None:
        return fwhm_um
    if na is None or excitation_nm is None:
        raise ParameterError(
            "sheet_fwhm_um: a light-sheet PSF needs the sheet's thickness in micrometres, or "
            "illumination_na together with excitation_nm."
        )
    return gaussian_sheet_fwhm_um(na, excitation_nm)


def gaussian(fwhm_um: Triple, spacing_um: Triple, shape: Shape | None = None) -> Psf:
    """A Gaussian PSF of the given full widths (z, y, x) at half maximum, integrated over voxels."""
    spacing = _spacing(spacing_um)
    if not all(np.isfinite(w) and w > 0 for w in fwhm_um):
        raise ParameterError(f"fwhm_um: expected three positive micrometres, got {fwhm_um!r}.")
    lines = []
    for width, step, size in zip(fwhm_um, spacing, shape or (None, None, None), strict=True):
        sigma = width / step / FWHM_PER_SIGMA
        # 3.2 sigma to either side hold 99.9 % of a Gaussian.
        count = size or 2 * max(1, int(np.ceil(3.2 * sigma))) + 1
        borders = (np.arange(count + 1) - count // 2 - 0.5) / sigma
        lines.append(np.diff(erf(borders / np.sqrt(2.0))) if count > 1 else np.ones(1))
    values = np.einsum("z,y,x->zyx", *lines)
    widths = ", ".join(f"{w:.4g}" for w in fwhm_um)
    return Psf.normalised(values, spacing, (f"Gaussian, FWHM ({widths}) um",))


def widefield(
    optics: Optics, spacing_um: Triple, shape: Shape | None = None, *, vectorial: bool | None = None
) -> Psf:
    """What a camera sees of a point when the whole depth is lit: a double cone without end."""
    model = _focus_model(optics, vectorial)
    profile = _focused(lambda r, z: model(optics, r, z), optics)
    reach_um = WIDEFIELD_WIDTHS * optics.axial_width_um
    return _psf(profile, optics, spacing_um, shape, ("widefield", model), axial_reach_um=reach_um)


def light_sheet(
    optics: Optics,
    spacing_um: Triple,
    shape: Shape | None = None,
    *,
    sheet_fwhm_um: float,
    vectorial: bool | None = None,
) -> Psf:
    """Detection times a Gaussian sheet across z, centred on the focal plane."""
    if not (np.isfinite(sheet_fwhm_um) and 0.05 <= sheet_fwhm_um <= 500.0):
        raise ParameterError(
            f"sheet_fwhm_um: expected micrometres between 0.05 and 500, got {sheet_fwhm_um!r}."
        )
    model = _focus_model(optics, vectorial)
    detection = _focused(lambda r, z: model(optics, r, z), optics)
    sigma = sheet_fwhm_um / FWHM_PER_SIGMA

    def profile(radius_um: Array, depth_um: Array) -> Array:
        return detection(radius_um, depth_um) * np.exp(-0.5 * (depth_um / sigma) ** 2)

    name = f"light sheet of {sheet_fwhm_um:.3g} um"
    return _psf(profile, optics, spacing_um, shape, (name, model))


def confocal(
    optics: Optics,
    spacing_um: Triple,
    shape: Shape | None = None,
    *,
    excitation_nm: float,
    pinhole_airy_units: float = 1.0,
    vectorial: bool | None = None,
) -> Psf:
    """Excitation times detection averaged over the pinhole (both through the same objective)."""
    check_wavelength_nm("excitation_nm", excitation_nm)
    if not 0.0 <= pinhole_airy_units <= 100.0:
        raise ParameterError(
            f"pinhole_airy_units: expected a diameter of 0 to 100 Airy units, got "
            f"{pinhole_airy_units!r}. Give the pinhole divided by 1.22 wavelength / NA."
        )
    model, lit = _focus_model(optics, vectorial), optics.at(excitation_nm)

    def detection(radius_um: Array, depth_um: Array) -> Array:
        return model(optics, radius_um, depth_um)

    radius = pinhole_airy_units * optics.airy_radius_um
    seen = through_pinhole(detection, radius, optics) if radius > 0.0 else detection
    profile = _focused(lambda r, z: model(lit, r, z) * seen(r, z), optics)
    name = f"confocal, excitation {excitation_nm:g} nm, pinhole {pinhole_airy_units:g} Airy units"
    return _psf(profile, optics, spacing_um, shape, (name, model), excitation_nm=excitation_nm)


def two_photon(
    excitation: Optics,
    spacing_um: Triple,
    shape: Shape | None = None,
    *,
    vectorial: bool | None = None,
) -> Psf:
    """The squared excitation, as all emission is collected; `excitation` has the laser's light."""
    model = _focus_model(excitation, vectorial)
    profile = _focused(lambda r, z: model(excitation, r, z) ** 2, excitation)
    nm = excitation.wavelength_nm
    return _psf(profile, excitation, spacing_um, shape, ("two-photon", model), excitation_nm=nm)


Model = Callable[[Optics, Array, Array], Array]


def _focus_model(optics: Optics, vectorial: bool | None) -> Model:
    if vectorial is None:
        vectorial = optics.aperture_na / optics.refractive_index > VECTORIAL_FROM
    return vectorial_intensity if vectorial else scalar_intensity


def _focused(profile: Profile, optics: Optics) -> Profile:
    """The profile with depth 0 at its brightest point."""
    shift = focal_shift_um(lambda depth: profile(np.zeros(1), depth)[0], optics)
    return lambda radius_um, depth_um: profile(radius_um, depth_um + shift)


def _spacing(spacing_um: Triple) -> Triple:
    spacing = check_spacing_um(spacing_um)
    if spacing is None:
        raise ParameterError("spacing_um: a theoretical PSF needs the voxel size (z, y, x) in um.")
    return spacing


def _psf(
    profile: Profile,
    optics: Optics,
    spacing_um: Triple,
    shape: Shape | None,
    names: tuple[str, Model],
    *,
    excitation_nm: float | None = None,
    axial_reach_um: float | None = None,
) -> Psf:
    spacing = _spacing(spacing_um)
    sizes = _sizes(profile, spacing, shape, axial_reach_um)
    finest = nyquist_um(optics, excitation_nm)
    values = voxels(profile, sizes, spacing, optics, finest)
    kind = "vectorial" if names[1] is vectorial_intensity else "scalar"
    note = (
        f"{names[0]}, {kind}: NA {optics.na:g}, {optics.wavelength_nm:g} nm, "
        f"refractive index {optics.refractive_index:g}"
    )
    notes = [note, *_cut_notes(optics), *_sampling_notes(sizes, spacing, finest)]
    notes += _end_notes(sizes, shape or (None, None, None))
    return Psf.normalised(values, spacing, tuple(notes))


def _sizes(
    profile: Profile, spacing: Triple, shape: Shape | None, axial_reach_um: float | None
) -> tuple[int, int, int]:
    """The sizes asked for, odd ones that hold 99 % of the light where None is."""
    asked = shape or (None, None, None)
    if len(asked) != 3 or any(size is not None and size < 1 for size in asked):
        raise ParameterError(f"shape: expected three positive sizes (z, y, x), got {shape!r}.")
    if None not in asked:
        return asked[0] or 1, asked[1] or 1, asked[2] or 1
    # Half a voxel is fine enough for sums of light.
    radius: Array = np.arange(2 * LARGEST_HALF + 1) * np.float64(0.5 * max(spacing[1:]))
    half_z = LARGEST_HALF if asked[0] is None else asked[0] // 2
    if axial_reach_um is not None and asked[0] is None:
        half_z = int(np.clip(np.ceil(axial_reach_um / spacing[0]), 1, LARGEST_HALF))
    rings = profile(radius, np.arange(half_z + 1) * np.float64(spacing[0])) * radius[:, None]
    if axial_reach_um is None and asked[0] is None:
        half_z = _half_within(rings.sum(axis=0), twice=True)
    around = _half_within(rings[:, : half_z + 1].sum(axis=1), twice=False) * 0.5 * max(spacing[1:])
    halves = (half_z, *(int(np.clip(np.ceil(around / s), 1, LARGEST_HALF)) for s in spacing[1:]))
    z, y, x = (
        2 * half + 1 if size is None else size for half, size in zip(halves, asked, strict=True)
    )
    return z, y, x


def _half_within(light: Array, twice: bool) -> int:
    """Index up to which 99 % of the light lies; `twice`: all but the first stand for two."""
    counted = light * np.where(np.arange(light.size) == 0, 1.0, 2.0) if twice else light
    within = np.cumsum(counted)
    return max(1, int(np.searchsorted(within, LIGHT_WITHIN * within[-1])))


def _cut_notes(optics: Optics) -> list[str]:
    if optics.aperture_na >= optics.na:
        return []
    return [
        f"the sample lets light through up to NA {optics.aperture_na:.3g} only, below the "
        f"objective's {optics.na:g}"
    ]


def _end_notes(sizes: tuple[int, int, int], asked: Shape) -> list[str]:
    largest = 2 * LARGEST_HALF + 1
    full = [
        name
        for name, size, given in zip("zyx", sizes, asked, strict=True)
        if given is None and size == largest
    ]
    if not full:
        return []
    return [f"ends at {largest} voxels in {', '.join(full)}: give a shape to see more of its tail"]


def _sampling_notes(
    sizes: tuple[int, int, int], spacing: Triple, finest: tuple[float, float]
) -> list[str]:
    coarse = [
        f"{step:g} um in {name} (limit {limit:.3g})"
        for name, step, limit, size in zip(
            "zyx", spacing, (finest[0], finest[1], finest[1]), sizes, strict=True
        )
        if step > limit * 1.001 and size > 1
    ]
    if not coarse:
        return []
    return [f"voxels are coarser than the Nyquist limit: {', '.join(coarse)}"]
