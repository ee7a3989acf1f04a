"""Carrying out a recipe: step after step, gone on with after any end, one record of all."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint
from pellucid.data.writer import plain_errors, write_atomically
from pellucid.errors import PellucidError
from pellucid.stages.recipes.log import RecipeLog, Verdict, identity_of, log_path
from pellucid.stages.recipes.plan import Job, RecipePlan, named, planned_steps
from pellucid.stages.recipes.work import Ran, Work, ran
from pellucid.stages.work.events import Event


@dataclass(frozen=True)
class StepBegun:
    """A step starts; `volumes` events of progress will follow. `reason`: why it is done again."""

    index: int
    total: int
    title: str
    volumes: int
    reason: str


@dataclass(frozen=True)
class StepSkipped:
    """A step is done already, and nothing of it has changed."""

    index: int
    total: int
    title: str


@dataclass(frozen=True)
class StepRemoved:
    """The output of a step is no longer needed, and was not to be kept."""

    path: Path


RecipeEvent = Event | StepBegun | StepSkipped | StepRemoved
Beside = Callable[[Work, Ran], Sequence[Path]]


@dataclass
class RecipeOutcome:
    """What came of a recipe.

    Parameters
    ----------
    outputs : of all steps, those that are kept
    record : of the whole run
    done, skipped : names of steps
    failures : (step: volume, reason)
    """

    outputs: list[Path] = field(default_factory=list)
    record: Path = Path()
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        content: dict[str, Any] = plain_json({**vars(self), "failures": [
            {"volume": name, "reason": why} for name, why in self.failures
        ]})  # fmt: skip
        return content


def nothing_beside(work: Work, came: Ran) -> Sequence[Path]:
    """Draw no pictures."""
    return ()


def run_recipe(
    plan: RecipePlan,
    on_event: Callable[[RecipeEvent], None] = lambda event: None,
    draw: Beside = nothing_beside,
) -> RecipeOutcome:
    """Carry out `plan`; every step as its command does, each planned again with what is there now.

    Parameters
    ----------
    draw : writes pictures and reports of a step that ask for them; returns their paths

    Raises
    ------
    PellucidError : a step failed; its name is said, and steps that are done can be gone on from
    """
    recipe = plan.recipe
    recipe.folder.mkdir(exist_ok=True)
    record = RunRecord("run", recipe.plain())
    log = RecipeLog(log_path(recipe), resume=plan.resume)
    run = _Run(plan, log, on_event, draw)
    for number, job in enumerate(plan.jobs):
        run.do(number, job)
    return _finished(run, record)


class _Run:
    """A run as it goes on: what was made, of what."""

    def __init__(
        self,
        plan: RecipePlan,
        log: RecipeLog,
        on_event: Callable[[RecipeEvent], None],
        draw: Beside,
    ) -> None:
        self.plan, self.log, self.on_event, self.draw = plan, log, on_event, draw
        self.made: dict[str, list[Path]] = {}
        self.identities: dict[str, dict[str, Any]] = {}
        self.checksums: dict[Path, str] = {}
        self.outcome = RecipeOutcome()

    def do(self, number: int, job: Job) -> None:
        """Do one job or skip it, and let go of what nobody needs any more."""
        identity = identity_of(job.steps, job.files, self.identities, self.checksums)
        self.identities[job.name] = identity
        total = len(self.plan.jobs)
        if job.verdict.skip:
            self.on_event(StepSkipped(number, total, job.title))
            self.outcome.skipped.append(job.title)
        else:
            verdict = job.verdict
            self.on_event(StepBegun(number, total, job.title, job.work.volumes, verdict.reason))
            self._done(job, identity, verdict)
            self.outcome.done.append(job.title)
        facts = self.log.facts(job.name)
        self.made[job.name] = [Path(path) for path in facts["takes"]]
        self.outcome.failures += [(name, why) for name, why in facts["failures"]]
        self.outcome.seconds[job.title] = facts["seconds"]
        for gone in self.plan.gone_after(number):
            if self.log.state(gone.name) == "done":
                self.log.remove_outputs(gone.name)
                for path in self.made[gone.name]:
                    self.on_event(StepRemoved(path))

    def _done(self, job: Job, identity: dict[str, Any], verdict: Verdict) -> None:
        plan, begin = self.plan, time.perf_counter()
        work = planned_steps(
            job.steps, self.made, self.log, overwrite=plan.overwrite, cluster=plan.cluster,
            goes_on=verdict.goes_on,
        )  # fmt: skip
        self.log.begin(job.name, identity)
        try:
            came = ran(work, self.on_event)
        except PellucidError as error:
            what = named(job.steps, error)
            raise type(error)(f"{what} Steps before it are kept: go on with --resume.") from error
        except KeyboardInterrupt as stop:
            said = f"{job.title}: {stop}; " if str(stop) else f"{job.title} was under way; "
            raise KeyboardInterrupt(f"{said}go on with --resume") from stop
        pictures = list(self.draw(work, came))
        self.log.done(
            job.name, identity, list(work.makes), takes=list(work.makes),
            records=came.records, beside=[*came.outputs, *pictures], warnings=came.warnings,
            failures=[(f"{job.name}: {name}", why) for name, why in came.failures],
            seconds=time.perf_counter() - begin,
        )  # fmt: skip


def _finished(run: _Run, record: RunRecord) -> RecipeOutcome:
    """Write the record of all steps, with theirs inside."""
    recipe, outcome = run.plan.recipe, run.outcome
    steps = []
    for job in run.plan.jobs:
        facts = run.log.facts(job.name)
        kept = run.log.state(job.name) == "done"
        own = [Path(path) for path in facts["records"]]
        steps.append({
            "step": job.title, "commands": [step.command for step in job.steps],
            "skipped": job.verdict.skip, "seconds": facts["seconds"], "kept": kept,
            "outputs": facts["outputs"], "beside": facts["beside"], "warnings": facts["warnings"],
            "failures": facts["failures"],
            "records": [json.loads(p.read_text(encoding="utf-8")) for p in own if p.is_file()],
        })  # fmt: skip
        record.timings_s[job.title] = facts["seconds"]
        outcome.outputs += [Path(path) for path in facts["outputs"]] if kept else []
    files = dict.fromkeys(path for job in run.plan.jobs for path in job.files)
    record.inputs = [fingerprint(path) for path in files]
    record.statistics = {"steps": steps}
    outcome.record = recipe.folder / f"{recipe.name}.pellucid.json"
    with plain_errors(outcome.record):
        text = json.dumps(record.to_json(), indent=1, allow_nan=False) + "\n"
        write_atomically(outcome.record, text)
    return outcome

