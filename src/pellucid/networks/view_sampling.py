"""Views that stand at angles to one object, on its grid: as pictures, and as one Wiener step of all.

Each view is sampled once. The step is that of all views together: at every frequency each counts as
much as its own PSF passes there, so that what one view blurs along its axis comes from the others.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

from pellucid.core.field_resampling import sampled
from pellucid.core.fourier import Shape, fast_shape, transfer_function
from pellucid.core.geometry import Grid, as_triple
from pellucid.core.joint_coarsening import is_joint, is_view
from pellucid.core.mixing import unmixed
from pellucid.core.operators import Blur, Composed, LinearOperator
from pellucid.core.problem import Problem, Window
from pellucid.core.psf import Psf
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.slab_sampling import SlabSample, sampling_variance_px
from pellucid.networks.wiener import ALPHA, closed, continued, wiener_step

BEYOND = 6
"""Voxels by which the border voxels of a view are repeated, as of the object: a network is asked about
4 voxels more than what is wanted."""


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
    one = [torch.ones(1, 1, 1, dtype=total.dtype, device=total.device)]
    for image, transfer in zip(seen, filters.transfers, strict=True):
        wide = closed(image, filters.before, filters.grid).contiguous()
        total += unmixed(wide, one, [transfer], filters.grid, (z, y, x))
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


def linear_estimate(problem: Problem, signals: list[Tensor]) -> Tensor:
    """Return the mean of the Wiener steps of all views, on the object's whole grid."""
    z, y, x = (slice(0, n) for n in problem.shape)
    steps = wiener_steps(problem, signals, (z, y, x))
    return steps[0] if len(steps) == 1 else torch.stack(steps).mean(dim=0)


def flux_of(operator: LinearOperator) -> float:
    """Return the photons of a view's voxel for each of an object's; 1 where they are the same voxels."""
    return float(parts_of(operator)[0].psf.sum()) if is_view(operator) else 1.0


_psfs: WeakKeyDictionary[LinearOperator, Psf] = WeakKeyDictionary()


def object_psf(operator: LinearOperator) -> Psf:
    """Return the PSF with which a view that was sampled on the object's grid shows the object."""
    if operator not in _psfs:
        _psfs[operator] = _turned(operator)
    return _psfs[operator]


def _turned(operator: LinearOperator) -> Psf:
    blur, sample = parts_of(operator)
    values = blur.psf.detach().cpu().double().clamp_min(0).numpy()
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


def parts_of(operator: LinearOperator) -> tuple[Blur, SlabSample]:
    """Return the blur of a view, and how it samples the object."""
    assert isinstance(operator, Composed)
    assert isinstance(operator.outer, Blur)
    assert isinstance(operator.inner, SlabSample)
    return operator.outer, operator.inner


@dataclass(frozen=True)
class JointFilters:
    """The filters of all views for a part of the object, and the FFT grid that they are on.

    `others` are the views beside the first that they are for.
    """

    others: tuple[LinearOperator, ...]
    before: Shape
    grid: Shape
    transfers: list[Tensor]


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
    psfs = [object_psf(o) for o in operators]
    reach = np.max([p.shape for p in psfs], axis=0)
    size = [p.stop - p.start for p in part]
    z, y, x = (n + k - 1 + k // 4 for n, k in zip(size, reach.tolist(), strict=True))
    grid = fast_shape((z, y, x))
    before = tuple((n - m) // 2 for n, m in zip(grid, size, strict=True))
    like = parts_of(operators[0])[0].psf
    otfs = []
    for psf in psfs:
        a, b, c = (n // 2 - m for n, m in zip(psf.shape, before, strict=True))
        otfs.append(transfer_function(torch.from_numpy(psf.values.copy()).to(like), grid, (a, b, c)))
    power = sum((otf.abs().square_() for otf in otfs[1:]), start=otfs[0].abs().square_())
    power += ALPHA * float(power.max())
    transfers = [otf.div_(power) for otf in otfs]
    return JointFilters(operators[1:], (before[0], before[1], before[2]), grid, transfers)
