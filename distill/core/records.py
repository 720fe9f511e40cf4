"""The values that stages hand to each other on disk; no behaviour beyond refusing bad input."""

import dataclasses
import math
from typing import Annotated

import numpy as np

# The marks name the column codec of distill.core.store; the comments give shapes.
Int32Vector = Annotated[np.ndarray, "int32"]
UInt8Vector = Annotated[np.ndarray, "uint8"]
Float32Vector = Annotated[np.ndarray, "float32"]
LogprobVector = Annotated[np.ndarray, "logprob"]
Int32Matrix = Annotated[np.ndarray, "int32", 2]
Float32Matrix = Annotated[np.ndarray, "float32", 2]

SPLITS = ("train", "validation", "selection", "report", "test")
FINISH_REASONS = ("stop", "length", "content_filter", "error", "too_long")
OUTCOMES = ("right", "wrong", "undecided", "unparsed", "truncated", "filtered")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its gold answer.

    Attributes:
        problem_id: unique over all sources, `source/split/number`.
        source: the benchmark or built-in family.
        split: one of SPLITS. Held-out sets are cut into a selection and a report half.
        question: the question's text.
        answer: the gold final answer, as text.
        chain: a gold chain of thought ending in the answer, where the source has one.
        tests: setup code and Python asserts that grade a program, if the answer is code.

    Example:
        >>> Problem("mine/1", "mine", "train", "What is 4 + 4?", "8").answer
        '8'
    """

    problem_id: str
    source: str
    split: str
    question: str
    answer: str
    chain: str | None = None
    tests: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"expected a split of {SPLITS}, got {self.split!r}")
        if not self.question.strip() or not self.answer.strip():
            raise ValueError(f"expected a question and an answer, got neither empty: {self}")


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    r"""One text of a generator with the log-probabilities of its tokens.

    The candidates of token t are `top_tokens[top_ends[t - 1] : top_ends[t]]` (0 before the first);
    a source may give fewer than k for a token, and the sampled token need not be among them.

    Attributes:
        problem_id: id of the Problem.
        sample: number of the sample of this problem, from 0.
        prompt: the generator's input.
        text: the generator's output, without the stop string.
        tokens: [T] bytes of each token; together the bytes of `text`.
        logprobs: [T] nats of each token, at temperature 1 if the generator reports those.
        top_tokens: [C] bytes of all candidates, token after token.
        top_logprobs: [C] their nats.
        top_ends: [T] where each token's candidates end.
        end_logprob: nats of stopping after the last token, NaN if not reported.
        finish_reason: one of FINISH_REASONS.
        model: the generator's name.
        seed: the sample's own seed.
        behaviour_logprobs: [T] nats of each token under the distribution that it was drawn from,
            NaN if not reported; empty if the generator reports none.

    Example:
        >>> from distill.core.ports import Sampling
        >>> from distill.models.saved import SavedModel
        >>> from distill.traces.harvest import harvest
        >>> problem = Problem("mine/1", "mine", "train", "What is 4 + 4?", "8")
        >>> teacher = SavedModel("data/models/teacher", batch_size=1)
        >>> (trace,) = harvest([problem], teacher, samples=1, prompt="Q: {}\n".format,
        ...                    sampling=Sampling(max_tokens=32))
        >>> len(trace.logprobs) == len(trace.tokens)
        True
    """

    problem_id: str
    sample: int
    prompt: str
    text: str
    tokens: tuple[bytes, ...]
    logprobs: LogprobVector
    top_tokens: tuple[bytes, ...]
    top_logprobs: LogprobVector
    top_ends: Int32Vector
    end_logprob: float
    finish_reason: str
    model: str
    seed: int
    behaviour_logprobs: LogprobVector = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )

    def __post_init__(self) -> None:
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"expected a reason of {FINISH_REASONS}, got {self.finish_reason!r}")
        if len(self.behaviour_logprobs) not in (0, len(self.tokens)):
            raise ValueError(
                f"expected behaviour of none or {len(self.tokens)} tokens, got "
                f"{len(self.behaviour_logprobs)} in {self.problem_id}"
            )
        if not len(self.tokens) == len(self.logprobs) == len(self.top_ends):
            raise ValueError(
                f"expected as many tokens as log-probabilities and ends, got {len(self.tokens)}, "
                f"{len(self.logprobs)} and {len(self.top_ends)} in {self.problem_id}"
            )
        last = int(self.top_ends[-1]) if len(self.top_ends) else 0
        if not last == len(self.top_tokens) == len(self.top_logprobs):
            raise ValueError(
                f"expected {last} candidates, got {len(self.top_tokens)} tokens and "
                f"{len(self.top_logprobs)} log-probabilities in {self.problem_id}"
            )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of grading one trace, with its reason.

    Attributes:
        problem_id: the trace's problem.
        sample: the trace's sample.
        outcome: one of OUTCOMES.
        answer: the extracted final answer, None if there is none.
        reason: one short sentence.

    Example:
        >>> Verdict("mine/1", 0, "wrong", "6", "gold is 8").outcome
        'wrong'
    """

    problem_id: str
    sample: int
    outcome: str
    answer: str | None
    reason: str

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"expected an outcome of {OUTCOMES}, got {self.outcome!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedTrace:
    """A kept trace in the student's tokens, with the teacher's distributions over them.

    Attributes:
        problem_id: the trace's problem.
        sample: the trace's sample.
        ids: [T] the student's tokens of the text, EOS last.
        top_ids: [T, K] candidates in the student's vocabulary.
        top_probs: [T, K] their probabilities, 0 beyond the last.
        kind: [T] tokalign.Kind of each position.
        lost: [T, 2] mass beyond the teacher's top k, mass the student cannot spell.
    """

    problem_id: str
    sample: int
    ids: Int32Vector
    top_ids: Int32Matrix
    top_probs: Float32Matrix
    kind: UInt8Vector
    lost: Float32Matrix


