r"""Expressions that algebra may compare, each in a spelling without what LaTeX leaves to taste."""

import re

from distill.text.answers.words import listed

# Letters that stand for words, not for a product of variables, make a text no expression.
_FUNCTIONS = frozenset(listed("sin cos tan cot sec csc log ln lg exp sqrt pi infinity max min"))
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_SHORT_WORDS = frozenset(
    listed("an as at be by do go he if in is it me my no of on or so to up us we am pm")
)
_ALLOWED = re.compile(r"[\x20-\x7eπ∞≤≥≠±·\u00d7÷√°]*")
_FORBIDDEN = re.compile(r"[\"#$%@`~?:;]|!\s?=|\.\.")
_TASTE = re.compile(
    r"\\(?:cdot|times)(?![a-z])|\\[lg]eq(?![a-z])|[π∞≤≥·\u00d7]|(?<![A-Za-z\\])(?:pi|infinity)\b"
    r"|\*\*"
    r"|(?<=[\^_])\{(?P<index>[-+]?\d+|[A-Za-z])\}|(?<=\\sqrt)\{(?P<root>\w)\}"
    r"|(?<![a-z\\])sqrt\s?\((?P<inside>[^()]+)\)|(?<![a-z\\])exp\s?\((?P<power>\w+)\)"
    r"|\\frac\s?(?P<over>\d)\s?(?P<under>\d)(?!\d)|(?<=\\sqrt) (?=\w)"
)
_PLAIN = {
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
    " ": "",
}
# Space, but for that between words, between digits, or after a command before a letter.
_WHITESPACE = re.compile(r" +(?![A-Za-z0-9])|(?<![A-Za-z0-9]) +|(?<=[0-9]) +(?=[A-Za-z])")
_PRODUCT = re.compile(r"(?<=\d)\*(?=[\\A-Za-z(])")
_QUOTIENT = re.compile(r"(-?)\(?(\d*(?:\\pi|\\sqrt\{?\d+\}?|[a-z])?)\)?/\(?(\d+)\)?")


def is_mathematical(text: str) -> bool:
    r"""Return whether a text holds nothing but mathematics.

    Example:
        >>> [is_mathematical(text) for text in (r"2\sqrt{3}", "3 xy", "5 or 6", "5 apples")]
        [True, True, False, False]
    """
    if not text or not _ALLOWED.fullmatch(text) or _FORBIDDEN.search(text):
        return False
    bare = _COMMAND.sub(" ", text)
    for word in _LETTERS.findall(bare):
        if word in _SHORT_WORDS or (len(word) > 2 and word not in _FUNCTIONS):
            return False
    return re.search(r"[\d\\^+*/=<>π∞√()-]|[A-Za-z]", text) is not None


def spelling(text: str) -> str:
    r"""Return an expression without what LaTeX leaves to taste.

    Example:
        >>> spelling(r"2 \sqrt{3}"), spelling("1+x^{2}"), spelling("pi/2")
        ('2\\sqrt3', '1+x^2', '\\frac{\\pi}{2}')
    """
    plain = _WHITESPACE.sub("", _TASTE.sub(_as_plain, text)).strip()
    if "/" not in plain:
        plain = _PRODUCT.sub("", plain)
    if quotient := _QUOTIENT.fullmatch(plain):
        sign, over, under = quotient.groups()
        return f"{sign}\\frac{{{over}}}{{{under}}}" if over else plain
    return plain


def _as_plain(match: re.Match[str]) -> str:
    if match["inside"]:
        return f"\\sqrt{{{match['inside']}}}"
    if match["power"]:
        return (
            f"e^{match['power']}"
            if len(match["power"]) == 1 or match["power"].isdigit()
            else match[0]
        )
    if match["over"]:
        return f"\\frac{{{match['over']}}}{{{match['under']}}}"
    return match["index"] or match["root"] or _PLAIN[match[0]]
