"""The verb for arrays: the transform between two views in memory."""

from typing import Any

from pellucid.core import registration as core
from pellucid.core.geometry import Affine
from pellucid.core.registration import Registration, StartName
from pellucid.stages.parameters import Model
from pellucid.stages.work.resources import resolve_device


def register(
    fixed: Any,
    moving: Any,
    *,
    fixed_spacing_um: Any,
    moving_spacing_um: Any,
    model: Model = "affine",
    start: Affine | StartName | None = None,
    nominal: Affine | None = None,
    fixed_psf: Any = None,
    moving_psf: Any = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    device: str | None = None,
) -> Registration:
    """The transform from the fixed view to the moving view, and whether to believe it.

    Parameters
    ----------
    fixed, moving : (z, y, x) or (y, x) counts, NumPy arrays or torch tensors; shapes, voxels and
        contrast may differ
    fixed_spacing_um, moving_spacing_um : voxel sizes z, y, x; one number stands for all
    model : translation, rigid, similarity or affine
    start : an Affine from "fixed" to "moving", "identity", "translation" or "search" (rotations);
        None takes the translation, and searches rotations up to 40 degrees if that fails
    nominal : the known relative orientation, an Affine
    fixed_psf, moving_psf : (z, y, x) on the voxels of their view, where they are known
    fixed_mask, moving_mask : true where voxels count
    device : "auto", "cpu", "cuda:1"; None: where `fixed` is, the CPU for an array

    Returns
    -------
    `fixed_to_moving` maps micrometres, ZYX; `converged` and `reason` say whether to believe it

    Raises
    ------
    InputError : NaN or infinite values, a wrong number of dimensions
    ParameterError : an unknown model, start or device
    FrameError : transforms that do not lead from "fixed" to "moving"

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).random((64, 64))
    >>> found = register(image[:, :56], image[:, 4:], fixed_spacing_um=1, moving_spacing_um=1,
    ...                  model="translation")
    >>> found.fixed_to_moving.offset_um.round(1).tolist()[2]
    -4.0
    """
    return core.register(
        fixed, moving, fixed_spacing_um=fixed_spacing_um, moving_spacing_um=moving_spacing_um,
        model=model, start=start, nominal=nominal, fixed_psf=fixed_psf, moving_psf=moving_psf,
        fixed_mask=fixed_mask, moving_mask=moving_mask,
        device=None if device is None else resolve_device(device),
    )  # fmt: skip
