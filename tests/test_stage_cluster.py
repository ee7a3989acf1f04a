"""Tiles on a cluster: the bytes of one process, whoever is killed; what is refused before work starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dask_jobqueue.slurm import SLURMJob

from cluster_runs import COMMAND, finished_tiles, lists, pixels, started, worker_of
from microscopy_files import VOXEL_UM, save, save_psf
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian
from pellucid.core.simulation import STRUCTURES, Camera, record
from pellucid.data.record import read_record
from pellucid.errors import ParameterError
from pellucid.stages.work import cluster_worker
from pellucid.stages.work.cluster import slurm_options
from pellucid.stages.work.cluster_choice import Local, Scheduler, SlurmParameters, cluster_of
from pellucid.stages.work.workplace import opened_engine

SLURM = {"queue": "normal", "workers": 2, "memory": "2GiB"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    psf = gaussian((0.6, 0.25, 0.25), VOXEL_UM)
    seen = record(
        STRUCTURES["filaments"], psf.values, (12, 128, 768), peak_photons=300.0,
        background_photons=5.0, camera=Camera(), seed=5,
    )  # fmt: skip
    save(folder / "raw.ome.zarr", seen.counts)
    save_psf(folder / "psf.tif")
    here = Path.cwd()
    os.chdir(folder)
    run = started("straight.ome.zarr")
    os.chdir(here)
    assert run.wait() == 0
    run.stderr.close()
    return folder


@pytest.fixture
def folder(recordings, tmp_path, monkeypatch):
    shutil.copytree(recordings, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(condition, run):
    """Wait until `condition` holds; returns what the run said if it ended before."""
    while not condition():
        if run.poll() is not None:
            pytest.fail(f"ended too early: {run.communicate()[1]}")
        time.sleep(0.002)


def gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"


def test_a_killed_worker_s_tiles_are_made_by_another(folder):
    run = started("out.ome.zarr", "--cluster", "local:2")
    wait_for(lambda: lists("out.ome.zarr"), run)
    victim = worker_of(lists("out.ome.zarr")[0])
    os.kill(victim, signal.SIGKILL)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert "2 workers of tcp://127.0.0.1" in said
    assert "dashboard http://" in said
    assert [line.split()[0] for line in said.splitlines() if " tile " in line] == [
        f"{n}/6" for n in range(1, 7)
    ]
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")
    known, straight = (read_record(f"{n}.ome.zarr")["statistics"]["volumes"] for n in ("out", "straight"))
    assert known == straight  # measured by two workers, and by one process
    assert sorted(p.name for p in folder.glob("out*")) == ["out.ome.zarr", "out.ome.zarr.pellucid.json"]


def test_engines_go_on_with_what_another_began(folder):
    manifest = Path("out.ome.zarr.parts.jsonl")
    run = started("out.ome.zarr")
    wait_for(lambda: finished_tiles(manifest), run)
    run.kill()
    run.communicate()
    run = started("out.ome.zarr", "--cluster", "local:2", "--resume")
    wait_for(lambda: lists("out.ome.zarr"), run)
    workers = [worker_of(path) for path in lists("out.ome.zarr")]
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 60
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline, "workers outlive their client"
        time.sleep(0.05)
    finished = sum(map(finished_tiles, [manifest, *lists("out.ome.zarr")]))
    run = started("out.ome.zarr", "--resume")
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert said.count(" tile ") == 6 - finished
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")


def test_a_killed_scheduler_leaves_what_is_finished(folder):
    dask = [sys.executable, "-m"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
         "--no-dashboard", "--scheduler-file", "where.json"], **quiet,
    )  # fmt: skip
    wait_for(lambda: Path("where.json").is_file() and Path("where.json").read_text(), scheduler)
    address = json.loads(Path("where.json").read_text())["address"]
    worker = subprocess.Popen(
        [*dask, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny",
         "--death-timeout", "5", "--no-dashboard"], **quiet,
    )  # fmt: skip
    try:
        while "has no workers" in (said := plan_for(address)):
            pass
        assert "tiles" in said
        impatient = "import pellucid.stages.work.cluster as c; c.CONNECT_S = 2\n"
        run = started("out.ome.zarr", "--cluster", address, before=impatient)
        wait_for(lambda: any(b" tile " in path.read_bytes() for path in lists("out.ome.zarr")), run)
        scheduler.kill()
        said = run.communicate()[1]
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert run.returncode == 1
    assert "the scheduler is gone" in said
    assert "go on with --resume" in said
    assert "Traceback" not in said
    assert not Path("out.ome.zarr").exists()
    run = started("out.ome.zarr", "--resume")
    said = run.communicate()[1]
    assert said.count(" tile ") < 6
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")


def plan_for(address):
    """What a dry run says of a scheduler's workers."""
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, "deconvolve", "raw.ome.zarr", "--psf", "psf.tif", "-o",
         "out.ome.zarr", "--cluster", address, "--dry-run"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.stdout + run.stderr


