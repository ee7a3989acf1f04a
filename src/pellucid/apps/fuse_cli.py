"""The command `pellucid fuse`: views of one specimen become one volume, over time and channels."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import as_yaml, asked, finished, options_of
from pellucid.apps.terminal import OK, SOME_FAILED, Progress, print_json, say
from pellucid.stages.fusion.parameters import FuseParameters

FuseOptions: Any = options_of(FuseParameters, without=frozenset({"inputs", "output"}))
Options = Annotated[FuseOptions, Parameter(name="*")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def fuse(
    *inputs: str,
    output: Output = None,
    options: Options = FuseOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Register views of one specimen from several angles and fuse them into one sharp volume.

    Parameters
    ----------
    inputs
        A file, folder or pattern (SPIMA/SPIMA_{t}.tif) for each view, or view 1 of a dataset of
        BigDataViewer (dataset.xml#1). Alone: a folder of SPIMA and SPIMB, or a dataset with all its views.
    output
        .ome.zarr, .ome.tif (OME-TIFF) or .tif (ImageJ TIFF).
    config
        YAML file of these options. The environment (PELLUCID_FUSE_METHOD=...) ranks above it, and
        what is typed here above both.
    dry_run
        Show the plan (shapes, memory, device, output size) and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    parameters = asked(FuseParameters, "fuse", config, options, inputs, output)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    if finished("fuse", parameters, json=json):
        return OK
    return _fuse(parameters, dry_run=dry_run, json=json)


def _fuse(parameters: FuseParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.apps.fusion_text import fuse_lines, fuse_plan_text
    from pellucid.stages.deskewing.projecting import movie_is_possible
    from pellucid.stages.fusion.fusing import run_fusion
    from pellucid.stages.fusion.planning import plan_fusion
    from pellucid.stages.work.workplace import opened_engine

    plan = plan_fusion(parameters)
    if dry_run:
        said = plan.to_json()
        print_json(said) if json else print(fuse_plan_text(said), end="")
        return OK
    by_blocks = plan.blocks is not None
    with (
        opened_engine(parameters.cluster) as engine,
        Progress(plan.steps, quiet=json, doing="fusing" if by_blocks else "registering") as progress,
    ):
        outcome = run_fusion(plan, progress, engine)
    if by_blocks and parameters.projections and not json:
        say("no projections: they are made of a volume in one piece, and this one was made by blocks")
    elif parameters.projections and not movie_is_possible() and not json:
        say("no movie: install pellucid[movie] for MP4; the turning projection is an OME-TIFF")
    if json:
        print_json({**outcome.to_json(), "timings_s": outcome.timings_s})
    else:
        for line in fuse_lines(outcome):
            say(line)
    if outcome.failures:
        say(f"pellucid: {len(outcome.failures)} of {outcome.total} volumes failed:")
        for name, why in outcome.failures:
            say(f"  {name}: {why}")
        return SOME_FAILED
    return OK
