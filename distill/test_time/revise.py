"""Chains of revisions as a way to spend compute: each attempt is written with four in view.

    budget N, chains of L     N / L chains side by side, each of L attempts one after another
    L = 1                     parallel: no attempt is in the prompt of another
    L = N                     sequential: one chain

Revisions spoil about as many right attempts as they mend wrong ones, so the answer is always chosen
among all attempts: by the verifier, first within each chain and then among
the chains' winners, or by one flat majority.

Source: Snell et al. 2024, arXiv 2408.03314, section 6.
"""

import dataclasses
from collections.abc import Callable, Sequence

from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Scorer, Solution
from distill.test_time import strategy
from distill.test_time.revisions import revision_prompt
from distill.test_time.strategy import Accounts, Candidate, Models, Question, Solved
from distill.text import steps
from distill.text.completions import cut_after_answer

Choice = Callable[[Sequence[Candidate]], Candidate | None]


def hierarchical(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the weighted vote's winner among the weighted votes' winners within the chains.

    Example:
        >>> rows = [("7", 0.4, 0), ("7", 0.3, 0), ("8", 0.6, 0), ("8", 0.5, 1), ("9", 0.6, 1)]
        >>> hierarchical([Candidate("", a, s, chain) for a, s, chain in rows]).answer
        '9'
    """
    chains: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        chains.setdefault(candidate.chain, []).append(candidate)
    winners = [strategy.weighted(chain) for chain in chains.values()]
    return strategy.weighted([winner for winner in winners if winner is not None])


def flat(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the majority's winner among all attempts, whatever their chain."""
    return strategy.majority(candidates)


@dataclasses.dataclass(frozen=True)
class Revise:
    """Chains of revisions, and a choice among all their attempts.

    Attributes:
        length: L, attempts of a chain; None puts the whole budget into one chain.
        choice: `hierarchical` or `flat`; the latter needs no verifier.
        reviser: writes the attempts; the study's generator where None.
        scorer: scores them with the attempts before them in its prompt; the study's where None.
    """

    length: int | None = None
    choice: Choice = hierarchical
    reviser: Generator | None = None
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"expected a length of at least 1, got {self.length}")

    @property
    def name(self) -> str:
        """`revise-L` and the choice."""
        return f"revise-{self.length or 'all'}-{self.choice.__name__}"

    @property
    def least(self) -> int:
        """One chain."""
        return self.length or 1

    def solve(
        self, questions: Sequence[Question], budget: int, models: Models, *, seed: int = 0
    ) -> list[Solved]:
        """Return the chosen answers; all chains of all questions advance together.

        Raises:
            UserError: the budget is below `least`, or as strategy.Strategy.solve.
        """
        if budget < self.least:
            raise UserError(f"a budget of at least {self.least}", str(budget), "raise it")
        length = self.length or budget
        models = dataclasses.replace(
            models,
            generator=self.reviser or models.generator,
            scorer=self.scorer or models.scorer,
        )
        accounts = strategy.open_accounts(questions)
        chains = draw_chains(questions, budget // length, length, models, accounts, seed=seed)
        unscored: list[float | None] = [None for _ in range(len(chains) * length)]
        scores = unscored if self.choice is flat else _scores(chains, models, accounts)
        by_question: dict[str, list[Candidate]] = {q.problem_id: [] for q in questions}
        places = [(chain, attempt) for chain in chains for attempt in chain.attempts]
        for (chain, attempt), score in zip(places, scores, strict=True):
            answer = strategy.answer_of(attempt.text, whole=attempt.whole)
            candidate = Candidate(attempt.text, answer, score, chain.number)
            by_question[chain.question.problem_id].append(candidate)
        charged = budget // length * length
        return [
            strategy.result(q, of_q, self.choice(of_q), charged, accounts[q.problem_id])
            for q in questions
            for of_q in [by_question[q.problem_id]]
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Attempt:
    """One attempt: its prompt, seed and completion."""

    prompt: str
    seed: int
    completion: Completion

    @property
    def text(self) -> str:
        """The text up to the line that holds the answer."""
        return self.completion.text

    @property
    def whole(self) -> bool:
        """Whether it ended by itself or with its answer."""
        return self.completion.finish_reason == "stop"


@dataclasses.dataclass
class Chain:
    """The attempts of one chain, which grow."""

    question: Question
    number: int
    attempts: list[Attempt] = dataclasses.field(default_factory=list)

    def prompt(self) -> str:
        """Return the prompt of the next attempt: those that did not end are not shown."""
        shown = [attempt.text for attempt in self.attempts if attempt.whole]
        return revision_prompt(self.question.prompt, shown)


def draw_chains(
    questions: Sequence[Question],
    chains: int,
    length: int,
    models: Models,
    accounts: Accounts,
    *,
    seed: int,
) -> list[Chain]:
    """Return the chains of all questions, question by question; they advance together.

    Args:
        questions: with different ids.
        chains: of each question.
        length: attempts of a chain.
        models: its generator writes.
        accounts: charged by question.
        seed: of all draws.
    """
    all_chains = [Chain(question, number) for question in questions for number in range(chains)]
    sampling = dataclasses.replace(models.sampling, stop=(), include_stop=False)
    for round_ in range(length):
        requests = [
            Request(c.prompt(), strategy.seed_of(seed, c.question.problem_id, round_, c.number))
            for c in all_chains
        ]
        by_question = [
            (c.question.problem_id, r) for c, r in zip(all_chains, requests, strict=True)
        ]
        written = strategy.draw(models, by_question, sampling, accounts)
        for chain, request, completion in zip(all_chains, requests, written, strict=True):
            cut = cut_after_answer(completion)
            chain.attempts.append(Attempt(request.prompt, request.seed, cut))
    return all_chains


def _scores(chains: Sequence[Chain], models: Models, accounts: Accounts) -> list[float | None]:
    """Return the verifier's last value of each attempt, read after those before it."""
    if models.scorer is None:
        raise UserError("a verifier", "none", "give one, or choose by `revise.flat`")
    places = [
        (chain.question.problem_id, Solution(a.prompt, steps.split(a.text)))
        for chain in chains
        for a in chain.attempts
    ]
    distinct = list(dict.fromkeys(places))
    last_values: dict[tuple[str, Solution], float] = {}
    for index, scores in models.scorer.score([solution for _, solution in distinct]):
        accounts[distinct[index][0]].charge_scores(scores)
        last_values[distinct[index]] = float(scores.values[-1]) if len(scores.values) else 0.0
    return [last_values[place] for place in places]
