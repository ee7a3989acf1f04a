"""`pellucid deskew`: files of any axes stood up, each voxel resampled once."""

import json
import math

import numpy as np
import pytest
import torch

import pellucid
from pellucid.apps.cli import main
from pellucid.core.deskew import StageScan, deskew
from pellucid.data.record import read_record

SCAN = ["--step-um", "0.5", "--angle-deg", "45"]


@pytest.fixture
def recorded(tmp_path):
    """Two time points of two channels, saved with a nominal z that means nothing."""
    counts = np.random.default_rng(0).poisson(50, (2, 2, 9, 12, 14)).astype(np.uint16)
    path = tmp_path / "scan.ome.zarr"
    pellucid.write(path, counts, voxel_um=(1.0, 0.2, 0.2), channels=("a", "b"))
    return path, counts


def test_every_volume_is_what_the_core_makes_of_it(recorded, tmp_path, capsys):
    path, counts = recorded
    target = tmp_path / "up.ome.zarr"
    assert main(["deskew", str(path), *SCAN, "-o", str(target), "--dtype", "float32"]) == 0
    back = pellucid.open(target)
    scan = StageScan(0.5, math.pi / 4, 0.2)
    for t, c in np.ndindex(2, 2):
        expected, grid = deskew(torch.from_numpy(counts[t, c].astype(np.float32)), scan)
        np.testing.assert_array_equal(back.read(t, c), expected.numpy())
    assert back.voxel_um == pytest.approx(grid.spacing_um)
    assert back.channels == ("a", "b")
    record = read_record(target)
    assert record["command"] == "deskew"
    assert record["statistics"]["grid"] == json.loads(json.dumps(grid.to_dict()))
    assert "wrote" in capsys.readouterr().err


def test_counts_stay_counts_and_parts_are_taken(recorded, tmp_path):
    path, counts = recorded
    target = tmp_path / "view.ome.tif"
    options = ["--frame", "view", "--channel", "b", "--time", "1", "--direction", "-1"]
    assert main(["deskew", str(path), *SCAN, *options, "-o", str(target)]) == 0
    back = pellucid.open(target)
    assert back.dtype == np.uint16
    assert back.shape[:2] == (1, 1)
    # in the frame of the view the planes are those of the recording, and the last ends the box
    np.testing.assert_array_equal(back.read()[-1, :, :14], counts[1, 1, -1])


def test_a_dry_run_says_what_would_come(recorded, tmp_path, capsys):
    path, _ = recorded
    target = tmp_path / "up.ome.zarr"
    assert main(["deskew", str(path), *SCAN, "-o", str(target), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "planes 0.3536 um apart, each 1.768 pixels along x" in said
    assert not target.exists()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--step-um", "0", "--angle-deg", "45"], 2, "step_um: expected greater than 0"),
        (["--step-um", "1", "--angle-deg", "135"], 2, "angle_deg: expected less than or equal to 90"),
        ([*SCAN, "--direction", "2"], 2, "direction must be 1 or -1, got 2"),
        ([*SCAN, "--channel", "7"], 2, "'7' is not in scan.ome.zarr"),
    ],
)
def test_bad_geometry_is_refused(recorded, tmp_path, capsys, options, code, sentence):
    path, _ = recorded
    target = tmp_path / "up.ome.zarr"
    assert main(["deskew", str(path), *options, "-o", str(target)]) == code
    assert sentence in capsys.readouterr().err
    assert not target.exists()


def test_what_a_scan_needs(tmp_path, capsys, monkeypatch):
    plane = tmp_path / "plane.npy"
    np.save(plane, np.ones((4, 8, 8), np.uint16))
    target = str(tmp_path / "up.tif")
    assert main(["deskew", str(plane), *SCAN, "-o", target]) == 1
    assert "State it with --pixel-um" in capsys.readouterr().err
    monkeypatch.setattr("pellucid.stages.deskewing.deskewing.available_bytes", lambda device: 1000)
    assert main(["deskew", str(plane), *SCAN, "--pixel-um", "0.2", "-o", target]) == 1
    assert "1000 bytes free. Give coarser voxels" in capsys.readouterr().err


def test_floats_of_any_width_stay_floats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("f64.npy", np.random.default_rng(0).random((10, 12, 12)))
    scan = ["--axes", "zyx", "--step-um", "0.3", "--angle-deg", "45", "--pixel-um", "0.2"]
    assert main(["deskew", "f64.npy", *scan, "-o", "up.ome.zarr"]) == 0
    assert len(np.unique(pellucid.open("up.ome.zarr").read())) > 100


def test_the_input_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pellucid.write("raw.tif", np.ones((10, 12, 12), np.float32), voxel_um=(0.3, 0.2, 0.2))
    scan = ["--step-um", "0.3", "--angle-deg", "45", "--overwrite"]
    assert main(["deskew", "raw.tif", *scan, "-o", "raw.tif"]) == 1
    assert "is an input" in capsys.readouterr().err


def test_options_come_from_a_file_and_the_environment_too(recorded, tmp_path, capsys, monkeypatch):
    path, _ = recorded
    target = str(tmp_path / "up.ome.zarr")
    assert main(["deskew", str(path)]) == 2
    assert "step_um, angle_deg, output: needed, and not given (--step-um --angle-deg --output)" in (
        capsys.readouterr().err
    )
    (tmp_path / "scan.yaml").write_text("step_um: 0.5\nangle_deg: 30\nframe: view\n")
    monkeypatch.setenv("PELLUCID_DESKEW_ANGLE_DEG", "45")
    asked = ["deskew", str(path), "-o", target, "--config", str(tmp_path / "scan.yaml")]
    assert main([*asked, "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "angle_deg: 45.0" in said
    assert "frame: view" in said
    assert main([*asked, "--dry-run"]) == 0


def test_whole_numbers_that_arithmetic_would_change_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(6 * 8 * 8, dtype=np.uint32).reshape(6, 8, 8) + 2**24
    pellucid.write("labels.ome.zarr", labels, voxel_um=(1.0, 0.2, 0.2))
    assert main(["deskew", "labels.ome.zarr", *SCAN, "-o", "up.ome.zarr"]) == 1
    assert "keeps whole numbers only to 16777216. Take --dtype float32" in capsys.readouterr().err
    assert main(["deskew", "labels.ome.zarr", *SCAN, "-o", "up.ome.zarr", "--dtype", "float32"]) == 0
