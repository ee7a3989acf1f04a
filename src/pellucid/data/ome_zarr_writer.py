"""OME-Zarr 0.5 (Zarr 3, sharded) and 0.4 (Zarr 2), with a pyramid of means."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorstore

from pellucid.data.ome_zarr_metadata import image_attributes, root_documents
from pellucid.data.pixels import IntegerScale
from pellucid.data.plain_json import plain_json
from pellucid.data.pyramid import (
    SHARD_CHUNKS,
    Level,
    Triple,
    chunk_and_shard,
    mean_down,
    plan_levels,
)
from pellucid.data.source import Array
from pellucid.data.writer import ImageDescription, ImageWriter, plain_errors, write_atomically

Version = Literal["0.4", "0.5"]

# Contrast limits come from the finest level that has at most this many voxels.
WINDOW_SAMPLE_VOXELS = 2**22
WINDOW_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class StoredArray:
    """The finest level of an image in the making, as any process may write into it.

    Parameters
    ----------
    path : of the array, absolute
    driver : tensorstore's name of its format
    block_zyx : what is written at once; see `OmeZarrWriter.block_zyx`
    """

    path: Path
    driver: str
    block_zyx: Triple

    def write(self, t: int, c: int, pixels: Array, origin: Triple) -> tuple[float, float]:
        """Return the range of a (z, y, x) block once it is on the disk."""
        with plain_errors(self.path.parent.with_suffix("")):  # the name without .partial
            _write_blocks(self.opened(), t, c, pixels, origin, self.block_zyx)
        return _finite_range(pixels)

    def opened(self) -> Any:
        """The array, to read and write."""
        kvstore = {"driver": "file", "path": str(self.path)}
        return tensorstore.open({"driver": self.driver, "kvstore": kvstore}).result()


@dataclass(frozen=True)
class StoredLevel:
    """A coarser level of an image in the making: means of the one before, shard by shard.

    Parameters
    ----------
    finer, coarser : the arrays
    step : voxels of the finer that one of the coarser spans, 1 or 2 along each axis
    shape : (z, y, x) of the coarser
    chunk : what is averaged at once; the coarser's `block_zyx` is a shard
    """

    finer: StoredArray
    coarser: StoredArray
    step: Triple
    shape: Triple
    chunk: Triple

    @property
    def shards(self) -> list[tuple[Triple, Triple]]:
        """Start and stop of each."""
        return list(_blocks((0, 0, 0), self.shape, self.coarser.block_zyx))

    def means(self, t: int, c: int, index: int) -> Array:
        """Return the voxels of shard number `index`, from the finer level."""
        with plain_errors(self.coarser.path.parent.with_suffix("")):
            return self._means(t, c, *self.shards[index])

    def _means(self, t: int, c: int, start: Triple, stop: Triple) -> Array:
        finer = self.finer.opened()
        means = np.empty([b - a for a, b in zip(start, stop, strict=True)], finer.dtype.numpy_dtype)
        for low, high in _blocks(start, means.shape, self.chunk):
            source = tuple(
                slice(a * s, min(b * s, n))
                for a, b, s, n in zip(low, high, self.step, finer.shape[2:], strict=True)
            )
            block = np.asarray(finer[(t, c, *source)].read().result())
            target = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
            means[target] = mean_down(block, self.step)
        return means

    def write(self, t: int, c: int, index: int, means: Array) -> None:
        """Write shard number `index`; it is on the disk then."""
        self.coarser.write(t, c, means, self.shards[index][0])


class OmeZarrWriter(ImageWriter):
    """An OME-Zarr image in the making; `write` takes level 0, the end makes the pyramid.

    Blocks that are whole multiples of `block_zyx` (a shard, or a chunk of 0.4) are written once;
    others are merged into what is there, which is correct from the threads of one process and
    slower. The pyramid is streamed: it holds one shard (at most 128 MiB of float32) and the
    blocks that go into it.

    Parameters
    ----------
    attributes : JSON kept under the attribute "pellucid" (configuration, record)
    shard_chunks : chunks along (z, y, x) that make a shard, at most
    """

    def __init__(
        self,
        path: str | Path,
        image: ImageDescription,
        *,
        version: Version = "0.5",
        attributes: Mapping[str, Any] | None = None,
        scale: IntegerScale = IntegerScale(),
        overwrite: bool = False,
        shard_chunks: Triple = SHARD_CHUNKS,
    ) -> None:
        super().__init__(Path(path), image, scale, overwrite)
        self.version = version
        self.levels = plan_levels(image.shape[2:], image.voxel_um or (1.0, 1.0, 1.0))
        self._shard_chunks = shard_chunks
        chunk, shard = chunk_and_shard(image.shape[2:], shard_chunks)
        self.block_zyx: Triple = shard if version == "0.5" else chunk
        self._attributes = dict(attributes or {})
        self._stores: list[Any] = []
        self._range = [(math.inf, -math.inf)] * image.shape[1]

    def _begin(self) -> None:
        self.partial_path.mkdir()
        self._write_root([(0.0, 1.0)] * self.image.shape[1], complete=False)
        self._stores = [
            tensorstore.open(self._array_spec(number, level), create=True).result()
            for number, level in enumerate(self.levels)
        ]

    def _put(self, t: int, c: int, pixels: Array, origin: Triple) -> None:
        low, high = _finite_range(pixels)
        with self._lock:
            self._range[c] = (min(self._range[c][0], low), max(self._range[c][1], high))
        _write_blocks(self._stores[0], t, c, pixels, origin, self.block_zyx)

    def _finish(self) -> None:
        for number in range(1, len(self.levels)):
            level = self.stored_level(number)
            for t, c, index in np.ndindex(*self.image.shape[:2], len(level.shards)):
                level.write(t, c, index, level.means(t, c, index))
        self._complete()

    def _complete(self) -> None:
        self._write_root([self._window(c) for c in range(self.image.shape[1])], complete=True)

    def stored_array(self, number: int) -> StoredArray:
        """What a process, this one or another, needs to read and write level `number`."""
        driver = "zarr3" if self.version == "0.5" else "zarr"
        chunk, shard = chunk_and_shard(self.levels[number].shape, self._shard_chunks)
        block = shard if self.version == "0.5" or number else chunk
        return StoredArray((self.partial_path / str(number)).absolute(), driver, block)

    def stored_level(self, number: int) -> StoredLevel:
        """What a process needs to make level `number`, 1 or more, of the one before."""
        before, level = self.levels[number - 1 : number + 1]
        z, y, x = (b // a for a, b in zip(before.factor, level.factor, strict=True))
        chunk, _ = chunk_and_shard(level.shape, self._shard_chunks)
        return StoredLevel(
            self.stored_array(number - 1), self.stored_array(number), (z, y, x), level.shape, chunk
        )

    def _window(self, c: int) -> tuple[float, float]:
        """Contrast limits of a channel: percentiles of its middle time point."""
        fits = (i for i, x in enumerate(self.levels) if math.prod(x.shape) <= WINDOW_SAMPLE_VOXELS)
        number = next(fits, len(self.levels) - 1)
        sample = np.asarray(self._stores[number][self.image.shape[0] // 2, c].read().result())
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return (0.0, 1.0)
        low, high = np.percentile(sample, WINDOW_PERCENTILES)
        return (float(low), float(high if high > low else low + 1))

    def _write_root(self, windows: list[tuple[float, float]], *, complete: bool) -> None:
        ours = {
            **self._attributes,
            "complete": complete,
            "integer_scale": self.scale.factor if self._dtype.kind in "ui" else None,
            "clipped_voxels": self.clipped,
        }
        limits = [
            (low, high) if low <= high else (0.0, 1.0) for low, high in self._range
        ]  # fmt: skip
        ome = image_attributes(
            self.image, self.levels, self.version, name=_stem(self.path), windows=windows,
            limits=limits,
        )  # fmt: skip
        for name, document in root_documents(self.version, ome, ours).items():
            write_atomically(self.partial_path / name, json.dumps(plain_json(document), indent=1))

    def _array_spec(self, number: int, level: Level) -> dict[str, Any]:
        chunk, shard = chunk_and_shard(level.shape, self._shard_chunks)
        store = {"driver": "file", "path": str((self.partial_path / str(number)).resolve())}
        shape = [*self.image.shape[:2], *level.shape]
        if self.version == "0.4":
            metadata: dict[str, Any] = {
                "shape": shape,
                "chunks": [1, 1, *chunk],
                "dtype": self._dtype.newbyteorder("<").str,
                "fill_value": 0,
                "order": "C",
                "filters": None,
                "dimension_separator": "/",
                "compressor": {
                    "id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 2, "blocksize": 0,
                },
            }  # fmt: skip
            return {"driver": "zarr", "kvstore": store, "metadata": metadata}
        metadata = {
            "shape": shape,
            "data_type": self._dtype.name,
            "fill_value": 0,
            "dimension_names": ["t", "c", "z", "y", "x"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, *shard]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [_sharding([1, 1, *chunk], self._dtype.itemsize)],
        }
        return {"driver": "zarr3", "kvstore": store, "metadata": metadata}


def _write_blocks(
    store: Any, t: int, c: int, pixels: Array, origin: Triple, block: Triple
) -> None:
    """Write one shard at a time: what is encoded at once stays bounded however large `pixels` is."""
    for start, stop in _blocks(origin, pixels.shape, block):
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        store[(t, c, *where)].write(pixels[inside]).result()


def _sharding(chunk: list[int], itemsize: int) -> dict[str, Any]:
    """zstd-1 after bitshuffle: without the shuffle, 1.5 times the CPU and a worse ratio."""
    endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "typesize": itemsize,
             "blocksize": 0}  # fmt: skip
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": [endian, {"name": "blosc", "configuration": blosc}],
            "index_codecs": [endian, {"name": "crc32c"}],
        },
    }


def _blocks(
    origin: tuple[int, ...], shape: tuple[int, ...], block: Triple
) -> Iterator[tuple[Triple, Triple]]:
    """Start and stop of each cell of the grid of `block`s that a region touches, cut to it."""
    end = tuple(o + n for o, n in zip(origin, shape, strict=True))
    first = tuple(o // b for o, b in zip(origin, block, strict=True))
    counts = [-(-e // b) - f for e, b, f in zip(end, block, first, strict=True)]
    for cell in np.ndindex(*counts):
        low = [(f + i) * b for f, i, b in zip(first, cell, block, strict=True)]
        a, b, c = (max(x, o) for x, o in zip(low, origin, strict=True))
        d, e, f = (min(x + n, stop) for x, n, stop in zip(low, block, end, strict=True))
        yield (a, b, c), (d, e, f)


def _finite_range(pixels: Array) -> tuple[float, float]:
    low, high = float(pixels.min()), float(pixels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = pixels[np.isfinite(pixels)]
        if not finite.size:
            return math.inf, -math.inf
        low, high = float(finite.min()), float(finite.max())
    return low, high


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zarr").removesuffix(".ome")
