"""What of a recipe is done: each step with what it was made from, so that a run can go on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pellucid.data.manifest import Manifest, differences, synchronise
from pellucid.data.plain_json import plain_json
from pellucid.data.record import fingerprint, package_versions
from pellucid.data.writer import remove
from pellucid.errors import OutputError
from pellucid.stages.recipes.parameters import Recipe, Step

State = Literal["begun", "done", "removed"]

WITHOUT_EFFECT = frozenset({"overwrite", "resume", "memory", "report", "picture", "device", "cluster"})
"""Parameters that do not decide a result."""

WRITTEN = frozenset({"output", "itk", "bigstitcher", "picture", "registered", "verdict"})
"""Parameters that name outputs; every other path is an input."""

MADE_OTHERWISE = "what it takes was made otherwise"


@dataclass(frozen=True)
class Verdict:
    """Whether a step is skipped, and why it is not; `goes_on` where it goes on from the middle."""

    skip: bool
    reason: str = ""
    goes_on: bool = False


class RecipeLog:
    """The steps that were begun, done and removed, in a file of JSON lines beside the outputs.

    A step is done only once its outputs are on the disk with their final names.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._manifest = Manifest(path, {"recipe_log": 1}, resume=resume)

    @staticmethod
    def check(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """OutputError where an earlier run is there and it was not said what is to become of it."""
        path = log_path(recipe)
        if path.is_file() and not (resume or overwrite):
            raise OutputError(
                f"{path.name}: an earlier run of this recipe. Go on with --resume (what is unchanged is "
                "not done again), or begin anew with --overwrite."
            )

    def state(self, name: str) -> State | None:
        """How far the step `name` is; None where it was never begun."""
        state: State | None = self._manifest.facts(name)["state"] if name in self._manifest else None
        return state

    def facts(self, name: str) -> dict[str, Any]:
        """What was noted with the last state of a step."""
        return self._manifest.facts(name) if name in self._manifest else {}

    def begin(self, name: str, identity: Mapping[str, Any]) -> None:
        """Note that a step is about to write."""
        self._manifest.record(name, {"state": "begun", "identity": identity})

    def done(self, name: str, identity: Mapping[str, Any], outputs: Sequence[Path], **facts: Any) -> None:
        """Note that a step's outputs are there, once they are on the disk."""
        for path in outputs:
            synchronise(path)
        checksums = {str(path): fingerprint(path).checksum for path in outputs}
        self._manifest.record(
            name, {"state": "done", "identity": identity, "outputs": checksums, **facts}
        )

    def remove_outputs(self, name: str) -> None:
        """Delete the outputs of a step that are not kept; noted first, so that none is believed."""
        facts = {**self.facts(name), "state": "removed"}
        self._manifest.record(name, facts)
        for path in map(Path, facts["outputs"]):
            aside = path.with_name(path.name + ".old.partial")
            remove(aside)
            if path.exists():
                path.rename(aside)
            remove(aside)

    def judged(self, name: str, identity: Mapping[str, Any]) -> Verdict:
        """Whether a step of this identity is done, by itself; not whether its inputs are."""
        state, facts = self.state(name), self.facts(name)
        if state is None:
            return Verdict(False)
        before, now = facts["identity"], json.loads(json.dumps(plain_json(identity)))
        if changed := _without_steps(differences(before, now)):
            return Verdict(False, "; ".join(changed[:4]))
        if before != now:
            return Verdict(False, MADE_OTHERWISE)
        if state == "begun":
            return Verdict(False, "it was interrupted", goes_on=True)
        if state == "removed":
            return Verdict(True)
        for path, checksum in facts["outputs"].items():
            if not Path(path).exists():
                return Verdict(False, f"{Path(path).name} is gone")
            if fingerprint(path).checksum != checksum:
                return Verdict(False, f"{Path(path).name} was changed since")
        return Verdict(True)

    def is_ours(self, name: str, output: Path) -> bool:
        """Whether an earlier run of this step wrote, or was to write, `output`."""
        steps = self.facts(name).get("identity", {}).get("parameters", {})
        return any(own.get("output") == str(output) for own in steps.values())


def log_path(recipe: Recipe) -> Path:
    """Where the steps of a recipe are noted."""
    return recipe.folder / f"{recipe.name}.steps.jsonl"


def identity_of(
    steps: Sequence[Step],
    files: Sequence[Path],
    made_from: Mapping[str, Mapping[str, Any]],
    checksums: dict[Path, str],
) -> dict[str, Any]:
    """What decides the result of `steps`: parameters, checksums of files, and the steps before.

    Parameters
    ----------
    files : recordings that are read; files that parameters name are added
    made_from : identity of each earlier step
    checksums : those known already; new ones are added
    """
    own = {step.name for step in steps}
    taken = dict.fromkeys(name for step in steps for name in step.takes if name not in own)
    parameters, named = {}, list(files)
    for step in steps:
        said = step.parameters({name: [Path(f"<{name}>")] for name in step.takes})
        parameters[step.name] = {k: v for k, v in said.plain().items() if k not in WITHOUT_EFFECT}
        for name in type(said).model_fields:
            value = getattr(said, name)
            paths = value if isinstance(value, tuple) else (value,)
            if name not in WRITTEN:
                named += [p.expanduser() for p in paths if isinstance(p, Path) and p.name[:1] != "<"]
            if name in ("start", "flat_field") and Path(value).expanduser().is_file():
                named.append(Path(value).expanduser())
    for path in dict.fromkeys(named):
        if path not in checksums:
            checksums[path] = fingerprint(path).checksum
    return {
        "commands": [step.command for step in steps],
        "parameters": parameters,
        "inputs": {str(path): checksums[path] for path in dict.fromkeys(named)},
        "steps": {name: _digest(made_from[name]) for name in taken},
        "pellucid": package_versions()["pellucid"],
    }


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(plain_json(identity), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _without_steps(changed: Sequence[str]) -> list[str]:
    """What changed, without the digests of other steps, and shorter where names are clear."""
    return [c.removeprefix("parameters.") for c in changed if not c.startswith("steps.")]
