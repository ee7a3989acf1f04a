"""Fields of transforms: their algebra, and their fit to chunks of which some are false or missing."""

import numpy as np
import pytest

from pellucid.core.field_fit import ChunkMeasurement, FieldFit, fit_field
from pellucid.core.geometry import Affine, Grid
from pellucid.core.transform_field import TransformField, control_points
from pellucid.errors import FrameError, InputError, ParameterError

FIXED = Grid((60, 80, 100), (2.0, 1.0, 1.0), frame="fixed")
TURN = Affine.from_params(
    rotation_rad=(0.1, 1.4, 0.2), translation_um=(20, 5, 110), source="fixed", target="moving"
)


def wavy(amplitude_um=2.0, seed=0, affine=TURN):
    knots = control_points(FIXED, (3, 3, 4))
    coefficients = np.random.default_rng(seed).normal(0, amplitude_um, (*knots.shape, 3))
    return TransformField(affine, knots, coefficients)


def places(grid, count=7):
    axes = [np.linspace(0, n - 1, count) for n in grid.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return grid.index_to_um.apply(index)


def test_equal_coefficients_move_all_points_alike():
    knots = control_points(FIXED, (2, 3, 4))
    field = TransformField(TURN, knots, np.broadcast_to([1.0, -2.0, 3.0], (*knots.shape, 3)))
    points = places(FIXED)
    assert np.allclose(field.apply(points), TURN.apply(points + np.array([1, -2, 3])))
    assert field.steepest == pytest.approx(0, abs=1e-12)
    assert field.largest_um == pytest.approx(14**0.5)


def test_by_hand_a_bump_is_a_cubic_spline():
    knots = Grid((1, 1, 7), (1.0, 1.0, 10.0), (0, 0, -10.0), "fixed")
    coefficients = np.zeros((1, 1, 7, 3))
    coefficients[0, 0, 3, 1] = 6.0
    field = TransformField(Affine.identity(source="fixed", target="moving"), knots, coefficients)
    moved = field.displacement([[0, 0, 20.0], [0, 0, 30.0], [0, 0, 15.0], [0, 0, 0.0]])
    assert np.allclose(moved[:, 1], [4, 1, 6 * 23 / 48, 0])  # 2/3, 1/6, 23/48, 0 of the coefficient


def test_grid_and_points_agree_and_slopes_are_those_of_finite_differences():
    field = wavy()
    grid = Grid((5, 6, 7), (15.0, 11.0, 13.0), (3.0, 4.0, 5.0), "fixed")
    z, y, x = field.weights(grid)
    on_grid = np.einsum("ai,bj,ck,ijkd->abcd", z, y, x, field.coefficients_um)
    points = grid.index_to_um.apply(np.moveaxis(np.indices(grid.shape), 0, -1))
    assert np.allclose(on_grid, field.displacement(points))
    step = 1e-4
    gradient = np.stack(
        [
            (field.displacement(points + step * e) - field.displacement(points - step * e)) / (2 * step)
            for e in np.eye(3)
        ],
        axis=-1,
    )
    assert np.allclose(field.stretch(grid), np.linalg.det(np.eye(3) + gradient), atol=1e-6)
    assert np.linalg.norm(gradient, axis=(-2, -1)).max() < 1.05 * field.steepest


def test_beyond_the_lattice_the_displacement_stays_that_of_the_edge():
    field = wavy()
    edge = np.array([118.0, 79.0, 40.0])
    assert np.allclose(field.displacement(edge + np.array([0, 500, 0])), field.displacement(edge))


def test_an_inverse_takes_points_back():
    field = wavy(1.0)
    points = places(FIXED, 9)[1:-1, 1:-1, 1:-1]
    there = field.apply(points)
    assert np.allclose(field.inverse_points(there), points, atol=1e-8)
    low, high = there.reshape(-1, 3).min(0) - 5, there.reshape(-1, 3).max(0) + 5
    over = Grid(tuple(np.ceil(high - low).astype(int)), 1.0, tuple(low), "moving")
    back = field.inverse(over)
    assert (back.source, back.target) == ("moving", "fixed")
    assert np.abs(back.apply(there) - points).max() < 0.02
    assert np.median(np.abs(back.apply(there) - points)) < 0.002


def test_what_is_affine_goes_into_the_affine_part():
    field = wavy()
    extra = Affine.from_params(scale=1.02, translation_um=(1, 2, 3), source="fixed", target="fixed")
    shifted = TransformField(
        TURN,
        field.knots,
        field.coefficients_um
        + extra.apply(np.moveaxis(np.indices(field.knots.shape), 0, -1) * field.knots.spacing_um
                      + field.knots.origin_um)
        - np.moveaxis(np.indices(field.knots.shape), 0, -1) * field.knots.spacing_um
        - field.knots.origin_um,
    )  # fmt: skip
    straight = shifted.straightened()
    points = places(FIXED)
    assert np.allclose(straight.apply(points), shifted.apply(points))
    assert straight.largest_um < shifted.largest_um
    assert np.allclose(straight.displacement(points).mean((0, 1, 2)), 0, atol=0.6)


def test_fields_survive_a_dictionary_and_go_on_with_affine_maps():
    field = wavy()
    points = places(FIXED)
    again = TransformField.from_dict(field.to_dict())
    assert np.array_equal(again.apply(points), field.apply(points))
    last = Affine.translation((1, 2, 3), source="moving", target="scan")
    assert np.allclose(field.followed_by(last).apply(points), field.apply(points) + np.array([1, 2, 3]))
    renamed = field.with_frames(source="world", target="view 1")
    assert (renamed.source, renamed.knots.frame, renamed.target) == ("world", "world", "view 1")


def test_what_does_not_fit_is_refused():
    knots = control_points(FIXED, (2, 2, 2))
    with pytest.raises(ParameterError, match="one \\(z, y, x\\) displacement for every"):
        TransformField(TURN, knots, np.zeros((3, 3, 3, 3)))
    with pytest.raises(FrameError, match="'fixed'"):
        TransformField(TURN.inverse(), knots, np.zeros((*knots.shape, 3)))
    with pytest.raises(ParameterError, match="at least 4"):
        TransformField(TURN, Grid((3, 4, 4), frame="fixed"), np.zeros((3, 4, 4, 3)))
    with pytest.raises(ParameterError, match="keys"):
        TransformField.from_dict({"affine": TURN.to_dict()})


# --- the fit ---------------------------------------------------------------------------------------

SIDE = Grid((150, 150, 150), 2.0, frame="fixed")


def bent(points, amplitude_um):
    """A smooth displacement of about one wave over the volume."""
    z, y, x = np.moveaxis(np.asarray(points) / 300, -1, 0)
    return amplitude_um * np.stack(
        [np.sin(4 * y + 0.3) * np.cos(2 * x), np.cos(4 * z + y), np.sin(3 * x + 2 * z)], axis=-1
    )


def measured(per_axis=4, amplitude_um=3.0, sigma_um=0.1, model="translation", seed=0):
    """Chunks as a registration with errors would measure them."""
    rng = np.random.default_rng(seed)
    size = 300 / per_axis
    chunks = []
    for index, place in enumerate(np.ndindex(per_axis, per_axis, per_axis)):
        centre, half = (np.array(place) + 0.5) * size - 1, np.full(3, size / 2 + 10)
        along = (np.arange(8) - 3.5) / 4
        within = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).reshape(-1, 3)
        seen = bent(centre + within * half, amplitude_um)
        if model == "translation":
            own = Affine.translation(seen.mean(0) + rng.normal(0, sigma_um, 3))
            corner = sigma_um * 3**0.5
        else:
            design = np.column_stack([within, np.ones(len(within))])
            found = np.linalg.lstsq(design, seen, rcond=None)[0]
            found += rng.normal(0, sigma_um, (4, 3)) * np.array([[3**0.5]] * 3 + [[1]])
            own = Affine.from_linear(
                np.eye(3) + found[:3].T / half, centre_um=centre, translation_um=found[3]
            )
            corner = sigma_um * 30**0.5
        own = own.with_frames(source="fixed", target="fixed")
        chunks.append(
            ChunkMeasurement(index, tuple(centre), tuple(half), TURN @ own, model, corner)
        )
    return chunks


