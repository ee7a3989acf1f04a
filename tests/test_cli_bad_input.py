"""Bad input: one sentence with what to do, an exit code, and no output that looks finished."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch

import pellucid
from microscopy_files import recorded, save, save_psf
from pellucid.apps.cli import main
from pellucid.data.record import read_record
from pellucid.data.writer import ImageWriter
from pellucid.errors import OutputError
from pellucid.stages.deconvolution import deconvolve as stage
from pellucid.stages.pieces import piece_choice


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a good recording and PSF."""
    monkeypatch.chdir(tmp_path)
    save("raw.ome.tif")
    save_psf("psf.tif")
    return tmp_path


def refused(capsys, *arguments):
    """Exit code and the sentence of `pellucid deconvolve ...`, having checked that it is one."""
    code = main(["deconvolve", *map(str, arguments)])
    said = capsys.readouterr()
    sentences = [line for line in said.err.splitlines() if line.startswith("pellucid: ")]
    assert len(sentences) == 1
    assert said.out == ""
    assert "Traceback" not in said.err
    return code, sentences[0]


def outputs():
    return sorted(p for p in os.listdir() if p.startswith(("s.", "out")))


def test_truncated_and_empty_files(folder, capsys):
    whole = (folder / "raw.ome.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.tif").write_bytes(b"")
    for name, words in (("cut.tif", "cut.tif"), ("empty.tif", "the file is empty (0 bytes)")):
        code, sentence = refused(capsys, name, "--psf", "psf.tif", "-o", "s.tif")
        assert (code, outputs()) == (1, [])
        assert words in sentence
    code, sentence = refused(capsys, "raw.ome.tif", "--psf", "empty.tif", "-o", "s.tif")
    assert code == 1
    assert "empty.tif" in sentence
    code, sentence = refused(capsys, "row.ome.tif", "--psf", "psf.tif", "-o", "s.tif")
    assert "Did you mean raw.ome.tif?" in sentence


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_volume_that_is_not_finite(folder, capsys, bad):
    image = recorded(dtype=np.float32)
    image[2, 3, 4:7] = bad
    save("bad.ome.tif", image)
    code, sentence = refused(capsys, "bad.ome.tif", "--psf", "psf.tif", "-o", "s.ome.zarr")
    assert (code, outputs()) == (1, [])
    assert "bad.ome.tif t=0 c=0: 3 of 3744 voxels are NaN or infinite" in sentence


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_in_a_series_the_others_go_on(folder, capsys, dtype):
    image = np.stack([recorded(dtype=np.float32, seed=t) for t in range(3)])
    image[1, 0, 0, 0] = np.nan
    save("bad.ome.tif", image[:, None])
    options = ["--psf", "psf.tif", "--iterations", 1, "--dtype", dtype]
    code, sentence = refused(capsys, "bad.ome.tif", *options, "-o", "s.ome.zarr")
    assert code == 3
    assert sentence == "pellucid: 1 of 3 volumes failed:"
    sharp = pellucid.open("s.ome.zarr")
    failed = sharp.read(1)
    assert np.isnan(failed).all() if dtype == "float32" else not failed.any()
    assert sharp.read(2).max() > 100
    volumes = read_record("s.ome.zarr")["statistics"]["volumes"]
    assert ["failed" in v for v in volumes] == [False, True, False]


def test_a_file_that_fails_whole_gets_no_output(folder, capsys):
    save("nan.ome.tif", np.full((6, 24, 26), np.nan, np.float32))
    arguments = ["raw.ome.tif", "nan.ome.tif", "--psf", "psf.tif", "--iterations", 1]
    assert refused(capsys, *arguments, "-o", "out")[0] == 3
    assert sorted(os.listdir("out")) == ["raw.ome.zarr", "raw.ome.zarr.pellucid.json"]
    assert refused(capsys, "nan.ome.tif", "nan*.tif", *arguments[2:], "-o", "out2")[0] == 1


