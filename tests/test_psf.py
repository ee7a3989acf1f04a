"""PSF values: their rules, their widths, and what resampling, cropping and preparing keep."""

import numpy as np
import pytest
from scipy.special import erf

from pellucid.core.psf import (
    Psf,
    centroid,
    core_centre,
    crop_to_support,
    focal_plane,
    fwhm_px,
    fwhm_um,
    resample,
)
from pellucid.core.psf_preparation import prepare
from pellucid.errors import InputError, ParameterError

SHAPES = [(15, 21, 23), (16, 22, 24), (15, 22, 23)]


def blob(shape, fwhm, centre=None):
    """A Gaussian integrated over voxels, total 1 over all space."""
    lines = []
    for size, width, middle in zip(shape, fwhm, centre or [s // 2 for s in shape], strict=True):
        borders = (np.arange(size + 1) - 0.5 - middle) * 2.354820045 / width
        lines.append(0.5 * np.diff(erf(borders / np.sqrt(2.0))))
    return np.einsum("z,y,x->zyx", *lines)


# --- the value


@pytest.mark.parametrize("shape", SHAPES)
def test_centre_is_size_over_two(shape):
    values = np.zeros(shape)
    values[tuple(n // 2 for n in shape)] = 1.0
    assert Psf(values).centre == tuple(n // 2 for n in shape)


def test_a_psf_cannot_be_changed_from_outside():
    values = np.full((3, 3, 3), 1.0 / 27.0)
    psf = Psf(values)
    values[:] = 0.0
    assert psf.values.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="read-only"):
        psf.values[0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.ones((3, 3)), "volume"),
        (np.full((3, 3, 3), np.nan), "27 NaN"),
        (np.ones((3, 3, 3)), "sum of 27"),
        (np.full((1, 1, 3), [[[1.5, 0.0, -0.5]]]), "minimum of -0.5"),
    ],
)
def test_what_is_no_psf_is_refused(values, says):
    with pytest.raises(InputError, match=says):
        Psf(values)


@pytest.mark.parametrize("spacing", [(100.0, 65.0, 65.0), (0.1, 0.1), (0.1, 0.0, 0.1), (1e-7,) * 3])
def test_spacing_in_other_units_is_refused(spacing):
    with pytest.raises(ParameterError, match="micrometres"):
        Psf.normalised(np.ones((3, 3, 3)), spacing)


# --- measuring


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.5, 0.3, -0.4)])
def test_width_and_centre_do_not_depend_on_where_the_peak_falls(offset):
    fwhm, shape = (3.5, 5.0, 8.0), (21, 30, 41)
    centre = [n // 2 + o for n, o in zip(shape, offset, strict=True)]
    values = blob(shape, fwhm, centre)
    # Integration over the voxel widens a Gaussian: variances add, a voxel's is 1/12.
    widened = np.sqrt(np.square(fwhm) + 2.354820045**2 / 12.0)
    assert fwhm_px(values) == pytest.approx(widened, rel=0.005)
    assert core_centre(values) == pytest.approx(centre, abs=1e-3)
    assert centroid(values) == pytest.approx(centre, abs=1e-3)


def test_width_is_nan_where_the_profile_never_falls_to_half():
    values = np.einsum("z,yx->zyx", [1.0, 1.1, 1.0, 0.9, 0.8], blob((1, 15, 15), (1, 4, 4))[0])
    z, y, x = fwhm_px(values)
    assert np.isnan(z)
    assert y == pytest.approx(x)
    assert np.isnan(fwhm_px(blob((1, 15, 15), (1, 4, 4)))[0])


def test_width_in_micrometres_needs_a_voxel_size():
    with pytest.raises(InputError, match="voxel size"):
        fwhm_um(Psf.normalised(blob((5, 9, 9), (2, 3, 3))))


# --- changing


@pytest.mark.parametrize("spacing", [(0.1, 0.05, 0.05), (0.3, 0.2, 0.15), (0.4, 0.11, 0.08)])
@pytest.mark.parametrize("shape", [(31, 32, 41), (30, 33, 40)])
def test_resampling_equals_the_integral_over_the_new_voxels(shape, spacing):
    old, fwhm = (0.2, 0.1, 0.1), np.array([0.8, 0.5, 0.6])
    psf = resample(Psf.normalised(blob(shape, fwhm / old), old), spacing)
    expected = blob(psf.shape, fwhm / spacing)
    assert np.abs(psf.values - expected).max() < 0.004 * expected.max()
    assert psf.values.sum() == pytest.approx(1.0)
    assert centroid(psf) == pytest.approx(psf.centre, abs=1e-6)
    assert psf.spacing_um == spacing


def test_cropping_keeps_the_light_it_promises_and_the_centre():
    for shape in SHAPES:
        psf = Psf.normalised(blob(shape, (2, 3, 3)))
        cropped = crop_to_support(psf, 0.99)
        box = psf.values[
            tuple(
                slice(c - n // 2, c - n // 2 + n)
                for c, n in zip(psf.centre, cropped.shape, strict=True)
            )
        ]
        assert box.sum() >= 0.99
        assert np.all(np.less(cropped.shape, shape))
        assert np.argmax(cropped.values) == np.ravel_multi_index(cropped.centre, cropped.shape)


def test_cropping_leaves_a_psf_that_fills_its_array():
    for shape in [(4, 6, 6), (5, 7, 7)]:
        psf = Psf.normalised(np.ones(shape))
        assert crop_to_support(psf, 0.999) is psf


def test_focal_plane_is_the_central_plane():
    plane = focal_plane(Psf.normalised(blob((9, 9, 9), (3, 3, 3))))
    assert plane.shape == (1, 9, 9)
    assert plane.values.sum() == pytest.approx(1.0)


# --- preparing


def recording(shape=(21, 33, 35), fwhm=(4, 4, 5), centre=None, offset=101.0, noise=4.0, peak=2000):
    light = blob(shape, fwhm, centre)
    noisy = np.random.default_rng(1).normal(offset, noise, shape)
    return noisy + peak * light / light.max()


def test_preparing_removes_offset_and_noise_and_centres():
    centre = [10.4, 15.2, 19.0]
    psf = prepare(np.round(recording(centre=centre)).astype(np.uint16), (0.2, 0.1, 0.1))
    expected = blob(psf.shape, (4, 4, 5))
    assert core_centre(psf.values) == pytest.approx(psf.centre, abs=0.02)
    assert np.abs(psf.values - expected).max() < 0.02 * expected.max()
    assert np.corrcoef(psf.values.ravel(), expected.ravel())[0, 1] > 0.9995
    said = " | ".join(psf.notes)
    assert "removed an offset of 101" in said
    assert "moved the centre by (-0.40, 0.80, -2.0" in said


def test_noise_that_was_clipped_at_zero_is_taken_off_too():
    clipped = np.maximum(recording(offset=0.0), 0.0)
    expected = blob(clipped.shape, (4, 4, 5))
    assert np.abs(clipped / clipped.sum() - expected).max() > 0.1 * expected.max()
    assert np.abs(prepare(clipped).values - expected).max() < 0.025 * expected.max()


def test_the_faint_tail_of_a_computed_psf_is_light():
    rounded = np.round(60000 * blob((21, 33, 35), (4, 4, 5)) / 0.01).astype(np.uint16)
    assert prepare(rounded).notes == ()


def test_preparing_a_clean_psf_changes_nothing():
    for shape in SHAPES:
        clean = blob(shape, (4, 4, 4))
        psf = prepare(clean, (0.2, 0.1, 0.1), (0.2005, 0.1, 0.1))
        assert psf.notes == ()
        assert psf.values == pytest.approx(clean / clean.sum())
        assert psf.spacing_um == (0.2, 0.1, 0.1)


def test_preparing_puts_the_psf_on_the_voxels_of_the_image():
    psf = prepare(blob((31, 31, 31), (6, 6, 6)), (0.1, 0.1, 0.1), (0.2, 0.1, 0.1))
    assert psf.spacing_um == (0.2, 0.1, 0.1)
    assert psf.values == pytest.approx(blob(psf.shape, (3, 6, 6)), abs=1e-5)
    assert any("resampled" in note for note in psf.notes)


def test_a_bright_edge_and_a_second_bead_are_left_out():
    values = recording(shape=(21, 41, 61), centre=[10, 20, 20])
    values[:, :, -1] += 300.0
    values += 1000.0 * blob((21, 41, 61), (4, 4, 4), [10, 20, 48]) / 0.012
    psf = prepare(values)
    assert psf.values[:, :, psf.centre[2] + 15 :].sum() < 1e-4


def test_side_lobes_stay():
    shape = (31, 31, 31)
    lobes = [0.2 * blob(shape, (4, 4, 4), [z, 15, 15]) for z in (8, 22)]
    light = blob(shape, (4, 4, 4)) + sum(lobes)
    noisy = np.random.default_rng(2).normal(100.0, 4.0, shape) + 2e5 * light
    assert prepare(noisy).values[:12].sum() == pytest.approx(0.2 / 1.4, rel=0.1)


def test_a_given_offset_is_used():
    psf = prepare(blob((15, 15, 15), (4, 4, 4)) + 7.0, offset=7.0)
    assert psf.values == pytest.approx(blob((15, 15, 15), (4, 4, 4)), abs=1e-4)


def test_a_plane_is_a_psf_of_a_2d_image():
    plane = prepare(blob((1, 21, 22), (1, 4, 4), [0, 10.3, 11])[0])
    assert plane.shape[0] == 1
    assert core_centre(plane.values)[1:] == pytest.approx(plane.centre[1:], abs=0.02)


def test_a_tail_that_is_cut_is_said():
    assert any("tail is cut in z" in note for note in prepare(blob((7, 25, 25), (6, 4, 4))).notes)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 5, 5)), "only zeros"),
        (-np.ones((5, 5, 5)), "only zeros or negative"),
        (np.full((5, 5, 5), 7), "flat"),
        (np.full((5, 5, 5), np.inf), "125 NaN or infinite"),
        (np.ones((2, 5, 5, 5)), "one PSF a channel"),
        (np.ones((5, 5, 5), dtype=complex), "complex128"),
        (np.fft.ifftshift(blob((15, 15, 15), (4, 4, 4))), "fftshift"),
        (np.random.default_rng(0).normal(100.0, 3.0, (15, 15, 15)), "noise|border"),
    ],
)
def test_bad_recordings_are_refused_with_a_reason(array, says):
    with pytest.raises(InputError, match=says):
        prepare(array)


def test_measured_psfs_come_out_clean(data_folder):
    tifffile = pytest.importorskip("tifffile")
    for name in ("mbPSF_560", "psf_lls_61x128x128", "wideFieldPSF_560"):
        array = tifffile.imread(data_folder / "psf_lls_measured" / f"{name}.tif")
        psf = prepare(array, (0.1, 0.1, 0.1))
        assert core_centre(psf.values) == pytest.approx(psf.centre, abs=0.03)
        assert "removed an offset of 1" in psf.notes[0]
        assert np.mean(psf.values < 1e-12) > 0.5
        # Lattice light sheet, NA 1.1 detection at about 560 nm: near 0.3 um laterally.
        assert fwhm_um(psf)[1:] == pytest.approx((0.33, 0.33), abs=0.05)
