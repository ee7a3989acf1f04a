"""What runs by pieces (tiles, blocks) share: what decides them, making them, going on after an error."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pellucid.core.tiling import Tiling
from pellucid.data.manifest import Manifest
from pellucid.data.record import RunRecord, package_versions
from pellucid.data.resumable_zarr import ResumableZarr
from pellucid.data.writer import remove
from pellucid.errors import NotFiniteError, PellucidError
from pellucid.stages.parameters import Parameters
from pellucid.stages.pieces.pyramid_run import make_levels
from pellucid.stages.work.engine import Done, Engine, Facts, Key, Task
from pellucid.stages.work.events import OnEvent, TileDone, TilesKept


def deciding(parameters: Parameters, without: Collection[str]) -> dict[str, Any]:
    """The parameters that decide a result: all but those `without` effect on it."""
    return {name: value for name, value in parameters.plain().items() if name not in without}


def head_of(record: RunRecord, tiling: Tiling, device: str) -> dict[str, Any]:
    """What decides pieces besides the parameters: inputs, how they are cut, device and version."""
    inputs = {f"input {i.path}": (i.size_bytes, i.checksum) for i in record.inputs}
    return {
        **inputs, "core": tiling.core_shape, "halo": tiling.halo,
        "device": device.partition(":")[0], "pellucid": package_versions()["pellucid"],
    }  # fmt: skip


def make_pieces(
    keys: Sequence[Key],
    task: Task[Key],
    writer: ResumableZarr,
    engine: Engine,
    record: RunRecord,
    on_event: OnEvent,
    *,
    computing: str,
    named: Callable[[Key], str],
) -> None:
    """Make, count and tell of the pieces that are not there yet, and then the coarser levels.

    Parameters
    ----------
    computing : what the record calls the time of arithmetic
    named : a piece in words
    """
    run_pieces(
        keys, task, writer.done, engine, record, on_event, computing=computing, named=named,
        count=writer.count,
    )  # fmt: skip
    with record.timed("pyramid"):
        make_levels(writer, engine)


def run_pieces(
    keys: Sequence[Key],
    task: Task[Key],
    listed: Manifest,
    engine: Engine,
    record: RunRecord,
    on_event: OnEvent,
    *,
    computing: str,
    named: Callable[[Key], str],
    count: Callable[[Facts], None] = lambda facts: None,
) -> None:
    """Make and tell of the pieces that are not listed yet; see `make_pieces`."""
    if kept := sum(task.part(key) in listed for key in keys):
        on_event(TilesKept(kept))
    number = itertools.count(1 + kept)

    def on_done(done: Done[Key]) -> None:
        count(done.facts)
        for part, seconds in done.timings_s.items():
            name = computing if part == "compute" else part
            record.timings_s[name] = record.timings_s.get(name, 0.0) + seconds
        on_event(TileDone(next(number), len(keys), done.timings_s["compute"], named(done.key)))

    engine.run(keys, task, listed, on_done)


@contextmanager
def going_on(writer: ResumableZarr, piece: str) -> Iterator[None]:
    """Write within; an error says that what is finished is kept, and leaves nothing where nothing is.

    Parameters
    ----------
    piece : "tile" or "block"
    """
    try:
        with writer:
            yield
    except PellucidError as error:
        done = getattr(writer, "done", None)  # not there where the run was refused
        if done is None:
            raise
        done.take_in()  # what workers finished and could not say any more
        begun = any(f" {piece} " in part for part in done)
        if len(done) == 0 or (isinstance(error, NotFiniteError) and not begun):
            done.remove()
            remove(writer.partial_path)
            raise
        kept = f"Finished {piece}s are kept" if begun else "What was measured is kept"
        hint = f"{kept}: put that right, and go on with --resume."
        why = str(error).replace("the output is not kept", f"the {piece} is lost")
        raise type(error)(f"{why} {hint}") from error
