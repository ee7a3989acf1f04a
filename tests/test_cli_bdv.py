"""Datasets of BigDataViewer through `register`, `fuse` and `deconvolve`: views, transforms, and back."""

import json
import sys
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

import pellucid
from bdv_files import Setup, write_bdv
from pellucid.apps.cli import main
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import filaments
from pellucid.core.transform_series import SeriesRegistration, ViewTransform, first_view
from pellucid.data.bigstitcher import read_bigstitcher
from pellucid.data.transform_file import read_transforms, write_transforms
from pellucid.stages.registration.view_series import open_views

pytest.importorskip("h5py")

WORLD = Grid((32, 32, 32), 1.0)
UM = (2.0, 1.0, 1.0)
QUICK = ("--iterations", "2", "--no-projections", "--psf", "psf.tif")
ANGLES = ("--angles", "0,90")
TIMES = (5, 9)
XYZ = [2, 1, 0, 3]


@cache
def recorded():
    psf = gaussian((4.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    arms = turned_arms(DUAL_DEG, WORLD, [psf], planes_every=2, misplaced=0.5, seed=2)
    return record_views(filaments, WORLD, arms, peak_photons=400, seed=4)


def truth():
    """World to the second view, of the simulation."""
    first, second = (view.world_to_view for view in recorded().views)
    return (second @ first.inverse()).with_frames(source="world", target="view 1")


def steps(first_to_world=()):
    """Registrations of both views as BigStitcher lists them: several steps, the calibration last.

    Its world counts in pixels, so that the calibration stretches z alone; all is then turned and moved
    by `first_to_world`, which the transforms between views must not notice.
    """
    calibration = np.diag([1.0, 1.0, UM[0], 1.0])
    between = np.linalg.inv(truth().matrix)[np.ix_(XYZ, XYZ)]
    shift, rest = np.eye(4), between.copy()
    shift[:3, 3] = (3.0, -2.0, 1.0)  # any split into steps has the same product
    rest = np.linalg.inv(shift) @ between
    common = [np.asarray(m) for m in first_to_world]
    places = ([*common, calibration], [*common, shift, rest, calibration])
    return [[m[:3] for m in listed] for listed in places]


def common():
    """A turn about z and a shift, x, y, z: some world that is not the first view."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    matrix[:3, 3] = (40.0, -7.0, 12.0)
    return matrix


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """data.xml: two angles of two channels, two time points; the setups are not in order."""
    monkeypatch.chdir(tmp_path)
    places = steps([common()])
    setups = {}
    for angle, view in enumerate(recorded().views):
        for channel in (0, 1):
            volumes = [(view.counts + 5 * channel + t).astype(np.uint16) for t in range(len(TIMES))]
            setups[10 * channel + 3 * angle] = Setup(volumes, angle, channel, places=places[angle])
    write_bdv(tmp_path / "data.xml", setups, UM, times=TIMES)
    values = recorded().views[0].psf.values.astype(np.float32)
    pellucid.write("psf.tif", values, voxel_um=recorded().views[0].psf.spacing_um)
    return tmp_path


def fuse(*words, views=("data.xml",), output="f.ome.zarr"):
    return main(["fuse", *views, *QUICK, *map(str, words), "-o", output])


def image(name, t=0):
    return pellucid.open(name).read(t)


def test_one_dataset_is_all_its_views_and_a_number_is_one(folder):
    for names in (["data.xml"], ["data.h5"], ["data.xml#0", "data.xml#1"]):
        first, second = open_views(names)
        assert (first.times, first.channels) == (TIMES, ("channel 0", "channel 1"))
        assert second.name == names[0].partition("#")[0] + "#1"
        assert second.shape == recorded().views[1].grid.shape
        np.testing.assert_array_equal(second.read(1, 1), recorded().views[1].counts + 6)
    turned = open_views(["data.xml#1", "data.xml#0"], channel="1", time="9")
    np.testing.assert_array_equal(turned[0].read(0, 0), recorded().views[1].counts + 6)
    (only,) = {view.channels for view in open_views(["data.xml#1::1", "data.xml#0::0"])} & {("channel 1",)}
    assert only == ("channel 1",)


def test_the_number_means_the_same_everywhere(folder, capsys):
    one, two = pellucid.open("data.xml#1"), pellucid.open("data.xml", image=1)
    np.testing.assert_array_equal(one.read(), two.read())
    assert main(["info", "data.xml#1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape_tczyx"][:2] == [2, 2]
    shown = ["--psf", "psf.tif", "--dry-run", "--json"]
    assert main(["deconvolve", "data.xml#0", "data.h5#1", *shown, "-o", "sharp"]) == 0
    planned = json.loads(capsys.readouterr().out)["files"]
    assert [file["output"].rpartition("/")[2] for file in planned] == ["data_0.ome.zarr", "data_1.ome.zarr"]
    assert main(["deconvolve", "data.xml#0", "--image", "1", *shown, "-o", "sharp"]) == 2
    assert "data.xml#0 and image=1 are given" in capsys.readouterr().err
    assert main(["deconvolve", "data.xml#2", *shown, "-o", "sharp"]) == 1
    assert "no view 2; it holds 0: angle 0" in capsys.readouterr().err
    assert main(["deconvolve", "psf.tif#1", *shown, "-o", "sharp"]) == 1
    assert "there is no image 1" in capsys.readouterr().err
    pellucid.write("a#1.tif", np.ones((3, 4, 5), np.uint16), voxel_um=UM)
    assert pellucid.open("a#1.tif").image is None
    (folder / "b#1").write_bytes((folder / "a#1.tif").read_bytes())  # a file's own name comes first
    assert pellucid.open("b#1").shape[2:] == (3, 4, 5)


@pytest.mark.parametrize("form", ["hdf5", "n5"])
def test_views_are_fused_the_same_from_a_dataset_by_its_registrations_as_from_files_by_ours(
    folder, form
):
    places = steps([common()])
    both = {i: Setup([v.counts], i, places=places[i]) for i, v in enumerate(recorded().views)}
    write_bdv(folder / "one.xml", both, UM, form=form, times=(7,))
    grids = []
    for number, view in enumerate(recorded().views):
        pellucid.write(f"v{number}.tif", view.counts, voxel_um=UM)
        grids.append(Grid(view.grid.shape, UM, frame=f"view {number}"))
    ours = SeriesRegistration((0,), 2, (first_view(0), ViewTransform(0, 1, truth(), "given")))
    write_transforms(folder / "ours.json", ours, grids, ["v0.tif", "v1.tif"], {})
    assert fuse("--transforms", "ours.json", views=("v0.tif", "v1.tif"), output="ours.ome.zarr") == 0
    assert fuse("--transforms", "one.xml", views=("one.xml",), output="theirs.ome.zarr") == 0
    assert fuse("--transforms", "one.xml", views=("v0.tif", "v1.tif"), output="mixed.ome.zarr") == 0
    expected = image("ours.ome.zarr")
    for name in ("theirs.ome.zarr", "mixed.ome.zarr"):
        np.testing.assert_allclose(image(name), expected, rtol=1e-3, atol=1e-3 * expected.max())
    # the other way round, each view still has its own place
    assert fuse("--transforms", "one.xml", views=("one.xml#1", "one.xml#0"), output="back.ome.zarr") == 0
    back = read_transforms(folder / "back_transforms.json").world_to_view(7, 1)
    np.testing.assert_allclose(back.matrix, truth().inverse().matrix, atol=1e-9)


def test_registration_begins_there_and_goes_back_into_a_copy(folder):
    (folder / "out").mkdir()
    text = (folder / "data.xml").read_text(encoding="utf-8")
    text = text.replace('"relative">.</BasePath>', f'"absolute">{folder}</BasePath>')
    (folder / "data.xml").write_text(text, encoding="utf-8")
    asked = ["data.xml", "--start", "data.xml", "-o", "t.json", "--bigstitcher"]
    asked = ["--model", "rigid", "--over-time", "once", *asked]
    assert main(["register", *asked, "out/copy.xml"]) == 0
    found = read_transforms(folder / "t.json")
    assert found.times == TIMES
    assert found.at(5, 1).registration.start == "given"
    corners = recorded().views[0].grid.corners_um()
    off = found.world_to_view(5, 1).apply(corners) - truth().apply(corners)
    assert np.abs(off).max() < 1.0  # half a plane
    before, after = (read_bigstitcher(folder / name) for name in ("data.xml", "out/copy.xml"))
    for key, place in before.items():
        if key[1] in (0, 10):  # the first view stays where it was
            assert after[key] == place
            continue
        first = after[key[0], 0]
        moved = np.diag([2, 1, 1, 1]) @ first.inverse().matrix @ after[key].matrix @ np.diag([0.5, 1, 1, 1])
        np.testing.assert_allclose(
            moved, found.world_to_view(key[0], 1).inverse().matrix, atol=1e-9
        )
    copy = ElementTree.parse("out/copy.xml").getroot()
    assert (copy.find("BasePath").text, copy.find("BasePath").get("type")) == ("..", "relative")
    listed = copy.find("ViewRegistrations")
    names = [t.findtext("Name") for t in listed.find("ViewRegistration[@setup='13']")]
    assert names == ["Pellucid registration", "step 0", "step 1", "step 2", "step 3"]
    # the copy finds the pixels, and its registrations are those that were found
    (folder / "t.json").rename("kept.json")
    for name, transforms in (("a.ome.zarr", "kept.json"), ("b.ome.zarr", "out/copy.xml")):
        assert fuse("--transforms", transforms, "--time", "9", views=("out/copy.xml",), output=name) == 0
    np.testing.assert_allclose(image("a.ome.zarr"), image("b.ome.zarr"), rtol=1e-3, atol=0.05)
    assert main(["register", *asked, "data.xml", "--overwrite"]) == 1


def refused(capsys, *words, **options):
    capsys.readouterr()
    assert fuse(*words, **options) in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_the_xml_says_otherwise_is_refused(folder, capsys, monkeypatch):
    counts = [np.full((4, 5, 6), 9, np.uint16)]
    write_bdv(folder / "size.xml", {0: Setup(counts, size=(4, 5, 7))}, UM)
    said = refused(capsys, *ANGLES, views=("size.xml#0", "data.xml#1"))
    assert "states (4, 5, 7) voxels (z, y, x) for setup 0, and size.h5 holds (4, 5, 6)" in said
    tiles = {i: Setup(counts, tile=i) for i in range(3)}
    write_bdv(folder / "tiles.xml", tiles, UM)
    assert "holds 3 tiles" in (said := refused(capsys, *ANGLES, views=("tiles.xml",)))
    assert "pellucid stitch" in said
    lit = {i: Setup(counts, angle=i // 2, illumination=i % 2) for i in range(4)}
    write_bdv(folder / "lit.xml", lit, UM)
    said = refused(capsys, *ANGLES, views=("lit.xml",))
    assert "each of the 4 views (lit.xml#0, lit.xml#1, lit.xml#2, lit.xml#3), got 2" in said
    assert "Say which: data.xml#0" in refused(capsys, *ANGLES, views=("data.xml", "data.xml#1"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    for name in ("data.xml#0", "data.h5#0"):
        assert "pip install 'pellucid[hdf5]'" in refused(capsys, *ANGLES, views=(name, "data.xml#1"))


def test_transforms_of_other_views_are_refused_by_start_as_by_transforms(folder, capsys):
    view = recorded().views[1]
    pellucid.write("cut.tif", view.counts[:-1], voxel_um=UM)
    for number, one in enumerate(recorded().views):
        pellucid.write(f"v{number}.tif", one.counts, voxel_um=UM)
    names = ("v0.tif", "v1.tif")
    assert main(["register", *names, *ANGLES, "--over-time", "none", "-o", "t.json"]) == 0
    calibration = np.diag([1, 1, 2, 1])[:3]
    one = {i: Setup([v.counts], i, places=[calibration]) for i, v in enumerate(recorded().views)}
    write_bdv(folder / "one.xml", one, UM)
    for option in ("--start", "--transforms"):
        assert "in this order" in refused(capsys, option, "t.json", views=names[::-1])
        assert "cut.tif has" in refused(capsys, option, "t.json", views=("v0.tif", "cut.tif"))
        assert "transforms of 2 views, and there are 3" in refused(
            capsys, option, "t.json", views=(*names, "cut.tif")
        )
        assert "view 1 has" in refused(capsys, option, "one.xml", views=("v0.tif", "cut.tif"))
        assert "calibrations alone" in refused(capsys, option, "one.xml", views=names)
    pellucid.write("fine.tif", view.counts, voxel_um=(1.0, 1.0, 1.0))
    assert main(["register", "v0.tif", "fine.tif", "--start", "t.json", "-o", "u.json"]) == 1
    assert "fine.tif has" in capsys.readouterr().err


def test_the_affine_of_another_program_is_applied(folder):
    for number, view in enumerate(recorded().views):
        pellucid.write(f"v{number}.tif", view.counts, voxel_um=UM)
    (folder / "affine.json").write_text(json.dumps(truth().to_dict()))
    assert fuse("--transforms", "affine.json", views=("v0.tif", "v1.tif")) == 0
    found = read_transforms(folder / "f_transforms.json").at(0, 1)
    assert found.how == "given"
    assert Affine(found.world_to_view.matrix, "world", "view 1") == truth()


def test_a_recipe_names_a_dataset_as_the_command_does(folder, capsys):
    (folder / "recipe.yaml").write_text(
        "steps:\n  - register: {inputs: data.xml, angles: [0, 90]}\n"
        "  - fuse: {method: average, angles: [0, 90], spacing_um: 2}\n"
    )
    assert main(["plan", "recipe.yaml", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 2
