"""Resolution: decorrelation and shell correlation find the cut-off of a known microscope."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from pellucid.core.decorrelation import decorrelation, volume_decorrelation
from pellucid.core.noise import Noise
from pellucid.core.resolution import (
    fourier_shell_correlation,
    one_image_shell_correlation,
    resolution_along_axes,
)
from pellucid.errors import InputError, ParameterError

ORACLE = json.loads((Path(__file__).parent / "oracle_resolution.json").read_text())


def band_limited(shape, spacing, lateral_um, axial_um, peak=500.0):
    """Expected photons of random points through a PSF whose OTF ends at 1 / lateral, 1 / axial."""
    kz, ky, kx = np.meshgrid(
        *(np.fft.fftfreq(n, s) for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    pupil = (kz * axial_um) ** 2 + (ky**2 + kx**2) * lateral_um**2 < 0.25
    psf = np.abs(np.fft.ifftn(pupil)) ** 2
    rng = np.random.default_rng(1)
    points = (rng.random(shape) < 0.01) * rng.random(shape)
    blurred = np.fft.ifftn(np.fft.fftn(points) * np.fft.fftn(psf)).real.clip(0)
    return peak * blurred / blurred.max() + 5


@pytest.mark.parametrize("name", ["imdecorr_test", "pair_raw", "pair_gt"])
def test_decorrelation_agrees_with_the_published_method_and_a_peer(data_folder, name):
    row = ORACLE[name]
    image = tifffile.imread(data_folder / row["path"])
    found = decorrelation(image, (row["spacing_um"], row["spacing_um"]))
    assert found.cutoff == pytest.approx(row["published_cutoff"], rel=0.04)
    assert found.contrast == pytest.approx(row["published_contrast"], abs=0.006)
    assert found.resolution_um == pytest.approx(row["cubic_resolution_um"], rel=0.1)


@pytest.mark.parametrize("size", [(256, 256), (255, 300)])
@pytest.mark.parametrize("lateral_um", [0.3, 0.5])
def test_decorrelation_finds_the_cutoff_of_the_optics(size, lateral_um):
    photons = band_limited((1, *size), (1.0, 0.1, 0.1), lateral_um, 1.0)
    image = np.random.default_rng(0).poisson(photons)
    found = decorrelation(image, (0.1, 0.1))
    # The OTF falls to nothing before its edge: noise hides the last tenth or two.
    assert lateral_um < found.resolution_um < 1.3 * lateral_um
    scaled = decorrelation(image * 8 + 100, (0.1, 0.1))
    assert scaled.resolution_um == pytest.approx(found.resolution_um)


def test_sharper_is_smaller_and_noisier_has_less_contrast():
    rng = np.random.default_rng(0)
    photons = {um: band_limited((1, 200, 200), (1, 0.1, 0.1), um, 1.0) for um in (0.3, 0.6)}
    fine, coarse = (decorrelation(rng.poisson(p), (0.1, 0.1)) for p in photons.values())
    assert fine.resolution_um < 0.7 * coarse.resolution_um
    assert decorrelation(rng.poisson(photons[0.3] / 20), (0.1, 0.1)).contrast < fine.contrast


def test_volume_has_a_lateral_and_an_axial_figure():
    photons = band_limited((32, 128, 128), (0.3, 0.1, 0.1), 0.4, 1.2)
    found = volume_decorrelation(np.random.default_rng(0).poisson(photons), (0.3, 0.1, 0.1))
    assert found.lateral.resolution_um == pytest.approx(0.45, rel=0.2)
    assert found.axial.resolution_um == pytest.approx(1.35, rel=0.25)
    assert len(found.planes_um) == 16


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_has_no_resolution(seed):
    rng = np.random.default_rng(seed)
    flat = decorrelation(rng.normal(size=(128, 128)), (1, 1))
    assert flat.resolution_um is None
    assert flat.reason
    assert decorrelation(np.ones((64, 64)), (1, 1)).resolution_um is None
    a, b = rng.normal(size=(2, 24, 64, 64))
    for direction in ("all", "lateral", "axial"):
        curve = fourier_shell_correlation(a, b, (0.3, 0.1, 0.1), direction=direction)
        assert curve.resolution_um() is None
        assert curve.resolution_um("half-bit") is None


SPACING = (0.3, 0.1, 0.1)


def test_two_recordings_correlate_to_the_cutoff_of_the_optics():
    photons = band_limited((32, 128, 128), SPACING, 0.4, 1.2)
    a, b = np.random.default_rng(0).poisson(photons, (2, *photons.shape))
    lateral = fourier_shell_correlation(a, b, SPACING, direction="lateral")
    axial = fourier_shell_correlation(a, b, SPACING, direction="axial")
    assert lateral.resolution_um() == pytest.approx(0.42, rel=0.06)
    assert axial.resolution_um() == pytest.approx(1.2, rel=0.15)
    assert lateral.resolution_um("half-bit") == pytest.approx(0.42, rel=0.08)
    beyond = lateral.frequency > 1 / 0.36
    assert abs(lateral.correlation[beyond].mean()) < 0.03


def test_one_image_predicts_what_two_would_correlate_to():
    photons = band_limited((16, 128, 128), SPACING, 0.4, 1.2, peak=60)
    rng = np.random.default_rng(0)
    a, b = (2.0 * rng.poisson(photons) + rng.normal(100, 3, photons.shape) for _ in range(2))
    noise = Noise(2.0, 100.0, 3.0)
    two = fourier_shell_correlation(a, b, SPACING)
    one = one_image_shell_correlation(a, noise, SPACING)
    inside = (two.frequency > 0.3) & (two.frequency < 1 / 0.5)
    np.testing.assert_allclose(one.correlation[inside], two.correlation[inside], atol=0.06)
    assert one.resolution_um() == pytest.approx(two.resolution_um(), rel=0.06)
    wrong = one_image_shell_correlation(a, Noise(4.0, 100.0, 3.0), SPACING)
    assert wrong.resolution_um() is None
    assert "gain" in wrong.reason


def test_identical_images_correlate_to_one_up_to_the_sampling():
    image = np.random.default_rng(0).normal(size=(64, 80))
    curve = fourier_shell_correlation(image, torch.from_numpy(image), (1.0, 0.5, 0.5))
    np.testing.assert_allclose(curve.correlation, 1, atol=1e-6)
    assert curve.resolution_um() == pytest.approx(1.0, rel=0.02)
    # a quarter turn of an isotropic measure, and independent voxels of a plane's shells
    turned = fourier_shell_correlation(image.T, image.T, (1.0, 0.5, 0.5))
    np.testing.assert_allclose(turned.count, curve.count)
    assert curve.count.sum() == pytest.approx(np.pi / 4 * 64 * 80 / 2, rel=0.06)


def test_wrong_input_is_refused():
    image = np.random.default_rng(0).normal(size=(32, 32))
    broken = image.copy()
    broken[3, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        decorrelation(broken, (1, 1))
    with pytest.raises(InputError, match="finite"):
        fourier_shell_correlation(image, broken, (1, 1, 1))
    with pytest.raises(InputError, match="one shape"):
        fourier_shell_correlation(image, image[1:], (1, 1, 1))
    with pytest.raises(InputError, match="16 pixels"):
        decorrelation(image[:8], (1, 1))
    with pytest.raises(ParameterError, match="positive"):
        decorrelation(image, (0, 1))


def test_each_axis_has_the_finest_period_that_the_image_shares_with_the_truth():
    rng = np.random.default_rng(1)
    truth, other = rng.normal(size=(2, 40, 48, 44))
    k = np.abs(np.stack(np.meshgrid(*map(np.fft.fftfreq, truth.shape), indexing="ij")))
    finest = np.array([5.5, 10.5, 16.5])[k.argmax(0)] / 40  # shells 5, 10 and 16 are the last
    shared = np.sqrt((k**2).sum(0)) <= finest
    image = np.fft.ifftn(np.where(shared, np.fft.fftn(truth), np.fft.fftn(other))).real
    z, y, x = resolution_along_axes(image, truth)
    assert (z, y, x) == (40 / 5, 40 / 10, 40 / 16)
    assert resolution_along_axes(other, truth) == (40, 40, 40)
    with pytest.raises(InputError, match="one shape"):
        resolution_along_axes(image, truth[1:])
