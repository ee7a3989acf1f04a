"""The steps of a recipe as work: each command's own plan and run, seen through one face."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.core.descent import peak_bytes as registration_bytes
from pellucid.core.transform_series import SeriesRegistration, ViewTransform
from pellucid.data.hollow_zarr import write_hollow
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import ImageDescription
from pellucid.stages import measuring
from pellucid.stages.deconvolution import deconvolve
from pellucid.stages.deconvolution.planning import FilePlan, Plan, plan_deconvolution
from pellucid.stages.deskewing import deskewing
from pellucid.stages.fusion import fusing
from pellucid.stages.fusion.plan import FusePlan
from pellucid.stages.fusion.planning import plan_fusion
from pellucid.stages.networks import restoring as network_restoring
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.networks.planning import plan_restoring
from pellucid.stages.parameters import Parameters
from pellucid.stages.registration import register_files as registering
from pellucid.stages.stitching import mosaic_deconvolving as mosaic
from pellucid.stages.stitching import stitching
from pellucid.stages.stitching.plan import StitchPlan, plan_stitching
from pellucid.stages.work.events import OnEvent
from pellucid.stages.work.workplace import opened_engine


@dataclass(frozen=True)
class Work:
    """A step that is planned: the command's own plan, what it makes, and what that takes.

    Parameters
    ----------
    plan : of the command, such as a `StitchPlan`
    makes : what later steps may take: images as they will be, None for transforms and tables
    files : all files that are read
    scratch_bytes : of the disk, gone when the step is done
    volumes : how many events of progress it has
    """

    command: str
    plan: Any
    makes: Mapping[Path, ImageDescription | None]
    files: tuple[Path, ...]
    peak_bytes: int
    scratch_bytes: int
    volumes: int

    @property
    def disk_bytes(self) -> int:
        """Bytes of the images that it makes."""
        return sum(image.size_bytes for image in self.makes.values() if image is not None)

    def stand_in(self, folder: Path) -> list[Path]:
        """What later steps are planned with: hollow images and nominal transforms, in `folder`."""
        folder.mkdir()
        paths = []
        for path, image in self.makes.items():
            paths.append(folder / path.name)
            if image is not None:
                write_hollow(paths[-1], image)
            elif self.command == "register":
                _write_nominal(paths[-1], self.plan)
        return paths


@dataclass(frozen=True)
class Ran:
    """What came of a step; `outcome` is the command's own."""

    outcome: Any
    outputs: list[Path] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def planned(command: str, parameters: Sequence[Parameters]) -> Work:
    """Plan a step as its command does; `parameters` of two where a mosaic is deconvolved.

    Raises
    ------
    PellucidError : what the command itself refuses
    """
    return _PLANS[command](*parameters)


def ran(work: Work, on_event: OnEvent) -> Ran:
    """Carry out a step as its command does."""
    return _RUNS[work.command](work.plan, on_event)


def _deskew(parameters: Any) -> Work:
    plan = deskewing.plan_deskew(parameters)
    makes = {parameters.output.expanduser(): plan.image}
    volumes = math.prod(plan.image.shape[:2])
    return Work("deskew", plan, makes, plan.recording.files, plan.peak_bytes, 0, volumes)


def _run_deskew(plan: deskewing.DeskewPlan, on_event: OnEvent) -> Ran:
    record = deskewing.run_deskew(plan, on_event)
    return Ran(plan, [plan.parameters.output.expanduser()], [record])


def _stitch(parameters: Any) -> Work:
    plan = plan_stitching(parameters)
    makes = {plan.output: plan.image(plan.nominal_shape)}
    volumes = len(plan.times) * len(plan.channels)
    return Work("stitch", plan, makes, plan.tiles.files, plan.peak_bytes, 0, volumes)


def _run_stitch(plan: StitchPlan, on_event: OnEvent) -> Ran:
    return _of(stitching.run_stitching(plan, on_event))


def _mosaic(stitch: Any, sharpen: Any) -> Work:
    plan = mosaic.plan_mosaic(stitch, sharpen)
    made = _deconvolved("mosaic", plan.deconvolution)
    peak = max(made.peak_bytes, plan.stitching.peak_bytes)
    return Work("mosaic", plan, made.makes, plan.stitching.tiles.files, peak,
                made.scratch_bytes, made.volumes)  # fmt: skip


def _run_mosaic(plan: mosaic.MosaicPlan, on_event: OnEvent) -> Ran:
    with opened_engine(plan.parameters.cluster) as engine:
        return _of(mosaic.run_mosaic(plan, on_event, engine))


