"""What a restoration needs before it starts: memory, and the figures of its back projector."""

import math

import numpy as np
import torch

from pellucid.core.coverage import FillChoice, fill_of
from pellucid.core.deconvolution import back_projector, blur_of, restorer
from pellucid.core.fourier import Shape
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.sampling import Array
from pellucid.errors import PellucidError
from pellucid.stages.parameters import DeconvolveParameters


def peak_bytes(
    shape: Shape, psf: Psf | PsfField, parameters: DeconvolveParameters, *, masked: bool = False
) -> int:
    """Memory that the restoration of one (z, y, x) volume takes on its device.

    `masked` says that some of its voxels were never recorded: weights are then as large as the volume.
    """
    # Tensors without memory carry the shapes through the arithmetic.
    image = torch.empty(shape, dtype=torch.float32, device="meta")
    recorded = image.bool() if masked else None
    problem = Problem((Observation(image, blur_of(psf, shape, "meta"), recorded=recorded),))
    chosen = restorer(back_projector(parameters.method), parameters.iterations)
    return chosen.peak_bytes(problem)


def is_masked(volume: Array, fill: FillChoice) -> bool:
    """Whether voxels of a volume were never recorded, as far as samples of it show."""
    try:
        return fill_of(volume, fill) is not None
    except PellucidError:
        return False  # of what cannot be read is told when its turn comes


def shape_that_fits(
    shape: Shape,
    psf: Psf | PsfField,
    parameters: DeconvolveParameters,
    room_bytes: int,
    *,
    masked: bool = False,
) -> Shape | None:
    """The largest crop of `shape` in y and x, in steps of 64 voxels, that fits; None if none."""
    for share in np.arange(0.95, 0.04, -0.05):
        y, x = (min(n, max(64, math.floor(n * share / 64) * 64)) for n in shape[1:])
        if peak_bytes((shape[0], y, x), psf, parameters, masked=masked) <= room_bytes:
            return (shape[0], y, x)
    return None


