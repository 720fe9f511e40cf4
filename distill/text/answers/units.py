"""Units, currencies and counted things: explicit lists, exact scales, and no guess beyond them.

    50 cents     1/2 dollar                      2 m, 200 cm     one length
    5 m^2        metre to the second power       red marbles     a counted thing
    5 crore/h    not read: no list holds `crore`

Where these lists do not hold all of what stands after a number, the number is not read either.
Days and months, litres and gallons, and the masses called ton have no fixed ratio here, so that
quantities of them are never converted into each other.
"""

import dataclasses
import functools
import re
from fractions import Fraction
from importlib import resources

from distill.text.answers.words import listed

Powers = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts or measures.

    Attributes:
        scale: how many of the base units one of this unit is.
        powers: the base units and their powers, sorted; empty for counted things and for none.
        things: the words of what is counted or measured out, each without its ending.
        doubtful: whether it may as well be a variable, as the `m` of `2 m`.
        minor: whether it is a part of a currency's unit, as a cent.
    """

    scale: Fraction = Fraction(1)
    powers: Powers = ()
    things: frozenset[str] = frozenset()
    doubtful: bool = False
    minor: bool = False

    def name(self) -> str:
        """Return the base units as text, dollars and counted things as none."""
        shown = [f"{base}^{power}" if power != 1 else base for base, power in self.powers]
        return "" if self.powers == _DOLLARS else " ".join(shown)


NONE = Unit()
_DOLLARS: Powers = (("dollar", 1),)
# The base, names of a unit, and how many of the base it is, exactly; one where no number stands.
_TABLE = """
second seconds sec secs
second minute minutes min mins 60
second hour hours hr hrs 3600
second day days 86400
second week weeks 604800
month months mo
month year years yr yrs 12
month decade decades 120
month century centuries 1200
metre metres meter meters
metre kilometre kilometres kilometer kilometers km 1000
metre centimetre centimetres centimeter centimeters cm 1/100
metre millimetre millimetres millimeter millimeters mm 1/1000
metre inch inches 127/5000
metre foot feet ft 381/1250
metre yard yards yd yds 1143/1250
metre mile miles mi 201168/125
gram grams
gram kilogram kilograms kilo kilos kg kgs 1000
gram milligram milligrams mg 1/1000
ounce ounces oz
ounce pound pounds lb lbs 16
ton tons
tonne tonnes
litre litres liter liters
litre millilitre millilitres milliliter milliliters ml 1/1000
litre centilitre centilitres centiliter centiliters cl 1/100
pint pints pt
pint quart quarts qt 2
pint gallon gallons gal 8
tablespoon tablespoons tbsp tbs
tablespoon teaspoon teaspoons tsp 1/3
acre acres
hectare hectares ha
degree degrees deg °
watt watts
watt kilowatt kilowatts kw 1000
byte bytes
kilobyte kilobytes kb
megabyte megabytes mb
gigabyte gigabytes gb
calorie calories cal
calorie kilocalorie kilocalories kcal 1000
dollar dollars usd $
dollar cent cents ¢ 1/100
euro euros eur €
yen jpy ¥
rupee rupees inr ₹
peso pesos
pfennig pfennigs
farthing farthings
peseta pesetas
sterling gbp £
sterling pence 1/100
"""
_LETTERS = {"m": "metre", "g": "gram", "s": "second", "h": "hour", "l": "litre", "L": "litre"}
_LETTERS |= {"in": "inch"}
_WHOLE = {"mph": "mile per hour", "kmh": "kilometre per hour", "kph": "kilometre per hour"}
_MODIFIERS = frozenset(
    listed(
        "new free good bad extra empty additional identical different equal full whole more "
        "fewer other "
        "large small big little long short tall dark hot cold fresh plain sweet wild single "
        "regular "
        "red blue green yellow orange pink purple brown black white grey gray gold golden silver "
        "bronze "
        "ds light power coloring each beanie cook washing down note page wooden plastic metal "
        "paper "
        "stuffed flying atomic dental adult baby male female old young "
        "homeless dangerous colorful miniature medieval chinese recycled star-shaped "
        "saltwater salty first-aid wireless broken ripe unripe individual total "
        "average remaining original complete"
    )
)
# What may stand after a unit and changes nothing.
_TRAILING = re.compile(
    r"[,\s]+(?:left|left over|leftover|remaining|remain|remained|altogether|in all|in total|total|"
    r"overall|each|apiece|now|today|long|tall|wide|high|deep|away|old|of age|worth)$"
)
_POWER = re.compile(r"\s?(?:\^\s?\{?([23])\}?)$")
_PER = re.compile(r"\s?/\s?|\s+per\s+|^per\s+")
_OF = re.compile(r"\s+of\s+")
_SQUARE = re.compile(r"(square|sq\.?|cubic|cu\.?)\s+")
_GRADERS = re.compile(r"\b(?:first|second|third|fourth|fifth|sixth)[ -](graders?)\b")
_PLURAL = re.compile(r"(?:ss|x|z|ch|sh)es$")


def _units(table: str) -> dict[str, Unit]:
    units = {}
    for line in filter(None, table.splitlines()):
        base, *names = line.split()
        scale = Fraction(names.pop()) if names[-1][0].isdigit() else Fraction(1)
        minor = bool({"cent", "pence"} & set(names))
        unit = Unit(scale, ((base, 1),), minor=minor)
        units |= dict.fromkeys(names, unit) | ({base: unit} if scale == 1 else {})
    return units


_UNITS = _units(_TABLE)
_THINGS = frozenset(
    resources.files("distill.text.answers")
    .joinpath("nouns.txt")
    .read_text(encoding="utf-8")
    .split()
)


def stem(word: str) -> str:
    """Return a noun without its plural, the same for both its forms.

    Example:
        >>> [stem(word) for word in ("boxes", "box", "cookies", "cookie", "houses", "house")]
        ['box', 'box', 'cooky', 'cooky', 'hous', 'hous']
    """
    if word.endswith("ies") and len(word) > 4:
        word = f"{word[:-3]}y"
    elif _PLURAL.search(word):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("ie") and len(word) > 3:
        word = f"{word[:-2]}y"
    return word.removesuffix("e") if len(word) > 3 else word


@functools.lru_cache(maxsize=4096)
def read(text: str, *, label: bool = False) -> Unit | None:
    """Return the unit that a text names, None where the lists do not hold all of it.

    Args:
        text: what stands after a number.
        label: whether it stands in parentheses, where a letter is a unit and no variable.

    Example:
        >>> read("square meters").name(), read("cents").scale, read("crore"), read("m").doubtful
        ('metre^2', Fraction(1, 100), None, True)
        >>> sorted(read("red marbles left").things)
        ['marbl', 'red']
    """
    text = text.strip()
    if not text:
        return NONE
    if label and text in ("quarters", "scores"):
        return Unit(things=frozenset([stem(text)]))
    folded = _GRADERS.sub(r"\1", text if text in _LETTERS else text.lower())
    while (shorter := _TRAILING.sub("", f" {folded}").strip()) != folded:
        folded = shorter
    if not folded:
        return NONE
    if folded.startswith("per cent"):
        return None
    above, *below = _PER.split(_WHOLE.get(folded, folded), maxsplit=1)
    unit = _product(above) if above else NONE
    under = _product(re.sub(r"^an? ", "", below[0])) if below else NONE
    if unit is None or under is None or (below and not under.powers and not under.things):
        return None
    powers = tuple(sorted((*unit.powers, *((base, -power) for base, power in under.powers))))
    things = unit.things | {f"/{word}" for word in under.things}
    doubtful = (unit.doubtful or under.doubtful) and not label
    return Unit(unit.scale / under.scale, powers, things, doubtful, unit.minor)


def _product(text: str) -> Unit | None:
    """Read a unit with its power and what it measures out: `cubic feet of soil`."""
    name, *of = _OF.split(text, maxsplit=1)
    power = 1
    if square := _SQUARE.match(name):
        name, power = name[square.end() :], 2 if square[1].startswith("s") else 3
    elif exponent := _POWER.search(name):
        name, power = name[: exponent.start()], int(exponent[1])
    unit = _simple(name.strip().removesuffix("."))
    things = _things(re.sub(r"^the ", "", of[0])) if of else frozenset()
    if unit is None or things is None or (power != 1 and not unit.powers):
        return None
    powers = tuple((base, power * each) for base, each in unit.powers)
    return dataclasses.replace(
        unit, scale=unit.scale**power, powers=powers, things=unit.things | things
    )


def _simple(name: str) -> Unit | None:
    if name in _UNITS:
        return _UNITS[name]
    if name in _LETTERS:
        return dataclasses.replace(_UNITS[_LETTERS[name]], doubtful=True)
    things = _things(name)
    return None if things is None else Unit(things=things)


def _things(phrase: str) -> frozenset[str] | None:
    """Return the stems of a phrase of counted things whose words are all listed, else None."""
    words = phrase.replace(" and ", " ").split()
    if not words or not all(_is_listed(word) for word in words):
        return None
    if words[-1] in _MODIFIERS and stem(words[-1]) not in _THINGS:
        return None
    return frozenset(stem(word) for word in words)


def _is_listed(word: str) -> bool:
    return word in _MODIFIERS or (len(word) > 2 and stem(word) in _THINGS)
