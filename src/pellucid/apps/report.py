"""A self-contained HTML page about a run: figures, pictures and the evidence, to be passed on."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.apps.pictures import comparison_picture, stopping_picture
from pellucid.apps.text import counted
from pellucid.data.plain_json import plain_json
from pellucid.data.record import read_record
from pellucid.data.recording import open_recording
from pellucid.data.writer import write_atomically
from pellucid.stages.deconvolution.deconvolve import Outcome
from pellucid.stages.deconvolution.planning import Plan

# A report is read, not archived: this many volumes are shown.
MOST_SHOWN = 4

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;max-width:72rem;margin:2.5rem auto;
padding:0 1.5rem}h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem;
border-bottom:1px solid #d9dee3;padding-bottom:.2rem}p.lead{color:#52606d;margin:0 0 1rem}
img{max-width:100%;height:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem 1.4rem .25rem 0;text-align:left;border-bottom:1px solid #eceff2}
th{font-weight:600;color:#52606d}ul{padding-left:1.2rem}.warn{color:#9c3b00}
pre{background:#f5f7f8;padding:1rem;overflow:auto;font-size:12px}summary{cursor:pointer}
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: any of a table (first row the heads), pictures and sentences."""

    title: str
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    sentences: Sequence[str] = ()
    are_warnings: bool = False


def write_report(
    path: Path, title: str, lead: str, sections: Sequence[Section], record: Mapping[str, Any]
) -> None:
    """Write one HTML page that needs nothing else: no script, no link, pictures inside."""
    body = "\n".join(_section(section) for section in sections)
    details = html.escape(json.dumps(plain_json(record), indent=1))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        '</title><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(lead)}</p>{body}'
        f"<h2>Run record</h2><details><summary>Parameters, inputs, versions, timings</summary>"
        f"<pre>{details}</pre></details></body></html>\n"
    )
    write_atomically(path, page)


def write_reports(plan: Plan, outcome: Outcome) -> list[Path]:
    """Write `<output>.report.html` beside every output of a run; returns their paths."""
    paths = []
    for file in plan.files:
        if file.output not in outcome.outputs:
            continue
        record = read_record(file.output)
        volumes = [v for v in record["statistics"]["volumes"] if "failed" not in v][:MOST_SHOWN]
        restored = open_recording(file.output)
        sections = [Section("Measured", rows=_measured(volumes))]
        for volume in volumes:
            t, c = volume["t"], volume["c"]
            place = (file.times.index(t), file.channels.index(c))
            pair = {"recorded": file.recording.read(t, c), "restored": restored.read(*place)}
            name = f"{file.recording.channels[c]}, time point {t}"
            sections.append(volume_section(name, comparison_picture(pair, file.voxel_um), volume))
        sections.append(_notes(record))
        path = file.output.with_name(file.output.name + ".report.html")
        count = file.shape[0] * file.shape[1]
        lead = f"{counted(count, 'volume')} with {plan.parameters.method}, {record['started']}."
        write_report(path, f"{file.recording.path.name}, deconvolved", lead, sections, record)
        paths.append(path)
    return paths


def volume_section(name: str, picture: bytes, volume: Mapping[str, Any]) -> Section:
    """One volume: its picture, and why the iteration stopped."""
    pictures = [
        ("brightest voxel along z (above) and y (below); contrast of each its own", picture)
    ]
    if volume.get("path"):
        pictures.append(("why it stopped: held-out photons", stopping_picture(volume["path"])))
    return Section(name, pictures=pictures)


def stopping_words(volume: Mapping[str, Any]) -> str:
    """Iterations kept and what ended them, in words."""
    if "iterations" not in volume:
        return "nothing to deconvolve"
    why = f", stopped by {volume['stopped_by']}" if volume.get("stopped_by") else ""
    return f"{volume['iterations']} iterations{why}"


def _measured(volumes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["t", "channel", "background", "gain", "iterations", "seconds"]]
    for volume in volumes:
        noise = volume.get("noise", {})
        gain = f"{noise['gain']:.3g}" + ("" if noise["reliable"] else " ?") if noise else "-"
        level = volume.get("background")
        rows.append([
            str(volume["t"]), str(volume["c"]), "-" if level is None else f"{level:.4g}", gain,
            stopping_words(volume), f"{volume['seconds']:.2f}",
        ])  # fmt: skip
    return rows


def _notes(record: Mapping[str, Any]) -> Section:
    statistics = record["statistics"]
    said = [f"{name}: {note}" for name, psf in statistics["psfs"].items() for note in psf["notes"]]
    for volume in statistics["volumes"]:
        said += [*volume.get("warnings", ()), *volume.get("notes", ())]
        if "failed" in volume:
            said.append(f"t={volume['t']}, c={volume['c']} failed: {volume['failed']}")
    return Section("Notes", sentences=said)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.rows:
        head, *rows = section.rows
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        parts.append(f"<table><tr>{cells}</tr>{lines}</table>")
    for caption, png in section.pictures:
        source = base64.b64encode(png).decode()
        parts.append(
            f'<figure style="margin:0 0 1rem"><img alt="{html.escape(caption)}" '
            f'src="data:image/png;base64,{source}"><figcaption>{html.escape(caption)}'
            "</figcaption></figure>"
        )
    if section.sentences:
        mark = ' class="warn"' if section.are_warnings else ""
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in section.sentences)
        parts.append(f"<ul{mark}>{items}</ul>")
    return "\n".join(parts)
