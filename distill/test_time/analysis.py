"""The report of a study from its records: curves, bins, policies, and models at equal FLOPs."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distill.core.records import Answered
from distill.core.statistics import Bootstrap
from distill.models.flops import decoding_flops
from distill.test_time import allocate, difficulty, ledger, outcomes
from distill.test_time.allocate import Policy
from distill.test_time.difficulty import Linear
from distill.test_time.ledger import Config
from distill.test_time.outcomes import (
    BASELINE,
    DIFFICULTY,
    GREEDY,
    TOKENS,
    Outcomes,
    Records,
    Shapes,
)

Bins = Mapping[str, Int[np.ndarray, "question"]]


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `study.run` of the same names, and the bootstrap over questions."""

    budgets: tuple[int, ...]
    bins: int
    ratios: tuple[float, ...]
    bootstrap: Bootstrap


@dataclasses.dataclass(frozen=True, eq=False)
class Eases:
    """The ease of each question, higher is easier.

    Attributes:
        by_kind: float [question] each, of `oracle`, `predicted` and, where known, `encoder`.
        encoder_flops: of reading each prompt once.
        estimator: of `encoder`, fitted to all questions, for new ones.
    """

    by_kind: Mapping[str, Float[np.ndarray, "question"]]
    encoder_flops: Float[np.ndarray, "question"] | None = None
    estimator: Linear | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Study:
    """The inputs of a report."""

    records: Records
    eases: Eases
    shapes: Shapes
    options: Options
    results: Outcomes
    bins: Bins

    @property
    def baseline(self) -> Float[np.ndarray, "budget question"]:
        """The accuracy of weighted best-of-N."""
        return self.results.right[self.results.names.index(BASELINE)]

    def allocated(self) -> dict[str, "_Allocated"]:
        """Return the accuracy and cost of the policy of each kind of bins."""
        of_samples = outcomes.flops_of(self.records.single(DIFFICULTY)[1], self.shapes)
        costs = {kind: of_samples for kind in self.bins}
        if self.eases.encoder_flops is not None:
            costs["encoder"] = self.eases.encoder_flops
        return {
            kind: _Allocated.of(self.results, self.records.ids, bins, costs[kind])
            for kind, bins in self.bins.items()
        }


def analyse(
    records: Records, eases: Eases, shapes: Shapes, options: Options
) -> tuple[dict[str, Any], dict[str, Policy]]:
    """Return the content of scale.json, and the policies that need no gold answer.

    Args:
        records: all of a study's.
        eases: of its questions.
        shapes: of its models.
        options: of the study.
    """
    bins = {kind: _bins(records.ids, ease, options.bins) for kind, ease in eases.by_kind.items()}
    of_all = outcomes.measure(records, shapes, options.budgets)
    study = _Study(records, eases, shapes, options, of_all, bins)
    allocated = study.allocated()
    report = {
        "questions": len(records.problems),
        "sets": _counts([problem.source for problem in records.problems]),
        "budgets": list(options.budgets),
        "difficulty_samples": records.single(DIFFICULTY)[0],
        "resamples": options.bootstrap.resamples,
        "seed": options.bootstrap.seed,
        "greedy": _estimates(_greedy(records, GREEDY)[:, None], bins, options)[0],
        "curves": [
            {"strategy": name, "points": _points(study, place)}
            for place, name in enumerate(of_all.names)
        ],
        "bins": {kind: _bins_report(bins[kind], eases, kind) for kind in bins},
        "policies": {kind: _policy_report(study, kind, each) for kind, each in allocated.items()},
        "matched": list(_matched(study, allocated)),
    }
    return report, {kind: _policy(study, kind) for kind in bins if kind in allocate.KINDS}


def _policy_report(study: _Study, kind: str, policy: "_Allocated") -> dict[str, Any]:
    """Return the accuracy, cost and choices of a policy, and the samples that it saves."""
    options = study.options
    return {
        "points": _estimates(policy.right.T, study.bins, options),
        "flops": _mean(policy.flops.mean(1)),
        "strategies": policy.strategies(study.results.names, study.bins[kind]),
        "saved": allocate.saved_samples(
            policy.right.T,
            study.baseline.T,
            options.budgets,
            bootstrap=options.bootstrap,
        ),
    }


