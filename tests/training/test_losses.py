import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close, gap, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st
from training_world import Tiny, TinyBatches

from distill.core.errors import UserError
from distill.training import losses
from distill.training.divergences import KL, JensenShannon, ReverseKL, SkewKL, SkewReverseKL
from distill.training.losses import (
    RESTS,
    Chunked,
    DistributionMatching,
    Mixture,
    SampleMatching,
    candidate_logprobs,
    token_nll,
)

sparse_kl = jax.jit(
    losses.sparse_divergence, static_argnames=("rest", "temperature", "divergence", "smoothing")
)
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


def rounded(logits, ids, probs, weights):
    """The case in the numbers that float32 has, in float64."""
    return *(
        np.float64(np.float32(x)) if x is not ids else x for x in (logits, ids, probs)
    ), weights


TERMS = 7 + 4 + 12 + 4 * ELEMENTARY  # vocabulary, candidates, positions; exp, log, a division


def magnitudes(logits, ids, probs, temperature=1.0):
    """The largest logarithm in a case, and how little the candidates leave outside."""
    z = np.asarray(logits, np.float64) / temperature
    log_q = z - np.log(np.exp(z - z.max()).sum(-1, keepdims=True)) - z.max()
    p = np.asarray(probs, np.float64)
    q = np.exp(np.take_along_axis(log_q, np.asarray(ids), -1)) * (p > 0)
    left = np.concatenate([(1 - each.sum(-1)).ravel() for each in (p, q)])
    some = np.concatenate([p[p > 0], left[left > 1e-6]])
    logs = scale_of(z) + scale_of(log_q) + scale_of(np.log(some)) / temperature
    return logs, min(left[left > 1e-6], default=1.0)


def assert_alike(found, expected, arrays, temperature=1.0):
    """Assert that nats agree within their rounding, and weights, as sums of halves, exactly.

    What is outside the candidates is a difference of numbers near 1, so that its logarithm is off
    by the rounding of 1 over what is left.
    """
    logs, outside = magnitudes(*arrays[:3], temperature)
    scale = float(np.sum(arrays[3])) * (logs + 1 / outside)
    assert_close(found[0], expected[0], terms=TERMS, scale=scale)
    assert float(found[1]) == float(expected[1])


def steepness(logits, ids, probs, weights):
    """How large the parts of a gradient are; those of the outside's logarithm are quotients."""
    logs, outside = magnitudes(logits, ids, probs)
    return float(weights.max()) * (logs + 1 / outside**2)


