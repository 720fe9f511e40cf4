r"""Reads the tokens that APIs and libraries report of a teacher's text; uses no network.

`chat_tokens` and `completion_tokens` read the JSON, and their callers decide how a name is spelled
and how strictly a token is read. `from_openai_chat`, `from_completions` and `from_pieces` return
whole traces.

Sources and their traps: OpenAI chat (`bytes` may be null, fewer than k alternatives, -9999.0 for
what is as good as impossible), legacy completions (a map keyed by text, in which equal texts have
collapsed, and `bytes:\xf0\x9f` escapes), vLLM (`token_id:123`), Hugging Face pieces (`Ġshe`,
`▁she`, `<0x0A>`).
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokalign.teacher import UNSPELLABLE, TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer, piece_bytes

SENTINEL = -9999.0  # what APIs give for no log-probability at all
END_TEXTS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "</s>",
    "<|end_of_text|>",
    "<|end|>",
    "<eos>",
    "<end_of_turn>",
)
END_BYTES = frozenset(text.encode() for text in END_TEXTS)
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_ROUNDING = 1e-3  # nats above zero that a server's rounding may leave
_NATS = operator.itemgetter(1)

Spell = Callable[[str], bytes]
Candidates = Iterable[tuple[bytes, Any]]
Build = Callable[[bytes, Any, Candidates], TeacherToken]


class ReportError(ValueError):
    """A part of an answer that does not have the form that its API promises."""


# --- The JSON of OpenAI's two text APIs --------------------------------------------------------


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer's first choice.

    Raises:
        ReportError: it has none.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ReportError("no choice")
    return choices[0]


def json_field(mapping: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a field of a JSON object.

    Raises:
        ReportError: it is missing or of another kind.

    Example:
        >>> json_field({"text": "8"}, "text", str)
        '8'
    """
    value = mapping.get(name)
    if not isinstance(value, kind):
        raise ReportError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def is_object(value: Any) -> bool:
    """Return True for a JSON object.

    Raises:
        ReportError: it is anything else.
    """
    if not isinstance(value, dict):  # JSON has no other, and abstract classes are slow to ask.
        raise ReportError(f"a {type(value).__name__} in the place of an object")
    return True


def chat_tokens(logprobs: Any, spell: Spell, build: Build) -> list[TeacherToken] | None:
    """Read `choices[i].logprobs` of a chat completion.

        {"content": [{"token": " 8", "bytes": [32, 56], "logprob": -0.1, "top_logprobs": [...]}]}

    Args:
        logprobs: the field as it came.
        spell: returns the bytes of a token's name, for tokens whose `bytes` are null.
        build: makes a token of its bytes, its log-probability and its candidates, as reported.

    Returns:
        The tokens; None where the answer reports none at all.

    Raises:
        ReportError: the report is malformed.
    """
    if not isinstance(logprobs, dict) or logprobs.get("content") is None:
        return None
    return [
        build(
            named_bytes(item, spell),
            item.get("logprob"),
            _chat_candidates(item.get("top_logprobs"), spell),
        )
        for item in json_field(logprobs, "content", list)
        if is_object(item)
    ]


def completion_tokens(logprobs: Any, spell: Spell, build: Build) -> list[TeacherToken] | None:
    """Read `choices[i].logprobs` of a legacy completion; as `chat_tokens`.

    {"tokens": [" 8"], "token_logprobs": [-0.1], "top_logprobs": [{" 8": -0.1, " 9": -2.5}]}
    """
    if not isinstance(logprobs, dict) or logprobs.get("tokens") is None:
        return None
    names = json_field(logprobs, "tokens", list)
    nats = json_field(logprobs, "token_logprobs", list)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    if not len(names) == len(nats) == len(tops):
        raise ReportError(
            f"expected lists of one length, got {len(names)} tokens, {len(nats)} "
            f"log-probabilities and {len(tops)} maps"
        )
    return [
        build(_named(name, spell), logprob, _mapped_candidates(top, spell))
        for name, logprob, top in zip(names, nats, tops, strict=True)
    ]


def named_bytes(item: Mapping[str, Any], spell: Spell) -> bytes:
    """Return the bytes of an object with `bytes`, which may be null, and `token`, its name.

    Raises:
        ReportError: either is malformed.
    """
    raw = item.get("bytes")
    if raw is None:
        return _named(item.get("token"), spell)
    if not isinstance(raw, list):
        raise ReportError(f"bytes of {raw!r}")
    try:
        return bytes(raw)
    except (TypeError, ValueError) as error:
        raise ReportError(f"bytes of {raw!r}") from error


