"""A report as one self-contained HTML page; all of its text is escaped, and it runs no script."""

import html
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill.core import statistics
from distill.core.records import Accuracy
from distill.reports import plots

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --quiet: #5b6675;
  --line: #d5dae1; --back: #f3f5f8; --accent: #0072b2; --good: #00795a; --bad: #b34700 }
@media (prefers-color-scheme: dark) { :root { --paper: #161b22; --ink: #e3e8ee; --quiet: #9aa5b3;
  --line: #3a434f; --back: #0d1117; --accent: #63b3ed; --good: #3ecf9b; --bad: #ff9a57 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
header p, .note, footer { color: var(--quiet) }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .3rem 0 .4rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 0 0 .7rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.2rem; margin: 1rem 0 }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)) }
.tiles div { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem .9rem }
.tiles b { display: block; font-size: 1.25rem; line-height: 1.4; white-space: nowrap }
.tiles span, .note, footer { font-size: .87rem }
.scroll { overflow-x: auto } .scroll + .scroll { margin-top: 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { font-weight: 600; color: var(--quiet); font-size: .87rem }
th:first-child, td:first-child { text-align: left }
tr.sum td { font-weight: 600; border-bottom: 0 }
td small { color: var(--quiet); font-weight: 400; font-size: .8rem }
tr.chosen td { background: color-mix(in srgb, var(--accent) 12%, transparent) }
.good { color: var(--good) } .bad { color: var(--bad) }
img { display: block; width: 100%; max-width: 40rem; height: auto; margin: .8rem auto 0 }
.bar { background: var(--accent); height: .7rem; border-radius: 3px; min-width: 1px }
td.wide { width: 45%; min-width: 7rem }
pre { background: var(--back); border-radius: 6px; padding: .6rem .8rem; margin: .3rem 0 .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-size: .87rem }
.pair { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)) }
.label { font-size: .8rem; color: var(--quiet) }
summary { cursor: pointer; color: var(--accent) }
@media (max-width: 40rem) { section { padding: .9rem .8rem } th, td { padding: .35rem .25rem }
  table { font-size: .87rem }  td small { display: block } td.wide { width: 25%; min-width: 3rem } }
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report as `distill.reports.report.report` returns it.

    Args:
        report: the run's figures and texts; every text is taken as hostile and escaped.
    """
    parts = (
        _section("Accuracy before and after", "accuracy", report, _accuracy),
        _section("Choice of the checkpoint", "checkpoints", report, _checkpoints),
        _wrapped("The price of specialising", _price(report)) if _is_priced(report) else "",
        _section("Training", "training", report, _training),
        _section("Harvest", "harvest", report, _harvest),
        _section("Alignment", "alignment", report, _alignment),
        _section("Data set", "dataset", report, _dataset),
        _wrapped("Contamination", _contamination(report)) if _is_cleaned(report) else "",
        _section("Answers before and after", "samples", report, _samples),
        _section("Traces of the teacher", "traces", report, _traces),
        _wrapped("Compute at test time", _scaling(report)) if "scaling" in report else "",
        _wrapped("Time", _times(report)),
        _wrapped("Settings", _settings(report)),
    )
    name = _text(report["run"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: distillation report</title><style>{STYLE}</style></head><body><main>"
        f"<header><p>Distillation report{_made(report)}</p><h1>{name}</h1>{_purpose(report)}"
        "</header>"
        f"{_tiles(report)}{''.join(parts)}{_footer()}</main></body></html>\n"
    )


def _text(value: object) -> str:
    """Escape, also in attributes; control and direction characters become visible."""
    visible = "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf")
        else "\N{REPLACEMENT CHARACTER}"
        for char in str(value)
    )
    return html.escape(visible.encode("utf-8", "replace").decode())


def _section(title: str, part: str, report: Mapping[str, Any], body: Any) -> str:
    if part in report:
        return _wrapped(title, body(report))
    return _wrapped(title, f'<p class="note">Not known: {_text(report["absent"][part])}.</p>')


def _wrapped(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def _row(cells: Iterable[str], kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _picture(picture: plots.Picture) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{picture.dark}">'
    light = f'<img src="{picture.light}" alt="{_text(picture.words)}">'
    return f"<picture>{dark}{light}</picture>"


# --- Numbers -----------------------------------------------------------------------------------


def _percent(counts: Mapping[str, int]) -> str:
    value, low, high = statistics.of_accuracy(Accuracy(**counts))
    return f"{100 * value:.1f} % <small>[{100 * low:.1f}, {100 * high:.1f}]</small>"


def _points(estimate: Mapping[str, float], *, signed: bool = True) -> str:
    sign = "+" if signed else ""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    kind = "" if not signed or low <= 0 <= high else " class=good" if low > 0 else " class=bad"
    return (
        f"<span{kind}>{value:{sign}.1f}</span> <small>[{low:{sign}.1f}, {high:{sign}.1f}]</small>"
    )


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "&lt; 0.001"


def _duration(seconds: float) -> str:
    """Return seconds as people say them.

    Example:
        >>> _duration(75.2), _duration(4.26)
        ('1 min 15 s', '4.3 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _bars(counts: Mapping[str, float], shown: Mapping[str, str], head: Sequence[str]) -> str:
    """Return a table with a bar for each count, in proportion to their sum."""
    total = sum(counts.values()) or 1
    rows = (
        f"<tr><td>{_text(name)}</td><td>{shown[name]}</td><td>{100 * count / total:.1f} %</td>"
        f'<td class="wide">{_bar(count / total)}</td></tr>'
        for name, count in counts.items()
    )
    return _table((*head, "share", ""), rows)


def _bar(share: float) -> str:
    return f'<div class="bar" style="width:{100 * share:.2f}%"></div>' if share else ""


# --- Parts -------------------------------------------------------------------------------------


def _purpose(report: Mapping[str, Any]) -> str:
    done = [name for name, complete in report["complete"].items() if complete]
    left = [name for name in report["complete"] if name not in done]
    state = f"{len(done)} stages complete" + (f", {', '.join(left)} not finished" if left else "")
    given = report["settings"]
    teacher = _name(given.get("harvest", {}).get("generator"))
    student = _name(given.get("train", {}).get("student"))
    return (
        f"<p>Chains of thought of the teacher{teacher} distilled into the student{student}: "
        f"{_text(state)}.</p>"
    )


def _made(report: Mapping[str, Any]) -> str:
    when = f", {_text(report['date'])}" if "date" in report else ""
    return f", distill {_text(report['version'])}{when}" if "version" in report else when


def _name(model: Any) -> str:
    """Return what a setting calls a model, nothing where it tells none."""
    named = model.get("path") or model.get("model") if isinstance(model, Mapping) else model
    return f" <b>{_text(named)}</b>" if named else ""


def _tiles(report: Mapping[str, Any]) -> str:
    tiles = []
    mean = report.get("accuracy", {}).get("mean")
    if mean:
        before, after = (100 * mean[name]["value"] for name in ("before", "after"))
        low, high = (100 * mean["difference"][name] for name in ("low", "high"))
        label = f"points of mean accuracy [{low:+.1f}, {high:+.1f}]"
        tiles.append((f"{before:.1f} → {after:.1f} %", "mean accuracy, before and after"))
        tiles.append((f"{100 * mean['difference']['value']:+.1f}", label))
    if "selection" in report:
        tiles.append((f"step {report['selection']['chosen_step']}", "chosen checkpoint"))
    if "yield" in report.get("harvest", {}):
        rate = Accuracy(**report["harvest"]["yield_of"])
        tiles.append((f"{100 * rate.value:.1f} %", f"yield of {rate.n:,} traces"))
    tiles.append((_duration(sum(report["seconds"].values())), "in all stages"))
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    return f'<div class="tiles">{cells}</div>'


def _accuracy(report: Mapping[str, Any]) -> str:
    accuracy = report["accuracy"]
    rows = [
        _row(
            (
                _text(name),
                f"{counts['n']:,}",
                _percent(counts),
                _percent(accuracy["after"][name]),
                _points(accuracy["difference"][name]),
                _p_value(accuracy["difference"][name]["p_value"]),
            )
        )
        for name, counts in accuracy["before"].items()
    ]
    if accuracy["mean"]:
        rows.append(_mean_row(accuracy))
    head = ("set", "n", "before", "after", "difference", "p")
    return _table(head, rows) + _picture(plots.change(accuracy["before"], accuracy["after"]))


def _mean_row(accuracy: Mapping[str, Any]) -> str:
    mean = accuracy["mean"]
    total = sum(accuracy["before"][name]["n"] for name in mean["sets"])
    ends = [_points(mean[name], signed=False) for name in ("before", "after")]
    label = f"mean of {len(mean['sets'])}"
    return _row((label, f"{total:,}", *ends, _points(mean["difference"]), ""), "sum")


def _checkpoints(report: Mapping[str, Any]) -> str:
    table = {int(step): of_step for step, of_step in report["checkpoints"].items()}
    selection = report.get("selection", {})
    chosen = selection.get("chosen_step")
    sets = list(dict.fromkeys(name for of_step in table.values() for name in of_step))
    rows = (
        _row(
            (f"{step:,}", *(_percent(table[step][name]) for name in sets)),
            "chosen" if step == chosen else "",
        )
        for step in sorted(table)
    )
    details = _table(("step", *map(_text, sets)), rows)
    return (
        f"{_choice(selection, report)}{_picture(plots.checkpoints(table, chosen))}"
        f"<details><summary>All checkpoints</summary>{details}</details>"
    )


def _choice(selection: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if not selection:
        return (
            f'<p class="note">No checkpoint is chosen: {_text(report["absent"]["selection"])}.</p>'
        )
    rule = selection["rule"]
    name = rule["type"] if isinstance(rule, dict) else rule.rpartition(".")[2]
    words = (
        f"The rule <b>{_text(name)}</b> over the held-out sets' selection halves chose "
        f"<b>step {selection['chosen_step']:,}</b>."
    )
    if not selection["chosen_step"]:
        words += " That is the start: no later checkpoint is better there."
    if "validation_step" in selection:
        words += (
            f" In-distribution validation would have chosen step {selection['validation_step']:,}"
        )
        words += _cost(report)
    return f"<p>{words}</p>"


def _cost(report: Mapping[str, Any]) -> str:
    means = report.get("accuracy", {}).get("mean", {})
    if "validation_choice" not in means:
        return "."
    other = _points(means["validation_choice"], signed=False)
    return f", with a mean of {other} instead of {_points(means['after'], signed=False)}."


def _is_priced(report: Mapping[str, Any]) -> bool:
    return "price" in report.get("selection", {})


def _price(report: Mapping[str, Any]) -> str:
    """Return how general ability fares while the held-out sets improve."""
    entries, chosen = report["selection"]["price"], report["selection"]["chosen_step"]
    rows = (
        _row(
            (f"{entry['step']:,}", *(_points(entry[name], signed=False) for name in _PRICED)),
            "chosen" if entry["step"] == chosen else "",
        )
        for entry in entries
    )
    words = (
        "<p>Means over the held-out sets that the choice is made by, and over sets of general "
        "ability, which choose nothing.</p>"
    )
    details = _table(("step", *_PRICED), rows)
    return (
        f"{words}{_picture(plots.price(entries))}"
        f"<details><summary>All checkpoints</summary>{details}</details>"
    )


_PRICED = ("specific", "general")


def _is_cleaned(report: Mapping[str, Any]) -> bool:
    return "contaminated" in report.get("problems", {})


def _contamination(report: Mapping[str, Any]) -> str:
    """Return how many training questions an evaluation set holds too, by kind and set."""
    counts = dict(report["problems"]["contaminated"])
    by_set = counts.pop("by_set")
    words = f"<p>{counts.pop('dropped'):,} training questions were left out.</p>"
    rows = (
        _row((_text(name), *(f"{found.get(kind, 0):,}" for kind in counts)))
        for name, found in (*by_set.items(), ("all", counts))
    )
    return words + _table(("held by", *map(_text, counts)), rows)


def _training(report: Mapping[str, Any]) -> str:
    training = report["training"]
    curve = training["curve"]
    words = f"{training['steps']:,} optimizer steps"
    if "tokens_per_second" in training:
        words += f", {training['tokens_per_second']:,.0f} tokens a second (median)"
    figures = _figures(training["summary"])
    return f"<p>{words}.</p>{_picture(plots.loss(curve['step'], curve['loss']))}{figures}"


def _harvest(report: Mapping[str, Any]) -> str:
    harvest = dict(report["harvest"])
    harvest.pop("yield", None)
    rate, verdicts = harvest.pop("yield_of", None), harvest.pop("verdicts", {})
    words = f"<p>Right: {_percent(rate)} of {rate['n']:,} traces.</p>" if rate else ""
    shown = {name: f"{count:,}" for name, count in verdicts.items()}
    bars = _bars(verdicts, shown, ("verdict", "traces")) if verdicts else ""
    return words + bars + _figures(harvest)


def _alignment(report: Mapping[str, Any]) -> str:
    alignment = dict(report["alignment"])
    alignment.pop("coverage", None)
    kinds = alignment.pop("kinds", {})
    shown = {name: f"{count:,}" for name, count in kinds.items()}
    bars = _bars(kinds, shown, ("kind of position", "tokens")) if kinds else ""
    return _figures(alignment) + bars


def _dataset(report: Mapping[str, Any]) -> str:
    return _figures(report["dataset"])


def _figures(figures: Mapping[str, Any]) -> str:
    """Return counts under their own names, one level deep at most twice."""
    rows = (_row((_text(name), _text(value))) for name, value in _flat(figures))
    return _table(("figure", "value"), rows) if figures else ""


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, Mapping) and value.keys() == {"sum", "count"}:
            yield f"{prefix}{name}".replace("_", " "), _share(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}, ")
        else:
            yield f"{prefix}{name}".replace("_", " "), _figure(value)


def _share(pair: Mapping[str, float]) -> str:
    total, count = pair["sum"], pair["count"]
    return f"{100 * total / count:.2f} % of {count:,}" if count else "none"


def _figure(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _samples(report: Mapping[str, Any]) -> str:
    return "".join(
        f"<h3>{_text(sample['kind']).capitalize()}</h3>"
        f'<div class="label">{_text(sample["problem_id"])}, gold {_text(sample["gold"])}</div>'
        f'<pre>{_text(sample["question"])}</pre><div class="pair">'
        f'<div><div class="label">before</div><pre>{_text(sample["before"])}</pre></div>'
        f'<div><div class="label">after</div><pre>{_text(sample["after"])}</pre></div></div>'
        for sample in report["samples"]
    )


def _traces(report: Mapping[str, Any]) -> str:
    return "".join(
        f'<div class="label">{_text(trace["problem_id"])}: {_text(trace["outcome"])}, '
        f"{_text(trace['reason'])}</div><pre>{_text(trace['text'])}</pre>"
        for trace in report["traces"]
    )


def _scaling(report: Mapping[str, Any]) -> str:
    """Return a study of compute at test time: curves, accuracy by budget, equal FLOPs."""
    study = report["scaling"]
    sets = ", ".join(f"{_text(name)} {count:,}" for name, count in study["sets"].items())
    words = f"<p>{study['questions']:,} questions ({sets}), bins of difficulty by pass@1.</p>"
    curves = plots.compute_curves(study)
    bins = range(len(study["bins"]["oracle"]["sizes"]))
    pictures = "".join(
        f"<h3>Bin {bin_ + 1}</h3>{_picture(plots.compute_curves(study, bin_))}" for bin_ in bins
    )
    return (
        f"{words}{_picture(curves)}{_by_budget(study)}{_equal_flops(study)}"
        f"<details><summary>By bin of difficulty, from the easiest</summary>{pictures}</details>"
    )


def _by_budget(study: Mapping[str, Any]) -> str:
    rows = [
        _row((_text(name), *(_points(p, signed=False) if p else "" for p in points)))
        for name, points in plots.by_budget(study).items()
    ]
    for kind, policy in study["policies"].items():
        ratios = ("" if row["ratio"] is None else f"{row['ratio']:.2f}" for row in policy["saved"])
        rows.append(_row((f"samples saved, {_text(kind)} bins", *ratios)))
    return _table(("strategy", *(f"N = {budget}" for budget in study["budgets"])), rows)


def _equal_flops(study: Mapping[str, Any]) -> str:
    """Return the policies against larger models; nothing where none was compared."""
    head = ("larger, greedy", "times", "R", "bins", "counted", "N", "theirs", "ours less theirs")
    rows = [
        _row(
            (
                _text(row["larger"]),
                f"{row['times']:.2f}",
                f"{row['ratio']:g}",
                _text(row["difficulty"]),
                _text(row["counted"]),
                "none" if row["budget"] is None else f"{row['budget']:,}",
                f"{100 * row['theirs']:.1f}",
                "" if row["budget"] is None else _points(row["difference"]),
            )
        )
        for row in study["matched"]
    ]
    return f"<h3>At equal FLOPs</h3>{_table(head, rows)}" if rows else ""


def _times(report: Mapping[str, Any]) -> str:
    seconds = report["seconds"]
    return _bars(
        seconds, {name: _duration(value) for name, value in seconds.items()}, ("stage", "time")
    )


def _settings(report: Mapping[str, Any]) -> str:
    text = json.dumps(report["settings"], indent=1, ensure_ascii=False)
    return (
        f"<details><summary>What every stage was given</summary><pre>{_text(text)}</pre></details>"
    )


def _footer() -> str:
    return (
        "<footer><p>Differences are in points. Accuracies carry Wilson score intervals, "
        "differences Newcombe's interval for paired proportions (1998, method 10) and McNemar's "
        "exact p, means over sets the intervals of the sets squared and added; all at 95 %, none "
        "corrected for their number. Before is step 0, after the chosen step, both on report "
        "halves and test splits that steered nothing.</p></footer>"
    )
