"""Blur that varies across the image, with exact adjoints: low rank, and blended tiles to check it by."""

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pellucid.core.fourier import Finish, Shape, empty, fast_shape, filtered, transfer_function
from pellucid.core.mixing import mix_slabs, unmixed
from pellucid.core.operators import Blur, Extended, LinearOperator, binned_psf
from pellucid.core.psf_field import Array, PsfExpansion, PsfField

PLACES_PER_AXIS = 3
"""Places at which the strongest transfer of a field is looked for: its borders and its middle."""


class VaryingBlur(Extended):
    """The image sum_k h_k * (w_k x): every object voxel sends the PSF of its own place.

    The other order, sum_k w_k (h_k * x), would give every image voxel a PSF of its own; it costs the
    same, but an emitter's light is then not conserved where the PSF changes. The object extends
    beyond the image by the reach of the kernels, as in `Blur`; there the weights are those at the
    border of the field. Forward takes rank + 1 FFTs, and so does the adjoint, but only one along y
    and x each way where the field varies with depth alone.

    Parameters
    ----------
    expansion : kernels and weights of a `PsfField`
    image_shape : (z, y, x) of the recorded image
    origin_um : of the image's first voxel, in the field's micrometres
    dtype, device : of the tensors to be blurred

    Attributes
    ----------
    mean : `Blur` with the mean PSF, on the same grids
    transfers, weights : one for each kernel; weights have one voxel on axes without variation

    Examples
    --------
    >>> narrow, wide = np.zeros((2, 1, 1, 5))
    >>> narrow[..., 2], wide[...] = 1.0, 0.2
    >>> field = PsfField(np.stack([narrow, wide]), [[0, 0, 0], [0, 0, 9]], (1.0, 1.0, 1.0))
    >>> blur = VaryingBlur.of(field, (1, 1, 10))
    >>> blur.expansion.rank
    2
    """

    def __init__(
        self,
        expansion: PsfExpansion,
        image_shape: Shape,
        *,
        origin_um: tuple[float, float, float] = (0.0, 0.0, 0.0),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
    ) -> None:
        kernels = torch.from_numpy(np.ascontiguousarray(expansion.kernels)).to(device, dtype)
        self.expansion, self.origin_um = expansion, origin_um
        self.mean = Blur(kernels[0], image_shape)
        self.psf, self.grid, self.margin = kernels[0], self.mean.grid, self.mean.margin
        self.domain_shape, self.range_shape = self.mean.domain_shape, image_shape
        origin = _origin(kernels[0], self.margin)
        self.transfers = [self.mean.transfer] + [
            transfer_function(kernel.contiguous(), self.grid, origin) for kernel in kernels[1:]
        ]
        flat = torch.ones(1, 1, 1, dtype=dtype, device=device)
        self.weights = [flat, *(self._weight(term) for term in range(1, expansion.rank))]

    @classmethod
    def of(
        cls,
        field: PsfField,
        image_shape: Shape,
        *,
        accuracy: float = 1e-3,
        rank: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
    ) -> "VaryingBlur":
        """Return the blur of a field, of the rank that `accuracy` needs unless it is given."""
        expansion = field.expanded(accuracy, rank=rank)
        return cls(expansion, image_shape, dtype=dtype, device=device)

    def _weight(self, term: int) -> Tensor:
        sizes = zip(self.domain_shape, self.expansion.knots, strict=True)
        z, y, x = (n if len(knots) > 1 else 1 for n, knots in sizes)
        if self.psf.is_meta:  # only shapes are wanted, of volumes that may be larger than memory
            return self.psf.new_empty(z, y, x)
        along_z, along_y, along_x = (
            (np.arange(n, dtype=np.float64) - m) * np.float64(step) + start
            for n, m, step, start in zip(
                self.domain_shape, self.margin, self.expansion.spacing_um, self.origin_um, strict=True
            )
        )
        values = self.expansion.weights((along_z, along_y, along_x), slice(term, term + 1))[0]
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.psf)

    def __repr__(self) -> str:
        return (
            f"VaryingBlur(rank {self.expansion.rank}, psf{tuple(self.psf.shape)}, "
            f"{self.range_shape})"
        )

    @property
    def typical(self) -> Blur:
        return self.mean

    def forward(self, x: Tensor) -> Tensor:
        out = empty(self.range_shape, x)

        def keep(planes: slice, values: Tensor) -> None:
            out[planes] = values

        self.forward_slabs(x, keep)
        return out

    def forward_slabs(self, x: Tensor, finish: Finish) -> None:
        mix_slabs(x, self.weights, self.transfers, self.grid, self.range_shape, finish)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.filtered_adjoint(y, None)

    def filtered_adjoint(self, y: Tensor, gain: Tensor | None) -> Tensor:
        """Return the adjoint of `y` filtered by a real `gain` on the half spectrum of the grid."""
        return unmixed(y, self.weights, self.transfers, self.grid, self.domain_shape, gain)

    def filtered_forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """Return the image of `x` filtered by a real `gain`: the transpose of `filtered_adjoint`."""
        transfers = [transfer * gain for transfer in self.transfers]
        out = empty(self.range_shape, x)

        def keep(planes: slice, values: Tensor) -> None:
            out[planes] = values

        mix_slabs(x, self.weights, transfers, self.grid, self.range_shape, keep)
        return out

    @property
    def bytes_beyond_mean(self) -> int:
        """Memory of weights and transfers beyond those of one `Blur`."""
        return sum(t.nbytes for t in (*self.weights, *self.transfers[1:]))

    def strongest(self) -> Blur:
        """Return a `Blur` whose transfer is the largest |H| of the field at every frequency.

        What is divided by it is never amplified beyond 1 anywhere in the field.
        """
        largest = torch.zeros_like(self.transfers[0].real)
        table = self.expansion.table
        for axis, size in enumerate(table.shape[1:], start=1):
            few = np.unique(np.linspace(0, size - 1, PLACES_PER_AXIS).round().astype(int))
            table = table.take(few, axis=axis)
        for row in table.reshape(len(table), -1).T:
            local = self.transfers[0].clone()
            for weight, transfer in zip(row[1:], self.transfers[1:], strict=True):
                local.add_(transfer, alpha=float(weight))
            torch.maximum(largest, local.abs(), out=largest)
        blur = Blur(self.psf, self.range_shape)
        blur.transfer = largest.to(self.transfers[0].dtype)
        return blur

    def times(self, flux: float) -> "VaryingBlur":
        """Return the blur that sends `flux` times the light."""
        more = replace(self.expansion, kernels=self.expansion.kernels * flux)
        return VaryingBlur(
            more, self.range_shape, origin_um=self.origin_um, dtype=self.psf.dtype, device=self.psf.device
        )

    def binned(self, factors: Shape, image_shape: Shape) -> "VaryingBlur":
        kernels = [binned_psf(torch.from_numpy(k), factors) for k in self.expansion.kernels]
        old = self.expansion.spacing_um
        z, y, x = (step * f for step, f in zip(old, factors, strict=True))
        # a coarse voxel's centre lies half of the others' extent behind that of its first one
        oz, oy, ox = (
            start + 0.5 * (f - 1) * step
            for start, f, step in zip(self.origin_um, factors, old, strict=True)
        )
        coarse = replace(self.expansion, kernels=torch.stack(kernels).numpy(), spacing_um=(z, y, x))
        return VaryingBlur(
            coarse, image_shape, origin_um=(oz, oy, ox),
            dtype=self.psf.dtype, device=self.psf.device,
        )  # fmt: skip


