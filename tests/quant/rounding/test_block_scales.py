"""Searched scales of blocks against brute force, and never worse than the plain ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import block_scales
from vlmedge.quant.rounding.block_scales import STEP_GRID, pack_searched, search_block_scales
from vlmedge.quant.rounding.weight_only import BLOCK_SIZES, pack_codes, pack_rows, unpack_rows


def make_rows(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def block_errors(rows, packed_scales, bits, block_size, importance):
    """Weighted squared errors of each block, float64[N, blocks]."""
    error = unpack_rows(*packed_scales, bits, rows.shape[1]).astype(np.float64) - rows
    padding = -rows.shape[1] % block_size
    error = np.pad(error**2 * importance, ((0, 0), (0, padding)))
    return error.reshape(len(rows), -1, block_size).sum(axis=2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_scales_are_the_best_of_the_grid_by_brute_force(bits, weighted):
    rows = make_rows((6, 96))
    importance = np.random.default_rng(1).uniform(0, 3, 96) ** 2 if weighted else np.ones(96)
    got = search_block_scales(rows, bits, 32, importance if weighted else None)
    middle = 1 << (bits - 1)
    for row, scales in zip(rows.astype(np.float64), got, strict=True):
        for block, scale in enumerate(scales):
            part = slice(block * 32, block * 32 + 32)

            def cost(scale, part=part, row=row):
                levels = np.clip(np.round(row[part] / scale), -middle, middle - 1)
                return (importance[part] * (levels * scale - row[part]) ** 2).sum()

            extreme = row[part][np.abs(row[part]).argmax()]
            grid = [s * share * extreme / middle for share in STEP_GRID[bits] for s in (1, -1)]
            assert cost(scale) <= min(map(cost, grid)) * (1 + 1e-4)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from(BLOCK_SIZES),
    st.integers(-30, 30),
    st.integers(0, 2**32),
)
def test_no_block_is_worse_than_packed_plainly(rows, size, bits, block_size, power, seed):
    weights = make_rows((rows, size), seed) * np.float32(10.0**power)
    importance = np.random.default_rng(seed).uniform(0, 2, size)
    importance[0] = 1  # one counts
    got = block_errors(
        weights, pack_searched(weights, bits, block_size, importance), bits, block_size, importance
    )
    plain = block_errors(
        weights, pack_rows(weights, bits, block_size), bits, block_size, importance
    )
    assert (got <= plain * 1.001).all()


def test_gaussian_blocks_of_4_bits_gain_and_more_where_columns_count_unlike():
    rows = make_rows((64, 512))
    importance = np.ones(512)
    importance[::16] = 100

    def gain(column_weights):
        plain = block_errors(rows, pack_rows(rows, 4, 64), 4, 64, column_weights).sum()
        packed = pack_searched(rows, 4, 64, column_weights)
        return block_errors(rows, packed, 4, 64, column_weights).sum() / plain

    assert gain(np.ones(512)) < 0.93
    assert gain(importance) < 0.7


def test_the_extreme_of_the_other_sign_may_take_the_spare_level():
    """-8 .. 7: with extremes -1 and 0.95 ... the plain scale leaves 0.95 a half step short."""
    rows = np.zeros((1, 16), np.float32)
    rows[0, :2] = -1.0, 0.99
    assert search_block_scales(rows, 4, 16)[0, 0] != 1 / 8
    error = unpack_rows(*pack_searched(rows, 4, 16), 4, 16) - rows
    plain = unpack_rows(*pack_rows(rows, 4, 16), 4, 16) - rows
    assert np.abs(error).max() < np.abs(plain).max() / 2


def test_blocks_of_rows_change_no_scale(monkeypatch):
    rows = make_rows((37, 100))
    whole = search_block_scales(rows, 4, 32)
    monkeypatch.setattr(block_scales, "BLOCK_ELEMENTS", 500)
    np.testing.assert_array_equal(search_block_scales(rows, 4, 32), whole)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits):
    rows = np.zeros((2, 64), np.float32)
    rows[1, 3] = 1e-42
    packed, scales = pack_searched(rows, bits, 32)
    assert not scales.any()
    assert not unpack_rows(packed, scales, bits, 64).any()


def test_what_is_not_finite_or_of_another_size_is_refused():
    rows = make_rows((2, 32))
    with pytest.raises(ValueError, match="32 needed"):
        search_block_scales(rows, 4, 32, np.ones(5))
    with pytest.raises(ValueError, match="not supported"):
        search_block_scales(rows, 4, 33)
    rows[0, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        search_block_scales(rows, 4, 32)


def pack_symmetrically(rows, bits, block_size):
    """The plain positive scale, max|w| / 7 or / 127, by its definition: nothing is clipped."""
    padding = -rows.shape[1] % block_size
    blocks = np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, block_size)
    last = (1 << (bits - 1)) - 1
    scales = np.abs(blocks).max(axis=2) / np.float32(last)
    levels = np.rint(blocks / np.where(scales > 0, scales, 1)[:, :, None])
    levels = np.clip(levels, -last, last)  # a subnormal scale is a coarse one
    codes = (levels + last + 1).astype(np.uint8).reshape(len(rows), -1)
    return pack_codes(codes, bits, block_size), scales


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_positive_scales_are_the_best_of_their_grid_and_of_4_bits_nearly_of_all(bits, weighted):
    """By brute force in float64; all: 500 positive steps a block, where the grid has 25."""
    rows = make_rows((24, 96))
    importance = np.random.default_rng(1).uniform(0, 3, 96) ** 2 if weighted else np.ones(96)
    got = search_block_scales(rows, bits, 32, importance if weighted else None, positive=True)
    middle = 1 << (bits - 1)
    best = chosen = 0
    for row, scales in zip(rows.astype(np.float64), got.tolist(), strict=True):
        for block, scale in enumerate(scales):
            part = slice(block * 32, block * 32 + 32)

            def cost(steps, part=part, row=row):
                divided = row[part] / np.reshape(steps, (-1, 1))
                levels = np.clip(np.round(divided), -middle, middle - 1)
                error = levels * np.reshape(steps, (-1, 1)) - row[part]
                return (importance[part] * error**2).sum(axis=1)

            amax = np.abs(row[part]).max()
            tried = [amax / middle, amax / (middle - 1), row[part].max() / (middle - 1)]
            named = [share * step for share in STEP_GRID[bits] for step in tried[:2]]
            assert scale > 0
            assert cost(scale)[0] <= cost([*tried[:2], *named]).min() * (1 + 1e-4)
            if row[part].max() * middle > -row[part].min() * (middle - 1):
                assert cost(scale)[0] <= cost(tried[2])[0] * (1 + 1e-4)
            best += cost(amax / middle * np.linspace(0.3, 1.5, 500)).min()
            chosen += cost(scale)[0]
    assert chosen <= best * 1.03 or bits == 8


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from(BLOCK_SIZES),
    st.integers(-45, 30),
    st.integers(0, 2**32),
)
def test_no_block_of_positive_scale_is_worse_than_the_plain_ones(
    rows, size, bits, block_size, power, seed
):
    weights = (make_rows((rows, size), seed).astype(np.float64) * 10.0**power).astype(np.float32)
    weights[0, : size // 2] = 0
    importance = np.random.default_rng(seed).uniform(0, 2, size)
    importance[0] = 1  # one counts

    def errors(packed_scales):
        return block_errors(weights, packed_scales, bits, block_size, importance)

    found = pack_searched(weights, bits, block_size, importance, positive=True)
    assert (found[1] > 0).all()
    assert (found[1].astype(np.float64) < 1e35).all()
    # float32's own rounding, and values so small that they count as zeros
    largest, tiny = float(np.abs(weights).max()), float(np.finfo(np.float32).tiny)
    nothing = importance.sum() * (1e-12 * largest**2 + (128 * tiny) ** 2)
    for plain in (
        pack_symmetrically(weights, bits, block_size),
        pack_rows(weights, bits, block_size, positive=True),
    ):
        assert (errors(found) <= errors(plain) * 1.001 + nothing).all()


def test_positive_scales_cost_gaussian_blocks_what_the_search_had_gained():
    rows, ones = make_rows((64, 512)), np.ones(512)

    def error(packed_scales):
        return block_errors(rows, packed_scales, 4, 64, ones).sum() ** 0.5

    signed = error(pack_searched(rows, 4, 64))
    positive = error(pack_searched(rows, 4, 64, positive=True))
    assert signed < positive < 1.06 * signed
    assert positive < 1.01 * error(pack_rows(rows, 4, 64))
    assert positive < 0.94 * error(pack_rows(rows, 4, 64, positive=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros_under_a_positive_scale(bits):
    rows = np.zeros((2, 64), np.float32)
    rows[1, 3] = 1e-42
    packed, scales = pack_searched(rows, bits, 32, positive=True)
    assert (scales == 2**-14).all()
    assert not unpack_rows(packed, scales, bits, 64).any()
