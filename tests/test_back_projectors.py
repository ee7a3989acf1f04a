"""Back projectors: the published figures, even sizes, overflow, impossible parameters."""

import numpy as np
import pytest
import torch

from pellucid.core.back_projectors import (
    METHODS,
    BackProjection,
    Butterworth,
    Gaussian,
    Matched,
    OtfMaskedWiener,
    Wiener,
    WienerButterworth,
    figures,
)
from pellucid.core.operators import Blur
from pellucid.core.passband import band_edge_px, gain_at_cutoff
from pellucid.errors import ParameterError
from pellucid.testing import dot_test


def gaussian_psf(shape, fwhm):
    axes = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in shape)]
    psf = np.exp(-4 * np.log(2) * sum((a / w) ** 2 for a, w in zip(axes, fwhm, strict=True)))
    return torch.from_numpy(psf / psf.sum())


@pytest.fixture(scope="module")
def published_blur():
    """The grid and PSF of the regression figures: (65, 129, 129), FWHM (10, 2.44, 2.44) voxels."""
    blur = Blur(gaussian_psf((65, 129, 129), (10, 2.44, 2.44)), (65, 129, 129), extended=False)
    return blur


@pytest.mark.parametrize("psf_shape", [(13, 15, 17), (14, 16, 18), (13, 16, 17)])
@pytest.mark.parametrize("method", METHODS)
def test_a_point_goes_back_to_its_place(method, psf_shape):
    """Odd and even sizes: no projector moves the image by half a bin or by a voxel."""
    blur = Blur(gaussian_psf(psf_shape, (2, 2, 2)), (16, 17, 18))
    image = torch.zeros(blur.range_shape, dtype=torch.float64)
    image[8, 9, 7] = 1
    back = BackProjection(blur, METHODS[method]).forward(image)
    m = blur.margin
    place = np.unravel_index(int(back.argmax()), back.shape)
    assert place == (8 + m[0], 9 + m[1], 7 + m[2])
    window = back[
        place[0] - 2 : place[0] + 3, place[1] - 2 : place[1] + 3, place[2] - 2 : place[2] + 3
    ]
    torch.testing.assert_close(window, window.flip(0, 1, 2), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_light_is_kept_like_the_matched_one_keeps_it(method):
    blur = Blur(3 * gaussian_psf((6, 7, 8), (3, 3, 3)), (16, 17, 18))
    transfer = METHODS[method].transfer(blur)
    assert complex(transfer[0, 0, 0]) == pytest.approx(3, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_back_projection_is_a_linear_operator_with_an_exact_adjoint(method):
    blur = Blur(gaussian_psf((6, 7, 8), (3, 3, 3)), (9, 10, 11))
    assert dot_test(BackProjection(blur, METHODS[method])) < 1e-13


def test_matched_is_the_adjoint():
    blur = Blur(gaussian_psf((6, 7, 8), (3, 3, 3)), (9, 10, 11))
    y = torch.rand(9, 10, 11, dtype=torch.float64)
    torch.testing.assert_close(BackProjection(blur, Matched()).forward(y), blur.adjoint(y))


def test_gain_at_the_fwhm_cutoff_of_a_gaussian_is_the_analytic_one(published_blur):
    """|F(1 / FWHM)| = exp(-pi^2 / (4 ln 2)) = 0.02845 for any Gaussian, continuous in frequency."""
    gain = gain_at_cutoff(published_blur.transfer.abs(), published_blur, (10, 2.44, 2.44))
    assert gain == pytest.approx(np.exp(-(np.pi**2) / (4 * np.log(2))), rel=0.02)


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("paper", lambda beta, b_w: beta), ("release", lambda beta, b_w: beta * np.sqrt(b_w))],
)
def test_both_published_conventions_give_their_gain_at_the_cutoff(
    published_blur, convention, expected
):
    beta, alpha = 0.03, 0.05
    projector = WienerButterworth(alpha=alpha, beta=beta, convention=convention)
    magnitude = published_blur.transfer.abs()
    b_w = gain_at_cutoff(magnitude / (magnitude**2 + alpha), published_blur, (10, 2.44, 2.44))
    found = figures(projector, published_blur).gain_at_cutoff / (1 + alpha)
    assert found == pytest.approx(expected(beta, b_w), rel=0.15)  # interpolated on a steep slope


def test_largest_gain_of_the_published_default(published_blur):
    """max |B| / B(0) is 2.3 for alpha 0.05 with automatic beta, in both conventions."""
    for convention in ("paper", "release"):
        projector = WienerButterworth(alpha=0.05, convention=convention)
        assert figures(projector, published_blur).largest_gain == pytest.approx(2.3, abs=0.1)


def test_wiener_gain_has_its_analytic_bound(published_blur):
    for alpha in (0.05, 1e-3):
        bound = (1 + alpha) / (2 * np.sqrt(alpha))
        assert figures(Wiener(alpha), published_blur).largest_gain == pytest.approx(bound, rel=0.03)


def test_gaussian_projector_of_a_gaussian_psf_is_the_matched_one():
    blur = Blur(gaussian_psf((31, 31, 31), (6, 6, 6)), (32, 32, 32))
    torch.testing.assert_close(
        Gaussian().transfer(blur), Matched().transfer(blur), atol=2e-3, rtol=0
    )


def test_powers_do_not_overflow_and_stay_finite_in_float32():
    blur = Blur(gaussian_psf((33, 33, 33), (16, 16, 16)).float(), (64, 64, 64))
    for projector in (Butterworth(order=30), WienerButterworth(order=30)):
        assert torch.isfinite(torch.view_as_real(projector.transfer(blur))).all()


@pytest.mark.parametrize("size", [32, 33])
def test_band_edge_and_masked_support_agree_with_a_gaussian_otf(size):
    fwhm = 4.0
    blur = Blur(gaussian_psf((size,) * 3, (fwhm,) * 3), (size,) * 3)
    edge = np.sqrt(np.log(1 / 1e-2) * 4 * np.log(2)) / (np.pi * fwhm)  # |F| = 0.01
    assert 1 / band_edge_px(blur, 1e-2)[1] == pytest.approx(edge, rel=0.1)
    gain = OtfMaskedWiener(alpha=0.05).transfer(blur).abs()
    assert gain[0, 0, -1] == 0
    assert gain[0, 0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Wiener(alpha=0),
        lambda: WienerButterworth(alpha=-1),
        lambda: WienerButterworth(beta=1.5),
        lambda: WienerButterworth(order=0),
        lambda: WienerButterworth(convention="both"),
        lambda: Butterworth(cutoff_fwhm=0),
        lambda: OtfMaskedWiener(energy=1.2),
    ],
)
def test_impossible_parameters_are_refused(make):
    with pytest.raises(ParameterError):
        make()


def test_a_beta_above_the_wiener_gain_is_refused_with_a_way_out(published_blur):
    with pytest.raises(ParameterError, match="Lower alpha or beta"):
        WienerButterworth(alpha=1.0, beta=0.9).transfer(published_blur)


def test_a_psf_without_a_width_takes_the_band_edge_of_its_otf():
    blur = Blur(torch.ones(5, 5, 5, dtype=torch.float64), (16, 16, 16))
    assert torch.isfinite(torch.view_as_real(WienerButterworth().transfer(blur))).all()
    with pytest.raises(ParameterError, match="another back projector"):
        Gaussian().transfer(blur)
