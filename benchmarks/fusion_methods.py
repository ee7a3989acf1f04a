"""The ways to fuse that `fusion.py` compares, by name, and how one result is scored against the truth."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core import fusion, joint_coarsening
from pellucid.core.back_projectors import Matched, WienerButterworth
from pellucid.core.geometry import Grid
from pellucid.core.multiview import MultiViewRecording
from pellucid.core.problem import Restored
from pellucid.core.psf import fwhm_px
from pellucid.core.quality import ncc
from pellucid.core.resolution import resolution_along_axes
from pellucid.core.views import View
from pellucid.core.virtual_views import VirtualViews
from pellucid.errors import RunawayWarning

BORDER = 4


@dataclass(frozen=True)
class Method:
    """One way to fuse, by name; `views` is 1 for the single view."""

    name: str
    options: dict[str, Any]
    views: int | None = None
    most: int | None = None
    factors: tuple[int, ...] = joint_coarsening.FACTORS

    def __call__(self, views: Sequence[View], world: Grid) -> Restored:
        """Fuse; `most` bounds the guarded steps on the finest grid, `factors` are its coarse grids."""
        chosen = fusion._restorer

        def bounded(projector: Any, iterations: int | None, update: Any, seed: int) -> Any:
            restorer = chosen(projector, iterations, update, seed)
            return restorer if self.most is None else replace(restorer, max_iterations=self.most)

        with (
            patch.object(fusion, "_restorer", bounded),
            patch.object(joint_coarsening, "FACTORS", self.factors),
        ):
            return fusion.fuse(views[: self.views], world, **self.options)


def methods() -> Iterator[Method]:
    """Every way: single view, averages, resampled or joint; matched, Wiener-Butterworth, virtual views."""
    wb = WienerButterworth(cutoff_fwhm=2**-0.5)
    yield Method("single view, guarded", {"how": "joint"}, 1)
    yield Method("average", {"how": "average"})
    yield Method("content average", {"how": "content-average"})
    for how in ("resample-then-joint", "joint"):
        short = "resampled" if how == "resample-then-joint" else "joint"
        for n in (10, 30):
            yield Method(f"{short}, matched {n}", plain(how, n, Matched()))
            yield Method(f"{short}, matched {n} alt", plain(how, n, Matched(), "alternating"))
        for n in (2, 3, 10):
            yield Method(f"{short}, WB {n}", plain(how, n, wb))
            yield Method(f"{short}, WB {n} alt", plain(how, n, wb, "alternating"))
        for n in (3, 10):
            yield Method(f"{short}, virtual views {n}", plain(how, n, VirtualViews()))
        yield Method(f"{short}, guarded", {"how": how})
    for most in (2, 3):
        yield Method(f"joint, guarded, {most} on the finest grid", {"how": "joint"}, most=most)
    yield Method("joint, guarded from flat", {"how": "joint"}, factors=(1,))


def plain(how: str, n: int, projector: Any, update: str = "additive") -> dict[str, Any]:
    """Options of exactly `n` plain iterations."""
    return {"how": how, "iterations": n, "back_projector": projector, "update": update}


def scored(
    method: Method, views: Sequence[View], recording: MultiViewRecording, world: Grid
) -> dict[str, Any]:
    """What `method` makes of the views against the truth.

    NCC as it is and with both softened by half the PSF's lateral width; the finest period (voxels)
    along z, y, x that correlates with the truth by 0.5; the light kept; seconds of the CPU.
    """
    inner = (slice(BORDER, -BORDER),) * 3
    truth = recording.truth[inner]
    sigma = min(fwhm_px(recording.views[0].psf)) / 2 / 2.3548
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunawayWarning)
        restored = method(views, world)
    seconds = time.process_time() - begin
    whole: NDArray[np.float32] = restored.image.numpy()
    image = whole[inner]
    soft, half = (ndimage.gaussian_filter(v, sigma)[inner] for v in (whole, recording.truth))
    return {
        "ncc": ncc(image, truth),
        "half": ncc(soft, half),
        "period_px": list(resolution_along_axes(image, truth)),
        "light": float(image.sum() / truth.sum()),
        "iterations": restored.stats.get("iterations"),
        "cost": restored.stats.get("cost_iterations"),
        "cpu_s": seconds,
        "ran_away": bool(caught),
    }
