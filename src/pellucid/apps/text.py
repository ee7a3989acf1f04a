"""Plans, files and measurements as text for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from pellucid.apps.terminal import duration
from pellucid.core.beads import BeadPsf
from pellucid.stages.pieces.piece_choice import gib
from pellucid.stages.work.resources import describe_device


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan (`Plan.to_json`) as lines."""
    lines = [f"method       {plan['method']}, iterations {plan['iterations']}", *_room_lines(plan)]
    for file in plan["files"]:
        lines += ["", *_file_lines(file)]
    lines += ["", "Nothing was started (dry run)."]
    return "\n".join(lines) + "\n"


def restore_plan_text(plan: Mapping[str, Any]) -> str:
    """A plan of a restoration by a model (`RestorePlan.to_json`) as lines."""
    cure = ", falls back" if plan["fall_back"] else ""
    lines = [
        f"model        {plan['model']}: {plan['operator']}, networks in a row: {plan['passes']}",
        f"polish       {plan['polish']}{cure}",
        *_room_lines(plan),
    ]
    for file in plan["files"]:
        piece = "tile" if "core_zyx" in file else "volume"
        lines += ["", *_image_lines(file)]
        lines.append(f"memory       {gib(file['peak_bytes'])} at the peak of a {piece}")
        lines += [f"verdict      {file['verdict']}"] if file["verdict"] else []
        lines.append(f"tiles        {tiles_text(file)}")
    lines += ["", "Nothing was started (dry run)."]
    return "\n".join(lines) + "\n"


def restored_lines(stats: Mapping[str, Any], names: Sequence[str], seconds: float) -> list[str]:
    """What came of a restoration (`run_restoring`): volume by volume, and how long it took."""
    lines = []
    for name, said in zip(names, stats["volumes"], strict=True):
        if "failed" in said:
            continue
        parts = [counted(said["iterations"], "physical iteration")]
        if "network_share" in said:
            parts.append(f"{said['network_share']:.0%} of what the network adds is kept")
        if "believable" in said:
            parts.append(f"{said['believable']:.1%} of the network's own answer believable")
            parts.append(f"{counted(said['doubtful_regions'], 'region')} not to be believed")
        lines.append(f"{name}: {', '.join(parts)}")
    done = counted(sum("failed" not in said for said in stats["volumes"]), "volume")
    return [*lines, f"{done} in {duration(seconds)}"]


def begun_lines(plan: Any) -> list[str]:
    """What is said of a deconvolution when it begins: how much, where, and what became of the PSFs."""
    return [begun_line(plan), *(f"psf: {sentence}" for sentence in plan.psf_notes())]


def begun_line(plan: Any) -> str:
    """How much begins, and where."""
    tiles = f" of {counted(plan.steps // plan.total, 'piece')}" if plan.steps > plan.total else ""
    return f"{counted(plan.total, 'volume')}{tiles} on {describe_device(plan.device)}"


def failed_lines(failures: Sequence[tuple[str, str]], total: int) -> list[str]:
    """What is said of the volumes (name, why) that failed."""
    said = (why if why.startswith(name) else f"{name}: {why}" for name, why in failures)
    head = f"pellucid: {len(failures)} of {total} volumes failed:"
    return [head, *(f"  {line}" for line in said)]


def _room_lines(plan: Mapping[str, Any]) -> list[str]:
    room = "free memory unknown"
    if plan["available_bytes"]:
        room = f"{gib(plan['available_bytes'])} {'to be used' if plan['memory_bytes'] else 'free'}"
    return [f"device       {plan['device']}, {room}", f"volumes      {plan['volumes']}"]


def _image_lines(file: Mapping[str, Any]) -> list[str]:
    return [
        f"input        {file['input']}",
        f"             {_axes(file['input_shape_tczyx'])}, {file['input_dtype']}",
        f"voxel        {_numbers(file['voxel_um'])} um (z, y, x)",
        f"output       {file['output']}",
        f"             {_axes(file['output_shape_tczyx'])}, {file['output_dtype']}, "
        f"{gib(file['output_bytes'])}",
    ]


def _file_lines(file: Mapping[str, Any]) -> list[str]:
    lines = [
        *_image_lines(file),
        f"memory       {gib(file['peak_bytes'])} at the peak of a volume, "
        f"{gib(file['host_bytes'])} for those that wait",
        f"tiles        {tiles_text(file)}",
    ]
    for name, psf in file["psfs"].items():
        lines += _psf_lines(name, psf)
    return lines


def tiles_text(file: Mapping[str, Any]) -> str:
    """How a volume is cut (`planning.tiles_json`), in words."""
    if "core_zyx" not in file:
        return str(file["tiles"])
    return (
        f"{file['tiles']} a volume, cores of {_sizes(file['core_zyx'])} voxels with halos of "
        f"{_sizes(file['halo_zyx'])}: {file['halo_share']:.0%} is computed twice"
    )


def _psf_lines(name: str, psf: Mapping[str, Any]) -> list[str]:
    projector = psf["back_projector"]
    lines = [
        f"psf          of {name}: {_sizes(psf['shape_zyx'])} voxels, "
        f"FWHM {_numbers(psf['fwhm_px'])} voxels",
    ]
    lines += [f"             {note}" for note in psf["notes"]]
    lines.append(
        f"projector    {projector['name']}: cutoff {_numbers(projector['cutoff_px'])} voxels, "
        f"gain there {projector['gain_at_cutoff']:.3g}, largest gain "
        f"{projector['largest_gain']:.3g}, half power at {projector['half_power_radius']:.2f} of "
        "the cutoff"
    )
    if projector["largest_product"] > 2.0:
        lines.append("             unstable on this PSF: the largest |HB| is above 2")
    return lines


