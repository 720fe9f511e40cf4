import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, near

from distill.models import layers


def naive_bucket(relative, *, bidirectional, buckets, max_distance):
    """The rule of Raffel et al. 2020 for one pair, in Python's floats."""
    ahead, distance = 0, -relative
    if bidirectional:
        buckets //= 2
        ahead, distance = (buckets if relative > 0 else 0), abs(relative)
    distance, exact = max(distance, 0), buckets // 2
    if distance < exact:
        return ahead + distance
    far = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return ahead + min(exact + int(far + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 40)])
def test_buckets_equal_the_rule_pair_by_pair(bidirectional, buckets, max_distance):
    shape = {"bidirectional": bidirectional, "buckets": buckets, "max_distance": max_distance}
    relative = np.arange(-1000, 1001)
    assert layers.relative_buckets(relative, **shape).tolist() == [
        naive_bucket(int(r), **shape) for r in relative
    ]


def test_every_pair_of_positions_has_the_bias_of_its_distance():
    module = layers.RelativePositionBias(3, 8, 16, bidirectional=True)
    variables = module.init(jax.random.key(0), 4)
    pairs = np.asarray(module.apply(variables, 7))
    table = np.asarray(variables["params"]["rel_embedding"])
    shape = {"bidirectional": True, "buckets": 8, "max_distance": 16}
    for query in range(7):
        for key in range(7):
            bucket = naive_bucket(key - query, **shape)
            np.testing.assert_array_equal(pairs[0, :, query, key], table[:, bucket])


def test_a_rotated_product_depends_on_the_distance_alone():
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 8))

    def product(first, second):
        turned = layers.rotate(x, *layers.rotary_angles(jnp.array([[first, second]]), 8))
        return float(jnp.vdot(turned[0, 0], turned[0, 1]))

    # An angle of 47 radians in float32 is off by 47 roundings.
    terms, scale = 8 + 47, float(jnp.sum(jnp.abs(x[0, 0] * x[0, 1])))
    alike = functools.partial(near, terms=terms, dtype="float32", scale=scale)
    assert product(3, 10) == alike(product(40, 47))
    assert product(3, 10) != alike(product(3, 11))


def test_segments_see_themselves_and_padding_sees_nothing():
    ids = jnp.array([[1, 1, 2, 0]])
    assert layers.segment_mask(ids, ids)[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]


def test_linear_has_the_value_and_the_gradients_of_a_product():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 3, 4)), jax.random.normal(keys[1], (4, 5))
    cotangent = jax.random.normal(keys[2], (2, 3, 5))
    value, pull = jax.vjp(layers.linear, x, kernel)
    plain, pull_plain = jax.vjp(jnp.matmul, x, kernel)
    assert_close(value, plain, terms=4)
    for ours, theirs in zip(pull(cotangent), pull_plain(cotangent), strict=True):
        assert_close(ours, theirs, terms=6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_its_naive_twin_head_by_head(kv_heads):
    module = layers.Attention(4, kv_heads, 2, 6, 0.0, "float32", query_scale=0.5)
    keys = jax.random.split(jax.random.key(kv_heads), 4)
    x, sources = jax.random.normal(keys[0], (2, 3, 6)), jax.random.normal(keys[1], (2, 5, 6))
    bias = jax.random.normal(keys[2], (1, 4, 3, 5))
    mask = np.array([[[[True, True, False, True, False]]]])
    variables = module.init(keys[3], x, sources, bias, mask, deterministic=True)
    ours = module.apply(variables, x, sources, bias, mask, deterministic=True)
    kernels = {name: np.asarray(p["kernel"]) for name, p in variables["params"].items()}
    mixed = np.zeros((2, 3, 4, 2))
    for row, head in np.ndindex(2, 4):
        own, shared = slice(2 * head, 2 * head + 2), head * kv_heads // 4
        kv = slice(2 * shared, 2 * shared + 2)
        scores = 0.5 * (x[row] @ kernels["query"][:, own]) @ (
            sources[row] @ kernels["key"][:, kv]
        ).T + np.asarray(bias[0, head])
        weights = np.asarray(jax.nn.softmax(scores, where=mask[0, 0]))
        mixed[row, :, head] = weights @ (sources[row] @ kernels["value"][:, kv])
    assert_close(ours, mixed.reshape(2, 3, 8) @ kernels["out"], terms=6 + 2 + 5 + 4 + 5 + 8)


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_takes_the_same_keys_from_every_query_of_a_head(fused):
    module = layers.Attention(2, 2, 1, 2, 0.5, "float32", fused=fused)
    x, sources = jnp.ones((1, 3, 2)), jnp.ones((1, 40, 2))
    given = x, sources, None, np.ones((1, 1, 1, 40), bool)
    variables = module.init(jax.random.key(0), *given, deterministic=True)
    rngs = {"dropout": jax.random.key(1)}
    dropped = module.apply(variables, *given, deterministic=False, rngs=rngs)
    plain = module.apply(variables, *given, deterministic=True)
    assert np.abs(dropped - plain).max() > 0.01 * np.abs(plain).max()
    assert_close(dropped, np.broadcast_to(dropped[:, :1], dropped.shape), terms=2 + 40 + 2)


def test_dropout_of_heads_side_by_side_takes_a_whole_head_or_nothing_and_keeps_the_mean():
    module = layers.Attention(4, 4, 8, 32, 0.25, "float32", fused=True)
    values = jnp.ones((8, 64, 32))
    rngs = {"dropout": jax.random.key(0)}
    dropped = np.asarray(module.apply({}, values, method=module.dropped, rngs=rngs))
    of_heads = dropped.reshape(8, 64, 4, 8)
    np.testing.assert_array_equal(of_heads, np.broadcast_to(of_heads[..., :1], of_heads.shape))
    assert set(np.unique(of_heads)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    taken = np.mean(of_heads[..., 0] == 0, axis=(0, 1))
    assert np.all(np.abs(taken - 0.25) < 4 * (0.25 * 0.75 / 512) ** 0.5)
