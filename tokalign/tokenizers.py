"""Vocabularies loaded from disk: how each cuts a text and spells what follows one; no model."""

import base64
import functools
import itertools
import json
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tokalign import digests
from tokalign.segmentation import MARKER, Segmentation, spelled_mask, without_blanks

GPT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONGEST_GROUP = 16  # tokens tried before an odd normalisation is cut anyway


@runtime_checkable
class Tokenizer(Protocol):
    """What alignment needs of a vocabulary.

    `spell` gives the ids of text that goes on after other text (at the start of one with
    `start=True`), empty where the vocabulary drops it, as T5 drops a lone newline. Bytes that end
    within a character are spelled up to it; None where the bytes are no text.
    """

    @property
    def vocab_size(self) -> int:
        """Ids there are, specials included."""
        ...

    @property
    def eos_id(self) -> int:
        """The end of a text."""
        ...

    @property
    def unk_id(self) -> int | None:
        """What stands for text that the vocabulary cannot spell, if anything does."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, its `▁` as a blank; empty for a special."""
        ...

    def segment(self, text: str) -> Segmentation:
        """Cut a text."""
        ...

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that goes on after other text."""
        ...


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text, got half a surrogate pair at character {error.start}; "
            "decode the source with errors='replace'"
        ) from error


def _whole_characters(text: bytes) -> str | None:
    """Return `text` up to a character cut at its end, None where it is no text."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text[: error.start].decode()
        return None


def segment_bytes(student: "Tokenizer", texts: Sequence[bytes]) -> list[Segmentation]:
    """Cut texts that may end or break within a character; what is broken is read as U+FFFD.

    Args:
        student: the vocabulary.
        texts: bytes, UTF-8 but for what is broken.

    Returns:
        The segmentations, with byte ends in the given bytes.
    """
    readings = [_read(text) for text in texts]
    batch = getattr(student, "segment_batch", None)
    plain = [reading[0] for reading in readings]
    found = batch(plain) if batch else [student.segment(text) for text in plain]
    for n, (_, places) in enumerate(readings):
        if places is not None:
            ends = np.array(places, np.int32)[found[n].byte_ends]
            found[n] = Segmentation(texts[n], found[n].ids, ends, found[n].cuts)
    return found


def _read(text: bytes) -> tuple[str, list[int] | None]:
    """Decode, and where something is broken tell the place in `text` after each byte."""
    try:
        return text.decode(), None
    except UnicodeDecodeError:
        pass
    pieces, places, at = [], [0], 0
    while at < len(text):
        try:
            good, broken = text[at:].decode(), 0
        except UnicodeDecodeError as error:
            good = text[at : at + error.start].decode()
            broken = error.end - error.start
        size = len(good.encode())
        places.extend(range(at + 1, at + size + 1))
        at += size + broken
        if broken:
            places.extend([at, at, at])
        pieces.append(good + ("\ufffd" if broken else ""))
    return "".join(pieces), places


def _require_file(path: pathlib.Path, kind: str) -> pathlib.Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected {kind}, got no file at {path}; give the path of one")
    return path


class _Vocabulary:
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


class _Defaulting(dict):
    """A dictionary that answers every other key with one value."""

    def __init__(self, known: Mapping[bytes, int], default: int) -> None:
        super().__init__(known)
        self._default = default

    def __missing__(self, key: bytes) -> int:
        return self._default


_kept: dict[str, _Vocabulary] = {}


def _loaded(kind: type[_Vocabulary], source: tuple[Any, ...]) -> _Vocabulary:
    """Load a vocabulary that came from another process, once in this one."""
    key = repr((kind.__name__, source))
    if key not in _kept:
        _kept[key] = kind(*source)
    return _kept[key]


