"""Transforms over time: which are outliers, what their neighbours say instead, and smooth courses.

A course is described by the logarithms of the transforms relative to one of them, with rotations
and stretches counted as micrometres at the corners of the view, so that all twelve numbers of a
transform are displacements.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm, logm

from pellucid.core.geometry import Affine, Grid

Vectors = NDArray[np.float64]

NEIGHBOURS = 8
"""Time points that judge one: a line through medians bears two outliers among eight."""
LEAST_POINTS = 5
"""Fewer time points cannot say which of them is the outlier."""
OUTLIER_SIGMA = 6.0
"""Robust standard deviations; 1 in 500 million by chance, were the errors Gaussian."""
MAD_TO_SIGMA = 1.4826


class Course:
    """The course of a view's transforms over time.

    Parameters
    ----------
    times : numbers of the time points, ascending or not
    transforms : one for each, None where there is none
    grid : of the first view: its corners are where transforms are compared
    """

    def __init__(
        self, times: Sequence[int], transforms: Sequence[Affine | None], grid: Grid
    ) -> None:
        self._times = np.asarray(times, dtype=np.float64)
        self.known = np.array([transform is not None for transform in transforms])
        there = [transform for transform in transforms if transform is not None]
        self._reference = there[len(there) // 2]
        self._centre = Affine.translation(grid.centre_um)
        self._half_um = float(np.linalg.norm(grid.extent_um)) / 2
        self._vectors = np.full((len(times), 12), np.nan)
        for place, transform in enumerate(transforms):
            if transform is not None:
                self._vectors[place] = self._vector(transform)

    def outliers(self, least_um: float) -> list[int]:
        """Places of transforms that their neighbours in time contradict by more than `least_um`."""
        outliers: list[int] = []
        # an outlier that is left out judges nobody: the next look is sharper
        for _ in range(3):
            good = [int(i) for i in np.flatnonzero(self.known) if i not in outliers]
            if len(good) < LEAST_POINTS:
                break
            off = {i: float(np.linalg.norm(self._vectors[i] - self._line(i, good))) for i in good}
            limit = max(least_um, OUTLIER_SIGMA * MAD_TO_SIGMA * float(np.median([*off.values()])))
            found = [i for i in good if off[i] > limit]
            if not found:
                break
            outliers += found
        return sorted(outliers)

    def without(self, places: Sequence[int]) -> "Course":
        """Return the course that takes no notice of the transforms at `places`."""
        self.known[list(places)] = False
        return self

    def predicted(self, place: int) -> Affine:
        """The transform at `place` that the known ones around it suggest."""
        return self._affine(self._line(place, [int(i) for i in np.flatnonzero(self.known)]))

    def smoothed(self, place: int, sigma: float) -> Affine:
        """The transform at `place` on a line fitted to the known ones, weighted by a Gaussian."""
        away = self._times[self.known] - self._times[place]
        # a far lonely point would otherwise have no neighbour of any weight
        sigma = max(sigma, float(np.sort(np.abs(away))[:3].max()) / 2)
        weights = np.exp(-0.5 * (away / sigma) ** 2)
        design = np.stack([np.ones_like(away), away], axis=1) * weights[:, None]
        fit = np.linalg.lstsq(design, self._vectors[self.known] * weights[:, None], rcond=None)[0]
        return self._affine(fit[0])

    def _line(self, place: int, good: Sequence[int]) -> Vectors:
        """The value at `place` of the line of medians (Theil 1950, Sen 1968) through others."""
        others = [i for i in good if i != place] or list(good)
        away = self._times[others] - self._times[place]
        nearest = np.argsort(np.abs(away), kind="stable")[:NEIGHBOURS]
        away, values = away[nearest], self._vectors[others][nearest]
        if len(nearest) < 3:
            weights = 1 / np.maximum(np.abs(away), 1e-9)
            mean: Vectors = np.average(values, axis=0, weights=weights)
            return mean
        first, second = np.triu_indices(len(away), 1)
        slopes = (values[first] - values[second]) / (away[first] - away[second])[:, None]
        slope = np.median(slopes, axis=0)
        value: Vectors = np.median(values - away[:, None] * slope, axis=0)
        return value

    def _vector(self, transform: Affine) -> Vectors:
        moved = (self._reference.inverse() @ transform).with_frames(source="world", target="world")
        about = self._centre.inverse() @ moved @ self._centre
        logarithm = np.real(logm(about.matrix))[:3]
        return np.concatenate([(logarithm[:, :3] * self._half_um).ravel(), logarithm[:, 3]])

    def _affine(self, vector: Vectors) -> Affine:
        logarithm = np.zeros((4, 4))
        logarithm[:3, :3] = vector[:9].reshape(3, 3) / self._half_um
        logarithm[:3, 3] = vector[9:]
        matrix = expm(logarithm)
        matrix[3] = (0, 0, 0, 1)
        moved = self._centre @ Affine(matrix) @ self._centre.inverse()
        frame = self._reference.source
        return self._reference @ moved.with_frames(source=frame, target=frame)