def _named(name: Any, spell: Spell) -> bytes:
    if not isinstance(name, str):
        raise ReportError(f"token is {type(name).__name__}, not str")
    return spell(name)


def _chat_candidates(items: Any, spell: Spell) -> Iterator[tuple[bytes, Any]]:
    if not isinstance(items or [], list):
        raise ReportError(f"candidates as {type(items).__name__}")
    for item in filter(is_object, items or []):
        yield named_bytes(item, spell), item.get("logprob")


def _mapped_candidates(top: Any, spell: Spell) -> Iterator[tuple[bytes, Any]]:
    if top and is_object(top):
        yield from ((spell(name), logprob) for name, logprob in top.items())


def known_token(text: bytes, logprob: Any, top: Candidates) -> TeacherToken:
    """Return a token of what an API reports; what it leaves out is absent.

    Candidates are sorted from the likeliest, those of equal bytes are joined, those without a
    log-probability are left out, and each end of the text is b"". A candidate with bytes that are
    not reported keeps its mass.

    Raises:
        ReportError: a log-probability is no number or positive.

    Example:
        >>> known_token(b" 8", -0.5, [(b"</s>", -2.0), (b" 8", -0.5), (b" 9", None)]).top
        ((b' 8', -0.5), (b'', -2.0))
    """
    known: dict[bytes, float] = {}
    for name, reported in top:
        nats = _nats(reported)
        if not nats > SENTINEL:
            continue
        name = b"" if name in END_BYTES else name
        if known.get(name, nats) != nats:
            nats = min(float(np.logaddexp(known[name], nats)), 0.0)
        known[name] = nats
    ranked = tuple(sorted(known.items(), key=_NATS, reverse=True))
    return TeacherToken(text, _nats(logprob), ranked)


def _nats(logprob: Any) -> float:
    """Return nats between the sentinel and 0, NaN for null."""
    if logprob is None:
        return math.nan
    if not isinstance(logprob, int | float) or logprob > _ROUNDING:
        raise ReportError(f"a log-probability of {logprob!r}")
    return max(min(float(logprob), 0.0), SENTINEL)


# --- Traces ------------------------------------------------------------------------------------


def token_bytes(text: str, *, tokenizer: Tokenizer | None = None) -> bytes:
    r"""Return the bytes of a token that an API names by a string.

    Args:
        text: the string; `bytes:\xNN` and `token_id:N` are read, and so are escapes `\xNN` where
            they are all there is. Others are UTF-8; U+FFFD stands for bytes that are not reported.
        tokenizer: the teacher's vocabulary, for `token_id:N`.

    Returns:
        The bytes; `UNSPELLABLE` where the API does not report them.

    Raises:
        ValueError: `token_id:N` without a tokenizer.

    Example:
        >>> token_bytes("bytes:\\xf0\\x9f"), token_bytes(" she")
        (b'\xf0\x9f', b' she')
    """
    if text.startswith("token_id:") and text[9:].isdigit():
        if tokenizer is None:
            raise ValueError(f"expected the teacher's tokenizer to read {text!r}, got none")
        return tokenizer.token_bytes(int(text[9:]))
    escaped = text.removeprefix("bytes:")
    if escaped != text or (_ESCAPE.sub("", text) == "" and text):
        # Bytes that are printable stand for themselves among the escapes.
        return b"".join(
            bytes([int(part, 16)]) if n % 2 else part.encode()
            for n, part in enumerate(_ESCAPE.split(escaped))
        )
    return UNSPELLABLE if "\ufffd" in text else text.encode(errors="surrogatepass")


def from_openai_chat(
    content: Iterable[Mapping[str, Any]], *, tokenizer: Tokenizer | None = None
) -> TeacherTrace:
    """Read `choices[i].logprobs.content` of a chat completion.

    Args:
        content: one object a token, with `token`, `logprob`, `bytes` and `top_logprobs`.
        tokenizer: the teacher's vocabulary, for `token_id:N`.

    Returns:
        The trace; alternatives at the sentinel are left out, and a last token that is an end of
        text becomes `end_logprob`.

    Raises:
        ValueError: a log-probability that is NaN or positive, or an unreadable token.
    """
    spell = functools.partial(token_bytes, tokenizer=tokenizer)
    return _trace(chat_tokens({"content": list(content)}, spell, _whole_token) or [])


