"""Stop texts: an automaton over tokens that ends a row, and the cut of its completion there."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from distill.core.ports import Completion, Sampling

ENDED = 0  # the state of a row that has ended; none leaves it
OPENING = 1  # before the first token of a text, whose leading whitespace is not part of it
INSIDE = 2  # before the first token of a text that follows another
_STATES = 8  # rows of the smallest table


def transitions(
    stop: Sequence[str], tokens: Sequence[bytes], eos_id: int
) -> Int[np.ndarray, "states vocab"]:
    """Return the state after each token in each state: ENDED once a stop text is complete.

    The states beyond INSIDE are the beginnings of stop texts that the row may have written, which
    may have begun in an earlier token. Time is linear in the texts' length times the tokens.

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
    by_byte = _by_byte(stop)
    table = _over(by_byte, tokens)
    table[OPENING] = _over(by_byte, [token.removeprefix(b" ") for token in tokens])[INSIDE]
    table[:, eos_id] = ENDED
    return table


def states_of(stop: Sequence[str]) -> int:
    r"""Return the number of rows of `transitions` for such stop texts.

    Example:
        >>> states_of([]), states_of(["\n\nQuestion:"])
        (8, 16)
    """
    return _rows(len(_beginnings(stop)))


def _beginnings(stop: Sequence[str]) -> list[bytes]:
    """Return what a row may have written of the stop texts, each once, the empty text first."""
    texts = [text.encode() for text in stop if text]
    longer = (text[:size] for text in texts for size in range(1, len(text) + 1))
    return list(dict.fromkeys([b"", *longer]))


def _rows(beginnings: int) -> int:
    """Return the rows of a table, which double, since each size is a program to compile."""
    rows = _STATES
    while rows < beginnings + INSIDE:
        rows *= 2
    return rows


def _by_byte(stop: Sequence[str]) -> Int[np.ndarray, "states 256"]:
    """Return the state after each byte: the longest beginning of a stop text just written.

    The row of a beginning is that of its longest ending which is a beginning too, but for the
    bytes that continue it. Shorter beginnings come first, so that this row is there.
    """
    beginnings = _beginnings(stop)
    whole = {text.encode() for text in stop}
    states = {beginning: INSIDE + number for number, beginning in enumerate(beginnings)}
    longer: dict[bytes, list[bytes]] = {beginning: [] for beginning in beginnings}
    for beginning in beginnings[1:]:
        longer[beginning[:-1]].append(beginning)
    table = np.full((_rows(len(beginnings)), 256), ENDED, np.int32)
    table[INSIDE] = INSIDE
    endings = {b"": INSIDE}
    for beginning in sorted(beginnings, key=len):
        state = states[beginning]
        ending = table[endings[beginning]].copy()
        table[state] = ending
        for each in longer[beginning]:
            ended = each in whole or ending[each[-1]] == ENDED
            endings[each] = INSIDE if ended else int(ending[each[-1]])
            table[state, each[-1]] = ENDED if ended else states[each]
    table[OPENING] = table[INSIDE]
    return table


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


# --- Completions -------------------------------------------------------------------------------


def entry_at(nats: np.ndarray, step: int) -> float:
    """Return the log-probability of a step, NaN beyond the last."""
    return float(nats[step]) if step < len(nats) else float("nan")


def with_text(completion: Completion) -> Completion:
    """Return a completion with the text of its tokens, cut before the first byte that is not UTF-8.

    An incomplete character at the end keeps the finish reason; other bytes make it "error".
    """
    raw = b"".join(completion.tokens)
    try:
        return dataclasses.replace(completion, text=raw.decode())
    except UnicodeDecodeError as error:
        whole = error.reason == "unexpected end of data"
        cut = _cut(completion, error.start, np.array([]))
        reason = completion.finish_reason if whole else "error"
        return dataclasses.replace(cut, text=raw[: error.start].decode(), finish_reason=reason)


def cut_at_text(completion: Completion, sampling: Sampling, eos_logprobs: np.ndarray) -> Completion:
    """Cut a completion where the stop text that is complete first begins, or ends if included.

    A token across the cut keeps its bytes before it, and its log-probability.

    Args:
        completion: of any length.
        sampling: the stop texts, and whether the completion includes the one that ended it.
        eos_logprobs: [steps] nats of ending at each step, of which the cut takes its own.
    """
    text = completion.text
    stops = [(at + len(stop), at) for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if not stops:
        return completion
    end, begin = min(stops)
    text = text[: end if sampling.include_stop else begin]
    cut = _cut(completion, len(text.encode()), eos_logprobs)
    return dataclasses.replace(cut, text=text, finish_reason="stop")


def _cut(completion: Completion, size: int, eos_logprobs: np.ndarray) -> Completion:
    """Keep the tokens of the first `size` bytes; ending within a token has no probability."""
    ends = np.cumsum([len(token) for token in completion.tokens], dtype=np.int64)
    n = int(np.searchsorted(ends, size)) + 1 if size else 0
    tokens = list(completion.tokens[:n])
    whole = not n or int(ends[n - 1]) == size
    if not whole:
        tokens[-1] = tokens[-1][: size - int(ends[n - 1])]
    last = int(completion.top_ends[n - 1]) if n else 0
    return dataclasses.replace(
        completion,
        tokens=tuple(tokens),
        logprobs=completion.logprobs[:n],
        top_tokens=completion.top_tokens[:last],
        top_logprobs=completion.top_logprobs[:last],
        top_ends=completion.top_ends[:n],
        end_logprob=entry_at(eos_logprobs, n) if whole else float("nan"),
        behaviour_logprobs=completion.behaviour_logprobs[:n],
    )
