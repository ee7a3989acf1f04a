"""`pellucid register` as a stage: views in, transforms and what is made of them out."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.descent import peak_bytes
from pellucid.core.field_resampling import sampled
from pellucid.core.geometry import Affine
from pellucid.core.psf_preparation import prepare
from pellucid.core.transform_series import SeriesRegistration, ViewTransform
from pellucid.data.bigstitcher import read_bigstitcher, write_bigstitcher, write_into_dataset
from pellucid.data.manifest import remove_manifest
from pellucid.data.output import check_not_input, create_output
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import open_recording
from pellucid.data.transform_exchange import affine_to_itk
from pellucid.data.transform_file import write_transforms
from pellucid.data.writer import (
    ImageDescription,
    check_output_path,
    plain_errors,
    remove,
    write_atomically,
)
from pellucid.errors import OutputError, ParameterError, PellucidError, PlanError
from pellucid.stages.parameters import RegisterParameters
from pellucid.stages.registration.chunk_registration import (
    chunk_peak_bytes,
    chunks_of,
    register_chunks,
)
from pellucid.stages.registration.given_transforms import dataset_of, start_transforms
from pellucid.stages.registration.pair_registration import STARTS, check_stated, nominal_transforms
from pellucid.stages.registration.registering import reference_channels, register_series
from pellucid.stages.registration.view_series import ViewSeries, open_views
from pellucid.stages.work.engine import Engine, InProcess
from pellucid.stages.work.events import FileDone, OnEvent, Warned, ignore
from pellucid.stages.work.resources import available_bytes, describe_device, resolve_device

Float32 = npt.NDArray[np.float32]
WITHOUT_EFFECT = (
    "output", "overwrite", "resume", "device", "cluster", "itk", "bigstitcher", "picture", "registered",
)  # fmt: skip
"""Parameters that do not decide which transforms chunks have."""

BYTES_AS_READ = 8
"""Per voxel: two time points, the one at work and the next one read, of four bytes at most."""


@dataclass(frozen=True)
class RegisterPlan:
    """A registration that has been checked and has not started."""

    parameters: RegisterParameters
    views: tuple[ViewSeries, ...]
    nominal: tuple[Affine, ...]
    given: SeriesRegistration | None
    psfs: tuple[Float32 | None, ...] | None
    device: str

    @property
    def total(self) -> int:
        """Number of registrations."""
        if self.parameters.chunks is not None:
            chunks = len(chunks_of(self.views[0], self.parameters, self.psfs))
            return (len(self.views) - 1) * len(self.views[0].times) * chunks
        once = self.parameters.over_time in ("none", "once")
        return (len(self.views) - 1) * (1 if once else len(self.views[0].times))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "device": describe_device(self.device),
            "registrations": self.total,
            "output": str(self.parameters.output),
            "views": [
                {
                    "name": view.name,
                    "times": view.times,
                    "channels": view.channels,
                    "shape_zyx": view.shape,
                    "voxel_um": view.voxel_um,
                    "dtype": view.dtype.name,
                    "broken": sorted(set(view.broken.values())),
                    "nominal": nominal.to_dict(),
                }
                for view, nominal in zip(self.views, self.nominal, strict=True)
            ],
        }


@dataclass
class RegisterOutcome:
    """What a run came to."""

    series: SeriesRegistration
    outputs: list[Path] = field(default_factory=list)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """Time points and views whose own registration failed, and why."""
        return [(f"t={t.time} view {t.view}", t.reason) for t in self.series.unmeasured]

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        return {
            "outputs": [str(path) for path in self.outputs],
            "bad": self.bad,
            "transforms": [transform.to_dict() for transform in self.series.transforms],
        }


def plan_registration(parameters: RegisterParameters) -> RegisterPlan:
    """Views opened, transforms and PSFs read, outputs and memory checked; nothing computed.

    Raises
    ------
    InputError, ParameterError, OutputError, PlanError : what cannot be, in one sentence
    """
    device = resolve_device(parameters.device)
    views = open_views(
        parameters.inputs, voxel_um=parameters.voxel_um, axes=parameters.axes,
        time=parameters.time, channel=parameters.channel,
    )  # fmt: skip
    check_stated(parameters.angles, "--start FILE", transforms=parameters.start not in STARTS)
    nominal = tuple(nominal_transforms(views, parameters.angles, parameters.axis))
    reference_channels(parameters.reference, views[0].channels)
    _check_outputs(parameters)
    if parameters.bigstitcher is not None and (dataset := dataset_of(views)) is not None:
        check_not_input(parameters.bigstitcher, [path for view in views for path in view.files])
        read_bigstitcher(dataset[0])  # what is to be added to must be there
    given, psfs = start_transforms(parameters, views), _psfs(parameters, views)
    if parameters.resume and parameters.chunks is None:
        raise ParameterError("resume: only a registration in chunks can be gone on with (--chunks).")
    if parameters.cluster is not None and parameters.chunks is None:
        raise ParameterError("cluster: only a registration in chunks has parts to share out (--chunks).")
    room = available_bytes(device)
    if parameters.chunks is None:
        needed = max(
            BYTES_AS_READ * int(np.prod(views[0].shape) + np.prod(view.shape))
            + peak_bytes(views[0].grid, view.grid)
            for view in views[1:]
        )
        what, remedy = "a pair of views", "Register in chunks (--chunks auto), or bin the views first."
    else:
        needed = chunk_peak_bytes(views, chunks_of(views[0], parameters, psfs))
        what, remedy = "a chunk", "Choose smaller chunks (--chunks)."
    if room is not None and needed > room:
        raise PlanError(
            f"{views[0].name}: {what} needs about {needed / 2**30:.1f} GiB and {device} has "
            f"{room / 2**30:.1f} GiB free. {remedy}"
        )
    return RegisterPlan(parameters, views, nominal, given, psfs, device)


def run_registration(
    plan: RegisterPlan,
    on_event: OnEvent = ignore,
    draw: Callable[[SeriesRegistration, Path], None] | None = None,
    engine: Engine = InProcess(),
) -> RegisterOutcome:
    """Register, and write transforms and a record, then what was asked for beside them.

    Each output is whole or not there. Transforms that were found are kept with their record, even
    where something beside them fails.

    Parameters
    ----------
    draw : writes the picture, where one was asked for
    engine : does the chunks, where views are registered in chunks

    Raises
    ------
    OutputError : where an output cannot be written
    """
    asked, views = plan.parameters, plan.views
    record = RunRecord("register", asked.plain())
    for view in views:
        for why in dict.fromkeys(view.broken.values()):
            on_event(Warned(f"{view.name}: {why}"))
    record.inputs = [fingerprint(path) for view in views for path in view.files]
    listed = asked.output.with_name(f"{asked.output.name}.unfinished.jsonl")
    chunks: dict[str, Any] = {}
    with record.timed("register"):
        if asked.chunks is None:
            series = register_series(
                views, asked, on_event, nominal=plan.nominal, given=plan.given, psfs=plan.psfs,
                device=plan.device,
            )  # fmt: skip
        else:
            decides = {k: v for k, v in asked.plain().items() if k not in WITHOUT_EFFECT}
            inputs = {i.path: i.checksum for i in record.inputs}
            series, chunks = register_chunks(
                views, asked, (listed, {"parameters": decides, "inputs": inputs}), on_event,
                given=plan.given, psfs=plan.psfs, device=plan.device, engine=engine,
            )  # fmt: skip
    outcome = RegisterOutcome(series, [asked.output])
    record.statistics = {"device": describe_device(plan.device), "bad": outcome.bad, **chunks}
    grids = [view.grid for view in views]
    write_transforms(asked.output, series, grids, [view.name for view in views], asked.plain())
    beside = write_record(record, asked.output)
    if asked.chunks is not None:
        remove_manifest(listed)
    try:
        for paths in _written_beside(plan, series, record, draw):
            outcome.outputs += paths
    except PellucidError as error:
        raise type(error)(
            f"{error} The transforms are whole in {asked.output.name}: make the rest from them, with "
            f"--start {asked.output.name} --over-time none and another output."
        ) from error
    finally:
        record.statistics["outputs"] = [str(path) for path in outcome.outputs]
        write_record(record, asked.output)
    for path in outcome.outputs:
        on_event(FileDone(path, beside))
    return outcome


def _written_beside(
    plan: RegisterPlan,
    series: SeriesRegistration,
    record: RunRecord,
    draw: Callable[[SeriesRegistration, Path], None] | None,
) -> Iterator[list[Path]]:
    """Write what was asked for beside the transforms, one thing after the other."""
    asked = plan.parameters
    if asked.itk is not None:
        yield _write_itk(asked.itk, series)
    if asked.bigstitcher is not None:
        grids, dataset = [view.grid for view in plan.views], dataset_of(plan.views)
        if dataset is None:
            write_bigstitcher(asked.bigstitcher, series, grids, plan.views[0].channels)
        else:
            write_into_dataset(asked.bigstitcher, dataset[0], series, grids, dataset[1])
        yield [asked.bigstitcher]
    if asked.picture is not None and draw is not None:
        draw(series, asked.picture)
        yield [asked.picture]
    if asked.registered is not None:
        with record.timed("resample"):
            yield _write_registered(asked.registered, plan, series)


def _psfs(
    parameters: RegisterParameters, views: tuple[ViewSeries, ...]
) -> tuple[Float32 | None, ...] | None:
    if not parameters.psf:
        return None
    if len(parameters.psf) not in (1, len(views)):
        raise ParameterError(
            f"psf: {len(parameters.psf)} files for {len(views)} views. Give one, or one for each."
        )
    paths = parameters.psf if len(parameters.psf) > 1 else parameters.psf * len(views)
    psfs = []
    for path, view in zip(paths, views, strict=True):
        recording = open_recording(path, voxel_um=parameters.psf_voxel_um)
        try:
            own = recording.voxel_um or view.voxel_um
            psf = prepare(recording.read(), own, view.voxel_um)
        except PellucidError as error:
            raise type(error)(f"{path.name}: {error}") from error
        psfs.append(psf.values.astype(np.float32))
    return tuple(psfs)


def _check_outputs(parameters: RegisterParameters) -> None:
    if parameters.output.suffix.lower() != ".json":
        raise OutputError(f"{parameters.output.name}: transforms are written as .json. Name it so.")
    check_output_path(parameters.output, parameters.overwrite)
    for path, suffix in ((parameters.bigstitcher, ".xml"), (parameters.picture, ".png")):
        if path is not None:
            if path.suffix.lower() != suffix:
                raise OutputError(f"{path.name}: expected a name that ends in {suffix}.")
            check_output_path(path, parameters.overwrite)
    for folder in (parameters.itk, parameters.registered):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, and a folder is needed. Name another.")
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            if not parameters.overwrite:
                raise OutputError(f"{folder}: exists and holds files. Name another, or --overwrite.")
        elif folder is not None and not folder.absolute().parent.is_dir():
            raise OutputError(f"{folder.parent}: no such folder. Create it first.")


def _write_itk(folder: Path, series: SeriesRegistration) -> list[Path]:
    paths = []
    with plain_errors(folder), _whole(folder, r"view\d+_t\d+\.txt"):
        for transform in series.transforms:
            if transform.view > 0:
                path = folder / f"view{transform.view}_t{transform.time:04}.txt"
                write_atomically(path, affine_to_itk(transform.world_to_view))
                paths.append(path)
    return paths


@contextmanager
def _whole(folder: Path, ours: str) -> Iterator[None]:
    """A folder with all that one run writes into it, or with nothing of it; other files stay."""
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    _clear(folder, ours)
    try:
        yield
    except BaseException:
        _clear(folder, ours)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _clear(folder: Path, ours: str) -> None:
    """Remove what an earlier run wrote, so that a folder holds one run; other files stay."""
    for path in folder.iterdir():
        if re.fullmatch(ours, path.name):
            remove(path)


def _write_registered(
    folder: Path, plan: RegisterPlan, series: SeriesRegistration
) -> list[Path]:
    """Each view on the voxels of the first; volumes that cannot be had are NaN."""
    first = plan.views[0]
    shape = (len(first.times), len(first.channels), *first.shape)
    paths = []
    with _whole(folder, r"view\d+\.ome\.zarr"):
        for view in plan.views:
            path = folder / f"view{view.number}.ome.zarr"
            image = ImageDescription(
                shape, "float32", first.voxel_um, view.channels, first.time_step_s
            )
            with create_output(path, image, overwrite=plan.parameters.overwrite) as out:
                for t, c in np.ndindex(shape[:2]):
                    placed = series.at(first.times[t], view.number)
                    out.write(t, c, _registered(view, placed, t, c, plan))
            paths.append(path)
    return paths


def _registered(
    view: ViewSeries, placed: ViewTransform, t: int, c: int, plan: RegisterPlan
) -> Float32:
    first = plan.views[0]
    if not placed.believed:
        return np.full(first.shape, np.nan, np.float32)
    try:
        volume = torch.from_numpy(view.read(t, c).astype(np.float32)).to(plan.device)
    except (PellucidError, OSError):
        return np.full(first.shape, np.nan, np.float32)
    frames = {"source": "view 0", "target": view.grid.frame}
    field = None if placed.field is None else placed.field.with_frames(**frames)
    sample = sampled(view.grid, first.grid, placed.world_to_view.with_frames(**frames), field)
    return sample.forward(volume).cpu().numpy()
