"""A picture of transforms over time: translation, rotation, and whether they are believed."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pellucid.core.geometry import Affine
from pellucid.core.transform_series import SeriesRegistration
from pellucid.data.writer import plain_errors

COLOURS = {"z": "#0b7a75", "y": "#c46a1b", "x": "#5b4b8a"}
INK, BAD = "#1d2733", "#c0392b"


def transform_picture(series: SeriesRegistration, path: Path) -> None:
    """Write a .png: for every view, what it moved since the first time point, and its agreement."""
    views = range(1, series.views)
    figure = Figure(figsize=(4.2 * len(views), 7.0), layout="constrained")
    axes = figure.subplots(3, len(views), squeeze=False, sharex=True)
    for column, view in enumerate(views):
        course = [series.at(time, view) for time in series.times]
        start = course[0].world_to_view
        moved = np.array([_moved(start, t.world_to_view) for t in course])
        for row, unit in enumerate(("shift (um)", "turn (degrees)")):
            for axis, values in zip("zyx", moved[:, row].T, strict=True):
                axes[row, column].plot(series.times, values, ".-", color=COLOURS[axis], label=axis)
            axes[row, column].set_ylabel(unit, color=INK)
        peaks = [0.0 if t.registration is None else t.registration.fine_ncc for t in course]
        axes[2, column].plot(series.times, peaks, ".-", color=INK)
        axes[2, column].set_ylabel("agreement of fine structure", color=INK)
        axes[2, column].set_ylim(0, 1)
        axes[2, column].set_xlabel("time point", color=INK)
        for transform in course:
            if transform.how in ("failed", "repaired"):
                for row in range(3):
                    axes[row, column].axvline(transform.time, color=BAD, lw=1, ls=":")
        axes[0, column].set_title(f"view {view} (dotted: not believed or repaired)", fontsize=9)
        axes[0, column].legend(frameon=False, fontsize=8)
    scratch = path.with_name(f"{path.name}.partial")
    with plain_errors(path):
        try:
            figure.savefig(scratch, dpi=130, format="png")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def _moved(start: Affine, transform: Affine) -> tuple[list[float], list[float]]:
    """Shift and small turn (z, y, x) of the world from `start` to `transform`."""
    change = np.linalg.inv(start.matrix) @ transform.matrix
    left, _, right = np.linalg.svd(change[:3, :3])
    turn = left @ right
    # rotations of geometry are right-handed in x, y, z: see geometry.rotation_matrix
    angles = 0.5 * np.array(
        [turn[1, 2] - turn[2, 1], turn[2, 0] - turn[0, 2], turn[0, 1] - turn[1, 0]]
    )
    return change[:3, 3].tolist(), np.degrees(angles).tolist()
