"""The run record: complete, plain JSON, inside and beside the output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaozarrs

from pellucid.data import record
from pellucid.data.output import create_output
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, read_record, write_record
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, OutputError


def output(path, version="0.5"):
    image = ImageDescription((1, 1, 1, 4, 4), voxel_um=(1, 1, 1))
    with create_output(path, image, attributes={"config": {"a": 1}}, ome_zarr_version=version) as o:
        o.write(0, 0, np.ones((1, 4, 4), np.float32))
    return path


@pytest.mark.parametrize(
    ("name", "version"), [("a.zarr", "0.5"), ("b.zarr", "0.4"), ("a.ome.tif", "0.5")]
)
def test_a_record_is_written_beside_and_inside(tmp_path, name, version):
    source = tmp_path / "in.npy"
    np.save(source, np.ones((3, 3)))
    path = output(tmp_path / name, version)
    run = RunRecord("deconvolve", {"iterations": 3}, [fingerprint(source)])
    run.statistics["background"] = np.float32(101.5)
    with run.timed("read"), run.timed("write"):
        pass
    beside = write_record(run, path)
    content = json.loads(beside.read_text())
    assert beside.name == name + ".pellucid.json"
    assert content["command"] == "deconvolve"
    assert content["parameters"] == {"iterations": 3}
    assert content["statistics"] == {"background": 101.5}
    assert set(content["timings_s"]) == {"read", "write"}
    assert content["inputs"][0]["size_bytes"] == source.stat().st_size
    assert {"python", "pellucid", "numpy", "torch"} <= set(content["versions"])
    assert read_record(path) == content
    beside.unlink()
    if path.is_dir():
        assert read_record(path) == content
        yaozarrs.validate_zarr_store(str(path))
        text = (path / ("zarr.json" if version == "0.5" else ".zattrs")).read_text()
        assert json.loads(text).get("attributes", json.loads(text))["pellucid"]["complete"] is True
        assert '"config"' in text
    else:
        with pytest.raises(InputError, match="no run record"):
            read_record(path)
    assert not list(tmp_path.glob("*.partial*"))


def test_a_record_needs_an_output(tmp_path):
    with pytest.raises(OutputError, match="no such output"):
        write_record(RunRecord("deconvolve"), tmp_path / "a.zarr")


def test_everything_becomes_plain_json():
    value = {
        "array": np.arange(3), "nan": float("nan"), "inf": np.float32(np.inf), 1: Path("a/b"),
        "pair": (1, None), "flag": np.bool_(True), "none": np.array([np.nan, 1.0]),
    }  # fmt: skip
    expected = {
        "array": [0, 1, 2], "nan": None, "inf": None, "1": str(Path("a/b")), "pair": [1, None],
        "flag": True, "none": [None, 1.0],
    }  # fmt: skip
    assert plain_json(value) == expected
    json.dumps(plain_json(value), allow_nan=False)


def test_fingerprints_tell_files_apart(tmp_path, monkeypatch):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * 5000)
    second.write_bytes(b"x" * 4999 + b"y")
    assert fingerprint(first).coverage == "everything"
    assert fingerprint(first).checksum != fingerprint(second).checksum
    os.utime(first, (0, 0))
    assert fingerprint(first).modified == "1970-01-01T00:00:00+00:00"
    monkeypatch.setattr(record, "WHOLE_FILE_BYTES", 4000)
    monkeypatch.setattr(record, "SAMPLE_BYTES", 10)
    sampled = fingerprint(first)
    assert "samples" in sampled.coverage
    assert sampled.checksum != fingerprint(second).checksum  # the tail is always looked at
    second.write_bytes(b"y" + b"x" * 4999)
    assert sampled.checksum != fingerprint(second).checksum  # and the head
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint(tmp_path / "nothing")


def test_a_folder_has_a_fingerprint_of_its_content(tmp_path):
    path = output(tmp_path / "a.zarr")
    before = fingerprint(path)
    assert before.size_bytes == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    chunk = next(p for p in (path / "0" / "c").rglob("*") if p.is_file())
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 1
    chunk.write_bytes(raw)
    assert fingerprint(path).checksum != before.checksum


def test_versions_cost_no_import_of_torch_or_tensorstore():
    code = (
        "import sys, pellucid.data.record as r, pellucid.data.recording, pellucid.data.output;"
        "r.package_versions(); assert not {'torch', 'tensorstore', 'tifffile'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
