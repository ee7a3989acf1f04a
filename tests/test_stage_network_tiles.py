"""`pellucid restore` by tiles and in series: equal to the whole, gone on with, or refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import pellucid
from cluster_runs import pixels
from microscopes import gaussian_psf, recorded
from pellucid.apps.cli import main
from pellucid.core.deconvolution import blur_of
from pellucid.core.psf_field import PsfField
from pellucid.core.tiling import Tiling
from pellucid.data.model_files import read_model, write_model
from pellucid.data.psf_field_file import write_psf_field
from pellucid.data.record import read_record
from pellucid.errors import OutputError
from pellucid.networks.structures import Light, simulate
from pellucid.stages.deconvolution import tiling_run
from pellucid.stages.networks import judging
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.planning import plan_restoring, without_tiles
from pellucid.stages.work.resources import resident_bytes

VOXEL = (0.3, 0.15, 0.15)
PSF = gaussian_psf((3, 3, 3), (1.5, 1.5, 1.5))
RECIPE = {
    "output": "model", "psf": "psf.tif", "steps": 4, "validate_every": 2, "shape": "12,24,24",
    "patch": "8,16,16", "width": 8, "calibration": 2,
}  # fmt: skip
TRUST = {"weights": (0.5, 0.5), "bias": 0.0, "spread": 0.3, "limit": 0.6, "detail": 0.0}
"""As of a network that was taught for long: after a few steps all is wrong, and nothing is to be told."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    pellucid.write(folder / "psf.tif", PSF.astype(np.float32), voxel_um=VOXEL)
    raw = recorded("shells", shape=(12, 128, 384), psf=PSF, seed=5).counts
    pellucid.write(folder / "raw.ome.zarr", raw, voxel_um=VOXEL)
    series = raw[:, :64, :256].reshape(12, 64, 2, 2, 64).transpose(2, 3, 0, 1, 4)
    pellucid.write(folder / "series.ome.zarr", np.ascontiguousarray(series), voxel_um=VOXEL)
    recipe = folder / "recipe.yaml"
    paths = {"output": folder / "taught", "psf": folder / "psf.tif"}
    recipe.write_text("".join(f"{k}: {v}\n" for k, v in {**RECIPE, **paths}.items()))
    assert main(["train", str(recipe)]) == 0
    # a network that says as much as one that was taught for long
    tensors, card = read_model(folder / "taught")
    rng = np.random.default_rng(0)
    tail = tensors["net0.tail.weight"]
    tail += 0.05 * tail.new_tensor(rng.normal(size=tail.shape))
    write_model(folder / "model", tensors, {**card, "trust": TRUST})
    widths = ((1.5, 1.5, 1.5), (1.5, 2.0, 2.5), (1.5, 1.5, 3.0))
    psfs = np.stack([gaussian_psf((3, 5, 7), w) for w in widths])
    places = np.array([(0, 0, x * VOXEL[2]) for x in (0, 192, 383)])
    field = PsfField(psfs, places, VOXEL)
    write_psf_field(folder / "field.npz", field)
    blurred = recorded_by(blur_of(field, (12, 128, 384)), "shells", 5)
    pellucid.write(folder / "varying.ome.zarr", blurred, voxel_um=VOXEL)
    paths |= {"output": folder / "taught-there", "psf": folder / "field.npz"}
    recipe.write_text("".join(f"{k}: {v}\n" for k, v in {**RECIPE, **paths}.items()))
    assert main(["train", str(recipe)]) == 0
    tensors, card = read_model(folder / "taught-there")
    write_model(folder / "positioned", tensors, {**card, "trust": TRUST})
    return folder


def recorded_by(operator, kind, seed):
    """Counts of a camera with an offset."""
    light = Light((100.0, 100.0), (5.0, 5.0))
    photons = simulate((operator,), kind, seed, light).problem.observations[0].image
    return (100 + 2 * photons.numpy()).round().astype(np.uint16)


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def restored(output, *more, raw="raw.ome.zarr", model="model"):
    return main(["restore", raw, "--model", model, "-o", output, *more])


def by_tiles(output, *more, **what):
    return restored(output, "--tile", "12,128,128", *more, **what)


def off(tiled, whole):
    """Largest difference of two outputs, and that of all but a thousandth, relative to the range."""
    one, other = (pellucid.open(name).read() for name in (tiled, whole))
    error = np.abs(one - other) / np.ptp(other)
    return error.max(), np.quantile(error, 0.999)


def believable(name):
    return pellucid.open(name).read()


