"""Views that stand at angles to one object, on its grid: as pictures, and as one Wiener step of all.

Each view is sampled once. The step is that of all views together: at every frequency each counts as
much as its own PSF passes there, so that what one view blurs along its axis comes from the others.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve1d
from torch import Tensor

from pellucid.core.field_resampling import sampled
from pellucid.core.fourier import Shape, fast_shape, transfer_function
from pellucid.core.geometry import Grid, as_triple
from pellucid.core.joint_coarsening import is_joint, is_view
from pellucid.core.mixing import unmixed
from pellucid.core.operators import Composed, Extended, LinearOperator
from pellucid.core.problem import Problem, Window
from pellucid.core.psf import Psf
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.slab_sampling import SlabSample, sampling_variance_px
from pellucid.core.varying_blur import VaryingBlur
from pellucid.networks.wiener import ALPHA, PLACES, closed, continued, hats, wiener_step

Array = NDArray[np.float64]

BEYOND = 6
"""Voxels by which the border voxels of a view are repeated, as of the object: a network is asked about
4 voxels more than what is wanted."""

ALIKE = 0.03
"""Share of a PSF's root sum of squares below which that of another place is taken to be the same."""

TILTED = 0.18
"""Share of the longest side of a box below which another side is that of a tilt: views stand within 10
degrees of where they should."""


def wiener_steps(
    problem: Problem, signals: list[Tensor], part: Window, shown: list[Tensor] | None = None
) -> list[Tensor]:
    """Return for every view a step of its signal on a part of the object; their mean is the start.

    Views at angles to the object are filtered together, and all are given the same; others each by itself.

    Parameters
    ----------
    shown : the signals on that part of the object, where they are known
    """
    if not is_joint(problem):
        pairs = zip(signals, problem.observations, strict=True)
        return [wiener_step(signal, o.operator, part) for signal, o in pairs]
    operators = tuple(o.operator for o in problem.observations)
    if shown is None:
        shown = [
            sampled_view(signal, operator, part).div_(flux_of(operator))
            for signal, operator in zip(signals, operators, strict=True)
        ]
    step = _filtered_together(shown, operators, part)
    return [step.clone() for _ in operators]


def _filtered_together(
    seen: list[Tensor], operators: tuple[LinearOperator, ...], part: Window
) -> Tensor:
    """Return the Wiener step of all views, each of them sampled on a part of the object."""
    filters = _filters(operators, part)
    z, y, x = seen[0].shape
    total = torch.zeros_like(seen[0])
    for image, transfers in zip(seen, filters.transfers, strict=True):
        wide = closed(image, filters.before, filters.grid).contiguous()
        total += unmixed(wide, filters.shares, transfers, filters.grid, (z, y, x))
    return total


def sampled_view(image: Tensor, operator: LinearOperator, part: Window) -> Tensor:
    """Return a view's image on a part of the object, its border continued a little; 0 where it ends."""
    blur, sample = parts_of(operator)
    here = sample.view.crop(blur.margin, np.add(blur.margin, blur.range_shape).tolist())
    object_um = max(sample.world.spacing_um)
    more = [int(np.ceil(BEYOND * object_um / s)) for s in here.spacing_um]
    z, y, x = (n + 2 * m for n, m in zip(here.shape, more, strict=True))
    origin = here.index_to_um.apply(-np.asarray(more, dtype=np.float64))
    wide = Grid((z, y, x), here.spacing_um, as_triple(origin, "origin"), here.frame)
    target = sample.world.crop([p.start for p in part], [p.stop for p in part])
    image = continued(image, (more[0], more[1], more[2]), (z, y, x))
    resample = sampled(wide, target, sample.world_to_view, sample.field)
    return resample.forward(image)


def flux_of(operator: LinearOperator) -> float:
    """Return the photons of a view's voxel for each of an object's; 1 where they are the same voxels."""
    return float(parts_of(operator)[0].psf.sum()) if is_view(operator) else 1.0


_psfs: WeakKeyDictionary[LinearOperator, Psf] = WeakKeyDictionary()


def object_psf(operator: LinearOperator) -> Psf:
    """Return the PSF, or the mean one, with which a view sampled on the object's grid shows the object."""
    if operator not in _psfs:
        _psfs[operator] = _turned(operator, parts_of(operator)[0].psf.detach().cpu().double().numpy())
    return _psfs[operator]


def _turned(operator: LinearOperator, values: Array) -> Psf:
    """A view's PSF on the object's grid, with what sampling the object and sampling it back blur."""
    _, sample = parts_of(operator)
    values = np.maximum(values, 0)
    # the operator's PSF lacks what sampling blurs; here it is sampled twice, into the view and back
    for axis, v in enumerate(
        sampling_variance_px(sample.world, sample.view, sample.world_to_view)
    ):
        if values.shape[axis] > 1:
            taps = np.array([v / 2, 1 - v, v / 2])
            for _ in range(2):
                values = convolve1d(values, taps, axis=axis, mode="constant")
    return rotated_psf(
        Psf.normalised(values), sample.view.spacing_um, sample.world_to_view.linear,
        sample.world.spacing_um,
    )  # fmt: skip


def parts_of(operator: LinearOperator) -> tuple[Extended, SlabSample]:
    """Return the blur of a view, and how it samples the object."""
    assert isinstance(operator, Composed)
    assert isinstance(operator.outer, Extended)
    assert isinstance(operator.inner, SlabSample)
    return operator.outer, operator.inner