def error_um(fit: FieldFit, amplitude_um, margin_um=30):
    axis = np.linspace(margin_um, 298 - margin_um, 9)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    truth = TURN.apply(points + bent(points, amplitude_um))
    return np.linalg.norm(fit.field.apply(points) - truth, axis=-1)


def displaced(chunk, rng):
    own = Affine.translation(rng.uniform(-25, 25, 3), source="moving", target="moving")
    return ChunkMeasurement(
        chunk.index, chunk.centre_um, chunk.half_um, own @ chunk.transform, chunk.model,
        chunk.corner_sigma_um,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["translation", "affine"])
def test_a_known_field_is_found(model):
    fit = fit_field(TURN, SIDE, measured(model=model))
    assert np.median(error_um(fit, 3.0)) < 0.25
    assert not fit.outliers
    assert all(c.used for c in fit.chunks)


@pytest.mark.parametrize("model", ["translation", "affine"])
def test_a_fifth_of_the_chunks_false_are_found_and_a_tenth_missing_are_filled(model):
    rng = np.random.default_rng(5)
    chunks = measured(model=model, seed=1)
    order = rng.permutation(len(chunks))
    false, missing = set(order[:13].tolist()), set(order[13:19].tolist())
    told = [
        displaced(c, rng) if c.index in false
        else ChunkMeasurement(c.index, c.centre_um, c.half_um, reason="Empty.")
        if c.index in missing else c
        for c in chunks
    ]  # fmt: skip
    fit = fit_field(TURN, SIDE, told)
    assert {c.index for c in fit.outliers} == false
    assert all("Contradicted" in c.reason for c in fit.outliers)
    filled = [c for c in fit.chunks if np.isnan(c.residual_um)]
    assert {c.index for c in filled} == missing
    assert {c.reason for c in filled} == {"Empty."}
    used = np.median([c.sigma_um for c in fit.chunks if c.used])
    assert np.median([c.sigma_um for c in filled]) > used
    assert np.median(error_um(fit, 3.0)) < 0.35