def info_text(said: Mapping[str, Any]) -> str:
    """A file (`describe`) as lines, view by view where it holds several."""
    if "views" in said:
        head = f"file         {said['path']}: {len(said['views'])} views, which --image N or #N takes\n"
        views = enumerate(said["views"].items())
        return head + "".join(f"\nview {n}       {name}\n{info_text(one)}" for n, (name, one) in views)
    voxel = said["voxel_um"]
    stated = [f"{a} {s:g} um" for a, s in zip("zyx", said["stated_um"], strict=True) if s]
    unknown = "not in the file" + (f" (only {', '.join(stated)})" if stated else "")
    lines = [
        f"file         {said['path']}"
        + (f" and {said['files'] - 1} more" if said["files"] > 1 else ""),
        f"size         {_axes(said['shape_tczyx'])}, {said['dtype']}",
        f"voxel        {_numbers(voxel) + ' um (z, y, x)' if voxel else unknown}",
        f"channels     {', '.join(said['channels'])}",
    ]
    if said["time_step_s"]:
        lines.append(f"time step    {said['time_step_s']:g} s")
    if said["made_by"]:
        made = said["made_by"]
        how = f" ({made['method']})" if made["method"] else ""
        lines.append(f"made by      pellucid {made['command']}{how}, {made['started']}")
    return "\n".join(lines) + "\n"


def quality_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measurements (`run_measuring`) as a table, and what could not be measured below it."""
    table = Table(box=None, pad_edge=False)
    heads = ("t", "channel", "background", "gain", "read noise", "photons", "saturated",
             "lateral um", "axial um", "FSC um", "contrast", "sampling")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="left" if head == "channel" else "right")
    for row in rows:
        noise = row["noise"]
        trust = "" if noise["reliable"] else "?"
        table.add_row(
            str(row["t"]), row["channel"], _number(row["background"]["level"]),
            _number(noise["gain"]) + trust, _number(noise["read_noise"]) + trust,
            _number(row["signal_photons"]), f"{row['saturated_share']:.2%}",
            _number(row["lateral_resolution_um"]), _number(row["axial_resolution_um"]),
            _number(row["correlation_resolution_um"]), _number(row["contrast"]),
            _number(row["sampling"]),
        )  # fmt: skip
    notes = Counter(note for row in rows for note in row["notes"])
    said = "".join(f"{note} ({n} of {len(rows)})\n" for note, n in notes.items())
    return rendered(table) + said


def psf_text(name: str, said: Mapping[str, Any]) -> str:
    """A PSF (`inspect_psf`) as lines and a table of back projectors."""
    voxel = said["voxel_um"]
    lines = [
        f"psf          {name}: {_sizes(said['shape_zyx'])} voxels, "
        + (f"{_numbers(voxel)} um each" if voxel else "of unknown size"),
        f"FWHM         {_numbers(said['fwhm_px'])} voxels"
        + (f", {_numbers(said['fwhm_um'])} um" if voxel else ""),
        f"peak voxel   {said['peak_share']:.2%} of the light",
        *(f"note         {note}" for note in said["notes"]),
        "",
    ]
    table = Table(box=None, pad_edge=False)
    heads = ("back projector", "cutoff z, y, x (voxels)", "gain there", "largest gain",
             "half power / cutoff", "largest |HB|")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="left" if head == "back projector" else "right")
    for method, figures in said["back_projectors"].items():
        table.add_row(
            method, _numbers(figures["cutoff_px"]), _number(figures["gain_at_cutoff"]),
            _number(figures["largest_gain"]), _number(figures["half_power_radius"]),
            _number(figures["largest_product"]),
        )  # fmt: skip
    return "\n".join(lines) + "\n" + rendered(table)


def beads_text(found: BeadPsf) -> str:
    """Used and rejected beads as a table, and the widths with their spread."""
    table = Table(box=None, pad_edge=False)
    for head in ("bead", "z, y, x", "FWHM (voxels)", "peak", "noise", "residual"):
        table.add_column(head, justify="left" if head == "bead" else "right")
    for bead in found.used:
        table.add_row(
            "used", _numbers(bead.centre_px), _numbers(bead.fwhm_px), _number(bead.peak),
            _number(bead.noise), _number(bead.residual),
        )  # fmt: skip
    for left_out in found.rejected:
        table.add_row(left_out.reason, _numbers(left_out.centre_px), "", "", "", "")
    widths = ", ".join(
        f"{axis} {w:.4g} ± {s:.2g}" if s == s else f"{axis} {w:.4g}"
        for axis, w, s in zip("zyx", found.fwhm_um, found.fwhm_spread_um, strict=True)
    )
    notes = "".join(f"note: {note}\n" for note in found.psf.notes)
    return (
        rendered(table)
        + f"\n{counted(len(found.used), 'bead')} used, {len(found.rejected)} left out\nFWHM {widths} um\n"
        + notes
    )


def rendered(table: Table) -> str:
    """A table as text, as wide as it needs to be."""
    out = StringIO()
    Console(file=out, width=160, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def counted(count: int, noun: str) -> str:
    """A number and its noun: 1 volume, 2 volumes."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3g}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _sizes(values: Sequence[int]) -> str:
    return " x ".join(str(v) for v in values)


def _axes(shape: Sequence[int]) -> str:
    names = zip("tczyx", shape, strict=True)
    return ", ".join(f"{axis} {n}" for axis, n in names if n > 1 or axis in "yx")
