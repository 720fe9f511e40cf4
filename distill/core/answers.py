r"""Find a text's final answer and decide whether two answers are equal; never runs model text.

Votes are counted on `canonical` keys, which form classes; `equal` asks whether an answer is right
and is a little wider. The rules of a key:

- A number is exact: `1,200`, `$1200.00`, `+1200` and `2400/2` are one key, `1/3` and `0.33` two.
  Commas must stand where thousands end. `10%` is a tenth; `1 1/2`, `\frac{3}{2}` and `1.5` are one.
- A unit after a number is dropped and not compared: `9 (apples)`, `9 apples` and `9`. What changes
  the number (`2 dozen`, `5:45`, `6th`, `12 pm`, `52_8`, `8 \pi`) stays text.
- A word from `zero` to `ninety-nine` is its number.
- Several values, cut by `;` or by a comma and a blank, are compared in their order.
- Text is folded in case; blanks, commas, marks at the ends and a leading `the` do not count.
"""

import re
from fractions import Fraction

# The digits of a number, so that no text makes the arithmetic slow.
_DIGITS = 40
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s?[$€£]?\s?(?P<inner>-?)\(?(?:(?P<whole>\d+)\s+(?=\d+/))?"
    rf"(?P<value>{_UNSIGNED})(?:\s?/\s?(?P<under>\d+))?\.?\)?"
    r"(?P<percent>\s?%|\s[Pp]er\s?cent)?(?:\s*\([^()0-9]*\)|\s?°|(?P<unit>\s+[^\W\d_][^\d()=;:,_+*^<>{{}}|\\]*)(?:\^[23])?)?"
)
# A fraction alone is a number; within an expression it stays as it is.
_FRACTION = re.compile(
    r"(?P<lead>[-+]?\s?\d*)\s?\\[dt]?frac\s?(?:\{(?P<over>-?\d+)\}|(?P<digit>\d))\s?"
    r"(?:\{(?P<under>\d+)\}|(?P<last>\d))(?P<rest>[^\\{}^_]*)"
)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mbox|boxed)\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\^\{?\\circ\}?|\\[()\[\]]")
_NAMED = re.compile(r"[A-Za-z]\s?=\s?(?=\S)")
# What only algebra can compare: LaTeX, powers, and operators or variables beside digits.
_EXPRESSION = re.compile(
    r"\\|\^|[√π]|\d\s?[-+*/=]|[-+*/=<>]\s?\d|\d[a-z]\b|\b[a-z]\s?[-+*/=]|\b(?:sqrt|pi)\b"
)
# A key that no reading changes.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,39}")
_BASED = re.compile(r"\d+_\{?\d+\}?")
_VARIABLE = re.compile(r"\d[A-Za-z]\b|\b[A-Za-z]\s?[-+*/^]|[-+*/^]\s?[A-Za-z]\b")
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: value for value, word in enumerate(_SMALL)}
_WORDS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_WORDS |= {f"{ten}-{one}": _WORDS[ten] + _WORDS[one] for ten in _TENS for one in _SMALL[1:10]}
# Words after a number that make another one of it.
_SCALES = re.compile(
    r"\b(?:dozen|hundred|thousand|million|billion|trillion|and|or|to|plus|minus)s?\b|\b(?:pi|sqrt|squared|cubed|mod)\b|\s-\s|^\s(?:[abd-fijknopqrtu-z])\b|"
    r"\b[ap]\.?m\b|o'clock",
    re.IGNORECASE,
)
_MARKER = re.compile(r"answer is\b:?|####|\\boxed\{", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)\.\s+(?=[A-Z])")
_LAST_NUMBER = re.compile(rf"(?<![\w.,])-?[$€£]?(?:{_UNSIGNED})(?:/\d+)?%?|(?:{_UNSIGNED})")
_PERCENT = re.compile(r"\s?(?:%|per\s?cent)\W*$", re.IGNORECASE)
_MERIDIEM = re.compile(r"\b([ap])\.m\b\.?")
_EDGES = " \t\r\n.,;:!?*_`'\"$"
_FU = re.compile(r"\d*\.?\d+")


def extract(text: str) -> str | None:
    r"""Return the final answer of a completion, None where it holds none.

    The last mark counts: `The answer is X`, `#### X` or `\boxed{X}`, up to the end of its sentence
    or line; of an equation the right side. A mark with nothing after it gives None, since what
    stands before it is no answer. Without a mark the last number is the answer.

    Example:
        >>> extract("5 + 7 = 12 apples.\nThe answer is 12.")
        '12'
        >>> extract("So there are 5 + 7 = 12 apples.")
        '12'
        >>> extract("I do not know.")
    """
    marks = list(_MARKER.finditer(text))
    if marks:
        return _after(text, marks[-1])
    numbers = _LAST_NUMBER.findall(text)
    return numbers[-1] if numbers else None


def marked(gold: str) -> str | None:
    r"""Return the answer that a gold text marks, the text itself where it has no mark.

    Example:
        >>> [marked(text) for text in ("5 + 7 = 12\n#### 12", "9 (apples)", "####")]
        ['12', '9 (apples)', None]
    """
    marks = list(_MARKER.finditer(gold))
    return _after(gold, marks[-1]) if marks else gold.strip() or None


