"""Answer a question with the policy's strategy for its difficulty and a budget; report the cost.

The library alone: the command `distill answer` is `answer_command`. A policy is chosen by the stage
`scale` and read by `allocate.Policy.load`. The cost of estimating the difficulty is reported apart
from the cost of the strategy.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from distill.core.errors import UserError
from distill.core.ports import Generator, Scorer
from distill.test_time import difficulty, strategy
from distill.test_time.allocate import Policy
from distill.test_time.ledger import Tokens
from distill.test_time.metropolis import Metropolis
from distill.test_time.revise import Revise, flat, hierarchical
from distill.test_time.search import BestOf, LookAhead
from distill.test_time.strategy import Models, Question, Solved, Strategy

ELECTIONS = {each.__name__: each for each in (strategy.weighted, strategy.majority, strategy.best)}
CHOICES = {each.__name__: each for each in (flat, hierarchical)}


def strategy_by_name(
    name: str, *, reviser: Generator | None = None, history: Scorer | None = None
) -> Strategy:
    """Return the strategy of a name, the inverse of `Strategy.name`.

    Args:
        name: of a strategy.
        reviser: the model that writes the attempts of `revise`; the generator where None.
        history: the verifier that reads earlier attempts; the verifier where None.

    Raises:
        UserError: no strategy has that name.

    Example:
        >>> strategy_by_name("lookahead-3-sqrt").name, strategy_by_name("beam-4").width
        ('lookahead-3-sqrt', 4)
    """
    try:
        match name.split("-"):
            case ["best_of", election]:
                return BestOf(ELECTIONS[election], scored=election != "majority")
            case ["beam", width]:
                return LookAhead(_width(width))
            case ["lookahead", ahead, width]:
                return LookAhead(_width(width), int(ahead))
            case ["dvts", width]:
                return LookAhead(_width(width), apart=True)
            case ["dvts", ahead, width]:
                return LookAhead(_width(width), int(ahead), apart=True)
            case ["metropolis", chains, sharpness, trust]:
                return Metropolis(int(chains), float(sharpness), float(trust))
            case ["revise", length, choice]:
                size = None if length == "all" else int(length)
                return Revise(size, CHOICES[choice], reviser, history)
    except (KeyError, ValueError) as error:
        raise _unknown(name) from error
    raise _unknown(name)


def _width(text: str) -> int | None:
    return None if text == "sqrt" else int(text)


def _unknown(name: str) -> UserError:
    return UserError(
        "best_of-ELECTION, beam-M, lookahead-K-M, dvts-M, metropolis-C-A-B or revise-L-CHOICE",
        name,
        "correct the policy",
    )


def answer(
    question: Question,
    models: Models,
    policy: Policy,
    budget: int,
    *,
    strategies: Callable[[str], Strategy] = strategy_by_name,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Return the answer to a question, the strategy that gave it and what was spent.

    Args:
        question: its id and prompt.
        models: the generator, which draws, and the verifier, which scores.
        policy: chooses the strategy.
        budget: solutions that may be drawn, apart from those that estimate the difficulty.
        strategies: returns the strategy of a name.
        seed: of everything drawn.

    Returns:
        `answer` (None where no solution has one), its `solution`, `strategy`, `budget`, `bin` from
        1 for the easiest, `ease`, and `spent` by party in requests and tokens; there the party
        `policy` is the generator.

    Raises:
        UserError: the budget is below the policy's least, or as Strategy.solve.

    Example:
        >>> import numpy as np
        >>> from distill.models.saved import SavedModel
        >>> from distill.test_time.allocate import Policy
        >>> from distill.test_time.difficulty import Linear
        >>> from distill.test_time.strategy import Models, Question
        >>> estimator = Linear(np.zeros(128), 0.5)
        >>> policy = Policy((4,), (("best_of-majority",),), (), "encoder", 0, estimator)
        >>> models = Models(SavedModel("data/models/student_instructed", batch_size=4))
        >>> prompt = "Q: What is 4 + 4?\nLet's think step by step"
        >>> answer(Question("mine/1", prompt), models, policy, 4)["strategy"]
        'best_of-majority'
    """
    policy.require(budget)
    ease, estimate_spent = _ease(question, models, policy, seed)
    bin_ = difficulty.bin_of(ease, policy.edges)
    name, size = policy.choose(bin_, budget)
    (solved,) = strategies(name).solve([question], size, models, seed=seed)
    shown = strategy.best([c for c in solved.candidates if c.answer == solved.answer])
    estimate = {f"difficulty_{party}": counts for party, counts in estimate_spent.items()}
    return {
        "answer": solved.answer,
        "solution": shown.text if shown else None,
        "strategy": name,
        "budget": size,
        "bin": bin_ + 1,
        "ease": ease,
        "spent": {**_spent(solved), **estimate},
    }


Spent = dict[str, dict[str, int | None]]


def _ease(question: Question, models: Models, policy: Policy, seed: int) -> tuple[float, Spent]:
    """Return a question's ease by the policy's own estimate, and what the estimate cost."""
    if policy.estimator is None:
        (solved,) = BestOf().solve([question], policy.samples, models, seed=seed + 1)
        scores = [each.score or 0.0 for each in solved.candidates]
        return sum(scores) / len(scores), _spent(solved)
    generator = difficulty.local(models.generator)
    if generator is None:
        raise UserError(
            "a student in this process for the policy of kind encoder",
            models.generator.model,
            "use the policy of kind predicted",
        )
    states, read = difficulty.encoder_means(generator, [question.prompt])
    return float(policy.estimator(states)[0]), {"encoder": _counts(Tokens(1, sum(read)))}


def _spent(solved: Solved) -> Spent:
    return {"policy": _counts(solved.generator), "verifier": _counts(solved.verifier)}


def _counts(tokens: Tokens) -> dict[str, int | None]:
    return dataclasses.asdict(tokens)


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Answers questions by a policy.

    Attributes:
        policy: chooses the strategy.
        models: the generator, which draws, and the verifier, which scores.
        prompt: returns a question's prompt.
        strategies: returns the strategy of a name.
    """

    policy: Policy
    models: Models
    prompt: Callable[[str], str]
    strategies: Callable[[str], Strategy] = strategy_by_name

    def __call__(self, question: str, budget: int, *, seed: int = 0) -> dict[str, Any]:
        """Return what `answer` returns; draws depend on the question's text and the seed."""
        return answer(
            Question(question, self.prompt(question)),
            self.models,
            self.policy,
            budget,
            strategies=self.strategies,
            seed=seed,
        )
