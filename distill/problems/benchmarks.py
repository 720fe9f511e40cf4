"""Read the public sets, from a file or from their addresses; what is made of them is not its part.

The held-out sets are cut into a selection and a report half by a hash of each problem's own number,
so the halves never change. GSM8K has no validation split; about a twentieth of its train problems
is set aside as one in the same way. MBPP keeps the splits that its authors published.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.records import Problem
from distill.problems import rowfiles
from distill.problems.download import fetch

HALVES = ("selection", "report")
_VALIDATION = 20
_CALCULATION = re.compile(r"<<[^<>]*>>")
# What some copies of MATH-500 ask after each problem.
_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclasses.dataclass(frozen=True)
class Gsm8k:
    """GSM8K (Cobbe et al. 2021) with its chains; calculator annotations are taken out.

    Attributes:
        split: train, validation (cut from the train file) or test.
        path: the split's file; by default it is fetched.
        n: how many problems at most, from the top.
    """

    split: str
    path: str | Path | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        choose(self.split, ("train", "validation", "test"))
        require_count(self.n)

    def input_files(self) -> tuple[Path, ...]:
        """Return the user's file; a fetched one is known by its listed sha256."""
        return _given(self.path)

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by line from 1."""
        file = "test" if self.split == "test" else "train"
        path = _file(self.path, f"gsm8k_{file}.jsonl")
        yield from islice(self._split(path), self.n)

    def _split(self, path: Path) -> Iterator[Problem]:
        for number, row in rowfiles.rows(path):
            aside = _hashed(f"gsm8k/{number}", _VALIDATION) == 0
            if self.split == "test" or aside == (self.split == "validation"):
                yield self._problem(number, row, f"line {number} of {path}")

    def _problem(self, number: int, row: dict[str, Any], where: str) -> Problem:
        solution = _CALCULATION.sub("", rowfiles.text(row, "answer", where))
        steps, mark, answer = solution.rpartition("####")
        if not mark or not answer.strip():
            raise UserError("a solution ending in `#### answer`", where, "use GSM8K's own file")
        chain = f"{steps.strip()}\nThe answer is {answer.strip()}".lstrip()
        question = rowfiles.text(row, "question", where)
        key = f"gsm8k/{self.split}/{number}"
        return Problem(key, "gsm8k", self.split, question, answer.strip(), chain)


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """What every held-out set is given: a file, or none to fetch it, and how much of which half."""

    path: str | Path | None = None
    n: int | None = None
    splits: Sequence[str] = HALVES

    def __post_init__(self) -> None:
        require_count(self.n)

    def input_files(self) -> tuple[Path, ...]:
        """Return the user's file; a fetched one is known by its listed sha256."""
        return _given(self.path)


@dataclasses.dataclass(frozen=True)
class MultiArith(_HeldOut):
    """MultiArith (Roy and Roth 2015), a held-out set.

    Attributes:
        path: the JSON file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        rows = rowfiles.json_list(_file(self.path, "multiarith.json"))
        triples = (
            (str(r["iIndex"]), _line(r["sQuestion"]), rowfiles.plain(r["lSolutions"][0]))
            for r in rows
        )
        return halves("multiarith", triples, self.splits, self.n)


@dataclasses.dataclass(frozen=True)
class AsDiv(_HeldOut):
    """ASDiv (Miao et al. 2020), a held-out set; its answers keep their units, as `9 (apples)`.

    Attributes:
        path: the XML file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        root = rowfiles.xml_root(_file(self.path, "asdiv.xml"))
        triples = (
            (
                row.attrib["ID"],
                _line(f"{row.findtext('Body', '')} {row.findtext('Question', '')}"),
                row.findtext("Answer", ""),
            )
            for row in root.iter("Problem")
        )
        return halves("asdiv", triples, self.splits, self.n)


