"""`pellucid train` and `pellucid restore`, from recipe to map, and what they refuse."""

import json

import numpy as np
import pytest

import pellucid
from microscopes import gaussian_psf, recorded
from pellucid.apps.cli import main
from pellucid.core.psf_field import PsfField
from pellucid.data.psf_field_file import write_psf_field

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
        "shape": "12,24,24", "patch": "8,16,16", "width": 8, "calibration": 4, "passes": 2,
        **values,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return path


def test_a_recipe_becomes_a_model_with_a_card(folder):
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["voxel_um"] == pytest.approx(VOXEL)
    assert [[row["step"] for row in curve] for curve in card["curves"]] == [[0, 2], [0, 2]]
    assert [net["refining"] for net in card["networks"]] == [False, True]
    assert not (folder / "model.checkpoint").exists()


@pytest.mark.parametrize("source", ["teacher", "pairs"])
def test_recordings_become_a_model_that_errs_less_than_its_start_on_others(folder, tmp_path, source):
    names = []
    for seed in (5, 6, 7, 8):
        made = recorded("shells", shape=(16, 64, 64), psf=PSF, seed=seed)
        for name, values in (("raw", made.counts), ("truth", made.truth.astype(np.float32))):
            pellucid.write(tmp_path / f"{name}{seed}.tif", values, voxel_um=VOXEL)
        names.append(seed)
    values = {"recordings": f"[{', '.join(str(tmp_path / f'raw{n}.tif') for n in names)}]"}
    if source == "pairs":
        values["truths"] = f"[{', '.join(str(tmp_path / f'truth{n}.tif') for n in names)}]"
    model = tmp_path / "model"
    asked = recipe(
        folder, source=source, output=model, passes=1, calibration=2, steps=60, validate_every=30,
        patch="16,32,32",
        **values,
    )
    assert main(["train", str(asked)]) == 0
    card = json.loads((model / "card.json").read_text())
    assert card["recipe"]["source"] == source
    # The network still starts from a Wiener step: far from a truth in other units, or of another place.
    assert card["metrics"]["held_out_nrmse"] < 0.5
    # The last of the recordings was not learned from.
    errors = [row["held_out"] for row in card["curves"][0]]
    assert min(errors[1:]) < 0.97 * errors[0]


def test_a_field_of_psfs_trains_a_network_that_knows_where_it_is(folder, tmp_path):
    psfs = np.stack([gaussian_psf((5, 7, 7), (3.0, w, w)) for w in (2.0, 3.0)])
    places = [(0, 0, 0), (0, 0, 47 * VOXEL[2])]
    write_psf_field(tmp_path / "field.npz", PsfField(psfs, np.array(places), VOXEL))
    model = tmp_path / "model"
    asked = recipe(folder, psf=tmp_path / "field.npz", output=model, calibration=2)
    assert main(["train", str(asked)]) == 0
    card = json.loads((model / "card.json").read_text())
    assert card["operator"] == "varying blur"
    assert all(net["positioned"] for net in card["networks"])
    out = tmp_path / "sharp.tif"
    assert main(["restore", str(folder / "raw.tif"), "--model", str(model), "-o", str(out)]) == 0
    assert pellucid.open(out).read().max() > 0


def test_an_interrupted_training_of_two_networks_ends_as_an_uninterrupted_one(folder, monkeypatch):
    from pellucid.stages.networks import training

    values = {"output": folder / "again"}
    write, looks = training.write_tensors, []

    def interrupted(*args):
        write(*args)
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_tensors", interrupted)
        assert main(["train", str(recipe(folder, **values))]) != 0
    assert (folder / "again.checkpoint").exists()
    assert main(["train", str(recipe(folder, **values))]) == 0
    whole, resumed = (
        (folder / name / "weights.safetensors").read_bytes() for name in ("model", "again")
    )
    assert whole == resumed


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
    assert json.loads(capsys.readouterr().out)["volumes"][0]["iterations"] == 1


def test_what_does_not_fit_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    out = tmp_path / "out.tif"
    asked = ["restore", str(folder / "raw.tif"), "--model", str(folder / "model"), "-o", str(out)]
    assert main([*asked, "--voxel-um", "1,1,1"]) == 1
    assert "the model is for" in capsys.readouterr().err
    assert main([*asked, "--modality", "confocal"]) == 1
    assert "a model for unknown, asked for confocal" in capsys.readouterr().err
    plane = tmp_path / "plane.tif"
    pellucid.write(plane, pellucid.open(folder / "raw.tif").read()[5], voxel_um=(1, 0.5, 0.5))
    flat = ["restore", str(plane), "--model", str(folder / "model"), "-o", str(out), "--dry-run"]
    assert main([*flat, "--voxel-um", ",".join(map(str, VOXEL))]) == 1
    assert "model: a model for volumes, and plane.tif holds one plane" in capsys.readouterr().err
    dark = tmp_path / "dark.tif"
    pellucid.write(dark, np.zeros((12, 32, 32), np.uint16), voxel_um=VOXEL)
    asked_dark = ["restore", str(dark), "--model", str(folder / "model"), "-o", str(tmp_path / "d.tif")]
    assert main([*asked_dark, "--verdict", str(tmp_path / "map.tif"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["volumes"][0]
    assert told["believable"] == 1
    assert told["doubtful_regions"] == 0
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
