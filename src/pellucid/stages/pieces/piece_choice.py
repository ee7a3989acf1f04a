"""One piece or many: where the work is done, with how much room, and what an interrupted run left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pellucid.data.manifest import differences
from pellucid.data.record import fingerprint, read_record
from pellucid.data.resumable_zarr import manifest_path
from pellucid.errors import OutputError, PellucidError, PlanError
from pellucid.stages.parameters import Parameters
from pellucid.stages.pieces.tile_plan import BESIDE_BYTES, MARGIN, TilePlan
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.resources import available_bytes, resident_bytes, resolve_device
from pellucid.stages.work.workplace import workplace

TILES_OF_A_WORKER = 2
"""At least, so that none waits long for the last."""


class Placed(Protocol):
    """Parameters that say where to compute, and with how much memory."""

    @property
    def cluster(self) -> str | None: ...
    @property
    def device(self) -> str: ...
    @property
    def memory(self) -> int | None: ...


def workplace_of(asked: Placed) -> Workplace:
    """Where a run computes, and with how much room."""
    if asked.cluster is not None:
        return workplace(asked.cluster, asked.device, asked.memory)
    device = resolve_device(asked.device)
    return Workplace(device, 1, room_bytes(asked.memory, device))


def room_bytes(memory: int | None, device: str) -> int | None:
    """Memory that may be used beyond what is held already; None where nobody says."""
    free = available_bytes(device)
    if memory is None or device != "cpu":
        return free
    allowed = memory - resident_bytes()
    if allowed <= 0:
        raise PlanError(
            f"memory: {gib(memory)} may be used, and the program itself takes "
            f"{gib(resident_bytes())}. Allow more."
        )
    return allowed if free is None else min(free, allowed)


def is_begun(output: Path) -> bool:
    """Whether an interrupted run by pieces is there."""
    return manifest_path(output).is_file() and output.with_name(output.name + ".partial").is_dir()


def goes_on(output: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether to go on with an interrupted run; OutputError where one is there and nobody says."""
    begun = is_begun(output)
    if begun and not (resume or overwrite):
        raise OutputError(
            f"{output.name}: an interrupted run of this output is there. Go on with --resume, or "
            "begin anew with --overwrite."
        )
    return begun and resume


WITHOUT_EFFECT = frozenset(
    {"output", "overwrite", "resume", "memory", "tile", "device", "cluster", "report", "format", "picture"}
)
"""Parameters that do not decide what a finished output holds."""


def is_finished(command: str, asked: Parameters, output: Path) -> bool:
    """Whether an output that is to be gone on with is finished, of these inputs and parameters.

    Raises
    ------
    OutputError : it is finished, and was made otherwise
    """
    output = output.expanduser()
    begun = [output.with_name(output.name + end) for end in (".partial", ".parts.jsonl", ".unfinished")]
    if not output.exists() or any(path.exists() for path in begun):
        return False
    try:
        record = read_record(output)
    except PellucidError:
        return False
    if record.get("command") != command:
        return False
    now = {name: value for name, value in asked.plain().items() if name not in WITHOUT_EFFECT}
    changed = differences({name: record["parameters"].get(name) for name in now}, now)
    for known in record["inputs"]:
        path = Path(known["path"])
        if not path.exists() or fingerprint(path).checksum != known["checksum"]:
            changed.append(f"{path.name} has changed")
    if changed:
        raise OutputError(
            f"{output.name}: is finished, and was made otherwise: {'; '.join(changed[:4])}. Choose another "
            "name, or begin anew with --overwrite."
        )
    return True


def fits_in_one(peak_bytes: int, room_bytes: int | None, asked: Placed) -> bool:
    """Whether one piece takes no more than there is; against stated memory counts what lies beside it."""
    beside = BESIDE_BYTES if asked.memory is not None else 0
    return room_bytes is None or peak_bytes + beside <= room_bytes


def shared_out(
    tiles: TilePlan, volumes: int, place: Workplace, within: Callable[[int], TilePlan]
) -> TilePlan:
    """Tiles small enough for every worker to get some, if the output's chunks allow them.

    Parameters
    ----------
    within : the tiles that cost least in so many bytes
    """
    while place.workers > 1 and volumes * len(tiles.tiling) < TILES_OF_A_WORKER * place.workers:
        work = tiles.tiling.peak_bytes - BESIDE_BYTES
        try:
            tiles = within(int((BESIDE_BYTES + 0.7 * work) / MARGIN))
        except PlanError:
            break
    return tiles


def tiles_json(tiles: TilePlan | None) -> dict[str, Any]:
    """How a volume is cut, as JSON types."""
    if tiles is None:
        return {"tiles": 1}
    tiling = tiles.tiling
    return {
        "tiles": len(tiling), "core_zyx": tiling.core_shape, "halo_zyx": tiling.halo,
        "halo_share": tiling.halo_share,
    }  # fmt: skip


def room_words(room: int, asked: Placed, device: str) -> str:
    """What may be used, in words: of what was allowed, or of what the device has."""
    if asked.memory is None or device != "cpu":
        return f"{device} has {gib(room)} free"
    return f"{gib(room)} are left beside the program of the {gib(asked.memory)} that are allowed"


def gib(count: int) -> str:
    """A number of bytes in words."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
