"""What a long run says while it goes on; the apps turn it into bars, lines or JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VolumeDone:
    """One (z, y, x) volume of `total` is restored; `seconds` of computing."""

    index: int
    total: int
    seconds: float
    what: str


@dataclass(frozen=True)
class TileDone:
    """One tile of `total` of a large volume is restored and written."""

    index: int
    total: int
    seconds: float
    what: str


@dataclass(frozen=True)
class TilesKept:
    """So many tiles were finished by an earlier run, and are not made again."""

    count: int


@dataclass(frozen=True)
class VolumeFailed:
    """One volume could not be restored; the series goes on."""

    index: int
    total: int
    what: str
    why: str


@dataclass(frozen=True)
class Warned:
    """Something to know about an input that does not stop the run."""

    sentence: str


@dataclass(frozen=True)
class FileDone:
    """An output is finished, and has its final name."""

    path: Path
    record: Path


Event = VolumeDone | TileDone | TilesKept | VolumeFailed | Warned | FileDone
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
