"""Check all files and records of a run directory; changes nothing."""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from distill.core import files, records, stages
from distill.core.errors import UserError
from distill.core.records import Problem
from distill.core.store import Shards
from distill.runs import checksums, recount
from distill.runs.layout import OUTPUTS
from distill.training import evaluate

Value = TypeVar("Value")
Key = tuple[str, int]
Manifests = Mapping[str, Mapping[str, Any]]
# What Orbax raises for a damaged checkpoint.
DAMAGE = (UserError, OSError, ValueError, TypeError, LookupError)


@dataclasses.dataclass
class Soundness:
    """The result of checking a run directory.

    Attributes:
        stages: whether each stage with a manifest is complete.
        records: number of records in each folder of shards.
        notes: observations that are not faults.
        not_covered: files that no checksum covers.
        faults: differences from what the stages recorded.
    """

    stages: dict[str, bool] = dataclasses.field(default_factory=dict)
    records: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    not_covered: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def lines(self) -> list[str]:
        """Return the findings as lines of text, the verdict last."""
        words = {True: "complete", False: "not complete"}
        states = [f"{name}: {words[done]}" for name, done in self.stages.items()]
        counts = [f"{name}: {count} records" for name, count in self.records.items()]
        notes = [f"note: {note}" for note in self.notes]
        uncovered = [f"not covered: {name}" for name in self.not_covered]
        faults = [f"fault: {fault}" for fault in self.faults]
        return [
            *states,
            *counts,
            *notes,
            *uncovered,
            *faults,
            "sound" if self.sound else "not sound",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the findings as JSON."""
        return {"sound": self.sound, **dataclasses.asdict(self)}


class _Contents(NamedTuple):
    """The keys and counts of the shards' records."""

    problems: list[Problem]
    traces: list[Key]
    verdicts: list[tuple[Key, str]]
    aligned: list[Key]
    dataset: list[int]
    predictions: list[tuple[int, str]]
    final: list[tuple[int, str]]
    diversity: list[tuple[str, Key]]


def check(run_dir: Path, *, contents: bool = True) -> Soundness:
    """Check every file, manifest, key, count, checkpoint and exported tensor of a run directory.

    A stage that is not complete is listed and is not a fault. Its files are checked for damage,
    duplicate keys and unknown keys, but not for missing keys.

    Args:
        run_dir: the run.
        contents: whether records, counts and tensors are checked, not only checksums.

    Raises:
        UserError: there is no run in the directory.
    """
    run_dir, result = Path(run_dir), Soundness()
    if not (run_dir / "manifests").is_dir():
        raise UserError(f"a run directory at {run_dir}", "no manifests in it", "correct the path")
    try:
        files.require_plain(run_dir)
    except UserError as error:  # links are not followed
        result.faults.append(str(error))
        return result
    manifests = _manifests(run_dir, result)
    _check_inputs(manifests, result)
    report = checksums.check(run_dir, manifests)
    result.faults += report.faults
    result.notes += report.notes
    result.not_covered += report.not_covered
    if contents:
        _check_contents(run_dir, manifests, result)
    return result


def _check_contents(run_dir: Path, manifests: Manifests, result: Soundness) -> None:
    complete = {name: manifest for name, manifest in manifests.items() if manifest["complete"]}
    contents = _contents(run_dir, result)
    for stage, patterns in OUTPUTS.items():
        if any(_is_stage(name, stage) for name in manifests):
            continue
        result.faults += [
            f"{pattern}: shards without a manifest of their stage"
            for pattern in patterns
            if _parts(run_dir, pattern)
        ]
    checks: dict[str, Callable[[], None]] = {
        "keys": lambda: _check_keys(contents, complete, result),
        "checkpoints": lambda: _check_checkpoints(run_dir, complete, result),
        "export": lambda: _check_export(run_dir, complete, result),
    }
    for name, run in checks.items():
        try:
            run()
        except recount.TYPE_ERRORS as error:
            got = f"{type(error).__name__}: {_first_line(error)}"
            result.faults.append(f"{name}: a manifest has values of unexpected types, {got}")
    result.faults += recount.faults(run_dir, complete)
    faults, notes = recount.compare_report(run_dir)
    result.faults += faults
    result.notes += notes
    for path in sorted(run_dir.glob("reports/*.json")):
        _check_json(path, run_dir, result)


def _is_stage(manifest: str, stage: str) -> bool:
    return manifest == stage or manifest.startswith(f"{stage}-")


def _check_json(path: Path, run_dir: Path, result: Soundness) -> None:
    try:
        files.read_json(path, follow=False)
    except UserError as error:
        result.faults.append(f"{path.relative_to(run_dir)}: {error}")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- Manifests ---------------------------------------------------------------------------------


def _manifests(run_dir: Path, result: Soundness) -> dict[str, dict[str, Any]]:
    manifests = {}
    for path in sorted((run_dir / "manifests").glob("*.json")):
        try:
            manifests[path.stem] = stages.read_manifest(path)
            result.stages[path.stem] = manifests[path.stem]["complete"]
        except UserError as error:
            result.faults.append(f"manifests/{path.name}: {error}")
    return manifests


def _check_inputs(manifests: Manifests, result: Soundness) -> None:
    """Check that each manifest's digest matches its settings and its present inputs."""
    for name, manifest in manifests.items():
        inputs = manifest.get("inputs")
        if inputs is None:
            result.notes.append(f"{name}: its manifest names no inputs")
            continue
        text = json.dumps([name, manifest["settings"], inputs], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != manifest.get("digest"):
            result.faults.append(f"{name}: its digest does not match the settings in its manifest")
        for source, digest in inputs.items():
            if not manifests.get(source, {"complete": False})["complete"]:
                result.faults.append(f"{name}: its input {source} is not complete")
            elif manifests[source].get("digest") != digest:
                result.faults.append(f"{name}: it was made from another {source}")


# --- Shards ------------------------------------------------------------------------------------


def _parts(run_dir: Path, folder: str) -> list[Path]:
    return sorted((run_dir / folder).rglob("part-*.parquet"))


def _contents(run_dir: Path, result: Soundness) -> _Contents:
    def read(folder: str, record: type, key: Callable[[Any, Path], Value]) -> list[Value]:
        values = list(_records(run_dir, folder, record, key, result))
        if values:
            result.records[folder] = len(values)
        return values

    def sample(record: Any, _: Path) -> Key:
        return record.problem_id, record.sample

    def answer(record: Any, _: Path) -> tuple[int, str]:
        return record.step, record.problem_id

    return _Contents(
        read("problems", Problem, lambda problem, _: problem),
        read("traces", records.Trace, sample),
        read("verdicts", records.Verdict, lambda row, path: (sample(row, path), row.outcome)),
        read("aligned", records.AlignedTrace, sample),
        read("dataset", records.PackedExample, lambda row, _: len(row.decoder_target_tokens)),
        read("predictions", records.Prediction, answer),
        read("final", records.Prediction, answer),
        read("diversity", records.Trace, lambda row, path: (path.parent.name, sample(row, path))),
    )


def _records(
    run_dir: Path,
    folder: str,
    record: type,
    key: Callable[[Any, Path], Value],
    result: Soundness,
) -> Iterable[Value]:
    """Yield `key` of each record; a shard that cannot be read is a fault."""
    for path in _parts(run_dir, folder):
        try:
            for row in Shards(path.parent, record).read(path):
                yield key(row, path)
        except UserError as error:
            result.faults.append(f"{path.relative_to(run_dir)}: {_first_line(error)}")


# --- Keys --------------------------------------------------------------------------------------


def _check_keys(contents: _Contents, complete: Manifests, result: Soundness) -> None:
    problems = [problem.problem_id for problem in contents.problems]
    verdicts = [key for key, _ in contents.verdicts]
    right = [key for key, outcome in contents.verdicts if outcome == "right"]
    _check_unique("problems", problems, result)
    for name in ("traces", "aligned", "predictions", "final", "diversity"):
        _check_unique(name, getattr(contents, name), result)
    _check_unique("verdicts", verdicts, result)
    _check_keys_exist("traces", (key[0] for key in contents.traces), problems, "problem", result)
    _check_keys_exist("verdicts", verdicts, contents.traces, "trace", result)
    _check_keys_exist("aligned", contents.aligned, right, "right verdict", result)
    if "harvest" in complete:
        _check_complete(
            "traces", contents.traces, _expected_traces(contents, complete["harvest"]), result
        )
    if "check" in complete:
        _check_complete("verdicts", verdicts, contents.traces, result)
    if "align" in complete:
        dropped = complete["align"]["summary"].get("dropped", {})
        refused = sum(dropped.get(reason, 0) for reason in ("refused", "too_long"))
        _check_complete("aligned", contents.aligned, right, result, allowed=refused)
    if "dataset" in complete:
        rows = complete["dataset"]["summary"].get("rows", len(contents.dataset))
        _check_count("dataset", len(contents.dataset), rows, result)
    if "diversity" in complete:
        _check_diversity(contents, complete["diversity"], result)
    for name, folder, splits in (
        ("evaluate", "predictions", evaluate.STEERING),
        ("final", "final", evaluate.REPORTED),
    ):
        rows = getattr(contents, folder)
        _check_keys_exist(folder, (key for _, key in rows), problems, "problem", result)
        if name in complete:
            _check_complete(
                folder, rows, _expected_predictions(contents, splits, complete[name]), result
            )


def _expected_traces(contents: _Contents, manifest: Mapping[str, Any]) -> Iterable[Key]:
    settings = manifest["settings"]
    split, samples = settings.get("split"), settings.get("samples", 0)
    problem_ids = (problem.problem_id for problem in contents.problems if problem.split == split)
    return itertools.product(problem_ids, range(samples))


def _expected_predictions(
    contents: _Contents, splits: tuple[str, ...], manifest: Mapping[str, Any]
) -> Iterable[tuple[int, str]]:
    steps = [int(step) for step in manifest["summary"].get("accuracy", {})]
    if not steps or not contents.problems:
        return []
    chosen = evaluate.choose(contents.problems, splits, manifest["settings"].get("limit"))
    return itertools.product(steps, (problem.problem_id for problem in chosen))


def _check_diversity(contents: _Contents, manifest: Mapping[str, Any], result: Soundness) -> None:
    samples = manifest["settings"].get("samples", 0)
    questions = sum(manifest["summary"].get("questions", {}).values())
    for name, count in sorted(Counter(name for name, _ in contents.diversity).items()):
        _check_count(f"diversity/{name}", count, samples * questions, result)


def _check_unique(folder: str, keys: Iterable[Hashable], result: Soundness) -> None:
    duplicates = [key for key, count in Counter(keys).items() if count > 1]
    if duplicates:
        result.faults.append(f"{folder}: {_keys_text(duplicates)} more than once")


def _check_keys_exist(
    folder: str, keys: Iterable[Any], known: Iterable[Any], kind: str, result: Soundness
) -> None:
    if unknown := set(keys) - set(known):
        result.faults.append(f"{folder}: {_keys_text(unknown)} without a {kind}")


def _check_complete(
    folder: str, keys: Iterable[Any], expected: Iterable[Any], result: Soundness, allowed: int = 0
) -> None:
    missing = set(expected) - set(keys)
    if len(missing) > allowed:
        result.faults.append(f"{folder}: {_keys_text(missing)} missing")


def _check_count(folder: str, got: int, expected: int, result: Soundness) -> None:
    if got != expected:
        result.faults.append(f"{folder}: expected {expected} records, got {got}")


def _keys_text(keys: Iterable[Any]) -> str:
    ordered = sorted(keys)
    return f"{len(ordered)} keys, first {ordered[0]},"


# --- Weights -----------------------------------------------------------------------------------


def _check_checkpoints(run_dir: Path, complete: Manifests, result: Soundness) -> None:
    if not (run_dir / "checkpoints").is_dir() and "train" not in complete:
        return
    import jax

    from distill.training import checkpoints

    steps = checkpoints.steps(run_dir / "checkpoints")
    last = complete.get("train", {}).get("summary", {}).get("steps")
    if last is not None and last not in steps:
        result.faults.append(f"checkpoints: the last step, {last}, is missing")
    for step in steps:
        if any(fault.startswith(f"checkpoints/params/{step}/") for fault in result.faults):
            continue  # Orbax must not parse bytes that fail their checksum
        try:
            params = checkpoints.load_params(run_dir / "checkpoints", step)
        except DAMAGE as error:
            result.faults.append(f"checkpoints/params/{step}: {_first_line(error)}")
            continue
        leaves = jax.tree.leaves(params)
        if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in leaves):
            result.faults.append(f"checkpoints/params/{step}: a tensor is not finite")
    if steps:
        result.records["checkpoints"] = len(steps)


def _check_export(run_dir: Path, complete: Manifests, result: Soundness) -> None:
    folder = run_dir / "export"
    if "export" not in complete:
        return
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in sorted(folder.glob("*.json")):
        _check_json(path, run_dir, result)
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, *DAMAGE) as error:
        result.faults.append(f"export/model.safetensors: {_first_line(error)}")
        return
    infinite = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    result.faults += [f"export/model.safetensors: {name} is not finite" for name in infinite]
