"""A mosaic deconvolved while it is blended: equal to stitching first, and nothing of that on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from microscopy_files import VOXEL_UM, save, save_psf
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.record import read_record
from pellucid.data.recording import open_recording

TILES = ["tiles/t_{y}_{x}.ome.tif", "--overlap", "0,0.12,0.12"]
FIXED = ["--psf", "psf.tif", "--iterations", "4", "--method", "matched"]
CUT = ["--tile", "4,128,128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaic")
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = [
        record(
            STRUCTURES["filaments"], psf.values, (4, 130, 300), peak_photons=300.0,
            background_photons=5.0, camera=Camera(), seed=seed,
        ).counts
        for seed in (5, 6)
    ]  # fmt: skip
    (folder / "tiles").mkdir()
    for r, c in np.ndindex(2, 3):
        y, x = 60 * r + r * c, 92 * c + r
        cut = np.stack([channel[:, y : y + 68, x : x + 104] for channel in seen])
        save(folder / f"tiles/t_{r}_{c}.ome.tif", cut)
    save_psf(folder / "psf.tif")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["stitch", *TILES, "-o", "stitched.ome.zarr"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def image(name, c=0):
    return open_recording(name).read(c=c)


@pytest.mark.parametrize("cut", [[], CUT], ids=["whole", "tiles"])
def test_one_pass_equals_stitching_and_then_deconvolving(cut):
    name = f"{len(cut)}.ome.zarr"
    assert main(["deconvolve", "stitched.ome.zarr", "-o", f"two{name}", *FIXED, *cut]) == 0
    assert main(["stitch", *TILES, "-o", f"one{name}", *FIXED, *cut]) == 0
    for c in range(2):
        two, one = image(f"two{name}", c), image(f"one{name}", c)
        assert np.abs(one - two).max() <= 1e-5 * np.ptp(two)
        assert two.max() > 100
    if cut:
        one, two = (read_record(f"{n}{name}")["statistics"]["volumes"] for n in ("one", "two"))
        assert [v["background"] for v in one] == [v["background"] for v in two]
        assert [v["percentiles"] for v in one] == [v["percentiles"] for v in two]
    assert open_recording(f"one{name}").voxel_um == VOXEL_UM
    beside = {path.name for path in Path.cwd().glob(f"one{len(cut)}*")}
    assert beside == {
        f"one{name}", f"one{name}.pellucid.json", f"one{len(cut)}_positions.json",
        f"one{len(cut)}_positions.json.pellucid.json", f"one{len(cut)}_placement.png",
    }  # fmt: skip
    assert read_record(f"one{name}")["command"] == "deconvolve"
    placed = json.loads(Path(f"one{len(cut)}_positions.json.pellucid.json").read_text())
    assert placed["command"] == "stitch"
    assert sum(link["kept"] for link in placed["statistics"]["placement"]["links"]) >= 5


def test_a_recipe_takes_stitch_and_deconvolve_together_unless_the_image_is_kept(capsys):
    stitch = {"inputs": TILES[0], "overlap": TILES[2]}
    sharpen = {"psf": "psf.tif", "iterations": 4, "method": "matched"}
    for keep in (True, False):
        steps = [{"stitch": stitch, "keep": keep}, {"deconvolve": sharpen}]
        Path(f"{keep}.yaml").write_text(yaml.safe_dump({"folder": f"out_{keep}", "steps": steps}))
        assert main(["run", f"{keep}.yaml"]) == 0
    two, one = (image(f"out_{keep}/deconvolve.ome.zarr") for keep in (True, False))
    assert np.abs(one - two).max() <= 1e-5 * np.ptp(two)
    assert Path("out_True/stitch.ome.zarr").exists()
    assert not Path("out_False/stitch.ome.zarr").exists()
    capsys.readouterr()
    assert main(["plan", "False.yaml", "--resume", "--no-probe"]) == 0
    assert "stitch + deconvolve" in capsys.readouterr().out
    assert main(["run", "False.yaml", "--resume"]) == 0
    assert "stitch + deconvolve is done and unchanged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--iterations", "3"], "PSF"),
        (["--psf", "none.tif"], "none.tif"),
        ([*FIXED, "--tile", "4,10,10"], "tile: expected whole multiples"),
        ([*FIXED, "-o", "tiles/t_0_0.ome.tif", "--overwrite"], "is a tile"),
    ],
)
def test_what_cannot_be_is_said_before_tiles_are_compared(options, sentence, capsys):
    output = [] if "-o" in options else ["-o", "x.ome.zarr"]
    assert main(["stitch", *TILES, *output, *options]) in (1, 2)
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(Path.cwd().glob("x*"))


def test_an_interrupted_mosaic_goes_on_and_other_tiles_are_refused(monkeypatch, capsys):
    from pellucid.stages.deconvolution import tiling_run

    assert main(["stitch", *TILES, "-o", "whole.ome.zarr", *FIXED, *CUT]) == 0
    restored, done = tiling_run.VolumeTask.restored, []

    def stops(self, tile, counts):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(tile.index)
        return restored(self, tile, counts)

    monkeypatch.setattr(tiling_run.VolumeTask, "restored", stops)
    command = ["stitch", "-o", "stopped.ome.zarr", *FIXED, *CUT]
    assert main([*command, *TILES]) == 130
    monkeypatch.setattr(tiling_run.VolumeTask, "restored", restored)
    capsys.readouterr()
    assert main([*command, TILES[0], "--overlap", "0,0.12,0.12", "--gains", "none", "--resume"]) == 1
    assert "stopped_positions.json" in capsys.readouterr().err
    assert main([*command, *TILES, "--resume"]) == 0
    for c in range(2):
        np.testing.assert_array_equal(image("stopped.ome.zarr", c), image("whole.ome.zarr", c))


def test_a_dry_run_says_both(capsys):
    assert main(["stitch", *TILES, "-o", "dry.ome.zarr", *FIXED, *CUT, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "links" in out
    assert "mosaic of 6 tiles" in out
    assert out.count("Nothing was started") == 1
    assert main(["stitch", *TILES, "-o", "dry.ome.zarr", *FIXED, "--dry-run", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"stitch", "deconvolve"}
