import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.problems.builtin import arithmetic
from distill.text import prompts
from distill.training.packing import Example, pack
from distill.training.pretraining import (
    InstructionBatches,
    LanguageModelBatches,
    SpanCorruptionBatches,
    cuts,
    mask,
)
from tokalign.tokenizers import SentencePieceTokenizer, TiktokenTokenizer

VOCABULARIES = Path(__file__).parent.parent.parent / "data" / "vocabularies"
MIXED = {"single_step": 0.6, "word_sorting": 0.2, "tracking": 0.2}
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def teacher():
    side = json.loads((VOCABULARIES / "teacher.json").read_text())
    path = VOCABULARIES / "teacher.tiktoken"
    return TiktokenTokenizer(path, side["pattern"], side["special_tokens"])


@pytest.fixture(scope="module")
def student():
    return SentencePieceTokenizer(VOCABULARIES / "student.model", extra_ids=100)


@pytest.fixture(scope="module")
def members(teacher, student):
    return [
        LanguageModelBatches(teacher, {"gsm": 1.0}, 4, 192),
        SpanCorruptionBatches(student, {"gsm": 0.5, **MIXED}, 4, 64),
        InstructionBatches(student, MIXED, dict.fromkeys(prompts.FORMATS, 1.0), 4, 512, 192),
    ]


MEMBERS = pytest.mark.parametrize("member", range(3), ids=["documents", "spans", "instructions"])


def segments(batch, tower, name="tokens"):
    """The arrays of each example of a tower, row after row."""
    column = f"{tower}_input_tokens" if tower == "encoder" else f"{tower}_target_{name}"
    numbers = batch[f"{tower}_segment_ids"]
    for row, ids in zip(numbers, batch[column], strict=True):
        yield from (ids[row == number] for number in range(1, row.max() + 1))


@MEMBERS
def test_batch_depends_on_its_step_and_seed_alone(members, member):
    batches = members[member]
    again = copy.deepcopy(batches)
    for step in (3, 0):
        one, other = batches.batch(step), again.batch(step)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    first, second = (batches.batch(step)["decoder_target_tokens"] for step in (0, 1))
    assert not np.array_equal(first, second)


@MEMBERS
def test_arrays_agree_on_what_is_padding_and_where_segments_start(members, member):
    batch = members[member].batch(0)
    for tower in ("encoder", "decoder"):
        if f"{tower}_segment_ids" in batch:
            ids, positions = batch[f"{tower}_segment_ids"], batch[f"{tower}_positions"]
            starts = np.diff(ids, axis=1, prepend=0) > 0
            assert np.array_equal(starts, (positions == 0) & (ids > 0))
    used = batch["decoder_segment_ids"] > 0
    assert np.array_equal(batch["decoder_loss_weights"] > 0, used)
    inside = used & (batch["decoder_positions"] > 0)
    shifted = np.roll(batch["decoder_target_tokens"], 1, axis=1)
    assert np.array_equal(batch["decoder_input_tokens"], np.where(inside, shifted, 0))


@MEMBERS
def test_every_target_ends_in_eos_and_both_towers_hold_the_same_examples(members, member):
    batches = members[member]
    batch = batches.batch(1)
    targets = list(segments(batch, "decoder"))
    assert len(targets) >= 4
    assert all(ids[-1] == batches.tokenizer.eos_id for ids in targets)
    if "encoder_segment_ids" in batch:
        sources = list(segments(batch, "encoder"))
        assert len(sources) == len(targets)
        assert all(ids[-1] == batches.tokenizer.eos_id for ids in sources)


def test_documents_are_train_problems_as_the_teacher_is_asked(teacher):
    batches = LanguageModelBatches(teacher, {"gsm": 1.0}, 2, 192, prompt_weight=0.25)
    batch = batches.batch(0)
    for row in range(2):
        inside = batch["decoder_segment_ids"][row] == 1
        ids = batch["decoder_target_tokens"][row][inside]
        text = teacher.decode(ids[:-1])
        question = text.removeprefix("Q: ").partition("\n")[0]
        assert arithmetic.split_of("gsm", question) == "train"
        prompt = prompts.TeacherPrompt()(question)
        assert text.startswith(prompt) and "\nThe answer is " in text
        size = len(teacher.encode(prompt))
        weights = batch["decoder_loss_weights"][row][inside]
        assert (weights[:size] == 0.25).all() and (weights[size:] == 1).all()


def test_instructions_hold_all_formats_and_no_question_among_its_demonstrations(student):
    formats = dict.fromkeys(prompts.FORMATS, 1.0)
    batches = InstructionBatches(student, MIXED, formats, 16, 512, 192)
    batch = batches.batch(0)
    seen = set()
    for source, target in zip(segments(batch, "encoder"), segments(batch, "decoder"), strict=True):
        text, answer = student.decode(source[:-1].tolist()), student.decode(target[:-1].tolist())
        asked = [part.partition("Let's think")[0].partition(" A:")[0] for part in text.split("Q: ")]
        assert len(asked) in (2, 6) and len(set(asked[1:])) == len(asked) - 1
        seen.add((len(asked), answer.startswith("The answer is")))
        assert "The answer is" in answer
    assert len(seen) == 4


