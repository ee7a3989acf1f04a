"""Deconvolve one volume: from camera counts to a Problem, to a Restorer, and back to counts."""

import math
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import METHODS, BackProjector
from pellucid.core.coverage import Fill, FillChoice, fill_facts, recorded
from pellucid.core.fourier import Shape
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.operators import Blur, Extended
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.psf import Psf, crop_to_support, focal_plane, fwhm_px
from pellucid.core.psf_field import PsfExpansion, PsfField
from pellucid.core.psf_preparation import prepare
from pellucid.core.residual import reblur_residual
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.sampling import Array as Sliced
from pellucid.core.sampling import blocks_of
from pellucid.core.varying_blur import VaryingBlur
from pellucid.errors import InputError, ParameterError

Array = NDArray[Any] | Tensor

SUPPORT = 0.995
"""Share of the PSF's light that its box must hold: what lies beyond is not worth its FFTs."""

FIELD_ACCURACY = 0.01
"""Share of its root sum of squares to which the low rank meets every PSF of a field."""

ROOM_FWHM = 2.5
"""Radius of a PSF's box in its widths, at least: tighter ones let unmatched kernels wrap round the
FFT grid, 3e-4 of the dynamic range at the volume's ends against 6e-5 (`benchmarks/tiling.py`)."""

SUPPOSED_PHOTONS = 1000.0
"""Photons that the brightest voxels are taken to hold in an image whose noise cannot be measured."""


def deconvolve(
    volume: Array,
    psf: Psf | PsfField | Array,
    *,
    method: str = "wiener-butterworth",
    iterations: int | None = None,
    background: float | None = None,
    noise: Noise | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    fill: FillChoice = "auto",
) -> Restored:
    """Return the object behind `volume`, in counts above background, and how it was found.

    Parameters
    ----------
    volume : (z, y, x) or (y, x) counts of any real dtype, finite
    psf : a `Psf`, or an array (z, y, x) or (y, x), centred anywhere, with or without camera offset,
        on the voxels of the volume; a volume of one plane takes the PSF's focal plane; a `PsfField`
        where the blur varies, whose positions count from the volume's first voxel
    method : back projector, one of `pellucid.core.back_projectors.METHODS`
    iterations : None for the guarded, automatically stopped restorer (`Accelerated`); a number for
        exactly that many plain Richardson-Lucy iterations with the back projector of `method`
    background : counts where there is no object, camera offset included; None: measured
    noise : the camera; None: measured from the volume
    device : "cpu", "cuda", "cuda:1"; None: the volume's own, the CPU for NumPy
    seed : of the photon thinning
    fill : what stands in voxels that were never recorded: a value, "none", or "auto" to find it. They
        have no weight, as what lies outside the volume has none, and are 0 in the result

    Returns
    -------
    Restored
        image : float32 tensor of the volume's shape on `device`, sum of counts kept
        stats : fill, noise, background, PSF notes, what the restorer measured, and from the guarded one
            "residual": whether the estimate, blurred again, is the recording but for noise
        models : where the restorer is the guarded one, the counts that the recording would be
            without noise if the estimate were the object

    Raises
    ------
    InputError : volume or PSF that is not finite, not 2D or 3D, or constant; a background above all
    ParameterError : unknown method, iterations below 1

    Examples
    --------
    >>> import numpy as np
    >>> point = np.zeros((9, 9, 9)); point[4, 4, 4] = 1000.0
    >>> psf = np.ones((3, 3, 3)); psf[1, 1, 1] = 5.0
    >>> sharp = deconvolve(point, psf, method="matched", iterations=5, background=0)
    >>> sharp.image.shape
    torch.Size([9, 9, 9])
    """
    image = as_volume(volume, device)
    if background is not None and not math.isfinite(background):
        raise ParameterError(f"background must be a number of counts, got {background}.")
    projector = back_projector(method)
    if iterations is not None and iterations < 1:
        raise ParameterError(
            f"iterations must be 1 or more, or None for automatic, got {iterations}."
        )
    check_background(background, float(image.min()), float(image.max()))
    used = usable_psf(psf, image_shape(image))
    counts = image.cpu().numpy()
    mask, found = recorded(counts, fill)
    seen = None if mask is None else torch.from_numpy(mask).to(image.device)
    camera = noise or estimate_noise(counts, fill=found or "none")
    level = float(estimate_background(counts, fill=found or "none")) if background is None else background
    stats = fill_facts(found, mask) | {
        "background": level,
        "noise": camera.as_dict(),
        "psf_notes": list(used.notes),
        "method": method,
    }
    if float(image.max()) <= max(float(image.min()), level):
        dark = torch.zeros(tuple(np.shape(volume)), device=image.device)
        return Restored(dark, {**stats, "iterations": 0, "stopped_by": "no light above background"})
    problem, gain = problem_of(image, used, level, camera, seen)
    restored = restorer(projector, iterations, seed)(problem)
    light = problem.observations[0].keep_recorded(restored.image.mul_(gain))
    unlit = problem.observations[0].background
    models = tuple(model.sub_(unlit).mul_(gain).add_(level) for model in restored.models)
    if models:
        stats["residual"] = _verdict(counts, models[0], camera, mask)
    models = tuple(model.reshape(tuple(np.shape(volume))) for model in models)
    sharp = light.reshape(tuple(np.shape(volume)))
    return Restored(sharp, {**stats, **restored.stats}, models)