class SentencePieceTokenizer(_Vocabulary):
    """A SentencePiece model (unigram or BPE), T5's or Llama's.

    Args:
        path: the `.model` file.
        extra_ids: sentinels that follow the pieces, 100 for T5; they are specials.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a SentencePiece model.

    Example:
        >>> tokenizer = SentencePieceTokenizer("spiece.model")  # doctest: +SKIP
        >>> tokenizer.encode("She had")  # doctest: +SKIP
        [451, 141]
        >>> tokenizer.decode([451, 99999])  # doctest: +SKIP
        Traceback (most recent call last):
        ValueError: expected an id from 0 to 31999, got 99999; is this another vocabulary's id?
    """

    def __init__(self, path: str | pathlib.Path, extra_ids: int = 0) -> None:
        import sentencepiece

        self._source = (str(path), extra_ids)
        model = _require_file(pathlib.Path(path), "a SentencePiece model").read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"expected a SentencePiece model, got {path}: {error}") from error
        # A message appended to a serialised one is merged into it, so these bytes switch
        # normalizer_spec.add_dummy_prefix off: text within a word gets no `▁`.
        self._inner = sentencepiece.SentencePieceProcessor(model_proto=model + b"\x1a\x02\x18\x00")
        self._pieces = self._model.get_piece_size()
        self.vocab_size = self._pieces + extra_ids
        self.pad_id = pad if (pad := self._model.pad_id()) >= 0 else None
        self.eos_id = self._model.eos_id()
        self.unk_id = self._model.unk_id()
        # T5 drops blanks at the end and doubled ones, Llama keeps them.
        self.drops_blanks = self._model.normalize(" a  ") == self._model.normalize("a")
        pieces = [self._model.id_to_piece(i) for i in range(self._pieces)]
        self._bytes = [self._piece_bytes(i, piece) for i, piece in enumerate(pieces)]
        self._bytes += [b""] * extra_ids
        self._ids = _Defaulting({piece.encode(): i for i, piece in enumerate(pieces)}, self.unk_id)
        # <unk> spells what no text holds; the last row is the byte that holds texts apart.
        self._spelled = [without_blanks(piece) for piece in self._bytes]
        self._spelled[self.unk_id] = b"\0"
        self._counts = np.array([*map(len, self._spelled), 1], np.int32)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the vocabulary's content, sentinels apart; see `tokalign.digests`."""
        return digests.of_sentencepiece(self._model.serialized_model_proto())

    def _piece_bytes(self, token_id: int, piece: str) -> bytes:
        if self._model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        if self._model.is_control(token_id) or token_id == self.unk_id:
            return b""
        return piece.encode().replace(MARKER, b" ")

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS."""
        return self._model.encode(_utf8(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped."""
        for token_id in ids:
            self._check(int(token_id))
        return self._model.decode([int(i) for i in ids if i < self._pieces])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a piece, its `▁` as a blank; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that goes on after other text, None where it is no text."""
        whole = _whole_characters(text)
        if whole is None:
            return None
        # Where blanks collapse, the leading ones become one `▁`, which is what the prefix is.
        if start or (self.drops_blanks and whole[:1].isspace()):
            return self._model.encode(whole)
        return self._inner.encode(whole)

    def segment(self, text: str) -> Segmentation:
        """Cut `text`; the byte ends are SentencePiece's own, or follow from the pieces alone."""
        return self.segment_batch([text])[0]

    def segment_batch(self, texts: Sequence[str]) -> list[Segmentation]:
        """Cut many texts, in one pass those whose pieces spell the same bytes but for blanks."""
        raw = [_utf8(text) for text in texts]
        if not self.drops_blanks:
            return [self._segment_any(text) for text in raw]
        rows = self._model.encode(raw, num_threads=1)
        alike = [
            b"".join([self._spelled[i] for i in ids]) == without_blanks(text)
            for ids, text in zip(rows, raw, strict=True)
        ]
        found = iter(
            self._segment_alike(list(itertools.compress(zip(raw, rows, strict=True), alike)))
        )
        return [
            next(found) if same else self._segment_any(text)
            for same, text in zip(alike, raw, strict=True)
        ]

    def _segment_alike(self, rows: Sequence[tuple[bytes, list[int]]]) -> list[Segmentation]:
        """Find the ends of pieces that spell their text: where as many bytes have gone by.

        A lone `▁` reaches to the next spelled byte. One byte before each text holds them apart.
        """
        if not rows:
            return []
        text = b"".join([part for row in rows for part in (b"\0", row[0])])
        tokens: list[int] = []
        for _, pieces in rows:
            tokens.append(-1)
            tokens += pieces
        ids = np.array(tokens, np.int32)
        counts = self._counts[ids]
        places = np.append(np.flatnonzero(spelled_mask(text)), len(text))
        passed = np.cumsum(counts)
        ends = np.where(counts > 0, places[passed - 1] + 1, places[passed]).astype(np.int32)
        cuts = np.ones(len(ids), bool)
        found, first, start = [], 1, 1
        for raw, pieces in rows:
            last = first + len(pieces)
            found.append(
                Segmentation(raw, ids[first:last], ends[first:last] - start, cuts[first:last])
            )
            first, start = last + 1, start + len(raw) + 1
        return found

    def _segment_any(self, text: bytes) -> Segmentation:
        found = self._model.encode(text, return_type="offset_mapping")
        ids = np.array(found["ids"], np.int32)
        offsets = np.array(found["offsets"], np.int32).reshape(-1, 2)
        return Segmentation(text, ids, offsets[:, 1], self._cuts(text, found["pieces"], offsets))

    def _cuts(self, text: bytes, pieces: Sequence[bytes], offsets: np.ndarray) -> np.ndarray:
        """Find the tokens whose end lies between two characters of the text."""
        cuts = np.ones(len(pieces), bool)
        first, spelled = 0, b""
        for t, (piece, (begin, end)) in enumerate(zip(pieces, offsets.tolist(), strict=True)):
            if first == t:
                bare = piece.removeprefix(MARKER)
                if bare and text[begin:end].lstrip() == bare:
                    first = t + 1
                    continue
                spelled, opened = b"", begin
            spelled += without_blanks(piece)
            covered = text[opened:end]
            same = spelled == without_blanks(covered) or spelled == self._normalised(covered)
            if same or t - first >= _LONGEST_GROUP or self._model.is_byte(self._ids[piece]):
                first = t + 1
            else:
                cuts[t] = False
        if len(cuts):
            cuts[-1] = True
        return cuts

    def _normalised(self, text: bytes) -> bytes:
        whole = _whole_characters(text)
        return b"" if whole is None else without_blanks(self._model.normalize(whole).encode())


