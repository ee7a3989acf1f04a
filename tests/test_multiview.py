"""The simulated arms: a spot lands where the transform says, as wide and as bright as it must be."""

import numpy as np
import pytest
import tifffile

from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, QUAD_DEG, Arm, record_views, turned_arms
from pellucid.core.psf import centroid, crop_to_support
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import Camera
from pellucid.errors import ParameterError

WORLD = Grid((25, 25, 25), 0.5, origin_um=(3.0, -2.0, 1.0))
PSF = gaussian((3.0, 1.5, 1.5), (0.5, 0.5, 0.5))
CLEAN = Camera(gain=1.0, offset=0.0, read_noise=0.0)


def spot(at=(12, 10, 16), sigma=1.2):
    axes = np.ogrid[:25, :25, :25]
    return np.exp(-0.5 * sum(((a - c) / sigma) ** 2 for a, c in zip(axes, at, strict=True)))


@pytest.mark.parametrize("misplaced", [0.0, 1.0])
def test_a_spot_lands_where_the_transform_says(misplaced):
    arms = turned_arms(QUAD_DEG, WORLD, [PSF], shape=(31, 31, 31), misplaced=misplaced, seed=2)
    recording = record_views(spot(), WORLD, arms, peak_photons=1000, background_photons=0)
    place = WORLD.index_to_um.apply((12, 10, 16))
    for view in recording.views:
        expected = view.grid.um_to_index.apply(view.world_to_view.apply(place))
        np.testing.assert_allclose(centroid(view.photons), expected, atol=0.05)


def test_a_quarter_turn_by_hand():
    # +90 degrees about y turns +z towards +x: what lies above the middle is right of it in the view
    arms = turned_arms(DUAL_DEG, WORLD, [PSF])
    recording = record_views(spot((15, 12, 12)), WORLD, arms, peak_photons=1000)
    first, second = (
        np.unravel_index(np.argmax(view.photons), view.photons.shape) for view in recording.views
    )
    assert first == (15, 12, 12)
    assert second == (12, 12, 15)


def test_light_is_kept_and_scaled_by_brightness():
    arms = turned_arms(DUAL_DEG, WORLD, [PSF], shape=(41, 41, 41))
    dim = Arm(arms[1].world_to_view, arms[1].shape, PSF, brightness=0.5)
    recording = record_views(
        spot(), WORLD, (arms[0], dim), peak_photons=500, background_photons=0, camera=CLEAN
    )
    total = recording.truth.sum()
    assert recording.views[0].photons.sum() == pytest.approx(total, rel=2e-3)
    assert recording.views[1].photons.sum() == pytest.approx(total / 2, rel=2e-3)
    assert recording.views[0].counts.sum() == pytest.approx(total, rel=5 / np.sqrt(total))


def test_sparse_planes_are_planes_of_the_dense_recording():
    light = {"peak_photons": 100, "background_photons": 0}
    dense = record_views(spot(), WORLD, turned_arms([20], WORLD, [PSF]), **light)
    sparse = record_views(spot(), WORLD, turned_arms([20], WORLD, [PSF], planes_every=3), **light)
    thick, thin = sparse.views[0], dense.views[0]
    assert thick.grid.spacing_um == (1.5, 0.5, 0.5)
    scale = thick.photons.max() / thin.photons[::3].max()
    np.testing.assert_allclose(thick.photons, thin.photons[::3] * scale, atol=1e-9)
    assert thick.psf.shape[0] % 2 == 1
    np.testing.assert_allclose(centroid(thick.psf), thick.psf.centre, atol=1e-6)


def test_light_falls_in_from_outside_the_world():
    arms = turned_arms([45], WORLD, [PSF])
    endless = record_views(lambda shape, _: np.ones(shape), WORLD, arms, peak_photons=100)
    ended = record_views(endless.truth, WORLD, arms, peak_photons=100)
    # at 45 degrees the corners of the view look past the world
    corner = (slice(0, 4), slice(None), slice(0, 4))
    np.testing.assert_allclose(endless.views[0].photons, 102.0, rtol=1e-3)
    assert ended.views[0].photons[corner].min() < 5.0


def test_measured_psfs_serve_as_arms(data_folder):
    psfs = []
    for angle in (0, 90):
        raw = tifffile.imread(data_folder / f"mv_psf_measured/angle{angle:03}.tif")
        psfs.append(crop_to_support(prepare(raw, (0.5, 0.5, 0.5)), 0.9))
    recording = record_views(spot(), WORLD, turned_arms(DUAL_DEG, WORLD, psfs), peak_photons=200)
    widths = [
        [(view.photons - 2).clip(0).sum(axis=axes) for axes in ((1, 2), (0, 1))]
        for view in recording.views
    ]
    for along_z, along_x in widths:
        assert (along_z > along_z.max() / 2).sum() > (along_x > along_x.max() / 2).sum()


def test_an_anisotropic_world_is_refused():
    with pytest.raises(ParameterError, match="isotropic"):
        record_views(spot(), Grid((25, 25, 25), (1, 0.5, 0.5)), [], peak_photons=1)
