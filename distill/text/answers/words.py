"""Numbers in English and Chinese words: a strict grammar that reads all of a number or none of it.

    twenty-five            one hundred and five       two and a half million
    three point five       two thirds                 half a dozen
    minus five             5 million                  二十五

The grammar reads the front of a text and returns the rest, so that a unit can follow. A sequence
that is no number, as `one two` or `five thousand hundred`, is not read at all.
"""

import re
from fractions import Fraction


def listed(words: str) -> list[str]:
    """Return the words of a list that is written as one text."""
    return words.split()


_ONES = listed("one two three four five six seven eight nine")
_TEENS = listed("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")
_DIGITS = {"zero": 0} | {word: value for value, word in enumerate(_ONES, 1)}
_SMALL = _DIGITS | {word: value for value, word in enumerate(_TEENS, 10)}
_ROUND = {word: 10 * value for value, word in enumerate(_TENS, 2)}
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "lakh": 10**5,
    "crore": 10**7,
}
_GROUPS = {"dozen": 12, "hundred": 100} | _SCALES
_PARTS = listed(
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth sixteenth twentieth "
    "hundredth thousandth millionth"
)
_UNDER = dict(zip(_PARTS, (*range(3, 13), 16, 20, 100, 1000, 10**6), strict=True))
_UNDER |= {"half": 2, "quarter": 4}
_PLURALS = {f"{word}s": value for word, value in _UNDER.items() if word != "half"} | {"halves": 2}
_SIGNS = ("minus", "negative")
_OTHERS = listed(
    "point dozens hundreds thousands millions billions trillions lakhs crores gross score first "
    "second none nothing couple twice thrice double triple percent"
)
# Words that make a text more than a word: they stand in numbers, near them or for them.
NUMERIC = frozenset(
    [
        *_SMALL,
        *_ROUND,
        *_GROUPS,
        *_UNDER,
        *_PLURALS,
        *_SIGNS,
        *_OTHERS,
    ]
)
_WORD = re.compile(r"(?:(?<=[a-z])-|\s*)([a-z]+)(?![\w'])", re.IGNORECASE)
_ARTICLE = re.compile(
    r"^(\s*)an? (?=(?:hundred|thousand|million|billion|trillion)\b)", re.IGNORECASE
)
_CHINESE = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {
    "\u3007": 0,
    "两": 2,
}
_CHINESE_NUMBER = re.compile(
    "([一二三四五六七八九]?)十([一二三四五六七八九]?)|([零\u3007一二两三四五六七八九])"
)


class _Words:
    """A place in a text that moves on by words."""

    def __init__(self, text: str, place: int = 0) -> None:
        self.text, self.place = text, place

    def next(self) -> tuple[str, int]:
        """Return the next word in lower case, empty where none follows, and where it ends."""
        match = _WORD.match(self.text, self.place)
        return (match[1].lower(), match.end()) if match else ("", self.place)

    def take(self, *wanted: str) -> str:
        """Move past the next word if it is one of those wanted; return it, else nothing."""
        word, end = self.next()
        if word not in wanted:
            return ""
        self.place = end
        return word

    def rest(self) -> str:
        return self.text[self.place :]


def number(text: str) -> tuple[Fraction, str] | None:
    """Return the number at the front of a text and the rest, None where no number in words stands.

    Example:
        >>> number("two and a half hours"), number("one two three")
        ((Fraction(5, 2), ' hours'), None)
    """
    words = _Words(_ARTICLE.sub(r"\1one ", text))
    sign = -1 if words.take(*_SIGNS) else 1
    value = _half(words)
    if value is None:
        article = words.take("a", "an")
        value = Fraction(1) if article else _cardinal(words)
        if value is None:
            return None
        value = _point(words, value)
        before = words.place
        value = _multiplied(words, value)
        if article and words.place == before:
            return None
    return _closed(words, sign * value)


