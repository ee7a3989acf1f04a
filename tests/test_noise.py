"""Noise from one image: gain, offset, background; thinning gives two independent recordings."""

from functools import lru_cache

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from pellucid.core.noise import Noise, estimate_background, estimate_noise, thin
from pellucid.errors import InputError, ParameterError

SHAPE = (24, 128, 128)


@lru_cache
def structure(kind: str) -> np.ndarray:
    """A blurred object between 0 and 1."""
    rng = np.random.default_rng(3)
    if kind == "points":
        sharp = (rng.random(SHAPE) < 1e-3) * rng.uniform(0.3, 1, SHAPE)
    elif kind == "shell":
        z, y, x = np.indices(SHAPE)
        radius = np.sqrt((2.5 * (z - 12)) ** 2 + (y - 64) ** 2 + (x - 60) ** 2)
        sharp = (np.abs(radius - 25) < 1) + 0.5 * (np.abs(radius - 45) < 1)
    else:
        texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
        nuclei = ndimage.gaussian_filter(rng.normal(size=SHAPE), 12) > 0.002
        sharp = nuclei * (1 + 0.5 * texture / texture.std()).clip(0)
    blurred = ndimage.gaussian_filter(sharp.astype(float), (2.5, 1.5, 1.5))
    return blurred / blurred.max()


def record(photons, gain, offset, read, seed=0):
    rng = np.random.default_rng(seed)
    counts = gain * rng.poisson(photons) + rng.normal(offset, read, photons.shape)
    return np.clip(np.round(counts), 0, 65535).astype(np.uint16)


CAMERAS = [(0.5, 100, 2, 200), (1, 0, 0, 20), (2.2, 500, 5, 60), (10, 100, 5, 100)]


@pytest.mark.parametrize("kind", ["points", "shell", "nuclei"])
@pytest.mark.parametrize(("gain", "offset", "read", "peak"), CAMERAS)
def test_gain_offset_and_read_noise_of_a_simulated_camera(kind, gain, offset, read, peak):
    noise = estimate_noise(record(structure(kind) * peak + 0.2, gain, offset, read))
    assert noise.reliable, noise.reason
    assert noise.gain == pytest.approx(gain, rel=0.15)
    low, high = noise.offset_range
    assert low - 0.5 <= offset <= high + 0.5
    # What the pair is for: the variance it predicts.
    mean = offset + gain * np.array([0.5, 1.0]) * peak
    truth = gain * (mean - offset) + read**2
    np.testing.assert_allclose(noise.variance(mean), truth, rtol=0.15)


def test_scale_of_the_counts_scales_the_answer():
    counts = record(structure("nuclei") * 100 + 1, 1.0, 100, 1.5)
    a, b = estimate_noise(counts), estimate_noise(counts.astype(np.float32) / 4096)
    assert b.gain == pytest.approx(a.gain / 4096, rel=1e-3)
    assert b.offset == pytest.approx(a.offset / 4096, rel=1e-3)


