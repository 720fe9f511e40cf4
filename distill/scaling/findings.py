"""What the records of a study come to: curves, bins, policies and the FLOPs-matched comparison."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distill.core import answers
from distill.core.records import Answered, Problem
from distill.models.flops import decoding_flops
from distill.scaling import allocate, difficulty, ledger, vote
from distill.scaling.allocate import Policy
from distill.scaling.difficulty import Linear
from distill.scaling.diversity import estimates
from distill.scaling.ledger import Config, Tokens

# Names of records that are no strategy's.
DIFFICULTY, SAMPLES, GREEDY = "difficulty", "samples", "greedy"
BASELINE = "best_of-weighted"
TOKENS = ("policy_read", "policy_drawn", "verifier_read")

Estimate = dict[str, float]
# Expected accuracy of k of the samples, and whether the verifier has a say in it.
Measure = Callable[[vote.Samples, int], float]


def _weighted(samples: vote.Samples, k: int) -> float:
    return vote.weighted(samples, k, np.random.default_rng(k))[0]


VOTES: dict[str, tuple[Measure, bool]] = {
    BASELINE: (_weighted, True),
    "best_of-best": (vote.best, True),
    "best_of-majority": (vote.majority, False),
}


@dataclasses.dataclass(frozen=True)
class How:
    """How records are read; the arguments of `study.run` of the same names."""

    budgets: tuple[int, ...]
    bins: int
    ratios: tuple[float, ...]
    resamples: int
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """The shapes of the models, by which FLOPs are counted; None where one is not known."""

    policy: Config | None
    verifier: Config | None
    larger: Mapping[str, Config | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Eases:
    """How easy each question is, higher is easier.

    Attributes:
        by_kind: float [question] each, of `oracle`, `predicted` and, where known, `encoder`.
        encoder_flops: of reading each prompt once.
        estimator: that `encoder` needs for new questions, fitted to all of these.
    """

    by_kind: Mapping[str, Float[np.ndarray, "question"]]
    encoder_flops: Float[np.ndarray, "question"] | None = None
    estimator: Linear | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A study's records by name and budget, each list in the order of the problems."""

    problems: tuple[Problem, ...]
    by_task: Mapping[tuple[str, int], Sequence[Answered]]

    @classmethod
    def of(cls, records: Iterable[Answered], problems: Sequence[Problem]) -> "Records":
        """Sort the records; there is one of each problem for each task."""
        found: dict[tuple[str, int], dict[str, Answered]] = {}
        for each in records:
            found.setdefault((each.strategy, each.budget), {})[each.problem_id] = each
        names = [problem.problem_id for problem in problems]
        return cls(
            tuple(problems), {task: [of[name] for name in names] for task, of in found.items()}
        )

    def single(self, name: str) -> tuple[int, Sequence[Answered]]:
        """Return the one budget of a name, and its records."""
        ((budget, found),) = [(b, rows) for (n, b), rows in self.by_task.items() if n == name]
        return budget, found

    @property
    def ids(self) -> list[str]:
        """The problems' ids."""
        return [problem.problem_id for problem in self.problems]

    @property
    def strategies(self) -> list[str]:
        """The names of strategies that were run, in their order."""
        others = (DIFFICULTY, SAMPLES)
        names = dict.fromkeys(name for name, _ in self.by_task)
        return [name for name in names if name not in others and not name.startswith(GREEDY)]


def samples_of(answered: Answered) -> vote.Samples:
    """Return a record's candidates as samples; those without an answer score 0 and never count."""
    texts = [answer.decode() for answer in answered.answers]
    return vote.Samples(
        tuple(answers.canonical(text) if text else None for text in texts),
        tuple(bool(right) for right in answered.rights),
        tuple(np.nan_to_num(answered.scores).tolist()),
    )


