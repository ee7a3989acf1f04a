"""TIFF files (OME, ImageJ, Micro-Manager, plain, BigTIFF): planes and parts of planes, lazily."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from pellucid.data.source import Array, check_axes, check_pixels, plain_axes
from pellucid.data.tiff_checks import check_complete, check_decodable, check_page_chain
from pellucid.data.tiff_metadata import tiff_calibration
from pellucid.errors import InputError

# tifffile reports damage to its logger, which prints when nobody listens. What matters of it is
# raised here as an InputError.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffSource:
    """One image of a TIFF file, opened and checked: every strip it promises is in the file.

    Raises InputError for a truncated file, missing companion files of a series, colour (RGB)
    pixels, a compression that cannot be decoded, several images, and axes that nobody stated.
    """

    def __init__(self, path: Path, axes: str | None = None, image: int | None = None) -> None:
        check_page_chain(path)
        try:
            with tifffile.TiffFile(path) as file:
                self._describe(file, path, axes, image)
        except InputError:
            raise
        except Exception as error:  # tifffile raises struct, key, value and its own errors
            raise InputError(
                f"{path.name}: cannot be read as TIFF ({error}). "
                "It is truncated or damaged: copy or export it again."
            ) from error

    def _describe(
        self, file: tifffile.TiffFile, path: Path, axes: str | None, image: int | None
    ) -> None:
        every = file.series
        number = _choose_image(every, path, image)
        series = every[number]
        page = series.keyframe
        if page.samplesperpixel > 1:
            raise InputError(
                f"{path.name}: a colour (RGB) picture, {page.samplesperpixel} samples per pixel. "
                "Give the recorded intensities; in Fiji: Image > Type > 16-bit, or Split Channels."
            )
        if page.imagedepth > 1:
            raise InputError(
                f"{path.name}: a TIFF whose pages are volumes, which is not read. "
                "Save it in Fiji as a plain stack."
            )
        self.dtype = check_pixels(np.dtype(series.dtype), series.shape, path.name)
        check_decodable(page, path.name)
        check_complete(file, series, number, path.name)
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.axes = _axes(series.axes, self.shape, path.name, axes)
        self.calibration = tiff_calibration(file, number)
        self._path = path
        sources = {_path_of(page).resolve(): None for page in series.pages}
        self.files = (path, *(file for file in sources if file != path.resolve()))
        self._pages: Any = series.pages  # all there: check_complete has seen to it
        self._offset: int | None = series.dataoffset
        self._stored = self.dtype.newbyteorder(file.byteorder)

    def read(self, selection: tuple[slice, ...]) -> Array:
        """One block, reading only the rows, strips or tiles that it touches."""
        *leading, rows, columns = selection
        counts = [part.stop - part.start for part in selection]
        block = np.empty(counts, self.dtype)
        # Files are opened anew for each block: threads share nothing, and nothing stays open.
        with _OpenFiles() as files:
            for where in np.ndindex(*counts[:-2]):
                index = [part.start + i for part, i in zip(leading, where, strict=True)]
                plane = int(np.ravel_multi_index(index, self.shape[:-2])) if index else 0
                try:
                    self._read_plane(files, plane, rows, columns, block[where])
                except Exception as error:  # codecs raise whatever they like
                    raise InputError(
                        f"{self._path.name}: plane {plane} cannot be decoded ({error}). "
                        "The file is damaged there: copy or export it again."
                    ) from error
        return block

    def _read_plane(
        self, files: "_OpenFiles", plane: int, rows: slice, columns: slice, into: Array
    ) -> None:
        height, width = self.shape[-2:]
        if self._offset is not None:
            path = self._path
            start = self._offset + plane * height * width * self.dtype.itemsize
        else:
            page = self._pages[plane]
            if not page.keyframe.is_final:
                self._decode(files, page, rows, columns, into)
                return
            path, start = _path_of(page), page.dataoffsets[0]
        # The pixels lie in the file as they are: whole rows are read.
        count = rows.stop - rows.start
        start += rows.start * width * self.dtype.itemsize
        raw = files.read(path, start, count * width * self.dtype.itemsize)
        into[...] = np.frombuffer(raw, self._stored).reshape(count, width)[:, columns]

    def _decode(
        self, files: "_OpenFiles", page: Any, rows: slice, columns: slice, into: Array
    ) -> None:
        """The strips or tiles of a compressed or divided plane that the block touches."""
        keyframe = page.keyframe
        _, length, width, _ = keyframe.decode(None, 0)[2]
        across = -(-keyframe.imagewidth // width)
        tables = keyframe.jpegtables
        for down in range(rows.start // length, -(-rows.stop // length)):
            for right in range(columns.start // width, -(-columns.stop // width)):
                segment = down * across + right
                size = page.databytecounts[segment]
                raw = files.read(_path_of(page), page.dataoffsets[segment], size) if size else None
                pixels = keyframe.decode(raw, segment, jpegtables=tables)[0]
                y0, x0 = down * length, right * width
                y = slice(max(rows.start, y0), min(rows.stop, y0 + length))
                x = slice(max(columns.start, x0), min(columns.stop, x0 + width))
                target = into[
                    y.start - rows.start : y.stop - rows.start,
                    x.start - columns.start : x.stop - columns.start,
                ]
                if pixels is None:  # a sparse file: an empty segment stands for its fill value
                    target[...] = keyframe.nodata
                else:
                    plane = pixels[0, :, :, 0]
                    target[...] = plane[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]


class _OpenFiles(ExitStack):
    """The files of one read, each opened when it is first needed and closed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, BinaryIO] = {}

    def read(self, path: Path, start: int, count: int) -> bytes:
        """`count` bytes from byte `start`; raises EOFError where the file ends before."""
        if path not in self._files:
            self._files[path] = self.enter_context(path.open("rb"))
        self._files[path].seek(start)
        raw = self._files[path].read(count)
        if len(raw) != count:
            raise EOFError(f"expected {count} bytes at {start}, got {len(raw)}")
        return raw


def _path_of(page: Any) -> Path:
    """The file that holds `page`: series of several files have companions."""
    return Path(page.parent.filehandle.path)


def _choose_image(every: Any, path: Path, image: int | None) -> int:
    if not every:
        raise InputError(f"{path.name}: a TIFF without an image. Export it again.")
    if image is None and len(every) == 1:
        return 0
    shapes = "; ".join(f"{i}: {'x'.join(map(str, s.shape))}" for i, s in enumerate(every[:8]))
    if image is None:
        raise InputError(
            f"{path.name}: holds {len(every)} images ({shapes}). "
            f"Say which: {path.name}#0, or image=0."
        )
    if not 0 <= image < len(every):
        raise InputError(f"{path.name}: there is no image {image}; it holds {shapes}.")
    return image


def _axes(letters: str, shape: tuple[int, ...], name: str, stated: str | None) -> str:
    """Recording axes of a tifffile series: its own where they are known, else zyx or `stated`."""
    if stated is not None:
        return check_axes(stated, shape, name)
    if set(letters) <= set("TCZYX"):
        return letters.lower()
    # tifffile calls a dimension that the file does not name I (pages) or Q.
    if len(letters) == 3 and letters[0] in "IQ":
        return "zyx"
    if set(letters) <= set("IQYX"):
        return plain_axes(shape, name, None)
    raise InputError(
        f"{name}: has axes {letters} with sizes {shape}, and only t, c, z, y, x are understood. "
        "Say what they are with axes='tzyx' (one letter for each), or split the file."
    )
