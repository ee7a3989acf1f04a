"""Restoration of a recording by a model: the answer, its polish, its verdict, its record."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.deconvolution import as_volume, blur_of, image_shape, usable_psf
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.data.model_files import read_model
from pellucid.data.output import check_not_input, create_output
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import Recording, open_recording
from pellucid.data.writer import (
    ImageDescription,
    ImageWriter,
    check_free_space,
    check_output_path,
)
from pellucid.errors import InputError, OutputError, ParameterError, PellucidError, PlanError
from pellucid.networks.evidence import rehearsal
from pellucid.networks.features import classical
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.share import Share, fallen_back
from pellucid.networks.trust import Trust, as_map
from pellucid.networks.views import Optics, Views
from pellucid.stages.networks.judging import judged_bytes
from pellucid.stages.networks.optics import check_spacing, optics_of
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.tiles import planned_tiles, run_network_tiles, without_tiles
from pellucid.stages.networks.training import photon_problem
from pellucid.stages.pieces.piece_choice import (
    fits_in_one,
    gib,
    goes_on,
    room_words,
    tiles_json,
    workplace_of,
)
from pellucid.stages.pieces.tile_plan import TilePlan
from pellucid.stages.pieces.volume_statistics import LazyVolume, Place
from pellucid.stages.screening import screen
from pellucid.stages.selection import chosen, time_step_s
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import (
    FileDone,
    OnEvent,
    VolumeDone,
    VolumeFailed,
    Warned,
    ignore,
)
from pellucid.stages.work.resources import describe_device, failure, return_freed_memory
from pellucid.stages.work.workplace import opened_engine


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

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        asked, recording = self.parameters, self.recording
        file = {
            "input": str(recording.path),
            "input_shape_tczyx": recording.shape,
            "input_dtype": recording.dtype.name,
            "output": str(self.output),
            "output_shape_tczyx": self.shape,
            "output_dtype": self.image.dtype,
            "output_bytes": self.image.size_bytes * (1 + (asked.verdict is not None)),
            "verdict": asked.verdict,
            "voxel_um": self.image.voxel_um,
            "times": self.times,
            "channels": dict(zip(self.image.names, self.channels, strict=True)),
            **tiles_json(self.tiles),
            "peak_bytes": self.peak_bytes,
        }
        said: dict[str, Any] = plain_json({
            "model": asked.model, "operator": self.card["operator"], "passes": len(self.card["networks"]),
            "polish": asked.polish, "fall_back": asked.fall_back, "device": describe_device(self.device),
            "available_bytes": self.available_bytes, "memory_bytes": asked.memory, "volumes": self.total,
            "files": [file],
        })  # fmt: skip
        return said

    @property
    def is_judged(self) -> bool:
        """Whether evidence about the answer is wanted."""
        return self.parameters.fall_back or self.parameters.verdict is not None

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
        """Number of volumes, or of their tiles, twice where these are judged before."""
        return self.total * (1 if self.tiles is None else len(self.tiles.tiling) * (1 + self.is_judged))

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
        f"{room_words(room, asked, plan.device)}. {why}, or take a crop."
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


def failures(names: Sequence[str], stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Volumes that could not be restored, and why, of the statistics of a run."""
    told = zip(names, stats["volumes"], strict=True)
    return [(name, said["failed"]) for name, said in told if "failed" in said]


def run_restoring(
    plan: RestorePlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics, with those of every volume."""
    return_freed_memory()
    parameters = plan.parameters
    record = RunRecord("restore", parameters.plain())
    record.inputs = [fingerprint(path) for path in (*plan.recording.files, parameters.model)]
    if plan.tiles is not None:
        run_network_tiles(plan, record, on_event, engine)
        return record.statistics
    volumes: list[dict[str, Any]] = []
    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in plan.writers()]
        for number, (place, volume) in enumerate(plan.volumes.items(), 1):
            begin = time.perf_counter()
            try:
                made, stats = _restored(plan, volume, on_event)
            except (PellucidError, MemoryError, torch.OutOfMemoryError) as error:
                why = failure(error, volume.name, plan.device)
                if all("failed" in one for one in volumes) and number == plan.total:
                    raise why from error  # nothing was restored, and nothing is written
                made, stats = [np.full(volume.shape, np.nan, np.float32)] * len(outs), {"failed": str(why)}
            for out, image in zip(outs, made, strict=True):
                out.write(*place, image)
            seconds = time.perf_counter() - begin
            record.timings_s["restore"] = record.timings_s.get("restore", 0.0) + seconds
            volumes.append({"t": volume.t, "c": volume.c, "seconds": seconds, **stats})
            if "failed" in stats:
                on_event(VolumeFailed(number, plan.total, volume.name, stats["failed"]))
            else:
                on_event(VolumeDone(number, plan.total, seconds, volume.name))
    failed = sum("failed" in one for one in volumes)
    record.statistics = {"failed_volumes": failed, "volumes": volumes}
    for out in outs:
        on_event(FileDone(out.path, write_record(record, out.path)))
    return record.statistics


def _restored(
    plan: RestorePlan, volume: LazyVolume, on_event: OnEvent
) -> tuple[list[npt.NDArray[np.float32]], dict[str, Any]]:
    """What is written of a volume, the image first, and what is recorded of it."""
    counts, asks = volume[:, :, :], plan.parameters.verdict is not None
    screened = screen(counts, volume.name)
    for sentence in screened.warnings:
        on_event(Warned(sentence))
    if screened.is_empty:
        dark = np.zeros(volume.shape, np.float32)
        return [dark, dark + 1][: 1 + asks], {"iterations": 0, "warnings": screened.warnings}
    image, judged, stats = answered(
        counts, plan.restorer, plan.psf, plan.card, fall_back=plan.parameters.fall_back, verdict=asks,
        device=plan.device,
    )  # fmt: skip
    made = [image] if judged is None else [image, judged]
    seen = {"warnings": screened.warnings, "notes": screened.notes}
    return [part.numpy().astype(np.float32) for part in made], {**stats, **seen}


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
    x, stats = restorer.polished(problem)
    image, judged = problem.windowed(x).cpu(), None
    if verdict or fall_back:
        plain = classical(problem)
        evidence = rehearsal(problem, plain)
        if fall_back:
            share = Share.from_dict(card["share"]).of(evidence.squares(restorer.network))
            stats |= {"network_share": float(share.mean())}
            image = fallen_back(image, problem.windowed(plain).cpu(), share)
        if verdict:
            trust = Trust.from_dict(card["trust"])
            believed = trust.believable(evidence.logs(restorer.network, x))
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
    peak = plan.restorer.peak_bytes(problem)
    if plan.is_judged:
        peak = judged_bytes(problem, plan.restorer)
    return peak + 12 * z * y * x
