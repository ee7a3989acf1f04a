"""The array function: kinds and shapes in and out, cameras, and every bad input's sentence."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from microscopes import LIGHT_SHEET, gaussian_psf
from pellucid.core.deconvolution import deconvolve
from pellucid.core.noise import Noise
from pellucid.core.psf import Psf
from pellucid.core.quality import ncc
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.errors import InputError, ParameterError


@pytest.fixture(scope="module")
def camera_recording():
    """Counts of a real camera: gain, offset, read noise."""
    return record(
        STRUCTURES["shells"], LIGHT_SHEET, (20, 32, 32), peak_photons=300,
        camera=Camera(gain=2.2, offset=100, read_noise=3), seed=4,
    )


def test_a_camera_recording_is_restored_in_its_own_counts(camera_recording):
    found = deconvolve(camera_recording.counts, LIGHT_SHEET)
    truth = camera_recording.truth
    assert found.image.dtype == torch.float32
    assert found.image.shape == truth.shape
    assert ncc(found.image, truth) > ncc(camera_recording.counts, truth) + 0.1
    light = float(found.image.sum()) / (2.2 * truth.sum())
    assert light == pytest.approx(1, abs=0.1)
    assert found.stats["noise"]["gain"] == pytest.approx(2.2, rel=0.2)
    assert found.stats["residual"].startswith("consistent with the recording")
    assert found.stats["stopped_by"] in ("held-out photons lost", "next to nothing gained")


def test_the_dtype_of_the_file_does_not_matter(camera_recording):
    counts = camera_recording.counts
    results = [
        deconvolve(counts.astype(dtype), LIGHT_SHEET, background=105, noise=Noise(2.2, 100, 3)).image
        for dtype in (np.uint16, np.float32, ">f8", np.int32)
    ]
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_tensors_and_flat_images_keep_their_shape():
    recording = record(
        STRUCTURES["filaments"], gaussian_psf((1, 9, 9), (1, 3, 3)), (1, 64, 64), peak_photons=300
    )
    image = torch.from_numpy(recording.counts[0].astype(np.float32))
    before = image.clone()
    found = deconvolve(image, LIGHT_SHEET)  # a 3D PSF: its focal plane is taken
    assert found.image.shape == (64, 64)
    assert torch.equal(image, before)
    assert ncc(found.image, recording.truth[0]) > ncc(image, recording.truth[0])
    assert any("focal plane" in note for note in found.stats["psf_notes"])


@pytest.mark.parametrize("psf_shape", [(5, 9, 9), (6, 8, 10), (41, 65, 65)])
def test_any_psf_size_serves(camera_recording, psf_shape):
    """Odd, even, and larger than the image."""
    psf = gaussian_psf(psf_shape, (3, 3, 3))
    found = deconvolve(camera_recording.counts, psf, iterations=2, method="matched")
    assert found.image.shape == camera_recording.counts.shape
    assert float(found.image.min()) >= 0


def test_a_psf_off_centre_with_a_camera_offset_is_mended(camera_recording):
    clean = np.pad(LIGHT_SHEET, 6)
    raw = 5e4 * np.roll(clean, (2, -3, 1), axis=(0, 1, 2)) + 101
    a = deconvolve(camera_recording.counts, clean, iterations=5, method="matched").image
    b = deconvolve(camera_recording.counts, raw, iterations=5, method="matched").image
    assert ncc(a, b) > 0.999


def test_the_number_of_iterations_is_the_plain_scheme(camera_recording):
    found = deconvolve(camera_recording.counts, LIGHT_SHEET, method="matched", iterations=7)
    assert found.stats["iterations"] == 7
    assert len(found.stats["i_divergence"]) == 7


@pytest.mark.parametrize("planes", [2, 3, 6])
def test_a_psf_deeper_than_the_stack_keeps_the_light(planes):
    """Not several times too bright: most of the PSF lies outside, and its light is not lost but shared."""
    psf = gaussian_psf((41, 9, 9), (14, 3, 3))
    recording = record(STRUCTURES["nuclei"], psf, (planes, 40, 40), peak_photons=300, seed=2)
    for options in ({"method": "matched", "iterations": 10}, {}):
        found = deconvolve(recording.counts, psf, background=102, noise=Noise(1, 100, 2), **options)
        assert float(found.image.sum()) == pytest.approx(float(recording.truth.sum()), rel=0.35)


@pytest.mark.parametrize("unit", [1e-6, 1e3])
def test_the_unit_of_a_denoised_image_does_not_matter(camera_recording, unit):
    image = gaussian_filter(camera_recording.counts.astype(np.float64), 1.0) - 100
    a = deconvolve(image, LIGHT_SHEET)
    b = deconvolve(image * unit, LIGHT_SHEET)
    assert not a.stats["noise"]["reliable"]
    assert ncc(a.image, b.image) > 0.999
    assert float(b.image.sum()) == pytest.approx(unit * float(a.image.sum()), rel=0.01)


@pytest.mark.parametrize("photons", [1, 3, 10])
def test_a_handful_of_photons_is_no_reason_to_fail(photons):
    dim = np.zeros((12, 32, 32), np.uint16)
    dim.flat[np.random.default_rng(photons).integers(0, dim.size, photons)] += 1
    found = deconvolve(dim, LIGHT_SHEET)
    assert torch.isfinite(found.image).all()


def test_nothing_to_see_gives_nothing():
    """An all-dark recording is no error in a series; it must not turn into NaN or invented light."""
    found = deconvolve(np.zeros((8, 16, 16), np.uint16), LIGHT_SHEET)
    assert torch.equal(found.image, torch.zeros(8, 16, 16))


def bad_volume(fill):
    volume = np.ones((8, 16, 16), np.float32)
    volume[2, 3, 4] = fill
    return volume


@pytest.mark.parametrize(
    ("volume", "psf", "message"),
    [
        (bad_volume(np.nan), LIGHT_SHEET, "1 voxels that are NaN"),
        (bad_volume(np.inf), LIGHT_SHEET, "NaN or infinite"),
        (np.ones((2, 8, 16, 16)), LIGHT_SHEET, "one channel and one time point"),
        (np.ones((0, 16, 16)), LIGHT_SHEET, "no voxels"),
        (np.ones((8, 16, 16), complex), LIGHT_SHEET, "real numbers"),
        (torch.ones(8, 16, 16, dtype=torch.complex64), LIGHT_SHEET, "real numbers"),
        (np.ones((8, 16, 16)), np.ones((5, 5, 5)), "flat"),
        (np.ones((8, 16, 16)), np.zeros((5, 5, 5)), "light"),
        (np.ones((8, 16, 16)), np.full((5, 5, 5), np.nan), "NaN"),
        (np.ones((8, 16, 16)), gaussian_psf((1, 5, 5), (1, 2, 2)), "3D PSF"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_that_says_what_to_do(volume, psf, message):
    with pytest.raises(InputError, match=message):
        deconvolve(volume, psf)


def test_unknown_methods_and_iterations_are_refused():
    volume = np.ones((8, 16, 16))
    with pytest.raises(ParameterError, match="wiener-butterworth"):
        deconvolve(volume, LIGHT_SHEET, method="magic")
    with pytest.raises(ParameterError, match="automatic"):
        deconvolve(volume, LIGHT_SHEET, iterations=0)
    with pytest.raises(ParameterError, match="number of counts"):
        deconvolve(volume, LIGHT_SHEET, background=float("nan"))


def test_a_prepared_psf_is_taken_as_it_is(camera_recording):
    psf = Psf.normalised(LIGHT_SHEET, (0.3, 0.1, 0.1))
    found = deconvolve(camera_recording.counts, psf, iterations=1)
    assert found.stats["psf_notes"] == list(psf.notes)
