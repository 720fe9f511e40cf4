import functools
import math

import numpy as np
import pytest
import scipy.stats
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.core.records import Accuracy
from distill.core.statistics import (
    Bootstrap,
    Paired,
    mean,
    of_accuracy,
    pair,
    percentile_interval,
)

counts = st.integers(0, 60)
paired = st.builds(Paired, counts, counts, counts, st.integers(1, 60))
shares = st.floats(0, 1)
estimates = st.tuples(shares, shares, shares).map(lambda e: (sorted(e)[1], min(e), max(e)))


# --- Laws --------------------------------------------------------------------------------------


def covered(rng, chances, n, trials):
    """Return how often the interval of `n` paired answers holds the true difference."""
    truth = chances[2] - chances[1]
    drawn = rng.multinomial(n, chances, size=trials)
    ends = [Paired(*map(int, row)).estimate()[1:] for row in drawn]
    return np.mean([low <= truth <= high for low, high in ends])


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize(
    "chances", [(0.3, 0.05, 0.25, 0.4), (0.05, 0.05, 0.05, 0.85), (0.8, 0.02, 0.1, 0.08)]
)
def test_paired_intervals_cover_the_true_difference(n, chances):
    # 2,000 trials put the observed share within 0.015 of the true one.
    assert covered(np.random.default_rng(0), chances, n, 2000) >= 0.935


def test_intervals_of_means_cover_the_true_mean():
    rng = np.random.default_rng(0)
    chances = np.array([0.1, 0.4, 0.7, 0.95])
    right = rng.binomial(200, chances, size=(2000, 4))
    ends = [mean([of_accuracy(Accuracy(int(c), 200)) for c in row])[1:] for row in right]
    held = np.mean([low <= chances.mean() <= high for low, high in ends])
    assert 0.935 <= held <= 0.97


@given(paired)
def test_the_interval_holds_the_difference_and_stays_in_range(change):
    value, low, high = change.estimate()
    assert value == near((change.gained - change.lost) / change.n, terms=4, scale=1)
    assert -1 - 1e-9 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1 + 1e-9


@given(paired)
def test_turning_before_and_after_turns_the_interval(change):
    turned = Paired(change.both, change.gained, change.lost, change.neither)
    value, low, high = turned.estimate()
    assert change.estimate() == near((-value, -high, -low), terms=40, scale=1)
    assert change.p_value() == turned.p_value()


@given(paired)
def test_p_values_are_the_binomial_test_of_what_changed(change):
    changed = change.gained + change.lost
    expected = scipy.stats.binomtest(change.gained, changed).pvalue if changed else 1.0
    assert change.p_value() == near(expected, terms=1000)


@given(st.lists(estimates, min_size=1, max_size=6), st.randoms())
def test_the_mean_does_not_depend_on_the_order(values, random):
    turned = random.sample(values, len(values))
    assert mean(turned) == near(mean(values), terms=24, scale=1)


@given(estimates, st.integers(1, 9))
def test_equal_estimates_narrow_with_the_root_of_their_number(estimate, number):
    value, low, high = mean([estimate] * number)
    # The root of a sum of squares; a square below the least normal number loses its digits.
    distance = functools.partial(near, terms=24, scale=1)
    assert value == near(estimate[0], terms=9)
    assert value - low == distance((estimate[0] - estimate[1]) / math.sqrt(number))
    assert high - value == distance((estimate[2] - estimate[0]) / math.sqrt(number))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_pairs_keep_both_accuracies(answers):
    change = pair(answers)
    assert change.n == len(answers)
    assert change.before.correct == sum(before for before, _ in answers)
    assert change.after.correct == sum(after for _, after in answers)


@given(st.integers(1, 40), st.integers(0, 9))
def test_the_shares_of_a_bootstrap_sample_add_up_to_one(n, seed):
    weights = Bootstrap(50, seed).weights(n)
    assert weights.shape == (50, n) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=n * np.finfo(float).eps)
    np.testing.assert_array_equal(weights, Bootstrap(50, seed).weights(n))
    assert n == 1 or not np.array_equal(weights, Bootstrap(50, seed, stream=(1,)).weights(n))


def test_bootstrap_intervals_of_means_are_the_normal_ones_and_those_of_scipy():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    (ours,) = Bootstrap(8000).means(values[:, None])
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    half = 1.96 * values.std() / 20
    assert [ours["low"], ours["high"]] == pytest.approx([*theirs], abs=0.05 * half)
    assert ours["high"] - ours["value"] == pytest.approx(half, rel=0.05)


def test_wilson_intervals_are_those_of_scipy():
    for correct, n in ((0, 1), (3, 10), (8, 10), (10, 10), (499, 500)):
        theirs = scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")
        assert of_accuracy(Accuracy(correct, n))[1:] == pytest.approx([*theirs], abs=1e-6)


# --- Goldens -----------------------------------------------------------------------------------


def test_without_correlation_the_wilson_distances_are_squared_and_added():
    # 5 of 10 and 5 of 10, phi = 0: each Wilson interval reaches 0.263412 to either side.
    change = Paired(both=2, lost=3, gained=3, neither=2)
    reach = 0.263412 * math.sqrt(2)
    assert change.correlation == near(-0.2, terms=4)  # (2 * 2 - 3 * 3) / 25
    # -2 * phi adds 0.4 of a square to the two.
    assert change.estimate() == pytest.approx(
        (0.0, -reach * math.sqrt(1.2), reach * math.sqrt(1.2)), abs=1e-5
    )


def test_four_gained_and_none_lost_has_p_one_eighth():
    assert Paired(both=3, lost=0, gained=4, neither=3).p_value() == 2 / 2**4


def test_percentiles_leave_out_what_is_no_number():
    assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


# --- Refusals ----------------------------------------------------------------------------------


def test_no_problems_and_negative_counts_are_refused():
    for wrong in ((0, 0, 0, 0), (1, -1, 0, 0)):
        with pytest.raises(ValueError, match="expected counts >= 0"):
            Paired(*wrong)
    with pytest.raises(ValueError, match="expected an estimate, got none"):
        mean([])
