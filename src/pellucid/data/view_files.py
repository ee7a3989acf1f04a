"""Which files make up one view: a file, a folder, or a pattern with {t} and {c} in it.

The time points of a view are numbered as its file names number them; its channels are named as
its folders are, or as the file names them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pellucid.data.inputs import check_input_path, find_inputs, natural_key, numbered_image
from pellucid.data.zarr_json import is_zarr
from pellucid.errors import InputError

PLACEHOLDERS = {"{t}": r"(?P<t>\d+)", "{c}": r"(?P<c>[^/]+?)"}
ARM = re.compile(r"SPIM[A-D]$", re.IGNORECASE)


@dataclass(frozen=True)
class ViewFile:
    """One file of a view; None where the file itself holds the axis, or there is but one."""

    path: Path
    time: int | None
    channel: str | None


def find_view_files(spec: str | Path) -> list[ViewFile]:
    """The files of the view that `spec` names, in the order of channels and time points.

    Parameters
    ----------
    spec : a file; an OME-Zarr; a folder with one file for each time point, or with such a folder
        for each channel; a pattern with {t}, {c} or * in it, such as SPIMA/SPIMA_{t}.tif,
        main/{c}/SPIMA or SPIMA_*.tif; any of them with the number of an image, as dataset.xml#1

    Raises
    ------
    InputError : nothing found, a file found twice, or names from which no time can be read
    """
    path, image = numbered_image(spec)
    if image is not None:
        return [replace(f, path=Path(f"{f.path}#{image}")) for f in find_view_files(path)]
    text = str(path)
    if "{t}" in text or "{c}" in text:
        files = _by_pattern(text)
    else:
        inner = _folders_of_images(path) if path.is_dir() and not is_zarr(path) else []
        if inner and not any(_is_image(entry) for entry in path.iterdir()):
            files = [file for folder in inner for file in _in_folder(folder, folder.name)]
        elif (path.is_dir() and not is_zarr(path)) or "*" in text or "?" in text:
            files = _numbered(find_inputs(path), None)
        else:
            files = [ViewFile(check_input_path(path), None, None)]
    seen: dict[tuple[int | None, str | None], Path] = {}
    for file in files:
        other = seen.setdefault((file.time, file.channel), file.path)
        if other != file.path:
            raise InputError(
                f"{spec}: {other.name} and {file.path.name} would both be time point {file.time}. "
                "Say where the number stands: a pattern such as SPIMA_{t}.tif."
            )
    return files


def arms_in(folder: Path) -> list[str]:
    """The views that a folder of a diSPIM recording holds, as names for `find_view_files`.

    `folder/{SPIMA,SPIMB}` or `folder/<colour>/{SPIMA,SPIMB}`; empty where neither is there.
    """
    if not folder.is_dir() or is_zarr(folder):
        return []
    direct = {entry.name for entry in folder.iterdir() if entry.is_dir() and ARM.match(entry.name)}
    if direct:
        return [str(folder / name) for name in sorted(direct)]
    below = {
        arm.name
        for colour in folder.iterdir()
        if colour.is_dir() and not is_zarr(colour)
        for arm in colour.iterdir()
        if arm.is_dir() and ARM.match(arm.name)
    }
    return [str(folder / "{c}" / name) for name in sorted(below)]


def _by_pattern(text: str) -> list[ViewFile]:
    """Files that match a pattern with placeholders; a folder that matches gives all its files."""
    parts = re.split(r"(\{t\}|\{c\})", text)
    seen: set[str] = set()
    expression = ""
    for part in parts:
        if part in PLACEHOLDERS:
            name = part[1]
            expression += f"(?P={name})" if name in seen else PLACEHOLDERS[part]
            seen.add(name)
        else:
            expression += re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    star = "".join("*" if part in PLACEHOLDERS else part for part in parts)
    root = Path(Path(star).anchor or ".")
    pattern = str(Path(star).relative_to(root)) if Path(star).anchor else star
    files: list[ViewFile] = []
    for path in sorted(root.glob(pattern), key=natural_key):
        match = re.fullmatch(expression, path.as_posix())
        if match is None or path.name.endswith(".partial"):
            continue
        found = match.groupdict()
        if path.is_dir() and not is_zarr(path):
            files += _in_folder(path, found.get("c"))
        else:
            time = found.get("t")
            files.append(ViewFile(path, None if time is None else int(time), found.get("c")))
    if not files:
        raise InputError(
            f"{text}: no file matches this pattern. {{t}} stands for the number of the time point, "
            "{c} for the name of the channel, * for anything."
        )
    if "{t}" not in text and any(file.time is None for file in files):
        counts = [file.channel for file in files]
        if len(set(counts)) < len(counts):
            raise InputError(f"{text}: several files for one channel; write {{t}} in the pattern.")
    return files


def _in_folder(folder: Path, channel: str | None) -> list[ViewFile]:
    return _numbered(find_inputs(folder), channel)


def _numbered(paths: Sequence[Path], channel: str | None) -> list[ViewFile]:
    """Files with the number in their names that tells them apart as their time point."""
    if len(paths) == 1:
        return [ViewFile(paths[0], None, channel)]
    numbers = [re.findall(r"\d+", path.name) for path in paths]
    if len({len(found) for found in numbers}) == 1:
        varying = [
            place for place in range(len(numbers[0])) if len({found[place] for found in numbers}) > 1
        ]
        if len(varying) == 1:
            times = [int(found[varying[0]]) for found in numbers]
            return [ViewFile(p, t, channel) for p, t in zip(paths, times, strict=True)]
    raise InputError(
        f"{paths[0].parent}: no single number tells {paths[0].name} and {paths[-1].name} apart. "
        "Say where it stands: a pattern such as SPIMA_{t}.tif."
    )


def _folders_of_images(folder: Path) -> list[Path]:
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and not is_zarr(entry)]
    return sorted((e for e in inner if any(_is_image(i) for i in e.iterdir())), key=natural_key)


def _is_image(entry: Path) -> bool:
    return not entry.name.startswith(".") and (
        entry.suffix.lower() in (".tif", ".tiff", ".btf", ".npy", ".npz")
        if entry.is_file()
        else is_zarr(entry)
    )
