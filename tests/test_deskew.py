"""Deskewing: points go where the formulas say, spots come out round, and nothing is doubled."""

import math

import numpy as np
import pytest
import torch

from pellucid.core.deskew import StageScan, deskew, deskewed_grid
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Grid
from pellucid.core.noise import Noise
from pellucid.core.psf import Psf
from pellucid.core.psf_theory import gaussian
from pellucid.core.resampling import resample
from pellucid.core.views import View
from pellucid.errors import InputError, ParameterError

QUARTER = math.pi / 4
SCANS = [
    StageScan(1.4, QUARTER, 0.5),
    StageScan(1.4, QUARTER, 0.5, direction=-1),
    StageScan(0.9, math.radians(31.0), (0.4, 0.3)),
    StageScan(2.0, math.radians(56.7), 0.25, direction=-1),
]


def recorded_spots(scan, shape, places_view_um, sigma_um):
    """Return the exact skewed image of Gaussian spots at places given in the view's frame."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    points = scan.scan_to_view.apply(scan.grid(shape).index_to_um.apply(index))
    image = np.zeros(shape)
    for place in places_view_um:
        image += np.exp(-0.5 * (((points - place) / sigma_um) ** 2).sum(-1))
    return torch.from_numpy(image.astype(np.float32))


def test_a_point_at_45_degrees_by_hand():
    # plane 3, row 5, column 7; step sqrt(2) um: the planes are 1 um apart and slide by 1 um
    scan = StageScan(math.sqrt(2), QUARTER, 0.5)
    where = scan.grid((10, 20, 30)).index_to_um.apply([3, 5, 7])
    np.testing.assert_allclose(scan.scan_to_view.apply(where), [3.0, 2.5, 3.5 + 3.0])
    half = math.sqrt(0.5)
    expected = [-3.5 * half, 2.5, 3 * math.sqrt(2) + 3.5 * half]
    np.testing.assert_allclose(scan.scan_to_coverslip.apply(where), expected)


def test_direction_minus_one_slides_the_other_way():
    scan = StageScan(math.sqrt(2), QUARTER, 0.5, direction=-1)
    where = scan.grid((10, 20, 30)).index_to_um.apply([3, 5, 7])
    np.testing.assert_allclose(scan.scan_to_view.apply(where), [3.0, 2.5, 3.5 - 3.0])
    half = math.sqrt(0.5)
    expected = [3.5 * half, 2.5, -3 * math.sqrt(2) + 3.5 * half]
    np.testing.assert_allclose(scan.scan_to_coverslip.apply(where), expected)


def test_the_preprocessing_macro_says_the_same():
    # diSPIM macro: step = thickness / cos(theta), slide per slice = step * sin(theta) / pixel for the
    # first arm, with theta between travel and detection axis: 90 degrees less our sheet angle
    theta, thickness, pixel = math.radians(33.3), 1.17, 0.227
    step = thickness / math.cos(theta)
    scan = StageScan(step, math.pi / 2 - theta, pixel)
    assert scan.plane_distance_um == pytest.approx(thickness)
    assert scan.slide_um / pixel == pytest.approx(step * math.sin(theta) / pixel)


@pytest.mark.parametrize("scan", SCANS, ids=repr)
def test_the_coverslip_is_a_turn_of_the_view_and_travel_runs_along_it(scan):
    turn = (scan.scan_to_coverslip @ scan.scan_to_view.inverse()).linear
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)  # a mirror would have -1
    np.testing.assert_allclose(turn[1], [0, 1, 0])
    np.testing.assert_allclose(scan.scan_to_coverslip.linear[:, 0], [0, 0, scan.direction])


@pytest.mark.parametrize("scan", SCANS, ids=repr)
@pytest.mark.parametrize("frame", ["view", "coverslip"])
def test_deskewed_spots_are_where_they_were(scan, frame):
    shape = (24, 20, 60)
    middle = scan.scan_to_view.apply(scan.grid(shape).centre_um)
    sigma = 2.0 * scan.plane_distance_um
    off_voxel = middle + np.array([0.3, 0.2, -0.4])
    raw = recorded_spots(scan, shape, [off_voxel], sigma)
    volume, grid = deskew(raw, scan, frame=frame)
    place = (scan.to(frame) @ scan.scan_to_view.inverse()).apply(off_voxel)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    truth = np.exp(-0.5 * (((grid.index_to_um.apply(index) - place) / sigma) ** 2).sum(-1))
    recorded = scan.grid(shape).um_to_index @ scan.to(frame).inverse() @ grid.index_to_um
    inside = (recorded.apply(index) >= 0) & (recorded.apply(index) <= np.array(shape) - 1)
    near = np.abs(grid.index_to_um.apply(index) - place).max(-1) < 1.5 * sigma
    seen = near & inside.all(-1)
    assert grid.frame == frame
    assert seen.sum() > 300
    # linear interpolation errs by d^2 / 8 times the second derivative, on each axis
    steps = np.array([scan.plane_distance_um, *scan.spacing_um[1:]])
    bound = ((steps / sigma) ** 2 / 8).sum()
    assert np.abs(volume.numpy() - truth)[seen].max() < bound < 0.1


def test_large_slides_do_not_double_what_is_seen():
    scan = StageScan(3.0, QUARTER, 0.25)  # slides by 8.5 pixels a plane
    shape = (16, 9, 120)
    middle = scan.scan_to_view.apply(scan.grid(shape).centre_um)
    sigma = np.array([4.0, 0.5, 0.5])
    raw = recorded_spots(scan, shape, [middle], sigma)
    grid = deskewed_grid(scan, shape, frame="view", spacing_um=(0.5, 0.25, 0.25))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    offsets = grid.index_to_um.apply(index) - middle
    truth = np.exp(-0.5 * ((offsets / sigma) ** 2).sum(-1))
    near = np.abs(offsets[..., 0]) < 6
    ours = deskew(raw, scan, grid=grid)[0].numpy()
    naive = resample(
        raw, scan.grid(shape), grid, target_to_source=scan.scan_to_view.inverse()
    ).numpy()
    assert np.abs(ours - truth)[near].max() < 0.06
    assert np.abs(naive - truth)[near].max() > 0.5


def test_the_grid_holds_the_recording_and_keeps_its_planes():
    scan = SCANS[2]
    for frame in ("view", "coverslip"):
        grid = deskewed_grid(scan, (7, 8, 9), frame=frame)
        index = grid.um_to_index.apply(scan.to(frame).apply(scan.grid((7, 8, 9)).corners_um()))
        assert index.min() > -1e-9
        assert (index.max(0) <= np.array(grid.shape) - 1 + 1e-9).all()
    assert deskewed_grid(scan, (7, 8, 9), frame="view").shape[0] == 7


def test_a_skewed_psf_is_the_psf_at_the_recording_s_voxels():
    scan = StageScan(math.sqrt(2), QUARTER, 0.5)
    psf = gaussian((4.0, 2.0, 2.0), (0.5, 0.5, 0.5))
    skewed = scan.skewed_psf(psf)
    z, y, x = skewed.centre
    # plane +2 is 2 um along the detection axis and slid by +2 um: a point's image is at x = -4 pixels
    plane = skewed.values[z + 2, y]
    assert int(np.argmax(plane)) == x - 4
    fwhm_sigma = 1 / 2.3548
    expected = math.exp(-0.5 * (2 / (4.0 * fwhm_sigma)) ** 2)
    assert plane.max() / skewed.values[z, y, x] == pytest.approx(expected, rel=1e-2)


def test_raw_stage_scans_are_deconvolved_without_deskewing_first():
    scan = StageScan(math.sqrt(2), QUARTER, 0.5)
    shape, blur = (20, 15, 50), gaussian((3.0, 1.5, 1.5), (1.0, 0.5, 0.5))
    middle = scan.scan_to_view.apply(scan.grid(shape).centre_um)
    sigma = np.array([3.0, 1.5, 1.5]) / 2.3548
    counts = 500 * recorded_spots(scan, shape, [middle], sigma) + 1
    recording = View(
        counts, scan.grid(shape), scan.scan_to_coverslip.inverse(), scan.skewed_psf(blur),
        background=1.0, noise=Noise(1.0, 0.0, 0.0),
    )  # fmt: skip
    place = (scan.scan_to_coverslip @ scan.scan_to_view.inverse()).apply(middle)
    world = Grid((15, 15, 15), 0.5, tuple(place - 3.5), "coverslip")
    sharp = fuse([recording], world, iterations=3).image.double().numpy()
    index = np.stack(np.meshgrid(*[np.arange(15)] * 3, indexing="ij"), -1)
    centre = (sharp[..., None] * index).sum((0, 1, 2)) / sharp.sum()
    np.testing.assert_allclose(centre, 7, atol=0.05)
    axis = np.eye(3)[2] @ (scan.scan_to_view @ scan.scan_to_coverslip.inverse()).linear
    spread = ((index - 7) @ axis * 0.5) ** 2
    assert (sharp * spread).sum() / sharp.sum() < 0.5 * sigma[0] ** 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_um": 0.0},
        {"sheet_angle_rad": 0.0},
        {"sheet_angle_rad": 45.0},
        {"pixel_um": -1.0},
        {"direction": 0},
    ],
    ids=str,
)
def test_senseless_scans_are_refused(wrong):
    with pytest.raises(ParameterError):
        StageScan(**{"step_um": 1.0, "sheet_angle_rad": 0.5, "pixel_um": 0.1, **wrong})


def test_a_volume_of_integers_or_other_axes_is_refused():
    scan = SCANS[0]
    with pytest.raises(InputError, match="float32"):
        deskew(torch.zeros((3, 4, 5), dtype=torch.int32), scan)
    with pytest.raises(InputError, match="shape"):
        deskew(torch.zeros((1, 3, 4, 5)), scan)
    with pytest.raises(InputError, match="voxel size"):
        scan.skewed_psf(Psf.normalised(np.ones((3, 3, 3))))
    with pytest.raises(ParameterError, match="coverslip"):
        scan.to("world")
