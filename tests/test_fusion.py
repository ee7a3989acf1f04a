"""Fusion: known light comes back in the right place and amount, sharper than any view alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pellucid.core.averaging import averaged, border_weights, content_weights
from pellucid.core.back_projectors import BackProjection, Matched
from pellucid.core.deskew import StageScan
from pellucid.core.fusion import extended_grid, fuse, joint_problem, sharpened
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, QUAD_DEG, record_views, turned_arms
from pellucid.core.noise import Noise, estimate_noise
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf, centroid, fwhm_px
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.registration import register
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.simulation import STRUCTURES, Camera
from pellucid.core.slab_sampling import SlabSample, sampling_variance_px
from pellucid.core.starts import view_turn
from pellucid.core.views import View, brightened, prepared, proposed_world
from pellucid.core.virtual_views import VirtualViews, virtual_views
from pellucid.errors import FrameError, InputError, ParameterError
from pellucid.testing import dot_test

WORLD = Grid((32, 32, 32), 1.0, frame="world")
PSF = gaussian((7.0, 3.0, 3.0), (1.0, 1.0, 1.0))
CLEAN = Camera(gain=1.0, offset=0.0, read_noise=0.0)
PHOTONS = Noise(1.0, 0.0, 0.0)
INNER = (slice(3, -3),) * 3
COARSE = Grid((9, 30, 14), (3.0, 1.0, 2.1), frame="view")
TILTED = Affine.rotation("y", 0.6, centre_um=WORLD.centre_um, target="view")


def recorded(
    angles=DUAL_DEG,
    *,
    structure="shells",
    brightness=1.0,
    planes_every=1,
    peak=200.0,
    background=2.0,
):
    arms = turned_arms(angles, WORLD, [PSF], planes_every=planes_every, misplaced=1.0, seed=4)
    arms = (arms[0], *(replace(arm, brightness=brightness) for arm in arms[1:]))
    source = STRUCTURES[structure] if isinstance(structure, str) else structure
    return record_views(
        source, WORLD, arms, peak_photons=peak, background_photons=background, camera=CLEAN, seed=6
    )


def views_of(recording, background=2.0, **known):
    return [
        View(v.counts, v.grid, v.world_to_view, v.psf, background, PHOTONS, **known)
        for v in recording.views
    ]


def score(restored, recording):
    return ncc(restored.image.numpy()[INNER], recording.truth[INNER])


@pytest.mark.parametrize("view", [COARSE, Grid((20, 20, 20), 0.7, frame="view")], ids=repr)
def test_slab_samples_have_exact_adjoints_and_keep_flat_objects_flat(view):
    operator = SlabSample(WORLD, view, TILTED)
    assert dot_test(operator) < 1e-14
    flat = operator.forward(torch.ones(WORLD.shape, dtype=torch.float64))
    np.testing.assert_allclose(flat.max(), 1.0, rtol=1e-12)
    assert float(flat[view.shape[0] // 2, 15, 7]) == pytest.approx(1.0)


def test_sheared_views_are_sampled_along_the_normal_of_their_planes():
    scan = StageScan(3.0, np.pi / 4, 1.0)  # planes 2.1 um apart that slide by 2.1 um
    view = scan.grid((9, 20, 24))
    to_scan = scan.scan_to_view.with_frames(source="scan", target="world").inverse()
    operator = SlabSample(WORLD, view, to_scan)
    assert dot_test(operator) < 1e-14
    # an object that changes across the view's x only is not blurred by the distance of planes
    ramp = torch.arange(32, dtype=torch.float64).expand(WORLD.shape) ** 2
    x = np.arange(24) + 4 * scan.slide_um
    seen = operator.forward(ramp.contiguous())[4, 10, 4:18].numpy()
    np.testing.assert_allclose(seen, x[4:18] ** 2, atol=0.26)


def test_coarse_planes_see_every_plane_of_the_object():
    view = Grid((9, 32, 32), (3.0, 1.0, 1.0), frame="view")
    operator = SlabSample(WORLD, view, Affine.identity(target="view"))
    seen = operator.adjoint(torch.ones(view.shape, dtype=torch.float64))
    np.testing.assert_allclose(seen[3:24], 1 / 3, rtol=1e-12)
    # the light of plane 4 is shared 2 : 1 between the planes at 3 and 6
    line = torch.zeros(WORLD.shape, dtype=torch.float64)
    line[4] = 3.0
    np.testing.assert_allclose(operator.forward(line)[:, 5, 5], [0, 2 / 3, 1 / 3, *[0] * 6])


@pytest.mark.parametrize("origin", [(0, 0, 0), (-3, 2, 5), (30, 0, 0)])
@pytest.mark.parametrize("spacing", [1.0, (3.0, 1.0, 2.0)])
def test_aligned_grids_are_sampled_as_any_others(origin, spacing):
    view = Grid((9, 28, 15), spacing, origin, "view")
    x = torch.rand(WORLD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    aligned = SlabSample(WORLD, view, Affine.identity(target="view"))
    nearly = SlabSample(WORLD, view, Affine.translation((0, 0, 2e-6), target="view"))
    assert dot_test(aligned) < 1e-14
    np.testing.assert_allclose(aligned.forward(x), nearly.forward(x), atol=1e-5)
    y = torch.ones(view.shape, dtype=torch.float64)
    np.testing.assert_allclose(aligned.adjoint(y), nearly.adjoint(y), atol=1e-5)


def test_a_view_beside_the_world_holds_nothing():
    beside = Grid((4, 4, 4), 1.0, (40, 0, 0), "view")
    sample = SlabSample(WORLD, beside, Affine.identity(target="view"))
    assert not sample.forward(torch.ones(WORLD.shape)).any()
    assert not sample.adjoint(torch.ones(beside.shape)).any()


def test_one_view_at_rest_is_plain_deconvolution():
    recording = recorded((0.0,))
    view = views_of(recording)[0]
    world = view.grid.with_spacing(1.0)
    ours = fuse(
        [replace(view, world_to_view=Affine.identity(source=world.frame, target=world.frame))],
        world, iterations=4, back_projector=Matched(),
    )  # fmt: skip
    image = torch.from_numpy(recording.views[0].counts.astype(np.float32))
    psf = torch.from_numpy(view.psf.values.astype(np.float32))
    plain = RichardsonLucy(4)(Problem((Observation(image, Blur(psf, WORLD.shape), 2.0),)))
    # the padding of the FFT differs, and with it where the flat start ends
    difference = (ours.image - plain.image)[INNER].abs().max()
    assert float(difference / plain.image.max()) < 0.02


@pytest.mark.parametrize("how", ["joint", "resample-then-joint", "average", "content-average"])
def test_light_and_place_are_kept_whatever_the_voxels(how):
    axes = np.ogrid[:32, :32, :32]
    spot = np.exp(-0.5 * sum(((a - c) / 2) ** 2 for a, c in zip(axes, (16, 14, 18), strict=True)))
    # a dark field: rectified noise of a bright one would count as light
    recording = recorded(QUAD_DEG, structure=spot, planes_every=2, peak=2000, background=0.01)
    options = {"iterations": 5, "back_projector": Matched()} if "joint" in how else {}
    for spacing in (1.0, 1.4):
        world = WORLD.with_spacing(spacing)
        image = fuse(views_of(recording, 0.01), world, how=how, **options).image.double().numpy()
        place = world.index_to_um.apply(centroid(image))
        np.testing.assert_allclose(place, (16, 14, 18), atol=0.1)
        assert image.sum() * spacing**3 == pytest.approx(recording.truth.sum(), rel=0.05)


def test_joint_deconvolution_beats_averages_and_single_views():
    recording = recorded()
    views = views_of(recording)
    joint = score(fuse(views, WORLD, iterations=3), recording)
    single = score(fuse(views[:1], WORLD, iterations=3), recording)
    average = score(fuse(views, WORLD, how="average"), recording)
    guarded = fuse(views, WORLD)
    assert joint > single + 0.05
    assert joint > average + 0.1
    assert score(guarded, recording) > single + 0.05
    assert guarded.stats["stopped_by"]


def test_registered_views_fuse_as_well_as_those_of_known_place():
    world = Grid((40, 40, 40), 1.0, frame="fixed")
    arms = turned_arms(DUAL_DEG, world, [PSF], misplaced=1.0, seed=4)
    recording = record_views(
        STRUCTURES["filaments"], world, arms, peak_photons=300, camera=CLEAN, seed=6
    )
    first, second = recording.views
    nominal = view_turn(first.grid, second.grid, "y", np.pi / 2)
    found = register(
        first.counts,
        second.counts,
        fixed_spacing_um=1.0,
        moving_spacing_um=1.0,
        nominal=nominal.with_frames(source="fixed", target="moving"),
        fixed_psf=PSF.values,
        moving_psf=PSF.values,
    )
    assert found.converged, found.reason
    shape = first.counts.shape
    registered = [
        View(
            first.counts, Grid(shape, frame="fixed"),
            Affine.identity(source="fixed", target="fixed"), PSF, 2.0, PHOTONS,
        ),
        View(second.counts, Grid(shape, frame="moving"), found.fixed_to_moving, PSF, 2.0, PHOTONS),
    ]  # fmt: skip
    known = score(fuse(views_of(recording), world), recording)
    assert score(fuse(registered, world), recording) > known - 0.02


def test_alternating_is_faster_than_additive():
    recording = recorded()
    views = views_of(recording)
    options = {"iterations": 2, "back_projector": Matched()}
    additive = score(fuse(views, WORLD, **options), recording)
    assert score(fuse(views, WORLD, update="alternating", **options), recording) > additive


def test_part_of_the_world_is_the_part_of_the_whole():
    recording = recorded()
    views = views_of(recording, brightness=1.0)
    part = WORLD.crop((8, 6, 10), (24, 26, 26))
    options = {"iterations": 3, "back_projector": Matched()}
    whole = fuse(views, WORLD, **options).image[8:24, 6:26, 10:26]
    tile = fuse(views, part, **options).image
    inner = (slice(3, -3),) * 3
    assert float((tile - whole)[inner].abs().max() / whole.max()) < 0.03


@pytest.mark.parametrize("how", ["joint", "resample-then-joint", "average"])
def test_voxels_in_no_view_are_dark_and_all_others_are_not(how):
    endless = recorded((30.0,), structure=lambda shape, _: np.ones(shape))
    view = views_of(endless)[0]
    world = proposed_world([view])
    options = {"iterations": 3, "back_projector": Matched()} if "joint" in how else {}
    image = fuse([view], world, how=how, **options).image.numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in world.shape], indexing="ij"), -1)
    place = view.grid.um_to_index.apply(view.world_to_view.apply(world.index_to_um.apply(index)))
    outside = ((place < -0.6) | (place > np.array(view.grid.shape) - 0.4)).any(-1)
    inside = ((place > 2) & (place < np.array(view.grid.shape) - 3)).all(-1)
    assert outside.sum() > 1000
    assert not image[outside].any()
    # the classic path sees a border where the image ends, and rings there
    tolerance = 0.1 if how == "resample-then-joint" else 0.03
    assert image[inside].mean() == pytest.approx(200, rel=tolerance)
    assert image[inside].min() > 100


def test_brightness_is_measured_where_views_overlap():
    recording = recorded(brightness=0.4, structure="nuclei")
    lit = brightened([prepared(view, None) for view in views_of(recording)], WORLD)
    assert lit[1].brightness == pytest.approx(0.4, rel=0.04)
    fused = fuse(views_of(recording), WORLD, how="average").image.numpy()
    assert fused[INNER].sum() == pytest.approx(recording.truth[INNER].sum(), rel=0.06)


def test_the_object_reaches_as_far_as_light_comes_from():
    recording = recorded()
    lit = brightened([prepared(view, None) for view in views_of(recording)], WORLD)
    problem = joint_problem(lit, WORLD)
    for observation in problem.observations:
        flux = observation.operator.forward(torch.ones(problem.shape)).numpy()
        # nothing is missing at any voxel of any image: no edge of the object is in sight
        np.testing.assert_allclose(flux, flux.max(), rtol=1e-4)
    assert problem.windowed(torch.ones(problem.shape)).shape == WORLD.shape


def test_the_extended_grid_is_shifted_by_the_margin():
    grid = Grid((6, 7, 8), (2.0, 1.0, 0.5), (1.0, 1.0, 1.0), "view")
    blur = Blur(torch.ones((3, 4, 5)), grid.shape)
    extended = extended_grid(grid, blur)
    assert blur.margin == (1, 1, 2)
    assert extended.origin_um == (-1.0, 0.0, 0.0)
    np.testing.assert_allclose(
        extended.index_to_um.apply(blur.margin), grid.index_to_um.apply((0, 0, 0))
    )


def test_weights_fall_at_borders_and_follow_content():
    weights = border_weights((1, 20, 40))
    assert float(weights[0, 10, 20]) == 1.0
    assert 0 < float(weights[0, 0, 20]) < 0.2
    np.testing.assert_allclose(weights, weights.flip(1, 2))
    sharp = torch.from_numpy(STRUCTURES["filaments"](WORLD.shape, 1).astype(np.float32))
    blurred = SlabSample(WORLD, WORLD, Affine.identity()).forward(sharp)
    wide = torch.nn.functional.avg_pool3d(blurred[None, None], 5, 1, 2)[0, 0]
    assert float(content_weights(sharp, WORLD).mean() / content_weights(wide, WORLD).mean()) > 5


def test_averages_are_those_of_the_views_and_dark_where_none_sees():
    grids = [Grid((8, 8, 30), 1.0, frame="a"), Grid((8, 8, 30), 1.0, (0, 0, 26), "b")]
    maps = [Affine.identity(source="world", target=name) for name in "ab"]
    images = [torch.full((8, 8, 30), 2.0), torch.full((8, 8, 30), 4.0)]
    world = Grid((8, 8, 62), 1.0)
    fused, inside = averaged(images, grids, maps, world)
    row = fused[4, 4].tolist()
    assert row[:26] == pytest.approx([2.0] * 26)
    assert row[30:56] == pytest.approx([4.0] * 26)
    assert 2 < row[26] < row[27] < row[28] < row[29] < 4
    assert row[56:] == [0.0] * 6
    assert inside[4, 4].tolist() == [True] * 56 + [False] * 6


def test_virtual_views_by_hand_and_faster_than_matched():
    # two views at rest: b = f* . (f* (x) f (x) f*), in a Gaussian's case another Gaussian
    psf = gaussian((9.42, 4.71, 4.71), (1.0, 1.0, 1.0))  # sigma 4, 2, 2
    blur = Blur(torch.from_numpy(psf.values.copy()), (40, 40, 40))
    made = virtual_views([blur, blur], [psf, psf], [np.eye(3)] * 2, [(1.0, 1.0, 1.0)] * 2)
    kernel = Psf.normalised(made.kernels[0][1].numpy())
    expected = np.array([4.0, 2.0, 2.0]) * 2.3548 * np.sqrt(3 / 4)  # 1 / (1 / s^2 + 1 / 3 s^2)
    np.testing.assert_allclose(fwhm_px(kernel), expected, rtol=0.02)
    with pytest.raises(ParameterError, match="fuse"):
        VirtualViews().transfer(blur)
    recording = recorded()
    views = views_of(recording)
    for how in ("joint", "resample-then-joint"):
        options = {"how": how, "iterations": 5}
        matched = score(fuse(views, WORLD, back_projector=Matched(), **options), recording)
        virtual = score(fuse(views, WORLD, back_projector=VirtualViews(), **options), recording)
        assert virtual > matched + 0.01


def test_a_point_stays_in_place_through_virtual_views():
    skewed = np.zeros((5, 4, 5))
    skewed[2, 2, 2], skewed[3, 2, 2], skewed[2, 1, 3] = 3.0, 2.0, 1.0
    psf = Psf.normalised(skewed)
    blur = Blur(torch.from_numpy(psf.values.copy()), (9, 9, 9))
    made = virtual_views([blur, blur], [psf, psf], [np.eye(3)] * 2, [(1.0, 1.0, 1.0)] * 2)
    point = torch.zeros(blur.domain_shape, dtype=torch.float64)
    point[tuple(4 + m for m in blur.margin)] = 1.0
    back = BackProjection(blur, made).forward(blur.forward(point))
    where = np.unravel_index(int(back.argmax()), back.shape)
    assert where == tuple(4 + m for m in blur.margin)
    assert float(back.sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("view", [COARSE, Grid((24, 24, 24), 1.0, frame="view")], ids=repr)
def test_sampling_blurs_by_the_variance_that_the_psf_is_sharpened_by(view):
    axes = np.ogrid[:32, :32, :32]
    middle = (15.6, 15.2, 15.9)
    spot = np.exp(-0.5 * sum(((a - c) / 2.2) ** 2 for a, c in zip(axes, middle, strict=True)))
    image = SlabSample(WORLD, view, TILTED).forward(torch.from_numpy(spot)).numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in view.shape], indexing="ij"), -1)
    mean = (image[..., None] * index).sum((0, 1, 2)) / image.sum()
    seen = (image[..., None] * (index - mean) ** 2).sum((0, 1, 2)) / image.sum()
    exact = (2.2 / np.asarray(view.spacing_um)) ** 2
    np.testing.assert_allclose(
        seen - exact, sampling_variance_px(WORLD, view, TILTED), rtol=0.15, atol=0.01
    )
    psf = gaussian((6.0, 5.0, 5.0), (1.0, 1.0, 1.0)).values
    sharper = fwhm_px(Psf.normalised(sharpened(psf, np.array([0.5, 0.0, 0.2]))))
    before = fwhm_px(Psf.normalised(psf))
    after = [np.sqrt(w**2 - 8 * np.log(2) * v) for w, v in zip(before, (0.5, 0, 0.2), strict=True)]
    np.testing.assert_allclose(sharper, after, rtol=0.01)


def test_a_rotated_psf_by_hand():
    values = np.zeros((5, 5, 5))
    values[2, 2, 2], values[3, 2, 2] = 2.0, 1.0  # light towards +z
    psf = Psf.normalised(values)
    # +90 degrees about y takes the world's +z to the view's +x, and the world's +x to its -z
    turn = Affine.rotation("y", np.pi / 2).linear
    seen = rotated_psf(psf, 1.0, turn, 1.0)
    assert seen.values[2, 2, 1] == pytest.approx(1 / 3, abs=1e-3)
    coarse = rotated_psf(gaussian((8.0, 4.0, 4.0), (2.0, 1.0, 1.0)), (2, 1, 1), np.eye(3), 1.0)
    fine = gaussian((8.0, 4.0, 4.0), (1.0, 1.0, 1.0))
    z, y, x = coarse.centre
    profile = coarse.values[z - 4 : z + 5, y, x] / coarse.values[z, y, x]
    expected = fine.values[fine.centre[0] - 4 : fine.centre[0] + 5, fine.centre[1], fine.centre[2]]
    np.testing.assert_allclose(profile, expected / expected.max(), atol=0.03)


def test_the_proposed_world_covers_all_views_or_what_they_share():
    recording = recorded(planes_every=2)
    views = views_of(recording)
    everything, shared = proposed_world(views), proposed_world(views, cover="overlap")
    for world in (everything, shared):
        offset = (np.array(world.origin_um) - recording.views[0].grid.origin_um) / 1.0
        assert world.frame == "world"
        if world.spacing_um == (1.0, 1.0, 1.0):
            np.testing.assert_allclose(offset, np.rint(offset), atol=1e-9)
    assert len(set(everything.spacing_um)) == 1
    assert everything.spacing_um[0] == pytest.approx(1.0, abs=0.05)
    assert all(a >= b for a, b in zip(everything.shape, shared.shape, strict=True))
    apart = replace(views[1], world_to_view=Affine.translation((0, 0, 99), target="view 1"))
    with pytest.raises(InputError, match="do not overlap"):
        proposed_world([views[0], apart], cover="overlap")


@pytest.mark.parametrize("how", ["joint", "average"])
def test_dark_views_fuse_to_darkness_and_one_dark_view_is_named(how):
    first, second = views_of(recorded())
    dark = [replace(view, image=np.full(WORLD.shape, 2.0)) for view in (first, second)]
    restored = fuse(dark, WORLD, how=how)
    assert restored.image.shape == WORLD.shape
    assert not restored.image.any()
    assert restored.stats["stopped_by"] == "no light above background"
    with pytest.raises(InputError, match=r"view 1 \('view 1'\) shows no light"):
        fuse([first, dark[1]], WORLD, how=how)


def test_noise_background_and_psf_arrays_are_measured_and_prepared():
    recording = recorded(structure="nuclei")
    views = [View(v.counts, v.grid, v.world_to_view, v.psf.values + 0.0) for v in recording.views]
    restored = fuse(views, WORLD)
    assert restored.stats["background"] == pytest.approx([2.0, 2.0], abs=1.0)
    assert score(restored, recording) > score(
        fuse(views_of(recording), WORLD, how="average"), recording
    )


def test_what_cannot_be_fused_is_refused_in_a_sentence():
    recording = recorded()
    first, second = views_of(recording)
    with pytest.raises(ParameterError, match="content-average"):
        fuse([first], WORLD, how="mean")
    with pytest.raises(ParameterError, match="alternating"):
        fuse([first], WORLD, update="alternating")
    with pytest.raises(InputError, match="none"):
        fuse([], WORLD)
    with pytest.raises(InputError, match="PSF"):
        fuse([first, replace(second, psf=None)], WORLD)
    with pytest.raises(FrameError, match="one world"):
        fuse([first, second], replace(WORLD, frame="elsewhere"))
    with pytest.raises(FrameError, match="reach"):
        replace(second, world_to_view=second.world_to_view.inverse())
    with pytest.raises(InputError, match="shape"):
        replace(first, image=np.zeros((3, 4, 5)))
    far = Affine.translation((0, 0, 500), target="view 1")
    with pytest.raises(InputError, match="does not reach"):
        fuse([first, replace(second, world_to_view=far)], WORLD)


@pytest.mark.parametrize("unit", [1e-6, 1e3])
def test_the_unit_of_a_denoised_view_does_not_matter(unit):
    """Its noise cannot be measured, so its photons are supposed in proportion to its signal."""
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.poisson(20, (16, 24, 24)).astype(float), 1.5)
    image[6:10, 8:16, 8:16] += 300
    assert not estimate_noise(image).reliable
    grid = Grid(image.shape, (1.0, 1.0, 1.0))
    transform = Affine.identity()
    a, b = (prepared(View(k * image, grid, transform), None) for k in (1.0, unit))
    torch.testing.assert_close(a.photons, b.photons, rtol=1e-3, atol=1e-3)
    assert b.gain == pytest.approx(unit * a.gain, rel=1e-3)
