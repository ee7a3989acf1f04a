"""Reading ahead and writing behind: one volume deep on either side of the work."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ReadAhead(Generic[Key, Value]):
    """Iterate over (key, future of its value), the next one being read meanwhile."""

    def __init__(self, keys: Sequence[Key], read: Callable[[Key], Value]) -> None:
        self._keys = keys
        self._read = read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pellucid-read")

    def __iter__(self) -> Iterator[tuple[Key, Future[Value]]]:
        following: Future[Value] | None = None
        for number, key in enumerate(self._keys):
            current = following or self._pool.submit(self._read, key)
            # The first volume is wanted at once; the next is read while it is worked on.
            after = number + 1
            following = (
                self._pool.submit(self._read, self._keys[after])
                if after < len(self._keys)
                else None
            )
            yield key, current

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class WriteBehind:
    """Run tasks in order on one thread, at most one waiting; an error meets the next caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pellucid-write")
        self._last: Future[None] | None = None

    def put(self, task: Callable[[], None]) -> None:
        """Start `task` once the one before is done; raises that one's error."""
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Wait for the last task; raises its error once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
