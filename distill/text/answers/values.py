r"""What an answer can be, once it is read, and when two of them are equal.

    Quantity     9, $5, 5 km, 10%        Items        1, 2   (1, 2)   [1, 2)   \{1, 2\}
    Moment       5:45 PM                 Named        x = 3, f(x) = 5
    Ratio        2:4                     Choice       (B), B) 5
    Date         5 March                 Words        the pink cup
    Based        52_8                    Expression   2\sqrt{3}, which algebra may compare
    Unread       5 or 6, 5 crore         what equals only itself

Equality has three outcomes, as for every comparison of answers: True, False, and None where the
texts do not decide it. A prediction comes first and the gold answer second; they are not treated
alike where a gold answer leaves out what a prediction may say.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from distill.text.answers.units import NONE, Unit

_LARGEST_TABLE = 256
# A letter of an expression that is no command and not `e` or `i`.
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-DF-HJ-Za-df-hj-z](?![A-Za-z])")


@dataclasses.dataclass(frozen=True, slots=True)
class Quantity:
    """A number, with its unit if it has one; `percent` numbers are already divided by 100."""

    number: Fraction
    unit: Unit = NONE
    percent: bool = False

    def key(self) -> str:
        """Return the value in base units: `18000 second`, `1/2` for 50 cents, `10 %`."""
        if self.percent:
            return f"{self.number * 100} %"
        name = self.unit.name()
        return f"{self.number * self.unit.scale}{' ' if name else ''}{name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """Several values in their order, in the brackets around them, empty where there are none.

    Attributes:
        values: what is listed.
        brackets: the opening and the closing one with a space between, or nothing.
        interval: whether they are the ends of an interval, as the text says.
        decimal: the number that the text is where its only comma is a decimal one, as in `1,5`.
    """

    values: tuple["Value", ...]
    brackets: str = ""
    interval: bool = False
    decimal: Fraction | None = dataclasses.field(default=None, compare=False)

    def key(self) -> str:
        """Return the values' keys; the brackets of a point do not count, all others do."""
        keys = "; ".join(_in_list(value) for value in self.values)
        opening, closing = self.brackets.split(" ") if self.brackets else ("", "")
        return keys if self.brackets == "( )" and not self.interval else f"{opening}{keys}{closing}"


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """A value with the variable that it belongs to."""

    name: str
    value: "Value"

    def key(self) -> str:
        """Return both."""
        return f"{self.name} = {self.value.key()}"


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A time of day in seconds; `half` is am or pm, empty where the text leaves it open."""

    seconds: int
    half: str = ""

    def key(self) -> str:
        """Return the time as a clock of twelve or of 24 hours shows it."""
        hours, rest = divmod(self.seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        shown = f"{hours}:{minutes:02}" + (f":{seconds:02}" if seconds else "")
        return f"{shown} {self.half}".strip()


@dataclasses.dataclass(frozen=True, slots=True)
class Date:
    """A day of a year, or of any where the text names none (0)."""

    year: int
    month: int
    day: int

    def key(self) -> str:
        """Return it from the year down."""
        return f"{self.year:04}-{self.month:02}-{self.day:02}"


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of whole numbers in lowest terms."""

    parts: tuple[int, ...]

    def key(self) -> str:
        """Return the parts between colons."""
        return ":".join(map(str, self.parts))


@dataclasses.dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base, which they may not all belong to."""

    digits: str
    base: int

    def number(self) -> int | None:
        """Return the value, None where a digit is none of the base."""
        if not 2 <= self.base <= 36 or any(int(digit) >= self.base for digit in self.digits):
            return None
        return int(self.digits, self.base)

    def key(self) -> str:
        """Return the digits and the base."""
        return f"{self.digits}_{self.base}"


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A letter that names one of several answers, with that answer if it follows."""

    letter: str
    content: str = ""

    def key(self) -> str:
        """Return the letter in lower case, and what follows it."""
        return f"{self.letter}) {self.content}" if self.content else self.letter


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """Words without a number, folded in case."""

    text: str

    def key(self) -> str:
        """Return the words."""
        return self.text


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """An expression in one of its spellings; two spellings may have the same value."""

    text: str

    def key(self) -> str:
        """Return the spelling."""
        return self.text


