import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_world import Tiny, TinyBatches

from distill.training import losses
from distill.training.losses import (
    RESTS,
    DistributionMatching,
    Mixture,
    SampleMatching,
    candidate_logprobs,
    token_nll,
)

sparse_kl = jax.jit(losses.sparse_kl, static_argnames=("rest", "temperature"))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=20, deadline=None)


def case(seed, *, rows=2, length=3, vocab=7, k=3, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (rows, length, vocab))
    ids = np.stack([rng.permutation(vocab)[:k] for _ in range(rows * length)])
    probs = rng.dirichlet(np.ones(k + 1), (rows, length))[..., :k]
    probs[rng.random((rows, length)) < 0.2, -1] = 0.0
    weights = rng.integers(0, 3, (rows, length)) / 2
    return logits, ids.reshape(rows, length, k), probs, weights


def dense_kl(logits, ids, probs, weights, *, rest="drop", temperature=1.0):
    """The same in float64, over the whole vocabulary, position by position."""
    nats = 0.0
    for b, t in np.ndindex(weights.shape):
        z = logits[b, t].astype(np.float64) / temperature
        log_q = z - z.max() - math.log(np.exp(z - z.max()).sum())
        p = np.zeros(len(z))
        p[ids[b, t]] += probs[b, t]
        mass = p.sum()
        tempered = np.where(p > 0, p, 0) ** (1 / temperature) * (p > 0)
        p = tempered / tempered.sum() * (1.0 if rest == "renormalise" else mass)
        here = sum(p[i] * (math.log(p[i]) - log_q[i]) for i in np.flatnonzero(p))
        if rest == "other":
            outside = 1 - np.exp(log_q[p > 0]).sum()
            here += (1 - mass) * (math.log(1 - mass) - math.log(outside))
        nats += weights[b, t] * here
    return nats, weights.sum()


def as32(logits, ids, probs, weights):
    return (
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(probs, jnp.float32),
        jnp.asarray(weights, jnp.float32),
    )


@few
@given(seed=seeds, rest=st.sampled_from(RESTS), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_sparse_kl_equals_its_dense_float64_twin(seed, rest, temperature):
    arrays = case(seed, scale=1.0)
    nats, count = sparse_kl(*as32(*arrays), rest=rest, temperature=temperature)
    expected = dense_kl(*arrays, rest=rest, temperature=temperature)
    np.testing.assert_allclose((nats, count), expected, rtol=2e-5, atol=2e-5)


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_gradient_equals_finite_differences_of_the_twin(seed, rest):
    logits, ids, probs, weights = case(seed, rows=1, length=2, vocab=5, k=2, scale=1.0)

    def loss(z):
        return sparse_kl(z, *as32(logits, ids, probs, weights)[1:], rest=rest)[0]

    gradient = np.array(jax.grad(loss)(jnp.asarray(logits, jnp.float32)))
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        twin = [dense_kl(z, ids, probs, weights, rest=rest)[0] for z in (up, down)]
        np.testing.assert_allclose(gradient[place], (twin[0] - twin[1]) / 2e-5, atol=2e-4)


@few
@given(seed=seeds)
def test_candidate_logprobs_and_their_gradient_equal_log_softmax(seed):
    logits, ids, probs, _ = as32(*case(seed, scale=10.0))
    ids = ids.at[..., 1].set(ids[..., 0])  # an id that stands twice

    def plain(z):
        return jnp.take_along_axis(jax.nn.log_softmax(z), ids, -1)

    np.testing.assert_allclose(candidate_logprobs(logits, ids), plain(logits), atol=2e-5)
    ours = jax.grad(lambda z: jnp.sum(candidate_logprobs(z, ids) * probs))(logits)
    np.testing.assert_allclose(
        ours, jax.grad(lambda z: jnp.sum(plain(z) * probs))(logits), atol=2e-6
    )


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_one_hot_row_is_the_negative_log_likelihood(seed, rest):
    logits, ids, probs, weights = as32(*case(seed))
    probs = jnp.zeros_like(probs).at[..., 0].set(1.0)
    np.testing.assert_allclose(
        sparse_kl(logits, ids, probs, weights, rest=rest),
        token_nll(logits, ids[..., 0], weights),
        rtol=1e-6,
    )


@few
@given(seed=seeds, rest=st.sampled_from(RESTS), order=st.permutations(range(4)))
def test_loss_is_invariant_under_permutation_and_batch_split(seed, rest, order):
    arrays = as32(*case(seed, rows=4))
    whole = np.array(sparse_kl(*arrays, rest=rest))
    shuffled = sparse_kl(*(array[np.array(order)] for array in arrays), rest=rest)
    halves = [
        sparse_kl(*(array[rows] for array in arrays), rest=rest) for rows in (slice(2), slice(2, 4))
    ]
    np.testing.assert_allclose(shuffled, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sum(halves, axis=0), whole, rtol=1e-5, atol=1e-5)


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_packing_two_rows_into_one_changes_nothing(seed, rest):
    arrays = as32(*case(seed, rows=2))
    packed = [array.reshape(1, -1, *array.shape[2:]) for array in arrays]
    np.testing.assert_allclose(
        sparse_kl(*packed, rest=rest), sparse_kl(*arrays, rest=rest), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rest", RESTS)
def test_padding_is_inert_and_unused_candidates_are_too(rest):
    logits, ids, probs, weights = as32(*case(3))
    before = np.array(sparse_kl(logits, ids, probs, weights, rest=rest))
    padded = [
        jnp.pad(array, ((0, 1), (0, 2)) + ((0, 0),) * (array.ndim - 2))
        for array in (logits, ids, probs, weights)
    ]
    np.testing.assert_allclose(sparse_kl(*padded, rest=rest), before, rtol=1e-6)
    wider = jnp.pad(ids, ((0, 0), (0, 0), (0, 2))), jnp.pad(probs, ((0, 0), (0, 0), (0, 2)))
    np.testing.assert_allclose(sparse_kl(logits, *wider, weights, rest=rest), before, rtol=1e-6)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4])
