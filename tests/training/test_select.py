import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.records import Accuracy, Prediction
from distill.core.store import Shards, Stage
from distill.training.select import Weighted, mean, run, select, worst

SETS = ("asdiv", "multi", "svamp")
accuracies = st.integers(1, 40).flatmap(
    lambda n: st.integers(0, n).map(lambda correct: Accuracy(correct, n))
)
tables = st.dictionaries(
    st.integers(0, 1000),
    st.tuples(*[accuracies] * 3).map(lambda row: dict(zip(SETS, row, strict=True))),
    min_size=1,
)
rules = st.sampled_from([mean, worst, Weighted({"asdiv": 0.1, "multi": 0.2, "svamp": 0.7})])


def row(*pairs):
    return dict(zip(SETS, (Accuracy(*pair) for pair in pairs), strict=True))


def predictions(step, source, split, correct, n):
    for number in range(n):
        right = number < correct
        name = f"{source}/{split}/{number}"
        yield Prediction(
            step, name, source, split, "text", "right" if right else "wrong", str(right)
        )


def evaluated(run_dir, *counts):
    sink = Shards(run_dir / "predictions", Prediction)
    for step, source, split, correct in counts:
        sink.append(predictions(step, source, split, correct, 10))
    with Stage.open(run_dir, "evaluate", settings={}) as stage:
        stage.finish()


# --- Laws --------------------------------------------------------------------------------------


@given(tables, rules, st.permutations(SETS))
def test_the_choice_does_not_depend_on_the_order_of_sets_or_steps(table, rule, order):
    turned = {step: {name: table[step][name] for name in order} for step in reversed(table)}
    assert select(turned, rule) == select(table, rule)


@given(tables, rules)
def test_no_step_beats_the_choice_and_no_earlier_one_equals_it(table, rule):
    chosen = select(table, rule)
    best = rule(table[chosen])
    for step in table:
        assert rule(table[step]) < best or (rule(table[step]) == best and step >= chosen)


@given(tables)
def test_equal_weights_are_the_mean(table):
    weighted = Weighted(dict.fromkeys(SETS, 0.3))
    for of_step in table.values():
        assert weighted(of_step) == mean(of_step)
        assert worst(of_step) <= mean(of_step)


@given(tables, rules)
def test_doubling_every_count_changes_no_choice(table, rule):
    doubled = {
        step: {name: value + value for name, value in of_step.items()}
        for step, of_step in table.items()
    }
    assert select(doubled, rule) == select(table, rule)


# --- Goldens -----------------------------------------------------------------------------------


def test_rules_choose_by_their_own_measure():
    table = {
        10: row((9, 10), (0, 10), (9, 10)),  # mean 0.6, worst 0.0
        20: row((5, 10), (5, 10), (5, 10)),  # mean 0.5, worst 0.5
        30: row((1, 10), (9, 10), (1, 10)),  # mean 0.37, worst 0.1
    }
    assert (select(table, mean), select(table, worst)) == (10, 20)
    assert select(table, Weighted({"asdiv": 0, "multi": 1, "svamp": 0})) == 30


def test_a_tie_that_floats_would_break_goes_to_the_earliest():
    # In floats 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit.
    table = {7: row((1, 10), (2, 10), (3, 10)), 5: row((3, 10), (2, 10), (1, 10))}
    assert select(table) == 5


def test_the_choice_and_its_alternatives_are_written(tmp_path):
    evaluated(
        tmp_path,
        *[(0, "gsm", "validation", 2), (0, "multi", "selection", 1), (0, "svamp", "selection", 1)],
        *[(5, "gsm", "validation", 5), (5, "multi", "selection", 9), (5, "svamp", "selection", 2)],
        *[(9, "gsm", "validation", 8), (9, "multi", "selection", 4), (9, "svamp", "selection", 4)],
    )
    assert run(run_dir=tmp_path) == {"chosen_step": 5, "validation_step": 9}
    written = json.loads((tmp_path / "reports" / "selection.json").read_text())
    assert (written["chosen_step"], written["validation_step"]) == (5, 9)
    assert written["alternatives"] == {"mean": 5, "worst": 9}
    assert written["rule"] == "distill.training.select.mean"
    assert [entry["step"] for entry in written["steps"]] == [0, 5, 9]
    assert written["steps"][1] == {
        "step": 5,
        "score": 0.55,
        "selection": {"multi": {"correct": 9, "n": 10}, "svamp": {"correct": 2, "n": 10}},
        "validation": {"gsm": {"correct": 5, "n": 10}},
    }


