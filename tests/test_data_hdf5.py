"""BigDataViewer's HDF5 and N5, and Imaris: pixels, micrometres, channels, views, and what is refused."""

import json
from xml.sax.saxutils import escape

import numpy as np
import pytest

from bdv_files import write_n5
from microscopy_files import save_psf
from pellucid.apps.cli import main
from pellucid.data.inputs import find_inputs
from pellucid.data.recording import open_recording, open_recordings
from pellucid.errors import InputError

h5py = pytest.importorskip("h5py")

SHAPE = (6, 10, 14)
SETUPS = [(angle, channel) for angle in (0, 90) for channel in (0, 1)]


def counts(t, setup, dtype="uint16"):
    """Bright enough that signed 16-bit numbers would be negative; different everywhere."""
    volume = 40000 + np.arange(np.prod(SHAPE)).reshape(SHAPE) + 1000 * setup + 5000 * t
    return volume.astype(dtype)


def describe(path, loader, times='<Timepoints type="range"><first>0</first><last>1</last></Timepoints>'):
    setups = "".join(
        f"<ViewSetup><id>{i}</id><name>{escape(f'{angle} deg, channel {channel}')}</name>"
        "<size>14 10 6</size><voxelSize><unit>µm</unit><size>0.2 0.3 1.5</size></voxelSize>"
        f"<attributes><illumination>0</illumination><channel>{channel}</channel><tile>0</tile>"
        f"<angle>{angle}</angle></attributes></ViewSetup>"
        for i, (angle, channel) in enumerate(SETUPS)
    )
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><SpimData version="0.2"><SequenceDescription>{loader}'
        f"<ViewSetups>{setups}</ViewSetups>{times}</SequenceDescription></SpimData>",
        encoding="utf-8",
    )


HDF5_LOADER = '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">data.h5</hdf5></ImageLoader>'
N5_LOADER = '<ImageLoader format="bdv.n5"><n5 type="relative">data.n5</n5></ImageLoader>'


