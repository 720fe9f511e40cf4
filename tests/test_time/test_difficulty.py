"""Bins by rank, edges, and the regression on encoder states against its own definition."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from closeness import assert_close, depth
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.models import layers
from distill.models.saved import SavedModel
from distill.models.t5 import T5
from distill.test_time import difficulty

EASES = st.dictionaries(
    st.text("abc", max_size=4), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=5, max_size=40
)


@given(EASES, st.integers(1, 5), st.randoms())
def test_bins_are_equal_ordered_and_do_not_depend_on_the_order(ease, count, random):
    found = difficulty.bins(ease, count)
    sizes = [list(found.values()).count(bin_) for bin_ in range(count)]
    assert max(sizes) - min(sizes) <= 1 and found.keys() == ease.keys()
    for easier, a in found.items():
        assert all(ease[easier] >= ease[harder] for harder, b in found.items() if a < b)
    mixed = dict(random.sample(list(ease.items()), len(ease)))
    assert difficulty.bins(mixed, count) == found


@given(st.lists(st.floats(0, 1), min_size=5, max_size=40, unique=True), st.integers(1, 5))
def test_edges_put_a_known_question_into_its_bin(values, count):
    ease = {str(place): value for place, value in enumerate(values)}
    drawn = difficulty.edges(ease, count)
    found = {name: difficulty.bin_of(value, drawn) for name, value in ease.items()}
    # Halfway between two neighbours in floating point may be the upper one.
    assert found == difficulty.bins(ease, count) or min(np.diff(sorted(values))) < 1e-12


def test_too_few_questions_for_the_bins_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 2 bins, got 5"):
        difficulty.bins({"a": 1.0, "b": 0.0})


def made(n=30, width=4, noise=0.0):
    random = np.random.default_rng(0)
    features = random.normal(2.0, 3.0, (n, width))
    targets = features @ np.array([0.5, -1.0, 0.0, 2.0]) + 7
    return features, targets + noise * random.normal(size=n)


def test_ridge_finds_a_linear_function():
    features, targets = made()
    fitted = difficulty.ridge(features, targets, penalties=(1e-9,))
    # A penalty of 1e-9 beside the 30 of a standardised column shrinks each by 1e-9 / 30 of itself.
    shrunk = 10 * 1e-9 / 30
    np.testing.assert_allclose(fitted.weights, [0.5, -1.0, 0.0, 2.0], rtol=0, atol=shrunk)
    np.testing.assert_allclose(fitted.bias, 7, rtol=0, atol=20 * shrunk)


def test_ridge_minimises_its_objective_and_leaves_one_out():
    features, targets = made(noise=3.0)
    scaled = (features - features.mean(0)) / features.std(0)
    for penalty in (0.5, 30.0):
        fitted = difficulty.ridge(features, targets, penalties=(penalty,))
        normal = scaled.T @ scaled + penalty * np.eye(4)
        expected = np.linalg.solve(normal, scaled.T @ (targets - targets.mean()))
        assert_close(fitted.weights * features.std(0), expected, terms=120, dtype="float64")
    # The chosen penalty is the one with the least error of predicting each from all others,
    # the standardisation that of all.
    errors = {}
    for penalty in difficulty.PENALTIES:
        left_out = []
        for place in range(len(targets)):
            kept = np.arange(len(targets)) != place
            x = np.column_stack([scaled[kept], np.ones(kept.sum())])
            normal = x.T @ x + penalty * np.diag([1, 1, 1, 1, 0])
            solution = np.linalg.solve(normal, x.T @ targets[kept])
            left_out.append(targets[place] - np.append(scaled[place], 1) @ solution)
        errors[penalty] = np.mean(np.square(left_out))
    best = min(errors, key=errors.get)
    chosen = difficulty.ridge(features, targets).weights
    expected = difficulty.ridge(features, targets, penalties=(best,)).weights
    assert_close(chosen, expected, terms=120, dtype="float64")


def test_a_question_has_no_say_in_its_own_prediction():
    features, targets = made(noise=3.0)
    folds = np.arange(30) % 3
    before = difficulty.cross_fit(features, targets, folds)
    changed = np.where(folds == 1, 1e6, targets)
    after = difficulty.cross_fit(features, changed, folds)
    np.testing.assert_array_equal(after[folds == 1], before[folds == 1])
    assert np.abs(after[folds == 0] - before[folds == 0]).max() > 1


def test_mean_states_are_the_encoders_and_do_not_depend_on_the_batch():
    generator = SavedModel("data/models/student_raw", batch_size=2).generator
    prompts = ["Q: 1 + 1", "Q: How many are 12 and 30 apples?", "Q: 3"]
    found, read = difficulty.encoder_means(generator, prompts)
    ids = [[*generator.tokenizer.encode(p), generator.tokenizer.eos_id] for p in prompts]
    assert read == [len(row) for row in ids]
    unpadded = np.array([ids[2]])
    encode = jax.jit(functools.partial(layers.call, generator.network.network, method=T5.encode))
    states = encode(generator.params, sources=unpadded, segments=np.ones_like(unpadded))
    terms = depth(generator.network.config, 64) + 8
    assert_close(found[2], states[0].mean(0), terms=terms)


def test_a_decoder_has_no_encoder_state():
    teacher = dataclasses.replace(SavedModel("data/models/teacher").generator, batch_size=1)
    with pytest.raises(UserError, match="expected an encoder-decoder, got DecoderModel"):
        difficulty.encoder_means(teacher, ["Q: 1"])
