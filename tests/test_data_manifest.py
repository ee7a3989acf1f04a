"""Manifests: what is recorded is found again, after any cut."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pellucid.data.manifest import (
    LIST_SUFFIX,
    Manifest,
    files_beside,
    process_of,
    record_beside,
)
from pellucid.errors import OutputError


def test_a_manifest_cut_at_any_byte_resumes_with_whole_lines_only(tmp_path):
    path = tmp_path / "run.jsonl"
    done = Manifest(path, {"iterations": 10})
    done.record("a", {"seconds": 1.5})
    done.record("b")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        done = Manifest(path, {"iterations": 10}, resume=True)
        assert len(done) == max(0, sum(end <= cut for end in ends) - 1)
        done.record("c")
        assert "c" in Manifest(path, {"iterations": 10}, resume=True)


def test_a_manifest_of_other_parameters_says_what_changed(tmp_path):
    path = tmp_path / "run.jsonl"
    Manifest(path, {"iterations": 10, "inputs": ["x"]})
    with pytest.raises(OutputError, match="iterations was 10, is 12"):
        Manifest(path, {"iterations": 12, "inputs": ["x"]}, resume=True)


def test_without_resume_a_manifest_starts_anew(tmp_path):
    path = tmp_path / "run.jsonl"
    Manifest(path, {}).record("a")
    assert "a" not in Manifest(path, {})


def test_lists_of_other_processes_are_taken_in(tmp_path):
    path = tmp_path / "run.jsonl"
    Manifest(path, {"iterations": 10}).record("a", {"seconds": 1})
    record_beside(path, "one-11-ab", "b", {"seconds": 2})
    record_beside(path, "one-11-ab", "c")
    record_beside(path, "two-12-cd", "b", {"seconds": 2})
    assert [process_of(file) for file in files_beside(path, LIST_SUFFIX)] == [11, 12]
    cut = files_beside(path, LIST_SUFFIX)[0]
    cut.write_bytes(cut.read_bytes()[:-3])  # killed while it wrote
    done = Manifest(path, {"iterations": 10}, resume=True)
    assert list(done) == ["a", "b"]
    assert done.facts("b") == {"seconds": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["run.jsonl"]
    assert list(Manifest(path, {"iterations": 10}, resume=True)) == ["a", "b"]


def test_lists_of_another_run_are_dropped(tmp_path):
    path = tmp_path / "run.jsonl"
    Manifest(path, {"iterations": 10})
    record_beside(path, "one-11-ab", "a")
    assert "a" not in Manifest(path, {"iterations": 12})
    stale = tmp_path / f"run.jsonl.one-11-ab{LIST_SUFFIX}"
    stale.write_text('{"iterations": 10}\n{"part": "a", "facts": {}}\n')
    assert "a" not in Manifest(path, {"iterations": 12}, resume=True)
    Manifest(path, {}).remove()
    with pytest.raises(OutputError, match="Is the run over"):
        record_beside(path, "one-11-ab", "a")
    assert not list(tmp_path.iterdir())


def test_a_line_that_the_disk_refuses_leaves_no_half(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    done = Manifest(path, {})
    write = os.write

    def full(handle, lines):
        if len(lines) < 20:
            raise OSError(28, "No space left on device")
        return write(handle, lines[:-10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        done.record("a part with a long name")
    monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == 1
    done.record("b")
    assert list(Manifest(path, {}, resume=True)) == ["b"]


def test_threads_of_one_process_begin_its_list_once(tmp_path):
    path = tmp_path / "run.jsonl"
    for turn in range(10):
        done = Manifest(path, {"turn": turn})
        together = threading.Barrier(4)

        def finish(part, together=together):
            together.wait()
            record_beside(path, "one-11-ab", part)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(finish, "abcd"))
        done.take_in()
        assert sorted(done) == list("abcd")
