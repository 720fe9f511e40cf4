import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.records import FINISH_REASONS, OUTCOMES, Problem, Trace, Verdict
from distill.core.store import Shards, Stage, manifest
from distill.grading.check import GRADERS, check, run

PROBLEM = Problem("p/0", "p", "train", "How many?", "1,200")


def trace(text, finish_reason="stop", sample=0, problem_id="p/0"):
    none, ends = np.empty(0, np.float32), np.empty(0, np.int32)
    rest = (np.nan, finish_reason, "m", 0)
    return Trace(problem_id, sample, "Q", text, (), none, (), none, ends, *rest)


def verdict(text, finish_reason="stop", grader="default"):
    (found,) = check([trace(text, finish_reason)], [PROBLEM], GRADERS[grader])
    return found


@given(
    st.lists(st.tuples(st.text(), st.sampled_from(FINISH_REASONS)), max_size=5),
    st.sampled_from(sorted(GRADERS)),
)
def test_every_trace_gets_one_verdict_with_a_reason(texts, grader):
    traces = [trace(text, reason, sample) for sample, (text, reason) in enumerate(texts)]
    found = list(check(traces, [PROBLEM], GRADERS[grader]))
    assert [v.sample for v in found] == [t.sample for t in traces]
    assert all(v.reason and v.outcome in OUTCOMES for v in found)
    ended = [t.finish_reason == "stop" for t in traces]
    judged = [v.outcome in ("right", "wrong", "unparsed", "undecided") for v in found]
    assert all(not end or judge for end, judge in zip(ended, judged, strict=True))


@pytest.mark.parametrize(
    ("text", "finish_reason", "outcome", "answer"),
    [
        ("So.\nThe answer is $1200.", "stop", "right", "$1200"),
        ("So.\nThe answer is 12.", "stop", "wrong", "12"),
        ("I do not know.", "stop", "unparsed", None),
        ("The answer is 1200", "length", "truncated", None),
        ("The answer is 1200", "content_filter", "filtered", None),
        ("The answer is 1200", "error", "undecided", None),
    ],
)
def test_an_outcome_follows_from_text_and_end(text, finish_reason, outcome, answer):
    found = verdict(text, finish_reason)
    assert (found.outcome, found.answer) == (outcome, answer)


def test_the_paper_s_grader_knows_no_comma_and_no_sign():
    assert verdict("The answer is 200", grader="fu2023").outcome == "right"
    assert verdict("The answer is 200").outcome == "wrong"
    assert verdict("The answer is -1,200.", grader="fu2023").outcome == "right"


def test_a_grader_that_cannot_tell_leaves_it_undecided():
    grader = type(GRADERS["default"])(lambda text: text, lambda answer, gold: None)
    (found,) = check([trace("x")], [PROBLEM], grader)
    assert (found.outcome, found.answer) == ("undecided", "x")


def ready(run_dir, traces):
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        Shards(run_dir / "problems", Problem).append([PROBLEM])
        stage.finish(problems=1)
    with Stage.open(run_dir, "harvest", settings={}, inputs=["problems"]) as stage:
        Shards(run_dir / "traces", Trace).append(traces)
        stage.finish(traces=len(traces))
    return run_dir


TEXTS = ["The answer is 1200", "The answer is 3", "Well", "The answer is 1,200."]


def test_a_run_counts_outcomes_and_its_yield_as_a_pair(tmp_path):
    ready(tmp_path, [trace(text, sample=n) for n, text in enumerate(TEXTS)])
    summary = run(run_dir=tmp_path)
    assert summary == {
        "verdicts": 4,
        "outcomes": {"right": 2, "unparsed": 1, "wrong": 1},
        "yield": {"correct": 2, "n": 4},
    }
    assert run(run_dir=tmp_path) == summary == manifest(tmp_path, "check")["summary"]
    assert len(Shards(tmp_path / "verdicts", Verdict)) == 4


def test_a_run_goes_on_after_the_verdicts_that_are_there(tmp_path):
    ready(tmp_path, [trace(text, sample=n) for n, text in enumerate(TEXTS)])
    Shards(tmp_path / "verdicts", Verdict).append([Verdict("p/0", 1, "wrong", "3", "kept")])
    assert run(run_dir=tmp_path)["verdicts"] == 4
    found = {v.sample: v for v in Shards(tmp_path / "verdicts", Verdict)}
    assert sorted(found) == [0, 1, 2, 3] and found[1].reason == "kept"


RUN = """
import os, signal, sys
from distill.core import store
from distill.grading import check
sync, calls = store.sync, []
def killed(path):
    calls.append(path)
    if path.name.startswith(".part") and sum(p.name.startswith(".part") for p in calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
store.sync = killed
check.run(run_dir=sys.argv[1], shard_verdicts=1)
"""


def test_a_killed_run_goes_on_without_hole_or_duplicate(tmp_path):
    ready(tmp_path, [trace(text, sample=n) for n, text in enumerate(TEXTS)])
    process = subprocess.run([sys.executable, "-c", RUN, tmp_path], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(Shards(tmp_path / "verdicts", Verdict)) == 2
    assert run(run_dir=tmp_path)["outcomes"] == {"right": 2, "unparsed": 1, "wrong": 1}
    assert sorted(v.sample for v in Shards(tmp_path / "verdicts", Verdict)) == [0, 1, 2, 3]


def test_two_graders_are_counted_beside_each_other(tmp_path):
    ready(tmp_path, [trace(text, sample=n) for n, text in enumerate(TEXTS)])
    summary = run(run_dir=tmp_path, beside="fu2023")
    assert summary["outcomes_by_fu2023"] == {
        "right": {"right": 1, "wrong": 1},
        "unparsed": {"unparsed": 1},
        "wrong": {"wrong": 1},
    }


def test_an_unknown_grader_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="a grader of default, fu2023, exact, caseless, math, mbpp, got lenient"
    ):
        run(run_dir=tmp_path, grader="lenient")
    with pytest.raises(UserError, match="got strict"):
        run(run_dir=tmp_path, beside="strict")


def test_a_trace_without_its_problem_is_refused():
    with pytest.raises(UserError, match="the problem of every trace, got a trace of q/9"):
        list(check([trace("x", problem_id="q/9")], [PROBLEM], GRADERS["default"]))


def test_an_unfinished_harvest_is_refused(tmp_path):
    with pytest.raises(UserError, match="stage problems complete"):
        run(run_dir=tmp_path)
