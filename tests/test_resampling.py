"""Resampling: handedness by hand, the dot test, against SciPy, blocks that leave no trace."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from pellucid.core import resampling
from pellucid.core.geometry import Affine, Grid
from pellucid.core.operators import Blur
from pellucid.core.resampling import Resample, resample
from pellucid.errors import FrameError, InputError

QUARTER = np.pi / 2

CASES = {
    "anisotropic turn": (
        Grid((9, 20, 17), (2.0, 0.7, 0.7), origin_um=(1, 2, 3), frame="view"),
        Grid((12, 11, 16), (1.3, 1.1, 0.9), origin_um=(-1, 0, 2), frame="world"),
        Affine.from_params(
            rotation_rad=(0.3, -0.4, 0.2), scale=(1.1, 0.9, 1), shear=(0.1, 0, -0.1),
            translation_um=(2, 1, -1), centre_um=(8, 7, 6), source="world", target="view",
        ),
    ),
    "plane": (
        Grid((1, 20, 30), 0.5),
        Grid((1, 25, 25), 0.6),
        Affine.rotation("z", 0.4, centre_um=(0, 5, 7)),
    ),
    "mostly outside": (
        Grid((6, 6, 6)),
        Grid((8, 8, 8)),
        Affine.translation((4.5, -3.25, 0.5)),
    ),
}  # fmt: skip


def by_scipy(image, source, target, target_to_source):
    index_map = source.um_to_index @ target_to_source @ target.index_to_um
    places = index_map.apply(np.moveaxis(np.indices(target.shape), 0, -1))
    return map_coordinates(
        np.pad(image, 1), np.moveaxis(places, -1, 0) + 1, order=1, mode="constant"
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_scipy(case):
    source, target, target_to_source = CASES[case]
    image = np.random.default_rng(1).random(source.shape)
    ours = resample(torch.from_numpy(image), source, target, target_to_source=target_to_source)
    np.testing.assert_allclose(ours, by_scipy(image, source, target, target_to_source), atol=1e-12)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_adjoint_is_the_exact_transpose(case):
    operator = Resample(*CASES[case])
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(operator.domain_shape, generator=generator, dtype=torch.float64)
    y = torch.rand(operator.range_shape, generator=generator, dtype=torch.float64)
    seen, given_back = (operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert abs(seen - given_back) <= 1e-12 * abs(seen)


def test_a_quarter_turn_moves_one_voxel_from_the_end_of_x_to_the_end_of_y():
    view, world = Grid((1, 3, 3), frame="view"), Grid((1, 3, 3), frame="world")
    image = torch.zeros(view.shape)
    image[0, 1, 2] = 1
    turn = Affine.rotation("z", QUARTER, centre_um=view.centre_um, source="view", target="world")
    moved = resample(image, view, world, target_to_source=turn.inverse())
    assert torch.argmax(moved).item() == 2 * 3 + 1
    torch.testing.assert_close(moved.sum(), torch.tensor(1.0))


def test_anisotropic_voxels_turn_into_each_other_exactly():
    # 2 um planes of 1 um pixels, turned by 90 degrees about y: z and x swap, voxel sizes with them.
    view = Grid((4, 3, 8), (2, 1, 1), frame="view")
    world = Grid((8, 3, 4), (1, 1, 2), frame="world")
    image = torch.rand(view.shape, generator=torch.Generator().manual_seed(0))
    turn = Affine.from_linear(
        Affine.rotation("y", QUARTER).linear,
        centre_um=world.centre_um,
        translation_um=view.centre_um - world.centre_um,
        source="world",
        target="view",
    )
    moved = resample(image, view, world, target_to_source=turn)
    # about y, +z goes to +x and +x to -z: world z runs along view x, world x against view z
    expected = image.permute(2, 1, 0).flip(2)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


def test_blocks_leave_no_trace(monkeypatch):
    source, target, target_to_source = CASES["anisotropic turn"]
    image = torch.rand(
        source.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    whole = Resample(source, target, target_to_source)
    seen, given_back = whole.forward(image), whole.adjoint(whole.forward(image))
    monkeypatch.setattr(resampling, "BLOCK", (5, 3, 4))
    torch.testing.assert_close(whole.forward(image), seen)
    torch.testing.assert_close(whole.adjoint(seen), given_back)


def test_float32_holds_coordinates_far_from_the_origin():
    # a ramp of slope 1 reads its own coordinate; float32 voxel coordinates of 5,000 would be
    # rounded to 5e-4, and of -1..1 to 3e-4
    source = Grid((1, 1, 6000))
    target = Grid((1, 1, 5000))
    ramp = torch.linspace(-3000, 2999, 6000)[None, None]
    shift = Affine.translation((0, 0, 700.3))
    seen = resample(ramp, source, target, target_to_source=shift)[0, 0].double()
    expected = torch.arange(5000, dtype=torch.float64) + 700.3 - 3000
    assert (seen - expected).abs().max() < 2.5e-4  # float32 of values up to 3,000


def test_composes_with_a_blur():
    source, target, target_to_source = CASES["anisotropic turn"]
    blur = Blur(torch.ones(3, 3, 3, dtype=torch.float64) / 27, target.shape, extended=False)
    view = blur @ Resample(source, target, target_to_source)
    assert (view.domain_shape, view.range_shape) == (source.shape, target.shape)
    ones = torch.ones(source.shape, dtype=torch.float64)
    y = torch.rand(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close((view.forward(ones) * y).sum(), (ones * view.adjoint(y)).sum())


def test_what_does_not_meet_is_refused():
    source, target, target_to_source = CASES["anisotropic turn"]
    with pytest.raises(FrameError, match="Invert"):
        Resample(source, target, target_to_source.inverse())
    with pytest.raises(InputError, match="shape"):
        resample(torch.zeros(target.shape), source, target, target_to_source=target_to_source)
    whole_numbers = torch.zeros(source.shape, dtype=torch.int32)
    with pytest.raises(InputError, match="floating"):
        resample(whole_numbers, source, target, target_to_source=target_to_source)
