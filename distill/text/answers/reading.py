r"""Read an answer's text into a value: all of it by one rule, or as a text that equals only itself.

Each rule takes a whole text. What no rule takes is an expression, where it holds nothing but
mathematics, and else unread: `5 or 6`, `about 5`, `5 crore`, `$5 M` and `5!!` are never numbers.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from distill.text.answers import expressions, numerals, units, words
from distill.text.answers.dress import undress
from distill.text.answers.units import NONE, Unit
from distill.text.answers.values import (
    Based,
    Choice,
    Date,
    Expression,
    Items,
    Moment,
    Named,
    Quantity,
    Ratio,
    Unread,
    Value,
    Words,
    lowest,
)

# Longer texts are not read, so that the time of a pair is bounded; they equal only themselves.
LONGEST = 1000
_DEEPEST = 3
# What most answers are: digits, or words, that need no more than a look.
_INTEGER = re.compile(r"-?[0-9]{1,40}")
_PLAIN = re.compile(
    r"(\$)?(-?(?:[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3}){1,12})(?:\.[0-9]{1,40})?)"
    r"(?: (?:([A-Za-z]{2,20}(?: [a-z]{2,20}){0,4})|\(([A-Za-z]{2,20}(?: [a-z]{2,20}){0,4})\)))?"
)
_PLAIN_FRACTION = re.compile(
    r"(-?)(?:([0-9]{1,40})/([0-9]{1,40})|\\[dt]?frac\{([0-9]{1,40})\}\{([0-9]{1,40})\})"
)
_PLAIN_WORDS = re.compile(r"[A-Za-z]{2,30}(?:,? [A-Za-z]{2,30}){0,9}")
_DOLLAR = units.read("dollars") or NONE


def read(text: str) -> Value:
    r"""Return the value of an answer.

    Example:
        >>> read("1,200").key(), read("50 cents").key(), read("(2, 1/2)").key()
        ('1200', '1/2', '2; 1/2')
        >>> read("5 crores"), read("5 or 6")
        (Unread(text='5 crores'), Unread(text='5 or 6'))
    """
    if _INTEGER.fullmatch(text):
        return Quantity(Fraction(int(text)))
    if (value := _plain(text)) is not None:
        return value
    if len(text) > LONGEST:
        return Unread(" ".join(text.split()))
    return _read(undress(text), 0)


def _plain(text: str) -> Value | None:
    """Read what most answers are as the rules would, without them: `$5`, `9 (apples)`, `cat`."""
    if match := _PLAIN.fullmatch(text):
        currency, number, tail, label = match.groups()
        unit = _DOLLAR if currency else NONE
        if tail or label:
            unit = None if currency else units.read(tail or label, label=label is not None)
        return None if unit is None else Quantity(_exact(number.replace(",", "")), unit)
    if match := _PLAIN_FRACTION.fullmatch(text):
        under = int(match[3] or match[5])
        return Quantity(Fraction(int(match[1] + (match[2] or match[4])), under)) if under else None
    return _words(text) if _PLAIN_WORDS.fullmatch(text) else None


def _exact(number: str) -> Fraction:
    whole, point, part = number.partition(".")
    return Fraction(int(whole + part), 10 ** len(part)) if point else Fraction(int(whole))


def _read(text: str, depth: int) -> Value:
    for rule in _RULES:
        if (value := rule(text)) is not None:
            return value
    if depth < _DEEPEST:
        for nested in (_relation, _named, _compound, _items):
            if (value := nested(text, depth + 1)) is not None:
                return value
    if (value := _words(text)) is not None:
        return value
    if expressions.is_mathematical(text):
        return Expression(expressions.spelling(text))
    return Unread(text)


# --- Numbers with their units ------------------------------------------------------------------

_LABEL = re.compile(r"(.*\S)\s+\(([^()\d\\]*[^\W\d_][^()\d\\]*)\)(\^[23])?")
_OUT_OF = re.compile(r"\s+\(out of \d+\)$")
_QUANTITY = re.compile(
    r"(?P<sign>[-+\s]*)(?P<currency>US\$|USD|EUR|GBP|INR|Rs\.?|[$€£¥₹])?\s?(?P<numeral>"
    r"(?:\\(?:frac|sqrt|times|cdot|overline)(?![A-Za-z])|[\d.,+\-(){}/^!*·\u00d7\s]|[eE](?=[-+]?\d)"
    r"|(?<=\d)x(?=\s?10\s?\^)|(?<=\s)x(?=\s10\s?\^))+)(?P<tail>.*)"
)
_CURRENCIES = {"$": "dollar", "US$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro"}
_CURRENCIES |= {"£": "sterling", "GBP": "sterling", "¥": "yen", "₹": "rupee", "INR": "rupee"}
_CURRENCIES |= {"Rs": "rupee", "Rs.": "rupee"}
_PERCENT = re.compile(r"\s?(?:%|per\s?cent)", re.IGNORECASE)
_NEGATIVE = re.compile(r"(?:minus|negative)\s+(?=[\d$.])", re.IGNORECASE)


def _quantity(text: str) -> Quantity | None:
    text = _NEGATIVE.sub("-", _OUT_OF.sub("", text), count=1)
    label = None
    if text.endswith(")") and (labelled := _LABEL.fullmatch(text)):
        text, label = labelled[1], labelled[2] + (labelled[3] or "")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return _in_words(text, label)
    if match["currency"] and "(" in match["numeral"]:
        return None  # which some write for a loss
    numeral, tail = match["numeral"].rstrip(), match["tail"]
    if numeral.endswith("/"):
        numeral, tail = numeral[:-1], f"/{tail}"
    elif numeral != match["numeral"]:
        tail = f" {tail}"
    number = numerals.value(f"{match['sign']}{numeral}")
    if number is None:
        return None
    scaled = words.scaled(abs(number), tail) if tail[:1] == " " else (abs(number), tail)
    if scaled is None:
        return None
    magnitude = scaled[0]
    return _with_unit(-magnitude if number < 0 else magnitude, scaled[1], label, match["currency"])


def _in_words(text: str, label: str | None) -> Quantity | None:
    if text.lower() in ("none", "nothing"):
        return Quantity(Fraction(0))
    if text[:1] > "\u2fff" and (number := words.chinese(text)) is not None:
        return Quantity(Fraction(number))
    if not text[:1].isalpha() or (found := words.number(text)) is None:
        return None
    return _with_unit(*found, label, None)


def _with_unit(
    number: Fraction, tail: str, label: str | None, currency: str | None
) -> Quantity | None:
    """Return a number with the unit that its tail or its label names, None where neither is one."""
    if _PERCENT.fullmatch(tail) and not currency:
        return Quantity(number / 100, percent=True) if label is None else None
    if label is not None and tail:
        return None
    if label is not None and _PERCENT.fullmatch(label):
        return Quantity(number / 100, percent=True)
    unit = units.read(tail) if label is None else units.read(label, label=True)
    if unit is None or (tail[:1].isalpha() and not unit.powers):
        return None
    if currency:
        unit = _priced(units.read(_CURRENCIES[currency]), unit)
    return None if unit is None else Quantity(number, unit)


def _priced(currency: Unit | None, unit: Unit) -> Unit | None:
    """Return a currency with what its price is for, None where a unit contradicts it."""
    if currency is None or unit in (NONE, currency):
        return currency
    below = all(power < 0 for _, power in unit.powers)
    if not below or not all(word.startswith("/") for word in unit.things):
        return None
    powers = tuple(sorted((*currency.powers, *unit.powers)))
    return Unit(currency.scale * unit.scale, powers, unit.things, unit.doubtful)


_BETWEEN = re.compile(r"(?<=[^\d\s])\s+(?:and\s+)?(?=[\d$])|(?<=\d)\s+and\s+(?=[\d$])")


def _compound(text: str, depth: int) -> Value | None:
    """Read a quantity in two units of one dimension: `5 feet 6 inches`, `$5 and 50 cents`."""
    del depth
    parts = _BETWEEN.split(text)
    if len(parts) != 2:
        return None
    first, second = (_quantity(part) for part in parts)
    if first is None or second is None or not first.unit.powers or first.number < 0:
        return None
    large, small = first.unit, second.unit
    if large.powers != small.powers or large.things or small.things:
        return None
    rest = second.number * small.scale / large.scale
    if first.number.denominator != 1 or not 0 < rest < 1 or small.scale >= large.scale:
        return None
    return Quantity(first.number + rest, large)


# --- Times, dates, ratios, bases, choices ------------------------------------------------------

_TIME = re.compile(
    r"(?P<hours>\d{1,2})(?::(?P<minutes>[0-5]\d))?(?::(?P<seconds>[0-5]\d))?"
    r"\s?(?:\(?(?P<half>[ap])\.?\s?m\b\.?\)?|(?P<noon>noon)|(?P<clock>o'clock))?",
    re.IGNORECASE,
)
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name: place for place, name in enumerate(_MONTHS.split(), 1)}
_MONTH |= {name[:3]: place for name, place in _MONTH.items()}
_NAMED_DAY = re.compile(
    r"(?:(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"|(?P<first>\d{1,2})(?:st|nd|rd|th)?(?: of)? (?P<then>[a-z]{3,9})\.?)(?:,? (?P<year>\d{4}))?",
    re.IGNORECASE,
)
_ISO = re.compile(r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})")
_RATIO = re.compile(r"\d{1,30}(?:\s?:\s?\d{1,30})+")
_BASED = re.compile(r"(\d+)_(?:(\d{1,2})|\{(\d{1,2})\})")
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[).])\s?(\S.*)")
_LETTER = re.compile(r"\(?([A-Za-z])\)?")


def _moment(text: str) -> Moment | None:
    match = _TIME.fullmatch(text) if text[:1].isdigit() else None
    if match is None or not (match["minutes"] or match["half"] or match["clock"] or match["noon"]):
        return None
    hours = int(match["hours"])
    half = f"{match['half'].lower()}m" if match["half"] else ("noon" if match["noon"] else "")
    if hours > 23 or (half and not 1 <= hours <= 12):
        return None
    minutes, seconds = int(match["minutes"] or 0), int(match["seconds"] or 0)
    return Moment(3600 * hours + 60 * minutes + seconds, half)


def _date(text: str) -> Date | None:
    if len(text) < 5 or "\\" in text:
        return None
    if iso := _ISO.fullmatch(text):
        year, month, day = int(iso[1]), int(iso[3]), int(iso[4])
    elif named := _NAMED_DAY.fullmatch(text):
        month = _MONTH.get((named["month"] or named["then"]).lower(), 0)
        year, day = int(named["year"] or 0), int(named["day"] or named["first"])
    else:
        return None
    return Date(year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _ratio(text: str) -> Ratio | None:
    if ":" not in text or not _RATIO.fullmatch(text):
        return None
    parts = tuple(int(part) for part in text.split(":"))
    return Ratio(lowest(parts)) if all(parts) else None


def _based(text: str) -> Based | None:
    match = _BASED.fullmatch(text) if "_" in text else None
    if match is None:
        return None
    return Based(match[1].lstrip("0") or "0", int(match[2] or match[3]))


def _choice(text: str) -> Value | None:
    if match := _CHOICE.fullmatch(text):
        return Choice(match[1] or match[2], match[3])
    if letter := _LETTER.fullmatch(text):
        return Words(letter[1].upper() if letter[1].upper() <= "J" else letter[1])
    return None


# --- Values in values --------------------------------------------------------------------------

_NAME = (
    r"[A-Za-z](?:_(?:\w|\{\w{1,3}\}))?|[A-Z]{2,3}|[A-Za-z]\([A-Za-z0-9]\)"
    r"|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho)"
    r"|\((?:[A-Za-z],\s?)+[A-Za-z]\)"
)
_EQUATION = re.compile(rf"(?:({_NAME})\s?(?:=|\\in(?![a-z]))\s?(.+)|(.+?)\s?=\s?({_NAME}))")
_BELOW, _ABOVE = r"<=|\\leq?(?![a-z])|≤|<|\\lt(?![a-z])", r">=|\\geq?(?![a-z])|≥|>|\\gt(?![a-z])"
_BOUND = r"[-+]?[\d.,/\\{}a-z]+"
_INEQUALITY = re.compile(
    rf"(?:(?P<low>{_BOUND})\s?(?P<first>{_BELOW})\s?)?(?P<name>[A-Za-z])\s?"
    rf"(?P<second>{_BELOW})\s?(?P<high>{_BOUND})"
)
_BOUNDED = re.compile(
    rf"(?P<left>[A-Za-z]|{_BOUND})\s?(?P<sign>{_BELOW}|{_ABOVE})\s?(?P<right>[A-Za-z]|{_BOUND})"
)
_LOWEST, _HIGHEST = Expression("-\\infty"), Expression("\\infty")


def _relation(text: str, depth: int) -> Value | None:
    """Read what bounds one variable as an interval: `0 < x < 12.5`, `5 > x`."""
    del depth
    if not any(sign in text for sign in ("<", ">", "\\l", "\\g", "≤", "≥")):
        return None
    if (match := _INEQUALITY.fullmatch(text)) and match["low"]:
        low, high = numerals.value(match["low"]), numerals.value(match["high"])
        if low is None or high is None or low >= high:
            return None
        opening, closing = "(["[_closed(match["first"])], ")]"[_closed(match["second"])]
        return _interval(match["name"], f"{opening} {closing}", (Quantity(low), Quantity(high)))
    return _half_line(text)


def _half_line(text: str) -> Value | None:
    match = _BOUNDED.fullmatch(text)
    if match is None:
        return None
    left, right = numerals.value(match["left"]), numerals.value(match["right"])
    name = match["right"] if right is None else match["left"]
    bound = left if right is None else right
    if bound is None or (left is None) == (right is None) or not re.fullmatch("[A-Za-z]", name):
        return None
    above = bool(re.fullmatch(_ABOVE, match["sign"])) == (right is not None)
    closed = _closed(match["sign"])
    if above:
        return _interval(name, f"{'(['[closed]} )", (Quantity(bound), _HIGHEST))
    return _interval(name, f"( {')]'[closed]}", (_LOWEST, Quantity(bound)))


def _closed(sign: str) -> bool:
    return sign not in ("<", ">", "\\lt", "\\gt")


def _interval(name: str, brackets: str, bounds: tuple[Value, Value]) -> Value:
    return Named(name, Items(bounds, brackets, interval=True))


def _named(text: str, depth: int) -> Value | None:
    if text.count("=") + text.count("\\in ") + text.count("\\in[") != 1 or re.search(
        r"[<>!:]=", text
    ):
        return None
    match = _EQUATION.fullmatch(text)
    if match is None:
        return None
    name, said = (match[1], match[2]) if match[1] else (match[4], match[3])
    value = _read(said.strip(), depth)
    if match[1] is None and not isinstance(value, Quantity):
        return None
    name = re.sub(r"[\s{}]", "", name)
    return value if name.startswith("(") and isinstance(value, Items) else Named(name, value)


_OPENING, _CLOSING = {"(": "(", "[": "[", "{": "{", "\\{": "{"}, {")": ")", "]": "]", "}": "}"}
_CUTS = re.compile(r"\s*;\s*|,?\s+and\s+|,\s+|,")
_DECIMAL_COMMA = re.compile(r"\d{1,40},\d{1,2}")
_UNSPACED = re.compile(r"\d,\d{3}(?!\d)")


def _items(text: str, depth: int) -> Value | None:
    brackets, inside = _brackets(text)
    texts = _parts(inside, bare=not brackets)
    if texts is None or len(texts) < 2:
        return None
    values = tuple(_read(each, depth) for each in texts)
    if any(isinstance(value, Unread) for value in values):
        return Unread(text)
    if not brackets and any(isinstance(v, Words) and len(v.text) > 1 for v in values):
        return None
    decimal = _exact(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else None
    return Items(values, brackets, decimal=decimal)


def _brackets(text: str) -> tuple[str, str]:
    """Return the brackets around all of a text and what they hold, none where there are none."""
    opening = "\\{" if text.startswith("\\{") else text[:1]
    closing = "\\}" if text.endswith("\\}") else text[-1:]
    if opening not in _OPENING or closing.lstrip("\\") not in _CLOSING:
        return "", text
    inside = text[len(opening) : -len(closing)]
    if _depths(inside) is None:
        return "", text
    return f"{_OPENING[opening]} {closing[-1]}", inside


def _depths(text: str) -> list[int] | None:
    """Return how deep in brackets each letter stands, None where they do not match."""
    depth, depths = 0, []
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return None
        depths.append(depth)
    return None if depth else depths


def _parts(text: str, *, bare: bool) -> list[str] | None:
    """Cut a list where its values end, None where a comma may as well group digits."""
    depths = _depths(text)
    if depths is None:
        return None
    cuts = [cut for cut in _CUTS.finditer(text) if not depths[cut.start()]]
    for wanted in (";", ", ", ","):
        if any(wanted in cut[0] for cut in cuts):
            break
    else:
        wanted = " and "
    if wanted == ";":
        cuts = [cut for cut in cuts if ";" in cut[0]]
    elif wanted == ", ":
        if not bare and _UNSPACED.search(text):
            return None
        cuts = [cut for cut in cuts if cut[0] != ","]
    parts = [
        text[a:b].strip()
        for a, b in zip(
            [0, *(cut.end() for cut in cuts)],
            [*(cut.start() for cut in cuts), len(text)],
            strict=True,
        )
    ]
    if not all(parts) or any(re.fullmatch(r"-?0\d+", part) for part in parts):
        return None
    if (
        wanted == ","
        and bare
        and len(parts) > 2
        and any(re.fullmatch(r"\d{3}", p) for p in parts[1:])
    ):
        return None
    return parts


# --- Words -------------------------------------------------------------------------------------

_WORDS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*(?:[., ]+[^\W\d_]+(?:['-][^\W\d_]+)*)*")
_SYMBOLS = frozenset(words.listed("pi sqrt infinity sin cos tan log ln exp mod"))
_WEEKDAYS = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)days")
_SEPARATORS = re.compile(r"[, ]+")


def _words(text: str) -> Words | None:
    if not _WORDS.fullmatch(text) or "..." in text:
        return None
    folded = " ".join(_SEPARATORS.split(text.casefold())).removeprefix("the ")
    tokens = re.split(r"[ .-]+", folded)
    if any(token in words.NUMERIC or token in _SYMBOLS for token in tokens):
        return None
    if any(len(token) == 1 and token not in "aio" for token in tokens) and len(tokens) > 1:
        return None
    return Words(folded.removesuffix("s") if _WEEKDAYS.fullmatch(folded) else folded)


_RULES: tuple[Callable[[str], Value | None], ...] = (
    _quantity,
    _choice,
    _moment,
    _date,
    _ratio,
    _based,
)
