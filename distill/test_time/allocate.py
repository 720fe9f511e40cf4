"""The compute-optimal policy: the best strategy for each bin of difficulty and budget.

Chosen and scored by two-fold cross-validation inside each bin: the best of one fold is scored on
the other. The policy that is saved is chosen on all questions and never scored.

Source: Snell et al. 2024, arXiv 2408.03314, section 3.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.statistics import Bootstrap, percentile_interval
from distill.core.store import read_json, write_json
from distill.test_time.difficulty import Linear

KINDS = ("predicted", "encoder")
Values = Float[np.ndarray, "strategy question"]
PerQuestion = Int[np.ndarray, "question"]


def folds(problem_ids: Sequence[str], bins: PerQuestion, count: int = 2) -> PerQuestion:
    """Return the fold of each question, of sizes that differ by at most 1 inside each bin.

    A fold depends on the questions of the bin and not on their order.
    """
    found = np.zeros(len(problem_ids), int)
    places = {name: place for place, name in enumerate(problem_ids)}
    for bin_ in np.unique(bins):
        names = [name for name in problem_ids if bins[places[name]] == bin_]
        for rank, name in enumerate(seeds.shuffled(names, seed=1)):
            found[places[name]] = rank % count
    return found


def best(values: Values) -> int:
    """Return the strategy with the highest mean, the first of equals.

    Args:
        values: accuracy of each strategy on each question; NaN where the budget is below the least
            that the strategy needs.

    Raises:
        ValueError: none can be chosen.

    Example:
        >>> best(np.array([[1.0, 0.0], [1.0, 1.0], [np.nan, np.nan]]))
        1
    """
    means = values.mean(1)
    if values.shape[1] == 0 or np.isnan(means).all():
        raise ValueError(f"expected a strategy with a value on each question, got {values}")
    return int(np.nanargmax(means))


def cross_validate(
    values: Values, bins: PerQuestion, fold_of: PerQuestion
) -> tuple[Float[np.ndarray, "question"], PerQuestion]:
    """Return the accuracy of the policy on each question, and the strategy that it chose.

    Each question is scored with the strategy that is best on the other folds of its bin, so that
    no question takes part in the choice by which it is scored.

    Args:
        values: accuracy of each strategy on each question, at one budget.
        bins: of each question.
        fold_of: of each question.
    """
    right, choices = np.empty(len(bins)), np.empty(len(bins), int)
    for bin_ in np.unique(bins):
        for fold in np.unique(fold_of[bins == bin_]):
            held = (bins == bin_) & (fold_of == fold)
            choice = best(values[:, (bins == bin_) & (fold_of != fold)])
            right[held], choices[held] = values[choice, held], choice
    return right, choices


def budget_for(curve: Sequence[float], budgets: Sequence[int], accuracy: float) -> float | None:
    """Return the smallest budget at which a curve has an accuracy.

    Between two budgets the curve is linear in the budget's logarithm.

    Returns:
        None where no budget has it; the smallest budget of the curve where that one is enough.

    Example:
        >>> budget_for([0.2, 0.4, 0.3], [1, 4, 16], 0.3), budget_for([0.2, 0.4], [1, 4], 0.5)
        (2.0, None)
    """
    before: tuple[float, int] | None = None
    for value, budget in zip(curve, budgets, strict=True):
        if value >= accuracy:
            if before is None:
                return float(budget)
            share = (accuracy - before[0]) / (value - before[0])
            return float(before[1] * (budget / before[1]) ** share)
        before = value, budget
    return None


def saved_samples(
    ours: Float[np.ndarray, "question budget"],
    theirs: Float[np.ndarray, "question budget"],
    budgets: Sequence[int],
    *,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Return, for each budget of theirs, how many times fewer samples we need for its accuracy.

    Args:
        ours: accuracy of each question at each budget.
        theirs: the same of the baseline.
        budgets: in rising order.
        bootstrap: over the questions, for 95 % percentile intervals.

    Returns:
        `{budget, ratio, low, high, unreached}`; the ratio is None where no budget of ours has their
        accuracy, and `unreached` is the share of such resamples, which count as a ratio of 0.
    """
    weights = bootstrap.weights(len(ours))
    drawn = [_ratios(a, b, budgets) for a, b in zip(weights @ ours, weights @ theirs, strict=True)]
    low, high = percentile_interval(np.array(drawn))
    whole = _ratios(ours.mean(0), theirs.mean(0), budgets)
    missed = (np.array(drawn) == 0).mean(0)
    rows = zip(budgets, whole, low.tolist(), high.tolist(), missed.tolist(), strict=True)
    return [
        {"budget": b, "ratio": r or None, "low": lo, "high": hi, "unreached": m}
        for b, r, lo, hi, m in rows
    ]


