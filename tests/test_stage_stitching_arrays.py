"""The verb `stitch`: tiles in memory become one image, as those on a disk do."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import pellucid
from pellucid.errors import InputError, ParameterError

CORNERS = [(0, 0), (3, 57), (48, 2), (50, 55)]
STAGE = [(0, 0), (0, 54), (48, 0), (48, 54)]


def scene(depth):
    rng = np.random.default_rng(depth)
    fine = gaussian_filter(rng.standard_normal((depth, 112, 125)), (1.0, 1.5, 1.5))
    return np.clip(200 + 80 * fine / fine.std(), 0, None)


def tiles(depth, dims=3):
    seen = np.random.default_rng(1).poisson(scene(depth)).astype(np.uint16)
    cut = [seen[:, y : y + 60, x : x + 68] for y, x in CORNERS]
    return [tile[0] for tile in cut] if dims == 2 else cut


@pytest.mark.parametrize(("depth", "dims"), [(1, 2), (6, 3)])
def test_tiles_are_placed_and_blended(depth, dims):
    found = pellucid.stitch(tiles(depth, dims), STAGE if dims == 2 else [(0, *at) for at in STAGE])
    np.testing.assert_allclose(found.positions_px[:, 1:], CORNERS, atol=0.2)
    assert found.image.dtype == np.float32
    assert found.image.shape == ((110, 125) if dims == 2 else (6, 110, 125))
    assert found.unlinked == ()
    np.testing.assert_allclose(found.gains, 1.0, atol=0.02)
    inner = found.image[..., 20:90, 20:100]
    truth = scene(depth)[..., 20:90, 20:100].reshape(inner.shape)
    assert np.corrcoef(inner.ravel(), truth.ravel())[0, 1] > 0.97


def test_the_file_command_gives_the_same(tmp_path, monkeypatch):
    from pellucid.apps.cli import main

    monkeypatch.chdir(tmp_path)
    for tile, (y, x) in zip(tiles(4), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        pellucid.write(f"t_{y}_{x}.ome.tif", tile, voxel_um=(1.0, 0.5, 0.5))
    options = ["--overlap", f"0,{12 / 60},{14 / 68}", "--dtype", "float32", "-o", "out.ome.tif"]
    assert main(["stitch", "t_{y}_{x}.ome.tif", *options]) == 0
    same = pellucid.stitch(tiles(4), [(0, *at) for at in STAGE])
    np.testing.assert_allclose(same.image, pellucid.open("out.ome.tif").read(), atol=1e-3)


def test_positions_can_be_trusted_as_they_are():
    found = pellucid.stitch(tiles(1, 2), CORNERS, registration="none", gains="none")
    np.testing.assert_array_equal(found.positions_px[:, 1:], CORNERS)
    assert found.placement.links == ()


def test_what_cannot_be_stitched_is_refused():
    both = tiles(1, 2)
    with pytest.raises(InputError, match="two tiles or more"):
        pellucid.stitch(both[:1], [(0, 0)])
    with pytest.raises(InputError, match="all \\(z, y, x\\) or all \\(y, x\\)"):
        pellucid.stitch([both[0], both[1][None]], STAGE[:2])
    with pytest.raises(ParameterError, match="4 finite positions of 2 voxels"):
        pellucid.stitch(both, STAGE[:3])
    with pytest.raises(ParameterError, match="margin_px"):
        pellucid.stitch(both, STAGE, margin_px=-1)
    with pytest.raises(ParameterError, match="'link'"):
        pellucid.stitch(both, STAGE, registration="link")
    with pytest.raises(InputError, match="no two tiles overlap"):
        pellucid.stitch(both[:2], [(0, 0), (0, 400)])
    both[1] = both[1].astype(float)
    both[1][3, 4] = np.nan
    with pytest.raises(InputError, match="tile 1: 1 of 4080 voxels are NaN"):
        pellucid.stitch(both, STAGE)
