"""Borders of a run: what has another vocabulary, or comes from another start, is refused."""

import functools
import json
import logging
import shutil
import struct

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import tokalign
from distill.core import paths
from distill.core.errors import UserError
from distill.core.store import Stage
from distill.interop import export
from distill.interop.importing import convert
from distill.models import weights
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.saved import SavedModel
from distill.models.t5 import T5Config, T5Model
from distill.serving.server import load
from distill.targets import vocabulary
from distill.training import evaluate, origin, pretraining, train
from tokalign import digests

STUDENT = paths.shipped("data/vocabularies/student.model")
TEACHER = STUDENT.with_name("teacher.tiktoken")
MODEL = T5Model(T5Config(1104, 8, 1, 8, 8, 1, 1))
PADDED = T5Model(T5Config(1280, 8, 1, 8, 8, 1, 1))
DECODER = DecoderModel(DecoderConfig(2000, 8, 1, 8, 8, 1))


def swapped(content, first=700, second=701):
    """The same pieces, two of which have each other's id: the same size, another order."""
    pieces, rest = [], []
    for field, value in digests.fields(content):
        (pieces if field == 1 else rest).append((field, value))
    pieces[first], pieces[second] = pieces[second], pieces[first]
    return b"".join(_message(*each) for each in (*pieces, *rest))


def rescored(content, number=700):
    """The same pieces in the same order, one with another score."""
    score = b"\x15" + struct.pack("<f", -1.5)  # of two scores in a message the last counts
    return b"".join(
        _message(field, value + score * (n == number))
        for n, (field, value) in enumerate(digests.fields(content))
    )


def _message(number, value):
    size, prefix = len(value), bytes([number << 3 | 2])
    while size > 0x7F:
        prefix += bytes([size & 0x7F | 0x80])
        size >>= 7
    return prefix + bytes([size]) + value


def saved(directory, model=MODEL, vocabulary=STUDENT, seed=0):
    weights.save(directory, model, params_of(model, seed), vocabulary)
    return directory


@functools.cache
def params_of(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = weights.shapes(model).items()
    flat = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes}
    return unflatten_dict(flat, sep="/")


def other_vocabulary(path, change):
    path.write_bytes(change(STUDENT.read_bytes()))
    return path


def with_dataset(run_dir, described):
    with Stage.open(run_dir, "dataset", settings={"vocabulary": described}) as stage:
        stage.finish()
    return run_dir


@pytest.fixture
def run_dir(tmp_path):
    return with_dataset(tmp_path / "run", vocabulary.describe(vocabulary.load(STUDENT)))


def required(run_dir, directory):
    origin.require_dataset(run_dir, directory, weights.read(directory)[2])


# --- Dataset to training -----------------------------------------------------------------------


@pytest.mark.parametrize("change", [swapped, rescored], ids=["order", "score"])
def test_a_student_of_a_vocabulary_of_the_same_size_is_refused(run_dir, tmp_path, change):
    other = other_vocabulary(tmp_path / "other.model", change)
    assert tokalign.SentencePieceTokenizer(other).vocab_size == 1000
    start = saved(tmp_path / "start", vocabulary=other)
    match = r"the vocabulary of the dataset in .*SHA-256 .*got that of the student in .*start .*"
    with pytest.raises(UserError, match=match + "align and build the dataset"):
        required(run_dir, start)
    with pytest.raises(UserError, match=match):
        train.run(run_dir=run_dir, student=str(start), steps=1, save_every=1)
    assert not (run_dir / "checkpoints").exists()
    assert not (run_dir / "manifests" / "train.json").exists()


def test_the_teacher_is_refused_as_the_student(run_dir, tmp_path):
    start = saved(tmp_path / "start", DECODER, TEACHER)
    with pytest.raises(UserError, match="the vocabulary of the dataset in"):
        required(run_dir, start)


@pytest.mark.parametrize("model", [MODEL, PADDED], ids=["as large", "padded"])
def test_the_student_of_the_dataset_is_taken_wherever_its_vocabulary_lies(
    run_dir, tmp_path, model, caplog
):
    copy = tmp_path / "moved.model"
    shutil.copyfile(STUDENT, copy)
    required(run_dir, saved(tmp_path / "start", model, copy))
    assert "vocabular" not in caplog.text


def test_a_dataset_of_a_version_without_digests_is_compared_by_its_own(run_dir, tmp_path):
    described = vocabulary.describe(vocabulary.load(STUDENT))
    del described["vocabulary"]
    older = with_dataset(tmp_path / "older", described)
    required(older, saved(tmp_path / "start"))
    other = other_vocabulary(tmp_path / "other.model", swapped)
    with pytest.raises(UserError, match="the vocabulary of the dataset in"):
        required(older, saved(tmp_path / "other", vocabulary=other))


def test_a_dataset_that_says_nothing_of_its_vocabulary_is_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    required(with_dataset(tmp_path / "run", None), saved(tmp_path / "start"))
    assert "compared by size alone" in caplog.text


