"""FIRE at an endpoint: a hot first token, then a continuation of the prompt and that token.

An endpoint that draws at any temperature among the top k draws the hot token itself. One that caps
the temperature reports its candidates, and the token is drawn here. A client sends the requests.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling, Usage
from distill.text.completions import Token, assemble, cut_at_stop, tokens_of
from tokalign.teacher import UNSPELLABLE

SERVER, CLIENT = "server", "client"
# A first token that may not be hot is drawn again; so many in a row are no accident.
DRAWS = 32
# No known endpoint reports more candidates unless its server was started to do so.
MOST_CANDIDATES = 20
# Half-precision servers repeat a log-probability to about this many nats.
SAME_NATS = 0.05
# An endpoint that draws so many equal tokens does not apply the temperature.
TRIAL_DRAWS = 6


@dataclasses.dataclass(frozen=True)
class FirstToken:
    """The first token of a completion, None where the endpoint reports none, and its cost."""

    token: Token | None
    usage: Usage


@dataclasses.dataclass(frozen=True)
class HotToken:
    """A hot first token.

    Attributes:
        token: with the log-probability and candidates of temperature 1.
        behaviour_logprob: nats under the distribution that it was drawn from, NaN where unknown.
        usage: of the request that brought it, None for a draw without one.
    """

    token: Token
    behaviour_logprob: float
    usage: Usage | None = None


@dataclasses.dataclass(frozen=True)
class FireMethod:
    """How hot tokens are drawn at an endpoint.

    Attributes:
        fire: temperature and top_k of the hot tokens.
        drawn_by: SERVER or CLIENT.
        candidates: most candidates that the endpoint reports for a token.
    """

    fire: Fire
    drawn_by: str
    candidates: int

    def recorded(self) -> Mapping[str, Any]:
        """Return the fields that a probe records; the rest are settings of the run."""
        return {"drawn_by": self.drawn_by, "candidates": self.candidates}

    def first_token_sampling(self, sampling: Sampling) -> Sampling:
        """Return the sampling that asks for a first token alone.

        One candidate more than k makes up for an end among them, where the draw is ours.
        """
        hot = self.drawn_by == SERVER
        top_k = self.fire.top_k
        candidates = max(top_k if hot else top_k + 1, sampling.top_logprobs)
        return dataclasses.replace(
            sampling,
            temperature=self.fire.temperature if hot else 1.0,
            top_k=top_k if hot else 0,
            top_p=1.0,
            min_p=0.0,
            max_tokens=1,
            stop=(),
            include_stop=False,
            top_logprobs=min(candidates, self.candidates),
        )


class TokenClient(Protocol):
    """A client that can ask for a first token alone."""

    async def first(self, request: Request, sampling: Sampling) -> FirstToken:
        """Return the first token of a request's completion, with its candidates."""
        ...


class FireClient(TokenClient, Protocol):
    """A client that can also ask for a whole completion."""

    async def generate(self, request: Request, sampling: Sampling) -> Completion:
        """Return a request's completion, without a hot token."""
        ...


def hot_seed(seed: int, attempt: int) -> int:
    """Return the seed of a hot draw, 31 bits that differ from those of the continuation.

    Example:
        >>> hot_seed(7, 0) == hot_seed(7, 0), hot_seed(7, 0) == hot_seed(7, 1)
        (True, False)
    """
    return seeds.from_names(seed, "hot", attempt)


# --- The draw ----------------------------------------------------------------------------------


def draw(candidates: Sequence[tuple[bytes, float]], fire: Fire, uniform: float) -> HotToken:
    """Draw a hot token among the likeliest candidates that may be hot.

    Args:
        candidates: bytes and nats at temperature 1, likeliest first; an end is b"".
        fire: temperature and top_k; there may be fewer candidates.
        uniform: in [0, 1), the only randomness.

    Returns:
        The token without candidates.

    Raises:
        ValueError: no candidate may be hot.

    Example:
        >>> draw([(b"", -0.1), (b" I", -3.0), (b" He", -3.0)], Fire(), 0.75).token.text
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
    return HotToken(Token(*allowed[place]), float(nats[place]))


def may_be_hot(text: bytes) -> bool:
    r"""Return whether a token can begin a completion and be sent back as text.

    An end cannot; a part of a character could not be sent.

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


