"""Report a run's results as JSON and as one HTML page; runs no model.

Stages that are not complete are named in `absent` with the reason.
"""

import collections
import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core import files, sums
from distill.core.errors import UserError
from distill.core.records import Accuracy, Prediction, Problem, Trace, Verdict
from distill.core.stages import read_manifest, require_unchanged, version
from distill.core.statistics import Estimate, Paired, mean, of_accuracy, pair
from distill.core.store import Shards
from distill.training import choice
from distill.training.evaluate import tally
from distill.training.metrics import read_lines

logger = logging.getLogger(__name__)

ORDER = ("problems", "harvest", "check", "align", "dataset", "train", "evaluate", "select", "final")
CURVE_POINTS = 400
SAMPLES_PER_KIND = 2

Counts = dict[str, int]
Summaries = Mapping[str, Mapping[str, Any]]
Part = Callable[[Path, Summaries], Any]
# Whether a problem was right before and after, in the order in which the samples are shown.
KINDS = {
    "gained": (False, True),
    "lost": (True, False),
    "kept": (True, True),
    "missed": (False, False),
}


def report(run_dir: Path) -> dict[str, Any]:
    """Return the results of a run; parts without results are listed in `absent` with the reason.

    Args:
        run_dir: the run, complete or not.

    Returns:
        Values that JSON can hold. Rates are pairs of counts, `{"correct", "n"}`; an estimate is
        `{"value", "low", "high"}` in shares with its 95 % interval; times are seconds.

    Raises:
        UserError: the directory has no manifest, or a file of a stage is damaged.
    """
    files.require_plain(run_dir)
    manifests = _manifests(run_dir)
    result: dict[str, Any] = {"run": run_dir.resolve().name, **_provenance(manifests)}
    result |= _stages(manifests)
    complete = [manifest for manifest in manifests.values() if manifest["complete"]]
    for manifest in complete:
        require_unchanged(run_dir, manifest, (".json", ".jsonl"))
    summaries = {manifest["stage"]: manifest["summary"] for manifest in complete}
    absent = {}
    for part, (stage, make) in _PARTS.items():
        value = _part(run_dir, summaries, part, make) if stage in summaries else None
        if value:
            result[part] = value
        else:
            reason = "left none" if stage in summaries else "is not complete"
            absent[part] = f"stage {stage} {reason}"
    if "scale" in summaries:  # an optional stage, which is not listed as absent
        result["scaling"] = files.read_object(run_dir / "reports" / "scale.json", follow=False)
    return {**result, "absent": absent}


def _part(run_dir: Path, summaries: Summaries, name: str, make: Part) -> Any:
    try:
        return make(run_dir, summaries)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        got = f"values of unexpected types ({type(error).__name__}: {error})"
        raise UserError(
            f"{name} as the stages write it in {run_dir}", got, "check it with `distill verify`"
        ) from error


def _manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((run_dir / "manifests").glob("*.json"))
    if not paths:
        raise UserError(f"a run in {run_dir}", "none", "give the --run_dir of a run")
    manifests = {path.stem: read_manifest(path) for path in paths}
    ordered = [name for name in ORDER if name in manifests]
    others = sorted(manifests.keys() - set(ordered))
    return {name: manifests[name] for name in (*ordered, *others)}


