"""Read problems: built-in families, a user's JSONL, and public sets from a file or an address.

The held-out sets are cut into a selection and a report half by a hash of each problem's own number,
so the halves never change. GSM8K has no validation split; about a twentieth of its train problems
is set aside as one in the same way.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

from distill.core.errors import UserError
from distill.core.records import SPLITS, Problem
from distill.core.store import Shards, Stage
from distill.corpus import arithmetic
from distill.corpus.download import cached

HALVES = ("selection", "report")
SHARD_PROBLEMS = 4096
_VALIDATION = 20
_CALCULATION = re.compile(r"<<[^<>]*>>")


class Source(Protocol):
    """Anything that gives problems; frozen dataclasses, so that a manifest can tell them apart."""

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, in the same order each time.

        Raises:
            UserError: a file is missing or not as it must be.
        """
        ...


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """n distinct problems of a built-in family.

    Attributes:
        family: one of `arithmetic.FAMILIES`, `arithmetic.GENERAL` or `single_step`.
        split: one of `arithmetic.splits(family)`.
        n: how many problems.
        seed: another seed gives other problems of the same split.
    """

    family: str
    split: str
    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        families = (*arithmetic.FAMILIES, arithmetic.SINGLE_STEP, *arithmetic.GENERAL)
        if self.family not in families:
            raise UserError(f"a family of {', '.join(families)}", self.family, "name one of them")
        _choose(self.split, arithmetic.splits(self.family))

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        return arithmetic.problems(self.family, self.split, self.n, self.seed)


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A user's file: a JSON object a line, with `question` and `answer`.

    `answer` is a text or a number. A row may have an `id` (its line number otherwise) and a
    `chain`, which gets the sentence with the answer where it lacks one. Other keys are left alone.

    Attributes:
        path: the file, in UTF-8.
        split: the split that its problems belong to.
        name: what the set is called, by default the file's name.
        n: how many problems at most, from the top.
    """

    path: str | Path
    split: str = "train"
    name: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        _choose(self.split, SPLITS)

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by line from 1."""
        path = Path(self.path)
        name = self.name or path.stem
        for number, row in islice(_rows(path), self.n):
            where = f"line {number} of {path}"
            question, answer = _text(row, "question", where), _text(row, "answer", where)
            chain = None if row.get("chain") is None else _text(row, "chain", where)
            if chain is not None and "answer is" not in chain.lower():
                chain = f"{chain.rstrip()}\nThe answer is {answer}"
            key = f"{name}/{self.split}/{row.get('id', number)}"
            yield Problem(key, name, self.split, question, answer, chain)


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
        _choose(self.split, ("train", "validation", "test"))

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by line from 1."""
        file = "test" if self.split == "test" else "train"
        path = Path(self.path) if self.path else cached(f"gsm8k_{file}.jsonl")
        yield from islice(self._split(path), self.n)

    def _split(self, path: Path) -> Iterator[Problem]:
        for number, row in _rows(path):
            aside = _hashed(f"gsm8k/{number}", _VALIDATION) == 0
            if self.split == "test" or aside == (self.split == "validation"):
                yield self._problem(number, row, f"line {number} of {path}")

    def _problem(self, number: int, row: dict[str, Any], where: str) -> Problem:
        solution = _CALCULATION.sub("", _text(row, "answer", where))
        steps, mark, answer = solution.rpartition("####")
        if not mark or not answer.strip():
            raise UserError("a solution ending in `#### answer`", where, "use GSM8K's own file")
        chain = f"{steps.strip()}\nThe answer is {answer.strip()}".lstrip()
        question = _text(row, "question", where)
        key = f"gsm8k/{self.split}/{number}"
        return Problem(key, "gsm8k", self.split, question, answer.strip(), chain)


@dataclasses.dataclass(frozen=True)
class MultiArith:
    """MultiArith (Roy and Roth 2015), a held-out set.

    Attributes:
        path: the JSON file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    path: str | Path | None = None
    n: int | None = None
    splits: Sequence[str] = HALVES

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        rows = _json(Path(self.path) if self.path else cached("multiarith.json"))
        found = ((str(r["iIndex"]), r["sQuestion"], _plain(r["lSolutions"][0])) for r in rows)
        return _halves("multiarith", found, self.splits, self.n)


