"""A small vocabulary of bytes and words, longest match first, for laws that need no files."""

import numpy as np

from tokalign.segmentation import Segmentation


class GreedyTokenizer:
    unk_id = None
    drops_whitespace = False

    def __init__(self, words):
        self.words = tuple(words)
        singles = [bytes([b]) for b in range(256)]
        self._tokens = [b"", *singles, *(w.encode() for w in self.words)]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._longest = max(map(len, self._tokens))
        self.vocab_size = len(self._tokens)
        self.eos_id, self.pad_id = 0, None

    def __eq__(self, other):
        return isinstance(other, GreedyTokenizer) and self.words == other.words

    def __hash__(self):
        return hash(self.words)

    def token_bytes(self, token_id):
        return self._tokens[token_id]

    def spell(self, text, *, start=False):
        found = []
        while text:
            size = next(n for n in range(self._longest, 0, -1) if text[:n] in self._ids)
            found.append(self._ids[text[:size]])
            text = text[size:]
        return found

    def segment(self, text):
        raw = text.encode()
        ids = self.spell(raw)
        ends = np.cumsum([len(self._tokens[i]) for i in ids], dtype=np.int64)
        return Segmentation(raw, np.array(ids, np.int32), ends, np.ones(len(ids), bool))