PIECES = """
from dataclasses import dataclass
from pathlib import Path
from pellucid.errors import InputError, OutputError

@dataclass(frozen=True)
class Numbers:
    folder: Path
    broken: int
    def part(self, key):
        return f"number {key}"
    def read(self, key):
        if key == self.broken:
            raise InputError(f"number {key}: a chunk cannot be read.")
        seen = self.folder / f"seen {key}"
        if key == 1 and not seen.exists():
            seen.touch()
            raise OSError("once")
        return key
    def compute(self, key, read):
        return read**2
    def write(self, key, made):
        (self.folder / str(key)).write_text(str(made))
        return {"square": made}
"""
SQUARES = """
import sys
from pathlib import Path
from pieces import Numbers
from pellucid.data.manifest import Manifest
from pellucid.errors import InputError
from pellucid.stages.work.workplace import opened_engine

if __name__ == "__main__":
    manifest = Path("run.jsonl")
    done = []
    with opened_engine("local:2") as engine:
        listed = Manifest(manifest, {})
        listed.record("number 0", {"square": 0})
        try:
            engine.run(range(6), Numbers(Path.cwd(), 5), listed, lambda one: done.append(one.key))
        except InputError as error:
            print(error)
        print(sorted(done), len(Manifest(manifest, {}, resume=True)))
        engine.run(range(6), Numbers(Path.cwd(), -1), Manifest(manifest, {}, resume=True), print)
    again = Manifest(manifest, {}, resume=True)
    squares = [again.facts(f"number {n}")["square"] for n in range(6)]
    print(squares, sorted(p.name for p in Path().glob("run*")))
"""


def test_a_piece_that_fails_is_tried_again_and_then_ends_the_run(tmp_path):
    (tmp_path / "pieces.py").write_text(PIECES)
    (tmp_path / "squares.py").write_text(SQUARES)
    run = subprocess.run(
        [sys.executable, "squares.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    error, done, *more, end = run.stdout.splitlines()
    assert error == "number 5: a chunk cannot be read."
    keys, listed = done.rsplit(" ", 1)
    assert len(json.loads(keys)) + 1 <= int(listed) <= 5
    assert len(more) == 6 - int(listed)
    assert end == "[0, 1, 4, 9, 16, 25] ['run.jsonl']"


def test_a_full_disk_keeps_what_is_finished(folder):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))\n"
    run = started("out.ome.zarr", "--cluster", "local:2", before=limit)
    said = run.communicate()[1]
    assert run.returncode == 1
    assert "out.ome.zarr: writing failed" in said
    assert "go on with --resume" in said
    run = started("out.ome.zarr", "--resume")
    run.communicate()
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")


