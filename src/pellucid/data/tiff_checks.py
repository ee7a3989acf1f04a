"""Is this TIFF whole and decodable? Asked when it is opened, before any work starts on it."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from pellucid.data.tiff_metadata import promised_ome_planes
from pellucid.errors import InputError

# Bytes of one value of each field type (TIFF 6.0, section 2; 13 and 16 to 18 of BigTIFF).
VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip


def check_page_chain(path: Path) -> int:
    """Number of pages in the file's chain; raises InputError where it, or a tag, leaves the file.

    A file cut short while being copied keeps a valid beginning. tifffile then returns the pages
    that are left, and drops tags that are not (the OME-XML, often at the end), without an error;
    so the chain (TIFF 6.0, section 2) is walked here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
        big = _unpack(file, order + "H", 2, size, path) == 43
        pointer = order + ("Q" if big else "I")
        counter, entry = (order + "Q", order + "HHQ") if big else (order + "H", order + "HHI")
        offset = _unpack(file, pointer, 8 if big else 4, size, path)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise _truncated(path, f"page {len(seen)} points back to an earlier page")
            seen.add(offset)
            entries = _unpack(file, counter, offset, size, path)
            table = offset + struct.calcsize(counter)
            stride = struct.calcsize(entry) + struct.calcsize(pointer)
            tags = _bytes(file, entries * stride, table, size, path)
            for start in range(0, len(tags), stride):
                tag, end = _end_of_value(tags, start, entry, pointer)
                if end > size:
                    raise _truncated(path, f"tag {tag} ends at byte {end} and the file at {size}")
            offset = _unpack(file, pointer, table + len(tags), size, path)
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


def _end_of_value(tags: bytes, start: int, entry: str, pointer: str) -> tuple[int, int]:
    """Tag number, and where in the file its value ends; 0 for a value inside the entry."""
    tag, kind, count = struct.unpack_from(entry, tags, start)
    value_bytes = VALUE_BYTES.get(kind, 0) * count
    if value_bytes <= struct.calcsize(pointer):
        return tag, 0
    (where,) = struct.unpack_from(pointer, tags, start + struct.calcsize(entry))
    return tag, where + value_bytes


def _unpack(file: BinaryIO, layout: str, offset: int, size: int, path: Path) -> int:
    return int(struct.unpack(layout, _bytes(file, struct.calcsize(layout), offset, size, path))[0])


def _bytes(file: BinaryIO, count: int, offset: int, size: int, path: Path) -> bytes:
    if offset + count > size:
        raise _truncated(path, f"its page table points to byte {offset}, past the end at {size}")
    file.seek(offset)
    return file.read(count)


def _truncated(path: Path, what: str) -> InputError:
    return InputError(f"{path.name}: truncated or damaged TIFF: {what}. Copy or export it again.")