@dataclasses.dataclass(frozen=True, slots=True)
class Unread:
    """A text whose value is not known."""

    text: str

    def key(self) -> str:
        """Return the text."""
        return self.text


Value = (
    Quantity | Items | Named | Moment | Date | Ratio | Based | Choice | Words | Expression | Unread
)


def _in_list(value: Value) -> str:
    return (
        f"({value.key()})" if isinstance(value, Items) and value.brackets == "( )" else value.key()
    )


# Asks about two scalar texts that differ in spelling: an algebra system, or nobody.
Ask = Callable[[str, str], bool | None]


def _nobody(prediction: str, gold: str) -> None:
    del prediction, gold


def equal(prediction: Value, gold: Value, ask: Ask = _nobody) -> bool | None:
    """Return whether a prediction has the gold answer's value, None where that is not known.

    Args:
        prediction: what is judged.
        gold: what is right.
        ask: decides about two expressions whose spellings differ.

    Example:
        >>> equal(Quantity(Fraction(5)), Quantity(Fraction(5))), equal(Words("cat"), Words("dog"))
        (True, False)
    """
    if isinstance(prediction, Unread) or isinstance(gold, Unread):
        return True if prediction == gold else None
    outcome = _decided(prediction, gold, ask)
    if outcome is None and _is_scalar(prediction) and _is_scalar(gold):
        return ask(prediction.key(), gold.key())
    return outcome


def _decided(prediction: Value, gold: Value, ask: Ask) -> bool | None:
    """Compare all but expressions of different spellings."""
    if isinstance(prediction, Named) or isinstance(gold, Named):
        return _named(prediction, gold, ask)
    if isinstance(prediction, Items) and isinstance(gold, Items):
        return _items(prediction, gold, ask)
    if type(prediction) is type(gold):
        return _ALIKE[type(gold)](prediction, gold)
    if isinstance(prediction, (Items, Expression)) and isinstance(gold, (Items, Expression)):
        return _two_signs(prediction, gold, ask)
    for compare in (_as_numbers, _as_choice, _as_decimal):
        if (outcome := compare(prediction, gold)) is not None:
            return outcome
    kinds = {type(prediction), type(gold)}
    return False if kinds <= {Quantity, Words, Items, Date} else None


def _is_scalar(value: Value) -> bool:
    """Return whether algebra can read a value: no unit, no word, no list."""
    if isinstance(value, Quantity):
        return not value.percent and value.unit == NONE
    if isinstance(value, Named):
        return len(value.name) == 1 and _is_scalar(value.value)
    return isinstance(value, Expression) or (isinstance(value, Words) and len(value.text) == 1)


# --- Two of one kind ---------------------------------------------------------------------------


def _same(prediction: Value, gold: Value) -> bool:
    return prediction == gold


def _same_or_unknown(prediction: Value, gold: Value) -> bool | None:
    return True if prediction == gold else None


def _quantities(prediction: Quantity, gold: Quantity) -> bool | None:
    if prediction.percent or gold.percent:
        return _percents(prediction, gold)
    ours, theirs = prediction.unit, gold.unit
    if ours.powers and theirs.powers:
        return _measures(prediction, gold)
    if ours.powers or theirs.powers:
        return _one_measure(prediction, gold)
    if prediction.number != gold.number:
        return False
    return True if ours.things <= theirs.things or theirs.things <= ours.things else None


def _percents(prediction: Quantity, gold: Quantity) -> bool | None:
    """A gold answer may leave out the percent sign, and a prediction the division by a hundred."""
    if prediction.percent and gold.percent:
        return prediction.number == gold.number
    bare, marked = (gold, prediction) if prediction.percent else (prediction, gold)
    if bare.unit != NONE:
        return False
    if bare.number == marked.number:
        return True
    return bare.number == marked.number * 100 and prediction.percent


