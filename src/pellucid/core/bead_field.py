"""A PSF field from a stack of beads: each bead shows the PSF of its place, and all together its change.

Every voxel of the PSF is a polynomial of the bead's position, fitted to all beads by least squares, so
that noise is averaged over beads although no two show the same PSF. Which axes it depends on, and to
which degree, is what predicts best the beads that were left out of the fit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

from pellucid.core.bead_finding import Bead, RejectedBead
from pellucid.core.beads import (
    NOT_BEADS,
    ODD_RESIDUAL,
    ODD_SIGMAS,
    as_stack,
    centred_bead,
    expected_fwhm,
    half_shape,
    usable_beads,
    without_bead_size,
)
from pellucid.core.psf import Psf, Triple, Volume, check_spacing_um, fwhm_um
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_preparation import prepare
from pellucid.errors import InputError, ParameterError

BEADS_PER_TERM = 2
"""Beads for each coefficient of the polynomial, at least."""

CORE = 0.05
"""Voxels above this share of the mean PSF's peak decide which polynomial predicts best."""

WORTH = 0.001
"""A richer polynomial must predict left-out beads better by this share."""

MOST_UNEXPLAINED = 0.5
"""Of a bead left out of the fit: 15 times brighter than its noise it leaves 0.2, specimens 0.7 or more."""

FILLED = 2
"""Times that voxels which a bead does not show are filled from the fit."""


@dataclass(frozen=True)
class Variation:
    """How a PSF depends on position: a polynomial of `degree` in `axes` (0, 1, 2 for z, y, x)."""

    axes: tuple[int, ...] = ()
    degree: int = 0

    @property
    def powers(self) -> list[tuple[int, ...]]:
        """Exponents (z, y, x) of the terms; the first is the constant."""
        ranges = [range(self.degree + 1) if axis in self.axes else range(1) for axis in range(3)]
        return sorted((p for p in itertools.product(*ranges) if sum(p) <= self.degree), key=sum)

    def terms(self, places: Volume) -> Volume:
        """Return the terms (place, term) at places scaled to -1 to 1."""
        return np.stack([np.prod(places ** np.array(p), axis=1) for p in self.powers], axis=1)

    def __str__(self) -> str:
        names = ", ".join("zyx"[axis] for axis in self.axes)
        kind = {0: "does not vary", 1: "varies linearly", 2: "varies quadratically"}[self.degree]
        return f"{kind} along {names}" if names else kind


VARIATIONS = (
    Variation(),
    *(Variation(axes, degree) for degree in (1, 2) for axes in ((0,), (1, 2), (0, 1, 2))),
)


@dataclass(frozen=True)
class BeadField:
    """A PSF field measured on beads, and the account of it.

    Parameters
    ----------
    field : PSFs on a small lattice that spans the used beads
    used, rejected : every bead that was found
    variation : the polynomial
    unexplained : root mean square of a left-out bead minus its prediction, relative to the bead
    unexplained_by_mean : the same for the mean of the other beads
    fwhm_um : (n, 3), widths of the PSFs of the field
    """

    field: PsfField
    used: tuple[Bead, ...]
    rejected: tuple[RejectedBead, ...]
    variation: Variation
    unexplained: float
    unexplained_by_mean: float
    fwhm_um: Volume


def distill_field(
    stack: npt.ArrayLike,
    spacing_um: Triple,
    *,
    bead_um: float | None = None,
    shape: tuple[int, int, int] | None = None,
    expected_fwhm_um: Triple | None = None,
) -> BeadField:
    """Return the PSF field that a stack of beads shows; parameters as in `distill`.

    Positions count from the stack's first voxel, so the field is for images of the same field of
    view. It ends with the outermost beads; beyond them the PSF is theirs.

    Raises
    ------
    InputError : fewer beads that can be used than a field needs, or spots that are no beads
    """
    spacing = check_spacing_um(spacing_um)
    if spacing is None:
        raise ParameterError("spacing_um: a PSF field needs the voxel size (z, y, x) in um.")
    values, full_scale = as_stack(stack)
    fwhm = expected_fwhm(values, spacing, expected_fwhm_um)
    beads, others, rejected = usable_beads(values, fwhm, full_scale)
    least = BEADS_PER_TERM * len(VARIATIONS[1].powers)
    if len(beads) < least:
        raise InputError(
            f"beads: expected {least} usable beads or more for a field, got {len(beads)}. Record "
            "more beads, or distill one PSF from them (without --field)."
        )
    z, y, x = np.maximum(np.nanquantile([b.fwhm_px for b in beads], 0.9, axis=0), fwhm)
    half = half_shape(values.shape, (float(z), float(y), float(x)), shape)
    shown = np.stack([centred_bead(values, bead, others, half, fwhm) for bead in beads])
    fit = _best(beads, shown)
    odd = fit.odd_ones()
    if odd.any():
        rejected += [
            RejectedBead(bead.centre_px, "odd one out")
            for bead, out in zip(beads, odd, strict=True)
            if out
        ]
        beads = [bead for bead, out in zip(beads, odd, strict=True) if not out]
        fit = _best(beads, shown[~odd])
    if not fit.error <= MOST_UNEXPLAINED:
        raise InputError(
            f"beads: {len(beads)} spots were found, and each differs by {fit.error:.0%} from what "
            f"the others predict, where beads differ by a few per cent. {NOT_BEADS}"
        )
    field = _field(fit, beads, spacing, bead_um, len(rejected))
    widths = [fwhm_um(Psf.normalised(psf, spacing)) for psf in field.psfs]
    mean = _Fit.of(beads, fit.shown, Variation())
    return BeadField(
        field, tuple(beads), tuple(rejected), fit.variation, fit.error, mean.error, np.array(widths)
    )


