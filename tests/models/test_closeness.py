"""The bounds of `closeness`: no order of summing exceeds them, and a wrong model always does."""

import numpy as np
import pytest
from closeness import assert_as_exact, assert_close, depth, gap, near
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from models_world import V1_1, logits_of, params_of, tokens


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 8, 16]))
def test_no_order_of_a_sum_and_no_vector_width_leaves_the_bound(terms, seed, lanes):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=terms).astype(np.float32)
    padded = np.append(values, np.zeros(-terms % lanes, np.float32)).reshape(-1, lanes)
    in_lanes = np.cumsum(np.cumsum(padded, axis=0)[-1])[-1]
    backwards = np.cumsum(values[::-1])[-1]
    scale = float(np.abs(values).sum(dtype=float))
    assert_close(in_lanes, backwards, terms=terms, scale=scale)
    assert_close(in_lanes, values.sum(dtype=float), terms=terms, scale=scale)


def scaled(name, factor):
    return lambda flat, batch: ({**flat, name: flat[name] * factor}, batch)


def dropped(name):
    return scaled(name, 0.0)


def late(flat, batch):
    """Positions off by one, as a start token too many makes them."""
    ids = batch["decoder_input_tokens"]
    return flat, {**batch, "decoder_input_tokens": np.pad(ids, ((0, 0), (1, 0)))[:, :-1]}


def shifted(flat, batch):
    """A table of distances off by one."""
    name = "decoder/relpos_bias/rel_embedding"
    return {**flat, name: np.roll(flat[name], 1, axis=-1)}, batch


WRONG = {
    "a thousandth in a norm": scaled("decoder/layers_0/pre_mlp_layer_norm/scale", 1.001),
    "a thousandth in the head": scaled("decoder/logits_dense/kernel", 1.001),
    "scores unscaled by the head's root": scaled(
        "decoder/layers_1/self_attention/query/kernel", 8**0.5
    ),
    "no bias of distances": dropped("encoder/relpos_bias/rel_embedding"),
    "no gate": dropped("encoder/layers_1/mlp/wi_1/kernel"),
    "positions off by one": late,
    "distances off by one": shifted,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_model_leaves_the_bound(change):
    batch = {"encoder_input_tokens": tokens(1, 2, 5), "decoder_input_tokens": tokens(2, 2, 4)}
    flat = flatten_dict(params_of(V1_1), sep="/")
    expected = logits_of(V1_1, params=unflatten_dict(flat, sep="/"), **batch)
    assert_close(logits_of(V1_1, **batch), expected, terms=depth(V1_1.config, 5))
    flat, batch = change(flat, batch)
    found = logits_of(V1_1, params=unflatten_dict(flat, sep="/"), **batch)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(found, expected, terms=depth(V1_1.config, 5))


def test_an_error_larger_than_another_programs_is_refused():
    exact = np.linspace(1, 2, 1000)
    narrow = exact.astype(np.float32)
    assert_as_exact(narrow, narrow, exact)
    with pytest.raises(AssertionError, match="error of at most twice"):
        assert_as_exact(exact.astype(np.float16), narrow, exact)


def test_a_single_term_is_one_rounding_of_each_side():
    one = np.float64(1)
    assert gap(1, "float64") == pytest.approx(2.0**-52, rel=1e-15)
    assert np.nextafter(one, 2) == near(1.0) and one + 2.0**-50 != near(1.0)
    third = 0.1 + 0.2
    assert near([0.3]) == [third] and near([0.3, 0.0]) != [third, 1e-9]
