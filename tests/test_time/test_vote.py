"""Every estimator against the mean over all subsets, worked examples, and the tool's file rules."""

import functools
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill import __main__ as cli
from distill.test_time import vote
from distill.test_time.vote import Samples

# Means over at most a few hundred subsets, weights of them from factorials.
shares = functools.partial(near, terms=1000)


@st.composite
def problems(draw):
    keys = draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7))
    # Two forms of one answer can be judged differently, so each sample has its own verdict.
    right = [key is not None and draw(st.booleans()) for key in keys]
    scores = [draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.9])) for _ in keys]
    return Samples(tuple(keys), tuple(right), tuple(scores)), draw(st.integers(1, len(keys)))


def enumerated(samples, k, judge):
    subsets = list(itertools.combinations(range(len(samples)), k))
    return sum(judge(samples, subset) for subset in subsets) / len(subsets)


def some(samples, subset):
    return any(samples.right[place] for place in subset)


def top(samples, subset):
    answered = [place for place in subset if samples.keys[place] is not None]
    highest = max((samples.scores[place] for place in answered), default=None)
    chosen = [samples.right[p] for p in answered if samples.scores[p] == highest]
    return sum(chosen) / len(chosen) if chosen else 0


def elected(weight):
    def judge(samples, subset):
        groups = {}
        for place in subset:
            if samples.keys[place] is not None:
                groups.setdefault(samples.keys[place], []).append(place)
        sums = {key: sum(weight(samples, p) for p in places) for key, places in groups.items()}
        # Scores are tenths, so that rounding makes their sums exact.
        most = max((round(each, 6) for each in sums.values()), default=0)
        winners = [groups[key] for key, each in sums.items() if round(each, 6) == most]
        shares = [sum(samples.right[p] for p in places) / len(places) for places in winners]
        return sum(shares) / len(shares) if shares else 0

    return judge


@given(problems())
def test_pass_is_the_mean_over_all_subsets(drawn):
    assert vote.pass_at(*drawn) == shares(enumerated(*drawn, some))


@given(problems())
def test_best_is_the_mean_over_all_subsets(drawn):
    assert vote.best(*drawn) == shares(enumerated(*drawn, top))


@given(problems())
def test_majority_is_the_mean_over_all_subsets(drawn):
    judge = elected(lambda samples, place: 1)
    assert vote.majority(*drawn) == shares(enumerated(*drawn, judge))


@given(problems())
def test_weighted_is_the_mean_over_all_subsets(drawn):
    judge = elected(lambda samples, place: samples.scores[place])
    value, draws = vote.weighted(*drawn, np.random.default_rng(0))
    assert (value, draws) == (shares(enumerated(*drawn, judge)), 0)


@given(problems(), st.randoms())
def test_the_order_of_the_samples_does_not_count(drawn, random):
    samples, k = drawn
    order = random.sample(range(len(samples)), len(samples))
    columns = (samples.keys, samples.right, samples.scores)
    mixed = Samples(*(tuple(column[place] for place in order) for column in columns))
    for measure in (vote.pass_at, vote.best, vote.majority):
        assert measure(mixed, k) == shares(measure(samples, k))


@given(problems())
def test_at_one_all_are_the_share_of_right_samples(drawn):
    samples, _ = drawn
    share = sum(samples.right) / len(samples)
    for measure in (vote.pass_at, vote.best, vote.majority):
        assert measure(samples, 1) == shares(share)
    assert vote.weighted(samples, 1, np.random.default_rng(0))[0] == shares(share)


@given(problems())
def test_equal_scores_make_weighted_the_majority(drawn):
    samples, k = drawn
    even = Samples(samples.keys, samples.right, (0.7,) * len(samples))
    value, _ = vote.weighted(even, k, np.random.default_rng(0))
    assert value == shares(vote.majority(even, k))


def test_worked_by_hand():
    # Subsets of two of a a b -: aa, ab, ab, a-, a-, b-. Right is a.
    samples = Samples(("a", "a", "b", None), (True, True, False, False), (0.2, 0.3, 0.6, 0.9))
    assert vote.pass_at(samples, 2) == shares(5 / 6)
    assert vote.majority(samples, 2) == shares((1 + 0.5 + 0.5 + 1 + 1) / 6)
    assert vote.best(samples, 2) == shares(3 / 6)  # b has the higher score
    assert vote.weighted(samples, 2, np.random.default_rng(0))[0] == shares(3 / 6)
    # Of three: aab, aa-, ab-, ab-; 0.2 + 0.3 < 0.6.
    assert vote.majority(samples, 3) == shares((1 + 1 + 0.5 + 0.5) / 4)
    assert vote.weighted(samples, 3, np.random.default_rng(0))[0] == shares(1 / 4)


def test_many_samples_stay_exact_and_quick():
    keys = tuple(str(place % 40) for place in range(256))
    samples = Samples(keys, tuple(key == "0" for key in keys), tuple(map(float, range(256))))
    assert vote.majority(samples, 256) == shares(1 / 16)  # sixteen answers have 7 votes
    assert 0 < vote.majority(samples, 64) < vote.pass_at(samples, 64) < 1


def test_thousands_of_samples_do_not_overflow():
    keys = ("a",) * 1500 + ("b",) * 1000
    samples = Samples(keys, tuple(key == "a" for key in keys))
    # Subsets are counted by logarithms of factorials, whose size is the scale.
    assert vote.majority(samples, 1) == near(0.6, terms=4, scale=math.lgamma(2501))
    assert 0.6 < vote.majority(samples, 64) < vote.majority(samples, 256) < 1