@few
@given(seed=seeds, rest=st.sampled_from(RESTS), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_sparse_kl_equals_its_dense_float64_twin(seed, rest, temperature):
    arrays = rounded(*case(seed, scale=1.0))
    nats, count = sparse_kl(*as32(*arrays), rest=rest, temperature=temperature)
    expected = dense_kl(*arrays, rest=rest, temperature=temperature)
    assert_alike((nats, count), expected, arrays, temperature)


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_gradient_equals_finite_differences_of_the_twin(seed, rest):
    arrays = rounded(*case(seed, rows=1, length=2, vocab=5, k=2, scale=1.0))
    logits, ids, probs, weights = arrays
    close = functools.partial(assert_close, terms=TERMS, scale=steepness(*arrays))

    def loss(z):
        return sparse_kl(z, *as32(logits, ids, probs, weights)[1:], rest=rest)[0]

    gradient = np.array(jax.grad(loss)(jnp.asarray(logits, jnp.float32)))
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        twin = [dense_kl(z, ids, probs, weights, rest=rest)[0] for z in (up, down)]
        close(gradient[place], (twin[0] - twin[1]) / 2e-5)


@few
@given(seed=seeds)
def test_candidate_logprobs_and_their_gradient_equal_log_softmax(seed):
    logits, ids, probs, _ = as32(*case(seed, scale=10.0))
    ids = ids.at[..., 1].set(ids[..., 0])  # an id that stands twice

    def plain(z):
        return jnp.take_along_axis(jax.nn.log_softmax(z), ids, -1)

    # The logits' own size is the scale: what follows is a difference of two of them.
    close = functools.partial(assert_close, terms=7 + 2 * ELEMENTARY, scale=scale_of(logits))
    close(candidate_logprobs(logits, ids)[0], plain(logits))
    ours = jax.grad(lambda z: jnp.sum(candidate_logprobs(z, ids)[0] * probs))(logits)
    close(ours, jax.grad(lambda z: jnp.sum(plain(z) * probs))(logits))


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_one_hot_row_is_the_negative_log_likelihood(seed, rest):
    logits, ids, probs, weights = as32(*case(seed))
    probs = jnp.zeros_like(probs).at[..., 0].set(1.0)
    found = sparse_kl(logits, ids, probs, weights, rest=rest)
    expected = token_nll(logits, ids[..., 0], weights)
    assert_alike(found, expected, (logits, ids[..., :0], probs[..., :0], weights))


@few
@given(seed=seeds, rest=st.sampled_from(RESTS), order=st.permutations(range(4)))
def test_loss_is_invariant_under_permutation_and_batch_split(seed, rest, order):
    arrays = as32(*case(seed, rows=4))
    whole = np.array(sparse_kl(*arrays, rest=rest))
    shuffled = sparse_kl(*(array[np.array(order)] for array in arrays), rest=rest)
    halves = [
        sparse_kl(*(array[rows] for array in arrays), rest=rest) for rows in (slice(2), slice(2, 4))
    ]
    assert_alike(shuffled, whole, arrays)
    assert_alike(np.sum(halves, axis=0), whole, arrays)


@few
@given(seed=seeds, rest=st.sampled_from(RESTS))
def test_packing_two_rows_into_one_changes_nothing(seed, rest):
    arrays = as32(*case(seed, rows=2))
    packed = [array.reshape(1, -1, *array.shape[2:]) for array in arrays]
    assert_alike(sparse_kl(*packed, rest=rest), sparse_kl(*arrays, rest=rest), arrays)


@pytest.mark.parametrize("rest", RESTS)
def test_padding_is_inert_and_unused_candidates_are_too(rest):
    arrays = logits, ids, probs, weights = as32(*case(3))
    before = np.array(sparse_kl(logits, ids, probs, weights, rest=rest))
    padded = [
        jnp.pad(array, ((0, 1), (0, 2)) + ((0, 0),) * (array.ndim - 2))
        for array in (logits, ids, probs, weights)
    ]
    assert_alike(sparse_kl(*padded, rest=rest), before, arrays)
    wider = jnp.pad(ids, ((0, 0), (0, 0), (0, 2))), jnp.pad(probs, ((0, 0), (0, 0), (0, 2)))
    assert_alike(sparse_kl(logits, *wider, weights, rest=rest), before, arrays)


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
    found = sparse_kl(logits, ids, own, weights, rest="other")
    assert_alike(found, (0, weights.sum()), (logits, ids, own, weights))


def test_golden_worked_by_hand():
    # q = (1/2, 1/4, 1/4); p = (0.5, 0.25) and 0.25 unseen.
    logits = jnp.log(jnp.array([[[2.0, 1.0, 1.0]]]))
    ids, probs = jnp.array([[[0, 1]]]), jnp.array([[[0.25, 0.5]]])
    one = jnp.ones((1, 1))
    drop = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    other = drop + 0.25 * math.log(0.25 / 0.25)
    renormalised = math.log((1 / 3) / 0.5) / 3 + 2 / 3 * math.log((2 / 3) / 0.25)
    for rest, nats in {"drop": drop, "other": other, "renormalise": renormalised}.items():
        found = sparse_kl(logits, ids, probs, one, rest=rest)
        assert_alike(found, (nats, 1), (logits, ids, probs, one))
    found = token_nll(logits, ids[..., 0], 2 * one)
    assert_alike(found, (2 * math.log(2), 2), (logits, ids, probs, 2 * one))


DIVERGENCES = (KL(), ReverseKL(), JensenShannon(), SkewKL(0.3), SkewReverseKL(0.3))
DEFINED = [
    (divergence, rest)
    for divergence in DIVERGENCES
    for rest in RESTS
    if rest not in divergence.undefined
]


def kl(p, q):
    """Over everything, in float64; what p does not do costs nothing."""
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))


def dense_divergence(divergence, p, q):
    match divergence:
        case KL():
            return kl(p, q)
        case ReverseKL():
            return kl(q, p)
        case JensenShannon():
            return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
        case SkewKL(alpha):
            return kl(p, alpha * p + (1 - alpha) * q)
        case SkewReverseKL(alpha):
            return kl(q, alpha * q + (1 - alpha) * p)


def dense_twin(divergence, rest, logits, ids, probs, weights):
    """Position by position over the vocabulary, or over the candidates and the other outcome."""
    nats = 0.0
    for b, t in np.ndindex(weights.shape):
        q = np.exp(logits[b, t] - logits[b, t].max())
        q, p = q / q.sum(), np.zeros(logits.shape[-1])
        p[ids[b, t]] = probs[b, t]
        if rest == "renormalise":
            p = p / p.sum()
        elif rest == "other":
            some = p > 0
            p, q = (np.append(x[some], 1 - x[some].sum()) for x in (p, q))
        nats += weights[b, t] * dense_divergence(divergence, p, q)
    return nats


