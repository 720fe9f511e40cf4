"""Overlaps of training and evaluation questions against a plain count, and the stage with them."""

import dataclasses

import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st
from test_problems import DATASETS, needs_datasets, written

from distill.core.errors import UserError
from distill.core.records import Problem
from distill.core.store import Shards
from distill.problems import contamination, problems
from distill.problems.contamination import Contamination, Index, Overlap, clean, count

STORY = "Tom has 3 red pens and buys 4 more at the shop. How many red pens has Tom now in all?"
words = st.lists(st.sampled_from(["tom", "has", "3", "4.5", "red", "pens", "and"]), min_size=1)


def asked(question, number=1, source="svamp", split="report"):
    return Problem(f"{source}/{split}/{number}", source, split, question, "7")


def trained(question, number=1):
    return asked(question, number, "gsm8k", "train")


def found(question, *held_out, **rules):
    index = Index([asked(q, n) for n, q in enumerate(held_out)], Contamination(**rules))
    return index.find(trained(question))


# --- Laws --------------------------------------------------------------------------------------


@given(words, st.sampled_from(["{}", "{}?", "  {} ", "{}..."]))
def test_marks_blanks_and_case_hide_no_question(question: list[str], dress: str):
    text = " ".join(question)
    assert found(dress.format(text.title().replace(" ", "  ")), text).kind == "exact"


def _jaccard(one, other, n):
    runs = [
        {
            tuple("0" if w[0].isdigit() else w for w in q[i : i + n])
            for i in range(max(len(q) - n, 0) + 1)
        }
        for q in (one, other)
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@given(words, st.lists(words, min_size=1, max_size=4), st.sampled_from([0.2, 0.5, 0.9]))
def test_similarity_is_the_jaccard_index_of_runs(question, held_out, least):
    texts = [" ".join(one) for one in held_out]
    rules = {"overlap_words": 1000, "run_words": 2, "similarity": least}
    overlap = found(" ".join(question), *texts, **rules)
    scores = [_jaccard(question, one, 2) for one in held_out]
    if overlap is None:
        assert max(scores) < least
    elif overlap.kind == "similar":
        assert overlap.similarity == near(max(scores), terms=4)
        assert overlap.other_id == f"svamp/report/{scores.index(max(scores))}"


@given(st.lists(words, min_size=1, max_size=6), st.sampled_from(contamination.KINDS))
def test_what_is_recorded_as_dropped_is_what_is_missing(questions, drop):
    read = [trained(" ".join(q), n) for n, q in enumerate(questions)]
    held_out = asked(" ".join(questions[0]))
    noted: list[Overlap] = []
    rules = Contamination(drop=[drop], run_words=2)
    kept = list(clean([*read, held_out], Index([held_out], rules), noted))
    gone = {o.problem_id for o in noted if o.dropped}
    assert {p.problem_id for p in read} - {p.problem_id for p in kept} == gone
    assert held_out in kept
    assert all(overlap.dropped == (overlap.kind == drop) for overlap in noted)


# --- Goldens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        (STORY.upper(), "exact"),
        (STORY.replace("3", "1,250"), "numbers"),
        (f"Ann and Tom meet. {STORY.partition('.')[0]} and sells them.", None),
        (f"On Monday {STORY[:-11]}, and what does he pay?", "overlap"),
        (STORY.replace("3", "5").replace("shop", "fair"), "similar"),
        ("How many pens has Ann?", None),
        ("?", None),
    ],
)
def test_each_kind(question: str, kind: str | None):
    overlap = found(question, "Why?", STORY)
    assert (overlap and overlap.kind) == kind
    if overlap:
        assert overlap.other_id == "svamp/report/1" and overlap.other_id in overlap.reason


def test_a_phrase_of_many_evaluation_questions_tells_of_nothing():
    phrase = "your code should pass all of these tests and return what they expect"
    held_out = [f"Task {n} {letter}: {phrase}" for n, letter in enumerate("abcdefghijkl")]
    assert found(f"Another {phrase}", *held_out[:10], similarity=1.0).kind == "overlap"
    assert found(f"Another {phrase}", *held_out, similarity=1.0) is None


