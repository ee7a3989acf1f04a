"""A series that waits beside its output: what counts as finished, and when it may go on."""

import numpy as np
import pytest

from pellucid.data.finished_volumes import FinishedVolumes, waiting_folder
from pellucid.data.manifest import differences
from pellucid.errors import OutputError

RUN = {"parameters": {"iterations": 10}, "inputs": {"a.tif": "blake2b:1"}}


def begin(folder, run=RUN, resume=False, anew=False):
    return FinishedVolumes.begin(folder / "out.ome.zarr", run, resume=resume, anew=anew)


def test_finished_volumes_are_there_for_the_next_run(tmp_path):
    first = begin(tmp_path)
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    first.put(1, 0, volume, {"seconds": 2.0})
    first.keep("registration", {"ncc": 0.9})
    again = begin(tmp_path, resume=True)
    assert again.statistics == {(1, 0): {"seconds": 2.0}}
    np.testing.assert_array_equal(again.get(1, 0), volume)
    assert again.kept("registration") == {"ncc": 0.9}
    assert again.kept("other") is None
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_short_does_not_count(tmp_path):
    first = begin(tmp_path)
    first.put(0, 0, np.ones((2, 2, 2), np.float32), {})
    first.put(1, 0, np.ones((2, 2, 2), np.float32), {})
    (first.folder / "t1c0.npy").unlink()
    (first.folder / "t2c0.writing").write_bytes(b"half")
    with (first.folder / "finished.jsonl").open("a") as lines:
        lines.write('{"t": 3, "c"')
    assert set(begin(tmp_path, resume=True).statistics) == {(0, 0)}


def test_an_interrupted_run_is_not_dropped_by_accident(tmp_path):
    begin(tmp_path).put(0, 0, np.ones((2, 2, 2), np.float32), {})
    with pytest.raises(OutputError, match=r"interrupted run.*--resume.*--overwrite"):
        begin(tmp_path)
    changed = {"parameters": {"iterations": 20}, "inputs": {"a.tif": "blake2b:2"}}
    with pytest.raises(OutputError, match=r"parameters.iterations was 10, is 20; inputs.a.tif was"):
        begin(tmp_path, changed, resume=True)
    assert begin(tmp_path, changed, anew=True).statistics == {}


def test_without_an_interrupted_run_resuming_is_beginning(tmp_path):
    assert begin(tmp_path, resume=True).statistics == {}
    assert waiting_folder(tmp_path / "out.ome.zarr").is_dir()


def test_differences_are_named():
    assert differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1]}}) == []
    assert differences({"a": 1}, {"b": None}) == ["a was 1, is null"]
