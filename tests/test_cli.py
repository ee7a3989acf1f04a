"""The command line: what it takes, prints and writes, and how fast it says so."""

import json
import subprocess
import sys

import numpy as np
import pytest

import pellucid
from microscopy_files import VOXEL_UM, recorded, save, save_psf
from pellucid.apps.cli import main
from pellucid.apps.terminal import Progress
from pellucid.data.record import read_record
from pellucid.stages.work.events import TileDone

COMMANDS = [
    [],
    ["deconvolve"],
    ["info"],
    ["measure"],
    ["demo"],
    ["register"],
    ["psf"],
    ["psf", "inspect"],
    ["psf", "make"],
    ["psf", "field"],
    ["psf", "beads"],
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def deconvolve(*arguments):
    return main(["deconvolve", *map(str, arguments)])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command, capsys):
    assert main([*command, "--help"]) == 0
    assert f"Usage: pellucid {' '.join(command)}".strip() in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys; from pellucid.apps.cli import main; code = main(['deconvolve', '--help']); "
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules; sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"--iterations" in run.stdout


@pytest.mark.parametrize("name", ["raw.tif", "raw.ome.tif", "raw.ome.zarr"])
def test_file_in_file_out_with_scale_and_record(folder, capsys, name):
    save(name)
    psf = save_psf("psf.tif")
    out = name.replace("raw", "sharp")
    assert deconvolve(name, "--psf", psf, "-o", out, "--iterations", 3) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "1/1" in said.err
    assert f"wrote {out}" in said.err
    sharp = pellucid.open(out)
    assert sharp.dtype == np.float32
    np.testing.assert_allclose(sharp.voxel_um, VOXEL_UM, rtol=1e-6)
    expected = pellucid.deconvolve(recorded(), pellucid.open(psf).read(), iterations=3)
    np.testing.assert_allclose(sharp.read(), expected, rtol=1e-3, atol=0.05)
    record = read_record(out)
    assert record["parameters"]["iterations"] == 3
    assert [i["checksum"][:8] for i in record["inputs"]] == ["blake2b:"] * 2
    assert set(record["timings_s"]) == {"read", "deconvolve", "write"}
    assert record["statistics"]["volumes"][0]["background"] == pytest.approx(20, abs=3)
    assert record["statistics"]["psfs"]["channel 0"]["notes"][0] == "from psf.tif"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_plane_takes_the_focal_plane(folder, dtype):
    save("raw.ome.tif", recorded((24, 26), dtype))
    assert deconvolve("raw.ome.tif", "--psf", save_psf("psf.tif"), "-o", "s.tif") == 0
    assert pellucid.open("s.tif").shape == (1, 1, 1, 24, 26)


def test_optics_in_place_of_a_psf(folder, capsys):
    save("raw.ome.tif", recorded((2, 6, 24, 26)))
    optics = "--modality confocal --na 1.2 --refractive-index 1.33 --wavelength-nm 525,600"
    rest = "--excitation-nm 488,561 --iterations 2 --psf-shape 5,9,9 -o s.ome.zarr"
    assert deconvolve("raw.ome.tif", *optics.split(), *rest.split()) == 0
    psfs = read_record("s.ome.zarr")["statistics"]["psfs"]
    assert "525 nm" in str(psfs["channel 0"])
    assert "600 nm" in str(psfs["channel 1"])