def test_saturated_padded_clipped_and_eight_bit_recordings():
    counts = record(structure("nuclei") * 100 + 1, 1.0, 100, 1.5)
    saturated = estimate_noise(np.minimum(counts, 150))
    assert saturated.gain == pytest.approx(1, rel=0.15)
    assert saturated.saturated_share > 0.001
    assert estimate_noise(np.pad(counts, 12)).gain == pytest.approx(1, rel=0.15)
    subtracted = np.clip(counts.astype(int) - 103, 0, None)
    assert estimate_noise(subtracted).gain == pytest.approx(1, rel=0.25)
    eight = np.clip(counts // 2, 0, 255).astype(np.uint8)
    assert estimate_noise(eight).gain == pytest.approx(0.5, rel=0.15)


@lru_cache
def unreliable_images():
    rng = np.random.default_rng(0)
    clean = structure("nuclei") * 200
    recorded = record(clean, 1.0, 100, 1.5).astype(float)
    return {
        "noise-free": clean,
        "noise-free, 8 bit": np.round(clean).astype(np.uint8),
        "constant": np.ones((8, 32, 32)),
        "read noise alone": rng.normal(100, 3, (16, 64, 64)),
        "interpolated": ndimage.shift(recorded, (0, 0.5, 0.5), order=1, mode="nearest"),
        "denoised": ndimage.gaussian_filter(recorded, 0.7),
        "tiny": recorded[:3, :6, :6],
    }


@pytest.mark.parametrize("kind", list(unreliable_images()))
def test_what_cannot_be_known_is_said(kind):
    noise = estimate_noise(unreliable_images()[kind])
    assert not noise.reliable
    assert noise.reason


def test_known_offset_fixes_the_read_noise():
    counts = record(structure("nuclei") * 200 + 2, 1.0, 100, 3.0)
    noise = estimate_noise(counts, offset=100)
    assert noise.offset == 100
    assert noise.read_noise == pytest.approx(3, rel=0.2)


def test_background_is_the_empty_level_and_never_above_it():
    photons = structure("nuclei") * 300
    assert estimate_background(record(photons, 1.0, 100, 2)).level == pytest.approx(100, abs=1)
    haze = ndimage.gaussian_filter(photons, (8, 30, 30))
    hazy = estimate_background(record(photons + haze, 1.0, 100, 2)).level
    assert 99 < hazy < 100 + haze.min() + 3
    padded = estimate_background(np.pad(record(photons, 1.0, 100, 2), 12))
    assert padded.level == pytest.approx(100, abs=1)
    assert "fill value 0" in padded.how


def test_torch_plane_and_numpy_agree_and_bad_input_is_refused():
    counts = record(structure("nuclei") * 100, 1.0, 100, 1.5)
    assert estimate_noise(torch.from_numpy(counts.astype(np.int32))) == estimate_noise(
        counts.astype(np.int32)
    )
    assert estimate_noise(counts[12]).gain == pytest.approx(1, rel=0.3)
    broken = counts.astype(float)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        estimate_noise(broken)
    with pytest.raises(InputError, match="one channel"):
        estimate_background(np.ones((2, 2, 8, 8)))


# What the pictures themselves look like: gain within a factor, offset where the data's floor is.
REAL = {
    "wf_dapi/raw.tif": (True, (3, 15), (0, 2300)),
    "nuclei_lightsheet/klb_img.tif": (True, (1, 4), (-20, 10)),
    "embryo_8cell/raw.tif": (True, (15, 40), (95, 110)),
    "confocal_grid/beads.tif": (True, (0.05, 0.5), (0.9, 1.1)),  # black is 1, not padding
    "golgi_airyscan/raw.tif": (False, None, None),  # Airyscan processing correlates the noise
    "mouse_brain_whole/brain.tif": (False, None, None),  # downsampled
}


@pytest.mark.parametrize("name", list(REAL))
def test_real_recordings_are_plausible(data_folder, name):
    reliable, gain, offset = REAL[name]
    noise = estimate_noise(tifffile.imread(data_folder / name))
    assert noise.reliable == reliable, noise.reason
    if reliable:
        assert gain[0] < noise.gain < gain[1]
        assert offset[0] < noise.offset < offset[1]


@pytest.mark.parametrize(
    ("gain", "offset", "read"), [(1, 0, 0), (1, 0, 1), (2, 100, 3), (0.5, 90, 5)]
)
@pytest.mark.parametrize("photons", [0.3, 6.0, 28.0, 200.0])
@pytest.mark.parametrize("fraction", [0.5, 0.85])
def test_thinning_keeps_mean_and_variance_and_decorrelates(gain, offset, read, photons, fraction):
    n = 400_000
    generator = torch.Generator().manual_seed(1)
    counts = gain * torch.poisson(torch.full((n,), photons), generator=generator)
    counts += offset + read * torch.randn(n, generator=generator)
    kept, held_out = thin(counts, Noise(gain, offset, read), fraction, generator)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept + held_out, counts - offset, atol=1e-3, rtol=1e-5)
    variance = gain**2 * photons + read**2
    for part, share in ((kept.double(), fraction), (held_out.double(), 1 - fraction)):
        error = 4 * np.sqrt(share * variance / n)
        assert float(part.mean()) == pytest.approx(share * gain * photons, abs=error)
        # 1 % and the sampling error of a variance of skewed counts
        assert float(part.var()) == pytest.approx(share * variance, rel=0.01 + 4 / np.sqrt(n))
    together = torch.corrcoef(torch.stack([kept, held_out]).double())[0, 1]
    assert abs(float(together)) < 0.01


def test_thinning_of_integer_photons_is_binomial_and_repeatable():
    counts = torch.full((200_000,), 3.0)
    a, b = (thin(counts, Noise(1, 0, 0), 0.25, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    drawn = np.bincount(a[0].to(torch.int64).numpy(), minlength=4) / counts.numel()
    np.testing.assert_allclose(drawn, [27 / 64, 27 / 64, 9 / 64, 1 / 64], atol=0.004)
    for fraction, gain in ((0.0, 1.0), (1.0, 1.0), (0.5, 0.0)):
        with pytest.raises(ParameterError):
            thin(counts, Noise(gain, 0, 0), fraction, torch.Generator())
