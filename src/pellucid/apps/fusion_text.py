"""Plans and outcomes of deskewing and fusing as text for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.apps.text import tiles_text
from pellucid.stages.pieces.piece_choice import gib


def deskew_plan_text(plan: Mapping[str, Any]) -> str:
    """A plan of deskewing (`DeskewPlan.to_json`) as lines."""
    lines = [
        f"input        {plan['input']}",
        f"             {_sizes(plan['input_shape_tczyx'])} (t, c, plane, y, x)",
        f"geometry     planes {plan['plane_distance_um']:.4g} um apart, each {plan['slide_px']:.4g} "
        "pixels along x from the one before",
        f"output       {plan['output']}",
        f"             {_sizes(plan['output_shape_tczyx'])} (t, c, z, y, x), "
        f"{gib(plan['output_bytes'])}",
        f"voxel        {_numbers(plan['voxel_um'])} um in the frame of the {plan['frame']}",
        *machine_lines(plan),
    ]
    return "\n".join(lines) + "\n"


def machine_lines(plan: Mapping[str, Any]) -> list[str]:
    """Device, memory, and that nothing was started."""
    room = plan["available_bytes"]
    return [
        f"device       {plan['device']}, {gib(room) + ' free' if room else 'free memory unknown'}",
        f"memory       {gib(plan['peak_bytes'])} at the peak",
        "",
        "Nothing was started (dry run).",
    ]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _sizes(values: Sequence[int]) -> str:
    return " x ".join(str(v) for v in values)


def fuse_plan_text(plan: Mapping[str, Any]) -> str:
    """A plan of fusion (`FusePlan.to_json`) as lines."""
    lines = [f"method       {plan['method']}, iterations {plan['iterations']}"]
    lines.append(f"registration {plan['registration']}")
    for view in plan["views"]:
        skewed = ", a raw stage scan" if view["skewed"] else ""
        lines.append(
            f"view         {view['name']}: {_sizes(view['shape_zyx'])} voxels of "
            f"{_numbers(view['voxel_um'])} um{skewed}"
        )
        lines += _psf_lines(view["psfs"])
    lines += [
        f"series       {len(plan['times'])} time points, channels {', '.join(plan['channels'])}",
        f"output       {plan['output']}",
        f"             about {_sizes(plan['output_shape_tczyx'])} (t, c, z, y, x), "
        f"{gib(plan['output_bytes'])}",
        f"voxel        {_numbers(plan['voxel_um'])} um",
        *([f"blocks       {tiles_text(plan)}"] if plan["tiles"] > 1 else []),
        *machine_lines(plan),
    ]
    return "\n".join(lines) + "\n"


def _psf_lines(psfs: Mapping[str, Any]) -> list[str]:
    """The PSFs of a view, one for all channels or one for each, and what was done to them."""
    alike = all(psf == next(iter(psfs.values())) for psf in psfs.values())
    lines = []
    for channel, psf in list(psfs.items())[: 1 if alike else None]:
        whose = "" if alike else f" of {channel}"
        if psf is None:
            return [f"psf{whose:10}none is needed"]
        lines.append(
            f"psf{whose:10}{_sizes(psf['shape_zyx'])} voxels, FWHM {_numbers(psf['fwhm_px'])} "
            f"voxels, {_numbers(psf['fwhm_um'])} um"
        )
        lines += [f"             {note}" for note in psf["notes"]]
    return lines


def fuse_lines(outcome: Any) -> list[str]:
    """What registration found, and where the seconds went."""
    lines = []
    if outcome.resumed:
        lines.append(f"{outcome.resumed} of {outcome.total} volumes were finished before")
    if outcome.resumed_blocks:
        lines.append(f"{outcome.resumed_blocks} blocks were finished before")
    others = [t for t in outcome.transforms.transforms if t.how != "first"]
    given = [t for t in others if t.how == "given"]
    if given:
        lines.append(f"given        {len(given)} of {len(others)} transforms, as the file has them")
    measured = [t.registration for t in others if t.registration is not None and t not in given]
    if measured:
        worst = min(measured, key=lambda found: found.ncc_after)
        sigmas = [max(found.corner_sigma_um) for found in measured if found.converged]
        known = f", corners known to {max(sigmas):.2g} um" if sigmas else ""
        lines.append(
            f"registered   {len(sigmas)} of {len(measured)}, "
            f"correlation {worst.ncc_after:.3f} at least{known}"
        )
    if outcome.decided:
        low, high = min(outcome.decided), max(outcome.decided)
        counts = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"iterations   {counts}, decided on a block of each volume")
    parts = (f"{name} {seconds:.1f}" for name, seconds in outcome.timings_s.items())
    return [*lines, f"seconds      {', '.join(parts)}"]
