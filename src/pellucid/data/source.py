"""What every file format offers to a `Recording`, and the few rules that formats share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InputError

RECORDING_AXES = "tczyx"

# Length units as OME-XML, OME-Zarr, ImageJ and Micro-Manager spell them. ImageJ writes the micro
# sign as the six ASCII characters \u00B5; Unicode has two micro signs.
MICROMETRES_PER_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0,
    "micrometer": 1.0, "micrometre": 1.0, "micrometers": 1.0, "micrometres": 1.0,
    "pm": 1e-6, "picometer": 1e-6, "å": 1e-4, "angstrom": 1e-4,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3, "nanometers": 1e-3,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "m": 1e6, "meter": 1e6, "metre": 1e6,
    "inch": 25.4e3, "in": 25.4e3,
}  # fmt: skip

SECONDS_PER_UNIT = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3, "µs": 1e-6, "us": 1e-6, "microsecond": 1e-6,
    "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0, "day": 86400.0,
}  # fmt: skip

Array = NDArray[Any]
Spacing = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Calibration:
    """What a file says about itself beside its pixels; None where it is silent.

    Parameters
    ----------
    spacing_um : (z, y, x) micrometres, each None when the file does not say
    channels : names, empty when the file names none
    time_step_s : seconds between time points
    time_numbers : of the time points, as the file counts them; empty where it does not
    """

    spacing_um: Spacing = (None, None, None)
    channels: tuple[str, ...] = ()
    time_step_s: float | None = None
    time_numbers: tuple[int, ...] = ()


class Source(Protocol):
    """An open file: what is in it, and a lazy way to a block of it."""

    @property
    def axes(self) -> str:
        """Axes of the array, a selection of "tczyx" in the file's own order."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels, in this machine's byte order."""
        ...

    @property
    def calibration(self) -> Calibration:
        """Voxel size, channels and time step as far as the file states them."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the pixels come from: several for a multi-file series."""
        ...

    def read(self, selection: tuple[slice, ...]) -> Array:
        """Pixels of one block; a slice with start and stop (step 1) for each of `axes`."""
        ...


def to_micrometres(value: float | None, unit: str | None) -> float | None:
    """`value` in micrometres, or None for an unknown unit ("pixel") or an impossible value."""
    factor = MICROMETRES_PER_UNIT.get((unit or "").strip().lower())
    if value is None or factor is None or not np.isfinite(value) or value <= 0:
        return None
    return float(value * factor)


def to_seconds(value: float | None, unit: str | None) -> float | None:
    """`value` in seconds, or None for an unknown unit or an impossible value."""
    factor = SECONDS_PER_UNIT.get((unit or "").strip().lower())
    if value is None or factor is None or not np.isfinite(value) or value <= 0:
        return None
    return float(value * factor)


def check_only_image(image: int | None, name: str) -> None:
    """Raise InputError where image 1 or higher is asked of a file that holds one."""
    if image:
        raise InputError(f"{name}: there is no image {image}; it holds one, number 0.")


def check_axes(axes: str, shape: tuple[int, ...], name: str) -> str:
    """`axes` in lower case if it names each dimension of `shape` once; raises InputError else."""
    axes = axes.lower()
    if (
        len(axes) != len(shape)
        or len(set(axes)) != len(axes)
        or not {"y", "x"} <= set(axes) <= set(RECORDING_AXES)
    ):
        raise InputError(
            f"{name}: axes={axes!r} does not name the dimensions of an array of shape {shape}. "
            f"Give one letter of {RECORDING_AXES!r} for each, y and x among them."
        )
    return axes


def plain_axes(shape: tuple[int, ...], name: str, axes: str | None) -> str:
    """Axes of an array that says nothing about them: yx, zyx, or what the caller states."""
    if axes is not None:
        return check_axes(axes, shape, name)
    if len(shape) in (2, 3):
        return "zyx"[-len(shape) :]
    raise InputError(
        f"{name}: an array of shape {shape} whose axes are not stated in the file. "
        f"Say what they are, for example axes={RECORDING_AXES[-len(shape) :]!r}."
        if 3 < len(shape) <= 5
        else f"{name}: expected an image of 2 to 5 dimensions, got shape {shape}."
    )


def check_pixels(dtype: np.dtype, shape: tuple[int, ...], name: str) -> np.dtype:
    """The native form of `dtype`, if the pixels are real numbers and there are any."""
    if dtype.kind not in "uif":
        kinds = {"c": "complex", "b": "boolean (a mask)", "V": "structured", "O": "object"}
        raise InputError(
            f"{name}: expected real intensities, got {kinds.get(dtype.kind, 'unusable')} pixels "
            f"({dtype}). Save the image as an integer or floating-point type."
        )
    if 0 in shape:
        raise InputError(f"{name}: the image has no pixels (shape {shape}). Export it again.")
    return dtype.newbyteorder("=")
