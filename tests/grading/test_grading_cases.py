"""Collected pairs with labels: no wrong answer is right, and few right ones are not."""

import json
import time
from pathlib import Path

import pytest

from distill import __main__ as cli
from distill.grading import grade
from distill.grading.graders import open_grader

CASES = Path(__file__).parents[3] / "shared" / "cases" / "grading"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the collected pairs are not here")
NAMES = ("pairs", "false_accepts_default", "false_accepts_math", "false_rejects_default")


def graded(grader: str) -> list[dict]:
    lines = [line for name in NAMES for line in (CASES / f"{name}.jsonl").read_text().splitlines()]
    rows = [(line, json.loads(line)) for line in dict.fromkeys(lines)]
    with open_grader(grader) as judging:
        return list(grade.grade_rows(rows, judging))


@pytest.mark.parametrize("grader", ["default", "math"])
def test_no_wrong_answer_is_right_and_at_most_one_in_twenty_right_ones_is_not(grader: str):
    rows = graded(grader)
    right = [row for row in rows if row["label"] == 1]
    assert [row for row in rows if row["label"] == 0 and row["verdict"] == "right"] == []
    missed = [row["prediction"] for row in right if row["verdict"] != "right"]
    assert len(missed) <= 0.05 * len(right), missed


@pytest.mark.parametrize("name", ["slow", "crash_huge_gold"])
def test_large_rows_are_graded_at_once(tmp_path, capsys, name: str):
    start = time.process_time()
    assert cli.main(["grade", str(CASES / f"{name}.jsonl"), f"--output={tmp_path / 'o'}"]) == 0
    assert time.process_time() - start < 2
    assert "0 right" in capsys.readouterr().out
