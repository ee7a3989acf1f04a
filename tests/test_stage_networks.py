"""`pellucid train` and `pellucid restore`, from recipe to map, and what they refuse."""

import json

import numpy as np
import pytest

import pellucid
from microscopes import gaussian_psf, recorded
from pellucid.apps.cli import main

VOXEL = (0.3, 0.15, 0.15)
PSF = gaussian_psf((5, 5, 5), (3.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    pellucid.write(folder / "psf.tif", PSF.astype(np.float32), voxel_um=VOXEL)
    raw = recorded("shells", shape=(12, 32, 32), psf=PSF, seed=5).counts
    pellucid.write(folder / "raw.tif", raw, voxel_um=VOXEL)
    assert main(["train", str(recipe(folder))]) == 0
    return folder


def recipe(folder, **values):
    lines = {
        "output": folder / "model", "psf": folder / "psf.tif", "steps": 4, "validate_every": 2,
        "shape": "12,24,24", "patch": "8,16,16", "width": 8, "calibration": 6, **values,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return path


def test_a_recipe_becomes_a_model_with_a_card(folder):
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["voxel_um"] == pytest.approx(VOXEL)
    assert [row["step"] for row in card["curve"]] == [2, 4]
    assert not (folder / "model.checkpoint").exists()


@pytest.mark.parametrize("polish", ["auto", "0", "2"])
def test_a_recording_is_restored_with_its_record(folder, tmp_path, polish):
    out = tmp_path / "sharp.ome.zarr"
    asked = ["restore", str(folder / "raw.tif"), "--model", str(folder / "model"), "-o", str(out)]
    assert main([*asked, "--polish", polish]) == 0
    image = pellucid.open(out).read()
    assert image.shape == (12, 32, 32)
    assert image.min() >= 0
    assert image.max() > 0
    assert main(asked) == 1


def test_restoring_reads_a_file_of_options_and_the_environment(folder, tmp_path, capsys, monkeypatch):
    config = tmp_path / "restore.yaml"
    config.write_text(f"model: {folder / 'model'}\npolish: '2'\n")
    monkeypatch.setenv("PELLUCID_RESTORE_POLISH", "1")
    asked = ["restore", str(folder / "raw.tif"), "--config", str(config)]
    assert main(asked) == 2
    assert "output: needed, and not given (--output)" in capsys.readouterr().err
    assert main([*asked, "-o", str(tmp_path / "sharp.tif"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == 1


def test_what_does_not_fit_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    out = tmp_path / "out.tif"
    asked = ["restore", str(folder / "raw.tif"), "--model", str(folder / "model"), "-o", str(out)]
    assert main([*asked, "--voxel-um", "1,1,1"]) == 1
    assert "the model is for" in capsys.readouterr().err
    assert main([*asked, "--modality", "confocal"]) == 1
    assert "a model for unknown, asked for confocal" in capsys.readouterr().err
    assert not out.exists()
    assert main(["train", str(recipe(folder))]) == 1
    assert "exists" in capsys.readouterr().err
    other = {"output": tmp_path / "other"}
    assert main(["train", str(recipe(folder, source="pairs", **other))]) == 1
    assert "a truth for each" in capsys.readouterr().err
    assert main(["train", str(recipe(folder, voxel_um="1,1,1", **other))]) == 1
    assert "PSF on the voxels of the images" in capsys.readouterr().err
    (tmp_path / "other.checkpoint").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert main(["train", str(recipe(folder, **other))]) == 1
    assert "truncated" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
