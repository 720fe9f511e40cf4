"""Cut a chain of thought into steps that survive vocabularies without a line break.

A step ends with a line or with a sentence: T5's vocabulary reads a line break as a space, so its
chains have only sentences. The space after a full stop belongs to the next step, as it belongs to
the next token in SentencePiece and byte-level vocabularies; a line break belongs to its own step.
"""

import re

# Stop texts for a generator that writes one step.
STOPS = ("\n", ". ")
_BORDER = re.compile(r"(?<=\n)(?=[^\n])|(?<=\.)(?=[ \t]+\S)")


def split(text: str) -> tuple[str, ...]:
    r"""Return the steps of a text; joined they are the text.

    Example:
        >>> split("5 + 7 = 12. 12 / 1.5 = 8. The answer is 8")
        ('5 + 7 = 12.', ' 12 / 1.5 = 8.', ' The answer is 8')
        >>> split("5 + 7 = 12.\nThe answer is 12")
        ('5 + 7 = 12.\n', 'The answer is 12')
    """
    return tuple(piece for piece in _BORDER.split(text) if piece)


def ended(text: str) -> str:
    r"""Return a step as `split` cuts it, from one that a stop text of STOPS ended and is part of.

    Example:
        >>> ended(" 12 / 1.5 = 8. "), ended("5 + 7 = 12.\n")
        (' 12 / 1.5 = 8.', '5 + 7 = 12.\n')
    """
    return text.removesuffix(" ")