def varying_box(operators: Sequence[LinearOperator]) -> tuple[Array, Array]:
    """Return the box (z, y, x), um of the object, over which the PSF of any view varies; or one point.

    It is flat along axes that it reaches along only because a view is a little tilted.
    """
    corners = [np.zeros((0, 3))]
    for blur, sample in (parts_of(o) for o in operators):
        if isinstance(blur, VaryingBlur):
            ends = [(k[0], k[-1]) for k in blur.expansion.knots]
            box = np.array(list(itertools.product(*ends)))
            corners.append(sample.world_to_view.inverse().apply(box))
    every = np.concatenate(corners)
    if len(every) == 0:
        return np.zeros(3), np.zeros(3)
    low, high = every.min(0), every.max(0)
    flat = high - low < TILTED * (high - low).max()
    middle = (low + high) / 2
    return np.where(flat, middle, low), np.where(flat, middle, high)


def count_places(operators: Sequence[LinearOperator]) -> int:
    """Return at how many places of the object filters are made."""
    low, high = varying_box(operators)
    varies = high - low > np.asarray(parts_of(operators[0])[1].world.spacing_um)
    return int(PLACES ** np.count_nonzero(varies))


@dataclass(frozen=True)
class JointFilters:
    """The filters of all views for a part of the object, and the FFT grid that they are on.

    Parameters
    ----------
    others : the views beside the first that they are for
    shares : (z, y, x) of every place where filters are made, as those of `networks.wiener`
    transfers : of every view, one for each place
    """

    others: tuple[LinearOperator, ...]
    before: Shape
    grid: Shape
    shares: list[Tensor]
    transfers: list[list[Tensor]]


_kept: WeakKeyDictionary[LinearOperator, dict[tuple[int, ...], JointFilters]] = WeakKeyDictionary()
"""Filters of views in use, by the first of them: they serve every recording."""


def _filters(operators: tuple[LinearOperator, ...], part: Window) -> JointFilters:
    key = tuple(end for p in part for end in (p.start, p.stop))
    of_parts = _kept.setdefault(operators[0], {})
    known = of_parts.get(key)
    if known is None or [id(o) for o in known.others] != [id(o) for o in operators[1:]]:
        known = of_parts[key] = _made(operators, part)
    return known


def _made(operators: tuple[LinearOperator, ...], part: Window) -> JointFilters:
    sites = _sites(operators, part)
    psfs = [_local_psfs(o, [place for place, _ in sites]) for o in operators]
    reach = np.max([p.shape for of_view in psfs for p in of_view], axis=0)
    size = [p.stop - p.start for p in part]
    z, y, x = (n + k - 1 + k // 4 for n, k in zip(size, reach.tolist(), strict=True))
    grid = fast_shape((z, y, x))
    before = tuple((n - m) // 2 for n, m in zip(grid, size, strict=True))
    like = parts_of(operators[0])[0].psf

    def otf_of(psf: Array) -> Tensor:
        a, b, c = (n // 2 - m for n, m in zip(psf.shape, before, strict=True))
        return transfer_function(torch.from_numpy(psf.copy()).to(like), grid, (a, b, c))

    # a view's PSF is often the same at several places, where that of another view differs
    distinct = {id(psf): psf for of_view in psfs for psf in of_view}
    known = {key: otf_of(psf) for key, psf in distinct.items()}
    otfs = [[known[id(psf)] for psf in of_view] for of_view in psfs]
    powers = []
    for here in zip(*otfs, strict=True):
        powers.append(sum((h.abs().square_() for h in here[1:]), start=here[0].abs().square_()))
    level = ALPHA * max(float(power.max()) for power in powers)
    for power in powers:
        power += level
    transfers = [
        [otf / power for otf, power in zip(of_view, powers, strict=True)] for of_view in otfs
    ]
    shares = [share.to(like) for _, share in sites]
    return JointFilters(operators[1:], (before[0], before[1], before[2]), grid, shares, transfers)


def _sites(operators: Sequence[LinearOperator], part: Window) -> list[tuple[Array, Tensor]]:
    """A few places of a part, um of the object, and hat functions between them that sum to 1."""
    world = parts_of(operators[0])[1].world
    low, high = varying_box(operators)
    to_voxel = world.um_to_index
    axes = []
    for axis, (first, last) in enumerate(zip(to_voxel.apply(low), to_voxel.apply(high), strict=True)):
        start, size = part[axis].start, part[axis].stop - part[axis].start
        axes.append(hats(last - first > 1, (first - start, last - start), size, 0, size))
    sites = []
    for (z, hz), (y, hy), (x, hx) in itertools.product(*axes):
        index = [p.start + c for p, c in zip(part, (z, y, x), strict=True)]
        share = hz.float()[:, None, None] * hy.float()[:, None] * hx.float()
        sites.append((world.index_to_um.apply(index), share))
    return sites


def _local_psfs(operator: LinearOperator, places_um: list[Array]) -> list[Array]:
    """A view's PSF at places of the object, on the object's grid; with its light, relative to the mean."""
    blur, sample = parts_of(operator)
    if not isinstance(blur, VaryingBlur):
        return [object_psf(operator).values] * len(places_um)
    flux, found = flux_of(operator), []
    known: list[tuple[Array, Array]] = []
    for place in places_um:
        z, y, x = sample.world_to_view.apply(place).tolist()
        values = blur.expansion.psf_at((z, y, x))
        alike = ALIKE * float(np.linalg.norm(values))
        near = [turned for other, turned in known if np.linalg.norm(values - other) < alike]
        if not near:
            near = [_turned(operator, values).values * (values.sum() / flux)]
            known.append((values, near[0]))
        found.append(near[0])
    return found
