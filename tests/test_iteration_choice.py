"""The number of iterations that photons bear, and the part that decides it."""

from dataclasses import replace

import numpy as np
import pytest

from pellucid.core.fused_blocks import (
    StoredView,
    block_restorer,
    fused_part,
    measured_views,
    read_part,
)
from pellucid.core.geometry import Affine, Grid
from pellucid.core.iteration_choice import MOST, iterations_borne, typical_part
from pellucid.core.multiview import DUAL_DEG, record_views, turned_arms
from pellucid.core.noise import Noise
from pellucid.core.psf_theory import gaussian
from pellucid.core.quality import ncc
from pellucid.core.simulation import Camera, filaments

WORLD = Grid((32, 24, 32), 1.0, frame="world")
CAMERA, NOISE = Camera(gain=1.0, offset=0.0, read_noise=0.0), Noise(1.0, 0.0, 0.0)
PSF = gaussian((4.0, 2.0, 2.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("peak_photons", [15, 60, 1000])
def test_the_count_is_one_that_the_truth_bears_out(peak_photons):
    arms = turned_arms(DUAL_DEG, WORLD, [PSF], misplaced=0.5, seed=3)
    seen = record_views(filaments, WORLD, arms, peak_photons=peak_photons, camera=CAMERA, seed=11)
    known = measured_views(
        [StoredView(v.counts, v.grid, v.world_to_view, v.psf, noise=NOISE) for v in seen.views], WORLD
    )
    restorer = block_restorer(known, 1, update="alternating")
    read = read_part(known, WORLD)
    count = iterations_borne(known, WORLD, read, restorer)
    assert 3 < count < MOST
    agree = {
        n: ncc(fused_part(known, WORLD, read, replace(restorer, iterations=n)).numpy(), seen.truth)
        for n in (2, count, 4 * count)
    }
    assert agree[count] == max(agree.values())
    assert count == iterations_borne(known, WORLD, read, replace(restorer, iterations=7))


@pytest.mark.parametrize("unseen", [False, True])
def test_the_typical_part_holds_the_middle_of_the_light(unseen):
    light = np.repeat([0.0, 5.0, 40.0, 30.0], 8)
    volume = np.broadcast_to(100 + light[:, None, None], (32, 24, 32))
    volume = np.random.default_rng(0).poisson(volume).astype(np.uint16)
    grid = Grid((32, 24, 32), 1.0, frame="view")
    shift = 500.0 if unseen else 0.0
    place = Affine.identity(source="world", target="view")
    away = Affine.translation((shift, 0, 0), source="world", target="view")
    views = [
        StoredView(volume, grid, where, PSF, 100.0, Noise(1.0, 0.0, 0.0), brightness=1.0)
        for where in (away, place)
    ]
    known = measured_views(views, WORLD)
    # parts of which only the second view sees anything are judged by it
    parts = [WORLD.crop((a, 0, 0), (a + 8, 24, 32)) for a in range(0, 32, 8)]
    assert typical_part(known, parts) in (2, 3)
    assert typical_part(known, parts[:2]) == 1