def _policy(study: _Study, kind: str) -> Policy:
    """Return the policy to use: the best strategies on all questions."""
    ease = dict(zip(study.records.ids, study.eases.by_kind[kind].tolist(), strict=True))
    values = study.results.right.transpose(1, 0, 2)
    by_encoder = kind == "encoder"
    return Policy(
        study.options.budgets,
        allocate.best_by_bin(values, study.results.names, study.bins[kind]),
        difficulty.edges(ease, study.options.bins),
        kind,
        0 if by_encoder else study.records.single(DIFFICULTY)[0],
        study.eases.estimator if by_encoder else None,
    )


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracies at the largest budget."""
    last = {each["strategy"]: each["points"][-1]["value"] for each in report["curves"]}
    policies = {kind: each["points"][-1]["value"] for kind, each in report["policies"].items()}
    names = {BASELINE: last[BASELINE], "best_of-majority": last["best_of-majority"]}
    return {"greedy": report["greedy"]["value"], **names, **policies}


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _greedy(records: Records, name: str) -> Float[np.ndarray, "question"]:
    return np.array([row.right for row in records.single(name)[1]], float)


def _bins(ids: Sequence[str], ease: np.ndarray, count: int) -> Int[np.ndarray, "question"]:
    by_id = difficulty.bins(dict(zip(ids, ease.tolist(), strict=True)), count)
    return np.array([by_id[name] for name in ids])


def _bins_report(bins: np.ndarray, eases: Eases, kind: str) -> dict[str, Any]:
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
    bins: Bins,
    options: Options,
) -> list[dict[str, Any]]:
    """Return the mean of each column with its interval, overall and in each bin of each kind."""
    overall = options.bootstrap.means(values)
    by_kind = {
        kind: [options.bootstrap.means(values[of_kind == bin_]) for bin_ in range(options.bins)]
        for kind, of_kind in bins.items()
    }
    return [
        {**row, "by_bin": {kind: [of[column] for of in rows] for kind, rows in by_kind.items()}}
        for column, row in enumerate(overall)
    ]


def _points(study: _Study, place: int) -> list[dict[str, Any]]:
    """Return a strategy's accuracy and cost a question at each budget that it accepts.

    `less_baseline` is the accuracy less that of weighted best-of-N, paired by question.
    """
    right, tokens, flops = (
        of[place] for of in (study.results.right, study.results.tokens, study.results.flops)
    )
    there = np.flatnonzero(~np.isnan(right[:, 0]))
    paired = (right[there] - study.baseline[there]).T
    rows = zip(
        (study.options.budgets[column] for column in there),
        _estimates(right[there].T, study.bins, study.options),
        study.options.bootstrap.means(paired),
        _mean(flops[there].mean(1)),
        [dict(zip(TOKENS, _mean(each), strict=True)) for each in tokens[there].mean(1)],
        strict=True,
    )
    return [
        {"budget": budget, **row, "less_baseline": less, "flops": cost, "tokens": spent}
        for budget, row, less, cost, spent in rows
    ]


def _mean(values: np.ndarray) -> list[float | None]:
    """Return means for JSON, None where unknown."""
    return [None if np.isnan(value) else round(value, 3) for value in values.tolist()]


# --- The compute-optimal policy ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Allocated:
    """The accuracy and cost of the policy of one kind of bins, chosen on the other fold.

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
        cls, results: Outcomes, ids: Sequence[str], bins: np.ndarray, cost: np.ndarray | None
    ) -> "_Allocated":
        fold_of = allocate.folds(ids, bins)
        columns = range(results.right.shape[1])
        pairs = [
            allocate.cross_validate(results.right[:, column], bins, fold_of) for column in columns
        ]
        right, chosen = (np.stack(each) for each in zip(*pairs, strict=True))
        questions = np.arange(len(ids))
        flops = np.stack([results.flops[chosen[c], c, questions] for c in columns])
        return cls(right, flops + (np.nan if cost is None else cost), chosen)

    def strategies(self, names: Sequence[str], bins: np.ndarray) -> list[list[list[str]]]:
        """Return the strategies of both folds by bin and budget."""
        return [
            [
                [names[int(place)] for place in np.unique(of_budget[bins == bin_])]
                for of_budget in self.chosen
            ]
            for bin_ in range(bins.max() + 1)
        ]


def _matched(study: _Study, allocated: Mapping[str, _Allocated]) -> Iterator[dict[str, Any]]:
    """Yield the policies against each larger model, greedy, at equal FLOPs.

    Counted in two ways: `samples` as the paper counts, N samples for N; and `flops`, in which
    generator, verifier and difficulty are counted by their shapes, over those of one greedy answer.
    """
    _, rows = study.records.single(GREEDY)
    single = outcomes.flops_of(rows, study.shapes).mean()
    for name, config in study.shapes.larger.items():
        times = _times_larger(rows, study.shapes.generator, config)
        if times is None or times < 1:
            continue
        theirs = _greedy(study.records, name)
        for ratio, (kind, each) in itertools.product(study.options.ratios, allocated.items()):
            allowed = ledger.matched_samples(times, ratio)
            where = {"larger": name, "times": times, "ratio": ratio, "allowed": allowed}
            where |= {"difficulty": kind, "theirs": float(theirs.mean())}
            budgets = np.array(study.options.budgets, float)
            for counted, costs in (("samples", budgets), ("flops", each.flops.mean(1) / single)):
                against = _against(study, each.right, theirs, costs <= allowed)
                yield {**where, "counted": counted, **against}


def _against(
    study: _Study, ours: np.ndarray, theirs: np.ndarray, affordable: np.ndarray
) -> dict[str, Any]:
    """Return our accuracy less theirs at the largest budget that we can afford, if any."""
    fitting = np.flatnonzero(affordable)
    if not len(fitting):
        return {"budget": None}
    column = int(fitting[-1])
    oracle = {"oracle": study.bins["oracle"]}
    difference = _estimates((ours[column] - theirs)[:, None], oracle, study.options)[0]
    mean = float(ours[column].mean())
    return {"budget": study.options.budgets[column], "ours": mean, "difference": difference}


def _times_larger(
    rows: Sequence[Answered], generator: Config | None, larger: Config | None
) -> float | None:
    """Return M, the FLOPs of the larger model over the generator's at the length of its answers."""
    if generator is None or larger is None or rows[0].source is None:
        return None
    source = round(np.mean([row.source for row in rows if row.source is not None]))
    target = round(np.mean([row.policy_drawn for row in rows]))
    both = (decoding_flops(config, source, target) for config in (larger, generator))
    return round(next(both) / next(both), 6)