def _verdict(
    counts: NDArray[Any], model: Tensor, camera: Noise, mask: NDArray[np.bool_] | None
) -> str:
    """Say in words whether the estimate, blurred again, is the recording but for noise."""
    if not camera.reliable:
        return f"not judged, as the noise is not known ({camera.reason})"
    return reblur_residual(counts, model.cpu().numpy(), camera, recorded=mask).verdict


def back_projector(method: str) -> BackProjector:
    """Return the back projector of that name."""
    if method not in METHODS:
        raise ParameterError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    return METHODS[method]


def restorer(
    projector: BackProjector, iterations: int | None, seed: int = 0
) -> Accelerated | RichardsonLucy:
    """Return the guarded restorer, or the plain one for a given number of iterations."""
    if iterations is None:
        return Accelerated(projector, seed=seed)
    return RichardsonLucy(iterations, projector)


def as_volume(volume: Array, device: str | torch.device | None = None) -> Tensor:
    """Return a finite (z, y, x) float32 tensor of `volume` on `device`."""
    if isinstance(volume, Tensor):
        tensor = volume.detach()
        if tensor.is_complex():
            raise InputError(f"Expected real numbers in the volume, got dtype {tensor.dtype}.")
    else:
        array = np.asarray(volume)
        if array.dtype.kind not in "buif":
            raise InputError(f"Expected real numbers in the volume, got dtype {array.dtype}.")
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim not in (2, 3):
        raise InputError(
            f"Expected a volume (z, y, x) or an image (y, x), got shape {tuple(tensor.shape)}. "
            "Pass one channel and one time point at a time."
        )
    if tensor.numel() == 0:
        raise InputError(f"The volume has no voxels: its shape is {tuple(tensor.shape)}.")
    tensor = tensor.to(device=device, dtype=torch.float32)
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise InputError(
            f"The volume has {bad} voxels that are NaN or infinite. Replace them, for example by the "
            "median of their neighbours, before deconvolving."
        )
    return tensor if tensor.ndim == 3 else tensor[None]


def image_shape(image: Tensor) -> Shape:
    """Return the shape of a (z, y, x) tensor as three numbers."""
    z, y, x = image.shape
    return z, y, x


@overload
def usable_psf(psf: PsfField, shape: Shape) -> PsfField: ...
@overload
def usable_psf(psf: Psf | Array, shape: Shape) -> Psf: ...
@overload
def usable_psf(psf: Psf | PsfField, shape: Shape) -> Psf | PsfField: ...


def usable_psf(psf: Psf | PsfField | Array, shape: Shape) -> Psf | PsfField:
    """Return the PSF as a clean `Psf` fit for images of `shape`: one plane for one, cropped boxes."""
    if isinstance(psf, PsfField):
        return _usable_field(psf, shape)
    if not isinstance(psf, Psf):
        array = psf.detach().cpu().numpy() if isinstance(psf, Tensor) else np.asarray(psf)
        psf = prepare(array)
    if shape[0] == 1 and psf.shape[0] > 1:
        psf = focal_plane(psf).noted("took the focal plane of the PSF for an image of one plane")
    _check_planes(psf, shape)
    return crop_to_support(psf, SUPPORT)


def _usable_field(field: PsfField, shape: Shape) -> PsfField:
    if shape[0] == 1 and field.shape[0] > 1:
        field = field.focal_planes()
    _check_planes(field, shape)
    return field.cropped(SUPPORT)


def _check_planes(psf: Psf | PsfField, shape: Shape) -> None:
    if psf.shape[0] == 1 and shape[0] > 1:
        raise InputError(
            f"Expected a PSF of several planes for a volume of {shape[0]}, got one plane. "
            "Give a 3D PSF, or deconvolve the planes one by one."
        )


Kernel = NDArray[np.float32] | PsfExpansion
"""What blurs a volume wherever in it one looks: a PSF, or as many as a field has."""


