"""The graders by name: how an answer is found in a text, and when it is the gold one.

default    answers as `text.answers` reads them: numbers, expressions, text
fu2023     the last number, for parity with Fu et al. 2023: no sign, no comma, no fraction
exact      the words after "answer is", letter for letter (BIG-Bench Hard)
caseless   the same whatever their case
math       `default`, and where it cannot tell, algebra; needs math-verify and a process
mbpp       programs, by the asserts of their problem, in a sandbox
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from distill.core.errors import UserError
from distill.grading.protections import unguarded
from distill.text import answers

# An outcome of `records.OUTCOMES`, the answer (None where there is none) and the reason.
Judged = tuple[str, str | None, str]


class Judge(Protocol):
    """Anything that judges finished texts."""

    @property
    def field(self) -> str:
        """Which field of a Problem decides: `answer` or `tests`."""
        ...

    def __call__(self, text: str, gold: str) -> Judged:
        """Return what was decided of a text; `gold` is what that field holds."""
        ...

    def key(self, answer: str, /) -> str:
        """Return what the answers have in common that one vote counts together."""
        ...

    def held(self) -> tuple[str, ...] | None:
        """Return the protections of what runs beside it, None where nothing has run."""
        ...


@dataclasses.dataclass(frozen=True)
class Grader:
    """A judge of answers.

    Attributes:
        extract: a text's final answer, None where there is none.
        equal: whether an answer equals the gold one, None where that cannot be decided.
        key: what the answers have in common that one vote counts together.
        field: the field of a Problem that decides.
        held: the protections of what runs beside it, None where nothing has run.
    """

    extract: Callable[[str], str | None]
    equal: Callable[[str, str], bool | None]
    key: Callable[[str], str] = answers.canonical
    field: str = "answer"
    held: Callable[[], tuple[str, ...] | None] = lambda: None

    def __call__(self, text: str, gold: str) -> Judged:
        """Return what was decided of a text."""
        return judge(text, gold, self)


def judge(text: str, gold: str, grader: Grader) -> Judged:
    """Return the outcome of a finished text, its answer (None where it has none) and the reason.

    Example:
        >>> judge("The answer is 6.", "7", GRADERS["default"])
        ('wrong', '6', 'gold is 7')
    """
    answer = grader.extract(text)
    if answer is None:
        return "unparsed", None, "no final answer in the text"
    equal = grader.equal(answer, gold)
    if equal is None:
        return "undecided", answer, f"cannot tell whether it equals {gold}"
    return ("right", answer, f"equals {gold}") if equal else ("wrong", answer, f"gold is {gold}")


def _same_last_number(answer: str, gold: str) -> bool:
    return answer == answers.fu2023(gold)


def _same_text(answer: str, gold: str) -> bool:
    return answer == gold


def _same_whatever_case(answer: str, gold: str) -> bool:
    return answer.casefold() == gold.casefold()


# Those that are nothing but functions.
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
        yield dataclasses.replace(GRADERS["default"], equal=algebra.equal, held=algebra.held)


@contextlib.contextmanager
def _programs() -> Iterator[Judge]:
    from distill.grading.programs import Programs
    from distill.grading.sandbox import Sandbox

    with Sandbox() as sandbox:
        yield Programs(sandbox)


# Those that run something beside them while they are open.
_RUNNING: dict[str, Callable[[], AbstractContextManager[Judge]]] = {
    "math": _algebra,
    "mbpp": _programs,
}
NAMES = (*GRADERS, *_RUNNING)


def opened(name: str) -> AbstractContextManager[Judge]:
    """Return a judge by its name, to be entered; what runs beside it ends with the block.

    Raises:
        UserError: there is none of this name; on entering, what it needs is not there.

    Example:
        >>> with opened("default") as default:
        ...     default("The answer is 7.", "7")
        ('right', '7', 'equals 7')
    """
    require(name)
    if name in _RUNNING:
        return _RUNNING[name]()
    return contextlib.nullcontext(GRADERS[name])


def confinement(judge: Judge) -> dict[str, list[str]]:
    """Return what a summary says of the processes beside a judge; nothing where none has run.

    Returns:
        `protections`, those in force, and `unguarded`, the guarantees that they do not give.

    Example:
        >>> confinement(GRADERS["default"])
        {}
    """
    held = judge.held()
    if held is None:
        return {}
    return {"protections": list(held), "unguarded": list(unguarded(held))}


def require(name: str) -> None:
    """Refuse a name that no grader has."""
    if name not in NAMES:
        raise UserError(f"a grader of {', '.join(NAMES)}", name, "name one of them")
