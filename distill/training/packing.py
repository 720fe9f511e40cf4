"""Examples packed into the rows of a batch, in NumPy; seqio packs the dataset of a run instead."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MISSES = 8  # examples without room in any row after which a batch is full

Arrays = Mapping[str, np.ndarray]


class Example(NamedTuple):
    """One example: the encoder's ids, the decoder's ids, and the weight of each in the loss.

    The encoder's ids are empty for a decoder-only model.
    """

    source: Sequence[int]
    target: Sequence[int]
    weights: Sequence[float]


def pack(examples: Iterator[Example], rows: int, length: int, source_length: int = 0) -> Arrays:
    """Return a batch in which each example is in the first row that has room for it.

    With source ids [7, 8] and [5], targets [3, 9, 1] and [4, 1], one row of 6 and 4:

    ```
       encoder_input_tokens [7, 8, 5, 0]     decoder_target_tokens [3, 9, 1, 4, 1, 0]
        encoder_segment_ids [1, 1, 2, 0]      decoder_input_tokens [0, 3, 9, 0, 4, 0]
          encoder_positions [0, 1, 0, 0]       decoder_segment_ids [1, 1, 1, 2, 2, 0]
                                                 decoder_positions [0, 1, 2, 0, 1, 0]
                                              decoder_loss_weights [1, 1, 1, 1, 1, 0]
    ```

    Examples are taken until MISSES of them found no room; those are not in the batch.

    Args:
        examples: an endless iterator.
        rows: of the batch.
        length: of the decoder's rows.
        source_length: of the encoder's rows; 0 makes no encoder arrays.

    Raises:
        ValueError: MISSES examples in a row are longer than an empty row.
    """
    target, source = Tower(rows, length), Tower(rows, source_length)
    weights = np.zeros((rows, length), np.float32)
    misses = 0
    while misses < MISSES:
        example = next(examples)
        room = target.room(example.target) & source.room(example.source)
        row = int(np.argmax(room))
        if not room[row]:
            misses += 1
            continue
        start = target.add(row, example.target)
        weights[row, start : start + len(example.target)] = example.weights
        source.add(row, example.source)
    if not target.used.any():
        raise ValueError(f"expected examples of at most {length} targets, got {MISSES} longer")
    return arrays(target, source if source_length else None, weights)


class Tower:
    """The rows of one tower, encoder or decoder, while they fill.

    Args:
        rows: of the batch.
        length: tokens of a row.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.tokens = np.zeros((rows, length), np.int32)
        self.segments = np.zeros((rows, length), np.int32)
        self.positions = np.zeros((rows, length), np.int32)
        self.used = np.zeros(rows, np.int64)
        self._count = np.zeros(rows, np.int64)
        self._ramp = np.arange(length, dtype=np.int32)

    @classmethod
    def of(cls, tokens: np.ndarray) -> "Tower":
        """Return the tower of [rows, length] tokens, each row one segment without padding."""
        tower = cls(*tokens.shape)
        tower.tokens[:] = tokens
        tower.segments[:] = 1
        tower.positions[:] = np.arange(tokens.shape[1])
        return tower

    def room(self, ids: Sequence[int]) -> np.ndarray:
        """Return bool [rows]: whether `ids` fit."""
        return self.used + len(ids) <= self.tokens.shape[1]

    def add(self, row: int, ids: Sequence[int]) -> int:
        """Lay `ids` into a row as its next segment and return where they start."""
        start = int(self.used[row])
        place = row, slice(start, start + len(ids))
        self._count[row] += 1
        self.tokens[place] = ids
        self.segments[place] = self._count[row]
        self.positions[place] = self._ramp[: len(ids)]
        self.used[row] += len(ids)
        return start


def arrays(target: Tower, source: Tower | None, weights: np.ndarray) -> Arrays:
    """Return the arrays of a batch by the names that models and losses read.

    Args:
        target: the decoder's rows.
        source: the encoder's rows; None for a decoder-only model.
        weights: [rows, length] how much each target counts in the loss.
    """
    shifted = np.roll(target.tokens, 1, axis=1)
    batch = {
        "decoder_target_tokens": target.tokens,
        "decoder_input_tokens": np.where(target.positions > 0, shifted, 0),
        "decoder_segment_ids": target.segments,
        "decoder_positions": target.positions,
        "decoder_loss_weights": weights,
    }
    if source is not None:
        batch["encoder_input_tokens"] = source.tokens
        batch["encoder_segment_ids"] = source.segments
        batch["encoder_positions"] = source.positions
    return batch