def from_completions(
    logprobs: Mapping[str, Any], *, tokenizer: Tokenizer | None = None
) -> TeacherTrace:
    """Read `choices[i].logprobs` of a legacy completion, as OpenAI and vLLM give it.

    Texts that were equal have collapsed into one entry before they reach us; what is missing then
    counts as beyond the top k.

    Args:
        logprobs: `tokens`, `token_logprobs` and `top_logprobs`, lists of one length; the first
            entries of the last two are null where a prompt was echoed.
        tokenizer: the teacher's vocabulary, for `token_id:N`.

    Returns:
        The trace; a last token that is an end of text becomes `end_logprob`.

    Raises:
        ValueError: lists of other lengths, a token without a log-probability, or an unreadable one.
    """
    spell = functools.partial(token_bytes, tokenizer=tokenizer)
    nats = json_field(logprobs, "token_logprobs", list)
    if None in nats:
        raise ReportError(
            f"expected a log-probability of each token, got null at {nats.index(None)}; "
            "leave out an echoed prompt"
        )
    return _trace(completion_tokens(logprobs, spell, _whole_token) or [])


def from_pieces(
    pieces: Sequence[str],
    logprobs: Sequence[float],
    top: Sequence[Sequence[tuple[str, float]]],
    *,
    byte_level: bool,
) -> TeacherTrace:
    """Read Hugging Face pieces, as `convert_ids_to_tokens` gives them.

    Args:
        pieces: the tokens.
        logprobs: their nats.
        top: (piece, nats) of the candidates of each.
        byte_level: whether pieces are spelled with stand-ins for bytes (`Ġ`), otherwise with `▁`.
    """

    def read(piece: str) -> bytes:
        return b"" if piece in END_TEXTS else piece_bytes(piece, byte_level=byte_level)

    return _trace(
        [
            _whole_token(read(piece), nats, [(read(name), p) for name, p in candidates])
            for piece, nats, candidates in zip(pieces, logprobs, top, strict=True)
        ]
    )


def _whole_token(text: bytes, logprob: Any, top: Candidates) -> TeacherToken:
    """Return a token whose log-probability must be known; its candidates keep their order."""
    if not isinstance(logprob, int | float | np.floating):
        raise ReportError(f"expected a log-probability, got {logprob!r} with {text!r}")
    candidates = ((b"" if c in END_BYTES else c, p) for c, p in top)
    return TeacherToken(
        b"" if text in END_BYTES else text,
        max(float(logprob), SENTINEL),
        tuple((c, p) for c, p in candidates if p > SENTINEL or math.isnan(p)),
    )


def _trace(tokens: list[TeacherToken]) -> TeacherTrace:
    end = tokens.pop().logprob if tokens and not tokens[-1].text else math.nan
    return TeacherTrace.from_tokens(tokens, end_logprob=end)


def whole_text(trace: TeacherTrace, text: str) -> TeacherTrace:
    """Return a trace in which the text fills in the bytes that were not reported.

    A chat API that cuts an emoji in half may report neither half's bytes. A run of such tokens
    takes the text between its neighbours, one byte each and the rest to the last.

    Args:
        trace: tokens, some of them `UNSPELLABLE`.
        text: the message of the API's answer.

    Returns:
        The trace with tokens that join to the text.

    Raises:
        ValueError: the reported tokens do not fit the text.
    """
    raw, tokens, at, n = text.encode(), list(trace.tokens), 0, 0
    while n < len(tokens):
        if tokens[n] != UNSPELLABLE:
            if not raw.startswith(tokens[n], at):
                raise ValueError(
                    f"expected {tokens[n]!r} at byte {at} of the text, got {raw[at : at + 20]!r}"
                )
            at, n = at + len(tokens[n]), n + 1
            continue
        run = n
        while run < len(tokens) and tokens[run] == UNSPELLABLE:
            run += 1
        end = raw.find(tokens[run], at + run - n) if run < len(tokens) else len(raw)
        if end - at < run - n:
            raise ValueError(
                f"expected bytes for {run - n} unreported tokens at byte {at}, "
                f"got {max(end - at, 0)}"
            )
        for k in range(n, run):
            tokens[k] = raw[at : at + 1] if k < run - 1 else raw[at:end]
            at += len(tokens[k])
        n = run
    return TeacherTrace(
        tuple(tokens),
        np.asarray(trace.logprobs),
        trace.top_tokens,
        trace.top_logprobs,
        trace.top_ends,
        trace.end_logprob,
    )
