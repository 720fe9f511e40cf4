"""What makes a run directory sound; reads all of it and changes nothing."""

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
# What Orbax raises for a checkpoint that is not as it was written.
DAMAGE = (UserError, OSError, ValueError, TypeError, LookupError)


@dataclasses.dataclass
class Soundness:
    """What a check of a run directory found.

    Attributes:
        stages: whether each stage that was started is complete.
        records: number of records in each folder of shards.
        notes: what is worth knowing and no fault.
        not_covered: what no checksum stands for.
        faults: what is not as the stages left it.
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
        """Return the findings for people, the verdict last."""
        words = {True: "complete", False: "not complete"}
        states = [f"{name}: {words[done]}" for name, done in self.stages.items()]
        counts = [f"{name}: {count} records" for name, count in self.records.items()]
        notes = [f"note: {note}" for note in self.notes]
        left = [f"not covered: {what}" for what in self.not_covered]
        faults = [f"fault: {fault}" for fault in self.faults]
        return [*states, *counts, *notes, *left, *faults, "sound" if self.sound else "not sound"]

    def as_json(self) -> dict[str, Any]:
        """Return the findings as JSON."""
        return {"sound": self.sound, **dataclasses.asdict(self)}


class _Contents(NamedTuple):
    """What the shards hold, as far as keys and counts go."""

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

    A stage that is not complete is said, and is no fault: what it has written so far is checked
    for damage, for keys that stand twice and for keys of nothing, but not for holes.

    Args:
        run_dir: the run.
        contents: whether records, counts and tensors are read too, and not checksums alone.

    Raises:
        UserError: there is no run in the directory.
    """
    run_dir, found = Path(run_dir), Soundness()
    if not (run_dir / "manifests").is_dir():
        raise UserError(f"a run directory at {run_dir}", "no manifests in it", "correct the path")
    try:
        files.require_plain(run_dir)
    except UserError as error:  # nothing is read through a link
        found.faults.append(str(error))
        return found
    manifests = _manifests(run_dir, found)
    _check_inputs(manifests, found)
    compared = checksums.check(run_dir, manifests)
    found.faults += compared.faults
    found.notes += compared.notes
    found.not_covered += compared.not_covered
    if contents:
        _check_contents(run_dir, manifests, found)
    return found


def _check_contents(run_dir: Path, manifests: Manifests, found: Soundness) -> None:
    complete = {name: manifest for name, manifest in manifests.items() if manifest["complete"]}
    contents = _contents(run_dir, found)
    for stage, patterns in OUTPUTS.items():
        if any(_is_of(name, stage) for name in manifests):
            continue
        found.faults += [
            f"{pattern}: shards without a manifest of their stage"
            for pattern in patterns
            if _parts(run_dir, pattern)
        ]
    checks: dict[str, Callable[[], None]] = {
        "keys": lambda: _check_keys(contents, complete, found),
        "checkpoints": lambda: _check_checkpoints(run_dir, complete, found),
        "export": lambda: _check_export(run_dir, complete, found),
    }
    for name, run in checks.items():
        try:
            run()
        except recount.WRONG_KINDS as error:
            got = f"{type(error).__name__}: {_first_line(error)}"
            found.faults.append(f"{name}: a manifest holds no values as stages write them, {got}")
    found.faults += recount.faults(run_dir, complete)
    faults, notes = recount.of_report(run_dir)
    found.faults += faults
    found.notes += notes
    for path in sorted(run_dir.glob("reports/*.json")):
        _json(path, run_dir, found)


def _is_of(manifest: str, stage: str) -> bool:
    return manifest == stage or manifest.startswith(f"{stage}-")


def _json(path: Path, run_dir: Path, found: Soundness) -> None:
    try:
        files.read_json(path, follow=False)
    except UserError as error:
        found.faults.append(f"{path.relative_to(run_dir)}: {error}")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- Manifests ---------------------------------------------------------------------------------


def _manifests(run_dir: Path, found: Soundness) -> dict[str, dict[str, Any]]:
    manifests = {}
    for path in sorted((run_dir / "manifests").glob("*.json")):
        try:
            manifests[path.stem] = stages.read_manifest(path)
            found.stages[path.stem] = manifests[path.stem]["complete"]
        except UserError as error:
            found.faults.append(f"manifests/{path.name}: {error}")
    return manifests


def _check_inputs(manifests: Manifests, found: Soundness) -> None:
    """Check that each stage had the settings it states and the inputs that are there now."""
    for name, manifest in manifests.items():
        inputs = manifest.get("inputs")
        if inputs is None:
            found.notes.append(f"{name}: its manifest names no inputs")
            continue
        text = json.dumps([name, manifest["settings"], inputs], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != manifest.get("digest"):
            found.faults.append(f"{name}: its digest is not of the settings in its manifest")
        for source, digest in inputs.items():
            if not manifests.get(source, {"complete": False})["complete"]:
                found.faults.append(f"{name}: its input {source} is not complete")
            elif manifests[source].get("digest") != digest:
                found.faults.append(f"{name}: it was made from another {source}")


# --- Shards ------------------------------------------------------------------------------------


def _parts(run_dir: Path, folder: str) -> list[Path]:
    return sorted((run_dir / folder).rglob("part-*.parquet"))


def _contents(run_dir: Path, found: Soundness) -> _Contents:
    def read(folder: str, record: type, key: Callable[[Any, Path], Value]) -> list[Value]:
        values = list(_records(run_dir, folder, record, key, found))
        if values:
            found.records[folder] = len(values)
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
    found: Soundness,
) -> Iterable[Value]:
    """Yield what `key` makes of each record; a shard that cannot be read is a fault."""
    for path in _parts(run_dir, folder):
        try:
            for row in Shards(path.parent, record).read(path):
                yield key(row, path)
        except UserError as error:
            found.faults.append(f"{path.relative_to(run_dir)}: {_first_line(error)}")


