"""Registration on views whose truth is exact: Gaussian spots, moved and blurred by formula."""

import json

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from pellucid.core.blur_matching import (
    downsampled,
    estimated_difference,
    from_difference,
    gaussian_blurred,
    gaussian_of_psf,
    matched_levels,
)
from pellucid.core.descent import Attempt
from pellucid.core.fit_columns import (
    Level,
    sample_with_gradient,
    strongest_gradients,
    with_curvatures,
)
from pellucid.core.gauss_newton import Fit, align
from pellucid.core.geometry import Affine, Grid
from pellucid.core.registration import LARGEST_SIGMA, _verdict, register
from pellucid.core.starts import from_projections, search, turns_within, view_turn
from pellucid.core.verdict import Agreement, shared_volume
from pellucid.errors import FrameError, InputError, ParameterError

SIZE = 48
FIXED = Grid((SIZE, SIZE, SIZE), frame="fixed")
ROUND = np.eye(3) * 1.5


def spots(seed, count=90, reach=1.6, size=SIZE):
    """Return places (um) and brightness of spots in a region wider than the view."""
    rng = np.random.default_rng(seed)
    margin = (reach - 1) / 2 * size
    return rng.uniform(-margin, size + margin, (count, 3)), rng.uniform(0.3, 1.0, count)


def picture(grid, places, brightness, covariance, *, photons=None, seed=0, own=4.0):
    """Return the exact image of Gaussian spots of variance `own`, under a Gaussian blur."""
    total = covariance + own * np.eye(3)
    inverse = np.linalg.inv(total)
    image = np.zeros(grid.shape)
    reach = 4 * np.sqrt(np.diag(total))
    for place, light in zip(places, brightness, strict=True):
        low = np.ceil(grid.um_to_index.apply(place - reach)).astype(int).clip(0)
        high = np.minimum(
            np.floor(grid.um_to_index.apply(place + reach)).astype(int) + 1, grid.shape
        )
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        index = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)],
                                     indexing="ij"), axis=-1)  # fmt: skip
        offset = grid.index_to_um.apply(index) - place
        image[box] += light * np.exp(-0.5 * np.einsum("...i,ij,...j", offset, inverse, offset))
    if photons is not None:
        image = np.random.default_rng(seed).poisson(image * photons + 5) + 100
    return image.astype(np.float32)


def two_views(truth, *, moving=None, fixed_blur=ROUND, moving_blur=ROUND, photons=300, seed=1):
    """Return exact views of the same spots; `truth` moves their places (spots stay round)."""
    moving = moving or Grid(FIXED.shape, frame="moving")
    places, brightness = spots(seed)
    first = picture(FIXED, places, brightness, fixed_blur, photons=photons, seed=seed)
    second = picture(
        moving, truth.apply(places), 0.7 * brightness, moving_blur, photons=photons, seed=seed + 50
    )
    return first, second


def moved(**parameters):
    return Affine.from_params(
        centre_um=FIXED.centre_um, source="fixed", target="moving", **parameters
    )


def corner_error(registration, truth, grid=FIXED):
    return np.linalg.norm(
        registration.fixed_to_moving.apply(grid.corners_um()) - truth.apply(grid.corners_um()),
        axis=1,
    )


