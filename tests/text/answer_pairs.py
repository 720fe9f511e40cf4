"""Answers whose value is known by construction, for laws about grading.

Said("3 dozen", ("number", 36))      Said("5 or 6", ("other", "5 or 6"))
Said("2 hours", ("measure", "time", 7200))
"""

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import strategies as st

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
ONES = [*ONES.split(), "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = {
    "time": {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800},
    "length": {"mm": 1, "cm": 10, "m": 1000, "km": 10**6, "meters": 1000, "kilometers": 10**6},
    "mass": {"mg": 1, "grams": 1000, "g": 1000, "kg": 10**6, "kilograms": 10**6},
    "imperial": {"inches": 1, "ft": 12, "feet": 12, "yards": 36, "miles": 63360},
    "area": {"cm^2": 1, "m^2": 10**4, "square meters": 10**4, "square cm": 1},
    "volume": {"cm^3": 1, "m^3": 10**6, "cubic meters": 10**6},
    "dollar": {"cents": 1, "dollars": 100, "¢": 1},
}
THINGS = ["apples boxes people red marbles", "pieces of candy", "books left", "students in total"]
# What makes another answer of a number, before and after it.
BEFORE = [
    "about ",
    "~",
    "≈",
    "not ",
    "isn't ",
    "at least ",
    "at most ",
    "over ",
    "under ",
    "nearly ",
    ">",
    ">= ",
    "≥",
    "< ",
    "≤ ",
    "!= ",
    "≠",
    "± ",
    "\\pm ",
    "\\ne ",
    "between 1 and ",
    "less than ",
    "more than ",
    "up to ",
    "no more than ",
    "either ",
    "minus minus ",
    "x^",
    "√-",
    "\\approx ",
    "the number ",
    "almost ",
    "roughly ",
    "10^{-",
    "mod ",
    "No ",
]
AFTER = [
    "'",
    "''",
    "*",
    "-",
    "+",
    "…",
    "...",
    " or so",
    " or more",
    " +/- 1",
    " ± 1",
    "!!",
    " squared",
    " cubed",
    "th",
    "x",
    " x",
    " xy",
    " ab",
    " mod 7",
    " choose 2",
    " remainder 2",
    " R 1",
    "M",
    "k",
    " M",
    " K",
    "bn",
    " bn",
    " mil",
    " lakhs",
    " grand",
    " gross",
    " score",
    " March",
    " May 2",
    " of 9 tenths",
    " sin x",
    " cos theta",
    " log n",
    " if n is even",
    " times x",
    " over x",
    " less than x",
    " more than y",
    " le x",
    " root two",
    "^x",
    "_x",
    "e",
    "i",
    "π",
    " \\pi",
    "\\sqrt{2}",
    " \\text{or} 9",
    " (thousand)",
    " (million)",
    " (wrong)",
    " (approximately)",
    " in base 7",
    " ppm",
    "‰",
    " zorks",
    " percentage points",
    " halves of 3",
    " to 9",
    " through 9",
    "-9",
    "\u20139",
    " vs 9",
    " unless 2",
    ":9:9:0",
    "/0",
    "^",
    " =",
    "(2)",
    " (mod 9)",
    " ^n",
    "°C",
]


@dataclass(frozen=True)
class Said:
    """A text and the value that it has, a tuple that begins with its kind."""

    text: str
    value: tuple


