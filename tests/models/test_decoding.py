import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import ELEMENTARY, assert_close, depth, gap, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models_world import MODELS, ROWS, TIED, compilations, logits_of, params_of, tokens

from distill.models import decoding, stopping
from distill.models.decoding import Kept, Prompts, Settings, Vocabulary

BATCH, SOURCE, STEPS = 4, 64, 8  # the shapes that the generator's tests run in


def vocabulary(ends=()):
    exists = np.arange(ROWS) < 258
    text = exists & (np.arange(ROWS) > 1)
    eos = np.arange(ROWS) == 1
    table = stopping.transitions((), [b""] * ROWS, eos_id=1)
    table[:, list(ends)] = stopping.ENDED
    return Vocabulary(exists, text | eos, text, table, np.array(1))


def how(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, hot=(), hot_top_k=3, hot_temperature=30.0):
    return Settings(
        np.full(BATCH, temperature, np.float32),
        np.full(BATCH, top_k, np.int32),
        np.full(BATCH, top_p, np.float32),
        np.full(BATCH, min_p, np.float32),
        np.tile(np.isin(np.arange(STEPS), hot), (BATCH, 1)),
        np.array(hot_temperature, np.float32),
        np.array(hot_top_k, np.int32),
    )


def keeping(top_k=0, top_p=1.0, min_p=0.0, rows=1):
    return Kept(
        jnp.full(rows, top_k),
        jnp.full(rows, top_p, jnp.float32),
        jnp.full(rows, min_p, jnp.float32),
    )


def reading(ids, lengths, forced=()):
    rows = [forced[n] if n < len(forced) else [] for n in range(BATCH)]
    unread = np.array([max(map(len, rows)) - len(row) for row in rows], np.int32)
    padded = np.array([[0] * n + row for n, row in zip(unread, rows, strict=True)], np.int32)
    lengths = np.array(lengths, np.int32)
    opening = np.where(lengths, stopping.INSIDE, stopping.ENDED).astype(np.int32)
    return Prompts(ids, np.maximum(lengths, 1), np.arange(BATCH), padded, unread, opening)


def seeds(*numbers):
    return np.array([[0, n] for n in numbers], np.uint32)


def steps(written, limit):
    """What a batch wrote, without the room beyond its limit."""
    stepped = jax.tree.map(lambda rows: rows[:limit], written._replace(counts=()))
    return stepped._replace(counts=written.counts)


def decode(
    model,
    drawn,
    *,
    prompts=None,
    lengths=(9, 5, 1, 7),
    seed=(1, 2, 3, 4),
    ends=(),
    limit=STEPS,
    forced=(),
    **widths,
):
    written = decoding.decode(
        model,
        params_of(model),
        reading(tokens(0, BATCH, SOURCE) if prompts is None else prompts, lengths, forced),
        seeds(*seed),
        drawn,
        vocabulary(ends),
        limit,
        k=5,
        **widths,
    )
    return steps(written, limit)


def forced_logits(model, prompts, lengths, row, ids):
    """The logits of each position of `ids`, from one plain pass over one row, padded behind."""
    prompt = prompts[row, : lengths[row]]
    if "T5" in type(model).__name__:
        inputs = np.array([0, *ids[:-1]])
        logits = logits_of(
            model, encoder_input_tokens=padded(prompt), decoder_input_tokens=padded(inputs)
        )
        return logits[0, : len(ids)]
    inputs = padded(np.concatenate([prompt, ids[:-1]]))
    first = lengths[row] - 1
    return logits_of(model, decoder_input_tokens=inputs)[0, first : first + len(ids)]


def padded(row):
    return np.pad(row, (0, SOURCE + STEPS - len(row)))[None].astype(np.int32)


