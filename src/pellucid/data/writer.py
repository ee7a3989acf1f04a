"""What every output has in common: checks before the work, and no finished look before the end."""

import errno
import math
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, final

import numpy as np

from pellucid.data.pixels import IntegerScale, check_output_dtype, to_dtype
from pellucid.data.source import Array
from pellucid.errors import OutputError, ParameterError, PellucidError, PlanError

ZARR_MARKS = ("zarr.json", ".zgroup")
"""Files of which a folder of OME-Zarr holds one."""


@dataclass(frozen=True)
class ImageDescription:
    """What an output will hold.

    Parameters
    ----------
    shape : (t, c, z, y, x)
    dtype : type of the stored pixels
    voxel_um : (z, y, x) micrometres; None writes no scale, rather than a wrong one
    channels : a name for each channel; empty for "channel 0", ...
    time_step_s : seconds between time points, if known
    """

    shape: tuple[int, int, int, int, int]
    dtype: str = "float32"
    voxel_um: tuple[float, float, float] | None = None
    channels: tuple[str, ...] = ()
    time_step_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 5 or min(self.shape) < 1:
            raise ParameterError(
                f"output: expected a shape (t, c, z, y, x) of at least 1 each, got {self.shape}."
            )
        if self.voxel_um is not None and not (
            len(self.voxel_um) == 3 and all(math.isfinite(s) and s > 0 for s in self.voxel_um)
        ):
            raise ParameterError(
                f"output: expected three positive micrometres (z, y, x), got {self.voxel_um}."
            )
        if self.channels and len(self.channels) != self.shape[1]:
            raise ParameterError(
                f"output: {self.shape[1]} channels and {len(self.channels)} names "
                f"{self.channels}. Give one name for each, or none."
            )
        # NumPy's numbers are welcome here, and not in JSON and TIFF tags further on.
        set_field = partial(object.__setattr__, self)
        set_field("shape", tuple(int(n) for n in self.shape))
        set_field("dtype", check_output_dtype(self.dtype).name)
        set_field("channels", tuple(self.channels))
        if self.voxel_um is not None:
            set_field("voxel_um", tuple(float(s) for s in self.voxel_um))
        if self.time_step_s is not None:
            set_field("time_step_s", float(self.time_step_s))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each channel, stated or numbered."""
        return self.channels or tuple(f"channel {i}" for i in range(self.shape[1]))

    @property
    def size_bytes(self) -> int:
        """Bytes of the pixels, uncompressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class ImageWriter(ABC):
    """An output being written: a context manager that takes blocks and finishes or vanishes.

    Everything goes to `<path>.partial`, which is renamed when the block ends well and all voxels
    were written, and removed when it does not. `clipped` counts voxels that an integer type could
    not hold.

    Raises
    ------
    OutputError : the path exists, its folder cannot be written, the disk fills, voxels are missing
    PlanError : less free disk space than the pixels need
    """

    def __init__(
        self, path: Path, image: ImageDescription, scale: IntegerScale, overwrite: bool
    ) -> None:
        self.path = path
        self.image = image
        self.scale = scale
        self.clipped = 0
        self.partial_path = path.with_name(path.name + ".partial")
        self._dtype = np.dtype(image.dtype)
        self._missing = math.prod(image.shape)
        self._lock = threading.Lock()
        self._is_open = False
        check_output_path(path, overwrite)
        check_free_space(path.parent, image.size_bytes)

    @final
    def __enter__(self) -> Self:
        self._discard()
        try:
            with plain_errors(self.path):
                self._begin()
        except BaseException:
            self._discard()
            raise
        self._is_open = True
        return self

    @final
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False
        complete = False
        try:
            if kind is None:
                if self._missing > 0:
                    raise OutputError(
                        f"{self.path.name}: {self._missing} of {math.prod(self.image.shape)} "
                        "voxels were never written, so the output is not kept. Run again."
                    )
                with plain_errors(self.path):
                    self._finish()
                    replace(self.partial_path, self.path)
                complete = True
        finally:
            # After a rename nothing is left to discard.
            self._discard()
            self._ended(complete)

    @final
    def write(self, t: int, c: int, block: Array, z0: int = 0, y0: int = 0, x0: int = 0) -> None:
        """Write a (z, y, x) block with its first voxel at (z0, y0, x0). Safe from any thread.

        Blocks must not overlap; floats are turned into the output's integers by `scale`.
        """
        if not self._is_open:
            raise OutputError(f"{self.path.name}: write inside `with create_output(...) as out:`.")
        origin = (z0, y0, x0)
        block = np.asarray(block)
        fits = block.ndim == 3 and all(
            0 <= o and o + n <= size
            for o, n, size in zip(origin, block.shape, self.image.shape[2:], strict=True)
        )
        if not fits or not (0 <= t < self.image.shape[0] and 0 <= c < self.image.shape[1]):
            raise OutputError(
                f"{self.path.name}: expected a (z, y, x) block inside {self.image.shape}, got "
                f"shape {block.shape} at t={t}, c={c}, (z, y, x)={origin}."
            )
        pixels, clipped = to_dtype(block, self._dtype, self.scale)
        with plain_errors(self.path):
            self._put(t, c, pixels, origin)
        with self._lock:
            self.clipped += clipped
        self._count_written(block.shape)

    def _count_written(self, shape: Sequence[int]) -> None:
        """Note that a block of `shape` is there."""
        with self._lock:
            self._missing -= math.prod(shape)

    @abstractmethod
    def _begin(self) -> None:
        """Lay out `partial_path`."""

    @abstractmethod
    def _put(self, t: int, c: int, pixels: Array, origin: tuple[int, int, int]) -> None:
        """Store one block of the output's type."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete `partial_path`; it is renamed right after."""

    def _discard(self) -> None:
        """Remove what was written so far."""
        remove(self.partial_path)

    def _ended(self, complete: bool) -> None:  # noqa: B027
        """Let go of what else is held; `complete` says that the output has its final name."""


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn what the file system and tensorstore raise into one OutputError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, PellucidError):
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise OutputError(
            f"{path.name}: the disk is full, the output is not kept. "
            "Free some space or choose another folder, and run again."
            if full
            else f"{path.name}: writing failed ({str(error)[:200]}); the output is not kept."
        ) from error


