"""Whether two artefacts of a run are of one vocabulary; it reads no vocabulary itself."""

import dataclasses
import logging

from distill.core.errors import UserError

logger = logging.getLogger(__name__)
SHOWN = 12  # hexadecimal characters of a digest that tell two apart in a sentence


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What is known of the vocabulary that something was made with.

    Attributes:
        holder: what was made with it, as a sentence names it.
        digest: SHA-256 of the vocabulary's content, as of `tokalign.digests`; None where none was
            recorded and the vocabulary is not there.
        tokens: its size without sentinels; None where it is unknown.
    """

    holder: str
    digest: str | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        size = "" if self.tokens is None else f"{self.tokens:,} tokens, "
        digest = f"SHA-256 {self.digest[:SHOWN]}" if self.digest else "SHA-256 unknown"
        return f"{self.holder} ({size}{digest})"


def require_same(expected: Recorded, got: Recorded, do: str) -> None:
    """Refuse two vocabularies that differ.

    Where a digest is unknown the sizes are compared, and a warning says what that leaves open.

    Args:
        expected: the vocabulary that ids were made with.
        got: the one that would read them.
        do: what the user can do.

    Raises:
        UserError: the digests differ, or one is unknown and the sizes differ.

    Example:
        >>> one, two = Recorded("the dataset", "aa" * 32, 9), Recorded("the start", "bb" * 32, 9)
        >>> require_same(one, two, "align again")
        Traceback (most recent call last):
        distill.core.errors.UserError: expected the vocabulary of the dataset (9 tokens, SHA-256 \
aaaaaaaaaaaa), got that of the start (9 tokens, SHA-256 bbbbbbbbbbbb); align again
    """
    known = expected.digest is not None and got.digest is not None
    sizes = expected.tokens, got.tokens
    differ = expected.digest != got.digest if known else None not in sizes and sizes[0] != sizes[1]
    if differ:
        raise UserError(f"the vocabulary of {expected}", f"that of {got}", do)
    if not known:
        logger.warning(
            "the vocabularies of %s and %s are compared by size alone: pieces of another order or "
            "spelling would not be noticed",
            expected,
            got,
        )
