"""Best-of-N, beam search and look-ahead over steps; the questions of a batch advance together.

    beam(N, M)           N first steps; then at most 40 times: score the prefixes, keep the best N/M
                         of each question, draw M continuations of each kept one that has not ended.
    look-ahead(N, M, k)  the same, and a prefix's score is the verifier's after a greedy roll-out of
                         k more steps. Beam is look-ahead with k = 0.
    apart                either one with N/M trees that do not compete: each keeps its own best
                         prefix, so that one liked by the verifier cannot take all places.

Finished solutions stay in the pool and compete with prefixes for the N/M places; those kept are not
duplicated to refill the pool, so it shrinks. At the end the answers of the pool vote, weighted by
score. Look-ahead is charged N (k + 1), best-of-N and beam N.

Source: Snell et al. 2024, arXiv 2408.03314, section 5.2; apart: Beeching, Tunstall and Rush 2024,
"Scaling test-time compute with open models", diverse verifier tree search.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from distill.core.errors import UserError
from distill.core.ports import Completion, Request
from distill.test_time import ledger, strategy
from distill.test_time.strategy import Accounts, Candidate, Election, Models, Question, Solved
from distill.text import steps
from distill.text.completions import ANSWER, cut_after_answer

MAX_ROUNDS = 40


@dataclasses.dataclass(frozen=True)
class BestOf:
    """N solutions drawn apart, and a vote.

    Attributes:
        election: who wins; `strategy.weighted`, `strategy.best` or `strategy.majority`.
        scored: whether the verifier scores them; a majority needs no score.

    Example:
        >>> BestOf(strategy.majority, scored=False).name
        'best_of-majority'
    """

    election: Election = strategy.weighted
    scored: bool = True

    @property
    def name(self) -> str:
        """`best_of-` and the election."""
        return f"best_of-{self.election.__name__}"

    @property
    def least(self) -> int:
        """One solution."""
        return 1

    def solve(
        self, questions: Sequence[Question], budget: int, models: Models, *, seed: int = 0
    ) -> list[Solved]:
        """Return the elected answers; the first n of N solutions are those of the budget n."""
        accounts = strategy.open_accounts(questions)
        places = [(question, slot) for question in questions for slot in range(budget)]
        requests = [
            (q.problem_id, Request(q.prompt, strategy.seed_of(seed, q.problem_id, 0, slot)))
            for q, slot in places
        ]
        sampling = dataclasses.replace(models.sampling, stop=(), include_stop=False)
        drawn = strategy.draw(models, requests, sampling, accounts)
        pools: dict[str, list[_Prefix]] = {question.problem_id: [] for question in questions}
        for (question, _), completion in zip(places, drawn, strict=True):
            pools[question.problem_id].append(_whole(completion))
        return elect(questions, pools, models, accounts, Poll(self.election, self.scored, budget))


@dataclasses.dataclass(frozen=True)
class LookAhead:
    """Search over steps with N prefixes, of which the best N/M are continued.

    Attributes:
        width: M, the beam width; None is the square root of N, rounded down.
        ahead: k, steps of the greedy roll-out that scores a prefix; 0 is beam search.
        election: who wins among the answers at the end.
        max_rounds: prefixes are extended at most as often.
        apart: keep the N/M trees apart, so that they do not compete.

    Example:
        >>> LookAhead(width=4, ahead=2).name, LookAhead(width=4).name
        ('lookahead-2-4', 'beam-4')
    """

    width: int | None = None
    ahead: int = 0
    election: Election = strategy.weighted
    max_rounds: int = MAX_ROUNDS
    apart: bool = False

    def __post_init__(self) -> None:
        if (self.width is not None and self.width < 1) or self.ahead < 0 or self.max_rounds < 1:
            raise ValueError(f"expected width and max_rounds >= 1, ahead >= 0, got {self}")

    @property
    def name(self) -> str:
        """`beam-M` or `lookahead-K-M`; `dvts-M` or `dvts-K-M` apart."""
        width = "sqrt" if self.width is None else str(self.width)
        kinds = ("dvts", "dvts") if self.apart else ("beam", "lookahead")
        return f"{kinds[1]}-{self.ahead}-{width}" if self.ahead else f"{kinds[0]}-{width}"

    @property
    def least(self) -> int:
        """A prefix and its roll-out."""
        return self.ahead + 1

    def solve(
        self, questions: Sequence[Question], budget: int, models: Models, *, seed: int = 0
    ) -> list[Solved]:
        """Return the elected answers; the budget is N (k + 1), so that a roll-out costs as much.

        Raises:
            UserError: the budget is below `least`, or as strategy.Strategy.solve.
        """
        if budget < self.least:
            raise UserError(f"a budget of at least {self.least}", str(budget), "raise it")
        size = budget // (self.ahead + 1)
        width = min(self.width or math.isqrt(size), size)
        accounts = strategy.open_accounts(questions)
        searching = _Search(questions, models, accounts, seed)
        count = size // width
        trees, first = ([_Prefix()], size)
        keep: Callable[..., list[_Prefix]] = functools.partial(_best, count=count)
        if self.apart:
            trees, first = [_Prefix(tree=tree) for tree in range(count)], width
            keep = _best_of_each
        pools = searching.extend({q.problem_id: trees for q in questions}, 0, first)
        for round_ in range(1, self.max_rounds + 1):
            going = {name: p for name, p in pools.items() if not all(each.ended for each in p)}
            if not going:
                break
            values = searching.values(going, self.ahead)
            kept = {name: keep(pool, values[name]) for name, pool in going.items()}
            pools |= searching.extend(kept, round_, width)
        charged = len(trees) * first * (self.ahead + 1)
        return elect(questions, pools, models, accounts, Poll(self.election, True, charged))


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """A solution's beginning.

    Attributes:
        text: all of it.
        tokens: drawn for it.
        ended: whether nothing is drawn after it any more.
        whole: whether it ended by itself or with its answer, not by running into its length.
        tree: which of the trees apart it is of.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False
    whole: bool = False
    tree: int = 0


