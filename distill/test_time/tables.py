"""A study of compute at test time as Markdown tables; works nothing out."""

from collections.abc import Iterator, Mapping
from typing import Any

from distill.test_time.outcomes import BASELINE

Report = Mapping[str, Any]


def markdown(report: Report) -> Iterator[str]:
    """Yield the lines of the tables: accuracy by budget, policies, bins, and equal FLOPs.

    Args:
        report: the content of scale.json.
    """
    counts = ", ".join(f"{name} {count}" for name, count in report["sets"].items())
    yield f"{report['questions']} questions ({counts}); accuracy in percent with 95 % intervals\n"
    yield from _accuracies(report)
    yield from _paired(report)
    yield from _saved(report)
    yield from _bins(report)
    yield from _matched(report)


def _accuracies(report: Report) -> Iterator[str]:
    yield _row("strategy", *(f"N = {budget}" for budget in report["budgets"]))
    yield _rule(1 + len(report["budgets"]))
    yield _row("greedy", _cell(report["greedy"]), *[""] * (len(report["budgets"]) - 1))
    for each in report["curves"]:
        points = {point["budget"]: _cell(point) for point in each["points"]}
        yield _row(each["strategy"], *(points.get(budget, "") for budget in report["budgets"]))
    for kind, each in report["policies"].items():
        yield _row(f"policy, {kind} bins", *map(_cell, each["points"]))
    yield ""


def _paired(report: Report) -> Iterator[str]:
    yield "Less weighted best-of-N, paired by question, in points:\n"
    yield _row("strategy", *(f"N = {budget}" for budget in report["budgets"]))
    yield _rule(1 + len(report["budgets"]))
    for each in report["curves"]:
        if each["strategy"] != BASELINE:
            points = {p["budget"]: _cell(p["less_baseline"], sign="+") for p in each["points"]}
            yield _row(each["strategy"], *(points.get(budget, "") for budget in report["budgets"]))
    yield ""


def _saved(report: Report) -> Iterator[str]:
    yield "Samples of weighted best-of-N over those of the policy, at equal accuracy:\n"
    yield _row("policy", *(f"against N = {budget}" for budget in report["budgets"]))
    yield _rule(1 + len(report["budgets"]))
    for kind, each in report["policies"].items():
        yield _row(f"{kind} bins", *map(_times, each["saved"]))
    yield ""


def _times(row: Mapping[str, Any]) -> str:
    value = "not reached" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return f"{value} [{row['low']:.2f}, {row['high']:.2f}]"


def _bins(report: Report) -> Iterator[str]:
    """Yield accuracy by oracle bin at each budget, then what each policy chose."""
    count = len(report["bins"]["oracle"]["sizes"])
    heads = [f"bin {place + 1}" for place in range(count)]
    yield "By oracle bin, from the easiest:\n"
    yield _row("strategy", "N", *heads)
    yield _rule(2 + count)
    for each in report["curves"]:
        for point in each["points"]:
            cells = map(_cell, point["by_bin"]["oracle"])
            yield _row(each["strategy"], str(point["budget"]), *cells)
    yield "\nChosen, one of each fold:\n"
    yield _row("bins", "N", *heads)
    yield _rule(2 + count)
    for kind, each in report["policies"].items():
        for column, budget in enumerate(report["budgets"]):
            chosen = (" / ".join(of_bin[column]) for of_bin in each["strategies"])
            yield _row(kind, str(budget), *chosen)
    yield ""


def _matched(report: Report) -> Iterator[str]:
    if not report["matched"]:
        return
    yield "The policy against a larger model, greedy, at equal FLOPs; ours less theirs in points:\n"
    count = len(report["bins"]["oracle"]["sizes"])
    heads = [f"bin {place + 1}" for place in range(count)]
    yield _row("larger", "M", "R", "bins", "counted", "allowed", "N", "theirs", "overall", *heads)
    yield _rule(9 + count)
    for row in report["matched"]:
        where = [row["larger"], f"{row['times']:.2f}", f"{row['ratio']:g}", row["difficulty"]]
        where += [row["counted"], f"{row['allowed']:.1f}"]
        theirs = f"{100 * row['theirs']:.1f}"
        if row["budget"] is None:
            yield _row(*where, "none", theirs, *[""] * (1 + count))
            continue
        overall = row["difference"]
        by_bin = (_cell(each, sign="+") for each in overall["by_bin"]["oracle"])
        yield _row(*where, str(row["budget"]), theirs, _cell(overall, sign="+"), *by_bin)


def _cell(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
