"""A PSF from beads: what is found, what is rejected, and how true the average is."""

import numpy as np
import pytest
from scipy.special import erf

from pellucid.core.beads import distill, without_bead_size
from pellucid.core.psf import Psf, core_centre, fwhm_px, fwhm_um
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import Optics, widefield
from pellucid.errors import InputError, ParameterError

SPACING = (0.3, 0.1, 0.1)
FWHM_PX = (4.0, 3.2, 3.6)
SHAPE = (40, 150, 150)
PLACES = [
    (20.3, 30.2, 30.7), (18.6, 30.5, 90.1), (22.1, 75.4, 30.0), (19.5, 80.9, 78.5),
    (21.0, 120.3, 40.6), (17.4, 118.8, 110.2), (20.8, 60.1, 125.3),
]  # fmt: skip


def bead(shape, centre, fwhm=FWHM_PX):
    """A Gaussian integrated over voxels with a peak near 1."""
    lines = []
    for size, width, middle in zip(shape, fwhm, centre, strict=True):
        borders = (np.arange(size + 1) - 0.5 - middle) * 2.354820045 / width
        line = np.diff(erf(borders / np.sqrt(2.0)))
        lines.append(line * width / 1.8788)
    return np.einsum("z,y,x->zyx", *lines)


def field(places, peaks, seed=0, background=100.0, shape=SHAPE):
    light = sum(peak * bead(shape, place) for place, peak in zip(places, peaks, strict=True))
    return np.random.default_rng(seed).poisson(background + light).astype(np.uint16)


def true_fwhm_um():
    return np.array(fwhm_px(bead((41, 41, 41), (20, 20, 20)))) * SPACING


def test_the_known_psf_is_recovered():
    peaks = [800, 1500, 1200, 600, 2000, 900, 1100]
    found = distill(field(PLACES, peaks), SPACING)
    assert len(found.used) == len(PLACES)
    assert found.rejected == ()
    for used in found.used:
        nearest = min(PLACES, key=lambda place: np.linalg.norm(np.subtract(place, used.centre_px)))
        assert used.centre_px == pytest.approx(nearest, abs=0.05)
        assert used.residual < 0.02
    assert fwhm_um(found.psf) == pytest.approx(true_fwhm_um(), rel=0.02)
    assert found.fwhm_um == pytest.approx(true_fwhm_um(), rel=0.02)
    assert np.all(np.less(found.fwhm_spread_um, 0.04 * true_fwhm_um()))
    psf = found.psf
    truth = bead(psf.shape, psf.centre)
    assert np.corrcoef(psf.values.ravel(), truth.ravel())[0, 1] > 0.999
    assert core_centre(psf.values) == pytest.approx(psf.centre, abs=0.03)
    assert psf.spacing_um == SPACING


def test_unfit_beads_are_rejected_with_their_reasons():
    saturated, pair, edge = (20.0, 30.0, 120.0), (20.0, 118.0, 75.0), (20.0, 2.0, 60.0)
    image = field(
        [*PLACES, saturated, pair, (20.0, 118.0, 81.0), edge],
        [900, 1000, 1100, 1200, 900, 1000, 1100, 6000, 1000, 900, 1000],
    )
    image = np.minimum(image, 4095)  # what a 12-bit camera in 16-bit files does
    found = distill(image, SPACING)
    assert len(found.used) == len(PLACES)
    reasons = {r.reason: r.centre_px for r in found.rejected}
    assert reasons["saturated"] == pytest.approx(saturated, abs=1)
    assert reasons["border"] == pytest.approx(edge, abs=1)
    assert sorted(r.reason for r in found.rejected) == [
        "border", "overlapping", "overlapping", "saturated",
    ]  # fmt: skip
    assert fwhm_um(found.psf) == pytest.approx(true_fwhm_um(), rel=0.02)


def test_a_bead_of_another_shape_and_a_dim_one_are_left_out():
    image = field(PLACES, [1000] * 7).astype(float)
    image += 1000.0 * bead(SHAPE, (20, 30, 60), (4.0, 3.2, 6.0))
    image += 85.0 * bead(SHAPE, (20, 90, 130))
    found = distill(image, SPACING)
    reasons = {r.reason: r.centre_px for r in found.rejected}
    assert reasons["odd one out"] == pytest.approx((20, 30, 60), abs=1)
    assert reasons["dim"] == pytest.approx((20, 90, 130), abs=2)
    assert len(found.used) == 7