@dataclasses.dataclass(frozen=True, eq=False)
class PackedExample:
    """Several examples in one row of the trainer's batch; arrays are named by tower as in T5X.

    Segments count from 1 and are 0 on padding; positions restart with each segment.

    Attributes:
        encoder_input_tokens: [source] packed inputs.
        encoder_segment_ids: [source].
        encoder_positions: [source].
        decoder_target_tokens: [length] packed targets, each ending in EOS.
        decoder_input_tokens: [length] targets shifted right within each segment, 0 first.
        decoder_segment_ids: [length].
        decoder_positions: [length].
        decoder_loss_weights: [length] 0 on padding.
        decoder_target_top_ids: [length, k] the teacher's candidates.
        decoder_target_top_probs: [length, k] their probabilities; a one-hot row is a hard target.
    """

    encoder_input_tokens: Int32Vector
    encoder_segment_ids: Int32Vector
    encoder_positions: Int32Vector
    decoder_target_tokens: Int32Vector
    decoder_input_tokens: Int32Vector
    decoder_segment_ids: Int32Vector
    decoder_positions: Int32Vector
    decoder_loss_weights: Float32Vector
    decoder_target_top_ids: Int32Matrix
    decoder_target_top_probs: Float32Matrix


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a checkpoint answered to one problem.

    Attributes:
        step: the checkpoint's optimizer step; 0 is the start.
        problem_id: the problem.
        source: its set.
        split: its split.
        text: the completion.
        outcome: one of OUTCOMES.
        answer: the extracted final answer, None if there is none.
    """

    step: int
    problem_id: str
    source: str
    split: str
    text: str
    outcome: str
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How often the continuations of a solution's beginning end right; `right` of `n`.

    Attributes:
        problem_id: the problem that is solved.
        prefix: the beginning, whole steps as `steps.split` cuts them.
        right: how many of the roll-outs end in the gold answer.
        n: roll-outs made.
        tokens: drawn for them.
    """

    problem_id: str
    prefix: str
    right: int
    n: int
    tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.n or self.n == 0:
            raise ValueError(f"expected 0 <= right <= n and n > 0, got {self.right} of {self.n}")


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """The result of a strategy on one problem at a budget; the last four have an entry a candidate.

    Attributes:
        strategy: its name.
        budget: solutions it was allowed.
        problem_id: the problem.
        answer: the elected answer; None where no candidate has an answer.
        right: whether the answer is right.
        charged: units of the budget that it used.
        source: tokens of the prompt; None where the generator does not report it, as in the counts
            of tokens read.
        policy_requests: completions that the generator drew.
        policy_read: tokens that the generator read.
        policy_drawn: tokens that the generator drew.
        verifier_requests: solutions scored.
        verifier_read: tokens that the scorer read.
        texts: UTF-8 of the solutions.
        answers: UTF-8 of their answers, empty where there is none.
        rights: 1 where the candidate is right.
        scores: of the candidates, NaN where they were not scored.
    """

    strategy: str
    budget: int
    problem_id: str
    answer: str | None
    right: bool
    charged: int
    source: int | None
    policy_requests: int
    policy_read: int | None
    policy_drawn: int
    verifier_requests: int
    verifier_read: int | None
    texts: tuple[bytes, ...]
    answers: tuple[bytes, ...]
    rights: UInt8Vector
    scores: Float32Vector


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Right answers out of n, as a pair until the last moment.

    Example:
        >>> [round(x, 3) for x in Accuracy(8, 10).interval()]
        [0.49, 0.943]
    """

    correct: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n or self.n == 0:
            raise ValueError(
                f"expected 0 <= correct <= n and n > 0, got {self.correct} of {self.n}"
            )

    @property
    def value(self) -> float:
        """The share of right answers."""
        return self.correct / self.n

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the Wilson score interval (Wilson 1927), 95 % by default."""
        p, n = self.value, self.n
        centre = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(self.correct + other.correct, self.n + other.n)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n}"
