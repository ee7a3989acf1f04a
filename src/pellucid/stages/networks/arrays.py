"""The verbs of networks for Python: train one by a recipe, restore an array with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.geometry import Grid, Triple
from pellucid.core.views import View, proposed_world
from pellucid.errors import InputError, ParameterError
from pellucid.networks.polish import Polished
from pellucid.networks.team import is_first
from pellucid.networks.views import Views
from pellucid.stages.networks import training
from pellucid.stages.networks.loading import check_card, load_network
from pellucid.stages.networks.optics import check_spacing, voxels_of
from pellucid.stages.networks.parameters import TrainParameters
from pellucid.stages.networks.placing import check_count, check_turned, placed
from pellucid.stages.networks.restoring import answered
from pellucid.stages.networks.view_restoring import views_answered
from pellucid.stages.screening import screen
from pellucid.stages.work.resources import resolve_device

Array = npt.NDArray[Any] | torch.Tensor


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
    """The answer of a network, and what speaks for it.

    Parameters
    ----------
    image : (z, y, x) or (y, x) float32 counts above background, of the kind of the recording
    believable : probability that a voxel's region is right, of the shape of `image`; None where it was
        not asked for
    stats : iterations of the polish, and what was measured on the way
    grid : its voxels where it is of several views; in the frame of the first where they were registered
    """

    image: Any
    believable: Any = None
    stats: dict[str, Any] = field(default_factory=dict)
    grid: Grid | None = None


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
    volume: Array | Sequence[View | Array],
    model: str | Path,
    *,
    voxel_um: Triple | None = None,
    polish: int | None = 0,
    fall_back: bool = False,
    verdict: bool = False,
    device: str | None = None,
) -> NetworkRestored:
    """A recording restored by a trained network; polished by the physics, cured and judged where asked.

    Parameters
    ----------
    volume : (z, y, x) or (y, x) counts as recorded, NumPy array or torch tensor; for a model of several
        views a list of `View`s, whose PSFs are then the model's, or of arrays, which are registered here
    model : folder that `train` wrote
    voxel_um : (z, y, x) micrometres, compared with the model's; None takes them to be those
    polish : this many physical iterations, 0 to 3; None: up to 3, while held-out photons agree
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
    if polish is not None and not 0 <= polish <= 3:
        raise ParameterError(f"polish: expected 0 to 3 iterations, got {polish!r}.")
    place = resolve_device(device or "cpu")
    network, optics, card = load_network(Path(model))
    name, restorer = Path(model).name, Polished(network, polish)
    check_card(card, name, fall_back=fall_back, verdict=verdict)
    if isinstance(optics, Views):
        if not isinstance(volume, (list, tuple)):
            raise InputError(f"{name}: a model for {len(optics.psfs)} views, got one. Give a list of them.")
        views = _views(volume, optics, name, voxel_um, place)
        asked = {"fall_back": fall_back, "verdict": verdict, "device": place}
        return _of_views(views, optics, restorer, card, asked)
    if isinstance(volume, (list, tuple)):
        raise InputError(f"{name}: a model for one view, got a list of {len(volume)}. Give one array.")
    is_tensor = isinstance(volume, torch.Tensor)
    counts = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)
    if counts.ndim not in (2, 3) or counts.size == 0 or counts.dtype.kind not in "uif":
        raise InputError(
            f"restore: expected counts (z, y, x) or (y, x), got {counts.dtype} {counts.shape}. Give one "
            "channel and one time point."
        )
    screened = screen(counts, "restore")
    check_spacing(voxel_um, card["voxel_um"], "restore")
    if screened.is_empty:
        dark, certain = torch.zeros(counts.shape), torch.ones(counts.shape) if verdict else None
        return NetworkRestored(
            _as(dark, counts.shape, is_tensor),
            None if certain is None else _as(certain, counts.shape, is_tensor),
        )
    image, judged, stats = answered(
        counts, restorer, optics, card, fall_back=fall_back, verdict=verdict, device=place
    )
    believable = None if judged is None else _as(judged, counts.shape, is_tensor)
    return NetworkRestored(_as(image, counts.shape, is_tensor), believable, stats)


def _views(
    volumes: Sequence[View | Array], optics: Views, model: str, voxel_um: Triple | None, device: str
) -> list[View]:
    """The views placed: as they say, or registered."""
    check_count(len(volumes), optics, model)
    known = [one for one in volumes if isinstance(one, View)]
    if known and len(known) < len(volumes):
        raise InputError("restore: expected Views or arrays, got some of each. Make Views of all.")
    for number, one in enumerate(volumes):
        image = one.image if isinstance(one, View) else one
        if image.ndim != 3:
            raise InputError(
                f"restore: expected (z, y, x) views, got shape {tuple(image.shape)} for view {number}."
            )
        screen(np.asarray(image), f"view {number}")
        spacing = one.grid.spacing_um if isinstance(one, View) else voxel_um
        check_spacing(spacing, voxels_of(optics.psfs[number]), f"view {number}")
    if not known:
        return placed(volumes, optics, device)
    transforms = [view.world_to_view for view in known]
    check_turned(optics, transforms, [view.grid.frame for view in known])
    return [replace(view, psf=psf) for view, psf in zip(known, optics.psfs, strict=True)]


def _of_views(
    views: Sequence[View], optics: Views, restorer: Polished, card: dict[str, Any], asked: dict[str, Any]
) -> NetworkRestored:
    world = proposed_world(views, cover="overlap", spacing_um=optics.spacing_um)
    image, judged, stats = views_answered(views, world, restorer, card, **asked)
    is_tensor = isinstance(views[0].image, torch.Tensor)
    believable = None if judged is None else _as(judged, world.shape, is_tensor)
    return NetworkRestored(_as(image, world.shape, is_tensor), believable, stats, world)


def _as(values: torch.Tensor, shape: tuple[int, ...], is_tensor: bool) -> Any:
    shaped = values.reshape(shape).float()
    return shaped if is_tensor else shaped.numpy()
