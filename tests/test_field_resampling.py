"""Sampling through a field: the operator, and fusion with it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from pellucid.core import resampling
from pellucid.core.back_projectors import Matched
from pellucid.core.field_resampling import FieldResample, sampled
from pellucid.core.fusion import fuse
from pellucid.core.geometry import Affine, Grid
from pellucid.core.psf import Psf
from pellucid.core.quality import ncc
from pellucid.core.resampling import Resample
from pellucid.core.simulation import STRUCTURES
from pellucid.core.slab_sampling import SlabSample
from pellucid.core.transform_field import TransformField, control_points
from pellucid.core.views import View
from pellucid.errors import FrameError
from pellucid.testing import dot_test

WORLD = Grid((40, 48, 44), 1.0, frame="world")
VIEW = Grid((20, 46, 50), (2.0, 1.0, 1.0), (-2.0, 1.0, 0.0), "view 1")
PLACED = Affine.from_params(
    rotation_rad=(0.05, 0.1, -0.04), translation_um=(2, -1, 3), centre_um=WORLD.centre_um,
    source="world", target="view 1",
)  # fmt: skip


def wavy(amplitude_um=2.0, affine=PLACED, over=WORLD):
    knots = control_points(over, (3, 3, 3))
    coefficients = np.random.default_rng(1).normal(0, amplitude_um, (*knots.shape, 3))
    return TransformField(affine, knots, coefficients)


def test_values_are_those_at_the_places_where_the_field_leads(monkeypatch):
    monkeypatch.setattr(resampling, "BLOCK", (16, 17, 18))
    image = torch.from_numpy(np.random.default_rng(0).random(VIEW.shape))
    field = wavy()
    seen = FieldResample(VIEW, WORLD, field).forward(image).numpy()
    points = WORLD.index_to_um.apply(np.moveaxis(np.indices(WORLD.shape), 0, -1))
    places = VIEW.um_to_index.apply(field.apply(points))
    wanted = ndimage.map_coordinates(
        image.numpy(), np.moveaxis(places, -1, 0), order=1, mode="grid-constant"
    )
    assert np.abs(seen - wanted).max() < 1e-9


def test_a_field_without_displacement_is_its_affine_map():
    image = torch.from_numpy(np.random.default_rng(0).random(VIEW.shape))
    still = wavy(0.0)
    same = Resample(VIEW, WORLD, PLACED).forward(image)
    assert torch.allclose(FieldResample(VIEW, WORLD, still).forward(image), same)
    assert type(sampled(VIEW, WORLD, PLACED, None)) is Resample


@pytest.mark.parametrize(
    "operator",
    [
        FieldResample(VIEW, WORLD, wavy()),
        SlabSample(WORLD, VIEW, PLACED, wavy(1.0)),
        SlabSample(
            WORLD, VIEW,
            Affine.shear("x", "z", 0.8, source="world", target="view 1"),
            wavy(1.0, Affine.shear("x", "z", 0.8, source="world", target="view 1")),
        ),
    ],
    ids=["resample", "slab", "sheared slab"],
)  # fmt: skip
def test_the_adjoint_is_exact(operator):
    assert dot_test(operator) < 1e-12


def test_a_slab_sees_what_the_field_brings_before_it():
    """A smooth object through the inverse field, against its formula at the inverse places."""
    view = Grid((38, 46, 42), 1.0, (1.0, 1.0, 1.0), "view 1")
    still = Affine.identity(source="world", target="view 1")
    field = wavy(0.8, still)

    def smooth(points):
        return np.cos(points @ np.array([0.11, 0.07, 0.13]))

    points = WORLD.index_to_um.apply(np.moveaxis(np.indices(WORLD.shape), 0, -1))
    seen = SlabSample(WORLD, view, still, field).forward(torch.from_numpy(smooth(points)))
    q = view.index_to_um.apply(np.moveaxis(np.indices(view.shape), 0, -1))
    wanted = smooth(field.inverse_points(q))
    middle = (slice(4, -4),) * 3
    assert np.abs(seen.numpy() - wanted)[middle].max() < 0.01
    assert np.abs(smooth(q) - wanted)[middle].max() > 0.1


def test_a_field_that_leads_elsewhere_is_refused():
    with pytest.raises(FrameError, match="expected a field that leads from 'world' to 'view 1'"):
        View(np.ones(VIEW.shape), VIEW, PLACED, field=wavy(0, PLACED.with_frames(
            source="world", target="view 2")))  # fmt: skip


def bent_pair(size=56, amplitude_um=1.5, photons=300):
    """Two views, the second deformed; their fields, the object, and the PSFs."""
    world = Grid((size,) * 3, 1.0, frame="world")
    truth = np.asarray(STRUCTURES["points"](world.shape, 2), dtype=np.float64)
    truth = ndimage.gaussian_filter(truth, 0.8)
    still = Affine.identity(source="world", target="view 1")
    knots = control_points(world, (2, 2, 2))
    coefficients = np.random.default_rng(4).normal(0, amplitude_um, (*knots.shape, 3))
    field = TransformField(still, knots, coefficients)
    q = np.moveaxis(np.indices(world.shape), 0, -1).astype(np.float64)
    bent = ndimage.map_coordinates(truth, np.moveaxis(field.inverse_points(q), -1, 0), order=3)
    sigmas = ((2.5, 1, 1), (1, 1, 2.5))
    rng, images, psfs = np.random.default_rng(0), [], []
    for volume, sigma in zip((truth, bent.clip(0)), sigmas, strict=True):
        blurred = ndimage.gaussian_filter(volume, sigma).clip(0)
        images.append(rng.poisson(blurred * photons / blurred.max() + 2).astype(np.float32))
        delta = np.zeros((21, 21, 21))
        delta[10, 10, 10] = 1
        psfs.append(Psf.normalised(ndimage.gaussian_filter(delta, sigma), (1.0, 1.0, 1.0)))
    return world, truth, images, psfs, field


@pytest.mark.parametrize("how", ["average", "joint"])
def test_fusion_through_the_field_is_sharper_than_without(how):
    world, truth, images, psfs, field = bent_pair()
    still = Affine.identity(source="world", target="view 0")
    first = View(images[0], Grid(world.shape, frame="view 0"), still, psfs[0])
    second = View(images[1], Grid(world.shape, frame="view 1"), field.affine, psfs[1], field=field)
    straight = View(images[1], Grid(world.shape, frame="view 1"), field.affine, psfs[1])
    options = {"how": how, **({"iterations": 10, "back_projector": Matched()} if how == "joint" else {})}
    through, without = (
        fuse([first, other], world, **options).image.numpy() for other in (second, straight)
    )
    assert ncc(through, truth) > ncc(without, truth) + (0.08 if how == "joint" else 0.02)


def test_a_part_fused_alone_is_the_part_of_the_whole():
    world, _, images, psfs, field = bent_pair()
    still = Affine.identity(source="world", target="view 0")
    views = [
        View(images[0], Grid(world.shape, frame="view 0"), still, psfs[0], 2.0, brightness=1.0),
        View(images[1], Grid(world.shape, frame="view 1"), field.affine, psfs[1], 2.0,
             brightness=1.0, field=field),
    ]  # fmt: skip
    part = world.crop((10, 12, 14), (40, 44, 46))
    whole = fuse(views, world, how="average").image[10:40, 12:44, 14:46]
    alone = fuse(views, part, how="average").image
    assert torch.allclose(whole, alone, atol=1e-3 * float(whole.max()))