def _provenance(manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Return this version, the date of the last stage, and each stage's version and dates.

    The report has no date of its own, so that equal runs have equal reports.
    """
    names = ("version", "started", "finished")
    stages = {
        stage: {name: str(manifest[name]) for name in names if name in manifest}
        for stage, manifest in manifests.items()
    }
    dates = [fields.get("finished", fields.get("started")) for fields in stages.values()]
    date = {"date": max(filter(None, dates))} if any(dates) else {}
    return {
        "version": version(),
        **date,
        "made": {name: fields for name, fields in stages.items() if fields},
    }


def _stages(manifests: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "complete": {name: manifest["complete"] for name, manifest in manifests.items()},
        "seconds": {name: round(manifest["seconds"], 3) for name, manifest in manifests.items()},
        "settings": {name: manifest["settings"] for name, manifest in manifests.items()},
    }


# --- Parts -------------------------------------------------------------------------------------


def _summary(stage: str) -> Part:
    return lambda run_dir, summaries: dict(summaries[stage])


def _harvest(run_dir: Path, summaries: Summaries) -> dict[str, Any]:
    """Return the summary of the harvest and, if it is checked, the yield and the verdicts.

    `yield` is a share, `yield_of` its counts.
    """
    checked = summaries.get("check", {})
    names = {"yield": "yield_of", "outcomes": "verdicts"}
    verdicts = {new: checked[old] for old, new in names.items() if old in checked}
    if verdicts.get("yield_of", {}).get("n"):
        verdicts["yield"] = verdicts["yield_of"]["correct"] / verdicts["yield_of"]["n"]
    return {**summaries["harvest"], **verdicts}


def _alignment(run_dir: Path, summaries: Summaries) -> dict[str, Any]:
    """Return the alignment's counts; `coverage` is a share, `coverage_of` its sum and count."""
    counts = dict(summaries["align"])
    coverage = counts.pop("coverage", {})
    if coverage:
        counts["coverage_of"] = coverage
    if coverage.get("count"):
        counts["coverage"] = coverage["sum"] / coverage["count"]
    return counts


def _training(run_dir: Path, summaries: Summaries) -> dict[str, Any] | None:
    """Return the loss curve in at most CURVE_POINTS points, each a mean of consecutive steps."""
    lines = read_lines(run_dir / "checkpoints" / "metrics.jsonl")
    if not lines:
        return None
    size = -(-len(lines) // CURVE_POINTS)
    chunks = [lines[start : start + size] for start in range(0, len(lines), size)]
    curve = {
        "step": [chunk[-1]["step"] for chunk in chunks],
        "loss": [statistics.fmean(line["loss"] for line in chunk) for chunk in chunks],
    }
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    median = {"tokens_per_second": statistics.median(speeds)} if speeds else {}
    return {
        "steps": lines[-1]["step"],
        "curve": curve,
        **median,
        "summary": dict(summaries["train"]),
    }


def _checkpoints(run_dir: Path, summaries: Summaries) -> dict[str, Any]:
    return _table(run_dir, Shards(run_dir / "predictions", Prediction))


def _table(run_dir: Path, predictions: Iterable[Prediction]) -> dict[str, dict[str, Counts]]:
    """Return counts by step and set, the sets in the order of the problems."""
    sets = dict.fromkeys(problem.source for problem in Shards(run_dir / "problems", Problem))
    return {
        str(step): {name: dataclasses.asdict(of_step[name]) for name in sets if name in of_step}
        for step, of_step in sorted(tally(predictions).items())
    }


def _selection(run_dir: Path, summaries: Summaries) -> dict[str, Any]:
    """Return the choice, with the price of specialising if general sets were evaluated."""
    selection = choice.read(run_dir)
    with_general = [entry for entry in selection["steps"] if entry.get("general")]
    return {
        **selection,
        **({"price": [_price(entry) for entry in with_general]} if with_general else {}),
    }


def _price(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's mean over the held-out sets and its mean over those of general ability."""
    means = {
        name: mean([of_accuracy(Accuracy(**counts)) for counts in entry[sets].values()])
        for name, sets in (("specific", "selection"), ("general", "general"))
    }
    return {"step": entry["step"], **{name: _estimate(mean) for name, mean in means.items()}}


def _accuracy(run_dir: Path, summaries: Summaries) -> dict[str, Any]:
    """Return the figures of the report halves and test splits, before and after, paired.

    Empty without a chosen checkpoint, since there is no model after.
    """
    if "select" not in summaries:
        return {}
    selection = choice.read(run_dir)
    predictions = list(Shards(run_dir / "final", Prediction))
    table = _table(run_dir, predictions)
    names = {"before": 0, "after": selection["chosen_step"]}
    if "validation_step" in selection:
        names["validation_choice"] = selection["validation_step"]
    accuracy: dict[str, Any] = {name: table[str(step)] for name, step in names.items()}
    pairs = {
        name: pair(_correct_pairs(predictions, name, names["after"])) for name in accuracy["before"]
    }
    return {
        **accuracy,
        "difference": {name: _difference(paired) for name, paired in pairs.items()},
        "mean": _means(accuracy, pairs, _sets_of_choice(selection)),
    }


def _correct_pairs(
    predictions: Iterable[Prediction], source: str, step: int
) -> Iterator[tuple[bool, bool]]:
    """Yield whether each problem of a set was right before and after."""
    of_set = [prediction for prediction in predictions if prediction.source == source]
    after = {p.problem_id: p.outcome == "right" for p in of_set if p.step == step}
    before = {p.problem_id: p.outcome == "right" for p in of_set if p.step == 0}
    return ((right, after[problem_id]) for problem_id, right in before.items())


def _difference(paired: Paired) -> dict[str, Any]:
    counts = {"gained": paired.gained, "lost": paired.lost}
    return {**_estimate(paired.estimate()), "p_value": paired.p_value(), **counts}


def _estimate(estimate: Estimate) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), estimate, strict=True))


