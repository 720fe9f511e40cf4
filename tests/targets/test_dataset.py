import collections
import subprocess
import sys

import numpy as np
import pytest
from aligned_world import STUDENT, K, problems, world
from hypothesis import given
from hypothesis import strategies as st

import tokalign
from distill.core.errors import UserError
from distill.core.records import AlignedTrace, PackedExample, Problem
from distill.core.stages import version
from distill.core.store import Shards, Stage
from distill.targets import align, dataset, examples
from distill.text import prompts

LENGTHS = {"source_length": 700, "target_length": 160}
OPTIONS = {"vocabulary": STUDENT, "k": K, "demonstrations": 2, **LENGTHS}


@pytest.fixture(scope="module")
def tokenizer():
    return tokalign.SentencePieceTokenizer(STUDENT)


def aligned(run_dir, **options):
    asked, *_ = world(run_dir, **options)
    align.run(run_dir=run_dir, vocabulary=STUDENT, k=K, processes=1)
    return asked


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run with unequal ratios, its problems and its summary."""
    run_dir = tmp_path_factory.mktemp("made")
    asked = aligned(run_dir)
    ratios = {
        "zero_shot_cot": 2,
        "in_context_cot": 2,
        "zero_shot_answer": 1,
        "in_context_answer": 1,
    }
    return run_dir, asked, dataset.run(run_dir=run_dir, ratios=ratios, passes=2, **OPTIONS)


def rows(run_dir):
    return list(Shards(run_dir / "dataset", PackedExample))


def unpacked(run_dir):
    for row in rows(run_dir):
        for segment in range(1, row.encoder_segment_ids.max() + 1):
            target = row.decoder_segment_ids == segment
            yield (
                row.encoder_input_tokens[row.encoder_segment_ids == segment],
                row.decoder_target_tokens[target],
                row.decoder_target_top_ids[target],
                row.decoder_target_top_probs[target],
            )


def as_bytes(arrays):
    return tuple(np.ascontiguousarray(array).tobytes() for array in arrays)


def test_each_trace_is_told_in_both_chain_formats_as_often_as_asked(made):
    run_dir, *_ = made
    told = collections.Counter(as_bytes(arrays) for _, *arrays in unpacked(run_dir))
    for trace in Shards(run_dir / "aligned", AlignedTrace):
        key = as_bytes([trace.ids, trace.top_ids, trace.top_probs])
        # Two passes of each format; made-up samples of a problem may be told alike.
        assert told[key] % 4 == 0 and told[key] > 0


def test_answers_are_hard_targets_that_end_in_eos(made, tokenizer):
    run_dir, asked, summary = made
    expected = {
        as_bytes([np.array(ids, np.int32)])
        for problem in asked
        for ids in [[*tokenizer.encode(f"The answer is {problem.answer}"), tokenizer.eos_id]]
    }
    hard = 0
    for _, ids, top_ids, top_probs in unpacked(run_dir):
        if as_bytes([ids]) in expected:
            hard += 1
            np.testing.assert_array_equal(top_ids[:, 0], ids)
            np.testing.assert_array_equal(top_probs[:, 0], 1)
            assert not top_ids[:, 1:].any() and not top_probs[:, 1:].any()
    counts = summary["examples"]
    assert hard == counts["zero_shot_answer"] + counts["in_context_answer"]


def test_inputs_are_the_formats_prompts_and_end_in_eos(made, tokenizer):
    run_dir, asked, summary = made
    found = collections.Counter()
    for inputs, *_ in unpacked(run_dir):
        assert inputs[-1] == tokenizer.eos_id
        text = tokenizer.decode(inputs.tolist())
        in_context = text.count("Q:") > 1
        assert text.count("Q:") == (1 + OPTIONS["demonstrations"] if in_context else 1)
        asks = "cot" if text.endswith("step by step") else "answer"
        found[f"{'in_context' if in_context else 'zero_shot'}_{asks}"] += 1
    assert dict(found) == summary["examples"]
    zero_shot = {
        tokenizer.decode(tokenizer.encode(prompts.FORMATS["zero_shot_cot"](problem.question)))
        for problem in asked
    }
    assert zero_shot <= {tokenizer.decode(inputs.tolist()) for inputs, *_ in unpacked(run_dir)}


def test_the_summary_counts_what_the_rows_hold(made):
    run_dir, _, summary = made
    traces = len(Shards(run_dir / "aligned", AlignedTrace))
    assert summary["examples"] == {
        "zero_shot_answer": traces,
        "zero_shot_cot": 2 * traces,
        "in_context_answer": traces,
        "in_context_cot": 2 * traces,
    }
    assert summary["read"] == summary["kept"] == 6 * traces == len(list(unpacked(run_dir)))
    found = rows(run_dir)
    targets = sum(np.count_nonzero(row.decoder_target_tokens) for row in found)
    assert summary["rows"] == len(found)
    assert summary["target_tokens"] == summary["target_fill"]["sum"] == targets
    assert summary["target_fill"]["count"] == len(found) * LENGTHS["target_length"]
    assert summary["source_fill"] == {
        "sum": sum(np.count_nonzero(row.encoder_input_tokens) for row in found),
        "count": len(found) * LENGTHS["source_length"],
    }


def test_the_order_of_shards_changes_nothing_and_the_seed_does(tmp_path, made):
    run_dir, _, summary = made
    ratios = {
        "in_context_cot": 2,
        "zero_shot_cot": 2,
        "zero_shot_answer": 1,
        "in_context_answer": 1,
    }
    aligned(tmp_path / "permuted", order=11)
    again = dataset.run(run_dir=tmp_path / "permuted", ratios=ratios, passes=2, **OPTIONS)
    assert again == summary
    for one, two in zip(rows(run_dir), rows(tmp_path / "permuted"), strict=True):
        for name, values in vars(one).items():
            np.testing.assert_array_equal(values, getattr(two, name))

    aligned(tmp_path / "seed")
    dataset.run(run_dir=tmp_path / "seed", ratios=ratios, passes=2, seed=1, **OPTIONS)
    firsts = [rows(path)[0].encoder_input_tokens for path in (run_dir, tmp_path / "seed")]
    assert not np.array_equal(*firsts)


def test_a_stopped_stage_starts_over_and_a_complete_one_does_nothing(tmp_path, monkeypatch):
    aligned(tmp_path / "whole")
    aligned(tmp_path / "stopped")
    options = {"ratios": {"zero_shot_cot": 1}, **OPTIONS, "target_length": 90}
    whole = dataset.run(run_dir=tmp_path / "whole", **options)
    options["shard_rows"] = 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "progress", stops_after_three)
        dataset.run(run_dir=tmp_path / "stopped", **options)
    assert len(rows(tmp_path / "stopped")) == 2
    assert dataset.run(run_dir=tmp_path / "stopped", **options) == whole
    both = zip(unpacked(tmp_path / "whole"), unpacked(tmp_path / "stopped"), strict=True)
    assert all(as_bytes(one) == as_bytes(two) for one, two in both)
    files = Shards(tmp_path / "stopped" / "dataset", PackedExample).files()
    assert dataset.run(run_dir=tmp_path / "stopped", **options) == whole
    assert Shards(tmp_path / "stopped" / "dataset", PackedExample).files() == files


def stops_after_three(items, **_):
    for count, item in enumerate(items):
        if count == 3:
            raise KeyboardInterrupt
        yield item


def test_what_is_too_long_is_dropped_and_counted_by_format(tmp_path, tokenizer):
    asked = aligned(tmp_path)
    traces = list(Shards(tmp_path / "aligned", AlignedTrace))
    longest = int(np.median([len(trace.ids) for trace in traces]))
    sources = {
        problem.problem_id: 1
        + len(tokenizer.encode(prompts.FORMATS["zero_shot_cot"](problem.question)))
        for problem in asked
    }
    source_length = max(sources.values()) - 1
    options = {**OPTIONS, "source_length": source_length, "target_length": longest}
    ratios = {"zero_shot_cot": 1, "in_context_cot": 1}
    summary = dataset.run(run_dir=tmp_path, ratios=ratios, **options)
    too_long = [trace for trace in traces if sources[trace.problem_id] > source_length]
    rest = [trace for trace in traces if sources[trace.problem_id] <= source_length]
    long_target = sum(len(trace.ids) > longest for trace in rest)
    assert 0 < len(too_long) < len(traces) and long_target
    assert summary["dropped"]["source too long"]["zero_shot_cot"] == len(too_long)
    assert summary["dropped"]["target too long"]["zero_shot_cot"] == long_target
    assert summary["examples"]["zero_shot_cot"] == len(rest) - long_target
    assert summary["examples"]["in_context_cot"] == 0
    assert summary["read"] == 2 * len(traces)
    assert all(len(ids) <= longest for _, ids, *_ in unpacked(tmp_path))


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 2**31)
)
def test_demonstrations_never_contain_the_question_itself(questions, demonstrations, seed):
    pool = [
        Problem(f"p/{i}", "s", "train", f"question {q}?", str(q), f"{q}. The answer is {q}")
        for i, q in enumerate(questions)
    ]
    corpus = examples.Corpus({p.problem_id: p for p in pool}, [], [])
    made = {
        "tokenizer": None,
        "k": K,
        "demonstrations": demonstrations,
        "used": ["in_context_answer"],
    }
    if len(set(questions)) <= demonstrations:
        with pytest.raises(UserError, match=r"to draw . demonstrations from"):
            examples.examples(corpus, **made)
        return
    (form,) = examples.examples(corpus, **made)
    for i, q in enumerate(questions):
        prompt = form.prompt(i, np.random.default_rng(seed))
        *shown, last = prompt.split("Q: ")[1:]
        assert last == f"question {q}?\nA:"
        assert (
            len({text.partition("\n")[0] for text in shown} | {f"question {q}?"})
            == demonstrations + 1
        )


names = st.sampled_from(list(prompts.FORMATS))


@given(
    st.dictionaries(names, st.floats(0.01, 10), min_size=1),
    st.lists(st.integers(1, 500), min_size=4, max_size=4),
    st.integers(1, 4),
)
def test_shares_show_the_leader_whole_and_honour_the_ratios(ratios, sizes, passes):
    sizes = dict(zip(prompts.FORMATS, sizes, strict=True))
    counts = dataset.shares(sizes, ratios, passes)
    leader = max(ratios, key=lambda name: (ratios[name], sizes[name]))
    assert counts[leader] == passes * sizes[leader] == max(counts.values())
    for name, ratio in ratios.items():
        assert abs(counts[name] - counts[leader] * ratio / ratios[leader]) <= 1


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.integers(1, 5))
def test_hard_targets_are_one_hot(ids, k):
    targets = examples.hard_targets(ids, k)
    np.testing.assert_array_equal(targets.ids, ids)
    np.testing.assert_array_equal(targets.top_ids[:, 0], ids)
    assert targets.top_ids.shape == targets.top_probs.shape == (len(ids), k)
    np.testing.assert_array_equal(targets.top_probs, np.eye(k)[np.zeros(len(ids), int)])


def test_each_pass_has_demonstrations_of_its_own(tokenizer):
    asked = problems(30)
    corpus = examples.Corpus({p.problem_id: p for p in asked}, [], [])
    (form,) = examples.examples(
        corpus, tokenizer, k=K, demonstrations=4, used=["in_context_answer"]
    )
    made = list(examples.blocks(form, 0, passes=2, encode=tokenizer.encode, eos_id=1))
    prompts_of = [
        {tuple(ids) for ids in np.split(b["inputs"], np.cumsum(b["input_lengths"])[:-1])}
        for b in made
    ]
    assert [len(one) for one in prompts_of] == [30, 30]
    assert not prompts_of[0] & prompts_of[1]


def test_importing_the_stage_leaves_tensorflow_and_seqio_out():
    code = (
        "import sys, distill.targets.dataset; "
        "sys.exit(bool({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_user_can_mend_is_refused_in_one_line(tmp_path):
    world(tmp_path)
    with pytest.raises(UserError, match="stage align complete"):
        dataset.run(run_dir=tmp_path, **OPTIONS)
    align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    wrong = {
        r"ratios of zero_shot_answer, .*, got cot": {"ratios": {"cot": 1}},
        "ratios of at least 0, one above": {"ratios": {"zero_shot_cot": 0}},
        "target_length of at least 1, got 0": {"target_length": 0},
        "demonstrations of at least 1, got 0": {"demonstrations": 0},
    }
    for match, options in wrong.items():
        with pytest.raises(UserError, match=match):
            dataset.run(run_dir=tmp_path, **{**OPTIONS, **options})
    with pytest.raises(UserError, match=r"stage align complete in .*none"):
        dataset.run(run_dir=tmp_path / "none", **OPTIONS)


def test_an_alignment_of_a_version_that_called_the_vocabulary_otherwise_is_refused(tmp_path):
    with Stage.open(tmp_path, "align", settings={"student": {}, "k": K}) as stage:
        stage.finish()
    with pytest.raises(UserError, match=f"vocabulary in the manifest of .* version {version()}"):
        dataset.require_aligned(tmp_path, tokalign.SentencePieceTokenizer(STUDENT), K)


def test_aligned_traces_of_another_k_are_refused(tmp_path):
    aligned(tmp_path)
    with pytest.raises(UserError, match="k=2 candidates a position, got 3 in the aligned traces"):
        examples.read_corpus(tmp_path, "train", 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 2}, "the k of stage align, 3, got 2"),
        (
            {"vocabulary": tokalign.SentencePieceTokenizer(STUDENT, 100)},
            "the vocabulary of stage align",
        ),
        ({"split": "validation"}, "traces of validation problems, got one of"),
        ({"demonstrations": 8}, "more than 8 questions to draw 8 demonstrations from, got 8"),
        ({"source_length": 2, "target_length": 2}, "examples of at most 2 and 2 tokens, got none"),
    ],
)
def test_a_run_that_does_not_fit_its_inputs_is_refused(tmp_path, options, match):
    aligned(tmp_path)
    with pytest.raises(UserError, match=match):
        dataset.run(run_dir=tmp_path, **{**OPTIONS, **options})
    assert rows(tmp_path) == []
