r"""Undo what is only dress: scripts, typographic signs, LaTeX's spacing and fonts, outer marks.

What is not known to be dress stays, so that a text that holds it is not read as a number:
`5!`, `x'` and `x*` keep their last sign, `0.33...` keeps its dots.
"""

import re
import unicodedata

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2007\u2009\u200a\u202f\u3000\t\r\n", " "),
        **dict.fromkeys("\u2019\u02bc", "'"),
        **{chr(0xFF01 + place): chr(0x21 + place) for place in range(94) if place != 12},
        "\u3002": ".",
        "\u2044": "/",
    }
)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_LOWERED = re.compile("[\u2080-\u2089]+")
_VULGAR = re.compile("(\\d?)([\u00bc-\u00be\u2150-\u215e])")
_ROOT = re.compile(r"√\s?(?:(\d+|[A-Za-z])|\(([^()]*)\))")
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|hbox|bold|boldsymbol|emph|"
    r"boxed|fbox|framebox)\s?\{([^{}]*)\}"
)
_NOTHING = re.compile(
    r"(?<!\\)\\(?:(?:left|right|displaystyle|limits)(?![A-Za-z])\.?|!\s*|[()\[\]])"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|(?<=\S)~(?=\S)")
# A backslash that was escaped once too often; in a matrix two of them end a row.
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2})")
_DEGREE = re.compile(r"\s?(?:\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z]))")
_ESCAPED = re.compile(r"\\([$%&#])")
_SPACES = re.compile(r"\s{2,}")
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ("$$", "$$"),
    ("$", "$"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("\u201c", "\u201d"),
    ("\u2018", "'"),
)
_OPENINGS = frozenset(opening[0] for opening, _ in _PAIRS)


def undress(text: str) -> str:
    r"""Return a text without its dress.

    Example:
        >>> [undress(text) for text in (r"**$14{,}916$**.", "\u22125", "5\u00b2", "5!", "29..")]
        ['14,916', '-5', '5^{2}', '5!', '29']
    """
    if not text.isascii():
        text = _in_ascii(text)
    if "\\" in text or "{,}" in text or "~" in text:
        text = _without_latex(text)
    text = strip(text)
    return _SPACES.sub(" ", text) if "  " in text else text


def _in_ascii(text: str) -> str:
    """Write digits of all scripts, signs, raised digits and fractions in ASCII."""
    text = _RAISED.sub(lambda run: f"^{{{_nfkc(run[0])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{_nfkc(run[0])}}}", text)
    text = _VULGAR.sub(lambda run: f"{run[1]} {_nfkc(run[2])}", text)
    text = _ROOT.sub(lambda run: f"\\sqrt{{{run[1] or run[2]}}}", text.translate(_SIGNS))
    return "".join(_digit(letter) for letter in text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _digit(letter: str) -> str:
    if letter.isascii() or not letter.isdecimal():
        return letter
    return str(unicodedata.decimal(letter))


def _without_latex(text: str) -> str:
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _DEGREE.sub("°", text.replace("{,}", ","))
    for _ in range(4):
        text = _FONT.sub(r" \1 ", text)
    text = _ESCAPED.sub(r"\1", _SPACE.sub(" ", _NOTHING.sub("", text)))
    return re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)


def strip(text: str) -> str:
    """Take marks and pairs of marks off the ends; a single mark that may mean something stays."""
    before = None
    while before != text:
        before = text
        text = text.strip().lstrip(":;,").rstrip(",;:?")
        if text.endswith(".") and not text.endswith("..."):
            text = text.rstrip(".")
        if text[:1] in _OPENINGS:
            text = _unpaired(text)
    return text


def _unpaired(text: str) -> str:
    """Take one pair of marks off a text that it encloses whole."""
    for opening, closing in _PAIRS:
        inside = text[len(opening) : -len(closing)]
        if inside and text == f"{opening}{inside}{closing}":
            return inside if opening not in inside and inside.strip() == inside else text
    return text
