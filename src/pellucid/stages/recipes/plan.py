"""The plan of a recipe: every step planned before the first one starts.

A step whose input does not exist yet is planned with a stand-in: an image that says its shape, voxels
and channels and holds no pixel. So every command checks here what it checks when it is run alone.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pellucid.data.writer import check_free_space
from pellucid.errors import OutputError, ParameterError, PellucidError
from pellucid.stages.recipes.log import MADE_OTHERWISE, RecipeLog, Verdict, identity_of, log_path
from pellucid.stages.recipes.parameters import COMMANDS, PLACEHOLDER, Recipe, Step
from pellucid.stages.recipes.work import Work, planned


@dataclass(frozen=True)
class Job:
    """What is done at once: a step, or a stitching and the deconvolution of its mosaic.

    Parameters
    ----------
    work : planned with stand-ins for what earlier steps will make
    files : those of the work that exist already
    """

    steps: tuple[Step, ...]
    work: Work
    files: tuple[Path, ...]
    verdict: Verdict = Verdict(False)

    @property
    def name(self) -> str:
        """That of its last step, which makes the output."""
        return self.steps[-1].name

    @property
    def title(self) -> str:
        """All its steps."""
        return " + ".join(step.name for step in self.steps)

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of earlier steps outside of it whose outputs it takes."""
        own = {step.name for step in self.steps}
        names = (name for step in self.steps for name in step.takes if name not in own)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class RecipePlan:
    """A recipe that fits the machine, and has not started."""

    recipe: Recipe
    jobs: tuple[Job, ...]
    resume: bool = False
    overwrite: bool = False
    cluster: str | None = None

    @property
    def peak_bytes(self) -> int:
        """Memory of the step that needs most."""
        return max(job.work.peak_bytes for job in self.jobs)

    @property
    def disk_bytes(self) -> int:
        """The most that outputs, intermediate ones and what waits take at once."""
        return max((during for during, _ in self._disk()), default=0)

    @property
    def kept_bytes(self) -> int:
        """What stays in the end."""
        return self._disk()[-1][1]

    def _disk(self) -> list[tuple[int, int]]:
        """Bytes during and after each job, without what is there already."""
        there: dict[str, int] = {}
        course = []
        for number, job in enumerate(self.jobs):
            if not job.verdict.skip:
                there[job.name] = job.work.disk_bytes
            during = sum(there.values()) + (0 if job.verdict.skip else job.work.scratch_bytes)
            for gone in self.gone_after(number):
                there.pop(gone.name, None)
            course.append((during, sum(there.values())))
        return course

    def gone_after(self, number: int) -> list[Job]:
        """Jobs whose outputs nobody needs any more once job `number` is done."""
        waiting = {name for job in self.jobs[number + 1 :] for name in job.takes}
        return [
            job
            for job in self.jobs[:number]
            if not job.steps[-1].keep and job.name not in waiting
            and job.name in self.jobs[number].takes
        ]  # fmt: skip


def plan_recipe(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, cluster: str | None = None
) -> RecipePlan:
    """The plan of all steps: inputs opened, shapes carried on, memory and disk checked.

    Parameters
    ----------
    resume : skip what is done and unchanged
    overwrite : replace outputs that exist
    cluster : for the steps that can be spread over one

    Raises
    ------
    PellucidError : what cannot be, with the step's name, before any work
    """
    if cluster is not None and not any("cluster" in COMMANDS[s.command].model_fields for s in recipe.steps):
        raise ParameterError("cluster: no step of this recipe can be spread over one. Leave it out.")
    if overwrite and resume:
        raise ParameterError("resume: goes on with what is there, and overwrite begins anew. Choose one.")
    with _folder(recipe.folder), tempfile.TemporaryDirectory(prefix="pellucid-plan-") as scratch:
        taken: OutputError | None = None
        log: RecipeLog | None = None
        try:
            log = _earlier(recipe, resume=resume, overwrite=overwrite)
        except OutputError as error:
            taken = error
        made: dict[str, list[Path]] = {}
        jobs: list[Job] = []
        for steps in _grouped(recipe):
            name = steps[-1].name
            try:
                work = planned_steps(steps, made, log, overwrite=overwrite, cluster=cluster)
            except OutputError as error:
                # that an output is there is said last: what is wrong with a step or a later one counts more
                work = planned_steps(steps, made, log, overwrite=True, cluster=cluster)
                taken = taken or error
            made[name] = work.stand_in(Path(scratch) / name)
            files = tuple(path for path in work.files if not path.is_relative_to(scratch))
            jobs.append(Job(steps, work, files))
        if taken is not None:
            raise taken
        if log is not None:
            jobs = _judged(jobs, log)
        plan = RecipePlan(recipe, tuple(jobs), resume, overwrite, cluster)
        check_free_space(recipe.folder, plan.disk_bytes)
        return plan


