"""The command `pellucid stitch`: overlapping tiles become one image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import finished, given, merged, options_of, yaml_text
from pellucid.apps.terminal import OK, SOME_FAILED, Progress, print_json, say
from pellucid.data.plain_json import plain_json
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.stitching.parameters import StitchParameters

# What a mosaic that is deconvolved in the same pass can be told beyond what stitching is told.
SHARPENING = [
    name
    for name in DeconvolveParameters.model_fields
    if name not in StitchParameters.model_fields and name not in ("format", "report")
]
StitchOptions: Any = options_of(StitchParameters, without=frozenset({"inputs", "output"}))
SharpenOptions: Any = options_of(
    DeconvolveParameters, without=frozenset(DeconvolveParameters.model_fields) - {*SHARPENING}
)
Options = Annotated[StitchOptions, Parameter(name="*")]
Sharpen = Annotated[SharpenOptions, Parameter(name="*", group="Deconvolving in the same pass")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def stitch(
    *inputs: str,
    output: Output = None,
    options: Options = StitchOptions(),
    sharpen: Sharpen = SharpenOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Place overlapping tiles by what they show in common, and blend them into one image.

    With a PSF (--psf, or the optics) the image is deconvolved as it is blended, block by block,
    and only the sharp one is written.

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
    typed = {**given(options), **given(sharpen)}
    typed.update({"inputs": inputs} if inputs else {})
    typed.update({"output": output} if output else {})
    values = merged(StitchParameters, "stitch", config, typed)
    sharpening = {name: values.pop(name) for name in SHARPENING if name in values}
    parameters = StitchParameters.checked(values)
    if print_config:
        both = {**parameters.plain(), **{name: plain_json(value) for name, value in sharpening.items()}}
        print(yaml_text(both), end="")
        return OK
    if sharpening:
        return _stitch_sharply(parameters, sharpening, dry_run=dry_run, json=json)
    return _stitch(parameters, dry_run=dry_run, json=json)


def _stitch(parameters: StitchParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.apps.placement_picture import drawn_placement
    from pellucid.stages.stitching.plan import plan_stitching
    from pellucid.stages.stitching.stitching import run_stitching

    plan = plan_stitching(parameters)
    if dry_run:
        said = plan.to_json()
        print_json(said) if json else print(plan_text(said), end="")
        return OK
    if not json:
        for line in begun_lines(plan):
            say(line)
    with Progress(len(plan.times) * len(plan.channels), quiet=json) as progress:
        outcome = run_stitching(plan, progress)
    outcome.outputs += drawn_placement(plan, outcome, plan.output)
    return _told(outcome, json=json)


def _stitch_sharply(
    parameters: StitchParameters, sharpening: dict[str, Any], *, dry_run: bool, json: bool
) -> int:
    from pellucid.apps.placement_picture import drawn_placement
    from pellucid.apps.text import begun_lines as sharpening_lines
    from pellucid.apps.text import plan_text as deconvolution_text
    from pellucid.stages.stitching.mosaic_deconvolving import plan_mosaic, run_mosaic
    from pellucid.stages.work.workplace import opened_engine

    shared = {name: getattr(parameters, name) for name in ("inputs", "output", "overwrite", "ome_zarr")}
    background = {} if parameters.background is None else {"background": parameters.background}
    sharp = DeconvolveParameters.checked({**shared, **background, **sharpening})
    if finished("deconvolve", sharp, json=json):
        return OK
    plan = plan_mosaic(parameters, sharp)
    if dry_run:
        both = {"stitch": plan.stitching.to_json(), "deconvolve": plan.deconvolution.to_json()}
        if json:
            print_json(both)
        else:
            placed = plan_text(both["stitch"]).partition("\ndevice ")[0]
            print(f"{placed}\n\n{deconvolution_text(both['deconvolve'])}", end="")
        return OK
    if not json:
        tiles = plan.stitching
        for line in [*begun_lines(tiles), *sharpening_lines(plan.deconvolution)]:
            say(line)
    with opened_engine(plan.parameters.cluster) as engine:
        if plan.parameters.cluster is not None and not json:
            say(engine.described)
        with Progress(plan.deconvolution.steps, quiet=json) as progress:
            outcome = run_mosaic(plan, progress, engine)
    outcome.outputs += drawn_placement(plan.stitching, outcome, plan.stitching.output)
    return _told(outcome, json=json)


def _told(outcome: Any, *, json: bool) -> int:
    """Say what came of it; returns the exit code."""
    from pellucid.apps.text import failed_lines

    if json:
        print_json(outcome.to_json())
    else:
        for line in placed_lines(outcome):
            say(line)
        for line in failed_lines(outcome.failures, outcome.total) if outcome.failures else ():
            say(line)
    links, kept = len(outcome.placement.links), int(outcome.placement.kept.sum())
    if links and not kept:
        say(
            f"pellucid: none of the {links} overlaps could be measured, so the tiles stand where the "
            "layout has them. Check --overlap and --grid."
        )
        return SOME_FAILED
    return SOME_FAILED if outcome.failures else OK


def begun_lines(plan: Any) -> list[str]:
    """What is said of a stitching when it begins."""
    return [
        f"{len(plan.tiles.names)} tiles, {len(plan.pairs)} overlaps to compare",
        *(f"note: {note}" for note in plan.notes),
    ]


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan of stitching (`StitchPlan.to_json`) as lines."""
    from pellucid.apps.fusion_text import machine_lines
    from pellucid.stages.pieces.piece_choice import gib

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
        *(f"note         {note}" for note in plan["notes"]),
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