def test_what_names_no_cluster_is_refused_before_work(folder, capsys, monkeypatch):
    Path("typo.yaml").write_text(yaml.safe_dump({**SLURM, "wokers": 3}))
    Path("queueless.yaml").write_text(yaml.safe_dump({"workers": 2, "memory": "2GiB"}))
    Path("list.yaml").write_text("- queue")
    refusals = {
        "locl:2": (2, "expected local, local:N"),
        "local:0": (2, "1 to 1024 local workers"),
        "tcp://nowhere": (2, "tcp://host:port"),
        "tcp://host:99999": (2, "tcp://host:port"),
        "http://host:8786": (2, "tcp://host:port"),
        "tcp://127.0.0.1:1": (1, "no scheduler answers at tcp://127.0.0.1:1"),
        "absent.yaml": (2, "absent.yaml cannot be read"),
        "list.yaml": (2, "expected lines such as"),
        "typo.yaml": (2, "wokers"),
        "queueless.yaml": (2, "queue: needed, and not given. Say it in the file."),
    }
    monkeypatch.setattr("pellucid.stages.work.cluster.CONNECT_S", 0.5)
    for cluster, (code, words) in refusals.items():
        arguments = ["deconvolve", "raw.ome.zarr", "--psf", "psf.tif", "-o", "no.ome.zarr"]
        assert main([*arguments, "--cluster", cluster]) == code, cluster
        said = capsys.readouterr().err
        assert words in said, cluster
        assert "Traceback" not in said
    assert main([*arguments[:-1], "no.tif", "--cluster", "local:2"]) == 2
    assert "leave the cluster out" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*arguments, "--cluster", "local:2"]) == 2
    assert "pip install 'pellucid[cluster]'" in capsys.readouterr().err
    assert not list(folder.glob("no*"))


def test_names_of_clusters():
    assert cluster_of("local:3") == Local(3)
    assert cluster_of("local").workers >= 1
    assert cluster_of("tcp://10.0.0.1:8786") == Scheduler("tcp://10.0.0.1:8786")


def test_every_worker_gets_tiles_and_a_share_of_the_memory(folder, capsys):
    arguments = ["deconvolve", "raw.ome.zarr", "--psf", "psf.tif", "-o", "s.ome.zarr"]
    for workers, memory in ((2, None), (3, "8GiB")):
        more = ["--memory", memory] if memory else []
        more += ["--dry-run", "--json", "--cluster", f"local:{workers}"]
        assert main([*arguments, *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["files"][0]["tiles"] >= 2 * workers
        assert plan["available_bytes"] < 8 * 2**30 / workers or memory is None


def test_the_job_script_of_a_slurm_file():
    asked = SlurmParameters.checked(
        {**SLURM, "cores": 8, "gpus": 1, "account": "lab", "walltime": "1-02:00:00",
         "directives": ["--exclusive"], "prologue": ["module load python"], "python": "python3"}
    )  # fmt: skip
    script = SLURMJob("tcp://10.0.0.1:8786", "one", **slurm_options(asked)).job_script()
    for line in (
        "#SBATCH -p normal", "#SBATCH -A lab", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=2G",
        "#SBATCH -t 1-02:00:00", "#SBATCH --gres=gpu:1", "#SBATCH --exclusive", "module load python",
    ):  # fmt: skip
        assert line in script.splitlines()
    assert "python3 -m distributed.cli.dask_worker tcp://10.0.0.1:8786" in script
    assert f"--nthreads {cluster_worker.LANES}" in script
    with pytest.raises(ParameterError, match="walltime"):
        SlurmParameters.checked({**SLURM, "walltime": "soon"})


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no SLURM here (sbatch)")
def test_jobs_of_slurm_make_the_same_bytes(folder):
    state = subprocess.run(["sinfo", "-h", "-o", "%P %T"], capture_output=True, text=True, check=False)
    if "normal" not in state.stdout:
        pytest.skip("SLURM has no partition 'normal' that answers (benchmarks/slurm/one_node.sh)")
    Path("slurm.yaml").write_text(yaml.safe_dump({**SLURM, "interface": "lo", "logs": "logs"}))
    run = started("out.ome.zarr", "--cluster", "slurm.yaml")
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert pixels("out.ome.zarr") == pixels("straight.ome.zarr")


def test_workers_of_this_terminal_leave_interrupts_to_it():
    with opened_engine("local:1") as engine:
        handlers = engine.client.run(signal.getsignal, signal.SIGINT)
    assert list(handlers.values()) == [signal.SIG_IGN]