@pytest.mark.parametrize("polish", ["0", "2"])
def test_tiles_equal_the_volume_in_one_piece(folder, polish):
    assert by_tiles("tiled.ome.zarr", "--polish", polish) == 0
    assert restored("whole.ome.zarr", "--polish", polish) == 0
    largest, most = off("tiled.ome.zarr", "whole.ome.zarr")
    assert largest < 2e-3  # features in bfloat16 share out the start
    assert most < 5e-4
    said = read_record("tiled.ome.zarr")["statistics"]
    assert (said["tiles"], said["volumes"][0]["iterations"]) == (3, int(polish))
    assert sorted(p.name for p in folder.glob("tiled*")) == [
        "tiled.ome.zarr", "tiled.ome.zarr.pellucid.json",
    ]  # fmt: skip


def test_tiles_of_a_field_are_restored_by_the_blur_of_their_place(folder):
    what = {"raw": "varying.ome.zarr", "model": "positioned"}
    assert by_tiles("tiled.ome.zarr", "--polish", "2", **what) == 0
    assert restored("whole.ome.zarr", "--polish", "2", **what) == 0
    assert max(off("tiled.ome.zarr", "whole.ome.zarr")) < 1e-3
    assert read_record("tiled.ome.zarr")["statistics"]["tiles"] == 3


@pytest.mark.parametrize("what", [{}, {"raw": "varying.ome.zarr", "model": "positioned"}])
def test_verdict_and_cure_of_tiles_are_those_of_the_whole(folder, what):
    judged = ("--polish", "0", "--fall-back", "--verdict")
    assert by_tiles("tiled.ome.zarr", *judged, "tiled-map.ome.zarr", **what) == 0
    assert restored("whole.ome.zarr", *judged, "whole-map.ome.zarr", **what) == 0
    maps = [believable(f"{name}-map.ome.zarr") for name in ("tiled", "whole")]
    assert np.abs(maps[0] - maps[1]).max() < 0.25  # rehearsals draw their noise tile by tile
    assert np.abs(maps[0] - maps[1]).mean() < 0.03
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.98
    assert maps[1].std() > 0.01
    tiled, whole = (read_record(f"{n}.ome.zarr")["statistics"]["volumes"][0] for n in ("tiled", "whole"))
    assert tiled["network_share"] == pytest.approx(whole["network_share"], abs=0.1)
    assert tiled["believable"] == pytest.approx(maps[0].mean(), abs=1e-3)
    assert off("tiled.ome.zarr", "whole.ome.zarr")[1] < 0.1  # the classical solution repeats a schedule
    assert read_record("tiled-map.ome.zarr")["command"] == "restore"


def test_verdict_and_image_go_on_here_and_on_a_cluster_and_look_finished_together(folder, monkeypatch):
    raw = pellucid.open("raw.ome.zarr").read()[:, :, :256]
    pellucid.write("two.ome.zarr", raw, voxel_um=VOXEL)
    asked, two = ("--polish", "auto", "--verdict"), {"raw": "two.ome.zarr"}
    assert by_tiles("straight.ome.zarr", *asked, "straight-map.ome.zarr", **two) == 0
    shared = ("shared-map.ome.zarr", "--cluster", "local:2")
    assert by_tiles("shared.ome.zarr", *asked, *shared, **two) == 0
    for place, after in ((judging.JudgedTiles, 1), (tiling_run.RestoredTiles, 2), (judging.MappedTiles, 2)):
        write, made = place.write, []

        def failing(self, key, core, write=write, made=made, after=after):
            made.append(key)
            if len(made) == after:
                raise OutputError("the storage is gone")
            return write(self, key, core)

        with monkeypatch.context() as patch:
            patch.setattr(place, "write", failing)
            assert by_tiles("out.ome.zarr", *asked, "map.ome.zarr", "--resume", **two) == 1
        assert not (folder / "out.ome.zarr").exists()
        assert not (folder / "map.ome.zarr").exists()
    assert by_tiles("out.ome.zarr", *asked, "map.ome.zarr", "--resume", **two) == 0
    assert sorted(p.name for p in folder.glob("*.par*")) == []
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr") == pixels("shared.ome.zarr")
    assert pixels("map.ome.zarr") == pixels("straight-map.ome.zarr") == pixels("shared-map.ome.zarr")


