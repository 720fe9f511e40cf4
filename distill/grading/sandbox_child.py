"""The inner side of the sandbox: confines itself, then runs one candidate; it judges nothing.

It starts anew for every candidate, from a program that comes through its own pipe, and so imports
no more than it needs, and of `distill` only what `sandbox_process.INNER` sends along.

    descriptor 0   in: the program; then the lengths of the parts, a new line, and the parts:
                   candidate, setup, calls
    descriptor 1   out: a line of the protections in force, then a line for each call:
                   "=" and the spelled value, "?" and the name of a type that has no literal,
                   or "!" and the exception, after which nothing follows

A candidate finds one descriptor open, the answers' pipe. The standard streams are objects without
a descriptor, as even /dev/null has a time and a lock that candidates would share.
"""

import builtins
import io
import os
import sys
import types
from collections.abc import Callable, Sequence

from distill.grading.confinement import Order, confine
from distill.grading.spelling import NoLiteralError, spell


def main(arguments: Sequence[str]) -> None:
    """Confine the process, say with which protections, and run the candidate that follows.

    Args:
        arguments: as `Order` takes them.
    """
    answers = os.dup(1)
    sys.excepthook = _report_to(answers)
    held = confine(Order(*arguments))
    _send(answers, ":".join(held))
    parts = _receive(0)
    os.closerange(0, answers)
    _silence()
    _run(parts, answers)


class _Nothing(io.RawIOBase):
    """A stream without a descriptor: empty to read, and nothing written to it is kept."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        return 0

    def write(self, text, /) -> int:
        return memoryview(text).nbytes


def _silence() -> None:
    """Turn the standard streams to nothing."""
    empty = io.TextIOWrapper(io.BufferedReader(_Nothing()), "utf-8")
    sys.stdin = sys.__stdin__ = empty
    for name in ("stdout", "stderr"):
        sink = io.TextIOWrapper(io.BufferedWriter(_Nothing()), "utf-8", "backslashreplace")
        setattr(sys, name, sink)
        setattr(sys, f"__{name}__", sink)


def _receive(requests: int) -> list[str]:
    text = bytearray()
    while piece := os.read(requests, 1 << 16):
        text += piece
    lengths, _, rest = text.partition(b"\n")
    parts = []
    for length in map(int, lengths.split()):
        parts.append(rest[:length].decode())
        del rest[:length]
    return parts


def _send(answers: int, text: str) -> None:
    rest = text.encode() + b"\n"
    while rest:
        rest = rest[os.write(answers, rest) :]


def _report_to(answers: int) -> Callable[..., None]:
    """The hook that whatever is raised, by a candidate or before it, ends in."""

    def report(kind: type[BaseException], error: BaseException, _: object) -> None:
        mark = "?" if kind is NoLiteralError else f"!{kind.__name__}: "
        _send(answers, (mark + ascii(str(error))[1:-1])[:200])

    return report


def _run(parts: Sequence[str], answers: int) -> None:
    """Run the candidate and send the value of each call, up to the first that raises.

    A function made of compiled code is the plain way to run a text in a module's namespace. This
    process exists to do so, and nothing that the candidate can reach here is worth protecting.
    """
    candidate, setup, *calls = parts
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    # As an import does; the interpreter's own imports look here.
    vars(module)["__builtins__"] = builtins
    for source in (candidate, setup):
        types.FunctionType(compile(source, "<candidate>", "exec"), vars(module))()
    for call in calls:
        value = types.FunctionType(compile(call, "<call>", "eval"), vars(module))()
        _send(answers, "=" + spell(value))
    os._exit(0)
