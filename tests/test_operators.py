"""Operators: exact adjoints, values against a direct convolution, nothing wraps around."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from scipy.signal import convolve

from pellucid.core.operators import Blur, LinearOperator
from pellucid.errors import InputError
from pellucid.testing import dot_test

SIZES = [
    ((7, 8, 9), (3, 4, 5)),
    ((8, 9, 10), (4, 3, 6)),
    ((5, 6, 7), (9, 14, 8)),  # PSF larger than the image
    ((1, 12, 13), (1, 5, 6)),
    ((6, 1, 9), (2, 1, 3)),
]


class Scale(LinearOperator):
    """Multiply every voxel by two: the plainest partner for a composition."""

    def __init__(self, shape):
        self.domain_shape = self.range_shape = shape

    def forward(self, x):
        return 2 * x

    def adjoint(self, y):
        return 2 * y


def random_psf(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize(("image", "psf"), SIZES)
def test_adjoint_is_exact(image, psf, extended):
    assert dot_test(Blur(random_psf(psf), image, extended=extended)) < 1e-14


def test_adjoint_is_exact_to_rounding_in_float32():
    blur = Blur(random_psf((3, 4, 5)).float(), (7, 8, 9))
    assert dot_test(blur, dtype=torch.float32) < 1e-6


def test_composition_is_the_product_and_keeps_the_exact_adjoint():
    blur = Blur(random_psf((3, 4, 5)), (7, 8, 9))
    both = blur @ Scale(blur.domain_shape)
    x = torch.rand(blur.domain_shape, dtype=torch.float64)
    torch.testing.assert_close(both.forward(x), 2 * blur.forward(x))
    assert dot_test(both) < 1e-14


def test_composition_refuses_grids_that_do_not_meet():
    with pytest.raises(InputError, match="Build both on the same grid"):
        Blur(random_psf((3, 3, 3)), (7, 8, 9)) @ Scale((1, 2, 3))


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize(("image", "psf"), SIZES)
def test_forward_is_the_direct_convolution(image, psf, extended):
    """The object is laid on a canvas so wide that nothing can wrap, and convolved directly."""
    kernel = random_psf(psf, 1).numpy()
    blur = Blur(torch.from_numpy(kernel), image, extended=extended)
    x = torch.rand(blur.domain_shape, dtype=torch.float64)
    full = convolve(x.numpy(), kernel, mode="full", method="direct")
    start = [m + n // 2 for m, n in zip(blur.margin, kernel.shape, strict=True)]
    window = tuple(slice(a, a + n) for a, n in zip(start, image, strict=True))
    np.testing.assert_allclose(blur.forward(x).numpy(), full[window], rtol=1e-12)


@pytest.mark.parametrize("psf", [(3, 3, 3), (4, 4, 4), (3, 4, 5), (1, 2, 3)])
def test_a_point_stays_at_its_place_through_blur_and_adjoint(psf):
    """By hand: a PSF that is a point at its centre moves nothing, odd or even."""
    kernel = torch.zeros(psf, dtype=torch.float64)
    kernel[tuple(n // 2 for n in psf)] = 1
    blur = Blur(kernel, (6, 7, 8))
    image = torch.zeros(6, 7, 8, dtype=torch.float64)
    image[2, 3, 4] = 1
    inside = tuple(slice(m, m + n) for m, n in zip(blur.margin, image.shape, strict=True))
    x = torch.zeros(blur.domain_shape, dtype=torch.float64)
    x[inside] = image
    torch.testing.assert_close(blur.forward(x), image)
    torch.testing.assert_close(blur.adjoint(image)[inside], image)


def test_light_moves_the_way_the_psf_points():
    """By hand: a PSF whose mass sits one voxel after its centre moves a point one voxel forward."""
    kernel = torch.zeros(1, 1, 3, dtype=torch.float64)
    kernel[0, 0, 2] = 1
    blur = Blur(kernel, (1, 1, 6), extended=False)
    x = torch.tensor([[[0, 0, 1.0, 0, 0, 0]]], dtype=torch.float64)
    expected = torch.tensor([[[0, 0, 0, 1.0, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(blur.forward(x), expected)


def test_nothing_wraps_around():
    kernel = torch.ones(5, 5, 5, dtype=torch.float64)
    blur = Blur(kernel, (16, 16, 16), extended=False)
    x = torch.zeros(16, 16, 16, dtype=torch.float64)
    x[0, 0, 0] = 1
    seen = blur.forward(x)
    assert seen[:3, :3, :3].min() > 0.99
    seen[:3, :3, :3] = 0
    assert seen.abs().max() < 1e-12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_can_blur_too():
    """Workers of data loaders are forked; threads do not come along, and must not be waited for."""
    blur = Blur(random_psf((3, 3, 3)), (16, 16, 16))
    x = torch.rand(blur.domain_shape, dtype=torch.float64)
    blur.forward(x)
    child = os.fork()
    if child == 0:
        blur.adjoint(blur.forward(x))
        os._exit(0)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert status == 0


def test_blur_refuses_a_psf_of_another_dimension():
    with pytest.raises(InputError, match="leading axis of 1"):
        Blur(torch.ones(3, 3), (7, 8, 9))
