"""Pictures: what went in and what came out, a PSF with its transfer functions, why it stopped."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pellucid.core.back_projectors import METHODS
from pellucid.core.operators import Blur
from pellucid.core.psf import Psf
from pellucid.errors import OutputError

Array = npt.NDArray[Any]
Triple = tuple[float, float, float]

PAPER, INK, FAINT, ACCENT = "#ffffff", "#1d2733", "#9aa5b1", "#0b7a75"
DOTS_PER_INCH = 130
# Inches; many volumes side by side become smaller.
WIDEST = 15.0
# Lengths of a scale bar in micrometres; the largest up to a quarter of the width is taken.
BARS_UM = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def comparison_picture(images: Mapping[str, Array], voxel_um: Triple | None) -> bytes:
    """A PNG of volumes side by side: brightest voxel along z above, along y below.

    Parameters
    ----------
    images : name and (z, y, x) volume, all of one shape
    voxel_um : (z, y, x) micrometres, for the scale bar and the proportions; None for cubes
    """
    views = {name: (volume.max(axis=0), volume.max(axis=1)) for name, volume in images.items()}
    return _side_by_side(views, next(iter(images.values())).shape, voxel_um)


def section_picture(
    images: Mapping[str, Array],
    voxel_um: Triple | None,
    through: tuple[int, int, int],
    *,
    rows: Sequence[str] = (),
) -> bytes:
    """A PNG of volumes side by side, cut `through` a voxel: what lies inside a hollow object.

    `rows` names the cuts, the one across z first; the other parameters are those of
    `comparison_picture`.
    """
    z, y, _ = through
    views = {name: (volume[z], volume[:, y]) for name, volume in images.items()}
    return _side_by_side(views, next(iter(images.values())).shape, voxel_um, rows)


def _side_by_side(
    views: Mapping[str, tuple[Array, Array]],
    shape: Sequence[int],
    voxel_um: Triple | None,
    rows: Sequence[str] = (),
) -> bytes:
    """Two views of each image, in proportion; one contrast for both views of an image."""
    z, y, x = (n * s for n, s in zip(shape, voxel_um or (1.0, 1.0, 1.0), strict=True))
    heights = [y] if shape[0] == 1 else [y, z]
    across = min(4.2, WIDEST / len(views))
    size = (across * len(views), across * sum(heights) / x + 0.35)
    figure = Figure(figsize=size)
    axes = figure.subplots(
        len(heights),
        len(views),
        squeeze=False,
        gridspec_kw={"height_ratios": heights, "wspace": 0.02, "hspace": 0.03},
    )
    for column, (name, pair) in enumerate(views.items()):
        axes[0, column].set_title(name, color=INK, fontsize=12, loc="left")
        low, high = _contrast(np.concatenate([view.ravel() for view in pair]))
        for row, height in enumerate(heights):
            at: Axes = axes[row, column]
            at.imshow(
                np.clip(pair[row], low, high),
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0, x, height, 0),
                interpolation="nearest",
            )
            at.set_axis_off()
    for at, name in zip(axes[:, 0], rows, strict=False):
        at.text(-0.03, 0.5, name, transform=at.transAxes, rotation=90, color=INK, fontsize=12,
                ha="right", va="center")  # fmt: skip
    if voxel_um is not None:
        _scale_bar(axes[0, 0], x, y)
    return _png(figure)


def psf_picture(psf: Psf, path: Path) -> None:
    """Write a PNG: the PSF through its centre, its transfer function, and each back projector."""
    spacing = psf.spacing_um or (1.0, 1.0, 1.0)
    unit = "um" if psf.spacing_um else "voxels"
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    grid = figure.subplots(2, 3)
    z, y, _ = psf.centre
    _log_slice(grid[0, 0], psf.values[z], spacing[1:], f"y, x (x to the right; {unit})")
    _log_slice(grid[1, 0], psf.values[:, y], (spacing[0], spacing[2]), f"z, x ({unit})")
    _profiles(grid[0, 1], psf, spacing, unit)
    _curves(grid[1, 1], psf, spacing, f"1/{unit}")
    _projectors(grid[0, 2], psf, axis=2, spacing=spacing, unit=f"1/{unit}")
    _projectors(grid[1, 2], psf, axis=0, spacing=spacing, unit=f"1/{unit}")
    if psf.shape[0] == 1:
        # One plane has no z to show.
        grid[1, 0].set_visible(False)
        grid[1, 2].set_visible(False)
    write_picture(path, _png(figure))


def stopping_picture(path: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of the held-out photons' verdict on every step on the finest grid: kept, or refused.

    Parameters
    ----------
    path : the steps of an `Accelerated` restoration, as kept in its stats
    """
    path = [step for step in path if tuple(step["binning"]) == (1, 1, 1)]
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    best = max(step["likelihood"] for step in path)
    # Differences shrink by orders of magnitude: what is left to the best is shown, logarithmically.
    left = np.array([best - step["likelihood"] for step in path])
    floor = max(left[left > 0].min(initial=1.0) / 3, 1e-12) if (left > 0).any() else 1e-12
    cost = np.array([step["cost"] for step in path])
    kept = np.array([bool(step["accepted"]) for step in path])
    axes.semilogy(cost[kept], np.maximum(left[kept], floor), "-o", color=ACCENT, label="kept")
    axes.semilogy(
        cost[~kept], np.maximum(left[~kept], floor), "x", color="#b3403a", label="refused"
    )
    axes.set_xlabel("work, in iterations (4 FFTs each)")
    axes.set_ylabel("likelihood of held-out\nphotons, below the best")
    _plain(axes)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def write_picture(path: Path, png: bytes) -> None:
    """Write a picture; OutputError where that fails."""
    try:
        path.write_bytes(png)
    except OSError as error:
        raise OutputError(f"{path}: the picture cannot be written ({error.strerror}).") from error


