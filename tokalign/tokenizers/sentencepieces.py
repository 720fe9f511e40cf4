"""SentencePiece models as vocabularies."""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from tokalign import digests
from tokalign.segmentation import MARKER, Segmentation, spelled_mask, without_whitespace
from tokalign.tokenizers.loaded import (
    Defaulting,
    LoadedVocabulary,
    require_file,
    utf8,
    whole_characters,
)

_LONGEST_GROUP = 16  # tokens tried before an odd normalisation is cut anyway


class SentencePieceTokenizer(LoadedVocabulary):
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
        model = require_file(pathlib.Path(path), "a SentencePiece model").read_bytes()
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
        # T5 drops trailing and repeated whitespace, Llama keeps it.
        self.drops_whitespace = self._model.normalize(" a  ") == self._model.normalize("a")
        pieces = [self._model.id_to_piece(i) for i in range(self._pieces)]
        self._bytes = [self._piece_bytes(i, piece) for i, piece in enumerate(pieces)]
        self._bytes += [b""] * extra_ids
        self._ids = Defaulting({piece.encode(): i for i, piece in enumerate(pieces)}, self.unk_id)
        # <unk> spells what no text holds; the last row is the byte that holds texts apart.
        self._spelled = [without_whitespace(piece) for piece in self._bytes]
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
        return self._model.encode(utf8(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped."""
        for token_id in ids:
            self._check(int(token_id))
        return self._model.decode([int(i) for i in ids if i < self._pieces])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a piece, its `▁` as a space; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that continues other text, None where it is no text."""
        whole = whole_characters(text)
        if whole is None:
            return None
        # Where whitespace collapse, the leading ones become one `▁`, which is what the prefix is.
        if start or (self.drops_whitespace and whole[:1].isspace()):
            return self._model.encode(whole)
        return self._inner.encode(whole)

    def segment(self, text: str) -> Segmentation:
        """Cut `text`; the byte ends are SentencePiece's own, or follow from the pieces alone."""
        return self.segment_batch([text])[0]

    def segment_batch(self, texts: Sequence[str]) -> list[Segmentation]:
        """Cut many texts, those whose pieces spell the text but for whitespace in one pass."""
        raw = [utf8(text) for text in texts]
        if not self.drops_whitespace:
            return [self._segment_any(text) for text in raw]
        rows = self._model.encode(raw, num_threads=1)
        alike = [
            b"".join([self._spelled[i] for i in ids]) == without_whitespace(text)
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
            spelled += without_whitespace(piece)
            covered = text[opened:end]
            same = spelled == without_whitespace(covered) or spelled == self._normalised(covered)
            if same or t - first >= _LONGEST_GROUP or self._model.is_byte(self._ids[piece]):
                first = t + 1
            else:
                cuts[t] = False
        if len(cuts):
            cuts[-1] = True
        return cuts

    def _normalised(self, text: bytes) -> bytes:
        whole = whole_characters(text)
        return b"" if whole is None else without_whitespace(self._model.normalize(whole).encode())
