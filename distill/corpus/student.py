"""The student's tokenizer as a stage is given it: a path or the loaded vocabulary."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokalign
from distill.core import paths
from distill.core.errors import UserError


class Student(tokalign.Tokenizer, Protocol):
    """A tokalign tokenizer that encodes whole texts, as all three of them do."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of `text`, without an EOS."""
        ...


def load(student: Student | str | Path) -> Student:
    """Return the student's tokenizer.

    Args:
        student: a tokalign tokenizer, or the path of a SentencePiece model, also of one that ships
            below `data/`.

    Raises:
        UserError: there is no such file, or it holds no SentencePiece model.
    """
    if not isinstance(student, str | Path):
        return student
    path = _found(Path(student))
    try:
        return tokalign.SentencePieceTokenizer(path)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(
            f"a SentencePiece model at {path}", "another file", "give the student's vocabulary"
        ) from error


def _found(path: Path) -> Path:
    try:
        return path if path.exists() else paths.shipped(f"data/{path}")
    except FileNotFoundError as error:
        raise UserError(
            f"a SentencePiece model at {path}", "no such file", "give the student's vocabulary"
        ) from error


def describe(tokenizer: Student) -> list[Any]:
    """Return the tokenizer as JSON: its kind and sources, a file by the sha256 of its content.

    So a run that has moved, or that names the file in another way, is still the same run.
    """
    _, sources, *_ = tokenizer.__reduce__()
    return [type(tokenizer).__name__, *(_content(source) for source in sources)]


def _content(source: Any) -> Any:
    if isinstance(source, str | Path) and Path(source).is_file():
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if isinstance(source, str) or not isinstance(source, Sequence):
        return source if source is None or isinstance(source, bool | int | float) else str(source)
    return [_content(item) for item in source]
