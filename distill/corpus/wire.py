"""Read completions from the JSON of OpenAI-compatible APIs; sends nothing."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Completion
from distill.corpus.completions import Token, after_bytes, assemble, first_bytes

_FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
# What APIs report for a token outside their top k: "very unlikely", not a number.
_SENTINEL = -9999.0
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")


class WireError(Exception):
    """An answer that is not of the promised form; another try may bring a better one."""


class Reported(NamedTuple):
    """A token as it was reported; `text` is None where its bytes cannot be told."""

    text: bytes | None
    logprob: float
    top: tuple[tuple[bytes, float], ...]


# --- Choices -----------------------------------------------------------------------------------


def read_completion(choice: Mapping[str, Any]) -> Completion:
    """Read a choice of the legacy Completions API.

    Raises:
        UserError: the endpoint reports no log-probabilities.
        WireError: the choice is malformed.
    """
    text = _whole(_field(choice, "text", str))
    return fit(text, _legacy_tokens(choice, text), _finish_reason(choice))


def read_chat(choice: Mapping[str, Any]) -> Completion:
    """Read a choice of the Chat Completions API; raises as `read_completion` does."""
    message = _field(choice, "message", Mapping)
    text = _whole(message.get("content") or "")
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content")
    if content is None:
        if text:
            raise _no_logprobs()
        content = []
    tokens = [
        Reported(_bytes(item), _nats(item.get("logprob")), _top(item.get("top_logprobs") or []))
        for item in content
    ]
    return fit(text, tokens, _finish_reason(choice))


def read_scored(choice: Mapping[str, Any], prompt: str, completion: str) -> Completion:
    """Read a legacy choice that echoes prompt and completion; return the completion's part.

    Raises:
        UserError: the endpoint does not echo, or reports no log-probabilities.
        WireError: the choice is malformed.
    """
    whole = prompt + completion
    text = _whole(_field(choice, "text", str))
    if not text.startswith(whole):
        raise UserError(
            "an endpoint that echoes the prompt it scores",
            f"{text[:40]!r}",
            "sample instead, or use an endpoint that knows echo",
        )
    tokens = _legacy_tokens(choice, text)
    if tokens and tokens[0].text is not None and not text.encode().startswith(tokens[0].text):
        tokens = tokens[1:]  # A start-of-sequence token is no part of the text.
    placed = _placed(whole, tokens)
    if placed is None:
        return _failed(completion)
    size = len(prompt.encode())
    return assemble(after_bytes(first_bytes(placed, len(whole.encode())), size))


def _legacy_tokens(choice: Mapping[str, Any], text: str) -> list[Reported]:
    logprobs = choice.get("logprobs")
    if logprobs is None or logprobs.get("tokens") is None:
        if text:
            raise _no_logprobs()
        return []
    names = _field(logprobs, "tokens", list)
    nats = _field(logprobs, "token_logprobs", list)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    if not len(names) == len(nats) == len(tops):
        raise WireError(f"{len(names)} tokens with {len(nats)} log-probabilities")
    return [
        Reported(
            _bytes({"token": name}),
            _nats(logprob),
            _top([{"token": key, "logprob": value} for key, value in (top or {}).items()]),
        )
        for name, logprob, top in zip(names, nats, tops, strict=True)
    ]


def _field(mapping: Mapping[str, Any], name: str, kind: type) -> Any:
    value = mapping.get(name)
    if not isinstance(value, kind):
        raise WireError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _finish_reason(choice: Mapping[str, Any]) -> str:
    return _FINISH_REASONS.get(str(choice.get("finish_reason")), "error")


def _no_logprobs() -> UserError:
    return UserError(
        "log-probabilities with every completion",
        "a text without them",
        "use an endpoint or a model that reports them",
    )


# --- Tokens ------------------------------------------------------------------------------------


def _whole(text: str) -> str:
    """Join surrogate pairs and replace halves, which no UTF-8 can spell."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _bytes(item: Mapping[str, Any]) -> bytes | None:
    raw = item.get("bytes")
    return bytes(raw) if raw is not None else name_bytes(_field(item, "token", str))


