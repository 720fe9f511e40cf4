import dataclasses
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from closeness import gap
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core import stages, sums
from distill.core.errors import UserError
from distill.core.records import AlignedTrace, PackedExample, Problem, Trace, Verdict
from distill.core.store import Shards, Stage, describe, manifest, temporary_beside

HALF_A_STEP = 0.0005 / 2 + 30 * gap(2)  # and the rounding of numbers up to 30 in float32


@st.composite
def traces(draw, number=0):
    counts = draw(st.lists(st.integers(0, 5), max_size=6))
    total = sum(counts)
    logprob = st.floats(-30, 0, width=32)
    return Trace(
        problem_id=f"p/{number}",
        sample=draw(st.integers(0, 9)),
        prompt=draw(st.text(st.characters(exclude_categories=("Cs",)))),
        text="x",
        tokens=tuple(draw(st.binary(max_size=4)) for _ in counts),
        logprobs=np.array([draw(logprob) for _ in counts], np.float32),
        top_tokens=tuple(draw(st.binary(max_size=4)) for _ in range(total)),
        top_logprobs=np.array([draw(logprob) for _ in range(total)], np.float32),
        top_ends=np.cumsum(counts).astype(np.int32),
        end_logprob=draw(logprob),
        finish_reason="stop",
        model="m",
        seed=draw(st.integers(0, 2**62)),
    )


@given(st.lists(traces(), max_size=5))
def test_traces_come_back_within_half_a_step_of_their_logprobs(tmp_path_factory, records):
    shards = Shards(tmp_path_factory.mktemp("shards"), Trace)
    assert shards.append(records) == len(records)
    back = list(shards)
    assert len(back) == len(shards) == len(records)
    for old, new in zip(records, back, strict=True):
        assert (old.problem_id, old.prompt, old.tokens) == (new.problem_id, new.prompt, new.tokens)
        assert old.top_tokens == new.top_tokens
        np.testing.assert_array_equal(old.top_ends, new.top_ends)
        np.testing.assert_allclose(old.logprobs, new.logprobs, rtol=0, atol=HALF_A_STEP)
        np.testing.assert_allclose(old.top_logprobs, new.top_logprobs, rtol=0, atol=HALF_A_STEP)


def test_matrices_and_absent_values_come_back_as_they_were(tmp_path):
    records = [
        AlignedTrace(
            "p",
            sample,
            np.arange(n, dtype=np.int32),
            np.arange(n * 3, dtype=np.int32).reshape(n, 3),
            np.linspace(0, 1, n * 3, dtype=np.float32).reshape(n, 3),
            np.ones(n, np.uint8),
            np.zeros((n, 2), np.float32),
        )
        for sample, n in enumerate([4, 0, 2])
    ]
    shards = Shards(tmp_path, AlignedTrace)
    shards.append(records)
    for old, new in zip(records, shards, strict=True):
        for name in ("ids", "top_ids", "top_probs", "kind", "lost"):
            np.testing.assert_array_equal(getattr(old, name), getattr(new, name))
            assert getattr(old, name).dtype == getattr(new, name).dtype


def test_an_absent_logprob_stays_absent(tmp_path):
    absent = np.array([np.nan, -1.0], np.float32)
    ends = np.array([0, 0], np.int32)
    trace = Trace("p", 0, "", "ab", (b"a", b"b"), absent, (), ends[:0], ends, 0.0, "stop", "m", 0)
    Shards(tmp_path, Trace).append([trace])
    (back,) = Shards(tmp_path, Trace)
    assert np.isnan(back.logprobs[0]) and back.logprobs[1] == pytest.approx(
        -1.0, rel=0, abs=HALF_A_STEP
    )


def test_shards_of_a_version_without_a_later_field_are_read(tmp_path):
    nats = np.array([-1.0], np.float32)
    ends = np.array([0], np.int32)
    trace = Trace("p", 0, "", "a", (b"a",), nats, (), nats[:0], ends, 0.0, "stop", "m", 0, nats)
    shards = Shards(tmp_path, Trace)
    shards.append([trace])
    (path,) = shards.files()
    assert [back.behaviour_logprobs.tolist() for back in shards] == [[-1.0]]
    pq.write_table(pq.read_table(path).drop(["behaviour_logprobs"]), path)
    assert [back.behaviour_logprobs.tolist() for back in shards] == [[]]
    pq.write_table(pq.read_table(path).drop(["seed"]), path)
    with pytest.raises(UserError, match="columns of Trace in"):
        list(shards)


