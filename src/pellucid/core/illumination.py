"""The light of a `SheetScan`: a Gaussian sheet with its waist, and sheets crossed by a mirror.

A sheet is focused across its thickness alone, so its light spreads in one dimension and its middle
dims as w0 / w, not as the square: what passes through every cross-section is the same. Its Rayleigh
range is that of the wavelength in the medium.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.fourier import Shape
from pellucid.core.operators import LinearOperator
from pellucid.core.optics import FWHM_PER_WAIST, check_wavelength_nm
from pellucid.core.psf import Psf, Triple
from pellucid.core.psf_field import PsfField
from pellucid.core.sheet_scan import SheetScan
from pellucid.errors import InputError, ParameterError

Array = npt.NDArray[np.float64]

SHEET_PLACES = (3, 5, 9, 17, 33)
"""Places along a sheet at which its PSFs are written, fewest first."""


@dataclass(frozen=True)
class GaussianSheet:
    """A light sheet from a cylindrical focus, 1 in the middle of its waist.

    Parameters
    ----------
    fwhm_um : thickness at the waist (full width of the intensity at half maximum)
    wavelength_nm : of the light, in vacuum
    refractive_index : of the medium

    Examples
    --------
    >>> round(GaussianSheet(1.6, 488).rayleigh_um, 1)
    15.8
    """

    fwhm_um: float
    wavelength_nm: float
    refractive_index: float = 1.333

    def __post_init__(self) -> None:
        check_wavelength_nm("wavelength_nm", self.wavelength_nm)
        if not (self.fwhm_um > 0 and self.refractive_index >= 1):
            raise ParameterError(
                "GaussianSheet: expected a positive thickness and an index of 1 or more, got "
                f"{self.fwhm_um:g} um and {self.refractive_index:g}."
            )

    @property
    def waist_um(self) -> float:
        """1/e^2 radius w0 at the waist."""
        return self.fwhm_um / FWHM_PER_WAIST

    @property
    def rayleigh_um(self) -> float:
        """Way from the waist to where the sheet is sqrt(2) times as thick: pi n w0^2 / wavelength."""
        return np.pi * self.refractive_index * self.waist_um**2 / (self.wavelength_nm * 1e-3)

    def at(self, across_um: Array, along_um: Array) -> Array:
        """Return the intensity at distances across the sheet and along it from its waist."""
        wider = np.sqrt(1 + (along_um / self.rayleigh_um) ** 2)
        return np.exp(-2 * (across_um / (self.waist_um * wider)) ** 2) / wider


def light_sheet_scan(
    psf: Tensor,
    image_shape: Shape,
    spacing_um: Triple,
    sheet: GaussianSheet,
    *,
    waist_um: float | None = None,
) -> SheetScan:
    """Return a light-sheet microscope whose sheet, along x, is in focus and moves with it along z.

    Parameters
    ----------
    psf : (z, y, x) of the detection alone
    waist_um : x of the waist from the image's first voxel; None: the middle of the image
    """
    _, _, along = _offsets_um(psf, image_shape, spacing_um)
    middle = 0.5 * (image_shape[2] - 1) * spacing_um[2]
    along = along - (middle if waist_um is None else waist_um)
    light = sheet.at(_behind_um(psf, spacing_um[0])[:, None], along[None])
    moving = np.broadcast_to(light, (image_shape[0], *light.shape))
    return SheetScan(psf, _like(psf, moving), image_shape)


def light_sheet_field(
    psf: Psf,
    columns: int,
    sheet: GaussianSheet,
    *,
    waist_um: float | None = None,
    accuracy: float = 1e-3,
) -> PsfField:
    """Return the same microscope as PSFs at places along x: the sheet moves with the plane in focus.

    So an emitter's light depends on its x alone, and `VaryingBlur` of this field is `light_sheet_scan`,
    within `accuracy` and the field's own.

    Parameters
    ----------
    psf : of the detection alone, with its voxels
    columns : voxels of the image along x
    waist_um : x of the waist from the image's first voxel; None: the middle of the image
    accuracy : to be met halfway between neighbouring places, as a share of the PSF's root sum of squares
    """
    if psf.spacing_um is None:
        raise ParameterError("light_sheet_field: the PSF states no voxel size. Give spacing_um.")
    last = (columns - 1) * psf.spacing_um[2]
    waist = last / 2 if waist_um is None else waist_um
    behind = _behind_um(psf.values, psf.spacing_um[0])
    flux = float((psf.values * sheet.at(behind, np.zeros(1))[:, None, None]).sum())

    def at(x_um: float) -> Array:
        light = sheet.at(behind, np.array([x_um - waist]))
        return np.asarray(psf.values * light[:, None, None] / flux)

    for count in SHEET_PLACES:
        places = np.linspace(0, last, count)
        positions = np.stack([0 * places, 0 * places, places], axis=1)
        note = f"a light sheet of {sheet.fwhm_um:g} um along x, its waist at {waist:.4g} um"
        field = PsfField(np.stack([at(x) for x in places]), positions, psf.spacing_um, (note,))
        known = field.expanded(accuracy / 10)
        halfway = (places[1:] + places[:-1]) / 2
        errors = [np.linalg.norm(known.psf_at((0.0, 0.0, x)) - at(x)) for x in halfway]
        if max(errors) <= accuracy * np.linalg.norm(at(waist)):
            break
    return field


def reflective_scans(
    psfs: tuple[Tensor, Tensor],
    image_shape: Shape,
    voxel_um: float,
    sheet: GaussianSheet,
    *,
    mirror_um: float = 0.0,
    reflected: float = 1.0,
) -> tuple[LinearOperator, LinearOperator]:
    """Return the two views of a reflective diSPIM: sheets crossed by a mirror at 45 degrees.

    The first view looks along z, the second along x, both at one object on cubic voxels. At sheet
    position t the sheet along x lies in the plane z = t; the mirror, where x - z = `mirror_um`, turns
    it into one along z in the plane x = t + `mirror_um`. Both have their waist where they cross. Each
    view keeps the plane of its own sheet; the other sheet is the light out of focus.

    Parameters
    ----------
    psfs : (z, y, x) of the detections, each with z along its own axis of view
    image_shape : (z, y, x) of the object's window; the second view's image is (x, y, z)
    mirror_um : x - z of the mirror, from the window's first voxel
    reflected : light of the other sheet, as a share of the one in focus

    Returns
    -------
    Two operators on one domain; give `Problem` the first one's `window`.
    """
    if not 0 <= reflected <= 1:
        raise ParameterError(f"reflected: expected a share from 0 to 1, got {reflected:g}.")
    depth = max(n for psf in psfs for n in (psf.shape[0], psf.shape[2]))
    height = max(psf.shape[1] for psf in psfs)
    # one odd size in z and x, so that both views see objects of one shape
    shape = (depth | 1, height | 1, depth | 1)
    first, second = (_padded(psf, shape) for psf in psfs)
    z, y, x = image_shape
    one = _crossed(first, (z, y, x), voxel_um, sheet, mirror_um, reflected)
    other = _crossed(second, (x, y, z), voxel_um, sheet, -mirror_um, reflected)
    return one, other @ Turned(one.domain_shape)


class Turned(LinearOperator):
    """The object with z and x exchanged: as seen by an objective along x."""

    def __init__(self, domain_shape: Shape) -> None:
        z, y, x = domain_shape
        self.domain_shape, self.range_shape = domain_shape, (x, y, z)

    def __repr__(self) -> str:
        return f"Turned({self.domain_shape})"

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 2).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.transpose(0, 2).contiguous()


def _crossed(
    psf: Tensor, image_shape: Shape, voxel_um: float, sheet: GaussianSheet,
    mirror_um: float, reflected: float,
) -> SheetScan:  # fmt: skip
    _, _, x = _offsets_um(psf, image_shape, (voxel_um, voxel_um, voxel_um))
    t = np.arange(image_shape[0]) * np.float64(voxel_um)
    behind = _behind_um(psf, voxel_um)[None, :, None]
    from_crossing = x[None, None, :] - (t + mirror_um)[:, None, None]
    light = sheet.at(behind, from_crossing) + reflected * sheet.at(from_crossing, behind)
    return SheetScan(psf, _like(psf, light), image_shape)


def _behind_um(psf: Tensor | Array, step_um: float) -> Array:
    """Distance along z from the detected plane to the object plane that the PSF's plane d shows."""
    depth = psf.shape[0]
    return -(np.arange(depth) - depth // 2) * np.float64(step_um)


def _offsets_um(psf: Tensor, image_shape: Shape, spacing_um: Triple) -> tuple[Array, Array, Array]:
    """Positions of the object's voxels on each axis, from the image's first voxel."""
    z, y, x = (
        (np.arange(n + k - 1) - (k - 1 - k // 2)) * np.float64(step)
        for n, k, step in zip(image_shape, psf.shape, spacing_um, strict=True)
    )
    return z, y, x


def _like(psf: Tensor, light: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(light)).to(psf)


def _padded(psf: Tensor, shape: Shape) -> Tensor:
    if psf.ndim != 3:
        raise InputError(
            f"reflective_scans: expected a (z, y, x) PSF, got shape {tuple(psf.shape)}."
        )
    out = torch.zeros(shape, dtype=psf.dtype, device=psf.device)
    low = [n // 2 - k // 2 for n, k in zip(shape, psf.shape, strict=True)]
    out[tuple(slice(a, a + k) for a, k in zip(low, psf.shape, strict=True))] = psf
    return out
