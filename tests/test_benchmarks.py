"""The benchmarks import, and the speed benchmark compares like with like on a tiny volume."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHAPE, PSF_SHAPE = (12, 20, 24), (5, 7, 9)
SETTINGS = {"iterations": 3, "threads": 1}


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__


def job() -> Any:
    peers = importlib.import_module("speed_peers")
    image, psf = peers.inputs(SHAPE, PSF_SHAPE)
    return peers.Job(image, psf, **SETTINGS)


@pytest.mark.parametrize("border", ["periodic", "dark", "extended"])
def test_ours_agrees_with_the_float64_reference(border: str) -> None:
    peers, speed = importlib.import_module("speed_peers"), importlib.import_module("speed")
    handling = next(
        c.handling for c in peers.CONTENDERS
        if c.name == peers.OURS and c.handling.border == border
    )  # fmt: skip
    reference = peers.plain_loop(job(), handling, np.float64)
    error, shift = speed.compared(peers.ours(job(), border)(), reference)
    assert error < 2e-6
    assert shift == (0, 0, 0)
    # the borders differ: a reference that ignored its handling would agree with all of ours
    other = peers.plain_loop(job(), peers.Handling("reflected"), np.float64)
    assert speed.compared(other, reference)[0] > 1e-3


def test_a_shifted_result_is_recognised() -> None:
    speed = importlib.import_module("speed")
    reference = np.random.default_rng(0).random((9, 10, 11))
    error, shift = speed.compared(np.roll(reference, (1, 0, -1), axis=(0, 1, 2)), reference)
    assert shift == (1, 0, -1)
    assert error == 0


def test_a_contender_answers_from_its_own_process(tmp_path: Path) -> None:
    peers, speed = importlib.import_module("speed_peers"), importlib.import_module("speed")
    peers.prepare(tmp_path, SHAPE, PSF_SHAPE, SETTINGS)
    index = next(i for i, c in enumerate(peers.CONTENDERS) if c.name == "SciPy loop")
    worker = speed.Worker(index, tmp_path, SETTINGS, [speed.sys.executable])
    worker.run()
    worker.stop()
    assert not worker.missing
    assert worker.runs[0]["cpu_s"] > 0
    row = speed.table([worker], tmp_path, SHAPE, PSF_SHAPE).splitlines()[-1]
    assert row.startswith("SciPy loop")
    assert row.endswith("none")


def test_a_peer_that_is_absent_is_left_out_by_name(tmp_path: Path) -> None:
    peers, speed = importlib.import_module("speed_peers"), importlib.import_module("speed")
    index = next(i for i, c in enumerate(peers.CONTENDERS) if c.name == "flowdec")
    worker = speed.Worker(index, tmp_path, SETTINGS, [speed.sys.executable])
    assert "left out: flowdec" in speed.table([worker], tmp_path, SHAPE, PSF_SHAPE)


def test_invented_light_is_what_lies_farther_than_a_psf_s_width_from_any_truth() -> None:
    matrix = importlib.import_module("network_matrix")
    truth = np.zeros((9, 20, 20))
    truth[4, 5, 5:15] = 10
    blurred = truth.copy()
    blurred[4, 6, 5:15] = 4  # a voxel beside it is within the width
    assert matrix.invented(blurred, truth, (2, 2, 2)) == 0
    false = blurred.copy()
    false[4, 15, 5:15] = 14
    assert matrix.invented(false, truth, (2, 2, 2)) == pytest.approx(0.5)
    dim = blurred.copy()
    dim[4, 15] = 0.4  # noise, below a twentieth of the structure
    assert matrix.invented(dim, truth, (2, 2, 2)) == 0


def test_a_matrix_of_networks_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = importlib.import_module("network_matrix")
    dense = {"DenseDeconNet-like": matrix.CONTENDERS["DenseDeconNet-like"]}
    small = {"STRUCTURES": ("points",), "RECORDINGS": 1, "TESTS": 1, "CONTENDERS": dense}
    for name, value in {**small, "SHAPE": (1, 32, 32), "PATCH": (1, 16, 16)}.items():
        monkeypatch.setattr(matrix, name, value)
    matrix.run(tmp_path, 1, 1)
    first = (tmp_path / "DenseDeconNet-like-points-0.json").read_text()
    assert "5804 weights" in capsys.readouterr().out
    matrix.run(tmp_path, 1, 1)
    assert capsys.readouterr().out == ""
    (tmp_path / "DenseDeconNet-like-points-0.json").unlink()
    matrix.run(tmp_path, 1, 1)  # tests again what was trained
    assert (tmp_path / "DenseDeconNet-like-points-0.json").read_text() == first
