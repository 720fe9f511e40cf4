r"""Numbers in digits, exactly: thousands in every usual grouping, fractions, powers, roots, LaTeX.

    1,200   1 200   1,23,456   1.200,00   1e3   6.02 \times 10^{23}   1 1/2   -\frac{-1}{2}
    2^{10}   \sqrt{16}   4!   0.\overline{3}

All of a text is read or none of it. Sums, differences and products of plain numbers are not read,
since `3-5` may be a range and `5 x 3` a size.
"""

import math
import re
from fractions import Fraction

_GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"
DECIMAL = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_EUROPEAN = re.compile(r"([-+]?)\s?(\d{1,3}(?:\.\d{3})+),(\d{2})")
_NUMBER = re.compile(rf"(?:(?:{_GROUPED}|\d+)(?![\d])(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\d))?")
_MIXED = re.compile(
    r"(\d+)(?: (?=\d)(?P<over>\d+) ?/ ?(?P<under>\d+)"
    r"| ?\\frac ?(?:\{(?P<top>\d+)\}|(?P<digit>\d)) ?(?:\{(?P<bottom>\d+)\}|(?P<last>\d)))"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_TIMES = re.compile(r" ?(?:\\times|\\cdot|[*·\u00d7x]) ?10 ?(?=\^)")
_LONGEST_POWER, _LARGEST_FACTORIAL, _DEEPEST = 4096, 100, 12
_LARGEST_EXPONENT = 400


class _UnreadError(ValueError):
    """The text is no number."""


def value(text: str) -> Fraction | None:
    r"""Return the value of a number in digits, None where any of the text is something else.

    Example:
        >>> [str(value(text)) for text in ("1,200", r"\frac{1}{2}", "2^10", "11 7/6", "5 x 3")]
        ['1200', '1/2', '1024', 'None', 'None']
    """
    if text.isdecimal() and text.isascii():
        return Fraction(int(text))
    if "," in text and "(" in text:
        return None  # a point as well as a number with thousands
    try:
        return _whole(text.strip())
    except _UnreadError:
        return None


def _whole(text: str) -> Fraction:
    if european := _EUROPEAN.fullmatch(text):
        whole = f"{european[2].replace('.', '')}.{european[3]}"
        return Fraction(f"{european[1]}{whole}")
    bare = text.lstrip("-+ ")
    sign = -1 if text[: len(text) - len(bare)].count("-") % 2 else 1
    if len(text) - len(bare) > 3:
        raise _UnreadError
    if mixed := _MIXED.fullmatch(bare):
        return sign * _mixed(mixed)
    if repeating := _REPEATING.fullmatch(bare):
        return sign * _repeating(*repeating.groups())
    reader = _Reader(text)
    number = reader.quotient(0)
    if reader.place != len(text):
        raise _UnreadError
    return number


def _mixed(match: re.Match[str]) -> Fraction:
    """Return a whole number with a proper fraction; `1 200/300` may be either of two."""
    over = int(match["over"] or match["top"] or match["digit"])
    under = int(match["under"] or match["bottom"] or match["last"])
    if over >= under or (match["over"] and len(match["over"]) == 3 and len(match[1]) <= 3):
        raise _UnreadError
    return int(match[1]) + Fraction(over, under)


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    scale, cycle = 10 ** len(fixed), 10 ** len(period) - 1
    return int(whole or 0) + Fraction(int(fixed or 0), scale) + Fraction(int(period), scale * cycle)


class _Reader:
    """A reader by recursive descent; a method for each level of binding."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def takes(self, sign: str) -> bool:
        """Move past a sign and the space around it if it comes next."""
        place = self.place
        while self.text.startswith(" ", place):
            place += 1
        if not self.text.startswith(sign, place):
            return False
        self.place = place + len(sign)
        while self.text.startswith(" ", self.place):
            self.place += 1
        return True

    def quotient(self, depth: int) -> Fraction:
        """Read a number, a quotient of two, or a number times a power of ten."""
        number = self.signed(depth)
        if ten := _TIMES.match(self.text, self.place):
            self.place = ten.end()
            return number * self.raised(Fraction(10), depth)
        if self.takes("/"):
            under = self.signed(depth)
            return _over(number, under)
        return number

    def signed(self, depth: int) -> Fraction:
        sign = 1
        for _ in range(2):
            if self.takes("-"):
                sign = -sign
            else:
                self.takes("+")
        number = self.power(depth)
        return -number if sign < 0 else number

    def power(self, depth: int) -> Fraction:
        number = self.atom(depth + 1)
        if self.takes("!"):
            number = _factorial(number)
        return self.raised(number, depth)

    def raised(self, base: Fraction, depth: int) -> Fraction:
        return _power(base, self.group(depth)) if self.takes("^") else base

    def atom(self, depth: int) -> Fraction:
        if depth > _DEEPEST:
            raise _UnreadError
        if self.takes("\\frac"):
            over = self.group(depth, digits=1)
            return _over(over, self.group(depth, digits=1))
        if self.takes("\\sqrt"):
            return _root(self.group(depth, digits=1))
        for opening, closing in ("()", "{}"):
            if self.takes(opening):
                return self._closed(closing, depth)
        number = _NUMBER.match(self.text, self.place)
        if number is None:
            raise _UnreadError
        self.place = number.end()
        return _decimal(number[0])

    def group(self, depth: int, *, digits: int = 0) -> Fraction:
        """Read what braces or parentheses hold, or a number without them, of so many digits."""
        for opening, closing in ("{}", "()"):
            if self.takes(opening):
                return self._closed(closing, depth + 1)
        pattern = rf"\d{{{digits}}}" if digits else r"[-+]?\d+"
        number = re.compile(pattern).match(self.text, self.place)
        if number is None:
            raise _UnreadError
        self.place = number.end()
        return Fraction(number[0])

    def _closed(self, closing: str, depth: int) -> Fraction:
        number = self.quotient(depth)
        if not self.takes(closing):
            raise _UnreadError
        return number


def _decimal(text: str) -> Fraction:
    if text.isdecimal():
        return Fraction(int(text))
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > _LARGEST_EXPONENT:
        raise _UnreadError
    number = Fraction(mantissa.replace(",", "").replace(" ", ""))
    return number * Fraction(10) ** int(exponent) if exponent else number


def _over(over: Fraction, under: Fraction) -> Fraction:
    if not under:
        raise _UnreadError
    return over / under


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or abs(exponent) * bits > _LONGEST_POWER:
        raise _UnreadError
    if not base and exponent <= 0:
        raise _UnreadError
    return base ** int(exponent)


def _factorial(number: Fraction) -> Fraction:
    if number.denominator != 1 or not 0 <= number <= _LARGEST_FACTORIAL:
        raise _UnreadError
    return Fraction(math.factorial(int(number)))


def _root(number: Fraction) -> Fraction:
    """Return the root of a square; of any other number there is no exact one."""
    if number < 0:
        raise _UnreadError
    over, under = math.isqrt(number.numerator), math.isqrt(number.denominator)
    if over**2 != number.numerator or under**2 != number.denominator:
        raise _UnreadError
    return Fraction(over, under)
