"""The SHA-256 of what a vocabulary does with text; not of its file, its name or its training.

Two vocabularies with one digest cut every text into the same ids. Pieces, their ids, scores and
types count, as do the normaliser and the rules of encoding; a copy elsewhere, or one that another
tool has written again, has the digest of the first.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

Value = bytes | int

# Fields of SentencePiece's ModelProto and of the messages in it, with their defaults.
_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_TEXT, _SCORE, _TYPE = 1, 2, 3
_NORMAL = 1
_ENCODING: Mapping[int, Value] = {
    3: 1,  # model_type: unigram
    24: 0,  # treat_whitespace_as_suffix
    35: 0,  # byte_fallback
    40: 0,  # unk_id
    41: 1,  # bos_id
    42: 2,  # eos_id
    43: 2**64 - 1,  # pad_id: -1
    44: " \u2047 ".encode(),  # unk_surface
    45: b"<unk>",
    46: b"<s>",
    47: b"</s>",
    48: b"<pad>",
}
_NORMALISING: Mapping[int, Value] = {
    2: b"",  # precompiled_charsmap
    3: 1,  # add_dummy_prefix
    4: 1,  # remove_extra_whitespaces
    5: 1,  # escape_whitespaces
}


def of_sentencepiece(model: bytes) -> str:
    """Return the digest of a serialised SentencePiece model, in hexadecimal.

    Args:
        model: a ModelProto, of any model type.

    Raises:
        ValueError: it is cut short, no protocol buffer, or has no pieces.
    """
    content, specs = hashlib.sha256(), {_TRAINER: b"", _NORMALIZER: b"", _DENORMALIZER: b""}
    count = 0
    for field, value in fields(model):
        if field == _PIECE and isinstance(value, bytes):
            content.update(_piece(value))
            count += 1
        elif field in specs and isinstance(value, bytes):
            specs[field] += value  # a message that comes twice is merged
    if not count:
        raise ValueError("expected a SentencePiece model, got one without pieces")
    rules = [
        _set(specs[_TRAINER], _ENCODING),
        _set(specs[_NORMALIZER], _NORMALISING),
        _set(specs[_DENORMALIZER], _NORMALISING),
    ]
    return _of(["sentencepiece", count, content.hexdigest(), rules])


def pieces(model: bytes) -> list[str]:
    """Return the pieces of a serialised SentencePiece model by id.

    Raises:
        ValueError: as `of_sentencepiece`.
    """
    messages = (value for field, value in fields(model) if field == _PIECE)
    found = [dict(fields(each)).get(_TEXT) for each in messages if isinstance(each, bytes)]
    return [text.decode(errors="replace") if isinstance(text, bytes) else "" for text in found]


def of_tiktoken(ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int]) -> str:
    """Return the digest of a byte-level BPE of tiktoken, in hexadecimal.

    Args:
        ranks: of the tokens.
        pattern: what splits a text before its parts are merged.
        specials: ids of the special tokens.
    """
    tokens = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
    return _of(["tiktoken", tokens, pattern, dict(specials)])


def of_hugging_face(document: str) -> str:
    """Return the digest of a `tokenizer.json`, in hexadecimal.

    What cuts or pads a batch is no part of the vocabulary.

    Args:
        document: the file's text.
    """
    found = json.loads(document)
    kept = {name: found[name] for name in found if name not in ("truncation", "padding")}
    return _of(["hugging_face", kept])


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of the fields of a serialised protocol buffer message, in order.

    Values of fixed width come as their bytes.

    Raises:
        ValueError: the message is cut short, or holds a group.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case other:
                raise ValueError(f"expected a field of wire type 0, 1, 2 or 5, got {other}")
        if at + size > len(message):
            raise ValueError(f"expected {size} bytes of field {key >> 3}, got a message cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("expected a whole number in a message, got one cut short or too long")


def _piece(message: bytes) -> bytes:
    """Return a piece's text, score and type in one layout, whatever its message leaves out."""
    text, score, kind = b"", struct.pack("<f", 0.0), _NORMAL
    for field, value in fields(message):
        if field == _TEXT and isinstance(value, bytes):
            text = value
        elif field == _SCORE and isinstance(value, bytes):
            score = value
        elif field == _TYPE and isinstance(value, int):
            kind = value
    return struct.pack("<IQ", len(text), kind) + score + text


def _set(message: bytes, defaults: Mapping[int, Value]) -> dict[int, str]:
    """Return what counts of a message as text, with defaults where it says nothing."""
    found = {**defaults, **{f: value for f, value in fields(message) if f in defaults}}
    return {
        f: value.hex() if isinstance(value, bytes) else str(value) for f, value in found.items()
    }


def _of(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
