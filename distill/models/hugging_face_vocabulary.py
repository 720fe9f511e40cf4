"""The vocabulary of a Hugging Face directory: spiece.model, or tokenizer.json made into one.

Versions of transformers from 5 on write tokenizer.json alone. Its Unigram model has the pieces and
scores of the SentencePiece model that it came from, and the map of characters; the rest of what
T5's tokenizer does is the same in all of them and is checked here.
"""

import base64
import binascii
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.core import files
from distill.core.errors import UserError
from distill.models import charsmap, unigram

SPIECE, TOKENIZER = "spiece.model", "tokenizer.json"
SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
CLASSES = {
    "T5Tokenizer",
    "T5TokenizerFast",
    "MT5Tokenizer",
    "MT5TokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
}
SPECIALS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
DO = "give a SentencePiece model: --vocabulary"
_ENDS, _RUNS = "^ +| +$", " {2,}"  # regular expressions of what SentencePiece drops


@dataclasses.dataclass(frozen=True)
class Found:
    """A vocabulary in memory.

    Attributes:
        content: a serialised SentencePiece model.
        extra_ids: sentinels that follow its pieces.
    """

    content: bytes
    extra_ids: int


def read(directory: Path, vocabulary: Path | None = None) -> Found:
    """Return the vocabulary of a directory, after checking that it is all that its tokenizer adds.

    Args:
        directory: of transformers.
        vocabulary: a SentencePiece model that replaces the directory's files.

    Raises:
        UserError: there is none, its special tokens are not T5's, tokens were added to it, or its
            tokenizer does what SentencePiece does not.
    """
    settings = _optional(directory / SETTINGS)
    _refuse_other_classes(directory, settings)
    path = directory / SPIECE if vocabulary is None else vocabulary
    found = _of_spiece(path, settings) if path.exists() else None
    document = _optional(directory / TOKENIZER) if vocabulary is None else {}
    if found is None:
        if not document:
            raise UserError(f"a vocabulary {path}", "none", DO)
        found = _of_document(document, directory / TOKENIZER)
    elif document:
        _require_same_pieces(document, found, directory)
    if vocabulary is None:
        _refuse_added(directory, settings, document, found)
    return found


def _optional(path: Path) -> dict[str, Any]:
    """Return a document, empty where there is no file."""
    return files.read_document(files.require_inside(path)) if path.exists() else {}


def _refuse_other_classes(directory: Path, settings: Mapping[str, Any]) -> None:
    config = _optional(directory / "config.json")
    for file, document in (("config.json", config), (SETTINGS, settings)):
        name = document.get("tokenizer_class")
        if name is not None and (not isinstance(name, str) or name not in CLASSES):
            raise UserError(
                f"a tokenizer of T5, {SPIECE} or {TOKENIZER}, in {directory}",
                f"{name!r:.100} in {file}",
                "give a T5 with a SentencePiece vocabulary",
            )
    for name, wanted in SPECIALS.items():
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and text != wanted:
            raise UserError(f"{name} {wanted!r} in {directory / SETTINGS}", f"{text!r:.100}", DO)


def _of_spiece(path: Path, settings: Mapping[str, Any]) -> Found:
    content = files.read_bytes(files.require_inside(path), limit=unigram.MODEL_BYTES)
    model = unigram.processor(content, path)
    pieces = (model.id_to_piece(i) for i in range(model.get_piece_size()))
    if any(unigram.SENTINEL.fullmatch(piece) for piece in pieces):
        return Found(content, 0)
    extra_ids = settings.get("extra_ids", unigram.SENTINELS)
    if type(extra_ids) is not int or not 0 <= extra_ids <= unigram.SENTINELS:
        wanted = f"extra_ids of at most {unigram.SENTINELS} in {SETTINGS}"
        raise UserError(wanted, f"{extra_ids!r:.50}", DO)
    return Found(content, extra_ids)


def tokens(found: Found) -> list[str]:
    """Return all tokens by id, sentinels last."""
    model = unigram.processor(found.content, SPIECE)
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return [*pieces, *unigram.sentinels(found.extra_ids)]


# --- What was added ----------------------------------------------------------------------------


def _refuse_added(
    directory: Path, settings: Mapping[str, Any], document: Mapping[str, Any], found: Found
) -> None:
    """Refuse tokens beyond the vocabulary and ordinary pieces that a tokenizer splits off first."""
    of_id = dict(enumerate(tokens(found)))
    for file, token_id, text in _added(directory, settings, document):
        special = isinstance(text, str) and (
            text in unigram.FIRST or unigram.SENTINEL.fullmatch(text)
        )
        known = isinstance(token_id, int) and of_id.get(token_id) == text
        if not (special and known):
            raise UserError(
                f"the {len(of_id):,} tokens of T5's vocabulary in {directory}",
                f"the added token {text!r:.100} with the id {token_id!r:.50} in {file}",
                "give a T5 without added tokens",
            )