def _measures(prediction: Quantity, gold: Quantity) -> bool | None:
    """Quantities of one dimension are converted; those of two are equal in no case."""
    ours, theirs = prediction.unit, gold.unit
    if ours.powers != theirs.powers:
        return None if prediction.number == gold.number else False
    if prediction.number * ours.scale != gold.number * theirs.scale:
        return False
    return True if ours.things <= theirs.things or theirs.things <= ours.things else None


def _one_measure(prediction: Quantity, gold: Quantity) -> bool | None:
    """A number without a unit is in that of the other one, where it is clear which that is."""
    same = prediction.number == gold.number
    measured, bare = (prediction, gold) if prediction.unit.powers else (gold, prediction)
    if bare.unit.things:
        return None if same else False
    if measured.unit.doubtful:
        return None
    if measured.unit.minor and measured is prediction:
        in_whole = prediction.number * prediction.unit.scale == gold.number
        return True if in_whole else (None if same else False)
    return same


def _items(prediction: Items, gold: Items, ask: Ask) -> bool | None:
    """Values are compared in their order; only a set has none."""
    points = {"", "( )"}
    brackets = {prediction.brackets, gold.brackets}
    if len(brackets) > 1 and not brackets <= points:
        return None if "" in brackets else False
    if prediction.interval != gold.interval and "" in brackets:
        return None
    if brackets == {"{ }"}:
        return _sets(_expanded(prediction), _expanded(gold), ask)
    if len(prediction.values) != len(gold.values):
        return False
    outcome = _all(prediction.values, gold.values, ask)
    if outcome is False and brackets == {""}:
        keys = [sorted(value.key() for value in each.values) for each in (prediction, gold)]
        return None if keys[0] == keys[1] else False
    return outcome


def _sets(ours: Sequence[Value], theirs: Sequence[Value], ask: Ask) -> bool | None:
    """Return whether each value of one set is in the other."""
    if len(ours) * len(theirs) > _LARGEST_TABLE:
        return None
    table = [[equal(one, other, ask) for other in theirs] for one in ours]
    rows, columns = (any(v is True for v in row) for row in table), zip(*table, strict=True)
    if all(rows) and all(any(v is True for v in column) for column in columns):
        return True
    return None if any(None in row for row in table) else False


def _all(ours: Sequence[Value], theirs: Sequence[Value], ask: Ask) -> bool | None:
    outcomes = [equal(one, other, ask) for one, other in zip(ours, theirs, strict=True)]
    if False in outcomes:
        return False
    return None if None in outcomes else True


def _expanded(items: Items) -> list[Value]:
    """Return the values of a set, both of those that a plus-minus sign stands for."""
    return [each for value in items.values for each in (_signs(value) or [value])]


def _signs(value: Value) -> list[Value] | None:
    if not isinstance(value, Expression) or value.text.count("\\pm") != 1:
        return None
    return [Expression(value.text.replace("\\pm", sign)) for sign in "+-"]


def _two_signs(prediction: Items | Expression, gold: Items | Expression, ask: Ask) -> bool | None:
    """Compare a list with what a plus-minus sign stands for, which has no order."""
    listed, signed = (prediction, gold) if isinstance(gold, Expression) else (gold, prediction)
    both = _signs(signed)
    if both is None or not isinstance(listed, Items) or listed.brackets not in ("", "{ }"):
        return None
    return _sets(listed.values, both, ask) if len(listed.values) == len(both) else None


def _moments(prediction: Moment, gold: Moment) -> bool | None:
    """Times of 24 hours are known; a time of twelve is known with am or pm alone."""
    if prediction == gold:
        return True
    if {prediction.half, gold.half} == {"noon", ""} and prediction.seconds == gold.seconds:
        return True
    ours, theirs = _since_midnight(prediction), _since_midnight(gold)
    if ours is not None and theirs is not None:
        return ours == theirs
    return None if (prediction.seconds - gold.seconds) % (12 * 3600) == 0 else False


