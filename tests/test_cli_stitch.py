"""`pellucid stitch`: tiles on disk become one image, in 2D and 3D, and bad ones are refused."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import pellucid
from pellucid.apps.cli import main
from pellucid.core.quality import ncc
from pellucid.data.record import read_record

VOXEL_UM = (1.0, 0.5, 0.5)
SIZE, STEP = (60, 64), (48, 50)
OVERLAP = "0,0.2,0.22"


@cache
def scene(depth):
    rng = np.random.default_rng(depth)
    fine = gaussian_filter(rng.standard_normal((depth, 170, 190)), (1.0, 1.5, 1.5), mode="wrap")
    return np.clip(200 + 80 * fine / fine.std(), 0, None)


def corners(rows=2, columns=3, off=3, seed=1):
    """True first voxels (y, x) of a grid of tiles whose stage is off by `off` voxels."""
    rng = np.random.default_rng(seed)
    grid = [(r, c) for r in range(rows) for c in range(columns)]
    jitter = rng.integers(-off, off + 1, (len(grid), 2))
    return {
        cell: tuple((np.multiply(cell, STEP) + 6 + by).tolist())
        for cell, by in zip(grid, jitter, strict=True)
    }


def tile(at, depth, seed, channels=1):
    y, x = at
    cut = scene(depth)[:, y : y + SIZE[0], x : x + SIZE[1]]
    counts = np.random.default_rng(seed).poisson([cut * (1 + c) for c in range(channels)])
    return counts.astype(np.uint16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiles").mkdir()
    return tmp_path


def save(name, at, depth=1, seed=0, channels=1, voxel_um=VOXEL_UM):
    counts = tile(at, depth, seed, channels)
    pellucid.write(f"tiles/{name}.ome.tif", counts, voxel_um=voxel_um)


def stitch(*options):
    return main(["stitch", *map(str, options)])


def found_px(name="out"):
    content = json.loads(Path(f"{name}_positions.json").read_text())
    return {t["name"]: np.array(t["position_px"]) for t in content["tiles"]}


def worst_error(found, true):
    off = np.array([found[name][1:] - true[name] for name in found])
    return np.linalg.norm(off - np.median(off, axis=0), axis=1).max()


@pytest.mark.parametrize("depth", [1, 10])
def test_tiles_by_index_with_one_missing(folder, depth, capsys):
    places = corners()
    del places[1, 0]
    for n, ((r, c), at) in enumerate(places.items()):
        save(f"t_{r}_{c}", at, depth, n, channels=2)
    assert stitch("tiles/t_{y}_{x}.ome.tif", "--overlap", OVERLAP, "-o", "out.ome.zarr") == 0
    true = {f"t_{r}_{c}.ome.tif": at for (r, c), at in places.items()}
    assert worst_error(found_px(), true) < 0.2
    out = pellucid.open("out.ome.zarr")
    low = np.min(list(places.values()), axis=0)
    assert out.shape[:3] == (1, 2, depth)
    assert out.voxel_um == VOXEL_UM
    # the second channel follows the first, and shows the scene where a tile is
    y, x = np.subtract(places[0, 1], low) + 12
    seen = out.read(c=1)[:, y : y + 40, x : x + 40].astype(float)
    y, x = np.add(places[0, 1], 12)
    assert ncc(seen, scene(depth)[:, y : y + 40, x : x + 40]) > 0.9
    assert {"out_positions.json", "out_placement.png", "out.ome.zarr.pellucid.json"} <= {
        path.name for path in folder.iterdir()
    }
    links = read_record("out.ome.zarr")["statistics"]["placement"]["links"]
    assert sum(link["kept"] for link in links) >= 5
    assert "links" in capsys.readouterr().err


def test_a_snake_with_a_hole_and_positions_that_are_read_again(folder, capsys):
    places = corners()
    order = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1)]
    for n, cell in enumerate(order):
        save(f"s{n}", places[cell], seed=n)
    layout = ["--grid", "2x3", "--order", "snake", "--overlap", OVERLAP]
    assert stitch("tiles", *layout, "-o", "out.ome.tif") == 2
    assert "5 files" in capsys.readouterr().err
    assert stitch("tiles", *layout, "--missing", 5, "-o", "out.ome.tif") == 0
    true = {f"s{n}.ome.tif": places[cell] for n, cell in enumerate(order)}
    assert worst_error(found_px(), true) < 0.2
    # what was found serves as positions, and gives the same image without links
    options = ["--positions", "out_positions.json", "--registration", "none", "-o", "again.ome.tif"]
    assert stitch("tiles", *options, "--background", 0) == 0
    first, again = (pellucid.open(f"{name}.ome.tif").read() for name in ("out", "again"))
    assert first.shape == again.shape
    assert ncc(first.astype(float), again.astype(float)) > 0.999


def test_csv_positions_with_a_tile_that_nothing_links(folder, capsys):
    places = corners(rows=1)
    rows = ["name,z,y,x"]
    for n, ((r, c), at) in enumerate(places.items()):
        save(f"p{n}", at, seed=n)
        rows.append(f"p{n}.ome.tif,0,{(6 + r * STEP[0]) * 0.5},{(6 + c * STEP[1]) * 0.5}")
    # the last tile shows nothing but noise
    noise = np.random.default_rng(9).poisson(200, (1, *SIZE)).astype(np.uint16)
    pellucid.write("tiles/p2.ome.tif", noise, voxel_um=VOXEL_UM, overwrite=True)
    (folder / "p.csv").write_text("\n".join(rows))
    assert stitch("tiles", "--positions", "p.csv", "-o", "out.ome.tif") == 0
    said = capsys.readouterr().err
    assert "no believed link ties p2.ome.tif to the other tiles" in said
    assert "link p1.ome.tif - p2.ome.tif not used" in said


def test_blocks_and_flat_field_and_the_whole_give_the_same_picture(folder, monkeypatch):
    places = corners()
    shade = 1 + 0.3 * np.cos(np.linspace(0, np.pi, SIZE[1]))
    for n, ((r, c), at) in enumerate(places.items()):
        counts = (tile(at, 3, n)[0] * shade).astype(np.uint16)
        pellucid.write(f"tiles/t_{r}_{c}.ome.tif", counts, voxel_um=VOXEL_UM)
    pellucid.write("flat.tif", shade[None].repeat(SIZE[0], 0).astype(np.float32), voxel_um=VOXEL_UM)
    options = ["tiles/t_{y}_{x}.ome.tif", "--overlap", OVERLAP, "--background", 0,
               "--flat-field", "flat.tif", "--dtype", "float32"]  # fmt: skip
    assert stitch(*options, "-o", "whole.ome.zarr") == 0
    monkeypatch.setattr("pellucid.stages.stitching.stitching.BLENDED_VOXELS", 700)
    assert stitch(*options, "-o", "parts.ome.tif") == 0
    whole = pellucid.open("whole.ome.zarr").read()
    np.testing.assert_array_equal(whole, pellucid.open("parts.ome.tif").read())
    low = np.min(list(places.values()), axis=0)
    truth = scene(3)[1, low[0] + 8 : low[0] + 95, low[1] + 8 : low[1] + 145]
    assert ncc(gaussian_filter(whole[1, 8:95, 8:145], 2), gaussian_filter(truth, 2)) > 0.97


def test_a_dry_run_shows_layout_links_and_size(folder, capsys):
    for n, ((r, c), at) in enumerate(corners().items()):
        save(f"t_{r}_{c}", at, seed=n)
    options = ["tiles/t_{y}_{x}.ome.tif", "--overlap", OVERLAP, "-o", "out.ome.zarr", "--dry-run"]
    assert stitch(*options) == 0
    text = capsys.readouterr().out
    # six tiles: seven neighbours and four corners
    assert "links        11" in text
    assert "1 x 1 x 1 x 108 x 164" in text
    assert stitch(*options, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["tiles"]) == 6
    assert not (folder / "out.ome.zarr").exists()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["tiles"], 2, "where are the tiles?"),
        (["tiles", "--grid", "2by3"], 2, "ROWSxCOLUMNS such as 3x4"),
        (["tiles", "--grid", "1x2", "--missing", "7"], 2, "outside 0..1"),
        (["tiles", "--grid", "1x2", "--positions", "p.csv"], 2, "either positions or a grid"),
        (["tiles/b_{y}_{x}.tif"], 1, "no file matches this pattern"),
        (["tiles", "--grid", "1x2", "--overlap", "0"], 1, "no two tiles overlap"),
        (["tiles", "--grid", "1x2", "--reference", "3"], 2, "'3' is not in"),
        (["tiles", "--grid", "1x2", "--flat-field", "tiles/a0.ome.tif"], 1, "positive everywhere"),
        (["tiles", "--positions", "p.csv"], 1, "has no position for a1.ome.tif"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, options, code, sentence):
    save("a0", (10, 10))
    save("a1", (10, 58))
    pellucid.write("tiles/a0.ome.tif", np.zeros((1, *SIZE), np.uint16), voxel_um=VOXEL_UM, overwrite=True)
    (folder / "p.csv").write_text("name,z,y,x\na0.ome.tif,0,0,0\n")
    assert stitch(*options, "-o", "out.ome.zarr") == code
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_wrong_tile_is_named(folder, capsys):
    save("a0", (10, 10))
    save("a1", (10, 58), voxel_um=(1.0, 0.4, 0.4))
    assert stitch("tiles", "--grid", "1x2", "-o", "out.ome.zarr") == 1
    assert "a1.ome.tif: has the voxel size" in capsys.readouterr().err
    (folder / "tiles" / "a1.ome.tif").write_text("no image")
    assert stitch("tiles", "--grid", "1x2", "-o", "out.ome.zarr") == 1
    assert "a1.ome.tif" in capsys.readouterr().err
    assert not list(folder.glob("out*"))


def test_positions_in_voxels_are_read_back_as_voxels(folder):
    places = corners()
    for n, ((r, c), at) in enumerate(places.items()):
        save(f"t_{r}_{c}", at, 1, n, voxel_um=None)
    assert stitch("tiles/t_{y}_{x}.ome.tif", "--overlap", OVERLAP, "-o", "out.ome.tif") == 0
    assert json.loads(Path("out_positions.json").read_text())["unit"] == "voxel"
    again = ["tiles", "--positions", "out_positions.json", "--registration", "none"]
    # a voxel size that is stated later changes nothing about voxels
    for number, words in enumerate(([], ["--voxel-um", "1,0.5,0.5"])):
        assert stitch(*again, *words, "-o", f"again{number}.ome.tif") == 0
        for name, at in found_px(f"again{number}").items():
            np.testing.assert_allclose(at, found_px()[name], atol=1e-6)
    content = json.loads(Path("out_positions.json").read_text()) | {"unit": "inch"}
    Path("out_positions.json").write_text(json.dumps(content))
    assert stitch(*again, "-o", "no.ome.tif") == 1


def test_what_would_be_lost_is_refused(folder, capsys):
    for (r, c), at in corners().items():
        counts = tile(at, 1, 0).astype(np.uint32)
        pellucid.write(f"tiles/t_{r}_{c}.ome.zarr", counts, voxel_um=VOXEL_UM)
    asked = ["tiles/t_{y}_{x}.ome.zarr", "--overlap", OVERLAP, "-o", "out.ome.zarr"]
    assert stitch(*asked) == 1
    assert "Take --dtype float32" in capsys.readouterr().err
    assert stitch(*asked, "--dtype", "float32", "--background", "1e9") == 1
    assert "1e+09 counts were stated, and the brightest voxel has" in capsys.readouterr().err
    assert not Path("out.ome.zarr").exists()


def test_an_overlap_that_nobody_stated_is_said(folder, capsys):
    for number in (0, 1):
        save(f"t_0_{number}", (6, 6 + 57 * number), seed=number)
    spec = "tiles/t_{y}_{x}.ome.tif"
    assert stitch(spec, "-o", "out.ome.tif") == 0
    assert "note: no --overlap was given: neighbours are taken to share 0.1" in capsys.readouterr().err
    assert "no --overlap" in read_record("out.ome.tif")["statistics"]["notes"][0]
    assert stitch(spec, "--overlap", 0.1, "-o", "said.ome.tif") == 0
    assert "no --overlap" not in capsys.readouterr().err
    assert read_record("said.ome.tif")["statistics"]["notes"] == []


def test_a_mosaic_that_is_deconvolved_says_what_deconvolve_says(folder, capsys):
    for number in (0, 1):
        save(f"t_0_{number}", (6, 6 + 57 * number), seed=number)
    psf = np.zeros((1, 9, 9), np.float32)
    psf[0, 3:6, 3:6] = 1
    pellucid.write("psf.tif", psf, voxel_um=VOXEL_UM)
    options = ["tiles/t_{y}_{x}.ome.tif", "--overlap", 0.1, "--psf", "psf.tif", "--iterations", 1]
    assert stitch(*options, "-o", "out.ome.zarr") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 tiles, 1 overlaps to compare"
    assert said[1].startswith("1 volume on cpu")
    assert said[2] == "psf: from psf.tif"
