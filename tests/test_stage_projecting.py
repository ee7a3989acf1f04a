"""Projections: along the axes, while turning, as OME-TIFF and as a movie."""

import numpy as np
import pytest

import pellucid
from pellucid.stages.deskewing import projecting


def point(shape=(9, 11, 13), at=(4, 5, 6)):
    volume = np.zeros(shape, np.float32)
    volume[at] = 7.0
    return volume


def test_the_brightest_voxel_along_each_axis():
    volume = point(at=(1, 2, 3))
    volume[0, 0, 0] = np.nan
    seen = projecting.along_axes(volume)
    assert {name: picture.shape for name, picture in seen.items()} == {
        "z": (11, 13), "y": (9, 13), "x": (9, 11),
    }  # fmt: skip
    assert np.argwhere(seen["z"] == 7).tolist() == [[2, 3]]
    assert np.argwhere(seen["y"] == 7).tolist() == [[1, 3]]
    assert np.argwhere(seen["x"] == 7).tolist() == [[1, 2]]


def test_a_quarter_turn_shows_the_other_side():
    volume = point((9, 11, 13), (4, 5, 6))
    volume[1, 5, 6] = 5.0  # beside the middle along z only
    still, turned, half = projecting.turning(volume, (1, 1, 1), [0.0, np.pi / 2, np.pi])
    width = still.shape[1]
    assert np.isclose(still, 7, atol=1e-3).sum() == 1
    assert not np.isclose(still, 5, atol=1e-3).any()  # behind or before the brighter one
    rows, columns = np.nonzero(turned > 4)
    assert set(rows) == {5}
    assert abs(columns.max() - columns.min()) == 3
    assert width >= np.hypot(9, 13) - 1
    np.testing.assert_allclose(half, still[:, ::-1], atol=1e-3)


def test_anisotropic_voxels_are_shown_in_proportion():
    pictures = projecting.turning(np.ones((4, 20, 20)), (3.0, 1.0, 1.0), [0.0, np.pi / 2])
    widths = [(picture[10] > 0.5).sum() for picture in pictures]
    assert abs(widths[0] - 20) <= 1
    assert abs(widths[1] - 12) <= 3


def test_pictures_and_movie_are_written(tmp_path):
    turns = projecting.turning(point(), (1, 1, 1), projecting.full_turn(6))
    path = projecting.write_pictures(tmp_path / "turn.ome.tif", turns[:, None], (0.5, 0.5))
    back = pellucid.open(path)
    assert back.shape == (6, 1, 1, *turns.shape[1:])
    assert back.voxel_um[1:] == (0.5, 0.5)
    pytest.importorskip("imageio_ffmpeg")
    both = np.stack([turns, turns[::-1]], 1)
    movie = projecting.write_movie(tmp_path / "turn.mp4", both)
    assert movie.read_bytes()[4:8] == b"ftyp"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
