"""The demonstration, on a small field: it measures, writes what it says, and shows it."""

import re
import subprocess
import sys

import numpy as np
import pytest

import pellucid
from pellucid.apps import demo, demo_cluster, demo_deconvolution, demo_fusion, demo_networks
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_simulated_recording_gets_closer_to_the_truth(folder, capsys, monkeypatch):
    monkeypatch.setattr(demo_deconvolution, "SHAPE", (16, 48, 48))
    monkeypatch.setattr(demo_deconvolution, "MATCHED_ITERATIONS", (2, 4))
    monkeypatch.setattr(demo_fusion, "SHAPE", (48, 48, 48))
    monkeypatch.setattr(demo_fusion, "VOXEL_UM", 0.25)
    monkeypatch.setattr(demo, "PARTS", demo.PARTS[:2])
    assert main(["demo", "-o", "shown"]) == 0
    said = capsys.readouterr().out
    rows = {line[:16].strip(): line.split() for line in said.splitlines()}
    assert float(rows["pellucid, defaul"][-2]) > float(rows["recorded"][-2]) + 0.03
    assert "matched Richardson-Lucy" in said
    one, two = (float(rows[name][-5]) for name in ("view A deconvolv", "joint"))
    assert two > one
    error = re.search(r"at the corners: ([\d.]+) voxels", said)
    assert error
    assert float(error[1]) < 1
    assert "Two views fused" in (folder / "shown" / "report.html").read_text()
    written = {path.name for path in (folder / "shown").iterdir()}
    assert {
        "raw.ome.zarr", "restored.ome.zarr", "picture.png", "report.html", "psf.tif", "SPIMA", "SPIMB",
        "psf_view.tif", "fused.ome.zarr", "fusion.png",
    } <= written  # fmt: skip
    assert pellucid.open("shown/restored.ome.zarr").voxel_um == demo_deconvolution.VOXEL_UM
    assert main(["demo", "-o", "shown"]) == 0


def test_a_worker_is_killed_and_the_result_is_equal(folder):
    """In a process of its own: Dask's sockets and loops are not this test's concern."""
    small = "from pellucid.apps import demo, demo_cluster\ndemo_cluster.SHAPE = (12, 128, 512)\n"
    small += "demo_cluster.TILE = (12, 128, 128)\ndemo.PARTS = (demo.worker_killed,)\n"
    command = "import sys\nfrom pellucid.apps.cli import main\nsys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", small + command, "demo", "-o", "shown"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert re.search(r"killed the worker with process id \d+", run.stderr)
    assert "4 tiles by two local workers" in run.stdout
    assert "equal to that of one undisturbed process, byte for byte" in run.stdout
    made = [folder / "shown" / name for name in (demo_cluster.UNDISTURBED, demo_cluster.DISTURBED)]
    assert demo_cluster.chunks(made[0]) == demo_cluster.chunks(made[1]) != {}


def test_files_of_one_s_own(folder, capsys):
    z, y, x = np.indices((20, 32, 32)) - np.array([10, 16, 16]).reshape(3, 1, 1, 1)
    shell = 300.0 * np.exp(-((np.sqrt(z**2 + y**2 + x**2) - 6) ** 2) / 4) + 10
    counts = np.random.default_rng(0).poisson(shell).astype(np.uint16)
    (folder / "mine").mkdir()
    pellucid.write("mine/raw.tif", counts, voxel_um=(0.2, 0.2, 0.2))
    psf = gaussian((0.6, 0.5, 0.5), (0.2, 0.2, 0.2)).values.astype(np.float32)
    pellucid.write("mine/psf_computed.tif", psf, voxel_um=(0.2, 0.2, 0.2))
    assert main(["demo", "--data", "mine"]) == 0
    said = capsys.readouterr().out
    (dip,) = [line for line in said.splitlines() if "hollow bead" in line]
    before, after = map(float, re.findall(r"\d\.\d\d", dip))
    assert after < before
    assert (folder / "demo" / "picture.png").is_file()


def test_a_folder_without_the_two_files(folder, capsys):
    assert main(["demo", "--data", str(folder)]) == 1
    assert "raw.tif: no such file" in capsys.readouterr().err


def test_the_centre_of_a_shell():
    z, y, x = np.indices((21, 21, 21)) - 10
    radius = np.sqrt(z**2 + y**2 + x**2)
    assert demo_deconvolution.centre_dip(np.where((radius < 8) & (radius > 5), 1.0, 0.0)) < 0.05
    assert demo_deconvolution.centre_dip(np.where(radius < 8, 1.0, 0.0)) == pytest.approx(
        1.0, abs=0.01
    )


def test_a_structure_never_seen_is_cured(folder):
    field = demo_networks.psf_field()
    assert len(field.psfs) == demo_networks.PLACES
    part = demo_networks.varying_blur(folder)
    rows = {line.split()[0]: line.split() for line in part.lines if line}
    known, unknown = ([float(rows[k][i]) for k in ("classical", "network", "cured")] for i in (2, 3))
    assert known[2] > known[1] > known[0]
    # what it never saw the network restores worse, and its verdict and the cure find out
    assert unknown[1] < unknown[0] - 1
    assert unknown[2] > unknown[0] - 0.1
    assert any("of the wrong regions it finds 100%" in line for line in part.lines)
    assert pellucid.open(folder / demo_networks.CURED).voxel_um == demo_networks.VOXEL_UM