class TiktokenTokenizer(_Vocabulary):
    """A byte-level BPE vocabulary of tiktoken, byte exact.

    Args:
        name_or_path: an encoding's name such as "p50k_base" (found in TIKTOKEN_CACHE_DIR where
            that is set), or the path of a `.tiktoken` file of base64 tokens and ranks.
        pattern: the regular expression that splits text before merging; only for a path.
        special_tokens: text to id; only for a path. By default `<|endoftext|>` after the ranks.

    Raises:
        FileNotFoundError: neither a known encoding nor a file.
        ValueError: the file is not a list of base64 tokens and ranks.

    Example:
        >>> tokenizer = TiktokenTokenizer("p50k_base")  # doctest: +SKIP
        >>> [tokenizer.token_bytes(i) for i in tokenizer.encode("She had")]  # doctest: +SKIP
        [b'She', b' had']
    """

    def __init__(
        self,
        name_or_path: str | pathlib.Path,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> None:
        import tiktoken

        self._source = (
            str(name_or_path),
            pattern,
            dict(special_tokens) if special_tokens is not None else None,
        )
        if str(name_or_path) in tiktoken.list_encoding_names():
            try:
                self._encoding = tiktoken.get_encoding(str(name_or_path))
            except OSError as error:
                raise FileNotFoundError(
                    f"expected {name_or_path} in TIKTOKEN_CACHE_DIR or a network, got neither: "
                    f"{error}; set the variable or give a .tiktoken file"
                ) from error
        else:
            path = _require_file(
                pathlib.Path(name_or_path),
                f"an encoding of {sorted(tiktoken.list_encoding_names())} or a .tiktoken file",
            )
            ranks = _read_ranks(path)
            if special_tokens is None:
                special_tokens = {"<|endoftext|>": len(ranks)}
            self._encoding = tiktoken.Encoding(
                path.stem,
                pat_str=pattern or GPT_PATTERN,
                mergeable_ranks=ranks,
                special_tokens=dict(special_tokens),
            )
        self.vocab_size = self._encoding.n_vocab
        specials = self._encoding._special_tokens
        if "<|endoftext|>" not in specials:
            raise ValueError(
                f"expected a special token <|endoftext|>, got {sorted(specials)}; "
                "name it in special_tokens"
            )
        self.eos_id, self.pad_id, self.unk_id = specials["<|endoftext|>"], None, None
        self.drops_blanks = False
        self._bytes = [b""] * self.vocab_size
        for token, rank in self._encoding._mergeable_ranks.items():
            self._bytes[rank] = token
        self._lengths = np.array([len(token) for token in self._bytes], np.int32)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the vocabulary's content; see `tokalign.digests`."""
        found = self._encoding
        return digests.of_tiktoken(found._mergeable_ranks, found._pat_str, found._special_tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS; the text of a special is plain text."""
        _utf8(text)
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped and broken characters replaced."""
        return b"".join(self._bytes[self._check(int(i))] for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that goes on after other text; any bytes are spelled."""
        del start  # a byte-level vocabulary has no word prefix
        return self._encoding._encode_bytes(text)

    def segment(self, text: str) -> Segmentation:
        """Cut `text`, byte exact."""
        ids = np.array(self.encode(text), np.int32)
        return Segmentation(
            text.encode(), ids, np.cumsum(self._lengths[ids]), np.ones(len(ids), bool)
        )


def _read_ranks(path: pathlib.Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    lines = 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            ranks[base64.b64decode(fields[0], validate=True)] = int(fields[1])
            lines += 1
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"expected a base64 token and a rank, got {line!r} in line {number} of {path}"
            ) from error
    if not ranks:
        raise ValueError(f"expected base64 tokens and ranks, got an empty file {path}")
    whole = len(ranks) == lines and len(set(ranks.values())) == lines
    if not whole or not 0 <= min(ranks.values()) <= max(ranks.values()) < 2**31:
        raise ValueError(
            f"expected each token and each rank once in {path}; is the file cut short?"
        )
    return ranks


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Return the printable stand-in of each byte in byte-level vocabularies, `Ġ` for a blank.

    Example:
        >>> byte_alphabet()["Ġ"], byte_alphabet()["Ċ"], byte_alphabet()["a"]
        (32, 10, 97)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    return letters | {chr(256 + n): b for n, b in enumerate(others)}


def piece_bytes(piece: str, *, byte_level: bool) -> bytes:
    r"""Return the bytes of a Hugging Face piece.

    Args:
        piece: as `convert_ids_to_tokens` gives it.
        byte_level: whether the vocabulary spells bytes with stand-ins (`Ġ`, `Ċ`), otherwise it
            marks blanks with `▁` and falls back to bytes as `<0x0A>`.

    Example:
        >>> piece_bytes("Ġshe", byte_level=True), piece_bytes("<0x0A>", byte_level=False)
        (b' she', b'\n')
    """
    if byte_level:
        alphabet = byte_alphabet()
        return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _without_prefix(node: Any) -> Any:
    """Return a tokenizer's JSON with everything that puts a blank before a text switched off."""
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


class HuggingFaceTokenizer(_Vocabulary):
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
            document = _require_file(path, "a tokenizer.json").read_text()
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
        blank = self._plain.encode("  a  ", add_special_tokens=False).tokens
        self.drops_blanks = blank == self._plain.encode("a", add_special_tokens=False).tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS; the text of a special is plain text."""
        _utf8(text)
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped."""
        for token_id in ids:
            self._check(int(token_id))
        return self._named.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, its `▁` as a blank; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that goes on after other text, None where it is no text."""
        whole = _whole_characters(text)
        if whole is None:
            return None
        first = start or (self.drops_blanks and whole[:1].isspace())
        found = (self._plain if first else self._inner).encode(whole, add_special_tokens=False)
        return found.ids

    def segment(self, text: str) -> Segmentation:
        """Cut `text` by the offsets that `tokenizers` reports, made exact within characters."""
        raw = _utf8(text)
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
