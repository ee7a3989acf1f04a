"""The engine: tasks pass through reading, computing and writing, in this process or on a cluster.

A `Task` is one kind of work, and a key (a tile's number) says which piece of it. Whatever does a piece
needs the two alone, so it can be done twice, in any order, and elsewhere. What is done is listed in a
manifest once it is on the disk, and is not done again.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pellucid.data.manifest import Manifest
from pellucid.stages.work.lanes import ReadAhead, WriteBehind

Key = TypeVar("Key", bound=Hashable)
K = TypeVar("K", bound=Hashable, contravariant=True)
Facts = Mapping[str, Any]


class Task(Protocol[K]):
    """One kind of work: a frozen, picklable description that opens its files itself.

    `read` and `write` meet no arithmetic and `compute` no files, so that all three overlap. Keys are
    small (a number, a tuple of them). Paths are absolute, since a worker may stand elsewhere.
    """

    def part(self, key: K, /) -> str:
        """Name of a piece in the manifest, unlike all others of the run."""
        ...

    def read(self, key: K, /) -> Any:
        """Read what a piece is made of."""
        ...

    def compute(self, key: K, read: Any, /) -> Any:
        """Make a piece of what was read."""
        ...

    def write(self, key: K, made: Any, /) -> Facts:
        """Return, once a piece is on the disk, what is to be listed of it (JSON, small)."""
        ...


@dataclass(frozen=True)
class Done(Generic[Key]):
    """One piece is written and listed.

    Parameters
    ----------
    facts : what was listed
    timings_s : seconds of "read", "compute" and "write"
    """

    key: Key
    facts: Facts
    timings_s: dict[str, float] = field(default_factory=dict)


OnDone = Callable[[Done[Key]], None]


class Engine(Protocol):
    """Somewhere to do tasks."""

    @property
    def described(self) -> str:
        """Where the work is done, in words."""
        ...

    def run(
        self, keys: Sequence[Key], task: Task[Key], listed: Manifest, on_done: OnDone[Key]
    ) -> None:
        """Do each piece that is not `listed`, list it, and then say so.

        The first error ends the run; what is finished stays listed.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """This process: one piece is read ahead and one written behind while one is computed."""

    described = "this process"

    def run(
        self, keys: Sequence[Key], task: Task[Key], listed: Manifest, on_done: OnDone[Key]
    ) -> None:
        """See `Engine.run`."""
        timings: dict[Key, dict[str, float]] = {}

        def read(key: Key) -> Any:
            timings[key] = {}
            with timed(timings[key], "read"):
                return task.read(key)

        def write(key: Key, made: Any) -> None:
            with timed(timings[key], "write"):
                facts = task.write(key, made)
                listed.record(task.part(key), facts)
            on_done(Done(key, facts, timings.pop(key)))

        missing = [key for key in keys if task.part(key) not in listed]
        with WriteBehind() as writing, ReadAhead(missing, read) as ahead:
            for key, reading in ahead:
                counts = reading.result()
                with timed(timings[key], "compute"):
                    made = task.compute(key, counts)
                writing.put(partial(write, key, made))


@contextmanager
def timed(timings_s: dict[str, float], part: str) -> Iterator[None]:
    """Add the seconds of a `with` block to `timings_s[part]`."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        timings_s[part] = timings_s.get(part, 0.0) + time.perf_counter() - begin
