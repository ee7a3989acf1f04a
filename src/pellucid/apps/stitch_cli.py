"""The command `pellucid stitch`: overlapping tiles become one image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import as_yaml, asked, options_of
from pellucid.apps.terminal import OK, Progress, print_json, say
from pellucid.stages.stitch_parameters import StitchParameters

StitchOptions: Any = options_of(StitchParameters, without=frozenset({"inputs", "output"}))
Options = Annotated[StitchOptions, Parameter(name="*")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def stitch(
    *inputs: str,
    output: Output = None,
    options: Options = StitchOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Place overlapping tiles by what they show in common, and blend them into one image.

    Parameters
    ----------
    inputs
        Tiles: files, a folder, or a pattern with indices such as tile_{y}_{x}.tif.
    output
        .ome.zarr, .ome.tif (OME-TIFF) or .tif (ImageJ TIFF).
    config
        YAML file of these options. The environment (PELLUCID_STITCH_OVERLAP=...) ranks above it,
        and what is typed here above both.
    dry_run
        Show the layout, the links, shape and size of the output, and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    parameters = asked(StitchParameters, "stitch", config, options, inputs, output)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    return _stitch(parameters, dry_run=dry_run, json=json)


def _stitch(parameters: StitchParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.stages.stitch_plan import plan_stitching
    from pellucid.stages.stitching import run_stitching

    plan = plan_stitching(parameters)
    if dry_run:
        said = plan.to_json()
        print_json(said) if json else print(plan_text(said), end="")
        return OK
    if not json:
        say(f"{len(plan.tiles.names)} tiles, {len(plan.pairs)} overlaps to compare")
    with Progress(len(plan.times) * len(plan.channels), quiet=json) as progress:
        outcome = run_stitching(plan, progress)
    assert outcome.placement is not None
    if parameters.picture:
        from pellucid.apps.placement_picture import placement_picture
        from pellucid.data.output import stem

        path = plan.output.with_name(f"{stem(plan.output)}_placement.png")
        placement_picture(outcome.placement, plan.tiles.nominal_px, plan.tiles.shapes, path)
        outcome.outputs.append(path)
    if json:
        print_json(outcome.to_json())
        return OK
    for line in placed_lines(outcome):
        say(line)
    return OK


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan of stitching (`StitchPlan.to_json`) as lines."""
    from pellucid.apps.fusion_text import machine_lines
    from pellucid.stages.planning import gib

    lines = ["tiles        first voxel z, y, x (px) and size"]
    for tile in plan["tiles"]:
        at = ", ".join(f"{v:.1f}" for v in tile["nominal_px"])
        size = " x ".join(str(n) for n in tile["shape_zyx"])
        lines.append(f"             {tile['name']}: {at}; {size}")
    margin = ", ".join(f"{v:.1f}" for v in plan["margin_px"])
    lines.append(f"links        {len(plan['links'])}, each searched by {margin} px (z, y, x)")
    lines += [f"             {first} - {second}" for first, second in plan["links"]]
    sizes = " x ".join(str(n) for n in plan["output_shape_tczyx"])
    voxel = plan["voxel_um"]
    lines += [
        f"registers    channel {plan['reference']}",
        f"output       {plan['output']}",
        f"             about {sizes} (t, c, z, y, x), {gib(plan['output_bytes'])}",
        f"voxel        {', '.join(f'{v:.4g}' for v in voxel) + ' um' if voxel else 'not stated'}",
        *machine_lines(plan),
    ]
    return "\n".join(lines) + "\n"


def placed_lines(outcome: Any) -> list[str]:
    """How well the links agree, and where the seconds went."""
    placed = outcome.placement
    said = placed.to_dict()
    lines = [f"links        {int(placed.kept.sum())} of {len(placed.links)} used"]
    for name, key in (("residuals", "residual_px"), ("cycles", "cycle_error_px")):
        if said[key] is not None:
            lines.append(
                f"{name:<12} median {said[key]['median']:.3f} px, largest {said[key]['largest']:.3f} px"
            )
    parts = (f"{name} {seconds:.1f}" for name, seconds in outcome.timings_s.items())
    return [*lines, f"seconds      {', '.join(parts)}"]
