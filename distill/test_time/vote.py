"""Estimate pass@k, maj@k, best-of-k and weighted best-of-k from graded samples of each problem.

Every number is the expectation over all subsets of k of a problem's n samples, never "the first k".
Ties are broken uniformly at random, and the expectation is over that too. A sample without an
answer counts as a sample but is never chosen. The command `distill vote` is `vote_command`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill.core.errors import UserError
from distill.core.statistics import Bootstrap, percentile_interval
from distill.grading import check, grade
from distill.grading.check import Grader

MAX_SUBSETS = 20_000
DRAWS = 4_096
RESAMPLES = 10_000
# Sums of scores that are so near each other, relative to the larger, are a tie.
_TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the samples of a problem are worth, in their order.

    Attributes:
        keys: the answer that each votes for, None where it has none.
        right: whether each is right.
        scores: of each, any finite numbers where higher is better; None where they are unknown.

    Raises:
        ValueError: lengths differ, there is no sample, one without an answer is right, or a score
            is not finite.
    """

    keys: tuple[str | None, ...]
    right: tuple[bool, ...]
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.right) == len(self.scores or self.keys) > 0:
            raise ValueError(
                f"expected as many keys as verdicts and scores, at least one, got {self}"
            )
        if any(right and key is None for key, right in zip(self.keys, self.right, strict=True)):
            raise ValueError(f"expected an answer where a sample is right, got {self}")
        if not all(map(math.isfinite, self.scores or ())):
            raise ValueError(f"expected finite scores, got {self.scores}")

    def __len__(self) -> int:
        return len(self.keys)

    def groups(self) -> list[list[int]]:
        """Return the places of the samples with an answer, by answer."""
        places: dict[str, list[int]] = {}
        for place, key in enumerate(self.keys):
            if key is not None:
                places.setdefault(key, []).append(place)
        return list(places.values())


def pass_at(samples: Samples, k: int) -> float:
    """Return the probability that some of k samples is right.

    Example:
        >>> pass_at(Samples(("7", "6", "6"), (True, False, False)), 2)
        0.6666666666666667
    """
    return some_right(sum(samples.right), len(samples), k)