def sampled_eases(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Return float [question] of pass@1 and of the mean final score, over the samples apart."""
    _, rows = records.single(DIFFICULTY)
    oracle = np.array([row.rights.mean() for row in rows])
    return oracle, np.array([float(np.nan_to_num(row.scores).mean()) for row in rows])


# --- Accuracy and cost -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What each strategy earned and cost at each budget on each question.

    Attributes:
        names: of the strategies.
        right: expected accuracy; NaN where the budget is below the least that a strategy needs.
        tokens: of TOKENS, NaN where they are not known.
        flops: of policy and verifier, NaN where they are not known.
    """

    names: tuple[str, ...]
    right: Float[np.ndarray, "strategy budget question"]
    tokens: Float[np.ndarray, "strategy budget question 3"]
    flops: Float[np.ndarray, "strategy budget question"]


def measure(records: Records, shapes: Shapes, how: How) -> Measured:
    """Return the votes over samples and all strategies that were run."""
    names = (*VOTES, *records.strategies)
    shape = (len(names), len(how.budgets), len(records.problems))
    right, flops = np.full((2, *shape), np.nan)
    tokens = np.full((*shape, len(TOKENS)), np.nan)
    drawn, rows = records.single(SAMPLES)
    for place, name in enumerate(names):
        for column, budget in enumerate(how.budgets):
            if name in VOTES:
                measured, scored = VOTES[name]
                share = budget / drawn
                right[place, column] = [measured(samples_of(row), budget) for row in rows]
                kept = rows if scored else [_unscored(row) for row in rows]
            elif (name, budget) in records.by_task:
                kept, share = records.by_task[name, budget], 1.0
                right[place, column] = [row.right for row in kept]
            else:
                continue
            tokens[place, column] = [_tokens(row) for row in kept]
            tokens[place, column] *= share
            flops[place, column] = share * flops_of(kept, shapes)
    return Measured(names, right, tokens, flops)


def _unscored(row: Answered) -> Answered:
    return dataclasses.replace(row, verifier_requests=0, verifier_read=0)


def _tokens(row: Answered) -> list[float]:
    found = (row.policy_read, row.policy_drawn, row.verifier_read)
    return [np.nan if count is None else count for count in found]


def flops_of(rows: Sequence[Answered], shapes: Shapes) -> Float[np.ndarray, "question"]:
    """Return the FLOPs of policy and verifier on each question, NaN where one is not known."""
    return np.array([_flops(row, shapes) for row in rows])


def _flops(row: Answered, shapes: Shapes) -> float:
    verifier = Tokens(row.verifier_requests, row.verifier_read)
    if row.source is None or shapes.policy is None or (verifier.requests and not shapes.verifier):
        return np.nan
    policy = Tokens(row.policy_requests, row.policy_read, row.policy_drawn)
    found = [ledger.policy_flops(shapes.policy, policy, row.source)]
    if shapes.verifier is not None:
        found.append(ledger.verifier_flops(shapes.verifier, verifier, row.source))
    return np.nan if None in found else float(sum(filter(None, found)))


# --- The report --------------------------------------------------------------------------------


def found(
    records: Records, eases: Eases, shapes: Shapes, how: How
) -> tuple[dict[str, Any], dict[str, Policy]]:
    """Return the content of scale.json, and the policies that need no gold answer.

    Args:
        records: all of a study's.
        eases: of its questions.
        shapes: of its models.
        how: its settings.
    """
    measured = measure(records, shapes, how)
    bins = {
        kind: _bins(records.ids, ease, how.bins) for kind, ease in sorted(eases.by_kind.items())
    }
    apart, rows = records.single(DIFFICULTY)
    of_samples = flops_of(rows, shapes)
    cost = {
        kind: eases.encoder_flops if kind == "encoder" else of_samples for kind in eases.by_kind
    }
    allocated = {
        kind: _Allocated.of(measured, records.ids, bins[kind], cost[kind]) for kind in bins
    }
    baseline = measured.right[measured.names.index(BASELINE)]
    report = {
        "questions": len(records.problems),
        "sets": _counts(problem.source for problem in records.problems),
        "budgets": list(how.budgets),
        "difficulty_samples": apart,
        "resamples": how.resamples,
        "seed": how.seed,
        "greedy": _estimates(_greedy(records, GREEDY)[:, None], bins, how)[0],
        "curves": [
            {"strategy": name, "points": _points(measured, place, bins, how)}
            for place, name in enumerate(measured.names)
        ],
        "bins": {kind: _told(bins[kind], eases, kind) for kind in bins},
        "policies": {
            kind: {
                "points": _estimates(each.right.T, bins, how),
                "flops": _mean(each.flops.mean(1)),
                "strategies": each.named(measured.names, bins[kind]),
                "saved": allocate.saved_samples(
                    each.right.T,
                    baseline.T,
                    how.budgets,
                    resamples=how.resamples,
                    seed=how.seed,
                ),
            }
            for kind, each in allocated.items()
        },
        "matched": list(_matched(records, allocated, shapes, bins, how)),
    }
    names = measured.names
    values = measured.right.transpose(1, 0, 2)
    policies = {
        kind: Policy(
            how.budgets,
            allocate.chosen(values, names, bins[kind]),
            difficulty.edges(dict(zip(records.ids, ease.tolist(), strict=True)), how.bins),
            kind,
            0 if kind == "encoder" else apart,
            eases.estimator if kind == "encoder" else None,
        )
        for kind, ease in eases.by_kind.items()
        if kind in allocate.KINDS
    }
    return report, policies


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study in few numbers: accuracy at the largest budget."""
    last = {each["strategy"]: each["points"][-1]["value"] for each in report["curves"]}
    policies = {kind: each["points"][-1]["value"] for kind, each in report["policies"].items()}
    names = {BASELINE: last[BASELINE], "best_of-majority": last["best_of-majority"]}
    return {"greedy": report["greedy"]["value"], **names, **policies}


def _counts(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _greedy(records: Records, name: str) -> Float[np.ndarray, "question"]:
    return np.array([row.right for row in records.single(name)[1]], float)


def _bins(ids: Sequence[str], ease: np.ndarray, count: int) -> Int[np.ndarray, "question"]:
    by_id = difficulty.bins(dict(zip(ids, ease.tolist(), strict=True)), count)
    return np.array([by_id[name] for name in ids])


def _told(bins: np.ndarray, eases: Eases, kind: str) -> dict[str, Any]:
    """Return a kind of bins: sizes, mean eases, and how far it agrees with the oracle."""
    ease, oracle = eases.by_kind[kind], eases.by_kind["oracle"]
    members = [bins == bin_ for bin_ in range(bins.max() + 1)]
    return {
        "sizes": [int(each.sum()) for each in members],
        "ease": [round(float(ease[each].mean()), 6) for each in members],
        "pass@1": [round(float(oracle[each].mean()), 6) for each in members],
        "correlation": _correlation(ease, oracle),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation, None where one of them is constant."""
    return round(float(np.corrcoef(a, b)[0, 1]), 6) if a.std() and b.std() else None


def _estimates(
    values: Float[np.ndarray, "question column"],
    bins: Mapping[str, Int[np.ndarray, "question"]],
    how: How,
) -> list[dict[str, Any]]:
    """Return the mean of each column with its interval, overall and in each bin of each kind."""
    overall = estimates(values, how.resamples, how.seed)
    by_kind = {
        kind: [
            estimates(values[of_kind == bin_], how.resamples, how.seed) for bin_ in range(how.bins)
        ]
        for kind, of_kind in bins.items()
    }
    return [
        {**row, "by_bin": {kind: [of[column] for of in rows] for kind, rows in by_kind.items()}}
        for column, row in enumerate(overall)
    ]


def _points(
    measured: Measured, place: int, bins: Mapping[str, np.ndarray], how: How
) -> list[dict[str, Any]]:
    """Return a strategy's accuracy and cost a question at each budget that it can have."""
    there = np.flatnonzero(~np.isnan(measured.right[place, :, 0]))
    rows = _estimates(measured.right[place, there].T, bins, how)
    flops = _mean(measured.flops[place, there].mean(1))
    tokens = [_mean(each) for each in measured.tokens[place, there].mean(1)]
    return [
        {
            "budget": how.budgets[column],
            **row,
            "flops": cost,
            "tokens": dict(zip(TOKENS, spent, strict=True)),
        }
        for column, row, cost, spent in zip(there, rows, flops, tokens, strict=True)
    ]


def _mean(values: np.ndarray) -> list[float | None]:
    """Return means as JSON has them: what is not known is None."""
    return [None if np.isnan(value) else round(value, 3) for value in values.tolist()]


# --- The compute-optimal policy ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Allocated:
    """What the policy of one kind of bins earned and cost, each question by the other fold.

    Attributes:
        right: accuracy.
        flops: of the strategy and of estimating the difficulty.
        chosen: places of the strategies.
    """

    right: Float[np.ndarray, "budget question"]
    flops: Float[np.ndarray, "budget question"]
    chosen: Int[np.ndarray, "budget question"]

    @classmethod
    def of(
        cls, measured: Measured, ids: Sequence[str], bins: np.ndarray, cost: np.ndarray | None
    ) -> "_Allocated":
        fold_of = allocate.folds(ids, bins)
        columns = range(measured.right.shape[1])
        pairs = [
            allocate.cross_validated(measured.right[:, column], bins, fold_of) for column in columns
        ]
        right, chosen = (np.stack(each) for each in zip(*pairs, strict=True))
        questions = np.arange(len(ids))
        flops = np.stack([measured.flops[chosen[c], c, questions] for c in columns])
        return cls(right, flops + (np.nan if cost is None else cost), chosen)

    def named(self, names: Sequence[str], bins: np.ndarray) -> list[list[list[str]]]:
        """Return the strategies of both folds by bin and budget."""
        return [
            [
                [names[int(place)] for place in np.unique(of_budget[bins == bin_])]
                for of_budget in self.chosen
            ]
            for bin_ in range(bins.max() + 1)
        ]


def _matched(
    records: Records,
    allocated: Mapping[str, _Allocated],
    shapes: Shapes,
    bins: Mapping[str, np.ndarray],
    how: How,
) -> Iterable[dict[str, Any]]:
    """Yield the policies against each larger model, greedy, at equal FLOPs.

    Counted in two ways: `samples` as the paper counts, N samples for N; and `flops`, in which
    policy, verifier and difficulty are counted by their shapes, over those of one greedy answer.
    """
    _, rows = records.single(GREEDY)
    single = flops_of(rows, shapes)
    for name, config in shapes.larger.items():
        times = _times_larger(rows, shapes.policy, config)
        theirs = _greedy(records, name)
        for ratio in how.ratios if times is not None and times >= 1 else ():
            allowed = ledger.matched_samples(times, ratio)  # pyright: ignore[reportArgumentType]
            for kind, each in allocated.items():
                costs = {
                    "samples": np.array(how.budgets, float),
                    "flops": each.flops.mean(1) / single.mean(),
                }
                for counted, cost in costs.items():
                    yield {
                        **{"larger": name, "times": times, "ratio": ratio, "allowed": allowed},
                        **{"difficulty": kind, "counted": counted},
                        "theirs": float(theirs.mean()),
                        **_against(each.right, theirs, cost <= allowed, bins, how),
                    }


def _against(
    ours: np.ndarray,
    theirs: np.ndarray,
    affordable: np.ndarray,
    bins: Mapping[str, np.ndarray],
    how: How,
) -> dict[str, Any]:
    """Return our accuracy less theirs at the largest budget that we can afford, if any."""
    fitting = np.flatnonzero(affordable)
    if not len(fitting):
        return {"budget": None}
    column = fitting[-1]
    oracle = {"oracle": bins["oracle"]}
    difference = _estimates((ours[column] - theirs)[:, None], oracle, how)[0]
    return {
        "budget": how.budgets[column],
        "ours": float(ours[column].mean()),
        "difference": difference,
    }


def _times_larger(
    rows: Sequence[Answered], policy: Config | None, larger: Config | None
) -> float | None:
    """Return M: the larger model's FLOPs over the policy's, for a greedy answer of the policy."""
    if policy is None or larger is None or rows[0].source is None:
        return None
    source = round(np.mean([row.source for row in rows if row.source is not None]))
    target = round(np.mean([row.policy_drawn for row in rows]))
    both = (decoding_flops(config, source, target) for config in (larger, policy))
    return round(next(both) / next(both), 6)
