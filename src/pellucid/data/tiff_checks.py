"""Is this TIFF whole and decodable? Asked when it is opened, before any work starts on it."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from pellucid.data.tiff_metadata import promised_ome_planes
from pellucid.errors import InputError


def check_page_chain(path: Path) -> int:
    """Number of pages in the file's chain; raises InputError where the chain runs off its end.

    A file cut short while being copied keeps a valid beginning. tifffile then returns the pages
    that are left without an error, so the chain (TIFF 6.0, section 2) is walked here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
        big = _unpack(file, order + "H", 2, size, path) == 43
        offset = _unpack(file, order + ("Q" if big else "I"), 8 if big else 4, size, path)
        counter, entry_bytes, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise _truncated(path, f"page {len(seen)} points back to an earlier page")
            seen.add(offset)
            entries = _unpack(file, order + counter, offset, size, path)
            offset = _unpack(
                file, order + pointer,
                offset + struct.calcsize(order + counter) + entries * entry_bytes, size, path,
            )  # fmt: skip
    if not seen:
        raise _truncated(path, "it has a header and no page")
    return len(seen)


def check_decodable(page: Any, name: str) -> None:
    """Raise InputError when the pixels of `page` are compressed in a way that is not understood."""
    if page.compression in tifffile.TIFF.DECOMPRESSORS:
        decode = page.decode
        if not decode.__name__.startswith("decode_raise"):
            return
    method = getattr(page.compression, "name", page.compression)
    raise InputError(
        f"{name}: TIFF compression {method} with {page.dtype} pixels is not supported. "
        "Save it uncompressed, or with zstd, deflate or LZW."
    )


def check_complete(file: tifffile.TiffFile, series: Any, number: int, name: str) -> None:
    """Raise InputError unless every plane that the file promises lies within it."""
    promised = _promised_planes(file, number)
    held = int(np.prod(series.shape[:-2], dtype=np.int64))
    if promised > held:
        raise InputError(
            f"{name}: truncated: promises {promised} planes and holds {held}. "
            "Copy or export it again."
        )
    missing = [i for i, page in enumerate(series.pages) if page is None]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {held} planes are missing (first: plane {missing[0]}). "
            "Companion files of the series are absent or the recording was stopped early: "
            "put them in the same folder, or save the complete time points as a new file."
        )
    if series.dataoffset is not None:
        _check_end(series.dataoffset + series.nbytes, file, name)
        return
    for page in series.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            _check_end(offset + count, page.parent, name)


def _promised_planes(file: tifffile.TiffFile, number: int) -> int:
    """Planes that the metadata announces; 0 where it says nothing."""
    if file.is_ome and file.ome_metadata:
        return promised_ome_planes(file.ome_metadata, number)
    said = file.imagej_metadata
    if said is not None:
        counted = [int(said.get(axis, 1)) for axis in ("channels", "slices", "frames")]
        return max(int(np.prod(counted)), int(said.get("images", 1)))
    if file.shaped_metadata and number < len(file.shaped_metadata):
        return int(np.prod(file.shaped_metadata[number]["shape"][:-2], dtype=np.int64))
    return 0


def _check_end(end: int, file: Any, name: str) -> None:
    if end > file.filehandle.size:
        raise InputError(
            f"{name}: truncated: its pixels end at byte {end} and the file at "
            f"{file.filehandle.size}. Copy or export it again."
        )


def _unpack(file: BinaryIO, layout: str, offset: int, size: int, path: Path) -> int:
    count = struct.calcsize(layout)
    if offset + count > size:
        raise _truncated(path, f"its page table points to byte {offset}, past the end at {size}")
    file.seek(offset)
    return int(struct.unpack(layout, file.read(count))[0])


def _truncated(path: Path, what: str) -> InputError:
    return InputError(f"{path.name}: truncated or damaged TIFF: {what}. Copy or export it again.")
