"""Stage-scanned and oblique recordings: where their voxels are, and one resampling to stand them up.

The sheet stands at an angle to the coverslip, and the stage carries the specimen through it. So plane
k of the recording lies `k * step` further along the coverslip, which is further along the detection
axis *and* sideways in the camera image. The recording is a `Grid` in a sheared frame, and three
affine maps say the rest:

    scan        (travel, y, x): stage travel, and camera coordinates; what was recorded
    view        (z, y, x) right-angled: z along the detection axis, x and y in the sheet
    coverslip   (z, y, x) right-angled: x along the stage, z along the normal of the coverslip

With sheet angle a and direction d = +-1:  z_view = travel sin a,  x_view = x + d travel cos a, and
x_coverslip = d travel + x cos a,  z_coverslip = -d x sin a: a turn of the view, never a mirror.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn.functional import grid_sample

from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.psf import Psf
from pellucid.errors import InputError, ParameterError

Frame = Literal["view", "coverslip"]

EDGE_TOLERANCE = 1e-5
"""Of half a volume's length, for places on its very edge."""

PLANES_AT_ONCE = 8
"""Planes of the result that are sampled together: coordinates cost 24 bytes a voxel."""


@dataclass(frozen=True)
class StageScan:
    """How a stage-scanned stack was recorded.

    Parameters
    ----------
    step_um : distance that the stage travels between two planes
    sheet_angle_rad : between the sheet (the plane that the camera sees) and the stage's travel:
        pi / 4 for a symmetric diSPIM. The interplane distance is step_um * sin(sheet_angle_rad).
        For the two arms of a diSPIM the angles sum to pi / 2
    pixel_um : camera pixel in the specimen, (y, x) or one number; x is the axis along which the
        structures slide from plane to plane
    direction : +1 when a resting structure moves towards smaller x with every plane, else -1

    Examples
    --------
    >>> scan = StageScan(step_um=1.0, sheet_angle_rad=math.pi / 4, pixel_um=0.1625)
    >>> round(scan.plane_distance_um, 4)
    0.7071
    """

    step_um: float
    sheet_angle_rad: float
    pixel_um: float | tuple[float, float]
    direction: int = 1

    def __post_init__(self) -> None:
        pixel = np.broadcast_to(np.asarray(self.pixel_um, dtype=np.float64), (2,))
        if not (self.step_um > 0 and math.isfinite(self.step_um) and (pixel > 0).all()):
            raise ParameterError(
                f"StageScan: expected a positive step and pixel in micrometres, got step_um="
                f"{self.step_um}, pixel_um={self.pixel_um}. Reverse a scan by direction=-1."
            )
        if not 0 < self.sheet_angle_rad <= math.pi / 2:
            raise ParameterError(
                f"StageScan: expected a sheet angle above 0 and up to pi / 2, got "
                f"{self.sheet_angle_rad} rad. Convert degrees with math.radians."
            )
        if self.direction not in (1, -1):
            raise ParameterError(f"StageScan: direction must be 1 or -1, got {self.direction}.")
        object.__setattr__(self, "pixel_um", (float(pixel[0]), float(pixel[1])))

    @property
    def spacing_um(self) -> tuple[float, float, float]:
        """Stage step and camera pixels, (z, y, x): the spacing of the recording's grid."""
        assert isinstance(self.pixel_um, tuple)
        return self.step_um, *self.pixel_um

    @property
    def plane_distance_um(self) -> float:
        """Distance between neighbouring planes along the detection axis."""
        return self.step_um * math.sin(self.sheet_angle_rad)

    @property
    def slide_um(self) -> float:
        """How far plane k + 1 lies sideways of plane k, along x of the view."""
        return self.direction * self.step_um * math.cos(self.sheet_angle_rad)

    @property
    def scan_to_view(self) -> Affine:
        """From (travel, y, x) to right angles, z along the detection axis."""
        linear = np.eye(3)
        linear[0, 0] = math.sin(self.sheet_angle_rad)
        linear[2, 0] = self.direction * math.cos(self.sheet_angle_rad)
        return Affine.from_linear(linear, source="scan", target="view")

    @property
    def scan_to_coverslip(self) -> Affine:
        """From (travel, y, x) to right angles, x along the stage's travel."""
        linear = np.zeros((3, 3))
        linear[0, 2] = -self.direction * math.sin(self.sheet_angle_rad)
        linear[1, 1] = 1
        linear[2] = self.direction, 0, math.cos(self.sheet_angle_rad)
        return Affine.from_linear(linear, source="scan", target="coverslip")

    def to(self, frame: Frame) -> Affine:
        """Return the map from the scan to "view" or "coverslip"."""
        if frame not in ("view", "coverslip"):
            raise ParameterError(f"StageScan: expected 'view' or 'coverslip', got {frame!r}.")
        return self.scan_to_view if frame == "view" else self.scan_to_coverslip

    def grid(self, shape: tuple[int, int, int]) -> Grid:
        """Return where the voxels of a recording of `shape` (planes, y, x) are, in frame "scan"."""
        return Grid(shape, self.spacing_um, frame="scan")

    def skewed_psf(self, psf: Psf) -> Psf:
        """Return a PSF of the view (right-angled, with spacing_um) on the voxels of the recording.

        In a skewed recording the blur is a convolution still, by the PSF read at the recording's own
        voxels. Deconvolving it needs no deskewed copy of the data. Cubic interpolation; sum 1.
        """
        if psf.spacing_um is None:
            raise InputError("skewed_psf: expected a PSF with a voxel size, got None.")
        old = np.asarray(psf.spacing_um)
        reach_um = np.asarray(psf.shape) // 2 * old
        planes = math.floor(reach_um[0] / self.plane_distance_um)
        sideways_um = reach_um[2] + planes * abs(self.slide_um)
        reach = (
            planes,
            int(reach_um[1] / self.spacing_um[1]),
            int(sideways_um / self.spacing_um[2]),
        )
        index = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1)
        offsets_um = (index * self.spacing_um) @ self.scan_to_view.linear.T
        places = offsets_um / old + np.asarray(psf.centre)
        values = map_coordinates(psf.values, np.moveaxis(places, -1, 0), order=3, mode="constant")
        return Psf.normalised(values, self.spacing_um, (*psf.notes, "read on the skewed voxels"))