def test_another_kind_of_tokenizer_with_the_same_tokens_is_the_same_vocabulary(tmp_path):
    described = vocabulary.describe(tokalign.SentencePieceTokenizer(STUDENT, 100))
    alike = with_dataset(tmp_path / "run", {**described, "type": "HuggingFaceTokenizer"})
    required(alike, saved(tmp_path / "start"))


# --- The start and its checkpoints -------------------------------------------------------------


def trained(run_dir, start):
    """What a training leaves that begins from `start`."""
    vocabulary = weights.read(start)[2]
    with origin.recorded(run_dir, start, vocabulary):
        (run_dir / "checkpoints" / "params" / "0").mkdir(parents=True)
    with Stage.open(run_dir, "train", settings={"student": str(start)}) as stage:
        stage.finish()
    return run_dir


def test_only_the_start_of_the_run_is_evaluated_with_its_checkpoints(run_dir, tmp_path):
    start = saved(tmp_path / "start")
    trained(run_dir, start)
    moved = tmp_path / "moved"
    shutil.copytree(start, moved)
    assert evaluate.students(run_dir, 4, start=str(moved))(0)
    others = {
        "weights": saved(tmp_path / "drawn", seed=1),
        "vocabulary": saved(
            tmp_path / "cut", vocabulary=other_vocabulary(tmp_path / "o.model", swapped)
        ),
    }
    for kind, other in others.items():
        with pytest.raises(UserError, match=rf"the {kind} .*checkpoints.* give the start that"):
            evaluate.students(run_dir, 4, start=str(other))


def test_a_resumed_training_from_another_start_is_refused(run_dir, tmp_path):
    trained(run_dir, saved(tmp_path / "start"))
    other = saved(tmp_path / "other", seed=1)
    with (
        pytest.raises(UserError, match="the weights that the checkpoints in"),
        origin.recorded(run_dir, other, weights.read(other)[2]),
    ):
        pass


def test_a_refused_training_leaves_no_record(run_dir, tmp_path):
    start = saved(tmp_path / "start")
    with (
        pytest.raises(UserError, match="room"),
        origin.recorded(run_dir, start, weights.read(start)[2]),
    ):
        raise UserError("room", "none", "make some")
    assert not (run_dir / "checkpoints").exists()


def test_pretraining_from_a_start_of_another_vocabulary_is_refused(tmp_path):
    other = other_vocabulary(tmp_path / "other.model", swapped)
    with pytest.raises(UserError, match=r"of the start in .*, got that of the batches, .*other"):
        pretraining.run(
            run_dir=tmp_path / "run",
            out_dir=str(tmp_path / "out"),
            model=MODEL,
            batches=None,
            vocabulary_path=str(other),
            optimizer=None,
            steps=1,
            save_every=1,
            start=str(saved(tmp_path / "start")),
        )


# --- Saved weights, exports, imports -----------------------------------------------------------


def test_saved_weights_refuse_a_vocabulary_that_took_the_place_of_theirs(tmp_path):
    start = saved(tmp_path / "start")
    other_vocabulary(start / "student.model", swapped)
    match = r"of the weights in .*start .*, got that of .*student.model .*restore the vocabulary"
    with pytest.raises(UserError, match=match):
        SavedModel(str(start)).generator.model  # noqa: B018 - reads the directory


def test_weights_of_a_version_without_digests_load(tmp_path):
    start = saved(tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    del config["vocabulary"]["sha256"]
    (start / "config.json").write_text(json.dumps(config))
    assert weights.read(start)[2].digest == vocabulary.load(STUDENT).digest


@pytest.fixture
def exported(tmp_path):
    export.export(tmp_path / "export", MODEL, params_of(MODEL), STUDENT, card="# A card")
    return tmp_path / "export"


def test_an_export_is_served_and_imported_with_its_own_vocabulary_alone(exported, tmp_path):
    assert load(exported)
    convert(str(exported), tmp_path / "in")
    other = other_vocabulary(tmp_path / "other.model", swapped)
    with pytest.raises(UserError, match=r"the vocabulary of the export in .*other.model"):
        convert(str(exported), tmp_path / "again", vocabulary=other)
    shutil.copyfile(other, exported / "spiece.model")
    for border in (load, lambda path: convert(str(path), tmp_path / "more")):
        with pytest.raises(
            UserError, match=r"the same pieces in spiece.model and tokenizer.json of "
        ):
            border(exported)


def test_a_directory_whose_tokenizer_json_has_other_pieces_is_refused(exported, tmp_path):
    side = exported / "tokenizer_config.json"
    config = json.loads(side.read_text())
    assert config.pop(weights.DIGEST) == vocabulary.load(STUDENT).digest
    side.write_text(json.dumps(config))
    convert(str(exported), tmp_path / "in")
    other_vocabulary(exported / "spiece.model", swapped)
    with pytest.raises(UserError, match=r"the same pieces in spiece.model and tokenizer.json of "):
        convert(str(exported), tmp_path / "again")


def test_the_shipped_students_have_the_shipped_vocabulary():
    for name in ("student_raw", "student_instructed"):
        directory = paths.shipped(f"data/models/{name}")
        assert weights.read(directory)[2].digest == vocabulary.load(STUDENT).digest