def test_more_rows_than_one_read_batch_come_back_in_order(tmp_path):
    shards = Shards(tmp_path, PackedExample)
    zeros = np.zeros(4, np.int32)

    def packed(i):
        tokens = np.full(4, i, np.int32)
        top = np.full((4, 2), i, np.int32)
        weights, probs = np.ones(4, np.float32), top.astype(np.float32)
        return PackedExample(
            tokens, zeros, zeros, tokens, tokens, zeros, zeros, weights, top, probs
        )

    shards.append(packed(i) for i in range(1500))
    shards.append(packed(i) for i in range(1500, 1600))
    assert [int(row.decoder_target_top_ids[3, 1]) for row in shards] == list(range(1600))


def test_two_writers_never_take_the_same_number(tmp_path):
    one, two = Shards(tmp_path, Verdict), Shards(tmp_path, Verdict)
    for n in range(3):
        one.append([Verdict("a", n, "right", "1", "equal")])
        two.append([Verdict("b", n, "wrong", None, "no answer")])
    assert len(one.files()) == 6
    assert one.keys("problem_id", "sample") == {(p, n) for p in "ab" for n in range(3)}


def test_a_writer_killed_in_the_middle_leaves_no_shard(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from distill.core import store; from distill.core.records import Verdict\n"
        "store.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.Shards(Path(sys.argv[1]), Verdict).append([Verdict('a', 0, 'right', '1', 'r')])\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], env=os.environ, check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(Shards(tmp_path, Verdict)) == []


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "part-000000.parquet").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"expected a Parquet file at .*part-000000"):
        list(Shards(tmp_path, Verdict))


def test_shards_of_another_record_are_refused(tmp_path):
    Shards(tmp_path, Problem).append([Problem("a", "s", "train", "q", "a")])
    with pytest.raises(UserError, match="expected columns of Verdict"):
        list(Shards(tmp_path, Verdict))


def test_a_stage_is_done_once_and_sums_its_seconds(tmp_path):
    for start in range(3):
        with Stage.open(tmp_path, "harvest", settings={"samples": 4}) as stage:
            assert stage.complete == (start > 1)
            if start == 1:
                stage.finish(kept=3)
    found = manifest(tmp_path, "harvest")
    assert found["summary"] == {"kept": 3} and found["seconds"] >= 0


def test_a_stage_with_other_settings_is_refused(tmp_path):
    with Stage.open(tmp_path, "harvest", settings={"samples": 4}):
        pass
    with (
        pytest.raises(UserError, match="got harvest with samples=8 where the run has 4; use anoth"),
        Stage.open(tmp_path, "harvest", settings={"samples": 8}),
    ):
        pass


def test_a_stage_whose_input_is_missing_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match="run `distill problems` on it first"),
        Stage.open(tmp_path, "harvest", settings={}, inputs=["problems"]),
    ):
        pass


def test_a_stage_runs_in_one_process_at_a_time(tmp_path):
    with (
        Stage.open(tmp_path, "harvest", settings={}),
        pytest.raises(UserError, match="wait for it"),
        Stage.open(tmp_path, "harvest", settings={}),
    ):
        pass


def test_a_stage_that_fails_is_not_complete(tmp_path):
    with pytest.raises(KeyError), Stage.open(tmp_path, "check", settings={}):
        raise KeyError("x")
    assert not json.loads((tmp_path / "manifests" / "check.json").read_text())["complete"]


def test_a_first_start_that_is_refused_before_it_wrote_pins_no_settings(tmp_path):
    refusal = UserError("a batch of 8", "9", "correct it")
    with pytest.raises(UserError, match="got 9"), Stage.open(tmp_path, "train", settings={"n": 9}):
        raise refusal
    with Stage.open(tmp_path, "train", settings={"n": 8}) as stage:
        stage.finish()
    assert manifest(tmp_path, "train")["settings"] == {"n": 8}


@pytest.mark.parametrize("first", [True, False])
def test_what_a_refused_start_wrote_keeps_its_settings(tmp_path, first):
    verdicts = Shards(tmp_path / "verdicts", Verdict)
    if not first:
        with Stage.open(tmp_path, "check", settings={"n": 9}):
            pass
    with pytest.raises(UserError, match="got 9"), Stage.open(tmp_path, "check", settings={"n": 9}):
        if first:
            verdicts.append([Verdict("a", 0, "right", "1", "equal")])
        raise UserError("a batch of 8", "9", "correct it")
    with (
        pytest.raises(UserError, match="n=8 where the run has 9"),
        Stage.open(tmp_path, "check", settings={"n": 8}),
    ):
        pass


def test_temporary_names_never_come_again(tmp_path):
    assert len({temporary_beside(tmp_path / "export") for _ in range(100)}) == 100


def test_descriptions_are_json_and_stable():
    value = {"path": Path("a"), "call": describe, "list": (1, 2.5, None, True)}
    assert describe(value) == {
        "path": "a",
        "call": "distill.core.stages.describe",
        "list": [1, 2.5, None, True],
    }


