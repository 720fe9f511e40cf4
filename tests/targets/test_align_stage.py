import dataclasses
import hashlib
import json

import numpy as np
import pytest
from aligned_world import STUDENT, K, fill, problems, trace_of, world
from closeness import near

import tokalign
from distill.core.errors import UserError
from distill.core.records import AlignedTrace, Verdict
from distill.core.store import Shards, manifest
from distill.runs import soundness
from distill.targets import align, vocabulary

FIELDS = ("ids", "top_ids", "top_probs", "kind", "lost")


def rows(run_dir):
    found = list(Shards(run_dir / "aligned", AlignedTrace))
    assert len({(row.problem_id, row.sample) for row in found}) == len(found)
    return {(row.problem_id, row.sample): [getattr(row, name) for name in FIELDS] for row in found}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        for left, right in zip(one[key], two[key], strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("rule", "learnt"), [("marginal", 0), ("marginal", 5_000), ("paper", 5_000)]
)
def test_the_right_traces_and_only_they_are_projected(tmp_path, rule, learnt):
    _, traces, verdicts = world(tmp_path)
    align.run(
        run_dir=tmp_path, vocabulary=STUDENT, rule=rule, k=K, continuations=learnt, processes=1
    )
    tokenizer = tokalign.SentencePieceTokenizer(STUDENT)
    right = {(v.problem_id, v.sample) for v in verdicts if v.outcome == "right"}
    taught = {
        (trace.problem_id, trace.sample): tokalign.TeacherTrace(
            trace.tokens,
            trace.logprobs,
            trace.top_tokens,
            trace.top_logprobs,
            trace.top_ends,
            trace.end_logprob,
        )
        for trace in Shards(tmp_path / "traces", type(traces[0]))
        if (trace.problem_id, trace.sample) in right
    }
    fitted = tokalign.Continuations.fit([taught[key] for key in sorted(taught)], tokenizer)
    after = fitted if learnt and rule == "marginal" else None
    expected = {}
    for key, trace in taught.items():
        projected = tokalign.project(trace, tokenizer, rule=rule, k=K, continuations=after)
        expected[key] = [getattr(projected, n) for n in FIELDS]
    assert_same(rows(tmp_path), expected)


def test_the_result_does_not_depend_on_processes_or_the_order_of_shards(tmp_path):
    world(tmp_path / "one")
    world(tmp_path / "two", order=5)
    one = align.run(run_dir=tmp_path / "one", vocabulary=STUDENT, k=K, processes=1)
    two = align.run(run_dir=tmp_path / "two", vocabulary=STUDENT, k=K, processes=2)
    assert one == two
    assert_same(rows(tmp_path / "one"), rows(tmp_path / "two"))


def test_a_stopped_stage_resumes_and_ends_with_the_same_rows(tmp_path, monkeypatch):
    settings = {"vocabulary": STUDENT, "k": K, "processes": 1, "shard_traces": 4}
    for name in ("whole", "stopped"):
        world(tmp_path / name)
    whole = align.run(run_dir=tmp_path / "whole", **settings)
    calls = []

    def stops(traces, *arguments, **options):
        calls.append(traces)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(traces, *arguments, **options)

    work = tokalign.project_batch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokalign, "project_batch", stops)
        align.run(run_dir=tmp_path / "stopped", **settings)
    assert not manifest_is_complete(tmp_path / "stopped")
    assert len(rows(tmp_path / "stopped")) == 8
    stopped = align.run(run_dir=tmp_path / "stopped", **settings)
    assert stopped == whole
    assert_same(rows(tmp_path / "stopped"), rows(tmp_path / "whole"))


def manifest_is_complete(run_dir):
    try:
        return manifest(run_dir, "align")["complete"]
    except UserError:
        return False


def test_a_complete_stage_does_nothing_again(tmp_path):
    world(tmp_path)
    first = align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    files = Shards(tmp_path / "aligned", AlignedTrace).files()
    assert align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1) == first
    assert Shards(tmp_path / "aligned", AlignedTrace).files() == files


def test_the_summary_counts_what_the_rows_hold(tmp_path):
    _, traces, _ = world(tmp_path)
    summary = align.run(run_dir=tmp_path, vocabulary=STUDENT, rule="paper", k=K, processes=1)
    found = rows(tmp_path).values()
    kinds = np.concatenate([row[3] for row in found])
    ids = np.concatenate([row[0] for row in found])
    tokenizer = tokalign.SentencePieceTokenizer(STUDENT)
    digit = np.array([any(c in b"0123456789" for c in tokenizer.token_bytes(i)) for i in ids])
    covered = kinds != tokalign.Kind.ONE_HOT
    assert summary["read"] == len(traces)
    assert summary["kept"] + summary["dropped"]["wrong"] == len(traces)
    assert summary["tokens"] == len(ids) == summary["coverage"]["count"]
    assert summary["coverage"]["sum"] == covered.sum() < len(ids)
    assert summary["coverage_of_digits"] == {
        "sum": covered[digit].sum(),
        "count": digit.sum(),
    }
    assert summary["kinds"]["one_to_one"] == (kinds == tokalign.Kind.ONE_TO_ONE).sum()
    lost = np.concatenate([row[4] for row in found])[covered]
    assert summary["lost_beyond_top_k"]["sum"] == near(
        lost[:, 0].sum(dtype=float), terms=len(lost), dtype="float32"
    )
    assert summary["lost_unspellable"]["sum"] == near(
        lost[:, 1].sum(dtype=float), terms=len(lost), dtype="float32"
    )


