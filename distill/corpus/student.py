"""The student's tokenizer as a stage is given it: a path or the loaded vocabulary."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokalign
from distill.core import paths
from distill.core.errors import UserError

_PROBE = "She sold 1,234.5 clips,\n  half (\u00bd) of them \ufb01ne: {x} = 48/2."


class Student(tokalign.Tokenizer, Protocol):
    """A tokalign tokenizer that encodes whole texts, as all three of them do."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of `text`, without an EOS."""
        ...


def load(student: Student | str | Path) -> Student:
    """Return the student's tokenizer.

    Args:
        student: a tokalign tokenizer, or the path of a SentencePiece model, also of one that ships
            as `data/...`.

    Raises:
        UserError: there is no such file, or it holds no SentencePiece model.
    """
    if not isinstance(student, str | Path):
        return student
    path = paths.find(student, "a SentencePiece model")
    try:
        return tokalign.SentencePieceTokenizer(path)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(
            f"a SentencePiece model at {path}", "another file", "give the student's vocabulary"
        ) from error


def describe(tokenizer: Student) -> dict[str, Any]:
    """Return what makes the tokenizer this one, as JSON and without its place on disk.

    So a run that has moved, or that names the file in another way, is still the same run. The
    sha256 is of the bytes of every token and of how a probe of digits, blanks and folded
    characters is cut.
    """
    digest = hashlib.sha256(repr(list(tokenizer.encode(_PROBE))).encode())
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        digest.update(len(token).to_bytes(4, "little") + token)
    return {
        "type": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "sha256": digest.hexdigest(),
    }
