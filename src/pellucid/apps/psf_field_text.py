"""A PSF field as text: where its PSFs are and how wide."""

from collections.abc import Iterable

from rich.table import Table

from pellucid.apps.text import rendered
from pellucid.core.psf import Psf, fwhm_um
from pellucid.core.psf_field import PsfField


def field_text(field: PsfField) -> str:
    """Positions and widths of the PSFs as a table, and the notes."""
    table = Table(box=None, pad_edge=False)
    for head in ("z, y, x (um)", "FWHM z, y, x (um)"):
        table.add_column(head, justify="right")
    for psf, place in zip(field.psfs, field.positions_um, strict=True):
        widths = fwhm_um(Psf.normalised(psf, field.spacing_um))
        table.add_row(_listed(place, 4), _listed(widths, 3))
    return rendered(table) + "".join(f"note: {note}\n" for note in field.notes)


def _listed(values: Iterable[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}g}" for value in values)
