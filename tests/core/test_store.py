import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from closeness import gap
from hypothesis import given
from hypothesis import strategies as st

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
        "call": "distill.core.store.describe",
        "list": [1, 2.5, None, True],
    }


def test_a_complete_stage_knows_the_checksum_of_each_of_its_shards(tmp_path):
    with Stage.open(tmp_path, "check", settings={}) as stage:
        shards = Shards(tmp_path / "verdicts", Verdict)
        for sample in range(2):
            shards.append([Verdict("a", sample, "right", "1", "equal")])
        assert "shards" not in json.loads((tmp_path / "manifests" / "check.json").read_text())
        stage.finish()
    found = manifest(tmp_path, "check")["shards"]
    assert found == {
        f"verdicts/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in shards.files()
    }


def test_a_column_of_another_type_is_refused(tmp_path):
    table = pa.table(
        {name: [1] for name in ("problem_id", "sample", "outcome", "answer", "reason")}
    )
    pq.write_table(table, tmp_path / "part-000000.parquet")
    with pytest.raises(UserError, match=r"expected columns of Verdict in .*problem_id int64"):
        list(Shards(tmp_path, Verdict))
