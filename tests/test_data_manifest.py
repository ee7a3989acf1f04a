"""Manifests: what is recorded is found again, after any cut."""

import pytest

from pellucid.data.manifest import Manifest
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
