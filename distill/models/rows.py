"""Rows of tokens that run together: how wide, how many, and how long one may be; no model."""

from collections.abc import Sequence

import numpy as np

# Scores of attention grow with the square of a row's length. A row that is longer than the first is
# left out by name; rows of a batch are fewer where all would have more pairs of positions than the
# second, which is 512 MB of scores for each head.
LONGEST = 4096
MOST_PAIRS = 2**27
FIRST_ROOM = 32  # tokens that rows may write at first; each room after it is twice as wide


def bucket(length: int, least: int = 64) -> int:
    """Return the padded length of a row, from few enough that each can be compiled.

    Example:
        >>> [bucket(n) for n in (1, 64, 65, 129, 193, 700)]
        [64, 64, 128, 192, 256, 768]
    """
    size = least
    while size < length:
        size *= 2
    return size * 3 // 4 if size >= 256 and length <= size * 3 // 4 else size


def rows_of(batch_size: int, width: int, least: int = 1, *, most_pairs: int = MOST_PAIRS) -> int:
    """Return how many rows of one width run together: fewer where their scores would be too many.

    Args:
        batch_size: rows that run together where they are short.
        width: padded tokens of a row.
        least: the number is a multiple of it.
        most_pairs: pairs of positions of all rows together, at most.

    Example:
        >>> [rows_of(128, width) for width in (256, 1024, 2048, 4096)]
        [128, 128, 32, 8]
    """
    fit = most_pairs // width**2
    return batch_size if fit >= batch_size else max(fit // least, 1) * least


def room_for(limit: int, first: int = FIRST_ROOM) -> int:
    """Return the last room of rows that write up to `limit` tokens; rooms double from `first`.

    Example:
        >>> [room_for(limit) for limit in (1, 32, 33, 256)]
        [32, 32, 64, 256]
    """
    room = first
    while room < limit:
        room *= 2
    return room


def padded(rows: Sequence[Sequence[int]], batch: int, length: int) -> np.ndarray:
    """Return int32 [batch, length], the rows right-padded with 0."""
    out = np.zeros((batch, length), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def lengths(rows: Sequence[Sequence[int]], batch: int) -> np.ndarray:
    """Return int32 [batch], the rows' lengths, 0 for those of padding."""
    return np.array([len(row) for row in rows] + [0] * (batch - len(rows)), np.int32)
