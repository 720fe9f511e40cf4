"""Judging code that a model wrote against asserts; hostile code is expected, and shut in.

Each assert is parted into a call and an expected value. A fresh Python, closed in by every means
that the machine grants, runs the candidate and the calls, and answers with the spelled values. The
expected values stay here, so frames, patched equality, early exits and forged answers gain nothing:
only the right value is right. Nothing that a candidate sends is parsed.

    assert add(1, 2) == 3   ->   call: add(1, 2)   expected: 3
                                 goes inside       stays outside
"""

import ast
import builtins
import collections
import contextlib
import dataclasses
import functools
import importlib.util
import marshal
import math
import os
import queue
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from distill.core.errors import UserError
from distill.corpus import sandbox_child as child
from distill.corpus.sandbox_child import PROTECTIONS, spell

# Each guarantee holds where one of its protections is in force.
GUARANTEES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "resources": frozenset({child.LIMITS}),
        "files": frozenset({child.EMPTY_ROOT, child.LANDLOCK}),
        "network": frozenset({child.NETWORK_NAMESPACE, child.SECCOMP}),
        "signals": frozenset({child.PID_NAMESPACE, child.SECCOMP}),
        "processes": frozenset({child.SINGLE_PROCESS, child.SECCOMP}),
        "privileges": frozenset({child.NO_NEW_PRIVILEGES}),
    }
)

_KNOWN = frozenset(dir(builtins)) | sys.stdlib_module_names
_START_SECONDS = 60.0
_LAST_SECONDS = 1.0
_SHOWN = 120


# --- Asserts -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Assertion:
    """An assert, parted into what the candidate computes and what it must be.

    Attributes:
        source: the condition as it was written.
        call: the expression that the candidate's side evaluates, None where the assert cannot be
            parted without handing the expected value inside.
        expected: the expression of the expected value.
        relative: tolerance as a share of the larger of both values, as math.isclose has it.
        absolute: tolerance as a distance, likewise. Both 0 ask for equality.
    """

    source: str
    call: str | None = None
    expected: str = "None"
    relative: float = 0.0
    absolute: float = 0.0


def split_asserts(source: str) -> tuple[Assertion, ...]:
    """Part the asserts of a test into calls and expected values; nothing is evaluated.

    Parted are `call == value`, either way round, `call is None`, `call`, `not call`, `isclose(call,
    value, …)`, `abs(call - value) < bound`, and conditions of these joined by `and`. `is True` and
    `is False` are taken as `==`. Whatever else asserts, or is no assert, is kept without a call, as
    evaluating it inside would hand over the expected value.

    Args:
        source: Python statements, each an assert.

    Raises:
        ValueError: the source is no Python.

    Example:
        >>> (assertion,) = split_asserts("assert add(1, 2) == 3")
        >>> assertion.call, assertion.expected
        ('add(1, 2)', '3')
        >>> split_asserts("assert add(1, 2) in (3, 4)")[0].call is None
        True
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"expected Python asserts, got {source[:_SHOWN]!r}") from error
    return tuple(found for statement in body for found in _split(statement))


def split_tests(source: str) -> tuple[str, tuple[Assertion, ...]]:
    r"""Part a test into what sets it up and its asserts, which `split_asserts` parts further.

    Raises:
        ValueError: the source is no Python.

    Example:
        >>> split_tests("one = 1\nassert add(one, 2) == 3")[0]
        'one = 1'
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"expected Python asserts, got {source[:_SHOWN]!r}") from error
    setup = [ast.unparse(statement) for statement in body if not isinstance(statement, ast.Assert)]
    asserts = (statement for statement in body if isinstance(statement, ast.Assert))
    return "\n".join(setup), tuple(found for one in asserts for found in _split(one))


def _split(statement: ast.stmt) -> Iterator[Assertion]:
    if not isinstance(statement, ast.Assert):
        yield Assertion(ast.unparse(statement))
        return
    test = statement.test
    match test:
        case ast.BoolOp(op=ast.And(), values=conditions):
            pass
        case _:
            conditions = [test]
    for condition in conditions:
        forms = (form(condition) for form in (_closeness, _distance, _equality, _truth))
        yield next(filter(None, forms), Assertion(ast.unparse(condition)))