def measured_alike(model, logits):
    """Compare log-probabilities that follow from these logits."""
    scale = max(scale_of(logits), math.log(model.config.vocab_size))
    terms = depth(model.config, SOURCE + STEPS, vocabulary=True)
    return functools.partial(assert_close, terms=terms, scale=scale)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_cached_decoding_measures_what_one_plain_pass_gives(model):
    written = decode(model, how())
    prompts, lengths = tokens(0, BATCH, SOURCE), (9, 5, 1, 7)
    for row in range(BATCH):
        ids = written.ids[: written.counts[row], row]
        logits = forced_logits(model, prompts, lengths, row, ids)[:, :258]
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        steps = np.arange(len(ids))
        found = written.measured
        best = np.sort(logprobs[:, 1:], -1)[:, ::-1][:, :5]
        close = measured_alike(model, logits)
        close(found.logprobs[steps, row], logprobs[steps, ids])
        close(found.eos_logprobs[steps, row], logprobs[:, 1])
        close(found.top_logprobs[steps, row], best)


@pytest.mark.parametrize("name", ["t5-v1.0", "t5-v1.1"])
def test_forced_tokens_are_as_if_written(name):
    model, lengths, drawn = MODELS[name], (9, 5, 1, 7), how(temperature=0.0)
    whole = decode(model, drawn)
    forced = [whole.ids[:n, row].tolist() for row, n in enumerate((3, 1, 5, 4))]
    rest = decode(model, drawn, forced=forced)
    for row, before in enumerate(forced):
        both = min(whole.counts[row] - len(before), rest.counts[row])
        places = slice(len(before), len(before) + both)
        np.testing.assert_array_equal(whole.ids[places, row], rest.ids[:both, row])
        ids = [*before, *rest.ids[: rest.counts[row], row]]
        logits = forced_logits(model, tokens(0, BATCH, SOURCE), lengths, row, ids)[:, :258]
        nats = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids)), ids][len(before) :]
        measured_alike(model, logits)(rest.measured.logprobs[: len(nats), row], nats)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_scoring_measures_what_decoding_measured(model):
    written = decode(model, how())
    measured = decoding.score(
        model,
        params_of(model),
        tokens(0, BATCH, SOURCE),
        np.array((9, 5, 1, 7), np.int32),
        written.ids.T,
        vocabulary(),
        k=5,
    )
    counted = np.arange(STEPS)[:, None] < written.counts
    measured_alike(model, written.measured.top_logprobs)(
        np.where(counted, measured.logprobs, 0), np.where(counted, written.measured.logprobs, 0)
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_row_is_the_same_bits_wherever_it_lies_and_whoever_is_beside(model):
    first = decode(model, how(temperature=0.8))
    order = [2, 0, 3, 1]
    prompts = tokens(0, BATCH, SOURCE)[order]
    prompts[2], lengths = 7, np.array((9, 5, 1, 7))[order]
    moved = decode(
        model,
        how(temperature=0.8),
        prompts=prompts,
        lengths=(*lengths[:2], 4, lengths[3]),
        seed=(3, 1, 99, 2),
    )
    for place, row in ((0, 2), (1, 0), (3, 1)):
        count = first.counts[row]
        assert moved.counts[place] == count
        jax.tree.map(
            lambda a, b, n=count, r=row, p=place: np.testing.assert_array_equal(a[:n, r], b[:n, p]),
            first._replace(counts=first.ids),
            moved._replace(counts=moved.ids),
        )


@pytest.mark.parametrize("model", [TIED, MODELS["t5-v1.0"]], ids=["decoder", "t5"])
def test_rows_that_share_a_prompt_are_the_same_bits_as_with_one_each(model):
    ids, lengths, place = tokens(0, BATCH, SOURCE), np.array((9, 5, 1, 7)), np.array([0, 1, 0, 2])
    alone = reading(ids[place], lengths[place])
    shared = reading(ids, lengths)._replace(prompt=place)
    rest = (seeds(1, 2, 3, 4), how(temperature=0.8), vocabulary(), STEPS)
    one, other = (
        decoding.decode(model, params_of(model), each, *rest, k=5, together=2)
        for each in (alone, shared)
    )
    written = np.arange(len(one.ids))[:, None] < one.counts
    np.testing.assert_array_equal(np.where(written, one.ids - other.ids, 0), 0)
    nats = one.measured.logprobs - other.measured.logprobs
    np.testing.assert_array_equal(np.where(written, nats, 0), 0)


@pytest.mark.parametrize("model", [TIED, MODELS["t5-v1.0"]], ids=["decoder", "t5"])
def test_the_room_changes_nothing(model):
    wide = decode(model, how(temperature=0.7), limit=20)
    narrow = decode(model, how(temperature=0.7), limit=20, first_room=16)
    np.testing.assert_array_equal(wide.ids, narrow.ids)
    np.testing.assert_array_equal(wide.counts, narrow.counts)
    found = (each.measured.logprobs for each in (wide, narrow))
    measured_alike(model, wide.measured.top_logprobs)(*found)


def test_greedy_takes_the_best_text_or_end_and_is_certain():
    written = decode(TIED, how(temperature=0.0))
    np.testing.assert_array_equal(written.ids, written.measured.top_ids[..., 0])
    assert not written.behaviour_logprobs.any()


def test_neither_rows_without_a_token_nor_padding_are_drawn():
    ids = decode(TIED, how(temperature=50.0)).ids
    assert ids.min() >= 1 and ids.max() < 258


def test_a_row_ends_at_its_ending_token_and_an_empty_row_writes_nothing():
    written = decode(TIED, how(temperature=5.0), lengths=(9, 5, 0, 7), ends=range(2, 130))
    assert written.counts[2] == 0
    for row in (0, 1, 3):
        ids = written.ids[: written.counts[row], row]
        assert (ids[:-1] >= 130).all()
        assert ids[-1] < 130 or len(ids) == STEPS


def test_hot_tokens_are_among_the_best_texts_and_the_rest_is_drawn_as_usual():
    for seed in range(5):
        drawn = decode(TIED, how(temperature=0.0, hot=(0, 3)), seed=range(seed, seed + BATCH))
        top = drawn.measured.top_ids
        for step in range(STEPS):
            for row in range(BATCH):
                texts = [i for i in top[step, row] if i != 1][:3]
                if step >= drawn.counts[row]:
                    continue
                assert drawn.ids[step, row] in (texts if step in (0, 3) else top[step, row, :1])


def test_hot_draws_never_end_and_have_their_own_behaviour_logprob():
    drawn = decode(TIED, how(hot=range(STEPS), hot_top_k=1))
    assert (drawn.counts == STEPS).all()
    assert_close(drawn.behaviour_logprobs, 0, terms=ELEMENTARY, scale=1)  # a share of 1
    assert (drawn.measured.logprobs < -1e-3).all()


def test_no_hot_step_is_plain_sampling_whatever_its_settings():
    plain = decode(TIED, how(top_k=4))
    same = decode(TIED, how(top_k=4, hot_temperature=1.0, hot_top_k=7))
    np.testing.assert_array_equal(plain.ids, same.ids)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 70),
    st.floats(0.05, 1.0),
    st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
)
@settings(max_examples=60, deadline=None)
def test_truncation_equals_sorting(seed, k, p, least):
    logits = np.random.default_rng(seed).normal(size=(1, 70)).astype(np.float32) * 4
    logits[0, ::9] = -np.inf
    weights = np.exp(logits)
    kept = jax.jit(decoding.truncate)(jnp.array(logits), jnp.array(weights), keeping(k, p, least))
    order = [i for i in np.argsort(-logits[0], kind="stable") if np.isfinite(logits[0, i])]
    order = order[:k] if k else order
    mass = np.cumsum(weights[0, order], dtype=np.float64)
    before = np.concatenate([[0], mass[:-1]])
    pairs = list(zip(order, before, strict=True))
    floor = least * weights[0, order[0]]
    wanted = {i for i, m in pairs if m < p * mass[-1] * (1 - 1e-5)}
    wanted = {i for i in wanted if weights[0, i] >= floor * (1 + 1e-5)} | {order[0]}
    allowed = {i for i, m in pairs if m < p * mass[-1] * (1 + 1e-5)}
    allowed = {i for i in allowed if weights[0, i] >= floor * (1 - 1e-5)}
    assert wanted <= set(np.flatnonzero(kept[0]).tolist()) <= allowed


