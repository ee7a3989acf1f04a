"""The demonstration of networks: blur that varies, a structure never seen, its verdict and its cure."""

import numpy as np
import torch

from pellucid.core.illumination import GaussianSheet, light_sheet_scan
from pellucid.core.psf import crop_to_support
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import theoretical_psf
from pellucid.core.sheet_scan import SheetScan

SHAPE = (32, 96, 224)
VOXEL_UM = (0.25, 0.1625, 0.1625)
SHEET = GaussianSheet(1.2, 488)
PLACES = 7
"""Places along the sheet at which the PSF is told to the solvers."""


def microscope(shape: tuple[int, int, int] = SHAPE) -> SheetScan:
    """A light sheet that is thin in the middle of the field and several times as thick at its ends."""
    psf = theoretical_psf(
        "widefield", VOXEL_UM, na=0.8, wavelength_nm=525, refractive_index=1.33, shape=(25, 21, 21)
    )
    values = crop_to_support(psf, 0.97).values
    detection = torch.from_numpy((values / values.sum()).astype(np.float32))
    return light_sheet_scan(detection, shape, VOXEL_UM, SHEET)


def psf_field() -> PsfField:
    """The PSFs that beads along the sheet would show."""
    light = microscope()
    places = np.linspace(0, SHAPE[2] - 1, PLACES)
    columns = [light.illumination[0, :, round(x) + light.margin[2]] for x in places]
    psfs = np.stack([(light.psf * c[:, None, None]).double().numpy() for c in columns])
    at_um = np.array([(0.0, 0.0, round(x) * VOXEL_UM[2]) for x in places])
    return PsfField(psfs, at_um, VOXEL_UM, ("a sheet of 1.2 um with its waist",))