def test_the_data_choose_how_stiff_the_field_is():
    straight = fit_field(TURN, SIDE, measured(amplitude_um=0.0))
    curved = fit_field(TURN, SIDE, measured(amplitude_um=3.0))
    assert straight.amplitude_um < 0.1 * curved.amplitude_um
    # what many chunks say together is better than what each says
    assert error_um(straight, 0.0).max() < 0.1


def test_uncertainties_that_are_too_small_are_found_out():
    chunks = [
        ChunkMeasurement(c.index, c.centre_um, c.half_um, c.transform, c.model, 0.05)
        for c in measured(amplitude_um=0.0, sigma_um=0.5)
    ]
    fit = fit_field(TURN, SIDE, chunks)
    assert fit.extra_sigma_um == pytest.approx(0.5, rel=0.3)
    assert len(fit.outliers) <= 2


def test_one_chunk_makes_a_constant_field():
    one = measured(amplitude_um=3.0)[21:22]
    fit = fit_field(TURN, SIDE, one)
    points = places(SIDE)
    moved = TURN.inverse().apply(fit.field.apply(points)) - points
    wanted = TURN.inverse().apply(one[0].transform.apply(one[0].centre_um)) - one[0].centre_um
    assert np.allclose(moved, wanted, atol=0.05)


def test_no_chunk_at_all_is_refused_with_the_first_reason():
    empty = [ChunkMeasurement(0, (1, 1, 1), (1, 1, 1), reason="No structure.")]
    with pytest.raises(InputError, match=r"none of 1 could be registered. No structure\."):
        fit_field(TURN, SIDE, empty)
