"""Recipes: the steps of a dataset as one YAML file. What it may say; nothing heavy is imported here.

    folder: results
    steps:
      - stitch: {inputs: "tiles/t_{y}_{x}.tif", overlap: 0.1}
        keep: false
      - name: sharp
        deconvolve: {psf: psf.tif}
      - measure:

A step is one command with the parameters of that command. Where it does not say what it takes, it takes
what the step before made; `{step: NAME}` stands for what an earlier step made.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from pellucid.errors import ParameterError
from pellucid.stages.deskewing.parameters import DeskewParameters
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.networks.parameters import RestoreParameters
from pellucid.stages.parameters import (
    DeconvolveParameters,
    MeasureParameters,
    Parameters,
    RegisterParameters,
)
from pellucid.stages.stitching.parameters import StitchParameters

COMMANDS: dict[str, type[Parameters]] = {
    "deskew": DeskewParameters,
    "stitch": StitchParameters,
    "register": RegisterParameters,
    "fuse": FuseParameters,
    "deconvolve": DeconvolveParameters,
    "restore": RestoreParameters,
    "measure": MeasureParameters,
}
MAKE_IMAGES = frozenset({"deskew", "stitch", "fuse", "deconvolve", "restore"})
TAKE_SEVERAL = frozenset({"stitch", "register", "fuse", "deconvolve"})
OURS = ("name", "keep")
PLACEHOLDER = "made.ome.zarr"


class RecipeParameters(Parameters):
    """Everything that a recipe can say."""

    folder: Path = Field(Path("."), description="Where outputs go that are not named; made if need be.")
    steps: tuple[dict[str, Any] | str, ...] = Field(
        min_length=1, description="The steps, in order: each a command with its parameters."
    )


@dataclass(frozen=True)
class Step:
    """One step of a recipe, with its inputs and its output filled in.

    Parameters
    ----------
    keep : whether its output stays once all later steps that take it are done
    values : the command's parameters; `{"step": NAME}` stands for what an earlier step made
    """

    name: str
    command: str
    keep: bool
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the earlier steps whose outputs it takes, each once."""
        return tuple(dict.fromkeys(_references(self.values)))

    @property
    def place(self) -> str:
        """Name and command, for sentences."""
        return self.name if self.name == self.command else f"{self.name} ({self.command})"

    def parameters(self, made: Mapping[str, Sequence[Path]], **more: Any) -> Parameters:
        """The command's parameters, with what earlier steps made in place of their names."""
        values = {name: _resolved(self, name, value, made) for name, value in self.values.items()}
        try:
            return COMMANDS[self.command].checked({**values, **more})
        except ParameterError as error:
            raise ParameterError(f"{self.place}: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """A recipe whose steps fit together as far as their words say."""

    name: str
    folder: Path
    steps: tuple[Step, ...]

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON types, with everything that was filled in."""
        return {
            "folder": str(self.folder),
            "steps": [
                {"name": s.name, s.command: _plain(s.values), "keep": s.keep} for s in self.steps
            ],
        }

    def takers(self, name: str) -> list[str]:
        """The steps that take what the step `name` made."""
        return [step.name for step in self.steps if name in step.takes]


def recipe_of(content: Mapping[str, Any], name: str) -> Recipe:
    """The recipe that a YAML file holds, checked word by word; no file is opened.

    Raises
    ------
    ParameterError : a step, a parameter or a reference that does not exist, with what was meant
    """
    if isinstance(content.get("steps"), Mapping):
        raise ParameterError("steps: expected a list. Begin every step with '- ', such as '- measure:'.")
    said = RecipeParameters.checked(content)
    folder = said.folder.expanduser()
    steps: list[Step] = []
    for number, entry in enumerate(said.steps, 1):
        steps.append(_step(number, entry, folder, steps))
    recipe = Recipe(name, folder, tuple(steps))
    for step in steps:
        if not step.keep and step.command not in MAKE_IMAGES:
            raise ParameterError(f"{step.name}: only images can be left out with keep: false.")
        if not step.keep and not recipe.takers(step.name):
            raise ParameterError(
                f"{step.name}: keep: false, and no later step takes what it makes. Leave keep out."
            )
        step.parameters({made: [Path(PLACEHOLDER)] for made in step.takes})
    _check_outputs(steps)
    return recipe


def _step(number: int, entry: Any, folder: Path, before: Sequence[Step]) -> Step:
    content = {entry: None} if isinstance(entry, str) else dict(entry)
    said = [key for key in content if key not in OURS]
    place = f"step {number}"
    for key in said:
        if key not in COMMANDS:
            over = next((c for c in said if c in COMMANDS and key in COMMANDS[c].model_fields), None)
            if over is not None:
                raise ParameterError(f"{place}: {key!r} belongs to {over!r}: indent it further, below it.")
            near = difflib.get_close_matches(str(key), [*COMMANDS, *OURS], n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(COMMANDS)}."
            raise ParameterError(f"{place}: {key!r} is no step. {hint}")
    if len(said) != 1:
        raise ParameterError(f"{place}: expected one command, got {', '.join(said) or 'none'}.")
    command, keep = said[0], content.get("keep", True)
    values = content[command] or {}
    name = str(content.get("name", _free_name(command, before)))
    if not isinstance(values, Mapping):
        raise ParameterError(f"{place}: expected parameters such as 'psf: psf.tif', got {values!r}.")
    if not isinstance(keep, bool):
        raise ParameterError(f"{place}: keep: expected true or false, got {keep!r}.")
    if not name or any(c in name for c in "/\\") or name in {step.name for step in before}:
        raise ParameterError(f"{place}: the name {name!r} is taken, or cannot name a file.")
    _check_references(place, values)
    filled = {**_sources(command, values, before), **{str(k): v for k, v in values.items()}}
    filled.setdefault("output", folder / (name + _suffix(command)))
    step = Step(name, command, keep, filled)
    known = {s.name: s for s in before}
    for other in step.takes:
        if other not in known:
            near = difflib.get_close_matches(other, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "It must come before."
            raise ParameterError(f"{name}: takes the output of {other!r}, which no step before has. {hint}")
    _check_kinds(step, known)
    return step


def _sources(command: str, values: Mapping[str, Any], before: Sequence[Step]) -> dict[str, Any]:
    """What a step takes where it does not say it: what the step or steps before it made."""
    source = "inputs" if command in TAKE_SEVERAL else "input"
    if source in values or not before:
        return {}
    if command == "fuse" and before[-1].command == "register":
        # registered is fused: the same views, and the transforms between them
        given = {} if "transforms" in values else {"transforms": {"step": before[-1].name}}
        return {"inputs": before[-1].values["inputs"], **given}
    images = [step for step in before if step.command in MAKE_IMAGES]
    if not images:
        return {}
    if command in ("register", "fuse"):
        # views come out of steps of one kind, one after the other
        last = images[-1].command
        views: list[Step] = []
        for step in reversed(images):
            if step.command != last:
                break
            views.insert(0, step)
        return {"inputs": [{"step": step.name} for step in views]}
    taken = {"step": images[-1].name}
    return {source: [taken] if source == "inputs" else taken}


def _check_kinds(step: Step, known: Mapping[str, Step]) -> None:
    """ParameterError where an image is taken for transforms, or transforms for an image."""
    for name, value in step.values.items():
        wants_transforms = name in ("transforms", "start")
        for other in _references(value):
            command = known[other].command
            if wants_transforms != (command == "register") or command == "measure":
                what = {"register": "transforms", "measure": "a table"}.get(command, "an image")
                raise ParameterError(
                    f"{step.name}: {name}: expected {'transforms' if wants_transforms else 'an image'}, "
                    f"and {other!r} ({command}) makes {what}. Change the order, or name another step."
                )


def _check_outputs(steps: Sequence[Step]) -> None:
    seen: dict[Path, str] = {}
    for step in steps:
        path = Path(step.values["output"])
        if path in seen:
            raise ParameterError(f"{step.name}: writes {path}, as {seen[path]} does. Name another output.")
        seen[path] = step.name


def _suffix(command: str) -> str:
    return ".ome.zarr" if command in MAKE_IMAGES else ".json"


def _free_name(command: str, before: Sequence[Step]) -> str:
    taken = {step.name for step in before}
    names = (command if n == 1 else f"{command}{n}" for n in range(1, len(before) + 2))
    return next(name for name in names if name not in taken)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and set(value) == {"step"}:
        yield str(value["step"])
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _references(inner)


def _check_references(place: str, values: Mapping[str, Any]) -> None:
    """ParameterError for a mapping that is no reference."""
    parts = [(n, p) for n, v in values.items() for p in (v if isinstance(v, (list, tuple)) else [v])]
    for name, part in parts:
        if isinstance(part, Mapping) and set(part) != {"step"}:
            raise ParameterError(
                f"{place}: {name}: expected a value or {{step: NAME}}, got {dict(part)!r}. What an earlier "
                "step made is written {step: NAME}."
            )


def _resolved(step: Step, name: str, value: Any, made: Mapping[str, Sequence[Path]]) -> Any:
    if isinstance(value, Mapping) and set(value) == {"step"}:
        paths = made[str(value["step"])]
        if name in ("inputs", "psf"):
            return [str(path) for path in paths]
        if len(paths) != 1:
            raise ParameterError(
                f"{step.name}: {name}: takes one file, and {value['step']!r} makes {len(paths)}."
            )
        return str(paths[0])
    if isinstance(value, (list, tuple)):
        parts = [_resolved(step, name, part, made) for part in value]
        return [p for part in parts for p in (part if isinstance(part, list) else [part])]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
