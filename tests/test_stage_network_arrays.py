"""The verbs `train` and `restore`: the same network, from Python and from files."""

import numpy as np
import pytest
import torch

import pellucid
from pellucid.apps.cli import main
from pellucid.core.psf_theory import gaussian
from pellucid.errors import InputError, OutputError, ParameterError

VOXEL = (0.3, 0.12, 0.12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    psf = gaussian((0.6, 0.3, 0.3), VOXEL, (5, 7, 7)).values
    pellucid.write(folder / "psf.tif", psf.astype(np.float32), voxel_um=VOXEL)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    looks = []
    recipe = {
        "output": folder / "model", "psf": folder / "psf.tif", "steps": 2, "validate_every": 1,
        "shape": "8,24,24", "patch": "8,16,16", "width": 8, "calibration": 4,
    }  # fmt: skip
    made = pellucid.train(recipe, on_look=lambda step, error: looks.append((step, error)))
    assert [step for step, _ in looks] == [1, 2]
    assert made.card["metrics"]["held_out_nrmse"] <= min(error for _, error in looks)
    with pytest.raises(OutputError, match=r"exists already.*overwrite: true in the recipe"):
        pellucid.train(recipe)
    with pytest.raises(ParameterError, match="Did you mean 'steps'"):
        pellucid.train({**recipe, "stepps": 3})
    return made.model


def counts():
    image = np.random.default_rng(0).poisson(20.0, (8, 24, 24)).astype(np.uint16)
    image[3:5, 8:16, 10:14] += 200
    return image


def test_an_array_is_restored_as_its_file_is(folder, trained, tmp_path):
    pellucid.write(tmp_path / "raw.ome.tif", counts(), voxel_um=VOXEL)
    command = ["restore", tmp_path / "raw.ome.tif", "--model", trained, "--polish", "1", "--fall-back"]
    assert main([str(part) for part in [*command, "-o", tmp_path / "sharp.ome.tif"]]) == 0
    answer = pellucid.restore(counts(), trained, voxel_um=VOXEL, polish=1, fall_back=True)
    np.testing.assert_array_equal(answer.image, pellucid.open(tmp_path / "sharp.ome.tif").read())
    assert answer.believable is None
    assert 0 <= answer.stats["network_share"] <= 1


def test_tensors_stay_tensors_and_nothing_is_nothing(trained):
    answer = pellucid.restore(torch.tensor(counts().astype(np.float32)), trained, polish=0)
    assert isinstance(answer.image, torch.Tensor)
    assert answer.image.shape == (8, 24, 24)
    dark = pellucid.restore(np.zeros((8, 24, 24)), trained, verdict=True)
    assert not dark.image.any()
    assert (dark.believable == 1).all()


def test_what_cannot_be_restored_is_refused(trained):
    with pytest.raises(InputError, match=r"voxels of \(1, 1, 1\) um, the model is for"):
        pellucid.restore(counts(), trained, voxel_um=(1, 1, 1))
    with pytest.raises(InputError, match="trained for volumes"):
        pellucid.restore(counts()[3], trained)
    with pytest.raises(InputError, match="Give one channel"):
        pellucid.restore(counts()[None], trained)
    with pytest.raises(ParameterError, match="0 to 3 iterations, got 9"):
        pellucid.restore(counts(), trained, polish=9)
    with pytest.raises(InputError, match="no model"):
        pellucid.restore(counts(), "nowhere")
