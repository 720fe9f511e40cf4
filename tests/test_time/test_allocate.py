"""The policy never earns on the fold that chose; curves that meet by hand; the artefact's rules."""

import functools
import itertools
import math

import numpy as np
import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.statistics import Bootstrap
from distill.core.store import write_json
from distill.test_time import allocate
from distill.test_time.allocate import Policy
from distill.test_time.difficulty import Linear

IDS = [f"made/{n}" for n in range(40)]
BINS = np.arange(40) % 5


def test_selection_never_scores_on_the_fold_that_chose():
    # Each fold's own best strategy is always right on it and always wrong on the other fold.
    fold_of = allocate.folds(IDS, BINS)
    values = np.stack([fold_of == 0, fold_of == 1]).astype(float)
    earned, chosen = allocate.cross_validate(values, BINS, fold_of)
    assert earned.sum() == 0 and (chosen == 1 - fold_of).all()
    # A search that could look would take all.
    assert values.max(0).min() == 1


@given(st.integers(0, 99))
def test_a_questions_own_values_do_not_choose_for_it(seed):
    random = np.random.default_rng(seed)
    values = random.random((4, 40))
    fold_of = allocate.folds(IDS, BINS)
    _, before = allocate.cross_validate(values, BINS, fold_of)
    place = int(random.integers(40))
    values[:, place] = random.random(4) * 1000
    earned, after = allocate.cross_validate(values, BINS, fold_of)
    assert after[place] == before[place] and earned[place] == values[after[place], place]


def test_the_policy_by_hand():
    bins, fold_of = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    values = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.5]])
    earned, chosen = allocate.cross_validate(values, bins, fold_of)
    # Bin 0: fold 1 ties, and the first is taken; bin 1: the second is better on both.
    assert chosen.tolist() == [0, 0, 1, 1] and earned.tolist() == [1.0, 1.0, 1.0, 0.5]
    assert allocate.best_by_bin(values[None], ["a", "b"], bins) == (("a",), ("b",))


def test_what_a_budget_cannot_pay_is_not_chosen():
    values = np.array([[np.nan] * 4, [0.0] * 4])
    assert allocate.best(values) == 1
    with pytest.raises(ValueError, match="expected a strategy with a value"):
        allocate.best(values[:1])


@given(st.permutations(range(40)))
def test_folds_are_even_in_each_bin_whatever_the_order(order):
    found = allocate.folds(IDS, BINS)
    mixed = allocate.folds([IDS[place] for place in order], BINS[list(order)])
    assert mixed.tolist() == found[list(order)].tolist()
    assert all((found[bin_ == BINS] == 0).sum() == 4 for bin_ in range(5))


def test_saved_samples_by_hand():
    budgets = [1, 4, 16, 64]
    # We reach at 4 what they have at 16, and what they have at 64 never.
    ours = np.tile([0.2, 0.5, 0.5, 0.5], (20, 1))
    theirs = np.tile([0.2, 0.3, 0.5, 0.6], (20, 1))
    found = allocate.saved_samples(ours, theirs, budgets, bootstrap=Bootstrap(50))
    ratios = [row["ratio"] for row in found]
    # An accuracy counts as reached 1e-12 below it, on a curve of 0.1 or more in a factor of 4.
    close = functools.partial(pytest.approx, rel=10 * math.log(4) * 1e-12)
    assert ratios == [1, close(4 / 4 ** (1 / 3)), close(4), None]
    assert [row["unreached"] for row in found] == [0, 0, 0, 1]
    assert found[2]["low"] == found[2]["high"] == close(4)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 1))
def test_a_curve_reaches_first_where_it_has_the_accuracy(curve, accuracy):
    budgets = [1, 4, 16, 64]
    found = allocate.budget_for(curve, budgets, accuracy)
    assert (found is None) == (max(curve) < accuracy)
    if found is not None and found > 1:
        assert np.interp(np.log(found), np.log(budgets), curve) == near(accuracy, terms=40, scale=1)
        earlier = itertools.takewhile(lambda pair: pair[0] < found - 1e-9, zip(budgets, curve))  # noqa: B905
        assert all(value < accuracy for _, value in earlier)


POLICY = Policy((1, 16), (("best_of-weighted", "beam-4"), ("beam-4", "beam-sqrt")), (0.5,))


def test_a_policy_comes_back_and_chooses(tmp_path):
    POLICY.save(tmp_path / "policy.json")
    found = Policy.load(tmp_path / "policy.json")
    assert vars(found) == vars(POLICY)
    assert found.choose(1, 40) == ("beam-sqrt", 16) and found.choose(0, 15)[1] == 1
    with pytest.raises(UserError, match="a budget of at least 1, got 0"):
        found.choose(0, 0)
    fitted = Policy((1,), (("a",), ("b",)), (0.0,), "encoder", 0, Linear(np.arange(3.0), 0.5))
    fitted.save(tmp_path / "fitted.json")
    loaded = Policy.load(tmp_path / "fitted.json").estimator
    assert loaded.bias == 0.5 and loaded.weights.tolist() == [0, 1, 2]


def test_what_is_no_policy_is_refused(tmp_path):
    for wrong in ([], {"budgets": [1]}, {**vars(POLICY), "kind": "guessed"}):
        write_json(tmp_path / "policy.json", wrong)
        with pytest.raises(UserError, match="expected a policy in"):
            Policy.load(tmp_path / "policy.json")
    with pytest.raises(ValueError, match="one edge less than 2 bins"):
        Policy((1,), (("a",), ("b",)), ())
    with pytest.raises(ValueError, match="a strategy for each of 1 budgets"):
        Policy((1,), (("a", "b"),), ())