def deskewed_grid(
    scan: StageScan,
    shape: tuple[int, int, int],
    *,
    frame: Frame = "coverslip",
    spacing_um: ArrayLike | None = None,
) -> Grid:
    """Return the smallest right-angled grid that holds a recording of `shape` (planes, y, x).

    Parameters
    ----------
    frame : "coverslip" (x along the stage) or "view" (z along the detection axis)
    spacing_um : of the result, z, y, x; None: the camera's pixel, isotropic, and in the view the
        interplane distance along z, so that its planes are those of the recording
    """
    raw, placed = scan.grid(shape), scan.to(frame)
    if spacing_um is None:
        y, x = scan.spacing_um[1:]
        spacing_um = (scan.plane_distance_um, y, x) if frame == "view" else min(y, x)
    spacing = np.asarray(as_triple(spacing_um, "spacing_um"))
    corners = placed.apply(raw.corners_um())
    low, high = corners.min(0), corners.max(0)
    # The small deduction keeps a length of 10.000000001 voxels from gaining one more.
    z, y_, x_ = (int(n) for n in np.ceil((high - low) / spacing - 1e-6).astype(int) + 1)
    return Grid((z, y_, x_), as_triple(spacing, "spacing_um"), as_triple(low, "origin"), frame)


def deskew(
    volume: Tensor,
    scan: StageScan,
    *,
    frame: Frame = "coverslip",
    spacing_um: ArrayLike | None = None,
    grid: Grid | None = None,
) -> tuple[Tensor, Grid]:
    """Return a stage-scanned recording on right angles, zero outside, and its grid.

    One resampling: linear between the two neighbouring planes *along the detection axis*, bilinear
    in each; beside the border of the recorded of them alone, so that nothing is mixed with the
    dark. (Trilinear interpolation in the recording's own indices would mix points that lie
    a whole `slide_um` apart, and doubles edges when that is several pixels.)

    Parameters
    ----------
    volume : (planes, y, x) floating-point counts, as recorded
    frame, spacing_um : as in `deskewed_grid`
    grid : the result's grid, in "view" or "coverslip"; None: `deskewed_grid` of the above

    Raises
    ------
    InputError : when the volume is not a floating-point (planes, y, x) tensor
    """
    if volume.ndim != 3 or not volume.is_floating_point():
        raise InputError(
            f"deskew: expected a floating-point (planes, y, x) volume, got {volume.dtype} of shape "
            f"{tuple(volume.shape)}. Pass one channel and one time point, as float32."
        )
    planes, height, width = volume.shape
    if grid is None:
        grid = deskewed_grid(scan, (planes, height, width), frame=frame, spacing_um=spacing_um)
    placed = scan.to("view" if grid.frame == "view" else "coverslip")
    index_to_view = (scan.scan_to_view @ placed.inverse() @ grid.index_to_um).matrix
    result = volume.new_empty(grid.shape)
    for start in range(0, grid.shape[0], PLANES_AT_ONCE):
        block = slice(start, min(start + PLANES_AT_ONCE, grid.shape[0]))
        result[block] = _sampled(volume, scan, index_to_view, block, grid.shape)
    return result, grid


def _sampled(
    volume: Tensor,
    scan: StageScan,
    index_to_view: np.ndarray,
    block: slice,
    shape: tuple[int, int, int],
) -> Tensor:
    """Return planes `block` of the result."""
    axes = [
        torch.arange(block.start, block.stop, dtype=torch.float64),
        *(torch.arange(n, dtype=torch.float64) for n in shape[1:]),
    ]
    z, y, x = (
        axes[0][:, None, None] * row[0] + axes[1][:, None] * row[1] + axes[2] * row[2] + row[3]
        for row in index_to_view[:3].tolist()
    )
    depth = z / scan.plane_distance_um
    lower = torch.floor(depth)
    result = torch.zeros(depth.shape, dtype=volume.dtype, device=volume.device)
    support = torch.zeros_like(result)
    for plane, weight in ((lower, 1 - (depth - lower)), (lower + 1, depth - lower)):
        indices = (
            (x - plane * scan.slide_um) / scan.spacing_um[2], y / scan.spacing_um[1], plane
        )  # fmt: skip
        sizes = volume.shape[::-1]
        places = torch.stack(
            [_normalised(i, n) for i, n in zip(indices, sizes, strict=True)], dim=-1
        ).to(volume)
        # a whole plane number: the trilinear sample is the bilinear one of that plane
        sample = grid_sample(
            volume[None, None], places[None], padding_mode="border", align_corners=False
        )[0, 0]
        # half a voxel beyond the last centres, as far as the voxels reach
        inside = (places.abs() <= 1 + EDGE_TOLERANCE).all(dim=-1)
        seen = weight.to(volume) * inside
        result += sample * seen
        support += seen
    # what lies half outside is not half as bright: dark or recorded, nothing between
    return torch.where(support >= 0.5, result / support.clamp_min(0.5), 0)


def _normalised(index: Tensor, size: int) -> Tensor:
    """Return voxel indices as grid_sample counts them: -1 to 1 from edge to edge."""
    return (2 * index + 1) / size - 1
