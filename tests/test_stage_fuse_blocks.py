"""Fusion by blocks through the command: equal to the whole, gone on with after any end, or refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pellucid
from cluster_runs import COMMAND, pixels
from pellucid.apps.cli import main
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import filaments
from pellucid.core.transform_field import TransformField, control_points
from pellucid.core.transform_series import SeriesRegistration, ViewTransform, first_view
from pellucid.data.record import read_record
from pellucid.data.transform_file import read_transforms, write_transforms
from pellucid.errors import InputError
from pellucid.stages.fusion import registration as fuse_registration
from pellucid.stages.fusion.blocks import FusedBlocks
from pellucid.stages.pieces.tile_plan import BESIDE_BYTES
from pellucid.stages.registration import coarse_views
from pellucid.stages.work.resources import resident_bytes

SHAPE = (12, 16, 200)
STILL = ("--angles", "0,90", "--over-time", "none")
TILE = ("--tile", "64,128,128")
MATCHED = ("--iterations", "4")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two arms, two time points each, their PSF, and transforms with a field."""
    folder = tmp_path_factory.mktemp("views")
    world = Grid(SHAPE, 1.0)
    psf = gaussian((3.0, 1.6, 1.6), (1.0, 1.0, 1.0))
    arms = turned_arms(DUAL_DEG, world, [psf], misplaced=0.5, seed=2)
    seen = record_views(filaments, world, arms, peak_photons=200, seed=4)
    for name, view in zip("ab", seen.views, strict=True):
        both = np.stack([view.counts, view.counts + 3])[:, None]
        pellucid.write(folder / f"{name}.ome.zarr", both, voxel_um=(1.0, 1.0, 1.0))
    values = psf.values.astype(np.float32)
    pellucid.write(folder / "psf.tif", values, voxel_um=(1, 1, 1))
    place = seen.views[1].world_to_view.with_frames(source="world", target="view 1")
    knots = control_points(Grid((200, 16, 200), 1.0, (-94.0, 0.0, 0.0), "world"), (3, 1, 3))
    rng = np.random.default_rng(3)
    field = TransformField(place, knots, rng.uniform(-1.5, 1.5, (*knots.shape, 3)))
    transforms = [
        one
        for t in (0, 1)
        for one in (first_view(t), ViewTransform(t, 1, place, "given", field=field))
    ]
    series = SeriesRegistration((0, 1), 2, tuple(transforms))
    write_transforms(folder / "field.json", series, [Grid(SHAPE, 1.0)] * 2, ["a", "b"], {})
    return folder


