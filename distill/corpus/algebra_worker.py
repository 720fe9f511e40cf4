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

from math_verify import LatexExtractionConfig, parse, verify

from distill.corpus import sandbox_child

# math-verify's own evaluation of plain expressions is left out: it runs their text.
_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)
_LEFT_OPEN = 64


def compare(prediction: str, gold: str) -> str:
    r"""Return 1 if both are one value both ways round, 0 if not, ? if either cannot be read.

    Example:
        >>> compare(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), compare("x", r"\frac{")
        ('1', '?')
    """
    one, other = _parsed(prediction), _parsed(gold)
    if not one or not other:
        return "?"
    untimed = {"timeout_seconds": None, "raise_on_error": True}
    return "1" if verify(other, one, **untimed) and verify(one, other, **untimed) else "0"


def _parsed(answer: str) -> list:
    if not _balanced(answer):
        return []
    return parse(
        f"\\boxed{{{answer}}}",
        _LATEX,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] - what it documents
    )


def _balanced(text: str) -> bool:
    """Return whether braces close, so that a text cannot end the box that it is put into."""
    depth = 0
    for letter in text.replace("\\{", "").replace("\\}", ""):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return depth == 0


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
