"""Probe an OpenAI-compatible endpoint before a harvest spends money on it.

The probe checks behaviour, not just acceptance: some servers accept a field and ignore it.
"""

import dataclasses
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.endpoints.fire import FireClient, FireMethod, find_method, may_be_hot, same_logprobs
from distill.endpoints.shapes import Shape
from distill.text.completions import tokens_of

QUESTION = Request("Q: What is 12 + 30?\nLet's think step by step\n", seed=12)
SCORED = dataclasses.replace(QUESTION, completion="12 + 30 = 42.\nThe answer is 42")
TOKENS = 16
# FIRE draws at 30; OpenAI's own endpoints stop at 2.
TEMPERATURES = (1.5, 2.0, 30.0)


class ProbeClient(FireClient, Protocol):
    """A client whose requests each have a session of their own, so that one may be refused."""

    @property
    def shape(self) -> Shape:
        """Of the endpoint's API."""
        ...

    async def score(
        self, request: Request, top_logprobs: int, *, scoring: str | None = None
    ) -> Completion:
        """Return a request's own completion with its log-probabilities."""
        ...

    async def takes_prefix_field(self) -> bool:
        """Return whether the model's card announces the shape's `prefix_field`."""
        ...


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a client must know of its endpoint before it sends requests.

    Attributes:
        prefix_field: whether the endpoint takes a prefix in a field of its own.
        fire: how hot tokens are drawn, None where none are.
        scoring: how a given text is scored, one of the shape's `scorings`; None where none is.
    """

    prefix_field: bool = False
    fire: FireMethod | None = None
    scoring: str | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """What an endpoint can do, as a harvest's manifest records it.

    Attributes:
        top_logprobs: most candidates that a token got of those asked for.
        tells_bytes: whether every token and candidate could be spelled.
        keeps_seeds: whether the same request gave the same text twice.
        before_temperature: whether log-probabilities are the model's own at any temperature; None
            where two requests shared too few candidates to compare.
        hottest: highest temperature of TEMPERATURES that it accepts, 1 where none.
        takes_top_k: whether it accepts `top_k`, which OpenAI's own endpoints do not.
        scores: how it scores a given text, one of the shape's `scorings`; None where it does not.
        continues: whether it continues a prefix of the completion.
        fire: how hot tokens are drawn, as `fire.FireMethod` records it; None where none are.
        served: the models that answered, with their fingerprints.
    """

    top_logprobs: int
    tells_bytes: bool
    keeps_seeds: bool
    before_temperature: bool | None
    hottest: float
    takes_top_k: bool
    scores: str | None
    continues: bool
    fire: Mapping[str, Any] | None = None
    served: Sequence[str] = ()

    def refuse_unfit(self, sampling: Sampling, *, scored: bool) -> None:
        """Refuse an endpoint that cannot serve a harvest.

        Raises:
            UserError: it gives fewer candidates than asked for, or cannot score and should.
        """
        if self.top_logprobs < sampling.top_logprobs:
            raise UserError(
                f"an endpoint with {sampling.top_logprobs} candidates a token",
                f"at most {self.top_logprobs}",
                "ask for fewer by sampling.top_logprobs, or use another endpoint",
            )
        if scored and self.scores is None:
            raise UserError(
                "an endpoint that scores a given text", "one that does not", "sample instead"
            )


async def probe(client: ProbeClient, sampling: Sampling) -> Probe:
    """Send some ten short requests and return what they show, hot tokens aside.

    Args:
        client: sends the requests.
        sampling: the harvest's own; the first request is made with it.

    Raises:
        UserError: the first request is refused or its answer has no log-probabilities.
    """
    short = dataclasses.replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens))
    first, second = await client.generate(QUESTION, short), await client.generate(QUESTION, short)
    one = dataclasses.replace(short, max_tokens=1, temperature=1.0, stop=())
    hot = {
        temperature: await _or_none(
            client.generate(QUESTION, dataclasses.replace(one, temperature=temperature))
        )
        for temperature in TEMPERATURES
    }
    ranked = await _or_none(client.generate(QUESTION, dataclasses.replace(one, top_k=5)))
    cool = await _or_none(client.generate(QUESTION, one))
    tokens = tokens_of(first)
    spelled = b"".join([*first.tokens, *first.top_tokens])
    return Probe(
        top_logprobs=max((len(token.top) for token in tokens), default=0),
        tells_bytes=bool(tokens) and b"\xff" not in spelled,
        keeps_seeds=first.text == second.text,
        before_temperature=_same_first_logprobs(cool, hot[TEMPERATURES[0]]),
        hottest=max((t for t, completion in hot.items() if completion is not None), default=1.0),
        takes_top_k=ranked is not None,
        scores=await first_scoring(client, sampling.top_logprobs),
        continues=await continues(client, sampling),
    )


# --- Capabilities ------------------------------------------------------------------------------


async def find_capabilities(
    client: ProbeClient, sampling: Sampling, fire: Fire | None, *, hot_by: str | None
) -> Capabilities:
    """Find out what completions with a prefix, and with a hot token where `fire` is given, need.

    Raises:
        UserError: the endpoint cannot do it.
    """
    refuse_restarts(await continues(client, sampling))
    prefix_field = await client.takes_prefix_field()
    if fire is None:
        return Capabilities(prefix_field)
    method = await find_method(client, QUESTION, sampling, fire, drawn_by=hot_by)
    return Capabilities(prefix_field, method)


async def find_scoring(client: ProbeClient, top_logprobs: int) -> Capabilities:
    """Find out how given texts are scored.

    Raises:
        UserError: they cannot be.
    """
    scoring = await first_scoring(client, top_logprobs)
    if scoring is None:
        raise UserError(
            f"an endpoint that scores a given text, by {' or '.join(client.shape.scorings)}",
            "one that does not",
            "sample instead, or use kind completions or another endpoint",
        )
    return Capabilities(scoring=scoring)


async def first_scoring(client: ProbeClient, top_logprobs: int) -> str | None:
    """Return the first of the shape's ways by which the endpoint scores a text, if any."""
    for scoring in client.shape.scorings:
        scored = await _or_none(client.score(SCORED, top_logprobs, scoring=scoring))
        if scored is not None and scored.finish_reason != "error":
            return scoring
    return None