@pytest.mark.parametrize("n", [3, 64, 65, 700])
def test_top_equals_sorting(n):
    x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
    values, ids = jax.jit(decoding.top, static_argnums=1)(x, 3)
    np.testing.assert_array_equal(ids, np.argsort(-x, kind="stable")[:, :3])
    np.testing.assert_array_equal(values, -np.sort(-x)[:, :3])


def test_draws_follow_the_distribution():
    count, logits = 20_000, np.array([0.0, 1.0, -np.inf, 2.0, -1.0, *[-np.inf] * 80], np.float32)
    uniform = (np.arange(count, dtype=np.float32) + 0.5) / count
    ids, nats = jax.jit(decoding.draw)(
        jnp.tile(logits, (count, 1)),
        jnp.array(uniform),
        jnp.full(count, 0.5),
        keeping(3, rows=count),
    )
    wanted = np.exp(logits / 0.5) * (logits >= 0)
    wanted /= wanted.sum()
    # Evenly spaced numbers miss a share by one draw at each end of its interval, and by what the
    # interval's ends are off.
    drawn = np.bincount(ids, minlength=85)
    assert np.all(np.abs(drawn - count * wanted) <= 2 + 2 * count * gap(85))
    logs = np.log(wanted[np.asarray(ids)])
    assert_close(nats, logs, terms=85 + 2 * ELEMENTARY, scale=np.max(logits) / 0.5)