async def draw_hot_token(
    client: TokenClient, request: Request, sampling: Sampling, method: FireMethod
) -> HotToken | None:
    """Return a hot first token, None where DRAWS requests brought none that may be hot.

    Where the endpoint draws, an end or a part of a character is drawn again, which leaves the
    others' shares as they are; its top k includes such tokens, ours does not.

    Args:
        client: sends the requests.
        request: what is completed.
        sampling: of the regular tokens; only its number of candidates matters here.
        method: how the endpoint draws.
    """
    for attempt in range(DRAWS):
        seeded = dataclasses.replace(request, seed=hot_seed(request.seed, attempt))
        first = await client.first(seeded, method.first_token_sampling(sampling))
        if hot := _hot(first, seeded.seed, sampling, method):
            return hot
    return None


def _hot(first: FirstToken, seed: int, sampling: Sampling, method: FireMethod) -> HotToken | None:
    """Return the hot token that an endpoint drew or reported candidates for, if it may be hot."""
    token, fire = first.token, method.fire
    if token is None:
        return None
    top = token.top[: method.first_token_sampling(sampling).top_logprobs]
    kept = top[: sampling.top_logprobs]
    if method.drawn_by == SERVER and may_be_hot(token.text):
        behaviour = _behaviour_logprob(token.text, top, fire)
        return HotToken(token._replace(top=kept), behaviour, first.usage)
    if method.drawn_by == CLIENT and any(may_be_hot(text) for text, _ in top):
        hot = draw(top, fire, random.Random(seed).random())
        return HotToken(hot.token._replace(top=kept), hot.behaviour_logprob, first.usage)
    return None


def _behaviour_logprob(text: bytes, top: Sequence[tuple[bytes, float]], fire: Fire) -> float:
    """Return the nats of a token that the endpoint drew, NaN with fewer candidates than k."""
    ranked = top[: fire.top_k]
    allowed = {name: nats / fire.temperature for name, nats in ranked if may_be_hot(name)}
    if len(ranked) < fire.top_k or text not in allowed:
        return float("nan")
    return allowed[text] - float(np.logaddexp.reduce(list(allowed.values())))


# --- The completion ----------------------------------------------------------------------------


async def generate_with_fire(
    client: FireClient, request: Request, sampling: Sampling, method: FireMethod
) -> Completion:
    """Return a completion whose first token is hot, by two requests.

    The endpoint reads the hot token as text, so it may cut it into other tokens; a stop text that
    straddles the hot token and its continuation is found here.

    Args:
        client: sends the requests.
        request: what is completed.
        sampling: of the regular tokens.
        method: how the endpoint draws.
    """
    hot = await draw_hot_token(client, request, sampling, method)
    if hot is None:
        return assemble([], finish_reason="error")
    text = hot.token.text.decode()
    if sampling.max_tokens == 1 or any(stop in text for stop in sampling.stop):
        rest = assemble([], finish_reason="length").with_usage(Usage(0, 0))
    else:
        continued = dataclasses.replace(request, prefix=request.prefix + text)
        shorter = dataclasses.replace(sampling, max_tokens=sampling.max_tokens - 1)
        rest = await client.generate(continued, shorter)
    return cut_at_stop(join(hot, rest), sampling)


def join(hot: HotToken, rest: Completion) -> Completion:
    """Return the completion of a hot token and its continuation, with the usage of both."""
    usage = (hot.usage or Usage()) + rest.usage
    if rest.text and not rest.tokens:
        text = hot.token.text.decode() + rest.text
        return dataclasses.replace(rest, text=text).with_usage(usage)
    tokens = [hot.token, *tokens_of(rest)]
    behaviour = np.full(len(tokens), np.nan, np.float32)
    behaviour[0] = hot.behaviour_logprob
    reason, end = rest.finish_reason, rest.end_logprob
    whole = assemble(tokens, finish_reason=reason, end_logprob=end)
    return dataclasses.replace(whole, behaviour_logprobs=behaviour).with_usage(usage)