@pytest.fixture
def hdf5(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for t in range(2):
            for setup in range(4):
                file.create_dataset(
                    f"t{t:05d}/s{setup:02d}/0/cells", data=counts(t, setup).view("int16"),
                    chunks=(4, 8, 8), compression="gzip",
                )  # fmt: skip
    describe(tmp_path / "data.xml", HDF5_LOADER)
    return tmp_path


@pytest.fixture
def n5(tmp_path):
    for t in range(2):
        for setup in range(4):
            write_n5(tmp_path / f"data.n5/setup{setup}/timepoint{t}/s0", counts(t, setup))
    (tmp_path / "data.n5/attributes.json").write_text('{"n5": "2.5.0"}')
    describe(tmp_path / "data.xml", N5_LOADER)
    return tmp_path


@pytest.mark.parametrize("form", ["hdf5", "n5"])
@pytest.mark.parametrize("opened", ["data.xml", "the pixels"])
def test_a_view_of_bigdataviewer_has_its_channels_times_and_voxel_size(form, opened, request):
    folder = request.getfixturevalue(form)
    name = opened if opened == "data.xml" else {"hdf5": "data.h5", "n5": "data.n5"}[form]
    recording = open_recording(folder / name, image=1)
    assert recording.shape == (2, 2, *SHAPE)
    assert recording.dtype == np.uint16
    assert recording.voxel_um == (1.5, 0.3, 0.2)
    assert recording.channels == ("90 deg, channel 0", "90 deg, channel 1")
    for t, c in np.ndindex(2, 2):
        np.testing.assert_array_equal(recording.read(t, c), counts(t, 2 + c))
    block = recording.read(1, 0, slice(2, 6), slice(3, 7), slice(5, 14))
    np.testing.assert_array_equal(block, counts(1, 2)[2:6, 3:7, 5:14])
    with pytest.raises(InputError, match=r"holds 2 views .*0: angle 0.*image=0"):
        open_recording(folder / name)
    with pytest.raises(InputError, match="no view 2"):
        open_recording(folder / name, image=2)


@pytest.mark.parametrize("form", ["hdf5", "n5"])
def test_a_folder_with_a_dataset_is_one_recording(form, request):
    folder = request.getfixturevalue(form)
    assert len(find_inputs(folder)) == len(open_recordings(folder, image=0)) == 1


@pytest.mark.parametrize(
    ("points", "times"),
    [
        ('<Timepoints type="pattern"><integerpattern>0-2:2, 5</integerpattern></Timepoints>', [0, 2, 5]),
        ('<Timepoints type="list"><Timepoint><id>1</id></Timepoint></Timepoints>', [1]),
    ],
)
def test_time_points_are_those_that_the_xml_names(tmp_path, points, times):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for t in times:
            for setup in range(2):
                file[f"t{t:05d}/s{setup:02d}/0/cells"] = counts(t, setup).view("int16")
    describe(tmp_path / "data.xml", HDF5_LOADER, points)
    recording = open_recording(tmp_path / "data.xml", image=0)
    assert recording.shape[0] == len(times)
    np.testing.assert_array_equal(recording.read(len(times) - 1, 1), counts(times[-1], 1))


def test_what_is_missing_or_unknown_is_refused(hdf5):
    with h5py.File(hdf5 / "data.h5", "r+") as file:
        del file["t00001/s01/0/cells"]
    with pytest.raises(InputError, match="time point 1, channel 1 is not there"):
        open_recording(hdf5 / "data.xml", image=0)
    (hdf5 / "data.h5").rename(hdf5 / "other.h5")
    with pytest.raises(InputError, match=r"names data\.h5, which is not there"):
        open_recording(hdf5 / "data.xml", image=0)
    with pytest.raises(InputError, match=r"other\.xml there"):
        open_recording(hdf5 / "other.h5")
    describe(hdf5 / "data.xml", '<ImageLoader format="spimreconstruction.filemap2"/>')
    with pytest.raises(InputError, match="Resave the dataset as HDF5 or N5"):
        open_recording(hdf5 / "data.xml", image=0)
    (hdf5 / "data.xml").write_text("<a/>")
    with pytest.raises(InputError, match="names no image loader"):
        open_recording(hdf5 / "data.xml")
    (hdf5 / "cut.h5").write_bytes((hdf5 / "other.h5").read_bytes()[:900])
    with pytest.raises(InputError, match="not a complete HDF5 file"):
        open_recording(hdf5 / "cut.h5")
    with h5py.File(hdf5 / "plain.h5", "w") as file:
        file["image"] = counts(0, 0)
    with pytest.raises(InputError, match="neither BigDataViewer nor Imaris"):
        open_recording(hdf5 / "plain.h5")


def test_an_n5_array_alone(tmp_path):
    write_n5(tmp_path / "one.n5", counts(0, 1))
    recording = open_recording(tmp_path / "one.n5", voxel_um=(1.0, 0.5, 0.5))
    np.testing.assert_array_equal(recording.read(), counts(0, 1))
    with pytest.raises(InputError, match="voxel size is not in the file"):
        open_recording(tmp_path / "one.n5").require_voxel_um()


def letters(text):
    return np.frombuffer(str(text).encode(), "S1")


def test_imaris_without_its_padding(tmp_path):
    padded = np.zeros((8, 16, 16), np.uint16)
    with h5py.File(tmp_path / "cells.ims", "w") as file:
        about = file.create_group("DataSetInfo/Image").attrs
        for axis, size, low, high, i in (
            ("X", 14, 10, 12.8, 0), ("Y", 10, -3, 0, 1), ("Z", 6, 0, 9, 2),
        ):  # fmt: skip
            about[axis], about[f"ExtMin{i}"], about[f"ExtMax{i}"] = map(letters, (size, low, high))
        about["Unit"] = letters("um")
        for c, name in enumerate(("DAPI", "GFP")):
            file.create_group(f"DataSetInfo/Channel {c}").attrs["Name"] = letters(name)
            for t in range(2):
                padded[:6, :10, :14] = counts(t, c)
                file[f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}/Data"] = padded
    recording = open_recording(tmp_path / "cells.ims")
    assert recording.shape == (2, 2, *SHAPE)
    assert recording.channels == ("DAPI", "GFP")
    assert recording.voxel_um == pytest.approx((1.5, 0.3, 0.2))
    np.testing.assert_array_equal(recording.read(1, 1), counts(1, 1))
    with h5py.File(tmp_path / "cells.ims", "r+") as file:
        del file["DataSetInfo/Image"].attrs["X"]
    with pytest.raises(InputError, match="size or extent is not stated"):
        open_recording(tmp_path / "cells.ims")


def test_the_command_takes_one_view(hdf5, capsys, monkeypatch):
    monkeypatch.chdir(hdf5)
    save_psf(hdf5 / "psf.tif")
    chosen = ["deconvolve", "data.xml", "--psf", "psf.tif", "-o", "s.ome.zarr", "--dry-run", "--json"]
    assert main([*chosen, "--image", "1", "--channel", "0"]) == 0
    planned = json.loads(capsys.readouterr().out)["files"][0]
    assert planned["channels"] == {"90 deg, channel 0": 0}
    assert planned["voxel_um"] == [1.5, 0.3, 0.2]
    assert main(chosen) == 1
    assert "Say which: data.xml#0, or image=0" in capsys.readouterr().err
