"""What a run's records say, counted anew and compared with what its stages and report state."""

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
# What arithmetic on values of other kinds raises: a manifest that no stage wrote.
WRONG_KINDS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def faults(run_dir: Path, complete: Manifests) -> Iterator[str]:
    """Yield a line for each statement that the records do not bear out.

    Args:
        run_dir: the run directory.
        complete: the manifests of its complete stages.
    """
    for name, recount in _RECOUNTS.items():
        if name not in complete:
            continue
        try:
            yield from _differing(name, complete[name]["summary"], recount(run_dir, complete[name]))
        except UserError as error:
            yield f"{name}: its summary cannot be counted anew: {error}"
        except WRONG_KINDS as error:
            yield f"{name}: its manifest holds no values as the stage writes them: {_line(error)}"


def _differing(name: str, stated: Any, counted: Mapping[str, Any]) -> Iterator[str]:
    for key, value in json.loads(json.dumps(counted)).items():
        if key in stated and stated[key] != value:
            got = f"{stated[key]!r:.80}"
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
    every = Shards(run_dir / "problems", Problem)
    asked = {problem.problem_id for problem in every if problem.split == split}
    traces = Shards(run_dir / "traces", Trace)
    kept = (t for t in traces if t.problem_id in asked and t.sample < samples)
    counted = harvest.summarise(kept, top)
    return counted if "sampling" in settings else {"traces": counted["traces"]}


def _check(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return check.summarise(Shards(run_dir / "verdicts", Verdict))


def _train(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    lines = metrics.read_lines(run_dir / "checkpoints" / "metrics.jsonl")
    return train.counts(lines) if lines else {}


def _evaluated(folder: str) -> Callable[[Path, Mapping[str, Any]], dict[str, Any]]:
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
    """Return the steps that the predictions lead to, after comparing the whole selection."""
    stated = choice.read(run_dir)
    settings = manifest["settings"]
    rule = select.rule_of(settings.get("rule"))
    if rule is None:  # one of the user's own
        return {name: stated[name] for name in choice.STEPS if name in stated}
    names = ("sets", "validation_sets", "general")
    how = {name: settings[name] for name in names if name in settings}
    made = json.loads(json.dumps(select.selection(run_dir, rule, **how)))
    if made != stated:
        wrong = sorted(k for k in {*made, *stated} if made.get(k) != stated.get(k))
        raise UserError(
            "the selection that the predictions lead to in reports/selection.json",
            f"another {', '.join(wrong)}",
            "restore it",
        )
    return {name: made[name] for name in choice.STEPS if name in made}


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
    "evaluate": _evaluated("predictions"),
    "select": _select,
    "final": _evaluated("final"),
    "export": _export,
}


# --- The report --------------------------------------------------------------------------------


def of_report(run_dir: Path) -> tuple[list[str], list[str]]:
    """Return faults and notes of a report that is compared with one made anew; it writes none."""
    path = run_dir / "report.json"
    if not path.exists():
        return [], []
    try:
        stated = files.read_object(path, follow=False)
        made = json.loads(files.json_text(report.report(run_dir)))
    except UserError as error:
        return [f"report.json: {error}"], []
    if stated.get("version") != made["version"]:
        return [], ["report.json: another version made it, so it is not compared with the records"]
    if stated.get("complete") != made["complete"]:
        return [], ["report.json: it was made when other stages were complete"]
    named = {"run"}  # after the directory, which may have been copied
    wrong = sorted(key for key in {*made, *stated} - named if made.get(key) != stated.get(key))
    return [f"report.json: its {key} is not what the run holds" for key in wrong], []
