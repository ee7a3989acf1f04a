"""The plan of a recipe as lines for people and as JSON."""

from collections.abc import Mapping
from typing import Any

from pellucid.stages.pieces.piece_choice import gib
from pellucid.stages.recipes.plan import Job, RecipePlan


def plan_json(plan: RecipePlan, seconds: Mapping[str, float | None]) -> dict[str, Any]:
    """The plan as JSON types; `seconds` as estimated, by job."""
    return {
        "recipe": plan.recipe.plain(),
        "steps": [_job_json(job, seconds) for job in plan.jobs],
        "peak_bytes": plan.peak_bytes,
        "disk_bytes": plan.disk_bytes,
        "kept_bytes": plan.kept_bytes,
        "seconds": _total(plan, seconds),
    }


def _job_json(job: Job, seconds: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        "step": job.title,
        "commands": [step.command for step in job.steps],
        "takes": job.takes,
        "skipped": job.verdict.skip,
        "reason": job.verdict.reason,
        "kept": job.steps[-1].keep,
        "outputs": {
            str(path): None if image is None else {"shape_tczyx": image.shape, "dtype": image.dtype}
            for path, image in job.work.makes.items()
        },
        "peak_bytes": job.work.peak_bytes,
        "output_bytes": job.work.disk_bytes,
        "scratch_bytes": job.work.scratch_bytes,
        "seconds": seconds.get(job.name),
    }


def plan_text(plan: RecipePlan, seconds: Mapping[str, float | None]) -> str:
    """The plan as lines."""
    lines: list[str] = []
    for number, job in enumerate(plan.jobs, 1):
        lines += _job_lines(number, job, seconds)
    total = _total(plan, seconds)
    lines += [
        f"memory       {gib(plan.peak_bytes)} at the peak",
        f"disk         {gib(plan.disk_bytes)} at the peak, {gib(plan.kept_bytes)} in the end "
        "(uncompressed, without pyramids)",
    ]
    if seconds:
        unknown = [job.title for job in plan.jobs if not job.verdict.skip and not seconds.get(job.name)]
        without = f", without {', '.join(unknown)}" if unknown else ""
        lines.append(f"time         about {duration(total or 0.0)}{without}")
    return "\n".join([*lines, "", "Nothing was started."]) + "\n"


def _job_lines(number: int, job: Job, seconds: Mapping[str, float | None]) -> list[str]:
    takes = f" takes {', '.join(job.takes)}" if job.takes else ""
    lines = [f"step {number:<7} {job.title} ({' + '.join(s.command for s in job.steps)}){takes}"]
    if job.verdict.skip:
        return [*lines, "             done, and nothing has changed", ""]
    if job.verdict.reason:
        lines.append(f"             to be done again: {job.verdict.reason}")
    if len(job.steps) > 1:
        lines.append("             in one pass: the stitched image is never written")
    for path, image in job.work.makes.items():
        size = "" if image is None else f": {_sizes(image.shape)} (t, c, z, y, x), {image.dtype}"
        gone = "" if job.steps[-1].keep else ", removed when it is no longer needed"
        lines.append(f"             {path}{size}{gone}")
    spent = seconds.get(job.name)
    lines.append(
        f"             memory {gib(job.work.peak_bytes)}, disk {gib(job.work.disk_bytes)}"
        + (f" and {gib(job.work.scratch_bytes)} meanwhile" if job.work.scratch_bytes else "")
        + (f", about {duration(spent)}" if spent else "")
    )
    return [*lines, ""]


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _total(plan: RecipePlan, seconds: Mapping[str, float | None]) -> float | None:
    known = [seconds.get(job.name) or 0.0 for job in plan.jobs if not job.verdict.skip]
    return sum(known) if seconds else None


def _sizes(values: tuple[int, ...]) -> str:
    return " x ".join(str(v) for v in values)
