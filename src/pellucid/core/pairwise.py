"""Pairwise shifts of overlapping tiles: where the second lies from the first, and whether to believe it.

Only the expected overlap and a search margin are read. A masked normalised correlation (Padfield
2012), with the means and variances of what overlaps at each shift, finds the whole voxel; a
second-order fit on the strongest gradients, with gain and offset as unknowns, refines it. All
positions and shifts are in voxels, z, y, x.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.blur_matching import gaussian_blurred
from pellucid.core.fit_columns import Level, strongest_gradients
from pellucid.core.fit_uncertainty import uncertainty
from pellucid.core.fourier import fast_shape
from pellucid.core.gauss_newton import align
from pellucid.core.geometry import Affine, Grid, Triple, as_triple

Array = NDArray[Any]
Box = tuple[slice, slice, slice]

SEARCH_VOXELS = 2_000_000
"""Larger overlaps are averaged down for the search, and refined on their most structured part."""

REFINED_POINTS = 60_000
"""Voxels of strong gradient that refine a shift; more add time and no exactness."""

FINE_SIGMA, COARSE_SIGMA = 0.7, 6.0
"""Voxels of the search: noise below the first and shading above the second do not tell places."""

LEAST_SHARE = 0.3
"""Of the nominal overlap that must be left at a shift, so that slivers do not win by chance."""

PEAK_RADIUS = 3
"""Voxels around the peak that belong to it, and not to the background that it is judged by."""

LEAST_PEAK, LEAST_NCC, AMPLE_NCC = 5.0, 0.12, 0.65
"""A link takes part if fine structure correlates at all and either its peak stands so many deviations
above other shifts (the largest of ten thousand by chance: about 4) or the correlation is ample: in a
thin overlap a peak is as wide as the search, and stands above nothing.
How far a link is trusted is its `sigma_px`; the rest is for the placement."""

THIN_PX = 7
"""Where fewer voxels overlap along an axis, and less than half a tile, the fit has hardly an inside, and
may say 0.4 to 0.5 voxels where it is off by 2 to 5 (`benchmarks/stitching.py`,
"brain thin")."""

UNREFINED_PX = 0.5
"""Uncertainty of a shift that could not be refined below the whole voxel."""


class Tile(Protocol):
    """A (z, y, x) tile, in memory or read when it is sliced."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Link:
    """The measured shift between two tiles.

    Attributes
    ----------
    first, second : numbers of the tiles
    shift_px : position of the second tile less that of the first
    sigma_px : one standard deviation of the shift's length, from the fit's residuals and from how
        far the fit strayed from the peak of the search
    ncc : correlation of fine structure in the overlap
    peak : how many standard deviations it stands above the correlation at other shifts
    brightness : contrast of the second tile over that of the first, in the overlap
    believed, reason : whether the link may take part in a placement, and why not
    """

    first: int
    second: int
    shift_px: Triple
    sigma_px: float
    ncc: float
    peak: float
    brightness: float
    believed: bool
    reason: str = ""


def overlap_box(
    first: Triple | tuple[int, ...], second: tuple[int, ...], shift_px: Triple, margin: Array
) -> tuple[Box, Box] | None:
    """Return the boxes in either tile that can overlap when the shift is off by `margin`; or None."""
    a, b, shift = np.asarray(first), np.asarray(second), np.asarray(shift_px)
    low_a = np.maximum(np.floor(shift - margin), 0).astype(int)
    high_a = np.minimum(np.ceil(shift + b + margin), a).astype(int)
    low_b = np.maximum(np.floor(-shift - margin), 0).astype(int)
    high_b = np.minimum(np.ceil(a - shift + margin), b).astype(int)
    if (high_a <= low_a).any() or (high_b <= low_b).any():
        return None
    return _box(low_a, high_a), _box(low_b, high_b)