@dataclass(frozen=True)
class _Fit:
    """Coefficients (term, voxel) of a variation, and what it leaves of each bead left out.

    `error` is that in the core. `left` is of each bead and twice as wide, where a double bead shows.
    """

    variation: Variation
    shown: Volume
    low: Volume
    extent: Volume
    coefficients: Volume
    left: Volume
    error: float

    @classmethod
    def of(cls, beads: list[Bead], shown: Volume, variation: Variation) -> _Fit:
        centres = np.array([bead.centre_px for bead in beads])
        low, extent = centres.min(axis=0), np.maximum(np.ptp(centres, axis=0), 1e-9)
        terms = variation.terms(2 * (centres - low) / extent - 1)
        signal = np.array([bead.peak / max(bead.noise, 1e-6 * bead.peak) for bead in beads])
        weights = np.minimum(signal, np.median(signal)) ** 2
        seen = np.isfinite(shown).reshape(len(beads), -1)
        peaks = np.array([bead.peak for bead in beads])
        rows = np.where(seen, shown.reshape(len(beads), -1), 0.0) / peaks[:, None]
        mean = np.average(rows, axis=0, weights=weights)
        core = mean > CORE * mean.max()
        guess = np.broadcast_to(mean, rows.shape)
        project = np.linalg.pinv(terms * np.sqrt(weights)[:, None]) * np.sqrt(weights)
        for _ in range(1 + FILLED):
            # as bright as the guess where the bead is shown; beyond the core, background would count
            scale = _light(rows, seen & core) / _light(guess, seen & core)
            whole = np.where(seen, rows / scale, guess)
            filled = whole / _light(whole, core)
            coefficients = project @ filled
            guess = terms @ coefficients
        leverage = np.einsum("ij,ji->i", terms, project)
        left = (filled - guess) / np.maximum(1 - leverage, 1e-3)[:, None]
        squares, size = ((part[:, core] ** 2).sum(axis=1) for part in (left, filled))
        error = float(np.sqrt((weights * squares).sum() / (weights * size).sum()))
        shape = core.reshape(shown.shape[1:]).astype(float)
        near = (fftconvolve(shape, shape[::-1, ::-1, ::-1], mode="same") > 0.5).ravel()
        squares, size = ((part[:, near] ** 2).sum(axis=1) for part in (left, filled))
        return cls(variation, shown, low, extent, coefficients, np.sqrt(squares / size), error)

    def odd_ones(self) -> npt.NDArray[np.bool_]:
        """Say which beads are unlike their prediction from the others."""
        middle = np.median(self.left)
        spread = 1.4826 * np.median(np.abs(self.left - middle))
        return np.asarray(self.left > middle + np.maximum(ODD_SIGMAS * spread, ODD_RESIDUAL))

    def psf_at(self, centre_px: Volume) -> Volume:
        """Return the fitted light (z, y, x) of a bead at a place."""
        scaled = 2 * (centre_px - self.low) / self.extent - 1
        row = self.variation.terms(scaled[None]) @ self.coefficients
        return np.asarray(row.reshape(self.shown.shape[1:]))


def _light(rows: Volume, where: npt.NDArray[np.bool_]) -> Volume:
    """Return the sum of each row over the voxels `where`, as a column; 1 where there is no light."""
    total = np.where(where, rows, 0.0).sum(axis=1, keepdims=True)
    return np.where(total > 0, total, 1.0)


def _best(beads: list[Bead], shown: Volume) -> _Fit:
    """The simplest variation that predicts left-out beads about as well as any."""
    centres = np.array([bead.centre_px for bead in beads])
    possible = [
        variation
        for variation in VARIATIONS
        if len(beads) >= BEADS_PER_TERM * len(variation.powers)
        and all(np.ptp(centres[:, axis]) > 1 for axis in variation.axes)
    ]
    fits = [_Fit.of(beads, shown, variation) for variation in possible]
    least = min(fit.error for fit in fits)
    good = [fit for fit in fits if fit.error <= (1 + WORTH) * least]
    return min(good, key=lambda fit: len(fit.variation.powers))


def _field(
    fit: _Fit, beads: list[Bead], spacing: Triple, bead_um: float | None, left_out: int
) -> PsfField:
    """The fit on a lattice of as many places per axis as its degree needs, each PSF cleaned."""
    counts = float(np.median([bead.peak for bead in beads]))
    places = [
        low + extent * np.linspace(0, 1, fit.variation.degree + 1)
        if axis in fit.variation.axes
        else np.array([low + extent / 2])
        for axis, (low, extent) in enumerate(zip(fit.low, fit.extent, strict=True))
    ]
    psfs, positions = [], []
    for place in itertools.product(*places):
        values = fit.psf_at(np.array(place))
        psf = prepare(counts / values.max() * values, spacing)
        psfs.append(psf if bead_um is None else without_bead_size(psf, bead_um))
        positions.append(np.array(place) * spacing)
    notes = [
        f"measured on {len(beads)} beads ({left_out} more were left out)",
        f"{fit.variation}; a left-out bead is predicted to {fit.error:.1%}, its noise included",
    ]
    if bead_um is not None:
        notes.append(f"took out the size of the beads ({bead_um:g} um)")
    return PsfField.of(psfs, positions, notes)
