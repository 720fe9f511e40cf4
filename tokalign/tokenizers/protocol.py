"""What alignment needs of a vocabulary, and texts that break within a character."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from tokalign.segmentation import Segmentation


@runtime_checkable
class Tokenizer(Protocol):
    """What alignment needs of a vocabulary.

    `spell` gives the ids of text that continues other text (at the start of one with
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
        """Return the bytes of a token, its `▁` as a space; empty for a special."""
        ...

    def segment(self, text: str) -> Segmentation:
        """Cut a text."""
        ...

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of text that continues other text."""
        ...


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
    """Decode, and where something is broken return the place in `text` after each byte."""
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
