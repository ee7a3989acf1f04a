"""PSF fields as files: NumPy archives (.npz) of plain numbers, never of pickled objects.

An archive holds `psfs` (n, z, y, x), `positions_um` (n, 3) and `spacing_um` (3,), as `PsfField` has
them, and `notes`, text. Anything that writes these three arrays with `numpy.savez` makes a field.
"""

import zipfile
from pathlib import Path

import numpy as np

from pellucid.core.psf_field import PsfField
from pellucid.data.writer import check_output_path, plain_errors, remove, replace
from pellucid.errors import InputError, OutputError, PellucidError

SUFFIX = ".npz"
NEEDED = ("psfs", "positions_um", "spacing_um")


def is_field_file(path: Path) -> bool:
    """Whether `path` is an archive of PSFs and their positions, whole or not."""
    if path.suffix.lower() != SUFFIX or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "positions_um.npy" in archive.namelist()


def read_psf_field(path: Path) -> PsfField:
    """The PSF field in a file; InputError where it is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in NEEDED if name not in archive.files]
            if missing:
                raise InputError(
                    f"expected the arrays {', '.join(NEEDED)}, and {', '.join(missing)} is missing"
                )
            psfs, positions, spacing = (archive[name] for name in NEEDED)
            notes = archive["notes"].tolist() if "notes" in archive.files else []
        z, y, x = (float(step) for step in spacing)
        return PsfField(psfs, positions, (z, y, x), tuple(str(note) for note in notes))
    except PellucidError as error:
        raise InputError(f"{path.name}: {error}") from error
    except Exception as error:  # zipfile, zlib, numpy.lib.format: each has its own tree
        raise InputError(
            f"{path.name}: not a complete PSF field ({error}). Make it again with "
            "`pellucid psf field` or `pellucid psf beads --field`."
        ) from error


def check_field_output(path: Path, overwrite: bool) -> None:
    """Raise OutputError unless a PSF field can be written to `path`."""
    if path.suffix.lower() != SUFFIX:
        raise OutputError(f"{path.name}: a PSF field is a {SUFFIX} file. Name it field{SUFFIX}.")
    check_output_path(path, overwrite)


def write_psf_field(path: Path, field: PsfField, *, overwrite: bool = False) -> None:
    """Write a PSF field as float32; nothing is at `path` before it is complete."""
    check_field_output(path, overwrite)
    partial = path.with_name(path.name + ".partial")
    try:
        with plain_errors(path), partial.open("wb") as file:
            np.savez_compressed(
                file,
                psfs=field.psfs.astype(np.float32),
                positions_um=field.positions_um,
                spacing_um=np.array(field.spacing_um),
                notes=np.array(field.notes, dtype=np.str_),
            )
        with plain_errors(path):
            replace(partial, path)
    finally:
        remove(partial)
