"""Focused light: intensity as a function of radius and depth, and its integral over voxels.

An objective's PSF is round, so everything is done on (radius, depth) and turned into voxels last.
Fields are Gauss-Legendre sums over the aperture angle, whose number of nodes follows the phase.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline, make_interp_spline
from scipy.sparse import csr_array, eye_array, kron
from scipy.special import jv

from pellucid.core.optics import DESIGN_COVERSLIP_INDEX, DESIGN_COVERSLIP_UM, Optics

Array = npt.NDArray[np.float64]
# Intensity per um^2 at radii (r,) and depths (z,): an (r, z) array.
Profile = Callable[[Array, Array], Array]

# Radial steps per wavelength / NA: a cubic spline then errs below 1e-5 of the peak.
RADII_PER_AIRY = 40


def radii_um(reach_um: float, optics: Optics) -> Array:
    """Radii from 0 to `reach_um` on which a cubic spline carries the intensity."""
    step = optics.wavelength_um / optics.na / RADII_PER_AIRY
    return np.arange(max(8, int(np.ceil(reach_um / step)) + 3)) * np.float64(step)


def scalar_intensity(optics: Optics, radius_um: Array, depth_um: Array) -> Array:
    """Scalar intensity (radius, depth) per um^2; every plane of an endless field holds 1.

    |int P(rho) exp(i phase) J0(k NA r rho) rho d rho|^2 with a uniform pupil, the exact (not
    paraxial) defocus, and the phase of Gibson and Lanni (J. Opt. Soc. Am. A 9:154, 1992) when
    `optics.layers` is given. In focus and without layers it is the Airy pattern at any aperture.
    """
    theta, weights = _aperture(optics, radius_um, depth_um)
    amplitude = np.sin(theta) * np.cos(theta)
    plane = float(2.0 * np.pi / _wavenumber(optics) ** 2 * (weights @ amplitude))
    return _power(optics, 0, theta, weights * amplitude, radius_um, depth_um) / plane


def vectorial_intensity(optics: Optics, radius_um: Array, depth_um: Array) -> Array:
    """Vectorial intensity (radius, depth) per um^2; every plane of an endless field holds 1.

    |I0|^2 + 2 |I1|^2 + |I2|^2 of Richards and Wolf (Proc. R. Soc. A 253:358, 1959): unpolarised
    focusing, and equally the image of freely turning dipoles (Aguet et al., Opt. Express 17:6829,
    2009), with the Fresnel transmission between immersion, cover glass and sample for `layers`.
    """
    theta, weights = _aperture(optics, radius_um, depth_um)
    sine, cosine = np.sin(theta), np.cos(theta)
    inner_sine, inner_cosine, t_s, t_p = _transmission(optics, sine)
    common = np.sqrt(cosine) * sine
    orders = {
        0: common * (t_s + t_p * inner_cosine),
        1: common * t_p * inner_sine * np.sqrt(2.0),
        2: common * (t_s - t_p * inner_cosine),
    }
    pupil = sum(amplitude**2 for amplitude in orders.values()) / (sine * cosine)
    plane = float(2.0 * np.pi / _wavenumber(optics) ** 2 * (weights @ pupil))
    powers = [
        _power(optics, order, theta, weights * amplitude, radius_um, depth_um)
        for order, amplitude in orders.items()
    ]
    return sum(powers[1:], powers[0]) / plane


def focal_shift_um(on_axis: Callable[[Array], Array], optics: Optics) -> float:
    """Depth of the brightest point on the axis, where refractive indices moved it; 0 otherwise."""
    if optics.layers is None:
        return 0.0
    layers, step = optics.layers, optics.axial_width_um / 8.0
    glass = abs(layers.coverslip_um - DESIGN_COVERSLIP_UM)
    reach = 4.0 * optics.axial_width_um + 0.5 * layers.depth_um + 0.5 * glass + 10.0
    depth = np.arange(-reach, reach, step)
    coarse = float(depth[int(np.argmax(on_axis(depth)))])
    near = coarse + np.linspace(-step, step, 129)
    return float(near[int(np.argmax(on_axis(near)))])


def _wavenumber(optics: Optics) -> float:
    return 2.0 * np.pi * optics.refractive_index / optics.wavelength_um


def _aperture(optics: Optics, radius_um: Array, depth_um: Array) -> tuple[Array, Array]:
    """Angles in the immersion and their quadrature weights, dense enough for the steepest phase."""
    widest = float(np.arcsin(optics.aperture_na / optics.refractive_index))
    trial = np.linspace(0.0, widest, 257)
    phase = _phase(optics, trial, np.array([depth_um.min(), depth_um.max()]))
    swing = float(np.ptp(phase, axis=0).max())
    swing += _wavenumber(optics) * float(radius_um.max()) * np.sin(widest)
    # Gauss-Legendre converges beyond half a node per radian; the rest is margin.
    nodes, weights = np.polynomial.legendre.leggauss(int(0.6 * swing) + 40)
    return 0.5 * widest * (nodes + 1.0), 0.5 * widest * weights


def _phase(optics: Optics, theta: Array, depth_um: Array) -> Array:
    """Phase (angle, depth) in radians, stage position measured from the paraxial focus."""
    index = optics.refractive_index
    per_um = 2.0 * np.pi / optics.wavelength_um
    defocus = np.outer(index * np.cos(theta), depth_um)
    if optics.layers is None:
        return per_um * defocus
    layers = optics.layers
    sine_sq = (index * np.sin(theta)) ** 2
    design_index = layers.design_index or index
    # (thickness, index), designed ones negative; the immersion is what brings the focus to depth 0.
    path = [
        (layers.depth_um, layers.sample_index),
        (layers.coverslip_um, layers.coverslip_index),
        (-DESIGN_COVERSLIP_UM, DESIGN_COVERSLIP_INDEX),
        (-layers.working_distance_um, design_index),
    ]
    immersion_um = -index * sum(thickness / n for thickness, n in path)
    length = sum(
        thickness * np.sqrt(np.maximum(n**2 - sine_sq, 0.0))
        for thickness, n in [*path, (immersion_um, index)]
    )
    # Moving the focus deeper by a depth takes away that much immersion.
    return per_um * (np.asarray(length)[:, None] - defocus)


def _transmission(optics: Optics, sine: Array) -> tuple[Array, Array, Array, Array]:
    """Sine and cosine in the sample; s and p amplitudes transmitted from immersion to sample.

    That direction also holds for emission: the dipole's plane waves carry 1 / k_z of the sample,
    which turns the transmission outwards into the one inwards (reciprocity).
    """
    if optics.layers is None:
        return sine, np.sqrt(1.0 - sine**2), np.ones_like(sine), np.ones_like(sine)
    glass, sample = optics.layers.coverslip_index, optics.layers.sample_index
    indices = (optics.refractive_index, glass, sample)
    sines = [np.minimum(optics.refractive_index * sine / n, 1.0) for n in indices]
    cosines = [np.sqrt(1.0 - s**2) for s in sines]
    t_s, t_p = np.ones_like(sine), np.ones_like(sine)
    for k in (0, 1):
        n1, n2, c1, c2 = indices[k], indices[k + 1], cosines[k], cosines[k + 1]
        t_s = t_s * 2.0 * n1 * c1 / (n1 * c1 + n2 * c2)
        t_p = t_p * 2.0 * n1 * c1 / (n2 * c1 + n1 * c2)
    return sines[-1], cosines[-1], t_s, t_p


def _power(
    optics: Optics, order: int, theta: Array, weighted: Array, radius_um: Array, depth_um: Array
) -> Array:
    """|sum over angles of weighted * J_order * exp(i phase)|^2 as (radius, depth)."""
    reach = _wavenumber(optics) * np.outer(radius_um, np.sin(theta))
    bessel = jv(order, reach) * weighted
    phase = _phase(optics, theta, depth_um)
    return np.asarray((bessel @ np.cos(phase)) ** 2 + (bessel @ np.sin(phase)) ** 2)


# --------------------------------------------------------------------------- from profile to voxels


def through_pinhole(profile: Profile, pinhole_radius_um: float, optics: Optics) -> Profile:
    """The profile averaged over a disc about each radius: what a pinhole of that radius lets in."""
    fineness = int(np.ceil(4.0 * pinhole_radius_um / optics.airy_radius_um)) + 8
    nodes, weights = np.polynomial.legendre.leggauss(fineness)
    share = 0.5 * (nodes + 1.0)
    ring_weights = weights * share  # area of the ring, normalised: the weights sum to 1
    angles = np.pi * (np.arange(2 * fineness) + 0.5) / (2 * fineness)

    def averaged(radius_um: Array, depth_um: Array) -> Array:
        grid = radii_um(float(radius_um.max()) + pinhole_radius_um, optics)
        ring = share * pinhole_radius_um
        at = np.sqrt(
            np.maximum(
                radius_um[:, None, None] ** 2
                + ring[:, None] ** 2
                - 2.0 * radius_um[:, None, None] * ring[:, None] * np.cos(angles),
                0.0,
            )
        )
        spline = _radial_spline(grid, profile(grid, depth_um))
        weight = np.broadcast_to(ring_weights[:, None] / angles.size, at.shape[1:]).ravel()
        return _weighted_rows(spline, at.reshape(radius_um.size, -1), weight)

    return averaged


def voxels(
    profile: Profile, shape: tuple[int, int, int], spacing_um: tuple[float, float, float],
    optics: Optics, finest_um: tuple[float, float],
) -> Array:  # fmt: skip
    """Light (z, y, x) in each voxel, per um^2 of its area, averaged over its extent.

    `finest_um` (axial, lateral): the half period of the finest detail, which sets how many
    Gauss-Legendre nodes each voxel gets. With one plane it is the plane in focus itself.
    """
    depth_um, depth_weights = _voxel_nodes(shape[0], spacing_um[0], finest_um[0])
    if shape[0] == 1:
        depth_um, depth_weights = np.zeros((1, 1)), np.ones(1)
    y_um, y_weights = _voxel_nodes(shape[1], spacing_um[1], finest_um[1], one_side=True)
    x_um, x_weights = _voxel_nodes(shape[2], spacing_um[2], finest_um[1], one_side=True)
    reach = float(np.hypot(np.abs(y_um).max(), np.abs(x_um).max()))
    grid = radii_um(reach, optics)
    light = profile(grid, depth_um.ravel()).reshape(grid.size, *depth_um.shape) @ depth_weights
    radius = np.hypot(y_um[:, None, :, None], x_um[None, :, None, :])
    rows = radius.reshape(y_um.shape[0] * x_um.shape[0], -1)
    weight = np.outer(y_weights, x_weights).ravel()
    quadrant = _weighted_rows(_radial_spline(grid, light), rows, weight)
    quadrant = np.maximum(quadrant.reshape(y_um.shape[0], x_um.shape[0], shape[0]), 0.0)
    y, x = (np.abs(np.arange(size) - size // 2) for size in shape[1:])
    return np.ascontiguousarray(np.moveaxis(quadrant[y][:, x], -1, 0))


def _voxel_nodes(
    size: int, spacing_um: float, finest_um: float, one_side: bool = False
) -> tuple[Array, Array]:
    """Quadrature positions (voxel, node) in micrometres from the centre, and weights (node,)."""
    count = int(np.clip(np.ceil(1.5 * spacing_um / finest_um) + 1, 2, 16))
    nodes, weights = np.polynomial.legendre.leggauss(count)
    index = np.arange(size // 2 + 1) if one_side else np.arange(size) - size // 2
    return (index[:, None] + 0.5 * nodes) * spacing_um, 0.5 * weights


def _radial_spline(radius_um: Array, values: Array) -> BSpline:
    """Cubic spline in the radius, mirrored at the axis so that it is smooth there."""
    mirrored = np.concatenate([-radius_um[4:0:-1], radius_um])
    return make_interp_spline(mirrored, np.concatenate([values[4:0:-1], values]), k=3)


def _weighted_rows(spline: BSpline, at: Array, weights: Array) -> Array:
    """sum_j weights[j] * spline(at[i, j]) as one sparse product."""
    rows = at.shape[0]
    sample = BSpline.design_matrix(at.ravel(), spline.t, spline.k)
    collect = kron(eye_array(rows), weights[None, :])
    return np.asarray((csr_array(collect) @ csr_array(sample)) @ spline.c)
