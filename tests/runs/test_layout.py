"""What the stages declare to fill: complete, disjoint, and what `verify` knows files by."""

import itertools

from distill.__main__ import STAGES
from distill.core import sums
from distill.core.records import Problem
from distill.core.store import Stage, manifest
from distill.problems import problems
from distill.runs import checksums
from distill.runs.layout import OUTPUTS

SAME = {"train", "pretrain"}  # a run trains a student or makes a start, never both


def test_every_stage_that_writes_into_a_run_has_a_layout():
    kinds = {name for name in OUTPUTS if name.startswith("verifier-")}
    assert kinds == {"verifier-process", "verifier-outcome"}
    assert OUTPUTS.keys() - kinds == STAGES.keys() - {"report", "verifier"}


def test_no_two_stages_fill_the_same_place(tmp_path):
    for (one, some), (other, others) in itertools.combinations(OUTPUTS.items(), 2):
        if {one, other} != SAME:
            assert not set(some) & set(others), (one, other)


def test_a_file_belongs_to_the_stage_that_fills_its_place_or_to_none(tmp_path):
    (tmp_path / "manifests").mkdir()
    for patterns in OUTPUTS.values():
        for pattern in patterns:
            path = tmp_path / pattern.replace("*", "x")
            path = path if "." in path.name or "*" in pattern else path / "x"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    report = checksums.check(tmp_path, {})
    assert report.notes == ["mine/x belongs to no stage"]
    written = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert len(report.faults) == written - 1
    assert all(fault.endswith(": it does not belong to the run") for fault in report.faults)


class OneProblem:
    def problems(self):
        yield Problem("s/train/0", "s", "train", "2 + 2?", "4")


def test_a_stage_lists_what_it_declares_and_nothing_else(tmp_path):
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "x").write_text("of another stage")
    problems.run(run_dir=tmp_path, sources=[OneProblem()])
    shards = {f"problems/{path.name}" for path in (tmp_path / "problems").iterdir()}
    listed = sums.read(sums.path_of(tmp_path, "problems"))
    assert shards and listed.keys() == shards | {"manifests/problems.json"}
    assert manifest(tmp_path, "problems")["files"] == len(shards)


def test_a_stage_without_outputs_lists_its_manifest_alone(tmp_path):
    (tmp_path / "verdicts").mkdir()
    (tmp_path / "verdicts" / "x").write_text("x")
    with Stage.open(tmp_path, "check", settings={}) as stage:
        stage.finish()
    assert sums.read(sums.path_of(tmp_path, "check")).keys() == {"manifests/check.json"}
