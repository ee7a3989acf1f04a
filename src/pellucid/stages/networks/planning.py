"""A restoration planned: model and recording compared, in one piece or by tiles, refused before work."""

import math
from dataclasses import replace

import numpy as np
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import Kernel, blur_of, kernel_of, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_field import PsfExpansion
from pellucid.core.wrongness import REGION
from pellucid.data.recording import open_recording
from pellucid.data.resumable_zarr import listed_core
from pellucid.data.writer import (
    check_free_space,
    check_output_path,
)
from pellucid.errors import InputError, ParameterError, PlanError
from pellucid.networks.polish import Polished
from pellucid.networks.restorer import Network
from pellucid.networks.views import Views
from pellucid.stages.networks.loading import check_asked, load_network
from pellucid.stages.networks.optics import check_spacing
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.pieces.piece_choice import (
    fits_in_one,
    gib,
    goes_on,
    room_words,
    shared_out,
    workplace_of,
)
from pellucid.stages.pieces.tile_plan import (
    BESIDE_BYTES,
    TilePlan,
    box_shape,
    coarsest,
    fitted_tiling,
    halo_and_reach,
    meta_problem,
    planning_room,
    sample_shape,
    shard_chunks,
)
from pellucid.stages.selection import chosen
from pellucid.stages.work.cluster_choice import Workplace

LISTED_BYTES, SUMMED_BYTES = 0.1, 0.4
"""Held for each voxel of a volume: what is listed of its regions, and what follows from it."""


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
    check_asked(card, parameters)
    place = workplace_of(parameters)
    recording = open_recording(parameters.input, voxel_um=parameters.voxel_um)
    check_spacing(recording.require_voxel_um(), card["voxel_um"], recording.path.name)
    if (recording.shape[2] > 1) != network.weights.architecture.volumetric:
        kinds = ("volumes", "one plane") if recording.shape[2] == 1 else ("one plane", "volumes")
        raise InputError(
            f"{parameters.model.name}: a model for {kinds[0]}, and {recording.path.name} holds {kinds[1]}. "
            "Use a model for these."
        )
    times = chosen(parameters.time, recording.shape[0], "time", recording)
    channels = chosen(parameters.channel, recording.shape[1], "channel", recording)
    plan = RestorePlan(
        parameters, network, card, place.device, 0, place.room_bytes, psf, recording, times, channels
    )
    plan.check_names((recording.path, *recording.files))
    plan = _fitted(replace(plan, peak_bytes=_peak_bytes(plan)), place)
    if plan.tiles is None:
        plan.writers(plan.image)
    else:
        _check_tiled_outputs(plan)
    return plan


def _check_tiled_outputs(plan: RestorePlan) -> None:
    # the map gets its name before the image, so that an interrupted run may have left one of its own
    asked, image = plan.parameters, plan.image
    begun = goes_on(plan.output, resume=asked.resume, overwrite=asked.overwrite)
    for path in plan.outputs:
        check_output_path(path, asked.overwrite or (begun and path != plan.output))
        check_free_space(path.parent, image.size_bytes * len(plan.outputs))


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


def without_tiles(plan: RestorePlan) -> str:
    """Why a restoration cannot be made by tiles, and what would let it; empty where it can."""
    asked = plan.parameters
    if not all(path.name.lower().endswith(".zarr") for path in (asked.output, asked.verdict) if path):
        return "Tiles are written as OME-Zarr: name a .ome.zarr output"
    if plan.network.weights.architecture.start == "classical":
        return "This model starts from the classical solution, which is decided on the whole volume"
    return ""


def planned_tiles(plan: RestorePlan, place: Workplace, *, goes_on: bool) -> TilePlan:
    """The tiles that cost least of those that fit.

    Raises
    ------
    PlanError : not even the smallest tile fits
    ParameterError : a tile that is not made of whole chunks of the output
    """
    asked, shape, itemsize = plan.parameters, plan.shape[2:], plan.recording.dtype.itemsize
    psf = usable_psf(plan.psf, shape)
    kernel, (light, reach) = kernel_of(psf), halo_and_reach([psf])
    halo, step = tile_halo(plan, kernel, light), plan.network.step
    if asked.fall_back:
        z, y, x = (max(pair) for pair in zip(step, coarsest([psf], shape), strict=True))
        step = (z, y, x)  # both are powers of two

    listed = int((LISTED_BYTES * plan.total + SUMMED_BYTES) * np.prod(shape, dtype=float))

    def needed(read: Shape) -> int:
        voxels = int(np.prod(read))
        core = int(np.prod([max(n - 2 * h, 1) for n, h in zip(read, halo, strict=True)]))
        # one more tile is read meanwhile, and a core is being written: itself, and shards of it
        beside = voxels * itemsize + min(core, voxels) * 4 * 2
        problem = _widest_problem(kernel, read)
        peak = plan.restorer.peak_bytes(problem)
        if plan.is_judged:
            peak = judged_bytes(problem, plan.restorer) + listed
        return peak + 12 * voxels + beside + BESIDE_BYTES

    remedy = "train a narrower network of fewer passes (width, passes)"
    if plan.is_judged:
        remedy = "leave --verdict and --fall-back out"

    def within(room_bytes: int | None) -> TilePlan:
        room = planning_room(room_bytes)
        tiling = fitted_tiling(
            shape, core, halo=halo, reach=reach, needed=needed, room_bytes=room, step=step, remedy=remedy
        )
        sample = max((box_shape(tile.read) for tile in tiling), key=lambda s: int(np.prod(s)))
        if asked.fall_back:
            sample = sample_shape(sample, kernel, Accelerated(), room - BESIDE_BYTES)
        return TilePlan(tiling, shard_chunks(tiling, room), sample)

    core = asked.tile or (listed_core(plan.output) if goes_on else None)
    tiles = within(place.room_bytes)
    return tiles if core else shared_out(tiles, plan.total, place, within)


def tile_halo(plan: RestorePlan, kernel: Kernel, light: Shape) -> Shape:
    """Voxels beyond a core that decide it: the network's, and those of the blur (`light`) where the answer
    is polished or set against the classical solution."""
    own = plan.network.halo(meta_problem(plan.shape[2:], kernel))
    physical = plan.is_judged or plan.restorer.iterations != 0
    least = REGION if plan.is_judged else (0, 0, 0)
    z, y, x = (
        0 if n == 1 else max(a + physical * b, r)
        for a, b, r, n in zip(own, light, least, plan.shape[2:], strict=True)
    )
    return z, y, x


def _widest_problem(kernel: Kernel, shape: Shape) -> Problem:
    """The problem of a tile in the middle of a field, where most of its places take part."""
    if not isinstance(kernel, PsfExpansion):
        return meta_problem(shape, kernel)
    sizes = zip(kernel.knots, kernel.spacing_um, shape, strict=True)
    z, y, x = (round((k[0] + k[-1]) / (2 * step)) - n // 2 for k, step, n in sizes)
    return meta_problem(shape, kernel, (z, y, x))


def judged_bytes(problem: Problem, restorer: Polished) -> int:
    """Memory that evidence about an answer takes, beside the images of a recording."""
    assert isinstance(restorer.network, Network)
    kept, solving = restorer.network.kept_bytes(problem), Accelerated().peak_bytes(problem)
    # five volumes of float64 where two are compared; beside all of it the answer, the classical
    # solution, the rehearsal's object, image and classical solution
    comparing = 5 * 8 * math.prod(problem.observations[0].image.shape)
    working = max(restorer.peak_bytes(problem), kept + max(solving, comparing))
    return working + 5 * 4 * math.prod(problem.shape)
