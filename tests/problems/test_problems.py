"""The readers against rows written out by hand, the stage against kills, and what is refused."""

import collections
import hashlib
import http.server
import itertools
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core import paths
from distill.core.errors import UserError
from distill.core.records import Problem
from distill.core.store import Shards
from distill.grading import sandbox
from distill.problems import bbh, benchmarks, download, problems
from distill.problems.builtin import arithmetic

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"
needs_datasets = pytest.mark.skipif(not DATASETS.is_dir(), reason="the public sets are not here")

words = st.text(min_size=1).filter(lambda text: text.strip() == text)
MULTIARITH = [{"iIndex": i, "sQuestion": f" Why {i}? ", "lSolutions": [39.0]} for i in range(40)]
SVAMP = [{"ID": "chal-1", "Body": "Jo has 8.5 cups", "Question": "How many?", "Answer": 8.5}]
ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet><Problem ID="nluds-0001" Grade="1" Source="x">
<Body>Seven red apples.</Body><Question>How many apples? </Question>
<Solution-Type>Addition</Solution-Type><Answer>9 (apples)</Answer><Formula>7+2=9</Formula>
</Problem></ProblemSet></Machine-Reading-Corpus-File>"""


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


# --- Readers -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_a_users_rows_come_back_as_written(tmp_path_factory, rows: list[tuple[str, str]]):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    written(path, *({"question": q, "answer": a} for q, a in rows))
    read = list(problems.JsonLines(path, "train").problems())
    assert [(problem.question, problem.answer) for problem in read] == rows
    assert [problem.problem_id for problem in read] == [
        f"mine/train/{number}" for number in range(1, len(rows) + 1)
    ]


def test_a_users_row_may_have_an_id_a_chain_and_a_number_as_answer(tmp_path):
    path = written(
        tmp_path / "mine.jsonl",
        {"question": "What is 4 + 4?", "answer": 8, "id": "a7", "chain": "4 + 4 = 8."},
        "",
        {"question": "Half of 1?", "answer": 0.5, "chain": "1 / 2.\nThe answer is 0.5", "x": 1},
    )
    assert list(problems.JsonLines(path, "test", name="sums").problems()) == [
        Problem(
            "sums/test/a7", "sums", "test", "What is 4 + 4?", "8", "4 + 4 = 8.\nThe answer is 8"
        ),
        Problem("sums/test/3", "sums", "test", "Half of 1?", "0.5", "1 / 2.\nThe answer is 0.5"),
    ]
    assert len(list(problems.JsonLines(path, "test", n=1).problems())) == 1


def test_gsm8k_loses_its_annotations_and_ends_in_the_answer(tmp_path):
    solution = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    path = written(tmp_path / "g.jsonl", {"question": "How many clips?", "answer": solution})
    assert list(problems.Gsm8k("test", path).problems()) == [
        Problem(
            "gsm8k/test/1",
            "gsm8k",
            "test",
            "How many clips?",
            "72",
            "She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe answer is 72",
        )
    ]


def test_train_and_validation_share_the_train_file_and_no_problem(tmp_path):
    rows = [{"question": f"Why {i}?", "answer": f"#### {i}"} for i in range(200)]
    path = written(tmp_path / "g.jsonl", *rows)
    read = {s: list(problems.Gsm8k(s, path).problems()) for s in ("train", "validation")}
    asked = {split: {p.question for p in found} for split, found in read.items()}
    assert not asked["train"] & asked["validation"]
    assert len(asked["train"] | asked["validation"]) == 200
    assert 1 <= len(asked["validation"]) <= 25


def test_multiarith(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(MULTIARITH))
    read = list(problems.MultiArith(path).problems())
    assert {problem.question for problem in read} == {f"Why {i}?" for i in range(40)}
    assert {problem.answer for problem in read} == {"39"}
    halves = collections.Counter(problem.split for problem in read)
    assert set(halves) == {"selection", "report"}
    few = list(problems.MultiArith(path, n=3).problems())
    assert collections.Counter(p.split for p in few) == {"selection": 3, "report": 3}
    assert set(few) < set(read)
    assert {p.split for p in problems.MultiArith(path, splits=["report"]).problems()} == {"report"}


def test_svamp_and_asdiv(tmp_path):
    svamp, asdiv = tmp_path / "s.json", tmp_path / "a.xml"
    svamp.write_text(json.dumps(SVAMP))
    asdiv.write_text(ASDIV)
    (one,) = problems.Svamp(svamp).problems()
    (other,) = problems.AsDiv(asdiv).problems()
    assert (one.question, one.answer) == ("Jo has 8.5 cups. How many?", "8.5")
    assert (other.question, other.answer) == ("Seven red apples. How many apples?", "9 (apples)")
    assert other.problem_id == f"asdiv/{other.split}/nluds-0001"


MATH = [
    {"problem": "What is\n$1 + 1$?", "answer": "2", "solution": "So 2."},
    {"prompt": f"Why?\n{'Please reason step by step, and put your final answer within '}"
     "\\boxed{}.", "answer": r"\frac{1}{2}"},
]  # fmt: skip
MBPP = {
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n  return a + b\r\n",
    "task_id": 11,
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(one, 2) == 3 "],
    "challenge_test_list": [],
}


def test_math_500_keeps_its_lines_and_asks_the_problem_alone(tmp_path):
    read = list(problems.Math500(written(tmp_path / "m.jsonl", *MATH)).problems())
    assert [(p.question, p.answer) for p in read] == [
        ("What is\n$1 + 1$?", "2"),
        ("Why?", r"\frac{1}{2}"),
    ]
    assert [p.problem_id.rpartition("/")[2] for p in read] == ["1", "2"]


def test_mbpp_shows_its_asserts_and_keeps_them_to_grade_with(tmp_path):
    tasks = [{**MBPP, "task_id": task} for task in (1, 10, 11, 510, 511, 600, 601, 974)]
    tasks[2]["test_setup_code"] = "one = 1\r\n"
    path = written(tmp_path / "m.jsonl", *tasks)
    found = {s: list(problems.Mbpp(s, path).problems()) for s in ("train", "validation", "test")}
    ids = {split: [p.problem_id.split("/")[2] for p in read] for split, read in found.items()}
    assert ids == {"train": ["601", "974"], "validation": ["511", "600"], "test": ["11", "510"]}
    (first,) = problems.Mbpp("test", path, n=1).problems()
    asserts = "assert add(1, 2) == 3\nassert add(one, 2) == 3"
    assert first.question == (
        f"Write a function to add. Your code should pass these tests:\n\n{asserts}"
    )
    assert first.answer == "def add(a, b):\n  return a + b"
    assert first.tests == f"one = 1\n{asserts}"


BOOLEAN = {
    "canary": "x",
    "examples": [{"input": f"not {i} is", "target": "True"} for i in range(9)],
}
PROMPT = """A warning.
-----
Evaluate.

