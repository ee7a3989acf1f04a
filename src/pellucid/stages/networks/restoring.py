"""Restoration of a recording by a model: the answer, its polish, its verdict, its record."""

import math
import time
from contextlib import ExitStack
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
from pellucid.data.writer import (
    ImageDescription,
    ImageWriter,
    check_free_space,
    check_output_path,
)
from pellucid.errors import InputError, OutputError, ParameterError, PlanError
from pellucid.networks.evidence import gather
from pellucid.networks.features import classical
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, fallen_back
from pellucid.networks.trust import Trust, as_map
from pellucid.networks.views import Optics, Views
from pellucid.stages.networks.optics import check_spacing, optics_of
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.tiles import planned_tiles, run_network_tiles, without_tiles
from pellucid.stages.networks.training import photon_problem
from pellucid.stages.pieces.piece_choice import fits_in_one, gib, goes_on, workplace_of
from pellucid.stages.pieces.tile_plan import TilePlan
from pellucid.stages.pieces.volume_statistics import LazyVolume, Place
from pellucid.stages.selection import chosen, time_step_s
from pellucid.stages.work.cluster_choice import Workplace, opened_engine
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, ignore


def load_network(folder: Path) -> tuple[Network, Optics, dict[str, Any]]:
    """The network of a model, the microscope it is for, and its card; InputError where they do not
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
        return Network(nets[0], tuple(nets[1:])), optics_of(tensors, card), card
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder.name}: card and weights do not fit. Train the model anew.") from error


@dataclass(frozen=True)
class RestorePlan:
    """A restoration by a model that can be done, and has not started.

    Parameters
    ----------
    times, channels : indices that are taken, in the order of the output
    peak_bytes : of one volume, or of one tile where there are `tiles`
    """

    parameters: RestoreParameters
    network: Network
    psf: Psf | PsfField
    card: dict[str, Any]
    recording: Recording
    times: tuple[int, ...]
    channels: tuple[int, ...]
    device: str
    peak_bytes: int
    available_bytes: int | None
    tiles: TilePlan | None = None

    @property
    def restorer(self) -> Polished:
        """The network with its polish."""
        polish = self.parameters.polish
        return Polished(self.network, None if polish == "auto" else int(polish))

    @property
    def output(self) -> Path:
        """Of the image."""
        return self.parameters.output.expanduser()

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x) of the output."""
        z, y, x = self.recording.shape[2:]
        return len(self.times), len(self.channels), z, y, x

    @property
    def image(self) -> ImageDescription:
        """Of the restored recording."""
        names = tuple(self.recording.channels[c] for c in self.channels)
        return ImageDescription(
            self.shape, "float32", self.recording.require_voxel_um(), names,
            time_step_s(self.recording, self.times),
        )  # fmt: skip

    @property
    def volumes(self) -> dict[Place, LazyVolume]:
        """The volumes that are taken, by their place (t, c) in the output."""
        return {
            (t, c): LazyVolume(self.recording, time, channel)
            for t, time in enumerate(self.times)
            for c, channel in enumerate(self.channels)
        }

    @property
    def names(self) -> list[str]:
        """Of the volumes, for people."""
        return [volume.name for volume in self.volumes.values()]

    @property
    def total(self) -> int:
        """Number of (z, y, x) volumes."""
        return len(self.times) * len(self.channels)

    @property
    def steps(self) -> int:
        """Number of volumes, or of their tiles."""
        return self.total * (1 if self.tiles is None else len(self.tiles.tiling))

    def writers(self) -> list[ImageWriter]:
        """The outputs, the image first, checked and not yet begun."""
        asked = self.parameters
        paths = [self.output] if asked.verdict is None else [self.output, asked.verdict]
        return [create_output(path, self.image, overwrite=asked.overwrite) for path in paths]


def plan_restoring(parameters: RestoreParameters) -> RestorePlan:
    """The plan of a restoration: model and recording opened and compared; no pixel is read.

    Raises
    ------
    InputError, OutputError, PlanError : what cannot be, in one sentence
    """
    network, psf, card = load_network(parameters.model)
    if isinstance(psf, Views):
        raise InputError(
            f"{parameters.model.name}: a model for {len(psf.psfs)} views, and this restores one. Use "
            "`pellucid restore A B ...`."
        )
    if parameters.views or parameters.transforms is not None:
        raise InputError(
            f"{parameters.model.name}: a model for one view, got {1 + len(parameters.views)}"
            + (" and transforms" if parameters.transforms is not None else "")
            + ". Fuse the views (`pellucid fuse`), or train a model for as many."
        )
    check_modality(card, parameters)
    asks = {"fall_back": parameters.fall_back, "verdict": parameters.verdict is not None}
    check_card(card, parameters.model.name, **asks)
    place = workplace_of(parameters)
    recording = open_recording(parameters.input, voxel_um=parameters.voxel_um)
    check_spacing(recording.require_voxel_um(), card["voxel_um"], recording.path.name)
    times = chosen(parameters.time, recording.shape[0], "time", recording)
    channels = chosen(parameters.channel, recording.shape[1], "channel", recording)
    inputs = (recording.path, *recording.files)
    check_not_input(parameters.output, inputs)
    if parameters.verdict is not None:
        check_not_input(parameters.verdict, inputs)
        if parameters.verdict.resolve() == parameters.output.resolve():
            raise OutputError(f"{parameters.verdict}: the verdict would replace the image. Name another.")
    plan = RestorePlan(
        parameters, network, psf, card, recording, times, channels, place.device, 0, place.room_bytes
    )
    plan = _fitted(replace(plan, peak_bytes=_peak_bytes(plan)), place)
    if plan.tiles is None:
        plan.writers()
    else:
        check_output_path(plan.output, parameters.overwrite)
        check_free_space(plan.output.parent, plan.image.size_bytes)
    return plan


