"""Bad input: one sentence that says what is wrong and what to do, when the file is opened."""

import struct

import numpy as np
import pytest
import tifffile
import zarr

from pellucid.data.recording import open_recording
from pellucid.errors import InputError


def save_tiff(path, image, photometric="minisblack", **options):
    """tifffile takes 3 planes for colours unless it is told otherwise."""
    tifffile.imwrite(path, image, photometric=photometric, **options)


def noise(*shape, dtype="uint16"):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_recording(path, **options)
    message = str(caught.value)
    assert message.endswith((".", "?"))
    assert "\n" not in message
    assert len(message) < 500


def test_missing_paths(tmp_path):
    (tmp_path / "embryo_01.tif").write_bytes(b"x")
    refused(tmp_path / "embryo_1.tif", r"no such file.*Did you mean embryo_01\.tif\?")
    refused(tmp_path / "quite_different.npy", r"holds embryo_01\.tif\.")
    refused(tmp_path / "nowhere" / "a.tif", r"folder .*nowhere does not exist either\.")


def test_folders_and_files_that_are_no_image(tmp_path):
    refused(tmp_path, "a folder, and not an OME-Zarr")
    (tmp_path / "empty.tif").touch()
    refused(tmp_path / "empty.tif", r"empty \(0 bytes\)")
    (tmp_path / "garbage.tif").write_bytes(noise(4000, dtype="uint8").tobytes())
    refused(tmp_path / "garbage.tif", "not an image that Pellucid knows")
    (tmp_path / "text.tif").write_text("hello")
    refused(tmp_path / "text.tif", "not an image that Pellucid knows")
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE")
    refused(tmp_path / "a.czi", r"\.czi files are not read yet. Export the stack as OME-TIFF")
    (tmp_path / "magic.tif").write_bytes(b"II*\0" + noise(400, dtype="uint8").tobytes())
    refused(tmp_path / "magic.tif", "truncated or damaged TIFF")
    (tmp_path / "header.tif").write_bytes(b"II*\0")
    refused(tmp_path / "header.tif", "truncated or damaged TIFF")
    (tmp_path / "loop.tif").write_bytes(b"II*\0" + struct.pack("<IHI", 8, 0, 8))
    refused(tmp_path / "loop.tif", "points back to an earlier page")
    (tmp_path / "huge.tif").write_bytes(b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**60))
    refused(tmp_path / "huge.tif", "past the end")


