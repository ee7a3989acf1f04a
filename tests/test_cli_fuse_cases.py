"""`pellucid fuse` on less usual recordings, and on those that cannot be fused."""

import json
import math
from functools import cache

import numpy as np
import pytest

import pellucid
from pellucid.apps.cli import main
from pellucid.core.geometry import Grid
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import filaments
from pellucid.data.record import read_record
from pellucid.stages import pair_registration

WORLD = Grid((32, 32, 32), 1.0)
UM = (1.0, 1.0, 1.0)
ANGLES = ["--angles", "0,90"]
QUICK = ["--iterations", "2", "--over-time", "none", "--no-projections"]


@cache
def recorded():
    psf = gaussian((6.0, 3.0, 3.0), UM)
    arms = turned_arms(DUAL_DEG, WORLD, [psf], misplaced=0.5, seed=2)
    return record_views(filaments, WORLD, arms, peak_photons=300, seed=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One volume of two arms, a.tif and b.tif, and the PSF of both."""
    monkeypatch.chdir(tmp_path)
    for name, view in zip("ab", recorded().views, strict=True):
        pellucid.write(f"{name}.tif", view.counts, voxel_um=UM)
    pellucid.write("psf.tif", recorded().views[0].psf.values.astype(np.float32), voxel_um=UM)
    return tmp_path


def fuse(*options, views=("a.tif", "b.tif"), psf=("--psf", "psf.tif"), output="f.ome.tif"):
    return main(["fuse", *views, *psf, *map(str, options), "-o", output])


def test_registration_knows_the_psfs(folder, monkeypatch):
    known, register = [], pair_registration.register

    def heard(*views, **options):
        known.append((options["fixed_psf"], options["moving_psf"]))
        return register(*views, **options)

    monkeypatch.setattr(pair_registration, "register", heard)
    assert fuse(*ANGLES, "--iterations", 1, "--no-projections") == 0
    for psf in known[0]:
        assert psf.ndim == 3
        assert psf.sum() == pytest.approx(1, abs=1e-5)
    assert fuse(*ANGLES, "--method", "average", "--no-projections", "--overwrite", psf=()) == 0
    assert known[-1] == (None, None)


def test_how_views_lie_is_never_guessed(folder, capsys):
    assert fuse() == 2
    assert "--angles 0,90 (0,0 if neither is turned), or give transforms by --transforms" in (
        capsys.readouterr().err
    )
    assert main(["register", "a.tif", "b.tif", "-o", "t.json"]) == 2
    assert "--start FILE" in capsys.readouterr().err
    assert main(["register", "a.tif", "b.tif", "-o", "t.json", *ANGLES]) == 0
    for number, words in enumerate((["--transforms", "t.json"], ["--start", "t.json"])):
        assert fuse(*words, *QUICK, output=f"f{number}.ome.tif") == 0
    one, two = (pellucid.open(f"f{number}.ome.tif").read() for number in range(2))
    np.testing.assert_array_equal(one, two)