class TiledBlur(LinearOperator):
    """The same blur by blended tiles: each tile convolved with the PSF at its centre.

    The independent reference that `VaryingBlur` is compared with in tests and in
    `benchmarks/varying_blur.py`; nothing else uses it. The object is shared among tiles by hat
    functions that sum to 1, so that the PSF between two centres is interpolated linearly. Slow and
    memory-hungry beside `VaryingBlur`.

    Parameters
    ----------
    psf_at : the field that gives the PSF at the centres
    tiles : (z, y, x) number of centres on each axis, from border to border of the image
    like : the `VaryingBlur` whose grids are used, so that both take the same objects
    """

    def __init__(self, psf_at: PsfExpansion, tiles: Shape, like: VaryingBlur) -> None:
        self.domain_shape, self.range_shape = like.domain_shape, like.range_shape
        self.margin = like.margin
        hats = [
            _hats(n, m, image, count)
            for n, m, image, count in zip(
                self.domain_shape, self.margin, self.range_shape, tiles, strict=True
            )
        ]
        self.tiles: list[tuple[tuple[slice, ...], Tensor, Shape, Tensor]] = []
        for (z, cz), (y, cy), (x, cx) in itertools.product(*hats):
            box = tuple(
                slice(int(a.nonzero()[0][0]), int(a.nonzero()[0][-1]) + 1) for a in (z, y, x)
            )
            hat = np.einsum("z,y,x->zyx", z[box[0]], y[box[1]], x[box[2]])
            oz, oy, ox = (
                c * step + start
                for c, step, start in zip(
                    (cz, cy, cx), psf_at.spacing_um, like.origin_um, strict=True
                )
            )
            kernel = torch.from_numpy(psf_at.psf_at((oz, oy, ox))).to(like.psf)
            gz, gy, gx = (n + k - 1 for n, k in zip(hat.shape, kernel.shape, strict=True))
            grid = fast_shape((gz, gy, gx))
            transfer = transfer_function(kernel, grid, (0, 0, 0))
            self.tiles.append((box, torch.from_numpy(hat).to(like.psf), grid, transfer))
        self.centre = [n // 2 for n in like.psf.shape]

    def forward(self, x: Tensor) -> Tensor:
        image = torch.zeros(self.range_shape, dtype=x.dtype, device=x.device)
        for box, hat, grid, transfer in self.tiles:
            seen, part = self._overlap(box, grid)
            blurred = filtered((x[box] * hat).contiguous(), transfer, grid, grid)
            image[seen] += blurred[part]
        return image

    def adjoint(self, y: Tensor) -> Tensor:
        back = torch.zeros(self.domain_shape, dtype=y.dtype, device=y.device)
        for box, hat, grid, transfer in self.tiles:
            seen, part = self._overlap(box, grid)
            padded = torch.zeros(grid, dtype=y.dtype, device=y.device)
            padded[part] = y[seen]
            z, y_size, x = hat.shape
            back[box] += hat * filtered(padded, transfer, grid, (z, y_size, x), conjugate=True)
        return back

    def _overlap(
        self, box: tuple[slice, ...], grid: Shape
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return where a tile's image lies in the image, and where in the tile's own grid."""
        seen, part = [], []
        for span, n, size, margin, centre in zip(
            box, grid, self.range_shape, self.margin, self.centre, strict=True
        ):
            start = span.start - centre - margin
            low, high = max(start, 0), min(start + n, size)
            high = max(high, low)
            seen.append(slice(low, high))
            part.append(slice(low - start, high - start))
        return tuple(seen), tuple(part)


def _hats(n: int, margin: int, image: int, count: int) -> list[tuple[Array, float]]:
    """Return hat functions over `n` object voxels and their centres in voxels of the image."""
    if count == 1:
        return [(np.ones(n), (image - 1) / 2)]
    centres = np.linspace(0.0, image - 1.0, count)
    places = np.clip(np.arange(n) - margin, 0, image - 1)
    return [
        (np.interp(places, centres, unit), float(centre))
        for unit, centre in zip(np.eye(count), centres, strict=True)
    ]


def _origin(kernel: Tensor, margin: Shape) -> Shape:
    z, y, x = (n // 2 + m for n, m in zip(kernel.shape, margin, strict=True))
    return z, y, x