def _equality(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            return _part(condition, left, right) or _part(condition, right, left)
        case ast.Compare(left=left, ops=[ast.Is()], comparators=[ast.Constant() as right]):
            return _part(condition, left, right)
    return None


def _closeness(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Call(
            func=ast.Name(id="isclose") | ast.Attribute(value=ast.Name(id="math"), attr="isclose"),
            args=[call, value],
            keywords=keywords,
        ):
            given = {keyword.arg: _number(keyword.value) for keyword in keywords}
            relative, absolute = given.pop("rel_tol", 1e-9), given.pop("abs_tol", 0.0)
            if relative is None or absolute is None or given:
                return None
            return _part(condition, call, value, relative, absolute)
    return None


def _distance(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.Compare(
            left=ast.Call(
                func=ast.Name(id="abs" | "fabs") | ast.Attribute(attr="fabs"),
                args=[ast.BinOp(left=left, op=ast.Sub(), right=right)],
                keywords=[],
            ),
            ops=[ast.Lt() | ast.LtE()],
            comparators=[bound],
        ) if (absolute := _number(bound)) is not None:
            parted = _part(condition, left, right, 0.0, absolute)
            return parted or _part(condition, right, left, 0.0, absolute)
    return None


def _truth(condition: ast.expr) -> Assertion | None:
    match condition:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            wanted = False
        case ast.Call() as call:
            wanted = True
        case _:
            return None
    if not isinstance(call.func, ast.Name) or call.func.id in _KNOWN or not _computes(call):
        return None
    return Assertion(ast.unparse(condition), f"bool({ast.unparse(call)})", str(wanted))


def _part(
    condition: ast.expr,
    call: ast.expr,
    value: ast.expr,
    relative: float = 0.0,
    absolute: float = 0.0,
) -> Assertion | None:
    """Take `call` as the candidate's side if it can be, and `value` if it needs no candidate."""
    if _is_literal(call) or not _computes(call):
        return None
    if not _is_literal(value) and (not _names(value) <= _KNOWN or _names(call) <= _KNOWN):
        return None
    source, asked, expected = (ast.unparse(node) for node in (condition, call, value))
    return Assertion(source, asked, expected, relative, absolute)


def _computes(call: ast.expr) -> bool:
    """Whether the expression yields a value rather than a truth that holds an expected value."""
    decisions = (ast.Compare, ast.BoolOp, ast.IfExp, ast.Not, ast.NamedExpr, ast.Await, ast.Yield)
    pending: list[ast.AST] = [call]
    while pending:
        node = pending.pop()
        if isinstance(node, decisions):
            return False
        if not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return True


def _names(expression: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def _is_literal(expression: ast.expr) -> bool:
    try:
        ast.literal_eval(expression)
    except (ValueError, TypeError):
        return False
    return True


def _number(expression: ast.expr) -> float | None:
    value = ast.literal_eval(expression) if _is_literal(expression) else None
    return float(value) if isinstance(value, int | float) else None


# --- Judgements --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a candidate may use, its Python included.

    Attributes:
        cpu_seconds: whole seconds of processor time; beyond, it is wrong.
        seconds: time on the clock; beyond, it is undecided, for the machine may be to blame.
        memory_bytes: address space.
        answer_bytes: size of all its answers together; beyond, it is wrong.
    """

    cpu_seconds: int = 5
    seconds: float = 15.0
    memory_bytes: int = 512 << 20
    answer_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.cpu_seconds < 1 or self.seconds <= 0 or self.answer_bytes < 1:
            raise ValueError(f"expected positive limits, got {self}")
        if self.memory_bytes < 64 << 20:
            raise ValueError(f"expected at least 64 MiB for a Python, got {self.memory_bytes}")


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
class Judgement:
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


@dataclasses.dataclass(frozen=True)
class _Answers:
    """The lines that came back, and where one is missing, the outcome and reason of that."""

    lines: list[str]
    ending: tuple[str, str] | None
    protections: tuple[str, ...]


def judge(
    candidate: str, assertions: Sequence[Assertion], limits: Limits | None = None
) -> Judgement:
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
        self.workers, self.limits = workers, limits or Limits()
        self._open = contextlib.ExitStack()
        program = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - see close
        program.write(_compiled_child())
        program.flush()
        arguments = _arguments(self.limits, attempt)
        self._start = functools.partial(_Child, program.fileno(), arguments)
        self._expected: dict[str, str] = {}
        self._ready: queue.SimpleQueue[Future[_Child]] = queue.SimpleQueue()
        # A child dies with the thread that started it, so one thread, which stays, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        for _ in range(workers):
            self._order_child()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.protections = self._ask("", "", []).protections
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
        self._open.close()

    def judge(self, submission: Submission) -> Judgement:
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
        answers = self._ask(submission.candidate, submission.setup, calls)
        outcome, reason = _compare(parted, wanted, answers)
        unparted = len(submission.assertions) - len(parted)
        if outcome == "right" and unparted:
            outcome, reason = "undecided", f"{unparted} of the asserts cannot be parted"
        return Judgement(outcome, reason, answers.protections, time.monotonic() - start)

    def judge_all(self, submissions: Iterable[Submission]) -> Iterator[Judgement]:
        """Judge many candidates, `workers` at a time, in their order and in bounded memory."""
        waiting: collections.deque[Future[Judgement]] = collections.deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox-judge") as pool:
            for submission in submissions:
                waiting.append(pool.submit(self.judge, submission))
                if len(waiting) > 4 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _order_child(self) -> None:
        self._ready.put(self._starter.submit(self._start))

    def _ask(self, candidate: str, setup: str, calls: Sequence[str]) -> _Answers:
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
            if _is_literal(tree):
                self._expected[expected] = spell(ast.literal_eval(tree))
            else:
                self._expected[expected] = self._compute(expected, _names(tree))
        return self._expected[expected]

    def _compute(self, expression: str, names: set[str]) -> str:
        modules = sorted((names & sys.stdlib_module_names) - set(dir(builtins)))
        answers = self._ask("".join(f"import {name}\n" for name in modules), "", [expression])
        found = answers.ending[1] if answers.ending else answers.lines[0]
        if not found.startswith("="):
            raise ValueError(f"expected an expression with a value, got {expression!r}: {found}")
        return found[1:]


def _require(guarantees: Iterable[str], protections: Sequence[str]) -> None:
    missing = [name for name in guarantees if not GUARANTEES[name] & set(protections)]
    if missing:
        raise UserError(
            f"a sandbox that guards {', '.join(missing)}",
            f"only {', '.join(protections)}",
            "allow user namespaces, Landlock or seccomp here, or require less of the sandbox",
        )


def _compare(
    parted: Sequence[Assertion], wanted: Sequence[str], answers: _Answers
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
    if not assertion.relative and not assertion.absolute:
        return text == value and text != "nan"
    try:
        got, expected = float(text), float(value)
    except ValueError:
        return False
    return math.isclose(got, expected, rel_tol=assertion.relative, abs_tol=assertion.absolute)


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return short if short.isprintable() else ascii(short)


# --- Children ----------------------------------------------------------------------------------


def _arguments(limits: Limits, attempt: Iterable[str]) -> list[str]:
    # The library of the installation, of which a virtual environment has none.
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    names = ("stdlib", "platstdlib")
    paths = {Path(sysconfig.get_path(name, vars=base)).resolve() for name in names}
    readable = [path for path in sorted(paths) if not paths & set(path.parents)]
    packages = [path / name for path in readable for name in ("site-packages", "dist-packages")]
    lists = (attempt, readable, filter(Path.is_dir, packages))
    numbers = (str(limits.cpu_seconds), str(limits.memory_bytes))
    joined = (":".join(map(str, values)) for values in lists)
    return [*numbers, *joined]


def _compiled_child() -> bytes:
    """The child's program as Python starts it soonest; to compile it takes longer than to judge."""
    source = Path(child.__file__)
    code = compile(source.read_bytes(), str(source), "exec")
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


class _Child:
    """One closed-in Python, for one candidate."""

    def __init__(self, program: int, arguments: Sequence[str]) -> None:
        inner_requests, requests = os.pipe()
        answers, inner_answers = os.pipe()
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", f"/dev/fd/{program}", *arguments],
            stdin=inner_requests,
            stdout=inner_answers,
            stderr=subprocess.DEVNULL,
            pass_fds=[program],
            env={},
            cwd="/",
            start_new_session=True,
        )
        os.close(inner_requests)
        os.close(inner_answers)

    def ask(self, parts: Sequence[str], limits: Limits) -> _Answers:
        """Hand over the candidate, the setup and the calls, and read a line for each call."""
        first, ending = self._read_lines(1, _START_SECONDS, 1 << 16)
        if ending or first[0].startswith("!"):
            raise RuntimeError(f"expected a child that starts, got {first or self._status()}")
        self._hand_over(parts)
        lines, ending = self._read_lines(len(parts) - 2, limits.seconds, limits.answer_bytes)
        explained = self._explain(ending, limits) if ending else None
        return _Answers(lines, explained, tuple(first[0].split(":")))

    def end(self) -> None:
        """Kill the child and all that it started, and forget it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def _hand_over(self, parts: Sequence[str]) -> None:
        texts = [part.encode(errors="replace") for part in parts]
        lengths = " ".join(str(len(text)) for text in texts).encode()
        # A child that is gone shows where its answers are read.
        with contextlib.suppress(BrokenPipeError):
            rest = memoryview(b"\n".join([lengths, b"".join(texts)]))
            while rest:
                rest = rest[self._requests.write(rest) :]
        self._requests.close()

    def _read_lines(self, count: int, seconds: float, most: int) -> tuple[list[str], str]:
        """Return up to `count` lines, and `late`, `long` or `over` where there are not as many."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        received, complete, ending = bytearray(), 0, ""
        while complete < count and not ending:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(math.ceil(1000 * left)):
                ending = "late"
            elif not (piece := self._answers.read(1 << 16)):
                ending = "over"
            elif len(received) + len(piece) > most:
                ending = "long"
            else:
                received += piece
                complete += piece.count(b"\n")
        lines = received.split(b"\n")[: min(complete, count)]
        return [line.decode("ascii", "backslashreplace") for line in lines], ending

    def _explain(self, ending: str, limits: Limits) -> tuple[str, str]:
        if ending == "late":
            return "undecided", f"no answer within {limits.seconds:g} s"
        if ending == "long":
            return "wrong", f"more than {limits.answer_bytes} bytes of answers"
        status = self._status()
        if status == child.CPU_EXCEEDED:
            return "wrong", f"used {limits.cpu_seconds} s of processor time"
        if status == 128 + signal.SIGKILL:
            return "undecided", "killed from outside"
        return "wrong", f"ended with status {status} before it answered"

    def _status(self) -> int | None:
        """The exit status, 128 and more for a signal; None for a child that goes on in silence."""
        try:
            return self._process.wait(timeout=_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return None