def test_spans_and_the_rest_make_up_the_text(student):
    batches = SpanCorruptionBatches(student, {"gsm": 1.0}, 4, 64)
    size, noise, spans = batches.sizes
    batch = batches.batch(0)
    assert batch["encoder_input_tokens"].shape == (4, 64) == (4, size - noise + spans + 1)
    assert batch["decoder_target_tokens"].shape == (4, noise + spans + 1)
    for source, target in zip(
        batch["encoder_input_tokens"].tolist(), batch["decoder_target_tokens"].tolist(), strict=True
    ):
        names = [1099 - number for number in range(spans)]
        assert [token for token in source if token >= 1000] == names
        assert [token for token in target if token >= 1000] == names
        ends = [*(target.index(name) for name in names), len(target) - 1]
        gone = {
            name: target[start + 1 : stop]
            for name, (start, stop) in zip(names, itertools.pairwise(ends), strict=True)
        }
        whole = [[token] if token < 1000 else gone[token] for token in source[:-1]]
        text = student.decode([token for part in whole for token in part])
        assert len([token for part in whole for token in part]) == size
        assert "is" in text.split()


@few
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 30), st.data())
def test_cuts_are_positive_and_sum_to_the_total(seed, rows, total, data):
    parts = data.draw(st.integers(1, total))
    lengths = cuts(np.random.default_rng(seed), rows, total, parts)
    assert lengths.shape == (rows, parts)
    assert (lengths >= 1).all() and (lengths.sum(axis=1) == total).all()


def test_cuts_are_all_as_likely():
    lengths = cuts(np.random.default_rng(0), 6000, 4, 2)
    counts = np.bincount(lengths[:, 0], minlength=4)[1:]
    assert (abs(counts - 2000) < 200).all()


def test_mask_by_hand():
    found = mask(np.array([[2, 1]]), np.array([[1, 3]]))
    assert found.astype(int).tolist() == [[0, 0, 1, 0, 1, 1, 1]]


def test_packing_is_the_drawing_of_its_docstring():
    examples = [Example([7, 8], [3, 9, 1], [1] * 3), Example([5], [4, 1], [1] * 2)]
    long = itertools.repeat(Example([6] * 9, [6] * 9, [1] * 9))
    batch = pack(itertools.chain(examples, long), rows=1, length=6, source_length=4)
    assert {name: array.tolist() for name, array in batch.items()} == {
        "encoder_input_tokens": [[7, 8, 5, 0]],
        "encoder_segment_ids": [[1, 1, 2, 0]],
        "encoder_positions": [[0, 1, 0, 0]],
        "decoder_target_tokens": [[3, 9, 1, 4, 1, 0]],
        "decoder_input_tokens": [[0, 3, 9, 0, 4, 0]],
        "decoder_segment_ids": [[1, 1, 1, 2, 2, 0]],
        "decoder_positions": [[0, 1, 2, 0, 1, 0]],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0]],
    }


@few
@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 4))
def test_packing_keeps_every_example_that_found_room_whole_and_in_order(lengths, rows):
    made = [Example((), [number + 1] * size, [1.0] * size) for number, size in enumerate(lengths)]
    long = itertools.repeat(Example((), [99] * 99, [1.0] * 99))
    batch = pack(itertools.chain(made, long), rows=rows, length=12)
    kept = [ids.tolist() for ids in segments(batch, "decoder")]
    assert sorted(kept) == [example.target for example in made if example.target in kept]
    lost = [example.target for example in made if example.target not in kept]
    if lost:  # no row had room for the first that was lost
        filled = (batch["decoder_segment_ids"] > 0).sum(axis=1)
        assert (filled + len(lost[0]) > 12).all()


def test_rows_that_no_example_fits_are_refused(teacher):
    with pytest.raises(ValueError, match="examples of at most 5 targets, got 8 longer"):
        LanguageModelBatches(teacher, {"gsm": 1.0}, 2, 5).batch(0)


def test_held_out_families_and_unknown_formats_are_refused(teacher, student):
    with pytest.raises(ValueError, match=r"shares >= 0 of .* got \{'svamp': 1.0\}"):
        LanguageModelBatches(teacher, {"svamp": 1.0}, 2, 64)
    with pytest.raises(ValueError, match="'few_shot': 1"):
        InstructionBatches(student, MIXED, {"few_shot": 1.0}, 2, 64, 64)
    with pytest.raises(ValueError, match="at most 2 spans, got 3"):
        SpanCorruptionBatches(student, MIXED, 2, 64, sentinels=2)
