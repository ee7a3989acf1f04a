"""Pixel types and pyramids: rounding, clipping and means by hand and against float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.pixels import IntegerScale, to_dtype
from pellucid.data.pyramid import chunk_and_shard, mean_down, plan_levels
from pellucid.errors import ParameterError


@given(
    st.floats(1e-6, 1e9),
    st.floats(-1.0, 1.0),
    st.sampled_from(["uint8", "uint16", "int16", "int32"]),
)
def test_a_chosen_scale_uses_half_the_range_and_clips_nothing(maximum, share, dtype):
    minimum = maximum * share if dtype.startswith("i") else 0.0
    factor = IntegerScale.from_range(minimum, maximum, dtype).factor
    limits = np.iinfo(dtype)
    assert np.log2(factor) == int(np.log2(factor))
    assert maximum * factor <= limits.max
    assert minimum * factor >= limits.min
    assert maximum * factor * 2 > limits.max or minimum * factor * 2 < limits.min


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("source", ["float32", "float64", "int32"])
def test_conversion_against_float64(dtype, source):
    values = (np.random.default_rng(0).normal(100, 1e5, (3, 20, 20))).astype(source)
    limits = np.iinfo(dtype)
    exact = np.rint(values.astype(float) * 0.5)
    converted, clipped = to_dtype(values, dtype, IntegerScale(0.5))
    np.testing.assert_array_equal(converted, np.clip(exact, limits.min, limits.max).astype(dtype))
    assert clipped == np.count_nonzero((exact < limits.min) | (exact > limits.max))


def test_what_no_integer_can_hold():
    for value in (np.nan, np.inf):
        with pytest.raises(ParameterError, match="Write float32 instead"):
            to_dtype(np.array([[[1.0, value]]]), "uint16")
    for factor in (0.0, -1.0, np.nan):
        with pytest.raises(ParameterError, match="positive finite factor"):
            IntegerScale(factor)
    with pytest.raises(ParameterError, match="finite range"):
        IntegerScale.from_range(0, np.nan, "uint16")
    assert IntegerScale.from_range(0, 0, "uint16").factor == 1.0


def test_integers_up_to_the_limit_pass_exactly():
    values = np.array([[[0, 1, 65534, 65535]]], np.uint16)
    for dtype in ("uint16", "uint32", "float32", "int32"):
        converted, clipped = to_dtype(values, dtype)
        np.testing.assert_array_equal(converted, values)
        assert (converted.dtype, clipped) == (dtype, 0)
    large = np.array([[[2**32 - 1, 2**31 + 1]]], np.uint32)
    np.testing.assert_array_equal(to_dtype(large, "uint32")[0], large)
    np.testing.assert_array_equal(to_dtype(large.astype(float), "uint32")[0], large)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(4, 6, 8), (3, 5, 7), (1, 1, 1)])
def test_means_against_float64(dtype, factor, shape):
    high = min(np.iinfo(dtype).max, 4_000_000_000) if dtype[0] in "ui" else 1000
    block = np.random.default_rng(0).integers(0, high, shape, endpoint=True).astype(dtype)
    padded = np.pad(
        block.astype(float), [(0, -n % f) for n, f in zip(shape, factor, strict=True)],
        constant_values=np.nan,
    )  # fmt: skip
    split = padded.reshape([k for n, f in zip(padded.shape, factor, strict=True)
                            for k in (n // f, f)])  # fmt: skip
    expected = np.nanmean(split, axis=(1, 3, 5))
    if dtype[0] in "ui":
        expected = np.rint(expected)
    means = mean_down(block, factor)
    assert means.dtype == dtype
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_coarse_z_waits_until_the_voxels_are_nearly_cubes():
    levels = plan_levels((100, 2000, 2000), (0.4, 0.1, 0.1))
    assert [level.factor for level in levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
    assert levels[-1].shape == (50, 250, 250)
    fine_z = plan_levels((1000, 600, 600), (0.1, 0.3, 0.3))
    assert fine_z[1].factor == (2, 1, 1)
    assert [level.factor for level in plan_levels((1, 513, 5), (1.0, 0.1, 0.1))] == [
        (1, 1, 1), (1, 2, 2), (1, 4, 4)
    ]  # fmt: skip


@given(
    st.tuples(*[st.integers(1, 5000)] * 3),
    st.tuples(*[st.floats(0.01, 10)] * 3),
)
def test_levels_end_small_and_lose_no_voxel(shape, voxel_um):
    levels = plan_levels(shape, voxel_um)
    assert levels[0].shape == shape
    assert max(levels[-1].shape) <= 256
    for level in levels:
        for n, f, size in zip(level.shape, level.factor, shape, strict=True):
            assert n == -(-size // f)


@given(st.tuples(*[st.integers(1, 5000)] * 3))
def test_shards_are_whole_chunks_of_bounded_size(shape):
    chunk, shard = chunk_and_shard(shape)
    assert all(s % c == 0 for c, s in zip(chunk, shard, strict=True))
    assert all(c <= n for c, n in zip(chunk, shape, strict=True))
    assert np.prod(shard) <= 128 * 512 * 512
    assert np.prod(chunk) <= 2**20
