"""Judge programs that a model wrote by the asserts of their problem, in a sandbox."""

import dataclasses
import functools
import re

from distill.core.errors import UserError
from distill.grading.asserts import Assertion, split_tests
from distill.grading.graders import Judgement
from distill.grading.sandbox import Sandbox, Submission

_FENCED = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BEGIN, _DONE = "[BEGIN]", "[DONE]"


def extract(text: str) -> str | None:
    r"""Return the program in a completion, None where it holds none.

    Of fenced blocks it is the last that defines a function, else the last; without fences, what
    stands between `[BEGIN]` and `[DONE]`, either of which may be missing.

    Example:
        >>> extract("Like this:\n```python\ndef f():\n    return 1\n```\nThen:\n```\nf()\n```")
        'def f():\n    return 1'
        >>> extract("[BEGIN]\nf = abs\n[DONE] and so on")
        'f = abs'
        >>> extract(" ")
    """
    blocks = _FENCED.findall(text)
    if blocks:
        program = next((block for block in reversed(blocks) if "def " in block), blocks[-1])
    else:
        program = text.rpartition(_BEGIN)[2].partition(_DONE)[0]
    return program.strip("\n").rstrip() or None if program.strip() else None


@dataclasses.dataclass(frozen=True)
class Programs:
    """A judge of programs; a problem's tests decide, and two programs vote together if equal.

    Attributes:
        sandbox: where they run.
        field: the field of a Problem that decides.
    """

    sandbox: Sandbox
    field: str = "tests"

    def __call__(self, text: str, gold: str) -> Judgement:
        """Judge a finished text; the answer of the judgement is its program.

        Args:
            text: a completion.
            gold: the asserts, after what sets them up.

        Raises:
            UserError: the tests are no Python, nest too deeply, hold no assert, or expect what has
                no value.
        """
        program = extract(text)
        if program is None:
            return Judgement("unparsed", None, "no program in the text")
        setup, assertions = _tests(gold)
        try:
            result = self.sandbox.judge(Submission(program, assertions, setup))
        except ValueError as error:
            raise UserError("asserts that can be read", str(error), "correct the tests") from error
        return Judgement(result.outcome, program, result.reason)

    def key(self, answer: str) -> str:
        """Return the program."""
        return answer

    def protections(self) -> tuple[str, ...]:
        """Return the protections that confine every program."""
        return self.sandbox.protections


@functools.lru_cache(maxsize=4096)
def _tests(source: str) -> tuple[str, tuple[Assertion, ...]]:
    try:
        setup, assertions = split_tests(source)
    except ValueError as error:
        got = str(error).partition("got ")[2]
        raise UserError("tests in Python", got, "correct the problem's tests") from error
    if not assertions:
        raise UserError("tests with an assert", f"{source:.60}", "add one to the problem's tests")
    return setup, assertions
