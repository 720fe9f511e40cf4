r"""A teacher's tokens as APIs and libraries report them, turned into a trace; no network.

Sources and their traps: OpenAI chat (`bytes` may be null, fewer than k alternatives, -9999.0 for
what is as good as impossible), legacy completions (a map keyed by text, in which equal texts have
collapsed, and `bytes:\xf0\x9f` escapes), vLLM (`token_id:123`), Hugging Face pieces (`Ġshe`,
`▁she`, `<0x0A>`).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tokalign.teacher import UNSPELLABLE, TeacherToken, TeacherTrace
from tokalign.tokenizers import Tokenizer, piece_bytes

SENTINEL = -9999.0  # what APIs give for no log-probability at all
END_TEXTS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>")
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")


def token_bytes(text: str, *, tokenizer: Tokenizer | None = None) -> bytes:
    r"""Return the bytes of a token that an API names by a string.

    Args:
        text: the string; `bytes:\xNN` and `token_id:N` are read, and so are escapes `\xNN` where
            they are all there is. Others are UTF-8; U+FFFD stands for bytes nobody told.
        tokenizer: the teacher's vocabulary, for `token_id:N`.

    Returns:
        The bytes; `UNSPELLABLE` where the API does not tell them.

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

    def read(entry: Mapping[str, Any]) -> bytes:
        if entry["token"] in END_TEXTS:
            return b""
        told = entry.get("bytes")
        return bytes(told) if told else token_bytes(entry["token"], tokenizer=tokenizer)

    return _trace(
        (
            read(entry),
            entry["logprob"],
            [(read(top), top["logprob"]) for top in entry.get("top_logprobs") or []],
        )
        for entry in content
    )


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
    tokens, nats = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    if not len(tokens) == len(nats) == len(tops):
        raise ValueError(
            f"expected lists of one length, got {len(tokens)} tokens, {len(nats)} "
            f"log-probabilities and {len(tops)} maps"
        )
    if None in nats:
        raise ValueError(
            f"expected a log-probability of each token, got null at {nats.index(None)}; "
            "leave out an echoed prompt"
        )

    def read(text: str) -> bytes:
        return b"" if text in END_TEXTS else token_bytes(text, tokenizer=tokenizer)

    return _trace(
        (read(token), nat, [(read(t), p) for t, p in (top or {}).items()])
        for token, nat, top in zip(tokens, nats, tops, strict=True)
    )


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
        (read(piece), nat, [(read(c), p) for c, p in candidates])
        for piece, nat, candidates in zip(pieces, logprobs, top, strict=True)
    )


def _trace(
    entries: Iterable[tuple[bytes, float, Sequence[tuple[bytes, float]]]],
) -> TeacherTrace:
    tokens = [
        TeacherToken(
            token,
            max(nat, SENTINEL),
            tuple((c, p) for c, p in top if p > SENTINEL or math.isnan(p)),
        )
        for token, nat, top in entries
    ]
    end = float("nan")
    if tokens and not tokens[-1].token:
        end = tokens.pop().logprob
    return TeacherTrace.from_tokens(tokens, end_logprob=end)


def whole_text(trace: TeacherTrace, text: str) -> TeacherTrace:
    """Return a trace whose untold bytes are filled in from the text that came with it.

    A chat API that cuts an emoji in half may tell neither half's bytes. A run of such tokens takes
    the text between its neighbours, the bytes shared out one each and the rest to the last.

    Args:
        trace: tokens, some of them `UNSPELLABLE`.
        text: what the API gave as the message.

    Returns:
        The trace with tokens that join to the text.

    Raises:
        ValueError: the told tokens do not fit the text.
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
                f"expected bytes for {run - n} untold tokens at byte {at}, got {max(end - at, 0)}"
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
