"""Light of scanned sheets: what optics says of it, two ways to one image, and restorers that use it."""

import numpy as np
import pytest
import torch

from pellucid.core.accelerated import Accelerated
from pellucid.core.back_projectors import Matched
from pellucid.core.illumination import (
    GaussianSheet,
    light_sheet_field,
    light_sheet_scan,
    reflective_scans,
)
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem
from pellucid.core.psf_field import PsfField
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.simulation import filaments
from pellucid.core.varying_blur import VaryingBlur
from pellucid.errors import ParameterError
from pellucid.testing import dot_test

SHEET = GaussianSheet(1.6, 488)
VOXEL_UM = 0.4


def detection(size=(9, 5, 5), dtype=torch.float64):
    psf = gaussian((1.6, 0.6, 0.6), (VOXEL_UM,) * 3, size)
    return torch.from_numpy(psf.values.copy()).to(dtype)


def test_light_is_kept_along_the_sheet_and_its_thickness_is_as_stated():
    across, along = np.linspace(-60, 60, 6001), np.array([0.0, SHEET.rayleigh_um, 60.0])
    light = SHEET.at(across[:, None], along[None])
    np.testing.assert_allclose(light.sum(axis=0), light.sum(axis=0)[0], rtol=1e-6)
    np.testing.assert_allclose(SHEET.at(np.array([0.8]), np.zeros(1)), 0.5)
    np.testing.assert_allclose(light[3000, 1], 2**-0.5)
    with pytest.raises(ParameterError, match="nanometres"):
        GaussianSheet(1.6, 0.488)


def test_a_sheet_with_a_waist_is_a_blur_that_varies_along_it():
    shape, spacing = (7, 6, 20), (VOXEL_UM, VOXEL_UM, 2.0)
    psf = detection()
    scan = light_sheet_scan(psf, shape, spacing, SHEET, waist_um=8.0)
    x = np.arange(-2, 22) * 2.0
    behind = (np.arange(9) - 4) * VOXEL_UM
    psfs = [psf.numpy() * SHEET.at(behind, at - np.float64(8.0))[:, None, None] for at in x]
    field = PsfField(np.stack(psfs), [(0, 0, at) for at in x], spacing)
    # beyond an image the weights are those of its border, so the image is the whole lit object
    expansion, origin = field.expanded(1e-9), (0.0, 0.0, -4.0)
    blur = VaryingBlur(expansion, (7, 6, 24), origin_um=origin, dtype=torch.float64)
    e = torch.rand(scan.domain_shape, dtype=torch.float64)
    whole = torch.zeros(blur.domain_shape, dtype=torch.float64)
    whole[:15, :10, 2:26] = e
    torch.testing.assert_close(blur.forward(whole)[:, :, 2:22], scan.forward(e))


def test_a_sheets_field_is_its_scan_within_the_accuracy_stated():
    voxel_um = (VOXEL_UM, VOXEL_UM, 1.0)
    psf = gaussian((1.6, 0.6, 1.5), voxel_um, (15, 5, 5))
    shape, sheet = (9, 8, 41), GaussianSheet(1.2, 488)
    scan = light_sheet_scan(torch.from_numpy(psf.values.copy()), shape, voxel_um, sheet)
    field = light_sheet_field(psf, shape[2], sheet, accuracy=1e-4)
    rough = light_sheet_field(psf, shape[2], sheet, accuracy=0.1)
    assert len(rough.psfs) < len(field.psfs)
    np.testing.assert_allclose(field.psfs[len(field.psfs) // 2].sum(), 1)  # at the waist
    blur = VaryingBlur.of(field, shape, accuracy=1e-6, dtype=torch.float64)
    # beyond the image the field has the PSFs of its border
    e = torch.zeros(blur.domain_shape, dtype=torch.float64)
    e[blur.window] = torch.rand(shape, dtype=torch.float64)
    e[..., : blur.margin[2]] = e[..., blur.margin[2] + shape[2] :] = 0
    same = torch.zeros(scan.domain_shape, dtype=torch.float64)
    same[scan.window] = e[blur.window]
    seen = scan.forward(same)
    seen = seen * float(blur.forward(e).sum() / seen.sum())
    assert float((blur.forward(e) - seen).norm() / seen.norm()) < 3e-4


def test_reflective_views_are_the_loops_over_their_sheets():
    shape, mirror = (6, 5, 8), 0.8
    scans = reflective_scans((detection(), detection()), shape, VOXEL_UM, SHEET, mirror_um=mirror)
    one, other = scans
    assert one.domain_shape == other.domain_shape
    assert all(dot_test(scan) < 1e-12 for scan in scans)
    psf = torch.zeros(9, 5, 9, dtype=torch.float64)
    psf[:, :, 2:7] = detection()
    e = torch.rand(one.domain_shape, dtype=torch.float64)
    z = (np.arange(14) - 4)[:, None] * VOXEL_UM
    x = (np.arange(16) - 4)[None] * VOXEL_UM
    images = one.forward(e), other.forward(e)
    for t in range(6):
        at = t * VOXEL_UM
        light = SHEET.at(z - at, x - at - mirror) + SHEET.at(x - at - mirror, z - at)
        lit = e * torch.from_numpy(light)[:, None]
        torch.testing.assert_close(images[0][t], seen(lit, psf, shape)[t])
    for t in range(8):
        at = t * VOXEL_UM
        light = SHEET.at(x - at, z - at + mirror) + SHEET.at(z - at + mirror, x - at)
        lit = (e * torch.from_numpy(light)[:, None]).transpose(0, 2)
        torch.testing.assert_close(images[1][t], seen(lit, psf, (8, 5, 6))[t])


def seen(lit, psf, shape):
    blur = Blur(psf, shape)
    e = torch.zeros(blur.domain_shape, dtype=torch.float64)
    e[tuple(slice(0, n) for n in lit.shape)] = lit
    return blur.forward(e)


def test_restorers_use_both_views():
    shape = (16, 16, 16)
    views = reflective_scans((detection(dtype=torch.float32),) * 2, shape, VOXEL_UM, SHEET)
    truth = torch.from_numpy(filaments(views[0].domain_shape, 5)).float() * 300
    generator = torch.Generator().manual_seed(0)
    both = tuple(
        Observation(torch.poisson(v.forward(truth).clamp_min(0) + 2, generator=generator), v, 2.0)
        for v in views
    )
    target = truth[views[0].window].numpy()
    one = Problem(both[:1])
    pair = Problem(both, views[0].window)
    assert RichardsonLucy(5).peak_bytes(pair) > RichardsonLucy(5).peak_bytes(one) > 0
    scores = [ncc(RichardsonLucy(20)(problem).image.numpy(), target) for problem in (one, pair)]
    guarded = Accelerated(Matched())(one).image.numpy()
    assert scores[1] > scores[0] + 0.02
    assert ncc(guarded, target) > ncc(both[0].image.numpy(), target) + 0.05