def _added(
    directory: Path, settings: Mapping[str, Any], document: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Yield each added token as (file, id, text)."""
    try:
        for text, token_id in _optional(directory / ADDED).items():
            yield ADDED, token_id, text
        for number, token in (settings.get("added_tokens_decoder") or {}).items():
            yield SETTINGS, int(number), token["content"]
        for token in document.get("added_tokens") or ():
            yield TOKENIZER, token["id"], token["content"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"added tokens in {directory}", f"{error!r:.100}", DO) from error


def _require_same_pieces(document: Mapping[str, Any], found: Found, directory: Path) -> None:
    pieces, extra_ids = _pieces(document, directory / TOKENIZER)
    model = unigram.processor(found.content, SPIECE)
    theirs = [text for text, _ in pieces] + unigram.sentinels(extra_ids)
    same = theirs == tokens(found) and all(
        math.isclose(score, model.get_score(i), rel_tol=1e-4, abs_tol=1e-4)
        for i, (_, score) in enumerate(pieces)
    )
    if not same:
        raise UserError(f"the same pieces in {SPIECE} and {TOKENIZER} of {directory}", "others", DO)


# --- tokenizer.json ----------------------------------------------------------------------------


def _of_document(document: Mapping[str, Any], path: Path) -> Found:
    """Return the SentencePiece model with the pieces, scores and characters of a document."""
    pieces, extra_ids = _pieces(document, path)
    try:
        mapping = _charsmap(document)
        charsmap.rules(mapping)
        _require_t5s_steps(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"the steps of T5's tokenizer in {path}", f"{error!s:.200}", DO) from error
    proto = unigram.proto()
    for token_id, (text, score) in enumerate(pieces):
        proto.pieces.add(piece=text, score=score, type=_kind(token_id, text, document))
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size = unigram.UNIGRAM, len(pieces)
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = 0, 1, 2, -1
    spec.byte_fallback = bool(document["model"].get("byte_fallback"))
    normalizer = proto.normalizer_spec
    normalizer.name = "nmt_nfkc" if mapping else "identity"
    normalizer.precompiled_charsmap = mapping
    content = proto.SerializeToString()
    unigram.processor(content, path)
    return Found(content, extra_ids)


def _pieces(document: Mapping[str, Any], path: Path) -> tuple[list[tuple[str, float]], int]:
    """Return the pieces with their scores, without the sentinels that follow, and their number."""
    try:
        model = document["model"]
        if model.get("type", "Unigram") != "Unigram" or model["unk_id"] != 2:
            raise ValueError(f"a model of {model.get('type')!r:.50}, unknown {model.get('unk_id')}")
        pieces = [(text, _score(score)) for text, score in model["vocab"]]
        texts = [text for text, _ in pieces]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError("a piece that is no text")
        if tuple(texts[:3]) != unigram.FIRST or len(set(texts)) < len(texts):
            raise ValueError(f"pieces {texts[:3]!r:.100} first, or one of them twice")
        "".join(texts).encode()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        wanted = f"a Unigram model with {', '.join(unigram.FIRST)} first in {path}"
        raise UserError(wanted, f"{error!s:.200}", DO) from error
    extra_ids = 0
    while texts[-1 - extra_ids] == f"<extra_id_{extra_ids}>":
        extra_ids += 1
    return pieces[: len(pieces) - extra_ids], extra_ids


def _score(score: object) -> float:
    if type(score) not in (int, float) or not -1e6 < score < 1e6:  # type: ignore[operator]
        raise ValueError(f"a score of {score!r:.50}")
    return float(score)  # type: ignore[arg-type]


def _kind(token_id: int, text: str, document: Mapping[str, Any]) -> int:
    if token_id < 3:
        return unigram.UNKNOWN if token_id == 2 else unigram.CONTROL
    if unigram.SENTINEL.fullmatch(text):
        return unigram.USER_DEFINED
    in_bytes = document["model"].get("byte_fallback") and unigram.BYTE.fullmatch(text)
    return unigram.BYTE_PIECE if in_bytes else unigram.NORMAL


def _normalizers(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    first = document.get("normalizer")
    if first is None:
        return []
    return first["normalizers"] if first["type"] == "Sequence" else [first]


def _charsmap(document: Mapping[str, Any]) -> bytes:
    """Return the compiled map of characters, empty where there is none."""
    maps = [step for step in _normalizers(document) if step["type"] == "Precompiled"]
    if len(maps) > 1:
        raise ValueError("several maps of characters")
    try:
        text = maps[0]["precompiled_charsmap"] if maps else ""
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a map of characters that is damaged") from error


def _require_t5s_steps(document: Mapping[str, Any]) -> None:
    """Refuse steps that SentencePiece with T5's options does not take."""
    before = document["pre_tokenizer"]
    splits = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    trimmed = set().union(*map(_trims, _normalizers(document)), *map(_splits, splits[:-1]))
    last = splits[-1]
    always = last.get("prepend_scheme", "always") == "always" and last.get("add_prefix_space", True)
    if last["type"] != "Metaspace" or last["replacement"] != "▁" or not always:
        raise ValueError(f"the pre_tokenizer {json.dumps(last):.100}")
    if trimmed != {_ENDS, _RUNS}:
        raise ValueError("whitespace that is kept")


def _trims(step: Mapping[str, Any]) -> set[str]:
    """Return what whitespace a normalizer drops."""
    match step:
        case {"type": "Precompiled"}:
            return set()
        case {"type": "Strip", "strip_right": True}:
            return {_ENDS}
        case {"type": "Replace", "pattern": {"Regex": ("^ +| +$" | " {2,}") as pattern}}:
            content = step["content"]
            if content in (("",) if pattern == _ENDS else (" ", "▁")):
                return {pattern}
    raise ValueError(f"the normalizer {json.dumps(step):.100}")


def _splits(step: Mapping[str, Any]) -> set[str]:
    if step["type"] != "WhitespaceSplit":
        raise ValueError(f"the pre_tokenizer {json.dumps(step):.100}")
    return {_ENDS, _RUNS}
