r"""Completions as JSON of OpenAI's text APIs, whole and in pieces; sends nothing.

A token that is no UTF-8 by itself is `bytes:\xf0\x9f` in the legacy API, whose candidates are a map
keyed by text. Where a completion ended of itself, its tokens are followed by END, which has the
log-probability of stopping and no bytes; `distill.endpoints.shapes` reads all of this back.
"""

import codecs
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distill.core.ports import Completion
from distill.text.completions import Token, tokens_of

END = "</s>"
LEAST_NATS = -9999.0  # stands for what is as good as impossible
_READ_OTHERWISE = ("bytes:", "token_id:")

Json = dict[str, Any]
Piece = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of the texts that a request is answered with.

    Attributes:
        index: of the choice; those of the first prompt come first.
        text: of the answer, an echoed prompt included.
        tokens: those of the text, then perhaps one without bytes, which is END.
        finish_reason: why it ended.
        reported: whether the tokens are reported with their log-probabilities.
    """

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    reported: bool


@dataclasses.dataclass(frozen=True)
class Format:
    """How one of the two APIs says a choice.

    Attributes:
        prefix: of the answer's id.
        name: of the whole answer.
        piece_name: of a piece of it.
        whole: a choice.
        opening: what the first piece of a choice says, if there is such a piece.
        piece: a piece's text with its log-probabilities.
        closing: what the last piece says.
    """

    prefix: str
    name: str
    piece_name: str
    whole: Callable[[Choice], Json]
    opening: Callable[[Choice], list[Json]]
    piece: Callable[[Choice, Piece], Json]
    closing: Callable[[Choice], Json]


def reported_tokens(completion: Completion, top_logprobs: int) -> tuple[Token, ...]:
    """Return a completion's tokens with so many candidates each, and END where it stopped.

    A token that spells nothing is joined to the next one, as one of their joint probability.
    """
    kept: list[Token] = []
    silent = 0.0
    for token in tokens_of(completion):
        if not token.text:
            silent += token.logprob
        else:
            kept.append(Token(token.text, token.logprob + silent, token.top[:top_logprobs]))
            silent = 0.0
    if completion.finish_reason == "stop" and not math.isnan(completion.end_logprob):
        kept.append(Token(b"", completion.end_logprob))
    return tuple(kept)


def pieces(choice: Choice) -> Iterator[Piece]:
    """Yield (text, first token, last token exclusive); each piece is whole characters.

    Together they are the choice's text and all its tokens. Where the tokens do not spell the text
    there is one piece.
    """
    count = len(choice.tokens)
    if b"".join(token.text for token in choice.tokens) != choice.text.encode():
        yield choice.text, 0, count
        return
    decoder, first = codecs.getincrementaldecoder("utf-8")(), 0
    for number, token in enumerate(choice.tokens, 1):
        if text := decoder.decode(token.text):
            yield text, first, number
            first = number
    if first < count:
        yield "", first, count


# --- The legacy API ----------------------------------------------------------------------------


def name(token: bytes) -> str:
    r"""Return the text by which the legacy API names a token.

    Example:
        >>> name(b" she"), name(b"\xf0\x9f"), name(b"")
        (' she', 'bytes:\\xf0\\x9f', '</s>')
    """
    if not token:
        return END
    text = token.decode(errors="replace")
    if "\ufffd" in text or text.startswith(_READ_OTHERWISE):
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
    return text


def legacy_logprobs(choice: Choice, first: int, last: int) -> Json | None:
    """Return the legacy `logprobs` of some of a choice's tokens, None where none are wanted."""
    if not choice.reported:
        return None
    tokens = choice.tokens[first:last]
    decoder, offsets, size = codecs.getincrementaldecoder("utf-8")("ignore"), [], 0
    for token in choice.tokens[:last]:
        offsets.append(size)
        size += len(decoder.decode(token.text))
    return {
        "tokens": [name(token.text) for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [_by_name(token) for token in tokens],
        "text_offset": offsets[first:],
    }


def _by_name(token: Token) -> dict[str, float | None]:
    """Return the candidates keyed by name; those of equal names are one outcome."""
    found: dict[str, float] = {}
    for text, nats in token.top:
        key = name(text)
        found[key] = float(np.logaddexp(found[key], nats)) if key in found else nats
    return {key: finite(nats) for key, nats in found.items()}


def _legacy_whole(choice: Choice) -> Json:
    piece = _legacy_piece(choice, (choice.text, 0, len(choice.tokens)))
    return {**piece, "finish_reason": choice.finish_reason}


def _legacy_piece(choice: Choice, piece: Piece) -> Json:
    text, first, last = piece
    logprobs = legacy_logprobs(choice, first, last)
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _legacy_closing(choice: Choice) -> Json:
    reason = choice.finish_reason
    return {"index": choice.index, "text": "", "logprobs": None, "finish_reason": reason}


# --- The chat API ------------------------------------------------------------------------------


def chat_logprobs(choice: Choice, first: int, last: int) -> Json | None:
    """Return the chat API's `logprobs` of some of a choice's tokens, None where none are wanted."""
    if not choice.reported:
        return None
    items = [
        {**_item(token.text, token.logprob), "top_logprobs": [_item(*pair) for pair in token.top]}
        for token in choice.tokens[first:last]
    ]
    return {"content": items, "refusal": None}


def _item(text: bytes, nats: float) -> Json:
    shown = text.decode(errors="replace") if text else END
    return {"token": shown, "logprob": finite(nats), "bytes": list(text)}


def _chat_whole(choice: Choice) -> Json:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(choice, 0, len(choice.tokens)),
        "finish_reason": choice.finish_reason,
    }


def _delta(choice: Choice, delta: Mapping[str, str], logprobs: Json | None = None) -> Json:
    common = {"index": choice.index, "delta": dict(delta)}
    return {**common, "logprobs": logprobs, "finish_reason": None}


def _chat_piece(choice: Choice, piece: Piece) -> Json:
    text, first, last = piece
    return _delta(choice, {"content": text}, chat_logprobs(choice, first, last))


LEGACY = Format(
    "cmpl-",
    "text_completion",
    "text_completion",
    _legacy_whole,
    lambda choice: [],
    _legacy_piece,
    _legacy_closing,
)
CHAT = Format(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    _chat_whole,
    lambda choice: [_delta(choice, {"role": "assistant", "content": ""})],
    _chat_piece,
    lambda choice: {**_delta(choice, {}), "finish_reason": choice.finish_reason},
)


# --- Answers -----------------------------------------------------------------------------------


def whole(format_: Format, head: Json, choices: Sequence[Choice], usage: Json) -> Json:
    """Return an answer in one."""
    said = [format_.whole(choice) for choice in choices]
    return {**head, "object": format_.name, "choices": said, "usage": usage}


def stream(
    format_: Format, head: Json, choices: Sequence[Choice], usage: Json | None
) -> Iterator[Json]:
    """Yield an answer in pieces, token by token, choice after choice, the usage last."""
    head = {**head, "object": format_.piece_name}
    for choice in choices:
        said = [format_.piece(choice, piece) for piece in pieces(choice)]
        for part in (*format_.opening(choice), *said, format_.closing(choice)):
            yield {**head, "choices": [part]}
    if usage is not None:
        yield {**head, "choices": [], "usage": usage}


def finite(nats: float) -> float | None:
    """Return a log-probability as JSON has it: absent where unknown, never above 0.

    Example:
        >>> finite(float("nan")), finite(float("-inf")), finite(1e-7)
        (None, -9999.0, 0.0)
    """
    return None if math.isnan(nats) else max(min(nats, 0.0), LEAST_NATS)
