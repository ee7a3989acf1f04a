"""Failure: refused before the work where it can be known, and nothing that looks finished after."""

import errno
import os
import subprocess
from collections import namedtuple

import numpy as np
import pytest

from pellucid.data import ome_zarr_writer, tiff_writer, writer
from pellucid.data.output import create_output
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, OutputError, PlanError

NAMES = ["a.ome.zarr", "a.ome.tif", "a.tif"]
IMAGE = ImageDescription((1, 2, 3, 8, 9), "float32", (0.3, 0.1, 0.1))
VOLUME = np.ones((3, 8, 9), np.float32)


def write_all(path, value=1.0, **options):
    with create_output(path, IMAGE, **options) as out:
        out.write(0, 0, VOLUME * value)
        out.write(0, 1, VOLUME * value)


def stop_in_the_middle(path, stop, **options):
    with create_output(path, IMAGE, **options) as out:
        out.write(0, 0, VOLUME)
        assert (path.parent / (path.name + ".partial")).exists()
        raise stop


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupt_in_the_middle_leaves_nothing(tmp_path, name, stop):
    with pytest.raises(stop):
        stop_in_the_middle(tmp_path / name, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_keeps_what_was_to_be_replaced(tmp_path, name):
    write_all(tmp_path / name, 7.0)
    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle(tmp_path / name, KeyboardInterrupt, overwrite=True)
    assert open_recording(tmp_path / name).read().max() == 7.0
    write_all(tmp_path / name, 8.0, overwrite=True)
    assert open_recording(tmp_path / name).read().max() == 8.0
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_missing_voxels_are_no_output(tmp_path, name):
    with (
        pytest.raises(OutputError, match="216 of 432 voxels were never written"),
        create_output(tmp_path / name, IMAGE) as out,
    ):
        out.write(0, 0, VOLUME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_leaves_a_partial_that_is_refused_and_replaced(tmp_path, name):
    out = create_output(tmp_path / name, IMAGE)
    out.__enter__()
    out.write(0, 0, VOLUME)
    left = tmp_path / (name + ".partial")
    assert left.exists()
    with pytest.raises(InputError, match="unfinished output"):
        open_recording(left)
    if left.is_dir():
        renamed = left.rename(tmp_path / "looks_finished.zarr")
        with pytest.raises(InputError, match="did not finish"):
            open_recording(renamed)
    else:
        out._file.close()
    write_all(tmp_path / name)
    assert not left.exists()
    assert open_recording(tmp_path / name).read().max() == 1.0


def test_refused_before_any_work(tmp_path):
    write_all(tmp_path / "a.tif")
    before = (tmp_path / "a.tif").read_bytes()
    with pytest.raises(OutputError, match=r"exists already.*overwrite"):
        create_output(tmp_path / "a.tif", IMAGE)
    assert (tmp_path / "a.tif").read_bytes() == before
    with pytest.raises(OutputError, match=r"suffix chooses.*\.ome\.zarr, \.ome\.tif or \.tif"):
        create_output(tmp_path / "a.jpg", IMAGE)
    with pytest.raises(OutputError, match=r"does not exist\. Create it first"):
        create_output(tmp_path / "nowhere" / "a.tif", IMAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_overwriting_never_deletes_a_folder_of_other_things(tmp_path):
    folder = tmp_path / "thesis.zarr"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not an OME-Zarr"):
        create_output(folder, IMAGE, overwrite=True)
    assert (folder / "chapter1.txt").exists()


def test_an_unwritable_folder(tmp_path, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Permissions do not bind the administrator, whom tests may run as.
    monkeypatch.setattr(writer.tempfile, "TemporaryFile", denied)
    with pytest.raises(OutputError, match=r"cannot write into this folder \(Permission denied\)"):
        create_output(tmp_path / "a.tif", IMAGE)


@pytest.mark.parametrize("name", NAMES)
def test_too_little_space_is_known_before(tmp_path, monkeypatch, name):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(PlanError, match=r"GiB free\. Free some space"):
        create_output(tmp_path / name, IMAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "module", "method"),
    [
        ("a.ome.zarr", ome_zarr_writer.StoredLevel, "_means"),
        ("a.ome.zarr", ome_zarr_writer.OmeZarrWriter, "_write_root"),
        ("a.ome.tif", tiff_writer.TiffWriter, "_write_at"),
    ],
)
def test_a_disk_that_fills_in_the_middle(tmp_path, monkeypatch, name, module, method):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, method, full)
    image = ImageDescription((1, 1, 1, 300, 300), "float32")
    with (
        pytest.raises(OutputError, match="the disk is full, the output is not kept"),
        create_output(tmp_path / name, image) as out,
    ):
        out.write(0, 0, np.ones((1, 300, 300), np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_really_full(small_disk, name, monkeypatch):
    """Others write to the disk, too: the space that was free at the start is gone."""
    monkeypatch.setattr(writer, "check_free_space", lambda folder, needed: None)
    noise = np.random.default_rng(0).random((4, 400, 400), dtype=np.float32)
    image = ImageDescription((1, 1, 4, 400, 400), "float32")
    (small_disk / "other").write_bytes(b"x" * 2**20)
    with (
        pytest.raises(OutputError, match="the disk is full"),
        create_output(small_disk / name, image) as out,
    ):
        out.write(0, 0, noise)
    assert [p.name for p in small_disk.iterdir()] == ["other"]


def test_writing_outside(tmp_path):
    out = create_output(tmp_path / "a.tif", IMAGE)
    with pytest.raises(OutputError, match="write inside `with"):
        out.write(0, 0, VOLUME)
    wrong = [
        (0, 0, VOLUME[0], 0), (0, 2, VOLUME, 0), (1, 0, VOLUME, 0), (0, 0, VOLUME, 1),
        (-1, 0, VOLUME, 0), (0, 0, VOLUME, -1),
    ]  # fmt: skip
    for t, c, block, z0 in wrong:
        with pytest.raises(OutputError, match="block inside"), out:
            out.write(t, c, block, z0)
