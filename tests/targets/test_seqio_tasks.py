"""What `seqio_cache_tasks` finds of a run, and that examples come back from its cache unchanged.

Apache Beam, which writes that cache, cannot lie beside our own pins; where it is not installed, the
same layout is written here without it.
"""

import collections
import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import seqio
import tensorflow as tf
from aligned_world import STUDENT, K, world

import tokalign
from distill.core.errors import UserError
from distill.targets import align, dataset, examples
from distill.text import prompts

ROOT = Path(__file__).resolve().parents[2]
MODULE = "distill.targets.seqio_tasks"
NAMES = [f"distillation_{form}" for form in prompts.FORMATS]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    world(made)
    align.run(run_dir=made, vocabulary=STUDENT, k=K, processes=1)
    return made


@pytest.fixture
def imported(run_dir, monkeypatch):
    """The names of the tasks that the module adds, imported where the environment names the run."""
    monkeypatch.setenv("DISTILL_RUN_DIR", str(run_dir))
    monkeypatch.setenv("DISTILL_VOCABULARY", str(STUDENT))
    before = set(seqio.TaskRegistry.names())
    import_anew()
    added = set(seqio.TaskRegistry.names()) - before
    yield added
    for name in added:
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def cache(tmp_path):
    """A folder in which seqio looks for cached tasks."""
    before = list(seqio.get_global_cache_dirs())
    seqio.set_global_cache_dirs([str(tmp_path / "cache")])
    yield tmp_path / "cache"
    seqio.set_global_cache_dirs(before)


def import_anew():
    sys.modules.pop(MODULE, None)
    importlib.import_module(MODULE)


def seed_of(name):
    """The seed that seqio's pipeline gives the one shard of a task's source."""
    return int.from_bytes(hashlib.md5(f"{name}shard0".encode()).digest()[:7], "little")


def write_by_hand(cache):
    """Lay out the cache as seqio reads it."""
    for name in NAMES:
        task, folder = seqio.TaskRegistry.get(name), cache / name
        folder.mkdir(parents=True)
        source = task.source.get_dataset("train", shuffle=False, seed=seed_of(name))
        kept = list(task.preprocess_precache(source))
        with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as file:
            for example in kept:
                file.write(seqio.dict_to_tfexample(example).SerializeToString())
        features = {
            feature: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
            for feature, spec in source.element_spec.items()
        }
        info = {"num_shards": 1, "features": features, "seqio_version": seqio.__version__}
        (folder / "info.train.json").write_text(json.dumps(info))
        (folder / "stats.train.json").write_text(json.dumps({"examples": len(kept)}))
        (folder / "COMPLETED").touch()


def write_by_beam(cache):
    pytest.importorskip("apache_beam")
    command = (
        *(sys.executable, "-m", "seqio.scripts.cache_tasks_main"),
        *(f"--module_import={MODULE}", "--tasks=distillation_.*", "--min_shards=2"),
        f"--output_cache_dir={cache}",
    )
    inherited = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def counted(drawn):
    """Examples as a multiset, down to the last bit, with dtypes and shapes."""
    return collections.Counter(
        tuple((key, a.dtype, a.shape, a.tobytes()) for key, a in sorted(arrays.items()))
        for arrays in (
            {key: tensor.numpy() for key, tensor in example.items() if key != "format"}
            for example in drawn
        )
    )


def test_importing_registers_a_cacheable_task_of_each_format(imported):
    assert imported == set(NAMES)
    assert all(seqio.TaskRegistry.get(name).supports_caching for name in NAMES)


@pytest.mark.parametrize("write", [write_by_hand, write_by_beam])
def test_cached_examples_are_the_uncached_ones(imported, cache, write):
    write(cache)
    for name in NAMES:
        task = seqio.TaskRegistry.get(name)
        options = {"sequence_length": None, "split": "train", "shuffle": False}
        fresh = counted(task.get_dataset(**options, seed=seed_of(name)))
        assert counted(task.get_dataset(**options, use_cached=True)) == fresh
        assert sum(fresh.values()) == task.num_input_examples("train") > 0


@pytest.mark.parametrize("write", [write_by_hand, write_by_beam])
def test_a_mixture_of_any_ratios_draws_from_the_cache(imported, cache, run_dir, write):
    write(cache)
    tokenizer = tokalign.SentencePieceTokenizer(STUDENT)
    # More of the answers than there are problems, so that they come again.
    counts = {"zero_shot_cot": 10, "zero_shot_answer": 30}
    forms = examples.of_run(run_dir, tokenizer, k=K, demonstrations=4, split="train", used=counts)
    mixed = dataset.mixture(forms, counts, tokenizer, k=K, name=dataset.REGISTERED)
    options = {"split": "train", "shuffle": False, "seed": 0, "use_cached": True}
    drawn = mixed.get_dataset(None, **options, passthrough_features=["format"]).take(400)
    told = collections.Counter(example["format"].numpy().decode() for example in drawn)
    assert set(told) == set(counts) and 250 < told["zero_shot_answer"] < 350


def test_a_second_registration_is_seqios_to_refuse(imported):
    with pytest.raises(ValueError, match="duplicate provider"):
        import_anew()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"DISTILL_RUN_DIR": ""},
            "a run directory in the environment variable DISTILL_RUN_DIR, got none; set it",
        ),
        (
            {"DISTILL_VOCABULARY": ""},
            "the student's vocabulary in the environment variable DISTILL_VOCABULARY, got none",
        ),
        ({"DISTILL_RUN_DIR": "nowhere"}, "stage align complete in nowhere, got none"),
        ({"DISTILL_VOCABULARY": "nowhere.model"}, "a SentencePiece model"),
    ],
)
def test_what_the_environment_lacks_is_refused(run_dir, monkeypatch, changed, match):
    named = {"DISTILL_RUN_DIR": str(run_dir), "DISTILL_VOCABULARY": str(STUDENT)}
    for name, value in (named | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=match):
        import_anew()


def test_another_vocabulary_than_aligns_is_refused(run_dir):
    other = tokalign.SentencePieceTokenizer(STUDENT, 100)
    with pytest.raises(UserError, match="the vocabulary of stage align"):
        dataset.register(run_dir=run_dir, vocabulary=other)
    assert not set(NAMES) & set(seqio.TaskRegistry.names())
