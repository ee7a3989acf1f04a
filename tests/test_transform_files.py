"""Transforms in files: back as they were, and as other programs read them, by hand."""

import json

import numpy as np
import pytest

from pellucid.core.geometry import Affine, Grid
from pellucid.core.registration import register
from pellucid.core.transform_series import SeriesRegistration, ViewTransform, first_view
from pellucid.data.bigstitcher import read_bigstitcher, read_bigstitcher_series, write_bigstitcher
from pellucid.data.transform_exchange import affine_from_itk, affine_from_matrix_text, affine_to_itk
from pellucid.data.transform_file import read_affine, read_transforms, write_transforms
from pellucid.errors import InputError

GRIDS = (Grid((8, 10, 12), (2.0, 0.5, 0.5), frame="view 0"), Grid((9, 9, 9), 1.0, frame="view 1"))
MOVED = Affine.from_params(
    translation_um=(3, -2, 1), rotation_rad=(0.1, -0.3, 0.2), scale=(1.1, 0.9, 1.0),
    source="world", target="view 1",
)  # fmt: skip


@pytest.fixture
def series():
    image = np.random.default_rng(0).random((1, 32, 32))
    measured = register(image, 0 * image, fixed_spacing_um=1, moving_spacing_um=1)
    return SeriesRegistration(
        (3, 4),
        2,
        (
            first_view(3),
            ViewTransform(3, 1, MOVED, "registered"),
            first_view(4),
            ViewTransform(4, 1, MOVED, "failed", "It was dark.", measured),
        ),
    )


def test_json_gives_back_every_field(tmp_path, series):
    path = tmp_path / "transforms.json"
    write_transforms(path, series, GRIDS, ("A", "B"), {"model": "affine"})
    back = read_transforms(path)
    assert back == series
    assert back.at(4, 1).registration.corner_sigma_um == (np.inf,) * 8
    assert [t.reason for t in back.failures] == ["It was dark."]


@pytest.mark.parametrize("damage", ["half", "other", "nan"])
def test_damaged_json_is_refused(tmp_path, series, damage):
    path = tmp_path / "transforms.json"
    write_transforms(path, series, GRIDS, ("A", "B"), {})
    text = path.read_text()
    content = json.loads(text)
    content["transforms"][1]["world_to_view"]["matrix"][0][0] = float("nan")
    path.write_text(
        {"half": text[: len(text) // 2], "other": "{}", "nan": json.dumps(content)}[damage]
    )
    with pytest.raises(InputError, match=r"transforms\.json: (is no JSON|not a file|damaged)"):
        read_transforms(path)


def test_itk_reads_a_quarter_turn_as_it_is():
    # about z, +x turns towards +y: the point (x, y, z) = (1, 0, 5) goes to (0, 1, 5), then x + 10
    turn = Affine.rotation("z", np.pi / 2)
    there = Affine.translation((0, 0, 10)) @ turn
    numbers = affine_to_itk(there).splitlines()[3].split()[1:]
    expected = [0, -1, 0, 1, 0, 0, 0, 0, 1, 10, 0, 0]
    np.testing.assert_allclose([float(n) for n in numbers], expected, atol=1e-12)
    rows = np.array(numbers[:9], dtype=float).reshape(3, 3)
    np.testing.assert_allclose(rows @ (1, 0, 5) + (10, 0, 0), (10, 1, 5), atol=1e-12)


def test_itk_round_trip_and_centres():
    back = affine_from_itk(affine_to_itk(MOVED), source="world", target="view 1")
    assert back == MOVED
    doubled = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 2 0 0 0 2 0 0 0 2 1 0 0\nFixedParameters: 3 4 5\n"
    )
    np.testing.assert_allclose(affine_from_itk(doubled).apply((5, 4, 3)), (5, 4, 4))
    with pytest.raises(InputError, match="got Euler3DTransform_double_3_3"):
        affine_from_itk(doubled.replace("AffineTransform", "Euler3DTransform"))
    with pytest.raises(InputError, match="12 finite numbers"):
        affine_from_itk(doubled.replace("2 1 0 0\n", "nan 1 0 0\n"))


def test_a_matrix_of_the_dispim_tools_counts_voxels(tmp_path):
    path = tmp_path / "a.tmx"
    path.write_text("1 0 0 4\n0 1 0 0\n0 0 1 2\n0 0 0 1\n")
    found = read_affine(path, [(2.0, 0.5, 0.5), (2.0, 0.5, 0.5)])
    np.testing.assert_allclose(found.apply((0, 0, 0)), (4, 0, 2))
    np.testing.assert_allclose(
        affine_from_matrix_text(path.read_text(), (1, 1, 1), (1, 1, 2)).apply((0, 0, 1)), (2, 0, 10)
    )
    path.write_text("1 0 0 4\n0 1")
    with pytest.raises(InputError, match=r"a\.tmx: expected 16 finite numbers"):
        read_affine(path, [(1, 1, 1)] * 2)


def test_bigstitcher_maps_voxels_of_a_view_to_the_world(tmp_path, series):
    path = tmp_path / "dataset.xml"
    write_bigstitcher(path, series, GRIDS, ("488", "561"))
    back = read_bigstitcher(path)
    assert sorted(back) == [(t, s) for t in (3, 4) for s in range(4)]
    np.testing.assert_allclose(back[3, 1].apply((1, 2, 4)), (2, 1, 2))
    expected = MOVED.inverse() @ GRIDS[1].index_to_um
    np.testing.assert_allclose(back[3, 2].matrix, expected.matrix, atol=1e-12)
    path.write_text(path.read_text()[:500])
    with pytest.raises(InputError, match="truncated"):
        read_bigstitcher(path)


def test_bigstitcher_gives_back_the_transforms_between_views(tmp_path, series):
    path = tmp_path / "dataset.xml"
    write_bigstitcher(path, series, GRIDS, ("488", "561"))
    back = read_bigstitcher_series(path, GRIDS)
    assert back.times == (3, 4)
    for time in back.times:
        expected = series.world_to_view(time, 1).matrix
        np.testing.assert_allclose(back.world_to_view(time, 1).matrix, expected, atol=1e-12)
    with pytest.raises(InputError, match="of 2 views, and there are 1"):
        read_bigstitcher_series(path, GRIDS[:1])
