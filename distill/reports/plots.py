"""Plots of a run's page as PNG data URIs, each for the light and the dark colour scheme."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distill.core.records import Accuracy

WIDTH, DOTS_PER_INCH = 5.8, 160
Counts = Mapping[str, int]


class Theme(NamedTuple):
    """The colours of background, text, grid and curves."""

    paper: str
    ink: str
    faint: str
    curves: tuple[str, ...]


# Okabe and Ito's palette, which is safe for colour-blind readers; lighter on a dark background.
LIGHT_CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK_CURVES = ("#63B3ED", "#FF8A3D", "#3ECF9B", "#E79AC8", "#F2C14E", "#A9C7FF")
LIGHT = Theme("#ffffff", "#1c2430", "#d5dae1", LIGHT_CURVES)
DARK = Theme("#161b22", "#e3e8ee", "#3a434f", DARK_CURVES)


class Picture(NamedTuple):
    """One plot in both colour schemes, with its alternative text.

    Attributes:
        light: data URI of the PNG for the light scheme.
        dark: data URI of the PNG for the dark scheme.
        alt_text: description for readers who cannot see the plot.
    """

    light: str
    dark: str
    alt_text: str


def picture(draw: Callable[[Axes, Theme], None], height: float, alt_text: str) -> Picture:
    """Draw a plot once for each theme.

    Args:
        draw: draws the curves on the axes.
        height: inches; the width is fixed.
        alt_text: description of the plot.
    """
    return Picture(_png(draw, height, LIGHT), _png(draw, height, DARK), alt_text)


def _png(draw: Callable[[Axes, Theme], None], height: float, theme: Theme) -> str:
    figure = Figure((WIDTH, height), facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.set_prop_cycle(color=theme.curves)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    draw(axes, theme)
    _apply_theme(axes, theme)
    buffer = io.BytesIO()
    # Without Matplotlib's version in the metadata, equal runs give equal bytes.
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _apply_theme(axes: Axes, theme: Theme) -> None:
    axes.tick_params(colors=theme.ink, which="both")
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(theme.ink)
    legend = axes.get_legend()
    for text in legend.get_texts() if legend else ():
        text.set_color(theme.ink)
        text.set_parse_math(False)  # a set's name may contain dollar signs


def _legend(axes: Axes, entries: int) -> None:
    """Put the legend above the axes, where it covers no curve."""
    columns = min(entries, 3)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)


def loss(steps: Sequence[int], losses: Sequence[float]) -> Picture:
    """Return the loss curve, nats per token over optimizer steps."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(steps, losses, linewidth=1.8)
        axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
        axes.grid(axis="y", color=theme.faint, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    alt_text = f"Loss from {losses[0]:.3f} to {losses[-1]:.3f} nats per token at step {steps[-1]}."
    return picture(draw, 3.0, alt_text)


def checkpoints(table: Mapping[int, Mapping[str, Counts]], chosen: int | None) -> Picture:
    """Return accuracy over checkpoints, one curve a set, with the chosen step marked."""
    sets = list(dict.fromkeys(name for of_step in table.values() for name in of_step))

    def draw(axes: Axes, theme: Theme) -> None:
        for name in sets:
            steps = [step for step in sorted(table) if name in table[step]]
            values = [Accuracy(**table[step][name]).value for step in steps]
            axes.plot(steps, values, marker="o", markersize=4, linewidth=1.8, label=name)
        if chosen is not None:
            axes.axvline(chosen, color=theme.ink, linewidth=1.2, linestyle="--", label="chosen")
        axes.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=theme.faint, linewidth=0.6)
        _legend(axes, len(sets) + 1)

    alt_text = f"Accuracy on {', '.join(sets)} at steps {', '.join(map(str, sorted(table)))}"
    marked = "" if chosen is None else f"; step {chosen} is marked as chosen"
    return picture(draw, 3.4, f"{alt_text}{marked}.")


