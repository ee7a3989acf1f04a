"""The command `pellucid register`: transforms between views, for use here or elsewhere."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import as_yaml, asked, finished, options_of
from pellucid.apps.terminal import ERROR, OK, SOME_FAILED, Progress, print_json, say
from pellucid.stages.parameters import RegisterParameters

RegisterOptions: Any = options_of(RegisterParameters, without=frozenset({"inputs", "output"}))
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Options = Annotated[RegisterOptions, Parameter(name="*")]


def register(
    *inputs: str,
    output: Output = None,
    options: Options = RegisterOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Find the transforms between views of one specimen, over time, and say which to believe.

    Parameters
    ----------
    inputs
        The views, the first one fixed: files, folders, patterns such as SPIMA/SPIMA_{t}.tif, or views of a
        dataset of BigDataViewer (dataset.xml#1; alone, dataset.xml is all of them).
    output
        File of transforms, .json.
    config
        YAML file of these options; the environment (PELLUCID_REGISTER_MODEL=...) ranks above it.
    dry_run
        Show the views and their nominal transforms, and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    parameters = asked(RegisterParameters, "register", config, options, inputs, output)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    if finished("register", parameters, json=json):
        return OK
    return _register(parameters, dry_run=dry_run, json=json)


def _register(parameters: RegisterParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.stages.registration.register_files import plan_registration, run_registration
    from pellucid.stages.work.workplace import opened_engine

    plan = plan_registration(parameters)
    said = plan.to_json()
    if dry_run and json:
        print_json(said)
        return OK
    if not json:
        for view in said["views"]:
            times, channels = len(view["times"]), len(view["channels"])
            say(
                f"{view['name']}: {times} time points, {channels} channels, {view['shape_zyx']} "
                f"voxels of {view['voxel_um']} um, {view['dtype']}"
            )
        say(f"{plan.total} registrations on {said['device']}")
    if dry_run:
        return OK
    draw: Any = None
    if parameters.picture is not None:
        from pellucid.apps.transform_picture import transform_picture

        draw = transform_picture
    with opened_engine(parameters.cluster) as engine:
        with Progress(plan.total, quiet=json, doing="registering") as progress:
            outcome = run_registration(plan, progress, draw, engine)
    if json:
        print_json(outcome.to_json())
    if outcome.bad:
        say(f"pellucid: {len(outcome.bad)} registrations are not to be believed:")
        for name, why in outcome.bad:
            say(f"  {name}: {why}")
        some = any(t.believed and t.view > 0 for t in outcome.series.transforms)
        return SOME_FAILED if some else ERROR
    return OK