def test_a_complete_stage_lists_the_checksum_of_each_of_its_files_and_of_its_manifest(tmp_path):
    with Stage.open(tmp_path, "check", settings={}, outputs=["verdicts"]) as stage:
        shards = Shards(tmp_path / "verdicts", Verdict)
        for sample in range(2):
            shards.append([Verdict("a", sample, "right", "1", "equal")])
        assert not sums.path_of(tmp_path, "check").exists()
        stage.finish()
    listed = [*shards.files(), tmp_path / "manifests" / "check.json"]
    assert sums.read(sums.path_of(tmp_path, "check")) == {
        path.relative_to(tmp_path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in listed
    }
    assert manifest(tmp_path, "check")["files"] == 2


def test_the_manifest_names_version_and_dates(tmp_path):
    with Stage.open(tmp_path, "check", settings={}) as stage:
        stage.finish()
    found = manifest(tmp_path, "check")
    assert found["version"] == importlib.metadata.version("distill")
    started, finished = (datetime.fromisoformat(found[name]) for name in ("started", "finished"))
    assert started <= finished and started.utcoffset() == timedelta(0)


@dataclasses.dataclass(frozen=True)
class Source:
    path: Path

    def input_files(self):
        return (self.path,)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_stage_whose_input_file_changed_is_refused_by_the_name_of_the_file(
    tmp_path, finished, nested
):
    folder, run_dir = tmp_path / "in", tmp_path / "run"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("1")
    source = Source(folder if nested else folder / "rows.jsonl")

    def start():
        with Stage.open(run_dir, "problems", settings={"sources": [source]}) as stage:
            if finished and not stage.complete:
                stage.finish()

    start()
    start()
    (folder / "rows.jsonl").write_text("2")
    with pytest.raises(UserError, match=r"the content of .*rows\.jsonl that the run in .*another"):
        start()
    (folder / "rows.jsonl").write_text("1")
    start()


def test_a_stage_is_refused_where_its_input_was_made_anew(tmp_path):
    def made(name, inputs=()):
        with Stage.open(tmp_path, name, settings={}, inputs=inputs) as stage:
            if not stage.complete:
                stage.finish()

    made("problems")
    made("harvest", ["problems"])
    (tmp_path / "manifests" / "problems.json").unlink()
    time.sleep(0.001)  # its seconds differ, as its date would
    made("problems")
    with pytest.raises(UserError, match=r"the stage problems that harvest in .* was made from"):
        made("harvest", ["problems"])


def test_a_manifest_that_was_edited_is_no_input(tmp_path):
    with Stage.open(tmp_path, "problems", settings={}) as stage:
        stage.finish(problems=3)
    path = tmp_path / "manifests" / "problems.json"
    path.write_text(path.read_text().replace('"problems": 3', '"problems": 4'))
    with pytest.raises(UserError, match=r"manifests/problems.json in .* left it, got another con"):
        manifest(tmp_path, "problems")


LINKS = ("problems", "config.gin", "manifests", "manifests/problems.lock", "spent/x.json")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_directory_is_refused_and_its_target_stays(tmp_path, name):
    outside, link = tmp_path / "outside", tmp_path / "run" / name
    outside.write_text("precious")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with (
        pytest.raises(UserError, match=rf"alone at .*{name}, got a link"),
        Stage.open(tmp_path / "run", "problems", settings={}),
    ):
        pass
    assert outside.read_text() == "precious"


def test_a_lock_that_becomes_a_link_is_not_emptied(tmp_path):
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "x.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"a lock at .*x.lock, got a link"):
        stages.open_lock(tmp_path / "x.lock")
    (tmp_path / "y.lock").write_text("kept")
    os.close(stages.open_lock(tmp_path / "y.lock"))
    assert (tmp_path / "outside").read_text() == "precious"
    assert (tmp_path / "y.lock").read_text() == "kept"


def test_settings_with_a_credential_are_written_nowhere(tmp_path):
    with (
        pytest.raises(UserError, match="no credentials in the settings of stage harvest"),
        Stage.open(tmp_path, "harvest", settings={"url": "http://me:hunter22@h/v1"}),
    ):
        pass
    assert list(tmp_path.rglob("*")) == []


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_shard_with_any_bytes_changed_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    shards = Shards(tmp_path_factory.mktemp("shards"), Verdict)
    shards.append([Verdict("a", n, "right", "1", "equal") for n in range(9)])
    (path,) = shards.files()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert all(isinstance(verdict, Verdict) for verdict in shards)
    except UserError as error:
        assert "part-000000.parquet" in str(error)


def test_a_column_of_another_type_is_refused(tmp_path):
    table = pa.table(
        {name: [1] for name in ("problem_id", "sample", "outcome", "answer", "reason")}
    )
    pq.write_table(table, tmp_path / "part-000000.parquet")
    with pytest.raises(UserError, match=r"expected columns of Verdict in .*problem_id int64"):
        list(Shards(tmp_path, Verdict))
