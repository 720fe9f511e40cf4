"""Costs against worked examples and against what single requests cost."""

import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.flops import decoding_flops, forward_flops
from distill.models.reader import Reader
from distill.models.scoring import ScoringModel
from distill.models.t5 import T5Config, T5Model
from distill.test_time import ledger
from distill.test_time.ledger import Tokens

T5 = T5Config(1104, 128, 2, 64, 384, 3, 3)
DECODER = DecoderConfig(1104, 128, 2, 64, 384, 3)
MODELS = {T5Config: ScoringModel(T5Model(T5)), DecoderConfig: ScoringModel(DecoderModel(DECODER))}


def test_matched_samples_worked_by_hand():
    # M = 14: 14 + 3 * 13 / R, at the paper's three ratios of inference to pretraining.
    found = [ledger.matched_samples(14, ratio) for ratio in (0.16, 0.79, 22)]
    assert found == near([14 + 243.75, 14 + 39 / 0.79, 14 + 39 / 22], terms=4)
    assert ledger.matched_samples(1, 0.5) == 1
    assert ledger.matched_ratio(53, 14) == 1  # 39 / 39


@given(st.floats(1.01, 100), st.floats(0.01, 100))
def test_the_ratio_is_the_inverse_of_the_samples(larger, ratio):
    samples = ledger.matched_samples(larger, ratio)
    # The ratio is a quotient of differences, of numbers that may be nearly equal.
    worst = (samples + larger) / min(samples - larger, larger - 1)
    assert ledger.matched_ratio(samples, larger) == near(ratio, terms=4, scale=ratio * worst)


@given(st.floats(1.01, 100), st.floats(0.01, 100))
def test_matched_samples_cost_what_the_larger_model_costs(larger, ratio):
    # A unit is the smaller model's size times the tokens of pretraining.
    smaller = 6 + 2 * ledger.matched_samples(larger, ratio) * ratio
    assert smaller == near(larger * (6 + 2 * ratio), terms=8)


@pytest.mark.parametrize("config", [T5, DECODER], ids=["encoder-decoder", "decoder-only"])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_equal_requests_cost_as_many_times_one(config, source, target, count):
    policy = Tokens(count, count * source, count * target)
    one = decoding_flops(config, source, target)
    assert ledger.generator_flops(config, policy, source) == count * one
    verifier = Tokens(count, count * (source + target))
    one = forward_flops(config, source, target)
    plain = MODELS[type(config)]
    assert ledger.verifier_flops(plain, verifier, source) == count * one
    # Per position of the solution inputs of three states and three figures, of the prompt one; two
    # layers of width 8, one unit of logits.
    for prompt, read in ((True, source + target), (False, target)):
        judge = ScoringModel(plain.network, Reader(8, 2, prompt=prompt))
        inputs = 2 * 8 * (target * (3 * 128 + 3) + (source * 128 if prompt else 0))
        layers = read * 2 * (2 * 4 * 8 * 8 + 2 * 3 * 8 * 16) + 2 * 4 * 8 * read**2
        reader = inputs + layers + 2 * read * 8
        assert ledger.verifier_flops(judge, verifier, source) == count * (one + reader)


def test_prefixes_are_read_by_the_decoder():
    with_prefix = ledger.generator_flops(T5, Tokens(1, 20 + 5, 7), 20)
    assert with_prefix == decoding_flops(T5, 20, 12)


def test_what_is_not_known_is_absent_and_nothing_costs_nothing():
    assert (Tokens(1, None, 3) + Tokens(1, 4, 5)) == Tokens(2, None, 8)
    assert ledger.generator_flops(T5, Tokens(1, None, 3), 2) is None
    assert (
        ledger.generator_flops(T5, Tokens(), 2)
        == ledger.verifier_flops(MODELS[T5Config], Tokens(), 2)
        == 0
    )
    assert ledger.total([]) == Tokens()
    assert ledger.encoder_flops(T5, 20) == forward_flops(T5, 20, 0)


def test_impossible_comparisons_are_refused():
    with pytest.raises(ValueError, match="larger >= 1 and ratio > 0"):
        ledger.matched_samples(0.5, 1)
    with pytest.raises(ValueError, match="1 <= larger < samples"):
        ledger.matched_ratio(14, 14)
