"""Our loss and optimizer inside T5X; skipped where T5X, which is on no index, is not installed."""

import sys
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

t5x_models = pytest.importorskip("t5x.models")

import gin  # noqa: E402
from closeness import assert_close, depth, scale_of  # noqa: E402
from t5x import partitioning, train_state, trainer  # noqa: E402
from t5x.examples.t5 import network  # noqa: E402

from distill.interop import t5x as distillation  # noqa: E402
from distill.models.layers import by_path  # noqa: E402
from distill.models.partitioning import mesh  # noqa: E402
from distill.models.t5 import T5Config, T5Model  # noqa: E402
from distill.training import optimizers, placement, step  # noqa: E402
from distill.training.losses import DistributionMatching, Mixture, SampleMatching  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ROWS, K, BATCH = 128, 3, 4
# With Adam's usual eps a gradient that is 0 but for rounding would move by a whole step.
RATE, EPS = 1e-2, 0.1
OPTIMIZER = optimizers.AdamW(optimizers.Constant(RATE), eps=EPS)
SHAPES = {
    "v1.1": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
    "v1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
}
LOSSES = {
    "distribution": DistributionMatching(),
    "other": DistributionMatching(rest="other", temperature=2.0),
    "mixture": Mixture((DistributionMatching(), SampleMatching()), (0.7, 0.3)),
}


def batch():
    """Two examples in each row and padding at its end, as our feature converter packs them."""
    random = np.random.default_rng(0)

    def tower(lengths):
        ids = np.repeat([1, 2, 0], lengths)
        places = np.concatenate([np.arange(n) for n in lengths]) * (ids > 0)
        tokens = random.integers(2, ROWS, (BATCH, len(ids))) * (ids > 0)
        return tokens, np.tile(ids, (BATCH, 1)), np.tile(places, (BATCH, 1))

    sources, source_ids, source_places = tower([6, 5, 2])
    targets, target_ids, target_places = tower([4, 5, 3])
    probs = random.dirichlet(np.ones(K + 1), targets.shape)[..., :K] * (target_ids > 0)[..., None]
    top_ids = random.permuted(np.tile(np.arange(ROWS), (*targets.shape, 1)), axis=-1)[..., :K]
    found = {
        "encoder_input_tokens": sources,
        "encoder_segment_ids": source_ids,
        "encoder_positions": source_places,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))) * (target_places > 0),
        "decoder_loss_weights": target_ids > 0,
        "decoder_segment_ids": target_ids,
        "decoder_positions": target_places,
        "decoder_target_top_ids": top_ids * (target_ids > 0)[..., None],
    }
    whole = {name: array.astype(np.int32) for name, array in found.items()}
    return {**whole, "decoder_target_top_probs": probs.astype(np.float32)}


def step_there(shape, loss, params):
    """Return T5X's loss and its parameters after a step."""
    config = network.T5Config(
        vocab_size=ROWS,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=24,
        dropout_rate=0.0,
        **shape,
    )
    vocabulary = distillation.vocabulary(vocabulary="data/vocabularies/student.model")
    model = distillation.DistillationModel(
        network.Transformer(config),
        vocabulary,
        vocabulary,
        distillation.optimizer(optimizer=OPTIMIZER),
        loss=loss,
    )
    value, metrics = model.loss_fn(params, batch(), None)
    assert metrics["loss"].compute() == value
    state = train_state.FlaxOptimTrainState.create(
        model.optimizer_def, flax.core.freeze({"params": params})
    )
    after, _ = trainer.train_with_lr(state, batch(), 0.0, jax.random.key(0), model, None)
    return value, flax.core.unfreeze(after.params)


def step_here(shape, loss, params):
    """Return our loss and our parameters after a step."""
    model = T5Model(T5Config(ROWS, 16, 2, 8, 24, 1, 1, dropout_rate=0.0, **shape))
    layout = placement.state_layout(model, params, OPTIMIZER, mesh())
    run = step.compiled(model, loss, OPTIMIZER, 1, layout)
    stack = {name: array[None] for name, array in batch().items()}
    start = placement.begin(params, layout, OPTIMIZER)
    after, figures = run(start, stack, jax.random.key(0))
    return figures.nats[0] / figures.weight[0], after.params


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_one_step_there_and_one_here_agree(shape, loss):
    config = T5Config(ROWS, 16, 2, 8, 24, 1, 1, **shape)
    params = T5Model(config).init(jax.random.key(1))
    there, params_there = step_there(shape, loss, params)
    here, params_here = step_here(shape, loss, params)
    # A gradient of at most 1 is off by its rounding, a step by that times the rate over eps.
    terms = 2 * depth(config, 13, vocabulary=True)
    assert_close(there, here, terms=terms)
    ours, theirs = by_path(params_here), by_path(params_there)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert not np.array_equal(array, by_path(params)[name]), name
        scale = scale_of(array) + RATE / EPS
        assert_close(theirs[name], array, terms=terms, scale=scale, name=name)


def test_the_partitioner_knows_where_our_optimizers_state_lies():
    config = network.T5Config(vocab_size=ROWS, emb_dim=16, head_dim=8, dropout_rate=0.0)
    module = network.Transformer(config)
    tokens = np.ones((1, 1), np.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens, tokens)
    made = distillation.optimizer(optimizer=OPTIMIZER)
    shapes = jax.eval_shape(
        lambda v: train_state.FlaxOptimTrainState.create(made, flax.core.freeze(v)), variables
    )
    axes = partitioning.PjitPartitioner(num_partitions=1).get_mesh_axes(shapes)
    found = axes.state_dict()
    moments = found["state"]["param_states"]["1"]
    assert moments["mu"] == moments["nu"] == found["target"]
    assert found["target"]["token_embedder"]["embedding"] == PartitionSpec("model", None)


@pytest.mark.parametrize("file", sorted((ROOT / "gin_configs" / "t5x").glob("t5*.gin")))
def test_every_gin_file_for_t5x_loads(file, monkeypatch):
    from t5x import train

    monkeypatch.setitem(sys.modules, "__main__", train)
    gin.clear_config()
    for folder in (file.parent, Path(t5x_models.__file__).parents[1]):
        gin.add_config_file_search_path(str(folder))
    required = ("MODEL_DIR", "RUN_DIR", "VOCABULARY_PATH", "INITIAL_CHECKPOINT_PATH")
    gin.parse_config_files_and_bindings([file.name], [f"{name} = 'x'" for name in required])
    gin.clear_config()