def _fitted(plan: RestorePlan, place: Workplace) -> RestorePlan:
    """The plan in one piece where that fits, else by tiles; always by tiles on a cluster."""
    asked, room = plan.parameters, place.room_bytes
    begun = goes_on(plan.output, resume=asked.resume, overwrite=asked.overwrite)
    fits = fits_in_one(plan.peak_bytes, room, asked)
    by_choice = asked.tile is not None or asked.cluster is not None or begun
    if fits and not by_choice:
        return plan
    if not (why := without_tiles(plan)):
        tiles = planned_tiles(plan, place, goes_on=begun)
        return replace(plan, tiles=tiles, peak_bytes=tiles.tiling.peak_bytes)
    if fits:
        raise ParameterError(f"{plan.output.name}: {why}.")
    assert room is not None
    raise PlanError(
        f"{plan.recording.path.name}: restoring {plan.shape[2:]} needs {gib(plan.peak_bytes)} and "
        f"{plan.device} has {gib(room)} free. {why}, or take a crop."
    )


def check_modality(card: dict[str, Any], asked: RestoreParameters) -> None:
    """InputError where a model is of another modality than asked for."""
    if asked.modality not in (None, card["modality"]):
        raise InputError(
            f"{asked.model.name}: a model for {card['modality']}, asked for {asked.modality}. Choose a "
            "model of that modality."
        )


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
    """Restore a recording and write it with its record; returns the statistics."""
    plan = plan_restoring(parameters)
    with opened_engine(parameters.cluster) as engine:
        return run_restoring(plan, ignore, engine)


def run_restoring(
    plan: RestorePlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics, with those of every volume."""
    parameters = plan.parameters
    record = RunRecord("restore", parameters.plain())
    record.inputs = [fingerprint(path) for path in (*plan.recording.files, parameters.model)]
    if plan.tiles is not None:
        run_network_tiles(plan, record, on_event, engine)
        return record.statistics
    volumes = []
    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in plan.writers()]
        for number, (place, volume) in enumerate(plan.volumes.items(), 1):
            begin = time.perf_counter()
            image, judged, stats = answered(
                volume[:, :, :], plan.restorer, plan.psf, plan.card, fall_back=parameters.fall_back,
                verdict=parameters.verdict is not None, device=plan.device,
            )  # fmt: skip
            for out, written in zip(outs, [image] if judged is None else [image, judged], strict=True):
                out.write(*place, written.numpy().astype(np.float32))
            seconds = time.perf_counter() - begin
            record.timings_s["restore"] = record.timings_s.get("restore", 0.0) + seconds
            volumes.append({"t": volume.t, "c": volume.c, **stats})
            on_event(VolumeDone(number, plan.total, seconds, volume.name))
    record.statistics = {"volumes": volumes}
    for out in outs:
        on_event(FileDone(out.path, write_record(record, out.path)))
    return record.statistics


def answered(
    counts: npt.NDArray[Any], restorer: Polished, psf: Psf | PsfField, card: dict[str, Any], *,
    fall_back: bool, verdict: bool, device: str,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    """Return the answer (z, y, x) in counts, the map of what to believe if asked for, and statistics."""
    problem, gain = photon_problem(as_volume(counts).to(device), psf)
    image, judged, stats = answer_of(problem, restorer, card, fall_back=fall_back, verdict=verdict)
    return image * gain, judged, stats


def answer_of(
    problem: Problem, restorer: Polished, card: dict[str, Any], *, fall_back: bool, verdict: bool
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """The same of a problem in photons, of one view or of several."""
    answer = restorer(problem)
    image, judged, stats = answer.image.cpu(), None, dict(answer.stats)
    if verdict or fall_back:
        plain = classical(problem)
        evidence = gather(problem, restorer, restorer.estimate(problem), plain)
        if fall_back:
            share = Share.from_dict(card["share"]).of(evidence)
            stats |= {"network_share": float(share.mean())}
            image = fallen_back(image, problem.windowed(plain).cpu(), share)
        if verdict:
            trust = Trust.from_dict(card["trust"])
            believed = trust.believable(evidence)
            stats |= {"believable": float(believed.mean()), "limit": trust.limit}
            stats |= {"doubtful_regions": int(trust.doubted(believed).sum())}
            judged = as_map(believed, image_shape(image))
    return image, judged, stats


def _peak_bytes(plan: RestorePlan) -> int:
    # tensors without memory carry the shapes through the arithmetic
    z, y, x = plan.recording.shape[2:]
    blur = blur_of(usable_psf(plan.psf, (z, y, x)), (z, y, x), "meta")
    image = torch.empty((z, y, x), dtype=torch.float32, device="meta")
    problem = Problem((Observation(image, blur),))
    return peak_of(problem, plan.restorer, plan.parameters) + 12 * z * y * x


def peak_of(problem: Problem, restorer: Polished, asked: RestoreParameters) -> int:
    """Memory that the answer takes, and what is to be said of it, beside the images."""
    peak = restorer.peak_bytes(problem)
    if asked.verdict is not None or asked.fall_back:
        # beside each solution stand the answer, the classical one, its twin, and what compares them
        peak = max(peak, Accelerated().peak_bytes(problem)) + 4 * 8 * math.prod(problem.shape)
    return peak