def test_zeros_constants_and_negatives_are_told(folder, capsys):
    image = np.stack(
        [recorded(dtype=np.float32) - 20, np.zeros((6, 24, 26)), np.full((6, 24, 26), 5)]
    )
    save("odd.ome.tif", image[:, None].astype(np.float32))
    arguments = ["odd.ome.tif", "--psf", "psf.tif", "--iterations", "1", "-o", "s.ome.zarr"]
    assert main(["deconvolve", *arguments]) == 0
    said = capsys.readouterr().err
    assert "warning: odd.ome.tif t=2 c=0: every voxel is 5: nothing" in said
    assert "warning: odd.ome.tif t=1 c=0: every voxel is 0: nothing" in said
    first, second, third = read_record("s.ome.zarr")["statistics"]["volumes"]
    assert "voxels are negative" in first["notes"][0]
    for volume in (second, third):
        assert "nothing to deconvolve" in volume["warnings"][0]
    sharp = pellucid.open("s.ome.zarr")
    assert sharp.read(0).any()
    assert not sharp.read(1).any()


def test_saturation_is_told(folder, capsys):
    image = recorded(dtype=np.uint8)
    image[2:4, 8:12, 8:14] = 255
    save("hot.tif", image)
    arguments = ["hot.tif", "--psf", "psf.tif", "--iterations", "1", "-o", "s.tif", "--json"]
    assert main(["deconvolve", *arguments]) == 0
    said = capsys.readouterr()
    assert "1.3% of the voxels are saturated at 255" in said.err
    assert "saturated" in said.out
    assert "saturated" in str(read_record("s.tif")["statistics"]["volumes"])


def test_the_voxel_size_is_never_guessed(folder, capsys):
    tifffile.imwrite("bare.tif", recorded())
    code, sentence = refused(capsys, "bare.tif", "--psf", "psf.tif", "-o", "s.tif")
    assert code == 1
    assert "voxel size is not in the file" in sentence
    assert "--voxel-um" in sentence
    arguments = ["bare.tif", "--psf", "psf.tif", "-o", "s.tif", "--voxel-um", ".3,.1,.1"]
    assert main(["deconvolve", *arguments]) == 0


def test_voxel_sizes_that_disagree_are_reconciled_and_told(folder, capsys):
    save_psf("fine.tif", (0.15, 0.05, 0.05))
    arguments = ["raw.ome.tif", "--psf", "fine.tif", "-o", "s.tif", "--iterations", "1"]
    assert main(["deconvolve", *arguments]) == 0
    said = capsys.readouterr().err
    assert "(0.15, 0.05, 0.05) um in the file, (0.3, 0.1, 0.1) um in the image" in said
    assert "resampled" in said
    psf = read_record("s.tif")["statistics"]["psfs"]["channel 0"]
    np.testing.assert_allclose(psf["fwhm_um"], (0.6, 0.25, 0.25), rtol=0.15)


def test_psfs_that_are_none(folder, capsys):
    save("flat.tif", np.full((7, 9, 9), 3.0, np.float32))
    save("dark.tif", np.zeros((7, 9, 9), np.float32))
    edge = np.zeros((7, 9, 9), np.float32)
    edge[0, :3, :3] = 1
    save("edge.tif", edge)
    plane = pellucid.open("psf.tif").read()[4]
    save("plane.tif", plane)
    for name, words in (("flat", "flat"), ("dark", "only zeros"), ("edge", "at the border in z, y, x"),
                        ("plane", "got one plane")):  # fmt: skip
        code, sentence = refused(capsys, "raw.ome.tif", "--psf", f"{name}.tif", "-o", "s.tif")
        assert code in (1, 2)
        assert words in sentence
        assert f"{name}.tif" in sentence or name == "plane"
    assert outputs() == []


