"""Deconvolution by tiles: equal to the whole, gone on with after any end, refused when it changed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster_runs import pixels
from microscopy_files import VOXEL_UM, save, save_psf
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.record import read_record
from pellucid.data.recording import open_recording
from pellucid.errors import OutputError
from pellucid.stages.pieces.tile_plan import BESIDE_BYTES
from pellucid.stages.work.resources import resident_bytes

SHAPE = (12, 128, 384)
FIXED = ("--iterations", "5", "--method", "matched")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = record(
        STRUCTURES["filaments"], psf.values, SHAPE, peak_photons=300.0, background_photons=5.0,
        camera=Camera(), seed=5,
    )  # fmt: skip
    save(folder / "raw.ome.zarr", seen.counts)
    partly = seen.counts.copy()
    partly[..., 128:] = 100 + np.random.default_rng(1).poisson(5, partly[..., 128:].shape)
    save(folder / "partly.ome.zarr", partly)
    save_psf(folder / "psf.tif")
    return folder


@pytest.fixture
def folder(recordings, tmp_path, monkeypatch):
    shutil.copytree(recordings, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(output, *more, raw="raw.ome.zarr"):
    return ["deconvolve", raw, "--psf", "psf.tif", "-o", output, *more]


def by_tiles(output, *more, **options):
    return main(arguments(output, "--tile", "12,128,128", *more, **options))


def image(name):
    return open_recording(name).read()


def error_of(tiled, whole):
    error = np.abs(tiled - whole) / np.ptp(whole)
    return float(error.max()), float(np.quantile(error, 0.999))


@pytest.mark.parametrize("method", ["matched", "wiener-butterworth"])
def test_tiles_equal_the_volume_in_one_piece(folder, method):
    chosen = ("--iterations", "5" if method == "matched" else "2", "--method", method)
    assert by_tiles("tiled.ome.zarr", *chosen) == main(arguments("whole.ome.zarr", *chosen)) == 0
    largest, high = error_of(image("tiled.ome.zarr"), image("whole.ome.zarr"))
    assert largest < 1e-3
    assert high < 1e-4
    said = read_record("tiled.ome.zarr")["statistics"]
    assert (said["tiles"], said["volumes"][0]["empty"]) == (3, [])
    assert sorted(p.name for p in folder.glob("tiled*")) == [
        "tiled.ome.zarr", "tiled.ome.zarr.pellucid.json",
    ]  # fmt: skip


@pytest.mark.parametrize("chosen", [FIXED, ("--iterations", "2")])
def test_what_was_never_recorded_is_out_of_account_in_every_tile(folder, chosen):
    counts = image("raw.ome.zarr").astype(np.uint16)
    for plane in range(len(counts)):
        counts[plane, :, : 150 - 10 * plane] = 0
    counts[:, 60:, 250:] = 0
    save(folder / "holed.ome.zarr", counts)
    assert by_tiles("tiled.ome.zarr", *chosen, raw="holed.ome.zarr") == 0
    assert main(arguments("whole.ome.zarr", *chosen, raw="holed.ome.zarr")) == 0
    tiled, whole = image("tiled.ome.zarr"), image("whole.ome.zarr")
    largest, high = error_of(tiled, whole)
    assert largest < 1e-3
    assert high < 1e-4
    assert not tiled[counts == 0].any()
    said = read_record("tiled.ome.zarr")["statistics"]["volumes"][0]
    assert (said["fill_value"], said["fill_margin_px"]) == (0, 0)
    assert said["recorded_share"] == pytest.approx((counts > 0).mean())
    assert read_record("whole.ome.zarr")["statistics"]["volumes"][0]["fill"]["value"] == 0
    assert main(arguments("edged.ome.zarr", *chosen, "--fill", "none", raw="holed.ome.zarr")) == 0
    assert "fill" not in read_record("edged.ome.zarr")["statistics"]["volumes"][0]
    assert main(arguments("stated.ome.zarr", *chosen, "--fill", "0", raw="holed.ome.zarr")) == 0
    assert np.array_equal(image("stated.ome.zarr"), whole)
    assert main(arguments("wrong.ome.zarr", *chosen, "--fill", "black", raw="holed.ome.zarr")) == 2


def test_automatic_iterations_are_decided_once_and_recorded(folder):
    assert by_tiles("tiled.ome.zarr") == 0
    volume = read_record("tiled.ome.zarr")["statistics"]["volumes"][0]
    assert volume["tiles_that_ran_away"] == 0
    assert volume["schedule"]["stretches"][-1]["steps"]
    assert volume["percentiles"]["50"] == pytest.approx(float(np.median(image("raw.ome.zarr"))), abs=1)
    sharp, blurred = image("tiled.ome.zarr"), image("raw.ome.zarr").astype(float)
    assert sharp.sum() == pytest.approx((blurred - volume["background"]).sum(), rel=0.1)
    assert sharp.max() > 1.5 * (blurred.max() - volume["background"])


def test_empty_cores_are_skipped_and_become_zeros(folder):
    assert by_tiles("tiled.ome.zarr", *FIXED, raw="partly.ome.zarr") == 0
    volume = read_record("tiled.ome.zarr")["statistics"]["volumes"][0]
    assert volume["empty"] == [1, 2]
    assert volume["dark_block"] > volume["background"]
    tiled = image("tiled.ome.zarr")
    assert tiled[..., 128:].max() == 0 < tiled[..., :128].max()
    assert "0/c/0/0/0/0/0" in pixels("tiled.ome.zarr")
    assert "0/c/0/0/0/0/2" not in pixels("tiled.ome.zarr")


def test_the_memory_that_is_allowed_decides_between_one_piece_and_tiles(folder, capsys):
    assert main(arguments("s.ome.zarr", "--memory", "64GiB", "--dry-run", "--json", *FIXED)) == 0
    whole = json.loads(capsys.readouterr().out)["files"][0]
    assert whole["tiles"] == 1
    less = 0.96 * (whole["peak_bytes"] + whole["host_bytes"] + BESIDE_BYTES)
    memory = str(int(resident_bytes() + less))
    assert main(arguments("s.ome.zarr", "--memory", memory, "--dry-run", "--json", *FIXED)) == 0
    cut = json.loads(capsys.readouterr().out)["files"][0]
    assert cut["tiles"] > 1
    assert cut["peak_bytes"] < less
    assert main(arguments("s.ome.zarr", "--memory", memory, "--dry-run", *FIXED)) == 0
    assert "voxels with halos of" in capsys.readouterr().out
    assert main(arguments("s.ome.zarr", "--memory", "20MiB")) == 1
    assert "Allow more" in capsys.readouterr().err
    assert main(arguments("s.ome.zarr", "--tile", "12,100,100")) == 2
    assert "whole multiples of the output's chunks (12, 128, 128)" in capsys.readouterr().err
    assert main(arguments("s.tif", "--tile", "12,128,128")) == 2
    assert not list(folder.glob("s.*"))


def started(*more):
    command = [sys.executable, "-c", "import sys; from pellucid.apps.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*command, *arguments("killed.ome.zarr", "--tile", "12,128,128", *FIXED, *more)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def listed():
    path = Path("killed.ome.zarr.parts.jsonl")
    return path.read_bytes().count(b" tile ") if path.is_file() else 0


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(folder, capsys):
    run = started()
    while not listed() and run.poll() is None:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    finished = listed()
    assert 1 <= finished < 3
    assert not Path("killed.ome.zarr").exists()
    assert by_tiles("killed.ome.zarr", *FIXED) == 1
    assert "Go on with --resume" in capsys.readouterr().err
    assert by_tiles("killed.ome.zarr", "--resume", "--iterations", "6", "--method", "matched") == 1
    assert "iterations was 5, is 6" in capsys.readouterr().err
    assert main(arguments("killed.ome.zarr", "--resume", *FIXED)) == 0  # finds the tile itself
    assert capsys.readouterr().err.count("raw.ome.zarr t=0 c=0 tile") == 3 - finished
    assert by_tiles("straight.ome.zarr", *FIXED) == 0
    assert pixels("killed.ome.zarr") == pixels("straight.ome.zarr")
    assert not listed()


def test_a_changed_input_is_refused(folder, capsys):
    run = started()
    while not listed() and run.poll() is None:
        time.sleep(0.002)
    run.kill()
    run.communicate()
    save("raw.ome.zarr", image("raw.ome.zarr")[:, :, ::-1], overwrite=True)
    assert by_tiles("killed.ome.zarr", "--resume", *FIXED) == 1
    assert "raw.ome.zarr has changed" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_finished(folder, capsys):
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
        assert by_tiles("killed.ome.zarr", *FIXED) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "go on with --resume" in capsys.readouterr().err
    assert not Path("killed.ome.zarr").exists()
    assert by_tiles("killed.ome.zarr", "--resume", *FIXED) == 0
    assert by_tiles("straight.ome.zarr", *FIXED) == 0
    assert pixels("killed.ome.zarr") == pixels("straight.ome.zarr")


def test_coarser_levels_are_parts_and_gone_on_with(folder, capsys, monkeypatch):
    from pellucid.stages.pieces import pyramid_run

    made = []
    write = pyramid_run.LevelShards.write

    def failing_once(self, key, means):
        made.append(self.part(key))
        if len(made) == 2:
            raise OutputError("the storage is gone")
        return write(self, key, means)

    assert by_tiles("straight.ome.zarr", *FIXED) == 0
    monkeypatch.setattr(pyramid_run.LevelShards, "write", failing_once)
    assert by_tiles("out.ome.zarr", *FIXED) == 1
    assert "go on with --resume" in capsys.readouterr().err
    assert not Path("out.ome.zarr").exists()
    assert by_tiles("out.ome.zarr", *FIXED, "--resume") == 0
    assert len(made) == len(set(made)) + 1  # only what failed was made twice
    assert pixels("straight.ome.zarr") == pixels("out.ome.zarr")


def test_a_run_that_finished_nothing_leaves_nothing(folder, capsys):
    counts = image("raw.ome.zarr").astype(np.float32)
    counts[3, 7, 11] = np.nan
    save("nan.ome.zarr", counts)
    assert main(arguments("out.ome.zarr", "--tile", "12,128,128", *FIXED, raw="nan.ome.zarr")) == 1
    said = capsys.readouterr().err
    assert "NaN" in said
    assert "--resume" not in said
    assert not list(folder.glob("out*"))
