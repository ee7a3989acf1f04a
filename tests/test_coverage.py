"""Which voxels were recorded: fill is found where there is some, and nowhere else."""

import math

import numpy as np
import pytest
import torch

from microscopes import gaussian_psf
from pellucid.core.coverage import Fill, chosen_fill, find_fill
from pellucid.core.deskew import StageScan, deskew
from pellucid.core.noise import estimate_background, estimate_noise
from pellucid.core.sampling import blocks_of
from pellucid.core.simulation import Camera, nuclei, points, record

SHAPE = (32, 72, 72)
PSF = gaussian_psf((9, 9, 9), (3.0, 2.5, 2.5))


def recorded(structure=nuclei, peak=300.0, background=2.0, camera=Camera(gain=2.0), seed=3):
    return record(
        structure, PSF, SHAPE, peak_photons=peak, background_photons=background, camera=camera, seed=seed
    ).counts


def sheared(counts, by=1):
    z, y, x = counts.shape
    wide = np.zeros((z, y, x + by * z), counts.dtype)
    for plane in range(z):
        wide[plane, :, by * plane : by * plane + x] = counts[plane]
    return wide


def mosaic(counts):
    holed = counts.copy()
    holed[:, :30, :30] = holed[:, 44:, 50:] = 0
    return holed


def found(counts):
    return find_fill(blocks_of(counts, "test"))


@pytest.mark.parametrize("cut", [sheared, mosaic, lambda c: np.pad(c, 8)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_fill_is_found_and_only_that(cut, dtype):
    whole = recorded()
    counts = cut(whole).astype(dtype)
    fill = found(counts)
    assert (fill.value, fill.margin_px) == (0.0, 0)
    assert np.array_equal(fill.recorded(counts), counts != 0)
    assert found(whole) is None
    assert float(estimate_background(counts)) == pytest.approx(float(estimate_background(whole)), rel=0.01)
    noise = estimate_noise(counts)
    assert noise.reliable
    assert noise.gain == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("frame", ["view", "coverslip"])
def test_a_deskewed_volume_is_fill_and_recording_and_nothing_between(frame):
    whole = torch.from_numpy(recorded().astype(np.float32))
    scan = StageScan(step_um=1.0, sheet_angle_rad=math.pi / 4, pixel_um=0.3)
    deskewed = deskew(whole, scan, frame=frame)[0].numpy()
    fill = found(deskewed)
    assert fill.margin_px == 0
    lit = deskewed[fill.recorded(deskewed)]
    assert lit.min() > 0.8 * float(estimate_background(whole))
    assert float(estimate_background(deskewed)) == pytest.approx(104, rel=0.01)


def test_voxels_that_interpolation_mixed_with_the_fill_belong_to_it():
    counts = sheared(recorded()).astype(np.float32)
    shifted = 0.6 * counts[..., 1:] + 0.4 * counts[..., :-1]
    fill = found(shifted)
    assert fill.margin_px == 1
    both = (counts[..., 1:] > 0) & (counts[..., :-1] > 0)
    assert not (fill.recorded(shifted) & ~both).any()
    assert float(estimate_background(shifted)) == pytest.approx(104, rel=0.01)


@pytest.mark.parametrize("structure", [nuclei, points])
@pytest.mark.parametrize("peak", [1.0, 20.0, 2000.0])
@pytest.mark.parametrize("background", [0.0, 0.05])
def test_photons_counted_on_the_dark_are_never_fill(structure, peak, background):
    counts = recorded(structure, peak, background, Camera(1.0, 0.0, 0.0))
    assert (counts == 0).mean() > 0.001
    assert found(counts) is None
    assert found(counts.astype(np.float32) * 2.7) is None


def test_saturated_clipped_constant_and_eight_bit_volumes():
    counts = recorded()
    assert found(np.minimum(counts, 150)) is None  # plateaus at the top
    assert found(np.maximum(counts, 106) - 106) is None  # background subtracted, clipped at zero
    assert found(np.zeros(SHAPE, np.uint16)) is None
    assert found(np.full(SHAPE, 100, np.uint16)) is None
    tissue = np.clip(np.random.default_rng(0).normal(160, 18, SHAPE), 0, 255).astype(np.uint8)
    assert found(tissue) is None
    tissue[:, :30, :30] = 0
    assert found(tissue).value == 0
    black = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    black[:, :30, :30] = 0  # a black that the values reach: not to be told from fill
    assert found(black) is None


def test_what_is_chosen_needs_no_evidence():
    counts = recorded().astype(np.float32)
    counts[0, 0, :5] = -1
    blocks = blocks_of(counts, "test")
    assert chosen_fill(blocks, "auto") is None
    assert chosen_fill(blocks, "none") is None
    fill = chosen_fill(blocks, -1.0)
    assert fill == Fill(-1.0)
    assert (~fill.recorded(counts)).sum() == 5
    assert chosen_fill([mosaic(counts)], "none") is None
    assert estimate_background(mosaic(counts), fill="none").level < 50
