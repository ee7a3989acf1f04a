"""Restoration of several views by a model: placed by a file or registered, answered together, written."""

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid.core.fusion import joint_problem
from pellucid.core.geometry import Grid
from pellucid.core.transform_series import SeriesRegistration
from pellucid.core.views import View
from pellucid.data.output import check_not_input, create_output, stem
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import ImageDescription, ImageWriter, check_output_path
from pellucid.errors import OutputError, ParameterError, PellucidError, PlanError
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.views import Views, boxed, joint_views, unlit
from pellucid.stages.networks.loading import check_card, check_modality, load_network
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.placing import (
    check_views,
    given_places,
    places,
    registered,
    shared_world,
    views_at,
)
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.networks.planning import judged_bytes, plan_restoring
from pellucid.stages.networks.restoring import answer_of, run_restoring
from pellucid.stages.pieces.piece_choice import gib, tiles_json, workplace_of
from pellucid.stages.registration.view_series import ViewSeries, open_views
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, VolumeFailed, ignore
from pellucid.stages.work.resources import describe_device, failure


@dataclass(frozen=True)
class ViewsPlan:
    """A restoration of several views that can be done, and has not started.

    Parameters
    ----------
    given : the transforms of a file; None: the views are registered first
    world : voxels of the result, of the transforms given, or of the model's where none are
    """

    parameters: RestoreParameters
    network: Network
    optics: Views
    card: dict[str, Any]
    views: tuple[ViewSeries, ...]
    given: SeriesRegistration | None
    world: Grid
    device: str
    peak_bytes: int
    available_bytes: int | None

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
    def image(self) -> ImageDescription:
        """Of the restored object, on the planned voxels."""
        return _image(self, self.world)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return tuple(path for view in self.views for path in view.files)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Indices (t, c) of the volumes."""
        return list(np.ndindex(len(self.views[0].times), len(self.views[0].channels)))

    @property
    def names(self) -> list[str]:
        """Of the volumes, for people."""
        first = self.views[0]
        return [f"t={first.times[t]} c={first.channels[c]}" for t, c in self.places]

    @property
    def total(self) -> int:
        """Number of (z, y, x) volumes."""
        return len(self.places)

    @property
    def steps(self) -> int:
        """The same: none is cut."""
        return self.total

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        asked, image = self.parameters, self.image
        first = self.views[0]
        file = {
            "input": ", ".join(view.name for view in self.views),
            "input_shape_tczyx": (len(first.times), len(first.channels), *first.shape),
            "input_dtype": first.dtype.name,
            "output": str(self.output),
            "output_shape_tczyx": image.shape,
            "output_dtype": image.dtype,
            "output_bytes": image.size_bytes * (1 + (asked.verdict is not None)),
            "verdict": asked.verdict,
            "voxel_um": image.voxel_um,
            "transforms": asked.transforms or "registered first",
            **tiles_json(None),
            "peak_bytes": self.peak_bytes,
        }
        said: dict[str, Any] = plain_json({
            "model": asked.model, "operator": self.card["operator"], "passes": len(self.card["networks"]),
            "polish": asked.polish, "fall_back": asked.fall_back, "device": describe_device(self.device),
            "available_bytes": self.available_bytes, "memory_bytes": asked.memory, "volumes": self.total,
            "files": [file],
        })  # fmt: skip
        return said

    def side_outputs(self) -> list[Path]:
        """What is written beside the image: what to believe, and transforms that were found here."""
        asked = self.parameters
        paths = [] if asked.verdict is None else [asked.verdict]
        if self.given is None:
            paths.append(self.output.with_name(f"{stem(self.output)}_transforms.json"))
        return paths


def plan_restoration(parameters: RestoreParameters) -> RestorePlan | ViewsPlan:
    """The plan of a restoration, of one view or of several as the model has it; errors as of either."""
    network, optics, card = load_network(parameters.model)
    if isinstance(optics, Views):
        return plan_views(parameters, network, optics, card)
    return plan_restoring(parameters)


def run_restoration(
    plan: RestorePlan | ViewsPlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> dict[str, Any]:
    """Carry out the plan of either kind; returns the statistics, with those of every volume."""
    if isinstance(plan, ViewsPlan):
        return run_views(plan, on_event)
    return run_restoring(plan, on_event, engine)


def plan_views(
    parameters: RestoreParameters, network: Network, optics: Views, card: dict[str, Any]
) -> ViewsPlan:
    """The plan of a restoration of several views: opened, compared with the model, and placed.

    Raises
    ------
    InputError, ParameterError, OutputError, PlanError : what cannot be, in one sentence
    """
    if parameters.tile or parameters.cluster or parameters.resume:
        raise ParameterError(
            f"{parameters.model.name}: a model for {len(optics.psfs)} views, and tiles restore one. Leave "
            "out --tile, --cluster and --resume."
        )
    check_modality(card, parameters)
    asks = {"fall_back": parameters.fall_back, "verdict": parameters.verdict is not None}
    check_card(card, parameters.model.name, **asks)
    views = open_views(
        (parameters.input, *parameters.views), voxel_um=parameters.voxel_um, time=parameters.time,
        channel=parameters.channel,
    )  # fmt: skip
    check_views(views, optics, parameters.model.name)
    given = None
    if parameters.transforms is not None:
        given = given_places(parameters.transforms.expanduser(), optics, views)
    place = workplace_of(parameters)
    world = shared_world(optics, places(optics, views, given), views)
    plan = ViewsPlan(
        parameters, network, optics, card, views, given, world, place.device, 0, place.room_bytes
    )
    plan = dataclasses.replace(plan, peak_bytes=_peak_bytes(plan, world))
    _check_memory(plan, plan.peak_bytes, world)
    for path in (plan.output, *plan.side_outputs()):
        check_not_input(path, plan.files)
        check_output_path(path, parameters.overwrite)
    if len({path.resolve() for path in (plan.output, *plan.side_outputs())}) <= len(plan.side_outputs()):
        raise OutputError(f"{parameters.verdict}: the verdict would replace the image. Name another.")
    return plan


def run_views(plan: ViewsPlan, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics, with those of every volume."""
    asked = plan.parameters
    record = RunRecord("restore", asked.plain())
    extra = () if asked.transforms is None else (asked.transforms.expanduser(),)
    record.inputs = [fingerprint(path) for path in (*plan.files, asked.model, *extra)]
    with record.timed("register"):
        found = plan.given or registered(plan.optics, plan.views, plan.device, on_event)
    over_time = places(plan.optics, plan.views, found)
    world = shared_world(plan.optics, over_time, plan.views)
    _check_memory(plan, _peak_bytes(plan, world), world)
    volumes: list[dict[str, Any]] = []
    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in _writers(plan, world)]
        for number, ((t, c), name) in enumerate(zip(plan.places, plan.names, strict=True), 1):
            begin = time.perf_counter()
            try:
                written, stats = _answered(plan, world, (t, c), found)
            except (PellucidError, MemoryError, torch.OutOfMemoryError) as error:
                why = failure(error, name, plan.device)
                if all("failed" in one for one in volumes) and number == plan.total:
                    raise why from error  # nothing was restored, and nothing is written
                written, stats = [torch.full(world.shape, math.nan)] * len(outs), {"failed": str(why)}
            for out, volume in zip(outs, written, strict=True):
                out.write(t, c, volume.numpy().astype(np.float32))
            seconds = time.perf_counter() - begin
            record.timings_s["restore"] = record.timings_s.get("restore", 0.0) + seconds
            volumes.append({"t": plan.views[0].times[t], "c": c, "seconds": seconds, **stats})
            if "failed" in stats:
                on_event(VolumeFailed(number, plan.total, name, stats["failed"]))
            else:
                on_event(VolumeDone(number, plan.total, seconds, name))
    failed = sum("failed" in one for one in volumes)
    record.statistics = {"failed_volumes": failed, "volumes": volumes, "world": world.to_dict()}
    if plan.given is None:
        grids, names = [view.grid for view in plan.views], [view.name for view in plan.views]
        write_transforms(plan.side_outputs()[-1], found, grids, names, asked.plain())
    for out in outs:
        on_event(FileDone(out.path, write_record(record, out.path)))
    return record.statistics