TRUTHS = {
    "translation": moved(translation_um=(3.3, -4.6, 2.2)),
    "rigid": moved(translation_um=(2.3, -1.6, 3.1), rotation_rad=(0.1, -0.06, 0.08)),
    "similarity": moved(translation_um=(-2, 1, 2), rotation_rad=(0.08, 0.05, 0), scale=1.04),
    "affine": moved(
        translation_um=(2, -3, 1.5), rotation_rad=(0.06, 0.05, -0.1), scale=(1.04, 0.97, 1.02),
        shear=(0.03, -0.02, 0.04),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", TRUTHS)
def test_every_model_finds_its_own_truth(model):
    truth = TRUTHS[model]
    found = register(*two_views(truth), fixed_spacing_um=1.0, moving_spacing_um=1.0, model=model)
    assert found.converged, found.reason
    assert corner_error(found, truth).max() < 0.15
    linear = found.fixed_to_moving.linear
    if model == "rigid":
        np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)
    if model == "translation":
        np.testing.assert_array_equal(linear, np.eye(3))
    assert found.ncc_after > max(found.ncc_before, 0.9)
    assert 0.7 < found.overlap <= 1


def test_orthogonal_blur_does_not_bias_the_transform():
    truth = TRUTHS["affine"]
    blurs = np.diag([9.0, 0.5, 0.5]), np.diag([0.5, 0.5, 9.0])
    views = two_views(truth, fixed_blur=blurs[0], moving_blur=blurs[1], photons=1000)
    found = register(*views, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.12
    measured = np.array(found.blur_difference_um2)
    back = np.linalg.inv(truth.linear)
    np.testing.assert_allclose(measured, blurs[0] - back @ blurs[1] @ back.T, atol=1.5)


@pytest.mark.parametrize(("photons", "believed"), [(2, "the PSFs"), (3000, "the views")])
def test_given_psfs_count_for_as_much_as_the_views_leave_open(photons, believed):
    grid = Grid((21, 21, 21))
    # 15 % too narrow: dim views cannot tell, bright ones can
    true, stated = np.diag([6.0, 1, 1]), np.diag([4.3, 1, 1])
    psfs = [picture(grid, [grid.centre_um], [1.0], c, own=0.0) for c in (ROUND, stated)]
    views = two_views(moved(translation_um=(1, 0, 2)), moving_blur=true, photons=photons)
    found = register(
        *views, fixed_spacing_um=1.0, moving_spacing_um=1.0, start="translation",
        model="translation", fixed_psf=psfs[0], moving_psf=psfs[1],
    )  # fmt: skip
    width = -np.array(found.blur_difference_um2)[0, 0]
    assert abs(width - {"the views": 6.0 - 1.5, "the PSFs": 4.3 - 1.5}[believed]) < 0.2


def test_given_psfs_serve_as_well():
    truth = TRUTHS["rigid"]
    blurs = np.diag([9.0, 0.5, 0.5]), np.diag([0.5, 0.5, 9.0])
    views = two_views(truth, fixed_blur=blurs[0], moving_blur=blurs[1], photons=1000)
    grid = Grid((25, 25, 25))
    psfs = [picture(grid, [grid.centre_um], [1.0], blur, own=0.0) for blur in blurs]
    found = register(
        *views, fixed_spacing_um=1.0, moving_spacing_um=1.0, fixed_psf=psfs[0], moving_psf=psfs[1]
    )
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.12


def test_voxels_and_shapes_may_differ():
    truth = TRUTHS["rigid"]
    moving = Grid((24, 40, 60), (2.0, 1.2, 0.8), frame="moving")
    views = two_views(truth, moving=moving, photons=500)
    found = register(*views, fixed_spacing_um=1.0, moving_spacing_um=moving.spacing_um)
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.15


def test_stacks_of_few_planes():
    thin = Grid((7, 64, 64), (2.0, 0.75, 0.75), frame="fixed")
    truth = Affine.from_params(
        translation_um=(0.4, 2.3, -3.1), rotation_rad=(0.08, 0, 0), centre_um=thin.centre_um,
        source="fixed", target="moving",
    )  # fmt: skip
    places, brightness = spots(4)
    views = [
        picture(thin, p, brightness, ROUND, photons=500, seed=n)
        for n, p in enumerate((places, truth.apply(places)))
    ]
    found = register(
        *views, fixed_spacing_um=thin.spacing_um, moving_spacing_um=thin.spacing_um, model="rigid"
    )
    assert found.converged, found.reason
    assert corner_error(found, truth, thin).mean() < 0.2


def test_gain_and_offset_change_nothing():
    first, second = two_views(TRUTHS["affine"])
    plain = register(first, second, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    other = register(8 * first, 0.1 * second + 3000, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    change = corner_error(plain, other.fixed_to_moving)
    assert change.max() < 1e-2


def test_micrometres_scale_with_the_voxels():
    views = two_views(TRUTHS["affine"])
    one = register(*views, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    third = register(*views, fixed_spacing_um=0.325, moving_spacing_um=0.325)
    np.testing.assert_allclose(third.fixed_to_moving.linear, one.fixed_to_moving.linear, atol=1e-4)
    np.testing.assert_allclose(
        third.fixed_to_moving.offset_um, 0.325 * one.fixed_to_moving.offset_um, atol=5e-3
    )
    assert third.corner_sigma_um == pytest.approx(0.325 * np.array(one.corner_sigma_um), rel=0.05)


def test_the_uncertainty_is_about_the_error():
    ratios = []
    for seed in range(4):
        truth = TRUTHS["affine"]
        found = register(
            *two_views(truth, seed=10 + seed, photons=60),
            fixed_spacing_um=1.0, moving_spacing_um=1.0,
        )  # fmt: skip
        ratios.append(corner_error(found, truth).mean() / np.mean(found.corner_sigma_um))
    assert 0.2 < np.median(ratios) < 3


def test_images_of_one_plane():
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.normal(size=(220, 220)), 3)
    image = 100 + 500 * np.clip(image / image.max(), 0, None)
    centre = 109.5
    turn = Affine.rotation("z", 0.15, centre_um=(0, centre, centre))
    truth = Affine.translation((0, 4.3, -6.1)) @ turn
    back = truth.inverse()
    second = ndimage.affine_transform(image, back.linear[1:, 1:], back.offset_um[1:], order=3)
    # inner windows of both, so that neither shows an invented border
    inner = (slice(40, 180), slice(40, 180))
    found = register(
        image[inner], second[inner], fixed_spacing_um=0.5, moving_spacing_um=(0.5, 0.5)
    )
    assert found.converged, found.reason
    corner = np.array([0, 40, 40])
    places = np.array([[0, 0, 0], [0, 0, 139], [0, 139, 0], [0, 139, 139]])
    expected = (truth.apply(places + corner) - corner) * 0.5
    np.testing.assert_allclose(found.fixed_to_moving.apply(places * 0.5), expected, atol=0.05)
    np.testing.assert_array_equal(found.fixed_to_moving.matrix[0], [1, 0, 0, 0])


def test_masked_voxels_do_not_count():
    truth = TRUTHS["rigid"]
    first, second = two_views(truth)
    # dirt at the same pixels of both cameras, brighter than the specimen
    rng = np.random.default_rng(0)
    dirt = np.zeros(FIXED.shape, bool)
    dirt[:14] = True
    pattern = 1500 * ndimage.gaussian_filter(rng.random(FIXED.shape), 2).astype(np.float32) * dirt
    mask = ~ndimage.binary_dilation(dirt, iterations=1)
    arguments = {"fixed_spacing_um": 1.0, "moving_spacing_um": 1.0, "model": "rigid",
                 "start": "translation"}  # fmt: skip
    found = register(
        first + pattern, second + pattern, fixed_mask=mask, moving_mask=mask, **arguments
    )
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.25
    fooled = register(first + pattern, second + pattern, **arguments)
    assert corner_error(fooled, truth).mean() > 0.5


@pytest.mark.parametrize("start", [None, "search"])
def test_a_large_turn_is_searched_for(start):
    truth = moved(translation_um=(4, -6, 3), rotation_rad=(0.4, -0.3, 0.2))
    views = two_views(truth, photons=500)
    found = register(
        *views, fixed_spacing_um=1.0, moving_spacing_um=1.0, model="rigid", start=start
    )
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.2


def test_the_nominal_turn_between_two_objectives_is_used():
    turn = view_turn(FIXED, Grid(FIXED.shape, frame="moving"), "y", np.pi / 2)
    truth = Affine.translation((3, -2, 4), source="moving", target="moving") @ turn
    views = two_views(truth)
    arguments = {"fixed_spacing_um": 1.0, "moving_spacing_um": 1.0, "start": "translation"}
    found = register(*views, nominal=turn, **arguments)
    assert found.converged, found.reason
    assert corner_error(found, truth).mean() < 0.15
    assert not register(*views, nominal=turn.inverse().with_frames(source="fixed", target="moving"),
                        **arguments).converged  # fmt: skip


def test_coarse_planes_along_different_axes():
    # each view is coarse along its own optical axis, as recorded by two objectives at a right angle
    fixed = Grid((14, 48, 48), (3.4, 1.0, 1.0), frame="fixed")
    moving = Grid((14, 48, 48), (3.4, 1.0, 1.0), frame="moving")
    turn = view_turn(fixed, moving, "y", np.pi / 2)
    truth = Affine.translation((2, -1.5, 2.5), source="moving", target="moving") @ turn
    places, brightness = spots(6)
    blur = np.diag([6.0, 1.0, 1.0])
    views = [
        picture(grid, p, brightness, blur, photons=500, seed=n)
        for n, (grid, p) in enumerate(((fixed, places), (moving, truth.apply(places))))
    ]
    found = register(
        *views, fixed_spacing_um=fixed.spacing_um, moving_spacing_um=moving.spacing_um,
        nominal=turn, model="rigid",
    )  # fmt: skip
    assert found.converged, found.reason
    assert corner_error(found, truth, fixed).mean() < 0.25


def test_a_start_is_taken_as_given():
    truth = TRUTHS["affine"]
    near = truth @ Affine.translation((0.5, -1, 0.7), source="fixed", target="fixed")
    found = register(*two_views(truth), fixed_spacing_um=1.0, moving_spacing_um=1.0, start=near)
    assert found.start == "given"
    assert corner_error(found, truth).mean() < 0.1


def broken_pairs():
    rng = np.random.default_rng(5)
    first, second = two_views(TRUTHS["rigid"])
    noise = (rng.poisson(30, FIXED.shape) + 100).astype(np.float32)
    _, other = two_views(TRUTHS["rigid"], seed=77)
    return {
        "noise": (first, noise),
        "both noise": (noise, (rng.poisson(30, FIXED.shape) + 100).astype(np.float32)),
        "constant": (np.full(FIXED.shape, 7.0), second),
        "mirrored": (first, second[:, :, ::-1].copy()),
        "another specimen": (first, other),
    }


@pytest.mark.parametrize("case", broken_pairs())
def test_wrong_pairs_are_not_believed(case):
    # one of them with every start there is, the others with the first: rotations take seconds
    start = None if case == "another specimen" else "translation"
    found = register(
        *broken_pairs()[case], fixed_spacing_um=1.0, moving_spacing_um=1.0, start=start
    )
    assert not found.converged
    assert found.reason.endswith(".")
    if case == "constant":
        assert "fixed view is empty" in found.reason


def test_a_registration_survives_json():
    found = register(*two_views(TRUTHS["rigid"]), fixed_spacing_um=1.0, moving_spacing_um=1.0)
    record = json.loads(json.dumps(found.to_dict()))
    assert Affine.from_dict(record["fixed_to_moving"]) == found.fixed_to_moving
    assert record["converged"] is True


def test_wrong_input_is_refused():
    views = two_views(TRUTHS["rigid"])
    spacing = {"fixed_spacing_um": 1.0, "moving_spacing_um": 1.0}
    with pytest.raises(InputError, match="finite"):
        register(np.full(FIXED.shape, np.nan), views[1], **spacing)
    with pytest.raises(InputError, match="one channel"):
        register(views[0][None, None], views[1], **spacing)
    with pytest.raises(InputError, match="real"):
        register(views[0] * 1j, views[1], **spacing)
    with pytest.raises(InputError, match="mask"):
        register(*views, fixed_mask=np.ones((3, 3, 3)), **spacing)
    with pytest.raises(FrameError, match="Invert"):
        register(*views, start=TRUTHS["rigid"].inverse(), **spacing)
    with pytest.raises(ParameterError, match="model"):
        register(*views, model="elastic", **spacing)
    with pytest.raises(ParameterError, match="start"):
        register(*views, start="guess", **spacing)


def test_sampling_equals_scipy_and_its_gradient_is_the_difference():
    rng = np.random.default_rng(0)
    image = rng.random((6, 7, 8))
    places = rng.uniform(0, [5, 6, 7], (50, 3))
    value, gradient = sample_with_gradient(torch.from_numpy(image), torch.from_numpy(places.T))
    np.testing.assert_allclose(value, ndimage.map_coordinates(image, places.T, order=1), atol=1e-12)
    cell = np.floor(places)
    for axis, step in enumerate(np.eye(3)):
        inside = cell[:, axis]
        low, high = places.copy(), places.copy()
        low[:, axis], high[:, axis] = inside, inside + 1
        slope = ndimage.map_coordinates(image, high.T, order=1) - ndimage.map_coordinates(
            image, low.T, order=1
        )
        np.testing.assert_allclose(gradient[axis], slope, atol=1e-12)
        assert step.sum() == 1


def test_alignment_steps_converge_to_second_order():
    truth = Affine.translation((0.8, -0.6, 0.5), source="fixed", target="moving")
    first, second = two_views(truth, photons=None, fixed_blur=4 * ROUND, moving_blur=4 * ROUND)
    levels = (
        Level(torch.from_numpy(first), FIXED, (0, 0, 0)),
        Level(torch.from_numpy(second), Grid(FIXED.shape, frame="moving"), (0, 0, 0)),
    )
    points = strongest_gradients(levels[0], 20_000)
    start = Affine.identity(source="fixed", target="moving")
    once = align(*levels, start, "translation", points=points, iterations=2)
    # a single step, from 1.1 voxels away
    assert np.linalg.norm(once.fixed_to_moving.offset_um - truth.offset_um) < 0.08
    fit = align(*levels, start, "translation", points=points)
    np.testing.assert_allclose(fit.fixed_to_moving.offset_um, truth.offset_um, atol=0.01)
    assert fit.settled
    assert fit.ncc > 0.999


def test_averaging_keeps_places_and_makes_voxels_isotropic():
    grid = Grid((10, 40, 41), (2.0, 0.5, 0.5), origin_um=(1, 2, 3), frame="fixed")
    ramp = grid.index_to_um.apply(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 2]
    small, coarse = downsampled(torch.from_numpy(ramp.astype(np.float32)), grid, 2.0)
    assert coarse.shape == (10, 10, 10)
    assert coarse.spacing_um == (2.0, 2.0, 2.0)
    expected = coarse.index_to_um.apply(np.moveaxis(np.indices(coarse.shape), 0, -1))[..., 2]
    np.testing.assert_allclose(small, expected, atol=1e-5)


@pytest.mark.parametrize("oblique", [0.0, 1.0], ids=["along axes", "oblique"])
def test_a_gaussian_blur_widens_a_spot_by_its_covariance(oblique):
    grid = Grid((41, 40, 39), (1.0, 0.8, 0.8))
    covariance = np.diag([6.0, 4.0, 3.0])
    covariance += oblique * np.array([[0.0, 2.0, 0.0], [2.0, 0.0, -1.0], [0.0, -1.0, 0.0]])
    spot = picture(grid, [grid.centre_um], [1.0], ROUND)
    wide = gaussian_blurred(torch.from_numpy(spot), grid, covariance).numpy()
    expected = picture(grid, [grid.centre_um], [1.0], ROUND + covariance)
    expected *= spot.sum() / expected.sum()
    assert np.abs(wide - expected).max() < 0.01 * expected.max()
    psf = torch.from_numpy(picture(grid, [grid.centre_um], [1.0], covariance, own=0.0))
    np.testing.assert_allclose(gaussian_of_psf(psf, grid), covariance, atol=0.02)


def test_blur_differences_are_measured_from_the_views():
    truth = Affine.translation((1, 2, -1), source="fixed", target="moving")
    blurs = np.diag([6.0, 1, 1]), np.diag([1, 1, 6.0])
    first, second = two_views(truth, fixed_blur=blurs[0], moving_blur=blurs[1], photons=3000)
    grids = FIXED, Grid(FIXED.shape, frame="moving")
    pair = [(torch.from_numpy(v), g) for v, g in zip((first, second), grids, strict=True)]
    rough = estimated_difference(*pair, truth)
    assert rough[0, 0] > 2
    assert rough[2, 2] < -2
    levels = matched_levels(*pair, truth, from_difference(rough, truth))
    points = with_curvatures(strongest_gradients(levels[0], 20_000), *levels, truth)
    better = rough + align(*levels, truth, "affine", points=points).blur_um2
    np.testing.assert_allclose(better, blurs[0] - blurs[1], atol=1.0)


def test_rotations_are_spread_evenly():
    turns = turns_within(np.pi, np.deg2rad(40))
    np.testing.assert_array_equal(turns[0], np.eye(3))
    rng = np.random.default_rng(0)
    for vector in rng.normal(size=(50, 3)) * 1.5:
        wanted = Affine.from_params(rotation_rad=vector).linear
        nearest = min(np.arccos(np.clip((np.trace(t.T @ wanted) - 1) / 2, -1, 1)) for t in turns)
        assert nearest < np.deg2rad(40)
    few = turns_within(np.deg2rad(30), np.deg2rad(15))
    assert all(np.trace(t) >= 1 + 2 * np.cos(np.deg2rad(30)) - 1e-9 for t in few)


def test_correlation_finds_a_shift_longer_than_half_the_view():
    truth = Affine.translation((0, 0, 26), source="fixed", target="moving")
    first, second = two_views(truth, photons=500)
    pair = [
        (torch.from_numpy(v), g)
        for v, g in zip((first, second), (FIXED, Grid(FIXED.shape, frame="moving")), strict=True)
    ]
    found = search(*pair, [np.eye(3)], voxel_um=1.5, keep=1)[0]
    assert np.abs(found.fixed_to_moving.offset_um - truth.offset_um).max() < 1.0


def test_projections_tell_shift_and_turn():
    truth = moved(translation_um=(4, -6, 5), rotation_rad=(0.0, 0.25, 0.0))
    views = two_views(truth, photons=500)
    grids = FIXED, Grid(FIXED.shape, frame="moving")
    pair = [(torch.from_numpy(v), g) for v, g in zip(views, grids, strict=True)]
    angles = np.deg2rad(np.arange(-40, 41, 5)).tolist()
    shifted, turned = from_projections(*pair, np.eye(3), voxel_um=1.0, angles_rad=angles)
    np.testing.assert_array_equal(shifted.linear, np.eye(3))
    corners = FIXED.corners_um()
    off = [np.linalg.norm(s.apply(corners) - truth.apply(corners), axis=1).max()
           for s in (shifted, turned)]  # fmt: skip
    assert off[1] < 5 < off[0]


def test_shared_volume_by_hand():
    other = Grid(FIXED.shape, frame="moving")
    half = Affine.translation((SIZE / 2, 0, 0), source="fixed", target="moving")
    assert shared_volume(FIXED, other, half) == pytest.approx(0.5, abs=0.01)
    small = Grid((SIZE // 2,) * 3, frame="moving")
    same = Affine.identity(source="fixed", target="moving")
    assert shared_volume(FIXED, small, same) == pytest.approx(1.0, abs=0.01)


def test_a_real_specimen_under_two_blurs(data_folder):
    brain = tifffile.imread(data_folder / "mouse_brain_whole" / "brain.tif")[60:210:2, ::2, ::2]
    wide = ndimage.gaussian_filter(brain.astype(np.float32), 1.0)[:, :96, 20:116]
    truth = Affine.from_params(
        rotation_rad=(0.05, -0.08, 0.06), scale=(1.02, 0.99, 1.03), translation_um=(3, -4, 5),
        centre_um=(np.array(wide.shape) - 1) / 2,
    )  # fmt: skip
    back = truth.inverse()
    second = ndimage.affine_transform(wide, back.linear, back.offset_um, order=3)
    inner = tuple(slice(10, n - 10) for n in wide.shape)
    rng = np.random.default_rng(0)
    first, second = (
        rng.poisson(ndimage.gaussian_filter(v, s)[inner].clip(0) / 4)
        for v, s in ((wide, (2.5, 0.7, 0.7)), (second, (0.7, 0.7, 2.5)))
    )
    found = register(first, second, fixed_spacing_um=1.0, moving_spacing_um=1.0)
    assert found.converged, found.reason
    grid = Grid(first.shape)
    expected = truth.apply(grid.corners_um() + 10) - 10
    error = np.linalg.norm(found.fixed_to_moving.apply(grid.corners_um()) - expected, axis=1)
    assert error.mean() < 0.2


@pytest.mark.parametrize(
    ("sigma", "peak", "fine", "believed"),
    [(0.9, 4, 0.9, True), (1.1, 4, 0.9, False), (1.9, 7, 0.9, True), (1.9, 7, 0.7, False),
     (2.1, 7, 0.9, False)],
)  # fmt: skip
def test_an_unmistakable_specimen_may_be_placed_less_surely(sigma, peak, fine, believed):
    here = Affine.identity(source="fixed", target="moving")
    attempt = Attempt(
        start="translation",
        nominal=here,
        fit=Fit(here, 0.9, 0.5, 1000, 3, True),
        agreement=Agreement(ncc=0.9, fine_ncc=fine, peak=peak, overlap=0.9),
        ncc_before=0.5,
        difference_um2=np.zeros((3, 3)),
        corner_sigma_um=np.full(8, sigma * LARGEST_SIGMA * 100),
        length_um=100.0,
        iterations=3,
    )
    reason = _verdict(attempt)
    assert ("not determined" in reason) is not believed