@dataclasses.dataclass(frozen=True)
class Svamp(_HeldOut):
    """SVAMP (Patel et al. 2021), a held-out set; body and question are joined as in Fu et al. 2023.

    Attributes:
        path: the JSON file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        rows = rowfiles.json_list(_file(self.path, "svamp.json"))
        triples = (
            (r["ID"], _line(f"{r['Body']}. {r['Question']}"), rowfiles.plain(r["Answer"]))
            for r in rows
        )
        return halves("svamp", triples, self.splits, self.n)


@dataclasses.dataclass(frozen=True)
class Math500(_HeldOut):
    r"""MATH-500, a held-out set: 500 problems of MATH, with answers in LaTeX.

    Attributes:
        path: the file of JSON lines; by default it is fetched. Rows hold `problem` and `answer`, or
            `prompt`, which ends in an instruction, instead of `problem`.
        n: how many problems of each half at most.
        splits: which halves.

    Source: Hendrycks et al. 2021; the split of Lightman et al. 2023, which held 500 out of MATH's
    test problems.
    """

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by line from 1."""
        path = _file(self.path, "math500.jsonl")
        triples = (
            (str(number), _math_question(r), r["answer"]) for number, r in rowfiles.rows(path)
        )
        return halves("math500", triples, self.splits, self.n)


def _math_question(row: dict[str, Any]) -> str:
    return row["problem"] if "problem" in row else row["prompt"].removesuffix(_INSTRUCTION)


@dataclasses.dataclass(frozen=True)
class Mbpp:
    """MBPP, tasks for Python; the gold answer is a program, and asserts decide of others.

    The question ends in the asserts, which give the function's name, as in the paper.

    Attributes:
        split: train, validation or test, as published; the ten tasks of its prompt are in none.
        path: the file of JSON lines; by default it is fetched.
        n: how many tasks at most, from the top.

    Source: Austin et al. 2021, section 2.1 and the splits of its public code.
    """

    split: str
    path: str | Path | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        choose(self.split, tuple(_MBPP_TASKS))
        require_count(self.n)

    def input_files(self) -> tuple[Path, ...]:
        """Return the user's file; a fetched one is known by its listed sha256."""
        return _given(self.path)

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by their task_id."""
        path = _file(self.path, "mbpp.jsonl")
        tasks = (self._problem(row, number, path) for number, row in rowfiles.rows(path))
        wanted = _MBPP_TASKS[self.split]
        chosen = (problem for task, problem in tasks if task in wanted)
        return islice(chosen, self.n)

    def _problem(self, row: dict[str, Any], number: int, path: Path) -> tuple[int, Problem]:
        try:
            task = int(row["task_id"])
            asserts = "\n".join(test.strip() for test in row["test_list"])
            setup, code = (_unix(row[key]) for key in ("test_setup_code", "code"))
            question = f"{row['text'].strip()} Your code should pass these tests:\n\n{asserts}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = f"line {number} of {path} that cannot be read ({error})"
            raise UserError("a row of MBPP", where, "use the public file") from error
        tests = f"{setup}\n{asserts}" if setup else asserts
        key = f"mbpp/{self.split}/{task}"
        return task, Problem(key, "mbpp", self.split, question, code, tests=tests)


_MBPP_TASKS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def _unix(source: str) -> str:
    return source.replace("\r\n", "\n").strip()


def _file(path: str | Path | None, name: str) -> Path:
    return Path(path) if path else fetch(name)


def _given(path: str | Path | None) -> tuple[Path, ...]:
    return (Path(path),) if path else ()


def require_count(n: int | None) -> None:
    """Refuse a number of problems that is below 0."""
    if n is not None and (not isinstance(n, int) or n < 0):
        raise UserError("n of at least 0, or None for all", f"{n!r:.60}", "correct it")


def _line(text: str) -> str:
    return " ".join(text.split())


def choose(split: str, splits: Sequence[str]) -> None:
    """Refuse a split that is not one of `splits`."""
    if split not in splits:
        raise UserError(f"a split of {', '.join(splits)}", split, "name one of them")


def _hashed(key: str, n: int) -> int:
    return seeds.from_names(key, bits=32) % n


def halves(
    name: str, rows: Iterable[tuple[str, str, str]], splits: Sequence[str], n: int | None
) -> Iterator[Problem]:
    """Yield (number, question, answer) rows as problems of the wanted halves, n of each at most."""
    for split in splits:
        choose(split, HALVES)
    counts: Counter[str] = Counter()
    try:
        for number, question, answer in rows:
            split = HALVES[_hashed(f"{name}/{number}", len(HALVES))]
            if split in splits and (n is None or counts[split] < n):
                counts[split] += 1
                problem_id = f"{name}/{split}/{number}"
                yield Problem(problem_id, name, split, question.strip(), answer.strip())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the file of {name}", f"a row that cannot be read ({error})", "use the public file"
        ) from error
