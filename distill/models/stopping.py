"""When a row has written a stop text: an automaton over tokens; knows bytes, not the model."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

ENDED = 0  # the state of a row that has ended; none leaves it
OPENING = 1  # before the first token of a text, whose leading blank is not part of it
INSIDE = 2  # before the first token of a text that goes on after another
_STATES = 8  # tables grow by as many rows at once, so that few shapes compile


def transitions(
    stop: Sequence[str], tokens: Sequence[bytes], eos_id: int
) -> Int[np.ndarray, "states vocab"]:
    """Return the state after each token in each state: ENDED once a stop text is complete.

    The states beyond INSIDE are the beginnings of stop texts that the row may have written, which
    may have begun in an earlier token.

    Args:
        stop: the texts that end a row.
        tokens: bytes of each token, empty for those without a text.
        eos_id: the token that ends a row in every state.

    Example:
        >>> table = transitions([". "], [b".", b" 1", b"1", b""], eos_id=3)
        >>> table[INSIDE].tolist(), table[table[INSIDE, 0]].tolist()
        ([3, 2, 2, 0], [3, 0, 2, 0])

    Source:
        Aho and Corasick 1975, run over the bytes of each token.
    """
    by_byte = _by_byte([text.encode() for text in stop if text])
    table = _over(by_byte, tokens)
    table[OPENING] = _over(by_byte, [token.removeprefix(b" ") for token in tokens])[INSIDE]
    table[:, eos_id] = ENDED
    return table


def _by_byte(stop: Sequence[bytes]) -> Int[np.ndarray, "states 256"]:
    """Return the state after each byte: the longest beginning of a stop text just written."""
    beginnings = {b"": INSIDE}
    for beginning in itertools.chain(*(itertools.accumulate(_single(text)) for text in stop)):
        beginnings.setdefault(beginning, len(beginnings) + INSIDE)
    rows = -(-(len(beginnings) + INSIDE) // _STATES) * _STATES
    table = np.full((rows, 256), ENDED, np.int32)
    for written, state in beginnings.items():
        for byte in range(256):
            longer = written + bytes([byte])
            ended = any(longer.endswith(text) for text in stop)
            suffixes = (longer[at:] for at in range(len(longer) + 1))
            longest = next(suffix for suffix in suffixes if suffix in beginnings)
            table[state, byte] = ENDED if ended else beginnings[longest]
    table[OPENING] = table[INSIDE]
    return table


def _single(text: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in text]


def _over(
    by_byte: Int[np.ndarray, "states 256"], tokens: Sequence[bytes]
) -> Int[np.ndarray, "states vocab"]:
    """Run every token's bytes from every state, the shorter tokens being done earlier."""
    order = np.argsort([-len(token) for token in tokens], kind="stable")
    lengths = np.array([len(tokens[n]) for n in order])
    state = np.tile(np.arange(len(by_byte), dtype=np.int32)[:, None], (1, len(tokens)))
    for place in range(lengths.max(initial=0)):
        running = int(np.searchsorted(-lengths, -place))
        byte = np.array([tokens[n][place] for n in order[:running]])
        state[:, :running] = by_byte[state[:, :running], byte]
    table = np.empty_like(state)
    table[:, order] = state
    return table
