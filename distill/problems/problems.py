"""Read problems from built-in families, a user's JSONL and the public sets, and count them.

Gin files name every source here: `problems.BuiltIn`, `problems.Gsm8k` and so on.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from distill.core.errors import UserError
from distill.core.records import SPLITS, Problem
from distill.core.store import Shards, Stage
from distill.problems import rowfiles
from distill.problems.bbh import BigBenchHard
from distill.problems.benchmarks import (
    AsDiv,
    Gsm8k,
    Math500,
    Mbpp,
    MultiArith,
    Svamp,
    choose,
    require_count,
)
from distill.problems.builtin import arithmetic
from distill.problems.contamination import TRAINED, Contamination, Index, Overlap, clean, count

__all__ = [
    "AsDiv",
    "BigBenchHard",
    "BuiltIn",
    "Contamination",
    "General",
    "Gsm8k",
    "JsonLines",
    "Math500",
    "Mbpp",
    "MultiArith",
    "Named",
    "Source",
    "Svamp",
    "distinct",
    "run",
    "summarise",
]

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("problems", "contamination")
SHARD_PROBLEMS = 4096


class Source(Protocol):
    """A source of problems: a frozen dataclass, whose fields the manifest records."""

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, in the same order each time.

        Raises:
            UserError: a file is missing or malformed.
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
        choose(self.split, arithmetic.splits(self.family))

    def problems(self) -> Iterator[Problem]:
        """Yield the problems."""
        return arithmetic.problems(self.family, self.split, self.n, self.seed)


@dataclasses.dataclass(frozen=True)
class General:
    """The built-in general families as one set, `general`, that measures the cost of specialising.

    Attributes:
        split: train, validation or test.
        n: how many problems of each family.
        seed: another seed gives other problems of the same split.
    """

    split: str
    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.split, arithmetic.splits(arithmetic.GENERAL[0]))

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, family after family; a number is `FAMILY/NUMBER`."""
        for family in arithmetic.GENERAL:
            for problem in arithmetic.problems(family, self.split, self.n, self.seed):
                number = problem.problem_id.rpartition("/")[2]
                key = f"general/{self.split}/{family}/{number}"
                yield dataclasses.replace(problem, problem_id=key, source="general")


@dataclasses.dataclass(frozen=True)
class JsonLines:
    r"""A user's file: a JSON object a line, with `question` and `answer`.

    `answer` is a text or a number. A row may have an `id` (its line number otherwise) and a
    `chain`, which gets the sentence with the answer where it lacks one. Other keys are left alone.

    Attributes:
        path: the file, in UTF-8.
        split: the split that its problems belong to.
        name: what the set is called, by default the file's name.
        n: how many problems at most, from the top.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mine.jsonl"
        >>> _ = file.write_text('{"question": "What is 4 + 4?", "answer": 8}\n')
        >>> [problem.problem_id for problem in JsonLines(file).problems()]
        ['mine/train/1']
    """

    path: str | Path
    split: str = "train"
    name: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        choose(self.split, SPLITS)
        require_count(self.n)

    def input_files(self) -> tuple[Path, ...]:
        """Return the file, whose content the run is known by."""
        return (Path(self.path),)

    def problems(self) -> Iterator[Problem]:
        """Yield the problems, numbered by line from 1."""
        path = Path(self.path)
        name = self.name or path.stem
        for number, row in islice(rowfiles.rows(path), self.n):
            where = f"line {number} of {path}"
            question, answer = (
                rowfiles.text(row, "question", where),
                rowfiles.text(row, "answer", where),
            )
            chain = None if row.get("chain") is None else rowfiles.text(row, "chain", where)
            if chain is not None and "answer is" not in chain.lower():
                chain = f"{chain.rstrip()}\nThe answer is {answer}"
            row_id = row.get("id", number)
            if not isinstance(row_id, str | int):
                got = f"{row_id!r:.60}"
                raise UserError(f"a text or a whole number as id in {where}", got, "correct it")
            key = f"{name}/{self.split}/{row_id}"
            yield Problem(key, name, self.split, question, answer, chain)


@dataclasses.dataclass(frozen=True)
class Named:
    """Another source's problems under another name, for another prompt or grader.

    Attributes:
        source: the source of the problems.
        name: name of the set.

    Example:
        >>> source = Named(BuiltIn("multi", "selection", 2), "multi_shown")
        >>> [problem.problem_id.split("/")[:2] for problem in source.problems()]
        [['multi_shown', 'selection'], ['multi_shown', 'selection']]
    """

    source: Source
    name: str

    def problems(self) -> Iterator[Problem]:
        """Yield the problems; their numbers stay."""
        for problem in self.source.problems():
            _, _, number = problem.problem_id.partition("/")
            yield dataclasses.replace(problem, problem_id=f"{self.name}/{number}", source=self.name)


def distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems after checking their ids.

    Raises:
        UserError: two problems have the same id.

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
    by_training: dict[bool, list[str]] = {True: [], False: []}
    for problem in problems:
        counts[f"{problem.source}/{problem.split}"] += 1
        normalised = " ".join(problem.question.casefold().split())
        by_training[problem.split == "train"].append(normalised)
    trained = set(by_training[True])
    return {
        "problems": counts.total(),
        "by_split": dict(sorted(counts.items())),
        "also_in_train": sum(question in trained for question in by_training[False]),
    }


def _some(source: Source) -> Iterator[Problem]:
    problems = source.problems()
    first = next(problems, None)
    if first is None:
        raise UserError(f"problems from {source}", "none", "correct the source or take it out")
    yield first
    yield from problems


def run(
    *,
    run_dir: Path,
    sources: Sequence[Source],
    contamination: Contamination | None = None,
    problems_per_shard: int = SHARD_PROBLEMS,
) -> dict[str, Any]:
    """Fill RUN_DIR/problems from the sources; resume where an earlier start stopped.

    Args:
        run_dir: the run directory.
        sources: the sources of the problems, read in order.
        contamination: rules by which a training question overlaps with an evaluation set; each
            overlap is recorded in RUN_DIR/contamination, and the question is dropped if the rules
            drop its kind. None skips the search.
        problems_per_shard: most problems in one shard; excluded from the run's identity.

    Raises:
        UserError: a source cannot be read, gives no problem, or repeats a problem_id.
    """
    run_dir = Path(run_dir)
    settings: dict[str, Any] = {"sources": sources}
    if contamination is not None:
        settings["contamination"] = contamination
    with Stage.open(run_dir, "problems", settings=settings, outputs=OUTPUTS) as stage:
        if stage.complete:
            return stage.summary
        shards = Shards(run_dir / "problems", Problem)
        done = {key for (key,) in shards.keys("problem_id")}
        read, overlaps = distinct(_all(sources)), []
        if contamination is not None:
            evaluated = (problem for problem in _all(sources) if problem.split != TRAINED)
            read = clean(read, Index(evaluated, contamination), overlaps)
        left = (problem for problem in read if problem.problem_id not in done)
        while shards.append(islice(left, problems_per_shard)):
            pass
        summary = summarise(shards)
        if contamination is not None:
            _record(run_dir / "contamination", overlaps)
            summary["contaminated"] = count(overlaps)
        stage.finish(**summary)
        return stage.summary


def _all(sources: Iterable[Source]) -> Iterator[Problem]:
    return (problem for source in sources for problem in _some(source))


def _record(directory: Path, overlaps: Iterable[Overlap]) -> None:
    """Replace the recorded overlaps; every start of the stage computes the same ones."""
    shards = Shards(directory, Overlap)
    shards.remove()
    shards.append(overlaps)
