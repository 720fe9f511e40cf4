"""How well scores predict outcomes: Brier score, area under the curve, reliability.

Labels may be soft: a label of 0.7 counts as 0.7 of a right one and 0.3 of a wrong one.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.core.statistics import Bootstrap, percentile_interval

BINS = 10
BOOTSTRAP = Bootstrap(resamples=1000)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Scores with their labels.

    Attributes:
        values: float [n] scores, each in 0 to 1.
        labels: float [n] shares of right continuations, in 0 to 1; 0 or 1 for whole solutions.
        weights: float [n] how often each counts.
        groups: int [n] the question of each; intervals resample questions.
    """

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.labels) == len(self.weights) == len(self.groups) > 0:
            raise ValueError(f"expected as many scores as labels, at least one, got {self}")
        for name in ("values", "labels"):
            column = getattr(self, name)
            if not (np.all(column >= 0) and np.all(column <= 1)):
                raise ValueError(f"expected {name} in 0 to 1, got {column.min()} to {column.max()}")


def brier(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean squared distance of the scores from single outcomes, 0 or 1.

    A soft label stands for its outcomes, so that the score of a perfect verifier is the mean of
    label (1 - label) and not 0.

    Example:
        >>> brier(np.array([0.5, 1.0]), np.array([0.5, 1.0]), np.ones(2))
        0.125

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    squares = labels * (1 - values) ** 2 + (1 - labels) * values**2
    return float(np.average(squares, weights=weights))


def auc(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return the chance that a right one has the higher score than a wrong one, ties half.

    Returns:
        NaN where all are right, or all wrong.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))
        0.875
    """
    _, level = np.unique(values, return_inverse=True)
    right = np.bincount(level, weights * labels)
    wrong = np.bincount(level, weights * (1 - labels))
    pairs = right.sum() * wrong.sum()
    below = np.cumsum(wrong) - wrong / 2
    return float(right @ below / pairs) if pairs else float("nan")


def reliability(scored: Scored, bins: int = BINS) -> list[dict[str, float]]:
    """Return for each bin of scores their mean and the share that was right.

    Args:
        scored: what to sort into bins of equal width.
        bins: their number; empty ones are absent.

    Returns:
        JSON rows: `low` and `high` of the bin, `n` (sum of weights), `score`, `right`.
    """
    places = np.minimum((scored.values * bins).astype(int), bins - 1)
    rows = []
    for place in np.unique(places):
        of_bin = places == place
        weights = scored.weights[of_bin]
        means = [np.average(x[of_bin], weights=weights) for x in (scored.values, scored.labels)]
        ends = {"low": place / bins, "high": (place + 1) / bins, "n": weights.sum()}
        rows.append(
            {name: float(x) for name, x in ends.items()}
            | dict(zip(("score", "right"), map(float, means), strict=True))
        )
    return rows


def calibration(scored: Scored, bootstrap: Bootstrap = BOOTSTRAP) -> dict[str, Any]:
    """Return Brier score and AUC with 95 % intervals, and the reliability table.

    Args:
        scored: scores and labels.
        bootstrap: over questions.

    Returns:
        JSON: `n`, `questions`, `right` (share), `brier` and `auc` as {value, low, high}, or without
        `auc` where all are right or all wrong, `brier_of_share`, the Brier score of the share
        of right ones as a constant score, and `reliability`.
    """
    share = float(np.average(scored.labels, weights=scored.weights))
    same = np.full(len(scored.values), share)
    report: dict[str, Any] = {
        "n": float(scored.weights.sum()),
        "questions": len(np.unique(scored.groups)),
        "right": share,
        "brier_of_share": brier(same, scored.labels, scored.weights),
        "reliability": reliability(scored),
    }
    drawn = list(_resampled(scored, bootstrap))
    for name, measure in (("brier", brier), ("auc", auc)):
        value = measure(scored.values, scored.labels, scored.weights)
        if np.isfinite(value):
            each = [measure(scored.values, scored.labels, weights) for weights in drawn]
            low, high = percentile_interval(np.array(each))
            report[name] = {"value": value, "low": float(low), "high": float(high)}
    return report


def _resampled(scored: Scored, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """Yield the weights in each bootstrap sample of the questions."""
    _, groups = np.unique(scored.groups, return_inverse=True)
    n = groups.max() + 1
    for weights in bootstrap.weights(n):
        yield scored.weights * weights[groups]


def picture(tables: dict[str, Sequence[dict[str, float]]]) -> Figure:
    """Draw reliability: the share right over the score, and the number of each score.

    Args:
        tables: rows of `reliability` by the name of what was scored.
    """
    figure = Figure((5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), color="#d5dae1", linewidth=1.2)
    for (name, rows), colour in zip(tables.items(), ("#0072B2", "#D55E00"), strict=False):
        score, right, n = ([row[key] for row in rows] for key in ("score", "right", "n"))
        axes.plot(score, right, "o-", color=colour, label=name, markersize=4, linewidth=1.8)
        counts.step([row["low"] for row in rows] + [1], [*n, n[-1]], where="post", color=colour)
    axes.set(ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    counts.set(xlabel="score", ylabel="number", yscale="log")
    return figure
