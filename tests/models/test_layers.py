import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

    assert product(3, 10) == pytest.approx(product(40, 47), abs=1e-5)
    assert product(3, 10) != pytest.approx(product(3, 11), abs=1e-3)


def test_segments_see_themselves_and_padding_sees_nothing():
    ids = jnp.array([[1, 1, 2, 0]])
    assert layers.segment_mask(ids, ids)[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]
