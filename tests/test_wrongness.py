"""What is wrong, false or missing in an answer: constructed answers, each with its known fault."""

import numpy as np
import pytest
from scipy import ndimage

from pellucid.core.psf import Psf
from pellucid.core.simulation import filaments
from pellucid.core.wrongness import by_region, supported_resolution_px, wrongness
from pellucid.errors import InputError

SHAPE = (24, 64, 64)
FWHM = (3.0, 1.5, 1.5)
TRUTH = filaments(SHAPE, 3)


def line(brightness):
    volume = np.zeros(SHAPE)
    volume[12, 50, 4:60] = 1.0
    volume = ndimage.gaussian_filter(volume, 0.9)
    return brightness * volume / volume.max()


def test_brightness_is_no_matter_of_truth():
    dim = wrongness(0.03 * TRUTH + 7, TRUTH, FWHM)
    assert dim.error.max() < 1e-9
    assert max(dim.false_structure, dim.missing_structure) < 1e-20
    assert dim.gain == pytest.approx(1 / 0.03)


def test_an_invented_filament_is_false_and_a_lost_one_is_missing():
    both = TRUTH + line(1.0)
    invented, lost = wrongness(both, TRUTH, FWHM), wrongness(TRUTH, both, FWHM)
    assert invented.false_structure > 0.04
    assert invented.missing_structure < 0.002
    assert lost.missing_structure > 0.04
    assert lost.false_structure < 0.002
    here = by_region(line(1.0)) > 0.1 * by_region(line(1.0)).max()
    assert (invented.exceeds(0.5) & here).sum() >= 3
    assert not (invented.exceeds(0.5) & ~here).any()


@pytest.mark.parametrize("brightness", [0.3, 1.0, 3.0])
def test_an_invention_in_a_third_of_the_volume_leaves_the_rest_right(brightness):
    invented = 0.5 * TRUTH + 2
    invented[:, :, 44:] += brightness * filaments(SHAPE, 8)[:, :, 44:]
    off = wrongness(invented, TRUTH, FWHM)
    assert not off.exceeds(0.5)[:, :, :2].any()
    assert off.gain == pytest.approx(2.0, rel=0.02)
    assert off.exceeds(0.5)[:, :, 3:].any() == (brightness >= 1)


def test_a_noisy_answer_is_fitted_on_all_that_it_explains():
    noisy = 3 * TRUTH + np.random.default_rng(1).normal(0, 0.02, SHAPE)
    off = wrongness(noisy, TRUTH, (0.0, 0.0, 0.0))
    assert off.error.max() < 0.5
    slope, level = np.polyfit(noisy.ravel(), TRUTH.ravel(), 1)
    assert (off.gain, off.offset) == pytest.approx((slope, level), rel=1e-6)


def test_an_answer_does_not_win_by_being_dark():
    dark = np.where(TRUTH > 0.5, TRUTH, 0)
    faint = TRUTH + np.random.default_rng(0).uniform(0, 0.02, SHAPE)
    assert wrongness(dark, TRUTH, FWHM).false_structure == 0
    assert wrongness(dark, TRUTH, FWHM).missing_structure > 0.005
    # A haze is no structure.
    assert wrongness(faint, TRUTH, FWHM).false_structure < 1e-3


def test_a_blurred_copy_is_wrong_only_beyond_the_resolution():
    slight = ndimage.gaussian_filter(TRUTH, 0.3)
    strong = ndimage.gaussian_filter(TRUTH, (6, 3, 3))
    assert not wrongness(slight, TRUTH, FWHM).exceeds(0.5).any()
    assert wrongness(strong, TRUTH, FWHM).exceeds(0.5).mean() > 0.3


def test_noise_alone_and_a_constant_answer_are_wrong():
    flat = wrongness(np.ones(SHAPE), TRUTH, FWHM)
    assert flat.gain == 0
    assert flat.exceeds(0.5).mean() > 0.9
    with pytest.raises(InputError, match="not all zero"):
        wrongness(TRUTH, np.zeros(SHAPE), FWHM)


def test_the_resolution_is_half_the_width_of_the_psf():
    axes = np.ogrid[-10:11, -10:11, -10:11]
    values = np.exp(-4 * np.log(2) * sum((a / w) ** 2 for a, w in zip(axes, (6, 4, 3), strict=True)))
    assert supported_resolution_px(Psf.normalised(values)) == pytest.approx((3, 2, 1.5), rel=0.03)
