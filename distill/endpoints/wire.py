"""Read completions from the JSON of OpenAI-compatible APIs; sends nothing."""

import functools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Completion
from distill.text.completions import Token, after_bytes, assemble, first_bytes
from tokalign.apis import END_TEXTS, SENTINEL, token_bytes
from tokalign.teacher import UNSPELLABLE

# Bytes that are told, and marks for those that are not.
_PIECES = re.compile(UNSPELLABLE + b"+|[^" + UNSPELLABLE + b"]+")
_FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
# Ends of a text, which candidates name as if they were text; there they are b"".
_ENDS = frozenset(
    text.encode() for text in (*END_TEXTS, "<|end_of_text|>", "<|end|>", "<eos>", "<end_of_turn>")
)


_NATS = operator.itemgetter(1)


class WireError(Exception):
    """An answer that is not of the promised form; another try may bring a better one."""


class Reported(NamedTuple):
    """A token as it was reported; 0xff in its bytes stands for some that were not told."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


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
    text = _chat_text(choice)
    return fit(text, _chat_tokens(choice, text), _finish_reason(choice))


def first_of_completion(choice: Mapping[str, Any]) -> Reported | None:
    """Return the first token of a legacy choice, which may be its end; None where none is told.

    A token that ends the text is b"". Raises as `read_completion`.
    """
    return _first(_legacy_tokens(choice, _whole(_field(choice, "text", str))))


def first_of_chat(choice: Mapping[str, Any]) -> Reported | None:
    """Return the first token of a chat's choice; as `first_of_completion`."""
    return _first(_chat_tokens(choice, _chat_text(choice)))


def _first(tokens: Sequence[Reported]) -> Reported | None:
    if not tokens:
        return None
    return tokens[0]._replace(text=b"" if tokens[0].text in _ENDS else tokens[0].text)


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
    if (
        tokens
        and UNSPELLABLE not in tokens[0].text
        and not whole.encode().startswith(tokens[0].text)
    ):
        tokens = tokens[1:]  # A start-of-sequence token is no part of the text.
    placed = _placed(whole, tokens)
    if placed is None:
        return _failed(completion)
    size = len(prompt.encode())
    kept = first_bytes(placed, len(whole.encode()))
    scored = after_bytes(kept, size)
    if b"".join(token.text for token in scored) != completion.encode():
        return _failed(completion)
    beyond = _beyond(placed, kept)
    end_logprob = dict(beyond.top).get(b"", np.nan) if beyond else np.nan
    return assemble(_without_empty(scored), end_logprob=end_logprob)


def read_prompt(
    answer: Mapping[str, Any], completion: str, top_logprobs: int, beyond: Reported | None
) -> Completion:
    """Read vLLM's `prompt_logprobs` of a prompt that ends in a completion; return that part.

        prompt_logprobs   [null, {"578": {"logprob": -0.1, "rank": 1, "decoded_token": " The"}, …}]

    Each token has a map keyed by ids, first its own, then the likeliest ones'. The completion is
    counted from the end, so neither a chat's template nor a start of sequence matters.

    Args:
        answer: of the legacy API, which has them in its choice, or of a chat.
        completion: the text to score.
        top_logprobs: candidates to keep.
        beyond: the token written after the prompt, whose candidates may tell of stopping.

    Raises:
        UserError: the endpoint reports none.
        WireError: they are malformed.

    Source:
        vLLM, OpenAI-compatible server, extra parameter `prompt_logprobs`.
    """
    choices = answer.get("choices") or [{}]
    entries = answer.get("prompt_logprobs") or choices[0].get("prompt_logprobs")
    if not isinstance(entries, list):
        raise UserError(
            "prompt_logprobs with the answer",
            type(entries).__name__,
            "sample instead, or use an endpoint that scores a given text",
        )
    scored = _ending(entries, completion, top_logprobs)
    if scored is None:
        return _failed(completion)
    end_logprob = dict(beyond.top).get(b"", np.nan) if beyond else np.nan
    return assemble(_without_empty(scored), end_logprob=end_logprob)


def _ending(entries: Sequence[Any], completion: str, top_logprobs: int) -> list[Token] | None:
    """Return the last tokens of a prompt, which spell its completion; None where they cannot."""
    wanted = completion.encode()
    tokens: list[Reported] = []
    for entry in reversed(entries):
        tokens.insert(0, _of_prompt(entry, top_logprobs))
        spelled = b"".join(token.text for token in tokens)
        if not tokens[0].text or len(spelled) > len(wanted) + len(tokens[0].text):
            return None
        if UNSPELLABLE in spelled:
            placed = _placed(completion, tokens)
            if placed and b"".join(token.text for token in placed) == wanted:
                return placed
        elif len(spelled) >= len(wanted):
            whole = [Token(*token) for token in tokens]
            fits = spelled.endswith(wanted)
            return after_bytes(whole, len(spelled) - len(wanted)) if fits else None
    return None


