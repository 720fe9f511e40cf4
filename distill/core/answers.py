r"""Find a text's final answer and decide whether two answers are equal; never runs model text.

Votes are counted on `canonical` keys, which form classes; `equal` asks whether an answer is right
and is a little wider. The rules of a key:

- A number is exact: `1,200`, `$1200.00`, `+1200` and `2400/2` are one key, `1/3` and `0.33` two.
  Commas must stand where thousands end. `10%` is a tenth; `1 1/2`, `\frac{3}{2}` and `1.5` are one.
- A unit after a number is dropped and not compared: `9 (apples)`, `9 apples` and `9`. What changes
  the number (`2 dozen`, `5:45`, `6th`, `12 pm`, `52_8`) stays text.
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
    r"(?P<percent>\s?%|\s[Pp]er\s?cent)?(?:\s*\([^()0-9]*\)|(?P<unit>\s+[^\d()=;:,_]+))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|boxed)\{([^{}]*)\}")
_NAMED = re.compile(r"[A-Za-z]\s?=\s?(?=\S)")
# Words after a number that make another one of it.
_SCALES = re.compile(
    r"\b(?:dozen|hundred|thousand|million|billion|trillion|and|or|to|plus|minus)s?\b|"
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
    said = _SENTENCE_END.split(lines[0], maxsplit=1)[0].rpartition("=")[2]
    return said.strip(_EDGES.replace("$", "")) or None


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
    while key != before:
        key, before = _key(key), key
    return key


def equal(prediction: str, gold: str) -> bool:
    """Return whether an answer is right: equal keys, or a percent sign that the gold leaves out.

    So `10%` is accepted for the gold `10`, whose unit is percent, but `10` is not for `10%`.

    Example:
        >>> equal("$1,200", "1200"), equal("10%", "10"), equal("10", "10%"), equal("52_8", "52")
        (True, True, False, False)
    """
    if canonical(prediction) == canonical(gold):
        return True
    bare = _PERCENT.sub("", prediction)
    return bare != prediction and not _PERCENT.search(gold) and canonical(bare) == canonical(gold)


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
        text = _FRACTION.sub(r"\1/\2", text)
    text = _NAMED.sub("", text.strip(_EDGES), count=1) if "=" in text else text
    return text.strip()


def _number(text: str) -> Fraction | int | None:
    text = text.strip().strip("$*").strip()
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