def pairwise_shift(
    first: Tile,
    second: Tile,
    nominal_px: Triple,
    *,
    names: tuple[int, int] = (0, 1),
    margin_px: Triple = (10.0, 10.0, 10.0),
) -> Link | None:
    """Return the link between two tiles, near its nominal shift; None where they cannot overlap.

    Parameters
    ----------
    first, second : (z, y, x) counts
    nominal_px : where the stage says the second tile lies from the first
    names : numbers of the two tiles in the grid
    margin_px : how far off the stage may be, along each axis
    """
    margin = np.asarray(margin_px) * (np.asarray(first.shape) > 1)
    nominal = overlap_box(first.shape, second.shape, nominal_px, np.zeros(3))
    boxes = overlap_box(first.shape, second.shape, nominal_px, margin)
    if boxes is None or nominal is None or min(_sizes(nominal[0])) < 1:
        return None
    step = _step(boxes[0])
    crops = [_averaged(tile, box, step) for tile, box in zip((first, second), boxes, strict=True)]
    offsets = [np.array([s.start for s in box]) for box in boxes]
    if min(float(crop.std()) for crop in crops) <= 1e-6 * float(crops[0].abs().max()):
        return _refused(names, nominal_px, "the overlap is empty")
    # the shift between the crops' first voxels that stands for the nominal one
    expected = (np.asarray(nominal_px) - offsets[0] + offsets[1]) / step
    found = _search(crops[0], crops[1], expected, margin / step)
    if found is None:
        return _refused(names, nominal_px, "too little overlap to tell")
    index, ncc, peak, on_edge = found
    start = index * step + offsets[0] - offsets[1]
    shift, sigma, ratio = _refined(first, second, start, step)
    strayed = float(np.linalg.norm(shift - start))
    if not np.isfinite(sigma) or strayed > PEAK_RADIUS * step:
        shift, sigma = start, UNREFINED_PX * step
    else:
        # a peak lies within half a voxel of its whole voxel: more is a sign of trouble, not proof
        sigma = float(np.hypot(sigma, max(strayed - step, 0.0)))
    reason = _doubt(ncc, peak, on_edge)
    return Link(*names, as_triple(shift, "shift"), sigma, ncc, peak, ratio, not reason, reason)


def is_thin(first: tuple[int, ...], second: tuple[int, ...], shift_px: Triple) -> bool:
    """Return whether two tiles overlap by a sliver at that shift."""
    sizes = np.minimum(first, second)
    common = np.minimum(first, np.add(shift_px, second)) - np.maximum(0, shift_px)
    return bool(((common < THIN_PX) & (common < sizes / 2)).any())


def _doubt(ncc: float, peak: float, on_edge: bool) -> str:
    if ncc < LEAST_NCC or (peak < LEAST_PEAK and ncc < AMPLE_NCC):
        return f"fine structure correlates by {ncc:.2f}, {peak:.1f} deviations above other shifts"
    return "the best shift lies at the edge of the search: allow a larger margin" if on_edge else ""


def _refused(names: tuple[int, int], nominal: Triple, reason: str) -> Link:
    return Link(*names, nominal, float("inf"), 0.0, 0.0, 1.0, False, reason)