Pools = dict[str, list[_Prefix]]


@dataclasses.dataclass(frozen=True)
class _Search:
    """One search over all questions, with the models it uses and the accounts it charges."""

    questions: Sequence[Question]
    models: Models
    accounts: Accounts
    seed: int

    def extend(self, pools: Pools, round_: int, width: int) -> Pools:
        """Draw `width` continuations of each prefix that has not ended; keep the others."""
        slots = list(self._slots(pools, width))
        seeds = [strategy.seed_of(self.seed, q.problem_id, round_, slot) for q, _, slot in slots]
        drawn = iter(self._one_step([(q, prefix) for q, prefix, _ in slots], seeds))
        return {
            question.problem_id: [
                grown
                for prefix in pools[question.problem_id]
                for grown in ([prefix] if prefix.ended else itertools.islice(drawn, width))
            ]
            for question in self._of(pools)
        }

    def values(self, pools: Pools, ahead: int) -> dict[str, list[float]]:
        """Return the verifier's value of each prefix after the greedy roll-out."""
        places = [(q, prefix) for q in self._of(pools) for prefix in pools[q.problem_id]]
        distinct = list(dict.fromkeys(places))
        seen = dict(zip(distinct, self._rolled_out(distinct, ahead), strict=True))
        texts = [(question, seen[question, prefix].text) for question, prefix in places]
        scores = strategy.score(self.models, texts, self.accounts)
        values: dict[str, list[float]] = {name: [] for name in pools}
        for question, text in texts:
            values[question.problem_id].append(scores[question.problem_id, text])
        return values

    def _rolled_out(self, places: Sequence[tuple[Question, _Prefix]], ahead: int) -> list[_Prefix]:
        """Extend each prefix greedily by at most `ahead` steps."""
        reached = [prefix for _, prefix in places]
        for _ in range(ahead):
            going = [place for place, prefix in enumerate(reached) if not prefix.ended]
            unfinished = [(places[place][0], reached[place]) for place in going]
            for place, prefix in zip(going, self._one_step(unfinished, None), strict=True):
                reached[place] = prefix
        return reached

    def _one_step(
        self, places: Sequence[tuple[Question, _Prefix]], seeds: Sequence[int] | None
    ) -> list[_Prefix]:
        """Return each prefix with one step more, drawn with its seed, or greedily without seeds."""
        sampling = dataclasses.replace(self.models.sampling, stop=steps.STOPS, include_stop=True)
        if seeds is None:
            sampling, seeds = dataclasses.replace(sampling, temperature=0.0), [0] * len(places)
        requests = [
            (question.problem_id, Request(question.prompt, seed, prefix=prefix.text))
            for (question, prefix), seed in zip(places, seeds, strict=True)
        ]
        drawn = strategy.draw(self.models, requests, sampling, self.accounts)
        pairs = zip(places, drawn, strict=True)
        return [_grown(prefix, step, sampling.max_tokens) for (_, prefix), step in pairs]

    def _slots(self, pools: Pools, width: int) -> Iterator[tuple[Question, _Prefix, int]]:
        """Yield every continuation to draw, with its place among those of its question."""
        for question in self._of(pools):
            going = (prefix for prefix in pools[question.problem_id] if not prefix.ended)
            for place, prefix in enumerate(going):
                for branch in range(width):
                    yield question, prefix, place * width + branch

    def _of(self, pools: Pools) -> list[Question]:
        """Return the questions that have a pool, in order."""
        return [question for question in self.questions if question.problem_id in pools]


