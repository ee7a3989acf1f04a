"""Reading: every format and type gives back the pixels, the micrometres and the names."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from pellucid.data.inputs import find_inputs
from pellucid.data.recording import open_recording, open_recordings
from pellucid.data.tiff import _OpenFiles
from pellucid.data.tiff_metadata import micromanager_calibration
from pellucid.errors import InputError, VoxelSizeWarning

TYPES = ["uint8", "uint16", "uint32", "int16", "float16", "float32", "float64"]


def save_tiff(path, image, photometric="minisblack", **options):
    """tifffile takes 3 planes for colours unless it is told otherwise."""
    tifffile.imwrite(path, image, photometric=photometric, **options)


def counts(*shape, dtype="uint16"):
    """Different values everywhere, so that a swapped axis or a shifted plane shows."""
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def assert_reads(recording, tczyx):
    assert recording.shape == tczyx.shape
    assert recording.dtype == tczyx.dtype
    for t, c in np.ndindex(*tczyx.shape[:2]):
        np.testing.assert_array_equal(recording.read(t, c), tczyx[t, c])
    z, y, x = (slice(n // 3, n // 3 + max(1, n // 2)) for n in tczyx.shape[2:])
    block = recording.read(0, 0, z, y, x)
    np.testing.assert_array_equal(block, tczyx[0, 0, z, y, x])
    assert block.dtype == tczyx.dtype


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_plain_tiff_of_every_type_and_byte_order(tmp_path, dtype, byteorder):
    volume = counts(5, 12, 17, dtype=dtype)
    save_tiff(tmp_path / "a.tif", volume, byteorder=byteorder, metadata=None)
    recording = open_recording(tmp_path / "a.tif")
    assert_reads(recording, volume[None, None])
    assert recording.dtype.isnative
    assert recording.voxel_um is None


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
        {"compression": "lzw"},
        {"compression": "zstd", "tile": (16, 32)},
        {"tile": (16, 16)},
        {"rowsperstrip": 7},
        {"bigtiff": True},
        {"compression": "packbits", "byteorder": ">"},
    ],
    ids=str,
)
def test_layouts_of_tiff(tmp_path, layout):
    volume = counts(4, 40, 53)
    save_tiff(tmp_path / "a.tif", volume, metadata=None, **layout)
    recording = open_recording(tmp_path / "a.tif")
    assert_reads(recording, volume[None, None])
    for y, x in [(0, 0), (16, 31), (39, 52)]:
        assert (
            recording.read(z=slice(2, 3), y=slice(y, y + 1), x=slice(x, x + 1)) == volume[2, y, x]
        )


def test_one_plane_and_axes_of_length_one(tmp_path):
    plane = counts(9, 11)
    save_tiff(tmp_path / "plane.tif", plane)
    assert_reads(open_recording(tmp_path / "plane.tif"), plane[None, None, None])
    save_tiff(tmp_path / "row.ome.tif", plane[None, None, None, :1], ome=True)
    assert_reads(open_recording(tmp_path / "row.ome.tif"), plane[None, None, None, :1])


def test_ome_tiff_says_everything(tmp_path):
    image = counts(2, 3, 4, 10, 13)
    said = {
        "axes": "TCZYX", "PhysicalSizeX": 65.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.066,
        "PhysicalSizeZ": 0.0003, "PhysicalSizeZUnit": "mm", "Channel": {"Name": ["DAPI", "µ", "C"]},
        "TimeIncrement": 250.0, "TimeIncrementUnit": "ms",
    }  # fmt: skip
    save_tiff(tmp_path / "a.ome.tif", image, ome=True, metadata=said)
    recording = open_recording(tmp_path / "a.ome.tif")
    assert_reads(recording, image)
    assert recording.voxel_um == pytest.approx((0.3, 0.066, 0.065))
    assert recording.channels == ("DAPI", "µ", "C")
    assert recording.time_step_s == pytest.approx(0.25)


def test_ome_tiff_of_several_files(tmp_path):
    image = counts(2, 3, 8, 9)  # t z y x, a file for each time point
    names = ["a_T0.ome.tif", "a_T1.ome.tif"]
    planes = "".join(
        f'<TiffData FirstT="{t}" FirstZ="0" FirstC="0" IFD="0" PlaneCount="3">'
        f'<UUID FileName="{name}">urn:uuid:{t}</UUID></TiffData>'
        for t, name in enumerate(names)
    )
    for t, name in enumerate(names):
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{t}"><Image ID="Image:0"><Pixels ID="Pixels:0" Type="uint16" '
            'DimensionOrder="XYZTC" SizeX="9" SizeY="8" SizeZ="3" SizeC="1" SizeT="2">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        save_tiff(tmp_path / name, image[t], description=xml, metadata=None, compression="zlib")
    assert_reads(open_recording(tmp_path / names[0]), image[:, None])
    (series,) = open_recordings(tmp_path)  # and not the same series twice
    assert [file.name for file in series.files] == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=r"3 of 6 planes are missing.*Companion files"):
        open_recording(tmp_path / names[0])


@pytest.mark.parametrize(
    ("unit", "micrometres"),
    [("micron", 1), ("um", 1), ("\\u00B5m", 1), ("nm", 1e-3), ("mm", 1e3)],
)
def test_imagej_hyperstack_units(tmp_path, unit, micrometres):
    image = counts(2, 4, 3, 10, 13)  # t z c y x, as ImageJ stores it
    save_tiff(
        tmp_path / "a.tif", image, imagej=True, resolution=(8.0, 5.0),
        metadata={"axes": "TZCYX", "unit": unit, "spacing": 0.7, "finterval": 2.5},
    )  # fmt: skip
    recording = open_recording(tmp_path / "a.tif")
    assert_reads(recording, image.swapaxes(1, 2))
    expected = np.array([0.7, 0.2, 0.125]) * micrometres
    assert recording.voxel_um == pytest.approx(tuple(expected), rel=1e-6)
    assert recording.time_step_s == 2.5


def test_a_voxel_size_is_never_guessed(tmp_path):
    volume = counts(3, 8, 9)
    pixel = {"axes": "ZYX", "unit": "pixel", "spacing": 2.0}
    save_tiff(tmp_path / "pixel.tif", volume, imagej=True, resolution=(1, 1), metadata=pixel)
    assert open_recording(tmp_path / "pixel.tif").voxel_um is None
    # 72 dpi is a printer's number; it would make voxels of 353 um.
    save_tiff(tmp_path / "dpi.tif", volume, resolution=(72, 72), resolutionunit="INCH")
    assert open_recording(tmp_path / "dpi.tif").stated_um == (None, None, None)
    save_tiff(
        tmp_path / "no_z.tif", volume, imagej=True, resolution=(10, 10),
        metadata={"axes": "ZYX", "unit": "um"},
    )  # fmt: skip
    recording = open_recording(tmp_path / "no_z.tif")
    assert recording.voxel_um is None
    assert recording.stated_um == pytest.approx((None, 0.1, 0.1))
    with pytest.raises(InputError, match=r"only y = 0\.1 um, x = 0\.1 um.*--voxel-um"):
        recording.require_voxel_um()
    stated = open_recording(tmp_path / "no_z.tif", voxel_um=(0.4, 0.1, 0.1))
    assert stated.require_voxel_um() == (0.4, 0.1, 0.1)
    with pytest.warns(VoxelSizeWarning, match=r"states \?, 0\.1, 0\.1 um .* 0\.4, 0\.2, 0\.1 um is used"):
        open_recording(tmp_path / "no_z.tif", voxel_um=(0.4, 0.2, 0.1))


def test_one_plane_needs_no_z_spacing(tmp_path):
    save_tiff(
        tmp_path / "a.tif", counts(8, 9), imagej=True, resolution=(10, 5), metadata={"unit": "um"}
    )
    assert open_recording(tmp_path / "a.tif").voxel_um == pytest.approx((1.0, 0.2, 0.1))


def test_imagej_file_with_one_page_table_for_all_planes(tmp_path):
    """Fiji writes stacks above 4 GB like this: planes in one run, described only by the text."""
    volume = counts(6, 7, 9)
    description = "ImageJ=1.54f\nimages=6\nslices=6\nunit=micron\nspacing=0.5\n"
    save_tiff(tmp_path / "a.tif", volume[0], description=description, metadata=None, byteorder=">")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        end = file.pages[0].dataoffsets[0] + volume[0].nbytes
    with (tmp_path / "a.tif").open("r+b") as raw:
        raw.seek(end)
        raw.write(volume[1:].astype(">u2").tobytes())
    assert_reads(open_recording(tmp_path / "a.tif"), volume[None, None])
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="promises 6 planes and holds 1"):
        open_recording(tmp_path / "cut.tif")


def test_micromanager_summary():
    said = {"Summary": {"PixelSize_um": 0.1625, "z-step_um": 0.5, "ChNames": '["a", "b"]'}}
    found = micromanager_calibration(said)
    assert found.spacing_um == (0.5, 0.1625, 0.1625)
    assert found.channels == ("a", "b")
    assert found.time_step_s is None


def test_axes_are_asked_for_when_nobody_states_them(tmp_path):
    image = counts(2, 3, 8, 9)
    np.save(tmp_path / "a.npy", image)
    with pytest.raises(InputError, match="axes='czyx'"):
        open_recording(tmp_path / "a.npy")
    assert_reads(open_recording(tmp_path / "a.npy", axes="tzyx"), image[:, None])
    assert_reads(open_recording(tmp_path / "a.npy", axes="zcyx"), image.swapaxes(0, 1)[None])
    assert open_recording(tmp_path / "a.npy", axes="cyxz").shape == (1, 2, 9, 3, 8)
    for wrong in ("zyx", "tzxx", "tzcv", "tczy"):
        with pytest.raises(InputError, match="does not name the dimensions"):
            open_recording(tmp_path / "a.npy", axes=wrong)
    save_tiff(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match="axes='czyx'"):
        open_recording(tmp_path / "a.tif")
    assert_reads(open_recording(tmp_path / "a.tif", axes="tzyx"), image[:, None])


@pytest.mark.parametrize("dtype", [*TYPES, ">u2", ">f4"])
def test_numpy_files(tmp_path, dtype):
    volume = counts(3, 8, 9, dtype=dtype)
    np.save(tmp_path / "a.npy", volume)
    np.savez_compressed(tmp_path / "a.npz", image=volume)
    native = volume.astype(volume.dtype.newbyteorder("="))
    assert_reads(open_recording(tmp_path / "a.npy"), native[None, None])
    assert_reads(open_recording(tmp_path / "a.npz"), native[None, None])


def zarr_with_another_program(path, image, axes, scales, *, version, units, shards=None):
    """An OME-Zarr made by zarr-python and a hand-written JSON: nothing of our own writer."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    lead = (1,) * (image.ndim - 2)
    array = group.create_array(
        "s0", shape=image.shape, chunks=(*lead, 8, 8), dtype=image.dtype,
        shards=(*lead, 16, 16) if shards else None,
        **({"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}),
    )  # fmt: skip
    array[...] = image
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": units[a]} if a in units else {})}
        for a in axes
    ]
    dataset, common = (s and [{"type": "scale", "scale": s}] for s in scales)
    image_said = {
        "version": version,
        "axes": described,
        "datasets": [{"path": "s0", "coordinateTransformations": dataset}],
    }
    if common:
        image_said["coordinateTransformations"] = common
    channels = [{"label": "GFP", "color": "00FF00"}]
    ome = {"multiscales": [image_said], "omero": {"channels": channels}}
    group.attrs.update(ome if version == "0.4" else {"ome": {"version": version, **ome}})


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.5 sharded"])
@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tzyx", "czyx", "tczyx"])
def test_ome_zarr_of_another_program(tmp_path, version, axes):
    sizes = {"t": 2, "c": 1, "z": 5, "y": 20, "x": 33}
    image = counts(*(sizes[a] for a in axes))
    per_axis = {"t": 3.0, "c": 1.0, "z": 300.0, "y": 0.05, "x": 0.06}
    units = {"t": "second", "z": "nanometer", "y": "micrometer", "x": "micrometer"}
    common = [{"t": 1.0, "c": 1.0}.get(a, 2.0) for a in axes]
    zarr_with_another_program(
        tmp_path / "a.zarr", image, axes, ([per_axis[a] for a in axes], common),
        version=version.split()[0], units=units, shards="sharded" in version,
    )  # fmt: skip
    recording = open_recording(tmp_path / "a.zarr")
    expanded = image.reshape([sizes[a] if a in axes else 1 for a in "tczyx"])
    assert_reads(recording, expanded)
    z = 0.6 if "z" in axes else 1.0
    assert recording.voxel_um == pytest.approx((z, 0.1, 0.12))
    assert recording.time_step_s == (3.0 if "t" in axes else None)
    assert recording.channels == ("GFP",)


def test_ome_zarr_without_units_has_no_voxel_size(tmp_path):
    zarr_with_another_program(
        tmp_path / "a.zarr",
        counts(5, 8, 8),
        "zyx",
        ([1.0, 1.0, 1.0], None),
        version="0.5",
        units={},
    )
    assert open_recording(tmp_path / "a.zarr").voxel_um is None


def test_a_plain_zarr_array_and_a_group_of_images(tmp_path):
    volume = counts(5, 8, 9)
    zarr.save_array(tmp_path / "plain.zarr", volume)
    assert_reads(open_recording(tmp_path / "plain.zarr"), volume[None, None])
    zarr.open_group(tmp_path / "many.zarr", mode="w")
    zarr_with_another_program(
        tmp_path / "many.zarr" / "0", volume, "zyx", ([1.0] * 3, None), version="0.5", units={}
    )
    with pytest.raises(InputError, match=r"no image in this Zarr group.*inside it: 0"):
        open_recording(tmp_path / "many.zarr")


def test_a_block_of_a_tiff_reads_only_its_rows_and_strips(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).integers(0, 60000, (20, 64, 50), dtype=np.uint16)
    save_tiff(tmp_path / "raw.tif", volume)
    save_tiff(tmp_path / "zlib.tif", volume, compression="zlib", rowsperstrip=8)
    fetched = []
    read = _OpenFiles.read
    monkeypatch.setattr(
        _OpenFiles, "read", lambda s, p, a, n: (fetched.append(n), read(s, p, a, n))[1]
    )
    part = {"z": slice(3, 5), "y": slice(10, 15), "x": slice(4, 9)}
    for name, most in [("raw.tif", 2 * 5 * 50 * 2), ("zlib.tif", 2 * 8 * 50 * 2 * 1.1)]:
        recording = open_recording(tmp_path / name)
        fetched.clear()
        np.testing.assert_array_equal(recording.read(**part), volume[3:5, 10:15, 4:9])
        assert 0 < sum(fetched) <= most


def test_a_block_of_a_zarr_reads_only_its_chunks(tmp_path):
    volume = counts(1, 32, 32)
    zarr_with_another_program(
        tmp_path / "a.zarr", volume, "zyx", ([1.0] * 3, None), version="0.5", units={}
    )
    wanted = tmp_path / "a.zarr" / "s0" / "c" / "0" / "1" / "2"
    for chunk in (tmp_path / "a.zarr" / "s0" / "c").rglob("*"):
        if chunk.is_file() and chunk != wanted:
            chunk.write_bytes(b"damaged")
    recording = open_recording(tmp_path / "a.zarr")
    part = recording.read(y=slice(9, 16), x=slice(16, 20))
    np.testing.assert_array_equal(part, volume[:, 9:16, 16:20])
    with pytest.raises(InputError, match=r"a chunk cannot be read.*damaged"):
        recording.read()


def test_steps_and_wrong_indices(tmp_path):
    volume = counts(6, 8, 9)
    np.save(tmp_path / "a.npy", volume)
    recording = open_recording(tmp_path / "a.npy")
    np.testing.assert_array_equal(
        recording.read(z=slice(1, None, 2), x=slice(-3, None)), volume[1::2, :, -3:]
    )
    for wrong in ({"t": 1}, {"c": -1}):
        with pytest.raises(InputError, match=r"outside 0\.\.0"):
            recording.read(**wrong)
    with pytest.raises(InputError, match="forwards"):
        recording.read(z=slice(None, None, -1))


def test_real_recordings_read_as_tifffile_reads_them(data_folder):
    entries = json.loads((data_folder / "MANIFEST.json").read_text())
    assert len(entries) > 30
    for entry in entries:
        path = data_folder / entry["file"]
        recording = open_recording(path, voxel_um=entry["voxel_um_zyx"])
        sizes = dict(zip(entry["axes"], entry["shape"], strict=True))
        assert recording.shape == tuple(sizes.get(axis, 1) for axis in "TCZYX"), path
        assert recording.dtype == entry["dtype"], path
        said = entry["voxel_um_zyx"]
        assert (
            recording.voxel_um == (said if said is None else tuple(said)) or sizes.get("Z") is None
        )
        t, c, z = (n - 1 for n in recording.shape[:3])
        last = tifffile.imread(path, key=-1)
        np.testing.assert_array_equal(recording.read(t, c, slice(z, z + 1))[0], last)


def test_inputs_in_natural_order(tmp_path):
    for name in ("t10.tif", "t2.tif", "T1.tif", "notes.txt", ".hidden.tif", "t3.tif.partial"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.ome.zarr").mkdir()
    expected = ["a.ome.zarr", "T1.tif", "t2.tif", "t10.tif"]
    assert [p.name for p in find_inputs(tmp_path)] == expected
    assert [p.name for p in find_inputs(tmp_path / "t*.tif")] == ["t2.tif", "t10.tif"]
    assert find_inputs(tmp_path / "t2.tif") == [tmp_path / "t2.tif"]
    assert find_inputs(str(tmp_path / "a.ome.zarr")) == [Path(tmp_path / "a.ome.zarr")]
    # A name with a bracket in it is a name before it is a pattern.
    (tmp_path / "x[1].tif").write_bytes(b"x")
    assert find_inputs(tmp_path / "x[1].tif") == [tmp_path / "x[1].tif"]


def test_no_inputs_lists_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"no images in this folder; .* holds notes\.txt"):
        find_inputs(tmp_path)
    with pytest.raises(InputError, match=r"matches no file; .* holds notes\.txt"):
        find_inputs(tmp_path / "*.tif")
    with pytest.raises(InputError, match=r"Did you mean notes\.txt"):
        find_inputs(tmp_path / "note.txt")
