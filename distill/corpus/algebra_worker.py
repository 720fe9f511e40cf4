"""The inner side of `algebra`: closes itself in, then compares LaTeX pairs, a line each.

It starts as `python -m distill.corpus.algebra_worker MEMORY_BYTES`.

    in:    ["PREDICTION", "GOLD"]                         JSON, a line each
    out:   ready, then for each pair 1, 0 or ? (unread)   a line each
"""

import json
import logging
import os
import resource
import sys

from distill.corpus import sandbox_child
from distill.corpus.algebra_compare import compare

_LEFT_OPEN = 64


def _close_in(memory_bytes: int) -> None:
    """Give up memory beyond a limit, all writing, all but Python's own files, and every socket."""
    compare("x + 1", "1 + x")  # reads what is read late, as long as it can be
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_LEFT_OPEN, _LEFT_OPEN))
    sandbox_child.close_process_in([path for path in sys.path if os.path.isdir(path)])  # noqa: PTH112


def main() -> None:
    """Answer pairs until there are no more."""
    logging.disable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _close_in(int(sys.argv[1]))
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(_answer(*json.loads(line)) + "\n")


def _answer(prediction: str, gold: str) -> str:
    try:
        return compare(prediction, gold)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return "?"  # SymPy's ways to say that it cannot tell; of others the worker dies


if __name__ == "__main__":
    main()
