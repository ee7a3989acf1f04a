"""Writing: what is written is read back, by us and by others, and is valid OME-Zarr."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ome_zarr_models
import pytest
import tifffile
import yaozarrs
import zarr

from pellucid.data import ome_zarr_writer, tiff_writer
from pellucid.data.ome_zarr_writer import OmeZarrWriter
from pellucid.data.output import create_output
from pellucid.data.pixels import IntegerScale
from pellucid.data.recording import open_recording
from pellucid.data.tiff_writer import write_tiff
from pellucid.data.writer import ImageDescription
from pellucid.errors import OutputError, ParameterError, PlanError

FORMATS = [("a.ome.zarr", "0.5"), ("a.zarr", "0.4"), ("a.ome.tif", "0.5"), ("a.tif", "0.5")]
SHAPES = {
    "t c z": (2, 3, 5, 20, 33),
    "one plane": (1, 1, 1, 70, 41),
    "one row": (1, 2, 3, 1, 9),
    "could be taken for colours": (1, 3, 1, 5, 4),
    "pyramid, odd": (1, 2, 3, 259, 301),
}
VOXEL_UM = (0.3, 0.13, 0.11)


def counts(shape, dtype="float32"):
    return np.random.default_rng(1).integers(0, 250, shape).astype(dtype)


def save(path, image, version="0.5", **said):
    """Write a whole (t, c, z, y, x) image through the front door."""
    said = {"voxel_um": VOXEL_UM, **said}
    description = ImageDescription(image.shape, image.dtype.name, **said)
    with create_output(path, description, ome_zarr_version=version) as out:
        for t, c in np.ndindex(*image.shape[:2]):
            out.write(t, c, image[t, c])
    return open_recording(path)


@pytest.mark.parametrize(("name", "version"), FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_round_trip_of_every_format(tmp_path, name, version, shape, dtype):
    image = counts(shape, dtype)
    names = ("DAPI", "GFP", "RFP")[: shape[1]]
    recording = save(tmp_path / name, image, version, channels=names, time_step_s=2.5)
    assert recording.shape == shape
    assert recording.dtype == dtype
    for t, c in np.ndindex(*shape[:2]):
        np.testing.assert_array_equal(recording.read(t, c), image[t, c])
    assert recording.channels == names
    assert recording.time_step_s == 2.5
    flat_tiff = shape[2] == 1 and name.endswith("tif")
    assert recording.voxel_um == pytest.approx((1.0, 0.13, 0.11) if flat_tiff else VOXEL_UM)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "version"), FORMATS)
def test_unknown_voxel_size_stays_unknown(tmp_path, name, version):
    recording = save(tmp_path / name, counts((1, 1, 3, 8, 9)), version, voxel_um=None)
    assert recording.voxel_um is None
    assert recording.channels == ("channel 0",)
    assert recording.time_step_s is None


@pytest.mark.parametrize(("name", "version"), FORMATS)
def test_blocks_in_any_order_from_threads(tmp_path, name, version):
    image = counts((2, 2, 7, 30, 40), "uint16")
    jobs = [
        (t, c, z, y, x)
        for t, c in np.ndindex(2, 2) for z in (0, 3) for y in (0, 16) for x in (0, 19)
    ]  # fmt: skip
    np.random.default_rng(0).shuffle(jobs)
    description = ImageDescription(image.shape, "uint16", VOXEL_UM)
    with create_output(tmp_path / name, description, ome_zarr_version=version) as out:

        def put(job):
            t, c, z, y, x = job
            z1, y1, x1 = 3 if z == 0 else 7, 16 if y == 0 else 30, 19 if x == 0 else 40
            out.write(t, c, image[t, c, z:z1, y:y1, x:x1], z, y, x)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, jobs))
    recording = open_recording(tmp_path / name)
    for t, c in np.ndindex(2, 2):
        np.testing.assert_array_equal(recording.read(t, c), image[t, c])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("shape", [(2, 2, 6, 260, 300), (1, 1, 1, 300, 20)])
@pytest.mark.parametrize("stated", [True, False])
def test_two_validators_accept_what_we_write(tmp_path, version, shape, stated):
    path = tmp_path / "a.ome.zarr"
    said = {"voxel_um": VOXEL_UM if stated else None, "time_step_s": 3.0 if stated else None}
    save(path, counts(shape), version, **said)
    yaozarrs.validate_zarr_store(str(path))
    group = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(group).__module__.startswith(f"ome_zarr_models.v{version.replace('.', '')}")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_is_the_mean_and_sits_half_a_voxel_further(tmp_path, version):
    image = np.zeros((1, 1, 2, 2, 258), np.float32)
    image[0, 0, :, :, 0] = 8.0  # 4 of the 8 voxels of the first mean
    image[0, 0, 1, 1, 257] = 16.0  # 1 of the 8 voxels of the last mean
    save(tmp_path / "a.zarr", image, version, voxel_um=(0.1, 0.1, 0.1))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    level = group["1"][:]
    assert level.shape == (1, 1, 1, 1, 129)
    assert level[0, 0, 0, 0, 0] == 4.0
    assert level[0, 0, 0, 0, 128] == 2.0
    assert not level[0, 0, 0, 0, 1:128].any()
    ome = group.attrs.get("ome", group.attrs)
    scale, translation = ome["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([1, 1, 0.2, 0.2, 0.2])
    # The centre of a mean of voxels 0 and 1 (centres 0.0 and 0.1) is 0.05.
    assert translation["translation"] == pytest.approx([0, 0, 0.05, 0.05, 0.05])
    first = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert first[1]["translation"] == [0.0] * 5


def test_shards_chunks_and_attributes(tmp_path):
    save(tmp_path / "a.ome.zarr", counts((1, 2, 70, 40, 300), "uint16"), channels=("a", "b"))
    array = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")
    assert array.chunks == (1, 1, 64, 40, 128)
    assert array.shards == (1, 1, 128, 40, 384)
    assert array.metadata.dimension_names == ("t", "c", "z", "y", "x")
    attributes = zarr.open_group(tmp_path / "a.ome.zarr", mode="r").attrs
    assert attributes["pellucid"]["complete"] is True
    channels = attributes["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["a", "b"]
    assert channels[0]["color"] != channels[1]["color"]
    window = channels[0]["window"]
    assert (window["min"], window["max"]) == (0.0, 249.0)
    assert 0 <= window["start"] < window["end"] <= 249


def test_contrast_limits_survive_nan_and_constant_images(tmp_path):
    for value in (np.nan, np.inf, 3.0):
        image = np.full((1, 1, 2, 4, 4), value, np.float32)
        description = ImageDescription(image.shape, "float32", VOXEL_UM)
        with create_output(tmp_path / "a.zarr", description, overwrite=True) as out:
            out.write(0, 0, image[0, 0])
        text = (tmp_path / "a.zarr" / "zarr.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        window = json.loads(text)["attributes"]["ome"]["omero"]["channels"][0]["window"]
        assert window["start"] < window["end"]


def test_the_pyramid_is_streamed(tmp_path, monkeypatch):
    """Small shards, so that a bound on what is held shows against a small volume."""
    monkeypatch.setattr(
        ome_zarr_writer, "chunk_and_shard", lambda shape, chunks: ((16, 32, 32), (32, 64, 64))
    )
    monkeypatch.setattr(OmeZarrWriter, "_window", lambda writer, c: (0.0, 1.0))
    shape = (1, 1, 64, 512, 512)
    with OmeZarrWriter(tmp_path / "a.zarr", ImageDescription(shape, "uint16", (1, 1, 1))) as out:
        for z in range(0, 64, 32):
            out.write(0, 0, np.full((32, 512, 512), z, np.uint16), z)
        tracemalloc.start()
        out._finish()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A shard is 0.25 MiB and the float32 copies of its source block about 1 MiB; level 0 is 32.
    assert peak < 4 * 2**20
    assert zarr.open_group(tmp_path / "a.zarr", mode="r")["1"][0, 0, 20, 0, 0] == 32


def test_fiji_reads_the_scale_from_these_tags(tmp_path):
    save(tmp_path / "a.tif", counts((2, 2, 4, 8, 9)), channels=("a", "b"), time_step_s=1.5)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        said, tags = file.imagej_metadata, file.pages[0].tags
        assert file.series[0].axes == "TZCYX"
    expected = {"unit": "micron", "spacing": 0.3, "finterval": 1.5, "mode": "composite",
                "channels": 2, "slices": 4, "frames": 2, "hyperstack": True}  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    for name, um in [("XResolution", 0.11), ("YResolution", 0.13)]:
        numerator, denominator = tags[name].value
        assert numerator / denominator == pytest.approx(1 / um, rel=1e-6)
    assert tags["ResolutionUnit"].value == 1
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "a.tif"), counts((2, 2, 4, 8, 9)).swapaxes(1, 2)
    )


def test_bigtiff_only_where_it_is_needed(tmp_path, monkeypatch):
    image = counts((1, 1, 3, 8, 9), "uint16")
    save(tmp_path / "small.ome.tif", image)
    monkeypatch.setattr(tiff_writer, "CLASSIC_LIMIT_BYTES", image.nbytes - 1)
    recording = save(tmp_path / "big.ome.tif", image)
    np.testing.assert_array_equal(recording.read(), image[0, 0])
    for name, is_big in [("small", False), ("big", True)]:
        with tifffile.TiffFile(tmp_path / f"{name}.ome.tif") as file:
            assert file.is_bigtiff is is_big
    with pytest.raises(PlanError, match=r"ends at 4 GiB. Write a\.ome\.zarr"):
        save(tmp_path / "a.tif", image)


def test_write_tiff_takes_an_array_or_volumes(tmp_path):
    image = counts((2, 2, 3, 8, 9))
    description = ImageDescription(image.shape, "float32", VOXEL_UM)
    write_tiff(tmp_path / "a.ome.tif", image, description)
    write_tiff(tmp_path / "b.tif", (image[t, c] for t in (0, 1) for c in (0, 1)), description,
               "imagej")  # fmt: skip
    for name in ("a.ome.tif", "b.tif"):
        np.testing.assert_array_equal(open_recording(tmp_path / name).read(1, 0), image[1, 0])


@pytest.mark.parametrize("name", ["a.zarr", "a.ome.tif", "a.tif"])
def test_integers_never_wrap_and_clipping_is_counted(tmp_path, name):
    volume = np.array([[[0.0, 0.26, 70000.0, 65535.4, -3.0, 12.5]]], np.float32)
    description = ImageDescription((1, 1, 1, 1, 6), "uint16")
    with create_output(tmp_path / name, description) as out:
        out.write(0, 0, volume)
    assert out.clipped == 2
    stored = open_recording(tmp_path / name).read()
    np.testing.assert_array_equal(stored, [[[0, 0, 65535, 65535, 0, 12]]])
    scale = IntegerScale.from_range(0, 20.0, "uint16")
    small = np.array([[[0.0, 0.26, 7.0, 3.3, 20.0, 12.5]]], np.float32)
    with create_output(tmp_path / name, description, scale=scale, overwrite=True) as out:
        out.write(0, 0, small)
    assert out.clipped == 0
    back = open_recording(tmp_path / name).read() / scale.factor
    np.testing.assert_allclose(back, small, atol=0.5 / scale.factor)


def test_the_scale_is_kept_in_the_file(tmp_path):
    scale = IntegerScale(16.0)
    description = ImageDescription((1, 1, 2, 4, 4), "uint16")
    for name in ("a.zarr", "a.ome.tif", "a.tif"):
        with create_output(tmp_path / name, description, scale=scale) as out:
            out.write(0, 0, np.ones((2, 4, 4), np.float32))
    kept = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["pellucid"]
    assert (kept["integer_scale"], kept["clipped_voxels"]) == (16.0, 0)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert json.loads(file.imagej_metadata["Info"])["pellucid"]["integer_scale"] == 16.0
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert "integer_scale" in file.ome_metadata


@pytest.mark.parametrize("name", ["a.zarr", "a.ome.tif", "a.tif"])
def test_numpy_numbers_are_numbers(tmp_path, name):
    image = counts((1, 1, 3, 8, 9))
    description = ImageDescription(
        tuple(np.array(image.shape)),
        voxel_um=tuple(np.array(VOXEL_UM, np.float32)),
        time_step_s=np.float32(2),
    )
    kept = {"background": np.float32(1.5), "missing": np.nan}
    with create_output(tmp_path / name, description, attributes=kept) as out:
        out.write(0, 0, image[0, 0])
    recording = open_recording(tmp_path / name)
    assert recording.voxel_um == pytest.approx(VOXEL_UM)
    assert recording.time_step_s == 2.0
    assert "NaN" not in "".join(p.read_text() for p in tmp_path.rglob("zarr.json"))


def test_impossible_descriptions(tmp_path):
    with pytest.raises(ParameterError, match="at least 1 each"):
        ImageDescription((1, 1, 0, 4, 4))
    with pytest.raises(ParameterError, match="2 channels and 1 names"):
        ImageDescription((1, 2, 1, 4, 4), channels=("a",))
    for wrong in ((0.1, 0.1), (0.0, 0.1, 0.1), (np.nan, 0.1, 0.1)):
        with pytest.raises(ParameterError, match="three positive micrometres"):
            ImageDescription((1, 1, 1, 4, 4), voxel_um=wrong)
    with pytest.raises(ParameterError, match=r"expected one of .* got complex64"):
        ImageDescription((1, 1, 1, 4, 4), "complex64")
    with pytest.raises(OutputError, match=r"ImageJ TIFF holds .* write OME-TIFF: a\.ome\.tif"):
        create_output(tmp_path / "a.tif", ImageDescription((1, 1, 1, 4, 4), "float64"))
    with pytest.raises(ParameterError, match=r"0\.4 or 0\.5"):
        create_output(
            tmp_path / "a.zarr", ImageDescription((1, 1, 1, 4, 4)), ome_zarr_version="0.6"
        )
