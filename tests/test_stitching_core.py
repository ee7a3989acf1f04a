"""Tiles with a truth: shifts, placement with false links, and blocks that meet without a seam."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as moved

from pellucid.core.blending import PlacedTile, blended_block, output_shape
from pellucid.core.flat_field import estimated_flat_field, tile_gains
from pellucid.core.linking import linked, overlapping_pairs
from pellucid.core.pairwise import Link, is_thin, pairwise_shift
from pellucid.core.placement import place


def texture(shape, seed=0):
    rng = np.random.default_rng(seed)
    volume = gaussian_filter(rng.standard_normal(shape), 1.5)
    return (100 + 40 * volume / volume.std()).astype(np.float32)


def test_a_shift_is_found_below_a_tenth_of_a_voxel():
    volume = texture((24, 60, 110))
    second = moved(volume, (0.3, -0.4, 0.25), order=3, mode="mirror")[2:, 3:53, 44:104]
    link = pairwise_shift(volume[:20, :50, :60], second, (0.0, 0.0, 40.0), margin_px=(6, 8, 8))
    assert link.believed, link.reason
    np.testing.assert_allclose(link.shift_px, (1.7, 3.4, 43.75), atol=0.05)


def test_other_content_and_empty_overlaps_give_no_belief():
    first, other = texture((20, 50, 60)), texture((20, 50, 60), seed=1)
    assert not pairwise_shift(first, other, (0.0, 0.0, 40.0)).believed
    assert not pairwise_shift(first, np.zeros_like(first), (0.0, 0.0, 40.0)).believed
    assert pairwise_shift(first, other, (0.0, 0.0, 90.0)) is None


def test_slivers_of_overlap_are_told_from_the_shift():
    assert is_thin((20, 50, 50), (20, 50, 50), (0.0, -45.0, 20.0))
    assert is_thin((20, 50, 60), (20, 50, 50), (0.0, 0.0, 54.0))
    assert not is_thin((20, 50, 50), (20, 50, 50), (0.0, 0.0, 41.0))
    assert not is_thin((8, 50, 50), (8, 50, 50), (3.0, 0.0, 20.0))


def test_tiles_that_only_weak_links_hold():
    ends = ((0, 1, True), (1, 2, True), (2, 3, False))
    links = [Link(a, b, (0.0, 0.0, 90.0), 0.05, 0.9, 20.0, 1.0, known) for a, b, known in ends]
    placed = place(np.array([(0.0, 0.0, 90.0 * c) for c in range(4)]), links)
    assert placed.held_only_by([False, True, True]) == (2,)


def grid_links(true, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(16) for b in (a + 1, a + 4) if b < 16 and (b != a + 1 or b % 4)]
    shifts = {p: true[p[1]] - true[p[0]] + 0.03 * rng.standard_normal(3) for p in pairs}
    return [Link(*p, tuple(d), 0.03, 0.9, 20.0, 1.0, True) for p, d in shifts.items()]


def test_false_links_are_rejected_and_named():
    rng = np.random.default_rng(2)
    nominal = np.array([(0.0, 90.0 * r, 90.0 * c) for r in range(4) for c in range(4)])
    true = nominal + rng.uniform(-8, 8, (16, 3))
    links = grid_links(true)
    false = {3, 11, 17}
    for number in false:
        wrong = np.add(links[number].shift_px, rng.uniform(3, 9, 3))
        links[number] = Link(
            links[number].first, links[number].second, tuple(wrong), 0.03, 0.9, 20.0, 1.0, True
        )
    placed = place(nominal, links)
    assert set(np.flatnonzero(~placed.kept)) == false
    off = placed.positions_px - true
    assert np.median(np.linalg.norm(off - off.mean(0), axis=1)) < 0.1
    assert placed.cycles_px.max() < 0.5


def test_tiles_without_links_stay_where_the_stage_says():
    nominal = np.array([(0.0, 0.0, 90.0 * c) for c in range(3)])
    placed = place(nominal, [Link(0, 1, (0.0, 1.0, 88.0), 0.05, 0.9, 20.0, 1.0, True)])
    assert placed.groups == ((0, 1), (2,))
    np.testing.assert_allclose(placed.positions_px[2], nominal[2])


@pytest.mark.parametrize("fraction", [0.0, 0.35])
def test_blocks_meet_without_a_seam_and_show_the_object(fraction):
    _, y, x = np.meshgrid(np.arange(12), np.arange(40), np.arange(70), indexing="ij")
    scene = (50 + 2.0 * x + 0.5 * y).astype(np.float32)
    left, right = scene[:, :, :40], scene[:, :, 30:] + np.float32(2.0 * fraction)
    tiles = [PlacedTile(left, (0, 0, 0)), PlacedTile(right, (0, 0, 30 + fraction))]
    shape = output_shape(tiles)
    whole = blended_block(tiles, (0, 0, 0), shape)
    parts = [blended_block(tiles, (0, 0, a), (shape[0], shape[1], min(a + 17, shape[2])))
             for a in range(0, shape[2], 17)]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), whole)
    np.testing.assert_allclose(whole[:, :, 2:66], scene[:, :, 2:66], rtol=2e-3)


def test_gains_follow_the_ratios():
    links = [Link(a, a + 1, (0, 0, 9), 0.1, 0.9, 9, ratio, True) for a, ratio in ((0, 2), (1, 0.5))]
    gains = tile_gains(3, links)
    np.testing.assert_allclose(gains[1] / gains[[0, 2]], 2, rtol=0.02)


def test_gains_take_no_shading_for_light():
    # every tile is brighter at its right border: the same ratio in each link along x
    links = [Link(a, a + 1, (0, 0.3, 90), 0.1, 0.9, 9, 0.7, True) for a in range(5)]
    np.testing.assert_allclose(tile_gains(6, links), 1.0)


def test_brightness_needs_no_background():
    volume = texture((12, 60, 110)) + 300
    second = 300 + 1.3 * (volume[:, :, 50:] - 300)
    link = pairwise_shift(volume[:, :, :70], second, (0.0, 0.0, 52.0), margin_px=(2, 6, 6))
    np.testing.assert_allclose(link.brightness, 1.3, rtol=0.02)


def test_the_shading_that_tiles_share_is_found():
    x = np.cos(np.linspace(0, np.pi, 64))[None]
    shade = 1 + 0.3 * x + 0.1 * np.cos(np.linspace(0, np.pi, 48))[:, None]
    tiles = [20 + (texture((6, 48, 64), seed) - 20) * shade for seed in range(12)]
    found = estimated_flat_field(tiles, 20.0)
    assert np.std(found - shade / shade.mean()) < 0.2 * np.std(shade / shade.mean())


def test_a_search_that_took_the_wrong_place_is_put_right():
    nominal = np.array([(0.0, 40.0 * (n // 2), 60.0 * (n % 2)) for n in range(4)])
    asked = []

    def measure(a, b, expected, margin):
        asked.append((a, b, margin))
        shift = nominal[b] - nominal[a]
        if (a, b) == (0, 1) and margin[1] > 5:
            return Link(a, b, tuple(np.add(shift, (0, 9.0, -7.0))), 0.1, 0.8, 9.0, 1.0, True)
        assert np.abs(np.subtract(expected, shift)).max() < 1.0
        return Link(a, b, tuple(shift), 0.05, 0.9, 20.0, 1.0, True)

    pairs = overlapping_pairs([(9, 60, 80)] * 4, nominal)
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    placed = linked(measure, nominal, pairs, margin_px=(2.0, 12.0, 12.0))
    assert [ask for ask in asked if ask[2][1] < 5] == [(0, 1, (2.0, 3.0, 3.0))]
    assert placed.kept.all()
    np.testing.assert_allclose(placed.positions_px - placed.positions_px[0], nominal, atol=0.01)


def test_a_doubtful_link_gives_way_to_a_sure_one():
    # a corner tile with one link of each kind: nothing else says which is wrong
    nominal = np.array([(0.0, 0.0, 0.0), (0.0, 0.0, 90.0), (0.0, 90.0, 0.0), (0.0, 90.0, 90.0)])
    links = [Link(a, b, tuple(nominal[b] - nominal[a]), 0.03, 0.95, 20.0, 1.0, True)
             for a, b in ((0, 1), (0, 2), (1, 3))]  # fmt: skip
    links.append(Link(2, 3, (0.0, 5.0, 84.0), 0.4, 0.3, 6.0, 1.0, True))
    placed = place(nominal, links)
    assert list(placed.kept) == [True, True, True, False]
    np.testing.assert_allclose(placed.positions_px - placed.positions_px[0], nominal, atol=0.05)


def test_thin_overlaps_of_smooth_structure_are_links():
    # a peak as wide as the search stands above nothing, and is right
    volume = gaussian_filter(np.random.default_rng(4).standard_normal((16, 60, 120)), 4)
    volume = 200 + 60 * volume / volume.std()
    noisy = np.random.default_rng(5)
    first, second = (noisy.poisson(v) for v in (volume[1:15, :50, :60], volume[:14, 3:53, 46:106]))
    link = pairwise_shift(first, second, (0.0, 0.0, 48.0), margin_px=(4, 8, 8))
    assert link.believed, link.reason
    assert np.linalg.norm(np.subtract(link.shift_px, (-1, 3, 46))) < 0.5


def test_places_that_are_nearly_whole_leave_no_dark_planes():
    scene = np.full((6, 20, 30), 100, np.float32)
    tiles = [PlacedTile(scene, (0.0, 0.0002, 0.3)), PlacedTile(scene, (0.0003, 12.4, 0.0))]
    shape = output_shape(tiles)
    assert shape == (6, 32, 30)
    np.testing.assert_allclose(blended_block(tiles, (0, 0, 0), shape), 100, rtol=1e-5)
