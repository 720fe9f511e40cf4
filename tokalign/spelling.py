"""The student's tokens for a teacher's candidates, cached. No probabilities."""

import threading
from typing import Any

import numpy as np

from tokalign.tokenizers import Tokenizer

NOTHING = -1  # spelled by no token: whitespace that the student drops
UNSPELLABLE = -2  # not text, or only with <unk>
DISAGREES = -3  # does not begin with the bytes already consumed
EXHAUSTED = -4  # is no more than the bytes already consumed

_MOST_STRINGS = 1 << 20
_MOST_STUDENTS = 4
_WHITESPACE = (b" ", b"\t", b"\n", b"\r", b"\x0b", b"\x0c")

START = "start"
INSIDE = "inside"
Context = bytes | tuple[str, bytes] | tuple[str, bytes, tuple[int, ...]]


_kept = threading.local()


def speller_of(student: Tokenizer) -> "Speller":
    """Return this thread's speller of a student, so that its cache lasts."""
    spellers: dict[Tokenizer, Speller] = _kept.__dict__.setdefault("spellers", {})
    if student not in spellers:
        if len(spellers) == _MOST_STUDENTS:
            spellers.pop(next(iter(spellers)))
        spellers[student] = Speller(student)
    return spellers[student]


class Speller:
    """The student's first token for strings and for what follows a context.

    Strings are bytes of text that continues other text. A context is what comes before a
    candidate: bytes to be spelled with it, (START, bytes) at the start of the text, (INSIDE, bytes)
    already consumed, which the candidate must begin with, or either with the student's tokens
    since the candidate's place, which its own cuts must begin with.

    Attributes:
        first: int32 [strings] the first token of each, or one of the negative marks.
        single: int32 [strings] the token of each that is one token, or a mark.
        starts_with_space: bool [strings] whether it begins with whitespace.
        ends_with_space: bool [strings] whether it ends with one.
        is_space: bool [strings] whether it is one space, which a student keeps in some form.
    """

    def __init__(self, student: Tokenizer) -> None:
        self.student = student
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.strings: list[Context] = []
        self.numbers = _Numbers(self)
        self.after = _After(self)
        self.expanders: dict[Any, Any] = {}  # of continuations, which count by these numbers
        self.first = np.empty(0, np.int32)
        self.single = np.empty(0, np.int32)
        self.starts_with_space = np.empty(0, bool)
        self.ends_with_space = np.empty(0, bool)
        self.is_space = np.empty(0, bool)
        self._waiting: list[tuple[int, int, bool, bool, bool]] = []

    @property
    def full(self) -> bool:
        """Whether it is time to clear."""
        return len(self.strings) + len(self.after) // 4 > _MOST_STRINGS

    def close(self) -> None:
        """Bring the arrays up to date with the strings met since."""
        if self._waiting:
            first, single, led, ended, space = zip(*self._waiting, strict=True)
            self.first = np.append(self.first, np.array(first, np.int32))
            self.single = np.append(self.single, np.array(single, np.int32))
            self.starts_with_space = np.append(self.starts_with_space, np.array(led, bool))
            self.ends_with_space = np.append(self.ends_with_space, np.array(ended, bool))
            self.is_space = np.append(self.is_space, np.array(space, bool))
            self._waiting = []

    def add(self, string: Context) -> int:
        """Number a new string or context."""
        self.strings.append(string)
        if isinstance(string, bytes):
            whitespace = (
                string.startswith(_WHITESPACE),
                string.endswith(_WHITESPACE),
                string == b" ",
            )
            marks = (*self.spell(string), *whitespace)
        else:
            marks = (NOTHING, NOTHING, False, False, False)
        self._waiting.append(marks)
        return len(self.strings) - 1

    def spell(self, text: bytes, *, start: bool = False) -> tuple[int, int]:
        """Return the first token of a text and its only one, or marks where there is none.

        The empty text is the end, which EOS spells. <unk> is given as it is.
        """
        if not text:
            return self.student.eos_id, self.student.eos_id
        ids = self.student.spell(text, start=start)
        if ids is None:
            return UNSPELLABLE, UNSPELLABLE
        if not len(ids):
            return NOTHING, NOTHING
        return int(ids[0]), int(ids[0]) if len(ids) == 1 else UNSPELLABLE

    def spell_after(self, context: Context, string: bytes) -> int:
        """Return the first token of a candidate after a context."""
        if isinstance(context, bytes):
            return self._spell_on(context, string, start=False)
        kind, before, *path = context
        if path:
            return self._go_on(string, path[0], start=kind == START)
        if kind == START:
            return self._spell_on(before, string, start=True)
        if not string.startswith(before):
            return DISAGREES
        if len(string) == len(before):
            return EXHAUSTED
        return self.spell(string[len(before) :])[0]

    def _spell_on(self, before: bytes, string: bytes, *, start: bool) -> int:
        """Return the first token of both together, EOS where only dropped whitespace is left."""
        found = self.spell(before + string, start=start)[0]
        return self.student.eos_id if found == NOTHING and not string else found

    def _go_on(self, string: bytes, path: tuple[int, ...], *, start: bool) -> int:
        """Return the token after `path` in the cuts of a candidate."""
        ids = self.student.spell(string, start=start) or []
        if tuple(ids[: len(path)]) != path:
            return DISAGREES
        return int(ids[len(path)]) if len(ids) > len(path) else EXHAUSTED


class _Numbers(dict):
    """The number of each string and context."""

    def __init__(self, speller: Speller) -> None:
        self._speller = speller

    def __missing__(self, string: Context) -> int:
        self[string] = number = self._speller.add(string)
        return number


class _After(dict):
    """Context number * 2**32 + string number to the first token."""

    def __init__(self, speller: Speller) -> None:
        self._speller = speller

    def __missing__(self, key: int) -> int:
        context, string = (self._speller.strings[n] for n in (key >> 32, key & 0xFFFFFFFF))
        if not isinstance(string, bytes):
            raise ValueError(f"expected bytes after a context, got {string!r}")
        self[key] = found = self._speller.spell_after(context, string)
        return found
