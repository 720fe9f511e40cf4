"""FIRE at an endpoint: a hot first token, then a continuation from prompt and token.

An endpoint that draws at any temperature among the top k draws the hot token itself. One that caps
the temperature tells its candidates, and the token is drawn here. Sends nothing of its own accord.
"""

import dataclasses
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.endpoints.wire import Reported
from distill.text.completions import Token, assemble, cut_at_stop, summed, tokens_of
from tokalign.teacher import UNSPELLABLE

SERVER, CLIENT = "server", "client"
# A first token that may not be hot is drawn again; of so many none is an ordinary accident.
DRAWS = 32
# No endpoint known gives more candidates without being told so at its start.
MOST_CANDIDATES = 20
# Half-precision servers repeat a log-probability to about this many nats.
SAME_NATS = 0.05
# So many hot tokens that are all the same come from an endpoint that is not hot.
TRIED = 6


class First(NamedTuple):
    """What an endpoint tells of a first token, and what the request cost."""

    token: Reported | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Hot(NamedTuple):
    """A hot token, its nats under the distribution that it was drawn from, and the cost."""

    token: Token
    behaviour: float
    prompt_tokens: int | None
    completion_tokens: int | None


class Way(NamedTuple):
    """How an endpoint is asked for hot tokens.

    Attributes:
        drawn_by: SERVER or CLIENT.
        candidates: most that it tells of a token.
    """

    drawn_by: str
    candidates: int


AskFirst = Callable[[Request, Sampling], Awaitable[First]]
Ask = Callable[[Request, Sampling], Awaitable[Completion]]


