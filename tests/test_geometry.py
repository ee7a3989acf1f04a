"""Geometry: handedness by hand, the algebra by property testing."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.geometry import Affine, Grid, rotation_matrix
from pellucid.errors import FrameError, ParameterError

QUARTER = np.pi / 2
Z, Y, X = np.eye(3)

coordinates = st.tuples(*[st.floats(-100, 100)] * 3)


@st.composite
def affines(draw, source="a", target="b"):
    return Affine.from_params(
        translation_um=draw(coordinates),
        rotation_rad=draw(st.tuples(*[st.floats(-3, 3)] * 3)),
        scale=draw(st.tuples(*[st.floats(0.2, 5)] * 3)),
        shear=draw(st.tuples(*[st.floats(-1, 1)] * 3)),
        centre_um=draw(coordinates),
        source=source,
        target=target,
    )


@pytest.mark.parametrize(
    ("axis", "start", "end"),
    [("z", X, Y), ("z", Y, -X), ("x", Y, Z), ("x", Z, -Y), ("y", Z, X), ("y", X, -Z)],
)
def test_a_quarter_turn_is_right_handed_in_xyz(axis, start, end):
    turn = Affine.rotation(axis, QUARTER)
    np.testing.assert_allclose(turn.apply(start), end, atol=1e-12)


def test_a_voxel_at_the_end_of_x_turns_to_the_end_of_y():
    # 3 x 3 image in the plane of z: the voxel right of the centre lands below it (larger y).
    grid = Grid((1, 3, 3), spacing_um=2.0)
    turn = Affine.rotation("z", QUARTER, centre_um=grid.centre_um)
    moved = grid.um_to_index.apply(turn.apply(grid.index_to_um.apply([0, 1, 2])))
    np.testing.assert_allclose(moved, [0, 2, 1], atol=1e-12)


def test_a_turn_about_the_diagonal_cycles_the_axes():
    turn = Affine.rotation((1, 1, 1), 2 * np.pi / 3)
    np.testing.assert_allclose(turn.apply([X, Y, Z]), [Y, Z, X], atol=1e-12)


def test_shear_moves_x_as_z_grows():
    sheared = Affine.shear("x", "z", 0.5).apply([[4, 1, 1], [0, 1, 1]])
    np.testing.assert_allclose(sheared, [[4, 1, 3], [0, 1, 1]])


def test_from_params_scales_before_it_turns_and_shifts_last():
    affine = Affine.from_params(
        scale=(1, 1, 2), rotation_rad=(QUARTER, 0, 0), translation_um=(0, 0, 7), centre_um=(0, 0, 1)
    )
    # x: 2 -> 1 from the centre -> 2 after scaling -> +2 along y after the turn -> shifted by 7
    np.testing.assert_allclose(affine.apply([0, 0, 2]), [0, 2, 8], atol=1e-12)


@given(affines("b", "c"), affines("a", "b"), coordinates)
def test_composition_applies_the_right_hand_map_first(second, first, point):
    composed = second @ first
    assert (composed.source, composed.target) == ("a", "c")
    expected = second.apply(first.apply(point))
    np.testing.assert_allclose(composed.apply(point), expected, atol=1e-8)


@given(affines(), coordinates)
def test_the_inverse_brings_points_back(affine, point):
    np.testing.assert_allclose(affine.inverse().apply(affine.apply(point)), point, atol=1e-7)
    assert (affine.inverse().source, affine.inverse().target) == ("b", "a")


@given(st.tuples(*[st.floats(-4, 4)] * 3))
def test_rotations_keep_lengths_and_handedness_and_their_axis(vector):
    turn = rotation_matrix(vector)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0
    np.testing.assert_allclose(turn @ vector, vector, atol=1e-12)


@given(affines())
def test_affine_survives_json_and_repr(affine):
    assert Affine.from_dict(json.loads(json.dumps(affine.to_dict()))) == affine
    assert eval(repr(affine)) == affine
    assert hash(eval(repr(affine))) == hash(affine)


def test_composing_frames_that_do_not_meet_raises():
    a_to_b = Affine.identity(source="a", target="b")
    with pytest.raises(FrameError, match="reaches 'b'"):
        a_to_b @ a_to_b


def test_matrix_cannot_be_changed_from_outside():
    matrix = np.eye(4)
    affine = Affine(matrix)
    matrix[0, 3] = 5
    assert affine.is_identity()
    with pytest.raises(ValueError, match="read-only"):
        affine.matrix[0, 3] = 5


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.eye(3), "shape"),
        (np.diag([1, 1, np.nan, 1]), "finite"),
        (np.diag([1.0, 1, 0, 1]), "inverse"),
        (np.ones((4, 4)), "last row"),
        (np.eye(4) + np.eye(4)[[3]].T @ np.array([[1.0, 0, 0, 0]]), "Transpose"),
        ("identity", "numbers"),
    ],
)
def test_matrices_that_are_no_affine_map_are_refused(matrix, said):
    with pytest.raises(ParameterError, match=said):
        Affine(matrix)


def test_bad_axes_are_refused():
    with pytest.raises(ParameterError, match="axis"):
        Affine.rotation("w", 1.0)
    with pytest.raises(ParameterError, match="direction"):
        Affine.rotation((0, 0, 0), 1.0)
    with pytest.raises(ParameterError, match="different"):
        Affine.shear("x", "x", 1.0)
    with pytest.raises(ParameterError, match="shape"):
        Affine.identity().apply([1, 2])


def test_voxel_centres_and_extent_by_hand():
    grid = Grid((2, 3, 4), spacing_um=(2, 1, 0.5), origin_um=(10, 0, 0), frame="view")
    np.testing.assert_allclose(grid.index_to_um.apply([1, 2, 3]), [12, 2, 1.5])
    np.testing.assert_allclose(grid.centre_um, [11, 1, 0.75])
    assert grid.extent_um == (4, 3, 2)
    np.testing.assert_allclose(grid.corners_um()[[0, -1]], [[10, 0, 0], [12, 2, 1.5]])
    assert grid.index_to_um.target == "view"


def test_crop_keeps_voxels_where_they_were():
    grid = Grid((5, 6, 7), spacing_um=(2, 1, 0.5), origin_um=(1, 2, 3))
    part = grid.crop((1, 2, 3), (4, 4, 7))
    assert part.shape == (3, 2, 4)
    np.testing.assert_allclose(part.index_to_um.apply([0, 1, 2]), grid.index_to_um.apply([1, 3, 5]))
    with pytest.raises(ParameterError, match="crop"):
        grid.crop((0, 0, 0), (6, 6, 7))


@given(
    st.tuples(*[st.integers(1, 30)] * 3),
    st.tuples(*[st.floats(0.1, 4)] * 3),
    st.tuples(*[st.floats(0.1, 4)] * 3),
)
def test_other_spacing_covers_the_same_volume(shape, spacing, other):
    grid = Grid(shape, spacing, origin_um=(1, 2, 3))
    changed = grid.with_spacing(other)
    np.testing.assert_allclose(changed.centre_um, grid.centre_um, atol=1e-9)
    for old, new, step in zip(grid.extent_um, changed.extent_um, other, strict=True):
        assert old - 1e-4 <= new <= old + step


def test_halving_the_spacing_doubles_the_voxels_and_shifts_the_origin_by_a_quarter():
    grid = Grid((4, 4, 4), spacing_um=1.0)
    finer = grid.with_spacing(0.5)
    assert finer.shape == (8, 8, 8)
    assert finer.origin_um == (-0.25, -0.25, -0.25)


def test_grid_survives_json_and_repr():
    grid = Grid((1, 20, 30), spacing_um=(1, 0.1, 0.1), origin_um=(0, 1 / 3, 0), frame="view 2")
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert eval(repr(grid)) == grid
    with pytest.raises(ParameterError, match="keys"):
        Grid.from_dict({**grid.to_dict(), "unit": "mm"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (4, 4)},
        {"shape": (0, 4, 4)},
        {"shape": (4.5, 4, 4)},
        {"spacing_um": (1, 1, 0)},
        {"spacing_um": (1, np.nan, 1)},
        {"spacing_um": (1, 1)},
        {"origin_um": ("a", 0, 0)},
        {"frame": ""},
    ],
)
def test_grids_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ParameterError):
        Grid(**{"shape": (4, 4, 4), **wrong})