def planned_steps(
    steps: Sequence[Step],
    made: Mapping[str, Sequence[Path]],
    log: RecipeLog | None,
    *,
    overwrite: bool,
    cluster: str | None,
    goes_on: bool = False,
) -> Work:
    """The work of a job; `made` are the outputs of earlier steps, or their stand-ins."""
    command = steps[0].command if len(steps) == 1 else "mosaic"
    parameters = []
    for step in steps:
        fields = COMMANDS[step.command].model_fields
        more: dict[str, Any] = {}
        ours = log is not None and log.is_ours(steps[-1].name, Path(step.values["output"]))
        if overwrite or ours:
            more["overwrite"] = True
        if goes_on and "resume" in fields:
            more["resume"] = True
        if cluster is not None and "cluster" in fields:
            more["cluster"] = cluster
        # of a mosaic, the tiles stand for the image that is never written
        inner = {other.name: [Path(PLACEHOLDER)] for other in steps[:-1]}
        parameters.append(step.parameters({**made, **inner}, **more))
    try:
        return planned(command, parameters)
    except PellucidError as error:
        raise named(steps, error) from error


def named(steps: Sequence[Step], error: PellucidError) -> PellucidError:
    """The error with the name of its step before it."""
    return type(error)(f"{steps[-1].place}: {error}")


def _grouped(recipe: Recipe) -> list[tuple[Step, ...]]:
    """The steps, a stitching together with the deconvolution that alone takes its image."""
    groups: list[tuple[Step, ...]] = []
    known = {step.name: step for step in recipe.steps}
    inside = {}
    for step in recipe.steps:
        taken = [known[name] for name in step.takes]
        if step.command == "deconvolve" and len(taken) == 1 and not taken[0].keep:
            (other,) = taken
            alone = recipe.takers(other.name) == [step.name] and len(step.values["inputs"]) == 1
            if other.command == "stitch" and alone:
                inside[other.name] = step.name
    for step in recipe.steps:
        if step.name not in inside:
            before = tuple(known[name] for name, taker in inside.items() if taker == step.name)
            groups.append((*before, step))
    return groups


def _judged(jobs: Sequence[Job], log: RecipeLog) -> list[Job]:
    """The jobs with what is skipped of them, and why the others are not."""
    checksums: dict[Path, str] = {}
    identities: dict[str, dict[str, Any]] = {}
    verdicts: dict[str, Verdict] = {}
    for job in jobs:
        identities[job.name] = identity_of(job.steps, job.files, identities, checksums)
        verdicts[job.name] = log.judged(job.name, identities[job.name])
        again = [name for name in job.takes if not verdicts[name].skip]
        if again and (verdicts[job.name].skip or verdicts[job.name].reason == MADE_OTHERWISE):
            verdicts[job.name] = Verdict(False, f"{again[0]} is done again")
    for job in reversed(jobs):
        needed = [other.name for other in jobs if job.name in other.takes and not verdicts[other.name].skip]
        if verdicts[job.name].skip and log.state(job.name) == "removed" and needed:
            verdicts[job.name] = Verdict(False, f"its output was not kept, and {needed[0]} takes it")
    return [replace(job, verdict=verdicts[job.name]) for job in jobs]


def _earlier(recipe: Recipe, *, resume: bool, overwrite: bool) -> RecipeLog | None:
    """The log of an earlier run to go on with; nothing is changed by looking."""
    if resume and log_path(recipe).is_file():
        return RecipeLog(log_path(recipe), resume=True)
    RecipeLog.check(recipe, resume=resume, overwrite=overwrite)
    return None


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """The folder of the outputs while a plan is made; it stays away where nothing came into it."""
    if folder.is_dir():
        yield
        return
    if folder.exists() or not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: is no folder that can be made. Create the one that it is to be in.")
    folder.mkdir()
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
