"""The graders by name: how to extract an answer from a text, and when it equals the gold one.

default    answers as `text.answers` reads them: numbers, expressions, text
fu2023     the last number, for parity with Fu et al. 2023: no sign, no comma, no fraction
exact      the words after "answer is", letter for letter (BIG-Bench Hard)
caseless   the same whatever their case
math       `default`, then algebra for what stays undecided; needs math-verify and a process
mbpp       programs, by the asserts of their problem, in a sandbox
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from distill.core.errors import UserError
from distill.grading.protections import unguarded
from distill.text import answers


class Judgement(NamedTuple):
    """The result of judging one text.

    Attributes:
        outcome: one of `records.OUTCOMES`.
        answer: the extracted answer, None if the text has none.
        reason: one short sentence.
    """

    outcome: str
    answer: str | None
    reason: str


class Judge(Protocol):
    """Anything that judges finished texts."""

    @property
    def field(self) -> str:
        """The field of a Problem that holds the gold: `answer` or `tests`."""
        ...

    def __call__(self, text: str, gold: str) -> Judgement:
        """Judge a text; `gold` is the value of that field."""
        ...

    def key(self, answer: str, /) -> str:
        """Return the key of an answer; a vote counts answers of one key together."""
        ...

    def protections(self) -> tuple[str, ...] | None:
        """Return the protections of the judge's own processes, None before any has started."""
        ...


@dataclasses.dataclass(frozen=True)
class Grader:
    """A judge of answers.

    Attributes:
        extract: returns a text's final answer, None if it has none.
        equal: returns whether an answer equals the gold one, None if that is undecided.
        key: returns the key of an answer; a vote counts answers of one key together.
        field: the field of a Problem that holds the gold.
        protections: returns those of the grader's own processes, None before any has started.
    """

    extract: Callable[[str], str | None]
    equal: Callable[[str, str], bool | None]
    key: Callable[[str], str] = answers.canonical
    field: str = "answer"
    protections: Callable[[], tuple[str, ...] | None] = lambda: None

    def __call__(self, text: str, gold: str) -> Judgement:
        """Judge a text."""
        return judge(text, gold, self)


def judge(text: str, gold: str, grader: Grader) -> Judgement:
    """Judge a finished text by its final answer.

    Example:
        >>> judge("The answer is 6.", "7", GRADERS["default"])
        Judgement(outcome='wrong', answer='6', reason='gold is 7')
    """
    answer = grader.extract(text)
    if answer is None:
        return Judgement("unparsed", None, "no final answer in the text")
    equal = grader.equal(answer, gold)
    if equal is None:
        return Judgement("undecided", answer, f"cannot tell whether it equals {gold}")
    if equal:
        return Judgement("right", answer, f"equals {gold}")
    return Judgement("wrong", answer, f"gold is {gold}")


def _same_last_number(answer: str, gold: str) -> bool:
    return answer == answers.fu2023(gold)


def _same_text(answer: str, gold: str) -> bool:
    return answer == gold


def _same_whatever_case(answer: str, gold: str) -> bool:
    return answer.casefold() == gold.casefold()


# Graders that need no process of their own.
GRADERS = {
    "default": Grader(answers.extract, answers.equal),
    "fu2023": Grader(answers.fu2023, _same_last_number, str),
    "exact": Grader(answers.stated, _same_text, str),
    "caseless": Grader(answers.stated, _same_whatever_case, str.casefold),
}


@contextlib.contextmanager
def _algebra() -> Iterator[Judge]:
    from distill.grading.algebra import Algebra

    with Algebra() as algebra:
        yield dataclasses.replace(
            GRADERS["default"], equal=algebra.equal, protections=algebra.protections
        )


@contextlib.contextmanager
def _programs() -> Iterator[Judge]:
    from distill.grading.programs import Programs
    from distill.grading.sandbox import Sandbox

    with Sandbox() as sandbox:
        yield Programs(sandbox)


# Graders that run processes of their own while they are open.
_WITH_PROCESSES: dict[str, Callable[[], AbstractContextManager[Judge]]] = {
    "math": _algebra,
    "mbpp": _programs,
}
NAMES = (*GRADERS, *_WITH_PROCESSES)


def open_grader(name: str) -> AbstractContextManager[Judge]:
    """Return a context manager of the named grader; on exit it ends the grader's processes.

    Raises:
        UserError: there is no such grader; on entry, a package or a protection is missing.

    Example:
        >>> with open_grader("default") as default:
        ...     default("The answer is 7.", "7").outcome
        'right'
    """
    require(name)
    if name in _WITH_PROCESSES:
        return _WITH_PROCESSES[name]()
    return contextlib.nullcontext(GRADERS[name])


def grade(text: str, gold: str, *, grader: str = "default") -> Judgement:
    """Judge one text; for many texts, open the grader once with `open_grader`.

    Args:
        text: a finished completion.
        gold: the gold answer; for `mbpp`, asserts in Python.
        grader: one of `NAMES`.

    Raises:
        UserError: there is no such grader, a package or a protection that it needs is missing, or
            the asserts cannot be read.

    Example:
        >>> grade("3 + 4 = 7, so the answer is 7.", "7")
        Judgement(outcome='right', answer='7', reason='equals 7')
        >>> grade("The answer is yes", "Yes", grader="caseless").outcome
        'right'
    """
    with open_grader(grader) as judging:
        return judging(text, gold)


def confinement(judge: Judge) -> dict[str, list[str]]:
    """Return the confinement of a judge's processes for a summary; empty before any has started.

    Returns:
        `protections`, those in force, and `unguarded`, the guarantees that they do not give.

    Example:
        >>> confinement(GRADERS["default"])
        {}
    """
    protections = judge.protections()
    if protections is None:
        return {}
    return {"protections": list(protections), "unguarded": list(unguarded(protections))}


def require(name: str) -> None:
    """Refuse the name of no grader.

    Raises:
        UserError: there is no such grader.
    """
    if name not in NAMES:
        raise UserError(f"a grader of {', '.join(NAMES)}", name, "name one of them")
