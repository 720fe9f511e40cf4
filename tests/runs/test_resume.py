"""A run that is killed twice in every stage ends as one that nobody disturbed.

Each kill is a SIGKILL at a given touch of a file, so it falls at the same place each time: once
in the middle of a stage and once when all is written but the manifest does not say so.
"""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from runs_world import DISTILL, SMALL_QUICKSTART, run_arguments, started

from distill.core.records import (
    AlignedTrace,
    PackedExample,
    Prediction,
    Problem,
    Trace,
    Verdict,
)
from distill.core.store import Shards
from distill.runs.commands import MAIN_JOB
from distill.training import checkpoints
from distill.training.metrics import read_lines

KILLED = (sys.executable, str(Path(__file__).with_name("killed.py")))
# Where each stage dies first; it dies again at the manifest that says that it is complete.
MIDDLES = {
    "problems": [("os.link", r"/problems/part-000003\.parquet", 1)],
    "harvest": [("os.link", r"/traces/part-000002\.parquet", 1)],
    "check": [("os.link", r"/verdicts/part-000001\.parquet", 1)],
    "align": [("os.link", r"/aligned/part-000001\.parquet", 1)],
    "dataset": [("os.link", r"/dataset/part-000001\.parquet", 1)],
    # The second checkpoint is half there; then it is whole and the third begins.
    "train": [("os.rename", "/params/2", 1), ("os.mkdir", r"/params/4\..*", 1)],
    "evaluate": [("os.link", r"/predictions/part-000004\.parquet", 1)],
    "select": [("os.rename", "/reports/selection.json", 1)],
    "final": [("os.link", r"/final/part-000001\.parquet", 1)],
    "export": [("os.rename", "/export", 1)],
    "report": [("os.rename", "/report.json", 1), ("os.rename", "/report.html", 1)],
}
RECORDS = {
    "problems": (Problem, ("problem_id",)),
    "traces": (Trace, ("problem_id", "sample")),
    "verdicts": (Verdict, ("problem_id", "sample")),
    "aligned": (AlignedTrace, ("problem_id", "sample")),
    "predictions": (Prediction, ("step", "problem_id")),
    "final": (Prediction, ("step", "problem_id")),
}


def kills():
    """Yield (stage, event, pattern, count) of every kill, in order."""
    for stage in MAIN_JOB:
        for middle in MIDDLES[stage]:
            yield stage, *middle
        if stage != "report":  # it has no manifest
            yield stage, "os.rename", f"/manifests/{stage}.json", 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An undisturbed run, a killed one, and the times of the shards that each kill left."""
    parent = tmp_path_factory.mktemp("runs")
    undisturbed, disturbed = (parent / name / "run" for name in ("undisturbed", "disturbed"))
    for run_dir in (undisturbed, disturbed):
        run_dir.parent.mkdir()
    cache = parent / "cache"
    arguments = run_arguments("quickstart", undisturbed, SMALL_QUICKSTART)
    whole = started([*KILLED, "never", "", "0", *arguments], cache)
    assert whole.returncode == 0, whole.stderr
    arguments = run_arguments("quickstart", disturbed, SMALL_QUICKSTART)
    left = {}
    for stage, event, pattern, count in kills():
        killed = started([*KILLED, event, pattern, str(count), *arguments], cache)
        assert killed.returncode == -signal.SIGKILL, (stage, pattern, killed.stderr)
        if stage != "report":
            manifest = json.loads((disturbed / "manifests" / f"{stage}.json").read_text())
            assert not manifest["complete"], (stage, pattern)
        left |= {path: path.stat().st_mtime_ns for path in disturbed.glob("*/part-*.parquet")}
    last = started([*DISTILL, *arguments], cache)
    assert last.returncode == 0, last.stderr
    return undisturbed, disturbed, left


def content(record):
    """Return a record's fields so that equal ones compare equal, arrays bit for bit."""
    return [
        (name, value.dtype, value.shape, value.tobytes())
        if isinstance(value := getattr(record, name), np.ndarray)
        else (name, repr(value))
        for name in (field.name for field in dataclasses.fields(record))
    ]


def without_times(value):
    """Return JSON without what no two runs share: times, and what kills made a harvest spend."""
    if isinstance(value, dict):
        timed = ("second", "date", "made", "spent")
        return {
            key: without_times(item)
            for key, item in value.items()
            if not any(word in key for word in timed)
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(runs):
    whole, killed, _ = runs
    for folder, (record, key) in RECORDS.items():
        one, other = (list(Shards(run_dir / folder, record)) for run_dir in (whole, killed))
        keys = [tuple(getattr(item, name) for name in key) for item in other]
        assert len(set(keys)) == len(keys), f"{folder} holds a key twice"
        assert sorted(map(content, one)) == sorted(map(content, other)), folder
    rows = [list(map(content, Shards(run / "dataset", PackedExample))) for run in (whole, killed)]
    assert rows[0] == rows[1]
    assert_trained_alike(whole / "checkpoints", killed / "checkpoints")
    for name in ("reports/selection.json", "report.json"):
        one, other = (json.loads((run / name).read_text()) for run in (whole, killed))
        assert without_times(one) == without_times(other), name
    assert files(whole / "export") == files(killed / "export")


def assert_trained_alike(one, other):
    lines = [without_times(read_lines(directory / "metrics.jsonl")) for directory in (one, other)]
    assert lines[0] == lines[1] and len(lines[0]) == 4
    assert checkpoints.steps(one) == checkpoints.steps(other) == [0, 2, 4]
    for step in checkpoints.steps(one):
        both = (checkpoints.load_params(directory, step) for directory in (one, other))
        first, second = (flat(params) for params in both)
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=f"{step} {name}")


def flat(params, path=""):
    if not isinstance(params, dict):
        return {path: np.asarray(params)}
    return {
        name: array
        for key, item in params.items()
        for name, array in flat(item, f"{path}/{key}").items()
    }


def files(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.slow
def test_what_a_killed_stage_had_written_is_kept_and_not_written_again(runs):
    _, _, left = runs
    folders = {path.parent.name for path in left}
    assert folders == {*RECORDS, "dataset"}
    for path, time in left.items():
        if path.parent.name != "dataset":  # rows are packed in one go, from scratch
            assert path.stat().st_mtime_ns == time, path