def test_only_the_named_sets_count(tmp_path):
    evaluated(
        tmp_path,
        *[(0, "multi", "selection", 1), (0, "words", "selection", 9)],
        *[(5, "multi", "selection", 2), (5, "words", "selection", 0)],
    )
    assert run(run_dir=tmp_path, sets=["multi"]) == {"chosen_step": 5}
    written = json.loads((tmp_path / "reports" / "selection.json").read_text())
    assert "validation_step" not in written


def test_only_the_named_validation_sets_make_the_other_choice(tmp_path):
    evaluated(
        tmp_path,
        *[(0, "multi", "selection", 1), (0, "gsm", "validation", 1), (0, "words", "validation", 9)],
        *[(5, "multi", "selection", 2), (5, "gsm", "validation", 2), (5, "words", "validation", 0)],
    )
    assert run(run_dir=tmp_path, validation_sets=["gsm"])["validation_step"] == 5


def test_general_sets_choose_nothing_and_are_told_beside_every_step(tmp_path):
    evaluated(
        tmp_path,
        *[(0, "multi", "selection", 1), (0, "gsm", "validation", 1), (0, "words", "validation", 9)],
        *[(0, "bbh", "selection", 8), (5, "bbh", "selection", 3)],
        *[(5, "multi", "selection", 2), (5, "gsm", "validation", 2), (5, "words", "validation", 0)],
    )
    chosen = run(run_dir=tmp_path, general=["words", "bbh"])
    assert chosen == {"chosen_step": 5, "validation_step": 5}
    steps = json.loads((tmp_path / "reports" / "selection.json").read_text())["steps"]
    assert steps[0]["selection"] == {"multi": {"correct": 1, "n": 10}}
    assert [entry["general"] for entry in steps] == [
        {"bbh": {"correct": 8, "n": 10}, "words": {"correct": 9, "n": 10}},
        {"bbh": {"correct": 3, "n": 10}, "words": {"correct": 0, "n": 10}},
    ]


# --- Refusals ----------------------------------------------------------------------------------


def test_what_final_left_is_never_opened(tmp_path):
    evaluated(tmp_path, (0, "multi", "selection", 1), (5, "multi", "selection", 2))
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "part-000000.parquet").write_text("no Parquet: reading it raises")
    assert run(run_dir=tmp_path)["chosen_step"] == 5


@pytest.mark.parametrize("split", ["test", "report", "train"])
def test_a_split_that_is_reported_or_trained_on_is_refused(tmp_path, split):
    evaluated(tmp_path, (0, "multi", "selection", 1), (0, "gsm", split, 1))
    with pytest.raises(UserError, match=f"expected predictions on selection and .* split {split}"):
        run(run_dir=tmp_path)
    assert not (tmp_path / "reports" / "selection.json").exists()


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(UserError, match="stage evaluate complete"):
        run(run_dir=tmp_path)


def test_a_run_without_held_out_sets_is_refused(tmp_path):
    evaluated(tmp_path, (0, "gsm", "validation", 1))
    with pytest.raises(UserError, match="expected predictions on held-out sets, got none"):
        run(run_dir=tmp_path)


def test_an_unknown_set_is_refused(tmp_path):
    evaluated(tmp_path, (0, "multi", "selection", 1))
    with pytest.raises(UserError, match="expected a set of multi, got svamp"):
        run(run_dir=tmp_path, sets=["svamp"])


def test_a_general_set_that_is_unknown_or_chosen_by_is_refused(tmp_path):
    evaluated(tmp_path, (0, "multi", "selection", 1), (0, "bbh", "selection", 1))
    with pytest.raises(UserError, match="expected a set of bbh, multi, got words"):
        run(run_dir=tmp_path, general=["words"])
    with pytest.raises(UserError, match="expected a set of multi, got bbh"):
        run(run_dir=tmp_path, general=["bbh"], sets=["bbh"])


def test_weights_that_do_not_fit_the_sets_are_refused():
    with pytest.raises(UserError, match="a weight for each of asdiv, multi, svamp"):
        select({0: row((1, 2), (1, 2), (1, 2))}, Weighted({"multi": 1}))
    for weights in ({}, {"multi": -1}, {"multi": 0}):
        with pytest.raises(ValueError, match="expected weights >= 0"):
            Weighted(weights)


def test_steps_with_different_sets_are_refused():
    one, other = {"asdiv": Accuracy(1, 2)}, {"svamp": Accuracy(1, 2)}
    for table in ({0: one, 5: other}, {0: {}}, {}):
        with pytest.raises(ValueError, match="expected the same sets at every step"):
            select(table)
