"""Find out what an OpenAI-compatible endpoint does before a harvest spends money on it."""

import dataclasses
from collections.abc import Awaitable, Callable

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.corpus.completions import Token, tokens_of

Generate = Callable[[Request, Sampling], Awaitable[Completion]]
Score = Callable[[Request], Awaitable[Completion]]

QUESTION = Request("Q: What is 12 + 30?\nLet's think step by step\n", seed=12)
SCORED = dataclasses.replace(QUESTION, completion="12 + 30 = 42.\nThe answer is 42")
TOKENS = 16
# FIRE draws at 30; OpenAI's own endpoints stop at 2.
TEMPERATURES = (1.5, 2.0, 30.0)
# Half-precision servers repeat a log-probability to about this many nats.
SAME_NATS = 0.05


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
        scores: whether it gives the log-probabilities of a given text.
    """

    top_logprobs: int
    tells_bytes: bool
    keeps_seeds: bool
    before_temperature: bool | None
    hottest: float
    takes_top_k: bool
    scores: bool

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
        if scored and not self.scores:
            raise UserError(
                "an endpoint that scores a given text", "one that does not", "sample instead"
            )


async def probe(generate: Generate, score: Score | None, sampling: Sampling) -> Probe:
    """Send some ten short requests and return what they tell.

    Args:
        generate: asks for a completion.
        score: asks for the log-probabilities of a given one; None where there is no way to ask.
        sampling: the harvest's own; the first request is made with it.

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
    scored = await _tried(score(SCORED)) if score else None
    tokens = tokens_of(first)
    spelled = b"".join([*first.tokens, *first.top_tokens])
    return Probe(
        top_logprobs=max((len(token.top) for token in tokens), default=0),
        tells_bytes=bool(tokens) and b"\xff" not in spelled,
        keeps_seeds=first.text == second.text,
        before_temperature=_same(await _tried(generate(QUESTION, one)), hot[TEMPERATURES[0]]),
        hottest=max((t for t, found in hot.items() if found is not None), default=1.0),
        takes_top_k=ranked is not None,
        scores=scored is not None and scored.finish_reason != "error",
    )


async def _tried(asked: Awaitable[Completion]) -> Completion | None:
    try:
        return await asked
    except UserError:
        return None


def _same(cool: Completion | None, hot: Completion | None) -> bool | None:
    """Tell whether the first token's candidates have the same log-probabilities in both."""
    if cool is None or hot is None or not cool.tokens or not hot.tokens:
        return None
    before, after = dict(_first(cool).top), dict(_first(hot).top)
    shared = sorted(before.keys() & after.keys())
    if len(shared) < 2:
        return None
    differences = [abs(before[name] - after[name]) for name in shared]
    return bool(np.max(differences) <= SAME_NATS)


def _first(completion: Completion) -> Token:
    return tokens_of(completion)[0]