def some_right(right: int, n: int, k: int) -> float:
    """Return the probability that k of n samples, of which so many are right, hold a right one.

    Raises:
        ValueError: there are fewer than k samples, or more right ones than samples.

    Example:
        >>> some_right(1, 4, 1), some_right(1, 4, 2), some_right(1, 4, 4), some_right(0, 4, 4)
        (0.25, 0.5, 1.0, 0.0)

    Source: the unbiased estimator of Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    if not 0 <= right <= n:
        raise ValueError(f"expected 0 to {n} right samples, got {right}")
    _check(n, k)
    return 1 - _none_of(right, n, k)


def _none_of(of: int, n: int, k: int) -> float:
    """Return the probability that k of n hold none of some, C(n - of, k) / C(n, k)."""
    return math.comb(n - of, k) / math.comb(n, k)


def elected(keys: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """Return the answer with the highest sum of weights, the first given of those that tie.

    Args:
        keys: what each sample votes for, None where it has no answer.
        weights: of each vote.

    Returns:
        None where no sample has an answer.

    Example:
        >>> elected(["7", None, "6", "7"], [0.3, 0.9, 0.5, 0.4])
        '7'
    """
    sums: dict[str, float] = {}
    for key, weight in zip(keys, weights, strict=True):
        if key is not None:
            sums[key] = sums.get(key, 0.0) + weight
    top = max(sums.values(), default=0.0)
    return next((key for key, each in sums.items() if each >= top - _TIE * abs(top)), None)


def vote(
    texts: Sequence[str], scores: Sequence[float] | None = None, *, grader: str = "default"
) -> str | None:
    """Return the answer that most of a question's solutions give, or that has the highest score.

    Args:
        texts: solutions of one question.
        scores: a weight for each, such as a verifier's probability; None counts each once.
        grader: reads the answers; two answers vote together where their keys are equal.

    Returns:
        The answer as its first solution writes it, None where no solution has one.

    Raises:
        ValueError: the number of scores differs from that of the texts.
        UserError: there is no grader of that name, or it judges programs.

    Example:
        >>> vote(["The answer is 7.", "The answer is 6.", "So the answer is 7"])
        '7'
        >>> vote(["The answer is 7.", "The answer is 6."], [0.2, 0.9])
        '6'
    """
    from distill.grading.graders import GRADERS

    if grader not in GRADERS:
        raise UserError(f"a grader of {', '.join(GRADERS)}", grader, "name one that reads answers")
    reader = GRADERS[grader]
    answers = [reader.extract(text) for text in texts]
    keys = [None if answer is None else reader.key(answer) for answer in answers]
    winner = elected(keys, [1.0] * len(keys) if scores is None else scores)
    return next((a for a, key in zip(answers, keys, strict=True) if key == winner), None)


def best(samples: Samples, k: int) -> float:
    """Return the probability that the sample with the highest score among k is right.

    With the samples sorted by score, those of one score are the best of the subset exactly where
    it holds none above and some of them; each of them is then as likely as the others.

    Raises:
        ValueError: there are no scores.

    Example:
        >>> best(Samples(("7", "6", "5"), (True, False, False), (0.9, 0.8, 0.1)), 2)
        0.6666666666666667
    """
    _check(len(samples), k)
    if samples.scores is None:
        raise ValueError("expected a score for every sample, got none")
    rows = zip(samples.scores, samples.keys, samples.right, strict=True)
    answered = sorted(((s, r) for s, key, r in rows if key is not None), key=lambda row: -row[0])
    above, expected, n = 0, 0.0, len(samples)
    for _, level in itertools.groupby(answered, key=lambda row: row[0]):
        rights = [right for _, right in level]
        chosen = _none_of(above, n, k) - _none_of(above + len(rights), n, k)
        expected += chosen * sum(rights) / len(rights)
        above += len(rights)
    return expected


def majority(samples: Samples, k: int) -> float:
    r"""Return the probability that the answer given most often among k samples is right.

    The counts of the answers in a random subset are independent binomials of rate p = k/n under the
    condition that they sum to k. So for an answer with m votes the others are convolved, each with
    less than m votes or a tie; with t ties it wins one time in t + 1:

    .. math:: P(g) = \sum_{m,t} \frac{P(m\ of\ g,\ others < m\ but\ t\ ties,\ sum = k)}
              {(t + 1) P(sum = k)}

    A share of its samples may be right, where the grader takes two forms of one answer differently;
    each is then as likely as the others to speak for it.

    Example:
        >>> samples = Samples(("7", "7", "6", None), (True, True, False, False))
        >>> round(majority(samples, 2), 6), round(majority(samples, 3), 6)
        (0.75, 0.875)
    """
    _check(len(samples), k)
    groups, n = samples.groups(), len(samples)
    silent = n - sum(map(len, groups))
    rate = k / n
    total = 0.0
    for place, group in enumerate(groups):
        share = sum(samples.right[member] for member in group) / len(group)
        others = [len(other) for other in groups[:place] + groups[place + 1 :]]
        if share:
            votes = range(1, min(len(group), k) + 1)
            wins = (_binomial(len(group), rate)[m] * _wins(others, silent, m, k, n) for m in votes)
            total += share * math.fsum(wins)
    return total / _binomial(n, rate)[k]


def _wins(others: Sequence[int], silent: int, votes: int, k: int, n: int) -> float:
    """Return the chance that the rest has k - votes and does not beat these votes, ties shared."""
    rest, rate = k - votes, k / n
    ways = np.zeros((rest // votes + 1, rest + 1))  # by ties and by samples
    ways[0] = _padded(_binomial(silent, rate), rest)
    for size in others:
        rates, before = _binomial(size, rate), ways
        ways = np.zeros_like(before)
        for count in range(min(size, votes - 1, rest) + 1):
            ways[:, count:] += rates[count] * before[:, : rest + 1 - count]
        if votes <= min(size, rest):
            ways[1:, votes:] += rates[votes] * before[:-1, : rest + 1 - votes]
    return float((ways[:, rest] / np.arange(1, len(ways) + 1)).sum())


def _binomial(size: int, rate: float) -> list[float]:
    if rate == 1:
        return [0.0] * size + [1.0]
    hit, miss = math.log(rate), math.log1p(-rate)
    logs = [math.lgamma(count + 1) for count in range(size + 1)]  # of the factorials
    ways = [logs[size] - logs[count] - logs[size - count] for count in range(size + 1)]
    return [math.exp(way + c * hit + (size - c) * miss) for c, way in enumerate(ways)]


def _padded(values: Sequence[float], last: int) -> np.ndarray:
    padded = np.zeros(last + 1)
    padded[: len(values)] = values[: last + 1]
    return padded


def weighted(
    samples: Samples, k: int, random: np.random.Generator, *, max_subsets: int = MAX_SUBSETS
) -> tuple[float, int]:
    """Return the probability that the answer with the highest sum of scores among k is right.

    Sums within 1e-9 of the highest, relative to it, are ties.

    Args:
        samples: their scores are at least 0.
        k: samples in a subset.
        random: draws the subsets where there are more than `max_subsets`.
        max_subsets: the most that are enumerated.

    Returns:
        The probability, and the number of random subsets it is the mean of, 0 where it is exact.

    Raises:
        ValueError: there are no scores, or one is below 0.

    Source: Li et al. 2022 (DIVERSE), equation 2, in expectation over the subsets.
    """
    _check(len(samples), k)
    if samples.scores is None or min(samples.scores) < 0:
        raise ValueError(f"expected a score of at least 0 each, got {samples.scores}")
    n, groups = len(samples), samples.groups()
    if not groups:
        return 0.0, 0
    exact = math.comb(n, k) <= max_subsets
    if exact:
        subsets = np.array(list(itertools.combinations(range(n), k)))
    else:
        subsets = np.argpartition(random.random((DRAWS, n)), k - 1, axis=1)[:, :k]
    held = np.zeros((len(subsets), n))
    np.put_along_axis(held, subsets, 1.0, axis=1)
    member = np.zeros((n, len(groups)))
    for column, group in enumerate(groups):
        member[group, column] = 1
    counts = held @ member
    sums = held @ (member * np.asarray(samples.scores)[:, None])
    sums[counts == 0] = -np.inf
    top = sums.max(axis=1, keepdims=True)
    wins = (sums >= top - _TIE * np.abs(top)) & (counts > 0)
    share = held @ (member * np.asarray(samples.right)[:, None]) / np.maximum(counts, 1)
    chances = (wins * share).sum(axis=1) / np.maximum(wins.sum(axis=1), 1)
    return float(chances.mean()), 0 if exact else DRAWS


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"expected k of 1 to {n} samples, got {k}")


def read(row: dict[str, Any], name: str, grader: Grader) -> Samples:
    """Grade the samples of a row; scores are None where any is missing.

    Raises:
        UserError: gold, samples or a text is missing or of the wrong kind, or a score is not a
            finite number.
    """
    gold = grade.gold_of(row, name)
    samples = grade.field(row, "samples", name)
    if (
        not isinstance(samples, list)
        or not samples
        or not all(isinstance(s, dict) for s in samples)
    ):
        raise UserError(f"a list of samples on {name}", f"{samples!r:.60}", "mend or drop the row")
    names = [f"sample {place} of {name}" for place in range(1, len(samples) + 1)]
    texts = [grade.text_of(s, "text", each) for s, each in zip(samples, names, strict=True)]
    judged = [check.judge(text, gold, grader) for text in texts]
    scores = [_score(s.get("score"), each) for s, each in zip(samples, names, strict=True)]
    known = tuple(score for score in scores if score is not None)
    return Samples(
        tuple(None if answer is None else grader.key(answer) for _, answer, _ in judged),
        tuple(verdict == "right" for verdict, _, _ in judged),
        known if len(known) == len(scores) else None,
    )


def _score(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise UserError(f"a finite number as score of {name}", f"{value!r:.60}", "mend it")
    return float(value)


def summarise(
    problems: Sequence[Samples], *, max_k: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Estimate everything at every k.

    Args:
        problems: the samples of each.
        max_k: the largest k; None for as many as the problem with the fewest samples has.
        seed: of the bootstrap and of random subsets.

    Returns:
        JSON with `problems`, `samples` (fewest and most), and under `estimates` for each name a
        list of {k, value, low, high, n}, shares of 1; `draws` where subsets were drawn. What is
        absent has its reason under `absent`.
    """
    sizes = [len(samples) for samples in problems]
    limit = min([*sizes, *([] if max_k is None else [max_k])]) if problems else 0
    scored = [s.scores is not None for s in problems]
    missing = f"{scored.count(False)} of {len(scored)} problems have a sample without score"
    negative = any(min(s.scores) < 0 for s in problems if s.scores is not None)
    absent = {} if all(scored) else {"best": missing, "weighted": missing}
    if negative:
        absent.setdefault("weighted", "a score is below 0")
    draws = np.random.default_rng(seed)
    weights = Bootstrap(RESAMPLES, seed, stream=(1,)).weights(len(problems)) if problems else None
    measures: dict[str, Callable[[Samples, int], tuple[float, int]]] = {
        "pass": lambda samples, k: (pass_at(samples, k), 0),
        "majority": lambda samples, k: (majority(samples, k), 0),
        "best": lambda samples, k: (best(samples, k), 0),
        "weighted": lambda samples, k: weighted(samples, k, draws),
    }
    estimates: dict[str, list[dict[str, Any]]] = {
        name: [] for name in measures if name not in absent
    }
    for name in estimates:
        for k in itertools.takewhile(lambda k: k <= limit, (2**power for power in range(63))):
            values, drawn = zip(*(measures[name](s, k) for s in problems), strict=True)
            low, high = percentile_interval(weights @ np.asarray(values))
            row = {"k": k, "value": float(np.mean(values)), "low": float(low), "high": float(high)}
            row |= {"n": len(problems)} | ({"draws": max(drawn)} if max(drawn) else {})
            estimates[name].append(row)
    spread = {"fewest": min(sizes), "most": max(sizes)} if sizes else {}
    return {
        "problems": len(problems),
        "samples": spread,
        "seed": seed,
        "estimates": estimates,
        "absent": absent,
    }
