"""Theoretical PSFs against analytic optics, conservation laws and an independent program."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf, j1

from pellucid.core.diffraction import (
    radii_um,
    scalar_intensity,
    through_pinhole,
    vectorial_intensity,
)
from pellucid.core.optics import Layers, Optics, nyquist_um, sheet_fwhm_um
from pellucid.core.psf import core_centre, fwhm_um
from pellucid.core.psf_theory import confocal, gaussian, light_sheet, theoretical_psf, widefield
from pellucid.errors import ParameterError

WATER = Optics(na=1.1, wavelength_nm=525, refractive_index=1.33)
LOW = Optics(na=0.3, wavelength_nm=500, refractive_index=1.0)
ORACLE = json.loads((Path(__file__).parent / "oracle_psf.json").read_text())
DRY = {"na": 0.8, "wavelength_nm": 525, "refractive_index": 1.0}


# --- profiles


def test_focus_is_the_airy_pattern():
    radius = np.linspace(0.0, 2.0, 201)
    v = 2.0 * np.pi * WATER.na / WATER.wavelength_um * radius
    airy = np.divide(2.0 * j1(v), v, out=np.ones_like(v), where=v > 0) ** 2
    got = scalar_intensity(WATER, radius, np.zeros(1))[:, 0]
    assert got / got[0] == pytest.approx(airy, abs=1e-10)
    dark = radius[int(np.argmin(got[:40]))]
    assert dark == pytest.approx(0.61 * 0.525 / 1.1, abs=0.01)
    assert dark == pytest.approx(WATER.airy_radius_um, abs=0.01)


def test_axial_profile_is_the_squared_sinc_at_low_aperture():
    optics, depth = Optics(0.05, 500, 1.0), np.linspace(-500.0, 500.0, 301)
    got = scalar_intensity(optics, np.zeros(1), depth)[0]
    u = np.pi * optics.na**2 * depth / (2.0 * optics.wavelength_um)
    assert got / got.max() == pytest.approx(np.sinc(u / np.pi) ** 2, abs=0.001)


def test_vectorial_becomes_scalar_at_low_aperture():
    optics = Optics(0.1, 500, 1.0)
    radius, depth = np.linspace(0.0, 10.0, 101), np.linspace(-60.0, 60.0, 11)
    scalar, vectorial = (f(optics, radius, depth) for f in (scalar_intensity, vectorial_intensity))
    assert np.abs(scalar - vectorial).max() < 0.004 * scalar.max()
    assert vectorial_intensity(WATER, radius, depth)[3, 5] != pytest.approx(
        scalar_intensity(WATER, radius, depth)[3, 5], rel=0.05
    )


@pytest.mark.parametrize("model", [scalar_intensity, vectorial_intensity])
@pytest.mark.parametrize("layers", [None, Layers(sample_index=1.37, depth_um=4.0)])
def test_every_plane_holds_the_same_light(model, layers):
    optics = Optics(1.2, 525, 1.515, layers)
    radius = radii_um(40.0, optics)
    depth = np.array([0.0, 1.0, 3.0, -2.0])
    light = model(optics, radius, depth) * (2.0 * np.pi * radius * radius[1])[:, None]
    assert light.sum(axis=0) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: case["name"])
def test_against_an_independent_program(case):
    layers = Layers(**case["layers"]) if case["layers"] else None
    optics = Optics(case["na"], case["wavelength_nm"], case["refractive_index"], layers)
    model = vectorial_intensity if case["vectorial"] else scalar_intensity
    on_axis = model(optics, np.zeros(1), np.array(case["depth_um"]))[0]
    in_focus = model(optics, np.array(case["radius_um"]), np.array([case["focus_depth_um"]]))[:, 0]
    # The program averages over its 0.05 um pixels: half a percent of the peak.
    assert on_axis / in_focus[0] == pytest.approx(case["on_axis"], abs=0.008)
    assert in_focus / in_focus[0] == pytest.approx(case["in_focus"], abs=0.008)


def test_pinhole_average_equals_the_average_over_the_disc():
    optics, radius_um = WATER, 0.4
    seen = through_pinhole(lambda r, z: np.exp(-(r**2) / 0.1)[:, None] + 0 * z, radius_um, optics)
    got = seen(np.array([0.0, 0.3, 0.7]), np.zeros(1))[:, 0]
    grid = np.linspace(-radius_um, radius_um, 801)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    disc = np.hypot(y, x) <= radius_um
    expected = [np.exp(-((x - r) ** 2 + y**2) / 0.1)[disc].mean() for r in (0.0, 0.3, 0.7)]
    assert got == pytest.approx(expected, rel=2e-3)


# --- on voxels


def test_gaussian_is_integrated_over_its_voxels():
    psf = gaussian((1.0, 0.4, 0.5), (0.3, 0.1, 0.1), (11, 12, 21))
    borders = (np.arange(22) - 10.5) * 0.1 * 2.354820045 / 0.5 / np.sqrt(2.0)
    line = np.diff(erf(borders))
    assert psf.values.sum(axis=(0, 1)) == pytest.approx(line / line.sum())
    assert psf.values.argmax() == np.ravel_multi_index((5, 6, 10), psf.shape)


def test_widths_are_those_of_the_textbook():
    psf = widefield(LOW, (0.25, 0.05, 0.05), (121, 45, 45), vectorial=False)
    axial = 0.88 * 0.5 / (1.0 - np.sqrt(1.0 - 0.09))
    assert fwhm_um(psf) == pytest.approx((axial, 0.514 * 0.5 / 0.3, 0.514 * 0.5 / 0.3), rel=0.01)


def test_voxels_average_the_model_over_their_extent():
    coarse = widefield(WATER, (0.45, 0.3, 0.3), (3, 5, 5)).values
    fine = widefield(WATER, (0.05, 0.02, 0.02), (27, 75, 75)).values
    binned = fine.reshape(3, 9, 5, 15, 5, 15).sum(axis=(1, 3, 5))
    assert np.abs(coarse - binned).max() < 1e-3 * coarse.max()


@pytest.mark.parametrize("shape", [(9, 21, 25), (8, 20, 24)])
def test_a_psf_is_symmetric_about_its_centre(shape):
    psf = widefield(WATER, (0.2, 0.1, 0.1), shape)
    odd = psf.values[1 - shape[0] % 2 :, 1 - shape[1] % 2 :, 1 - shape[2] % 2 :]
    for axis in range(3):
        assert odd == pytest.approx(np.flip(odd, axis), abs=1e-15)
    assert np.unravel_index(psf.values.argmax(), shape) == psf.centre


def test_a_widefield_psf_has_a_missing_cone():
    planes = widefield(LOW, (1.0, 0.4, 0.4), (9, 121, 121)).values.sum(axis=(1, 2))
    assert planes == pytest.approx(planes.mean(), rel=0.01)


def test_closed_pinhole_is_the_product_and_an_open_one_the_excitation():
    spacing, shape = (0.05, 0.02, 0.02), (21, 31, 31)
    lit = widefield(WATER.at(488), spacing, shape).values
    seen = widefield(WATER, spacing, shape).values
    closed = confocal(WATER, spacing, shape, excitation_nm=488, pinhole_airy_units=0.0).values
    product = lit * seen / (lit * seen).sum()
    # The average of a product over a voxel is not the product of averages: 0.4 % here.
    assert np.abs(closed - product).max() < 5e-3 * product.max()
    open_ = confocal(WATER, spacing, shape, excitation_nm=488, pinhole_airy_units=20.0).values
    assert np.abs(open_ - lit).max() < 0.02 * lit.max()


def test_light_sheet_is_detection_times_the_sheet():
    spacing, shape = (0.1, 0.1, 0.1), (21, 21, 21)
    sheet = light_sheet(WATER, spacing, shape, sheet_fwhm_um=0.8).values
    detection = widefield(WATER, spacing, shape).values
    profile = np.exp(-4.0 * np.log(2.0) * ((np.arange(21) - 10) * 0.1 / 0.8) ** 2)
    product = detection * profile[:, None, None]
    assert np.abs(sheet - product / product.sum()).max() < 0.005 * sheet.max()


def test_two_photon_is_the_squared_excitation():
    spacing, shape = (0.1, 0.05, 0.05), (11, 15, 15)
    psf = theoretical_psf(
        "two-photon", spacing, excitation_nm=920, shape=shape, **(DRY | {"na": 0.9})
    )
    one = widefield(Optics(0.9, 920, 1.0), spacing, shape).values ** 2
    assert np.abs(psf.values - one / one.sum()).max() < 5e-3 * psf.values.max()


def test_index_mismatch_moves_and_lengthens_the_focus_and_the_psf_stays_centred():
    oil = Optics(1.3, 525, 1.515, Layers(sample_index=1.33, depth_um=10.0))
    shape, spacing = (81, 31, 31), (0.1, 0.06, 0.06)
    aberrated = widefield(oil, spacing, shape)
    clean = widefield(Optics(1.3, 525, 1.515), spacing, shape)
    assert fwhm_um(aberrated)[0] > 1.5 * fwhm_um(clean)[0]
    assert core_centre(aberrated.values) == pytest.approx(aberrated.centre, abs=2.0)
    assert np.unravel_index(aberrated.values.argmax(), shape) == aberrated.centre
    z = aberrated.values.sum(axis=(1, 2))
    assert z[:40].sum() != pytest.approx(z[41:].sum(), rel=0.02)


def test_automatic_shapes_are_odd_bounded_and_hold_the_light():
    spacing = (0.3, 0.1, 0.1)
    for modality, extra in [
        ("widefield", {}),
        ("light-sheet", {"illumination_na": 0.1, "excitation_nm": 488}),
        ("confocal", {"excitation_nm": 488}),
    ]:
        chosen = theoretical_psf(modality, spacing, **DRY, **extra)
        assert all(n % 2 == 1 and 3 <= n <= 129 for n in chosen.shape)
        if modality == "widefield":
            assert chosen.shape[0] // 2 >= 6 * Optics(**DRY).axial_width_um / 0.3 - 1
            continue
        larger = theoretical_psf(modality, spacing, shape=(129, 129, 129), **DRY, **extra).values
        middle = tuple(slice(64 - n // 2, 65 + n // 2) for n in chosen.shape)
        assert larger[middle].sum() > 0.97


def test_a_psf_that_its_largest_size_cuts_says_so():
    notes = widefield(Optics(0.05, 500, 1.0), (1.0, 1.0, 1.0)).notes
    assert any("ends at 129 voxels in z:" in note for note in notes)
    assert not any("ends at" in note for note in widefield(LOW, (5.0, 0.5, 0.5), (9, 9, 9)).notes)


def test_one_plane_is_the_plane_in_focus():
    plane = widefield(WATER, (1.0, 0.05, 0.05), (1, None, None), vectorial=False)
    assert plane.shape[0] == 1
    assert np.isnan(fwhm_um(plane)[0])
    assert fwhm_um(plane)[2] == pytest.approx(0.514 * 0.525 / 1.1, rel=0.02)


# --- numbers that make no sense


def test_nyquist_limits():
    axial, lateral = nyquist_um(WATER)
    assert lateral == pytest.approx(0.525 / 4.4)
    assert axial == pytest.approx(0.525 / 2 / (1.33 - np.sqrt(1.33**2 - 1.1**2)))
    assert nyquist_um(WATER, 525.0) == pytest.approx((axial / 2, lateral / 2))
    notes = widefield(WATER, (0.2, 0.2, 0.1), (5, 9, 9)).notes
    assert any("Nyquist" in note and "0.2 um in y" in note for note in notes)
    assert not any("in x" in note or "in z" in note for note in notes)


def test_sheet_thickness_from_the_illumination():
    # Gaussian beam: waist 0.488 / (pi 0.1) = 1.553 um, FWHM = waist * sqrt(2 ln 2).
    assert sheet_fwhm_um(0.1, 488) == pytest.approx(1.829, abs=0.001)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wavelength_nm": 0.525}, "looks like micrometres: give 525"),
        ({"wavelength_nm": 5.25e-7}, "expected nanometres"),
        ({"na": 1.1}, "another immersion"),
        ({"na": 0.0}, "positive"),
        ({"refractive_index": 133.0}, "refractive index"),
        ({"modality": "confocal"}, "needs the excitation"),
        ({"modality": "light-sheet"}, "sheet's thickness"),
        ({"modality": "light-sheet", "sheet_fwhm_um": -1.0}, "sheet_fwhm_um"),
        ({"modality": "confocal", "excitation_nm": 0.488}, "give 488"),
        ({"modality": "spinning"}, "expected one of"),
        ({"shape": (0, 5, 5)}, "positive sizes"),
        ({"spacing_um": (200.0, 100.0, 100.0)}, "nanometres"),
    ],
)
def test_impossible_numbers_are_refused(change, says):
    given = {"modality": "widefield", "spacing_um": (0.2, 0.1, 0.1), **DRY} | change
    with pytest.raises(ParameterError, match=says):
        theoretical_psf(**given)
