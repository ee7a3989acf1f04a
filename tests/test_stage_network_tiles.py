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
from pellucid.core.psf_field import PsfField
from pellucid.data.model_files import read_model, write_model
from pellucid.data.record import read_record
from pellucid.errors import OutputError
from pellucid.stages.deconvolution import tiling_run
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.restoring import plan_restoring
from pellucid.stages.networks.tiles import without_tiles
from pellucid.stages.work.resources import resident_bytes

VOXEL = (0.3, 0.15, 0.15)
PSF = gaussian_psf((3, 3, 3), (1.5, 1.5, 1.5))
RECIPE = {
    "output": "model", "psf": "psf.tif", "steps": 4, "validate_every": 2, "shape": "12,24,24",
    "patch": "8,16,16", "width": 8, "calibration": 2,
}  # fmt: skip


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
    write_model(folder / "model", tensors, card)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def restored(output, *more, raw="raw.ome.zarr"):
    return main(["restore", raw, "--model", "model", "-o", output, *more])


def by_tiles(output, *more):
    return restored(output, "--tile", "12,128,128", *more)


@pytest.mark.parametrize("polish", ["0", "2"])
def test_tiles_equal_the_volume_in_one_piece(folder, polish):
    assert by_tiles("tiled.ome.zarr", "--polish", polish) == 0
    assert restored("whole.ome.zarr", "--polish", polish) == 0
    tiled, whole = (pellucid.open(f"{name}.ome.zarr").read() for name in ("tiled", "whole"))
    error = np.abs(tiled - whole) / np.ptp(whole)
    assert error.max() < 1e-3
    assert np.quantile(error, 0.999) < 1e-4
    said = read_record("tiled.ome.zarr")["statistics"]
    assert (said["tiles"], said["volumes"][0]["iterations"]) == (3, int(polish))
    assert sorted(p.name for p in folder.glob("tiled*")) == [
        "tiled.ome.zarr", "tiled.ome.zarr.pellucid.json",
    ]  # fmt: skip


def test_it_goes_on_to_the_same_bytes_here_and_on_a_cluster(folder, capsys, monkeypatch):
    write, made = tiling_run.RestoredTiles.write, []

    def failing_once(self, key, core):
        made.append(key)
        if len(made) == 2:
            raise OutputError("the storage is gone")
        return write(self, key, core)

    assert by_tiles("straight.ome.zarr") == 0
    with monkeypatch.context() as patch:
        patch.setattr(tiling_run.RestoredTiles, "write", failing_once)
        assert by_tiles("out.ome.zarr") == 1
        assert "go on with --resume" in capsys.readouterr().err
        assert by_tiles("out.ome.zarr") == 1
        assert "Go on with --resume" in capsys.readouterr().err
        assert by_tiles("out.ome.zarr", "--resume", "--polish", "1") == 1
        assert "polish was 'auto', is '1'".replace("'", '"') in capsys.readouterr().err
        assert restored("out.ome.zarr", "--resume") == 0  # finds the tile itself
        assert "3/3 raw.ome.zarr t=0 c=0 tile 2" in capsys.readouterr().err  # counts what was kept
    assert len(made) == 4
    assert by_tiles("shared.ome.zarr", "--cluster", "local:2") == 0
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr") == pixels("shared.ome.zarr")


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
    assert by_tiles("out.ome.zarr", "--fall-back") == 2
    said = capsys.readouterr().err
    assert "Tiles do without --fall-back, which needs a rehearsal on the whole volume" in said
    assert not list(folder.glob("out*"))
    plan = plan_restoring(
        RestoreParameters.checked({"input": "raw.ome.zarr", "model": "model", "output": "out.ome.zarr"})
    )
    assert without_tiles(plan) == ""
    field = PsfField(np.stack([PSF, PSF]), np.array([(0, 0, 0), (0, 0, 9)]), VOXEL)
    parts = {name: getattr(plan, name) for name in ("parameters", "network", "psf")}
    assert "one PSF for all places" in without_tiles(SimpleNamespace(**{**parts, "psf": field}))
    architecture = SimpleNamespace(start="classical")
    network = SimpleNamespace(weights=SimpleNamespace(architecture=architecture))
    assert "classical" in without_tiles(SimpleNamespace(**{**parts, "network": network}))