def test_random_subsets_agree_with_enumeration_and_count_themselves():
    keys = tuple("aabbbcdeaf")
    samples = Samples(keys, tuple(k == "a" for k in keys), tuple(x / 10 for x in range(10)))
    exact, none = vote.weighted(samples, 5, np.random.default_rng(0))
    drawn, draws = vote.weighted(samples, 5, np.random.default_rng(0), max_subsets=10)
    assert (none, draws) == (0, vote.DRAWS)
    assert abs(drawn - exact) < 4 * 0.5 / vote.DRAWS**0.5
    assert drawn == vote.weighted(samples, 5, np.random.default_rng(0), max_subsets=10)[0]


@pytest.mark.parametrize(
    "columns",
    [((), ()), (("a",), (True, False)), ((None,), (True,)), (("a",), (True,), (float("nan"),))],
)
def test_samples_that_do_not_fit_are_refused(columns):
    with pytest.raises(ValueError, match="expected"):
        Samples(*columns)


def test_what_has_no_scores_or_too_few_samples_is_refused():
    samples = Samples(("a",), (True,))
    with pytest.raises(ValueError, match="a score for every sample"):
        vote.best(samples, 1)
    with pytest.raises(ValueError, match="at least 0 each"):
        vote.weighted(samples, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="k of 1 to 1 samples, got 2"):
        vote.pass_at(samples, 2)


def sample(answer, score=None):
    text = {"text": f"So.\nThe answer is {answer}."}
    return text if score is None else {**text, "score": score}


def called(tmp_path, capsys, rows, *flags):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = cli.main(["vote", str(path), *flags])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


ROWS = [
    {"gold": 7, "samples": [sample(x, s) for x, s in ((7, 0.9), ("7.0", 0.1), (6, 0.5), (5, 0.2))]},
    {"gold": "#### 3", "samples": [sample(x, 0.5) for x in (1, 1, 1, 1, 3)]},
]


def test_the_table_as_json(tmp_path, capsys):
    code, out, _ = called(tmp_path, capsys, ROWS, "--json")
    result = json.loads(out)
    assert code == 0 and result["samples"] == {"fewest": 4, "most": 5}
    assert list(result["estimates"]) == ["pass", "majority", "best", "weighted"]
    assert [row["k"] for row in result["estimates"]["pass"]] == [1, 2, 4]
    assert result["estimates"]["pass"][0]["value"] == shares((0.5 + 0.2) / 2)
    assert result["estimates"]["majority"][2]["value"] == shares((1 + 0) / 2)
    for rows in result["estimates"].values():
        assert all(row["low"] <= row["value"] <= row["high"] and row["n"] == 2 for row in rows)
    assert called(tmp_path, capsys, ROWS, "--json")[1] == out


def test_the_table_for_people(tmp_path, capsys):
    code, out, _ = called(tmp_path, capsys, ROWS, "--max_k=2")
    assert code == 0 and "pass@1      35.0 % [20.0, 50.0] of 2" in out and "@4" not in out


def test_without_scores_two_are_absent_and_never_zero(tmp_path, capsys):
    rows = [*ROWS, {"gold": "3", "samples": [sample(3)] * 4}]
    result = json.loads(called(tmp_path, capsys, rows, "--json")[1])
    assert list(result["estimates"]) == ["pass", "majority"]
    assert "1 of 3 problems" in result["absent"]["best"]
    rows = [{"gold": "3", "samples": [sample(3, -1.5)] * 4}]
    result = json.loads(called(tmp_path, capsys, rows, "--json")[1])
    assert list(result["absent"]) == ["weighted"] and "best" in result["estimates"]


def test_an_empty_file_has_nothing_to_estimate(tmp_path, capsys):
    assert called(tmp_path, capsys, [])[:2] == (0, "0 problems: nothing to estimate\n")
    assert json.loads(called(tmp_path, capsys, [], "--json")[1])["problems"] == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"samples": [sample(3)]}, '"gold" on line 1'),
        ({"gold": 3}, '"samples" on line 1'),
        ({"gold": 3, "samples": []}, "a list of samples on line 1"),
        ({"gold": 3, "samples": ["3"]}, "a list of samples on line 1"),
        ({"gold": 3, "samples": [{"score": 1}]}, '"text" on sample 1 of line 1'),
        ({"gold": 3, "samples": [sample(3, True)]}, "score of sample 1 of line 1"),
        ({"gold": 3, "samples": [sample(3, "0.5")]}, "score of sample 1 of line 1"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, capsys, row, told):
    code, _, err = called(tmp_path, capsys, [row])
    assert code == 2 and told in err and err.count("\n") == 1


def test_bad_flags_are_refused(tmp_path, capsys):
    assert called(tmp_path, capsys, ROWS, "--max_k=0")[0] == 2
    assert called(tmp_path, capsys, ROWS, "--grader=lenient")[0] == 2


@pytest.mark.parametrize("command", ["vote_command", "answer_command"])
def test_help_needs_nothing_heavy(command):
    code = f"import sys; from distill.test_time import {command}\n"
    code += f"try: {command}.main(['--help'])\n"
    code += "finally: print(sorted({'numpy', 'pyarrow', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
