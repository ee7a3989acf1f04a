"""Restoration of a recording by a model: the answer, its polish, its verdict, its record."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import as_volume, blur_of, image_shape, usable_psf
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.model_files import read_model
from pellucid.data.output import check_not_input, create_output
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import Recording, open_recording
from pellucid.data.writer import ImageDescription, ImageWriter
from pellucid.errors import InputError, OutputError, PlanError
from pellucid.networks.evidence import gather
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, fallen_back
from pellucid.networks.trust import Trust, as_map
from pellucid.stages.events import FileDone, OnEvent, VolumeDone, ignore
from pellucid.stages.network_parameters import RestoreParameters
from pellucid.stages.planning import gib
from pellucid.stages.resources import available_bytes, resolve_device
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


@dataclass(frozen=True)
class RestorePlan:
    """A restoration by a model that can be done, and has not started."""

    parameters: RestoreParameters
    network: Network
    psf: Psf | PsfField
    card: dict[str, Any]
    recording: Recording
    device: str
    peak_bytes: int
    available_bytes: int | None

    @property
    def restorer(self) -> Polished:
        """The network with its polish."""
        polish = self.parameters.polish
        return polished(self.network, None if polish == "auto" else int(polish))

    @property
    def image(self) -> ImageDescription:
        """What the output will hold."""
        z, y, x = self.recording.shape[2:]
        return ImageDescription((1, 1, z, y, x), "float32", self.recording.require_voxel_um())

    def writers(self) -> list[ImageWriter]:
        """The outputs, the image first, checked and not yet begun."""
        asked = self.parameters
        paths = [asked.output] if asked.verdict is None else [asked.output, asked.verdict]
        return [create_output(path, self.image, overwrite=asked.overwrite) for path in paths]


def plan_restoring(parameters: RestoreParameters) -> RestorePlan:
    """The plan of a restoration: model and recording opened and compared; no pixel is read.

    Raises
    ------
    InputError, OutputError, PlanError : what cannot be, in one sentence
    """
    network, psf, card = load_network(parameters.model)
    if parameters.modality not in (None, card["modality"]):
        raise InputError(
            f"{parameters.model.name}: a model for {card['modality']}, asked for "
            f"{parameters.modality}. Choose a model of that modality."
        )
    asks = {"fall_back": parameters.fall_back, "verdict": parameters.verdict is not None}
    check_card(card, parameters.model.name, **asks)
    recording = open_recording(parameters.input, voxel_um=parameters.voxel_um)
    check_spacing(recording.require_voxel_um(), card["voxel_um"], recording.path.name)
    asked = (("t", parameters.time), ("c", parameters.channel))
    for (axis, index), size in zip(asked, recording.shape[:2], strict=True):
        if index >= size:
            raise InputError(
                f"{recording.path.name}: {axis} = {index} is outside 0..{size - 1} of this file."
            )
    inputs = (recording.path, *recording.files)
    check_not_input(parameters.output, inputs)
    if parameters.verdict is not None:
        check_not_input(parameters.verdict, inputs)
        if parameters.verdict.resolve() == parameters.output.resolve():
            raise OutputError(f"{parameters.verdict}: the verdict would replace the image. Name another.")
    device = resolve_device(parameters.device)
    plan = RestorePlan(parameters, network, psf, card, recording, device, 0, available_bytes(device))
    plan = replace(plan, peak_bytes=_peak_bytes(plan))
    plan.writers()
    if plan.available_bytes is not None and plan.peak_bytes > plan.available_bytes:
        raise PlanError(
            f"{recording.path.name}: restoring {recording.shape[2:]} needs {gib(plan.peak_bytes)} and "
            f"{device} has {gib(plan.available_bytes)} free. Take a crop."
        )
    return plan


def polished(network: Network, iterations: int | None) -> Polished:
    """The network with its polish."""
    return Polished(network, iterations)


def check_card(card: dict[str, Any], name: str, *, fall_back: bool, verdict: bool) -> None:
    """InputError where a model does not hold what is asked of it."""
    if fall_back and card.get("share") is None:
        raise InputError(
            f"{name}: made before models knew when to fall back. Train it anew, or leave --fall-back out."
        )
    if verdict and card.get("trust") is None:
        raise InputError(
            f"{name}: holds no verdict, as nothing was wrong in its calibration. Train with more "
            "calibration recordings, or leave --verdict out."
        )


def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore one volume or plane and write it with its record; returns the statistics."""
    return run_restoring(plan_restoring(parameters))


def run_restoring(plan: RestorePlan, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics."""
    parameters, recording = plan.parameters, plan.recording
    begin = time.perf_counter()
    record = RunRecord("restore", parameters.plain())
    image, judged, stats = answered(
        recording.read(parameters.time, parameters.channel), plan.restorer, plan.psf, plan.card,
        fall_back=parameters.fall_back, verdict=parameters.verdict is not None, device=plan.device,
    )  # fmt: skip
    record.timings_s["restore"] = time.perf_counter() - begin
    record.inputs = [fingerprint(path) for path in (*recording.files, parameters.model)]
    record.statistics = stats
    on_event(VolumeDone(0, 1, record.timings_s["restore"], recording.path.name))
    volumes = [image] if judged is None else [image, judged]
    for writer, volume in zip(plan.writers(), volumes, strict=True):
        with writer as out:
            out.write(0, 0, volume.numpy().astype(np.float32))
        on_event(FileDone(writer.path, write_record(record, writer.path)))
    return stats


def answered(
    counts: npt.NDArray[Any], restorer: Polished, psf: Psf | PsfField, card: dict[str, Any], *,
    fall_back: bool, verdict: bool, device: str,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    """Return the answer (z, y, x) in counts, the map of what to believe if asked for, and statistics."""
    problem, gain = photon_problem(as_volume(counts).to(device), psf)
    answer = restorer(problem)
    image, judged, stats = answer.image.cpu(), None, dict(answer.stats)
    if verdict or fall_back:
        evidence = gather(problem, restorer, restorer.estimate(problem))
        if fall_back:
            share = Share.from_dict(card["share"]).of(evidence)
            stats |= {"network_share": float(share.mean())}
            image = fallen_back(image, Accelerated()(problem).image.cpu(), share)
        if verdict:
            trust = Trust.from_dict(card["trust"])
            believed = trust.believable(evidence)
            stats |= {"believable": float(believed.mean()), "limit": trust.limit}
            stats |= {"doubtful_regions": int(trust.doubted(believed).sum())}
            judged = as_map(believed, image_shape(image))
    return image * gain, judged, stats


def _peak_bytes(plan: RestorePlan) -> int:
    # tensors without memory carry the shapes through the arithmetic
    z, y, x = plan.recording.shape[2:]
    blur = blur_of(usable_psf(plan.psf, (z, y, x)), (z, y, x), "meta")
    image = torch.empty((z, y, x), dtype=torch.float32, device="meta")
    return plan.restorer.peak_bytes(Problem((Observation(image, blur),))) + 12 * z * y * x