def _contrast(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, (1.0, 99.8))
    return float(low), float(high if high > low else low + 1.0)


def _scale_bar(axes: Axes, width_um: float, height_um: float) -> None:
    length = max((b for b in BARS_UM if b <= width_um / 4), default=BARS_UM[0])
    left, bottom = 0.04 * width_um, height_um - 0.05 * width_um
    axes.plot([left, left + length], [bottom, bottom], color="white", linewidth=3)
    axes.text(left, bottom - 0.02 * width_um, f"{length:g} µm", color="white", fontsize=9)


def _log_slice(axes: Axes, plane: Array, spacing: Sequence[float], title: str) -> None:
    """Four decades of a plane, so that rings and tails are seen."""
    height, width = (n * s for n, s in zip(plane.shape, spacing, strict=True))
    decades = np.log10(np.maximum(plane / plane.max(), 1e-4))
    shown = axes.imshow(
        decades, cmap="magma", extent=(-width / 2, width / 2, height / 2, -height / 2)
    )
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    assert axes.figure is not None
    axes.figure.colorbar(shown, ax=axes, label="log10 of the peak", shrink=0.8)


def _profiles(axes: Axes, psf: Psf, spacing: Triple, unit: str) -> None:
    for axis, (name, colour) in enumerate(zip("zyx", (ACCENT, FAINT, INK), strict=True)):
        index: list[int | slice] = list(psf.centre)
        index[axis] = slice(None)
        line = psf.values[tuple(index)]
        where = (np.arange(line.size) - psf.centre[axis]) * spacing[axis]
        axes.plot(where, line / line.max(), color=colour, label=name)
    axes.axhline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xlabel(unit)
    axes.set_title("profiles through the centre", fontsize=10, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)


def _curves(axes: Axes, psf: Psf, spacing: Triple, unit: str) -> None:
    otf = np.abs(np.fft.fftn(psf.values))
    for axis, (name, colour) in enumerate(zip("zyx", (ACCENT, FAINT, INK), strict=True)):
        size = psf.shape[axis]
        index: list[int | slice] = [0, 0, 0]
        index[axis] = slice(0, size // 2 + 1)
        where = np.arange(size // 2 + 1) / (size * spacing[axis])
        axes.semilogy(where, np.maximum(otf[tuple(index)], 1e-5), color=colour, label=f"k{name}")
    axes.set_ylim(1e-5, 1.5)
    axes.set_xlabel(unit)
    axes.set_title("transfer function |H|", fontsize=10, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)


def _projectors(axes: Axes, psf: Psf, *, axis: int, spacing: Triple, unit: str) -> None:
    """|H B| of every back projector along one axis: 1 is what one step restores."""
    import torch

    blur = Blur(torch.tensor(psf.values, dtype=torch.float32), psf.shape)
    size = blur.grid[axis]
    index: list[int | slice] = [0, 0, 0]
    index[axis] = slice(0, size // 2 + 1)
    where = np.arange(size // 2 + 1) / (size * spacing[axis])
    for name, projector in METHODS.items():
        product = (blur.transfer * projector.transfer(blur)).abs()
        product = product / product[0, 0, 0]
        axes.plot(where[: product[tuple(index)].numel()], product[tuple(index)], label=name)
    axes.set_xlabel(unit)
    axes.set_title(
        f"|H B| along k{'zyx'[axis]}: what one step restores", fontsize=10, color=INK, loc="left"
    )
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, facecolor=PAPER, bbox_inches="tight")
    return out.getvalue()
