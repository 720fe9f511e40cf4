"""Vocabularies of the Hugging Face `tokenizers` library."""

import functools
import json
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokalign import digests
from tokalign.segmentation import Segmentation
from tokalign.tokenizers.loaded import LoadedVocabulary, require_file, utf8, whole_characters
from tokalign.tokenizers.pieces import piece_bytes


def _without_prefix(node: Any) -> Any:
    """Return a tokenizer's JSON with everything that puts a space before a text switched off."""
    if isinstance(node, list):
        return [_without_prefix(item) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    changed = {key: _without_prefix(value) for key, value in node.items()}
    if kind == "Metaspace":
        changed["prepend_scheme"] = "never"
    if kind in ("Metaspace", "ByteLevel") and "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    return changed


class HuggingFaceTokenizer(LoadedVocabulary):
    """A Hugging Face `tokenizers` vocabulary, byte-level or with `▁`.

    Args:
        path_or_tokenizer: a `tokenizer.json`, a directory that holds one, a `tokenizers.Tokenizer`
            or an object with such a `backend_tokenizer`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a tokenizer, or one without an end-of-sequence token.
    """

    _EOS = (
        "</s>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<eos>",
        "<|im_end|>",
        "<|eot_id|>",
        "[SEP]",
    )
    _PAD = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")
    _UNK = ("<unk>", "[UNK]")

    def __init__(self, path_or_tokenizer: Any) -> None:
        import tokenizers

        self._source = (path_or_tokenizer,)
        if isinstance(path_or_tokenizer, str | pathlib.Path):
            path = pathlib.Path(path_or_tokenizer)
            self._source = (str(path),)
            path = path / "tokenizer.json" if path.is_dir() else path
            document = require_file(path, "a tokenizer.json").read_text()
        else:
            backend = getattr(path_or_tokenizer, "backend_tokenizer", path_or_tokenizer)
            document = backend.to_str()
            self._source = (_FrozenTokenizer(document),)
        try:
            plain = json.loads(document)
            # Special tokens are found in text before anything else; plain text holds none.
            specials = {t["content"] for t in plain["added_tokens"] if t["special"]}
            plain["added_tokens"] = [t for t in plain["added_tokens"] if not t["special"]]
            if plain["model"]["type"] == "Unigram":
                # A unigram model finds any piece in text; U+FDD0 is in no text.
                plain["model"]["vocab"] = [
                    [f"\ufdd0{n}" if piece in specials else piece, score]
                    for n, (piece, score) in enumerate(plain["model"]["vocab"])
                ]
            plain["post_processor"] = plain["truncation"] = plain["padding"] = None
            self._named = tokenizers.Tokenizer.from_str(document)
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
            self._inner = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(plain)))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected a Hugging Face tokenizer, got {path_or_tokenizer}: {error}"
            ) from error
        self._load()

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the vocabulary's content; see `tokalign.digests`."""
        return digests.of_hugging_face(self._named.to_str())

    def _load(self) -> None:
        vocabulary = self._named.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        specials = {
            i for i, token in self._named.get_added_tokens_decoder().items() if token.special
        }
        find = lambda names: next((vocabulary[n] for n in names if n in vocabulary), None)  # noqa: E731
        eos = find(self._EOS)
        if eos is None:
            raise ValueError(f"expected an end-of-sequence token of {self._EOS}, got none of them")
        self.eos_id, self.pad_id, self.unk_id = eos, find(self._PAD), find(self._UNK)
        self._specials = specials | {i for i in (self.unk_id,) if i is not None}
        settings = json.dumps(
            [json.loads(self._named.to_str()).get(k) for k in ("pre_tokenizer", "decoder")]
        )
        self.byte_level = '"ByteLevel"' in settings
        self._bytes = [b""] * self.vocab_size
        for piece, i in vocabulary.items():
            if i not in self._specials:
                self._bytes[i] = piece_bytes(piece, byte_level=self.byte_level)
        padded = self._plain.encode("  a  ", add_special_tokens=False).tokens
        self.drops_whitespace = padded == self._plain.encode("a", add_special_tokens=False).tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS; the text of a special is plain text."""
        utf8(text)
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped."""
        for token_id in ids:
            self._check(int(token_id))
        return self._named.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, its `▁` as a space; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that continues other text, None where it is no text."""
        whole = whole_characters(text)
        if whole is None:
            return None
        first = start or (self.drops_whitespace and whole[:1].isspace())
        found = (self._plain if first else self._inner).encode(whole, add_special_tokens=False)
        return found.ids

    def segment(self, text: str) -> Segmentation:
        """Cut `text` by the offsets that `tokenizers` reports, made exact within characters."""
        raw = utf8(text)
        found = self._plain.encode(text, add_special_tokens=False)
        ids = np.array(found.ids, np.int32)
        if self.byte_level and b"".join(self._bytes[i] for i in found.ids) == raw:
            ends = np.cumsum([len(self._bytes[i]) for i in found.ids], dtype=np.int64)
            return Segmentation(raw, ids, ends.astype(np.int32), np.ones(len(ids), bool))
        # A word mark put before the text is reported on the character after it.
        offsets = [
            (a, a) if text[a:b].strip() and self._bytes[i] == b" " else (a, b)
            for i, (a, b) in zip(found.ids, found.offsets, strict=True)
        ]
        return _from_character_offsets(raw, ids, offsets, text)


def _from_character_offsets(
    raw: bytes, ids: np.ndarray, offsets: Sequence[tuple[int, int]], text: str
) -> Segmentation:
    """Tokens that share characters get their common end, and a cut only at the last of them."""
    byte_at = np.cumsum([0, *(len(c.encode()) for c in text)])
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    # A composed character is reported without the marks that it took in.
    for n, end in enumerate(spans[:, 1].tolist()):
        limit = int(spans[n + 1, 0]) if n + 1 < len(spans) else len(text)
        while end < limit and unicodedata.combining(text[end]):
            end += 1
        spans[n, 1] = end
    ends = np.maximum.accumulate(spans[:, 1]) if len(spans) else spans[:, 1]
    cuts = np.ones(len(ids), bool)
    if len(ids) > 1:
        cuts[:-1] = spans[1:, 0] >= ends[:-1]
    return Segmentation(raw, ids, byte_at[ends].astype(np.int32), cuts)


class _FrozenTokenizer:
    """A tokenizer held as its JSON, so that it compares by content and travels to processes."""

    def __init__(self, document: str) -> None:
        self.document = document

    def to_str(self) -> str:
        return self.document

    def __repr__(self) -> str:
        return f"<tokenizer of {len(self.document)} characters>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FrozenTokenizer) and self.document == other.document

    def __hash__(self) -> int:
        return hash(self.document)
