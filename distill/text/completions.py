"""Completions: fit tokens to a text, assemble, cut and shorten, with candidates in step."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Completion, Sampling
from tokalign.apis import token_bytes
from tokalign.teacher import UNSPELLABLE, TeacherToken

# The token of any generator; candidates are sorted from the likeliest.
Token = TeacherToken
ANSWER = "answer is"
# How servers name the reasons; any other is an error.
_FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
# Runs of bytes that are reported, and runs of marks for those that are not.
_PIECES = re.compile(UNSPELLABLE + b"+|[^" + UNSPELLABLE + b"]+")


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


def cut(text: str) -> str:
    r"""Return the text up to the end of the first line that holds "answer is".

    After it a generator often begins another question.

    Example:
        >>> cut("4 + 4 = 8.\nThe answer is 8.\n\nQ: How")
        '4 + 4 = 8.\nThe answer is 8.'
    """
    place = text.find(ANSWER)
    end = text.find("\n", place)
    return text if place < 0 or end < 0 else text[:end]


def cut_after_answer(completion: Completion) -> Completion:
    r"""Cut the text after the first line that holds "answer is", where the paper cuts it.

    The newline is cut too, so the log-probability of stopping becomes absent. A completion that
    reached its length after its answer counts as stopped.

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
    places = [(at, stop) for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if not places:
        return completion
    at, stop = min(places)
    kept = text[: at + len(stop) if sampling.include_stop else at]
    if kept == text:
        return dataclasses.replace(completion, finish_reason="stop")
    short = shorten(completion, len(kept.encode()))
    return dataclasses.replace(short, finish_reason="stop", end_logprob=np.nan)


def shorten(completion: Completion, end: int) -> Completion:
    r"""Keep the first `end` bytes of a completion.

    A token across the cut keeps its bytes before it. A candidate that begins with the
    kept bytes and continues as the token did is then the same outcome, so their probabilities add
    up; the other candidates stay as they are:

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

    A token straddling `start` keeps its tail but loses its log-probability and candidates.
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


# --- Tokens that an API reports ----------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 15)  # A vocabulary's names recur.
def name_bytes(name: str) -> bytes:
    r"""Return the bytes that a token's name stands for, 0xff for each run that is not reported.

    Raises:
        UserError: the name is a token's id.

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
    return UNSPELLABLE.join(part.encode() for part in whole_characters(name).split("\ufffd"))


def whole_characters(text: str) -> str:
    """Join surrogate pairs and replace single surrogates, which UTF-8 cannot spell."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def require_tokens(text: str, tokens: Sequence[Token] | None) -> Sequence[Token]:
    """Return the tokens that were reported with a text, none for an empty text without a report.

    Raises:
        UserError: the text came without tokens.
    """
    if tokens is None and text:
        raise UserError(
            "log-probabilities with every completion",
            "a text without them",
            "use an endpoint or a model that reports them",
        )
    return tokens or ()


def fit(text: str, tokens: Sequence[Token], finish_reason: object) -> Completion:
    r"""Return the completion in which the tokens spell the text, or a failed one.

    Tokens beyond the text are the stop: an end-of-sequence token or a stop string. The first of
    them, if the text ends where it begins, gives the log-probability of stopping. A text that ends
    within a character ends before it. Where the two differ only in whitespace around the text,
    which some servers strip, the tokens are right. Any other completion has failed: it keeps its
    text, has no tokens, and its reason to finish is "error".

    Args:
        text: the server's.
        tokens: as reported; 0xff stands for bytes that are not.
        finish_reason: the server's word for it.

    Example:
        >>> tokens = [Token(b"8", -0.5), Token(b"</s>", -0.1)]
        >>> whole = fit("8", tokens, "eos")
        >>> whole.tokens, whole.end_logprob, whole.finish_reason
        ((b'8',), -0.1, 'stop')
        >>> fit("nine", tokens, "stop").finish_reason
        'error'
    """
    reason = _FINISH_REASONS.get(str(finish_reason), "error")
    placed = place_tokens(text, tokens)
    if placed is None:
        return failed_completion(text)
    spelled = b"".join(token.text for token in placed)
    for wanted in (text.encode(), text.rstrip("\ufffd").encode(), spelled):
        if not spelled.startswith(wanted):
            continue
        if wanted is spelled and spelled.strip() != text.encode().strip():
            continue
        kept = first_bytes(placed, len(wanted))
        following = next_token(placed, kept)
        return assemble(
            _without_empty(kept),
            finish_reason=reason,
            end_logprob=following.logprob if following and reason == "stop" else np.nan,
        )
    return failed_completion(text)


def fit_scored(
    text: str, tokens: Sequence[Token] | None, following: Token | None = None
) -> Completion:
    """Return a given text as a completion of its scored tokens, or a failed one.

    Args:
        text: what was scored.
        tokens: of the text alone; None where they could not be found.
        following: the token after the text; the log-probability of stopping is among its
            candidates.
    """
    if tokens is None or b"".join(token.text for token in tokens) != text.encode():
        return failed_completion(text)
    end_logprob = dict(following.top).get(b"", np.nan) if following else np.nan
    return assemble(_without_empty(tokens), end_logprob=end_logprob)


def failed_completion(text: str) -> Completion:
    """Return a completion whose tokens do not spell its text: it has none."""
    return dataclasses.replace(assemble([], finish_reason="error"), text=text)


def next_token(placed: Sequence[Token], kept: Sequence[Token]) -> Token | None:
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


def place_tokens(text: str, tokens: Sequence[Token]) -> list[Token] | None:
    """Give tokens without reported bytes those that the text has between their neighbours.

    Several in a row become one token of their joint probability without candidates: together they
    spell a character, as the halves of an emoji do.

    Returns:
        The tokens, which may extend beyond the text; None where they cannot spell it.
    """
    groups = [list(group) for _, group in groupby(tokens, lambda t: UNSPELLABLE in t.text)]
    if not any(UNSPELLABLE in group[0].text for group in groups):
        return list(tokens)
    spelled = text.encode()
    pieces = [_PIECES.findall(b"".join(token.text for token in group)) for group in groups]
    ends = _piece_ends([piece for of_group in pieces for piece in of_group], spelled)
    if ends is None:
        return None
    placed: list[Token] = []
    at = count = 0
    for group, of_group in zip(groups, pieces, strict=True):
        start, count = at, count + len(of_group)
        at = ends[min(count, len(ends)) - 1] if of_group and ends else at
        if UNSPELLABLE not in group[0].text:
            placed += group
        elif at > start:
            top = group[0].top if len(group) == 1 else ()
            nats = sum(token.logprob for token in group)
            placed.append(Token(spelled[start:at], nats, top))
    return placed


def _piece_ends(pieces: Sequence[bytes], spelled: bytes) -> list[int] | None:
    """Return where pieces end that together spell a text, None where they cannot.

    Depth first, the shortest reading of unreported bytes first; no place is tried twice, so the
    work is bounded by pieces times places. Pieces beyond the text get no end.
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
    """Return where a piece may end; an unreported byte is one to three bytes, none ASCII."""
    if not piece.startswith(UNSPELLABLE):
        rest = spelled[at : at + len(piece)]
        return [at + len(piece)] if piece.startswith(rest) else []
    most = min(3 * len(piece), len(spelled) - at)
    stretch = spelled[at : at + most]
    most = next((n for n, byte in enumerate(stretch) if byte < 0x80), most)
    return list(range(at + len(piece), at + most + 1))
