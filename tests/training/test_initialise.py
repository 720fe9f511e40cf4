"""The stage initialise: a random start of a given shape, for train where it has no other."""

import jax
import numpy as np
import pytest
from test_stages import MODEL, ROOT, SMALL, STUDENT, fill, rows

from distill.core.errors import UserError
from distill.models import weights
from distill.models.t5 import T5Config, T5Model
from distill.training import checkpoints, initialise, train


def test_the_start_is_the_models_own_of_the_seed_with_its_vocabulary(tmp_path):
    summary = initialise.run(run_dir=tmp_path, model=MODEL, vocabulary=STUDENT, seed=3)
    model, params, vocabulary = weights.load(initialise.directory(tmp_path, None))
    assert model == MODEL and vocabulary.extra_ids == 100
    jax.tree.map(np.testing.assert_array_equal, dict(params), MODEL.init(jax.random.key(3)))
    assert vocabulary.path.read_bytes() == (ROOT / STUDENT).read_bytes()
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match="seed=4 where the run has 3"):
        initialise.run(run_dir=tmp_path, model=MODEL, vocabulary=STUDENT, seed=4)


def test_train_takes_the_runs_own_start_where_it_has_no_other(tmp_path):
    fill(tmp_path, rows(8))
    with pytest.raises(UserError, match="run `distill initialise` on it first"):
        train.run(run_dir=tmp_path, **SMALL)
    initialise.run(run_dir=tmp_path, model=MODEL, vocabulary=STUDENT)
    train.run(run_dir=tmp_path, **SMALL)
    first = checkpoints.load_params(tmp_path / "checkpoints", 0)
    jax.tree.map(np.testing.assert_array_equal, dict(first), MODEL.init(jax.random.key(0)))


def test_a_model_with_fewer_rows_than_the_vocabulary_has_tokens_is_refused(tmp_path):
    small = T5Model(T5Config(1096, 8, 2, 4, 16, 1, 1))
    with pytest.raises(UserError, match=r"at least 1100 rows, .*, got 1096"):
        initialise.run(run_dir=tmp_path, model=small, vocabulary=STUDENT)
    assert not (tmp_path / "manifests").exists()


def test_a_missing_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="a SentencePiece model at nowhere"):
        initialise.run(run_dir=tmp_path, model=MODEL, vocabulary="nowhere")
