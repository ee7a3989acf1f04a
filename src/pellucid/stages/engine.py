"""The engine of one machine: tasks pass through reading, computing and writing, all three at once.

A task is described by a key alone (a tile's number) and the plan that all share, so that it can be done
twice, in any order, or elsewhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pellucid.stages.lanes import ReadAhead, WriteBehind

Key = TypeVar("Key")
Read = TypeVar("Read")
Made = TypeVar("Made")


def run_tasks(
    keys: Sequence[Key],
    read: Callable[[Key], Read],
    compute: Callable[[Key, Read], Made],
    write: Callable[[Key, Made], None],
) -> None:
    """Do every task: one is read ahead and one written behind while one is computed.

    The first error ends the run, after what is being written is written.
    """
    with WriteBehind() as writing, ReadAhead(keys, read) as ahead:
        for key, reading in ahead:
            made = compute(key, reading.result())
            writing.put(partial(write, key, made))