def _best(pool: Sequence[_Prefix], values: Sequence[float], count: int) -> list[_Prefix]:
    """Return the best of a pool, the first of equals, in their order."""
    ranked = sorted(range(len(pool)), key=lambda place: (-values[place], place))
    return [pool[place] for place in sorted(ranked[:count])]


def _best_of_each(pool: Sequence[_Prefix], values: Sequence[float]) -> list[_Prefix]:
    """Return the best of each tree in a pool, the first of equals, in their order."""
    best: dict[int, int] = {}
    for place, prefix in enumerate(pool):
        before = best.get(prefix.tree)
        if before is None or values[place] > values[before]:
            best[prefix.tree] = place
    return [pool[place] for place in sorted(best.values())]


def _whole(completion: Completion) -> _Prefix:
    """Return a completion that no step end stopped."""
    cut = cut_after_answer(completion)
    stopped = cut.finish_reason == "stop"
    return _Prefix(cut.text, ledger.tokens_drawn(completion), ended=True, whole=stopped)


def _grown(prefix: _Prefix, completion: Completion, limit: int) -> _Prefix:
    """Return a prefix with the step that was drawn after it.

    It ends where the generator ended it, with the line that holds its answer, and at the limit.
    """
    tokens = prefix.tokens + ledger.tokens_drawn(completion)
    stopped = completion.finish_reason == "stop"
    cut = stopped and completion.text.endswith(steps.STOPS)
    text = prefix.text + (steps.ended(completion.text) if cut else completion.text)
    whole = stopped and (not cut or ANSWER in completion.text)
    ended = whole or not stopped or tokens >= limit
    return _Prefix(text.rstrip("\n") if whole else text, tokens, ended, whole, prefix.tree)


@dataclasses.dataclass(frozen=True)
class Poll:
    """A vote among the solutions of a question.

    Attributes:
        election: chooses the winner.
        scored: whether the verifier scores the solutions first.
        charged: units of the budget that the solutions used.
    """

    election: Election
    scored: bool
    charged: int


def elect(
    questions: Iterable[Question],
    pools: Pools,
    models: Models,
    accounts: Accounts,
    poll: Poll,
) -> list[Solved]:
    """Score the solutions of each question and let them vote.

    Args:
        questions: in the order of the result.
        pools: the solutions by question.
        models: its scorer scores.
        accounts: the cost of each question so far.
        poll: the election and the charge.
    """
    questions = list(questions)
    texts = [(q, each.text) for q in questions for each in pools[q.problem_id] if each.whole]
    scores = strategy.score(models, texts, accounts) if poll.scored else {}
    results = []
    for question in questions:
        name = question.problem_id
        candidates = [
            Candidate(p.text, strategy.answer_of(p.text, whole=p.whole), scores.get((name, p.text)))
            for p in pools[name]
        ]
        winner = poll.election(candidates)
        results.append(strategy.result(question, candidates, winner, poll.charged, accounts[name]))
    return results
