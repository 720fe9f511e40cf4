"""The inner side of `algebra`: confines itself, then compares LaTeX pairs, a line each.

It starts as `python -m distill.grading.algebra_worker MEMORY_BYTES PROTECTIONS`, the names of the
protections to attempt parted by colons.

    in:    ["PREDICTION", "GOLD"]                    JSON, a line each
    out:   ready and the protections in force,       parted by colons
           then for each pair 1, 0 or ? (unread)     a line each
"""

import json
import logging
import os
import sys
import sysconfig

import math_verify
import sympy

from distill.grading.algebra_compare import compare
from distill.grading.confinement import Order, confine

_OPEN_FILES = 64


def confine_worker(memory_bytes: str, wanted: str) -> list[str]:
    """Give up memory beyond a limit, all writing, all but Python's own files, and every socket.

    Returns:
        The protections in force; none outside Linux.
    """
    if sys.platform != "linux":
        return []
    compare("x + 1", "1 + x")  # reads what is read late, as long as it can be
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [sysconfig.get_path(name) for name in names]
    places += [os.path.dirname(path) for one in (math_verify, sympy) for path in one.__path__]  # noqa: PTH120
    folders = {os.path.realpath(place) for place in places if os.path.isdir(place)}  # noqa: PTH112
    outer = [one for one in folders if not any(one.startswith(f"{two}/") for two in folders)]
    readable = ":".join(sorted(outer))
    no_cpu_limit = "0"  # the clock of `algebra` ends a pair
    return confine(Order(no_cpu_limit, memory_bytes, str(_OPEN_FILES), wanted, readable, ""))


def main() -> None:
    """Answer pairs until there are no more."""
    logging.disable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(":".join(["ready", *confine_worker(*sys.argv[1:])]) + "\n")
    for line in sys.stdin:
        answers.write(_answer(*json.loads(line)) + "\n")


def _answer(prediction: str, gold: str) -> str:
    try:
        return compare(prediction, gold)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return "?"  # SymPy's errors for undecided pairs; any other ends the worker


if __name__ == "__main__":
    main()