def test_a_trace_of_unknown_logprobs_is_refused_and_counted(tmp_path):
    asked = problems(3)
    unknown = trace_of(asked[1], 0)
    unknown = trace_of(asked[1], 0, logprob=np.full(len(unknown.tokens), np.nan, np.float32))
    traces = [trace_of(asked[0], 0), unknown, trace_of(asked[2], 0)]
    verdicts = [Verdict(t.problem_id, 0, "right", "1", "made up") for t in traces]
    fill(tmp_path, asked, traces, verdicts)
    summary = align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    assert summary["dropped"] == {"refused": 1}
    assert {key[0] for key in rows(tmp_path)} == {asked[0].problem_id, asked[2].problem_id}


def test_a_trace_that_is_too_long_is_left_out_by_name_and_counted(tmp_path, caplog):
    asked = problems(3)
    chain = "2 + 2 = 4. " * 40 + asked[1].chain
    asked[1] = dataclasses.replace(asked[1], chain=chain)
    traces = [trace_of(problem, 0) for problem in asked]
    verdicts = [Verdict(t.problem_id, 0, "right", "1", "made up") for t in traces]
    fill(tmp_path, asked, traces, verdicts)
    options = {"run_dir": tmp_path, "vocabulary": STUDENT, "k": K, "processes": 1}
    with pytest.raises(UserError, match="a right trace of at most 2 tokens, got none, gsm/"):
        align.run(**options, max_tokens=2)
    summary = align.run(**options, max_tokens=200)
    assert summary["dropped"] == {"too_long": 1} and summary["kept"] == 2
    assert summary["too_long"] == [f"{asked[1].problem_id} sample 0"]
    assert f"{asked[1].problem_id} sample 0 is skipped: " in caplog.text
    assert {key[0] for key in rows(tmp_path)} == {asked[0].problem_id, asked[2].problem_id}
    assert soundness.check(tmp_path).faults == []


def test_a_run_of_a_version_without_digests_resumes_and_is_compared(tmp_path):
    world(tmp_path)
    align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    path = tmp_path / "manifests" / "align.json"
    found = json.loads(path.read_text())
    assert found["settings"]["vocabulary"].pop("vocabulary")
    names = ["align", found["settings"], found["inputs"]]
    text = json.dumps(names, sort_keys=True).encode()
    path.write_text(json.dumps({**found, "digest": hashlib.sha256(text).hexdigest()}))
    again = align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    assert again == found["summary"]
    described = json.loads(path.read_text())["settings"]["vocabulary"]
    names = {"expected": "the run", "got": "the student", "do": "align again"}
    vocabulary.require_described(described, vocabulary.load(STUDENT), **names)
    other = tokalign.TiktokenTokenizer(STUDENT.with_name("teacher.tiktoken"))
    with pytest.raises(UserError, match=r"vocabulary of the run .*, got that of the student"):
        vocabulary.require_described(described, other, **names)


def test_a_student_is_described_by_its_content(tmp_path):
    moved, other = tmp_path / "moved.model", tmp_path / "other"
    moved.write_bytes(STUDENT.read_bytes())
    assert vocabulary.describe(vocabulary.load(moved)) == vocabulary.describe(
        vocabulary.load(STUDENT)
    )
    hundred = tokalign.SentencePieceTokenizer(moved, 100)
    assert vocabulary.describe(vocabulary.load(hundred)) != vocabulary.describe(
        vocabulary.load(moved)
    )
    other.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"expected a SentencePiece model at .*other"):
        vocabulary.load(other)
    with pytest.raises(UserError, match="got no such path"):
        vocabulary.load(tmp_path / "none.model")
    assert vocabulary.load("data/vocabularies/student.model").vocab_size > 0


def test_what_a_user_can_mend_is_refused_in_one_line(tmp_path):
    asked = problems(2)
    traces = [trace_of(problem, 0) for problem in asked]
    verdicts = [Verdict(t.problem_id, 0, "wrong", "1", "made up") for t in traces]
    with pytest.raises(UserError, match="stage harvest complete"):
        align.run(run_dir=tmp_path, vocabulary=STUDENT)
    with pytest.raises(UserError, match="a rule of marginal, paper, got exact"):
        align.run(run_dir=tmp_path, vocabulary=STUDENT, rule="exact")
    fill(tmp_path / "wrong", asked, traces, verdicts)
    with pytest.raises(UserError, match="a right trace, got none of 2"):
        align.run(run_dir=tmp_path / "wrong", vocabulary=STUDENT)
    right = Verdict(traces[0].problem_id, 0, "right", "1", "made up")
    fill(tmp_path / "unchecked", asked, traces, [right])
    with pytest.raises(UserError, match="a verdict for every trace, got none for"):
        align.run(run_dir=tmp_path / "unchecked", vocabulary=STUDENT, processes=1)
    rights = [Verdict(t.problem_id, 0, "right", "1", "made up") for t in traces]
    fill(tmp_path / "done", asked, traces, rights)
    align.run(run_dir=tmp_path / "done", vocabulary=STUDENT, processes=1)
    with pytest.raises(UserError, match="align with"):
        align.run(run_dir=tmp_path / "done", vocabulary=STUDENT, k=4, processes=1)
