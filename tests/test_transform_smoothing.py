"""Courses of transforms: drifts are kept, outliers found, gaps filled, noise reduced."""

import numpy as np
import pytest

from pellucid.core.geometry import Affine, Grid
from pellucid.core.transform_smoothing import Course

GRID = Grid((40, 40, 40), 1.0, frame="view 0")


def drifting(t, rng=None):
    noise = np.zeros(3) if rng is None else rng.normal(0, 0.2, 3)
    return Affine.from_params(
        translation_um=np.array((5, 0.5 * t, -0.3 * t)) + noise,
        rotation_rad=(0.01 * t, np.pi / 2, 0), centre_um=GRID.centre_um,
        source="world", target="view 1",
    )  # fmt: skip


def error(found, t):
    corners = GRID.corners_um()
    return np.linalg.norm(found.apply(corners) - drifting(t).apply(corners), axis=1).max()


@pytest.mark.parametrize("wrong", [[4], [0], [3, 4], [11]])
def test_outliers_are_found_and_repaired_while_the_specimen_drifts(wrong):
    rng = np.random.default_rng(1)
    found = [drifting(t, rng) for t in range(12)]
    for t in wrong:
        found[t] = Affine.translation((0, 6, 0), source="view 1", target="view 1") @ found[t]
    course = Course(range(12), found, GRID)
    assert course.outliers(1.0) == wrong
    course = course.without(wrong)
    for t in wrong:
        assert error(course.predicted(t), t) < 1.0


def test_gaps_are_filled_and_noise_is_smoothed():
    rng = np.random.default_rng(2)
    found = [drifting(t, rng) for t in range(20)]
    course = Course(range(20), [None if t == 7 else f for t, f in enumerate(found)], GRID)
    assert course.outliers(1.0) == []
    assert error(course.predicted(7), 7) < 0.6
    raw = np.mean([error(f, t) for t, f in enumerate(found)])
    smooth = np.mean([error(course.smoothed(t, 2.0), t) for t in range(20)])
    assert smooth < 0.7 * raw
    assert course.predicted(3).source == "world"
    assert course.predicted(3).target == "view 1"


def test_few_time_points_accuse_nobody():
    found = [drifting(t) for t in range(4)]
    found[1] = drifting(40)
    assert Course(range(4), found, GRID).outliers(1.0) == []
