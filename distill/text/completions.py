"""Build and shorten completions; their text, tokens and candidates stay of one piece."""

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from distill.core.ports import Completion, Sampling
from distill.text.prompts import cut


class Token(NamedTuple):
    """A token's bytes, its nats (NaN where unknown), and its candidates, the likeliest first."""

    text: bytes
    logprob: float = np.nan
    top: tuple[tuple[bytes, float], ...] = ()


def assemble(
    tokens: Sequence[Token], *, finish_reason: str = "stop", end_logprob: float = np.nan
) -> Completion:
    """Return the completion that the tokens spell.

    Raises:
        UnicodeDecodeError: together they are no UTF-8.

    Example:
        >>> assemble([Token(b"8", -0.5, ((b"8", -0.5), (b"9", -1.5)))]).top_ends
        array([2], dtype=int32)
    """
    top = [candidate for token in tokens for candidate in token.top]
    return Completion(
        text=b"".join(token.text for token in tokens).decode(),
        tokens=tuple(token.text for token in tokens),
        logprobs=np.array([token.logprob for token in tokens], np.float32),
        top_tokens=tuple(name for name, _ in top),
        top_logprobs=np.array([logprob for _, logprob in top], np.float32),
        top_ends=np.cumsum([len(token.top) for token in tokens], dtype=np.int32),
        end_logprob=end_logprob,
        finish_reason=finish_reason,
    )


def cut_after_answer(completion: Completion) -> Completion:
    r"""Cut the text after the first line that holds "answer is", where the paper cuts it.

    What follows is the generator going on to another question. The newline goes too, and so the
    log-probability of stopping becomes absent; a completion that ran into its length after its
    answer counts as stopped.

    Example:
        >>> tokens = [Token(b"The answer is 8"), Token(b".\n\n"), Token(b"Q:")]
        >>> cut_after_answer(assemble(tokens)).tokens
        (b'The answer is 8', b'.')

    Source:
        Fu et al. 2023, section 3, and its public code, which joins the kept lines by newlines.
    """
    text = cut(completion.text)
    if text == completion.text:
        return completion
    short = shorten(completion, len(text.encode()))
    reason = "stop" if completion.finish_reason == "length" else completion.finish_reason
    return dataclasses.replace(short, end_logprob=np.nan, finish_reason=reason)


def cut_at_stop(completion: Completion, sampling: Sampling) -> Completion:
    """Cut a completion where the first stop text begins, or ends where it is to be included."""
    text = completion.text
    found = [(at, stop) for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if not found:
        return completion
    at, stop = min(found)
    kept = text[: at + len(stop) if sampling.include_stop else at]
    if kept == text:
        return dataclasses.replace(completion, finish_reason="stop")
    short = shorten(completion, len(kept.encode()))
    return dataclasses.replace(short, finish_reason="stop", end_logprob=np.nan)


def summed(counts: Iterable[int | None]) -> int | None:
    """Return the tokens of several requests together, None where one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def shorten(completion: Completion, end: int) -> Completion:
    r"""Keep the first `end` bytes of a completion.

    A token across the cut keeps its bytes before it. The candidates that go on past the cut as the
    token did are then the same outcome as the kept bytes, so their probabilities add up; the other
    candidates stay as they are:

        text     ... 8 . | \n \n            cut before the newlines
        token        ".\n\n" -0.11   ->     "." -0.01
        top          ".\n\n" -0.11          "." -0.01    (0.90 + 0.09)
                     ".\n"   -2.41
                     " d"    -4.61          " d" -4.61

    Args:
        completion: what to shorten; without tokens only its text is.
        end: bytes of the text to keep, at a character's boundary.
    """
    text = completion.text.encode()[:end].decode()
    kept = first_bytes(tokens_of(completion), end)
    short = assemble(kept, finish_reason=completion.finish_reason)
    return dataclasses.replace(
        short,
        text=text,
        end_logprob=completion.end_logprob,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        behaviour_logprobs=completion.behaviour_logprobs[: len(kept)],
    )


def first_bytes(tokens: Sequence[Token], end: int) -> list[Token]:
    """Return the tokens up to byte `end`, the one across it cut as `shorten` says."""
    kept: list[Token] = []
    size = 0
    for token in tokens:
        if size >= end:
            break
        size += len(token.text)
        kept.append(token if size <= end else _merged(token, len(token.text) - (size - end)))
    return kept


def after_bytes(tokens: Sequence[Token], start: int) -> list[Token]:
    """Return the tokens from byte `start` on.

    What a token across it says is about both sides at once, so its rest keeps neither a
    log-probability nor candidates.
    """
    kept: list[Token] = []
    size = 0
    for token in tokens:
        before, size = size, size + len(token.text)
        if before >= start:
            kept.append(token)
        elif size > start:
            kept.append(Token(token.text[start - before :]))
    return kept


def tokens_of(completion: Completion) -> list[Token]:
    """Return the completion's tokens with their candidates; `assemble` is the inverse."""
    pairs = list(zip(completion.top_tokens, completion.top_logprobs.tolist(), strict=True))
    ends = completion.top_ends.tolist()
    return [
        Token(text, logprob, tuple(pairs[first:last]))
        for text, logprob, (first, last) in zip(
            completion.tokens, completion.logprobs.tolist(), pairwise([0, *ends]), strict=True
        )
    ]


def _merged(token: Token, size: int) -> Token:
    """Cut the token to `size` bytes and join the candidates that this makes equal."""
    kept = token.text[:size]
    same = [
        (name, logprob)
        for name, logprob in token.top
        if name == kept or name.startswith(token.text[: size + 1])
    ]
    rest = [pair for pair in token.top if pair not in same]
    masses = [logprob for name, logprob in same if name != token.text] + [token.logprob]
    known = [logprob for logprob in masses if not np.isnan(logprob)]
    logprob = min(float(np.logaddexp.reduce(known)), 0.0) if known else np.nan
    joined = rest + ([(kept, logprob)] if same else [])
    return Token(kept, logprob, tuple(sorted(joined, key=lambda pair: -pair[1])))
