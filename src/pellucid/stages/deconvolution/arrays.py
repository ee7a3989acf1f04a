"""The verbs for arrays: deconvolve what is in memory, write it to a file."""

from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core import deconvolution as core
from pellucid.core.coverage import FillChoice
from pellucid.core.psf import Triple
from pellucid.data.output import create_output
from pellucid.data.pixels import IntegerScale
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, OutputError
from pellucid.stages.parameters import Method
from pellucid.stages.screening import screen
from pellucid.stages.work.resources import resolve_device

Numpy = npt.NDArray[np.float32]


@overload
def deconvolve(
    volume: torch.Tensor,
    psf: Any,
    method: Method = ...,
    iterations: int | None = ...,
    background: float | None = ...,
    device: str | None = ...,
    fill: FillChoice = ...,
) -> torch.Tensor: ...
@overload
def deconvolve(
    volume: npt.NDArray[Any],
    psf: Any,
    method: Method = ...,
    iterations: int | None = ...,
    background: float | None = ...,
    device: str | None = ...,
    fill: FillChoice = ...,
) -> Numpy: ...


def deconvolve(
    volume: Any,
    psf: Any,
    method: Method = "wiener-butterworth",
    iterations: int | None = None,
    background: float | None = None,
    device: str | None = None,
    fill: FillChoice = "auto",
) -> Any:
    """The deconvolved image: float32 counts above background, of the shape and kind of `volume`.

    Parameters
    ----------
    volume : (z, y, x) or (y, x) counts as recorded, NumPy array or torch tensor
    psf : (z, y, x) or (y, x) array on the same voxels, cleaned and centred here; or a `Psf`, which
        is taken as it is; a (y, x) image takes its focal plane; or a `PsfField`, where the blur varies
    method : the back projector: matched, gaussian, butterworth, wiener, wiener-butterworth or
        otf-masked-wiener
    iterations : exactly this many; None stops when held-out photons say so
    background : counts of the empty regions, camera offset included; None measures it
    device : "cpu", "cuda", "cuda:1"; None: where a tensor is, the CPU for an array
    fill : what stands in voxels that were never recorded, which have no weight and become 0: a value,
        "none", or "auto" to find it

    Raises
    ------
    InputError : NaN or infinite values, a wrong number of dimensions, a PSF that is none
    ParameterError : an unknown method or device

    Examples
    --------
    >>> psf = np.zeros((9, 9)); psf[3:6, 3:6] = 1
    >>> deconvolve(np.random.default_rng(0).poisson(50.0, (32, 32)), psf).shape
    (32, 32)
    """
    is_tensor = isinstance(volume, torch.Tensor)
    place = resolve_device(device) if device else str(volume.device) if is_tensor else "cpu"
    counts = _as_numpy(volume)
    if counts.ndim not in (2, 3) or counts.size == 0 or counts.dtype.kind not in "uif":
        raise InputError(
            f"deconvolve: expected counts (z, y, x) or (y, x), got {counts.dtype} "
            f"{counts.shape}. Give one channel and one time point."
        )
    if screen(counts, "deconvolve").is_empty:
        image = torch.zeros(counts.shape, dtype=torch.float32)
    else:
        image = core.deconvolve(
            volume if is_tensor else counts,
            psf,
            method=method,
            iterations=iterations,
            background=background,
            device=place,
            fill=fill,
        ).image
    return image.to(volume.device) if is_tensor else image.cpu().numpy()


def _as_numpy(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def write(
    path: str | Path,
    volume: Any,
    *,
    voxel_um: Triple,
    channels: tuple[str, ...] = (),
    time_step_s: float | None = None,
    dtype: str | None = None,
    ome_zarr: str = "0.5",
    overwrite: bool = False,
) -> Path:
    """Write an image with its voxel size; returns the path. The suffix chooses the format.

    Parameters
    ----------
    path : .ome.zarr, .ome.tif (OME-TIFF) or .tif (ImageJ TIFF)
    volume : (y, x), (z, y, x), (c, z, y, x) or (t, c, z, y, x), NumPy array or torch tensor
    voxel_um : (z, y, x) micrometres; any z for a single plane
    channels : a name for each channel
    dtype : of the file; None: of `volume`. Floats become integers by a power of two that fits
        their range, kept in the file; negative values cannot become unsigned and are refused
    ome_zarr : version of OME-Zarr, "0.5" or "0.4"

    Raises
    ------
    OutputError : the path exists or cannot be written, an unknown suffix, a type the format lacks
    InputError : an array of other dimensions

    Examples
    --------
    >>> write("sharp.ome.zarr", np.ones((4, 8, 8)), voxel_um=(0.3, 0.1, 0.1))  # doctest: +SKIP
    """
    values = _as_numpy(volume)
    if not 2 <= values.ndim <= 5 or values.size == 0:
        raise InputError(
            f"write: expected (y, x), (z, y, x), (c, z, y, x) or (t, c, z, y, x), got shape "
            f"{values.shape}."
        )
    values = values.reshape((1,) * (5 - values.ndim) + values.shape)
    wanted = np.dtype(dtype or values.dtype)
    scale = IntegerScale()
    if wanted.kind in "ui" and wanted != values.dtype:
        low, high = float(values.min()), float(values.max())
        if wanted.kind == "u" and low < 0:
            raise OutputError(
                f"write: the smallest value is {low:g}, which {wanted} cannot hold. "
                "Write float32, or subtract an offset."
            )
        if values.dtype.kind == "f" or high > np.iinfo(wanted).max or low < np.iinfo(wanted).min:
            scale = IntegerScale.from_range(low, high, wanted)
    t, c, z, y, x = values.shape
    image = ImageDescription((t, c, z, y, x), wanted.name, voxel_um, channels, time_step_s)
    with create_output(
        path, image, scale=scale, ome_zarr_version=ome_zarr, overwrite=overwrite
    ) as out:
        for i, k in np.ndindex(t, c):
            out.write(i, k, values[i, k])
    return Path(path)