def words(number: int) -> str:
    """Return a whole number below a million in English."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = f" and {words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    rest = f" {words(number % 1000)}" if number % 1000 else ""
    return f"{words(number // 1000)} thousand{rest}"


def spellings(number: Fraction) -> list[str]:
    """Return ways to write a number that all graders must know."""
    sign, size = ("-" if number < 0 else ""), abs(number)
    if size.denominator == 1:
        found = [f"{size}", f"{int(size):,}", f"{size}.0", f"{int(size):,}".replace(",", " ")]
        found += [f"{int(size):,}".replace(",", "{,}"), f"{int(size):,}".replace(",", ",\\!")]
        found += [
            "".join(chr(0xFF10 + int(digit)) for digit in str(size)),
            f"{size}/1",
            f"({size})",
        ]
    else:
        over, under = size.numerator, size.denominator
        found = [
            f"{over}/{under}",
            f"\\frac{{{over}}}{{{under}}}",
            f"\\dfrac{{{2 * over}}}{{{2 * under}}}",
        ]
        found += [f"\\left(\\frac{{{over}}}{{{under}}}\\right)"]
        if size > 1:
            whole, over = divmod(over, under)
            found += [f"{whole} {over}/{under}"] if over < 100 else []
            found += [f"{whole}\\frac{{{over}}}{{{under}}}"]
    plain = [f"{sign}{text}" for text in found]
    plain += [f"\u2212{text}" for text in found] if sign else []
    if size.denominator == 1 and size < 10**6:
        plain.append(f"{'minus ' if sign else ''}{words(int(size))}")
    return plain


numbers = st.integers(-(10**5), 10**5).map(Fraction) | st.builds(
    Fraction, st.integers(-200, 200), st.integers(1, 60)
)
dresses = st.sampled_from(
    [
        "{}",
        "{}.",
        "${}$",
        "\\({}\\)",
        "**{}**",
        "*{}*",
        "`{}`",
        '"{}"',
        "\\text{{{}}}",
        "\\boxed{{{}}}",
        " {} ",
    ]
)


@st.composite
def plain_numbers(draw: st.DrawFn) -> Said:
    number = draw(numbers)
    text = draw(st.sampled_from(spellings(number)))
    return Said(draw(dresses).format(text), ("number", number))


@st.composite
def scaled_numbers(draw: st.DrawFn) -> Said:
    count = draw(st.integers(2, 40))
    shown = draw(st.sampled_from([str(count), words(count)]))
    scales = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
    scales |= {"tenths": Fraction(1, 10), "thirds": Fraction(1, 3), "quarters": Fraction(1, 4)}
    scales |= {"hundredths": Fraction(1, 100), "halves": Fraction(1, 2)}
    name = draw(st.sampled_from(sorted(scales)))
    half = draw(st.booleans()) and name in ("million", "thousand")
    number = (count + Fraction(half, 2)) * scales[name]
    return Said(f"{shown}{' and a half' if half else ''} {name}", ("number", Fraction(number)))


@st.composite
def measures(draw: st.DrawFn) -> Said:
    kind = draw(st.sampled_from(sorted(UNITS)))
    unit = draw(st.sampled_from(sorted(UNITS[kind])))
    count = draw(st.integers(1, 200))
    glued = unit in ("cm", "kg", "km", "mm", "mg", "ft", "¢") and draw(st.booleans())
    value = ("measure", kind, count * UNITS[kind][unit])
    return Said(f"{count}{'' if glued else ' '}{unit}", value)


@st.composite
def changed_numbers(draw: st.DrawFn) -> Said:
    number = draw(st.integers(2, 99))
    before = draw(st.sampled_from(BEFORE)) if draw(st.booleans()) else ""
    after = "" if before else draw(st.sampled_from(AFTER))
    text = f"{before}{number}{after}"
    return Said(draw(st.sampled_from(["{}", "{}.", "${}$"])).format(text), ("other", text))


@st.composite
def lists(draw: st.DrawFn) -> Said:
    values = tuple(draw(st.lists(st.integers(-20, 120), min_size=2, max_size=4)))
    opening, closing = draw(
        st.sampled_from([("", ""), ("(", ")"), ("[", "]"), ("[", ")"), ("\\{", "\\}")])
    )
    text = draw(st.sampled_from([", ", "; "])).join(map(str, values))
    brackets = "" if opening == "(" else f"{opening}{closing}"
    held = tuple(sorted(set(values))) if opening == "\\{" else values
    if len(held) < 2:
        held, values = (0, 1), (0, 1)
        text = "0, 1"
    return Said(f"{opening}{text}{closing}", ("list", brackets, held))


@st.composite
def named_numbers(draw: st.DrawFn) -> Said:
    name, number = draw(st.sampled_from("xynk")), draw(st.integers(-99, 99))
    text = draw(st.sampled_from(["{} = {}", "{}={}", "${} = {}$"])).format(name, number)
    return Said(text, ("named", name, Fraction(number)))


@st.composite
def powers(draw: st.DrawFn) -> Said:
    base, exponent = draw(st.integers(2, 12)), draw(st.integers(-4, 6))
    raised = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] if d.isdigit() else "⁻" for d in str(exponent))
    text = draw(
        st.sampled_from([f"{base}^{{{exponent}}}", f"{base}{raised}", f"{base}^{exponent}"])
    )
    return Said(text, ("number", Fraction(base) ** exponent))


@st.composite
def scientific_numbers(draw: st.DrawFn) -> Said:
    over, exponent = draw(st.integers(11, 99)), draw(st.integers(-5, 8))
    forms = (
        "{m}e{e}",
        "{m}E{e}",
        "{m} \\times 10^{{{e}}}",
        "{m} \u00d7 10^{e}",
        "{m}*10^{e}",
        "{m} x 10^{e}",
    )
    text = draw(st.sampled_from(forms)).format(m=f"{over / 10}", e=exponent)
    return Said(text, ("number", Fraction(over, 10) * Fraction(10) ** exponent))


@st.composite
def percentages(draw: st.DrawFn) -> Said:
    number = draw(st.integers(1, 300))
    sign = draw(st.sampled_from(["%", "\\%", " percent", " per cent"]))
    return Said(f"{number}{sign}", ("percent", Fraction(number, 100)))


def said() -> st.SearchStrategy[Said]:
    """Return any of the answers above."""
    return st.one_of(
        plain_numbers(),
        scaled_numbers(),
        measures(),
        changed_numbers(),
        lists(),
        named_numbers(),
        powers(),
        scientific_numbers(),
        percentages(),
    )


def may_be_equal(prediction: tuple, gold: tuple) -> bool:
    """Return whether a grader may call two values equal: one says what the other leaves out."""
    if prediction == gold:
        return True
    kinds, numbers = (prediction[0], gold[0]), (prediction[-1], gold[-1])
    if set(kinds) == {"number", "named"}:
        return numbers[0] == numbers[1]
    if set(kinds) in ({"number", "measure"}, {"named", "measure"}):
        return True  # the unit that is left out is not known
    if kinds == ("percent", "number"):
        return gold[1] in (prediction[1], prediction[1] * 100)
    if kinds == ("percent", "named"):
        return gold[2] in (prediction[1], prediction[1] * 100)
    return (
        set(kinds) <= {"number", "percent", "named"}
        and numbers[0] == numbers[1]
        and kinds[0] != kinds[1]
    )
