"""PSF fields from beads: which variation, how wide where, and what cannot be one."""

import json

import numpy as np
import pytest

import pellucid
from pellucid.apps.cli import main
from pellucid.core.bead_field import MOST_UNEXPLAINED, distill_field
from pellucid.core.beads import distill
from pellucid.core.psf import Psf, fwhm_px
from pellucid.data.psf_field_file import read_psf_field
from pellucid.data.record import read_record
from pellucid.errors import InputError

VOXEL_UM = (0.3, 0.1, 0.1)


def beads(width_at, shape=(24, 130, 130), across=5, seed=0, peak=400):
    """Counts of Gaussian beads of unequal brightness; `width_at` gives their FWHM (z, y, x) in px."""
    rng = np.random.default_rng(seed)
    image = np.full(shape, 10.0)
    axes = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for i in range(across**2):
        y, x = ((k + 0.5) / across * shape[1] + rng.uniform(-2, 2) for k in divmod(i, across))
        place = (rng.uniform(9, 14), y, x)
        bead = rng.uniform(0.7, 1.3) * peak
        for at, c, w in zip(axes, place, width_at(*place), strict=True):
            bead = bead * np.exp(-4 * np.log(2) * ((at - c) / w) ** 2)
        image += bead
    return rng.poisson(image).astype(np.uint16)


def widening(z, y, x):
    return 3.5, 3.0, 3.0 + x / 130


def test_widths_over_the_field_are_those_of_the_beads():
    found = distill_field(beads(widening), VOXEL_UM)
    assert len(found.used) >= 23
    assert 2 in found.variation.axes
    assert found.unexplained < 0.8 * found.unexplained_by_mean
    expansion = found.field.expanded(1e-3)
    for x in (20.0, 65.0, 110.0):
        widths = fwhm_px(Psf.normalised(expansion.psf_at((3.5, 6.5, 0.1 * x))))
        np.testing.assert_allclose(widths, widening(0, 0, x), rtol=0.06)


def test_beads_that_are_alike_give_a_field_that_does_not_vary():
    found = distill_field(beads(lambda z, y, x: (3.5, 3.0, 3.0)), VOXEL_UM)
    assert len(found.field.psfs) == 1
    assert found.unexplained == found.unexplained_by_mean


def test_a_bead_unlike_its_neighbours_is_left_out():
    image = beads(widening).astype(float)
    image[:, 52:78, 52:78] = 10.0
    z, y, x = np.ogrid[:24, :130, :130]
    radius = ((z - 12) / 1.5) ** 2 + ((y - 65) / 1.3) ** 2
    image += 300 * (np.exp(-(radius + ((x - 63) / 1.3) ** 2) / 2))
    image += 150 * (np.exp(-(radius + ((x - 68) / 1.3) ** 2) / 2))
    found = distill_field(image, VOXEL_UM)
    assert [round(b.centre_px[2] / 5) for b in found.rejected if b.reason == "odd one out"] == [13]


def test_the_command_measures_a_field(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pellucid.write("beads.ome.tif", beads(widening), voxel_um=VOXEL_UM)
    command = ["psf", "beads", "beads.ome.tif", "--field", "-o", "field.npz"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["fwhm_um"]) == len(read_psf_field(tmp_path / "field.npz").psfs)
    assert read_record("field.npz")["statistics"]["variation"] == said["variation"]
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command[:-1], "field.tif"]) == 1


def test_too_few_beads_are_no_field():
    with pytest.raises(InputError, match="or more for a field"):
        distill_field(beads(widening, shape=(24, 60, 60), across=1), VOXEL_UM)


def test_the_dimmest_beads_that_are_used_are_beads():
    found = distill_field(beads(lambda z, y, x: (3.5, 3.0, 3.0), peak=60), VOXEL_UM)
    assert 0.15 < found.unexplained < MOST_UNEXPLAINED


def test_levels_known_to_a_count_only_do_not_dim_beads():
    image = beads(lambda z, y, x: (4.0, 8.0, 8.0), (41, 240, 240), across=2, peak=200).astype(int) - 10
    level = np.where(np.arange(240) < 120, 1.3, 2.0)[:, None]  # their medians are 1 and 2
    image += np.random.default_rng(1).poisson(np.broadcast_to(level, image.shape))
    assert distill_field(image.clip(0), VOXEL_UM).unexplained < 0.16


def rods(seed):
    """Counts of what is no bead: rods of every length and direction."""
    rng = np.random.default_rng(seed)
    return beads(lambda z, y, x: rng.permutation([3.0, 3.0, rng.uniform(4, 20)]), seed=seed)


def test_a_specimen_without_beads_is_refused_and_nothing_is_written(tmp_path, capsys):
    pellucid.write(tmp_path / "cells.ome.tif", rods(0), voxel_um=VOXEL_UM)
    command = ["psf", "beads", str(tmp_path / "cells.ome.tif"), "-o"]
    assert main([*command, str(tmp_path / "field.npz"), "--field"]) == 1
    assert "25 spots were found, and each differs by" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "psf.tif")]) == 1
    assert "none fit for use (25 odd one out)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cells.ome.tif"]


def test_what_has_not_faded_three_widths_away_is_no_bead():
    stack = beads(lambda z, y, x: (3.5, 3.0, 24.0), across=1)
    with pytest.raises(InputError, match=r"1 spot still reaches \d+% of its peak.*recording of beads"):
        distill(stack, VOXEL_UM, expected_fwhm_um=(1.05, 0.3, 0.3))