Q: not True is
A: Let's think step by step.
It is not. So the answer is False.

Q: Options:
(A) 1

is
A: Let's think step by step. So the answer is (A)."""


@pytest.fixture
def bbh_folder(tmp_path):
    (tmp_path / "cot-prompts").mkdir()
    (tmp_path / "navigate.json").write_text(json.dumps(BOOLEAN))
    (tmp_path / "cot-prompts/navigate.txt").write_text(PROMPT)
    return tmp_path


def test_bbh_is_read_by_subtask_and_asked_with_its_published_prompt(bbh_folder):
    read = list(problems.BigBenchHard(bbh_folder, tasks=["navigate"]).problems())
    assert {problem.question for problem in read} == {f"not {i} is" for i in range(9)}
    few = list(problems.BigBenchHard(bbh_folder, n=2, tasks=["navigate"]).problems())
    assert collections.Counter(p.split for p in few) == {"selection": 2, "report": 2}
    (asked,) = (p for p in read if p.problem_id.endswith("navigate/4"))
    published = PROMPT.partition("-----\n")[2]
    step = "Let's think step by step."
    shown = bbh.PublishedPrompt(True, bbh_folder)
    assert shown(asked) == f"{published}\n\nQ: not 3 is\nA: {step}"
    renamed = next(
        problems.Named(problems.BigBenchHard(bbh_folder, tasks=["navigate"]), "x").problems()
    )
    assert renamed.source == "x" and shown(renamed).startswith("Evaluate.")
    assert bbh.PublishedPrompt(False, bbh_folder)(asked) == (
        "Evaluate.\n\nQ: not True is\nA: False\n\nQ: Options:\n(A) 1\n\nis\nA: (A)\n\n"
        "Q: not 3 is\nA:"
    )


