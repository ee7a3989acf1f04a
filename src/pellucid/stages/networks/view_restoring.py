"""Restoration of several views by a model: placed by a file or registered, answered together, written."""

import dataclasses
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
from pellucid.data.output import stem
from pellucid.data.record import RunRecord, fingerprint
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import ImageDescription, check_output_path
from pellucid.errors import ParameterError, PlanError
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.views import Views, boxed, joint_views, unlit
from pellucid.stages.networks.loading import check_asked, load_network
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.placing import (
    check_views,
    given_places,
    places,
    registered,
    shared_world,
    views_at,
)
from pellucid.stages.networks.plan import NetworkPlan, RestorePlan
from pellucid.stages.networks.planning import judged_bytes, plan_restoring
from pellucid.stages.networks.restoring import (
    Float32,
    answer_of,
    each_volume,
    finish,
    run_restoring,
)
from pellucid.stages.pieces.piece_choice import gib, tiles_json, workplace_of
from pellucid.stages.pieces.volume_statistics import Place
from pellucid.stages.registration.view_series import ViewSeries, open_views
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import OnEvent, ignore


@dataclass(frozen=True)
class ViewsPlan(NetworkPlan):
    """A restoration of several views that can be done, and has not started.

    Parameters
    ----------
    given : the transforms of a file; None: the views are registered first
    world : voxels of the result, of the transforms given, or of the model's where none are
    """

    optics: Views
    views: tuple[ViewSeries, ...]
    given: SeriesRegistration | None
    world: Grid

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
        first = self.views[0]
        return self.said(self.total, self.image, {
            "input": ", ".join(view.name for view in self.views),
            "input_shape_tczyx": (len(first.times), len(first.channels), *first.shape),
            "input_dtype": first.dtype.name,
            "transforms": self.parameters.transforms or "registered first",
            **tiles_json(None),
        })  # fmt: skip

    @property
    def transforms(self) -> Path:
        """Where the transforms go that are found here."""
        return self.output.with_name(f"{stem(self.output)}_transforms.json")

    @property
    def written(self) -> list[Path]:
        """All files that are made, but for records."""
        return self.outputs if self.given is not None else [*self.outputs, self.transforms]


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
    check_asked(card, parameters)
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
        parameters, network, card, place.device, 0, place.room_bytes, optics, views, given, world
    )
    plan = dataclasses.replace(plan, peak_bytes=_peak_bytes(plan, world))
    _check_memory(plan, plan.peak_bytes, world)
    plan.check_names(plan.files)
    plan.writers(plan.image)
    if given is None:
        check_output_path(plan.transforms, parameters.overwrite)
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

    def restored(place: Place) -> tuple[list[Float32], dict[str, Any]]:
        return _answered(plan, world, place, found)

    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in plan.writers(_image(plan, world))]
        names = dict(zip(plan.places, plan.names, strict=True))
        told = each_volume(names, restored, outs, record, on_event, plan.device)
    for said, (t, c) in zip(told, plan.places, strict=True):
        said |= {"t": plan.views[0].times[t], "c": c}
    record.statistics = {"world": world.to_dict()}
    if plan.given is None:
        grids, views = [view.grid for view in plan.views], [view.name for view in plan.views]
        write_transforms(plan.transforms, found, grids, views, asked.plain())
    finish(record, told, outs, on_event)
    return record.statistics


def _answered(
    plan: ViewsPlan, world: Grid, place: tuple[int, int], found: SeriesRegistration
) -> tuple[list[Float32], dict[str, Any]]:
    views = views_at(plan.views, plan.optics, found, *place)
    image, judged, stats = views_answered(
        views, world, plan.restorer, plan.card, fall_back=plan.parameters.fall_back,
        verdict=plan.parameters.verdict is not None, device=plan.device,
    )  # fmt: skip
    made = [image] if judged is None else [image, judged]
    return [part.numpy().astype(np.float32) for part in made], stats


def views_answered(
    views: Sequence[View], world: Grid, restorer: Polished, card: dict[str, Any], *,
    fall_back: bool, verdict: bool, device: str,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:  # fmt: skip
    """The answer on `world` in counts of the first view, what to believe if asked for, and statistics.

    What no view shows is 0.
    """
    if all(float(np.ptp(view.image)) == 0 for view in views):
        judged = torch.ones(world.shape) if verdict else None
        sure = {"believable": 1.0, "doubtful_regions": 0} if verdict else {}
        return torch.zeros(world.shape), judged, {"iterations": 0, **sure}
    problem, seen, gain = joint_views(views, world, device)
    image, judged, stats = answer_of(problem, restorer, card, fall_back=fall_back, verdict=verdict)
    return image.mul_(gain).mul_(seen.cpu()), judged, stats


def _image(plan: ViewsPlan, world: Grid) -> ImageDescription:
    first = plan.views[0]
    shape = (len(first.times), len(first.channels), *world.shape)
    return ImageDescription(shape, "float32", world.spacing_um, first.channels, first.time_step_s)


def _peak_bytes(plan: ViewsPlan, world: Grid) -> int:
    # tensors without memory carry the shapes through the arithmetic
    transforms = places(plan.optics, plan.views, plan.given)[0]
    hollow = [
        boxed(unlit(view.grid, place, psf, "meta"), world)
        for view, place, psf in zip(plan.views, transforms, plan.optics.psfs, strict=True)
    ]
    problem = joint_problem(hollow, world)
    recorded = sum(int(np.prod(view.shape)) for view in plan.views)
    own = judged_bytes(problem, plan.restorer) if plan.is_judged else plan.restorer.peak_bytes(problem)
    return own + 12 * recorded + 12 * int(np.prod(world.shape))


def _check_memory(plan: ViewsPlan, needed: int, world: Grid) -> None:
    room = plan.available_bytes
    if room is not None and needed > room:
        raise PlanError(
            f"{plan.output.name}: restoring {world.shape} from {len(plan.views)} views needs {gib(needed)} "
            f"and {plan.device} has {gib(room)}. Crop the views, or fuse by blocks (`pellucid fuse`)."
        )
