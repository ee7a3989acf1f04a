"""The command line: `pellucid VERB ...`. It parses, calls a stage, and shows what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from pellucid import __version__
from pellucid.apps import network_cli, recipe_cli
from pellucid.apps.deskew_cli import deskew
from pellucid.apps.fuse_cli import fuse
from pellucid.apps.options import as_yaml, asked, finished, given, options_of
from pellucid.apps.psf_cli import psf_app
from pellucid.apps.register_cli import register
from pellucid.apps.stitch_cli import stitch
from pellucid.apps.terminal import (
    ERROR,
    OK,
    SOME_FAILED,
    USAGE,
    Progress,
    exit_code_of,
    print_json,
    say,
)
from pellucid.stages.parameters import (
    DeconvolveParameters,
    InputParameters,
    MeasureParameters,
    parameter_error,
)

app = App(
    name="pellucid",
    version=__version__,
    help="Fluorescence microscopy made clear.",
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(psf_app)
app.command(deskew)
app.command(fuse)
app.command(stitch)
app.command(register)
app.command(network_cli.train)
app.command(network_cli.restore)
app.command(recipe_cli.run)
app.command(recipe_cli.plan)
app.command(network_cli.model_app)

_OWN = frozenset({"inputs", "output"})
DeconvolveOptions: Any = options_of(DeconvolveParameters, without=_OWN)
InputOptions: Any = options_of(InputParameters)
MeasureOptions: Any = options_of(MeasureParameters, without=frozenset({"input", "output"}))

Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Options = Annotated[DeconvolveOptions, Parameter(name="*")]
Reading = Annotated[InputOptions, Parameter(name="*")]
Measuring = Annotated[MeasureOptions, Parameter(name="*")]


@app.command
def deconvolve(
    *inputs: str,
    output: Output = None,
    options: Options = DeconvolveOptions(),
    config: Path | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Sharpen stacks with the PSF they were recorded with, from a file or from the optics.

    Parameters
    ----------
    inputs
        Files, folders or patterns: TIFF, OME-TIFF, OME-Zarr, .npy.
    output
        .ome.zarr, .ome.tif (OME-TIFF) or .tif (ImageJ TIFF); a folder for many inputs.
    config
        YAML file of these options. The environment (PELLUCID_DECONVOLVE_METHOD=...) ranks above
        it, and what is typed here above both.
    dry_run
        Show the plan (shapes, memory, back projector) and start nothing.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    parameters = asked(DeconvolveParameters, "deconvolve", config, options, inputs, output)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    if finished("deconvolve", parameters, json=json):
        return OK
    return _deconvolve(parameters, dry_run=dry_run, json=json)


def _deconvolve(parameters: DeconvolveParameters, *, dry_run: bool, json: bool) -> int:
    from pellucid.apps.text import begun_lines, failed_lines, plan_text
    from pellucid.stages.deconvolution.deconvolve import run
    from pellucid.stages.deconvolution.planning import plan_deconvolution
    from pellucid.stages.work.workplace import opened_engine

    plan = plan_deconvolution(parameters)
    if dry_run:
        if json:
            print_json(plan.to_json())
        else:
            print(plan_text(plan.to_json()), end="")
        return OK
    if not json:
        for line in begun_lines(plan):
            say(line)
    with opened_engine(parameters.cluster) as engine:
        if parameters.cluster is not None and not json:
            say(engine.described)
        with Progress(plan.steps, quiet=json) as progress:
            outcome = run(plan, progress, engine)
    if parameters.report:
        from pellucid.apps.report import write_reports

        write_reports(plan, outcome)
    if json:
        print_json(outcome.to_json())
    if outcome.failures:
        for line in failed_lines(outcome.failures, outcome.total):
            say(line)
        return SOME_FAILED if outcome.outputs else ERROR
    return OK


@app.command
def info(file: str, *, options: Reading = InputOptions(), json: bool = False) -> int:
    """Show what a file holds: axes, voxel size, channels, and how it was made.

    Parameters
    ----------
    file
        A TIFF, OME-TIFF, OME-Zarr or .npy.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.apps.text import info_text
    from pellucid.stages.measuring import describe

    said = describe(file, InputParameters.checked(given(options)))
    print_json(said) if json else print(info_text(said), end="")
    return OK


@app.command
def measure(
    file: str, *, output: Output = None, options: Measuring = MeasureOptions(), json: bool = False
) -> int:
    """Measure background, noise, resolution and saturation of every channel and time point.

    Parameters
    ----------
    file
        A TIFF, OME-TIFF, OME-Zarr or .npy.
    output
        Write the figures as JSON to this file, with a record.
    json
        Print JSON for machines, and only that.
    """
    from pellucid.apps.text import quality_text
    from pellucid.stages.measuring import plan_measuring, run_measuring

    asked = MeasureParameters.checked({**given(options), "input": file, "output": output})
    rows = run_measuring(plan_measuring(asked))
    print_json(rows) if json else print(quality_text(rows), end="")
    return OK


@app.command
def demo(*, output: Output = None, data: Path | None = None) -> int:
    """Record known objects with a simulated microscope, deconvolve and fuse, and measure the gain.

    Parameters
    ----------
    output
        Folder for images, pictures and report; demo by default.
    data
        Folder with raw.tif and psf_computed.tif: deconvolution on real data.
    """
    from pellucid.apps.demo import run_demo

    run_demo(output or Path("demo"), data)
    return OK


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 ok, 1 error, 2 usage, 3 some failed."""

    def command() -> int:
        try:
            result = app(tokens, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            if isinstance(error.__cause__, ValidationError):
                raise parameter_error(error.__cause__, []) from error
            say(f"pellucid: {str(error).splitlines()[0]} See --help.")
            return USAGE
        return result if isinstance(result, int) else OK

    return exit_code_of(command)
