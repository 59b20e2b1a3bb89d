"""Distances against scipy, torch, brute force and hand-made cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import special
from scipy.spatial import distance
from scipy.stats import entropy

from vlmedge.quant.compare import measures
from vlmedge.quant.compare.measures import (
    MAX_SQNR_DB,
    compare_arrays,
    compare_logits,
    count_common_prefix,
    kl_divergence,
    measure_edit_distance,
    top_tokens,
)

LOGITS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


def make_pair(seed, shape=(7, 5), noise=0.1):
    rng = np.random.default_rng(seed)
    needed = rng.standard_normal(shape).astype(np.float32)
    return needed + np.float32(noise) * rng.standard_normal(shape).astype(np.float32), needed


def test_array_distances_are_those_of_scipy_and_the_definition():
    got, needed = make_pair(0)
    ours, theirs = got.astype(np.float64).ravel(), needed.astype(np.float64).ravel()
    found = compare_arrays(got, needed)
    assert found.cosine == pytest.approx(1 - distance.cosine(ours, theirs), rel=1e-12)
    ratio = np.mean(theirs**2) / np.mean((ours - theirs) ** 2)
    assert found.sqnr_db == pytest.approx(10 * math.log10(ratio), rel=1e-12)
    assert found.max_abs == pytest.approx(distance.chebyshev(ours, theirs), rel=1e-12)
    needed_l2 = distance.euclidean(ours, theirs) / np.sqrt((theirs**2).sum())
    assert found.rel_l2 == pytest.approx(needed_l2, rel=1e-12)


def test_the_reference_sets_the_scale():
    needed = np.array([3.0, 4.0], np.float32)
    found = compare_arrays(needed * np.float32(1.1), needed)
    assert found.rel_l2 == pytest.approx(0.1, rel=1e-6)
    assert found.sqnr_db == pytest.approx(20, abs=1e-5)
    assert found.cosine == pytest.approx(1)
    other = compare_arrays(needed, needed * np.float32(1.1))
    assert other.rel_l2 == pytest.approx(1 / 11, rel=1e-6)


def test_equal_and_zero_arrays_have_finite_distances():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert compare_arrays(one, one) == measures.ArrayDistance(1.0, MAX_SQNR_DB, 0.0, 0.0)
    assert compare_arrays(zero, zero) == measures.ArrayDistance(1.0, MAX_SQNR_DB, 0.0, 0.0)
    assert compare_arrays(zero, one) == measures.ArrayDistance(0.0, 0.0, 1.0, 1.0)
    lost = compare_arrays(one, zero)
    assert (lost.cosine, lost.sqnr_db, lost.max_abs) == (0.0, -MAX_SQNR_DB, 1.0)
    assert math.isfinite(lost.rel_l2)


def test_sums_are_made_in_float64():
    needed = np.full(1000, 300, np.float16)  # a square of 90,000 is beyond float16
    found = compare_arrays(needed + np.float16(30), needed)
    assert found.rel_l2 == pytest.approx(0.1, rel=1e-12)
    assert found.cosine == pytest.approx(1, rel=1e-12)


@given(LOGITS, st.integers(0, 2**32 - 1))
def test_kl_is_that_of_scipy(needed, seed):
    got = needed + np.random.default_rng(seed).normal(0, 2, needed.shape).astype(np.float32)
    wanted = entropy(
        special.softmax(needed.astype(float), 1), special.softmax(got.astype(float), 1), axis=1
    )
    np.testing.assert_allclose(kl_divergence(got, needed), wanted, rtol=1e-6, atol=1e-12)


def test_kl_is_that_of_torch_at_the_size_of_a_vocabulary():
    import torch
    from torch.nn.functional import kl_div

    got, needed = make_pair(1, (3, 151_936), noise=0.5)
    ours, theirs = torch.from_numpy(got).double(), torch.from_numpy(needed).double()
    wanted = kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none")
    np.testing.assert_allclose(kl_divergence(got, needed), wanted.sum(1).numpy(), rtol=1e-9)


def test_kl_survives_logits_of_any_size_and_is_not_symmetric():
    needed = np.array([[1e4, 0, -1e4]], np.float32)
    got = np.array([[0, 1e4, -1e4]], np.float32)
    assert kl_divergence(got, needed) == pytest.approx(1e4)
    assert kl_divergence(needed, needed)[0] == 0
    flat, sharp = np.zeros((1, 2), np.float32), np.array([[math.log(3), 0]], np.float32)
    assert kl_divergence(flat, sharp)[0] == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert kl_divergence(sharp, flat)[0] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


@given(LOGITS, st.floats(-50, 50, width=32))
def test_a_constant_added_to_all_logits_changes_nothing(needed, shift):
    moved = needed.astype(np.float64) + shift
    np.testing.assert_allclose(kl_divergence(moved, needed), 0, atol=1e-10)


def test_agreement_by_hand():
    needed = np.array([[9, 8, 7, 6, 5, 0, 0], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 9, 0, 0]])
    got = np.array([[9, 1, 7, 6, 5, 2, 0], [1, 2, 3, 4, 5, 7, 6], [0, 0, 0, 0, 9, 0, 0]])
    found = compare_logits(got.astype(np.float32), needed.astype(np.float32))
    assert found.top1.tolist() == [1, 0, 1]
    assert found.top5.tolist() == [0.8, 1, 1]
    assert found.first_divergence == 1
    same = compare_logits(needed.astype(np.float32), needed.astype(np.float32))
    assert same.first_divergence is None
    assert same.kl.tolist() == [0, 0, 0]


def test_a_vocabulary_of_three_has_a_top_three():
    needed = np.array([[3, 2, 1]], np.float32)
    assert compare_logits(needed[:, ::-1], needed).top5.tolist() == [1]


@given(
    npst.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 1.0, 2.5, -3.0])),
    st.data(),
)
def test_the_best_tokens_are_those_of_a_full_sort(logits, data):
    k = data.draw(st.integers(1, len(logits)))
    wanted = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert top_tokens(logits, k).tolist() == wanted
    assert top_tokens(logits, 1)[0] == logits.argmax()


@given(st.text("abé漢", max_size=7), st.text("abé漢", max_size=7))
def test_edit_distance_is_the_textbook_recursion(got, needed):
    table = np.zeros((len(got) + 1, len(needed) + 1), int)
    table[:, 0], table[0] = range(len(got) + 1), range(len(needed) + 1)
    for i, a in enumerate(got, 1):
        for j, b in enumerate(needed, 1):
            change = table[i - 1, j - 1] + (a != b)
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, change)
    assert measure_edit_distance(got, needed) == table[-1, -1]


@pytest.mark.parametrize(
    ("got", "needed", "count"),
    [
        ((), (), 0),
        ((1,), (), 0),
        ((1, 2), (1, 2, 3), 2),
        ((1, 9, 3), (1, 2, 3), 1),
        ((4,), (4,), 1),
    ],
)
def test_common_prefix(got, needed, count):
    assert count_common_prefix(got, needed) == count


@pytest.mark.parametrize("compare", [compare_arrays, compare_logits])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (0, 3)])
def test_other_shapes_and_nothing_are_errors(compare, shape):
    needed = np.zeros((0, 3) if shape == (0, 3) else (3, 3), np.float32)
    with pytest.raises(ValueError, match="the reference has"):
        compare(np.zeros(shape, np.float32), needed)


@pytest.mark.parametrize("size", [1, 3, 100, 1536, 5000])
def test_equal_arrays_have_a_cosine_of_exactly_1(size):
    """A gate may ask for it; the quotient of product and norms misses it by a rounding."""
    for seed in range(20):
        array = np.random.default_rng(seed).standard_normal(size, np.float32)
        assert compare_arrays(array, array.copy()).cosine == 1
