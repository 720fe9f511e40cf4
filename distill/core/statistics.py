"""Intervals at 95 %: paired accuracies, means over sets, and the bootstrap over questions.

The Wilson interval of one accuracy is `records.Accuracy.interval`.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from distill.core.records import Accuracy

# A value with the ends of its 95 % interval, all as shares.
Estimate = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Paired:
    """How two models answered the same problems.

    Attributes:
        both: number that both have right.
        lost: number that only the first has right.
        gained: number that only the second has right.
        neither: number that neither has right.

    Example:
        >>> change = Paired(both=20, lost=5, gained=15, neither=60)
        >>> [round(x, 3) for x in change.estimate()], round(change.p_value(), 3)
        ([0.1, 0.012, 0.187], 0.041)
    """

    both: int
    lost: int
    gained: int
    neither: int

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 0 or self.n == 0:
            raise ValueError(f"expected counts >= 0 that are not all 0, got {self}")

    @property
    def n(self) -> int:
        """The number of problems."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def before(self) -> Accuracy:
        """The accuracy of the first."""
        return Accuracy(self.both + self.lost, self.n)

    @property
    def after(self) -> Accuracy:
        """The accuracy of the second."""
        return Accuracy(self.both + self.gained, self.n)

    @property
    def correlation(self) -> float:
        """The phi coefficient, drawn to 0 by a continuity correction where it is positive."""
        a, b, c, d = dataclasses.astuple(self)
        product = (a + b) * (c + d) * (a + c) * (b + d)
        excess = a * d - b * c
        corrected = max(excess - self.n / 2, 0) if excess > 0 else excess
        return corrected / math.sqrt(product) if product else 0.0

    def estimate(self) -> Estimate:
        """Return after minus before with its 95 % interval.

        Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10: the two Wilson intervals
        squared and added, less what the pairing explains.
        """
        (p, p_low, p_high), (q, q_low, q_high) = map(of_accuracy, (self.after, self.before))
        down = _paired(p - p_low, q_high - q, self.correlation)
        up = _paired(p_high - p, q - q_low, self.correlation)
        return p - q, p - q - down, p - q + up

    def p_value(self) -> float:
        """Return the two-sided exact p-value of no difference.

        Source: McNemar 1947, on the binomial distribution of the problems that changed.
        """
        from scipy.stats import binomtest  # half a second that only a report needs

        changed = self.gained + self.lost
        return float(binomtest(self.gained, changed).pvalue) if changed else 1.0


def _paired(x: float, y: float, correlation: float) -> float:
    return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))


def pair(answers: Iterable[tuple[bool, bool]]) -> Paired:
    """Count (right before, right after) of each problem.

    Example:
        >>> pair([(True, True), (False, True), (False, True)])
        Paired(both=1, lost=0, gained=2, neither=0)
    """
    pairs = list(answers)
    counts = [pairs.count(kind) for kind in ((True, True), (True, False), (False, True))]
    return Paired(*counts, neither=len(pairs) - sum(counts))


def of_accuracy(accuracy: Accuracy) -> Estimate:
    """Return an accuracy with its Wilson interval."""
    return accuracy.value, *accuracy.interval()


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent estimates with its 95 % interval.

    The distances to the ends are squared and added, on each side apart, so that the interval of
    one estimate stays as it is.

    Raises:
        ValueError: there is nothing to take the mean of.

    Example:
        >>> [round(x, 3) for x in mean([(0.5, 0.4, 0.6), (0.3, 0.2, 0.4)])]
        [0.4, 0.329, 0.471]

    Source: the method of variance estimates recovery, Zou and Donner 2008, Statistics in Medicine
    27:1693.
    """
    if not estimates:
        raise ValueError("expected an estimate, got none")
    value = sum(estimate[0] for estimate in estimates) / len(estimates)
    down = math.hypot(*(centre - low for centre, low, _ in estimates)) / len(estimates)
    up = math.hypot(*(high - centre for centre, _, high in estimates)) / len(estimates)
    return value, value - down, value + up


# --- The bootstrap -----------------------------------------------------------------------------

PERCENTILES = (2.5, 97.5)


def percentile_interval(
    draws: Float[np.ndarray, "resample *shape"],
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Return the ends of the 95 % percentile interval of bootstrap values; NaN is left out.

    Source: Efron and Tibshirani 1993, section 13.3.
    """
    low, high = np.nanpercentile(draws, PERCENTILES, axis=0)
    return low, high


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Bootstrap samples of questions, for 95 % percentile intervals.

    Samples of equal n, number and seed are the same, so that differences between two measures of
    the same questions are paired.

    Attributes:
        resamples: number of bootstrap samples.
        seed: of the resampling.
        stream: one of several independent streams of a seed; () is the first.

    Example:
        >>> Bootstrap(resamples=100).means(np.ones((5, 1)))
        [{'value': 1.0, 'low': 1.0, 'high': 1.0}]

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 6.
    """

    resamples: int
    seed: int = 0
    stream: tuple[int, ...] = ()

    def weights(self, n: int) -> Float[np.ndarray, "resample question"]:
        """Return the share of each of n questions in each sample; a row adds up to 1."""
        random = np.random.default_rng([self.seed, *self.stream])
        return random.multinomial(n, np.full(n, 1 / n), self.resamples) / n

    def means(self, values: Float[np.ndarray, "question measure"]) -> list[dict[str, float]]:
        """Return the mean over questions of each measure with its interval, to six digits."""
        low, high = percentile_interval(self.weights(len(values)) @ values)
        rows = zip(values.mean(0), low, high, strict=True)
        return [{"value": v, "low": a, "high": b} for v, a, b in np.round([*rows], 6).tolist()]
