"""Transforms as other programs write them: ITK text and 4x4 matrices. They count x, y, z."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.core.geometry import Affine
from pellucid.errors import InputError

ITK_HEADER = "#Insight Transform File V1.0"
ITK_AFFINE = ("AffineTransform_double_3_3", "AffineTransform_float_3_3",
              "MatrixOffsetTransformBase_double_3_3")  # fmt: skip


def to_xyz(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a homogeneous ZYX matrix for XYZ points, and the other way round."""
    order = [2, 1, 0, 3]
    return matrix[np.ix_(order, order)]


def affine_to_itk(fixed_to_moving: Affine) -> str:
    """The transform as ITK text: fixed to moving, which is what resampling onto fixed wants.

    y = M (x - centre) + centre + translation, with the centre at the origin; micrometres.
    """
    matrix = to_xyz(fixed_to_moving.matrix)
    numbers = [*matrix[:3, :3].ravel().tolist(), *matrix[:3, 3].tolist()]
    return (
        f"{ITK_HEADER}\n#Transform 0\nTransform: {ITK_AFFINE[0]}\n"
        f"Parameters: {' '.join(map(repr, numbers))}\nFixedParameters: 0 0 0\n"
    )


def affine_from_itk(text: str, *, source: str = "fixed", target: str = "moving") -> Affine:
    """The affine transform in ITK text; InputError for other kinds, or several."""
    lines = [line.partition(":") for line in text.splitlines() if not line.startswith("#")]
    entries = [(name.strip(), value.strip()) for name, colon, value in lines if colon]
    kinds = [value for name, value in entries if name == "Transform"]
    if len(kinds) != 1 or kinds[0] not in ITK_AFFINE:
        raise InputError(
            f"expected one {ITK_AFFINE[0]}, got {', '.join(kinds) or 'none'}. "
            "Export the transform as a single affine one."
        )
    found = dict(entries)
    numbers = _numbers(found.get("Parameters", ""), 12, "Parameters")
    centre = _numbers(found.get("FixedParameters", "0 0 0"), 3, "FixedParameters")
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    return Affine(to_xyz(matrix), source, target)


def affine_from_matrix_text(
    text: str,
    fixed_um: Sequence[float],
    moving_um: Sequence[float],
    *,
    source: str = "fixed",
    target: str = "moving",
) -> Affine:
    """A 4x4 (or 3x4) matrix of numbers, x, y, z, that maps voxels of fixed to voxels of moving.

    The diSPIM tools write their .tmx files so.

    Parameters
    ----------
    fixed_um, moving_um : z, y, x micrometres of the voxels that the matrix counts in
    """
    count = len(text.replace(",", " ").split())
    numbers = _numbers(text, 12 if count == 12 else 16, "a 4x4 matrix")
    matrix = np.eye(4)
    matrix[: len(numbers) // 4] = numbers.reshape(-1, 4)
    in_um = np.diag([*moving_um, 1.0]) @ to_xyz(matrix) @ np.diag([*(1 / np.array(fixed_um)), 1.0])
    return Affine(in_um, source, target)


def _numbers(text: str, count: int, what: str) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(f"expected {count} finite numbers as {what}, got {text[:60]!r}.")
    return numbers
