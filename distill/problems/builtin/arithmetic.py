"""The built-in problems: seeded, unlimited, with a gold chain; each question is in one split.

`stories`, `heldout` and `general` hold the wordings, `storytelling` composes the texts.
"""

from collections.abc import Callable, Iterator

from distill.core import seeds
from distill.core.records import Problem
from distill.problems.builtin.general import GENERAL as _GENERAL
from distill.problems.builtin.heldout import ASDIV, MULTI, SINGLE, SVAMP
from distill.problems.builtin.stories import GSM
from distill.problems.builtin.storytelling import NAMES, Draw, Exercise, Story, tell

HELD_OUT = ("multi", "asdiv", "svamp")
FAMILIES = ("gsm", *HELD_OUT)
GENERAL = tuple(_GENERAL)
SINGLE_STEP = "single_step"

# Hundredths of all questions, in this order.
_TRAINABLE = (("train", 80), ("validation", 10), ("test", 10))
_HELD_OUT = (("selection", 50), ("report", 50))
_STREAM = 1_000_000_000


def splits(family: str) -> tuple[str, ...]:
    """Return the splits of a family: two for the held-out ones, three for the others."""
    return tuple(name for name, _ in (_HELD_OUT if family in HELD_OUT else _TRAINABLE))


def split_of(family: str, question: str) -> str:
    """Return the split that a question belongs to, whatever seed drew it.

    The rule is a hash of the words without names and pronouns, so that questions which differ in
    these alone fall into the same split.

    Example:
        >>> split_of("gsm", "Tom has 3 cups.") == split_of("gsm", "Mia  has 3 cups.")
        True
    """
    words = " ".join(_NAMELESS.get(word, word) for word in question.split())
    place = seeds.from_names(words, bits=32) % 100
    for name, share in _HELD_OUT if family in HELD_OUT else _TRAINABLE:
        if place < share:
            return name
        place -= share
    raise ArithmeticError("the shares of the splits do not add up to 100")


def problem(family: str, split: str, seed: int) -> Problem:
    """Return the problem of a seed: the same for ever, on every machine.

    Args:
        family: one of FAMILIES, GENERAL or SINGLE_STEP.
        split: one of `splits(family)`.
        seed: any integer from 0; two seeds may give the same question.

    Raises:
        ValueError: the family is unknown, or has no such split.

    Example:
        >>> problem("gsm", "train", 3).chain.splitlines()[-1].startswith("The answer is ")
        True
    """
    if family not in _TELLERS:
        raise ValueError(f"expected a family of {tuple(_TELLERS)}, got {family!r}")
    if split not in splits(family):
        raise ValueError(f"expected a split of {splits(family)} for {family}, got {split!r}")
    draw = Draw(family, split, seed)
    while True:
        exercise = _TELLERS[family](draw)
        if split_of(family, exercise.question) == split:
            return Problem(
                f"{family}/{split}/{seed}",
                family,
                split,
                exercise.question,
                exercise.answer,
                exercise.chain,
            )


def problems(family: str, split: str, n: int, seed: int = 0) -> Iterator[Problem]:
    """Yield n problems with distinct questions; streams of different seeds may share some.

    Args:
        family: as in `problem`.
        split: as in `problem`.
        n: how many problems; every family has at least 1,000 distinct ones in a split.
        seed: number of the stream, from 0.

    Raises:
        ValueError: as in `problem`.
    """
    seen: set[str] = set()
    number = seed * _STREAM
    while len(seen) < n:
        drawn = problem(family, split, number)
        number += 1
        if drawn.question not in seen:
            seen.add(drawn.question)
            yield drawn


def _stories(stories: tuple[Story, ...]) -> Callable[[Draw], Exercise]:
    return lambda draw: tell(draw.pick(stories), draw)


_TELLERS: dict[str, Callable[[Draw], Exercise]] = {
    "gsm": _stories(GSM),
    "multi": _stories(MULTI),
    "asdiv": _stories(ASDIV),
    "svamp": _stories(SVAMP),
    SINGLE_STEP: _stories(SINGLE),
    **_GENERAL,
}
_NAMELESS = {
    f"{word}{mark}": f"_{mark}"
    for name in (*NAMES, "he", "He", "she", "She", "his", "His", "her", "Her", "him")
    for word in (name,)
    for mark in ("", ",", ".", ":", "?", "'s")
}
