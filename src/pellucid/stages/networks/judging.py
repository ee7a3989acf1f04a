"""What speaks for a network's answer, measured tile by tile and put together for the whole volume.

How bright an answer is, is a matter of the whole; where it errs then, of every region alone. So tiles
rehearse (`networks.evidence`) and say of the regions that begin in their cores a few sums each, and verdict
and cure follow from all of them together, as they do in one piece. The classical solution that this
takes is guarded by a tile's own photons: evidence has no seams to hide, and is calibrated on that.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.tiling import Box, Tile, Tiling
from pellucid.core.wrongness import REGION, region_edges
from pellucid.data.manifest import Manifest
from pellucid.data.ome_zarr_writer import StoredArray
from pellucid.data.record import RunRecord
from pellucid.data.resumable_zarr import ResumableZarr, write_part
from pellucid.networks.evidence import SUMS, Squares, logs_of, rehearsal
from pellucid.networks.features import classical
from pellucid.networks.share import Share
from pellucid.networks.trust import Trust, as_map
from pellucid.stages.deconvolution.tiling_run import Float32, TileKey
from pellucid.stages.networks.network_volume import NetworkVolume
from pellucid.stages.networks.plan import RestorePlan
from pellucid.stages.pieces.pieces_run import make_pieces, run_pieces
from pellucid.stages.pieces.tile_plan import box_shape
from pellucid.stages.pieces.volume_statistics import Place
from pellucid.stages.work.engine import Engine
from pellucid.stages.work.events import OnEvent, ignore

SQUARES = 3
"""Of every region: mean squared errors of both answers in the rehearsal, and their product."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """What is known of a volume's answer, region by region.

    Parameters
    ----------
    believable : probability that it is right; None where no verdict is asked for
    share : of the answer beside the classical solution; None where no cure is
    """

    believable: Float64 | None
    share: Float64 | None
    limit: float = 0.5

    @property
    def statistics(self) -> dict[str, Any]:
        """What is recorded of a volume."""
        said: dict[str, Any] = {}
        if self.share is not None:
            said |= {"network_share": float(self.share.mean())}
        if self.believable is not None:
            said |= {"believable": float(self.believable.mean()), "limit": self.limit}
            said |= {"doubtful_regions": int((1 - self.believable > self.limit).sum())}
        return said


def regions_of(tile: Tile, shape: tuple[int, int, int]) -> Box | None:
    """The regions that begin in the core of a tile, in voxels of the volume; None where there are none."""
    box = []
    for core, n, r in zip(tile.core, shape, REGION, strict=True):
        edges = region_edges(n, r)
        mine = [i for i, start in enumerate(edges[:-1]) if core.start <= start < core.stop]
        if not mine:
            return None  # a rest at the border belongs to the last region, which began before it
        box.append(slice(edges[mine[0]], edges[mine[-1] + 1]))
    return box[0], box[1], box[2]


@dataclass(frozen=True)
class JudgedTiles:
    """The task of rehearsing tiles, and summing up over regions what that says of their answers.

    Parameters
    ----------
    verdict, cure : what the sums are for
    """

    tiling: Tiling
    volumes: Mapping[Place, NetworkVolume]
    verdict: bool
    cure: bool

    @property
    def sums(self) -> int:
        """Numbers that are listed of a region: those of the verdict, then those of the cure."""
        return self.verdict * SUMS + self.cure * SQUARES

    def part(self, key: TileKey) -> str:
        """See `Task.part`."""
        return "t{} c{} tile {} judged".format(*key)

    def read(self, key: TileKey) -> list[npt.NDArray[Any]]:
        """Return the counts of a tile and its halo, to be taken out."""
        return [self.volumes[key[:2]].read(self.tiling.tile(key[2]))]

    def compute(self, key: TileKey, read: list[npt.NDArray[Any]]) -> Float64:
        """Return the sums (`sums`, z, y, x) over the regions that begin in a tile."""
        volume, tile = self.volumes[key[:2]], self.tiling.tile(key[2])
        regions = regions_of(tile, self.tiling.shape)
        assert regions is not None
        problem = volume.problem(read.pop(), tile.read)
        z, y, x = (
            slice(own.start - seen.start, own.stop - seen.start)
            for own, seen in zip(regions, tile.read, strict=True)
        )
        network, part, found = volume.restorer.network, (z, y, x), []
        made = rehearsal(problem, classical(problem), seed=2 * tile.index + 1)
        if self.cure:
            squares = made.squares(network, part)
            found.append(np.stack([squares.plain, squares.answer, squares.product]))
        if self.verdict:
            answer = volume.restorer.estimate(problem)
            found.insert(0, made.sums(network, answer, 2 * tile.index, part))
        return np.concatenate(found)

    def write(self, key: TileKey, made: Float64) -> dict[str, Any]:
        """Return what is listed of a tile: a tenth of a byte a voxel."""
        return {"sums": base64.b64encode(made.astype("<f4").tobytes()).decode()}


def judgements(
    plan: RestorePlan,
    volumes: Mapping[Place, NetworkVolume],
    done: Manifest,
    engine: Engine,
    record: RunRecord,
    on_event: OnEvent,
) -> dict[Place, Judgement]:
    """What speaks for the answers of all volumes; nothing where neither verdict nor cure is asked for."""
    if not plan.is_judged:
        return {}
    assert plan.tiles is not None
    tiling = plan.tiles.tiling
    asked = plan.parameters
    task = JudgedTiles(tiling, volumes, asked.verdict is not None, asked.fall_back)
    lit = [
        (*place, tile.index)
        for place, volume in volumes.items()
        for tile in tiling
        if tile.index not in volume.dark and regions_of(tile, tiling.shape) is not None
    ]

    def named(key: TileKey) -> str:
        return f"{volumes[key[:2]].volume.name} tile {key[2]} judged"

    run_pieces(lit, task, done, engine, record, on_event, computing="judge", named=named)
    found = {}
    for place in volumes:
        measured = np.zeros((task.sums, *(len(edges) - 1 for edges in _edges(tiling))))
        of_one = [key for key in lit if key[:2] == place]
        for key in of_one:
            _put(measured, tiling.tile(key[2]), done.facts(task.part(key))["sums"], tiling)
        found[place] = _judged(plan.card, task, measured, lit=bool(of_one))
    return found


def _edges(tiling: Tiling) -> list[list[int]]:
    return [region_edges(n, r) for n, r in zip(tiling.shape, REGION, strict=True)]


def _put(measured: Float64, tile: Tile, sums: str, tiling: Tiling) -> None:
    regions = regions_of(tile, tiling.shape)
    assert regions is not None
    z, y, x = (
        slice(own.start // r, own.start // r + len(region_edges(own.stop - own.start, r)) - 1)
        for own, r in zip(regions, REGION, strict=True)
    )
    mine = measured[:, z, y, x]
    mine[...] = np.frombuffer(base64.b64decode(sums), "<f4").reshape(mine.shape)


def _judged(card: dict[str, Any], task: JudgedTiles, measured: Float64, *, lit: bool) -> Judgement:
    if not lit:  # what is dark is told rightly
        sure = np.ones(measured.shape[1:])
        return Judgement(sure if task.verdict else None, sure if task.cure else None)
    believable, share, limit = None, None, 0.5
    if task.cure:
        plain, answer, product = measured[-SQUARES:]
        share = Share.from_dict(card["share"]).of(Squares(plain, answer, product))
    if task.verdict:
        trust, sums = Trust.from_dict(card["trust"]), measured[:SUMS]
        sizes = np.ones(())
        for edges in _edges(task.tiling):
            sizes = np.multiply.outer(sizes, np.diff(edges))
        sums[0] = sums[6] = sizes  # of regions without light too
        believable, limit = trust.believable(logs_of(sums)), trust.limit
    return Judgement(believable, share, limit)


@dataclass(frozen=True)
class MappedTiles:
    """The task of writing what is to be believed, core by core."""

    tiling: Tiling
    believable: Mapping[Place, Float64]
    stored: StoredArray

    def part(self, key: TileKey) -> str:
        """See `Task.part`."""
        return "t{} c{} tile {}".format(*key)

    def read(self, key: TileKey) -> None:
        """Read nothing: regions are few."""

    def compute(self, key: TileKey, read: None) -> Float32:
        """Return the probabilities on the voxels of a core."""
        core = self.tiling.tile(key[2]).core
        mapped: Float32 = as_map(self.believable[key[:2]], self.tiling.shape, core).numpy()
        return mapped

    def write(self, key: TileKey, made: Float32) -> dict[str, Any]:
        """Write a core; returns what is listed of it."""
        t, c, index = key
        core = self.tiling.tile(index).core
        z, y, x = (part.start for part in core)
        return write_part(self.stored, t, c, made, box_shape(core), (z, y, x))


def make_map(
    tiling: Tiling,
    judged: Mapping[Place, Judgement],
    writer: ResumableZarr,
    engine: Engine,
    record: RunRecord,
) -> None:
    """Write the map of what to believe, with its coarser levels."""
    believable = {p: one.believable for p, one in judged.items() if one.believable is not None}
    task = MappedTiles(tiling, believable, writer.stored_array(0))
    keys = [(*place, index) for place in judged for index in range(len(tiling))]
    make_pieces(
        keys, task, writer, engine, record, ignore, computing="map", named=lambda key: task.part(key)
    )