def scaled(value: Fraction, text: str) -> tuple[Fraction, str] | None:
    """Return a number in digits with the scale or fraction in words that follows it, and the rest.

    Example:
        >>> scaled(Fraction(5), " million people"), scaled(Fraction(2), " and a half")
        ((Fraction(5000000, 1), ' people'), (Fraction(5, 2), ''))
    """
    words = _Words(text)
    return _closed(words, _multiplied(words, value))


def chinese(text: str) -> int | None:
    """Return a number from zero to ninety-nine in Chinese numerals.

    Example:
        >>> [chinese(text) for text in ("五", "二十五", "十", "五五")]
        [5, 25, 10, None]
    """
    match = _CHINESE_NUMBER.fullmatch(text)
    if match is None:
        return None
    tens, ones, single = match.groups()
    if single:
        return _CHINESE[single]
    return 10 * (_CHINESE[tens] if tens else 1) + (_CHINESE[ones] if ones else 0)


def _closed(words: _Words, value: Fraction) -> tuple[Fraction, str] | None:
    """Refuse a number that another numeric word follows: what they mean together is unknown."""
    following, _ = words.next()
    return None if following in NUMERIC - {"percent", "second"} else (value, words.rest())


def _half(words: _Words) -> Fraction | None:
    """Read `half`, `half a dozen`, `half an` before a unit."""
    before = words.place
    if not words.take("half"):
        if not words.take("a") or not words.take("half"):
            words.place = before
            return None
        return Fraction(1, 2)
    if words.take("a", "an") and (group := words.take(*_GROUPS)):
        return Fraction(_GROUPS[group], 2)
    return Fraction(1, 2)


def _cardinal(words: _Words) -> Fraction | None:
    """Read a whole number: parts of falling scale, each below a thousand."""
    if words.take("zero"):
        return Fraction(0)
    total, ceiling = 0, 10**15
    while True:
        before = words.place
        if total:
            words.take("and")
        part = _below_thousand(words)
        if part is None:
            words.place = before
            return Fraction(total) if total else None
        scale = _SCALES[name] if (name := words.take(*_SCALES)) else 1
        if scale >= ceiling:
            return None
        total, ceiling = total + part * scale, scale
        if scale == 1:
            return Fraction(total)


def _below_thousand(words: _Words) -> int | None:
    part = _below_hundred(words)
    if not part or not words.take("hundred"):
        return part
    before = words.place
    words.take("and")
    more = _below_hundred(words)
    if more is None:
        words.place = before
    return 100 * part + (more or 0)


def _below_hundred(words: _Words) -> int | None:
    if tens := words.take(*_ROUND):
        ones = words.take(*_ONES)
        return _ROUND[tens] + (_SMALL[ones] if ones else 0)
    small = words.take(*_ONES, *_TEENS)
    return _SMALL[small] if small else None


def _point(words: _Words, value: Fraction) -> Fraction:
    """Read the digits after `point`."""
    before = words.place
    if not words.take("point"):
        return value
    digits = ""
    while word := words.take(*_DIGITS):
        digits += str(_DIGITS[word])
    if not digits:
        words.place = before
    return value + Fraction(int(digits or "0"), 10 ** len(digits))


def _multiplied(words: _Words, value: Fraction) -> Fraction:
    """Read what follows a number: a part of one, a half more, a dozen, a scale."""
    if value == 1 and (part := words.take(*_UNDER)):
        return Fraction(1, _UNDER[part])
    if value != 1 and value.denominator == 1 and (part := words.take(*_PLURALS)):
        return value / _PLURALS[part]
    value += _added(words)
    if group := words.take(*_GROUPS):
        value *= _GROUPS[group]
    return value


def _added(words: _Words) -> Fraction:
    """Read `and a half`, `and three quarters`, nothing where neither stands."""
    before = words.place
    if words.take("and"):
        article = words.take("a", "one")
        if article and (part := words.take(*_UNDER)):
            return Fraction(1, _UNDER[part])
        count = words.take(*_ONES) if not article else ""
        if count and (part := words.take(*_PLURALS)) and _SMALL[count] < _PLURALS[part]:
            return Fraction(_SMALL[count], _PLURALS[part])
    words.place = before
    return Fraction(0)
