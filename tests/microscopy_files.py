"""Tiny recordings and PSFs on disk, for tests of the stages and of the command line."""

import numpy as np

import pellucid
from pellucid.core.psf_theory import gaussian

VOXEL_UM = (0.3, 0.1, 0.1)
WIDTHS_UM = (0.6, 0.25, 0.25)


def recorded(shape=(6, 24, 26), dtype=np.uint16, seed=0):
    """Counts of a bright block over a background of 20."""
    image = np.full(shape, 20.0)
    image[..., 8:12, 8:14] += 200.0
    return np.random.default_rng(seed).poisson(image).clip(0, 255).astype(dtype)


def save(path, image=None, voxel_um=VOXEL_UM, **options):
    """Write a recording; returns its path as text."""
    pellucid.write(path, recorded() if image is None else image, voxel_um=voxel_um, **options)
    return str(path)


def save_psf(path, voxel_um=VOXEL_UM, **options):
    """Write a Gaussian PSF; returns its path as text."""
    psf = gaussian(WIDTHS_UM, voxel_um)
    return save(path, psf.values.astype(np.float32), voxel_um, **options)