def _of_prompt(entry: Any, top_logprobs: int) -> Reported:
    """Read a prompt's token; the first of all has no log-probabilities and so no text."""
    named = [
        {"token": told.get("decoded_token"), "logprob": told.get("logprob")}
        for told in (entry.values() if entry and _is_mapping(entry) else ())
        if _is_mapping(told)
    ]
    if not named:
        return Reported(b"", np.nan)
    return Reported(_bytes(named[0]), _nats(named[0]["logprob"]), _top(named)[:top_logprobs])


def _legacy_tokens(choice: Mapping[str, Any], text: str) -> list[Reported]:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping) or logprobs.get("tokens") is None:
        if text:
            raise _no_logprobs()
        return []
    names = _field(logprobs, "tokens", list)
    nats = _field(logprobs, "token_logprobs", list)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    if not len(names) == len(nats) == len(tops):
        raise WireError(f"{len(names)} tokens with {len(nats)} log-probabilities")
    return [
        Reported(_spelled(name), _nats(logprob), _ranked(_pairs(top)))
        for name, logprob, top in zip(names, nats, tops, strict=True)
    ]


def _chat_text(choice: Mapping[str, Any]) -> str:
    message = _field(choice, "message", Mapping)
    return _whole(_field(message, "content", str) if message.get("content") else "")


def _chat_tokens(choice: Mapping[str, Any], text: str) -> list[Reported]:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping) or logprobs.get("content") is None:
        if text:
            raise _no_logprobs()
        return []
    return [
        Reported(_bytes(item), _nats(item.get("logprob")), _top(item.get("top_logprobs")))
        for item in _field(logprobs, "content", list)
        if _is_mapping(item)
    ]


def _pairs(top: Any) -> Iterator[tuple[bytes, Any]]:
    """Yield a legacy token's candidates, which may be null."""
    if top and _is_mapping(top):
        yield from ((_named(name), nats) for name, nats in top.items())


def _top(items: Any) -> tuple[tuple[bytes, float], ...]:
    """Return a chat token's candidates, which may be null."""
    if not isinstance(items or [], list):
        raise WireError(f"candidates as {type(items).__name__}")
    named = filter(_is_mapping, items or [])
    return _ranked((_bytes(item), item.get("logprob")) for item in named)


def _is_mapping(value: Any) -> bool:
    if not isinstance(value, dict):  # JSON has no other, and abstract classes are slow to ask.
        raise WireError(f"a {type(value).__name__} in the place of an object")
    return True


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


def _bytes(item: Mapping[str, Any]) -> bytes:
    raw = item.get("bytes")
    if raw is None:
        return _spelled(item.get("token"))
    if not isinstance(raw, list):
        raise WireError(f"bytes of {raw!r}")
    try:
        return bytes(raw)
    except (TypeError, ValueError) as error:
        raise WireError(f"bytes of {raw!r}") from error


def _spelled(name: Any) -> bytes:
    if not isinstance(name, str):
        raise WireError(f"token is {type(name).__name__}, not str")
    return _named(name)


@functools.lru_cache(maxsize=1 << 15)
def _named(name: str) -> bytes:
    """Return `name_bytes`; the names of a vocabulary come again and again."""
    return name_bytes(name)


def name_bytes(name: str) -> bytes:
    r"""Return the bytes that a token's name stands for, 0xff in the place of those untold.

    Raises:
        UserError: names are numbers.

    Example:
        >>> name_bytes(" she"), name_bytes(r"bytes: \xf0\x9f"), name_bytes(" \ufffd")
        (b' she', b' \xf0\x9f', b' \xff')
    """
    if name.startswith("token_id:") and name[9:].isdigit():
        raise UserError(
            "tokens by their text", name, "start the server without return_tokens_as_token_ids"
        )
    if name.startswith("bytes:") and "\\x" in name:
        return token_bytes(name)
    return UNSPELLABLE.join(part.encode() for part in _whole(name).split("\ufffd"))