def test_value_and_gradient_are_finite_at_the_extremes(rest, scale):
    logits, ids, probs, weights = as32(*case(5))
    probs = probs.at[0, 0].set(0.0).at[0, 1].set(jnp.float32([1, 0, 0]))

    def loss(z):
        return sparse_kl(z, ids, probs, weights, rest=rest)[0]

    value, gradient = jax.value_and_grad(loss)(logits * scale)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


def test_distribution_equal_to_the_students_costs_nothing_with_the_other_outcome():
    logits, ids, _, weights = as32(*case(7))
    own = jnp.take_along_axis(jax.nn.softmax(logits), ids, -1)
    nats, count = sparse_kl(logits, ids, own, weights, rest="other")
    assert abs(float(nats)) < 1e-4 * float(count)


def test_golden_worked_by_hand():
    # q = (1/2, 1/4, 1/4); p = (0.5, 0.25) and 0.25 unseen.
    logits = jnp.log(jnp.array([[[2.0, 1.0, 1.0]]]))
    ids, probs = jnp.array([[[0, 1]]]), jnp.array([[[0.25, 0.5]]])
    one = jnp.ones((1, 1))
    drop = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    other = drop + 0.25 * math.log(0.25 / 0.25)
    renormalised = math.log((1 / 3) / 0.5) / 3 + 2 / 3 * math.log((2 / 3) / 0.25)
    for rest, nats in {"drop": drop, "other": other, "renormalise": renormalised}.items():
        np.testing.assert_allclose(
            sparse_kl(logits, ids, probs, one, rest=rest), (nats, 1), rtol=1e-6
        )
    np.testing.assert_allclose(
        token_nll(logits, ids[..., 0], 2 * one), (2 * math.log(2), 2), rtol=1e-6
    )


def test_values_read_the_arrays_they_name():
    batch = jax.tree.map(jnp.asarray, TinyBatches().batch(0))
    logits = Tiny().logits(Tiny().init(jax.random.key(0)), batch)
    kl, nll = DistributionMatching()(logits, batch), SampleMatching()(logits, batch)
    assert float(kl[1]) == float(nll[1]) == batch["decoder_loss_weights"].sum()
    mixed = Mixture(losses=(DistributionMatching(), SampleMatching()), shares=(0.75, 0.25))
    np.testing.assert_allclose(mixed(logits, batch)[0], 0.75 * kl[0] + 0.25 * nll[0], rtol=1e-6)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="expected a rest of"):
        DistributionMatching(rest="keep")
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        DistributionMatching(temperature=0.0)
    with pytest.raises(ValueError, match="a share for each loss"):
        Mixture(losses=(SampleMatching(),), shares=())
