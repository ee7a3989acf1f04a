"""What a part of the demonstration shows: lines for the terminal, pictures, sections of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.apps.report import Section


@dataclass(frozen=True)
class Part:
    """One part of the demonstration, done.

    Parameters
    ----------
    name : what was done, as the run record is filed
    lead : what it was done on, one sentence
    lines : figures, as the terminal shows them
    pictures : PNG by file name
    images : file names of volumes worth opening
    sections : of the report
    record : run record of the command that was demonstrated
    """

    name: str
    lead: str
    lines: Sequence[str]
    pictures: Mapping[str, bytes]
    images: Sequence[str]
    sections: Sequence[Section]
    record: Mapping[str, Any] = field(default_factory=dict)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