# --- The method --------------------------------------------------------------------------------


async def find_method(
    client: TokenClient,
    request: Request,
    sampling: Sampling,
    fire: Fire,
    *,
    drawn_by: str | None = None,
) -> FireMethod:
    """Find out how an endpoint draws hot tokens, by some ten requests of one token.

    It draws itself if it accepts the temperature and `top_k`, if its tokens then differ and stay
    among its k likeliest as far as it reports them, and if its log-probabilities stay those of
    temperature 1. Otherwise it is asked for candidates.

    Args:
        client: sends the requests.
        request: any prompt.
        sampling: of the regular tokens.
        fire: temperature and top_k.
        drawn_by: SERVER or CLIENT where the user decides; None takes the server's draw if it works.

    Raises:
        UserError: neither works, or the user's choice does not.
    """
    cool = await _with_most_candidates(client, request, sampling, fire)
    if cool is None or len(cool.top) < 2:
        raise UserError(
            "an endpoint that draws hot tokens or reports candidates to draw them from",
            "one that does neither",
            "harvest without fire, or use another endpoint",
        )
    by_server = FireMethod(fire, SERVER, len(cool.top))
    by_client = FireMethod(fire, CLIENT, len(cool.top))
    if drawn_by == CLIENT:
        return by_client
    draws = await _server_draws(client, request, sampling, by_server, cool)
    if drawn_by == SERVER and not draws:
        raise UserError(
            f"an endpoint that draws at temperature {fire.temperature:g} among {fire.top_k}",
            "one that does not",
            "leave hot_by to the probe",
        )
    return by_server if draws else by_client


async def _with_most_candidates(
    client: TokenClient, request: Request, sampling: Sampling, fire: Fire
) -> Token | None:
    """Return the first token with as many candidates as can be had, up to one more than k."""
    counts = {min(fire.top_k + 1, MOST_CANDIDATES), 5, sampling.top_logprobs}
    for count in sorted(counts, reverse=True):
        one = FireMethod(fire, CLIENT, count).first_token_sampling(sampling)
        token = await _first_or_none(client, request, one)
        if token is not None and token.top:
            return token._replace(top=token.top[:count])
    return None


async def _server_draws(
    client: TokenClient, request: Request, sampling: Sampling, method: FireMethod, cool: Token
) -> bool:
    """Return whether the endpoint's own draws are hot and its log-probabilities are not."""
    one = method.first_token_sampling(sampling)
    texts: set[bytes] = set()
    for attempt in range(TRIAL_DRAWS):
        seeded = dataclasses.replace(request, seed=hot_seed(request.seed, attempt))
        token = await _first_or_none(client, seeded, one)
        if token is not None and not token.text:
            continue  # An end shows nothing about the draw.
        if token is None or not same_logprobs(cool.top, token.top):
            return False
        texts.add(token.text)
    top_k = method.fire.top_k
    likeliest = {text for text, _ in cool.top[:top_k]}
    return len(texts) > 1 and (len(cool.top) < top_k or texts <= likeliest)


async def _first_or_none(client: TokenClient, request: Request, sampling: Sampling) -> Token | None:
    try:
        return (await client.first(request, sampling)).token
    except UserError:
        return None


def same_logprobs(
    one: Sequence[tuple[bytes, float]], other: Sequence[tuple[bytes, float]]
) -> bool | None:
    """Return whether the candidates that two lists share agree; None if they share under two."""
    before, after = dict(one), dict(other)
    shared = before.keys() & after.keys()
    if len(shared) < 2:
        return None
    return max(abs(before[name] - after[name]) for name in shared) <= SAME_NATS
