"""Small simulated recordings that several tests share."""

import numpy as np
import torch

from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.simulation import STRUCTURES, Camera, Recording, record

PHOTON_COUNTER = Camera(gain=1.0, offset=0.0, read_noise=0.0)


def gaussian_psf(shape, fwhm):
    axes = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in shape)]
    psf = np.exp(-4 * np.log(2) * sum((a / w) ** 2 for a, w in zip(axes, fwhm, strict=True)))
    return psf / psf.sum()


LIGHT_SHEET = gaussian_psf((17, 9, 9), (6.0, 3.0, 3.0))


def recorded(
    structure="shells", peak=100.0, shape=(20, 32, 32), seed=1, psf=LIGHT_SHEET
) -> Recording:
    """A recording whose counts are photons."""
    return record(
        STRUCTURES[structure], psf, shape, peak_photons=peak, camera=PHOTON_COUNTER, seed=seed
    )


def problem_for(recording: Recording, psf=LIGHT_SHEET, dtype=torch.float32) -> Problem:
    image = torch.from_numpy(recording.counts.astype(np.float64)).to(dtype)
    blur = Blur(torch.from_numpy(psf).to(dtype), recording.counts.shape)
    return Problem((Observation(image, blur, 2.0),))
