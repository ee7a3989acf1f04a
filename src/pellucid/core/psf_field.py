"""PSFs that vary across the image, as few kernels: h at s = sum_k w_k(s) h_k.

The first kernel is the mean PSF, with weight 1; the others are the principal components of what the
PSFs differ by. So the flux is exact at any rank, and a field that does not vary is its PSF. The
weights are interpolated between the positions by cubic splines; scattered positions, such as those
of beads, first go onto a lattice by a smoothed thin-plate spline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator, make_interp_spline

from pellucid.core.psf import Psf, Triple, check_spacing_um, crop_to_support
from pellucid.errors import InputError, ParameterError

Array = npt.NDArray[np.float64]
Knots = tuple[Array, Array, Array]
Shape = tuple[int, int, int]

LATTICE = 9
"""Knots per axis onto which scattered positions are interpolated: a spline through them follows any
variation that a few dozen beads can show."""

SAME_PLACE = 1e-3
"""Positions closer than this share of a voxel are one position."""


@dataclass(frozen=True, eq=False)
class PsfField:
    """PSFs at positions of the image: what an emitter there looks like.

    Parameters
    ----------
    psfs : (n, z, y, x), centred at index size // 2, of one size; the sum of each is the flux that an
        emitter there sends
    positions_um : (n, 3) in micrometres from the centre of the image's first voxel (z, y, x); an axis
        on which all are equal is one along which nothing varies
    spacing_um : voxel size (z, y, x), of PSFs and image
    notes : sentences that say where the field comes from
    """

    psfs: Array
    positions_um: Array
    spacing_um: Triple
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        psfs = np.array(self.psfs, dtype=np.float64)
        positions = np.array(self.positions_um, dtype=np.float64)
        if psfs.ndim != 4 or psfs.size == 0 or positions.shape != (len(psfs), 3):
            raise InputError(
                "PsfField: expected PSFs (n, z, y, x) and positions_um (n, 3), got shapes "
                f"{psfs.shape} and {positions.shape}. Give one position for every PSF."
            )
        if not (np.isfinite(psfs).all() and np.isfinite(positions).all()):
            raise InputError("PsfField: expected finite PSFs and positions. Repair the file.")
        if psfs.min() < 0 or psfs.sum(axis=(1, 2, 3)).min() <= 0:
            raise InputError(
                "PsfField: expected PSFs without negative values and with some light in each. "
                "Prepare each PSF first (`prepare`, `Psf.normalised`)."
            )
        spacing = check_spacing_um(self.spacing_um)
        if spacing is None:
            raise ParameterError("spacing_um: a PSF field needs the voxel size (z, y, x) in um.")
        apart = np.abs(positions[:, None] - positions[None]) / spacing
        if (apart.max(axis=2) + np.eye(len(psfs))).min() < SAME_PLACE:
            raise InputError("PsfField: two PSFs have the same position. Average them first.")
        object.__setattr__(self, "psfs", psfs)
        object.__setattr__(self, "positions_um", positions)
        object.__setattr__(self, "spacing_um", spacing)
        object.__setattr__(self, "notes", tuple(self.notes))

    @classmethod
    def of(
        cls, psfs: Sequence[Psf], positions_um: npt.ArrayLike, notes: Sequence[str] = ()
    ) -> PsfField:
        """Return the field of `psfs`, padded to one size with zeros."""
        half = np.max([np.array(psf.shape) // 2 for psf in psfs], axis=0)
        values = np.zeros((len(psfs), *(2 * half + 1)))
        for place, psf in zip(values, psfs, strict=True):
            low = half - np.array(psf.shape) // 2
            place[tuple(slice(a, a + n) for a, n in zip(low, psf.shape, strict=True))] = psf.values
        spacing = psfs[0].spacing_um
        if spacing is None or any(psf.spacing_um != spacing for psf in psfs):
            raise InputError("PsfField: expected PSFs of one known voxel size. Resample them.")
        return cls(values, np.asarray(positions_um, dtype=np.float64), spacing, tuple(notes))

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x) of each PSF."""
        z, y, x = self.psfs.shape[1:]
        return z, y, x

    @property
    def typical(self) -> Psf:
        """The mean PSF."""
        return Psf.normalised(self.psfs.mean(axis=0), self.spacing_um, self.notes)

    def noted(self, *sentences: str) -> PsfField:
        """The same field with more notes."""
        return replace(self, notes=(*self.notes, *sentences))

    def cropped(self, energy: float) -> PsfField:
        """The field in the smallest box that holds `energy` of the light of the widest PSF.

        Each PSF keeps its flux.
        """
        boxes = [
            crop_to_support(Psf.normalised(psf, self.spacing_um), energy).shape for psf in self.psfs
        ]
        spans = []
        for size, box in zip(self.shape, np.max(boxes, axis=0), strict=True):
            low = size // 2 - int(box) // 2
            spans.append(slice(max(low, 0), max(low, 0) + int(box)))
        flux = self.psfs.sum(axis=(1, 2, 3), keepdims=True)
        values = self.psfs[(slice(None), *spans)]
        values = values * (flux / values.sum(axis=(1, 2, 3), keepdims=True))
        note = () if values.shape == self.psfs.shape else (f"cropped to {values.shape[1:]} voxels",)
        return replace(self, psfs=values, notes=(*self.notes, *note))

    def focal_planes(self) -> PsfField:
        """The field of 2D images: of each PSF the plane through its centre, with its flux."""
        flux = self.psfs.sum(axis=(1, 2, 3), keepdims=True)
        planes = self.psfs[:, self.shape[0] // 2][:, None]
        planes = planes * (flux / planes.sum(axis=(1, 2, 3), keepdims=True))
        return replace(self, psfs=planes).noted("took the planes in focus")

    def expanded(
        self, accuracy: float = 1e-3, *, rank: int | None = None, smoothing: float = 0.0
    ) -> PsfExpansion:
        """Return the field as few kernels with smooth weights.

        Parameters
        ----------
        accuracy : every PSF is met to this share of its root sum of squares; sets the rank
        rank : number of kernels instead
        smoothing : of scattered positions: 0 passes through every PSF, more averages noise away
        """
        if not 0 < accuracy < 1:
            raise ParameterError(f"accuracy must lie between 0 and 1, got {accuracy:g}.")
        if rank is not None and rank < 1:
            raise ParameterError(f"rank must be 1 or more, got {rank}.")
        rows = self.psfs.reshape(len(self.psfs), -1)
        mean = rows.mean(axis=0)
        left, values, right = np.linalg.svd(rows - mean, full_matrices=False)
        scores = left * values
        # what is left out after each rank, for the worst PSF
        rest = np.cumsum((scores**2)[:, ::-1], axis=1)[:, ::-1] / (rows**2).sum(1, keepdims=True)
        errors = np.sqrt(np.append(rest.max(axis=0), 0.0))
        terms = int(np.argmax(errors <= accuracy)) if rank is None else min(rank, len(rows)) - 1
        coefficients = np.concatenate([np.ones((len(rows), 1)), scores[:, :terms]], axis=1)
        kernels = np.concatenate([mean[None], right[:terms]])
        knots, table = _on_lattice(
            self.positions_um, coefficients, np.asarray(self.spacing_um), smoothing
        )
        shape = self.psfs.shape[1:]
        return PsfExpansion(
            kernels.reshape(-1, *shape), table, knots, self.spacing_um, float(errors[terms])
        )


@dataclass(frozen=True, eq=False)
class PsfExpansion:
    """A PSF field as kernels and weights: h at s = sum_k w_k(s) h_k.

    Parameters
    ----------
    kernels : (rank, z, y, x); the first is the mean PSF
    table : (rank, knots z, knots y, knots x), the weights on a lattice; the first are 1
    knots : positions in micrometres on each axis; one where nothing varies
    spacing_um : voxel size of the kernels
    error : what the rank leaves out of the worst PSF, as a share of its root sum of squares
    """

    kernels: Array
    table: Array
    knots: Knots
    spacing_um: Triple
    error: float

    @property
    def rank(self) -> int:
        """Number of kernels."""
        return len(self.kernels)

    def weights(self, places_um: Knots, terms: slice = slice(None)) -> Array:
        """Return the weights (terms, z, y, x) at all combinations of the places on the three axes.

        Beyond the outermost knots the weights are those at the knots. An axis along which nothing
        varies has one voxel.
        """
        values = self.table[terms]
        for axis, (knots, places) in enumerate(zip(self.knots, places_um, strict=True)):
            values = _interpolated(values, knots, places, axis + 1)
        return values

    def psf_at(self, place_um: Triple) -> Array:
        """Return the PSF (z, y, x) of an emitter at a place, as the expansion has it."""
        z, y, x = (np.array([float(at)]) for at in place_um)
        weights = self.weights((z, y, x))[:, 0, 0, 0]
        return np.asarray(np.tensordot(weights, self.kernels, axes=1))


def _interpolated(values: Array, knots: Array, places: Array, axis: int) -> Array:
    if len(knots) == 1:
        return values
    spline = make_interp_spline(knots, values, k=min(3, len(knots) - 1), axis=axis)
    return np.asarray(spline(np.clip(places, knots[0], knots[-1])))


def _on_lattice(
    positions: Array, coefficients: Array, spacing: Array, smoothing: float
) -> tuple[Knots, Array]:
    """Return knots on each axis and the coefficients (rank, z, y, x) on their lattice."""
    knots = [_distinct(positions[:, axis], spacing[axis]) for axis in range(3)]
    shape = tuple(len(k) for k in knots)
    rank = coefficients.shape[1]
    if np.prod(shape) == len(positions) and smoothing == 0:
        index = tuple(
            np.abs(positions[:, axis, None] - knots[axis]).argmin(axis=1) for axis in range(3)
        )
        table = np.empty((rank, *shape))
        table[(slice(None), *index)] = coefficients.T
        return (knots[0], knots[1], knots[2]), table
    varying = [axis for axis in range(3) if len(knots[axis]) > 1]
    places = positions[:, varying]
    scale = np.ptp(places, axis=0)
    for axis in varying:
        knots[axis] = np.linspace(knots[axis][0], knots[axis][-1], LATTICE)
    lattice = np.stack(np.meshgrid(*(knots[a] for a in varying), indexing="ij"), axis=-1)
    low = places.min(axis=0)
    # a plane through the coefficients needs more points than axes, not all on one line
    enough = np.linalg.matrix_rank(np.column_stack([np.ones(len(places)), (places - low) / scale]))
    flat = enough <= len(varying)
    spline = RBFInterpolator(
        (places - low) / scale, coefficients, smoothing=smoothing,
        kernel="linear" if flat else "thin_plate_spline", degree=0 if flat else 1,
    )  # fmt: skip
    table = spline((lattice.reshape(-1, len(varying)) - low) / scale).T
    return (knots[0], knots[1], knots[2]), table.reshape(rank, *(len(k) for k in knots))


def _distinct(values: Array, voxel: float) -> Array:
    ordered = np.sort(values)
    return np.asarray(ordered[np.append(True, np.diff(ordered) > SAME_PLACE * voxel)])
