"""Quality against a truth, against the recording, and of one image by itself."""

import json

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from skimage import metrics

from pellucid.core.noise import Noise
from pellucid.core.quality import measure, ncc, nrmse, psnr, reblur_residual, ssim
from pellucid.errors import InputError, ParameterError


def pair(shape=(24, 40, 36)):
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random(shape), 1.5 if len(shape) == 3 else (1.5, 1.5)) * 100
    return truth + rng.normal(0, 0.5, shape), truth


@pytest.mark.parametrize("shape", [(24, 40, 36), (40, 36)])
def test_measures_against_a_truth_agree_with_scikit_image(shape):
    image, truth = pair(shape)
    reach = np.ptp(truth)
    assert psnr(image, truth) == pytest.approx(
        metrics.peak_signal_noise_ratio(truth, image, data_range=reach)
    )
    assert nrmse(image, truth) == pytest.approx(metrics.normalized_root_mse(truth, image))
    assert ssim(image, truth) == pytest.approx(
        metrics.structural_similarity(
            truth, image, data_range=reach, gaussian_weights=True, use_sample_covariance=False
        ),
        rel=1e-6,
    )
    assert ncc(image, truth) == pytest.approx(np.corrcoef(image.ravel(), truth.ravel())[0, 1])


def test_what_the_measures_are_blind_to():
    image, truth = pair()
    assert ncc(3 * image + 7, truth) == pytest.approx(ncc(image, truth))
    assert ncc(-image, truth) == pytest.approx(-ncc(image, truth))
    assert ncc(np.ones_like(truth), truth) == 0
    assert psnr(truth, truth) == np.inf
    assert ssim(truth, truth) == pytest.approx(1)
    # a large offset must not eat the digits
    assert ncc(image + 1e7, truth + 1e7) == pytest.approx(ncc(image, truth), rel=1e-6)
    tensors = torch.from_numpy(image), torch.from_numpy(truth)
    assert ssim(*tensors) == pytest.approx(ssim(image, truth))


def test_measures_refuse_what_they_cannot_compare():
    image, truth = pair()
    with pytest.raises(InputError, match="one shape"):
        ncc(image, truth[1:])
    with pytest.raises(InputError, match="finite"):
        psnr(np.full_like(image, np.nan), truth)
    with pytest.raises(ParameterError, match="data_range"):
        ssim(image, np.ones_like(truth))
    with pytest.raises(InputError, match="all zero"):
        nrmse(image, np.zeros_like(truth))


def model_counts(photons):
    z, y, x = np.indices((16, 64, 64))
    return photons * (1 + np.sin((z + y + x) / 9.0))


@pytest.mark.parametrize("read", [0.0, 3.0])
@pytest.mark.parametrize("photons", [0.1, 1.0, 30.0])
def test_a_right_model_is_rejected_as_often_as_stated(photons, read):
    rng = np.random.default_rng(7)
    noise, expected = Noise(2.0, 100.0, read), model_counts(photons)
    p = []
    for _ in range(15):
        counts = 2 * rng.poisson(expected) + rng.normal(100, read, expected.shape)
        result = reblur_residual(counts, 2 * expected + 100, noise, region=(8, 16, 16))
        assert result.consistent, result.verdict
        p.append(result.p)
    # 480 regions at the 1 % level: 4.8 expected, 13 or more once in a thousand.
    assert (np.array(p) < 0.01).sum() <= 13
    assert 0.06 < (np.array(p) < 0.1).mean() < 0.16


def test_a_wrong_model_is_found_and_named():
    rng = np.random.default_rng(7)
    noise, expected = Noise(1.0, 100.0, 1.0), model_counts(40.0)
    counts = rng.poisson(expected) + rng.normal(100, 1, expected.shape)

    def judge(model, camera=noise):
        return reblur_residual(counts, model, camera, region=(8, 16, 16))

    blurred = judge(ndimage.gaussian_filter(expected, 3) + 100)
    assert not blurred.consistent
    assert "structure" in blurred.verdict
    assert blurred.lag_z.max() > 10
    assert not judge(expected + 101.5).consistent
    followed = judge(0.5 * (expected + 100) + 0.5 * counts)
    assert "follows the noise" in followed.verdict
    assert followed.overall_chi2 == pytest.approx(0.25, abs=0.02)
    assert "noise is not as stated" in judge(expected + 100, Noise(0.5, 100.0, 1.0)).verdict


def test_a_local_error_is_found_where_it_is():
    rng = np.random.default_rng(7)
    expected = model_counts(20.0)
    counts = rng.poisson(expected).astype(float)
    expected[0:8, 16:32, 32:48] *= 0.9
    result = reblur_residual(counts, expected, Noise(1, 0, 0), region=(8, 16, 16))
    assert np.unravel_index(np.nanargmin(result.p), result.p.shape) == (0, 1, 2)
    assert result.p[0, 1, 2] < 1e-6


def test_residual_of_darkness_and_of_wrong_input():
    dark = reblur_residual(np.zeros((8, 32, 32)), np.zeros((8, 32, 32)), Noise(1, 0, 0))
    assert "not judged" in dark.verdict
    with pytest.raises(InputError, match="one shape"):
        reblur_residual(np.zeros((8, 8)), np.zeros((8, 9)), Noise(1, 0, 0))


def test_measure_says_what_one_recording_is(data_folder):
    quality = measure(tifffile.imread(data_folder / "wf_dapi/raw.tif"), (0.3, 0.13, 0.13))
    assert 1758 < quality.background.level < 2300
    assert quality.noise.reliable
    assert 0.26 < quality.lateral_resolution_um < 2
    assert quality.correlation_resolution_um is not None
    assert quality.sampling == pytest.approx(quality.lateral_resolution_um / 0.26)
    again = json.loads(json.dumps(quality.as_dict()))
    assert again["noise"]["gain"] == quality.noise.gain
    assert again["percentiles"]["50"] == 4606


def test_measure_of_a_plane_of_noise_says_so():
    quality = measure(np.random.default_rng(0).normal(100, 3, (64, 64)), (1.0, 0.1, 0.1))
    assert quality.lateral_resolution_um is None
    assert quality.signal_photons is None
    assert any("noise" in note for note in quality.notes)
    assert any("resolution" in note for note in quality.notes)
    json.dumps(quality.as_dict())
