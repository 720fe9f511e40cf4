"""The outer side of one sandboxed process: starts it, hands it a candidate, reads its answers.

Nothing that an earlier candidate could touch reaches a later process. Its program is compiled once,
kept in the memory of the process that judges, and written into the pipe of each process anew; no
file and no descriptor holds it. Nothing that comes back is parsed.
"""

import contextlib
import dataclasses
import marshal
import math
import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.core.errors import UserError
from distill.grading.confinement import CPU_EXCEEDED

# The modules of the inner side, each after those that it imports.
INNER = ("protections", "seccomp", "kernel", "confinement", "spelling", "sandbox_child")

# Reads the modules' code from descriptor 0 and runs it; to compile them takes longer than to judge.
_BOOT = """
import marshal, posix, sys
program, size = b"", int(sys.argv[1])
while len(program) < size:
    piece = posix.read(0, size - len(program))
    if not piece:
        posix._exit(1)
    program += piece
for name, code in marshal.loads(program):
    module = sys.modules[name] = type(sys)(name)
    module.__builtins__ = __builtins__
    type(lambda: 0)(code, vars(module))()
module.main(sys.argv[2:])
"""
_OPEN_FILES = 32
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_LAST_SECONDS = 1.0


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
class Answers:
    """The lines that came back, and where one is missing, the outcome and reason of that."""

    lines: list[str]
    ending: tuple[str, str] | None
    protections: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What every process of a sandbox starts from.

    Attributes:
        code: the modules of the inner side, compiled and marshalled.
        arguments: as `confinement.Order` takes them.
    """

    code: bytes
    arguments: Sequence[str]


def program(limits: Limits, attempt: Iterable[str]) -> Program:
    """Return the program that confines itself with these limits and protections."""
    folder, package = Path(__file__).parent, __name__.rpartition(".")[0]
    modules = [(f"{package}.{name}", folder / f"{name}.py") for name in INNER]
    # Under the module's name, as the path of the installation is nobody's business inside.
    code = [
        (name, compile(path.read_bytes(), name, "exec", dont_inherit=True, optimize=2))
        for name, path in modules
    ]
    parents = [(name, compile("", name, "exec")) for name in (package.partition(".")[0], package)]
    return Program(marshal.dumps([*parents, *code]), _arguments(limits, attempt))


def _arguments(limits: Limits, attempt: Iterable[str]) -> list[str]:
    # The library of the installation, of which a virtual environment has none.
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    names = ("stdlib", "platstdlib")
    paths = {Path(sysconfig.get_path(name, vars=base)).resolve() for name in names}
    readable = [path for path in sorted(paths) if not paths & set(path.parents)]
    packages = [path / name for path in readable for name in ("site-packages", "dist-packages")]
    lists = (attempt, readable, filter(Path.is_dir, packages))
    numbers = (str(limits.cpu_seconds), str(limits.memory_bytes), str(_OPEN_FILES))
    joined = (":".join(map(str, values)) for values in lists)
    return [*numbers, *joined]


class Process:
    """One confined Python, for one candidate.

    Raises:
        UserError: Python cannot be started by this user.
    """

    def __init__(self, program: Program) -> None:
        inner_requests, requests = os.pipe()
        answers, inner_answers = os.pipe()
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb", buffering=0)
        size = str(len(program.code))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _BOOT, size, *program.arguments],
                stdin=inner_requests,
                stdout=inner_answers,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._close_pipes()
            raise _no_python(str(error)) from error
        finally:
            os.close(inner_requests)
            os.close(inner_answers)
        self._write(program.code)

    def ask(self, parts: Sequence[str], limits: Limits) -> Answers:
        """Hand over the candidate, the setup and the calls, and read a line for each call.

        Raises:
            UserError: the process ended before it was confined.
        """
        first, ending = self._read_lines(1, _START_SECONDS, 1 << 16)
        if ending or first[0].startswith("!"):
            raise _no_python(first[0] if first else f"status {self._status()}")
        self._hand_over(parts)
        lines, ending = self._read_lines(len(parts) - 2, limits.seconds, limits.answer_bytes)
        explained = self._explain(ending, limits) if ending else None
        return Answers(lines, explained, tuple(first[0].split(":")))

    def end(self) -> None:
        """Kill the process and all that it started, and forget it."""
        end(self._process)
        self._close_pipes()

    def _close_pipes(self) -> None:
        self._requests.close()
        self._answers.close()

    def _hand_over(self, parts: Sequence[str]) -> None:
        texts = [part.encode(errors="replace") for part in parts]
        lengths = " ".join(str(len(text)) for text in texts).encode()
        self._write(b"\n".join([lengths, b"".join(texts)]))
        self._requests.close()

    def _write(self, text: bytes) -> None:
        # A process that is gone shows where its answers are read.
        with contextlib.suppress(BrokenPipeError):
            rest = memoryview(text)
            while rest:
                rest = rest[self._requests.write(rest) :]

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
        if status == CPU_EXCEEDED:
            return "wrong", f"used {limits.cpu_seconds} s of processor time"
        if status == 128 + signal.SIGKILL:
            return "undecided", "killed from outside"
        return "wrong", f"ended with status {status} before it answered"

    def _status(self) -> int | None:
        """The exit status, 128 and more for a signal; None for a process that stays silent."""
        try:
            return self._process.wait(timeout=_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that `confinement.confine` split: its watcher kills the confined one first."""
    process.terminate()
    try:
        process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _no_python(got: str) -> UserError:
    return UserError(
        f"a Python that starts as this user ({sys.executable})",
        got,
        "install Python and distill where this user can read them",
    )