def _search(
    first: Tensor, second: Tensor, expected: Array, margin: Array
) -> tuple[Array, float, float, bool] | None:
    """Return the best whole shift, its correlation, its standing, whether it is at the edge."""
    a, b = _fine(first), _fine(second)
    reach = np.where(np.array(a.shape) > 1, np.ceil(margin + 0.5), 0).astype(int)
    middle = np.rint(expected).astype(int)
    z, y, x = (int(p + q - 1) for p, q in zip(a.shape, b.shape, strict=True))
    shape = fast_shape((z, y, x))
    index = [np.arange(m - r, m + r + 1) % n for m, r, n in zip(middle, reach, shape, strict=True)]

    def spectrum(image: Array) -> Array:
        whole: Array = scipy.fft.rfftn(image, s=shape)
        return whole

    def near(product: Array) -> Array:
        whole: Array = scipy.fft.irfftn(product, s=shape)
        part: Array = whole[np.ix_(*index)]
        return part

    one, other = np.ones(a.shape, np.float32), np.ones(b.shape, np.float32)
    mask_a, mask_b = spectrum(one), np.conj(spectrum(other))
    image_a, image_b = spectrum(a), np.conj(spectrum(b))
    count = np.maximum(near(mask_a * mask_b), 1.0)
    sum_a, sum_b = near(image_a * mask_b), near(mask_a * image_b)
    product = near(image_a * image_b) - sum_a * sum_b / count
    energy_a = near(spectrum(a * a) * mask_b) - sum_a**2 / count
    energy_b = near(mask_a * np.conj(spectrum(b * b))) - sum_b**2 / count
    enough = count > max(LEAST_SHARE * count[tuple(reach)], 64.0)
    if not enough.any():
        return None
    energy = energy_a * energy_b
    enough &= energy > 1e-6 * float(energy.max())
    score = np.where(enough, product / np.sqrt(np.maximum(energy, 1e-30)), -1.0)
    # Fisher's z over its deviation: a sliver correlates well by chance, and proves little
    proof = np.where(enough, np.arctanh(np.clip(score, -0.999, 0.999)) * np.sqrt(count), -np.inf)
    found = np.array(np.unravel_index(int(proof.argmax()), proof.shape))
    steps = np.meshgrid(*(np.arange(n) for n in score.shape), indexing="ij")
    far = sum(np.square(s - p) for s, p in zip(steps, found, strict=True)) > PEAK_RADIUS**2
    # on a wide peak proof leans to where more overlaps: the top itself is where it correlates best
    top = np.where(far, -np.inf, score)
    best = np.array(np.unravel_index(int(top.argmax()), top.shape))
    others = proof[far & enough]
    if others.size < 20:
        return None
    ncc = float(score[tuple(best)])
    peak = (float(proof.max()) - float(others.mean())) / max(float(others.std()), 1e-6)
    wide = reach > 1
    on_edge = bool((((best == 0) | (best == 2 * reach)) & wide).any())
    return best - reach + middle, ncc, peak, on_edge


def _fine(image: Tensor) -> Array:
    """Return the band of structure that tells places apart: neither noise nor shading."""
    flat = np.array(image.shape) == 1
    z, y, x = image.shape
    grid = Grid((z, y, x))
    image = image - image.mean()
    narrow = gaussian_blurred(image, grid, np.diag(np.where(flat, 0, FINE_SIGMA**2)))
    wide = gaussian_blurred(image, grid, np.diag(np.where(flat, 0, COARSE_SIGMA**2)))
    fine: Array = (narrow - wide).numpy()
    # single bright specks should not decide alone
    limit = 8.0 * float(fine.std())
    return np.clip(fine, -limit, limit)


