"""What an answer costs in tokens and FLOPs, party by party, and what a larger model would cost.

The parties are the generator, which draws solutions, the verifier, which scores them, and the
estimate of a question's difficulty. Source: Snell et al. 2024, arXiv 2408.03314, section 7, which
leaves the last two out.
"""

import dataclasses
from collections.abc import Iterable

from distill.core.ports import Completion, Request, Scores
from distill.models.decoder import DecoderConfig
from distill.models.flops import decoding_flops, forward_flops, scoring_flops
from distill.models.scoring import ScoringModel
from distill.models.t5 import T5Config

Config = T5Config | DecoderConfig


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of one party, summed over its requests.

    Attributes:
        requests: completions drawn, or solutions scored.
        read: tokens of prompts, of prefixes and of solutions scored; None where a generator
            does not report it.
        drawn: tokens drawn, including those cut off after a stop text.

    Example:
        >>> Tokens(1, 10, 4) + Tokens(2, 30, 6)
        Tokens(requests=3, read=40, drawn=10)
    """

    requests: int = 0
    read: int | None = 0
    drawn: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        read = None if self.read is None or other.read is None else self.read + other.read
        return Tokens(self.requests + other.requests, read, self.drawn + other.drawn)


def total(tokens: Iterable[Tokens]) -> Tokens:
    """Return the sum; that of an empty iterable is zero."""
    return sum(tokens, Tokens())


@dataclasses.dataclass
class Account:
    """What one question has cost so far.

    Attributes:
        source: tokens of the question's prompt alone; None before a request without prefix.
        generator: its requests and tokens.
        verifier: its requests and tokens.
    """

    source: int | None = None
    generator: Tokens = Tokens()
    verifier: Tokens = Tokens()

    def charge_completion(self, request: Request, completion: Completion) -> None:
        """Charge the generator for a completion."""
        if not request.prefix:
            self.source = completion.prompt_tokens
        self.generator += Tokens(1, completion.prompt_tokens, tokens_drawn(completion))

    def charge_scores(self, scores: Scores) -> None:
        """Charge the verifier for a solution."""
        self.verifier += Tokens(1, scores.tokens)


def tokens_drawn(completion: Completion) -> int:
    """Return the reported tokens of a completion, or the length of `tokens` without a report."""
    if completion.completion_tokens is not None:
        return completion.completion_tokens
    return len(completion.tokens)


# --- FLOPs -------------------------------------------------------------------------------------


def generator_flops(config: Config, tokens: Tokens, source: int) -> int | None:
    """Return the FLOPs of drawing, each request at the mean length of all, none batched.

    Args:
        config: the generator's shape.
        tokens: of all its requests.
        source: tokens of the prompt, which an encoder-decoder reads in its encoder; prefixes are
            read by the decoder.

    Returns:
        FLOPs; None where the tokens read are not known.
    """
    if tokens.read is None:
        return None
    if not tokens.requests:
        return 0
    target = round((tokens.read + tokens.drawn) / tokens.requests) - source
    return tokens.requests * decoding_flops(config, source, target)


def verifier_flops(model: ScoringModel, tokens: Tokens, source: int) -> int | None:
    """Return the FLOPs of scoring, one pass a solution, each at the mean length of all."""
    if tokens.read is None:
        return None
    if not tokens.requests:
        return 0
    target = max(round(tokens.read / tokens.requests) - source, 0)
    return tokens.requests * scoring_flops(model, source, target)


def encoder_flops(config: T5Config, source: int) -> int:
    """Return the FLOPs of one encoder pass over a prompt of `source` tokens."""
    return forward_flops(config, source, 0)


# --- A larger model instead --------------------------------------------------------------------


def matched_samples(larger: float, ratio: float) -> float:
    r"""Return the samples of a model that cost as much as one greedy sample of a larger model.

    Training costs 6 N D_pre, inference 2 N D_inf. A model `larger` times as large costs that many
    times both; the smaller may spend the difference on inference:

    .. math:: M + 3 (M - 1) / R,  R = D_{inf} / D_{pre}

    Args:
        larger: M, how many times the larger model's FLOPs a token are the smaller's.
        ratio: R, tokens of inference for each token of pretraining.

    Returns:
        Samples of the smaller model for one of the larger.

    Raises:
        ValueError: the model is no larger, or the ratio is not above 0.

    Example:
        >>> round(matched_samples(14, 0.16), 2), round(matched_samples(14, 22), 2)
        (257.75, 15.77)
    """
    if larger < 1 or ratio <= 0:
        raise ValueError(f"expected larger >= 1 and ratio > 0, got {larger} and {ratio}")
    return larger + 3 * (larger - 1) / ratio


def matched_ratio(samples: float, larger: float) -> float:
    """Return R at which `samples` of the smaller model cost what one of the larger costs.

    Args:
        samples: k, more than `larger`.
        larger: M, as of `matched_samples`, whose inverse this is.

    Raises:
        ValueError: with so few samples the smaller model is cheaper at every R.

    Example:
        >>> matched_ratio(64, 14)
        0.78
    """
    if not 1 <= larger < samples:
        raise ValueError(f"expected 1 <= larger < samples, got {larger} and {samples}")
    return 3 * (larger - 1) / (samples - larger)
