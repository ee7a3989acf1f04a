"""Back projectors: what Richardson-Lucy sends the mismatch back with, matched or not.

Every one is a transfer function on the FFT grid of a `Blur`. With H = F / F(0) the normalised OTF,

    matched               conj(F)                                               Lucy 1974
    gaussian              a Gaussian with the PSF's FWHM                        Zeng & Gullberg 2000
    butterworth           1 / sqrt(1 + e^2 w^n)
    wiener                (1 + alpha) conj(H) / (|H|^2 + alpha)
    wiener-butterworth    the product of the two                                Guo et al. 2020
    otf-masked-wiener     wiener, apodised to the support of the OTF            Ruan et al. 2024

where w = sum_d (f_d / fc_d)^2 and fc_d = 1 / (cutoff_fwhm * FWHM_d), in cycles per voxel. All have
the gain of the matched one at zero frequency. How we differ from the published programs:
frequencies come from `fftfreq`, so that even sizes are not half a bin off; powers are formed in
logarithms, so that w^n cannot overflow; and parameters that leave no real e^2 are refused.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.core.fourier import Finish, filter_slabs, filtered
from pellucid.core.operators import Blur, Composed, LinearOperator
from pellucid.core.passband import (
    Lengths,
    apodised_support,
    band_edge_px,
    butterworth,
    centred,
    fwhm_of,
    gain_at_cutoff,
    in_pieces,
    magnitude,
    radius_squared,
    widths_of,
)
from pellucid.core.varying_blur import VaryingBlur
from pellucid.errors import ParameterError

ALPHA_UNMEASURED = 0.05
"""alpha where no noise was measured: the released program's for light sheets (Guo et al. 2020)."""


class BackProjector(ABC):
    """A recipe that turns a `Blur` into the transfer function that goes back through it."""

    filters_matched: ClassVar[bool] = False
    """Whether it is the matched transfer times a real gain, which `gain_over_matched` then returns."""

    def gain_over_matched(self, blur: Blur) -> Tensor:
        """Return what the matched transfer is multiplied by, real, where the recipe is such one."""
        raise ParameterError(
            f"{type(self).__name__} does not use the PSF's own shape, so that it cannot go back "
            "through a blur that varies. Use 'wiener-butterworth' or 'matched'."
        )

    @abstractmethod
    def transfer(self, blur: Blur) -> Tensor:
        """Return the complex half spectrum, image to object, in the blur's precision."""

    def tuned(self, alpha: float) -> "BackProjector":
        """Return this projector with `alpha` where the user left it open."""
        if getattr(self, "alpha", 0.0) is None:
            return replace(self, alpha=alpha)  # type: ignore[type-var]
        return self


@dataclass(frozen=True)
class Matched(BackProjector):
    """The adjoint itself: Richardson-Lucy proper, a likelihood ascent (Lucy 1974)."""

    def transfer(self, blur: Blur) -> Tensor:
        return blur.transfer.conj().resolve_conj()


@dataclass(frozen=True)
class Gaussian(BackProjector):
    """A Gaussian with the FWHM of the PSF on each axis, in place of the PSF."""

    def transfer(self, blur: Blur) -> Tensor:
        # the transform of exp(-4 ln2 x^2 / fwhm^2) is exp(-(pi fwhm f)^2 / (4 ln2))
        exponent = radius_squared(blur, fwhm_of(blur)) * (np.pi**2 / (4 * np.log(2)))
        return centred(blur, in_pieces(torch.exp_, exponent.neg_()))


@dataclass(frozen=True)
class Butterworth(BackProjector):
    """A low-pass of order n whose gain at the cutoff is `beta`; the PSF's shape is not used.

    Parameters
    ----------
    beta : gain at the cutoff, between 0 and 1; None: the OTF's own gain there
    order : n in 1 / sqrt(1 + e^2 w^n); the amplitude falls as radius^-n
    cutoff_fwhm : cutoff frequency as 1 / (cutoff_fwhm * FWHM); 1 is the published "resolution
        limit"; None: the band edge of the OTF
    """

    beta: float | None = None
    order: float = 10.0
    cutoff_fwhm: float | None = 1.0

    def __post_init__(self) -> None:
        _check(self.beta, "beta", 0.0, 1.0)
        _check(self.order, "order", 0.0, 100.0)
        _check(self.cutoff_fwhm, "cutoff_fwhm", 0.0, 100.0)

    def transfer(self, blur: Blur) -> Tensor:
        cutoff_px = cutoff_lengths_px(blur, self.cutoff_fwhm)
        beta = self.beta or gain_at_cutoff(magnitude(blur), blur, cutoff_px)
        return centred(blur, butterworth(blur, cutoff_px, 1 / beta**2 - 1, self.order))


