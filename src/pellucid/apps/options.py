"""Parameter models as command-line options: one declaration serves both.

The command line takes text and hands it on; the models make sense of it, so that a mistake gets
the same sentence whether it was typed, written into a YAML file or passed in Python.
"""

import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from pydantic import Field, create_model

from pellucid.apps.terminal import print_json, say
from pellucid.errors import ParameterError
from pellucid.stages.parameters import Parameters

Model = TypeVar("Model", bound=Parameters)

ENVIRONMENT = "PELLUCID_"


def options_of(model: type[Parameters], without: frozenset[str] = frozenset()) -> type[Parameters]:
    """A model of the fields of `model`, `without` some, as they are typed on a command line.

    What is needed may be left out there, as a YAML file or the environment may say it.
    """
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        needed = field.is_required()
        typed = _as_typed(field.annotation | None if needed else field.annotation)  # type: ignore[operator]
        default = None if needed else field.default
        said = f"{field.description} Needed." if needed else field.description
        parameter = _parameter(name, default)
        if name not in without:
            fields[name] = (Annotated[typed, parameter], Field(default, description=said))
    name = model.__name__.replace("Parameters", "Options")
    return create_model(name, __base__=Parameters, **fields)


def _parameter(name: str, default: Any) -> Parameter:
    # An empty default says nothing; what is on without being asked for needs a way to be switched off.
    if default is True:
        return Parameter(negative=f"--no-{name.replace('_', '-')}", show_default=True)
    return Parameter(show_default=bool(default))


def merged(
    model: type[Parameters], command: str, config: Path | None, typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Values by rising rank: the YAML file `config`, PELLUCID_<COMMAND>_<NAME>, what was typed."""
    prefix = f"{ENVIRONMENT}{command.upper()}_"
    environment = {
        name: os.environ[prefix + name.upper()]
        for name in model.model_fields
        if prefix + name.upper() in os.environ
    }
    return {**(read_config(config) if config else {}), **environment, **typed}


def asked(
    model: type[Model],
    command: str,
    config: Path | None,
    options: Parameters,
    inputs: Sequence[str],
    output: Path | None,
) -> Model:
    """The parameters of a command: from its YAML file, the environment, and what was typed."""
    return asked_of(model, command, config, options, {"inputs": inputs, "output": output})


def asked_of(
    model: type[Model],
    command: str,
    config: Path | None,
    options: Parameters,
    named: Mapping[str, Any],
) -> Model:
    """The same for a command whose arguments have other names; empty ones were not typed."""
    typed = {**given(options), **{name: value for name, value in named.items() if value}}
    return model.checked(merged(model, command, config, typed))


def finished(command: str, parameters: Any, output: Path | None = None, *, json: bool) -> bool:
    """Whether what `--resume` asks for is finished already, which is said then."""
    if not parameters.resume or parameters.overwrite:
        return False
    from pellucid.stages.pieces.piece_choice import is_finished

    output = output or parameters.output
    if not is_finished(command, parameters, output):
        return False
    if json:
        print_json({"outputs": [output], "finished": True})
    else:
        say(f"{output.name}: is finished; there is nothing to go on with.")
    return True


def given(options: Parameters) -> dict[str, Any]:
    """The options that somebody set, as they were set."""
    return {name: getattr(options, name) for name in options.model_fields_set}


def read_config(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file; ParameterError where it is none."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" in line {where.line + 1}" if where else ""
        raise ParameterError(f"{path.name}: is no YAML{at}. Compare --print-config.") from error
    if not isinstance(content, dict):
        raise ParameterError(
            f"{path.name}: expected lines such as 'method: wiener', got {type(content).__name__}."
        )
    return {str(key): value for key, value in content.items()}


def as_yaml(parameters: Parameters) -> str:
    """All parameters as a YAML file that `--config` takes."""
    return yaml_text(parameters.plain())


def yaml_text(content: Mapping[str, Any]) -> str:
    """JSON types as YAML."""
    import yaml

    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text


def _as_typed(annotation: Any) -> Any:
    parts = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    for part in parts:
        if typing.get_origin(part) is tuple:
            inside = typing.get_args(part)
            metavar = "FILE" if Path in inside else "N,..." if ... in inside else "Z,Y,X"
            return Annotated[tuple[str, ...] | None, Parameter(metavar=metavar)]
    if part is type(None) and parts[0] in (int, float):
        return Annotated[str | None, Parameter(metavar="N")]
    return annotation
