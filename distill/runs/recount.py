"""Recompute counts from a run's records and compare them with its manifests and report."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.core import files
from distill.core.errors import UserError
from distill.core.records import Prediction, Problem, Trace, Verdict
from distill.core.store import Shards
from distill.grading import check
from distill.problems import problems
from distill.reports import report
from distill.traces import harvest
from distill.training import choice, evaluate, metrics, select, train

Manifests = Mapping[str, Mapping[str, Any]]
# What arithmetic on values of unexpected types raises, such as those of an edited manifest.
TYPE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def faults(run_dir: Path, complete: Manifests) -> Iterator[str]:
    """Yield a line for each recorded value that differs from the records.

    Args:
        run_dir: the run directory.
        complete: the manifests of its complete stages.
    """
    for name, recount in _RECOUNTS.items():
        if name not in complete:
            continue
        try:
            recomputed = recount(run_dir, complete[name])
            yield from _differences(name, complete[name]["summary"], recomputed)
        except UserError as error:
            yield f"{name}: its summary cannot be recomputed: {error}"
        except TYPE_ERRORS as error:
            yield f"{name}: its manifest has values of unexpected types: {_line(error)}"


def _differences(name: str, recorded: Any, recomputed: Mapping[str, Any]) -> Iterator[str]:
    for key, value in json.loads(json.dumps(recomputed)).items():
        if key in recorded and recorded[key] != value:
            got = f"{recorded[key]!r:.80}"
            yield f"{name}: it states {key} {got}, its records give {value!r:.80}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split())[:120]}"


# --- Stages ------------------------------------------------------------------------------------


def _problems(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return problems.summarise(Shards(run_dir / "problems", Problem))


def _harvest(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    settings = manifest["settings"]
    top = settings.get("sampling", {}).get("top_logprobs", 0)
    split, samples = settings.get("split"), settings.get("samples", 0)
    problems = Shards(run_dir / "problems", Problem)
    problem_ids = {problem.problem_id for problem in problems if problem.split == split}
    traces = Shards(run_dir / "traces", Trace)
    in_settings = (t for t in traces if t.problem_id in problem_ids and t.sample < samples)
    counted = harvest.summarise(in_settings, top)
    return counted if "sampling" in settings else {"traces": counted["traces"]}


def _check(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return check.summarise(Shards(run_dir / "verdicts", Verdict))


def _train(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    lines = metrics.read_lines(run_dir / "checkpoints" / "metrics.jsonl")
    return train.counts(lines) if lines else {}


def _recount_of_predictions(folder: str) -> Callable[[Path, Mapping[str, Any]], dict[str, Any]]:
    def counted(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
        predictions = Shards(run_dir / folder, Prediction)
        accuracy = {
            str(step): {name: dataclasses.asdict(value) for name, value in of_step.items()}
            for step, of_step in evaluate.tally(predictions).items()
        }
        counts = {"checkpoints": len(accuracy), "predictions": len(predictions)}
        return {**counts, "accuracy": accuracy} if predictions.files() else {}

    return counted


def _select(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Select again from the predictions and return the steps.

    Raises:
        UserError: the recorded selection differs.
    """
    recorded = choice.read(run_dir)
    settings = manifest["settings"]
    rule = select.rule_of(settings.get("rule"))
    if rule is None:  # a user's own rule, which cannot be applied again
        return {name: recorded[name] for name in choice.STEPS if name in recorded}
    names = ("sets", "validation_sets", "general")
    options = {name: settings[name] for name in names if name in settings}
    recomputed = json.loads(json.dumps(select.selection(run_dir, rule, **options)))
    if recomputed != recorded:
        raise UserError(
            "the selection that follows from the predictions in reports/selection.json",
            f"another {', '.join(_differing_keys(recomputed, recorded))}",
            "restore it",
        )
    return {name: recomputed[name] for name in choice.STEPS if name in recomputed}


def _differing_keys(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*left, *right} if left.get(key) != right.get(key))


def _export(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    sizes = (path.stat().st_size for path in files.walk(run_dir / "export"))
    chosen = {"step": choice.read(run_dir)["chosen_step"]} if "step" in manifest["summary"] else {}
    return {**chosen, "bytes": sum(sizes)}


_RECOUNTS: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]] = {
    "problems": _problems,
    "harvest": _harvest,
    "check": _check,
    "train": _train,
    "pretrain": _train,
    "evaluate": _recount_of_predictions("predictions"),
    "select": _select,
    "final": _recount_of_predictions("final"),
    "export": _export,
}


# --- The report --------------------------------------------------------------------------------


def compare_report(run_dir: Path) -> tuple[list[str], list[str]]:
    """Compare `report.json` with a new report and return (faults, notes); writes nothing."""
    path = run_dir / "report.json"
    if not path.exists():
        return [], []
    try:
        recorded = files.read_object(path, follow=False)
        recomputed = json.loads(files.json_text(report.report(run_dir)))
    except UserError as error:
        return [f"report.json: {error}"], []
    if recorded.get("version") != recomputed["version"]:
        return [], ["report.json: another version wrote it, so it is not compared with the records"]
    if recorded.get("complete") != recomputed["complete"]:
        return [], ["report.json: it was written when other stages were complete"]
    # "run" is the directory's name, which differs in a copy.
    keys = [key for key in _differing_keys(recomputed, recorded) if key != "run"]
    return [f"report.json: its {key} differs from the run" for key in keys], []