@few
@given(seed=seeds)
@pytest.mark.parametrize(("divergence", "rest"), DEFINED, ids=str)
def test_divergences_equal_their_dense_float64_twins(divergence, rest, seed):
    arrays = rounded(*case(seed, scale=1.0))
    found = sparse_kl(*as32(*arrays), rest=rest, divergence=divergence)
    expected = dense_twin(divergence, rest, *arrays), arrays[-1].sum()
    assert_alike(found, expected, arrays)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize(("divergence", "rest"), DEFINED, ids=str)
def test_gradients_equal_finite_differences_of_the_twins(divergence, rest, seed):
    arrays = rounded(*case(seed, rows=1, length=2, vocab=5, k=2, scale=1.0))
    logits, ids, probs, weights = arrays
    close = functools.partial(assert_close, terms=TERMS, scale=steepness(*arrays))

    @jax.jit
    def gradient(z):
        arrays = as32(logits, ids, probs, weights)[1:]
        return jax.grad(lambda z: sparse_kl(z, *arrays, rest=rest, divergence=divergence)[0])(z)

    found = np.array(gradient(jnp.asarray(logits, jnp.float32)))
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        twin = [dense_twin(divergence, rest, z, ids, probs, weights) for z in (up, down)]
        close(found[place], (twin[0] - twin[1]) / 2e-5)


def each(divergence, p, q):
    """The divergence of two distributions, as an array of one position."""
    p, q = (jnp.asarray(x, jnp.float32)[None, None] for x in (p, q))
    return float(jnp.sum(divergence(p, q, jnp.log(q))))


def steep(p, q):
    """The size of the terms of a divergence of two distributions."""
    return 1 + float(np.max(np.abs(np.log([p, q]))))


def distributions(seed, outcomes=6):
    return np.random.default_rng(seed).dirichlet(np.full(outcomes, 0.7), 2) * 0.999 + 1e-3 / 6


@few
@given(seed=seeds)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_divergences_are_not_negative_and_zero_at_equality(divergence, seed):
    p, q = distributions(seed)
    assert each(divergence, p, q) >= -gap(TERMS) * steep(p, q)
    assert abs(each(divergence, p, p)) <= gap(TERMS) * steep(p, p)


@few
@given(seed=seeds)
def test_jensen_shannon_is_symmetric_and_bounded(seed):
    p, q = distributions(seed)
    found = each(JensenShannon(), p, q)
    slack = gap(TERMS) * steep(p, q)
    assert abs(found - each(JensenShannon(), q, p)) <= slack
    assert found <= math.log(2) + slack


def test_jensen_shannon_of_disjoint_supports_is_log_two():
    nats = JensenShannon()(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.zeros(2))
    assert_close(jnp.sum(nats), math.log(2), terms=2 + 2 * ELEMENTARY)


@few
@given(seed=seeds)
def test_skew_goes_to_kl_with_alpha_and_is_bounded(seed):
    p, q = distributions(seed)
    for skew, plain in ((SkewKL, KL()), (SkewReverseKL, ReverseKL())):
        assert each(skew(1e-6), p, q) == pytest.approx(each(plain, p, q), rel=1e-2, abs=1e-3)
        assert each(skew(0.2), p, q) <= -math.log(0.2) + gap(TERMS) * steep(p, q)


@few
@given(seed=seeds)
@pytest.mark.parametrize(("divergence", "rest"), DEFINED, ids=str)
def test_one_hot_rows_are_charged_by_likelihood_under_each_divergence(divergence, rest, seed):
    logits, ids, probs, weights = as32(*case(seed))
    probs = jnp.zeros_like(probs).at[..., 1].set(1.0)
    found = sparse_kl(logits, ids, probs, weights, rest=rest, divergence=divergence)
    expected = token_nll(logits, ids[..., 1], weights)
    assert_alike(found, expected, (logits, ids[..., :0], probs[..., :0], weights))


@pytest.mark.parametrize(("divergence", "rest"), DEFINED, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4])
def test_divergences_are_finite_at_the_extremes(divergence, rest, scale):
    logits, ids, probs, weights = as32(*case(5))
    probs = probs.at[0, 0].set(0.0).at[0, 1].set(jnp.float32([0.6, 0.4, 0]))

    def loss(z):
        return sparse_kl(z, ids, probs, weights, rest=rest, divergence=divergence)[0]

    value, gradient = jax.value_and_grad(loss)(logits * scale)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@few
@given(seed=seeds)
def test_smoothing_is_the_likelihood_of_a_smoothed_target(seed):
    logits, ids, _, weights = as32(*case(seed))
    targets, smooth = ids[..., 0], 0.2

    def plain(z):
        even = jax.nn.one_hot(targets, 7) * (1 - smooth) + smooth / 7
        return -jnp.sum(jnp.sum(even * jax.nn.log_softmax(z), -1) * weights)

    def ours(z):
        return token_nll(z, targets, weights, smoothing=smooth)[0]

    for f in (lambda loss: loss(logits), lambda loss: jax.grad(loss)(logits)):
        assert_close(f(ours), f(plain), terms=TERMS, scale=float(weights.sum()) * scale_of(logits))


