r"""Find a text's final answer and decide whether two answers are equal; never runs model text.

Votes are counted on `canonical` keys, which form classes; `equal` asks whether an answer is right
and is a little wider. The rules of a key:

- A number is exact: `1,200`, `$1200.00`, `+1200` and `2400/2` are one key, `1/3` and `0.33` two.
  Commas must stand where thousands end. `10%` is a tenth; `1 1/2`, `\frac{3}{2}` and `1.5` are one.
- A unit after a number is dropped and not compared: `9 (apples)`, `9 apples`, `9cm` and `9`. What
  changes the number (`2 dozen`, `5:45`, `6th`, `12 pm`, `52_8`, `8 \pi`) stays text.
- A word from `zero` to `ninety-nine` is its number.
- Several values, cut by `;` or commas, are compared in their order. Square brackets around them
  count, as an interval's ends do; round ones, as a point's, do not.
- An expression loses what LaTeX leaves to taste: blanks, braces around one sign, `\dfrac`, `π`.
- Text is folded in case; blanks, commas, marks at the ends and a leading `the` do not count.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

# The digits of a number, so that no text makes the arithmetic slow.
_DIGITS = 40
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s?[$€£]?\s?(?P<inner>-?)\(?(?:(?P<whole>\d+)\s+(?=\d+/))?"
    rf"(?P<value>{_UNSIGNED})(?:\s?/\s?(?P<under>\d+))?\.?\)?"
    r"(?P<percent>\s?%|\s[Pp]er\s?cent)?(?:\s*\([^()0-9]*\)|\s?°"
    r"|(?:(?P<unit>\s+[^\W\d_][^\d()=;:,_+*^<>{{}}|\\]*)|[ckm]m|[km]g|[cm]l|mph|lbs?|oz|ft|hrs?|mins?"
    r"|secs?)(?:\^[23])?)?"
)
# A fraction alone is a number; within an expression it stays as it is.
_FRACTION = re.compile(
    r"(?P<lead>[-+]?\s?\d*)\s?\\[dt]?frac\s?(?:\{(?P<over>-?\d+)\}|(?P<digit>\d))\s?"
    r"(?:\{(?P<under>\d+)\}|(?P<last>\d))(?P<rest>[^\\{}^_]*)"
)
_QUOTIENT = re.compile(r"\((-?\d+)\)\s?/\s?\((\d+)\)")
_OPENING, _CLOSING = ("(", "["), (")", "]")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mbox|boxed)\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[!,;: ()\[\]]|\^\{?\\circ\}?")
_NAMED = re.compile(r"[A-Za-z]\s?(?:=|\\in(?![a-z]))\s?(?=\S)")
# What only algebra can compare: LaTeX, powers, and operators or variables beside digits.
_EXPRESSION = re.compile(
    r"\\|\^|[√π∞]|\d_[{\d]|\d\s?[-+*/=]|[-+*/=<>]\s?\d|\d[a-z]\b|\b[a-z]\s?[-+*/=]|(?:sqrt|\bpi)\b"
)
# A key that no reading changes.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,39}")
_BASED = re.compile(r"\d+_\d+")
# What LaTeX leaves to taste, within an expression in lower case.
_TASTE = re.compile(
    r"\\[dt]frac|\\(?:cdot|times)(?![a-z])|\\[lg]eq(?![a-z])|[π∞≤≥·\u00d7]|(?<![a-z\\])(?:pi|infinity)\b|\*\*"
    r"|(?<=[\^_])\{(?P<index>[-+]?\d+|[a-z])\}|(?<=\\sqrt)\{(?P<root>\w)\}"
    r"|(?<![a-z\\])sqrt\((?P<inside>[^()]+)\)"
)
_PLAIN = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cdot": "*",
    "\\times": "*",
    "·": "*",
    "\u00d7": "*",
    "**": "^",
    "\\leq": "\\le",
    "≤": "\\le",
    "\\geq": "\\ge",
    "≥": "\\ge",
    "π": "\\pi",
    "pi": "\\pi",
    "∞": "\\infty",
    "infinity": "\\infty",
}
# Blanks, but for those between words or between digits.
_BLANKS = re.compile(r" +(?![a-z0-9])|(?<![a-z0-9]) +|(?<=[0-9]) +(?=[a-z])")
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
_STATED = re.compile(r"answer is\b:?", re.IGNORECASE)
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


def stated(text: str) -> str | None:
    """Return the words after the last "answer is", or the text itself, up to the end of the line.

    A full stop at the end is dropped, and nothing else, so that a strict comparison is one.

    Example:
        >>> [stated(text) for text in ("It is. So the answer is (A).", "] ] >", "")]
        ['(A)', '] ] >', None]
    """
    marks = list(_STATED.finditer(text))
    lines = (text[marks[-1].end() :] if marks else text).strip().splitlines()
    return lines[0].strip().removesuffix(".") or None if lines else None


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
    key, before, exact = answer, None, False
    while key != before and not exact:
        before, (key, exact) = key, _key(key)
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
    if prediction == gold:
        return True
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
        or _numbers(key.strip("()[]").split(";")) is not None
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


def _key(answer: str) -> tuple[str, bool]:
    """Return a key, and whether it is one of numbers, which no further reading changes."""
    bare = _bare(answer)
    if bare[:1] in _OPENING and bare[-1:] in _CLOSING and (key := _list(bare)):
        return key, True
    if ";" in bare:
        values = _numbers(bare.split(";"))
    elif ", " in bare:
        values = _numbers(bare.split(", "))
    else:
        values = _numbers([bare]) or (_numbers(bare.split(",")) if "," in bare else None)
    return "; ".join(values or map(_text, bare.split(";"))), values is not None


def _list(bracketed: str) -> str | None:
    """Return the key of numbers in brackets: an interval's brackets count, a point's do not."""
    opening, inside, closing = bracketed[0], bracketed[1:-1], bracketed[-1]
    if "," not in inside and ";" not in inside:
        return None
    values = _numbers(inside.replace(",", ";").split(";"))
    if values is None:
        return None
    key = "; ".join(values)
    return key if opening + closing == "()" else f"{opening}{key}{closing}"


def _numbers(texts: Sequence[str]) -> list[str] | None:
    """Return the texts as numbers, None unless all are."""
    values = []
    for text in texts:
        if (value := _number(text)) is None:
            return None
        values.append(str(value))
    return values


def _bare(answer: str) -> str:
    """Undo what is only dress: LaTeX, typographic minus, a name before `=`, marks at the ends."""
    text = answer.replace("\u2212", "-").replace("\\$", "$").replace("\\%", "%")
    if "\\" in text:
        text = _WRAPPER.sub(r"\1", text)
        text = _SPACING.sub("", text.replace(",\\! ", ",").replace("\\!", ""))
    if ")/" in text or ") /" in text:
        text = _QUOTIENT.sub(r"\1/\2", text)
    text = _NAMED.sub("", text.strip(_EDGES), count=1) if "=" in text or "\\in" in text else text
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
        if word not in _WORDS or rest.startswith("of "):
            return None
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
    folded = value.casefold()
    text = " ".join(folded.replace(",", " ").split()).strip(_EDGES)
    if (not text.isalpha() or text in _PLAIN) and _EXPRESSION.search(text):
        return _expression(" ".join(folded.split()))
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip(_EDGES)
    return _MERIDIEM.sub(r"\1m", text.removeprefix("the "))


def _expression(text: str) -> str:
    """Write an expression without what LaTeX leaves to taste."""
    plain = _BLANKS.sub("", _TASTE.sub(_as_plain, text)).strip(_EDGES)
    return plain.removeprefix("the ")


def _as_plain(found: re.Match[str]) -> str:
    if found["inside"]:
        return f"\\sqrt{{{found['inside']}}}"
    return found["index"] or found["root"] or _PLAIN[found[0]]
