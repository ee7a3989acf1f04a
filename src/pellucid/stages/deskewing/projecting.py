"""Projections of fused volumes: the brightest voxel along each axis, and while the volume turns."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import grid_sample, interpolate

from pellucid.core.geometry import Affine
from pellucid.data.output import create_output
from pellucid.data.writer import ImageDescription, remove
from pellucid.errors import OutputError

Volume = npt.NDArray[np.floating[Any]]

TURNS = 60
"""Pictures of one turn: 6 degrees each, which the eye takes for a movement."""

LARGEST_SIDE = 192
"""Voxels along the longest axis while turning; finer volumes are binned."""

FRAMES_PER_SECOND = 15
COLOURS = ((0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0))


def along_axes(volume: Volume) -> dict[str, Volume]:
    """The brightest voxel along z, y and x, by the name of the axis; NaN counts for nothing."""
    known = np.nan_to_num(volume)
    return {"z": known.max(0), "y": known.max(1), "x": known.max(2)}


def turning(volume: Volume, spacing_um: Sequence[float], angles_rad: Sequence[float]) -> Volume:
    """The brightest voxel along z while the volume turns about y: (angle, y, x) on square pixels.

    The width holds the volume at every angle. Turned by half a turn more, the brightest voxels are the
    same ones seen from behind: a mirror image, which is not computed again.
    """
    image, spacing = _binned(torch.from_numpy(np.nan_to_num(volume).astype(np.float32)), spacing_um)
    z, y, x = image.shape
    pixel = float(min(spacing))
    side = math.ceil(math.hypot(z * spacing[0], x * spacing[2]) / pixel) | 1
    height = max(1, round(y * spacing[1] / pixel))
    slices = image.permute(1, 0, 2)[None]  # every (z, x) slice turns alike: y is a channel
    edges = torch.tensor([x * spacing[2], z * spacing[0]]) / 2
    line = (torch.arange(side) - (side - 1) / 2) * pixel
    seen = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    pictures: dict[float, Volume] = {}
    for angle in angles_rad:
        behind, half = divmod(round(angle % (2 * math.pi), 9), round(math.pi, 9))
        if half not in pictures:
            turn = torch.from_numpy(Affine.rotation("y", half).linear[::2, ::2].copy()).float()
            places = (seen @ turn.T).flip(-1) / edges
            turned = grid_sample(slices, places[None], padding_mode="zeros", align_corners=False)
            picture = interpolate(turned.amax(2)[:, None], (height, side), mode="bilinear")
            pictures[half] = picture[0, 0].numpy()
        mirrored = int(behind) % 2 == 1
        pictures[angle] = pictures[half][:, ::-1] if mirrored else pictures[half]
    return np.stack([pictures[angle] for angle in angles_rad])


def full_turn(count: int = TURNS) -> list[float]:
    """Angles of one turn, in radians."""
    return [2 * math.pi * number / count for number in range(count)]


def write_pictures(
    path: Path, pictures: Volume, pixel_um: Sequence[float], channels: tuple[str, ...] = ()
) -> Path:
    """Write (t, c, y, x) projections as an OME-TIFF, replacing one that is there."""
    t, c, y, x = pictures.shape
    voxel_um = (1.0, float(pixel_um[0]), float(pixel_um[1]))
    image = ImageDescription((t, c, 1, y, x), "float32", voxel_um, channels)
    with create_output(path, image, overwrite=True) as out:
        for i, k in np.ndindex(t, c):
            out.write(i, k, pictures[i, k][None].astype(np.float32))
    return path


def movie_is_possible() -> bool:
    """Whether the library that encodes MP4 is installed."""
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return False
    return True


def write_movie(path: Path, pictures: Volume) -> Path:
    """Write (t, c, y, x) projections as MP4, channels in colours, one contrast for all times.

    Raises
    ------
    OutputError : the encoder fails
    """
    import imageio_ffmpeg

    c, y, x = pictures.shape[1:]
    height, width = y + y % 2, x + x % 2  # the encoder halves the colours' resolution
    scratch = path.with_name(path.stem + ".partial.mp4")
    colours = ((1.0, 1.0, 1.0),) if c == 1 else COLOURS
    tops = [float(np.percentile(pictures[:, k], 99.9)) or 1.0 for k in range(c)]
    try:
        frames = imageio_ffmpeg.write_frames(
            str(scratch), (width, height), fps=FRAMES_PER_SECOND, macro_block_size=2, quality=8
        )
        frames.send(None)
        for picture in pictures:
            shown = np.zeros((height, width, 3), np.float32)
            for k in range(c):
                light = np.clip(picture[k] / tops[k], 0, 1) ** 0.7
                shown[:y, :x] += light[..., None] * np.asarray(colours[k % len(colours)])
            frames.send((np.clip(shown, 0, 1) * 255).astype(np.uint8).tobytes())
        frames.close()
        scratch.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path.name}: the movie could not be encoded ({error!s:.200}).") from error
    finally:
        remove(scratch)
    return path


def _binned(image: torch.Tensor, spacing_um: Sequence[float]) -> tuple[torch.Tensor, list[float]]:
    """The volume with its finest axes binned until no side is longer than LARGEST_SIDE."""
    factor = math.ceil(max(image.shape) / LARGEST_SIDE)
    finest = min(spacing_um) * factor
    bins = [max(1, min(n, round(finest / s))) for n, s in zip(image.shape, spacing_um, strict=True)]
    pooled = torch.nn.functional.avg_pool3d(image[None, None], bins, ceil_mode=True)[0, 0]
    return pooled, [s * b for s, b in zip(spacing_um, bins, strict=True)]