def _answered(
    plan: ViewsPlan, world: Grid, place: tuple[int, int], found: SeriesRegistration
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    views = views_at(plan.views, plan.optics, found, *place)
    image, judged, stats = views_answered(
        views, world, plan.restorer, plan.card, fall_back=plan.parameters.fall_back,
        verdict=plan.parameters.verdict is not None, device=plan.device,
    )  # fmt: skip
    return [image] if judged is None else [image, judged], stats


def views_answered(
    views: Sequence[View], world: Grid, restorer: Polished, card: dict[str, Any], *,
    fall_back: bool, verdict: bool, device: str,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:  # fmt: skip
    """The answer on `world` in counts of the first view, what to believe if asked for, and statistics.

    What no view shows is 0.
    """
    if all(float(np.ptp(view.image)) == 0 for view in views):
        judged = torch.ones(world.shape) if verdict else None
        return torch.zeros(world.shape), judged, {"iterations": 0}
    problem, seen, gain = joint_views(views, world, device)
    image, judged, stats = answer_of(problem, restorer, card, fall_back=fall_back, verdict=verdict)
    return image.mul_(gain).mul_(seen.cpu()), judged, stats


def _image(plan: ViewsPlan, world: Grid) -> ImageDescription:
    first = plan.views[0]
    shape = (len(first.times), len(first.channels), *world.shape)
    return ImageDescription(shape, "float32", world.spacing_um, first.channels, first.time_step_s)


def _writers(plan: ViewsPlan, world: Grid) -> list[ImageWriter]:
    asked = plan.parameters
    paths = [plan.output] if asked.verdict is None else [plan.output, asked.verdict]
    return [create_output(path, _image(plan, world), overwrite=asked.overwrite) for path in paths]


def _peak_bytes(plan: ViewsPlan, world: Grid) -> int:
    # tensors without memory carry the shapes through the arithmetic
    transforms = places(plan.optics, plan.views, plan.given)[0]
    hollow = [
        boxed(unlit(view.grid, place, psf, "meta"), world)
        for view, place, psf in zip(plan.views, transforms, plan.optics.psfs, strict=True)
    ]
    problem = joint_problem(hollow, world)
    recorded = sum(int(np.prod(view.shape)) for view in plan.views)
    judged = plan.parameters.fall_back or plan.parameters.verdict is not None
    own = judged_bytes(problem, plan.restorer) if judged else plan.restorer.peak_bytes(problem)
    return own + 12 * recorded + 12 * int(np.prod(world.shape))


def _check_memory(plan: ViewsPlan, needed: int, world: Grid) -> None:
    room = plan.available_bytes
    if room is not None and needed > room:
        raise PlanError(
            f"{plan.output.name}: restoring {world.shape} from {len(plan.views)} views needs {gib(needed)} "
            f"and {plan.device} has {gib(room)}. Crop the views, or fuse by blocks (`pellucid fuse`)."
        )
