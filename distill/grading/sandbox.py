"""Judging code that a model wrote against asserts; hostile code is expected, and shut in.

Each assert is parted into a call and an expected value. A fresh Python, confined by every means
that the machine grants, runs the candidate and the calls, and answers with the spelled values. The
expected values stay here, so frames, patched equality, early exits and forged answers gain nothing:
only the right value is right. Nothing that a candidate sends is parsed, and nothing that it can
write reaches the next candidate's Python.
"""

import ast
import builtins
import collections
import contextlib
import dataclasses
import functools
import math
import queue
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from distill.core.errors import UserError
from distill.grading.asserts import Assertion, is_literal, names, split_asserts, split_tests
from distill.grading.protections import GUARANTEES, PROTECTIONS, unguarded
from distill.grading.sandbox_process import Answers, Limits, Process, program
from distill.grading.spelling import spell

__all__ = [
    "GUARANTEES",
    "PROTECTIONS",
    "Assertion",
    "Limits",
    "Sandbox",
    "SandboxResult",
    "Submission",
    "judge",
    "split_asserts",
    "split_tests",
]

_SHOWN = 120


@dataclasses.dataclass(frozen=True)
class Submission:
    """A candidate and what it is judged by.

    Attributes:
        candidate: Python source, trusted in nothing.
        assertions: at least one.
        setup: Python source that runs between the candidate and the calls.
    """

    candidate: str
    assertions: Sequence[Assertion]
    setup: str = ""

    def __post_init__(self) -> None:
        if not self.assertions:
            raise ValueError("expected at least one assertion, got none")


@dataclasses.dataclass(frozen=True)
class SandboxResult:
    """What was found of one candidate.

    Attributes:
        outcome: `right`, `wrong` or `undecided`, as in a Verdict.
        reason: one short sentence, printable ASCII but for what the asserts hold.
        protections: those of PROTECTIONS that were in force.
        seconds: time on the clock, the wait for a child included.
    """

    outcome: str
    reason: str
    protections: tuple[str, ...]
    seconds: float


def judge(
    candidate: str, assertions: Sequence[Assertion], limits: Limits | None = None
) -> SandboxResult:
    """Judge one candidate in a sandbox of its own; for many, keep a Sandbox.

    Args:
        candidate: Python source.
        assertions: what it must satisfy.
        limits: what it may use; the defaults of Limits where None.

    Raises:
        UserError: the machine does not grant every guarantee.

    Example:
        >>> asserts = split_asserts("assert add(1, 2) == 3")
        >>> judge("def add(a, b): return a + b", asserts).outcome
        'right'
        >>> judge("def add(a, b): return a - b", asserts).reason
        'add(1, 2) gave -1, expected 3'
    """
    with Sandbox(workers=1, limits=limits or Limits()) as sandbox:
        return sandbox.judge(Submission(candidate, assertions))


