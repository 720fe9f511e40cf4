"""A study's records, and the accuracy and cost of each strategy on each question as arrays."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from distill.core.records import Answered, Problem
from distill.models.scoring import ScoringModel
from distill.test_time import ledger, vote
from distill.test_time.ledger import Account, Config, Tokens
from distill.test_time.strategy import Solved
from distill.text import answers

# Names of records that belong to no strategy.
DIFFICULTY, SAMPLES, GREEDY = "difficulty", "samples", "greedy"
BASELINE = "best_of-weighted"
TOKENS = ("policy_read", "policy_drawn", "verifier_read")

# Expected accuracy of k of the samples, and whether the verifier scores them.
Measure = Callable[[vote.Samples, int], float]


def _weighted(samples: vote.Samples, k: int) -> float:
    return vote.weighted(samples, k, np.random.default_rng(k))[0]


VOTES: dict[str, tuple[Measure, bool]] = {
    BASELINE: (_weighted, True),
    "best_of-best": (vote.best, True),
    "best_of-majority": (vote.majority, False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """The shapes of the models, by which FLOPs are counted; None where unknown."""

    generator: Config | None
    verifier: ScoringModel | None
    larger: Mapping[str, Config | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A study's records by name and budget, each list in the order of the problems."""

    problems: tuple[Problem, ...]
    by_task: Mapping[tuple[str, int], Sequence[Answered]]

    @classmethod
    def of(cls, records: Iterable[Answered], problems: Sequence[Problem]) -> "Records":
        """Sort records of which each task has one for each problem."""
        by_id: dict[tuple[str, int], dict[str, Answered]] = {}
        for each in records:
            by_id.setdefault((each.strategy, each.budget), {})[each.problem_id] = each
        names = [problem.problem_id for problem in problems]
        return cls(
            tuple(problems), {task: [of[name] for name in names] for task, of in by_id.items()}
        )

    def single(self, name: str) -> tuple[int, Sequence[Answered]]:
        """Return the one budget of a name, and its records."""
        ((budget, records),) = [(b, rows) for (n, b), rows in self.by_task.items() if n == name]
        return budget, records

    @property
    def ids(self) -> list[str]:
        """The problems' ids."""
        return [problem.problem_id for problem in self.problems]

    @property
    def strategies(self) -> list[str]:
        """The names of the strategies that were run, in order."""
        others = (DIFFICULTY, SAMPLES)
        names = dict.fromkeys(name for name, _ in self.by_task)
        return [name for name in names if name not in others and not name.startswith(GREEDY)]


# --- Records -----------------------------------------------------------------------------------


def record(strategy: str, budget: int, problem: Problem, solved: Solved) -> Answered:
    """Return the record of a strategy's result on a problem, with its cost as flat counts."""
    candidates = solved.candidates
    scores = [np.nan if each.score is None else each.score for each in candidates]
    return Answered(
        strategy=strategy,
        budget=budget,
        problem_id=problem.problem_id,
        answer=solved.answer,
        right=_right(solved.answer, problem),
        charged=solved.charged,
        source=solved.source,
        policy_requests=solved.generator.requests,
        policy_read=solved.generator.read,
        policy_drawn=solved.generator.drawn,
        verifier_requests=solved.verifier.requests,
        verifier_read=solved.verifier.read,
        texts=tuple(each.text.encode() for each in candidates),
        answers=tuple((each.answer or "").encode() for each in candidates),
        rights=np.array([_right(each.answer, problem) for each in candidates], np.uint8),
        scores=np.array(scores, np.float32),
    )


def account(row: Answered) -> Account:
    """Return the cost of a record, the inverse of what `record` writes flat."""
    return Account(
        row.source,
        Tokens(row.policy_requests, row.policy_read, row.policy_drawn),
        Tokens(row.verifier_requests, row.verifier_read),
    )


def _right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and answers.equal(answer, problem.answer) is True


def samples_of(row: Answered) -> vote.Samples:
    """Return a record's candidates as samples; those without an answer score 0 and never count."""
    texts = [answer.decode() for answer in row.answers]
    return vote.Samples(
        tuple(answers.canonical(text) if text else None for text in texts),
        tuple(bool(right) for right in row.rights),
        tuple(np.nan_to_num(row.scores).tolist()),
    )


def sampled_eases(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Return float [question] of pass@1 and of the mean final score over the difficulty samples."""
    _, rows = records.single(DIFFICULTY)
    oracle = np.array([row.rights.mean() for row in rows])
    return oracle, np.array([float(np.nan_to_num(row.scores).mean()) for row in rows])


# --- Accuracy and cost -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """The accuracy and cost of each strategy at each budget on each question.

    Attributes:
        names: of the strategies.
        right: expected accuracy; NaN where the budget is below the least that a strategy needs.
        tokens: of TOKENS, NaN where they are not known.
        flops: of generator and verifier, NaN where they are not known.
    """

    names: tuple[str, ...]
    right: Float[np.ndarray, "strategy budget question"]
    tokens: Float[np.ndarray, "strategy budget question 3"]
    flops: Float[np.ndarray, "strategy budget question"]


def measure(records: Records, shapes: Shapes, budgets: Sequence[int]) -> Outcomes:
    """Return the votes over samples and all strategies that were run."""
    names = (*VOTES, *records.strategies)
    shape = (len(names), len(budgets), len(records.problems))
    right, flops = np.full((2, *shape), np.nan)
    tokens = np.full((*shape, len(TOKENS)), np.nan)
    drawn, rows = records.single(SAMPLES)
    for place, name in enumerate(names):
        for column, budget in enumerate(budgets):
            if name in VOTES:
                measure_, scored = VOTES[name]
                share = budget / drawn
                right[place, column] = [measure_(samples_of(row), budget) for row in rows]
                kept = rows if scored else [_unscored(row) for row in rows]
            elif (name, budget) in records.by_task:
                kept, share = records.by_task[name, budget], 1.0
                right[place, column] = [row.right for row in kept]
            else:
                continue
            tokens[place, column] = [_tokens(row) for row in kept]
            tokens[place, column] *= share
            flops[place, column] = share * flops_of(kept, shapes)
    return Outcomes(names, right, tokens, flops)


def _unscored(row: Answered) -> Answered:
    return dataclasses.replace(row, verifier_requests=0, verifier_read=0)


def _tokens(row: Answered) -> list[float]:
    spent = account(row)
    counts = (spent.generator.read, spent.generator.drawn, spent.verifier.read)
    return [np.nan if count is None else count for count in counts]


def flops_of(rows: Sequence[Answered], shapes: Shapes) -> Float[np.ndarray, "question"]:
    """Return the FLOPs of generator and verifier on each question, NaN where one is not known."""
    return np.array([_flops(account(row), shapes) for row in rows])


def _flops(spent: Account, shapes: Shapes) -> float:
    if spent.source is None or shapes.generator is None:
        return np.nan
    if spent.verifier.requests and shapes.verifier is None:
        return np.nan
    flops = [ledger.generator_flops(shapes.generator, spent.generator, spent.source)]
    if shapes.verifier is not None:
        flops.append(ledger.verifier_flops(shapes.verifier, spent.verifier, spent.source))
    return np.nan if None in flops else float(sum(filter(None, flops)))
