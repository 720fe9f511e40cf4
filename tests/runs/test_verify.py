"""`distill verify`: a sound run has no fault, and every kind of damage is named."""

import json
import random
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from distill.__main__ import main
from distill.core import files, journal, sums
from distill.core.records import AlignedTrace, Prediction, Problem, Trace, Verdict
from distill.core.store import Shards, Stage
from distill.reports import report
from distill.runs import soundness
from distill.runs.layout import OUTPUTS
from distill.training.checkpoints import Checkpoints

SAMPLES = 3


def trace(problem_id, sample):
    none, ends = np.empty(0, np.float32), np.empty(0, np.int32)
    text = "The answer is 8"
    return Trace(problem_id, sample, "", text, (), none, (), none, ends, 0.0, "stop", "m", 0)


def aligned(problem_id, sample):
    return AlignedTrace(
        problem_id,
        sample,
        np.ones(2, np.int32),
        np.ones((2, 3), np.int32),
        np.ones((2, 3), np.float32),
        np.zeros(2, np.uint8),
        np.zeros((2, 2), np.float32),
    )


def stage(run_dir, name, folder, rows, *, write=None, settings=None, inputs=(), **summary):
    """Write a complete stage with its rows in shards of four, and what `write` writes."""
    with Stage.open(
        run_dir, name, settings=settings or {}, inputs=inputs, outputs=OUTPUTS[name]
    ) as opened:
        if rows:
            shards = Shards(run_dir / folder, type(rows[0]))
            for start in range(0, len(rows), 4):
                shards.append(rows[start : start + 4])
        if write:
            write(run_dir)
        opened.finish(**summary)


def checkpoint(run_dir, value=1.0):
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save(5, {"w": jnp.full(3, value)}, {"m": jnp.zeros(3)})


def export(run_dir, value=1.0):
    (run_dir / "export").mkdir(exist_ok=True)
    save_file({"w": np.full(3, value, np.float32)}, run_dir / "export" / "model.safetensors")


@pytest.fixture
def run_dir(tmp_path):
    """A whole run in miniature: two problems to harvest, two to steer with."""
    taught = [Problem(f"a/train/{n}", "a", "train", "What is 4 + 4?", "8") for n in range(2)]
    steering = [Problem(f"b/selection/{n}", "b", "selection", "4 + 4?", "8") for n in range(2)]
    keys = [(problem.problem_id, n) for problem in taught for n in range(SAMPLES)]
    outcomes = ["right", "wrong", "right"] * 2
    verdicts = [
        Verdict(*key, outcome, "8", "") for key, outcome in zip(keys, outcomes, strict=True)
    ]
    right = [(v.problem_id, v.sample) for v in verdicts if v.outcome == "right"]
    asked = {"split": "train", "samples": SAMPLES}
    stage(tmp_path, "problems", "problems", taught + steering)
    stage(tmp_path, "harvest", "traces", [trace(*key) for key in keys], settings=asked)
    stage(tmp_path, "check", "verdicts", verdicts, inputs=["problems", "harvest"])
    stage(tmp_path, "align", "aligned", [aligned(*key) for key in right], inputs=["check"])
    stage(tmp_path, "train", "", [], inputs=["align"], write=checkpoint, steps=5)
    answers = [
        Prediction(step, p.problem_id, "b", "selection", "8", "right", "8")
        for step in (0, 5)
        for p in steering
    ]
    counted = {str(step): {"b": {"correct": 2, "n": 2}} for step in (0, 5)}
    stage(tmp_path, "evaluate", "predictions", answers, inputs=["train"], accuracy=counted)
    stage(tmp_path, "export", "", [], inputs=["train"], write=export)
    return tmp_path


