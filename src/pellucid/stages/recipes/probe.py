"""How long a recipe will take: each step's own arithmetic on a small piece of the data, on the clock.

The piece (`CHUNK`, the typical one of nine) is read from the first recording, and what a step makes of it
is the piece of the next. Times grow with the voxels, and those of Fourier transforms as n log n of what
the restorer says it holds.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.deconvolution import back_projector, deconvolve, kernel_of, restorer, usable_psf
from pellucid.core.deskew import deskew, deskewed_grid
from pellucid.core.geometry import as_triple
from pellucid.core.noise import estimate_background
from pellucid.core.pairwise import pairwise_shift
from pellucid.core.placement import place
from pellucid.core.quality import measure
from pellucid.core.replay import Replay, decided
from pellucid.core.sampling import MAX_VOXELS
from pellucid.core.tiling import Tile, Tiling
from pellucid.data.output import create_output
from pellucid.data.recording import Recording, open_recording
from pellucid.data.writer import ImageDescription
from pellucid.errors import PellucidError
from pellucid.stages.deconvolution.memory import peak_bytes
from pellucid.stages.deconvolution.planning import FilePlan, Plan
from pellucid.stages.deconvolution.tiling_run import VolumeTask
from pellucid.stages.deskewing.deskewing import DeskewPlan
from pellucid.stages.measuring import MeasurePlan
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.networks.restoring import answer_of
from pellucid.stages.networks.training import photon_problem
from pellucid.stages.pieces.tile_plan import tile_peak_bytes
from pellucid.stages.pieces.volume_statistics import LazyVolume, combined, core_statistics, sampled
from pellucid.stages.recipes.plan import Job, RecipePlan
from pellucid.stages.recipes.view_probe import fuse_seconds, middle, register_seconds
from pellucid.stages.stitching.mosaic_deconvolving import MosaicPlan
from pellucid.stages.stitching.plan import BLENDED_VOXELS, StitchPlan
from pellucid.stages.stitching.stitching import Mosaic

Volume = npt.NDArray[Any]
Made = TypeVar("Made")
Shape = tuple[int, int, int]

CHUNK = (48, 192, 192)
"""Voxels of the piece: 1.8 million, so that it does not fit the processor's cache, as volumes do not."""

LINKS_TIMED = 2


@dataclass(frozen=True)
class Probed:
    """Seconds that a step will take (None: cannot be told), and what it makes of the piece."""

    seconds: float | None
    chunk: Volume | None


def estimated_seconds(plan: RecipePlan) -> dict[str, float | None]:
    """Seconds that each step will take, by its name; None where no piece of its input is there yet."""
    chunks: dict[str, Volume | None] = {}
    seconds: dict[str, float | None] = {}
    rate = _write_seconds_per_byte()
    for job in plan.jobs:
        piece = chunks[job.takes[0]] if job.takes else None
        if job.verdict.skip:
            chunks[job.name] = _of_outputs(job)
            continue
        try:
            probed = _PROBES[job.work.command](job.work.plan, piece)
        except PellucidError:
            probed = Probed(None, piece)
        chunks[job.name] = probed.chunk
        written = rate * job.work.disk_bytes
        seconds[job.name] = None if probed.seconds is None else probed.seconds + written
    return seconds