def test_regions_belong_to_the_tile_in_which_they_begin():
    shape = (20, 70, 132)  # the last region of x reaches over the border between two cores
    tiling = Tiling(shape, (8, 64, 128), (16, 16, 16), (1, 1, 1), 0)
    boxes = [box for tile in tiling if (box := judging.regions_of(tile, shape)) is not None]
    taken = np.zeros(shape, int)
    for box in boxes:
        taken[box] += 1
    assert (taken == 1).all()
    assert len(boxes) == 2 < len(tiling) == 12
    assert boxes[0] == (slice(0, 8), slice(0, 70), slice(0, 132))


def test_it_goes_on_to_the_same_bytes(folder, capsys, monkeypatch):
    write, made = tiling_run.RestoredTiles.write, []

    def failing_once(self, key, core):
        made.append(key)
        if len(made) == 2:
            raise OutputError("the storage is gone")
        return write(self, key, core)

    auto = ("--polish", "auto")
    assert by_tiles("straight.ome.zarr", *auto) == 0
    with monkeypatch.context() as patch:
        patch.setattr(tiling_run.RestoredTiles, "write", failing_once)
        assert by_tiles("out.ome.zarr", *auto) == 1
        assert "go on with --resume" in capsys.readouterr().err
        assert by_tiles("out.ome.zarr", *auto) == 1
        assert "Go on with --resume" in capsys.readouterr().err
        assert by_tiles("out.ome.zarr", "--resume", "--polish", "1") == 1
        assert "polish was 'auto', is '1'".replace("'", '"') in capsys.readouterr().err
        assert restored("out.ome.zarr", "--resume", *auto) == 0  # finds the tile itself
        assert "3/3 raw.ome.zarr t=0 c=0 tile 2" in capsys.readouterr().err  # counts what was kept
    assert len(made) == 4
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")


def test_a_series_is_restored_time_by_time_and_channel_by_channel(folder, capsys):
    assert restored("all.ome.zarr", "--json", raw="series.ome.zarr") == 0
    said = json.loads(capsys.readouterr().out)["volumes"]
    assert [(one["t"], one["c"]) for one in said] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert restored("one.ome.zarr", "--time", "1", "--channel", "0", raw="series.ome.zarr") == 0
    every, one = pellucid.open("all.ome.zarr"), pellucid.open("one.ome.zarr")
    assert every.shape[:2] == (2, 2)
    assert one.shape[:2] == (1, 1)
    assert np.array_equal(one.read(0, 0), every.read(1, 0))
    assert not np.array_equal(one.read(0, 0), every.read(0, 0))
    assert restored("none.ome.zarr", "--time", "2", raw="series.ome.zarr") == 2
    assert "expected 0 to 1" in capsys.readouterr().err


def test_a_time_point_that_cannot_be_read_becomes_nan_and_the_series_goes_on(folder, capsys):
    counts = np.stack([pellucid.open("series.ome.zarr").read(t, 0) for t in (0, 1, 1)]).astype(np.float32)
    counts[1, 5, 3, 2] = np.nan
    counts[2] = 7.0
    pellucid.write("bad.ome.zarr", counts[:, None], voxel_um=VOXEL)
    assert restored("out.ome.zarr", "--verdict", "map.ome.zarr", raw="bad.ome.zarr") == 3
    said = capsys.readouterr().err
    assert "1 of 3 volumes failed" in said
    assert "in plane 5" in said
    assert "nothing to deconvolve" in said
    assert "2 volumes in " in said
    for name, rest in (("out.ome.zarr", 0), ("map.ome.zarr", 1)):
        made = pellucid.open(name)
        assert np.isfinite(made.read(0, 0)).all()
        assert np.isnan(made.read(1, 0)).all()
        assert (made.read(2, 0) == rest).all()
    volumes = read_record("out.ome.zarr")["statistics"]["volumes"]
    assert ["failed" in one for one in volumes] == [False, True, False]
    assert restored("none.ome.zarr", "--time", "1", raw="bad.ome.zarr") == 1
    assert not list(folder.glob("none*"))


def test_a_dry_run_tells_the_plan_and_starts_nothing(folder, capsys):
    asked = ("--dry-run", "--verdict", "map.ome.zarr", "--fall-back", "--memory", "8GiB")
    assert by_tiles("out.ome.zarr", *asked) == 0
    said = capsys.readouterr().out
    assert "polish       0, falls back" in said
    assert "to be used" in said
    assert "at the peak of a tile" in said
    assert "3 a volume, cores of 12 x 128 x 128" in said
    assert "map.ome.zarr" in said
    assert restored("out.ome.zarr", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["volumes"], plan["files"][0]["tiles"]) == (1, 1)
    assert plan["files"][0]["output_bytes"] == 4 * 12 * 128 * 384
    assert not list(folder.glob("out*"))