def test_what_is_not_of_bbh_is_refused(bbh_folder):
    with pytest.raises(UserError, match=r"a subtask of boolean_expressions, .*got juggling"):
        problems.BigBenchHard(bbh_folder, tasks=["juggling"])
    other = Problem("svamp/report/1", "svamp", "report", "Why?", "8")
    with pytest.raises(UserError, match="a subtask of boolean_expressions"):
        bbh.PublishedPrompt(True, bbh_folder)(other)
    (bbh_folder / "cot-prompts/navigate.txt").write_text(PROMPT.replace("answer is (A)", ""))
    bbh.examples_of.cache_clear()
    with pytest.raises(UserError, match=r"a prompt of BBH in .*; use the public file"):
        bbh.examples_of(bbh_folder / "cot-prompts/navigate.txt")


@needs_datasets
def test_every_published_prompt_comes_back_as_it_is():
    for problem in problems.BigBenchHard(DATASETS / "bbh", n=1).problems():
        task = problem.problem_id.split("/")[2]
        text = (DATASETS / f"bbh/cot-prompts/{task}.txt").read_text().partition("-----\n")[2]
        assert bbh.PublishedPrompt(True, DATASETS / "bbh")(problem).startswith(text.strip())


@needs_datasets
def test_every_assert_of_mbpp_can_be_read():
    read = problems.Mbpp("test", DATASETS / "mbpp/mbpp.jsonl").problems()
    assert all(sandbox.split_asserts(problem.tests) for problem in read)


@needs_datasets
def test_the_public_sets_are_read_whole():
    sources = [
        *(problems.Gsm8k(s, DATASETS / "gsm8k/train.jsonl") for s in ("train", "validation")),
        problems.Gsm8k("test", DATASETS / "gsm8k/test.jsonl"),
        problems.MultiArith(DATASETS / "multiarith/MultiArith.json"),
        problems.AsDiv(DATASETS / "asdiv/ASDiv.xml"),
        problems.Svamp(DATASETS / "svamp/SVAMP.json"),
        problems.Math500(DATASETS / "math500/math500.jsonl"),
        problems.BigBenchHard(DATASETS / "bbh"),
        *(problems.Mbpp(s, DATASETS / "mbpp/mbpp.jsonl") for s in ("train", "validation", "test")),
    ]
    read = list(problems.distinct(p for source in sources for p in source.problems()))
    counts = collections.Counter(problem.source for problem in read)
    word_problems = {"gsm8k": 7473 + 1319, "multiarith": 600, "asdiv": 2305, "svamp": 1000}
    assert counts == {**word_problems, "math500": 500, "bbh": 6511, "mbpp": 964}
    halves = collections.Counter((p.source, p.split) for p in read if p.split in benchmarks.HALVES)
    assert all(0.45 < n / counts[source] < 0.55 for (source, _), n in halves.items())
    assert not any("<<" in problem.chain for problem in read if problem.chain)


@needs_datasets
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k_train.jsonl", "gsm8k/train.jsonl"),
        ("gsm8k_test.jsonl", "gsm8k/test.jsonl"),
        ("multiarith.json", "multiarith/MultiArith.json"),
        ("asdiv.xml", "asdiv/ASDiv.xml"),
        ("svamp.json", "svamp/SVAMP.json"),
        ("mbpp.jsonl", "mbpp/mbpp.jsonl"),
        *((f"bbh/{task}.json",) * 2 for task in bbh.TASKS),
        *((f"bbh/cot-prompts/{task}.txt",) * 2 for task in bbh.TASKS),
    ],
)
def test_the_source_list_has_the_digests_of_the_public_files(name: str, file: str):
    listed = json.loads(paths.shipped("data/sources.json").read_text())[name]
    digest = hashlib.sha256((DATASETS / file).read_bytes()).hexdigest()
    assert listed["sha256"] == digest