def _sets_of_choice(selection: Mapping[str, Any]) -> set[str]:
    """Return the sets that the choice averages; the report averages the same sets."""
    first = selection["steps"][0]
    return {name for split in ("selection", "validation") for name in first.get(split, {})}


def _means(
    tables: Mapping[str, Mapping[str, Counts]],
    pairs: Mapping[str, Paired],
    selected: set[str],
) -> dict[str, Any]:
    """Return the unweighted means over the selected sets, of each table and of the differences."""
    sets = [name for name in pairs if name in selected]
    if not sets:
        return {}
    means = {
        name: mean([of_accuracy(Accuracy(**table[one])) for one in sets])
        for name, table in tables.items()
    }
    means["difference"] = mean([pairs[name].estimate() for name in sets])
    return {"sets": sets, **{name: _estimate(estimate) for name, estimate in means.items()}}


def _samples(run_dir: Path, summaries: Summaries) -> list[dict[str, Any]]:
    """Return a few problems of each kind with both answers, in the order of their ids."""
    if "select" not in summaries:
        return []
    chosen = choice.read(run_dir)["chosen_step"]
    texts: dict[str, dict[int, Prediction]] = collections.defaultdict(dict)
    for prediction in Shards(run_dir / "final", Prediction):
        texts[prediction.problem_id][prediction.step] = prediction
    kinds: dict[tuple[bool, bool], list[str]] = collections.defaultdict(list)
    for problem_id, of_step in sorted(texts.items()):
        rights = (of_step[0].outcome == "right", of_step[chosen].outcome == "right")
        kinds[rights].append(problem_id)
    shown = {
        problem_id: kind
        for kind, rights in KINDS.items()
        for problem_id in kinds[rights][:SAMPLES_PER_KIND]
    }
    problems = {problem.problem_id: problem for problem in Shards(run_dir / "problems", Problem)}
    return [
        {
            "kind": kind,
            "problem_id": problem_id,
            "question": problems[problem_id].question,
            "gold": problems[problem_id].answer,
            "before": texts[problem_id][0].text,
            "after": texts[problem_id][chosen].text,
        }
        for problem_id, kind in shown.items()
    ]