class Sandbox:
    """Closed-in Pythons, started ahead of the candidates; each serves one and ends.

    The children are killed when the sandbox is closed and when its process ends, however it ends.
    Several threads may judge at once.

    Args:
        workers: children that are kept ready, and candidates that `judge_all` runs at once.
        limits: what each candidate may use.
        require: names of GUARANTEES that must hold.
        attempt: names of PROTECTIONS that are put in force where the machine grants them.

    Raises:
        UserError: a required guarantee does not hold on this machine.
        ValueError: a name is unknown.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        limits: Limits | None = None,
        require: Collection[str] = tuple(GUARANTEES),
        attempt: Collection[str] = PROTECTIONS,
    ) -> None:
        if unknown := {*require} - {*GUARANTEES} | {*attempt} - {*PROTECTIONS}:
            raise ValueError(f"expected names of GUARANTEES and PROTECTIONS, got {unknown}")
        if sys.platform != "linux":
            raise UserError("Linux, whose kernel guards the sandbox", sys.platform, "grade there")
        self.workers, self.limits = workers, limits or Limits()
        self._start = functools.partial(Process, program(self.limits, attempt))
        self._expected: dict[str, str] = {}
        self._ready: queue.SimpleQueue[Future[Process]] = queue.SimpleQueue()
        # A child ends with the thread that started it, so one thread, which stays, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        for _ in range(workers):
            self._order_child()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.protections = self.run("", "", []).protections
            _require(require, self.protections)
            undo.pop_all()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the children that wait."""
        self._starter.shutdown()
        while not self._ready.empty():
            future = self._ready.get()
            if future.exception() is None:
                future.result().end()

    def judge(self, submission: Submission) -> SandboxResult:
        """Run a candidate once and compare what its calls gave with what was expected.

        An assert that cannot be parted leaves a candidate undecided unless another refutes it.

        Raises:
            ValueError: an expected value cannot be computed, which is the assert's fault.
            RuntimeError: a child could not start.
        """
        start = time.monotonic()
        parted = [one for one in submission.assertions if one.call is not None]
        wanted = [self._value(one.expected) for one in parted]
        calls = [one.call for one in parted if one.call is not None]
        answers = self.run(submission.candidate, submission.setup, calls)
        outcome, reason = _compare(parted, wanted, answers)
        unparted = len(submission.assertions) - len(parted)
        if outcome == "right" and unparted:
            outcome, reason = "undecided", f"{unparted} of the asserts cannot be parted"
        return SandboxResult(outcome, reason, answers.protections, time.monotonic() - start)

    def judge_all(self, submissions: Iterable[Submission]) -> Iterator[SandboxResult]:
        """Judge many candidates, `workers` at a time, in their order and in bounded memory."""
        waiting: collections.deque[Future[SandboxResult]] = collections.deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox-judge") as pool:
            for submission in submissions:
                waiting.append(pool.submit(self.judge, submission))
                if len(waiting) > 4 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _order_child(self) -> None:
        self._ready.put(self._starter.submit(self._start))

    def run(self, candidate: str, setup: str, calls: Sequence[str]) -> Answers:
        """Run a candidate, then its setup, in a fresh child, and return a line for each call.

        Raises:
            UserError: a child could not start.
        """
        self._order_child()
        running = self._ready.get().result()
        try:
            return running.ask([candidate, setup, *calls], self.limits)
        finally:
            running.end()

    def _value(self, expected: str) -> str:
        """The spelled value of an expression that needs no candidate, computed without one."""
        if expected not in self._expected:
            tree = ast.parse(expected, mode="eval").body
            if is_literal(tree):
                self._expected[expected] = spell(ast.literal_eval(tree))
            else:
                self._expected[expected] = self._compute(expected, names(tree))
        return self._expected[expected]

    def _compute(self, expression: str, used: set[str]) -> str:
        modules = sorted((used & sys.stdlib_module_names) - set(dir(builtins)))
        answers = self.run("".join(f"import {name}\n" for name in modules), "", [expression])
        found = answers.ending[1] if answers.ending else answers.lines[0]
        if not found.startswith("="):
            raise ValueError(f"expected an expression with a value, got {expression!r}: {found}")
        return found[1:]


def _require(guarantees: Collection[str], protections: Sequence[str]) -> None:
    missing = [name for name in unguarded(protections) if name in guarantees]
    if missing:
        raise UserError(
            f"a sandbox that guards {', '.join(missing)}",
            f"only {', '.join(protections)}",
            "allow user namespaces, Landlock or seccomp here, or require less of the sandbox",
        )


def _compare(
    parted: Sequence[Assertion], wanted: Sequence[str], answers: Answers
) -> tuple[str, str]:
    for assertion, value, line in zip(parted, wanted, answers.lines, strict=False):
        mark, text = line[:1], line[1:]
        if mark == "?":
            return "wrong", f"{assertion.call} gave a {_shown(text)}, which no literal writes"
        if mark != "=":
            return "wrong", f"raised {_shown(text)}"
        if not _agrees(assertion, text, value):
            return "wrong", f"{assertion.call} gave {_shown(text)}, expected {_shown(value)}"
    if answers.ending:
        return answers.ending
    return "right", f"{len(parted)} values as expected"


def _agrees(assertion: Assertion, text: str, value: str) -> bool:
    relative, absolute = assertion.relative, assertion.absolute
    if not relative and not absolute and not assertion.order:
        return text == value and text != "nan"
    try:
        got, expected = _number(text), _number(value)
        if assertion.order:
            distance = abs(got - expected)
            return distance < absolute or (assertion.order == "<=" and distance == absolute)
        return math.isclose(got, expected, rel_tol=relative, abs_tol=absolute)
    except (ValueError, OverflowError):
        return False


def _number(text: str) -> float:
    """A spelled number, exact where it is whole and short."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return short if short.isprintable() else ascii(short)
