"""Registration: the transform between two views of one specimen, and whether to believe it.

    register(fixed, moving, fixed_spacing_um=..., moving_spacing_um=...).fixed_to_moving

A start (Fourier correlation, over rotations when need be), an alignment from coarse to fine in
which both views are blurred alike, and a verdict measured on the aligned views. A failure is a
value: `Registration.converged` is False and `reason` says why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pellucid.core.blur_matching import gaussian_of_psf
from pellucid.core.descent import Attempt, View, descend
from pellucid.core.gauss_newton import Model
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.starts import Start, from_projections, search, turns_within
from pellucid.errors import FrameError, InputError, ParameterError

StartName = Literal["identity", "translation", "projections", "search"]
Matrix = NDArray[np.float64]

MODELS = ("translation", "rigid", "similarity", "affine")
# The verdict's limits. Chosen on simulated filaments and shells and two real specimens, right and
# wrong; the rates that the benchmark reports are measured on others.
PROJECTION_ANGLES_DEG = tuple(range(-40, 41, 5))
LEAST_OVERLAP = 0.2
MOST_STRETCH = 1.5
LARGEST_SIGMA = 0.015
"""Of the view's length, at the corners: chance agreement rests on few structures, and wobbles."""
UNMISTAKABLE_PEAK, UNMISTAKABLE_FINE_NCC = 6.0, 0.85
"""Together: the same specimen, so that a large uncertainty is only that, up to twice the limit."""
CLEAR_PEAK = 8.0
"""Standard deviations; enough by itself, however noisy the views. Aligned noise reaches 3.4."""
LEAST_PEAK, LEAST_FINE_NCC = 2.5, 0.5
"""Enough together: specimens of few, large structures have no better peak."""