def test_overlaps_are_counted_by_kind_and_set():
    overlap = Overlap("gsm8k/train/1", "asdiv/report/a", "similar", 0.6, True, "why")
    other = dataclasses.replace(overlap, other_id="svamp/selection/b", kind="exact", dropped=False)
    assert count([overlap, overlap, other]) == {
        "dropped": 2,
        "exact": 1,
        "numbers": 0,
        "overlap": 0,
        "similar": 2,
        "by_set": {"asdiv/report": {"similar": 2}, "svamp/selection": {"exact": 1}},
    }


# --- The stage ---------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    rows = [
        {"question": f"How many are {n} and {n} of colour {n * 'x'}?", "answer": 2 * n}
        for n in range(6)
    ]
    train = written(tmp_path / "train.jsonl", *rows)
    test = written(tmp_path / "test.jsonl", rows[1], {"question": "Who?", "answer": 1})
    return [problems.JsonLines(train, "train"), problems.JsonLines(test, "test")]


def test_the_stage_drops_and_records_what_an_evaluation_set_holds(tmp_path, sources):
    rules = Contamination(drop=["exact"], similarity=0.99)
    summary = problems.run(run_dir=tmp_path / "run", sources=sources, contamination=rules)
    kept = [p.problem_id for p in Shards(tmp_path / "run/problems", Problem)]
    assert kept == [*(f"train/train/{n}" for n in (1, 3, 4, 5, 6)), "test/test/1", "test/test/2"]
    (noted,) = Shards(tmp_path / "run/contamination", Overlap)
    assert noted == Overlap(
        "train/train/2", "test/test/1", "exact", 1.0, True, "the words of test/test/1"
    )
    assert summary["contaminated"]["dropped"] == summary["contaminated"]["exact"] == 1
    assert summary["also_in_train"] == 0
    assert problems.run(run_dir=tmp_path / "run", sources=sources, contamination=rules) == summary


def test_a_resumed_stage_ends_the_same(tmp_path, sources, monkeypatch):
    class Killed(BaseException):
        """Stands for the end of the process."""

    append, shards = Shards.append, []

    def dying(self, records):
        if len(shards) == 2:
            raise Killed
        shards.append(append(self, records))
        return shards[-1]

    how = {"run_dir": tmp_path / "run", "sources": sources, "contamination": Contamination()}
    how["problems_per_shard"] = 2
    monkeypatch.setattr(Shards, "append", dying)
    with pytest.raises(Killed):
        problems.run(**how)
    monkeypatch.setattr(Shards, "append", append)
    summary = problems.run(**how)
    assert summary == problems.run(**{**how, "run_dir": tmp_path / "whole"})
    both = [list(Shards(tmp_path / name / "contamination", Overlap)) for name in ("run", "whole")]
    assert both[0] == both[1] and len(both[0]) == summary["contaminated"]["dropped"]


def test_other_rules_make_another_run_and_none_keep_the_settings(tmp_path, sources):
    problems.run(run_dir=tmp_path / "run", sources=sources)
    with pytest.raises(UserError, match="problems with contamination"):
        problems.run(run_dir=tmp_path / "run", sources=sources, contamination=Contamination())


@needs_datasets
def test_gsm8k_train_has_few_overlaps_with_the_sets_that_judge_it():
    read = [p for p in problems.Gsm8k("train", DATASETS / "gsm8k/train.jsonl").problems()]
    held_out = [
        *problems.Gsm8k("test", DATASETS / "gsm8k/test.jsonl").problems(),
        *problems.Svamp(DATASETS / "svamp/SVAMP.json").problems(),
        *problems.MultiArith(DATASETS / "multiarith/MultiArith.json").problems(),
    ]
    noted: list[Overlap] = []
    kept = list(clean(read, Index(held_out, Contamination()), noted))
    assert len(read) - len(kept) == len(noted) == 4
    assert {overlap.kind for overlap in noted} == {"overlap"}


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"similarity": 0.0}, "0 < similarity <= 1, got 13, 10, 5 and 0.0"),
        ({"run_words": 0}, "of at least 1"),
        ({"drop": ["all"]}, "kinds of exact, numbers, overlap, similar, got all"),
    ],
)
def test_rules_without_meaning_are_refused(rules, match: str):
    with pytest.raises(UserError, match=match):
        Contamination(**rules)
