import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import STRESS

import tokalign
from tokalign import dtw
from tokalign.bench import spellings
from tokalign.dtw import align_dp, levenshtein, plain, plain_dtw

tokens = st.lists(st.text(alphabet="abc ▁\n½", max_size=5), max_size=9)
small = st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=5)


def brute_force(s, t):
    """The least cost over all paths, each tried."""

    @functools.cache
    def least(i, j):
        cost = levenshtein(s[i], t[j])
        ways = [(i + a, j + b) for a, b in ((1, 1), (1, 0), (0, 1))]
        onwards = [least(a, b) for a, b in ways if a < len(s) and b < len(t)]
        return cost + (min(onwards) if onwards else 0)

    return least(0, 0)


@given(small, small)
def test_cost_is_the_least_over_all_paths(s, t):
    assert tokalign.align(s, t, method="dp").cost == brute_force(tuple(s), tuple(t))


@settings(deadline=None)
@given(st.lists(st.tuples(tokens, tokens), max_size=8), st.integers(0, 2), st.integers(0, 2))
def test_fast_programme_has_the_cost_and_the_path_of_the_plain_one(pairs, slack, band):
    before = dtw._SLACK, dtw._BAND
    dtw._SLACK, dtw._BAND = slack + 1, band + 1
    try:
        found = align_dp(pairs)
    finally:
        dtw._SLACK, dtw._BAND = before
    for fast, (s, t) in zip(found, pairs, strict=True):
        slow = plain_dtw(s, t)
        assert fast.cost == slow.cost
        np.testing.assert_array_equal(fast.chunks, slow.chunks)
        np.testing.assert_array_equal(fast.pairs, slow.pairs)


def test_fast_programme_equals_the_plain_one_on_real_texts(t5, p50k, solutions):
    texts = [*solutions[:60], *(text for text in STRESS if text)]
    pairs = [(p50k.segment(x).tokens(), spellings(t5.segment(x), t5)) for x in texts]
    for fast, pair in zip(align_dp(pairs), pairs, strict=True):
        slow = plain_dtw(*pair)
        assert fast.cost == slow.cost
        np.testing.assert_array_equal(fast.chunks, slow.chunks)
        np.testing.assert_array_equal(fast.pairs, slow.pairs)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_levenshtein_is_a_distance(a, b, c):
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, b) == levenshtein(b, a)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))


def test_golden_one_to_many_and_ties():
    found = tokalign.align(["Nat", "alia", " sold"], ["▁Natalia", "▁sold"], method="dp")
    assert found.cost == 4 + 3
    assert found.chunks.tolist() == [[0, 2, 0, 1], [2, 3, 1, 2]]
    assert found.pairs.tolist() == [[2, 1]]


def test_golden_newline_takes_the_line_start_along():
    found = tokalign.align([".", "\n", "She"], [".", "▁She"], method="dp")
    assert found.pairs.tolist() == [[2, 1]]
    assert found.cost == 1
    assert plain("▁She") == plain(" She") == "She"


def test_an_empty_side_costs_all_characters():
    assert tokalign.align([], ["▁ab"], method="dp").cost == 2
    assert tokalign.align(["ab"], [], method="dp").chunks.tolist() == [[0, 1, 0, 0]]


def test_pairs_with_too_many_cells_are_refused():
    with pytest.raises(ValueError, match='got 9000 by 9000 tokens; use method="exact"'):
        tokalign.align(["a"] * 9000, ["a"] * 9000, method="dp")