@dataclass(frozen=True)
class Wiener(BackProjector):
    """The regularised inverse filter: conj(H) / (|H|^2 + alpha), gain 1 at zero frequency.

    Parameters
    ----------
    alpha : noise-to-signal power; larger is calmer; None: from the measured noise. The largest gain
        is (1 + alpha) / (2 sqrt(alpha)).
    """

    filters_matched: ClassVar[bool] = True

    alpha: float | None = None

    def __post_init__(self) -> None:
        _check(self.alpha, "alpha", 0.0, np.inf)

    def transfer(self, blur: Blur) -> Tensor:
        return _matched_times(blur, self.gain_over_matched(blur))

    def gain_over_matched(self, blur: Blur) -> Tensor:
        alpha = self.alpha or ALPHA_UNMEASURED
        return (1 + alpha) / (magnitude(blur) ** 2 + alpha)


@dataclass(frozen=True)
class WienerButterworth(BackProjector):
    """Wiener times Butterworth: the inverse in the passband, nothing beyond it (Guo et al. 2020).

    Parameters
    ----------
    alpha : noise-to-signal power of the Wiener part; None: from the measured noise
    beta : gain at the cutoff; None: the OTF's gain there, or less where alpha leaves less
    order : n of the Butterworth part
    cutoff_fwhm : cutoff as 1 / (cutoff_fwhm * FWHM): 1 as published for confocal and light sheet,
        1 / sqrt(2) for instant SIM; None: the band edge of the OTF
    convention : the gain at the cutoff is `beta` in the paper (e^2 = (b_w / beta)^2 - 1, its
        equation 27) and beta * sqrt(b_w) in the released program (e^2 = b_w / beta^2 - 1), where
        b_w is the Wiener gain at the cutoff

    Raises
    ------
    ParameterError : when the parameters leave no real e^2, because `beta` is above what the Wiener
        part gives at the cutoff
    """

    filters_matched: ClassVar[bool] = True

    alpha: float | None = None
    beta: float | None = None
    order: float = 10.0
    cutoff_fwhm: float | None = 1.0
    convention: Literal["paper", "release"] = "paper"

    def __post_init__(self) -> None:
        _check(self.alpha, "alpha", 0.0, np.inf)
        _check(self.beta, "beta", 0.0, 1.0)
        _check(self.order, "order", 0.0, 100.0)
        _check(self.cutoff_fwhm, "cutoff_fwhm", 0.0, 100.0)
        if self.convention not in ("paper", "release"):
            raise ParameterError(
                "WienerButterworth: convention must be 'paper' or 'release', "
                f"got {self.convention!r}."
            )

    def transfer(self, blur: Blur) -> Tensor:
        return _matched_times(blur, self.gain_over_matched(blur))

    def gain_over_matched(self, blur: Blur) -> Tensor:
        alpha = self.alpha or ALPHA_UNMEASURED
        cutoff_px = cutoff_lengths_px(blur, self.cutoff_fwhm)
        otf = magnitude(blur)
        wiener = 1 / (otf**2 + alpha)
        at_cutoff = gain_at_cutoff(otf * wiener, blur, cutoff_px)
        power = 2 if self.convention == "paper" else 1
        # an automatic beta never leaves e^2 below 1: the low-pass takes at least half the power
        beta = self.beta or min(gain_at_cutoff(otf, blur, cutoff_px), (at_cutoff**power / 2) ** 0.5)
        steepness = at_cutoff**power / beta**2 - 1
        if steepness <= 0:
            raise ParameterError(
                f"WienerButterworth: alpha={alpha:.3g} leaves a gain of {at_cutoff:.3g} at the "
                f"cutoff, too low for beta={beta:.3g}. Lower alpha or beta, or raise cutoff_fwhm."
            )
        low_pass = butterworth(blur, cutoff_px, steepness, self.order)
        return wiener.mul_(low_pass).mul_(1 + alpha)


