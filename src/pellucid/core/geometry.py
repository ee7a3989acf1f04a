"""Where voxels are: grids and affine transforms, in micrometres, in named frames.

Axes are ZYX everywhere. A voxel's position is its centre, so voxel (0, 0, 0) of a grid lies at the
grid's origin. A 2D image is a grid of shape (1, y, x). Rotations follow the right-hand rule of the
(x, y, z) axes: a positive angle about z turns +x towards +y, about x turns +y towards +z, about y
turns +z towards +x.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import FrameError, ParameterError

Triple = tuple[float, float, float]
Axis = Literal["z", "y", "x"] | Sequence[float]

INDEX_FRAME = "index"
# A linear part worse conditioned than this maps a volume onto a plane for all practical purposes;
# its inverse would keep fewer than four digits in float64.
LARGEST_CONDITION = 1e12


def as_triple(value: ArrayLike, name: str) -> Triple:
    """Return three finite floats in ZYX order; a single number stands for all three.

    Raises
    ------
    ParameterError
        when `value` is neither one number nor three, or is not finite
    """
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"{name}: expected three numbers (z, y, x), got {value!r}. Pass them in ZYX order."
        ) from error
    if numbers.shape not in ((), (3,)) or not np.isfinite(numbers).all():
        raise ParameterError(
            f"{name}: expected three finite numbers (z, y, x), got {value!r}. Keep the ZYX order."
        )
    z, y, x = (float(number) for number in np.broadcast_to(numbers, (3,)))
    return z, y, x


@dataclass(frozen=True, eq=False, repr=False)
class Affine:
    """A map of points, in micrometres: `target point = matrix @ source point`, all ZYX.

    Parameters
    ----------
    matrix : (4, 4) float64, homogeneous, last row (0, 0, 0, 1)
    source, target : names of the frames that the map leaves and reaches

    Raises
    ------
    ParameterError
        when the matrix is not 4x4, not finite, not affine, or cannot be inverted

    Examples
    --------
    >>> view_to_world = Affine.translation((0, 0, 5), source="view", target="world")
    >>> view_to_world.apply([1, 2, 3]).tolist()
    [1.0, 2.0, 8.0]
    >>> (view_to_world.inverse() @ view_to_world).is_identity()
    True
    """

    matrix: NDArray[np.float64]
    source: str = "world"
    target: str = "world"

    def __post_init__(self) -> None:
        try:
            matrix = np.array(self.matrix, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"Affine: expected a 4x4 matrix of numbers, got {self.matrix!r}."
            ) from error
        if matrix.shape != (4, 4):
            raise ParameterError(
                f"Affine: expected a 4x4 matrix, got shape {matrix.shape}. "
                "Append the row (0, 0, 0, 1) to a 3x4 one."
            )
        if not np.isfinite(matrix).all():
            raise ParameterError(
                "Affine: expected finite numbers, got NaN or infinity in the matrix."
            )
        if not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise ParameterError(
                f"Affine: expected the last row (0, 0, 0, 1), got {tuple(matrix[3])}. "
                "Transpose the matrix if its translation is in the last row."
            )
        condition = np.linalg.cond(matrix[:3, :3])
        if not condition < LARGEST_CONDITION:
            raise ParameterError(
                f"Affine: expected a matrix with an inverse, got one of condition number "
                f"{condition:.1e}. Check for a zero scale or two equal rows."
            )
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls, *, source: str = "world", target: str = "world") -> Self:
        """Return the map that leaves coordinates as they are."""
        return cls(np.eye(4), source, target)

    @classmethod
    def from_linear(
        cls,
        linear: ArrayLike,
        *,
        centre_um: ArrayLike = 0.0,
        translation_um: ArrayLike = 0.0,
        source: str = "world",
        target: str = "world",
    ) -> Self:
        """Return `x -> linear @ (x - centre) + centre + translation` for a (3, 3) ZYX matrix."""
        linear = np.asarray(linear, dtype=np.float64)
        if linear.shape != (3, 3):
            raise ParameterError(f"Affine: expected a 3x3 linear part, got shape {linear.shape}.")
        centre = np.asarray(as_triple(centre_um, "centre_um"))
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = centre - linear @ centre + as_triple(translation_um, "translation_um")
        return cls(matrix, source, target)

    @classmethod
    def translation(
        cls, shift_um: ArrayLike, *, source: str = "world", target: str = "world"
    ) -> Self:
        """Return the map that adds `shift_um` (z, y, x) to every point."""
        return cls.from_linear(np.eye(3), translation_um=shift_um, source=source, target=target)

    @classmethod
    def scaling(
        cls,
        factor: ArrayLike,
        *,
        centre_um: ArrayLike = 0.0,
        source: str = "world",
        target: str = "world",
    ) -> Self:
        """Return the map that stretches by `factor` (one number or z, y, x) away from a centre."""
        linear = np.diag(as_triple(factor, "factor"))
        return cls.from_linear(linear, centre_um=centre_um, source=source, target=target)

    @classmethod
    def rotation(
        cls,
        axis: Axis,
        angle_rad: float,
        *,
        centre_um: ArrayLike = 0.0,
        source: str = "world",
        target: str = "world",
    ) -> Self:
        """Return the turn by `angle_rad` about an axis through `centre_um`.

        Right-handed in (x, y, z): a positive angle about "z" turns +x towards +y, about "x" +y
        towards +z, about "y" +z towards +x. `axis` is one of these letters or a ZYX vector of any
        length.
        """
        linear = rotation_matrix(np.asarray(_unit_axis(axis)) * float(angle_rad))
        return cls.from_linear(linear, centre_um=centre_um, source=source, target=target)

    @classmethod
    def shear(
        cls,
        moved: Literal["z", "y", "x"],
        along: Literal["z", "y", "x"],
        amount: float,
        *,
        centre_um: ArrayLike = 0.0,
        source: str = "world",
        target: str = "world",
    ) -> Self:
        """Return the map that adds `amount` times the coordinate `along` to the coordinate `moved`.

        Stage-scan data is deskewed by `shear("x", "z", ...)`: planes slide along x as z grows.
        """
        if moved == along or {moved, along} - set("zyx"):
            raise ParameterError(
                f"Affine.shear: expected two different axes of z, y, x, got {moved!r}, {along!r}."
            )
        linear = np.eye(3)
        linear["zyx".index(moved), "zyx".index(along)] = amount
        return cls.from_linear(linear, centre_um=centre_um, source=source, target=target)

    @classmethod
    def from_params(
        cls,
        *,
        translation_um: ArrayLike = 0.0,
        rotation_rad: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        shear: ArrayLike = 0.0,
        centre_um: ArrayLike = 0.0,
        source: str = "world",
        target: str = "world",
    ) -> Self:
        """Return scale, then shear, then rotation about `centre_um`, then translation: 12 numbers.

        Parameters
        ----------
        rotation_rad : rotation vector (z, y, x): its direction is the axis, its length the angle
        scale : stretch along z, y, x
        shear : the entries (zy, zx, yx) of a unit upper triangular matrix
        """
        zy, zx, yx = as_triple(shear, "shear")
        upper = np.array([[1, zy, zx], [0, 1, yx], [0, 0, 1]])
        turn = rotation_matrix(as_triple(rotation_rad, "rotation_rad"))
        linear = turn @ upper @ np.diag(as_triple(scale, "scale"))
        return cls.from_linear(
            linear, centre_um=centre_um, translation_um=translation_um, source=source, target=target
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the map that `to_dict` wrote; missing or unknown keys raise ParameterError."""
        _check_keys("Affine", record, {"matrix", "source", "target"})
        return cls(
            np.asarray(record["matrix"], dtype=np.float64), record["source"], record["target"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the map as JSON-ready numbers and strings; `from_dict` gives it back exactly."""
        return {"matrix": self.matrix.tolist(), "source": self.source, "target": self.target}

    @property
    def linear(self) -> NDArray[np.float64]:
        """The (3, 3) part that acts on directions."""
        return self.matrix[:3, :3]

    @property
    def offset_um(self) -> NDArray[np.float64]:
        """Where the source frame's origin lands, (3,) in the target frame."""
        return self.matrix[:3, 3]

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return points (..., 3), ZYX, moved from the source frame into the target frame."""
        points = np.asarray(points, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != 3:
            raise ParameterError(
                f"Affine.apply: expected points of shape (..., 3), got {points.shape}."
            )
        moved: NDArray[np.float64] = points @ self.linear.T + self.offset_um
        return moved

    def inverse(self) -> Self:
        """Return the map from the target frame back to the source frame."""
        linear = np.linalg.inv(self.linear)
        return self.from_linear(
            linear, translation_um=-linear @ self.offset_um, source=self.target, target=self.source
        )

    def with_frames(self, *, source: str, target: str) -> Self:
        """Return the same numbers between other frames: a claim that they coincide."""
        return type(self)(self.matrix, source, target)

    def is_identity(self, tolerance: float = 1e-9) -> bool:
        """Return whether every matrix entry is within `tolerance` of the identity's."""
        return bool(np.abs(self.matrix - np.eye(4)).max() <= tolerance)

    def __matmul__(self, first: "Affine") -> "Affine":
        """Return the map that applies `first`, then this one."""
        if not isinstance(first, Affine):
            return NotImplemented
        if first.target != self.source:
            raise FrameError(
                f"Affine: cannot compose {self.source!r} -> {self.target!r} after "
                f"{first.source!r} -> {first.target!r}: expected the first to reach "
                f"{self.source!r}, it reaches {first.target!r}. Invert one of them, or rename "
                "frames with with_frames()."
            )
        return Affine(self.matrix @ first.matrix, first.source, self.target)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Affine):
            return NotImplemented
        same_frames = (self.source, self.target) == (other.source, other.target)
        return same_frames and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash((tuple(self.matrix.ravel().tolist()), self.source, self.target))

    def __repr__(self) -> str:
        return f"Affine({self.matrix.tolist()}, source={self.source!r}, target={self.target!r})"


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume are: centres at `origin_um + index * spacing_um` of `frame`.

    Parameters
    ----------
    shape : number of voxels along z, y, x; a 2D image is (1, y, x)
    spacing_um : distance between voxel centres along z, y, x; one number stands for all three
    origin_um : position of the centre of voxel (0, 0, 0)
    frame : name of the frame in which these micrometres count

    Examples
    --------
    >>> grid = Grid((10, 20, 30), spacing_um=(1, 0.5, 0.5), frame="view")
    >>> grid.index_to_um.apply([1, 1, 1]).tolist()
    [1.0, 0.5, 0.5]
    """

    shape: tuple[int, int, int]
    spacing_um: Triple = (1.0, 1.0, 1.0)
    origin_um: Triple = (0.0, 0.0, 0.0)
    frame: str = "world"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1 or shape != tuple(self.shape):
            raise ParameterError(
                f"Grid: expected a shape of three positive integers (z, y, x), got {self.shape}. "
                "Give a 2D image a leading axis: (1, y, x)."
            )
        spacing = as_triple(self.spacing_um, "Grid.spacing_um")
        if min(spacing) <= 0:
            raise ParameterError(
                f"Grid: expected positive spacings in micrometres, got {spacing}. "
                "Express a mirrored axis as an Affine."
            )
        if not isinstance(self.frame, str) or not self.frame:
            raise ParameterError(f"Grid: expected the name of a frame, got {self.frame!r}.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing_um", spacing)
        object.__setattr__(self, "origin_um", as_triple(self.origin_um, "Grid.origin_um"))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the grid that `to_dict` wrote; missing or unknown keys raise ParameterError."""
        _check_keys("Grid", record, {"shape", "spacing_um", "origin_um", "frame"})
        return cls(
            tuple(record["shape"]),
            tuple(record["spacing_um"]),
            tuple(record["origin_um"]),
            record["frame"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as JSON-ready numbers and strings; `from_dict` gives it back exactly."""
        return {
            "shape": list(self.shape),
            "spacing_um": list(self.spacing_um),
            "origin_um": list(self.origin_um),
            "frame": self.frame,
        }

    @cached_property
    def index_to_um(self) -> Affine:
        """The map from voxel indices (0, 0, 0), (0, 0, 1), ... to micrometres of `frame`."""
        return Affine.from_linear(
            np.diag(self.spacing_um),
            translation_um=self.origin_um,
            source=INDEX_FRAME,
            target=self.frame,
        )

    @cached_property
    def um_to_index(self) -> Affine:
        """The map from micrometres of `frame` to (fractional) voxel indices."""
        return self.index_to_um.inverse()

    @property
    def centre_um(self) -> NDArray[np.float64]:
        """The middle of the volume, (3,): midway between the first and last voxel centres."""
        return self.index_to_um.apply((np.asarray(self.shape) - 1) / 2)

    @property
    def extent_um(self) -> Triple:
        """Length of the volume along z, y, x, counting whole voxels."""
        z, y, x = (n * step for n, step in zip(self.shape, self.spacing_um, strict=True))
        return z, y, x

    def corners_um(self) -> NDArray[np.float64]:
        """Return the centres of the eight corner voxels, (8, 3)."""
        last = np.asarray(self.shape) - 1
        return self.index_to_um.apply(np.array(list(np.ndindex(2, 2, 2))) * last)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Self:
        """Return the grid of `image[start[0]:stop[0], start[1]:stop[1], start[2]:stop[2]]`."""
        inside = all(0 <= a < b <= n for a, b, n in zip(start, stop, self.shape, strict=True))
        if not inside:
            raise ParameterError(
                f"Grid.crop: expected 0 <= start < stop <= {self.shape}, got start {tuple(start)}, "
                f"stop {tuple(stop)}."
            )
        z, y, x = (b - a for a, b in zip(start, stop, strict=True))
        origin = as_triple(self.index_to_um.apply(start), "origin_um")
        return type(self)((z, y, x), self.spacing_um, origin, self.frame)

    def with_spacing(self, spacing_um: ArrayLike) -> Self:
        """Return a grid of other voxels over the same extent, centred alike, at least as large."""
        spacing = as_triple(spacing_um, "spacing_um")
        # The small deduction keeps a ratio of 10.000000001 from gaining an eleventh voxel.
        z, y, x = (
            max(1, int(np.ceil(length / step - 1e-6)))
            for length, step in zip(self.extent_um, spacing, strict=True)
        )
        origin = self.centre_um - (np.array((z, y, x)) - 1) / 2 * spacing
        return type(self)((z, y, x), spacing, as_triple(origin, "origin_um"), self.frame)


def rotation_matrix(rotation_rad: ArrayLike) -> NDArray[np.float64]:
    """Return the (3, 3) ZYX matrix that turns by a rotation vector (z, y, x).

    Rodrigues' formula, right-handed in (x, y, z). Reversing the order of three axes is a mirror,
    which is why the cross product below has the sign opposite to the one of XYZ textbooks.
    """
    vector = np.asarray(rotation_rad, dtype=np.float64)
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    z, y, x = vector / angle
    cross = np.array([[0, x, -y], [-x, 0, z], [y, -z, 0]])
    turn: NDArray[np.float64] = (
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )
    return turn


def _unit_axis(axis: Axis) -> Triple:
    if isinstance(axis, str):
        if axis not in ("z", "y", "x"):
            raise ParameterError(
                f"Affine.rotation: expected the axis 'z', 'y', 'x' or a ZYX vector, got {axis!r}."
            )
        z, y, x = (float(letter == axis) for letter in "zyx")
        return z, y, x
    vector = np.asarray(as_triple(axis, "axis"))
    length = np.linalg.norm(vector)
    if not length > 0:
        raise ParameterError("Affine.rotation: expected an axis with a direction, got (0, 0, 0).")
    return as_triple(vector / length, "axis")


def _check_keys(name: str, record: Mapping[str, Any], keys: set[str]) -> None:
    if set(record) != keys:
        raise ParameterError(
            f"{name}.from_dict: expected the keys {sorted(keys)}, got {sorted(record)}."
        )