def _traces(run_dir: Path, summaries: Summaries) -> list[dict[str, Any]]:
    """Return the first traces of the teacher that have verdicts."""
    verdicts = {
        (verdict.problem_id, verdict.sample): verdict
        for verdict in Shards(run_dir / "verdicts", Verdict)
    }
    return [
        {
            "problem_id": trace.problem_id,
            "text": trace.text,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
        }
        for trace in _first(Shards(run_dir / "traces", Trace))
        if (verdict := verdicts.get((trace.problem_id, trace.sample)))
    ]


def _first(traces: Iterable[Trace]) -> Iterator[Trace]:
    """Yield one trace for each of the first problems."""
    seen: set[str] = set()
    for trace in traces:
        if trace.problem_id not in seen:
            seen.add(trace.problem_id)
            yield trace
        if len(seen) == SAMPLES_PER_KIND:
            return


# The stage that must be complete for each part, and the function that returns the part.
_PARTS: dict[str, tuple[str, Part]] = {
    "problems": ("problems", _summary("problems")),
    "harvest": ("harvest", _harvest),
    "alignment": ("align", _alignment),
    "dataset": ("dataset", _summary("dataset")),
    "training": ("train", _training),
    "checkpoints": ("evaluate", _checkpoints),
    "selection": ("select", _selection),
    "accuracy": ("final", _accuracy),
    "samples": ("final", _samples),
    "traces": ("check", _traces),
    "export": ("export", _summary("export")),
}


# --- The stage ---------------------------------------------------------------------------------


def table(accuracy: Mapping[str, Any]) -> str:
    """Return before, after and difference of every set as text, with n and 95 % statistics."""
    lines = [f"{'set':<12} {'before':>26} {'after':>26} {'difference, points':>26} {'n':>6}"]
    for name, before in accuracy["before"].items():
        both = (
            _estimate(of_accuracy(Accuracy(**counts)))
            for counts in (before, accuracy["after"][name])
        )
        lines.append(_line(name, [*both, accuracy["difference"][name]], before["n"]))
    mean = accuracy["mean"]
    if mean:
        total = sum(accuracy["before"][name]["n"] for name in mean["sets"])
        columns = [mean[name] for name in ("before", "after", "difference")]
        lines.append(_line(f"mean of {len(mean['sets'])}", columns, total))
    return "\n".join(lines)


def _line(name: str, columns: Sequence[Mapping[str, float]], n: int) -> str:
    before, after, difference = columns
    cells = (_cell(before), _cell(after), _cell(difference, sign="+"))
    return f"{name:<12} " + " ".join(f"{cell:>26}" for cell in cells) + f" {n:>6}"


def _cell(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _page(figures: Mapping[str, Any], run_dir: Path) -> str:
    from jinja2 import UndefinedError

    from distill.reports.page import page

    damage = (ArithmeticError, AttributeError, LookupError, TypeError, UndefinedError, ValueError)
    try:
        return page(figures)
    except damage as error:
        got = f"values of unexpected types ({type(error).__name__}: {error})"
        raise UserError(
            f"figures as the stages write them in {run_dir}", got, "check with `distill verify`"
        ) from error


def run(*, run_dir: Path) -> dict[str, Any]:
    """Write `report.html` and `report.json` of a run, complete or not.

    Args:
        run_dir: the run.

    Returns:
        The content of `report.json`.
    """
    start = time.monotonic()
    logger.info("report: start")
    result = report(run_dir)
    html = _page(result, run_dir)
    files.write_json(run_dir / "report.json", result)
    files.write_text(run_dir / "report.html", html)
    written = sums.of(run_dir, (run_dir / name for name in ("report.html", "report.json")))
    files.write_text(sums.path_of(run_dir, "report"), sums.text(written))
    for line in table(result["accuracy"]).splitlines() if "accuracy" in result else ():
        logger.info("%s", line)
    for part, reason in result["absent"].items():
        logger.info("report: no %s: %s", part, reason)
    seconds = time.monotonic() - start
    logger.info("report: done in %.1f s, %s", seconds, run_dir / "report.html")
    return result
