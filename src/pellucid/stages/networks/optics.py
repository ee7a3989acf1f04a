"""The microscope that a network is for: read from the files of a recipe, kept in a model, read again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.core.deconvolution import usable_psf
from pellucid.core.geometry import Affine, Triple, as_triple
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.slab_sampling import plane_distances_um
from pellucid.data.psf_field_file import is_field_file, read_psf_field
from pellucid.data.recording import open_recording
from pellucid.data.transform_file import is_transforms, read_affine, read_transforms, read_views
from pellucid.errors import InputError, ParameterError
from pellucid.networks.views import Optics, Views
from pellucid.stages.networks.parameters import TrainParameters
from pellucid.stages.psf.choice import prepared_psf
from pellucid.stages.registration.pair_registration import check_stated, turns_of


def read_optics(parameters: TrainParameters) -> Optics:
    """The PSF, the PSF field, or the views that a recipe names.

    Raises
    ------
    InputError : files that cannot be used, or are not of the recipe's voxels
    ParameterError : numbers of PSFs, angles and transforms that do not fit together
    """
    several = len(parameters.psf) > 1 or parameters.angles or parameters.transforms is not None
    if several:
        return _views(parameters)
    return _psf(parameters.psf[0], parameters)


def voxels_of(optics: Optics) -> Triple:
    """The voxels z, y, x in micrometres of what is restored."""
    assert optics.spacing_um is not None
    return optics.spacing_um


def _views(parameters: TrainParameters) -> Views:
    if parameters.shape[0] == 1:
        raise ParameterError("shape: several views need volumes, got one plane. Give shape: z,y,x.")
    check_stated(parameters.angles, "transforms: FILE", transforms=parameters.transforms is not None)
    count = len(parameters.angles)
    if parameters.transforms is not None:
        count = _count_in(parameters.transforms)
    paths = parameters.psf * count if len(parameters.psf) == 1 else parameters.psf
    if len(paths) != count or count < 2:
        raise ParameterError(
            f"psf: {len(parameters.psf)} files for {count} views. Give one that every view has in its "
            "own frame, or one for each of two views or more."
        )
    psfs = [_psf(path, parameters) for path in paths]
    spacings = [voxels_of(psf) for psf in psfs]
    known = parameters.transforms
    turns = turns_of(parameters.angles, parameters.axis) if known is None else _placed(known, spacings)
    finest = min(
        float(plane_distances_um(np.asarray(um), place).min())
        for um, place in zip(spacings, turns, strict=True)
    )
    voxels = (finest, finest, finest)
    if known is None:
        return Views.turned(psfs, turns, voxels)
    return Views(tuple(psfs), tuple(turns), voxels)


def _psf(path: Path, parameters: TrainParameters) -> Psf | PsfField:
    psf: Psf | PsfField
    if is_field_file(path):
        psf = read_psf_field(path)
        _agreed(psf.spacing_um, parameters.voxel_um, path.name)
    else:
        own = open_recording(path).voxel_um
        psf = prepared_psf(path, _agreed(own, parameters.voxel_um, path.name))
    return usable_psf(psf, parameters.shape)


def _count_in(path: Path) -> int:
    return len(read_views(path)) if _is_ours(path) else 2


def _is_ours(path: Path) -> bool:
    if path.suffix.lower() == ".xml":
        raise InputError(
            f"{path.name}: a recipe takes transforms of `pellucid register` or of ITK. Give these, or the "
            "angles of the views."
        )
    return path.suffix.lower() == ".json" and is_transforms(path)


def _placed(path: Path, spacings: Sequence[Triple]) -> list[Affine]:
    """The transforms of a file, from the first view to each; of several time points the first believed."""
    if not _is_ours(path):
        return [Affine.identity(), read_affine(path, spacings)]
    for (name, grid), own in zip(read_views(path), spacings, strict=True):
        if differ(grid.spacing_um, own):
            raise InputError(
                f"{path.name}: {name} has voxels of {grid.spacing_um} um, and its PSF of {own} um. Give a "
                "PSF on the voxels of the view."
            )
    found = read_transforms(path)
    for t in found.times:
        if all(found.at(t, v).believed for v in range(found.views)):
            return [found.world_to_view(t, v) for v in range(found.views)]
    raise InputError(f"{path.name}: at no time point are all views registered. Register again.")


def optics_tensors(optics: Optics) -> dict[str, Tensor]:
    """What a network is for, as its model keeps it."""
    if isinstance(optics, Views):
        each = (optics_tensors(psf).items() for psf in optics.psfs)
        return {f"view{v}.{name}": value for v, kept in enumerate(each) for name, value in kept}
    if isinstance(optics, PsfField):
        return {
            "psf_field": torch.from_numpy(optics.psfs.astype(np.float32)),
            "positions_um": torch.from_numpy(optics.positions_um),
        }
    return {"psf": torch.from_numpy(optics.values.astype(np.float32))}


def optics_card(optics: Optics) -> dict[str, Any]:
    """What a model's card says of its microscope."""
    said: dict[str, Any] = {"voxel_um": voxels_of(optics)}
    if isinstance(optics, Views):
        places = [
            {"voxel_um": voxels_of(psf), "world_to_view": transform.to_dict()}
            for psf, transform in zip(optics.psfs, optics.transforms, strict=True)
        ]
        blur = "varying blur" if optics.varies else "blur"
        return {**said, "operator": f"{blur} of {len(places)} views", "views": places}
    return {**said, "operator": "varying blur" if isinstance(optics, PsfField) else "blur"}


def optics_of(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Optics:
    """What a network is for, of its model's tensors and card; KeyError and the like where they lack it."""
    spacing = as_triple(card["voxel_um"], "voxel_um")
    if "views" in card:
        psfs = (_psf_of(tensors, place, f"view{v}.") for v, place in enumerate(card["views"]))
        transforms = (Affine.from_dict(place["world_to_view"]) for place in card["views"])
        return Views(tuple(psfs), tuple(transforms), spacing)
    return _psf_of(tensors, card)


def _psf_of(
    tensors: Mapping[str, Tensor], card: Mapping[str, Any], prefix: str = ""
) -> Psf | PsfField:
    spacing = as_triple(card["voxel_um"], "voxel_um")
    if prefix + "psf_field" in tensors:
        values = tensors[prefix + "psf_field"].numpy().astype(np.float64)
        return PsfField(values, tensors[prefix + "positions_um"].numpy(), spacing)
    return Psf(tensors[prefix + "psf"].numpy().astype(np.float64), spacing)


def check_spacing(own: Any, wanted: tuple[float, float, float], name: str) -> None:
    """Refuse voxels of another size; a file that is silent is taken as it is."""
    if own is not None and differ(own, wanted):
        raise InputError(
            f"{name}: voxels of {tuple(own)} um, the model is for {tuple(wanted)} um. Resample, or "
            "train a model for these voxels."
        )


def differ(own: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether two voxel sizes are more than 2 % apart along any axis."""
    return any(abs(a / b - 1) > 0.02 for a, b in zip(own, wanted, strict=True))


def _agreed(own: Triple | None, stated: Triple | None, name: str) -> Triple:
    """The voxels of a PSF, of what its file and the recipe say."""
    spacing = stated or own
    if spacing is None:
        raise ParameterError("voxel_um: neither the recipe nor the PSF states one. Give it.")
    if own is not None and differ(own, spacing):
        raise InputError(
            f"{name}: voxels of {own} um, and the recipe's are {spacing} um. Give a "
            "PSF on the voxels of the images."
        )
    return spacing
