"""PSFs that change with depth, where the sample bends light otherwise than the immersion does."""

import itertools
from collections.abc import Callable

import numpy as np

from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.errors import ParameterError

MOST_DEPTHS = 33
"""Depths at which PSFs are computed at most."""


def depth_field(
    psf_of: Callable[[float], Psf],
    z_of: Callable[[float], float],
    deepest_um: float,
    *,
    accuracy: float = 0.02,
) -> PsfField:
    """Return the field of emitters from the cover glass down to `deepest_um`.

    Depths are halved until the PSF halfway between two neighbours, as the field interpolates it, is
    the computed one.

    Parameters
    ----------
    psf_of : the PSF of an emitter at a depth in micrometres
    z_of : the z, in micrometres from the image's first plane, at which that emitter is in focus
    accuracy : to be met at every halfway depth, as a share of the PSF's root sum of squares
    """
    if not deepest_um > 0:
        raise ParameterError(f"depth: expected more than 0 micrometres, got {deepest_um:g}.")
    depths = [0.0, deepest_um / 2, deepest_um]
    psfs = {depth: psf_of(depth) for depth in depths}
    unsure = list(itertools.pairwise(depths))
    worst: dict[tuple[float, float], float] = {}
    while unsure and len(psfs) < MOST_DEPTHS:
        halfway = {(a, b): (a + b) / 2 for a, b in unsure}
        tried = {**psfs, **{depth: psf_of(depth) for depth in halfway.values()}}
        places = {depth: (z_of(depth), 0.0, 0.0) for depth in tried}
        whole = PsfField.of(list(tried.values()), list(places.values()))
        known = [i for i, depth in enumerate(tried) if depth in psfs]
        coarse = PsfField(whole.psfs[known], whole.positions_um[known], whole.spacing_um)
        expansion = coarse.expanded(accuracy / 10)
        index = {depth: i for i, depth in enumerate(tried)}
        worst = {}
        for span, depth in halfway.items():
            exact = whole.psfs[index[depth]]
            off = expansion.psf_at(places[depth]) - exact
            worst[span] = float(np.linalg.norm(off) / np.linalg.norm(exact))
        unsure = [
            half
            for (a, b), error in worst.items()
            if error > accuracy
            for half in ((a, halfway[a, b]), (halfway[a, b], b))
        ]
        psfs = tried
    ordered = sorted(psfs)
    note = (
        f"PSFs of emitters {ordered[0]:g} to {ordered[-1]:.4g} um deep, at {len(ordered)} depths, "
        f"in focus at z from {z_of(ordered[0]):.4g} to {z_of(ordered[-1]):.4g} um"
    )
    notes = [note, *psfs[0.0].notes[:1]]
    if unsure:
        notes.append(f"between depths the field is off by up to {max(worst.values()):.1%}")
    return PsfField.of(
        [psfs[depth] for depth in ordered], [(z_of(depth), 0.0, 0.0) for depth in ordered], notes
    )
