"""Restoration of several views by a model: placed by a file or registered, answered together, written."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid.core.fusion import joint_problem
from pellucid.core.geometry import Affine, Grid
from pellucid.core.registration import register
from pellucid.core.transform_series import WORLD, SeriesRegistration
from pellucid.core.views import LitView, View, proposed_world
from pellucid.data.output import check_not_input, create_output, stem
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import ImageDescription, ImageWriter, check_output_path
from pellucid.errors import InputError, OutputError, ParameterError, PlanError
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.views import MOST_TURNED_DEG, Views, boxed, joint_views
from pellucid.stages.networks.optics import voxels_of
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.restoring import (
    RestorePlan,
    answer_of,
    check_card,
    check_modality,
    load_network,
    peak_of,
    plan_restoring,
    run_restoring,
)
from pellucid.stages.networks.training import check_spacing
from pellucid.stages.parameters import RegistrationParameters
from pellucid.stages.pieces.piece_choice import gib, workplace_of
from pellucid.stages.registration.given_transforms import applied, read_given
from pellucid.stages.registration.pair_registration import centred
from pellucid.stages.registration.registering import register_series
from pellucid.stages.registration.view_series import ViewSeries, open_views
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import (
    Event,
    FileDone,
    OnEvent,
    VolumeDone,
    VolumeFailed,
    Warned,
    ignore,
)


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
    check_count(len(views), optics, parameters.model.name)
    for view, psf in zip(views, optics.psfs, strict=True):
        check_spacing(view.voxel_um, voxels_of(psf), view.name)
    given = None
    if parameters.transforms is not None:
        path = parameters.transforms.expanduser()
        given = applied(read_given(path, views), views[0].times, path)
        _check_turned(optics, views, given)
    place = workplace_of(parameters)
    world = _world(optics, _places(optics, views, given), views)
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


def check_count(count: int, optics: Views, model: str) -> None:
    """Refuse another number of views than a model is for."""
    if count != len(optics.psfs):
        raise InputError(
            f"{model}: a model for {len(optics.psfs)} views, got {count}. Name each view once, in the "
            "order that it was trained for."
        )


def run_views(plan: ViewsPlan, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Carry out `plan`; returns the statistics, with those of every volume."""
    asked = plan.parameters
    record = RunRecord("restore", asked.plain())
    extra = () if asked.transforms is None else (asked.transforms.expanduser(),)
    record.inputs = [fingerprint(path) for path in (*plan.files, asked.model, *extra)]
    with record.timed("register"):
        found = plan.given or _registered(plan, on_event)
    over_time = _places(plan.optics, plan.views, found)
    world = _world(plan.optics, over_time, plan.views)
    _check_memory(plan, _peak_bytes(plan, world), world)
    volumes = []
    with ExitStack() as stack:
        outs = [stack.enter_context(writer) for writer in _writers(plan, world)]
        for number, ((t, c), name) in enumerate(zip(plan.places, plan.names, strict=True), 1):
            begin = time.perf_counter()
            written, stats = _answered(plan, world, (t, c), found)
            for out, volume in zip(outs, written, strict=True):
                out.write(t, c, volume.numpy().astype(np.float32))
            seconds = time.perf_counter() - begin
            record.timings_s["restore"] = record.timings_s.get("restore", 0.0) + seconds
            volumes.append({"t": plan.views[0].times[t], "c": c, **stats})
            on_event(VolumeDone(number, plan.steps, seconds, name))
    record.statistics = {"volumes": volumes, "world": world.to_dict()}
    if plan.given is None:
        grids, names = [view.grid for view in plan.views], [view.name for view in plan.views]
        write_transforms(plan.side_outputs()[-1], found, grids, names, asked.plain())
    for out in outs:
        on_event(FileDone(out.path, write_record(record, out.path)))
    return record.statistics


