"""Compare the vocabularies that two artefacts of a run record; read no vocabulary."""

import dataclasses
import logging

from distill.core.errors import UserError

logger = logging.getLogger(__name__)
SHOWN = 12  # hexadecimal characters of a digest in a message


@dataclasses.dataclass(frozen=True)
class VocabularyRecord:
    """The vocabulary that an artefact was made with, as far as it is recorded.

    Attributes:
        holder: the artefact, as messages name it.
        digest: SHA-256 of the vocabulary's content, from `tokalign.digests`; None if unknown.
        tokens: number of tokens without sentinels; None if unknown.
    """

    holder: str
    digest: str | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        size = "" if self.tokens is None else f"{self.tokens:,} tokens, "
        digest = f"SHA-256 {self.digest[:SHOWN]}" if self.digest else "SHA-256 unknown"
        return f"{self.holder} ({size}{digest})"


def require_same(expected: VocabularyRecord, got: VocabularyRecord, do: str) -> None:
    """Refuse two vocabularies that differ.

    If a digest is unknown, the sizes are compared and a warning names what remains unchecked.

    Args:
        expected: the vocabulary that produced the ids.
        got: the vocabulary that would decode them.
        do: what the user can do.

    Raises:
        UserError: the digests differ, or one is unknown and the sizes differ.

    Example:
        >>> one = VocabularyRecord("the dataset", "aa" * 32, 9)
        >>> require_same(one, VocabularyRecord("the start", "bb" * 32, 9), "align again")
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
