"""A scanned sheet: its adjoint is exact, and it is the loop over sheet positions."""

import pytest
import torch

from pellucid.core.operators import Blur
from pellucid.core.sheet_scan import SheetScan
from pellucid.errors import InputError
from pellucid.testing import dot_test


def scan(dtype):
    generator = torch.Generator().manual_seed(0)
    psf = torch.rand(5, 4, 3, generator=generator, dtype=torch.float64).to(dtype)
    light = torch.rand(6, 5, 9, generator=generator, dtype=torch.float64).to(dtype)
    return SheetScan(psf, light, (6, 8, 7))


def test_adjoint_is_exact():
    assert dot_test(scan(torch.float64)) < 1e-12
    assert dot_test(scan(torch.float32), dtype=torch.float32) < 1e-6


def test_it_is_the_loop_over_sheet_positions():
    """Illuminate the whole object, blur it in 3D, keep one plane."""
    sheet = scan(torch.float64)
    x = torch.rand(sheet.domain_shape, dtype=torch.float64)
    blur = Blur(sheet.psf, sheet.range_shape)
    image = sheet.forward(x)
    for t in range(6):
        lit = torch.zeros(blur.domain_shape, dtype=torch.float64)
        for d in range(5):
            z = t + 4 - d
            lit[z, :11, :9] = x[z] * sheet.illumination[t, d]
        torch.testing.assert_close(image[t], blur.forward(lit)[t])


def test_refuses_light_on_another_grid():
    with pytest.raises(InputError, match="extends beyond the image"):
        SheetScan(torch.rand(3, 3, 3), torch.rand(6, 3, 7), (6, 8, 7))
