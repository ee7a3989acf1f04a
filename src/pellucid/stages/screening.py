"""Looking at a volume before any work is done on it: refused, noted, or nothing to do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.errors import InputError

# More voxels than this at the top of the scale leave marks that deconvolution sharpens.
SATURATED_SHARE = 1e-3
# Where cameras end: 8, 10, 12, 14 and 16 bits.
FULL_SCALES = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class Screening:
    """What was found in a volume: sentences, and whether there is anything to deconvolve."""

    is_empty: bool
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def screen(volume: npt.NDArray[Any], what: str) -> Screening:
    """Look at a (z, y, x) volume; `what` names it in sentences.

    Raises
    ------
    InputError : NaN or infinite voxels, with their number
    """
    low, high = float(volume.min()), float(volume.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(volume.size - np.isfinite(volume).sum())
        raise InputError(
            f"{what}: {bad} of {volume.size} voxels are NaN or infinite. "
            "Replace them, or leave this volume out with --time or --channel."
        )
    if low == high:
        sentence = f"{what}: every voxel is {low:g}: nothing to deconvolve, written as zeros"
        return Screening(True, warnings=(sentence,))
    warnings, notes = [], []
    if high in FULL_SCALES and volume.dtype.kind in "ui":
        share = float(np.count_nonzero(volume == volume.max())) / volume.size
        if share > SATURATED_SHARE:
            warnings.append(
                f"{what}: {share:.1%} of the voxels are saturated at {high:g}: what is around "
                "them is not reliable. Record with less light or gain."
            )
    if low < 0.0:
        share = float(np.count_nonzero(volume < 0)) / volume.size
        notes.append(
            f"{what}: {share:.1%} of the voxels are negative (to {low:.4g}): taken for noise about "
            "an offset that was already subtracted"
        )
    return Screening(False, tuple(warnings), tuple(notes))
