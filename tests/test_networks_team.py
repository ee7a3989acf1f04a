"""Processes that train one network together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pellucid
from microscopes import gaussian_psf
from pellucid.core.operators import Blur
from pellucid.networks import team
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.structures import Light
from pellucid.networks.training import Schedule, SimulatedPairs, Trainer, relative_error

STEPS, MEMBERS = 2, 2
SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_networks_team import STEPS, trainer
from pellucid.networks import team
torch.set_num_threads(1)
with team.together("cpu") as device:
    one = trainer()
    one.run(STEPS)
    torch.save([one.net.state_dict(), one.curve], f"{sys.argv[2]}/{team.member()[0]}.pt")
"""


def trainer() -> Trainer:
    psf = torch.from_numpy(gaussian_psf((5, 5, 5), (2.0, 2.0, 2.0))).float()
    pairs = SimulatedPairs((Blur(psf, (8, 24, 24)),), ("points", "filaments"), Light((100, 100), (2, 2)), 3)
    held_out = (pairs(99),)
    net = RestorationNet(Architecture(volumetric=True, width=8, refining=False, positioned=False), 0)
    return Trainer(net, pairs, held_out, Schedule(10, patch=(8, 16, 16), validate_every=1))


def started(arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    runs = []
    for rank in range(MEMBERS):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(MEMBERS)}
        runs.append(
            subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env={**common, **own}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return runs


def test_gradients_are_those_of_all_pairs(tmp_path, monkeypatch):
    runs = started(["-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)], tmp_path)
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * MEMBERS, said
    (first, curve), (second, same_curve) = (torch.load(tmp_path / f"{i}.pt") for i in range(MEMBERS))
    assert curve[-1]["held_out"] == same_curve[-1]["held_out"]
    assert all(torch.equal(first[k], second[k]) for k in first)

    # one process, by hand: the mean of both members' errors
    alone = trainer()
    alone.net.train()
    for _ in range(STEPS):
        rate = alone._rate()
        for group in alone.optimiser.param_groups:
            group["lr"] = rate
        alone.optimiser.zero_grad()
        for member in range(MEMBERS):
            monkeypatch.setattr(team, "member", lambda m=member: (m, MEMBERS))
            inputs, truth, places = alone._batch()
            (relative_error(alone.net(inputs, places), truth, inputs) / MEMBERS).backward()
        torch.nn.utils.clip_grad_norm_(alone.net.parameters(), 1.0)
        alone.optimiser.step()
        alone.step += 1
    for key, value in alone.net.state_dict().items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def recipe(tmp_path):
    psf = gaussian_psf((5, 7, 7), (2.0, 2.5, 2.5)).astype("float32")
    pellucid.write(tmp_path / "psf.tif", psf, voxel_um=(0.3, 0.12, 0.12))
    (tmp_path / "r.yaml").write_text(
        "output: model\npsf: psf.tif\nsteps: 2\nvalidate_every: 1\nshape: 8,24,24\npatch: 8,16,16\n"
        "width: 8\ncalibration: 4\n"
    )
    return tmp_path


def test_several_processes_write_one_model(recipe):
    code = "import sys; from pellucid.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    runs = started(["-c", code, "train", "r.yaml"], recipe)
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0] * MEMBERS, said
    assert sum("wrote model" in out + error for out, error in said) == 1
    assert sum((out + error).count("step 2: held-out") for out, error in said) == 1
    assert (recipe / "model" / "weights.safetensors").is_file()
    assert not (recipe / "model.checkpoint").exists()


def test_the_verb_for_python_ends_in_all_processes(recipe):
    code = (
        "import yaml, pellucid; made = pellucid.train(yaml.safe_load(open('r.yaml'))); "
        "print(made.model.name, 'metrics' in made.card)"
    )
    runs = started(["-c", code], recipe)
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0] * MEMBERS, said
    assert [out.split() for out, _ in said] == [["model", "True"], ["model", "False"]]


def test_alone_is_the_first_of_one():
    assert team.member() == (0, 1)
    assert team.is_first()
    net = torch.nn.Linear(1, 1)
    assert team.averaging(net) is net
    assert team.from_first(0.5, "cpu") == pytest.approx(0.5)
