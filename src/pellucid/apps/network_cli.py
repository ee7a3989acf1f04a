"""The commands of networks: `pellucid train` and `pellucid restore`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pellucid.apps.options import as_yaml, asked_of, options_of, read_config
from pellucid.apps.terminal import OK, print_json, say
from pellucid.stages.network_parameters import RestoreParameters, TrainParameters

RestoreOptions: Any = options_of(
    RestoreParameters, without=frozenset({"input", "model", "output"})
)
Options = Annotated[RestoreOptions, Parameter(name="*")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def train(recipe: Path, *, json: bool = False) -> int:
    """Train a network for a microscope; an interrupted training goes on where it was.

    Parameters
    ----------
    recipe
        A YAML file: output, psf, voxel_um, structures, steps ...
    json
        Print JSON for machines, and only that.
    """
    parameters = TrainParameters.checked(read_config(recipe))
    from pellucid.stages.training import train

    def look(trainer: Any) -> None:
        last = trainer.curve[-1]
        if not json:
            say(f"step {last['step']}: held-out error {last['held_out']:.4f}")

    model = train(parameters, look)
    print_json({"model": model}) if json else say(f"wrote {model}")
    return OK


def restore(
    input: Path | None = None,
    *,
    model: Path | None = None,
    output: Output = None,
    options: Options = RestoreOptions(),
    config: Path | None = None,
    print_config: bool = False,
    json: bool = False,
) -> int:
    """Restore a recording by a trained model, and say what of it to believe.

    Parameters
    ----------
    input
        TIFF, OME-TIFF, OME-Zarr or .npy.
    model
        Folder that `pellucid train` wrote.
    output
        .ome.zarr, .ome.tif or .tif.
    config
        YAML file of these options; the environment (PELLUCID_RESTORE_POLISH=...) ranks above it.
    print_config
        Show all options as YAML and start nothing.
    json
        Print JSON for machines, and only that.
    """
    named = {"input": input, "model": model, "output": output}
    parameters = asked_of(RestoreParameters, "restore", config, options, named)
    if print_config:
        print(as_yaml(parameters), end="")
        return OK
    from pellucid.stages.network_restoring import restore

    stats = restore(parameters)
    if json:
        print_json(stats)
        return OK
    say(f"wrote {parameters.output} ({stats['iterations']} physical iterations)")
    if "doubtful_regions" in stats:
        say(f"{stats['doubtful_regions']} regions are not to be believed")
    return OK
