"""The commands of networks: `pellucid train`, `pellucid restore` and `pellucid model export`."""

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from pellucid.apps.options import as_yaml, asked_of, finished, given, options_of, read_config
from pellucid.apps.terminal import OK, SOME_FAILED, Progress, print_json, say
from pellucid.stages.networks.parameters import ExportParameters, RestoreParameters, TrainParameters

RestoreOptions: Any = options_of(
    RestoreParameters, without=frozenset({"input", "views", "model", "output"})
)
Options = Annotated[RestoreOptions, Parameter(name="*")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
ExportOptions: Any = options_of(ExportParameters, without=frozenset({"model", "output"}))
Exporting = Annotated[ExportOptions, Parameter(name="*")]

model_app = App(name="model", help="Trained models as files.")


def train(recipe: Path, *, json: bool = False) -> int:
    """Train a network for a microscope; an interrupted training goes on where it was.

    On several GPUs: torchrun --standalone --nproc-per-node 4 --no-python pellucid train recipe.yaml

    Parameters
    ----------
    recipe
        A YAML file: output, psf, voxel_um, structures, steps ...
    json
        Print JSON for machines, and only that.
    """
    parameters = TrainParameters.checked(read_config(recipe))
    from pellucid.networks.team import is_first
    from pellucid.stages.networks.training import train

    def look(trainer: Any) -> None:
        last = trainer.curve[-1]
        if not json:
            say(f"step {last['step']}: held-out error {last['held_out']:.4f}")

    model = train(parameters, look)
    if not is_first():
        return OK
    print_json({"model": model}) if json else say(f"wrote {model}")
    return OK


def restore(
    *inputs: str,
    model: Path | None = None,
    output: Output = None,
    options: Options = RestoreOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Restore a recording by a trained model, and say what of it to believe.

    Parameters
    ----------
    inputs
        TIFF, OME-TIFF, OME-Zarr or .npy; for a model of several views each view, as `pellucid fuse` takes.
    model
        Folder that `pellucid train` wrote.
    output
        .ome.zarr, .ome.tif or .tif.
    config
        YAML file of these options; the environment (PELLUCID_RESTORE_POLISH=...) ranks above it.
    dry_run
        Show the plan (shapes, memory, disk, tiles) and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    named = {
        "input": inputs[0] if inputs else None, "views": inputs[1:] or None, "model": model,
        "output": output,
    }  # fmt: skip
    parameters = asked_of(RestoreParameters, "restore", config, options, named)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    from pellucid.apps.text import begun_line, failed_lines, restore_plan_text, restored_lines
    if finished("restore", parameters, json=json):
        return OK
    from pellucid.stages.networks.restoring import failures
    from pellucid.stages.networks.view_restoring import plan_restoration, run_restoration
    from pellucid.stages.work.workplace import opened_engine

    plan = plan_restoration(parameters)
    if dry_run:
        said = plan.to_json()
        print_json(said) if json else print(restore_plan_text(said), end="")
        return OK
    if not json:
        say(begun_line(plan))
    begin = time.perf_counter()
    with opened_engine(parameters.cluster) as engine:
        if parameters.cluster is not None and not json:
            say(engine.described)
        with Progress(plan.steps, quiet=json, doing="restoring") as progress:
            stats = run_restoration(plan, progress, engine)
    if json:
        print_json(stats)
    else:
        for line in restored_lines(stats, plan.names, time.perf_counter() - begin):
            say(line)
    failed = failures(plan.names, stats)
    for line in failed_lines(failed, plan.total) if failed else ():
        say(line)
    return SOME_FAILED if failed else OK


@model_app.command
def export(
    model: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    options: Exporting = ExportOptions(),
    json: bool = False,
) -> int:
    """Write a model as ONNX, in a package for the BioImage Model Zoo.

    Parameters
    ----------
    model
        Folder that `pellucid train` wrote.
    output
        Folder of the package.
    json
        Print JSON for machines, and only that.
    """
    parameters = ExportParameters.checked({"model": model, "output": output, **given(options)})
    from pellucid.stages.networks.exporting import export

    written = export(parameters)
    print_json({"package": written}) if json else say(f"wrote {written}")
    return OK
