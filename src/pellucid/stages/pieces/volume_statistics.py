"""What is measured of a volume before its first tile: levels from samples, and every core once.

Both are tasks of an engine. What a core says is small, and is put together in the order of the cores, so
that all engines measure the same to the last digit.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.coverage import Fill, FillChoice, fill_of
from pellucid.core.deconvolution import camera_as_used
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.sampling import Array, Sampled, block_means
from pellucid.core.tiling import Tiling
from pellucid.data.manifest import Manifest
from pellucid.data.recording import Recording
from pellucid.errors import InputError, NotFiniteError
from pellucid.stages.work.engine import Engine

Place = tuple[int, int]
"""(t, c) in the output."""

CoreKey = tuple[int, int, int]
"""(t, c) in the output, and the number of a core."""

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
KNOTS = np.array(
    [0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 25, 40, 50, 60, 75, 90, 97, 99, 99.7, 99.9, 99.97, 99.99, 100]
)
"""Percentiles of each core from which those of the volume are put together; between two, values lie
evenly."""

SAMPLED_VOXELS = 1 << 17
"""Of a core, for its percentiles: the 99.99th has 13 voxels above it."""

SLAB_PLANES, SLAB_ROWS, SLAB_VOXELS = 64, 128, 4_000_000
"""What is measured at a time: 100 MiB with all copies."""

DARK_BLOCK_SIGMAS, DARK_VOXEL_SIGMAS = 8.0, 8.0
"""A core is empty where no mean of 4 x 8 x 8 voxels, and no voxel, stands out by so many standard
deviations of the noise at the background. The background is that of the darkest 2 % of such means,
2.4 deviations below the middle of empty ones, so that chance has 5.6 left."""


@dataclass(frozen=True)
class LazyVolume:
    """One time point and channel of a recording, sliced like an array and read on demand.

    Voxels that are NaN or infinite are refused when they are read, with the plane they lie in.
    """

    recording: Recording
    t: int
    c: int

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.recording.shape[2:]
        return z, y, x

    @property
    def name(self) -> str:
        """File, time point and channel in words."""
        return f"{self.recording.path.name} t={self.t} c={self.c}"

    def __getitem__(self, box: Any) -> Any:
        counts = self.recording.read(self.t, self.c, *box)
        if counts.dtype.kind == "f" and not np.isfinite(counts).all():
            first = int(np.argmin(np.isfinite(counts).all(axis=(1, 2))))
            plane = range(self.shape[0])[box[0]][first]
            raise NotFiniteError(
                f"{self.name}: voxels that are NaN or infinite in plane {plane} (of z, from 0). "
                "Replace them, or leave this volume out."
            )
        return counts


@dataclass(frozen=True)
class Levels:
    """What samples of a volume say, and all its cores share.

    Parameters
    ----------
    background : counts of the empty regions
    noise : of the camera; where it cannot be measured, `reliable` is False
    gain : counts per photon that are used
    offset, read_noise : counts, as used
    dark_block, dark_voxel : counts below which a core is empty
    fill_value, fill_below, fill_margin_px : of voxels that were never recorded (`Fill`), where there
        are any; they take no part in anything that is measured
    """

    background: float
    noise: dict[str, Any]
    gain: float
    offset: float
    read_noise: float
    dark_block: float
    dark_voxel: float
    fill_value: float | None = None
    fill_below: float | None = None
    fill_margin_px: int = 0

    @property
    def fill(self) -> Fill | None:
        """What stands where nothing was recorded."""
        if self.fill_value is None:
            return None
        return Fill(self.fill_value, self.fill_below, self.fill_margin_px)

    @property
    def camera(self) -> Noise:
        """The camera as used: always taken at its word."""
        return Noise(self.gain, self.offset, self.read_noise)


@dataclass(frozen=True)
class CoreStatistics:
    """What is measured of a core.

    Parameters
    ----------
    recorded : voxels that were
    photons, light : sums over them, with and without the background
    empty : no light; its result is zeros
    values : counts at the `KNOTS`, from the least to the most
    """

    recorded: int
    photons: float
    light: float
    empty: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class VolumeStatistics:
    """What all tiles of a volume share.

    Parameters
    ----------
    levels : background, camera and fill
    start : mean photons above background: the flat start
    percentiles : of the counts, by name
    empty : cores without light; they become zeros
    typical : the core that stands for the others: half of the light lies in darker ones
    recorded_share : of the voxels
    """

    levels: Levels
    start: float
    percentiles: dict[str, float]
    empty: tuple[int, ...]
    typical: int
    recorded_share: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """All of it in one table, for the record."""
        return {**asdict(self.levels), **{k: v for k, v in vars(self).items() if k != "levels"}}


@dataclass(frozen=True)
class SampledVolumes:
    """The task of finding the levels of a volume (t, c)."""

    volumes: Mapping[Place, LazyVolume]
    background: float | None
    fill: FillChoice

    def part(self, key: Place) -> str:
        """See `Task.part`."""
        return "t{} c{} sampled".format(*key)

    def read(self, key: Place) -> Levels:
        """Return the levels: what to read for one depends on another."""
        return sampled(self.volumes[key], self.background, self.fill)

    def compute(self, key: Place, read: Levels) -> Levels:
        """Return them as they are."""
        return read

    def write(self, key: Place, made: Levels) -> dict[str, Any]:
        """Return what is listed of a volume."""
        return asdict(made)


@dataclass(frozen=True)
class MeasuredCores:
    """The task of measuring the cores of all volumes."""

    tiling: Tiling
    volumes: Mapping[Place, LazyVolume]
    levels: Mapping[Place, Levels]

    def part(self, key: CoreKey) -> str:
        """See `Task.part`."""
        return "t{} c{} core {} measured".format(*key)

    def read(self, key: CoreKey) -> list[npt.NDArray[Any]]:
        """Return the counts of a core, to be taken out."""
        t, c, index = key
        return [self.volumes[t, c][self.tiling.tile(index).core]]

    def compute(self, key: CoreKey, read: list[npt.NDArray[Any]]) -> CoreStatistics:
        """Return what is measured of a core."""
        return core_statistics(read.pop(), self.levels[key[:2]])

    def write(self, key: CoreKey, made: CoreStatistics) -> dict[str, Any]:
        """Return what is listed of a core."""
        return vars(made)


def measured(
    volumes: Mapping[Place, LazyVolume],
    tiling: Tiling,
    background: float | None,
    fill: FillChoice,
    engine: Engine,
    done: Manifest,
) -> dict[Place, VolumeStatistics]:
    """Measure volumes by an engine: what is listed already is not measured again.

    Raises
    ------
    InputError : voxels that are not finite; none that was recorded; a background above all
    """
    sampling = SampledVolumes(volumes, background, fill)
    engine.run(list(volumes), sampling, done, lambda _: None)
    levels = {place: Levels(**done.facts(sampling.part(place))) for place in volumes}
    measuring = MeasuredCores(tiling, volumes, levels)
    keys = {place: [(*place, index) for index in range(len(tiling))] for place in volumes}
    engine.run([key for of_one in keys.values() for key in of_one], measuring, done, lambda _: None)
    found = {}
    for place, of_one in keys.items():
        cores = [CoreStatistics(**done.facts(measuring.part(key))) for key in of_one]
        check_background(background, *_extremes(cores))
        found[place] = combined(levels[place], cores, math.prod(tiling.shape))
    return found


def sampled(volume: Array, background: float | None, choice: FillChoice = "auto") -> Levels:
    """Return the levels of a volume, from samples of it that are read once."""
    volume = Sampled(volume)
    fill = fill_of(volume, choice)
    known: FillChoice = fill or "none"
    noise = Noise(**rounded(estimate_noise(volume, fill=known).as_dict()))
    level = background
    if level is None:
        level = rounded(float(estimate_background(volume, fill=known)))
    camera = camera_as_used(volume, noise, level, fill)
    sigma = math.sqrt(max(float(noise.variance(level)), 0.0)) if noise.reliable else 0.0
    return Levels(
        level, noise.as_dict(), rounded(camera.gain), camera.offset, camera.read_noise,
        dark_block=level + DARK_BLOCK_SIGMAS * sigma / 16, dark_voxel=level + DARK_VOXEL_SIGMAS * sigma,
        fill_value=None if fill is None else fill.value,
        fill_below=None if fill is None else fill.below,
        fill_margin_px=0 if fill is None else fill.margin_px,
    )  # fmt: skip


def core_statistics(counts: npt.NDArray[Any], levels: Levels) -> CoreStatistics:
    """Measure the counts of a core, slab by slab."""
    fill, level, gain = levels.fill, levels.background, levels.gain
    # no photons are left at this count, and below
    floor = float(np.float32(levels.offset - levels.read_noise**2 / gain))
    every = max(1, counts.size // SAMPLED_VOXELS)
    samples: list[npt.NDArray[Any]] = []
    lit, voxels, brightest_block, least, most = 0.0, 0, level, math.inf, -math.inf
    for slab in _slabs(counts):
        seen = None if fill is None else fill.recorded(slab)
        if fill is None or seen is None or seen.all():
            means, light, known = block_means([slab], None), slab, slab
        else:
            means = block_means([fill.spread(slab)], fill.value)
            light, known = np.where(seen, slab.astype(np.float32), np.float32(floor)), slab[seen]
            if known.size == 0:
                continue
        lit, voxels = lit + _sum_above(light, floor), voxels + known.size
        least, most = min(least, float(known.min())), max(most, float(known.max()))
        brightest_block = max(brightest_block, float(means.max(initial=level)))
        samples.append(known.ravel()[::every].copy())
    empty = brightest_block <= levels.dark_block and most <= levels.dark_voxel
    values: tuple[float, ...] = ()
    if voxels:
        inner = np.percentile(np.concatenate(samples), KNOTS[1:-1]).tolist()
        values = (least, *(rounded(v) for v in inner), most)
    above = (lit - voxels * (level - floor)) / gain
    return CoreStatistics(voxels, rounded(lit / gain), rounded(above), empty, values)


def combined(levels: Levels, cores: Sequence[CoreStatistics], size: int) -> VolumeStatistics:
    """Put together what was measured of all cores of a volume of `size` voxels."""
    voxels = sum(core.recorded for core in cores)
    if voxels == 0:
        raise InputError(
            "fill: every voxel is taken as never recorded. State another value, or none (--fill none)."
        )
    lights = [core.light for core in cores]
    light = max(sum(lights), 1e-3 * sum(core.photons for core in cores))
    empty = tuple(index for index, core in enumerate(cores) if core.empty)
    return VolumeStatistics(
        levels, rounded(light / voxels), _percentiles(cores), empty,
        typical=_typical(lights, set(empty)), recorded_share=voxels / size,
    )  # fmt: skip


def _extremes(cores: Sequence[CoreStatistics]) -> tuple[float, float]:
    """The least and the most of all counts."""
    seen = [core.values for core in cores if core.values]
    least = min((values[0] for values in seen), default=math.inf)
    return least, max((values[-1] for values in seen), default=-math.inf)


def _percentiles(cores: Sequence[CoreStatistics]) -> dict[str, float]:
    """Percentiles of the counts of all cores, by bisection of the share that lies below a count."""
    seen = [core for core in cores if core.values]
    values = np.array([core.values for core in seen])
    shares = np.array([[core.recorded] for core in seen]) * np.diff(KNOTS)
    low, width = values[:, :-1], np.maximum(np.diff(values), 1e-9 * np.ptp(values) or 1.0)
    found = {}
    for p in PERCENTILES:
        least, most = (float(v) for v in _extremes(seen))
        for _ in range(50):
            middle = (least + most) / 2
            below = float((shares * np.clip((middle - low) / width, 0, 1)).sum() / shares.sum())
            least, most = (middle, most) if below < p / 100 else (least, middle)
        found[f"{p:g}"] = rounded(most)
    return found


def rounded(value: Any) -> Any:
    """JSON with its numbers to six digits: more would depend on the number of threads."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(rounded(v) for v in value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _sum_above(slab: Any, floor: float) -> float:
    """Sum of what exceeds `floor`.

    Planes are added voxel by voxel first: one order on every machine, and no copy of the slab.
    """
    added = np.zeros(slab.shape[1:], np.float32)
    for plane in slab:
        added += np.maximum(plane.astype(np.float32, copy=False), np.float32(floor))
    return float(added.sum(dtype=np.float64)) - floor * int(slab.size)


def _slabs(counts: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    planes, lines, across = counts.shape
    rows = max(SLAB_VOXELS // (SLAB_PLANES * across) // SLAB_ROWS, 1) * SLAB_ROWS
    for z, y in itertools.product(range(0, planes, SLAB_PLANES), range(0, lines, rows)):
        yield counts[z : z + SLAB_PLANES, y : y + rows]


def _typical(lights: list[float], empty: set[int]) -> int:
    lit = sorted((light, i) for i, light in enumerate(lights) if i not in empty)
    if not lit:
        return 0
    share = np.cumsum([max(light, 0.0) for light, _ in lit])
    return lit[min(int(np.searchsorted(share, share[-1] / 2)), len(lit) - 1)][1]
