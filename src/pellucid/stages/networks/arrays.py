"""The verbs of networks for Python: train one by a recipe, restore an array with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.geometry import Triple
from pellucid.errors import InputError, ParameterError
from pellucid.networks.polish import Polished
from pellucid.networks.team import is_first
from pellucid.stages.networks import training
from pellucid.stages.networks.parameters import TrainParameters
from pellucid.stages.networks.restoring import answered, check_card, load_network
from pellucid.stages.networks.training import check_spacing
from pellucid.stages.screening import screen
from pellucid.stages.work.resources import resolve_device


@dataclass(frozen=True)
class Trained:
    """A network that was trained.

    Parameters
    ----------
    model : its folder, which `restore` takes
    card : what it was trained for, how well it does on held-out structures, its loss over the steps;
        empty in the processes that helped the first one, which writes the model
    """

    model: Path
    card: dict[str, Any]


@dataclass(frozen=True)
class NetworkRestored:
    """The answer of a network, polished by the physics, and what speaks for it.

    Parameters
    ----------
    image : (z, y, x) or (y, x) float32 counts above background, of the kind of the recording
    believable : probability that a voxel's region is right, of the shape of `image`; None where it was
        not asked for
    stats : iterations of the polish, and what was measured on the way
    """

    image: Any
    believable: Any = None
    stats: dict[str, Any] = field(default_factory=dict)


def train(
    recipe: Mapping[str, Any], *, on_look: Callable[[int, float], None] = lambda step, error: None
) -> Trained:
    """A network for a microscope, trained as a recipe says; an interrupted training goes on.

    Parameters
    ----------
    recipe : what the file of `pellucid train` holds: at least `output`, a folder, and `psf`, a file
    on_look : told the step and the error on held-out structures, at every look

    Raises
    ------
    ParameterError : a word of the recipe that does not exist, or has no such value
    InputError : a PSF or recordings that cannot be used
    OutputError : a model that exists

    Examples
    --------
    >>> trained = train({"output": "my-microscope", "psf": "psf.tif", "steps": 1000})  # doctest: +SKIP
    >>> sharp = pellucid.restore(stack, trained.model).image                          # doctest: +SKIP
    """
    parameters = TrainParameters.checked(recipe)

    def look(trainer: Any) -> None:
        last = trainer.curve[-1]
        on_look(int(last["step"]), float(last["held_out"]))

    model = training.train(parameters, look)
    return Trained(model, load_network(model)[2] if is_first() else {})


def restore(
    volume: npt.NDArray[Any] | torch.Tensor,
    model: str | Path,
    *,
    voxel_um: Triple | None = None,
    polish: int | None = None,
    fall_back: bool = False,
    verdict: bool = False,
    device: str | None = None,
) -> NetworkRestored:
    """A recording restored by a trained network, polished by the physics, and judged where asked.

    Parameters
    ----------
    volume : (z, y, x) or (y, x) counts as recorded, NumPy array or torch tensor
    model : folder that `train` wrote
    voxel_um : (z, y, x) micrometres, compared with the model's; None takes them to be those
    polish : exactly this many physical iterations, 0 to 3; None: while held-out photons agree
    fall_back : keep only what the evidence supports beside the classical solution
    verdict : return the probability that the network's own answer is right, region by region
    device : "cpu", "cuda", "cuda:1"; None: the CPU

    Raises
    ------
    InputError : a model that cannot be read or is for other voxels, NaN, a wrong number of dimensions
    ParameterError : an unknown device, or iterations out of range

    Examples
    --------
    >>> answer = restore(stack, "my-microscope", verdict=True)                     # doctest: +SKIP
    >>> doubtful = answer.believable < 0.5                                         # doctest: +SKIP
    """
    is_tensor = isinstance(volume, torch.Tensor)
    counts = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)
    if counts.ndim not in (2, 3) or counts.size == 0 or counts.dtype.kind not in "uif":
        raise InputError(
            f"restore: expected counts (z, y, x) or (y, x), got {counts.dtype} {counts.shape}. Give one "
            "channel and one time point."
        )
    if polish is not None and not 0 <= polish <= 3:
        raise ParameterError(f"polish: expected 0 to 3 iterations, got {polish!r}.")
    screened = screen(counts, "restore")
    place = resolve_device(device or "cpu")
    network, psf, card = load_network(Path(model))
    check_card(card, Path(model).name, fall_back=fall_back, verdict=verdict)
    check_spacing(voxel_um, card["voxel_um"], "restore")
    if screened.is_empty:
        dark, certain = torch.zeros(counts.shape), torch.ones(counts.shape) if verdict else None
        return NetworkRestored(
            _as(dark, counts.shape, is_tensor),
            None if certain is None else _as(certain, counts.shape, is_tensor),
        )
    image, judged, stats = answered(
        counts, Polished(network, polish), psf, card, fall_back=fall_back, verdict=verdict, device=place
    )
    believable = None if judged is None else _as(judged, counts.shape, is_tensor)
    return NetworkRestored(_as(image, counts.shape, is_tensor), believable, stats)


def _as(values: torch.Tensor, shape: tuple[int, ...], is_tensor: bool) -> Any:
    shaped = values.reshape(shape).float()
    return shaped if is_tensor else shaped.numpy()