def test_channels_and_times_are_chosen_and_named(folder):
    image = np.stack([recorded((3, 6, 24, 26), seed=t) for t in range(4)])
    save("raw.ome.zarr", image, channels=("DAPI", "GFP", "RFP"), time_step_s=2.0)
    psfs = ["--psf", save_psf("a.tif"), "--psf", save_psf("b.tif")]
    chosen = ["--time", "0:4:2", "--channel", "RFP,DAPI"]
    assert deconvolve("raw.ome.zarr", *psfs, *chosen, "-o", "s.ome.zarr", "--iterations", 1) == 0
    sharp = pellucid.open("s.ome.zarr")
    assert sharp.shape == (2, 2, 6, 24, 26)
    assert sharp.channels == ("RFP", "DAPI")
    assert sharp.time_step_s == 4.0
    psf = pellucid.open("a.tif").read()
    expected = pellucid.deconvolve(image[2, 0], psf, iterations=1)
    np.testing.assert_allclose(sharp.read(1, 1), expected, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("inputs", [["raws"], ["raws/*.tif"], ["raws/a.tif", "raws/b.tif"]])
def test_many_files_go_into_a_folder(folder, inputs):
    (folder / "raws").mkdir()
    for number, name in enumerate("ab"):
        save(f"raws/{name}.tif", recorded(seed=number))
    options = ["--psf", save_psf("psf.tif"), "--iterations", 1, "--format", "imagej-tiff"]
    assert deconvolve(*inputs, *options, "-o", "out") == 0
    written = sorted(p.name for p in (folder / "out").glob("*.tif"))
    assert written == ["a.tif", "b.tif"]
    assert pellucid.open("out/b.tif").read().max() > 0


def test_a_dry_run_plans_and_starts_nothing(folder, capsys):
    save("raw.ome.tif")
    arguments = ["raw.ome.tif", "--psf", save_psf("psf.tif"), "-o", "s.ome.zarr", "--dry-run"]
    before = sorted(folder.iterdir())
    assert deconvolve(*arguments) == 0
    said = capsys.readouterr().out
    for part in ("z 6, y 24, x 26", "0.3, 0.1, 0.1 um", "at the peak of a volume", "tiles        1",
                 "wiener-butterworth: cutoff", "Nothing was started"):  # fmt: skip
        assert part in said
    assert deconvolve(*arguments, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["files"][0]["output_shape_tczyx"] == [1, 1, 6, 24, 26]
    assert plan["files"][0]["peak_bytes"] > 6 * 24 * 26 * 4
    assert plan["files"][0]["psfs"]["channel 0"]["back_projector"]["largest_product"] > 0
    assert sorted(folder.iterdir()) == before


def test_json_is_all_there_is_on_stdout(folder, capsys):
    save("raw.ome.tif")
    assert deconvolve("raw.ome.tif", "--psf", save_psf("psf.tif"), "-o", "s.tif", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["outputs"] == ["s.tif"]
    assert said.err == ""


def test_the_printed_configuration_repeats_the_run(folder, capsys):
    save("raw.ome.tif")
    arguments = ["raw.ome.tif", "--psf", save_psf("psf.tif"), "-o", "s.tif", "--iterations", 2]
    assert deconvolve(*arguments, "--method", "matched", "--print-config") == 0
    (folder / "c.yaml").write_text(capsys.readouterr().out)
    assert not (folder / "s.tif").exists()
    assert deconvolve("--config", "c.yaml", "-o", "t.tif") == 0
    assert read_record("t.tif")["parameters"]["method"] == "matched"


def test_uint16_keeps_its_scale(folder):
    image = np.stack([recorded(), recorded(seed=1) // 4])
    save("raw.ome.tif", image[:, None])
    both = ["raw.ome.tif", "--psf", save_psf("psf.tif"), "--iterations", 2]
    assert deconvolve(*both, "-o", "f.ome.zarr") == 0
    assert deconvolve(*both, "-o", "i.ome.zarr", "--dtype", "uint16") == 0
    statistics = read_record("i.ome.zarr")["statistics"]
    assert statistics["clipped_voxels"] == 0
    floats, integers = pellucid.open("f.ome.zarr"), pellucid.open("i.ome.zarr")
    assert integers.dtype == np.uint16
    for t in range(2):
        back = integers.read(t) / statistics["integer_scale"]
        np.testing.assert_allclose(back, floats.read(t), atol=1 / statistics["integer_scale"])


def test_versions_of_ome_zarr(folder):
    save("raw.ome.tif")
    arguments = ["raw.ome.tif", "--psf", save_psf("psf.tif"), "--iterations", 1]
    assert deconvolve(*arguments, "-o", "a.ome.zarr", "--ome-zarr", "0.4") == 0
    assert (folder / "a.ome.zarr" / ".zattrs").is_file()
    assert deconvolve(*arguments, "-o", "b.ome.zarr") == 0
    assert (folder / "b.ome.zarr" / "zarr.json").is_file()


def test_a_report_stands_alone(folder):
    save("raw.ome.tif")
    psf = save_psf("psf.tif")
    assert deconvolve("raw.ome.tif", "--psf", psf, "-o", "s.ome.zarr", "--report") == 0
    page = (folder / "s.ome.zarr.report.html").read_text()
    assert page.count("data:image/png;base64,") >= 1
    assert "held-out photons" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_info_and_measure(folder, capsys):
    save("raw.ome.tif", recorded((2, 6, 32, 32)), channels=("DAPI", "GFP"))
    assert main(["info", "raw.ome.tif"]) == 0
    said = capsys.readouterr().out
    assert "c 2, z 6, y 32, x 32, uint16" in said
    assert "DAPI, GFP" in said
    assert main(["info", "raw.ome.tif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape_tczyx"] == [1, 2, 6, 32, 32]
    assert main(["measure", "raw.ome.tif"]) == 0
    assert "GFP" in capsys.readouterr().out
    assert main(["measure", "raw.ome.tif", "--channel", "GFP", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["background"]["level"] == pytest.approx(20, abs=2)


def test_psfs_are_made_and_inspected(folder, capsys):
    optics = "--modality widefield --na 1.1 --wavelength-nm 525 --refractive-index 1.33"
    arguments = ["psf", "make", *optics.split(), "--psf-shape", "9,15,15"]
    assert main([*arguments, "--voxel-um", "0.3,0.1,0.1", "-o", "psf.tif"]) == 0
    assert "wrote psf.tif" in capsys.readouterr().err
    np.testing.assert_allclose(pellucid.open("psf.tif").voxel_um, VOXEL_UM, rtol=1e-6)
    assert main(["psf", "inspect", "psf.tif", "--picture", "psf.png"]) == 0
    said = capsys.readouterr().out
    assert "9 x 15 x 15 voxels, 0.3, 0.1, 0.1 um each" in said
    assert "otf-masked-wiener" in said
    assert (folder / "psf.png").read_bytes()[:4] == b"\x89PNG"
    save("flat.tif", pellucid.open("psf.tif").read()[4])
    assert main(["psf", "inspect", "flat.tif", "--picture", "flat.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape_zyx"] == [1, 15, 15]
    assert main([*arguments, "-o", "b.tif"]) == 2
    assert "--voxel-um z,y,x" in capsys.readouterr().err


def test_psfs_are_distilled_from_beads(folder, capsys):
    image = np.full((16, 60, 60), 10.0)
    z, y, x = np.indices(image.shape)
    for centre in ((8, 15, 15), (8, 15, 45), (8, 45, 30)):
        radius = ((z - centre[0]) / 1.5) ** 2 + ((y - centre[1]) ** 2 + (x - centre[2]) ** 2) / 2.0
        image += 400 * np.exp(-radius / 2)
    save("beads.tif", np.random.default_rng(0).poisson(image).astype(np.uint16))
    assert main(["psf", "beads", "beads.tif", "-o", "psf.tif"]) == 0
    said = capsys.readouterr().out
    assert "3 beads used, 0 left out" in said
    assert "±" in said
    assert read_record("psf.tif")["statistics"]["beads"]["rejected"] == []
    assert main(["psf", "beads", "beads.tif", "-o", "psf.tif"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_typo_is_answered(folder, capsys):
    assert deconvolve("raw.tif", "--iteratons", 3, "-o", "s.tif") == 2
    said = capsys.readouterr().err
    assert "Did you mean --iterations?" in said
    assert len(said.strip().splitlines()) == 1
    assert main(["deconvole"]) == 2
    assert deconvolve("raw.tif", "--method", "rl", "-o", "s.tif") == 2
    assert "wiener-butterworth" in capsys.readouterr().err


def test_progress_counts_the_blocks_that_registration_added(capsys):
    with Progress(2, quiet=False) as progress:
        for number in (1, 2, 3):
            progress(TileDone(number, 3, 1.0, f"block {number}"))
    counts = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["1/3", "2/3", "3/3"]