def test_psfs_that_are_odd_but_usable(folder, capsys):
    """Off-centre, with an offset, negative, wider than the image, another dtype: prepared, and said."""
    psf = pellucid.open("psf.tif").read()
    wide = np.zeros((25, 61, 61))
    wide[4 : 4 + psf.shape[0], 20 : 20 + psf.shape[1], 30 : 30 + psf.shape[2]] = psf
    save("odd.tif", np.rint(wide / wide.max() * 4000 + 100).astype(np.uint16))
    arguments = ["raw.ome.tif", "--iterations", "2"]
    assert main(["deconvolve", *arguments, "--psf", "odd.tif", "-o", "s.tif"]) == 0
    said = capsys.readouterr().err
    assert "removed an offset of 100 counts" in said
    assert "moved the centre" in said
    assert main(["deconvolve", *arguments, "--psf", "psf.tif", "-o", "t.tif"]) == 0
    odd, plain = pellucid.open("s.tif").read(), pellucid.open("t.tif").read()
    assert np.corrcoef(odd.ravel(), plain.ravel())[0, 1] > 0.98


def test_no_psf_or_two_or_too_many(folder, capsys):
    end = ["-o", "s.tif"]
    code, sentence = refused(capsys, "raw.ome.tif", "--na", 1.1, *end)
    assert code == 2
    assert "--modality, --wavelength-nm, --refractive-index is missing" in sentence
    code, sentence = refused(capsys, "raw.ome.tif", "--psf", "psf.tif", "--na", 1.1, *end)
    assert "given as a file and by na" in sentence
    code, sentence = refused(capsys, "raw.ome.tif", *["--psf", "psf.tif"] * 3, *end)
    assert "3 files for 1 channels" in sentence


def test_outputs_that_cannot_be(folder, capsys):
    (folder / "s.ome.zarr").mkdir()
    (folder / "s.ome.zarr" / "thesis.txt").write_text("years of work")
    arguments = ["raw.ome.tif", "--psf", "psf.tif", "-o"]
    for out, words in (
        ("s.ome.zarr", "exists already"),
        ("raw.ome.tif", "is an input"),
        ("nowhere/at/all.tif", "Create it first"),
        ("s.png", "suffix chooses the format"),
        ("psf.tif", "is an input"),
    ):
        code, sentence = refused(capsys, *arguments, out)
        assert code == 1
        assert words in sentence
    code, sentence = refused(capsys, *arguments, "psf.tif", "--overwrite")
    assert "is an input" in sentence
    code, sentence = refused(capsys, *arguments, "s.ome.zarr", "--overwrite")
    assert "not an OME-Zarr" in sentence
    assert (folder / "s.ome.zarr" / "thesis.txt").exists()
    code, sentence = refused(capsys, "raw.ome.tif", "psf.tif", *arguments[1:], "s.tif")
    assert "one file for 2 inputs" in sentence
    save("raw.tif")
    code, sentence = refused(capsys, "raw.ome.tif", "raw.tif", *arguments[1:], "out")
    assert "two inputs would both be written there" in sentence


def test_what_does_not_fit_is_refused_with_what_would(folder, capsys, monkeypatch):
    save("large.ome.tif", recorded((4, 256, 256)))
    monkeypatch.setattr(piece_choice, "available_bytes", lambda _: 145 * 2**20)
    code, sentence = refused(capsys, "large.ome.tif", "--psf", "psf.tif", "-o", "s.tif")
    assert (code, outputs()) == (1, [])
    assert "cpu has 145 MiB free. Write float32 OME-Zarr (.ome.zarr), which is made by" in sentence
    assert "take a crop: (4, 128, 128) would fit" in sentence


