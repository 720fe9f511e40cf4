"""The interface of a strategy, which spends a budget on questions, and what strategies share.

A strategy sees questions, never gold answers. What it draws depends on the question, the budget and
the seed alone: every request has a seed of its own, derived from the question and the request's
place, so that batching does not change the draws.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Sampling, Scorer, Solution
from distill.test_time import vote
from distill.test_time.ledger import Account, Tokens
from distill.text import answers, steps

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Question:
    r"""A question: its id, from which seeds are derived, and the generator's prompt.

    Example:
        >>> Question("mine/1", "Q: What is 4 + 4?\n").problem_id
        'mine/1'
    """

    problem_id: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of a strategy.

    Attributes:
        generator: draws solutions.
        scorer: the verifier; None where there is none.
        sampling: how a solution is drawn; `max_tokens` is that of the whole solution, and the
            strategy sets the stop texts.

    Example:
        >>> from distill.models.saved import SavedModel
        >>> Models(SavedModel("data/models/student_instructed")).scorer is None
        True
    """

    generator: Generator
    scorer: Scorer | None = None
    sampling: Sampling = dataclasses.field(default=Sampling(top_logprobs=0))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A solution among which an election chooses.

    Attributes:
        text: the solution.
        answer: its final answer; None where it has none or did not end.
        score: the verifier's after the last step; None where it was not scored.
        chain: which of several chains it is of.
    """

    text: str
    answer: str | None
    score: float | None = None
    chain: int = 0

    @property
    def key(self) -> str | None:
        """The canonical answer that it votes for."""
        return None if self.answer is None else answers.canonical(self.answer)


@dataclasses.dataclass(frozen=True)
class Solved:
    """The result of a strategy on a question.

    Attributes:
        problem_id: the question's.
        candidates: all solutions in the pool at the end, in order.
        answer: the elected answer; None where no candidate has an answer.
        charged: units of the budget used, one for a solution drawn from start to end.
        source: tokens of the prompt alone; None where the generator does not report it.
        generator: tokens that the generator read and drew.
        verifier: tokens that the scorer read.
    """

    problem_id: str
    candidates: tuple[Candidate, ...]
    answer: str | None
    charged: int
    source: int | None
    generator: Tokens
    verifier: Tokens


class Strategy(Protocol):
    """A way to spend a budget of N solutions on each question."""

    @property
    def name(self) -> str:
        """The name in records and tables, with the settings."""
        ...

    @property
    def least(self) -> int:
        """The smallest budget that the strategy accepts."""
        ...

    def solve(
        self, questions: Sequence[Question], budget: int, models: Models, *, seed: int = 0
    ) -> list[Solved]:
        """Return the results in the order of the questions; all questions advance together.

        Args:
            questions: with different ids.
            budget: N, at least `least`.
            models: the generator and the verifier.
            seed: of everything drawn.

        Raises:
            UserError: the strategy needs a verifier and there is none, or a model fails.
        """
        ...


def seed_of(seed: int, problem_id: str, round_: int, slot: int) -> int:
    """Return the seed of one request, 31 bits of a hash of the arguments."""
    return seeds.from_names(seed, problem_id, round_, slot)


# --- Choosing among candidates -----------------------------------------------------------------

Election = Callable[[Sequence[Candidate]], Candidate | None]


def weighted(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the best scored candidate of the answer with the highest sum of scores.

    Example:
        >>> weighted([Candidate("a", "7", 0.3), Candidate("b", "8", 0.5), Candidate("c", "7", 0.4)])
        Candidate(text='c', answer='7', score=0.4, chain=0)

    Source: Li et al. 2022 (DIVERSE), equation 2.
    """
    return _elected(candidates, lambda candidate: candidate.score or 0.0)


def majority(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the first candidate, or the best scored, of the answer given most often."""
    return _elected(candidates, lambda candidate: 1.0)


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the highest score among those with an answer, the first of equals.

    Example:
        >>> best([Candidate("a", "7", 0.3), Candidate("b", "8", 0.5)]).answer
        '8'
    """
    answered = (candidate for candidate in candidates if candidate.answer is not None)
    return max(answered, key=lambda candidate: candidate.score or 0.0, default=None)


def _elected(
    candidates: Sequence[Candidate], weight: Callable[[Candidate], float]
) -> Candidate | None:
    key = vote.elected([c.key for c in candidates], [weight(c) for c in candidates])
    return best([c for c in candidates if c.key == key]) if key is not None else None


# --- Drawing and scoring -----------------------------------------------------------------------

Accounts = dict[str, Account]


def draw(
    models: Models, requests: Sequence[tuple[str, Request]], sampling: Sampling, accounts: Accounts
) -> list[Completion]:
    """Return the completions in the order of the requests, charged to their questions.

    Args:
        models: its generator draws.
        requests: pairs of a question's id and a request.
        sampling: how they are drawn.
        accounts: of the questions, which are charged.
    """
    completions: list[Completion | None] = [None] * len(requests)
    for index, completion in models.generator.generate([r for _, r in requests], sampling):
        problem_id, request = requests[index]
        accounts[problem_id].charge_completion(request, completion)
        completions[index] = completion
    return [_require(completion, models) for completion in completions]


def _require(completion: Completion | None, models: Models) -> Completion:
    if completion is None:
        raise UserError(
            f"a completion of every request from {models.generator.model}", "fewer", "ask again"
        )
    return completion


def score(
    models: Models, texts: Iterable[tuple[Question, str]], accounts: Accounts
) -> dict[tuple[str, str], float]:
    """Return the verifier's last value by (problem_id, text); equal texts are scored once.

    Raises:
        UserError: there is no verifier.
    """
    if models.scorer is None:
        raise UserError("a verifier", "none", "give one, or use a strategy that needs none")
    distinct = list(dict.fromkeys(texts))
    solutions = [Solution(question.prompt, steps.split(text)) for question, text in distinct]
    last_values = {}
    for index, scores in models.scorer.score(solutions):
        question, text = distinct[index]
        accounts[question.problem_id].charge_scores(scores)
        value = float(scores.values[-1]) if len(scores.values) else 0.0
        last_values[question.problem_id, text] = value
    return last_values


def answer_of(text: str, *, whole: bool) -> str | None:
    """Return a solution's final answer; None where the solution did not end."""
    return answers.extract(text) if whole else None


def result(
    question: Question,
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    charged: int,
    account: Account,
) -> Solved:
    """Return the result of a strategy on a question, with the counts of its account."""
    answer = chosen.answer if chosen else None
    return Solved(
        question.problem_id,
        tuple(candidates),
        answer,
        charged,
        account.source,
        account.generator,
        account.verifier,
    )


def open_accounts(questions: Sequence[Question]) -> Accounts:
    """Return an empty account for each question.

    Raises:
        ValueError: two questions have one id.
    """
    accounts = {question.problem_id: Account() for question in questions}
    if len(accounts) != len(questions):
        raise ValueError(f"expected questions of different ids, got {len(accounts)} ids")
    return accounts


def chunks(values: Sequence[Key], size: int) -> Iterator[Sequence[Key]]:
    """Yield consecutive pieces of at most `size` values."""
    for first in range(0, len(values), size):
        yield values[first : first + size]