@dataclasses.dataclass(frozen=True)
class AsDiv:
    """ASDiv (Miao et al. 2020), a held-out set; its answers keep their units, as `9 (apples)`.

    Attributes:
        path: the XML file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    path: str | Path | None = None
    n: int | None = None
    splits: Sequence[str] = HALVES

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        root = _xml(Path(self.path) if self.path else cached("asdiv.xml"))
        found = (
            (
                row.attrib["ID"],
                f"{row.findtext('Body', '').strip()} {row.findtext('Question', '')}",
                row.findtext("Answer", ""),
            )
            for row in root.iter("Problem")
        )
        return _halves("asdiv", found, self.splits, self.n)


@dataclasses.dataclass(frozen=True)
class Svamp:
    """SVAMP (Patel et al. 2021), a held-out set; body and question are joined as in Fu et al. 2023.

    Attributes:
        path: the JSON file; by default it is fetched.
        n: how many problems of each half at most.
        splits: which halves.
    """

    path: str | Path | None = None
    n: int | None = None
    splits: Sequence[str] = HALVES

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        rows = _json(Path(self.path) if self.path else cached("svamp.json"))
        found = ((r["ID"], f"{r['Body']}. {r['Question']}", _plain(r["Answer"])) for r in rows)
        return _halves("svamp", found, self.splits, self.n)


def distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Pass the problems on.

    Raises:
        UserError: two of them have one id.

    Example:
        >>> one = Problem("mine/train/1", "mine", "train", "What is 4 + 4?", "8")
        >>> [problem.answer for problem in distinct([one])]
        ['8']
    """
    seen: set[str] = set()
    for problem in problems:
        if problem.problem_id in seen:
            raise UserError(
                "a problem_id once",
                f"{problem.problem_id} twice",
                "name each source and split once, and give distinct ids",
            )
        seen.add(problem.problem_id)
        yield problem


def summarise(problems: Iterable[Problem]) -> dict[str, Any]:
    """Count problems by source and split, and evaluation problems whose question is trained on.

    Example:
        >>> summarise([Problem("mine/train/1", "mine", "train", "What is 4 + 4?", "8")])
        {'problems': 1, 'by_split': {'mine/train': 1}, 'also_in_train': 0}
    """
    counts: Counter[str] = Counter()
    asked: dict[bool, list[str]] = {True: [], False: []}
    for problem in problems:
        counts[f"{problem.source}/{problem.split}"] += 1
        asked[problem.split == "train"].append(" ".join(problem.question.casefold().split()))
    trained = set(asked[True])
    return {
        "problems": counts.total(),
        "by_split": dict(sorted(counts.items())),
        "also_in_train": sum(question in trained for question in asked[False]),
    }


def _choose(split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise UserError(f"a split of {', '.join(splits)}", split, "name one of them")


def _hashed(key: str, n: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % n


def _halves(
    name: str, found: Iterable[tuple[str, str, str]], splits: Sequence[str], n: int | None
) -> Iterator[Problem]:
    """Yield (number, question, answer) rows as problems of the wanted halves, n of each at most."""
    for split in splits:
        _choose(split, HALVES)
    counts: Counter[str] = Counter()
    try:
        for number, question, answer in found:
            split = HALVES[_hashed(f"{name}/{number}", len(HALVES))]
            if split in splits and (n is None or counts[split] < n):
                counts[split] += 1
                question = " ".join(question.split())
                yield Problem(f"{name}/{split}/{number}", name, split, question, answer.strip())
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"the file of {name}", f"a row that cannot be read ({error})", "use the public file"
        ) from error


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"a file {path}", "none", "correct the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"UTF-8 in {path}", str(error), "convert the file to UTF-8") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a JSONL file; blank lines are passed over."""
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"a JSON object in line {number} of {path}", str(error), "correct the line"
            ) from error
        if not isinstance(row, dict):
            got = type(row).__name__
            raise UserError(f"a JSON object in line {number} of {path}", got, "correct the line")
        yield number, row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _plain(value)
    if not isinstance(value, str) or not value.strip():
        got = "none" if value is None else repr(value)
        raise UserError(f"a text under {key!r} in {where}", got, "add it or drop the row")
    return value.strip()


def _plain(value: float) -> str:
    """Write a number without the zero fraction that JSON sets carry."""
    return str(int(value)) if float(value).is_integer() else str(value)


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(_content(path))
    except json.JSONDecodeError as error:
        raise UserError(f"JSON in {path}", str(error), "use the public file") from error
    if not isinstance(rows, list):
        raise UserError(f"a list in {path}", type(rows).__name__, "use the public file")
    return rows


def _xml(path: Path) -> ElementTree.Element:
    """Parse XML that declares nothing: without a DOCTYPE there are no entities to expand."""
    text = _content(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"XML without a DOCTYPE in {path}", "one", "use the public file")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"XML in {path}", str(error), "use the public file") from error


def _some(source: Source) -> Iterator[Problem]:
    problems = source.problems()
    first = next(problems, None)
    if first is None:
        raise UserError(f"problems from {source}", "none", "correct the source or take it out")
    yield first
    yield from problems


def run(*, run_dir: Path, sources: Sequence[Source]) -> dict[str, Any]:
    """Fill RUN_DIR/problems from the sources; go on where an earlier start stopped.

    Args:
        run_dir: the run directory.
        sources: where the problems come from.

    Raises:
        UserError: a source cannot be read, gives no problem, or repeats a problem_id.
    """
    run_dir = Path(run_dir)
    with Stage.open(run_dir, "problems", settings={"sources": sources}) as stage:
        if stage.complete:
            return stage.summary
        shards = Shards(run_dir / "problems", Problem)
        done = {key for (key,) in shards.keys("problem_id")}
        read = distinct(problem for source in sources for problem in _some(source))
        left = (problem for problem in read if problem.problem_id not in done)
        while shards.append(islice(left, SHARD_PROBLEMS)):
            pass
        stage.finish(**summarise(shards))
        return stage.summary
