"""Finding input files: one file, a folder of files or a pattern, in natural order."""

import difflib
import glob
import re
from pathlib import Path

from pellucid.data.zarr_json import is_n5, is_zarr
from pellucid.errors import InputError

NUMBER = re.compile(r"(.+)#(\d+)")
"""Of one image in a file that holds several: dataset.xml#1."""

IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".zarr", ".npy", ".npz", ".ims", ".h5", ".n5")


def find_inputs(spec: str | Path) -> list[Path]:
    """The input files that `spec` names, in natural order ("t2" before "t10").

    Parameters
    ----------
    spec : a file, an OME-Zarr folder (one input), a folder of images, or a glob pattern; any of them
        with the number of an image (see `numbered_image`), which the paths then end in

    Raises
    ------
    InputError : nothing found; lists what the folder holds instead
    """
    path, image = numbered_image(spec)
    if image is not None:
        return [Path(f"{found}#{image}") for found in find_inputs(path)]
    if path.is_dir() and not _is_store(path):
        found = [entry for entry in path.iterdir() if _looks_like_image(entry)]
        if not found:
            raise InputError(f"{path}: no images in this folder; {_holds(path)}")
    elif path.exists() or not glob.has_magic(str(path)):
        return [check_input_path(path)]
    else:
        # A pattern is the user's own choice of files, so their suffix is not judged here.
        found = [
            Path(name)
            for name in glob.glob(str(path), recursive=True)
            if not Path(name).name.startswith(".") and not Path(name).name.endswith(".partial")
            and (Path(name).is_file() or _is_store(Path(name)))
        ]  # fmt: skip
        if not found:
            folder = next(p for p in path.parents if not glob.has_magic(str(p)))
            raise InputError(f"{spec}: the pattern matches no file; {_holds(folder)}")
    return sorted(found, key=natural_key)


def numbered_image(spec: str | Path) -> tuple[Path, int | None]:
    """A path, and the number of the image of it that is meant: `dataset.xml#1` is image 1 of `dataset.xml`.

    A file whose own name ends so is that file, whole: (path, None).
    """
    path = Path(spec).expanduser()
    match = NUMBER.fullmatch(str(path))
    return (path, None) if match is None or path.exists() else (Path(match[1]), int(match[2]))


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key that counts digits as numbers."""
    pieces = re.split(r"(\d+)", str(path))
    return [(0, int(p), p) if p.isdigit() else (1, 0, p.lower()) for p in pieces if p]


def check_input_path(path: str | Path) -> Path:
    """`path` as a Path if there is something finished to open, else InputError with what to do."""
    path, image = numbered_image(path)
    if image is not None:
        return Path(f"{check_input_path(path)}#{image}")
    if path.name.endswith(".partial"):
        raise InputError(
            f"{path.name}: the unfinished output of a run that is going on or was interrupted. "
            "Wait for it, or delete it and run again."
        )
    if not path.exists():
        near = _close_matches(path)
        hint = f"Did you mean {near}?" if near else _holds(path.parent)
        raise InputError(f"{path}: no such file. {hint}")
    if path.is_dir():
        if not _is_store(path):
            raise InputError(
                f"{path}: a folder, and not an OME-Zarr; {_holds(path)} "
                "Give one file, or find_inputs for all of them."
            )
    elif path.stat().st_size == 0:
        raise InputError(f"{path.name}: the file is empty (0 bytes). Copy or export it again.")
    return path


def _looks_like_image(entry: Path) -> bool:
    return (
        entry.suffix.lower() in IMAGE_SUFFIXES
        and not entry.name.startswith(".")
        and (entry.is_file() or _is_store(entry))
    )


def _is_store(path: Path) -> bool:
    return is_zarr(path) or is_n5(path)


def _close_matches(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    return " or ".join(difflib.get_close_matches(path.name, names, n=3, cutoff=0.6))


def _holds(folder: Path) -> str:
    """One sentence on what lies in `folder`, for messages."""
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not names:
        return f"{folder} is empty."
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{folder} holds {', '.join(names[:6])}{more}."