def _ratios(ours: np.ndarray, theirs: np.ndarray, budgets: Sequence[int]) -> list[float]:
    """Return each budget of theirs over ours of equal accuracy, 0 where ours never has it."""
    needs = [budget_for(ours.tolist(), budgets, value - 1e-12) for value in theirs.tolist()]
    return [b / needed if needed else 0.0 for b, needed in zip(budgets, needs, strict=True)]


# --- The artefact ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """The strategy to answer with, by bin and budget, and the estimate of a question's bin.

    Attributes:
        budgets: in rising order.
        strategies: names by bin, from the easiest, and by budget.
        edges: the eases between the bins, falling.
        kind: `predicted`, by the verifier's mean score of `samples`, or `encoder`.
        samples: drawn to estimate the difficulty of one question; 0 for `encoder`.
        estimator: of `encoder`, from mean encoder states to ease.

    Example:
        >>> policy = Policy((4, 16), (("beam-4", "best_of-weighted"),), edges=(), samples=4)
        >>> policy.choose(0, 20)
        ('best_of-weighted', 16)
    """

    budgets: tuple[int, ...]
    strategies: tuple[tuple[str, ...], ...]
    edges: tuple[float, ...]
    kind: str = "predicted"
    samples: int = 0
    estimator: Linear | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.kind == "encoder") != (self.estimator is not None):
            raise ValueError(f"expected a kind of {KINDS}, with its estimator, got {self.kind!r}")
        if len(self.strategies) != len(self.edges) + 1:
            raise ValueError(f"expected one edge less than {len(self.strategies)} bins")
        if any(len(row) != len(self.budgets) for row in self.strategies):
            raise ValueError(f"expected a strategy for each of {len(self.budgets)} budgets")

    def require(self, budget: int) -> None:
        """Refuse a budget below the smallest of the policy.

        Raises:
            UserError: the budget is below the smallest.
        """
        if budget < min(self.budgets):
            raise UserError(f"a budget of at least {self.budgets[0]}", str(budget), "raise it")

    def choose(self, bin_: int, budget: int) -> tuple[str, int]:
        """Return the strategy for a bin, and the largest budget of the policy up to `budget`.

        Raises:
            UserError: the budget is below the smallest.
        """
        self.require(budget)
        column = max(place for place, each in enumerate(self.budgets) if each <= budget)
        return self.strategies[bin_][column], self.budgets[column]

    def save(self, path: Path) -> None:
        """Write the policy as JSON."""
        document = dataclasses.asdict(self)
        if self.estimator is not None:
            weights = [float(f"{w:.9g}") for w in self.estimator.weights.tolist()]
            document["estimator"] = {"weights": weights, "bias": self.estimator.bias}
        write_json(path, document)

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or holds no policy.
        """
        document = read_json(path)
        try:
            return cls(**{**document, **_parsed(document)})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(
                f"a policy in {path}", str(error), "run `distill scale` again"
            ) from error


def _parsed(document: Mapping[str, Any]) -> dict[str, Any]:
    estimator = document["estimator"]
    return {
        "budgets": tuple(document["budgets"]),
        "strategies": tuple(map(tuple, document["strategies"])),
        "edges": tuple(document["edges"]),
        "estimator": estimator and Linear(np.array(estimator["weights"]), estimator["bias"]),
    }


def best_by_bin(
    values: Float[np.ndarray, "budget strategy question"], names: Sequence[str], bins: PerQuestion
) -> tuple[tuple[str, ...], ...]:
    """Return the names of the best strategies by bin and budget, on all questions."""
    return tuple(
        tuple(names[best(of_budget[:, bins == bin_])] for of_budget in values)
        for bin_ in np.unique(bins)
    )


def log_spaced(most: int) -> tuple[int, ...]:
    """Return the powers of 4 up to `most`, the paper's budgets.

    Example:
        >>> log_spaced(64)
        (1, 4, 16, 64)
    """
    return tuple(4**power for power in range(int(math.log(most, 4) + 1e-9) + 1))