def test_a_sound_run_has_no_fault_and_is_counted(run_dir, capsys):
    assert main(["verify", str(run_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] and found["faults"] == found["notes"] == []
    assert set(found["stages"].values()) == {True}
    assert found["records"]["traces"] == 2 * SAMPLES and found["records"]["aligned"] == 4


def test_a_check_changes_nothing(run_dir):
    def state():
        return {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file()}

    before = state()
    soundness.check(run_dir)
    assert state() == before


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy(run_dir, folder):
    first, *_, last = sorted((run_dir / folder).glob("*.parquet"))
    last.with_name("part-000009.parquet").write_bytes(first.read_bytes())


def drop_last(run_dir, folder):
    sorted((run_dir / folder).glob("*.parquet"))[-1].unlink()


def another_kind(run_dir):
    (run_dir / "verdicts" / "part-000000.parquet").write_bytes(
        (run_dir / "traces" / "part-000000.parquet").read_bytes()
    )


def damage_checkpoint(run_dir):
    for path in (run_dir / "checkpoints" / "params" / "5").rglob("*"):
        if path.is_file():
            path.write_bytes(b"rubbish")


DAMAGES = {
    "flipped": (lambda d: flip(d / "traces" / "part-000000.parquet"), "traces/part-000000.*SHA"),
    "cut short": (
        lambda d: (d / "traces" / "part-000001.parquet").write_bytes(b"PAR1"),
        "traces/part-000001.*expected a Parquet file",
    ),
    "hole in traces": (lambda d: drop_last(d, "traces"), "traces: 2 keys, .* missing"),
    "lost shard": (lambda d: drop_last(d, "traces"), "traces/part-000001.parquet: it is missing"),
    "verdict without a trace": (lambda d: drop_last(d, "traces"), "verdicts: 2 .* without a trace"),
    "hole in verdicts": (lambda d: drop_last(d, "verdicts"), "verdicts: 2 keys, .* missing"),
    "aligned of no verdict": (lambda d: drop_last(d, "verdicts"), "aligned: .*right verdict"),
    "hole in aligned": (lambda d: drop_last(d, "aligned"), "aligned: 4 keys, .* missing"),
    "hole in predictions": (
        lambda d: drop_last(d, "predictions"),
        "predictions: 4 keys, .*missing",
    ),
    "twice": (lambda d: copy(d, "traces"), "traces: 4 keys, .* more than once"),
    "not of the run": (
        lambda d: copy(d, "traces"),
        "part-000009.parquet: it does not belong to the run",
    ),
    "another kind": (another_kind, "verdicts/part-000000.*expected columns of Verdict"),
    "no JSON": (lambda d: (d / "manifests" / "check.json").write_text("{"), "manifests/check.json"),
    "no field": (
        lambda d: rewrite(d / "manifests" / "check.json", complete="yes"),
        "manifests/check.json: expected complete of type bool",
    ),
    "other settings": (
        lambda d: rewrite(d / "manifests" / "harvest.json", settings={"samples": 9}),
        "harvest: its digest does not match the settings",
    ),
    "other input": (
        lambda d: rewrite(d / "manifests" / "harvest.json", digest="0"),
        "check: it was made from another harvest",
    ),
    "input not complete": (
        lambda d: rewrite(d / "manifests" / "harvest.json", complete=False),
        "check: its input harvest is not complete",
    ),
    "damaged checkpoint": (damage_checkpoint, "checkpoints/params/5"),
    "damaged export": (
        lambda d: (d / "export" / "model.safetensors").write_bytes(b"x"),
        "export/model.safetensors",
    ),
    "export not finite": (lambda d: export(d, np.nan), "model.safetensors: w is not finite"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_ends_in_2(run_dir, name, capsys):
    damage, line = DAMAGES[name]
    damage(run_dir)
    assert main(["verify", str(run_dir)]) == 2
    faults = [x for x in capsys.readouterr().out.splitlines() if x.startswith("fault: ")]
    assert any(re.search(line, fault) for fault in faults), faults


def test_a_checkpoint_that_is_not_finite_is_a_fault(tmp_path):
    stage(tmp_path, "train", "", [], write=lambda d: checkpoint(d, np.inf), steps=5)
    assert soundness.check(tmp_path).faults == ["checkpoints/params/5: a tensor is not finite"]


def test_a_run_that_stopped_half_way_is_said_and_sound(tmp_path):
    problems = [Problem("a/train/0", "a", "train", "What is 4 + 4?", "8")]
    stage(tmp_path, "problems", "problems", problems)
    asked = {"split": "train", "samples": 4}
    with Stage.open(tmp_path, "harvest", settings=asked, outputs=OUTPUTS["harvest"]):
        Shards(tmp_path / "traces", Trace).append([trace("a/train/0", 1)])
    (tmp_path / "traces" / ".part.1.tmp").write_bytes(b"half")
    found = soundness.check(tmp_path)
    assert found.sound and found.stages == {"problems": True, "harvest": False}
    assert "harvest: not complete" in found.lines()
    assert found.notes == ["traces/.part.1.tmp is a temporary file of a process that was stopped"]


def test_an_older_run_without_checksums_is_sound_and_noted(run_dir):
    later = ("version", "started", "finished", "files", "made_from", "reads")
    for path in (run_dir / "manifests").glob("*.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in manifest.items() if k not in later}))
        sums.path_of(run_dir, path.stem).unlink()
    found = soundness.check(run_dir)
    assert found.sound and "harvest: no checksums were recorded" in found.notes
    shard = "verdicts/part-000000.parquet"
    rewrite(run_dir / "manifests" / "check.json", shards={shard: "0" * 64})
    assert f"{shard}: its SHA-256 is not the recorded one" in soundness.check(run_dir).faults


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err


# --- Every bit ---------------------------------------------------------------------------------

FLIPS = 200


def whole(run_dir):
    """Add what a command beside the stages leaves: the configuration and a report."""
    journal.append(run_dir / "config.gin", "# distill run\ntrain.run.steps = 5\n")
    report.run(run_dir=run_dir)


def test_every_flipped_bit_of_a_finished_run_is_found(run_dir):
    whole(run_dir)
    clean = soundness.check(run_dir)
    assert clean.faults == clean.not_covered == []
    paths = [path for path in sorted(run_dir.rglob("*")) if path.is_file() and path.stat().st_size]
    drawn = random.Random(14)
    # A bit of each file, then of files drawn alike, so that small ones are not passed over.
    for path in (paths + drawn.choices(paths, k=FLIPS))[: max(FLIPS, len(paths))]:
        content = path.read_bytes()
        at = drawn.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        name = path.relative_to(run_dir)
        assert soundness.check(run_dir, contents=False).faults, f"bit {at} of {name}"
        path.write_bytes(content)
    assert soundness.check(run_dir, contents=False).sound


def test_no_field_of_a_manifest_makes_it_one_of_an_earlier_version(run_dir):
    path = run_dir / "manifests" / "train.json"
    stated = json.loads(path.read_text())
    for field in stated:
        renamed = {f"{k}x" if k == field else k: value for k, value in stated.items()}
        path.write_text(files.json_text(renamed))
        assert soundness.check(run_dir, contents=False).faults, field


@pytest.mark.parametrize("change", ["removed", "cut", "emptied", "linked"])
def test_every_file_that_is_removed_cut_or_replaced_by_a_link_is_missed(run_dir, change, tmp_path):
    whole(run_dir)
    with Stage.open(run_dir, "select", settings={}) as stage:  # knows the configuration
        stage.finish()
    for path in [path for path in run_dir.rglob("*") if path.is_file() and path.stat().st_size]:
        content = path.read_bytes()
        path.unlink()
        if change == "linked":
            path.symlink_to("/etc/hostname")
        elif change != "removed":
            path.write_bytes(content[: len(content) // 2] if change == "cut" else b"")
        assert soundness.check(run_dir, contents=False).faults, path
        path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("folder", ["manifests", "traces", "export", "checkpoints/params/5"])
def test_a_file_that_was_added_to_a_stage_is_a_fault(run_dir, folder):
    (run_dir / folder / "part-000009.parquet").write_bytes(b"more")
    assert any("part-000009" in fault for fault in soundness.check(run_dir, contents=False).faults)


def test_a_file_of_no_stage_and_a_lock_that_holds_something_are_said(run_dir):
    (run_dir / "notes.txt").write_text("mine")
    found = soundness.check(run_dir, contents=False)
    assert found.sound and found.not_covered == ["notes.txt"]
    (run_dir / "manifests" / "train.lock").write_text("x")
    faults = soundness.check(run_dir, contents=False).faults
    assert faults == ["manifests/train.lock: expected an empty lock file"]


def forged(run_dir, name, **summary):
    """Rewrite a summary and the stage's list with it, as one who means harm would."""
    path, listed = run_dir / "manifests" / f"{name}.json", sums.path_of(run_dir, name)
    stated = json.loads(path.read_text())
    stated["summary"] |= summary
    path.write_text(files.json_text(stated))
    digests = sums.read(listed) | sums.of(run_dir, [path])
    listed.write_text(sums.text(digests))


def test_a_forged_summary_is_not_what_the_records_give(run_dir):
    lied = {"5": {"b": {"correct": 1, "n": 2}}}
    forged(run_dir, "evaluate", accuracy=lied)
    (fault,) = [f for f in soundness.check(run_dir).faults if f.startswith("evaluate")]
    assert re.search(r"evaluate: it states accuracy .*'correct': 1.*, its records give", fault)


def test_a_forged_manifest_breaks_the_chain_to_what_was_made_from_it(run_dir):
    forged(run_dir, "harvest", traces=6)
    assert "check: it was made from another harvest" in soundness.check(run_dir).faults


def test_a_run_that_was_copied_elsewhere_is_sound(run_dir, tmp_path_factory):
    whole(run_dir)
    copied = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(run_dir, copied)
    assert soundness.check(copied).faults == []


def test_a_forged_report_is_not_what_the_run_holds(run_dir):
    whole(run_dir)
    path = run_dir / "report.json"
    rewrite(path, seconds={})
    sums.path_of(run_dir, "report").write_text(
        sums.text(sums.of(run_dir, [path, run_dir / "report.html"]))
    )
    assert soundness.check(run_dir).faults == ["report.json: its seconds differs from the run"]


@pytest.mark.parametrize("value", [[], "x", {"b": 3}, {"5": []}, 10**30, None])
def test_a_manifest_of_values_of_other_kinds_is_a_fault_and_no_traceback(run_dir, value):
    for name in ("evaluate", "train", "export", "align"):
        forged(run_dir, name, accuracy=value, steps=value, bytes=value, dropped=value, step=value)
    assert not soundness.check(run_dir).sound