def test_the_ends_of_the_unit_interval_draw_what_has_weight():
    logits = jnp.array([[-jnp.inf, 1.0, 2.0, -jnp.inf]] * 2)
    one = np.nextafter(np.float32(1), np.float32(0))
    ids, _ = jax.jit(decoding.draw)(logits, jnp.array([0.0, one]), jnp.ones(2), keeping(rows=2))
    assert ids.tolist() == [1, 2]


def test_candidates_are_cut_by_top_k_then_top_p_then_min_p():
    probs = np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32)

    def kept(**how):
        cut = decoding.truncate(jnp.log(probs), jnp.array(probs), keeping(**how))
        return np.flatnonzero(cut[0]).tolist()

    assert kept(min_p=0.3) == [0, 1, 2]  # at least 0.12, whatever the rest weighs
    assert kept(top_p=0.75) == [0, 1, 2] and kept(top_k=3, top_p=0.75) == [0, 1]
    assert kept(top_k=3, top_p=0.75, min_p=0.8) == [0]
    assert kept(min_p=1.0) == [0] and kept(min_p=0.0) == [0, 1, 2, 3, 4]


def test_min_p_is_of_the_probabilities_at_the_temperature_of_the_draw():
    logits = np.log(np.array([[0.5, 0.25, 0.2, 0.05]], np.float32))
    uniform = jnp.linspace(0, 0.999, 64)
    for temperature, drawn in ((1.0, {0, 1}), (2.0, {0, 1, 2}), (0.5, {0})):
        ids, _ = decoding.draw(
            jnp.tile(logits, (64, 1)),
            uniform,
            jnp.full(64, temperature),
            keeping(min_p=0.45, rows=64),
        )
        assert set(ids.tolist()) == drawn


def test_another_min_p_recompiles_nothing_and_min_p_1_is_greedy():
    greedy = decode(TIED, how(temperature=0.0))
    with compilations() as compiled:
        np.testing.assert_array_equal(decode(TIED, how(min_p=1.0)).ids, greedy.ids)
        decode(TIED, how(min_p=0.2))
    assert not compiled


def test_min_p_leaves_hot_tokens_alone():
    hot, cut = (decode(TIED, how(hot=(0,), min_p=least), limit=1) for least in (0.0, 1.0))
    np.testing.assert_array_equal(hot.ids, cut.ids)
