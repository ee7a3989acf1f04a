"""Fusion of files: views registered and fused over time points and channels, and resumed."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.back_projectors import Matched
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Grid
from pellucid.core.transform_series import SeriesRegistration
from pellucid.core.views import View
from pellucid.data.finished_volumes import FinishedVolumes
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.errors import InputError, PellucidError, PlanError
from pellucid.stages.deconvolution.deconvolve import Outcome
from pellucid.stages.fusion import registration as registering
from pellucid.stages.fusion.blocks import run_in_blocks
from pellucid.stages.fusion.memory import peak_bytes
from pellucid.stages.fusion.outputs import write_everything
from pellucid.stages.fusion.plan import (
    FusePlan,
    believed_places,
    check_memory,
)
from pellucid.stages.fusion.world import cropped, proposed_crop, world_grid
from pellucid.stages.registration.pair_registration import STARTS
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
from pellucid.stages.work.lanes import ReadAhead

Float32 = npt.NDArray[np.float32]
Place = tuple[int, int]

# What may change between an interrupted run and the one that goes on with it.
FREE_TO_CHANGE = frozenset(
    {"resume", "overwrite", "device", "projections", "registered_views", "dtype", "ome_zarr"}
)


PARTLY = "registered_so_far"


@dataclass
class FuseOutcome(Outcome):
    """What came of a fusion; `resumed` volumes, or blocks, were finished by an earlier run.

    `decided` are the iterations of each volume where blocks repeat what one of them decided.
    """

    resumed: int = 0
    resumed_blocks: int = 0
    decided: tuple[int, ...] = ()
    transforms: SeriesRegistration | None = None
    timings_s: dict[str, float] = field(default_factory=dict)


def run_fusion(
    plan: FusePlan, on_event: OnEvent = ignore, engine: Engine = InProcess()
) -> FuseOutcome:
    """Carry out `plan`: register, fuse and write every volume, with records beside the output.

    What is cut into blocks is made by `engine`; of what follows, only the records are the same.

    A time point that fails in a series becomes NaN (zero in integers), and the series goes on. What
    is finished waits beside the output, so that an interrupted run can be resumed; the output has
    its name only once it is complete.

    Raises
    ------
    PellucidError : all volumes failed, angles have the wrong sign, or an output cannot be written
    """
    record = RunRecord("fuse", plan.parameters.plain())
    files = [path for view in plan.views for path in view.series.files]
    extra = [*plan.parameters.psf, *plan.parameters.background_image]
    if plan.parameters.transforms is not None:
        extra.append(plan.parameters.transforms.expanduser())
    if plan.parameters.start not in STARTS:
        extra.append(Path(plan.parameters.start).expanduser())
    with record.timed("checksums"):
        record.inputs = [fingerprint(path) for path in dict.fromkeys([*files, *extra])]
    if plan.blocks is not None:
        return _in_blocks(plan, record, on_event, engine)
    waiting = FinishedVolumes.begin(
        plan.output, _identity(plan, record), resume=plan.parameters.resume,
        anew=plan.parameters.overwrite,
    )  # fmt: skip
    outcome = FuseOutcome(plan.shape[0] * plan.shape[1], resumed=len(waiting.statistics))
    try:
        found, world = _registered(plan, waiting, record, outcome, on_event)
        _fuse_all(plan, waiting, found, world, record, outcome, on_event)
        if len(outcome.failures) == outcome.total:
            why = outcome.failures[0][1]
            raise InputError(f"{plan.output.name}: every volume failed. {why}")
        outcome.outputs += write_everything(plan, waiting, found, world, record)
    except PellucidError:
        if not waiting.statistics:
            waiting.remove()
        raise
    except KeyboardInterrupt as stop:
        if not waiting.worth_keeping:
            waiting.remove()
            raise
        done = f"{len(waiting.statistics)} of {outcome.total} volumes are fused and kept"
        raise KeyboardInterrupt(f"{done}; run again with --resume") from stop
    _finish(plan, waiting, found, world, record, outcome)
    for path in outcome.outputs:
        on_event(FileDone(path, outcome.records[0]))
    return outcome


def _in_blocks(
    plan: FusePlan, record: RunRecord, on_event: OnEvent, engine: Engine
) -> FuseOutcome:
    made = run_in_blocks(plan, record, on_event, engine)
    outcome = FuseOutcome(
        plan.shape[0] * plan.shape[1], outputs=made.outputs, records=[made.record],
        transforms=made.transforms, timings_s=record.timings_s, resumed_blocks=made.resumed,
        decided=made.decided,
    )  # fmt: skip
    for path in outcome.outputs:
        on_event(FileDone(path, outcome.records[0]))
    return outcome


def _identity(plan: FusePlan, record: RunRecord) -> dict[str, Any]:
    chosen = {k: v for k, v in plan.parameters.plain().items() if k not in FREE_TO_CHANGE}
    checksums = {print_.path: print_.checksum for print_ in record.inputs}
    return {"parameters": chosen, "inputs": checksums, "version": record.versions["pellucid"]}


def _registered(
    plan: FusePlan,
    waiting: FinishedVolumes,
    record: RunRecord,
    outcome: FuseOutcome,
    on_event: OnEvent,
) -> tuple[SeriesRegistration, Grid]:
    """The transforms of the series and the grid of the result; those of an interrupted run if any."""
    kept = waiting.kept("registration")
    if kept is not None:
        return registering.from_json(kept["series"]), Grid.from_dict(kept["world"])

    def listen(event: Event) -> None:
        if isinstance(event, Warned):
            outcome.warnings.append(event.sentence)
        on_event(event)

    with record.timed("register"):
        partly = waiting.kept(PARTLY)
        found = registering.found_transforms(
            plan, listen, done=None if partly is None else registering.from_json(partly),
            on_partial=lambda some: waiting.keep(PARTLY, registering.to_json(some)),
        )  # fmt: skip
    over_time = believed_places(plan, found)
    every = list(over_time.values())
    world = cropped(plan.parameters, world_grid(plan.parameters, plan.views, every))
    if plan.parameters.crop == "auto":
        world = proposed_crop(plan, world, over_time)
    needed = peak_bytes(
        plan.views, plan.psfs, every[0], world, plan.parameters.iterations, plan.fields
    )
    check_memory(plan, needed, world)
    waiting.keep("registration", {"series": registering.to_json(found), "world": world.to_dict()})
    return found, world


def _fuse_all(
    plan: FusePlan,
    waiting: FinishedVolumes,
    found: SeriesRegistration,
    world: Grid,
    record: RunRecord,
    outcome: FuseOutcome,
    on_event: OnEvent,
) -> None:
    times, channels = plan.shape
    left = [
        (t, c) for t in range(times) for c in range(channels) if (t, c) not in waiting.statistics
    ]

    def read(place: Place) -> list[npt.NDArray[Any]]:
        return [view.read(*place) for view in plan.views]

    with ReadAhead(left, read) as volumes:
        for number, ((t, c), reading) in enumerate(volumes, outcome.resumed):
            name = f"t={found.times[t]} c={plan.views[0].series.channels[c]}"
            begin = time.perf_counter()
            try:
                image, stats = _fused(plan, found, world, (t, c), reading, record)
            except PellucidError as error:
                why = str(error)
            except (MemoryError, torch.OutOfMemoryError) as error:
                error.__traceback__ = None  # it would keep the memory from what follows
                why = str(PlanError(f"{name}: out of memory on {plan.device}."))
            else:
                seconds = time.perf_counter() - begin
                with record.timed("write"):
                    waiting.put(t, c, image, {"seconds": seconds, **stats})
                on_event(VolumeDone(number, outcome.total, seconds, name))
                continue
            outcome.failures.append((name, why))
            on_event(VolumeFailed(number, outcome.total, name, f"{name}: {why}"))


def _fused(
    plan: FusePlan,
    found: SeriesRegistration,
    world: Grid,
    place: Place,
    reading: Future[list[npt.NDArray[Any]]],
    record: RunRecord,
) -> tuple[Float32, dict[str, Any]]:
    t, c = place
    with record.timed("wait for reading"):
        volumes = reading.result()
    views = []
    for number, (placed, volume) in enumerate(zip(plan.views, volumes, strict=True)):
        transform = found.at(found.times[t], number)
        if not transform.believed:
            raise InputError(f"{placed.series.name}: not registered. {transform.reason}")
        empty, level = plan.backgrounds[number], plan.parameters.background
        counts: npt.NDArray[Any] = volume.astype(np.float32)
        if bad := counts.size - int(np.isfinite(counts).sum()):
            raise InputError(
                f"{placed.series.name}: {bad} of {counts.size} voxels are NaN or infinite. Replace "
                "them, or leave this time point out."
            )
        if empty is not None:
            # the shape of the empty field is taken off and its mean kept, as the camera's level
            level = float(empty.mean())
            counts = counts - (empty - level)
        views.append(
            View(counts, placed.recorded, placed.to_recorded(transform.world_to_view),
                 plan.psf_of(number, c), level, field=placed.field_to_recorded(transform.field),
                 fill=plan.parameters.fill)
        )  # fmt: skip
    with record.timed("fuse"):
        # a stated number means plain iterations, and those of the matched projector never run away;
        # one view after the other they are worth about three times as many (benchmarks/fusion.py)
        count = plan.parameters.iterations
        restored = fuse(
            views, world, how=plan.parameters.method, iterations=count, seed=plan.parameters.seed,
            back_projector=None if count is None else Matched(), device=plan.device,
            update="additive" if count is None else "alternating",
        )  # fmt: skip
        image: Float32 = restored.image.cpu().numpy()
    return image, {k: v for k, v in restored.stats.items() if k not in ("path", "world")}


def _finish(
    plan: FusePlan,
    waiting: FinishedVolumes,
    found: SeriesRegistration,
    world: Grid,
    record: RunRecord,
    outcome: FuseOutcome,
) -> None:
    """Write the record beside the output, and drop what waited: the run is complete."""
    record.statistics.update(
        world=world.to_dict(),
        resumed_volumes=outcome.resumed,
        volumes=[{"t": t, "c": c, **s} for (t, c), s in sorted(waiting.statistics.items())],
        failures=[{"volume": name, "reason": why} for name, why in outcome.failures],
        transforms=registering.to_json(found),
        psfs=[[None if psf is None else list(psf.notes) for psf in view] for view in plan.psfs],
    )
    outcome.records.append(write_record(record, plan.output))
    waiting.remove()
    outcome.timings_s = record.timings_s
    outcome.transforms = found
