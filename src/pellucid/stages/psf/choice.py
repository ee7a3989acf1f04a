"""Which PSF belongs to which channel: from files or from the objective's numbers, ready to use."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pellucid.core.back_projectors import BackProjector, Figures, figures
from pellucid.core.deconvolution import usable_psf
from pellucid.core.operators import Blur
from pellucid.core.optics import Layers, Optics
from pellucid.core.psf import Psf, Triple, check_spacing_um
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_preparation import prepare
from pellucid.core.psf_theory import (
    LARGEST_HALF,
    WIDEFIELD_WIDTHS,
    Shape,
    theoretical_psf,
)
from pellucid.data.psf_field_file import is_field_file, read_psf_field
from pellucid.data.recording import Recording, open_recording
from pellucid.errors import InputError, ParameterError, PellucidError
from pellucid.stages.parameters import DeconvolveParameters, OpticsParameters

P = TypeVar("P", Psf, PsfField)


@dataclass(frozen=True)
class PsfSource:
    """One channel of a PSF file."""

    recording: Recording
    channel: int


def channel_psfs(
    parameters: DeconvolveParameters, recording: Recording, channels: Sequence[int]
) -> tuple[Psf, ...]:
    """A prepared PSF for each of `channels`, on the voxels of `recording`.

    Raises
    ------
    ParameterError : neither PSF nor optics, or both; a number of them that fits no channels
    InputError : a PSF file that is no PSF
    """
    spacing = recording.require_voxel_um()
    flat = recording.shape[2] == 1
    if parameters.psf:
        if optics := parameters.stated():
            raise ParameterError(
                f"psf: given as a file and by {', '.join(optics)}. Choose one of the two."
            )
        sources = psf_sources(parameters, channels, recording.shape[1])
        prepared = {
            source: _from_file(source, recording, flat) for source in set(sources)
        }
        return tuple(_fitted(prepared[source], recording) for source in sources)
    planes = recording.shape[2]
    count = len(channels)
    waves = one_each(parameters.wavelength_nm, count, "wavelength_nm")
    excitations = one_each(parameters.excitation_nm, count, "excitation_nm")
    return tuple(
        _fitted(computed_psf(parameters, spacing, wave, excitation, planes=planes), recording)
        for wave, excitation in zip(waves, excitations, strict=True)
    )


def psfs_or_fields(
    parameters: DeconvolveParameters, recording: Recording, channels: Sequence[int]
) -> tuple[Psf | PsfField, ...]:
    """What `channel_psfs` says, or the PSF fields where the files are those."""
    if any(is_field_file(path) for path in parameters.psf):
        return _fields(parameters.psf, recording, len(channels))
    return channel_psfs(parameters, recording, channels)


def _fields(paths: Sequence[Path], recording: Recording, count: int) -> tuple[PsfField, ...]:
    """The PSF fields of `count` channels: one file for all, or one for each, on the image's voxels."""
    if len(paths) not in (1, count):
        raise ParameterError(
            f"psf: {len(paths)} files for {count} channels. Give one for all, or one for each."
        )
    spacing, size = recording.require_voxel_um(), recording.shape[2:]
    flat = size[0] == 1
    fields = []
    for path in paths:
        field = read_psf_field(path)
        pairs = list(zip(field.spacing_um, spacing, strict=True))[1 if flat else 0 :]
        if any(abs(own / image - 1) > 0.01 for own, image in pairs):
            raise InputError(
                f"{path.name}: a PSF field on voxels of {_um(field.spacing_um)} um for an image of "
                f"{_um(spacing)} um. Make the field on the image's voxels."
            )
        field = field.noted(f"from {path.name}")
        fields.append(_named(path, partial(usable_psf, field, size)))
    return tuple(fields * (count if len(fields) == 1 else 1))


def computed_psf(
    optics: OpticsParameters,
    spacing_um: Triple,
    wavelength_nm: float | None,
    excitation_nm: float | None,
    *,
    planes: int | None = None,
    layers: Layers | None = None,
) -> Psf:
    """The theoretical PSF of `optics`, for images of so many `planes`; None: for none in particular."""
    missing = [
        flag
        for flag, value in (
            ("--modality", optics.modality),
            ("--na", optics.na),
            ("--wavelength-nm", wavelength_nm),
            ("--refractive-index", optics.refractive_index),
        )
        if value is None
    ]
    if missing:
        raise ParameterError(
            f"psf: expected a PSF file, or the objective's numbers, of which {', '.join(missing)} "
            "is missing. For example --psf bead.tif, or --modality widefield --na 1.1 "
            "--wavelength-nm 525 --refractive-index 1.33."
        )
    assert optics.modality
    assert optics.na and wavelength_nm and optics.refractive_index  # noqa: PT018
    numbers = Optics(optics.na, wavelength_nm, optics.refractive_index)
    return theoretical_psf(
        optics.modality,
        spacing_um,
        na=optics.na,
        wavelength_nm=wavelength_nm,
        refractive_index=optics.refractive_index,
        shape=optics.psf_shape or _shape(optics.modality, numbers, spacing_um[0], planes),
        excitation_nm=excitation_nm,
        pinhole_airy_units=optics.pinhole_airy_units,
        sheet_fwhm_um=optics.sheet_fwhm_um,
        illumination_na=optics.illumination_na,
        layers=layers,
    )


