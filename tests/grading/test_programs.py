"""Programs through the check stage and the grading tool; test_sandbox has more cheats."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_check import ready, trace

from distill import __main__ as cli
from distill.core.errors import UserError
from distill.core.records import Problem, Verdict
from distill.core.store import Shards
from distill.grading import check, graders, programs
from distill.grading.asserts import split_tests

TESTS = "one = 1\nassert add(one, 2) == 3\nassert add(-1, 1) == 0"
PROBLEM = Problem(
    "mbpp/train/7", "mbpp", "train", "Add.", "def add(a, b): return a + b", tests=TESTS
)
RIGHT = "def add(a, b):\n    return a + b"
CANDIDATES = {
    f"Here it is:\n```python\n{RIGHT}\n```\nIt adds.": "right",
    f"[BEGIN]\n{RIGHT}\n[DONE]\nQ: another": "right",
    f"{RIGHT}\n": "right",
    "def add(a, b):\n    return a - b": "wrong",
    "I would add them.": "wrong",
    "": "unparsed",
    "```python\n```": "unparsed",
    # An object that is equal to everything, an early exit, and the expected values from a frame.
    "class E:\n    def __eq__(self, x): return True\ndef add(a, b): return E()": "wrong",
    "import os\ndef add(a, b): os._exit(0)": "wrong",
    "import sys\ndef add(a, b): return sys._getframe(1).f_locals.get('expected')": "wrong",
}


def test_the_check_stage_runs_programs_and_says_why(tmp_path):
    texts = list(CANDIDATES)
    ready(
        tmp_path, [trace(t, sample=n, problem_id=PROBLEM.problem_id) for n, t in enumerate(texts)]
    )
    Shards(tmp_path / "problems", Problem).append([PROBLEM])
    summary = check.run(run_dir=tmp_path, grader="mbpp", beside="default")
    found = sorted(Shards(tmp_path / "verdicts", Verdict), key=lambda verdict: verdict.sample)
    assert [verdict.outcome for verdict in found] == list(CANDIDATES.values())
    assert found[0].answer == RIGHT and found[0].reason == "2 values as expected"
    assert found[3].reason == "add(one, 2) gave -1, expected 3"
    assert summary["outcomes"] == {"right": 3, "unparsed": 2, "wrong": 5}
    assert sum(summary["outcomes_by_default"]["right"].values()) == 3


def test_the_tool_grades_rows_with_tests(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"prediction": text, "tests": TESTS} for text in CANDIDATES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["grade", str(path), "--grader=mbpp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["right"] == 3
    path.write_text(json.dumps({"prediction": RIGHT, "gold": "8"}))
    assert cli.main(["grade", str(path), "--grader=mbpp"]) == 2
    assert '"tests" on line 1' in capsys.readouterr().err


def test_tests_of_any_depth_end_in_one_line_that_names_the_row(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    tests = "assert add(1, 2) == " + "-" * 50_000 + "3"
    path.write_text(json.dumps({"prediction": RIGHT, "tests": tests}))
    assert cli.main(["grade", str(path), "--grader=mbpp"]) == 2
    line = r"distill: expected tests in Python on line 1 of rows\.jsonl, got [^\n]{1,200}; .*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.text("assert f()[]{}==1,'\n :not-and", max_size=60).map("assert ".__add__)
    | st.builds(
        lambda a, n: "assert f() == " + a * n, st.sampled_from("-([{~"), st.integers(1, 9999)
    )
)
def test_any_text_is_split_or_refused_as_a_value(text):
    try:
        split_tests(text)
    except ValueError as error:
        assert "expected" in str(error)


def test_what_confines_programs_is_in_the_counts_and_in_the_manifest(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prediction": RIGHT, "tests": TESTS}))
    assert cli.main(["grade", str(path), "--grader=mbpp", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    ready(tmp_path, [trace(RIGHT, problem_id=PROBLEM.problem_id)])
    Shards(tmp_path / "problems", Problem).append([PROBLEM])
    summary = check.run(run_dir=tmp_path, grader="mbpp")
    for found in (counted, summary):
        assert "no new privileges" in found["protections"] and found["unguarded"] == []


def test_a_problem_without_tests_is_refused():
    plain = Problem("p/0", "p", "train", "How many?", "8")
    with pytest.raises(UserError, match="expected tests with p/0, got none"):
        list(check.check([trace(RIGHT)], [plain], programs.Programs(None)))


@pytest.mark.parametrize(
    ("tests", "match"),
    [
        ("assert add(1,", "expected tests in Python, got SyntaxError at 'assert add"),
        ("assert add(1, 2) == " + "-" * 50_000 + "3", "got MemoryError at 'assert add"),
        ("assert add(1, 2) == " + "(" * 5_000 + "3" + ")" * 5_000, "expected tests in Python"),
        ("assert add(1, 2) == " + "[" * 90 + "3" + "]" * 90, "50 levels of nesting"),
        ("assert add(1, 2) == " + "+".join("1" * 20_000), "expected tests in Python"),
        ("assert add(1, 2) == f" + "(1)" * 20_000, "expected tests in Python"),
        ("assert add(1, 2) == " + "9" * 5_000, "expected tests in Python"),
        ("assert add(1, 2) == 3\0", "expected tests in Python"),
        ("assert add('\ud800', 2) == 3", "expected tests in Python"),
        ("x = 1\n" * 200_000, "got 1200000 characters, over 1048576"),
        ("x = 1", "tests with an assert, got x = 1"),
        ("assert add(1, 2) == 1 / 0", "asserts that can be read"),
    ],
)
def test_tests_that_cannot_be_read_are_refused(tests: str, match: str):
    with graders.open_grader("mbpp") as judge, pytest.raises(UserError, match=match):
        judge(RIGHT, tests)
