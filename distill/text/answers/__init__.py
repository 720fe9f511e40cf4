r"""Find a text's final answer and decide whether two answers are equal; never runs model text.

An answer is read into a value by explicit lists and a strict grammar (`reading`), all of it or
not at all; what stands beside a number and is in no list makes a text that equals only itself.
Two values are equal, different, or undecided (`values`). `docs/grading.md` lists the conventions.

Votes are counted on `canonical` keys: answers of one key are never different.
"""

from collections.abc import Callable

from distill.text.answers import values
from distill.text.answers.marks import extract, fu2023, marked, stated
from distill.text.answers.reading import read

__all__ = ["canonical", "equal", "extract", "fu2023", "marked", "stated"]


def canonical(answer: str) -> str:
    r"""Return the key under which answers of the same value meet in a vote.

    Amounts of money are in dollars, other quantities in base units, counted things and dollars are
    not named, and a point's parentheses do not count.

    Example:
        >>> [canonical(text) for text in ("1,200", "$1200.00", "0.5", r"\frac{1}{2}", "True.")]
        ['1200', '1200', '1/2', '1/2', 'true']
        >>> [canonical(text) for text in ("9 apples", "2 hours", "50 cents", "5!", "x'")]
        ['9', '7200 second', '1/2', '120', "x'"]
    """
    return read(answer).key()


def equal(
    prediction: str, gold: str, ask: Callable[[str, str], bool | None] | None = None
) -> bool | None:
    r"""Return whether an answer is right, None where the texts do not decide it.

    Args:
        prediction: the answer that is judged.
        gold: the right one.
        ask: decides about two expressions in LaTeX whose spellings differ; nobody by default.

    Example:
        >>> equal("$1,200", "1200"), equal("50 cents", "$0.50"), equal("10%", "10")
        (True, True, True)
        >>> equal("10", "10%"), equal("5 km", "5 m"), equal("5 crores", "5")
        (False, False, None)
    """
    if prediction == gold:
        return True
    return values.equal(read(prediction), read(gold), *filter(None, [ask]))