# --- Keys --------------------------------------------------------------------------------------


def _check_keys(contents: _Contents, complete: Manifests, found: Soundness) -> None:
    problems = [problem.problem_id for problem in contents.problems]
    verdicts = [key for key, _ in contents.verdicts]
    right = [key for key, outcome in contents.verdicts if outcome == "right"]
    _once("problems", problems, found)
    for name in ("traces", "aligned", "predictions", "final", "diversity"):
        _once(name, getattr(contents, name), found)
    _once("verdicts", verdicts, found)
    _known("traces", (key[0] for key in contents.traces), problems, "problem", found)
    _known("verdicts", verdicts, contents.traces, "trace", found)
    _known("aligned", contents.aligned, right, "right verdict", found)
    if "harvest" in complete:
        _whole("traces", contents.traces, _harvested(contents, complete["harvest"]), found)
    if "check" in complete:
        _whole("verdicts", verdicts, contents.traces, found)
    if "align" in complete:
        dropped = complete["align"]["summary"].get("dropped", {})
        refused = sum(dropped.get(reason, 0) for reason in ("refused", "too_long"))
        _whole("aligned", contents.aligned, right, found, but=refused)
    if "dataset" in complete:
        rows = complete["dataset"]["summary"].get("rows", len(contents.dataset))
        _count("dataset", len(contents.dataset), rows, found)
    if "diversity" in complete:
        _check_diversity(contents, complete["diversity"], found)
    for name, folder, splits in (
        ("evaluate", "predictions", evaluate.STEERING),
        ("final", "final", evaluate.REPORTED),
    ):
        rows = getattr(contents, folder)
        _known(folder, (key for _, key in rows), problems, "problem", found)
        if name in complete:
            _whole(folder, rows, _asked(contents, splits, complete[name]), found)


def _harvested(contents: _Contents, manifest: Mapping[str, Any]) -> Iterable[Key]:
    settings = manifest["settings"]
    split, samples = settings.get("split"), settings.get("samples", 0)
    asked = (problem.problem_id for problem in contents.problems if problem.split == split)
    return itertools.product(asked, range(samples))


def _asked(
    contents: _Contents, splits: tuple[str, ...], manifest: Mapping[str, Any]
) -> Iterable[tuple[int, str]]:
    steps = [int(step) for step in manifest["summary"].get("accuracy", {})]
    if not steps or not contents.problems:
        return []
    chosen = evaluate.choose(contents.problems, splits, manifest["settings"].get("limit"))
    return itertools.product(steps, (problem.problem_id for problem in chosen))


def _check_diversity(contents: _Contents, manifest: Mapping[str, Any], found: Soundness) -> None:
    samples = manifest["settings"].get("samples", 0)
    questions = sum(manifest["summary"].get("questions", {}).values())
    for name, count in sorted(Counter(name for name, _ in contents.diversity).items()):
        _count(f"diversity/{name}", count, samples * questions, found)


def _once(folder: str, keys: Iterable[Hashable], found: Soundness) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        found.faults.append(f"{folder}: {_some(twice)} more than once")


def _known(
    folder: str, keys: Iterable[Any], known: Iterable[Any], what: str, found: Soundness
) -> None:
    if unknown := set(keys) - set(known):
        found.faults.append(f"{folder}: {_some(unknown)} without a {what}")


def _whole(
    folder: str, keys: Iterable[Any], wanted: Iterable[Any], found: Soundness, but: int = 0
) -> None:
    missing = set(wanted) - set(keys)
    if len(missing) > but:
        found.faults.append(f"{folder}: {_some(missing)} missing")


def _count(folder: str, got: int, expected: int, found: Soundness) -> None:
    if got != expected:
        found.faults.append(f"{folder}: expected {expected} records, got {got}")


def _some(keys: Iterable[Any]) -> str:
    ordered = sorted(keys)
    return f"{len(ordered)} keys, {ordered[0]} the first,"


# --- Weights -----------------------------------------------------------------------------------


def _check_checkpoints(run_dir: Path, complete: Manifests, found: Soundness) -> None:
    if not (run_dir / "checkpoints").is_dir() and "train" not in complete:
        return
    import jax

    from distill.training import checkpoints

    steps = checkpoints.steps(run_dir / "checkpoints")
    last = complete.get("train", {}).get("summary", {}).get("steps")
    if last is not None and last not in steps:
        found.faults.append(f"checkpoints: none of the last step, {last}")
    for step in steps:
        if any(fault.startswith(f"checkpoints/params/{step}/") for fault in found.faults):
            continue  # bytes that nobody wrote are not given to Orbax
        try:
            params = checkpoints.load_params(run_dir / "checkpoints", step)
        except DAMAGE as error:
            found.faults.append(f"checkpoints/params/{step}: {_first_line(error)}")
            continue
        leaves = jax.tree.leaves(params)
        if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in leaves):
            found.faults.append(f"checkpoints/params/{step}: a tensor is not finite")
    if steps:
        found.records["checkpoints"] = len(steps)


def _check_export(run_dir: Path, complete: Manifests, found: Soundness) -> None:
    folder = run_dir / "export"
    if "export" not in complete:
        return
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in sorted(folder.glob("*.json")):
        _json(path, run_dir, found)
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, *DAMAGE) as error:
        found.faults.append(f"export/model.safetensors: {_first_line(error)}")
        return
    wrong = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    found.faults += [f"export/model.safetensors: {name} is not finite" for name in wrong]
