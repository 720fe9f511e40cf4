import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close, gap

from distill.training.optimizers import AdamW, Constant, Cosine, InverseSquareRoot, Linear

SCHEDULES = [
    Constant(2.0, warmup=5),
    Cosine(2.0, steps=20, warmup=5, final=0.5),
    Linear(2.0, steps=20, warmup=5, final=0.5),
    InverseSquareRoot(2.0, warmup=5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedule_warms_up_to_its_rate_then_never_rises(schedule):
    rates = np.array([float(schedule(step)) for step in range(40)])
    assert_close(rates[:5], 2.0 * np.arange(1, 6) / 5, terms=4)
    assert (np.diff(rates[5:]) <= 2 * gap(4)).all() and (rates > 0).all()
    assert_close(jax.jit(schedule)(jnp.int32(7)), rates[7], terms=4 + ELEMENTARY)


def test_schedules_end_where_they_say():
    for schedule in SCHEDULES[1:3]:
        assert_close(schedule(20), 0.5, terms=4 + ELEMENTARY)
        assert_close(schedule(1000), 0.5, terms=4 + ELEMENTARY)
    assert_close(InverseSquareRoot(2.0, warmup=5)(19), 1.0, terms=4)


def update(optimizer, params, gradient):
    transformation = optimizer.transformation()
    return transformation.update(gradient, transformation.init(params), params)[0]


def test_clipping_acts_before_adam_and_decay_spares_norms():
    params = {"mlp": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = update(AdamW(schedule=Constant(0.5), weight_decay=0.1), params, zeros)
    assert_close(found["mlp"]["kernel"], np.full((2, 2), -0.05), terms=2)
    np.testing.assert_array_equal(found["norm"]["scale"], 0.0)
    found = update(AdamW(schedule=Constant(0.5), weight_decay=0.1, decay_all=True), params, zeros)
    assert_close(found["norm"]["scale"], np.full(2, -0.05), terms=2)


def test_clipped_gradient_has_the_direction_and_the_norm_asked_for():
    # eps is large, so that Adam's first step is the clipped gradient over eps.
    clipped = AdamW(schedule=Constant(1.0), weight_decay=0.0, clip=1.0, eps=1e6)
    found = update(clipped, {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([30.0, 40.0])})
    direction = np.array([0.6, 0.8])
    assert_close(found["kernel"] * 1e6, -direction / (1 + direction * 1e-6), terms=8)
