"""A report as one self-contained HTML page; all of its text is escaped, and it runs no script.

The elements are in `templates/`; this module computes what they show.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from distill.core import statistics
from distill.core.records import Accuracy
from distill.reports import plots


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report as `distill.reports.report.report` returns it.

    Args:
        report: the run's figures and texts; every text is treated as hostile and escaped.

    Raises:
        jinja2.UndefinedError: the report lacks a field that the page shows.
        ArithmeticError, LookupError, TypeError, ValueError: a field has another kind of value.
    """
    context = {
        **_names(report),
        **_choice(report),
        "report": report,
        "pictures": _pictures(report),
        "checkpoints": _checkpoints(report),
        "settings": json.dumps(report["settings"], indent=1, ensure_ascii=False),
    }
    if "scaling" in report:
        context["by_budget"] = plots.by_budget(report["scaling"])
    return _ENVIRONMENT.get_template("page.html").render(context)


# --- Values of the templates -------------------------------------------------------------------


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the models' names, "" where the settings have none, and which stages are complete."""
    complete = [name for name, is_complete in report["complete"].items() if is_complete]
    unfinished = [name for name in report["complete"] if name not in complete]
    rest = f", {', '.join(unfinished)} not finished" if unfinished else ""
    settings = report["settings"]
    return {
        "teacher": _model_name(settings.get("harvest", {}).get("generator")),
        "student": _model_name(settings.get("train", {}).get("student")),
        "state": f"{len(complete)} stages complete{rest}",
    }


def _model_name(model: Any) -> str:
    name = model.get("path") or model.get("model") if isinstance(model, Mapping) else model
    return str(name) if name else ""


def _choice(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chosen step, the name of the rule, and the number of questions of the mean."""
    selection, accuracy = report.get("selection", {}), report.get("accuracy", {})
    values: dict[str, Any] = {"chosen": selection.get("chosen_step")}
    if selection:
        rule = selection["rule"]
        values["rule"] = rule["type"] if isinstance(rule, dict) else rule.rpartition(".")[2]
    if accuracy.get("mean"):
        sets = accuracy["mean"]["sets"]
        values["questions"] = sum(accuracy["before"][name]["n"] for name in sets)
    return values


def _checkpoints(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sets in their first order, and the counts by step in the order of the steps."""
    counts = _by_step(report)
    sets = dict.fromkeys(name for of_step in counts.values() for name in of_step)
    return {"sets": list(sets), "steps": sorted(counts.items())}


def _by_step(report: Mapping[str, Any]) -> dict[int, Mapping[str, plots.Counts]]:
    return {int(step): of_step for step, of_step in report.get("checkpoints", {}).items()}


def _pictures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures of the parts that the report has."""
    selection = report.get("selection", {})
    pictures: dict[str, Any] = {}
    if "accuracy" in report:
        accuracy = report["accuracy"]
        pictures["accuracy"] = plots.change(accuracy["before"], accuracy["after"])
    if "checkpoints" in report:
        chosen = selection.get("chosen_step")
        pictures["checkpoints"] = plots.checkpoints(_by_step(report), chosen)
    if "price" in selection:
        pictures["price"] = plots.price(selection["price"])
    if "training" in report:
        curve = report["training"]["curve"]
        pictures["loss"] = plots.loss(curve["step"], curve["loss"])
    if "scaling" in report:
        study = report["scaling"]
        bins = range(len(study["bins"]["oracle"]["sizes"]))
        pictures["budgets"] = plots.compute_curves(study)
        pictures["bins"] = [plots.compute_curves(study, bin_) for bin_ in bins]
    return pictures


# --- Text of values ----------------------------------------------------------------------------


def _visible(value: object) -> object:
    """Replace control and direction characters, which a reader would not see.

    Runs on every expression of a template before Jinja escapes it. Markup is the output of a macro,
    whose expressions have passed through here.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    if text.isprintable():
        return text
    visible = "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf")
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )
    return visible.encode("utf-8", "replace").decode()


def _interval(counts: Mapping[str, int]) -> statistics.Estimate:
    return statistics.of_accuracy(Accuracy(**counts))


def _thousands(number: float) -> str:
    return f"{number:,}"


def _duration(seconds: float) -> str:
    """Return seconds in the largest units that fit.

    Example:
        >>> _duration(75.2), _duration(4.26)
        ('1 min 15 s', '4.3 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _figures(summary: Mapping[str, Any], *omitted: str) -> list[tuple[str, str]]:
    """Return the names and values of a summary, nested ones flattened, without some."""
    return list(_flat({name: value for name, value in summary.items() if name not in omitted}))


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
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


# --- The environment ---------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    """Return the environment of the templates: it escapes all text and refuses missing fields."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distill.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": _interval,
        "thousands": _thousands,
        "duration": _duration,
        "figures": _figures,
    }
    return environment


_ENVIRONMENT = _environment()
