"""What the terminal shows: progress, one sentence for an error, exit codes."""

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from pellucid.data.plain_json import plain_json
from pellucid.errors import ParameterError, PellucidError, PellucidWarning
from pellucid.stages.work.events import (
    Event,
    FileDone,
    TileDone,
    TilesKept,
    VolumeDone,
    VolumeFailed,
    Warned,
)

OK, ERROR, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def say(sentence: str) -> None:
    """A line for people: on stderr, so that stdout is free for results."""
    print(sentence, file=sys.stderr, flush=True)


def print_json(content: Any) -> None:
    """`content` on stdout as JSON, and nothing else."""
    print(json.dumps(plain_json(content), indent=1, allow_nan=False), flush=True)


def exit_code_of(command: Callable[[], int]) -> int:
    """Run `command`; an error becomes one sentence on stderr and an exit code.

    With PELLUCID_DEBUG=1 the traceback comes first. Our own warnings become one line each.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", PellucidWarning)
            warnings.showwarning = _show_warning
            return command()
    except KeyboardInterrupt as stop:
        # a run that can go on says so in the interruption
        kept = str(stop) or (
            "outputs that were not finished were removed, and tiles are kept for --resume"
        )
        say(f"pellucid: interrupted; {kept}.")
        return INTERRUPTED
    except PellucidError as error:
        _debug()
        said = str(error).replace("or overwrite=True", "or use --overwrite")
        say(f"pellucid: {said}")
        return USAGE if isinstance(error, ParameterError) else ERROR
    except MemoryError:
        _debug()
        say("pellucid: out of memory. Free some, or run with --dry-run to see what is needed.")
        return ERROR
    except BrokenPipeError:
        # Who read stdout has gone: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = issubclass(category, PellucidWarning)
    say(f"warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno))


def _debug() -> None:
    if os.environ.get("PELLUCID_DEBUG"):
        traceback.print_exc()


class Progress:
    """Listens to a run: a bar with the time left on a terminal, plain lines elsewhere.

    Parameters
    ----------
    doing : what the bar says until the first volume is done
    """

    def __init__(self, total: int, *, quiet: bool, doing: str = "deconvolving") -> None:
        self._total, self._quiet, self._doing = total, quiet, doing
        self._begin = time.perf_counter()
        self._bar: Any = None
        self._done = self._before = 0

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._doing, total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            say("interrupted: what is being computed or written is brought to its end first ...")

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._line(f"warning: {event.sentence}")
        elif isinstance(event, FileDone):
            if not self._quiet:
                self._line(f"wrote {event.path}")
        elif isinstance(event, TilesKept):
            self._done, self._before = self._done + event.count, self._before + event.count
            if self._bar is not None:
                self._bar.update(self._task, advance=event.count)
        else:
            self._volume(event)

    def _volume(self, event: VolumeDone | TileDone | VolumeFailed) -> None:
        self._done += 1
        # blocks of views that the command registers are cut anew, maybe into more
        self._total = max(self._total, event.total)
        if isinstance(event, VolumeFailed):
            self._line(f"failed: {event.why}")
        elif self._bar is None and not self._quiet:
            spent = time.perf_counter() - self._begin
            left = spent / (self._done - self._before) * (self._total - self._done)
            rest = f", about {duration(left)} left" if self._done < self._total else ""
            self._line(f"{self._done}/{self._total} {event.what}: {event.seconds:.1f} s{rest}")
        if self._bar is not None:
            self._bar.update(self._task, advance=1, total=self._total, description=event.what)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