@dataclass(frozen=True)
class Registration:
    """A transform between two views, and what speaks for and against it.

    Attributes
    ----------
    fixed_to_moving : maps a point of the fixed view to the same point of the moving view, um, ZYX
    model : what the transform was allowed to be
    converged : whether the transform is to be believed
    reason : one sentence; why not, when not converged
    start : how the start was found
    ncc_before, ncc_after : correlation of the views, blurred alike, at the start and at the end
    fine_ncc, peak : correlation of fine structure, and how many standard deviations it stands above
        other displacements of the views: what the verdict rests on
    overlap : shared volume as a share of the smaller view's
    corner_sigma_um : one standard deviation of where the fixed view's corners land, (8,)
    blur_difference_um2 : (3, 3) covariance of the fixed view's blur less the moving view's
    iterations : Gauss-Newton steps over all levels
    """

    fixed_to_moving: Affine
    model: Model
    converged: bool
    reason: str
    start: str
    ncc_before: float
    ncc_after: float
    fine_ncc: float
    peak: float
    overlap: float
    corner_sigma_um: tuple[float, ...]
    blur_difference_um2: tuple[tuple[float, ...], ...]
    iterations: int

    def to_dict(self) -> dict[str, Any]:
        """Return the registration as JSON-ready numbers and strings."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**record, "fixed_to_moving": self.fixed_to_moving.to_dict()}


def register(
    fixed: ArrayLike | Tensor,
    moving: ArrayLike | Tensor,
    *,
    fixed_spacing_um: ArrayLike,
    moving_spacing_um: ArrayLike,
    model: Model = "affine",
    start: Affine | StartName | None = None,
    nominal: Affine | None = None,
    fixed_psf: ArrayLike | Tensor | None = None,
    moving_psf: ArrayLike | Tensor | None = None,
    fixed_mask: ArrayLike | Tensor | None = None,
    moving_mask: ArrayLike | Tensor | None = None,
    device: str | torch.device | None = None,
) -> Registration:
    """Return the transform from the fixed view to the moving view, and a verdict on it.

    Parameters
    ----------
    fixed, moving : (z, y, x) or (y, x) counts; shapes, voxels and contrast may differ
    fixed_spacing_um, moving_spacing_um : voxel sizes, z, y, x; one number stands for all
    model : what the transform may be; "affine" goes through "rigid"
    start : an Affine from "fixed" to "moving" to begin at; "identity" (the nominal transform);
        "translation", found by Fourier correlation; "projections", shift and turn from maximum
        projections along the axes; "search", over translations and all rotations.
        None takes the translation, and searches rotations up to 40 degrees if that fails
    nominal : the views' known relative orientation (see `view_turn`); searches begin there
    fixed_psf, moving_psf : (z, y, x) on voxels of their view. Without them the difference of the
        views' blur is estimated from the views
    fixed_mask, moving_mask : shape of the view, true where voxels count
    device : where to compute; None takes that of `fixed` if it is a tensor, else the CPU

    Raises
    ------
    InputError
        when a view is not a finite 2D or 3D image, or a mask or PSF does not fit it
    FrameError
        when `start` or `nominal` do not lead from "fixed" to "moving"
    ParameterError
        when the model or the start is unknown

    Notes
    -----
    Views are aligned on their strongest gradients by efficient second-order minimisation with gain
    and offset as unknowns (see `gauss_newton`), after each was blurred by what the other has more
    of (see `blur_matching`).
    """
    if model not in MODELS:
        raise ParameterError(f"register: expected a model of {MODELS}, got {model!r}.")
    if device is None:
        device = fixed.device if isinstance(fixed, Tensor) else "cpu"
    views = (
        _view(fixed, fixed_spacing_um, "fixed", fixed_mask, fixed_psf, device),
        _view(moving, moving_spacing_um, "moving", moving_mask, moving_psf, device),
    )
    nominal = _checked(nominal, "nominal") if nominal is not None else _centred(*views)
    for view in views:
        low, high = (float(end) for end in view.image.aminmax())
        if high - low <= 1e-6 * max(high, -low):
            reason = f"The {view.grid.frame} view is empty: all its voxels are equal."
            return _refusal(nominal, model, reason)
    best: Attempt | None = None
    for name, candidates in _starts(*views, start, nominal):
        attempt = descend(*views, candidates, nominal, model, name)
        if not _verdict(attempt):
            return _registration(attempt, model, "")
        if best is None or attempt.agreement.peak > best.agreement.peak:
            best = attempt
    assert best is not None
    return _registration(best, model, _verdict(best))


def _starts(
    fixed: View, moving: View, start: Affine | str | None, nominal: Affine
) -> Iterator[tuple[str, list[Affine]]]:
    """Yield a name and transforms to compare, from the cheapest to the most thorough."""
    if isinstance(start, Affine):
        yield "given", [_checked(start, "start")]
        return
    if start not in (None, *get_args(StartName)):
        names = ", ".join(map(repr, get_args(StartName)))
        raise ParameterError(
            f"register: expected start to be an Affine, {names} or None, got {start!r}."
        )
    if start == "identity":
        yield "identity", [nominal]
        return
    flat = fixed.grid.shape[0] == 1
    extent = max(fixed.grid.extent_um)

    def found(linears: list[Matrix], voxels: int, keep: int) -> list[Affine]:
        voxel_um = extent / voxels
        pair = fixed.at(voxel_um), moving.at(voxel_um)
        starts: list[Start] = search(*pair, linears, voxel_um=voxel_um, keep=keep)
        return [s.fixed_to_moving for s in starts]

    if start == "projections":
        voxel_um = extent / (128 if flat else 64)
        pair = fixed.at(voxel_um), moving.at(voxel_um)
        angles = [np.deg2rad(a) for a in PROJECTION_ANGLES_DEG]
        linear = nominal.linear
        yield start, from_projections(*pair, linear, voxel_um=voxel_um, angles_rad=angles)
        return

    yield "translation", found([nominal.linear], 128 if flat else 32, 1)
    if start == "translation":
        return
    spread = ((40.0, 13.0),) if start is None else ((40.0, 13.0), (180.0, 22.0))
    for angle_deg, step_deg in spread:
        turns = _turns(np.deg2rad(angle_deg), np.deg2rad(step_deg), flat)
        linears = [nominal.linear @ turn for turn in turns]
        yield f"rotations up to {angle_deg:.0f} degrees", found(linears, 64 if flat else 24, 8)


def _turns(angle_rad: float, step_rad: float, flat: bool) -> list[Matrix]:
    if not flat:
        return turns_within(angle_rad, step_rad)
    angles = np.arange(0, angle_rad + 1e-9, step_rad / 2)
    return [Affine.rotation("z", sign * a).linear.copy() for a in angles for sign in (1, -1)]


def _centred(fixed: View, moving: View) -> Affine:
    """Return the transform that puts middle on middle, for want of anything better."""
    shift = moving.grid.centre_um - fixed.grid.centre_um
    return Affine.translation(shift, source="fixed", target="moving")


def _checked(affine: Affine, name: str) -> Affine:
    if (affine.source, affine.target) != ("fixed", "moving"):
        raise FrameError(
            f"register: expected {name} to lead from 'fixed' to 'moving', got {affine.source!r} -> "
            f"{affine.target!r}. Invert it, or rename its frames with with_frames()."
        )
    return affine


def _view(
    volume: ArrayLike | Tensor,
    spacing_um: ArrayLike,
    name: str,
    mask: ArrayLike | Tensor | None,
    psf: ArrayLike | Tensor | None,
    device: str | torch.device,
) -> View:
    image = _volume(volume, name, device)
    z, y, x = image.shape
    flat_pair = np.ndim(spacing_um) == 1 and len(np.asarray(spacing_um)) == 2 and z == 1
    spacing = (1.0, *np.asarray(spacing_um).tolist()) if flat_pair else spacing_um
    grid = Grid((z, y, x), as_triple(spacing, f"{name}_spacing_um"), frame=name)
    inside = None
    if mask is not None:
        inside = (_volume(mask, f"{name}_mask", device) > 0).to(image)
        if inside.shape != image.shape:
            raise InputError(
                f"register: expected {name}_mask of the view's shape {tuple(image.shape)}, got "
                f"{tuple(inside.shape)}."
            )
        # masked voxels take an unremarkable value: blur would carry anything else over the edge
        image = torch.where(inside > 0, image, image[inside > 0].median() if inside.any() else 0.0)
    covariance = None
    if psf is not None:
        covariance = gaussian_of_psf(_volume(psf, f"{name}_psf", device), grid)
    return View(image, grid, inside, covariance)


def _volume(volume: ArrayLike | Tensor, name: str, device: str | torch.device) -> Tensor:
    tensor = volume if isinstance(volume, Tensor) else torch.from_numpy(_as_float32(volume, name))
    tensor = tensor.to(device=device, dtype=torch.float32)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise InputError(
            f"register: expected {name} as (z, y, x) or (y, x), got shape {tuple(tensor.shape)}. "
            "Pass one channel and one time point."
        )
    # NaN passes through both ends, and they are found much faster than every voxel is checked
    if not all(np.isfinite(float(end)) for end in tensor.aminmax()):
        raise InputError(f"register: expected finite numbers, got NaN or infinity in {name}.")
    return tensor


def _as_float32(volume: ArrayLike, name: str) -> NDArray[np.float32]:
    array = np.asarray(volume)
    if array.dtype.kind not in "buif":
        raise InputError(f"register: expected real numbers in {name}, got {array.dtype}.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _verdict(attempt: Attempt) -> str:
    """Return why the attempt is not to be believed; empty when it is."""
    seen, linear = attempt.agreement, attempt.fit.fixed_to_moving.linear
    if seen.overlap < LEAST_OVERLAP:
        return (
            f"The views share {seen.overlap:.0%} of their volume, less than {LEAST_OVERLAP:.0%}: "
            "no overlap was found. Give a start or the nominal orientation."
        )
    stretch = np.linalg.svd(attempt.nominal.linear @ np.linalg.inv(linear), compute_uv=False)
    if stretch.max() > MOST_STRETCH or stretch.min() < 1 / MOST_STRETCH:
        return (
            f"The transform stretches by {max(stretch.max(), 1 / stretch.min()):.2f}, more than "
            "two views of one specimen do. Check the voxel sizes, or use model='rigid'."
        )
    sigma = float(attempt.corner_sigma_um.mean())
    unmistakable = seen.peak >= UNMISTAKABLE_PEAK and seen.fine_ncc >= UNMISTAKABLE_FINE_NCC
    if sigma > LARGEST_SIGMA * attempt.length_um * (2 if unmistakable else 1):
        return (
            f"The transform is not determined: the corners are uncertain by {sigma:.3g} um. The "
            "views may not show the same specimen, or too little structure; try a model of fewer "
            "parameters."
        )
    clear = seen.peak >= CLEAR_PEAK
    if not clear and (seen.peak < LEAST_PEAK or seen.fine_ncc < LEAST_FINE_NCC):
        return (
            f"The views do not agree: fine structure correlates by {seen.fine_ncc:.2f}, "
            f"{seen.peak:.1f} standard deviations above other places. Check that both show the "
            "same specimen, the sign of the angle between them, and mirrored axes."
        )
    return ""


def _registration(attempt: Attempt, model: Model, reason: str) -> Registration:
    seen = attempt.agreement
    return Registration(
        fixed_to_moving=attempt.fit.fixed_to_moving,
        model=model,
        converged=not reason,
        reason=reason,
        start=attempt.start,
        ncc_before=attempt.ncc_before,
        ncc_after=seen.ncc,
        fine_ncc=seen.fine_ncc,
        peak=seen.peak,
        overlap=seen.overlap,
        corner_sigma_um=tuple(attempt.corner_sigma_um.tolist()),
        blur_difference_um2=tuple(tuple(row) for row in attempt.difference_um2.tolist()),
        iterations=attempt.iterations,
    )


def _refusal(nominal: Affine, model: Model, reason: str) -> Registration:
    none = ((0.0,) * 3,) * 3
    return Registration(
        nominal, model, False, reason, "none", 0.0, 0.0, 0.0, 0.0, 0.0, (np.inf,) * 8, none, 0
    )
