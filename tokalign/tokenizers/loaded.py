"""What vocabularies loaded from disk share: identity by source, pickling and refusals."""

import pathlib
from collections.abc import Mapping
from typing import Any


def utf8(text: str) -> bytes:
    """Encode; half a surrogate pair is refused by its place."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text, got half a surrogate pair at character {error.start}; "
            "decode the source with errors='replace'"
        ) from error


def whole_characters(text: bytes) -> str | None:
    """Return `text` up to a character cut at its end, None where it is no text."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text[: error.start].decode()
        return None


def require_file(path: pathlib.Path, kind: str) -> pathlib.Path:
    """Return the path of a file, refused by its kind where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {kind}, got no file at {path}; give the path of one")
    return path


class LoadedVocabulary:
    """Identity by source, and the refusals that all three kinds share."""

    vocab_size: int
    pad_id: int | None
    eos_id: int
    unk_id: int | None
    _source: tuple[Any, ...]

    def __init__(self, *source: Any) -> None: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._source))})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._source == other._source  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), repr(self._source)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded, (type(self), self._source)

    def _check(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"expected an id from 0 to {self.vocab_size - 1}, got {token_id}; "
                "is this another vocabulary's id?"
            )
        return token_id


class Defaulting(dict):
    """A dictionary that answers every other key with one value."""

    def __init__(self, known: Mapping[bytes, int], default: int) -> None:
        super().__init__(known)
        self._default = default

    def __missing__(self, key: bytes) -> int:
        return self._default


_kept: dict[str, LoadedVocabulary] = {}


def _loaded(kind: type[LoadedVocabulary], source: tuple[Any, ...]) -> LoadedVocabulary:
    """Load a vocabulary that came from another process, once in this one."""
    key = repr((kind.__name__, source))
    if key not in _kept:
        _kept[key] = kind(*source)
    return _kept[key]