def _answered(
    plan: ViewsPlan, world: Grid, place: tuple[int, int], found: SeriesRegistration
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    t, c = place
    views = []
    for view, psf in zip(plan.views, plan.optics.psfs, strict=True):
        transform = found.at(plan.views[0].times[t], view.number)
        counts = np.asarray(view.lazily(t, c)[:, :, :], np.float32)
        views.append(View(counts, view.grid, transform.world_to_view, psf, field=transform.field))
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


def _registered(plan: ViewsPlan, on_event: OnEvent) -> SeriesRegistration:
    def only_trouble(event: Event) -> None:
        # the volumes that are counted are restored ones
        if isinstance(event, VolumeFailed):
            on_event(Warned(event.why))
        elif not isinstance(event, VolumeDone):
            on_event(event)

    psfs = [psf.values.astype(np.float32) for psf in plan.optics.psfs]
    found = register_series(
        plan.views, RegistrationParameters.checked({}), only_trouble,
        nominal=_nominal(plan.optics, plan.views), psfs=psfs, device=plan.device,
    )  # fmt: skip
    if found.failures:
        failed = found.failures[0]
        raise InputError(
            f"{plan.views[failed.view].name}: not registered at time point {failed.time}. "
            f"{failed.reason} Or register by `pellucid register`, and give --transforms FILE."
        )
    _check_turned(plan.optics, plan.views, found)
    return found


def _nominal(optics: Views, views: Sequence[ViewSeries]) -> list[Affine]:
    return centred(views, [Affine.from_linear(linear) for linear in optics.linears])


def _places(
    optics: Views, views: Sequence[ViewSeries], found: SeriesRegistration | None
) -> list[list[Affine]]:
    """The transforms of all views at each time point; the model's own where none are known."""
    if found is None:
        return [_nominal(optics, views)]
    return [[found.world_to_view(t, v.number) for v in views] for t in views[0].times]


def _check_turned(optics: Views, views: Sequence[ViewSeries], found: SeriesRegistration) -> None:
    for transforms in _places(optics, views, found):
        check_turned(optics, transforms, [view.name for view in views])


def check_turned(optics: Views, transforms: Sequence[Affine], names: Sequence[str]) -> None:
    """Refuse views that stand otherwise than those of the model."""
    for name, angle in zip(names, optics.turned_deg(transforms), strict=True):
        if angle > MOST_TURNED_DEG:
            raise InputError(
                f"{name}: turned {angle:.0f} degrees against the view that the model was trained for. Name "
                "the views in the model's order, or train a model for these."
            )


def _world(
    optics: Views, over_time: Sequence[Sequence[Affine]], views: Sequence[ViewSeries]
) -> Grid:
    """The voxels of the result: what all views show at all time points."""
    empty = np.float32(0)
    hollow = [
        View(np.broadcast_to(empty, view.shape), view.grid, place)
        for places in over_time
        for view, place in zip(views, places, strict=True)
    ]
    return proposed_world(hollow, cover="overlap", spacing_um=optics.spacing_um)


def placed(arrays: Sequence[Any], optics: Views, device: str) -> list[View]:
    """Arrays on the voxels of the model's views, each registered to the first.

    Raises
    ------
    InputError : a registration that is not to be believed
    """
    first, *others = (
        Grid(tuple(np.shape(image)), voxels_of(psf), frame=f"view {v}")
        for v, (image, psf) in enumerate(zip(arrays, optics.psfs, strict=True))
    )
    identity = Affine.identity(source=WORLD, target="view 0")
    views = [View(arrays[0], first, identity, optics.psfs[0])]
    for v, grid in enumerate(others, 1):
        linear = optics.linears[v] @ np.linalg.inv(optics.linears[0])
        shift = grid.centre_um - linear @ first.centre_um
        result = register(
            arrays[0], arrays[v], fixed_spacing_um=first.spacing_um, moving_spacing_um=grid.spacing_um,
            nominal=Affine.from_linear(linear, translation_um=shift, source="fixed", target="moving"),
            fixed_psf=optics.psfs[0].values, moving_psf=optics.psfs[v].values, device=device,
        )  # fmt: skip
        if not result.converged:
            raise InputError(f"restore: view {v} cannot be registered to view 0: {result.reason}")
        transform = result.fixed_to_moving.with_frames(source=WORLD, target=grid.frame)
        views.append(View(arrays[v], grid, transform, optics.psfs[v]))
    return views


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
    places = _places(plan.optics, plan.views, plan.given)[0]
    hollow = [
        LitView(torch.empty(view.shape, device="meta"), view.grid, place, psf, 1.0, 1.0, 0.0, 1.0, 1.0)
        for view, place, psf in zip(plan.views, places, plan.optics.psfs, strict=True)
    ]
    problem = joint_problem([boxed(view, world) for view in hollow], world)
    recorded = sum(int(np.prod(view.shape)) for view in plan.views)
    own = peak_of(problem, plan.restorer, plan.parameters)
    return own + 12 * recorded + 12 * int(np.prod(world.shape))


def _check_memory(plan: ViewsPlan, needed: int, world: Grid) -> None:
    room = plan.available_bytes
    if room is not None and needed > room:
        raise PlanError(
            f"{plan.output.name}: restoring {world.shape} from {len(plan.views)} views needs {gib(needed)} "
            f"and {plan.device} has {gib(room)}. Crop the views, or fuse by blocks (`pellucid fuse`)."
        )