def hot_seed(seed: int, attempt: int) -> int:
    """Return the seed of a hot draw, 31 bits that differ from those of the continuation.

    Example:
        >>> hot_seed(7, 0) == hot_seed(7, 0), hot_seed(7, 0) == hot_seed(7, 1)
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}\0hot\0{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


# --- The draw ----------------------------------------------------------------------------------


def draw(
    candidates: Sequence[tuple[bytes, float]], fire: Fire, uniform: float
) -> tuple[bytes, float, float]:
    """Draw a hot token among the likeliest candidates that may be hot.

    Args:
        candidates: bytes and nats at temperature 1, likeliest first; an end is b"".
        fire: temperature and top_k; there may be fewer candidates.
        uniform: in [0, 1), the only randomness.

    Returns:
        The token, its own nats, and its nats under the distribution that was drawn from.

    Raises:
        ValueError: no candidate may be hot.

    Example:
        >>> draw([(b"", -0.1), (b" I", -3.0), (b" He", -3.0)], Fire(), 0.75)[0]
        b' He'

    Source:
        Chen et al. 2024, arXiv 2410.21236, algorithm 1; the masks are ours.
    """
    allowed = [pair for pair in candidates if may_be_hot(pair[0])][: fire.top_k]
    if not allowed:
        raise ValueError("expected a candidate that is whole characters, got none")
    nats = np.array([logprob for _, logprob in allowed]) / fire.temperature
    nats -= np.logaddexp.reduce(nats)
    place = min(int(np.searchsorted(np.cumsum(np.exp(nats)), uniform, "right")), len(nats) - 1)
    return *allowed[place], float(nats[place])


def may_be_hot(text: bytes) -> bool:
    r"""Return whether a token can begin a completion and be sent back as text.

    An end cannot; what is no whole characters could not be sent.

    Example:
        >>> may_be_hot(b" She"), may_be_hot(b""), may_be_hot(b"\xf0\x9f")
        (True, False, False)
    """
    if not text or UNSPELLABLE in text:
        return False
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False


async def hot_token(
    ask: AskFirst, request: Request, sampling: Sampling, fire: Fire, way: Way
) -> Hot | None:
    """Return a hot first token, None where DRAWS requests brought none that may be hot.

    Where the endpoint draws, an end and what is no whole characters are drawn again, which leaves
    the others' shares as they are; its top k counts them, ours does not.

    Args:
        ask: returns the first token that the endpoint wrote, with its candidates.
        request: whose first token.
        sampling: of the regular tokens; only its number of candidates matters here.
        fire: temperature and top_k.
        way: how the endpoint is asked.
    """
    one = first_alone(sampling, fire, way)
    kept = sampling.top_logprobs
    for attempt in range(DRAWS):
        seed = hot_seed(request.seed, attempt)
        told, *counts = await ask(dataclasses.replace(request, seed=seed), one)
        if told is None:
            continue
        top = told.top[: one.top_logprobs]
        if way.drawn_by == SERVER and may_be_hot(told.text):
            behaviour = _behaviour(told.text, top, fire)
            return Hot(Token(told.text, told.logprob, top[:kept]), behaviour, *counts)
        if way.drawn_by == CLIENT and any(may_be_hot(text) for text, _ in top):
            text, nats, behaviour = draw(top, fire, random.Random(seed).random())
            return Hot(Token(text, nats, top[:kept]), behaviour, *counts)
    return None


def first_alone(sampling: Sampling, fire: Fire, way: Way) -> Sampling:
    """Return how the first token alone is asked for.

    One candidate more than k makes up for an end among them, where the draw is ours.
    """
    hot = way.drawn_by == SERVER
    candidates = max(fire.top_k if hot else fire.top_k + 1, sampling.top_logprobs)
    return dataclasses.replace(
        sampling,
        temperature=fire.temperature if hot else 1.0,
        top_k=fire.top_k if hot else 0,
        top_p=1.0,
        min_p=0.0,
        max_tokens=1,
        stop=(),
        include_stop=False,
        top_logprobs=min(candidates, way.candidates),
    )


def _behaviour(text: bytes, top: Sequence[tuple[bytes, float]], fire: Fire) -> float:
    """Return the nats of a token that the endpoint drew, NaN where it told too few candidates."""
    ranked = top[: fire.top_k]
    allowed = {name: nats / fire.temperature for name, nats in ranked if may_be_hot(name)}
    if len(ranked) < fire.top_k or text not in allowed:
        return float("nan")
    return allowed[text] - float(np.logaddexp.reduce(list(allowed.values())))


# --- The completion ----------------------------------------------------------------------------


async def generate_hot(
    ask_first: AskFirst, ask: Ask, request: Request, sampling: Sampling, fire: Fire, way: Way
) -> Completion:
    """Return a completion whose first token is hot, asked for in two requests.

    The endpoint reads the hot token as text, so it may cut it anew; a stop text across the border
    is found here.

    Args:
        ask_first: as of `hot_token`.
        ask: returns a completion.
        request: what is completed.
        sampling: of the regular tokens.
        fire: temperature and top_k.
        way: how the endpoint is asked.
    """
    hot = await hot_token(ask_first, request, sampling, fire, way)
    if hot is None:
        return assemble([], finish_reason="error")
    text = hot.token.text.decode()
    if sampling.max_tokens == 1 or any(stop in text for stop in sampling.stop):
        rest = assemble([], finish_reason="length")
        rest = dataclasses.replace(rest, prompt_tokens=0, completion_tokens=0)
    else:
        going_on = dataclasses.replace(request, prefix=request.prefix + text)
        shorter = dataclasses.replace(sampling, max_tokens=sampling.max_tokens - 1)
        rest = await ask(going_on, shorter)
    return cut_at_stop(joined(hot, rest), sampling)


def joined(hot: Hot, rest: Completion) -> Completion:
    """Return the completion that a hot token and its continuation make, with the cost of both."""
    counts = {
        "prompt_tokens": summed((hot.prompt_tokens, rest.prompt_tokens)),
        "completion_tokens": summed((hot.completion_tokens, rest.completion_tokens)),
    }
    if rest.text and not rest.tokens:
        return dataclasses.replace(rest, text=hot.token.text.decode() + rest.text, **counts)
    tokens = [hot.token, *tokens_of(rest)]
    behaviour = np.full(len(tokens), np.nan, np.float32)
    behaviour[0] = hot.behaviour
    reason, end = rest.finish_reason, rest.end_logprob
    whole = assemble(tokens, finish_reason=reason, end_logprob=end)
    return dataclasses.replace(whole, behaviour_logprobs=behaviour, **counts)


# --- The way -----------------------------------------------------------------------------------


async def way_of(
    ask: AskFirst, request: Request, sampling: Sampling, fire: Fire, drawn_by: str | None = None
) -> Way:
    """Find out how an endpoint is asked for hot tokens, by some ten requests of one token.

    It draws itself where it takes the temperature and `top_k`, where its tokens then differ and
    stay among its k likeliest as far as it tells them, and where its log-probabilities stay those
    of temperature 1. Otherwise it is asked for candidates.

    Args:
        ask: as of `hot_token`.
        request: what to try it with.
        sampling: of the regular tokens.
        fire: temperature and top_k.
        drawn_by: SERVER or CLIENT where the user decides; None decides by what is found.

    Raises:
        UserError: it can do neither, or not what the user wants.
    """
    told = await _most_candidates(ask, request, sampling, fire)
    if told is None or len(told.top) < 2:
        raise UserError(
            "an endpoint that draws hot tokens or tells candidates to draw them from",
            "one that does neither",
            "harvest without fire, or use another endpoint",
        )
    if drawn_by == CLIENT:
        return Way(CLIENT, len(told.top))
    hot = await _draws_hot(ask, request, sampling, fire, told)
    if drawn_by == SERVER and not hot:
        raise UserError(
            f"an endpoint that draws at temperature {fire.temperature:g} among {fire.top_k}",
            "one that does not",
            "leave hot_by to the probe",
        )
    return Way(SERVER if hot else CLIENT, len(told.top))


async def _most_candidates(
    ask: AskFirst, request: Request, sampling: Sampling, fire: Fire
) -> Reported | None:
    """Return the first token with as many candidates as can be had, up to one more than k."""
    wanted = (min(fire.top_k + 1, MOST_CANDIDATES), 5, sampling.top_logprobs)
    for count in sorted({*wanted}, reverse=True):
        one = first_alone(sampling, fire, Way(CLIENT, count))
        told = await _tried(ask, request, one)
        if told is not None and told.top:
            return told._replace(top=told.top[:count])
    return None


async def _draws_hot(
    ask: AskFirst, request: Request, sampling: Sampling, fire: Fire, cool: Reported
) -> bool:
    one = first_alone(sampling, fire, Way(SERVER, len(cool.top)))
    drawn: set[bytes] = set()
    for attempt in range(TRIED):
        seeded = dataclasses.replace(request, seed=hot_seed(request.seed, attempt))
        told = await _tried(ask, seeded, one)
        if told is not None and not told.text:
            continue  # An end tells no more.
        if told is None or not same_nats(cool.top, told.top):
            return False
        drawn.add(told.text)
    known = {text for text, _ in cool.top[: fire.top_k]}
    return len(drawn) > 1 and (len(cool.top) < fire.top_k or drawn <= known)


async def _tried(ask: AskFirst, request: Request, sampling: Sampling) -> Reported | None:
    try:
        return (await ask(request, sampling)).token
    except UserError:
        return None


def same_nats(
    one: Sequence[tuple[bytes, float]], other: Sequence[tuple[bytes, float]]
) -> bool | None:
    """Tell whether two lists of candidates agree where they share some; None where under two."""
    before, after = dict(one), dict(other)
    shared = before.keys() & after.keys()
    if len(shared) < 2:
        return None
    return max(abs(before[name] - after[name]) for name in shared) <= SAME_NATS
