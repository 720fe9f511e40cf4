import io
import logging
from collections import Counter

import pytest
import sentencepiece
from aligned_world import STUDENT, K, fill, trace_of
from hypothesis import given
from hypothesis import strategies as st

import tokalign
from distill.core.errors import UserError
from distill.core.records import Problem, Verdict
from distill.core.store import manifest
from distill.reports.report import report
from distill.targets import align, dataset, unknowns, vocabulary

HANGUL = "사과는 몇 개입니까"


@pytest.fixture(scope="module")
def with_bytes(tmp_path_factory):
    """A vocabulary that spells what it does not know by bytes."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the answer is 4 and 8"] * 20),
        model_writer=content,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("bytes") / "bytes.model"
    path.write_bytes(content.getvalue())
    return path


def problem(number, question, answer="4", chain=None):
    chain = chain or f"It is {answer}.\nThe answer is {answer}"
    return Problem(f"own/train/{number}", "own", "train", question, answer, chain)


def world(run_dir, questions, **how):
    asked = [problem(n, question, **how) for n, question in enumerate(questions)]
    traces = [trace_of(each, 0) for each in asked]
    verdicts = [Verdict(t.problem_id, 0, "right", "4", "equal") for t in traces]
    fill(run_dir, asked, traces, verdicts)


# --- Laws --------------------------------------------------------------------------------------


@given(st.lists(st.text("ab 사과4€\n", max_size=20), max_size=5))
def test_counts_are_those_of_the_ids_and_add_up_over_texts(texts):
    tokenizer = vocabulary.load(STUDENT)
    found = unknowns.count(texts, tokenizer)
    ids = [i for text in texts for i in tokenizer.encode(text)]
    assert (found.tokens, found.count) == (ids.count(tokenizer.unk_id), len(ids))
    apart = [unknowns.count([text], tokenizer) for text in texts]
    assert sum(each.tokens for each in apart) == found.tokens
    assert sum((each.characters for each in apart), Counter()) == found.characters
    unspelt = [c for text in texts for c in text if c in "사과€"]
    assert Counter(unspelt) == found.characters


def test_a_vocabulary_with_bytes_spells_every_text(with_bytes):
    tokenizer = tokalign.SentencePieceTokenizer(with_bytes)
    found = unknowns.count([HANGUL, "€ 4"], tokenizer)
    assert found.tokens == 0 < found.count
    byte_level = tokalign.TiktokenTokenizer(STUDENT.with_name("teacher.tiktoken"))
    assert unknowns.count([HANGUL], byte_level).share == 0


# --- The stages --------------------------------------------------------------------------------


def test_shares_are_in_the_manifests_and_in_the_report(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    plain = ["What is 2 and 2 more of them in all of the boxes that she has?"] * 3
    world(tmp_path, [*plain, "What is 2 and 2 of 사과 in all of the boxes that she has and 과?"])
    found = align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    pair = found["unk"]["questions"]
    assert pair["sum"] == 2 and 0.01 < pair["sum"] / pair["count"] < 0.1
    assert found["unk"]["chains"]["sum"] == found["unk"]["answers"]["sum"] == 0
    assert found["unspelt"] == {"과": 2, "사": 1}
    assert "align: <unk> among the tokens of questions" in caplog.text
    assert "'과' 2, '사' 1" in caplog.text
    ratios = {"zero_shot_cot": 1.0}
    made = dataset.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, ratios=ratios)
    assert made["unk"] == found["unk"] == manifest(tmp_path, "dataset")["summary"]["unk"]
    assert report(tmp_path)["alignment"]["unk"] == found["unk"]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"questions": [HANGUL]}, "questions"),
        ({"questions": ["What?"], "answer": "사", "chain": "The answer is 4"}, "answers"),
        ({"questions": ["What is it?"], "chain": f"{HANGUL} {HANGUL}\nThe answer is 4"}, "chains"),
    ],
)
def test_text_that_the_student_cannot_spell_is_refused_and_leaves_nothing(tmp_path, how, kind):
    world(tmp_path, how.pop("questions"), **how)
    match = rf"at most 10 % of the tokens of {kind} to be <unk>, got .* most often for .*'사'"
    with pytest.raises(UserError, match=match):
        align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1)
    assert not (tmp_path / "manifests" / "align.json").exists()
    found = align.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, processes=1, max_unk_share=1.0)
    assert found["kept"] == 1
    with pytest.raises(UserError, match=f"tokens of {kind} to be <unk>"):
        dataset.run(run_dir=tmp_path, vocabulary=STUDENT, k=K, ratios={"zero_shot_cot": 1.0})


def test_bytes_count_as_spelt(tmp_path, with_bytes):
    world(tmp_path, [HANGUL])
    found = align.run(run_dir=tmp_path, vocabulary=str(with_bytes), k=K, processes=1)
    assert found["unk"]["questions"]["sum"] == 0 and "unspelt" not in found


@pytest.mark.parametrize("bound", [-0.1, 1.5, float("nan")])
def test_a_bound_that_is_no_share_is_refused(tmp_path, bound):
    with pytest.raises(UserError, match="max_unk_share from 0 to 1"):
        align.run(run_dir=tmp_path, vocabulary=STUDENT, max_unk_share=bound)
    with pytest.raises(UserError, match="max_unk_share from 0 to 1"):
        dataset.run(run_dir=tmp_path, vocabulary=STUDENT, max_unk_share=bound)
