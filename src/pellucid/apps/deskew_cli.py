"""The command `pellucid deskew`: stage scans stood up at right angles."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import as_yaml, asked_of, options_of
from pellucid.apps.terminal import OK, Progress, print_json, say
from pellucid.stages.deskewing.parameters import DeskewParameters

DeskewOptions: Any = options_of(DeskewParameters, without=frozenset({"input", "output"}))
Options = Annotated[DeskewOptions, Parameter(name="*")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def deskew(
    input: str | None = None,
    *,
    output: Output = None,
    options: Options = DeskewOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Stand a stage-scanned or oblique recording up at right angles, resampling it once.

    Parameters
    ----------
    input
        One recording: TIFF, OME-TIFF, OME-Zarr, .npy.
    output
        .ome.zarr, .ome.tif (OME-TIFF) or .tif (ImageJ TIFF).
    config
        YAML file of these options. The environment (PELLUCID_DESKEW_STEP_UM=...) ranks above it, and
        what is typed here above both.
    dry_run
        Show the plan (shapes, memory, output) and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    named = {"input": input, "output": output}
    parameters = asked_of(DeskewParameters, "deskew", config, options, named)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    return _deskew(parameters, dry_run=dry_run, json=json)


def _deskew(parameters: DeskewParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.apps.fusion_text import deskew_plan_text
    from pellucid.stages.deskewing.deskewing import plan_deskew, run_deskew

    plan = plan_deskew(parameters)
    if dry_run or json:
        said = plan.to_json()
        if dry_run:
            print_json(said) if json else print(deskew_plan_text(said), end="")
            return OK
    if not json:
        z, y, x = plan.grid.shape
        say(f"{plan.recording.path.name}: {z} x {y} x {x} voxels in the frame of the {plan.grid.frame}")
    with Progress(len(plan.times) * len(plan.channels), quiet=json, doing="deskewing") as progress:
        record = run_deskew(plan, progress)
    if json:
        print_json({**plan.to_json(), "record": record})
    return OK