def piece_of(recording: Recording, t: int = 0, c: int = 0) -> tuple[Volume, float]:
    """The typical one of nine pieces of a volume, and the seconds that reading takes for each voxel.

    Half of the light lies in darker pieces: what stops an iteration there stops it in most places.
    """
    shape = recording.shape[2:]
    size = _piece_shape(shape)
    z0 = (shape[0] - size[0]) // 2
    begin, pieces = time.perf_counter(), []
    for share_y, share_x in np.ndindex(3, 3):
        y0, x0 = ((n - k) * s // 2 for n, k, s in zip(shape[1:], size[1:], (share_y, share_x), strict=True))
        pieces.append(recording.read(
            t, c, slice(z0, z0 + size[0]), slice(y0, y0 + size[1]), slice(x0, x0 + size[2])
        ))  # fmt: skip
        if tuple(size[1:]) == tuple(shape[1:]):
            break
    spent = time.perf_counter() - begin
    pieces.sort(key=lambda piece: float(piece.mean()))
    light = np.cumsum([float(piece.mean()) - float(pieces[0].min()) for piece in pieces])
    typical = min(int(np.searchsorted(light, light[-1] / 2)), len(pieces) - 1)
    return pieces[typical], spent / sum(piece.size for piece in pieces)


def _piece_shape(shape: Shape) -> Shape:
    """`CHUNK`, and where a volume is thinner, more of its other axes, so that the piece is as large."""
    size = [min(n, k) for n, k in zip(shape, CHUNK, strict=True)]
    for axis in (2, 1, 0):
        wanted = math.prod(CHUNK) * size[axis] // math.prod(size)
        size[axis] = min(shape[axis], max(size[axis], wanted))
    return size[0], size[1], size[2]


def _of_outputs(job: Job) -> Volume | None:
    path = next(iter(job.work.makes))
    is_image = job.work.makes[path] is not None and path.exists()
    return piece_of(open_recording(path))[0] if is_image else None


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    begin = time.perf_counter()
    made = work()
    return made, time.perf_counter() - begin


def _write_seconds_per_byte() -> float:
    """Of this machine's OME-Zarr writer, pyramid included."""
    rng = np.random.default_rng(0)
    volume = rng.gamma(2.0, 50.0, CHUNK).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        image = ImageDescription((1, 1, *CHUNK), voxel_um=(1.0, 1.0, 1.0))

        def write() -> None:
            with create_output(Path(folder) / "probe.ome.zarr", image) as out:
                out.write(0, 0, volume)

        write()
        Path(folder, "probe.ome.zarr").rename(Path(folder, "first"))
        return _timed(write)[1] / volume.nbytes


def grown(bytes_now: float, bytes_then: float) -> float:
    """How many times longer Fourier transforms take that hold so much more: n log n."""
    return bytes_then * math.log2(bytes_then) / (bytes_now * math.log2(bytes_now))


def _deskew(plan: DeskewPlan, piece: Volume | None) -> Probed:
    if piece is None:
        piece, read = piece_of(plan.recording, plan.times[0], plan.channels[0])
    else:
        read = 0.0
    counts = torch.from_numpy(np.ascontiguousarray(piece, np.float32)).to(plan.device)
    asked = plan.parameters
    grid = deskewed_grid(plan.scan, piece.shape, frame=asked.frame, spacing_um=asked.spacing_um)
    deskew(counts[:2], plan.scan)  # the first call takes longer
    image, spent = _timed(lambda: deskew(counts, plan.scan, grid=grid)[0].cpu().numpy())
    share = math.prod(plan.grid.shape) / math.prod(grid.shape)
    once = spent * share + read * math.prod(plan.recording.shape[2:])
    return Probed(once * len(plan.times) * len(plan.channels), _cut(image))


def _stitch(plan: StitchPlan, piece: Volume | None) -> Probed:
    if piece is not None:
        return Probed(None, piece)  # tiles that are not there yet have no overlaps to compare
    placed, spent = _placing(plan)
    block, blend = _blending(plan, placed)
    voxels = math.prod(plan.nominal_shape) * len(plan.times) * len(plan.channels)
    return Probed(spent + blend * voxels, _cut(block))


def _placing(plan: StitchPlan) -> tuple[Mosaic, float]:
    """The tiles where the stage says, and seconds for what comes before blending."""
    count, channels = len(plan.tiles.recordings), len(plan.channels)
    tiles = plan.tiles.tiles(plan.parameters.at_time, plan.reference)
    seconds = 0.0
    if plan.parameters.background is None:
        middle = tiles[0].shape[0] // 2
        _, spent = _timed(lambda: estimate_background(np.asarray(tiles[0][middle])[None]))
        seconds += spent * count * channels
    if plan.parameters.registration == "links":
        pairs = plan.pairs[:: max(1, len(plan.pairs) // LINKS_TIMED)][:LINKS_TIMED]
        shifts = plan.tiles.nominal_px
        _, spent = _timed(lambda: [
            pairwise_shift(tiles[a], tiles[b], as_triple(shifts[b] - shifts[a], "shift"),
                           names=(a, b), margin_px=plan.margin_px)
            for a, b in pairs
        ])  # fmt: skip
        again = channels if plan.parameters.gains == "auto" else 1
        seconds += spent / len(pairs) * len(plan.pairs) * again
    nothing = place(plan.tiles.nominal_px, [])
    light: dict[int, Any] = dict.fromkeys(plan.channels, (None, 0.0))
    ones = [np.ones(count)] * channels
    mosaic = Mosaic(plan, nothing, plan.tiles.nominal_px, light, ones, plan.nominal_shape)
    return mosaic, seconds


def _blending(plan: StitchPlan, mosaic: Mosaic) -> tuple[Volume, float]:
    """A block of the mosaic's middle, and the seconds that a voxel takes."""
    shape = plan.nominal_shape
    side = int((BLENDED_VOXELS / min(shape[0], CHUNK[0])) ** 0.5)
    size = [min(shape[0], CHUNK[0]), min(shape[1], side), min(shape[2], side)]
    z, y, x = ((n - k) // 2 for n, k in zip(shape, size, strict=True))
    high = (z + size[0], y + size[1], x + size[2])
    block, spent = _timed(lambda: mosaic.block(0, 0, (z, y, x), high))
    return block, spent / block.size


def _mosaic(plan: MosaicPlan, piece: Volume | None) -> Probed:
    if piece is not None:
        return Probed(None, piece)
    placed, spent = _placing(plan.stitching)
    block, blend = _blending(plan.stitching, placed)
    (file,) = plan.deconvolution.files
    times = 1.0 if file.tiles is None else 2.0 + file.tiles.tiling.halo_share  # measured, then read
    sharp = _deconvolve(plan.deconvolution, _cut(block))
    assert sharp.seconds is not None
    return Probed(spent + blend * math.prod(file.shape) * times + sharp.seconds, sharp.chunk)


def _deconvolve(plan: Plan, piece: Volume | None) -> Probed:
    total, made = 0.0, piece
    for file in plan.files:
        own, read = (piece, 0.0) if piece is not None else piece_of(
            file.recording, file.times[0], file.channels[0]
        )  # fmt: skip
        assert own is not None
        passes = 1.0 if file.tiles is None else 2.0 + file.tiles.tiling.halo_share
        total += read * passes * math.prod(file.shape)
        for c in range(len(file.channels)):
            made, spent = (_whole if file.tiles is None else _tiles)(plan, file, c, own)
            total += spent * len(file.times)
    return Probed(total, made)


def _whole(plan: Plan, file: FilePlan, c: int, piece: Volume) -> tuple[Volume, float]:
    asked, psf = plan.parameters, file.psfs[c]
    done, spent = _timed(lambda: deconvolve(
        piece, psf, method=asked.method, iterations=asked.iterations, background=asked.background,
        device=plan.device, seed=asked.seed,
    ))  # fmt: skip
    _, sampling = _timed(lambda: sampled(piece, asked.background, asked.fill))
    z, y, x = piece.shape
    here, whole = (peak_bytes(shape, psf, asked) for shape in ((z, y, x), file.shape[2:]))
    seconds = sampling * _samples(file, piece) + max(spent - sampling, 0.0) * grown(here, whole)
    return done.image.cpu().numpy(), seconds


def _samples(file: FilePlan, piece: Volume) -> float:
    """Samples of a volume, from which noise and background are measured, in those of the piece."""
    voxels = (math.prod(file.shape[2:]), piece.size)
    whole, here = (min(MAX_VOXELS, n) for n in voxels)
    return whole / here


def _tiles(plan: Plan, file: FilePlan, c: int, piece: Volume) -> tuple[Volume, float]:
    """The measuring, the decisions, and all tiles as far as they cost what the piece costs."""
    assert file.tiles is not None
    asked, tiling, psf = plan.parameters, file.tiles.tiling, file.psfs[c]
    kernel = kernel_of(usable_psf(psf, file.shape[2:]))
    z, y, x = piece.shape
    alone = Tiling((z, y, x), (z, y, x), (0, 0, 0), (1, 1, 1), 0)
    levels, sampling = _timed(lambda: sampled(piece, asked.background, asked.fill))
    core, passing = _timed(lambda: core_statistics(piece, levels))
    statistics = combined(levels, [core], piece.size)
    measuring = sampling * _samples(file, piece) + passing * math.prod(file.shape[2:]) / piece.size
    volume = LazyVolume(file.recording, 0, 0)
    chosen = restorer(back_projector(asked.method), asked.iterations, asked.seed)
    task = VolumeTask(volume, kernel, statistics, chosen, plan.device)
    deciding = 0.0
    if isinstance(chosen, Accelerated):
        problem = task.problem(piece, alone.tile(0).read)
        schedule, deciding = _timed(lambda: decided(chosen, problem, statistics.start))
        task = replace(task, restorer=Replay(schedule))
    (sharp, _), each = _timed(lambda: task.restored(alone.tile(0), piece))
    here = tile_peak_bytes((z, y, x), kernel, asked)
    sizes = [_size(tile) for tile in tiling]
    costs = {size: grown(here, tile_peak_bytes(size, kernel, asked)) for size in set(sizes)}
    typical = costs[sizes[len(sizes) // 2]]
    seconds = measuring + deciding * typical + each * sum(costs[size] for size in sizes)
    return sharp, seconds


def _size(tile: Tile) -> Shape:
    z, y, x = (part.stop - part.start for part in tile.read)
    return z, y, x


def _restore(plan: RestorePlan, piece: Volume | None) -> Probed:
    if piece is None:
        piece, _ = piece_of(plan.recording, plan.times[0], plan.channels[0])
    image = torch.from_numpy(np.ascontiguousarray(piece, np.float32)).to(plan.device)
    (problem, gain), spent = _timed(lambda: photon_problem(image, plan.psf))
    asks = {"fall_back": plan.parameters.fall_back, "verdict": plan.parameters.verdict is not None}
    (answer, *_), more = _timed(lambda: answer_of(problem, plan.restorer, plan.card, **asks))
    again = 1.0 if plan.tiles is None else 1.0 + plan.tiles.tiling.halo_share
    share = again * math.prod(plan.shape) / piece.size
    return Probed((spent + more) * share, answer.mul(gain).numpy())


def _measure(plan: MeasurePlan, piece: Volume | None) -> Probed:
    if piece is None:
        t, c = plan.places[0]
        piece, _ = piece_of(plan.recording, t, c)
    _, spent = _timed(lambda: measure(piece, plan.spacing_um))
    share = min(MAX_VOXELS, math.prod(plan.recording.shape[2:])) / min(MAX_VOXELS, piece.size)
    return Probed(spent * share * len(plan.places), piece)


def _cut(volume: Volume) -> Volume:
    z, y, x = volume.shape
    return middle(volume, _piece_shape((z, y, x)))


def _register(plan: Any, piece: Volume | None) -> Probed:
    return Probed(register_seconds(plan, piece), piece)


def _fuse(plan: Any, piece: Volume | None) -> Probed:
    seconds, made = fuse_seconds(plan, piece)
    return Probed(seconds, _cut(made))


_PROBES: dict[str, Callable[[Any, Volume | None], Probed]] = {
    "deskew": _deskew, "stitch": _stitch, "mosaic": _mosaic, "register": _register, "fuse": _fuse,
    "deconvolve": _deconvolve, "restore": _restore, "measure": _measure,
}  # fmt: skip
