"""Restoration of a recording by a model: the answer, its polish, its verdict, its record."""

from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import as_volume
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.model_files import read_model
from pellucid.data.output import check_not_input, create_output
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, OutputError
from pellucid.networks.evidence import gather
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.trust import Trust, as_map, fallen_back
from pellucid.stages.network_parameters import RestoreParameters
from pellucid.stages.resources import resolve_device
from pellucid.stages.training import check_spacing, photon_problem


def load_network(folder: Path) -> tuple[Network, Psf | PsfField, dict[str, Any]]:
    """The network of a model, the PSF or field it is for, and its card; InputError where they do not
    fit."""
    tensors, card = read_model(folder)
    try:
        nets = []
        for i, values in enumerate(card["networks"]):
            net = RestorationNet(Architecture(**values))
            mine = f"net{i}."
            net.load_state_dict(
                {k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)}
            )
            nets.append(net.eval())
        z, y, x = (float(s) for s in card["voxel_um"])
        psf: Psf | PsfField
        if "psf_field" in tensors:
            values = tensors["psf_field"].numpy().astype(np.float64)
            psf = PsfField(values, tensors["positions_um"].numpy(), (z, y, x))
        else:
            psf = Psf(tensors["psf"].numpy().astype(np.float64), (z, y, x))
        return Network(nets[0], tuple(nets[1:])), psf, card
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder.name}: card and weights do not fit. Train the model anew.") from error


def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore one volume or plane and write it with its record; returns the statistics."""
    network, psf, card = load_network(parameters.model)
    if parameters.modality not in (None, card["modality"]):
        raise InputError(
            f"{parameters.model.name}: a model for {card['modality']}, asked for "
            f"{parameters.modality}. Choose a model of that modality."
        )
    recording = open_recording(parameters.input, voxel_um=parameters.voxel_um)
    spacing = recording.require_voxel_um()
    check_spacing(spacing, card["voxel_um"], recording.path.name)
    image = as_volume(recording.read(parameters.time, parameters.channel))
    z, y, x = image.shape
    described = ImageDescription((1, 1, z, y, x), "float32", spacing)
    inputs = (recording.path, *recording.files)
    check_not_input(parameters.output, inputs)
    if parameters.verdict is not None:
        check_not_input(parameters.verdict, inputs)
        if parameters.verdict.resolve() == parameters.output.resolve():
            raise OutputError(f"{parameters.verdict}: the verdict would replace the image. Name another.")
    outputs = [create_output(parameters.output, described, overwrite=parameters.overwrite)]
    if parameters.verdict is not None:
        outputs.append(create_output(parameters.verdict, described, overwrite=parameters.overwrite))
    problem, gain = photon_problem(image.to(resolve_device(parameters.device)), psf)
    iterations = None if parameters.polish == "auto" else int(parameters.polish)
    restorer = Polished(network, iterations)
    answer = restorer(problem)
    volumes, stats = [answer.image.cpu()], dict(answer.stats)
    if parameters.verdict is not None or parameters.fall_back:
        if card.get("trust") is None:
            raise InputError(
                f"{parameters.model.name}: holds no verdict, as nothing was wrong in its calibration. "
                "Train with more calibration recordings, or leave --verdict out."
            )
        x_whole = restorer.estimate(problem)
        judged = Trust.from_dict(card["trust"]).believable(gather(problem, restorer, x_whole))
        trusted = as_map(judged, (z, y, x))
        stats |= {"believable": float(judged.mean()), "doubtful_regions": int((judged < 0.5).sum())}
        if parameters.fall_back:
            classical = Accelerated()(problem).image.cpu()
            volumes[0] = fallen_back(volumes[0], classical, judged)
        if parameters.verdict is not None:
            volumes.append(trusted)
    record = RunRecord("restore", parameters.plain())
    record.inputs = [fingerprint(path) for path in (*recording.files, parameters.model)]
    record.statistics = stats
    scales = (gain, 1.0)
    for writer, volume, scale in zip(outputs, volumes, scales, strict=False):
        with writer as out:
            out.write(0, 0, (volume * scale).numpy().astype(np.float32))
        write_record(record, writer.path)
    return stats