def test_smoothing_of_a_distribution_mixes_in_an_even_one():
    logits, ids, probs, weights = as32(*case(2))
    plain, smooth = (sparse_kl(logits, ids, probs, weights, smoothing=s)[0] for s in (0.0, 0.3))
    even = -jnp.sum(jnp.mean(jax.nn.log_softmax(logits), -1) * weights)
    expected = 0.7 * plain + 0.3 * even
    assert_alike((smooth, 0), (expected, 0), (logits, ids, probs, weights))


@pytest.mark.parametrize("positions", [1, 4, 6, 32])
def test_chunks_of_positions_change_neither_value_nor_gradients(positions):
    rng = np.random.default_rng(0)
    states, head = (jnp.asarray(rng.normal(0, 1, s), jnp.float32) for s in ((4, 6, 8), (8, 13)))
    batch = jax.tree.map(jnp.asarray, TinyBatches().batch(0))
    mixed = Mixture(losses=(DistributionMatching(), SampleMatching(0.1)), shares=(0.7, 0.3))
    chunked = Chunked(mixed, positions)

    def whole(states, head):
        return mixed(states @ head, batch)

    def by_chunks(states, head):
        return chunked.of_states(lambda chunk: chunk @ head, states, batch)

    terms = 8 + 13 + 24 + 3 * ELEMENTARY  # of states, of the vocabulary, of positions
    found, expected = (jax.jit(f)(states, head) for f in (by_chunks, whole))
    assert_close(found, expected, terms=terms)
    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda *args, f=f: 3 * f(*args)[0], (0, 1)))(states, head)
        for f in (by_chunks, whole)
    )
    jax.tree.map(functools.partial(assert_close, terms=2 * terms), ours, theirs)


def test_chunks_hold_fewer_bytes_than_the_logits():
    vocab, batch = 4096, {"decoder_loss_weights": jnp.ones((2, 64))}
    batch["decoder_target_tokens"] = jnp.ones((2, 64), jnp.int32)
    states, head = jax.ShapeDtypeStruct((2, 64, 8), jnp.float32), jnp.ones((8, vocab))

    def bytes_of(loss):
        memory = jax.jit(jax.grad(loss)).lower(states).compile().memory_analysis()
        return memory.temp_size_in_bytes

    whole = bytes_of(lambda states: SampleMatching()(states @ head, batch)[0])
    chunked = Chunked(SampleMatching(), 8)
    parts = bytes_of(lambda states: chunked.of_states(lambda x: x @ head, states, batch)[0])
    assert parts < whole / 2 and whole >= 2 * 64 * vocab * 4


def test_values_read_the_arrays_they_name():
    batch = jax.tree.map(jnp.asarray, TinyBatches().batch(0))
    logits = Tiny().logits(Tiny().init(jax.random.key(0)), batch)
    kl, nll = DistributionMatching()(logits, batch), SampleMatching()(logits, batch)
    assert float(kl[1]) == float(nll[1]) == batch["decoder_loss_weights"].sum()
    mixed = Mixture(losses=(DistributionMatching(), SampleMatching()), shares=(0.75, 0.25))
    expected = 0.75 * kl[0] + 0.25 * nll[0]
    assert_close(mixed(logits, batch)[0], expected, terms=13 + 24 + 3 * ELEMENTARY)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="expected a rest of"):
        DistributionMatching(rest="keep")
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        DistributionMatching(temperature=0.0)
    with pytest.raises(ValueError, match="a share for each loss"):
        Mixture(losses=(SampleMatching(),), shares=())
    with pytest.raises(ValueError, match="smoothing < 1, got 1"):
        SampleMatching(smoothing=1.0)
    with pytest.raises(ValueError, match="positions >= 1, got 0"):
        Chunked(SampleMatching(), 0)
    with pytest.raises(ValueError, match="0 < alpha < 1, got 0"):
        SkewKL(alpha=0.0)


@pytest.mark.parametrize("divergence", [ReverseKL(), JensenShannon(), SkewReverseKL()], ids=str)
def test_a_divergence_that_reads_the_dropped_rest_is_refused_with_the_reason(divergence):
    with pytest.raises(UserError, match="'drop': the teacher's shares then add up to less than 1"):
        DistributionMatching(divergence=divergence)


def test_reverse_kl_without_a_share_for_the_rest_is_refused_as_infinite():
    with pytest.raises(UserError, match=r"infinite wherever .* rest of .'other'."):
        DistributionMatching(divergence=ReverseKL(), rest="renormalise")
