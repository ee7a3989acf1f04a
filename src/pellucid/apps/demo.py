"""The demonstration: known objects recorded by a simulated microscope, restored by the commands."""

from collections.abc import Sequence
from pathlib import Path

from pellucid.apps.demo_cluster import worker_killed
from pellucid.apps.demo_deconvolution import on_real_data, on_simulation
from pellucid.apps.demo_fusion import dual_view
from pellucid.apps.demo_networks import varying_blur
from pellucid.apps.demo_part import Part
from pellucid.apps.pictures import write_picture
from pellucid.apps.report import write_report
from pellucid.apps.terminal import say

PARTS = (on_simulation, dual_view, varying_blur, worker_killed)


def run_demo(output: Path, data: Path | None) -> None:
    """Make the demonstration in the folder `output`; on the files in `data` where given."""
    output.mkdir(parents=True, exist_ok=True)
    if data is not None:
        parts = [_shown(output, on_real_data(output, data))]
    else:
        parts = [_shown(output, make(output)) for make in PARTS]
    _report(output, parts)


def _shown(output: Path, part: Part) -> Part:
    """Print the figures of a part and write its pictures, as soon as it is done."""
    print("\n".join(part.lines), flush=True)
    for name, png in part.pictures.items():
        write_picture(output / name, png)
    return part


def _report(output: Path, parts: Sequence[Part]) -> None:
    write_report(
        output / "report.html",
        "Pellucid demonstration",
        f"Recorded with {' and '.join(part.lead for part in parts)}.",
        [section for part in parts for section in part.sections],
        {part.name: part.record for part in parts},
    )
    shown = [*(name for part in parts for name in part.pictures), "report.html"]
    say(f"look at {', '.join(str(output / name) for name in shown)};")
    say(f"images: {', '.join(str(output / name) for part in parts for name in part.images)}")