def _nats(logprob: Any) -> float:
    """Keep the sentinel for "very unlikely", which the store's floor stands for on disk."""
    if logprob is None:
        return np.nan
    if not isinstance(logprob, int | float) or logprob > 1e-3:
        raise WireError(f"a log-probability of {logprob!r}")
    return max(min(float(logprob), 0.0), SENTINEL)


def _ranked(pairs: Iterable[tuple[bytes, Any]]) -> tuple[tuple[bytes, float], ...]:
    """Keep the candidates whose log-probability is known, those of equal bytes joined.

    A candidate that ends the text is b"". One whose bytes are untold keeps its mass, which no
    student token can take.
    """
    known: dict[bytes, float] = {}
    for name, told in pairs:
        nats = _nats(told)
        if not nats > SENTINEL:
            continue
        name = b"" if name in _ENDS else name
        if known.get(name, nats) != nats:
            nats = min(float(np.logaddexp(known[name], nats)), 0.0)
        known[name] = nats
    return tuple(sorted(known.items(), key=_NATS, reverse=True))


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
        beyond = _beyond(placed, kept)
        return assemble(
            _without_empty(kept),
            finish_reason=finish_reason,
            end_logprob=beyond.logprob if beyond and finish_reason == "stop" else np.nan,
        )
    return _failed(text)


def _beyond(placed: Sequence[Token], kept: Sequence[Token]) -> Token | None:
    """Return the token that follows those kept, None where the last of them is cut."""
    whole = not kept or kept[-1] == placed[len(kept) - 1]
    return placed[len(kept)] if whole and len(placed) > len(kept) else None


def _without_empty(tokens: Sequence[Token]) -> list[Token]:
    """Join tokens that spell nothing to the next one, as one of their joint probability."""
    kept: list[Token] = []
    unspelled = 0.0
    for token in tokens:
        if not token.text:
            unspelled += token.logprob
        elif unspelled:
            kept.append(Token(token.text, unspelled + token.logprob))
            unspelled = 0.0
        else:
            kept.append(token)
    return kept


def _failed(text: str) -> Completion:
    empty = assemble([], finish_reason="error")
    return Completion(**{**vars(empty), "text": text})


def _placed(text: str, tokens: Sequence[Reported]) -> list[Token] | None:
    """Give tokens of untold bytes those that the text has between their neighbours.

    Several in a row become one token of their joint probability without candidates: together they
    spell a character, as the halves of an emoji do.
    """
    groups = [list(group) for _, group in groupby(tokens, lambda t: UNSPELLABLE in t.text)]
    if not any(UNSPELLABLE in group[0].text for group in groups):
        return [Token(*token) for token in tokens]
    spelled = text.encode()
    pieces = [_PIECES.findall(b"".join(token.text for token in group)) for group in groups]
    ends = _piece_ends([piece for told in pieces for piece in told], spelled)
    if ends is None:
        return None
    placed: list[Token] = []
    at = count = 0
    for group, told in zip(groups, pieces, strict=True):
        start, count = at, count + len(told)
        at = ends[min(count, len(ends)) - 1] if told and ends else at
        if UNSPELLABLE not in group[0].text:
            placed += [Token(*token) for token in group]
        elif at > start:
            top = group[0].top if len(group) == 1 else ()
            nats = sum(token.logprob for token in group)
            placed.append(Token(spelled[start:at], nats, top))
    return placed


def _piece_ends(pieces: Sequence[bytes], spelled: bytes) -> list[int] | None:
    """Return where pieces end that together spell a text, None where they cannot.

    Depth first, the shortest reading of untold bytes first; no place is tried twice, so the work
    is bounded by pieces times places. Pieces beyond the text get no end.
    """
    tried: set[tuple[int, int]] = set()
    paths: list[list[int]] = [[]]
    while paths:
        ends = paths.pop()
        n, at = len(ends), ends[-1] if ends else 0
        if at >= len(spelled):
            return ends
        if n < len(pieces) and (n, at) not in tried:
            tried.add((n, at))
            paths += [[*ends, end] for end in reversed(_readings(pieces[n], spelled, at))]
    return None


def _readings(piece: bytes, spelled: bytes, at: int) -> list[int]:
    """Return where a piece may end: an untold mark stands for one to three bytes of no ASCII."""
    if not piece.startswith(UNSPELLABLE):
        rest = spelled[at : at + len(piece)]
        return [at + len(piece)] if piece.startswith(rest) else []
    most = min(3 * len(piece), len(spelled) - at)
    stretch = spelled[at : at + most]
    most = next((n for n, byte in enumerate(stretch) if byte < 0x80), most)
    return list(range(at + len(piece), at + most + 1))