def _refined(
    first: Tile, second: Tile, start: Array, step: int
) -> tuple[Array, float, float]:
    """Return the sub-voxel shift, its standard deviation, the ratio of brightness."""
    shift, sigma, ratio = start.astype(np.float64), float("inf"), 1.0
    while True:
        boxes = overlap_box(first.shape, second.shape, as_triple(shift, "shift"), np.zeros(3))
        if boxes is None:
            return shift, float("inf"), ratio
        part = _most_structured(first, boxes[0], step)
        low = np.array([s.start for s in part])
        high = np.array([s.stop for s in part])
        # the same place in the second tile, and two voxels around it
        moved_low = np.maximum(np.floor(low - shift).astype(int) - 2, 0)
        moved_high = np.minimum(np.ceil(high - shift).astype(int) + 2, second.shape)
        if (moved_high <= moved_low).any() or ((high - low) < step).any():
            return shift, float("inf"), ratio
        fixed = _averaged(first, part, step)
        moving = _averaged(second, _box(moved_low, moved_high), step)
        offset = (low - moved_low - shift) / step
        moved, sigma_px = _fitted(fixed, moving, offset)
        ratio = _brightness(fixed, moving, moved)
        shift = low - moved_low - moved * step
        sigma = sigma_px * step
        if step == 1:
            return shift, sigma, ratio
        step = max(1, step // 2)


def _fitted(fixed: Tensor, moving: Tensor, offset: Array) -> tuple[Array, float]:
    """Return where the fixed crop's first voxel lies in the moving one, and how sure that is."""
    levels = []
    for name, image in (("fixed", fixed), ("moving", moving)):
        z, y, x = image.shape
        grid = Grid((z, y, x), frame=name)
        flat = np.array(image.shape) == 1
        smooth = gaussian_blurred(image - image.mean(), grid, np.diag(np.where(flat, 0.0, 1.0)))
        border = as_triple(np.where(flat | (np.array(image.shape) < 9), 0.0, 2.0), "border")
        levels.append(Level(smooth, grid, border))
    points = strongest_gradients(levels[0], REFINED_POINTS)
    start = Affine.translation(offset, source="fixed", target="moving")
    fit = align(levels[0], levels[1], start, "translation", points=points, tolerance=0.002)
    # where points at the border come and go, steps need not become small: the best one will do, and
    # its residuals say how sure it is
    sure = uncertainty(
        levels[0], levels[1], fit.fixed_to_moving, "translation", points=points, block_um=4.0
    )
    moved: Array = fit.fixed_to_moving.matrix[:3, 3]
    return moved, np.inf if sure is None else float(sure.corner_sigma_um()[0])


def _brightness(fixed: Tensor, moving: Tensor, offset: Array) -> float:
    """Return the ratio of contrasts in two crops of the same place, to the whole voxel.

    Of contrasts, not of means: it needs no background, which a crowded field does not show.
    """
    begin = np.maximum(np.rint(offset).astype(int), 0)
    count = np.minimum(np.array(moving.shape) - begin, np.array(fixed.shape))
    if (count < 1).any():
        return 1.0
    z, y, x = (int(n) for n in count)
    cuts = (fixed[:z, :y, :x], moving[_box(begin, begin + count)])
    blur = np.diag(np.where(count > 1, 1.0, 0.0))
    one, other = (float(gaussian_blurred(c.contiguous(), Grid((z, y, x)), blur).std()) for c in cuts)
    return other / one if one > 0 and other > 0 else 1.0


def _most_structured(tile: Tile, box: Box, step: int) -> Box:
    """Return the part of a box with the most variance, of at most SEARCH_VOXELS after averaging."""
    sizes, low = np.array(_sizes(box)), np.array([s.start for s in box])
    pieces = np.ones(3, int)
    while np.prod(np.ceil(sizes / pieces)) / step ** int((sizes > 1).sum()) > SEARCH_VOXELS:
        pieces[np.argmax(sizes / pieces)] += 1
    best, found = -1.0, box
    for place in np.ndindex(*pieces):
        start = low + sizes * np.array(place) // pieces
        stop = low + sizes * (np.array(place) + 1) // pieces
        if pieces.prod() == 1:
            return _box(start, stop)
        # every fourth voxel of one plane in eight is enough to rank by
        sample = np.asarray(
            tile[
                slice(start[0], stop[0], 8), slice(start[1], stop[1], 4), slice(*_pair(start, stop))
            ]
        )
        if (spread := float(sample.std())) > best:
            best, found = spread, _box(start, stop)
    return found


def _pair(start: Array, stop: Array) -> tuple[int, int, int]:
    return int(start[2]), int(stop[2]), 4


def _averaged(tile: Tile, box: Box, step: int) -> Tensor:
    """Return a box of a tile as float32, averaged over `step` voxels, read slab by slab."""
    z, y, x = box
    if step == 1:
        return torch.from_numpy(np.asarray(tile[z, y, x]).astype(np.float32))
    along_z = min(step, z.stop - z.start)
    across = [min(step, s.stop - s.start) for s in (y, x)]
    planes = []
    for start in range(z.start, z.stop - along_z + 1, along_z):
        slab = np.asarray(tile[start : start + along_z, y, x]).astype(np.float32).mean(axis=0)
        rows, columns = (n // s for n, s in zip(slab.shape, across, strict=True))
        cut = slab[: rows * across[0], : columns * across[1]]
        planes.append(cut.reshape(rows, across[0], columns, across[1]).mean(axis=(1, 3)))
    return torch.from_numpy(np.stack(planes))


def _step(box: Box) -> int:
    sizes, step = np.array(_sizes(box)), 1
    while np.prod(np.maximum(sizes // step, 1)) > SEARCH_VOXELS:
        step *= 2
    return step


def _sizes(box: Box) -> tuple[int, int, int]:
    z, y, x = (s.stop - s.start for s in box)
    return z, y, x


def _box(low: Array, high: Array) -> Box:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x