def kernel_of(psf: Psf | PsfField) -> Kernel:
    """Return what a PSF or a field blurs with, in a box of at least `ROOM_FWHM` widths on each side."""
    if isinstance(psf, PsfField):
        psfs = np.pad(psf.psfs, [(0, 0), *_room(psf.typical)])
        return replace(psf, psfs=psfs).expanded(FIELD_ACCURACY)
    return roomy(psf)


def kernels_of(psf: Psf | PsfField) -> list[NDArray[np.float32]]:
    """Return the values of a PSF, or of every PSF of a field, in such a box."""
    if isinstance(psf, Psf):
        return [roomy(psf)]
    room = _room(psf.typical)
    return [np.pad(values.astype(np.float32), room) for values in psf.psfs]


def blur_at(
    kernel: Kernel, shape: Shape, origin: Shape = (0, 0, 0), device: str | torch.device | None = None
) -> Extended:
    """Return the blur of an image of `shape` whose first voxel is the volume's voxel `origin`."""
    if not isinstance(kernel, PsfExpansion):
        # on "meta", tensors without memory carry the shapes through the arithmetic
        return Blur(torch.from_numpy(kernel).to(device), shape)
    z, y, x = (n * step for n, step in zip(origin, kernel.spacing_um, strict=True))
    return VaryingBlur(kernel, shape, origin_um=(z, y, x), device=device)


def roomy(psf: Psf) -> NDArray[np.float32]:
    """Return the values of a PSF in a box of at least `ROOM_FWHM` widths on each side, dark beyond."""
    return np.pad(psf.values.astype(np.float32), _room(psf))


def _room(psf: Psf) -> list[tuple[int, int]]:
    """Return the voxels to add on each side of each axis; the centre stays at n // 2."""
    added = []
    for width, n in zip(fwhm_px(psf), psf.shape, strict=True):
        radius = math.ceil(ROOM_FWHM * width) if math.isfinite(width) and n > 1 else 0
        added.append((max(radius - n // 2, 0),) * 2)
    return added


def unknown_gain(image: Tensor, background: float, seen: Tensor | None = None) -> float:
    """Return counts per photon where no noise can be measured: brightest voxels hold 1000 photons.

    In proportion to the signal, so that a result does not depend on the unit of the image.
    """
    every = max(1, image.shape[0] // 16)
    planes = image[::every]
    if seen is not None and bool(seen[::every].any()):
        planes = planes[seen[::every]]
    return _supposed_gain(planes.cpu().numpy(), float(image.max()), background)


def camera_as_used(volume: Sliced, noise: Noise, background: float, fill: Fill | None) -> Noise:
    """Return the camera that turns the counts of a lazily sliced volume into photons: gain above 0."""
    if noise.reliable and noise.gain > 0:
        return Noise(noise.gain, min(noise.offset, background), noise.read_noise)
    blocks = blocks_of(volume, "deconvolve")
    sampled = np.concatenate([b[fill.recorded(b)] if fill else b.ravel() for b in blocks])
    return Noise(_supposed_gain(sampled, float(sampled.max()), background), background, 0.0)


def _supposed_gain(counts: NDArray[Any], brightest: float, background: float) -> float:
    top = max(float(np.quantile(counts, 0.999)), background + 0.1 * (brightest - background))
    return (top - background) / SUPPOSED_PHOTONS if top > background else 1.0


def in_photons(
    image: Tensor, background: float, camera: Noise, seen: Tensor | None = None
) -> tuple[Tensor, float, float]:
    """Return the image in photons, its background in photons, and the counts per photon.

    Read noise enters as photons added to both image and background (Snyder et al. 1993), which keeps
    the Poisson model right in mean and variance.
    """
    if camera.reliable and camera.gain > 0:
        gain, offset = camera.gain, min(camera.offset, background)
        read_photons = (camera.read_noise / gain) ** 2
    else:
        gain, offset, read_photons = unknown_gain(image, background, seen), background, 0.0
    photons = ((image - offset) / gain).add_(read_photons).clamp_min_(0)
    return photons, (background - offset) / gain + read_photons, gain


def blur_of(
    psf: Psf | PsfField, shape: Shape, device: str | torch.device | None = None
) -> Extended:
    """Return the blur of an image of `shape` on `device`: one that varies for a field."""
    return blur_at(kernel_of(psf), shape, device=device)


def problem_of(
    image: Tensor,
    psf: Psf | PsfField,
    background: float,
    camera: Noise,
    seen: Tensor | None = None,
) -> tuple[Problem, float]:
    """Return the problem in photons, and the counts per photon to come back with.

    `seen` says which voxels were recorded; None: all.
    """
    photons, expected, gain = in_photons(image, background, camera, seen)
    blur = blur_of(psf, image_shape(image), image.device)
    return Problem((Observation(photons, blur, expected, seen),)), gain