@dataclass(frozen=True)
class OtfMaskedWiener(BackProjector):
    """Wiener, apodised to the support of the OTF (the idea of PetaKit5D, Ruan et al. 2024).

    The support is where |H| exceeds the level above which `energy` of the summed |H| lies, and
    never below 0.001. The gain falls from 1 to 0 as a squared cosine over the outer part of the
    support, measured to its nearest edge. Fits OTFs that no ellipsoid fits: lattice light sheets,
    skewed data.

    Parameters
    ----------
    alpha : noise-to-signal power; None: from the measured noise; published: 0.005
    energy : share of the summed |H| that the support holds
    apodised_from : relative radius at which the gain starts to fall
    """

    filters_matched: ClassVar[bool] = True

    alpha: float | None = None
    energy: float = 0.9
    apodised_from: float = 0.8

    def __post_init__(self) -> None:
        _check(self.alpha, "alpha", 0.0, np.inf)
        _check(self.energy, "energy", 0.0, 1.0)
        _check(self.apodised_from, "apodised_from", 0.0, 1.0)

    def transfer(self, blur: Blur) -> Tensor:
        return _matched_times(blur, self.gain_over_matched(blur))

    def gain_over_matched(self, blur: Blur) -> Tensor:
        alpha = self.alpha or ALPHA_UNMEASURED
        mask = apodised_support(blur, self.energy, self.apodised_from)
        return mask * (1 + alpha) / (magnitude(blur) ** 2 + alpha)


@dataclass(frozen=True)
class Figures:
    """What a back projector does to a PSF: the numbers to look at before trusting it.

    Parameters
    ----------
    fwhm_px, cutoff_px : (z, y, x) in voxels
    gain_at_cutoff : relative to zero frequency
    largest_gain : of the back projector, relative to zero frequency
    half_power_radius : where the gain of projector times OTF falls to 1 / sqrt(2), in units of the
        cutoff frequency, laterally
    largest_product : of |H B|; above 2 the iteration is unstable
    """

    fwhm_px: tuple[float, float, float]
    cutoff_px: tuple[float, float, float]
    gain_at_cutoff: float
    largest_gain: float
    half_power_radius: float
    largest_product: float


def figures(projector: BackProjector, blur: Blur) -> Figures:
    """Measure `projector` on `blur`."""
    widths = widths_of(blur)
    cutoff_px = cutoff_lengths_px(blur, getattr(projector, "cutoff_fwhm", 1.0))
    back = projector.transfer(blur).abs().double().cpu()
    back = back / back[0, 0, 0]
    product = back * magnitude(blur)
    lateral = product[0, 0]
    below = torch.nonzero(lateral < 2**-0.5)
    edge = float(below[0]) / blur.grid[2] * cutoff_px[2] if len(below) else float("inf")
    return Figures(
        widths,
        cutoff_px,
        gain_at_cutoff(back, blur, cutoff_px),
        float(back.max()),
        edge,
        float(product.max()),
    )


def back_projection(operator: LinearOperator, projector: BackProjector) -> LinearOperator:
    """Return the map from image to object that `projector` makes of any operator."""
    innermost = operator.outer if isinstance(operator, Composed) else operator
    if isinstance(innermost, VaryingBlur) and not isinstance(projector, Matched):
        back = VaryingBackProjection(innermost, projector)
        return Adjoint(operator.inner) @ back if isinstance(operator, Composed) else back
    if isinstance(projector, Matched) and not isinstance(innermost, Blur):
        return Adjoint(operator)
    return BackProjection(operator, projector)