def test_the_general_families_are_one_set_of_equal_parts():
    read = list(problems.General("validation", 3).problems())
    parts = collections.Counter(problem.problem_id.split("/")[2] for problem in read)
    assert parts == dict.fromkeys(arithmetic.GENERAL, 3)
    assert {(p.source, p.split) for p in read} == {("general", "validation")}
    assert len({p.problem_id for p in read}) == 15 and all(p.chain for p in read)


# --- The stage ---------------------------------------------------------------------------------

SOURCES = [
    problems.BuiltIn("gsm", "train", 30),
    problems.BuiltIn("gsm", "test", 10),
    problems.BuiltIn("multi", "selection", 10),
]


def test_the_stage_writes_all_problems_in_order_and_counts_them(tmp_path):
    summary = problems.run(run_dir=tmp_path, sources=SOURCES)
    stored = list(Shards(tmp_path / "problems", Problem))
    assert stored == [problem for source in SOURCES for problem in source.problems()]
    assert summary == {
        "problems": 50,
        "by_split": {"gsm/test": 10, "gsm/train": 30, "multi/selection": 10},
        "also_in_train": 0,
    }


def test_a_killed_stage_goes_on_and_a_finished_one_does_nothing(tmp_path, monkeypatch):
    class Killed(BaseException):
        """Stands for the end of the process."""

    append, shards = Shards.append, itertools.count()

    def dying(self, records):
        if next(shards) == 2:
            raise Killed
        return append(self, records)

    monkeypatch.setattr(Shards, "append", dying)
    with pytest.raises(Killed):
        problems.run(run_dir=tmp_path, sources=SOURCES, problems_per_shard=12)
    assert len(Shards(tmp_path / "problems", Problem)) == 24
    monkeypatch.setattr(Shards, "append", append)
    summary = problems.run(run_dir=tmp_path, sources=SOURCES)
    stored = list(Shards(tmp_path / "problems", Problem))
    assert stored == [problem for source in SOURCES for problem in source.problems()]
    assert problems.run(run_dir=tmp_path, sources=SOURCES) == summary


def test_questions_that_are_also_trained_on_are_counted(tmp_path):
    rows = [{"question": f"Why {i}?", "answer": i} for i in range(4)]
    train = written(tmp_path / "train.jsonl", *rows[:3])
    test = written(tmp_path / "test.jsonl", {"question": "why  1?", "answer": 1}, rows[3])
    sources = [problems.JsonLines(train, "train"), problems.JsonLines(test, "test")]
    assert problems.run(run_dir=tmp_path / "run", sources=sources)["also_in_train"] == 1


def test_an_id_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a problem_id once, got gsm/train/0 twice"):
        problems.run(run_dir=tmp_path, sources=[SOURCES[0], SOURCES[0]])


def test_a_source_without_problems_is_refused(tmp_path):
    path = written(tmp_path / "empty.jsonl", "")
    with pytest.raises(UserError, match=r"expected problems from JsonLines\(.*got none"):
        problems.run(run_dir=tmp_path / "run", sources=[problems.JsonLines(path, "train")])


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"question": "Why?"}', "a text under 'answer' in line 2 of .*got none; add it or drop"),
        ('{"question": "Why?", "answer": " "}', "'answer' in line 2 of .*got ' '"),
        ('{"question": 1, "answer": true}', "'answer' in line 2 of .*got True"),
        ('{"answer": 1}', "'question' in line 2 of .*got none"),
        ('{"question": "Why?", "answer": 1, "chain": []}', r"'chain' in line 2 of .*got \[\]"),
        ('{"question": "Why?"', "JSON in line 2 of .*; correct"),
        ("[1]", "a JSON object in line 2 of .*got list"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, line: str, match: str):
    path = written(tmp_path / "mine.jsonl", {"question": "Why?", "answer": "8"}, line)
    with pytest.raises(UserError, match=match):
        list(problems.JsonLines(path, "train").problems())


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a file .*none\.jsonl, got none; correct"):
        list(problems.JsonLines(tmp_path / "none.jsonl", "train").problems())
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(UserError, match=r"expected UTF-8 in .*latin\.jsonl.*convert"):
        list(problems.JsonLines(tmp_path / "latin.jsonl", "train").problems())