def name_bytes(name: str) -> bytes | None:
    r"""Return the bytes that a token's name stands for, None where it does not tell.

    Raises:
        UserError: names are numbers.

    Example:
        >>> name_bytes(" she"), name_bytes("bytes: \\xf0\\x9f"), name_bytes("\ufffd")
        (b' she', b' \xf0\x9f', None)
    """
    if name.startswith("token_id:") and name[9:].isdigit():
        raise UserError(
            "tokens by their text", name, "start the server without return_tokens_as_token_ids"
        )
    if name.startswith("bytes:") and _ESCAPE.search(name):
        latin = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name[len("bytes:") :])
        return latin.encode("latin-1", "replace")
    if "\ufffd" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return None
    return name.encode()


def _nats(logprob: Any) -> float:
    if logprob is None:
        return np.nan
    if not isinstance(logprob, int | float) or logprob > 1e-3:
        raise WireError(f"a log-probability of {logprob!r}")
    return np.nan if logprob <= _SENTINEL else min(float(logprob), 0.0)


def _top(items: Sequence[Mapping[str, Any]]) -> tuple[tuple[bytes, float], ...]:
    """Keep the candidates whose bytes and log-probability are known, each once."""
    pairs = ((_bytes(item), _nats(item.get("logprob"))) for item in items)
    known = {name: nats for name, nats in pairs if name is not None and not np.isnan(nats)}
    return tuple(sorted(known.items(), key=lambda pair: -pair[1]))


# --- Text and tokens together ------------------------------------------------------------------


def fit(text: str, tokens: Sequence[Reported], finish_reason: str) -> Completion:
    r"""Return the completion in which the tokens spell the text, or a failed one.

    Tokens beyond the text are the stop: an end-of-sequence token or a stop string. The first of
    them, if the text ends where it begins, gives the log-probability of stopping. A text that ends
    within a character ends before it. Where only the blanks around the text differ, as with
    servers that strip it, the tokens are right. All else is a failed completion: its text is kept,
    it has no tokens, and it finished for the reason "error".

    Example:
        >>> tokens = [Reported(b"8", -0.5, ()), Reported(b"</s>", -0.1, ())]
        >>> done = fit("8", tokens, "stop")
        >>> done.tokens, done.end_logprob
        ((b'8',), -0.1)
        >>> fit("nine", tokens, "stop").finish_reason
        'error'
    """
    placed = _placed(text, tokens)
    if placed is None:
        return _failed(text)
    spelled = b"".join(token.text for token in placed)
    for wanted in (text.encode(), text.rstrip("\ufffd").encode(), spelled):
        if not spelled.startswith(wanted):
            continue
        if wanted is spelled and spelled.strip() != text.encode().strip():
            continue
        kept = first_bytes(placed, len(wanted))
        return assemble(
            kept,
            finish_reason=finish_reason,
            end_logprob=_end(placed, kept) if finish_reason == "stop" else np.nan,
        )
    return _failed(text)


def _end(placed: Sequence[Token], kept: Sequence[Token]) -> float:
    whole = not kept or kept[-1] == placed[len(kept) - 1]
    return placed[len(kept)].logprob if whole and len(placed) > len(kept) else np.nan


def _failed(text: str) -> Completion:
    empty = assemble([], finish_reason="error")
    return Completion(**{**vars(empty), "text": text})


def _placed(text: str, tokens: Sequence[Reported]) -> list[Token] | None:
    """Give tokens of unknown bytes those that the text has between their neighbours.

    Unknown ones in a row become one token of their joint probability without candidates: together
    they spell a character, as the halves of an emoji do.
    """
    spelled = text.encode()
    groups = [list(group) for _, group in groupby(tokens, lambda token: token.text is None)]
    placed: list[Token] = []
    at = 0
    for n, group in enumerate(groups):
        if group[0].text is not None:
            known = [Token(*token) for token in group]  # type: ignore[arg-type]
            placed += known
            at += sum(len(token.text) for token in known)
            continue
        follower = (
            b"".join(token.text or b"" for token in groups[n + 1]) if groups[n + 1 :] else b""
        )
        end = spelled.find(follower[:16], at + 1) if follower else len(spelled)
        if end <= at:
            return placed if at >= len(spelled) else None
        top = group[0].top if len(group) == 1 else ()
        placed.append(Token(spelled[at:end], sum(token.logprob for token in group), top))
        at = end
    return placed
