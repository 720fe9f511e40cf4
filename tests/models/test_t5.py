import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, depth
from models_world import ROWS, SMALL, V1_0, V1_1, logits_of, params_of, tokens

from distill.models.layers import by_path
from distill.models.t5 import T5Config, T5Model


def packed(*rows):
    """Lay rows end to end, with their segments; one padding token at the end."""
    laid = np.concatenate([*rows, np.zeros((1, 1), np.int32)], 1)
    segments = np.concatenate([np.full(row.shape[1], i + 1) for i, row in enumerate(rows)])
    return laid, np.append(segments, 0)[None]


@pytest.mark.parametrize("model", [V1_1, V1_0], ids=["v1.1", "v1.0"])
def test_packed_logits_equal_those_of_each_example_alone(model):
    sources, targets = [tokens(1, 1, 6), tokens(2, 1, 6)], [tokens(3, 1, 5), tokens(4, 1, 5)]
    alone = [
        logits_of(model, encoder_input_tokens=source, decoder_input_tokens=target)
        for source, target in zip(sources, targets, strict=True)
    ]
    source, source_segments = packed(*sources)
    target, target_segments = packed(*targets)
    together = logits_of(
        model,
        encoder_input_tokens=source,
        encoder_segment_ids=source_segments,
        decoder_input_tokens=target,
        decoder_segment_ids=target_segments,
    )
    assert_close(together[:, :10], jnp.concatenate(alone, 1), terms=depth(model.config, 13))


def test_padding_of_the_encoder_changes_nothing():
    source, target = tokens(1, 2, 5), tokens(2, 2, 4)
    wide = np.pad(source, ((0, 0), (0, 3)))
    logits = [
        logits_of(V1_1, encoder_input_tokens=x, decoder_input_tokens=target) for x in (source, wide)
    ]
    assert_close(*logits, terms=depth(V1_1.config, 8))


def test_logits_do_not_look_ahead():
    source, target = tokens(1, 1, 5), tokens(2, 1, 6)
    other = target.copy()
    other[0, 4:] = 9
    logits = [
        logits_of(V1_1, encoder_input_tokens=source, decoder_input_tokens=x)
        for x in (target, other)
    ]
    np.testing.assert_array_equal(logits[0][:, :4], logits[1][:, :4])
    assert not np.array_equal(logits[0][:, 4], logits[1][:, 4])


def test_dropout_needs_a_key_and_depends_on_it_alone():
    batch = {"encoder_input_tokens": tokens(1, 1, 5), "decoder_input_tokens": tokens(2, 1, 4)}
    plain, again = (logits_of(SMALL, **batch) for _ in range(2))
    one, same, other = (logits_of(SMALL, jax.random.key(seed), **batch) for seed in (0, 0, 1))
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other) and not np.array_equal(one, plain)


def test_a_tied_head_is_the_embedding_scaled():
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 16))
    rows = params_of(V1_0)["token_embedder"]["embedding"]
    expected = np.asarray(hidden, float) @ np.asarray(rows, float).T / 4
    assert_close(V1_0.project(params_of(V1_0), hidden), expected, terms=17)


def test_bfloat16_computes_near_float32_and_returns_float32():
    batch = {"encoder_input_tokens": tokens(1, 1, 5), "decoder_input_tokens": tokens(2, 1, 4)}
    half = dataclasses.replace(V1_1, config=dataclasses.replace(V1_1.config, dtype="bfloat16"))
    logits = logits_of(half, params=params_of(V1_1), **batch)
    assert logits.dtype == jnp.float32
    wide = logits_of(V1_1, **batch)
    assert_close(logits, wide, terms=depth(V1_1.config, 5), dtype="bfloat16")
    assert np.linalg.norm(logits - wide) < 0.03 * np.linalg.norm(wide)


def test_parameters_are_named_and_shaped_as_in_t5x():
    shapes = {name: x.shape for name, x in by_path(params_of(V1_1)).items()}
    layer = {name for name in shapes if name.startswith("decoder/layers_1/")}
    assert len(layer) == 3 + 4 + 4 + 3
    assert shapes["token_embedder/embedding"] == (272, 16)
    assert shapes["encoder/layers_0/attention/query/kernel"] == (16, 16)
    assert shapes["encoder/layers_1/mlp/wi_0/kernel"] == (16, 24)
    assert shapes["encoder/relpos_bias/rel_embedding"] == (2, 32)
    assert shapes["decoder/layers_0/encoder_decoder_attention/out/kernel"] == (16, 16)
    assert shapes["decoder/logits_dense/kernel"] == (16, 272)
    axes = by_path(V1_1.logical_axes(params_of(V1_1)))
    assert axes["decoder/layers_0/mlp/wo/kernel"] == ("mlp", "embed")
    assert {name: len(axes[name]) for name in axes} == {n: len(s) for n, s in shapes.items()}


THIN = T5Config(ROWS, 8, 2, 4, 16, 2, 2)
WITH_AND_WITHOUT = [T5Model(dataclasses.replace(THIN, remat=remat)) for remat in (False, True)]


def mean_square(model, key):
    batch = {"encoder_input_tokens": tokens(1, 4, 48), "decoder_input_tokens": tokens(2, 4, 48)}
    return lambda params: jnp.mean(model.hidden(params, batch, dropout_key=key) ** 2)


def test_rematerialisation_changes_no_parameter_and_no_gradient():
    one = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    models = [T5Model(dataclasses.replace(model.config, **one)) for model in WITH_AND_WITHOUT]
    params = [jax.jit(model.init)(jax.random.key(0)) for model in models]
    jax.tree.map(np.testing.assert_array_equal, *params)
    gradients = [
        jax.jit(jax.grad(mean_square(model, jax.random.key(3))))(params[0]) for model in models
    ]
    terms = 2 * depth(THIN, 48) + 4 * 48  # there and back, and a sum over the batch
    jax.tree.map(functools.partial(assert_close, terms=terms), *gradients)


def test_rematerialisation_keeps_less_for_backward():
    """Told by JAX; tests/training/test_step.py asks the program that XLA compiles."""

    def kept(model):
        params = jax.eval_shape(model.init, jax.random.key(0))
        loss = mean_square(model, jax.random.key(3))
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    plain, again = map(kept, WITH_AND_WITHOUT)
    assert again < plain / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size >= 1, got 0"),
        ({"dropout_rate": 1.0}, "dropout_rate < 1, got 1.0"),
        ({"mlp_activations": ("swish",)}, "mlp_activations of .* got .'swish'"),
        ({"mlp_activations": ()}, "one or two mlp_activations"),
        ({"dtype": "float16"}, "dtype of .* got 'float16'"),
        ({"relative_attention_num_buckets": 30}, "buckets divisible by 4"),
    ],
)
def test_a_shape_that_no_t5_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        T5Config(**{**dataclasses.asdict(V1_1.config), **change})