@pytest.mark.parametrize(
    "kind",
    [
        {"metadata": None},
        {},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "metadata": None},
        {"compression": "zlib", "ome": True, "metadata": {"axes": "ZYX"}},
        {"bigtiff": True, "compression": "zlib"},
        {"tile": (16, 16), "metadata": None},
    ],
    ids=str,
)
def test_a_truncated_tiff_is_refused_wherever_it_is_cut(tmp_path, kind):
    save_tiff(tmp_path / "whole.tif", noise(6, 32, 32), **kind)
    assert open_recording(tmp_path / "whole.tif").shape == (1, 1, 6, 32, 32)
    whole = (tmp_path / "whole.tif").read_bytes()
    for kept in [3, 7, 60, *range(200, len(whole) - 100, len(whole) // 23)]:
        (tmp_path / "cut.tif").write_bytes(whole[:kept])
        with pytest.raises(InputError):
            open_recording(tmp_path / "cut.tif")


def test_a_strip_that_cannot_be_decoded_is_named_when_it_is_read(tmp_path):
    save_tiff(tmp_path / "a.tif", noise(3, 32, 32), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        where, count = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    with (tmp_path / "a.tif").open("r+b") as raw:
        raw.seek(where)
        raw.write(b"\xff" * count)
    recording = open_recording(tmp_path / "a.tif")
    assert recording.read(z=slice(0, 1)).any()
    with pytest.raises(InputError, match=r"plane 1 cannot be decoded.*damaged there"):
        recording.read()


def test_unsupported_tiffs(tmp_path):
    save_tiff(tmp_path / "rgb.tif", noise(8, 9, 3, dtype="uint8"), photometric="rgb")
    refused(tmp_path / "rgb.tif", r"colour \(RGB\).*Split Channels")
    save_tiff(tmp_path / "c.tif", noise(8, 9, dtype="complex64"))
    refused(tmp_path / "c.tif", "got complex pixels")
    save_tiff(tmp_path / "mask.tif", np.eye(9, dtype=bool))
    refused(tmp_path / "mask.tif", "boolean")
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(noise(8, 9), metadata=None)
        file.write(noise(5, 6), metadata=None)
    refused(tmp_path / "two.tif", r"holds 2 images \(0: 8x9; 1: 5x6\)")
    assert open_recording(tmp_path / "two.tif", image=1).shape == (1, 1, 1, 5, 6)
    refused(tmp_path / "two.tif", "there is no image 2", image=2)


def test_an_unknown_compression(tmp_path):
    save_tiff(tmp_path / "a.tif", noise(32, 32), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        where = file.pages[0].tags["Compression"].valueoffset
    with (tmp_path / "a.tif").open("r+b") as raw:
        raw.seek(where)
        raw.write(struct.pack("<H", 34713))  # Nikon NEF
    refused(tmp_path / "a.tif", "TIFF compression .* is not supported. Save it uncompressed")


def test_bad_numpy_files(tmp_path):
    np.save(tmp_path / "whole.npy", noise(20, 20))
    whole = (tmp_path / "whole.npy").read_bytes()
    for kept in (5, 40, 300, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:kept])
        refused(tmp_path / "cut.npy", "not a complete NumPy file")
    np.save(tmp_path / "object.npy", np.array([{}, {}], dtype=object))
    refused(tmp_path / "object.npy", "without pickled objects")
    np.save(tmp_path / "complex.npy", noise(4, 4, dtype="complex128"))
    refused(tmp_path / "complex.npy", "got complex pixels")
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4)))
    refused(tmp_path / "none.npy", "no pixels")
    np.savez(tmp_path / "two.npz", a=noise(3, 3), b=noise(3, 3))
    refused(tmp_path / "two.npz", "expected one array, got a, b")
    np.save(tmp_path / "line.npy", noise(5))
    refused(tmp_path / "line.npy", "2 to 5 dimensions")


def test_bad_zarrs(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "no image in this Zarr group")
    zarr.open_group(tmp_path / "a.zarr", mode="w").attrs["ome"] = {
        "multiscales": [{"axes": [{"name": a} for a in "zyx"], "datasets": [{"path": "0"}]}]
    }
    refused(tmp_path / "a.zarr", "array '0' cannot be opened")
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"attributes": {')
    refused(tmp_path / "a.zarr", "zarr.json is not complete JSON")
    zarr.save_array(tmp_path / "complex.zarr", noise(4, 4, dtype="complex64"))
    refused(tmp_path / "complex.zarr", "got complex pixels")


@pytest.mark.parametrize(
    "ome",
    [
        [],
        {"multiscales": "x"},
        {"multiscales": []},
        {"multiscales": [{"datasets": [{}]}]},
        {"multiscales": [{"datasets": [{"path": "0"}], "axes": [{}, {}]}]},
        {"multiscales": [{"datasets": [{"path": "0"}], "axes": ["y", "y"]}]},
        {
            "multiscales": [
                {
                    "datasets": [{"path": "0"}],
                    "axes": ["y", "x"],
                    "coordinateTransformations": [{"type": "scale", "scale": [1.0]}],
                }
            ]
        },
    ],
    ids=str,
)
def test_metadata_that_make_no_sense(tmp_path, ome):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("0", shape=(4, 4), dtype="uint8")
    group.attrs["ome"] = ome
    refused(tmp_path / "a.zarr", "metadata|multiscales|does not name")


@pytest.mark.parametrize("format_of_zarr", [2, 3])
def test_an_unfinished_output_is_no_input(tmp_path, format_of_zarr):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=format_of_zarr)
    group.attrs["pellucid"] = {"complete": False}
    refused(tmp_path / "a.zarr", "whose run did not finish")
    refused(tmp_path / "a.zarr.partial", "unfinished output")


def test_impossible_voxel_sizes(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 4))
    for wrong in ((0.1, 0.1), (0.3, 0.0, 0.1), (0.3, -1.0, 0.1), (0.3, float("nan"), 0.1)):
        refused(tmp_path / "a.npy", "three positive micrometres", voxel_um=wrong)