class Adjoint(LinearOperator):
    """The transpose of an operator, as an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.forward(y)


class VaryingBackProjection(LinearOperator):
    """A* G: the image filtered once for all, then sent back through the exact adjoint.

    The adjoint takes the phase of the PSF at every place, so the way there and back is symmetric;
    the real gain G, of `projector` for the strongest |H| of the field at each frequency, sharpens and
    exceeds a gain of 1 nowhere. It costs what the adjoint costs.
    """

    def __init__(self, blur: VaryingBlur, projector: BackProjector) -> None:
        self.blur = blur
        self.domain_shape, self.range_shape = blur.range_shape, blur.domain_shape
        gain = projector.gain_over_matched(blur.strongest())
        self.gain = gain.to(blur.psf)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur.filtered_adjoint(x, self.gain)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.blur.filtered_forward(y, self.gain)


class BackProjection(LinearOperator):
    """The map from image to object that a back projector makes of an operator.

    Goes back through a `Blur` with the projector's transfer function, and through every operator
    composed before it with that operator's exact adjoint.
    """

    def __init__(self, operator: LinearOperator, projector: BackProjector) -> None:
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape
        self.inner = operator.inner if isinstance(operator, Composed) else None
        blur = operator.outer if isinstance(operator, Composed) else operator
        if not isinstance(blur, Blur):
            raise ParameterError(
                f"BackProjection: expected a Blur, or Blur @ something, got {operator!r}. "
                "Use the matched back projector for other operators."
            )
        self.blur = blur
        # what is the matched one but for a real gain keeps that alone: half a second transfer
        self.gain: Tensor | None = None
        self.transfer_function: Tensor | None = None
        if projector.filters_matched:
            self.gain = projector.gain_over_matched(blur).to(blur.psf)
        elif not isinstance(projector, Matched):
            self.transfer_function = projector.transfer(blur)

    def forward(self, x: Tensor) -> Tensor:
        transfer, conjugate = self._transfer()
        blur = self.blur
        back = filtered(
            x, transfer, blur.grid, blur.domain_shape, conjugate=conjugate, gain=self.gain
        )
        return back if self.inner is None else self.inner.adjoint(back)

    def forward_slabs(self, x: Tensor, finish: Finish) -> None:
        if self.inner is not None:
            super().forward_slabs(x, finish)
            return
        transfer, conjugate = self._transfer()
        blur = self.blur
        filter_slabs(
            x, transfer, blur.grid, blur.domain_shape, finish, conjugate=conjugate, gain=self.gain
        )

    def adjoint(self, y: Tensor) -> Tensor:
        y = y if self.inner is None else self.inner.forward(y)
        transfer, conjugate = self._transfer()
        blur = self.blur
        return filtered(
            y, transfer, blur.grid, blur.range_shape, conjugate=not conjugate, gain=self.gain
        )

    def _transfer(self) -> tuple[Tensor, bool]:
        """The matched one is the blur's own OTF, conjugated on the way: never a second copy."""
        if self.transfer_function is None:
            return self.blur.transfer, True
        return self.transfer_function, False


def cutoff_lengths_px(blur: Blur, cutoff_fwhm: float | None) -> Lengths:
    """Return 1 / fc in voxels (z, y, x): a multiple of the FWHM; without one, the OTF's band edge."""
    if cutoff_fwhm is None or not all(np.isfinite(widths_of(blur))):
        return band_edge_px(blur)
    z, y, x = (cutoff_fwhm * w for w in fwhm_of(blur))
    return z, y, x


def _matched_times(blur: Blur, gain: Tensor) -> Tensor:
    real = gain.to(device=blur.transfer.device, dtype=blur.transfer.real.dtype)
    return blur.transfer.conj_physical().mul_(real)


def _check(value: float | None, name: str, low: float, high: float) -> None:
    if value is not None and not (low < value < high):
        raise ParameterError(f"{name} must lie between {low:g} and {high:g}, got {value:g}.")


METHODS: dict[str, BackProjector] = {
    "matched": Matched(),
    "gaussian": Gaussian(),
    "butterworth": Butterworth(),
    "wiener": Wiener(),
    "wiener-butterworth": WienerButterworth(cutoff_fwhm=2**-0.5),
    "otf-masked-wiener": OtfMaskedWiener(),
}
"""The back projectors by the name that users give.

Parameters as published, but for the cutoff of Wiener-Butterworth, which is the FWHM / sqrt(2) of
instant SIM: at the FWHM itself the low-pass needs more iterations to get as far.
"""