@pytest.mark.parametrize(
    ("source", "content", "match"),
    [
        (problems.MultiArith, "[{}]", "the file of multiarith, got a row .*iIndex"),
        (problems.MultiArith, "{}", "a list in .*got dict"),
        (problems.Math500, '{"problem": "Why?"}', "got a row .*answer"),
        (problems.Svamp, "[", "JSON in .*correct or restore"),
        (problems.Svamp, '[{"ID": "1", "Body": "B", "Question": "Q"}]', "got a row .*Answer"),
        (problems.AsDiv, "<a>", "expected XML in .*use the public file"),
        (problems.AsDiv, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "XML without a DOCTYPE"),
        (problems.AsDiv, '<a><Problem ID="1"/></a>', "a row that cannot be read"),
    ],
)
def test_a_bad_public_file_is_refused(tmp_path, source: type, content: str, match: str):
    path = tmp_path / "bad"
    path.write_text(content)
    with pytest.raises(UserError, match=match):
        list(source(path).problems())


def test_a_gsm8k_row_without_its_mark_is_refused(tmp_path):
    path = written(tmp_path / "g.jsonl", {"question": "Why?", "answer": "8"})
    with pytest.raises(UserError, match="ending in `#### answer`, got line 1 of"):
        list(problems.Gsm8k("test", path).problems())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: problems.BuiltIn("gsmm", "train", 1), "a family of gsm, .*got gsmm"),
        (lambda: problems.BuiltIn("svamp", "train", 1), "a split of selection, report, got train"),
        (lambda: problems.JsonLines("x", "dev"), "a split of train, .*got dev"),
        (lambda: problems.General("report", 1), "a split of train, validation, test, got report"),
        (lambda: problems.Mbpp("report"), "a split of test, validation, train, got report"),
        (lambda: problems.Gsm8k("report"), "a split of train, validation, test, got report"),
    ],
)
def test_an_unknown_name_is_refused(make, match: str):
    with pytest.raises(UserError, match=match):
        make()


# --- Downloads ---------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve SVAMP from this machine and list it with its digest; return the served file."""
    folder = tmp_path / "served"
    folder.mkdir()
    file = folder / "svamp.json"
    file.write_text(json.dumps(SVAMP))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    listed = {
        "svamp.json": {
            "address": f"http://127.0.0.1:{server.server_port}/svamp.json",
            "licence": "MIT",
            "citation": "here",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    }
    (tmp_path / "sources.json").write_text(json.dumps(listed))
    monkeypatch.setattr(download.paths, "shipped", lambda name: tmp_path / Path(name).name)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    yield file
    server.shutdown()
    server.server_close()


def test_a_public_set_is_fetched_once_and_kept(served, tmp_path):
    (fetched,) = problems.Svamp().problems()
    served.unlink()
    assert list(problems.Svamp().problems()) == [fetched]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["svamp.json"]


def test_other_content_is_refused_and_not_kept(served, tmp_path):
    served.write_text("[]")
    with pytest.raises(UserError, match=r"expected sha256 .*serves; give a path of your own"):
        list(problems.Svamp().problems())
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_refused(served, tmp_path):
    list(problems.Svamp().problems())
    (tmp_path / "cache/svamp.json").write_text("[")
    with pytest.raises(UserError, match=r"expected sha256 .*cache/svamp\.json; remove it"):
        list(problems.Svamp().problems())


def test_an_address_without_an_answer_is_refused(served):
    served.unlink()
    with pytest.raises(UserError, match=r"expected an answer from http.*404.*give its path"):
        list(problems.Svamp().problems())