@pytest.fixture
def folder(recordings, tmp_path, monkeypatch):
    shutil.copytree(recordings, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(output, *more, known=STILL):
    return ["fuse", "a.ome.zarr", "b.ome.zarr", *known, "--psf", "psf.tif", "--no-projections",
            "-o", output, *more]  # fmt: skip


def fuse(output, *more, **options):
    return main(words(output, *more, **options))


def image(name, t=0):
    return pellucid.open(name).read(t)


def error_of(blocks, whole):
    error = np.abs(blocks - whole) / np.ptp(whole)
    return float(error.max()), float(np.quantile(error, 0.999))


@pytest.mark.parametrize(
    ("known", "how"),
    [
        (STILL, MATCHED),
        (("--transforms", "field.json"), MATCHED),
        (STILL, ("--method", "average")),
        (("--transforms", "field.json"), ("--method", "content-average")),
    ],
    ids=["joint", "joint through a field", "average", "content-average"],
)
def test_blocks_equal_the_volume_in_one_piece(folder, known, how):
    asked = ("--time", "0", *how)
    assert fuse("whole.ome.zarr", *asked, known=known) == 0
    assert fuse("blocks.ome.zarr", *asked, *TILE, known=known) == 0
    blocks, whole = image("blocks.ome.zarr"), image("whole.ome.zarr")
    assert blocks.shape == whole.shape
    largest, high = error_of(blocks, whole)
    assert largest < 1e-3
    assert high < 1e-4
    said = read_record("blocks.ome.zarr")["statistics"]
    assert said["tiles"] == 8
    assert said["halo_share"] > 0 or "average" in how
    assert said["volumes"][0]["views"][1]["brightness"] == pytest.approx(1, abs=0.1)
    assert sorted(p.name for p in folder.glob("blocks*")) == [
        "blocks.ome.zarr", "blocks.ome.zarr.pellucid.json", "blocks_transforms.json",
        "blocks_view1.itk.txt",
    ]  # fmt: skip


def test_borders_of_blocks_are_not_seen(folder):
    assert fuse("blocks.ome.zarr", "--time", "0", *MATCHED, *TILE) == 0
    core = np.array(read_record("blocks.ome.zarr")["statistics"]["core_zyx"])
    volume = image("blocks.ome.zarr")
    for axis in (0, 2):
        steps = np.abs(np.diff(volume, axis=axis))
        means = steps.mean(tuple({0, 1, 2} - {axis}))
        border = core[axis] - 1
        near = np.r_[means[border - 6 : border], means[border + 1 : border + 7]]
        assert near.min() < means[border] < near.max()


def test_the_memory_that_is_allowed_decides_between_one_piece_and_blocks(folder, capsys):
    for name in "ab":  # nothing of it is read
        counts = np.ones((12, 16, 700), np.uint16)
        pellucid.write(f"{name}.ome.zarr", counts, voxel_um=(1.0, 1.0, 1.0), overwrite=True)
    shown = ("--time", "0", "--dry-run", "--json", *MATCHED)
    assert fuse("s.ome.zarr", "--memory", "64GiB", *shown) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["tiles"] == 1
    less = 0.6 * (whole["peak_bytes"] + BESIDE_BYTES)
    memory = ("--memory", str(int(resident_bytes() + less)))
    assert fuse("s.ome.zarr", *memory, *shown) == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["tiles"] > 1
    assert cut["peak_bytes"] < less
    assert fuse("s.ome.zarr", *memory, "--time", "0", "--dry-run", *MATCHED) == 0
    assert "blocks       " in capsys.readouterr().out

    def refused(*more, known=STILL, output="s.ome.zarr"):
        code = fuse(output, "--time", "0", *more, known=known)
        assert not list(folder.glob("s.*"))
        return code, capsys.readouterr().err

    enough = ("--memory", str(resident_bytes() + BESIDE_BYTES + 2**20))
    code, said = refused(*enough, *MATCHED)
    assert code == 1
    assert "the smallest, a core of" in said
    code, said = refused(*memory, "--method", "resample-then-joint", *MATCHED)
    assert code == 1
    assert "would fit (--spacing-um)" in said
    assert "Blocks are for the methods joint" in said
    assert "name a .ome.zarr" in refused(*memory, *MATCHED, output="s.tif")[1]
    code, said = refused(*TILE, *MATCHED, "--registered-views")
    assert code == 2
    assert "do without --registered-views" in said
    assert refused(*MATCHED, "--tile", "64,16,64")[0] == 2


def started(output, *more):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words(output, *MATCHED, *TILE, *more)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def listed(output):
    path = Path(f"{output}.parts.jsonl")
    return path.read_text().count(" block ") if path.is_file() else 0


def test_killed_it_goes_on_to_the_same_bytes_and_a_cluster_makes_them_too(folder, capsys):
    run = started("killed.ome.zarr")
    while listed("killed.ome.zarr") < 3 and run.poll() is None:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not Path("killed.ome.zarr").exists()
    asked = (*MATCHED, *TILE)
    assert fuse("killed.ome.zarr", *asked) == 1
    assert "Go on with --resume" in capsys.readouterr().err
    assert fuse("killed.ome.zarr", "--iterations", "3", *TILE, "--resume") == 1
    assert "iterations was 4, is 3" in capsys.readouterr().err
    # the size of blocks is that of the run that is gone on with
    assert fuse("killed.ome.zarr", *MATCHED, "--resume") == 0
    statistics = read_record("killed.ome.zarr")["statistics"]
    assert 3 <= statistics["resumed_tiles"] < 16
    assert [volume["t"] for volume in statistics["volumes"]] == [0, 1]
    run = started("many.ome.zarr", "--cluster", "local:2")
    assert run.communicate()[1] is not None
    assert run.returncode == 0
    assert fuse("straight.ome.zarr", *asked) == 0
    straight = pixels("straight.ome.zarr")
    assert len(straight) > 8
    assert pixels("killed.ome.zarr") == straight
    assert pixels("many.ome.zarr") == straight
    assert not list(folder.glob("*.parts.jsonl*"))


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A pair of views that register, larger than a block, and the map between them."""
    folder = tmp_path_factory.mktemp("turned")
    world = Grid((72, 40, 72), 1.0)
    psf = gaussian((3.0, 1.6, 1.6), (1.0, 1.0, 1.0))
    arms = turned_arms(DUAL_DEG, world, [psf], misplaced=0.5, seed=2)
    seen = record_views(filaments, world, arms, peak_photons=300, seed=4)
    for name, view in zip("ab", seen.views, strict=True):
        pellucid.write(folder / f"{name}.ome.zarr", view.counts, voxel_um=(1.0, 1.0, 1.0))
    pellucid.write(folder / "psf.tif", psf.values.astype(np.float32), voxel_um=(1, 1, 1))
    first, second = (view.world_to_view for view in seen.views)
    return folder, (second @ first.inverse()).with_frames(source="world", target="view 1")


@pytest.mark.parametrize("averaged", [False, True], ids=["as they are", "on few voxels"])
def test_blocks_register_their_views_in_the_same_command(turned, tmp_path, monkeypatch, averaged):
    shutil.copytree(turned[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if averaged:
        monkeypatch.setattr(coarse_views, "COARSE_VOXELS", 60_000)
    asked = ("--angles", "0,90", "--model", "rigid")
    assert fuse("blocks.ome.zarr", *MATCHED, *TILE, known=asked) == 0
    (found,) = (t for t in read_transforms(Path("blocks_transforms.json")).transforms if t.view == 1)
    assert found.how == "registered"
    corners = Grid((72, 40, 72), 1.0).corners_um()
    off = found.world_to_view.apply(corners) - turned[1].apply(corners)
    assert np.abs(off).max() < 0.5
    assert read_record("blocks.ome.zarr")["timings_s"]["register"] > 0
    Path("blocks_transforms.json").rename("found.json")
    assert fuse("whole.ome.zarr", *MATCHED, known=("--transforms", "found.json")) == 0
    largest, high = error_of(image("blocks.ome.zarr"), image("whole.ome.zarr"))
    assert largest < 1e-3
    assert high < 1e-4
    # few voxels or all of them: the same place, and the same picture
    assert fuse("once.ome.zarr", *MATCHED, known=asked) == 0
    whole, once = image("blocks.ome.zarr"), image("once.ome.zarr")
    assert whole.shape == once.shape
    assert ncc(whole, once) > 0.99


def test_one_block_decides_the_iterations_of_all(turned, tmp_path, monkeypatch, capsys):
    shutil.copytree(turned[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert fuse("open.ome.zarr", *TILE) == 0
    (facts,) = read_record("open.ome.zarr")["statistics"]["volumes"]
    count = facts["iterations"]
    assert 4 < count < 40
    assert 0 <= facts["decided_on_block"] < 4
    assert f"iterations   {count}, decided on a block" in capsys.readouterr().err
    assert fuse("stated.ome.zarr", "--iterations", str(count), *TILE) == 0
    np.testing.assert_array_equal(image("open.ome.zarr"), image("stated.ome.zarr"))
    assert "iterations  " not in capsys.readouterr().err


def test_a_block_of_whole_chunks_stays_one_where_registration_makes_the_result_larger(
    turned, tmp_path, monkeypatch, capsys
):
    shutil.copytree(turned[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    asked = ("--angles", "0,90", "--model", "rigid", "--tile", "64,40,72")
    assert fuse("cut.ome.zarr", "--method", "average", known=asked) == 0
    assert min(np.array(image("cut.ome.zarr").shape) - (72, 40, 72)) > 0
    assert read_record("cut.ome.zarr")["statistics"]["tiles"] == 2


def test_what_was_registered_is_kept_for_the_run_that_goes_on(turned, tmp_path, monkeypatch, capsys):
    shutil.copytree(turned[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # all of it is narrower than the nominal angles have it
    asked = ("--angles", "0,90", "--model", "rigid", "--cover", "overlap")
    made = FusedBlocks.compute

    def cut_short(self, key, read):
        if key[2] > 0:
            raise InputError("b.ome.zarr: a chunk cannot be read.")
        return made(self, key, read)

    with monkeypatch.context() as some:
        some.setattr(FusedBlocks, "compute", cut_short)
        assert fuse("kept.ome.zarr", *MATCHED, *TILE, known=asked) == 1
        assert "go on with --resume" in capsys.readouterr().err
    with monkeypatch.context() as some:
        some.setattr(fuse_registration, "register_series", None)
        assert fuse("kept.ome.zarr", *MATCHED, "--resume", known=asked) == 0
    assert "blocks were finished before" in capsys.readouterr().err
    assert read_record("kept.ome.zarr")["statistics"]["resumed_tiles"] >= 1
    assert fuse("straight.ome.zarr", *MATCHED, *TILE, known=asked) == 0
    np.testing.assert_array_equal(image("kept.ome.zarr"), image("straight.ome.zarr"))


def test_a_place_that_is_not_known_is_named(folder, capsys):
    content = json.loads((folder / "field.json").read_text())
    content["transforms"][3] |= {"how": "failed", "reason": "The views do not agree."}
    (folder / "partly.json").write_text(json.dumps(content))
    assert fuse("s.ome.zarr", *MATCHED, *TILE, known=("--transforms", "partly.json")) == 1
    assert "b.ome.zarr t=1: not registered. The views do not agree. Leave" in capsys.readouterr().err
    assert not list(folder.glob("s.*"))