def test_light_of_a_neighbour_is_left_out_of_the_average():
    places = [*PLACES[:3], (20.0, 80.0, 80.0), (20.0, 80.0, 92.5)]
    found = distill(field(places, [1000] * 5), SPACING, shape=(21, 27, 27))
    assert len(found.used) == 5
    far = np.abs(np.arange(27) - 13) > 8
    assert found.psf.values[:, :, far].sum() < 2e-3


def test_beads_of_a_real_psf_shape():
    psf = widefield(Optics(0.8, 525, 1.0), (0.4, 0.12, 0.12), (41, 61, 61))
    stack = np.full((61, 130, 130), 50.0)
    for (z, y, x), peak in [((30, 32, 34), 9000), ((28, 40, 95), 12000), ((31, 95, 60), 15000)]:
        spot = np.s_[z - 20 : z + 21, y - 30 : y + 31, x - 30 : x + 31]
        stack[spot] += peak * psf.values / psf.values.max()
    found = distill(np.random.default_rng(3).poisson(stack), psf.spacing_um)
    assert len(found.used) == 3
    assert found.rejected == ()
    assert fwhm_um(found.psf) == pytest.approx(fwhm_um(psf), rel=0.02)


def test_a_plane_of_beads_gives_a_2d_psf():
    places = [(0.0, y, x) for _, y, x in PLACES]
    light = sum(1000.0 * bead((1, 150, 150), place) for place in places)[0]
    light *= 1000.0 / light.max()
    found = distill(np.random.default_rng(0).poisson(100.0 + light), SPACING)
    assert len(found.used) == len(PLACES)
    assert found.psf.shape[0] == 1
    assert fwhm_um(found.psf)[1:] == pytest.approx(true_fwhm_um()[1:], rel=0.02)
    assert np.isnan(found.fwhm_um[0])


def test_the_size_of_the_bead_is_taken_out():
    grid = np.indices((31, 45, 45)) - np.array([15, 22, 22])[:, None, None, None]
    narrow = bead((31, 45, 45), (15, 22, 22), (6.0, 5.0, 5.0))
    radius_um, spacing = 0.2, np.array((0.1, 0.1, 0.1))
    ball = (np.sqrt(((grid * spacing[:, None, None, None]) ** 2).sum(axis=0)) <= radius_um) * 1.0
    spectrum = np.fft.rfftn(narrow) * np.fft.rfftn(np.fft.ifftshift(ball))
    wide = Psf.normalised(np.fft.irfftn(spectrum, narrow.shape, axes=(0, 1, 2)), (0.1, 0.1, 0.1))
    truth = np.array(fwhm_px(narrow)) * 0.1
    assert np.all(np.array(fwhm_um(wide)) > 1.05 * truth)
    corrected = without_bead_size(wide, 2.0 * radius_um)
    assert fwhm_um(corrected) == pytest.approx(truth, rel=0.02)
    with pytest.raises(ParameterError, match="smaller beads"):
        without_bead_size(wide, 5.0)


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        (np.random.default_rng(0).poisson(100.0, (20, 60, 60)), "brighter|fit for use"),
        (np.full((9, 30, 30), 3), "no spot"),
        (np.ones((2, 3, 9, 9)), "one channel"),
        (np.full((9, 9, 9), np.nan), "NaN"),
        (field([(20, 3, 3)], [1000]), "1 border"),
    ],
)
def test_stacks_without_usable_beads_say_what_to_do(stack, says):
    with pytest.raises(InputError, match=says):
        distill(stack, SPACING)


def test_the_shape_asked_for_must_be_odd():
    with pytest.raises(ParameterError, match="odd"):
        distill(field(PLACES[:1], [1000]), SPACING, shape=(10, 21, 21))


def test_real_beads_agree_with_their_published_average(data_folder):
    tifffile = pytest.importorskip("tifffile")
    spacing = (0.125, 0.02249, 0.02249)
    found = distill(tifffile.imread(data_folder / "confocal_grid" / "beads.tif"), spacing)
    published = prepare(
        tifffile.imread(data_folder / "confocal_grid" / "psf_averaged.tif"), spacing
    )
    assert len(found.used) == 4
    assert found.rejected == ()
    half = [min(a, b) // 2 for a, b in zip(found.psf.shape, published.shape, strict=True)]
    ours, theirs = (
        psf.values[tuple(slice(c - h, c + h + 1) for c, h in zip(psf.centre, half, strict=True))]
        for psf in (found.psf, published)
    )
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
    # The published average was aligned to whole voxels and is a little wider.
    assert fwhm_um(found.psf) == pytest.approx(fwhm_um(published), rel=0.1)