def refuse_restarts(continued: bool) -> None:
    """Refuse an endpoint that does not continue a prefix.

    Raises:
        UserError: it refuses to, or begins the completion anew.
    """
    if not continued:
        raise UserError(
            "an endpoint that continues the prefix of a completion",
            "one that refuses to, or begins anew",
            "use kind completions, or a server that supports continue_final_message",
        )


async def continues(client: ProbeClient, sampling: Sampling) -> bool:
    """Return whether an endpoint continues a prefix of its own greedy text with the same text.

    A server that ignores the wish begins anew; one that knows it but cannot refuses. Where the
    shape puts the prefix at the end of the prompt, nothing is sent.

    Args:
        client: sends the requests.
        sampling: the harvest's own.
    """
    if not client.shape.may_restart:
        return True
    greedy = dataclasses.replace(
        sampling, temperature=0.0, max_tokens=TOKENS, stop=(), include_stop=False
    )
    whole = await _or_none(client.generate(QUESTION, greedy))
    if whole is None:
        return False
    for count in range(len(whole.tokens) // 2, 0, -1):
        prefix = b"".join(whole.tokens[:count])
        if may_be_hot(prefix):
            text = prefix.decode()
            rest = await _or_none(
                client.generate(dataclasses.replace(QUESTION, prefix=text), greedy)
            )
            expected = whole.text[len(text) :]
            return rest is not None and bool(rest.text) and _begin_alike(rest.text, expected)
    return False


async def _or_none(completion: Awaitable[Completion]) -> Completion | None:
    try:
        return await completion
    except UserError:
        return None


def _same_first_logprobs(cool: Completion | None, hot: Completion | None) -> bool | None:
    """Return whether the first token's candidates have the same log-probabilities in both."""
    if cool is None or hot is None or not cool.tokens or not hot.tokens:
        return None
    return same_logprobs(tokens_of(cool)[0].top, tokens_of(hot)[0].top)


def _begin_alike(one: str, other: str) -> bool:
    length = min(len(one), len(other))
    return bool(length) and one[:length] == other[:length]
