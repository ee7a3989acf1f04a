"""The Wiener step that networks start from: linear, and right for the PSF of every place."""

import numpy as np
import pytest
import torch

from microscopes import gaussian_psf
from pellucid.core.illumination import GaussianSheet, light_sheet_scan
from pellucid.core.operators import Blur
from pellucid.core.psf_field import PsfField
from pellucid.core.varying_blur import VaryingBlur
from pellucid.networks.structures import simulate
from pellucid.networks.wiener import ALPHA, closed, closed_grid, places_of, wiener_step

SHAPE = (12, 24, 48)


def varying():
    widths = (2.0, 3.0, 4.0)
    psfs = [gaussian_psf((7, 9, 9), (3.0, w, w)) for w in widths]
    return VaryingBlur.of(PsfField(np.stack(psfs), [(0, 0, x) for x in (0, 23.5, 47)], (1, 1, 1)), SHAPE)


def scanned():
    psf = torch.from_numpy(gaussian_psf((9, 7, 7), (4.0, 2.0, 2.0)).astype(np.float32))
    return light_sheet_scan(psf, SHAPE, (1, 1, 1), GaussianSheet(2.5, 2000))


def stationary(shape=SHAPE):
    return Blur(torch.from_numpy(gaussian_psf((7, 9, 9), (3.0, 3.0, 3.0)).astype(np.float32)), shape)


@pytest.mark.parametrize("make", [varying, scanned])
def test_the_step_sharpens_blur_that_varies_better_than_its_mean(make):
    operator = make()
    signal = operator.forward(simulate((operator,), "points", 1).truth)
    stationary = Blur(operator.psf, SHAPE)
    if not isinstance(operator, VaryingBlur):
        light = operator.illumination.mean(dim=(0, 2))
        stationary = Blur(operator.psf * light[:, None, None], SHAPE)
    left = [
        float((signal - operator.forward(x)).norm() / signal.norm())
        for x in (wiener_step(signal, operator), _fitted(wiener_step(signal, stationary), operator))
    ]
    assert left[0] < 0.85 * left[1], left
    three = wiener_step(3 * signal, operator)
    torch.testing.assert_close(three, 3 * wiener_step(signal, operator), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [varying, scanned, stationary])
def test_a_part_of_the_step_is_that_of_the_whole(make):
    operator = make()
    signal = operator.forward(simulate((operator,), "points", 1).truth)
    whole = wiener_step(signal, operator)
    part = (slice(1, 13), slice(2, 27), slice(3, 40))
    torch.testing.assert_close(wiener_step(signal, operator, part), whole[part], rtol=1e-4, atol=1e-4)
    assert torch.equal(wiener_step(signal, operator), whole)


def test_the_step_of_a_tile_is_that_of_the_whole_wherever_in_the_field_it_lies():
    whole = varying()
    signal = whole.forward(simulate((whole,), "points", 1).truth)
    tile = VaryingBlur(whole.expansion, (12, 24, 20), origin_um=(0, 0, 28))
    expected = wiener_step(signal, whole)[whole.window][:, :, 40:]
    found = wiener_step(signal[:, :, 28:], tile)[tile.window][:, :, 12:]
    assert len(places_of(tile)) == 2  # the first has no share in this part
    assert float((found - expected).abs().max() / expected.max()) < 5e-3


def test_every_place_filters_the_recording_and_their_shares_blend_it():
    operator = scanned()
    signal = operator.forward(simulate((operator,), "points", 1).truth)
    before, grid = closed_grid(operator)
    wide, places = closed(signal, before, grid), places_of(operator)
    otfs = []
    for place in places:
        padded = torch.zeros(grid)
        padded[tuple(slice(n) for n in place.psf.shape)] = place.psf
        otfs.append(torch.fft.fftn(padded.roll([-(n // 2) for n in place.psf.shape], (0, 1, 2))))
    level = ALPHA * max(float(otf.abs().square().max()) for otf in otfs)
    expected = torch.zeros(operator.domain_shape)
    for place, otf in zip(places, otfs, strict=True):
        inverse = otf.conj() / (otf.abs().square() + level)
        sharp = torch.fft.ifftn(torch.fft.fftn(wide, grid) * inverse).real
        inner = (
            slice(b - m, b - m + n)
            for b, m, n in zip(before, operator.margin, operator.domain_shape, strict=True)
        )
        expected += place.share * sharp[tuple(inner)]
    torch.testing.assert_close(wiener_step(signal, operator), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("axis", "percent"), [(0, 2.5), (1, 0.5), (2, 0.5)])
def test_opposite_faces_do_not_ring_into_each_other(axis, percent):
    signal = torch.full(SHAPE, 100.0)
    signal.narrow(axis, SHAPE[axis] // 2, SHAPE[axis] - SHAPE[axis] // 2).zero_()
    far = [30 if a == axis else 0 for a in range(3)]
    pads = [n for n in reversed(far) for _ in range(2)]
    wide = torch.nn.functional.pad(signal[None, None], pads, mode="replicate")[0, 0]
    small, large = stationary(), stationary(tuple(wide.shape))
    x = wiener_step(signal, small)[small.window]
    expected = wiener_step(wide, large)[large.window]
    seen = tuple(slice(n, n + size) for n, size in zip(far, SHAPE, strict=True))
    off = (x - expected[seen]).abs().max()
    assert off < percent  # with borders repeated on twice the margin: 5.7, 1.7, 1.7


def _fitted(x, operator):
    out = torch.zeros(operator.domain_shape)
    z, y, w = (min(a, b) for a, b in zip(x.shape, operator.domain_shape, strict=True))
    out[:z, :y, :w] = x[:z, :y, :w]
    return out


def test_the_places_of_a_scanned_sheet_are_its_psfs():
    operator = scanned()
    places = places_of(operator)
    assert len(places) == 3
    torch.testing.assert_close(sum(p.share for p in places).expand(1, 1, -1)[0, 0, 5], torch.tensor(1.0))
    emitter = torch.zeros(operator.domain_shape)
    z, y, x = (m + n // 2 for m, n in zip(operator.margin, (12, 24, 47), strict=True))
    emitter[z, y, x] = 1.0
    seen = operator.forward(emitter)
    psf = places[1].psf
    window = tuple(
        slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip((12, 24, 47), psf.shape, strict=True)
    )
    torch.testing.assert_close(seen[window], psf, atol=1e-5, rtol=1e-3)
