"""`pellucid model export`: ONNX that answers like the network, in a package that its validator takes."""

import numpy as np
import pytest
import torch

from pellucid.apps.cli import main
from pellucid.data.model_files import write_model
from pellucid.networks.model import Architecture, RestorationNet

pytest.importorskip("onnxscript", reason="needs the extra `export`")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def model_folder(folder, *architectures, licence="BSD-3-Clause"):
    tensors = {"psf": torch.full((1, 3, 3), 1 / 9)}
    for i, architecture in enumerate(architectures):
        net = RestorationNet(architecture)
        with torch.no_grad():
            net.tail.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(i))
        tensors |= {f"net{i}.{k}": v for k, v in net.state_dict().items()}
    card = {
        "networks": [a.as_dict() for a in architectures], "voxel_um": (0.3, 0.1, 0.1),
        "licence": licence, "modality": "light-sheet", "parameters": 1, "structures": ["points"],
    }  # fmt: skip
    write_model(folder, tensors, card)
    return net.eval()


@pytest.mark.filterwarnings("ignore")  # of the validator's and the exporter's own dependencies
def test_the_package_is_valid_and_answers_like_the_network(tmp_path):
    net = model_folder(tmp_path / "model", Architecture(width=8))
    package = tmp_path / "package"
    asked = ["model", "export", str(tmp_path / "model"), "-o", str(package)]
    assert main(asked) == 0
    session = ort.InferenceSession(package / "weights.onnx")
    inputs = torch.rand(1, 3, 12, 40, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(inputs).numpy()
    answer = session.run(None, {"inputs": inputs.numpy()})[0]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    spec = pytest.importorskip("bioimageio.spec", reason="needs bioimageio.spec")
    described = spec.load_description(package / "bioimageio.yaml", format_version="latest")
    assert described.validation_summary.status in ("passed", "valid-format"), (
        described.validation_summary.format()
    )
    assert described.type == "model"


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    one, refining = Architecture(width=8), Architecture(width=8, refining=True)
    model_folder(tmp_path / "two", one, refining)
    model_folder(tmp_path / "unstated", one, licence="not stated")
    for name, message in (("two", "passes: 1"), ("unstated", "--licence")):
        asked = ["model", "export", str(tmp_path / name), "-o", str(tmp_path / "out")]
        assert main(asked) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
