r"""Compare by algebra the answers that keys leave undecided, with SymPy in a killable process.

    2\sqrt{3} against \sqrt{12}    ->  a worker's line in, "1", "0" or "?" out

SymPy may need unbounded time or memory for a text as short as `9^{9^{9^{9}}}`, so a worker has a
time for each pair and a limit of memory. It reads LaTeX alone, which is parsed without evaluating
any text; the protections that confine programs are a second wall. A machine that grants few of them
is not refused: the protections in force are reported.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from importlib import util
from pathlib import Path

from distill.core.errors import UserError
from distill.grading.protections import PROTECTIONS
from distill.grading.sandbox_process import end
from distill.text import answers

WORKER = "distill.grading.algebra_worker"
_START_SECONDS = 60.0
_ANSWERS = {b"1": True, b"0": False}


class Algebra:
    r"""Compares answers by keys, and by algebra if keys leave them undecided.

    A pair that is not decided within its time or memory stays undecided; the worker is killed and
    the next pair gets another. Verdicts are remembered, since samples repeat their answers.

    Args:
        seconds: time on the clock for a pair.
        memory_bytes: address space of the worker.
        attempt: names of PROTECTIONS that are put in force where the machine grants them.

    Raises:
        UserError: math-verify is not installed.

    Example:
        >>> with Algebra() as algebra:
        ...     algebra.equal(r"2\sqrt{3}", r"\sqrt{12}"), algebra.equal("x + 1", "x + 2")
        (True, False)

    Source: the LaTeX parser of math-verify 0.9.0, and SymPy, as `algebra_compare` uses them.
    """

    def __init__(
        self,
        *,
        seconds: float = 5.0,
        memory_bytes: int = 1 << 30,
        attempt: Collection[str] = PROTECTIONS,
    ) -> None:
        if util.find_spec("math_verify") is None:
            raise UserError(
                "the package math-verify", "none", "install it: pip install 'distill[math]'"
            )
        self.seconds, self.memory_bytes = seconds, memory_bytes
        self.attempt = tuple(attempt)
        self.killed = 0
        self._known: dict[tuple[str, str], bool | None] = {}
        self._protections: tuple[str, ...] | None = None
        self._worker: _Worker | None = None

    def __enter__(self) -> "Algebra":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def protections(self) -> tuple[str, ...] | None:
        """Return the protections in force in the worker, None before one has started."""
        return self._protections

    def worker_pid(self) -> int | None:
        """Return the process id of the worker, None while there is none."""
        return self._worker.pid if self._worker is not None else None

    def equal(self, prediction: str, gold: str) -> bool | None:
        """Return whether an answer is right, as `answers.equal`, None if undecided."""
        return answers.equal(prediction, gold, self._compare)

    def _compare(self, prediction: str, gold: str) -> bool | None:
        pair = (prediction, gold)
        if pair not in self._known:
            self._known[pair] = self._ask(pair)
        return self._known[pair]

    def _ask(self, pair: tuple[str, str]) -> bool | None:
        line = self._started().ask(json.dumps(pair), self.seconds)
        if not line:
            self.killed += 1
            self.close()
        return _ANSWERS.get(line)

    def _started(self) -> "_Worker":
        if self._worker is not None and not self._worker.waits():
            self.close()  # it died while it waited, through no fault of the next pair
        if self._worker is None:
            self._worker = _Worker(self.memory_bytes, self.attempt)
            self._protections = self._worker.protections
        return self._worker


class _Worker:
    """One process that compares pairs until it is ended."""

    def __init__(self, memory_bytes: int, attempt: Sequence[str]) -> None:
        inner_pairs, pairs = os.pipe()
        self._answers, inner_answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", WORKER, str(memory_bytes), ":".join(attempt)],
            stdin=inner_pairs,
            stdout=inner_answers,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )
        os.close(inner_pairs)
        os.close(inner_answers)
        self._pairs = os.fdopen(pairs, "wb", buffering=0)
        ready, *protections = self._line(_START_SECONDS).decode("ascii", "replace").split(":")
        self.protections = tuple(protections)
        if ready != "ready":
            self.end()
            raise RuntimeError(f"expected a worker that starts, got {self._process.returncode}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def waits(self) -> bool:
        """Return whether the process is alive."""
        return self._process.poll() is None

    def ask(self, pair: str, seconds: float) -> bytes:
        """Return the answer to a pair, empty after a timeout or the death of the worker."""
        with contextlib.suppress(BrokenPipeError):
            self._pairs.write(pair.encode() + b"\n")
        return self._line(seconds)

    def end(self) -> None:
        """Kill the process and forget it."""
        end(self._process)
        self._pairs.close()
        os.close(self._answers)

    def _line(self, seconds: float) -> bytes:
        deadline, line = time.monotonic() + seconds, b""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                return b""
            if not (piece := os.read(self._answers, 1 << 12)):
                return b""
            line += piece
        return line.strip()
