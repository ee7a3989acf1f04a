"""Models for others: ONNX, in a package as the BioImage Model Zoo takes it."""

import contextlib
import hashlib
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]

from pellucid.data.writer import check_output_path, replace
from pellucid.errors import InputError, OutputError, ParameterError
from pellucid.networks.model import RestorationNet
from pellucid.stages.networks.loading import load_network
from pellucid.stages.networks.parameters import ExportParameters

FORMAT_VERSION = "0.5.4"
OPSET = 18
WEIGHTS, TEST_INPUT, TEST_OUTPUT = "weights.onnx", "test_input.npy", "test_output.npy"
DOCUMENTATION, DESCRIPTION = "README.md", "bioimageio.yaml"
SMALLEST = 16
"""Voxels along each axis that the network takes at least; multiples of its blocks."""

README = """# {name}

Restores {modality} images with voxels of {voxel_um} um (z, y, x). Trained on simulated {structures}.

For each view the input holds three images on the object's grid, in photons: the recording above its
background, one Wiener step of the microscope's operator (alpha 0.01 of its greatest power), and the
square root of the recording averaged over 3 voxels. Borders are continued. Sizes are multiples of
{step}. The output is the object in photons. `pellucid.networks.features.inputs_of` makes the input.

## Validation

{held_out} On a recording of your own, compare with `pellucid deconvolve`.

An answer of a network can hold what the specimen does not: `pellucid restore` judges it.
"""


def export(parameters: ExportParameters) -> Path:
    """Write a model as a folder of ONNX weights, tests and a description; returns the folder."""
    check_output_path(
        parameters.output, parameters.overwrite, kind="a package", marks=(DESCRIPTION, WEIGHTS)
    )
    network, _, card = load_network(parameters.model)
    if network.refining:
        raise ParameterError(
            f"{parameters.model.name}: its networks refine each other through the microscope's operator, "
            "which ONNX does not hold. Train with passes: 1 to export."
        )
    licence = parameters.licence or card["licence"]
    if licence == "not stated":
        raise ParameterError("licence: the card states none. Give one, such as --licence BSD-3-Clause.")
    partial = parameters.output.with_name(parameters.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_weights(partial, network.weights)
        step = _steps(network.weights)[-1]
        metrics = card.get("metrics", {})
        held_out = "".join(f"Error on structures held out: {v:.3f}." for v in metrics.values())
        readme = README.format(name=parameters.name, step=step, held_out=held_out, **card)
        (partial / DOCUMENTATION).write_text(readme, encoding="utf-8")
        described = _description(partial, network.weights, card, parameters, licence)
        text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
        (partial / DESCRIPTION).write_text(text, encoding="utf-8")
        replace(partial, parameters.output)
    except OSError as error:
        raise OutputError(f"{parameters.output}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parameters.output


def _steps(net: RestorationNet) -> tuple[int, int, int]:
    z, y, x = (b * b for b in net.block)
    return z, y, x


def _write_weights(folder: Path, net: RestorationNet) -> None:
    """Write ONNX for any size, and an input with the output that it gives here."""
    a = net.architecture
    shape = (SMALLEST if a.volumetric else 1, 2 * SMALLEST, 3 * SMALLEST)
    count = net.head.in_channels
    generator = torch.Generator().manual_seed(0)
    inputs = 100 * torch.rand(1, count, *shape, generator=generator)
    arguments: tuple[Any, ...] = (inputs,)
    sizes = {
        axis + 2: step * torch.export.Dim(name, min=2, max=512)
        for axis, (name, step) in enumerate(zip("zyx", _steps(net), strict=True))
        if shape[axis] > 1
    }
    shapes: dict[str, Any] = {"inputs": sizes}
    names = ["inputs"]
    if a.positioned:
        arguments, names = (inputs, torch.zeros(1, 3, *shape)), ["inputs", "places"]
        shapes["places"] = sizes
    try:
        with _silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net, arguments, dynamo=True, dynamic_shapes=shapes, input_names=names,
                output_names=["object"], opset_version=OPSET,
            )  # fmt: skip
            assert program is not None
            program.save(folder / WEIGHTS)
    except ImportError as error:
        raise InputError(
            f"export: the package {error.name} is missing. Install pellucid[export]."
        ) from error
    with torch.no_grad():
        output = net(*arguments)
    np.save(folder / TEST_INPUT, inputs.numpy())
    np.save(folder / TEST_OUTPUT, output.numpy())
    if a.positioned:
        np.save(folder / "test_places.npy", arguments[1].numpy())


@contextlib.contextmanager
def _silent() -> Any:
    """Keep the exporter's progress from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _description(
    folder: Path, net: RestorationNet, card: dict[str, Any], parameters: ExportParameters, licence: str
) -> dict[str, Any]:
    """Return what the package says of itself, format 0.5 of the BioImage Model Zoo."""
    steps, spacing = _steps(net), card["voxel_um"]
    per_view = ("recording", "wiener_step", "noise_level")
    channels = [f"{name}_{v}" for v in range(net.architecture.views) for name in per_view]

    def space(reference: bool) -> list[dict[str, Any]]:
        axes = []
        for name, step, scale in zip("zyx", steps, spacing, strict=True):
            # Few enough digits that sizes times scale are exact, which the format's validator asks for.
            scale = float(np.float32(scale))
            size: Any = {"min": 2 * step, "step": step} if step > 1 else 1
            if reference:
                size = {"tensor_id": "inputs", "axis_id": name}
            axes.append(
                {"type": "space", "id": name, "size": size, "unit": "micrometer", "scale": scale}
            )
        return axes

    def tensor(name: str, axes: list[dict[str, Any]], test: str) -> dict[str, Any]:
        return {
            "id": name, "axes": [{"type": "batch"}, *axes], "data": {"type": "float32"},
            "test_tensor": _file(folder, test),
        }  # fmt: skip

    def channel(names: list[str]) -> dict[str, Any]:
        return {"type": "channel", "channel_names": names}

    inputs = [tensor("inputs", [channel(channels), *space(False)], TEST_INPUT)]
    if net.architecture.positioned:
        names = ["place_z", "place_y", "place_x"]
        inputs.append(tensor("places", [channel(names), *space(True)], "test_places.npy"))
    return {
        "format_version": FORMAT_VERSION, "type": "model", "name": parameters.name,
        "description": f"Restores {card['modality']} images; {card['parameters']} weights.",
        "authors": [{"name": name} for name in parameters.authors],
        "license": licence, "documentation": DOCUMENTATION,
        "cite": [{"text": "Pellucid", "url": "https://bioimage.io"}],
        "tags": ["deconvolution", "fluorescence", "restoration"],
        "inputs": inputs, "outputs": [tensor("object", space(True), TEST_OUTPUT)],
        "weights": {"onnx": {**_file(folder, WEIGHTS), "opset_version": OPSET}},
    }  # fmt: skip


def _file(folder: Path, name: str) -> dict[str, str]:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return {"source": name, "sha256": digest}
