"""The ports: protocols of generators, scorers and batches, with the values they exchange."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p, then min-p.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: most tokens of a completion.
        top_k: candidates kept, 0 keeps all.
        top_p: nucleus mass kept, 1 keeps all.
        stop: texts that end a completion; not part of it.
        top_logprobs: candidates reported for each token.
        min_p: least probability of a candidate as a share of the likeliest one's, at the
            temperature of the draw; 0 keeps all, 1 the likeliest alone.
        include_stop: whether the stop text that ended a completion is its last part, which
            distinguishes it from one that ended by itself.

    Example:
        >>> Sampling(temperature=0.7, max_tokens=96).top_logprobs
        5
    """

    temperature: float = 1.0
    max_tokens: int = 256
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 5
    min_p: float = 0.0
    include_stop: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1 or self.top_k < 0:
            raise ValueError(f"expected temperature, top_k >= 0 and max_tokens >= 1, got {self}")
        if not 0 < self.top_p <= 1 or self.top_logprobs < 0:
            raise ValueError(f"expected 0 < top_p <= 1 and top_logprobs >= 0, got {self}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"expected 0 <= min_p <= 1, got {self}")


@dataclasses.dataclass(frozen=True)
class Fire:
    """Hot tokens that make a set of samples diverse; not for single answers, which get worse.

    Attributes:
        temperature: of the hot tokens.
        top_k: candidates of the hot tokens; this, and not the temperature, keeps them sensible.
        positions: which tokens of a completion are hot, the first by default.

    Example:
        >>> Fire(top_k=16).temperature
        30.0

    Source:
        Chen et al. 2024, arXiv 2410.21236.
    """

    temperature: float = 30.0
    top_k: int = 16
    positions: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 1 or min(self.positions, default=0) < 0:
            raise ValueError(f"expected temperature > 0, top_k >= 1, positions >= 0, got {self}")


@dataclasses.dataclass(frozen=True)
class Request:
    r"""One prompt with the seed of its completion.

    Attributes:
        prompt: the text to complete.
        seed: of the completion's draws.
        completion: the text to score, if any.
        prefix: the beginning of the completion; the generator continues it and does not repeat it.

    Example:
        >>> Request("Q: What is 4 + 4?\n", seed=1).prefix
        ''
    """

    prompt: str
    seed: int = 0
    completion: str | None = None
    prefix: str = ""


_COUNTS = ("prompt_tokens", "completion_tokens")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens that a request took; a count is None if the generator does not report it.

    Attributes:
        prompt_tokens: tokens read, prefix included.
        completion_tokens: tokens drawn, with the one that ended the completion and those cut off
            after a stop text.

    Example:
        >>> Usage(10, 20) + Usage(12, None)
        Usage(prompt_tokens=22, completion_tokens=None)
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@dataclasses.dataclass(frozen=True, eq=False)
class Completion:
    """A generated or scored text; the fields are those of `records.Trace`.

    Log-probabilities are the model's own, in nats at temperature 1 and before any truncation,
    where the generator reports those; candidates are sorted from the likeliest.

    Attributes:
        prompt_tokens, completion_tokens: as of `Usage`.
        behaviour_logprobs: float32 [tokens] nats under the distribution that each token was drawn
            from, NaN where unknown; empty if all are unknown.

    Example:
        >>> from distill.text.completions import assemble
        >>> assemble([], finish_reason="error").text
        ''
    """

    text: str
    tokens: tuple[bytes, ...]
    logprobs: np.ndarray
    top_tokens: tuple[bytes, ...]
    top_logprobs: np.ndarray
    top_ends: np.ndarray
    end_logprob: float
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    behaviour_logprobs: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )

    @property
    def usage(self) -> Usage:
        """The tokens that the completion took."""
        return Usage(self.prompt_tokens, self.completion_tokens)

    def with_usage(self, usage: Usage) -> "Completion":
        """Return the completion with other counts of tokens."""
        counts = (usage.prompt_tokens, usage.completion_tokens)
        return dataclasses.replace(self, prompt_tokens=counts[0], completion_tokens=counts[1])

    def trace_fields(self) -> dict[str, Any]:
        """Return the fields that a `records.Trace` has too; `from_trace` is the inverse."""
        return {name: value for name, value in vars(self).items() if name not in _COUNTS}

    @classmethod
    def from_trace(cls, trace: Any) -> "Completion":
        """Return the completion in a `records.Trace`, without counts of tokens."""
        names = [field.name for field in dataclasses.fields(cls) if field.name not in _COUNTS]
        return cls(**{name: getattr(trace, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Solution:
    """A solution, or its beginning, to be scored.

    Attributes:
        prompt: the generator's input.
        steps: the text in pieces, as `steps.split` cuts it; joined they are the text.
    """

    prompt: str
    steps: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one solution.

    Attributes:
        values: float32 [steps] probability that the solution is, or can still become, right after
            each step; empty where the solution has no step or is longer than the scorer reads.
        tokens: tokens that the scorer read.
    """

    values: np.ndarray
    tokens: int


@runtime_checkable
class Generator(Protocol):
    """Anything that completes prompts: a teacher behind an API, our own models, a replay.

    Example:
        >>> from distill.models.saved import SavedModel
        >>> isinstance(SavedModel("data/models/teacher"), Generator)
        True
    """

    @property
    def model(self) -> str:
        """The generator's name, for manifests."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into requests, completion) in the order in which they finish.

        A completion depends on its request and sampling alone, never on its neighbours.
        """
        ...

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the log-probabilities of each request's own `completion`.

        Raises:
            UserError: the generator cannot score a given text.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Anything that estimates how likely solutions are right: a trained verifier, an endpoint.

    Example:
        >>> from distill.models.scoring import Verifier
        >>> isinstance(Verifier("runs/mine/verifier/process"), Scorer)
        True
    """

    @property
    def model(self) -> str:
        """The scorer's name, for manifests."""
        ...

    def score(self, solutions: Sequence[Solution]) -> Iterator[tuple[int, Scores]]:
        """Yield (index into solutions, scores), each solution's steps in one forward pass.

        Scores depend on the solution alone, never on its neighbours.
        """
        ...


@runtime_checkable
class Batches(Protocol):
    """A trainer's input, addressed by step, so that a resumed run sees the same batches."""

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of optimizer step `step`, counted from 0; leading axis batch."""
        ...
