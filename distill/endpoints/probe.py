"""Find out what an OpenAI-compatible endpoint does before a harvest spends money on it."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.fire import may_be_hot, same_nats
from distill.text.completions import tokens_of

Generate = Callable[[Request, Sampling], Awaitable[Completion]]
Score = Callable[[Request, str], Awaitable[Completion]]
# How a text can be scored: the legacy API's echo, or vLLM's log-probabilities of a prompt.
SCORINGS = ("echo", "prompt_logprobs")

QUESTION = Request("Q: What is 12 + 30?\nLet's think step by step\n", seed=12)
SCORED = dataclasses.replace(QUESTION, completion="12 + 30 = 42.\nThe answer is 42")
TOKENS = 16
# FIRE draws at 30; OpenAI's own endpoints stop at 2.
TEMPERATURES = (1.5, 2.0, 30.0)


@dataclasses.dataclass(frozen=True)
class Probe:
    """What an endpoint was found to do.

    Attributes:
        top_logprobs: most candidates that a token got of those asked for.
        tells_bytes: whether every token and candidate could be spelled.
        keeps_seeds: whether the same request gave the same text twice; False at temperature 0 too
            where it did not.
        before_temperature: whether log-probabilities are the model's own at any temperature; None
            where that could not be told.
        hottest: highest temperature of TEMPERATURES that it takes, 1 where none.
        takes_top_k: whether it takes `top_k`, which OpenAI's own endpoints do not.
        scores: how it gives the log-probabilities of a given text, one of SCORINGS; None where it
            does not.
        continues: whether it goes on from how a completion begins.
        fire: how hot tokens are drawn, as of `fire.Way`; None where none are asked for.
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


async def probe(generate: Generate, score: Score, sampling: Sampling, *, chat: bool) -> Probe:
    """Send some ten short requests and return what they tell, but for hot tokens.

    Args:
        generate: asks for a completion.
        score: asks for the log-probabilities of a given one in one of SCORINGS.
        sampling: the harvest's own; the first request is made with it.
        chat: whether the API may begin a completion anew where it should go on; a prompt of the
            legacy API ends in the prefix, so there is no doubt.

    Raises:
        UserError: the first request is refused or its answer has no log-probabilities.
    """
    short = dataclasses.replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens))
    first, second = await generate(QUESTION, short), await generate(QUESTION, short)
    one = dataclasses.replace(short, max_tokens=1, temperature=1.0, stop=())
    hot = {
        temperature: await _tried(
            generate(QUESTION, dataclasses.replace(one, temperature=temperature))
        )
        for temperature in TEMPERATURES
    }
    ranked = await _tried(generate(QUESTION, dataclasses.replace(one, top_k=5)))
    tokens = tokens_of(first)
    spelled = b"".join([*first.tokens, *first.top_tokens])
    return Probe(
        top_logprobs=max((len(token.top) for token in tokens), default=0),
        tells_bytes=bool(tokens) and b"\xff" not in spelled,
        keeps_seeds=first.text == second.text,
        before_temperature=_same(await _tried(generate(QUESTION, one)), hot[TEMPERATURES[0]]),
        hottest=max((t for t, found in hot.items() if found is not None), default=1.0),
        takes_top_k=ranked is not None,
        scores=await scoring(score),
        continues=not chat or await continues(generate, sampling),
    )


async def scoring(score: Score) -> str | None:
    """Return the first of SCORINGS by which an endpoint scores a given text, if any."""
    for way in SCORINGS:
        scored = await _tried(score(SCORED, way))
        if scored is not None and scored.finish_reason != "error":
            return way
    return None


async def _tried(asked: Awaitable[Completion]) -> Completion | None:
    try:
        return await asked
    except UserError:
        return None


def _same(cool: Completion | None, hot: Completion | None) -> bool | None:
    """Tell whether the first token's candidates have the same log-probabilities in both."""
    if cool is None or hot is None or not cool.tokens or not hot.tokens:
        return None
    return same_nats(tokens_of(cool)[0].top, tokens_of(hot)[0].top)


async def continues(generate: Generate, sampling: Sampling) -> bool:
    """Return whether an endpoint goes on from how a completion begins, by its own greedy text.

    One that begins anew, as those do that do not know the wish and overlook it, repeats the
    beginning; one that says so refuses.

    Args:
        generate: asks for a completion.
        sampling: the harvest's own.
    """
    greedy = dataclasses.replace(
        sampling, temperature=0.0, max_tokens=TOKENS, stop=(), include_stop=False
    )
    whole = await _tried(generate(QUESTION, greedy))
    if whole is None:
        return False
    for count in range(len(whole.tokens) // 2, 0, -1):
        begun = b"".join(whole.tokens[:count])
        if may_be_hot(begun):
            text = begun.decode()
            rest = await _tried(generate(dataclasses.replace(QUESTION, prefix=text), greedy))
            left = whole.text[len(text) :]
            return rest is not None and bool(rest.text) and _begin_alike(rest.text, left)
    return False


def _begin_alike(one: str, other: str) -> bool:
    length = min(len(one), len(other))
    return bool(length) and one[:length] == other[:length]
