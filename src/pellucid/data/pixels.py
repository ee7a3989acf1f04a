"""Pixel types of an output: float32 as computed, or integers with a scale that is kept."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.data.source import Array
from pellucid.errors import InputError, ParameterError

OUTPUT_TYPES = ("float32", "float64", "uint8", "uint16", "uint32", "int16", "int32")


@dataclass(frozen=True)
class IntegerScale:
    """Stored integer = round(value * factor); value = stored / factor.

    `factor` is a power of two when chosen by `from_range`, so going back is exact.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ParameterError(
                f"IntegerScale: expected a positive finite factor, got {self.factor}."
            )

    @classmethod
    def from_range(
        cls, minimum: float, maximum: float, dtype: str | np.dtype[Any]
    ) -> "IntegerScale":
        """The largest power of two at which `minimum` and `maximum` both fit `dtype`.

        At least half of the integer range is used, and nothing within the range is clipped.
        Values below an unsigned type's zero cannot be kept by any factor: they do not count here,
        and are counted when they are clipped.
        """
        limits = np.iinfo(dtype)
        if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
            raise ParameterError(
                f"IntegerScale: expected a finite range, got {minimum} to {maximum}."
            )
        room = [limits.max / maximum] if maximum > 0 else []
        if minimum < 0 and limits.min < 0:
            room.append(limits.min / minimum)
        return cls(2.0 ** math.floor(math.log2(min(room)))) if room else cls()


def check_output_dtype(dtype: str | np.dtype[Any]) -> np.dtype[Any]:
    """`dtype` if an output can have it; raises ParameterError else."""
    kind = np.dtype(dtype).newbyteorder("=")
    if kind.name not in OUTPUT_TYPES:
        raise ParameterError(
            f"output type: expected one of {', '.join(OUTPUT_TYPES)}, got {kind.name}."
        )
    return kind


def check_exact(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputError for integers that would not stay what they are: arithmetic is in float32."""
    if dtype.kind in "ui" and dtype.itemsize > 2:
        raise InputError(
            f"{name}: {dtype.name} is worked on as float32, which keeps whole numbers only to "
            "16777216. Take --dtype float32, or export it as uint16."
        )


def to_dtype(
    volume: Array, dtype: str | np.dtype[Any], scale: IntegerScale = IntegerScale()
) -> tuple[Array, int]:
    """`volume` as `dtype`, and how many voxels did not fit and were clipped.

    Floating-point outputs and equal types pass unscaled. Integers are scaled, rounded to the
    nearest (not cut off, which would lose half a count on average) and clipped, never wrapped.

    Raises
    ------
    ParameterError : NaN or infinite values, for which no integer stands
    """
    dtype = np.dtype(dtype)
    if dtype == volume.dtype and (dtype.kind == "f" or scale.factor == 1.0):
        return volume, 0
    if dtype.kind == "f":
        return volume.astype(dtype), 0
    # float32 holds every 16-bit integer exactly, and not every 32-bit one.
    exact = np.float32 if dtype.itemsize <= 2 and volume.dtype.itemsize <= 4 else np.float64
    scaled = np.multiply(volume, scale.factor, dtype=exact, casting="unsafe")
    if not np.isfinite(scaled).all():
        raise ParameterError(
            f"to_dtype: NaN or infinite values cannot become {dtype}. Write float32 instead."
        )
    np.rint(scaled, out=scaled)
    limits = np.iinfo(dtype)
    clipped = int(np.count_nonzero((scaled < limits.min) | (scaled > limits.max)))
    if clipped:
        np.clip(scaled, limits.min, limits.max, out=scaled)
    return scaled.astype(dtype), clipped