def _register(parameters: Any) -> Work:
    plan = registering.plan_registration(parameters)
    first = plan.views[0]
    peak = max(
        registering.BYTES_AS_READ * (math.prod(first.shape) + math.prod(view.shape))
        + registration_bytes(first.grid, view.grid)
        for view in plan.views[1:]
    )
    files = tuple(path for view in plan.views for path in view.files)
    return Work("register", plan, {parameters.output: None}, files, peak, 0, plan.total)


def _run_register(plan: registering.RegisterPlan, on_event: OnEvent) -> Ran:
    outcome = registering.run_registration(plan, on_event)
    beside = plan.parameters.output.with_name(plan.parameters.output.name + ".pellucid.json")
    return Ran(outcome, outcome.outputs, [beside], outcome.bad)


def _fuse(parameters: Any) -> Work:
    plan = plan_fusion(parameters)
    image = plan.image(plan.world)
    files = tuple(path for view in plan.views for path in view.series.files)
    waiting = 4 * math.prod(image.shape)
    return Work("fuse", plan, {plan.output: image}, files, plan.peak_bytes, waiting,
                math.prod(plan.shape))  # fmt: skip


def _run_fuse(plan: FusePlan, on_event: OnEvent) -> Ran:
    return _of(fusing.run_fusion(plan, on_event))


def _deconvolve(parameters: Any) -> Work:
    return _deconvolved("deconvolve", plan_deconvolution(parameters))


def _deconvolved(command: str, plan: Plan) -> Work:
    dtype = plan.parameters.dtype
    makes = {file.output: _image(file, dtype) for file in plan.files}
    # integers wait as float32 until their range is known
    scratch = 0 if dtype == "float32" else max(2 * file.output_bytes for file in plan.files)
    files = tuple(path for file in plan.files for path in file.recording.files)
    peak = max(file.peak_bytes + file.host_bytes for file in plan.files)
    return Work(command, plan, makes, files, peak, scratch, plan.steps)


def _image(file: FilePlan, dtype: str) -> ImageDescription:
    return ImageDescription(file.shape, dtype, file.voxel_um, file.channel_names, file.time_step_s)


def _run_deconvolve(plan: Plan, on_event: OnEvent) -> Ran:
    with opened_engine(plan.parameters.cluster) as engine:
        return _of(deconvolve.run(plan, on_event, engine))


def _restore(parameters: Any) -> Work:
    plan = plan_restoring(parameters)
    makes = {parameters.output.expanduser(): plan.image}
    return Work("restore", plan, makes, plan.recording.files, plan.peak_bytes, 0, plan.steps)


def _run_restore(plan: RestorePlan, on_event: OnEvent) -> Ran:
    with opened_engine(plan.parameters.cluster) as engine:
        stats = network_restoring.run_restoring(plan, on_event, engine)
    output = plan.parameters.output.expanduser()
    failed = network_restoring.failures(plan.names, stats)
    return Ran(stats, [output], [output.with_name(output.name + ".pellucid.json")], failed)


def _measure(parameters: Any) -> Work:
    plan = measuring.plan_measuring(parameters)
    makes: dict[Path, ImageDescription | None] = {parameters.output.expanduser(): None}
    return Work("measure", plan, makes, plan.recording.files, plan.peak_bytes, 0, len(plan.places))


def _run_measure(plan: measuring.MeasurePlan, on_event: OnEvent) -> Ran:
    rows = measuring.run_measuring(plan, on_event)
    assert plan.parameters.output is not None
    output = plan.parameters.output.expanduser()
    return Ran(rows, [output], [output.with_name(output.name + ".pellucid.json")])


def _of(outcome: deconvolve.Outcome) -> Ran:
    return Ran(outcome, outcome.outputs, outcome.records, outcome.failures, outcome.warnings)


def _write_nominal(path: Path, plan: registering.RegisterPlan) -> None:
    first = plan.views[0]
    transforms = tuple(
        ViewTransform(t, view.number, place, "given" if view.number else "first")
        for t in first.times
        for view, place in zip(plan.views, plan.nominal, strict=True)
    )
    series = SeriesRegistration(first.times, len(plan.views), transforms)
    write_transforms(path, series, [v.grid for v in plan.views], [v.name for v in plan.views], {})


_PLANS: dict[str, Callable[..., Work]] = {
    "deskew": _deskew, "stitch": _stitch, "mosaic": _mosaic, "register": _register, "fuse": _fuse,
    "deconvolve": _deconvolve, "restore": _restore, "measure": _measure,
}  # fmt: skip
_RUNS: dict[str, Callable[..., Ran]] = {
    "deskew": _run_deskew, "stitch": _run_stitch, "mosaic": _run_mosaic, "register": _run_register,
    "fuse": _run_fuse, "deconvolve": _run_deconvolve, "restore": _run_restore,
    "measure": _run_measure,
}  # fmt: skip