def test_an_absent_gpu(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["raw.ome.tif", "--psf", "psf.tif", "-o", "s.tif", "--device"]
    code, sentence = refused(capsys, *arguments, "cuda:1")
    assert code == 2
    assert "no usable GPU" in sentence
    assert "expected auto, cpu" in refused(capsys, *arguments, "gpu")[1]


@pytest.mark.parametrize("name", ["s.ome.zarr", "s.tif"])
def test_a_write_that_fails_in_the_middle_leaves_nothing(folder, capsys, monkeypatch, name):
    save("series.ome.tif", np.stack([recorded()] * 3)[:, None])
    write, count = ImageWriter.write, []

    def fails(self, *arguments):
        count.append(1)
        if len(count) == 2 + 1:
            raise OutputError(f"{self.path.name}: the disk is full, the output is not kept.")
        write(self, *arguments)

    monkeypatch.setattr(ImageWriter, "write", fails)
    arguments = ["series.ome.tif", "--psf", "psf.tif", "--iterations", 1, "-o", name]
    code, sentence = refused(capsys, *arguments)
    assert (code, outputs()) == (1, [])
    assert "the disk is full" in sentence


def test_a_full_disk(folder, capsys, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here: it takes an administrator")
    try:
        save("large.ome.tif", recorded((8, 256, 256)))
        out = small / "s.ome.zarr"
        code, sentence = refused(capsys, "large.ome.tif", "--psf", "psf.tif", "-o", out)
        assert (code, os.listdir(small)) == (1, [])
        assert "GiB free. Free some space" in sentence
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_memory_that_runs_out_during_the_work(folder, capsys, monkeypatch):
    save("series.ome.tif", np.stack([recorded()] * 3)[:, None])
    works, calls = stage.deconvolve, []

    def runs_out(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        return works(*arguments, **options)

    monkeypatch.setattr(stage, "deconvolve", runs_out)
    end = ["--psf", "psf.tif", "--iterations", 1, "-o"]
    assert refused(capsys, "series.ome.tif", *end, "s.ome.zarr")[0] == 3
    (failed,) = [
        v["failed"] for v in read_record("s.ome.zarr")["statistics"]["volumes"] if "failed" in v
    ]
    assert "t=1 c=0: out of memory on cpu" in failed
    calls[:] = [1]
    code, sentence = refused(capsys, "raw.ome.tif", *end, "s.tif")
    assert (code, outputs()) == (1, ["s.ome.zarr", "s.ome.zarr.pellucid.json"])
    assert "take a crop" in sentence


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_an_interrupt_in_the_middle_leaves_nothing(folder, capsys, monkeypatch, dtype):
    save("series.ome.tif", np.stack([recorded()] * 3)[:, None])
    works, calls = stage.deconvolve, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return works(*arguments, **options)

    monkeypatch.setattr(stage, "deconvolve", interrupted)
    arguments = ["series.ome.tif", "--psf", "psf.tif", "--iterations", 1, "--dtype", dtype]
    code, sentence = refused(capsys, *arguments, "-o", "s.ome.zarr")
    assert (code, outputs()) == (130, [])
    assert "interrupted" in sentence


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent otherwise on Windows")
def test_an_interrupt_from_the_keyboard(folder):
    save("series.ome.tif", np.stack([recorded()] * 400)[:, None])
    # a shell without job control starts its background jobs deaf to interrupts, and these tests too
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pellucid.apps.cli import main; sys.exit(main())"
    )
    arguments = ["deconvolve", "series.ome.tif", "--psf", "psf.tif", "-o", "s.ome.zarr"]
    run = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--iterations", "10"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("2/400"):
            break
    run.send_signal(signal.SIGINT)
    said = run.stderr.read()
    run.stderr.close()
    assert run.wait(timeout=60) == 130
    assert "interrupted: what is being computed or written is brought to its end first" in said
    assert "pellucid: interrupted" in said
    assert "Traceback" not in said
    time.sleep(0.1)
    assert outputs() == []


def test_debugging_shows_the_traceback(folder, capsys, monkeypatch):
    monkeypatch.setenv("PELLUCID_DEBUG", "1")
    assert main(["info", "nothing.tif"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("pellucid: nothing.tif: no such file")