def _since_midnight(moment: Moment) -> int | None:
    if moment.half == "noon":
        return moment.seconds
    if moment.half:
        return moment.seconds % (12 * 3600) + (12 * 3600 if moment.half == "pm" else 0)
    return moment.seconds if moment.seconds >= 13 * 3600 or moment.seconds < 3600 else None


def _dates(prediction: Date, gold: Date) -> bool | None:
    if (prediction.month, prediction.day) != (gold.month, gold.day):
        return False
    if prediction.year == gold.year:
        return True
    return None if 0 in (prediction.year, gold.year) else False


def _based(prediction: Based, gold: Based) -> bool | None:
    if prediction.base == gold.base:
        return prediction.digits == gold.digits
    return None if prediction.number() == gold.number() else False


def _choices(prediction: Choice, gold: Choice) -> bool | None:
    if prediction.letter != gold.letter:
        return False
    known = prediction.content == gold.content or "" in (prediction.content, gold.content)
    return True if known else None


_ALIKE: dict[type, Callable[..., bool | None]] = {
    Quantity: _quantities,
    Moment: _moments,
    Date: _dates,
    Ratio: _same,
    Based: _based,
    Choice: _choices,
    Words: _same,
    Expression: _same_or_unknown,
}


# --- Two of different kinds --------------------------------------------------------------------


def _named(prediction: Value, gold: Value, ask: Ask) -> bool | None:
    """A name may be left out where its value is no expression of other names."""
    if isinstance(prediction, Named) and isinstance(gold, Named):
        outcome = equal(prediction.value, gold.value, ask)
        return outcome if prediction.name == gold.name or not outcome else None
    named, bare = (prediction, gold) if isinstance(prediction, Named) else (gold, prediction)
    if not isinstance(named, Named):
        return None
    if isinstance(bare, Expression) and "=" in bare.text:
        return None
    pair = (named.value, bare) if named is prediction else (bare, named.value)
    outcome = equal(*pair, ask)
    is_free = isinstance(named.value, (Expression, Words)) and _LETTER.search(named.value.key())
    return None if outcome and is_free and "(" not in named.name else outcome


def _as_numbers(prediction: Value, gold: Value) -> bool | None:
    """Compare a ratio of two, or digits in another base, with a plain number."""
    first, second = (prediction, gold) if isinstance(gold, Quantity) else (gold, prediction)
    if not isinstance(second, Quantity) or second.unit != NONE or second.percent:
        return None
    if isinstance(first, Ratio):
        over, under, *more = first.parts
        return True if not more and Fraction(over, under) == second.number else None
    if isinstance(first, Based):
        return _in_ten(first, second.number, stated=first is prediction)
    return None


def _in_ten(based: Based, number: Fraction, *, stated: bool) -> bool | None:
    """Digits that mean the same in both bases may be a label; a gold base is part of the answer."""
    if based.number() != number:
        return False
    return True if stated and int(based.digits) != number else None


def _as_choice(prediction: Value, gold: Value) -> bool | None:
    letters = [
        value.letter if isinstance(value, Choice) else value.text
        for value in (prediction, gold)
        if isinstance(value, (Choice, Words))
    ]
    return letters[0] == letters[1] if len(letters) == 2 else None


def _as_decimal(prediction: Value, gold: Value) -> bool | None:
    """Read `1,5` as a number where the gold answer is that number, and no whole one."""
    if isinstance(prediction, Items) and isinstance(gold, Quantity) and gold.unit == NONE:
        fits = prediction.decimal == gold.number and gold.number.denominator != 1
        return True if fits and not gold.percent else None
    return None


def lowest(parts: tuple[int, ...]) -> tuple[int, ...]:
    """Return a ratio's parts in lowest terms."""
    divisor = math.gcd(*parts) or 1
    return tuple(part // divisor for part in parts)
