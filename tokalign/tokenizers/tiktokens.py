"""tiktoken encodings as vocabularies."""

import base64
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tokalign import digests
from tokalign.segmentation import Segmentation
from tokalign.tokenizers.loaded import (
    LoadedVocabulary,
    require_file,
    utf8,
)

GPT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TiktokenTokenizer(LoadedVocabulary):
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
            path = require_file(
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
        self.drops_whitespace = False
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
        utf8(text)
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials dropped and broken characters replaced."""
        return b"".join(self._bytes[self._check(int(i))] for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for a special."""
        return self._bytes[self._check(token_id)]

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that continues other text; any bytes are spelled."""
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
