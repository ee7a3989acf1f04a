"""`pellucid fuse`: from two series of stacks to one, resumed, and refused in one sentence."""

import json
import os
import signal
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

import pellucid
from pellucid.apps.cli import main
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import filaments
from pellucid.data.record import read_record

WORLD = Grid((32, 32, 32), 1.0)
ANGLES = ["--angles", "0,90"]


@cache
def recorded():
    psf = gaussian((6.0, 3.0, 3.0), (1.0, 1.0, 1.0))
    arms = turned_arms(DUAL_DEG, WORLD, [psf], misplaced=0.5, seed=2)
    return record_views(filaments, WORLD, arms, peak_photons=200, seed=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three time points of two arms, as diSPIM tools write them, and the PSF of both."""
    monkeypatch.chdir(tmp_path)
    for arm, view in zip(("SPIMA", "SPIMB"), recorded().views, strict=True):
        (tmp_path / arm).mkdir()
        for t in range(3):
            pellucid.write(f"{arm}/{arm}_{t}.tif", view.counts + t, voxel_um=(1.0, 1.0, 1.0))
    pellucid.write("psf.tif", recorded().views[0].psf.values.astype(np.float32), voxel_um=(1, 1, 1))
    return tmp_path


def fuse(*options):
    views = ("SPIMA/SPIMA_{t}.tif", "SPIMB/SPIMB_{t}.tif")
    return main(["fuse", *views, *ANGLES, "--psf", "psf.tif", *map(str, options)])


def test_a_series_with_everything_that_belongs_to_it(folder, capsys):
    options = ["--over-time", "once", "--registered-views", "--time", "0:2", "--iterations", 5]
    assert fuse(*options, "-o", "fused.ome.zarr") == 0
    fused = pellucid.open("fused.ome.zarr")
    assert fused.shape[:2] == (2, 1)
    assert fused.voxel_um == (1.0, 1.0, 1.0)
    written = {path.name for path in folder.iterdir()}
    assert {
        "fused_transforms.json", "fused_view1.itk.txt", "fused_max_z.ome.tif", "fused_max_y.ome.tif",
        "fused_max_x.ome.tif", "fused_turning.ome.tif", "fused_view0.ome.zarr",
        "fused_view1.ome.zarr", "fused.ome.zarr.pellucid.json",
    } <= written  # fmt: skip
    assert not [name for name in written if "unfinished" in name or "partial" in name]
    top = pellucid.open("fused_max_z.ome.tif")
    np.testing.assert_allclose(top.read(1)[0], fused.read(1).max(0), rtol=1e-5)
    record = read_record("fused.ome.zarr")
    assert len(record["inputs"]) == 5
    assert {"register", "fuse", "write"} <= set(record["timings_s"])
    assert "registered   1 of 1" in capsys.readouterr().err
    # the transforms are taken again, and give the same volume
    again = ["--transforms", "fused_transforms.json", "--time", "1", "--iterations", 5]
    assert fuse(*again, "--projections", "-o", "again.ome.zarr") == 0
    np.testing.assert_array_equal(pellucid.open("again.ome.zarr").read(), fused.read(1))


def test_two_views_are_better_than_one(folder):
    assert fuse("--time", "0", "--crop", "auto", "-o", "two.ome.tif") == 0
    grid = Grid.from_dict(read_record("two.ome.tif")["statistics"]["world"])
    assert min(grid.shape) <= 46
    # the world of the truth is that of the first view, turned by nothing
    start = np.rint(-np.array(grid.origin_um)).astype(int)
    image = np.pad(pellucid.open("two.ome.tif").read(), 32)
    inner = image[tuple(slice(s + 32, s + 64) for s in start)][4:-4, 4:-4, 4:-4]
    truth = recorded().truth[4:-4, 4:-4, 4:-4]
    alone = pellucid.deconvolve(recorded().views[0].counts, recorded().views[0].psf)
    assert ncc(inner, truth) > ncc(alone[4:-4, 4:-4, 4:-4], truth) + 0.005


def test_a_killed_run_goes_on_to_the_same_series(folder):
    asked = ["--iterations", 3, "--over-time", "once"]
    assert fuse(*asked, "-o", "whole.ome.zarr") == 0
    code = (
        "import os, signal, sys\n"
        "from pellucid.stages.fusion import fusing\n"
        "from pellucid.apps.cli import main\n"
        "done, original = [], fusing.FinishedVolumes.put\n"
        "def put(self, *rest):\n"
        "    original(self, *rest); done.append(1)\n"
        "    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fusing.FinishedVolumes.put = put\n"
        "main(sys.argv[1:])\n"
    )
    words = ["fuse", "SPIMA/SPIMA_{t}.tif", "SPIMB/SPIMB_{t}.tif", *ANGLES, "--psf", "psf.tif",
             *map(str, asked), "-o", "killed.ome.zarr"]  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=os.environ)
    assert ended.returncode == -signal.SIGKILL
    assert not (folder / "killed.ome.zarr").exists()
    assert fuse(*asked, "-o", "killed.ome.zarr") == 1
    assert fuse(*asked, "-o", "killed.ome.zarr", "--resume") == 0
    whole, resumed = pellucid.open("whole.ome.zarr"), pellucid.open("killed.ome.zarr")
    for t in range(3):
        np.testing.assert_array_equal(whole.read(t), resumed.read(t))
    assert read_record("killed.ome.zarr")["statistics"]["resumed_volumes"] == 2
    assert not (folder / "killed.ome.zarr.unfinished").exists()


def test_another_run_is_not_resumed(folder, capsys, monkeypatch):
    def interrupted(*anything):
        raise KeyboardInterrupt

    from pellucid.stages.fusion import fusing

    with monkeypatch.context() as patch:
        patch.setattr(fusing, "write_everything", interrupted)
        assert fuse("--iterations", 1, "--over-time", "once", "-o", "a.ome.zarr") == 130
    options = ["--over-time", "once", "-o", "a.ome.zarr", "--resume"]
    assert fuse("--iterations", 2, *options) == 1
    assert "parameters.iterations was 1, is 2" in capsys.readouterr().err
    pellucid.write("SPIMA/SPIMA_1.tif", recorded().views[0].counts, voxel_um=(1, 1, 1), overwrite=True)
    assert fuse("--iterations", 1, *options) == 1
    assert "SPIMA_1.tif was" in capsys.readouterr().err


def interrupt(monkeypatch, place, name, after):
    """Press Ctrl-C when `place.name` has been called `after` times."""
    original, calls = getattr(place, name), []

    def interrupted(*rest, **options):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(rest)
        return original(*rest, **options)

    monkeypatch.setattr(place, name, interrupted)
    return calls


def test_what_ctrl_c_keeps_is_said_and_goes_on(folder, capsys, monkeypatch):
    from pellucid.stages.fusion import fusing

    asked = ["--iterations", 1, "--over-time", "once", "-o", "a.ome.zarr"]
    with monkeypatch.context() as patch:
        interrupt(patch, fusing, "fuse", 1)
        assert fuse(*asked, "--no-projections") == 130
    assert "1 of 3 volumes are fused and kept; run again with --resume." in capsys.readouterr().err
    assert not (folder / "a.ome.zarr").exists()
    # what is written beside the series may be chosen anew
    assert fuse(*asked, "--resume", "--registered-views", "--dtype", "uint16") == 0
    assert read_record("a.ome.zarr")["statistics"]["resumed_volumes"] == 1
    assert pellucid.open("a.ome.zarr").dtype == np.uint16
    assert pellucid.open("a_max_y.ome.tif").shape[0] == 3
    assert pellucid.open("a_view1.ome.zarr").shape[0] == 3
    # a run that kept nothing says nothing of resuming
    with monkeypatch.context() as patch:
        interrupt(patch, fusing.registering, "register_series", 0)
        assert fuse(*asked[:-1], "b.ome.zarr") == 130
    assert "not finished were removed" in capsys.readouterr().err
    assert not list(folder.glob("b.*"))


def test_registrations_and_written_outputs_survive_ctrl_c_too(folder, monkeypatch):
    from pellucid.stages.fusion import outputs as fuse_outputs
    from pellucid.stages.registration import pair_registration

    asked = ["--iterations", 1, "--time", "0:2", "--model", "rigid", "-o", "a.ome.zarr"]
    with monkeypatch.context() as patch:
        interrupt(patch, pair_registration, "register", 1)
        assert fuse(*asked) == 130
    with monkeypatch.context() as patch:
        calls = interrupt(patch, pair_registration, "register", 99)
        interrupt(patch, fuse_outputs.projecting, "write_pictures", 0)
        assert fuse(*asked, "--resume") == 130
    assert len(calls) == 1
    assert (folder / "a.ome.zarr").exists()
    assert fuse(*asked, "--resume") == 0
    assert read_record("a.ome.zarr")["statistics"]["resumed_volumes"] == 2
    assert not (folder / "a.ome.zarr.unfinished").exists()


def test_what_lies_beside_an_output_is_of_the_same_run(folder, capsys):
    asked = ["--iterations", 1, "--over-time", "none", "--time", "0", "-o", "a.ome.tif"]
    assert fuse(*asked, "--registered-views") == 0
    (folder / "a.ome.tif").unlink()
    assert fuse(*asked) == 1
    assert "exists already" in capsys.readouterr().err
    assert fuse(*asked, "--no-projections", "--overwrite") == 0
    written = {path.name for path in folder.glob("a[._]*")}
    assert written == {
        "a.ome.tif", "a.ome.tif.pellucid.json", "a_transforms.json", "a_view1.itk.txt",
    }  # fmt: skip


def test_one_bad_time_point_stops_nothing(folder, capsys):
    (folder / "SPIMB" / "SPIMB_1.tif").write_bytes(b"II*\0")
    assert fuse("--iterations", 1, "--over-time", "once", "-o", "f.ome.zarr", "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert [failure["volume"] for failure in said["failures"]] == ["t=1 c=channel 0"]
    fused = pellucid.open("f.ome.zarr")
    assert np.isnan(fused.read(1)).all()
    assert np.isfinite(fused.read(2)).all()


def test_a_view_with_nan_is_named(folder, capsys):
    broken = recorded().views[1].counts.astype(np.float32)
    broken[3, 4, 5] = np.nan
    pellucid.write("SPIMB/SPIMB_1.tif", broken, voxel_um=(1, 1, 1), overwrite=True)
    options = ["--iterations", 1, "--over-time", "once", "--time", "0:2", "-o", "f.ome.zarr"]
    assert fuse(*options) == 3
    assert "SPIMB_{t}.tif: 1 of 32768 voxels are NaN" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan(folder, capsys):
    assert fuse("-o", "f.ome.zarr", "--dry-run") == 0
    said = capsys.readouterr().out
    for part in ("3 time points", "32 x 32 x 32 voxels", "memory", "Nothing was started"):
        assert part in said
    assert not (folder / "f.ome.zarr").exists()


def test_what_cannot_be_fused_is_refused_before_work(folder, capsys, monkeypatch):
    def refused(*options):
        code = fuse(*options, "-o", "f.ome.zarr")
        assert not (folder / "f.ome.zarr").exists()
        assert not (folder / "f.ome.zarr.unfinished").exists()
        return code, capsys.readouterr().err

    assert "each of the 2 views" in refused("--angles", "45")[1]
    assert "stage_scan: expected step,angle" in refused("--stage-scan", "1")[1]
    assert "leaves nothing" in refused("--crop", "90:95,:,:")[1]
    assert "3 files for 2 views" in refused("--psf", "psf.tif", "--psf", "psf.tif")[1]
    (folder / "bad.json").write_text("{}")
    pellucid.write("plane.tif", recorded().views[0].counts[3], voxel_um=(1, 1, 1))
    assert main(["fuse", "plane.tif", "plane.tif", *ANGLES, "--psf", "psf.tif", "-o", "f.tif"]) == 1
    assert "plane.tif: holds one plane" in capsys.readouterr().err
    assert "bad.json" in refused("--transforms", "bad.json")[1]
    for stage in ("fusion.planning", "pieces.piece_choice"):
        monkeypatch.setattr(f"pellucid.stages.{stage}.available_bytes", lambda device: 2**20)
    code, said = refused()
    assert code == 1
    assert "1 MiB may be used. Allow more memory" in said
    assert fuse("-o", "f.ome.tif") == 1
    said = capsys.readouterr().err
    assert "1 MiB free. Voxels of" in said
    assert "would fit (--spacing-um)" in said


def test_raw_stage_scans_are_fused_without_deskewing_first(folder):
    raw = np.random.default_rng(0).poisson(20, (10, 16, 18)).astype(np.uint16)
    raw[4:7, 6:10, 7:12] += 100
    pellucid.write("a.tif", raw, voxel_um=(1.0, 1.0, 1.0))
    pellucid.write("b.tif", raw, voxel_um=(1.0, 1.0, 1.0))
    words = ["fuse", "a.tif", "b.tif", "--angles", "0,0", "--stage-scan", "1,45", "--over-time", "none",
             "--psf", "psf.tif", "--iterations", "2", "-o", "scan.ome.tif"]  # fmt: skip
    assert main(words) == 0
    fused = pellucid.open("scan.ome.tif").read()
    assert main(["deskew", "a.tif", "--step-um", "1", "--angle-deg", "45", "--frame", "view",
                 "--dtype", "float32", "--spacing-um", "1,1,1", "-o", "up.tif"]) == 0  # fmt: skip
    upright = pellucid.open("up.tif").read()
    brightest = [np.argwhere(v > 0.6 * v.max()).mean(0) for v in (fused, upright)]
    size = [np.array(v.shape) for v in (fused, upright)]
    assert np.abs((brightest[0] - size[0] / 2) - (brightest[1] - size[1] / 2)).max() < 2


def test_a_file_of_transforms_is_where_registration_starts_and_is_believed_as_it_says(folder, capsys):
    views = ("SPIMA/SPIMA_{t}.tif", "SPIMB/SPIMB_{t}.tif")
    assert main(["register", *views, *ANGLES, "--time", "0", "-o", "found.json"]) == 0
    applied = ["--over-time", "none", "--time", "1", "--method", "average"]
    assert fuse(*applied, "--start", "found.json", "-o", "a.ome.tif") == 0
    found, used = (
        json.loads((folder / name).read_text())["transforms"][1]["world_to_view"]["matrix"]
        for name in ("found.json", "a_transforms.json")
    )
    np.testing.assert_allclose(used, found)
    assert "found.json" in str(read_record("a.ome.tif")["inputs"])
    content = json.loads((folder / "found.json").read_text())
    content["transforms"][1] |= {"how": "failed", "reason": "The views do not agree."}
    (folder / "failed.json").write_text(json.dumps(content))
    for option in ("--start", "--transforms"):
        assert fuse(*applied, option, "failed.json", "-o", "b.ome.tif") == 1
        assert "could be registered. The views do not agree." in capsys.readouterr().err
    assert fuse("--start", "none.json", "-o", "b.ome.tif") == 2
    assert "none.json', which is neither" in capsys.readouterr().err
    assert not (folder / "b.ome.tif").exists()