def test_what_is_finished_is_not_gone_on_with_and_not_confused_with_another_run(folder, capsys):
    assert restored("out.ome.zarr", "--polish", "0") == 0
    assert restored("out.ome.zarr", "--polish", "0", "--resume") == 0
    assert "out.ome.zarr: is finished" in capsys.readouterr().err
    assert by_tiles("out.ome.zarr", "--polish", "0", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    assert restored("out.ome.zarr", "--polish", "1", "--resume") == 1
    assert "made otherwise" in capsys.readouterr().err
    raw = pellucid.open("raw.ome.zarr").read() + 1
    pellucid.write("raw.ome.zarr", raw, voxel_um=VOXEL, overwrite=True)
    assert restored("out.ome.zarr", "--polish", "0", "--resume") == 1
    assert "raw.ome.zarr has changed" in capsys.readouterr().err


def test_a_volume_without_light_is_zeros_and_was_not_polished(folder, capsys):
    dark = np.full((12, 128, 128), 100, np.uint16)
    pellucid.write("dark.ome.zarr", dark, voxel_um=VOXEL)
    assert restored("out.ome.zarr", "--tile", "12,128,128", raw="dark.ome.zarr") == 0
    assert "dark.ome.zarr t=0 c=0: 0 physical iterations" in capsys.readouterr().err
    assert not pellucid.open("out.ome.zarr").read().any()


def test_polish_is_a_number_in_yaml(folder):
    (folder / "how.yaml").write_text("polish: 1\n")
    assert restored("out.ome.zarr", "--config", "how.yaml") == 0
    assert read_record("out.ome.zarr")["statistics"]["volumes"][0]["iterations"] == 1


def test_the_memory_that_is_allowed_decides_between_one_piece_and_tiles(folder, capsys):
    asked = {"input": "raw.ome.zarr", "model": "model", "output": "out.ome.zarr", "polish": "0"}
    whole = plan_restoring(RestoreParameters.checked({**asked, "memory": "64GiB"}))
    assert whole.tiles is None
    less = int(0.9 * whole.peak_bytes) + 130 * 2**20
    memory = str(resident_bytes() + less)
    cut = plan_restoring(RestoreParameters.checked({**asked, "memory": memory}))
    assert len(cut.tiles.tiling) == cut.steps > 1
    assert cut.peak_bytes < less
    assert cut.tiles.tiling.step == (4, 4, 4)
    assert restored("out.tif", "--memory", memory) == 1
    assert "name a .ome.zarr output, or take a crop" in capsys.readouterr().err
    assert not list(folder.glob("out*"))


def test_what_needs_the_whole_is_refused_in_one_sentence_before_work_starts(folder, capsys):
    assert by_tiles("out.ome.zarr", "--verdict", "out.tif") == 2
    assert "name a .ome.zarr output" in capsys.readouterr().err
    assert restored("out.ome.zarr", "--memory", str(resident_bytes() + 150 * 2**20)) == 1
    assert "train a narrower network" in capsys.readouterr().err
    assert not list(folder.glob("out*"))
    plan = plan_restoring(
        RestoreParameters.checked({"input": "raw.ome.zarr", "model": "model", "output": "out.ome.zarr"})
    )
    assert without_tiles(plan) == ""
    parts = {name: getattr(plan, name) for name in ("parameters", "network", "psf")}
    architecture = SimpleNamespace(start="classical")
    network = SimpleNamespace(weights=SimpleNamespace(architecture=architecture))
    assert "classical" in without_tiles(SimpleNamespace(**{**parts, "network": network}))


def test_a_map_that_exists_is_refused_before_the_tiles_are_made(folder, capsys):
    pellucid.write("map.ome.zarr", np.ones((4, 4, 4), np.float32), voxel_um=VOXEL)
    before = pixels("map.ome.zarr")
    assert by_tiles("out.ome.zarr", "--verdict", "map.ome.zarr") == 1
    assert "map.ome.zarr: exists already" in capsys.readouterr().err
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    assert by_tiles("out.ome.zarr", "--verdict", "other/map.ome.zarr", "--dry-run") == 0
    (folder / "other").rename("other.ome.zarr")
    assert by_tiles("out.ome.zarr", "--verdict", "other.ome.zarr", "--overwrite") == 1
    assert "other.ome.zarr: a folder that is not an OME-Zarr" in capsys.readouterr().err
    assert by_tiles("out.ome.zarr", "--verdict", "nowhere/map.ome.zarr") == 1
    assert not list(folder.glob("out*"))
    assert pixels("map.ome.zarr") == before
