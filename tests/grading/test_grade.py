"""The tool that grades JSON lines: every row once, other keys kept, bad rows named, atomic."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import __main__ as cli
from distill.core.errors import UserError
from distill.grading import grade
from distill.grading.check import GRADERS
from distill.grading.graders import Judgement
from distill.grading.graders import grade as grade_text

ROWS = [
    {"prediction": "So 40 + 32 = 72.\nThe answer is 72.", "gold": "48 + 24 = 72\n#### 72", "id": 1},
    {"prediction": "The answer is 71.", "gold": 72},
    {"prediction": r"hence $\boxed{\frac{3}{2}}$", "gold": 1.5, "tags": ["a", None]},
    {"prediction": "I do not know.", "gold": r"$\boxed{2}$"},
]


def written(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_rows_come_back_in_order_with_a_verdict_and_all_their_keys(tmp_path, capsys):
    path = written(tmp_path, ROWS)
    assert cli.main(["grade", str(path), "--json"]) == 0
    graded = read(tmp_path / "rows.graded.jsonl")
    assert [row["verdict"] for row in graded] == ["right", "wrong", "right", "unparsed"]
    assert [row["extracted"] for row in graded] == ["72", "71", r"\frac{3}{2}", None]
    assert all(row["reason"] for row in graded)
    added = ("verdict", "extracted", "reason")
    assert [{k: v for k, v in row.items() if k not in added} for row in graded] == ROWS
    counts = json.loads(capsys.readouterr().out)
    assert {name: counts[name] for name in ("rows", *grade.VERDICTS)} == {
        "rows": 4,
        "right": 2,
        "wrong": 1,
        "undecided": 0,
        "unparsed": 1,
    }


def test_graded_rows_can_be_graded_again_into_themselves(tmp_path, capsys):
    path = written(tmp_path, ROWS)
    for _ in range(2):
        assert cli.main(["grade", str(path), f"--output={path}"]) == 0
    assert [row["verdict"] for row in read(path)] == ["right", "wrong", "right", "unparsed"]
    assert "4 rows: 2 right, 1 wrong, 0 undecided, 1 unparsed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "gold",
    ["72", 72, 72.0, "72.00", "x = 5\n#### 72", r"so \boxed{72}", "The answer is 72.", "$72"],
)
def test_a_gold_answer_is_found_in_whatever_holds_it(gold):
    [row] = grade.grade_rows([("row", {"prediction": "#### 72", "gold": gold})], GRADERS["default"])
    assert row["verdict"] == "right"


@given(st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_as_gold_keeps_its_value(gold):
    assert float(grade.gold_of({"gold": gold}, "row")) == float(gold)


@given(st.text(), st.sampled_from(sorted(GRADERS)))
def test_every_prediction_gets_one_of_the_verdicts(prediction, name):
    [row] = grade.grade_rows([("row", {"prediction": prediction, "gold": "1"})], GRADERS[name])
    assert row["verdict"] in grade.VERDICTS
    assert (row["extracted"] is None) == (row["verdict"] == "unparsed")


def test_the_paper_s_grader_is_reached_by_name(tmp_path, capsys):
    path = written(tmp_path, [{"prediction": "The answer is -1,200.", "gold": "200"}])
    assert cli.main(["grade", str(path), "--grader=fu2023", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["right"] == 1


def test_algebra_decides_what_the_default_leaves_undecided(tmp_path, capsys):
    path = written(tmp_path, [{"prediction": r"\\boxed{2\\sqrt{3}}", "gold": r"\\sqrt{12}"}])
    counts = []
    for name in ("default", "math"):
        assert cli.main(["grade", str(path), f"--grader={name}", "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out))
    assert (counts[0]["undecided"], counts[1]["right"]) == (1, 1)


@pytest.mark.parametrize(
    ("text", "gold", "exact", "caseless"),
    [
        ("It is. So the answer is (A).", "(A)", "right", "right"),
        ("(a)", "(A)", "wrong", "right"),
        ("So the answer is yes.", "Yes", "wrong", "right"),
        ("A", "(A)", "wrong", "wrong"),
        ("] ] >\nQ: next", "] ] >", "right", "right"),
        ("", "valid", "unparsed", "unparsed"),
    ],
)
def test_strict_graders_take_the_stated_words(text, gold, exact, caseless):
    outcomes = [GRADERS[name](text, gold).outcome for name in ("exact", "caseless")]
    assert outcomes == [exact, caseless]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_has_no_rows(tmp_path, capsys, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    assert cli.main(["grade", str(path)]) == 0
    assert (tmp_path / "empty.graded.jsonl").read_bytes() == b""
    assert capsys.readouterr().out.startswith("0 rows: 0 right")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"prediction": "7"', "JSON in UTF-8 on line 2"),
        (b"\xff\xfe", "JSON in UTF-8 on line 2"),
        (b"[" * 100_000, "JSON in UTF-8 on line 2"),
        (b'{"prediction": "7", "gold": NaN}', "JSON in UTF-8 on line 2"),
        (b"[1]", "a JSON object on line 2"),
        (b'{"gold": "7"}', '"prediction" on line 2'),
        (b'{"prediction": "7"}', '"gold" on line 2'),
        (b'{"prediction": null, "gold": "7"}', 'text as "prediction" on line 2'),
        (b'{"prediction": "7", "gold": null}', "gold on line 2"),
        (b'{"prediction": "7", "gold": true}', "gold on line 2"),
        (b'{"prediction": "7", "gold": " "}', "gold on line 2"),
        (b'{"prediction": "7", "gold": "####"}', "gold on line 2"),
    ],
)
def test_a_bad_row_is_named_in_one_line_and_nothing_is_written(tmp_path, capsys, line, told):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prediction": "7", "gold": "7"}\n' + line + b"\n")
    assert cli.main(["grade", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_cannot_be_read_or_written_is_refused(tmp_path, capsys):
    path = written(tmp_path, ROWS)
    assert cli.main(["grade", str(tmp_path / "none.jsonl")]) == 2
    assert cli.main(["grade", str(path), f"--output={tmp_path}"]) == 2
    assert cli.main(["grade", str(path), "--grader=lenient"]) == 2
    told = capsys.readouterr().err
    assert "got none" in told and "directory" in told and "a grader of default, fu2023" in told


def test_help_needs_nothing_heavy():
    code = "import sys; from distill.grading import grade\ntry: grade.main(['--help'])\n"
    code += "finally: print(sorted({'numpy', 'pyarrow', 'jax'} & set(sys.modules)))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert time.monotonic() - start < 5


# --- One text ----------------------------------------------------------------------------------


@given(st.text(), st.text(), st.sampled_from(sorted(GRADERS)))
def test_one_text_is_judged_as_its_named_grader_judges_it(text, gold, name):
    assert grade_text(text, gold, grader=name) == GRADERS[name](text, gold)


def test_a_judgement_is_a_triple_with_names():
    judgement = grade_text("The answer is 6.", "7")
    assert judgement == Judgement("wrong", "6", "gold is 7") == ("wrong", "6", "gold is 7")


def test_an_unknown_grader_is_refused():
    with pytest.raises(UserError, match=r"a grader of default, .*, got best"):
        grade_text("7", "7", grader="best")
