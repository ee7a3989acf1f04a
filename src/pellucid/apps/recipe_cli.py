"""The commands `pellucid run` and `pellucid plan`: all steps of a dataset from one YAML file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.apps.options import read_config
from pellucid.apps.terminal import OK, SOME_FAILED, Progress, print_json, say

if TYPE_CHECKING:
    from pellucid.stages.recipes.plan import RecipePlan
    from pellucid.stages.recipes.work import Ran, Work


def run(
    recipe: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    cluster: str | None = None,
    json: bool = False,
) -> int:
    """Carry out the steps of a recipe (deskew, stitch, register, fuse, deconvolve, restore, measure).

    All steps are checked before the first one starts.

    Parameters
    ----------
    recipe
        A YAML file: steps with the parameters of their commands; see docs/tutorial-recipes.md.
    resume
        Go on with an earlier run: skip what is done and unchanged, and say what changed.
    overwrite
        Begin anew, and replace outputs that exist.
    cluster
        Where steps that can be spread out are to run.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.stages.recipes.run import run_recipe

    plan = _plan(recipe, resume, overwrite, cluster)
    with _RecipeProgress(quiet=json) as progress:
        outcome = run_recipe(plan, progress, _drawn)
    if json:
        print_json(outcome.to_json())
    else:
        for title, seconds in outcome.seconds.items():
            before = "  (before)" if title in outcome.skipped else ""
            say(f"{title:<24} {seconds:8.1f} s{before}")
        say(f"wrote {outcome.record}")
    if outcome.failures:
        say(f"pellucid: {len(outcome.failures)} volumes failed:")
        for name, why in outcome.failures:
            say(f"  {name}: {why}")
        return SOME_FAILED
    return OK


def plan(
    recipe: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    cluster: str | None = None,
    no_probe: bool = False,
    json: bool = False,
) -> int:
    """Show the steps of a recipe, shapes, memory, disk and time, and start nothing.

    Parameters
    ----------
    recipe
        A YAML file, as `pellucid run` takes it.
    resume
        Show what is left to do of an earlier run.
    overwrite
        Take it that outputs that exist are replaced.
    cluster
        Where steps that can be spread out are to run.
    no_probe
        Leave out the time, which is measured on a small piece of the data.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.apps.recipe_text import plan_json, plan_text
    from pellucid.stages.recipes.probe import estimated_seconds

    made = _plan(recipe, resume, overwrite, cluster)
    seconds = {} if no_probe else estimated_seconds(made)
    print_json(plan_json(made, seconds)) if json else print(plan_text(made, seconds), end="")
    return OK


def _plan(recipe: Path, resume: bool, overwrite: bool, cluster: str | None) -> "RecipePlan":
    from pellucid.errors import ParameterError
    from pellucid.stages.recipes.parameters import recipe_of

    try:
        read = recipe_of(read_config(recipe), recipe.stem)
    except ParameterError as error:
        said = re.sub(
            r"( \(--[^)]*\)\. See --help\.)|( Compare --print-config\.)",
            lambda found: f"{'.' if found[1] else ''} Compare docs/tutorial-recipes.md.",
            str(error),
        )
        raise ParameterError(said) from error
    from pellucid.stages.recipes.plan import plan_recipe

    return plan_recipe(read, resume=resume, overwrite=overwrite, cluster=cluster)


def _drawn(work: "Work", came: "Ran") -> Sequence[Path]:
    """What a command draws beside its output where it is asked to."""
    if work.command in ("stitch", "mosaic"):
        from pellucid.apps.placement_picture import drawn_placement

        plan = work.plan if work.command == "stitch" else work.plan.stitching
        return drawn_placement(plan, came.outcome, next(iter(work.makes)))
    if work.command == "deconvolve" and work.plan.parameters.report:
        from pellucid.apps.report import write_reports

        write_reports(work.plan, came.outcome)
    if work.command == "register" and work.plan.parameters.picture is not None:
        from pellucid.apps.transform_picture import transform_picture

        transform_picture(came.outcome.series, work.plan.parameters.picture)
        return [work.plan.parameters.picture]
    return ()


class _RecipeProgress:
    """Listens to a recipe: a line for each step, and the progress of its command."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: Progress | None = None

    def __enter__(self) -> "_RecipeProgress":
        return self

    def __exit__(self, *error: Any) -> None:
        self._end(*error)

    def __call__(self, event: Any) -> None:
        from pellucid.stages.recipes.run import StepBegun, StepRemoved, StepSkipped

        if isinstance(event, StepBegun):
            self._end(None, None, None)
            why = f" ({event.reason})" if event.reason else ""
            self._say(f"step {event.index + 1} of {event.total}: {event.title}{why}")
            self._progress = Progress(event.volumes, quiet=self._quiet, doing=event.title)
            self._progress.__enter__()
        elif isinstance(event, StepSkipped):
            self._end(None, None, None)
            self._say(f"step {event.index + 1} of {event.total}: {event.title} is done and unchanged")
        elif isinstance(event, StepRemoved):
            self._end(None, None, None)
            self._say(f"removed {event.path}, which was not to be kept")
        elif self._progress is not None:
            self._progress(event)

    def _end(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)
            self._progress = None

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            say(sentence)
