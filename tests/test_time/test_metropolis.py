"""The chain's stationary distribution is the target on an enumerable space; its cost is counted."""

import dataclasses
import math
from collections import Counter

import pytest
from closeness import near
from planted import SUMS, Planted, Tree, solutions

from distill.core.errors import UserError
from distill.core.ports import Sampling
from distill.test_time import strategy
from distill.test_time.metropolis import Metropolis
from distill.test_time.strategy import Models, Question
from distill.text import steps

SAMPLING = Sampling(temperature=0.5, max_tokens=8, top_logprobs=0)
MANY = [Question(f"made/{n}", "Q: ?") for n in range(800)]


def models(**fields):
    return Models(Tree(), Planted(), dataclasses.replace(SAMPLING, **fields))


def target(sharpness, trust):
    values = {text: Planted().values.get(steps.split(text)[-1], 0.1) for text in solutions()}
    weights = {t: p**sharpness * values[t] ** trust for t, p in solutions().items()}
    return {text: weight / sum(weights.values()) for text, weight in weights.items()}


@pytest.mark.parametrize(("sharpness", "trust"), [(1.0, 0.0), (3.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_last_states_follow_the_target(sharpness, trust):
    walking = Metropolis(chains=1, sharpness=sharpness, trust=trust)
    found = walking.solve(MANY, 12, models(), seed=1)
    last = Counter(each.candidates[-1].text for each in found)
    for text, chance in target(sharpness, trust).items():
        spread = 4 * math.sqrt(chance * (1 - chance) / len(MANY))
        assert last[text] / len(MANY) == pytest.approx(chance, abs=spread)


def test_solutions_differ_in_length_so_that_its_factor_counts():
    lengths = {len(steps.split(text)) for text in solutions()}
    assert lengths == {2, 3} and len(SUMS) == 6
    # Without the factor n_x / n_y the likelihood would be weighted by the number of steps.
    wrong = {text: chance * len(steps.split(text)) for text, chance in solutions().items()}
    short = "2 + 2 = 4. The answer is 4"
    assert wrong[short] / sum(wrong.values()) == near(0.24 / 2.76, terms=32)
    assert solutions()[short] == near(0.12, terms=8)


def test_what_is_charged_is_what_was_drawn_and_neighbours_do_not_count():
    walking, using, few = Metropolis(chains=2), models(), MANY[:3]
    found = walking.solve(few, 9, using, seed=3)
    assert [each.charged for each in found] == [8, 8, 8]
    assert all(len(each.candidates) == 8 for each in found)
    assert sum(each.generator.drawn for each in found) == using.generator.tokens
    assert sum(each.generator.read for each in found) == using.generator.read
    assert sum(each.verifier.read for each in found) == using.scorer.tokens
    assert using.generator.calls == 4
    assert found == [walking.solve([q], 9, models(), seed=3)[0] for q in few]
    assert found[0].answer in {c.answer for c in found[0].candidates}


def test_what_runs_into_its_length_is_left_as_soon_as_can_be():
    found = Metropolis(chains=1, trust=0.0).solve(MANY[:50], 12, models(max_tokens=2))
    finished = {text for text in solutions() if len(steps.split(text)) == 2}
    for each in found:
        texts = [c.text for c in each.candidates]
        begun = next((n for n, text in enumerate(texts) if text in finished), len(texts))
        assert set(texts[begun:]) <= finished
        assert all(c.answer is None for c in each.candidates[:begun])


def test_trust_needs_a_verifier_and_likelihood_none():
    alone = Models(Tree(), None, SAMPLING)
    (found,) = Metropolis(trust=0.0, sharpness=2.0).solve(MANY[:1], 8, alone)
    assert found.verifier.requests == 0 and found.answer
    with pytest.raises(UserError, match="expected a verifier, got none"):
        Metropolis().solve(MANY[:1], 8, alone)
    with pytest.raises(ValueError, match="chains >= 1"):
        Metropolis(chains=0)
    assert Metropolis(4, 2.0, 0.5, strategy.weighted).name == "metropolis-4-2-0.5"
