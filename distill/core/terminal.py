"""Print text from files and users safely: control characters are escaped."""

import logging
import sys
import unicodedata

from distill.core import credentials

# Separators break lines, Cc holds ESC, CR, backspace and C1, Cf the marks that turn the direction.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""Return a text whose control and format characters are written as escapes.

    Newline and tab stay; control, format, surrogate and separator characters are escaped.

    Example:
        >>> visible("a\x1b[31m\tb\u202e")
        'a\\x1b[31m\tb\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_spelled, text))


def _spelled(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) not in _STEERING:
        return char
    return char.encode("unicode_escape").decode("ascii")


def line(text: str) -> str:
    r"""Return a text on one line, visible.

    Example:
        >>> line("a\r\nb")
        'a b'
    """
    return visible(" ".join(text.split()))


def show(text: str) -> None:
    """Print a text that may quote files or users, with escapes and without credentials."""
    sys.stdout.write(f"{visible(credentials.mask(text))}\n")


class Formatter(logging.Formatter):
    """A formatter of log lines that escapes control characters and masks credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, visible and without keys."""
        return visible(credentials.mask(super().format(record)))
