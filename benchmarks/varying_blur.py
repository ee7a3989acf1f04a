"""Varying blur: a scanned sheet against the loop over its positions, CPU seconds; low rank against tiles.

    python benchmarks/varying_blur.py
"""

import time

import numpy as np
import torch

from pellucid.core.illumination import GaussianSheet, reflective_scans
from pellucid.core.operators import Blur
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.varying_blur import TiledBlur, VaryingBlur

N, TIMED = 128, 3


def timed(work):
    start = time.process_time()
    out = work()
    return out, time.process_time() - start


def sheet_scan():
    psf = torch.tensor(gaussian((5.0, 2.5, 2.5), (1.0, 1.0, 1.0), (17, 13, 13)).values).float()
    sheet = reflective_scans((psf, psf), (N, N, N), 0.4, GaussianSheet(1.6, 488))[0]
    psf = sheet.psf
    _, height, width = sheet.domain_shape
    e = torch.rand(sheet.domain_shape)
    fast, seconds = timed(lambda: sheet.forward(e))
    blur = Blur(psf, (N, N, N))
    planes, loop, error = range(10, N, N // TIMED), 0.0, 0.0
    for t_ in planes:
        lit = torch.zeros(blur.domain_shape)
        for k in range(17):
            lit[t_ + 16 - k, :height, :width] = e[t_ + 16 - k] * sheet.illumination[t_, k]
        plane, cost = timed(lambda lit=lit: blur.forward(lit))
        loop += cost
        error = max(error, float((plane[t_] - fast[t_]).norm() / fast[t_].norm()))
    loop *= N / len(planes)
    print(f"SheetScan, crossed sheets, {N}^3: {seconds:.2f} s, loop {loop:.1f} s (of {len(planes)} "
          f"positions), {loop / seconds:.1f}x, error {error:.1e}")  # fmt: skip


def low_rank():
    places = [(z, x) for z in np.linspace(0, 31, 5) for x in np.linspace(0, 31, 5)]
    psfs = [gaussian((3 + z / 20, 2.0, 2 + x / 20), (1.0, 1.0, 1.0), (15, 11, 15)) for z, x in places]
    field = PsfField.of(psfs, [(z, 0.0, x) for z, x in places])
    exact = VaryingBlur.of(field, (32, 32, 32), accuracy=1e-9, dtype=torch.float64)
    # the dense operator: each object voxel's own PSF, exact Gaussians, one (z, x) column at a time
    x = torch.rand(exact.domain_shape, dtype=torch.float64)
    image = torch.zeros(32, 32, 32, dtype=torch.float64)
    for z in range(0, 46):
        for c in range(0, 46):
            p, q = np.clip(z - 7, 0, 31), np.clip(c - 7, 0, 31)
            kernel = gaussian((3 + p / 20, 2.0, 2 + q / 20), (1.0, 1.0, 1.0), (15, 11, 15)).values
            line = torch.from_numpy(kernel.transpose(0, 2, 1).reshape(225, 1, 11).copy())
            rows = torch.nn.functional.conv1d(x[z, :42, c][None, None], line.flip(2))[0]
            rows = rows.reshape(15, 15, 32)
            for dz in range(max(0, 14 - z), min(15, 46 - z)):
                lo, hi = max(0, 14 - c), min(15, 46 - c)
                image[z + dz - 14, :, c + lo - 14 : c + hi - 14] += rows[dz, lo:hi].T
    for accuracy in (1e-2, 3e-3, 1e-3, 3e-4):
        blur = VaryingBlur.of(field, (32, 32, 32), accuracy=accuracy, dtype=torch.float64)
        seen, seconds = timed(lambda blur=blur: blur.forward(x))
        print(f"rank {blur.expansion.rank}: error {float((seen - image).norm() / image.norm()):.1e} "
              f"against dense, {seconds:.3f} s, {blur.expansion.rank + 1} FFTs")  # fmt: skip
    tiled = TiledBlur(exact.expansion, (5, 1, 5), exact)
    seen, seconds = timed(lambda: tiled.forward(x))
    print(f"25 tiles: error {float((seen - image).norm() / image.norm()):.1e}, {seconds:.3f} s")


if __name__ == "__main__":
    sheet_scan()
    low_rank()
