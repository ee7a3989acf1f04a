"""`pellucid fuse` on less usual recordings, and on those that cannot be fused."""

import json
import math
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

import pellucid
from pellucid.apps.cli import main
from pellucid.core.deskew import StageScan, deskewed_grid
from pellucid.core.geometry import Affine, Grid
from pellucid.core.multiview import DUAL_DEG, QUAD_DEG, record_views, turned_arms
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import Camera, filaments
from pellucid.data.psf_field_file import write_psf_field
from pellucid.data.record import read_record
from pellucid.stages.registration import pair_registration

WORLD = Grid((32, 32, 32), 1.0)
UM = (1.0, 1.0, 1.0)
ANGLES = ["--angles", "0,90"]
QUICK = ["--iterations", "2", "--over-time", "none", "--no-projections"]


@cache
def recorded():
    psf = gaussian((6.0, 3.0, 3.0), UM)
    arms = turned_arms(DUAL_DEG, WORLD, [psf], misplaced=0.5, seed=2)
    return record_views(filaments, WORLD, arms, peak_photons=300, seed=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One volume of two arms, a.tif and b.tif, and the PSF of both."""
    monkeypatch.chdir(tmp_path)
    for name, view in zip("ab", recorded().views, strict=True):
        pellucid.write(f"{name}.tif", view.counts, voxel_um=UM)
    pellucid.write("psf.tif", recorded().views[0].psf.values.astype(np.float32), voxel_um=UM)
    return tmp_path


def fuse(*options, views=("a.tif", "b.tif"), psf=("--psf", "psf.tif"), output="f.ome.tif"):
    return main(["fuse", *views, *psf, *map(str, options), "-o", output])


def test_registration_knows_the_psfs(folder, monkeypatch):
    known, register = [], pair_registration.register

    def heard(*views, **options):
        known.append((options["fixed_psf"], options["moving_psf"]))
        return register(*views, **options)

    monkeypatch.setattr(pair_registration, "register", heard)
    assert fuse(*ANGLES, "--iterations", 1, "--no-projections") == 0
    for psf in known[0]:
        assert psf.ndim == 3
        assert psf.sum() == pytest.approx(1, abs=1e-5)
    assert fuse(*ANGLES, "--method", "average", "--no-projections", "--overwrite", psf=()) == 0
    assert known[-1] == (None, None)


def test_a_view_whose_blur_varies_takes_a_field(folder, capsys):
    psf = recorded().views[0].psf
    places = [(0.0, 0.0, 0.0), (0.0, 0.0, 31.0)]
    write_psf_field("same.npz", PsfField.of([psf, psf], places))
    sharper = gaussian((3.0, 3.0, 3.0), UM)
    write_psf_field("other.npz", PsfField.of([psf, sharper], places))
    images = []
    for number, file in enumerate(("psf.tif", "same.npz", "other.npz")):
        asked = ["--psf", file, "--psf", "psf.tif"]
        assert fuse(*ANGLES, *QUICK, psf=asked, output=f"f{number}.ome.tif") == 0
        images.append(pellucid.open(f"f{number}.ome.tif").read())
    top = float(images[0].max())
    assert np.abs(images[1] - images[0]).max() < 0.012 * top
    assert np.abs(images[2] - images[0]).max() > 0.025 * top
    field = ["--psf", "same.npz"]
    assert fuse(*ANGLES, *QUICK, "--method", "resample-then-joint", psf=field, output="g.tif") == 2
    assert "which the method joint takes" in capsys.readouterr().err
    assert fuse(*ANGLES, *QUICK, "--tile", "16,16,16", psf=field, output="g.ome.zarr") == 2
    assert "Blocks take one PSF for each view" in capsys.readouterr().err


def test_how_views_lie_is_never_guessed(folder, capsys):
    assert fuse() == 2
    assert "--angles 0,90 (0,0 if neither is turned), or give transforms by --transforms" in (
        capsys.readouterr().err
    )
    assert main(["register", "a.tif", "b.tif", "-o", "t.json"]) == 2
    assert "--start FILE" in capsys.readouterr().err
    assert main(["register", "a.tif", "b.tif", "-o", "t.json", *ANGLES]) == 0
    for number, words in enumerate((["--transforms", "t.json"], ["--start", "t.json"])):
        assert fuse(*words, *QUICK, output=f"f{number}.ome.tif") == 0
    one, two = (pellucid.open(f"f{number}.ome.tif").read() for number in range(2))
    np.testing.assert_array_equal(one, two)


def test_channels_follow_the_one_that_registers(folder):
    empty = np.full(WORLD.shape, 100, np.uint16)
    for name, view in zip("ab", recorded().views, strict=True):
        both = np.stack([empty, view.counts])
        pellucid.write(f"{name}{name}.tif", both, voxel_um=UM, channels=("dark", "bright"))
    wanted = [*ANGLES, "--iterations", 2, "--no-projections"]
    both = {"views": ("aa.tif", "bb.tif")}
    assert fuse(*wanted, "--reference", "1", **both, output="two.ome.zarr") == 0
    two = pellucid.open("two.ome.zarr")
    assert two.channels == ("dark", "bright")
    assert not two.read(0, 0).any()
    assert fuse(*wanted, output="one.ome.zarr") == 0
    np.testing.assert_array_equal(two.read(0, 1), pellucid.open("one.ome.zarr").read())
    # one channel alone, by its name
    assert fuse(*wanted, "--channel", "bright", **both, output="same.ome.zarr") == 0
    np.testing.assert_array_equal(two.read(0, 1), pellucid.open("same.ome.zarr").read())
    # the empty channel cannot register, and says so
    assert fuse(*wanted, **both, output="none.ome.zarr") == 1
    assert not (folder / "none.ome.zarr").exists()


def test_an_image_of_the_empty_field_is_subtracted(folder, capsys):
    plain = [*ANGLES, *QUICK, "--background", 102]
    assert fuse(*plain) == 0
    y, x = np.indices(WORLD.shape)[1:]
    empty = (100 + 4 * x + 3 * y).astype(np.uint16)
    for name, view in zip("ab", recorded().views, strict=True):
        pellucid.write(f"tilted_{name}.tif", view.counts - 100 + empty, voxel_um=UM)
    pellucid.write("empty.tif", empty[:1], voxel_um=UM)
    tilted = {"views": ("tilted_a.tif", "tilted_b.tif"), "output": "tilted.ome.tif"}
    assert fuse(*ANGLES, *QUICK, "--background-image", "empty.tif", **tilted) == 0
    straight, tilted_too = (pellucid.open(p).read() for p in ("f.ome.tif", "tilted.ome.tif"))
    assert ncc(straight, tilted_too) > 0.99
    pellucid.write("small.tif", empty[:1, :-2], voxel_um=UM)
    more = ["--background-image", "small.tif", "--overwrite"]
    assert fuse(*ANGLES, *QUICK, *more) == 1
    assert "small.tif: expected (32, 32, 32) or one plane of it" in capsys.readouterr().err
    assert fuse(*plain, *more) == 2
    assert "a number and an image" in capsys.readouterr().err


def test_a_psf_by_the_numbers_of_the_objective(folder, capsys):
    optics = ["--modality", "light-sheet", "--na", 0.4, "--wavelength-nm", 525,
              "--refractive-index", 1.33, "--sheet-fwhm-um", 6]  # fmt: skip
    assert fuse(*ANGLES, *QUICK, *optics, psf=()) == 0
    assert read_record("f.ome.tif")["parameters"]["na"] == 0.4
    assert fuse(*ANGLES, *QUICK, *optics, "--overwrite") == 2
    assert "Choose one of the two" in capsys.readouterr().err
    assert fuse(*ANGLES, *QUICK, psf=(), output="g.ome.tif") == 2
    assert "expected a PSF file, or the objective's numbers" in capsys.readouterr().err


def test_integers_are_scaled_and_say_by_how_much(folder):
    assert fuse(*ANGLES, *QUICK, output="real.ome.tif") == 0
    assert fuse(*ANGLES, *QUICK, "--dtype", "uint16", output="whole.ome.zarr") == 0
    scale = read_record("whole.ome.zarr")["statistics"]["integer_scale"]
    whole = pellucid.open("whole.ome.zarr").read()
    assert whole.dtype == np.uint16
    assert whole.max() > 2**14
    real = pellucid.open("real.ome.tif").read()
    np.testing.assert_allclose(whole / scale, real, atol=0.51 / scale)


def test_a_wrong_sign_of_an_angle_is_said_before_anything_is_fused(folder, capsys):
    assert fuse("--angles", "0,-90", "--start", "translation") == 1
    said = capsys.readouterr().err
    assert "no time point could be registered" in said
    assert "the angle may be 90." in said
    assert {p.name for p in folder.iterdir()} == {"a.tif", "b.tif", "psf.tif"}


def test_transforms_that_cannot_be_are_refused(folder, capsys):
    assert main(["register", "a.tif", "b.tif", "-o", "t.json", *ANGLES, "--over-time", "none"]) == 0
    content = json.loads((folder / "t.json").read_text())
    matrix = content["transforms"][1]["world_to_view"]["matrix"]

    def said(change):
        matrix[0][3] = change
        (folder / "bad.json").write_text(json.dumps(content))
        capsys.readouterr()
        assert fuse("--transforms", "bad.json") == 1
        assert not list(folder.glob("f.*"))
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "bad.json: damaged (Affine: expected finite numbers" in said(math.nan)
    assert "the views do not overlap" in said(500.0)


def test_views_that_do_not_belong_together(folder, capsys):
    counts = recorded().views[1].counts
    pellucid.write("two.tif", np.stack([counts, counts]), voxel_um=UM)
    assert fuse(*ANGLES, views=("a.tif", "two.tif")) == 1
    assert "a.tif has 1 channels (channel 0) and two.tif 2" in capsys.readouterr().err
    for name, times in (("A", (0, 1, 2)), ("B", (0, 1)), ("C", (0, 2, 3))):
        (folder / name).mkdir()
        for t in times:
            pellucid.write(f"{name}/t{t}.tif", counts, voxel_um=UM)
    assert fuse(*ANGLES, views=("A", "B")) == 1
    assert "A has 3 time points and B 2: 2 only in A. Select" in capsys.readouterr().err
    assert fuse(*ANGLES, views=("A", "C")) == 1
    assert "C: time point 1 missing between 0 and 3" in capsys.readouterr().err
    assert fuse(*ANGLES, *QUICK, "--time", "0,2", views=("A", "C")) == 0
    assert pellucid.open("f.ome.tif").shape[0] == 2


def test_four_views_on_what_all_of_them_see(folder, capsys):
    arms = turned_arms(QUAD_DEG, WORLD, [recorded().views[0].psf], misplaced=0.3, seed=2)
    seen = record_views(filaments, WORLD, arms, peak_photons=300, seed=4)
    for number, view in enumerate(seen.views):
        pellucid.write(f"v{number}.tif", view.counts, voxel_um=UM)
    names = [f"v{number}.tif" for number in range(4)]
    shared = ["--cover", "overlap", "--model", "rigid", "--no-projections", "--iterations", 5]
    ncc_of = {}
    for count, angles in ((2, "0,90"), (4, "0,45,90,135")):
        kept = names if count == 4 else names[::2]
        assert fuse("--angles", angles, *shared, "--overwrite", views=kept) == 0
        assert f"registered   {count - 1} of {count - 1}" in capsys.readouterr().err
        grid = Grid.from_dict(read_record("f.ome.tif")["statistics"]["world"])
        assert max(grid.shape) <= 32
        # the first arm stands in the world of the truth, turned by nothing
        place = np.rint(grid.origin_um).astype(int) + 4
        inner = seen.truth[tuple(slice(p, p + 20) for p in place)]
        ncc_of[count] = ncc(pellucid.open("f.ome.tif").read()[4:24, 4:24, 4:24], inner)
    assert ncc_of[4] > ncc_of[2] > 0.9


def scanned(view, scan, planes, width):
    """What a stage scan of the object of `view` records, and where its first voxel lies (um)."""
    grid = scan.grid((planes, view.grid.shape[1], width))
    start = view.grid.centre_um - scan.scan_to_view.apply(grid.centre_um)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    places = scan.scan_to_view.apply(index * scan.spacing_um) + start
    photons = ndimage.map_coordinates(view.photons, np.moveaxis(places, -1, 0), mode="nearest")
    return Camera()(photons, 5), start


def test_stage_scans_of_two_arms_are_registered_and_fused_as_recorded(folder, capsys):
    psf = recorded().views[0].psf
    shape = (30, 32, 96)
    arms = turned_arms(DUAL_DEG, WORLD, [psf], shape=shape, misplaced=0.5, seed=2)
    seen = record_views(filaments, WORLD, arms, peak_photons=300, seed=4)
    angles, directions, starts = (40.0, 50.0), (1, -1), []
    words = []
    for name, view, angle, direction in zip("pq", seen.views, angles, directions, strict=True):
        scan = StageScan(1.0, math.radians(angle), 1.0, direction)
        counts, start = scanned(view, scan, 36, 64)
        upright = deskewed_grid(scan, counts.shape, frame="view")
        starts.append(start + upright.origin_um)
        pellucid.write(f"{name}.tif", counts, voxel_um=UM)
        words += ["--stage-scan", f"1,{angle},{direction}"]
    wanted = [*ANGLES, *words, "--model", "rigid", "--spacing-um", 1, "--no-projections"]
    assert fuse(*wanted, views=("p.tif", "q.tif")) == 0
    assert "registered   1 of 1" in capsys.readouterr().err
    record = read_record("f.ome.tif")["statistics"]
    found = Affine.from_dict(record["transforms"]["transforms"][1]["world_to_view"])
    first, second = (view.world_to_view for view in seen.views)
    corners = WORLD.corners_um()
    here = first.apply(corners) - starts[0]  # in the first arm's deskewed frame
    error = found.apply(here) - (second.apply(corners) - starts[1])
    assert np.linalg.norm(error, axis=1).max() < 1.0
    # the world of the truth, where the fused volume has it
    grid = Grid.from_dict(record["world"])
    inside = WORLD.index_to_um.apply(np.stack(np.meshgrid(*[np.arange(6, 26)] * 3, indexing="ij"), -1))
    places = grid.um_to_index.apply(first.apply(inside) - starts[0])
    fused = pellucid.open("f.ome.tif").read()
    image = ndimage.map_coordinates(fused, np.moveaxis(places, -1, 0))
    assert ncc(image, seen.truth[6:26, 6:26, 6:26]) > 0.95
    # by blocks it is stood up to be registered, and fused as recorded
    by_blocks = [*wanted, "--iterations", 2, "--tile", "64,128,128"]
    assert fuse(*by_blocks, views=("p.tif", "q.tif"), output="b.ome.zarr") == 0
    transforms = read_record("b.ome.zarr")["statistics"]["transforms"]["transforms"]
    again = Affine.from_dict(transforms[1]["world_to_view"])
    np.testing.assert_allclose(again.matrix, found.matrix, atol=1e-6)


def test_a_view_that_does_not_fit_is_not_begun(folder, capsys, monkeypatch):
    for stage in ("fusion.planning", "registration.register_files", "pieces.piece_choice"):
        monkeypatch.setattr(f"pellucid.stages.{stage}.available_bytes", lambda device: 2**18)
    assert fuse(*ANGLES) == 1
    assert "256 kiB free. Voxels of" in capsys.readouterr().err
    assert main(["register", "a.tif", "b.tif", "-o", "t.json", *ANGLES]) == 1
    assert "Register in chunks (--chunks auto)" in capsys.readouterr().err


def test_a_drifting_series_keeps_what_all_its_time_points_need(folder):
    times = 3
    for name, view in zip("ab", recorded().views, strict=True):
        (folder / name).mkdir()
        for t in range(times):
            pellucid.write(f"{name}/t{t}.tif", view.counts, voxel_um=UM)
    assert main(["register", "a", "b", "-o", "t.json", *ANGLES, "--over-time", "none"]) == 0
    content = json.loads((folder / "t.json").read_text())
    for one in content["transforms"]:
        if one["view"] == 1:
            one["world_to_view"]["matrix"][1][3] += 6.0 * one["time"]  # along y, of both views
    (folder / "t.json").write_text(json.dumps(content))
    sizes = {}
    for cover in ("all", "overlap"):
        wanted = ["--transforms", "t.json", "--cover", cover, "--method", "average", "--no-projections"]
        assert fuse(*wanted, "--overwrite", views=("a", "b")) == 0
        sizes[cover] = Grid.from_dict(read_record("f.ome.tif")["statistics"]["world"]).shape[1]
    assert sizes == {"all": 32 + 12, "overlap": 32 - 12}
    # the last time point is lit wherever the box says that all views see
    assert (pellucid.open("f.ome.tif").read(times - 1).max((0, 2)) > 0).all()


def test_views_that_share_no_place_over_time(folder, capsys):
    for name, view in zip("ab", recorded().views, strict=True):
        (folder / name).mkdir()
        for t in range(2):
            pellucid.write(f"{name}/t{t}.tif", view.counts, voxel_um=UM)
    assert main(["register", "a", "b", "-o", "t.json", *ANGLES, "--over-time", "none"]) == 0
    content = json.loads((folder / "t.json").read_text())
    for one in content["transforms"]:
        if one["view"] == 1:
            one["world_to_view"]["matrix"][1][3] += 20.0 * (2 * one["time"] - 1)
    (folder / "t.json").write_text(json.dumps(content))
    wanted = ["--transforms", "t.json", "--cover", "overlap", "--method", "average"]
    assert fuse(*wanted, views=("a", "b")) == 1
    assert "no place is in all views at all 2 time points" in capsys.readouterr().err


def test_a_dry_run_tells_the_psf_of_every_view(folder, capsys):
    coarse = gaussian((6.0, 3.0, 3.0), (0.5, 1.0, 1.0))
    pellucid.write("wide.tif", coarse.values.astype(np.float32) + 3, voxel_um=(0.5, 1.0, 1.0))
    two = ("--psf", "psf.tif", "--psf", "wide.tif")
    assert fuse(*ANGLES, "--dry-run", "--json", psf=two) == 0
    first, second = (view["psfs"]["channel 0"] for view in json.loads(capsys.readouterr().out)["views"])
    assert first["notes"][0] == "from psf.tif"
    assert second["notes"][0] == "from wide.tif"
    assert any("voxels of (0.5, 1, 1) um in the file" in note for note in second["notes"])
    np.testing.assert_allclose(second["fwhm_um"], (6, 3, 3), rtol=0.05)
    assert fuse(*ANGLES, "--dry-run", psf=two) == 0
    said = capsys.readouterr().out
    assert "voxels, FWHM " in said
    assert "from wide.tif" in said
    assert fuse(*ANGLES, "--dry-run", "--method", "average", psf=()) == 0
    assert "psf          none is needed" in capsys.readouterr().out


def test_psfs_of_two_views_belong_to_their_views(folder):
    pellucid.write("wide.tif", gaussian((9.0, 5.0, 5.0), UM).values.astype(np.float32), voxel_um=UM)
    images = []
    for order in (("psf.tif", "wide.tif"), ("wide.tif", "psf.tif")):
        two = [word for name in order for word in ("--psf", name)]
        assert fuse(*ANGLES, *QUICK, "--overwrite", psf=two) == 0
        images.append(pellucid.open("f.ome.tif").read())
    assert ncc(*images) < 0.999


def test_a_background_above_all_counts_is_said(folder, capsys):
    assert fuse(*ANGLES, *QUICK, "--background", "1e9") == 1
    assert "1e+09 counts were stated, and the brightest voxel has" in capsys.readouterr().err
    assert main(["deconvolve", "a.tif", "--psf", "psf.tif", "--background", "1e9", "-o", "d.tif"]) == 1
    assert "1e+09 counts were stated" in capsys.readouterr().err
    tiled = ["--tile", "32,32,32", "-o", "d.ome.zarr"]
    assert main(["deconvolve", "a.tif", "--psf", "psf.tif", "--background", "1e9", *tiled]) == 1
    assert "1e+09 counts were stated" in capsys.readouterr().err
    assert not [p for p in folder.glob("[df].*") if p.name in ("d.tif", "d.ome.zarr", "f.ome.tif")]


def test_a_voxel_size_that_contradicts_the_files_is_told_once(folder, capsys):
    assert fuse(*ANGLES, "--voxel-um", "2,1,1", "--dry-run") == 0
    assert capsys.readouterr().err.count("warning: voxel size: the file states 1, 1, 1 um") == 1


def test_transforms_of_other_views_are_refused(folder, capsys):
    pellucid.write("cut.tif", recorded().views[1].counts[:, :-4], voxel_um=UM)
    pellucid.write("wide.tif", recorded().views[1].counts, voxel_um=(2.0, 1.0, 1.0))
    assert main(["register", "a.tif", "b.tif", "-o", "t.json", *ANGLES]) == 0
    wanted = ["--transforms", "t.json", "--method", "average"]
    for views, words in (
        (("b.tif", "a.tif"), "in this order"),
        (("a.tif", "cut.tif"), "Register these views"),
        (("a.tif", "wide.tif"), "Register these views"),
    ):
        assert fuse(*wanted, views=views) == 1
        assert words in capsys.readouterr().err
    assert fuse(*wanted, views=("a.tif", "b.tif")) == 0
    said = capsys.readouterr().err
    assert "given        1 of 1" in said
    assert "registered" not in said