def _shape(modality: str, optics: Optics, step_um: float, planes: int | None) -> Shape | None:
    """Sizes of a computed PSF, None where the theory may choose.

    The cone of a widefield PSF has no end, so every plane of a stack lights every other: the PSF is
    as deep as the stack. On a simulated nucleus in 32 planes (NA 1.45) the theory's 17 planes leave
    30 % of the light in the outer planes and an NCC of .911; 33 planes 5 % and .963; 63 planes no
    more, in twice the time.
    """
    if planes == 1:
        return (1, None, None)
    if modality != "widefield" or planes is None:
        return None
    least = 2 * math.ceil(WIDEFIELD_WIDTHS * optics.axial_width_um / step_um) + 1
    return (min(max(planes | 1, least), 2 * LARGEST_HALF + 1), None, None)


def psf_sources(
    parameters: DeconvolveParameters, channels: Sequence[int], image_channels: int
) -> list[PsfSource]:
    """The file and channel of the PSF of each channel of the image."""
    recordings = [open_recording(path, voxel_um=parameters.psf_voxel_um) for path in parameters.psf]
    for opened in recordings:
        if opened.shape[0] > 1:
            raise InputError(
                f"{opened.path.name}: a PSF of {opened.shape[0]} time points. Give one; if these "
                "are planes, say so when saving it."
            )
    if len(recordings) == 1:
        only = recordings[0]
        if only.shape[1] == 1:
            return [PsfSource(only, 0)] * len(channels)
        if only.shape[1] == image_channels:
            return [PsfSource(only, c) for c in channels]
        raise InputError(
            f"{only.path.name}: a PSF of {only.shape[1]} channels for an image of "
            f"{image_channels}. Give one channel, or as many as the image has."
        )
    if len(recordings) != len(channels):
        raise ParameterError(
            f"psf: {len(recordings)} files for {len(channels)} channels. "
            "Give one for all, or one for each."
        )
    return [PsfSource(opened, 0) for opened in recordings]


def one_each(values: Sequence[float], count: int, name: str) -> list[float | None]:
    """`values` for `count` channels: none, one for all, or one for each."""
    if len(values) == count:
        return list(values)
    if len(values) <= 1:
        return [values[0] if values else None] * count
    raise ParameterError(
        f"{name}: {len(values)} values for {count} channels. Give one for all, or one for each."
    )


def prepared_psf(path: Path, voxel_um: Triple | None = None) -> Psf:
    """The PSF in a file, cleaned and centred, on its own voxels."""
    recording = open_recording(path, voxel_um=voxel_um)
    if recording.shape[:2] != (1, 1):
        raise InputError(
            f"{path.name}: expected one channel and one time point, got (t, c, z, y, x) = "
            f"{recording.shape}. Save the channel by itself."
        )
    return _named(path, lambda: prepare(recording.read(), recording.voxel_um))


def _from_file(source: PsfSource, image: Recording, flat: bool) -> Psf:
    recording, image_um = source.recording, image.require_voxel_um()
    own = recording.voxel_um
    notes = [f"from {recording.path.name}"]
    sizes = (
        f"{image.path.name} has voxels of {_um(image_um)} um (z, y, x) and {recording.path.name} of "
        + ("unknown size" if own is None else f"{_um(own)} um")
    )
    remedy = "State what is right: --voxel-um z,y,x for the image, --psf-voxel-um z,y,x for the PSF."
    if own is None:
        notes.append("the file states no voxel size: taken as the image's")
        own = image_um
    elif flat or recording.shape[2] == 1:
        # The z of a single plane means nothing, so it is no reason to resample.
        image_um = (own[0], *image_um[1:]) if flat else image_um
        own = own if flat else (image_um[0], *own[1:])
    try:
        for spacing_um in (own, image_um):
            check_spacing_um(spacing_um)
    except PellucidError as error:
        bounds = str(error).partition(", got")[0].removeprefix("spacing_um: ")
        raise InputError(f"{sizes}: {bounds}. {remedy}") from error
    values = recording.read(c=source.channel)
    psf = _named(recording.path, lambda: prepare(values, own, image_um))
    if any(abs(a / b - 1) > 0.01 for a, b in zip(own, image_um, strict=True)):
        if any(n == 1 < before for n, before in zip(psf.shape[1:], values.shape[-2:], strict=True)):
            raise InputError(f"{sizes}: the whole PSF lies within one voxel of the image. {remedy}")
        notes.append(f"voxels of {_um(own)} um in the file, {_um(image_um)} um in the image")
    return replace(psf, notes=(*notes, *psf.notes))


def _fitted(psf: Psf, recording: Recording) -> Psf:
    """The PSF with as many dimensions as the image, and a note on what does not fit."""
    size = recording.shape[2:]
    wider = [axis for axis, n, p in zip("zyx", size, psf.shape, strict=True) if p > 2 * n > 2]
    if wider:
        psf = psf.noted(f"wider than the image in {', '.join(wider)}, as light from outside the image is")
    return _named(recording.path, lambda: usable_psf(psf, size))


def _named(path: Path, make: Callable[[], P]) -> P:
    """What `make` makes; its errors begin with the name of the file."""
    try:
        return make()
    except PellucidError as error:
        raise type(error)(f"{path.name}: {error}") from error


def _um(spacing: Sequence[float]) -> str:
    return "(" + ", ".join(f"{s:.4g}" for s in np.asarray(spacing, dtype=float)) + ")"


def back_projector_figures(psf: Psf, projectors: Mapping[str, BackProjector]) -> dict[str, Figures]:
    """What each of `projectors` does to `psf`, measured on a grid that holds the PSF twice."""
    blur = Blur(torch.tensor(psf.values, dtype=torch.float32), psf.shape)
    return {name: figures(projector, blur) for name, projector in projectors.items()}