def _after(text: str, mark: re.Match[str]) -> str | None:
    rest = text[mark.end() :]
    if mark[0].startswith("\\"):
        return _braced(rest).strip() or None
    lines = rest.strip().splitlines()
    if not lines:
        return None
    sentence = _SENTENCE_END.split(lines[0], maxsplit=1)[0]
    before, _, said = sentence.rpartition("=")
    if _VARIABLE.search(before.rpartition("=")[2]):
        said = sentence  # an equation that is itself the answer
    edges = _EDGES.replace("$", "")
    return said.rstrip(edges).lstrip(edges.replace(".", "")).removeprefix(". ") or None


def _braced(text: str) -> str:
    """Return what stands before the brace that closes an opened one."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:place]
    return text


def canonical(answer: str) -> str:
    r"""Return the key under which answers of the same value meet; the module says how.

    Example:
        >>> [canonical(text) for text in ("1,200", "$1200.00", "0.5", r"\frac{1}{2}", "True.")]
        ['1200', '1200', '1/2', '1/2', 'true']
        >>> canonical("6 (cm); 15 (cm)")
        '6; 15'
    """
    if answer.isascii() and answer.isdigit() and len(answer) <= _DIGITS:
        return str(int(answer))
    key, before = _key(answer), answer
    while key != before and not _INTEGER.fullmatch(key):
        key, before = _key(key), key
    return key


def equal(prediction: str, gold: str) -> bool | None:
    r"""Return whether an answer is right: equal keys, or a percent sign that the gold leaves out.

    So `10%` is accepted for the gold `10`, whose unit is percent, but `10` is not for `10%`: both
    ways round, equal answers are those of one key. None where only algebra could tell, as between
    `2\sqrt{3}` and `\sqrt{12}`: keys that differ, one of them an expression.

    Example:
        >>> equal("$1,200", "1200"), equal("10%", "10"), equal("10", "10%"), equal("52_8", "52")
        (True, True, False, False)
    """
    key, wanted = canonical(prediction), canonical(gold)
    if key == wanted:
        return True
    bare = _PERCENT.sub("", prediction)
    if bare != prediction and not _PERCENT.search(gold) and canonical(bare) == wanted:
        return True
    return None if _undecidable(key) or _undecidable(wanted) else False


def _undecidable(key: str) -> bool:
    """Return whether a key is an expression whose value is not known."""
    if (
        _INTEGER.fullmatch(key)
        or _BASED.fullmatch(key)
        or all(_number(value) is not None for value in key.split(";"))
    ):
        return False
    return len(key) <= 4 * _DIGITS and _EXPRESSION.search(key) is not None


def fu2023(text: str) -> str | None:
    r"""Return the last `\d*\.?\d+`, the public grader of Fu et al. 2023, kept for parity alone.

    It knows no sign, no thousands comma and no fraction.

    Example:
        >>> fu2023("The answer is -1,200.")
        '200'
    """
    found = _FU.findall(text)
    return found[-1] if found else None


def _key(answer: str) -> str:
    bare = _bare(answer)
    values = [_number(value) for value in (bare.split(";") if ";" in bare else bare.split(", "))]
    if all(value is not None for value in values):
        return "; ".join(map(str, values))
    return "; ".join(map(_text, bare.split(";")))


def _bare(answer: str) -> str:
    """Undo what is only dress: LaTeX, typographic minus, a name before `=`, marks at the ends."""
    text = answer.replace("\u2212", "-").replace("\\$", "$").replace("\\%", "%")
    if "\\" in text:
        text = _WRAPPER.sub(r"\1", text)
        text = _SPACING.sub("", text.replace(",\\! ", ",").replace("\\!", ""))
    text = _NAMED.sub("", text.strip(_EDGES), count=1) if "=" in text else text
    return text.strip()


def _number(text: str) -> Fraction | int | None:
    text = text.strip().strip("$*").strip()
    if "frac" in text and (fraction := _FRACTION.fullmatch(text)):
        over, under = (
            fraction[a] or fraction[b] for a, b in (("over", "digit"), ("under", "last"))
        )
        text = f"{fraction['lead']} {over}/{under}{fraction['rest']}".strip()
    elif text[:1].isalpha():
        word, blank, rest = text.casefold().partition(" ")
        if word in _WORDS and not rest.startswith("of "):
            text = f"{_WORDS[word]}{blank}{rest}"
    found = _NUMBER.fullmatch(text)
    if (
        found is None
        or len(text) > 4 * _DIGITS
        or (found["unit"] and _SCALES.search(found["unit"]))
    ):
        return None
    value = Fraction(found["value"].replace(",", ""))
    if found["under"]:
        if not int(found["under"]):
            return None
        value /= int(found["under"])
    value += int(found["whole"] or 0)
    if found["percent"]:
        value /= 100
    return -value if (found["sign"] == "-") != (found["inner"] == "-") else value


def _text(value: str) -> str:
    text = " ".join(value.casefold().replace(",", " ").split()).strip(_EDGES)
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip(_EDGES)
    return _MERIDIEM.sub(r"\1m", text.removeprefix("the "))