def price(entries: Sequence[Mapping[str, Any]]) -> Picture:
    """Return the mean accuracy over held-out and over general sets by step, with intervals.

    Args:
        entries: {"step", "specific", "general"}, the estimates as {"value", "low", "high"}.
    """
    steps = [entry["step"] for entry in entries]

    def draw(axes: Axes, theme: Theme) -> None:
        for colour, name in zip(theme.curves, ("specific", "general"), strict=False):
            value, low, high = (
                [entry[name][end] for entry in entries] for end in ("value", "low", "high")
            )
            axes.plot(steps, value, marker="o", markersize=4, color=colour, label=name)
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set(xlabel="optimizer step", ylabel="mean accuracy", ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=theme.faint, linewidth=0.6)
        _legend(axes, 2)

    first, last = entries[0]["general"]["value"], entries[-1]["general"]["value"]
    alt_text = f"Mean over general sets from {first:.0%} at step {steps[0]} to {last:.0%} at step"
    return picture(draw, 3.0, f"{alt_text} {steps[-1]}, beside that over held-out sets.")


def change(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> Picture:
    """Return accuracy before and after, set by set, with 95 % intervals."""
    sets = [name for name in before if name in after]

    def draw(axes: Axes, theme: Theme) -> None:
        for label, table, shift, colour in (
            ("before", before, -0.13, theme.curves[4]),
            ("after", after, 0.13, theme.curves[0]),
        ):
            accuracies = [Accuracy(**table[name]) for name in sets]
            _whiskers(axes, accuracies, shift, colour, label)
        axes.set_yticks(range(len(sets)), sets, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(len(sets) - 0.5, -0.5), xlabel="accuracy, with 95 % intervals")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="x", color=theme.faint, linewidth=0.6)
        _legend(axes, 2)

    return picture(draw, 1.3 + 0.55 * len(sets), f"Accuracy before and after on {len(sets)} sets.")


def by_budget(study: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any] | None]]:
    """Return a study's estimates by strategy or policy, one per budget, None if there is none.

    Args:
        study: the report of the stage `scale`.
    """
    estimates: dict[str, list[Mapping[str, Any] | None]] = {}
    for each in study["curves"]:
        points = {point["budget"]: point for point in each["points"]}
        estimates[each["strategy"]] = [points.get(budget) for budget in study["budgets"]]
    for kind, policy in study["policies"].items():
        estimates[f"policy, {kind} bins"] = list(policy["points"])
    return estimates


def compute_curves(study: Mapping[str, Any], bin_: int | None = None) -> Picture:
    """Return accuracy over the budget, policies dashed, overall or in one oracle bin."""
    budgets = study["budgets"]

    def draw(axes: Axes, theme: Theme) -> None:
        for position, (name, points) in enumerate(by_budget(study).items()):
            present = [(b, p) for b, p in zip(budgets, points, strict=True) if p is not None]
            rows = [p if bin_ is None else p["by_bin"]["oracle"][bin_] for _, p in present]
            colour = theme.curves[position % len(theme.curves)]
            style = "s--" if name.startswith("policy") else "o:" if position > 5 else "o-"
            at, values = [b for b, _ in present], [row["value"] for row in rows]
            axes.plot(at, values, style, color=colour, label=name, markersize=4, linewidth=1.6)
            low, high = ([row[end] for row in rows] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=colour, alpha=0.05, linewidth=0)
        axes.set(xlabel="budget, solutions", ylabel="accuracy", xscale="log")
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", color=theme.faint, linewidth=0.6)
        if bin_ is None:
            _legend(axes, len(by_budget(study)))

    scope = "on all questions" if bin_ is None else f"in bin {bin_ + 1} of difficulty"
    return picture(draw, 4.6 if bin_ is None else 2.8, f"Accuracy over the budget {scope}.")


def _whiskers(
    axes: Axes, accuracies: Sequence[Accuracy], shift: float, colour: str, label: str
) -> None:
    values = [accuracy.value for accuracy in accuracies]
    ends = [accuracy.interval() for accuracy in accuracies]
    lengths: Any = [
        [max(value - low, 0) for value, (low, _) in zip(values, ends, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    places = [place + shift for place in range(len(values))]
    axes.errorbar(
        values, places, xerr=lengths, fmt="o", color=colour, label=label, capsize=3, linewidth=2
    )
