"""One text cut into tokens: ids and byte ends. The cutting itself is in `tokenizers`."""

import dataclasses
import itertools
import re

import numpy as np

# Deleting these leaves what two tokenizers must agree on; `▁` is SentencePiece's space.
ASCII_WHITESPACE = b" \t\n\r\x0b\x0c"
MARKER = "▁".encode()
_WIDE_WHITESPACE = re.compile(
    b"\xe2\x96\x81|\xc2\xa0|\xe1\x9a\x80|\xe2\x80[\x80-\x8b\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)
_NARROW = np.ones(256, bool)
_NARROW[list(ASCII_WHITESPACE)] = False


def spelled_mask(text: bytes) -> np.ndarray:
    r"""Return a bool [len(text)] that is False on the bytes of whitespace.

    Example:
        >>> spelled_mask(b"a\n b").astype(int).tolist()
        [1, 0, 0, 1]
    """
    mask = _NARROW[np.frombuffer(text, np.uint8)]
    if not text.isascii():
        for match in _WIDE_WHITESPACE.finditer(text):
            mask[match.start() : match.end()] = False
    return mask


def without_whitespace(text: bytes) -> bytes:
    r"""Return the bytes of `text` that are not whitespace.

    Example:
        >>> without_whitespace("▁She\n had".encode())
        b'Shehad'
    """
    if not text.isascii():
        text = _WIDE_WHITESPACE.sub(b"", text)
    return text.translate(None, ASCII_WHITESPACE)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    r"""A text as one tokenizer cuts it.

    Token t covers `text[byte_ends[t - 1] : byte_ends[t]]` (from 0 for the first). Whitespace that a
    tokenizer drops belong to the token after them; dropped at the end, to none.

        text       S h e \n h a d
        ids        451  . 141          ▁She ▁had
        byte_ends      3      7

    Attributes:
        text: the UTF-8 bytes of the original text.
        ids: int32 [T].
        byte_ends: int32 [T], not decreasing, at most len(text).
        cuts: bool [T], False where the token ends within one character that the tokenizer's
            normaliser spells with several (the digits of `½`): its end is no place in the text.
    """

    text: bytes
    ids: np.ndarray
    byte_ends: np.ndarray
    cuts: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.byte_ends) == len(self.cuts):
            raise ValueError(
                f"expected as many ids as ends and cuts, got {len(self.ids)}, "
                f"{len(self.byte_ends)} and {len(self.cuts)}"
            )
        if len(self.byte_ends) and (
            self.byte_ends[0] < 0
            or self.byte_ends[-1] > len(self.text)
            or (self.byte_ends[1:] < self.byte_ends[:-1]).any()
        ):
            raise ValueError(
                f"expected byte ends that do not decrease within 0 and {len(self.text)}, "
                f"got {self.byte_ends}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self) -> list[bytes]:
        """Return the bytes of the text that each token covers."""
        ends = self.byte_ends.tolist()
        return [self.text[a:b] for a, b in itertools.pairwise([0, *ends])]