def check_output_path(
    path: Path, overwrite: bool, *, kind: str = "an OME-Zarr", marks: tuple[str, ...] = ZARR_MARKS,
    word: str = "overwrite=True",
) -> None:  # fmt: skip
    """Raise OutputError unless `path` can be made anew (or replaced, with `overwrite`).

    Parameters
    ----------
    kind, marks : what a folder is that may be replaced, and files of which it then holds one
    word : what asks for `overwrite`, in the words of a refusal
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist. Create it first.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already. Choose another name, or {word}.")
    for folder in (path, path.with_name(path.name + ".partial")):
        # Overwriting deletes, so it deletes only what was made here: never a folder of other things.
        is_known = any((folder / mark).is_file() for mark in marks)
        if folder.is_dir() and any(folder.iterdir()) and not is_known:
            raise OutputError(f"{folder}: a folder that is not {kind}. Choose another name.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"{path.parent}: cannot write into this folder ({error.strerror}). "
            "Choose another folder or change its permissions."
        ) from error


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise PlanError when the disk of `folder` has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise PlanError(
            f"{folder}: the output takes up to {needed_bytes / 2**30:.3g} GiB and the disk has "
            f"{free / 2**30:.3g} GiB free. Free some space, choose another folder, or write uint16."
        )


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Move `source` to `target`; what was at `target` is deleted only once that has worked."""
    if not target.is_dir():
        os.replace(source, target)
        return
    aside = target.with_name(target.name + ".old.partial")
    remove(aside)
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise
    remove(aside)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
