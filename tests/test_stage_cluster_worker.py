"""What a worker does with a task file: the piece and its line, or one sentence that says why not."""

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from microscopy_files import recorded, save
from pellucid.core.deconvolution import deconvolve
from pellucid.core.psf_theory import gaussian
from pellucid.data.manifest import Manifest
from pellucid.data.recording import open_recording
from pellucid.errors import VoxelSizeWarning
from pellucid.stages.work import cluster_worker
from pellucid.stages.work.cluster_worker import Failed, do, put_task


@dataclass(frozen=True)
class Squares:
    """Squares of numbers, kept in a folder."""

    folder: Path

    def part(self, key):
        return f"number {key}"

    def read(self, key):
        return key

    def compute(self, key, read):
        return read**2

    def write(self, key, made):
        (self.folder / str(key)).write_text(str(made))
        return {"square": made}


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_worker, "PATIENCE_S", 0.0)
    done = Manifest(tmp_path / "run.jsonl", {})
    return done, put_task(Squares(tmp_path), done.path, None)


def test_a_piece_is_written_listed_and_may_be_done_twice(shared, tmp_path):
    _, file = shared
    facts, timings_s = do(file.path, file.checksum, 3)
    assert facts == {"square": 9}
    assert set(timings_s) == {"read", "compute", "write"}
    assert do(file.path, file.checksum, 3)[0] == facts
    assert (tmp_path / "3").read_text() == "9"
    assert list(Manifest(tmp_path / "run.jsonl", {}, resume=True)) == ["number 3"]


def test_another_task_in_the_place_of_one_s_own_is_not_opened(shared):
    _, file = shared
    failed = do(file.path, "0" * 32, 1)
    assert isinstance(failed, Failed)
    assert "not the task that was meant" in str(failed.error)
    failed = do(file.path + ".no", file.checksum, 1)
    assert "storage that all its machines share" in str(failed.error)


def test_a_late_worker_writes_nothing_for_a_run_that_is_over(shared, tmp_path):
    _, file = shared
    do(file.path, file.checksum, 1)
    Manifest(tmp_path / "run.jsonl", {"begun": "anew"})
    failed = do(file.path, file.checksum, 2)
    assert "the run of this task is over" in str(failed.error)
    assert not (tmp_path / "2").exists()
    assert [p.name for p in tmp_path.glob("run*")] == ["run.jsonl"]


@pytest.mark.filterwarnings("ignore::pellucid.errors.VoxelSizeWarning")
@pytest.mark.parametrize("name", ["raw.ome.zarr", "raw.ome.tif", "raw.npy"])
def test_a_recording_travels_as_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = recorded()
    np.save(name, counts) if name.endswith("npy") else save(name, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VoxelSizeWarning)  # said once, here and not by every worker
        recording = open_recording(name, voxel_um=(1.0, 2.0, 3.0))
    sent = pickle.dumps(recording)
    assert len(sent) < 1000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    got = pickle.loads(sent)
    assert got.voxel_um == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(got.read(), counts)


@pytest.mark.parametrize("method", ["gaussian", "wiener-butterworth"])
def test_the_number_of_threads_changes_no_bit(method):
    counts = recorded((6, 190, 210))
    psf = gaussian((0.6, 0.25, 0.25), (0.3, 0.1, 0.1))
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            restored = deconvolve(counts, psf, method=method, iterations=2, background=20.0)
            made.append(restored.image.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1] == made[2]
