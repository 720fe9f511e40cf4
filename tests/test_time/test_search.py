"""Searches against a naive twin and by hand; what is charged is what was drawn."""

import dataclasses
import math

import pytest
from closeness import near
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Planted, Tree, solutions, uniform

from distill.core.errors import UserError
from distill.core.ports import Request, Sampling, Solution
from distill.test_time import strategy
from distill.test_time.search import BestOf, LookAhead
from distill.test_time.strategy import Candidate, Models, Question
from distill.text import answers, steps

SAMPLING = Sampling(max_tokens=8, top_logprobs=0)
STEP = dataclasses.replace(SAMPLING, stop=steps.STOPS, include_stop=True)
QUESTIONS = [Question(f"made/{n}", f"Q: {n}") for n in range(3)]
ALL = [
    *(BestOf(election) for election in (strategy.weighted, strategy.best, strategy.majority)),
    *(LookAhead(width, ahead) for width in (None, 4, 1) for ahead in (0, 1, 3)),
    *(LookAhead(width, ahead, apart=True) for width in (None, 4) for ahead in (0, 1)),
]


def models(sampling=SAMPLING, **planted):
    return Models(Tree(**planted), Planted(), sampling)


@st.composite
def trees(draw):
    """A random tree of at most three steps, some with ties, and random values of its texts."""
    children, values, open_ = {}, {}, [""]
    while open_:
        text = open_.pop(0)
        depth = len(steps.split(text))
        blank = " " if text else ""
        kinds = draw(st.lists(st.booleans(), min_size=1, max_size=3)) if depth < 2 else [True]
        found = [
            f"{blank}The answer is {n + depth}" if leaf else f"{blank}{n} + {depth}."
            for n, leaf in enumerate(kinds)
        ]
        children[text] = dict.fromkeys(found, 1 / len(found))
        for leaf, step in zip(kinds, found, strict=True):
            values[text + step] = draw(st.sampled_from([0.1, 0.3, 0.5, 0.8]))
            if not leaf:
                open_.append(text + step)
    return children, values


def naive(question, tree, scorer, budget, width, ahead, seed, apart=False):
    """Return the pool that a search of one question ends with, asking for one thing at a time."""

    def step(text, place=None):
        sampling = STEP if place else dataclasses.replace(STEP, temperature=0.0)
        drawn = strategy.seed_of(seed, question.problem_id, *place) if place else 0
        found = tree.completion(Request(question.prompt, drawn, prefix=text), sampling)
        return text + steps.ended(found.text), not found.text.endswith(steps.STOPS)

    def value(text, ended):
        for _ in range(ahead):
            if not ended:
                text, ended = step(text)
        ((_, scores),) = scorer.score([Solution(question.prompt, steps.split(text))])
        return scores.values[-1]

    size = budget // (ahead + 1)
    width = min(width or math.isqrt(size), size)
    trees = size // width
    pool = [
        (slot // width if apart else 0, *step("", (0, slot)))
        for slot in range(trees * width if apart else size)
    ]
    for round_ in range(1, 41):
        if all(ended for _, _, ended in pool):
            break
        order = sorted(range(len(pool)), key=lambda place: (-value(*pool[place][1:]), place))
        best = (
            [next(p for p in order if pool[p][0] == tree) for tree in range(trees)] if apart else []
        )
        kept = [pool[place] for place in sorted(best or order[:trees])]
        pool, slot = [], 0
        for tree_, text, ended in kept:
            if ended:
                pool.append((tree_, text, ended))
                continue
            for _ in range(width):
                pool.append((tree_, *step(text, (round_, slot))))
                slot += 1
    return [text for _, text, _ in pool]


@settings(max_examples=60, deadline=None)
@given(
    trees(),
    st.integers(1, 20),
    st.sampled_from([None, 1, 2, 4]),
    st.integers(0, 2),
    st.booleans(),
)
def test_search_equals_the_naive_twin_and_charges_what_was_drawn(made, budget, width, ahead, apart):
    children, values = made
    searching = LookAhead(width, ahead, apart=apart)
    budget = max(budget, searching.least)
    using = Models(Tree(children), Planted(values), SAMPLING)
    found = searching.solve(QUESTIONS, budget, using, seed=5)
    for question, each in zip(QUESTIONS, found, strict=True):
        how = (budget, width, ahead, 5, apart)
        twin = naive(question, Tree(children), Planted(values), *how)
        assert [candidate.text for candidate in each.candidates] == twin
        assert each.charged <= budget
    spent = [sum(each) for each in zip(*map(tokens, found), strict=True)]
    assert spent == [using.generator.tokens, using.generator.read, using.scorer.tokens]


def tokens(solved):
    return solved.generator.drawn, solved.generator.read, solved.verifier.read


@settings(max_examples=30, deadline=None)
@given(trees(), st.sampled_from([1, 4, 9, 16]), st.integers(0, 99))
def test_beam_is_look_ahead_that_looks_nowhere(made, budget, seed):
    children, values = made
    results = []
    for searching in (LookAhead(), LookAhead(ahead=0, width=math.isqrt(budget))):
        using = Models(Tree(children), Planted(values), SAMPLING)
        results.append(searching.solve(QUESTIONS, budget, using, seed=seed))
    assert results[0] == results[1]


@pytest.mark.parametrize("solving", ALL, ids=lambda each: each.name)
def test_neighbours_do_not_count_and_questions_advance_together(solving):
    together, apart = models(), models()
    found = solving.solve(QUESTIONS, 16, together, seed=3)
    assert found == [solving.solve([q], 16, apart, seed=3)[0] for q in QUESTIONS]
    assert found[::-1] == solving.solve(QUESTIONS[::-1], 16, models(), seed=3)
    assert together.generator.calls < apart.generator.calls
    assert found != solving.solve(QUESTIONS, 16, models(), seed=4)
    assert {each.source for each in found} == {3}


@pytest.mark.parametrize("solving", ALL, ids=lambda each: each.name)
def test_the_election_is_among_the_candidates(solving):
    for each in solving.solve(QUESTIONS, 16, models(), seed=1):
        assert each.answer in {candidate.answer for candidate in each.candidates}
        assert each.charged == 16
        for candidate in each.candidates:
            assert candidate.text in solutions()
            assert candidate.answer == answers.extract(candidate.text)


def test_a_beam_against_all_solutions_by_hand():
    # With 64 first steps every branch is met; the values lead to 4, 8 and the answer 8.
    for each in LookAhead(8).solve(QUESTIONS, 64, models()):
        assert {c.text for c in each.candidates} == {"2 + 2 = 4. 4 * 2 = 8. The answer is 8"}
        assert each.answer == "8" and max(c.score for c in each.candidates) == near(
            0.95, dtype="float32"
        )
        assert len(each.candidates) == 64


def test_finished_solutions_compete_and_are_not_duplicated():
    children = {"": {"The answer is 1": 0.5, "1 + 1 = 2.": 0.5}}
    children["1 + 1 = 2."] = {" The answer is 2": 0.5, " The answer is 3": 0.5}
    values = {"The answer is 1": 0.9, "1 + 1 = 2.": 0.5, " The answer is 2": 0.6}
    question = [Question("a", "Q: a")]
    found = LookAhead(2).solve(question, 8, Models(Tree(children), Planted(values), SAMPLING))
    texts = [candidate.text for candidate in found[0].candidates]
    ones = texts.count("The answer is 1")
    first = sum(uniform(strategy.seed_of(0, "a", 0, slot), 0) < 0.5 for slot in range(8))
    # The four best of eight stay: all that ended, or four of them; the others go on in pairs.
    assert ones == min(first, 4) and len(texts) == ones + 2 * (4 - ones)
    assert found[0].answer == "1"


def test_the_first_samples_of_a_budget_are_those_of_a_smaller_one():
    small, large = (BestOf().solve(QUESTIONS, n, models(), seed=7) for n in (4, 16))
    for few, many in zip(small, large, strict=True):
        assert many.candidates[:4] == few.candidates


def test_samples_follow_the_tree():
    (found,) = BestOf().solve(QUESTIONS[:1], 4000, models())
    texts = [candidate.text for candidate in found.candidates]
    for text, chance in solutions().items():
        spread = 4 * math.sqrt(chance * (1 - chance) / 4000)
        assert texts.count(text) / 4000 == pytest.approx(chance, abs=spread)


def test_what_runs_into_its_length_has_no_answer():
    short = dataclasses.replace(SAMPLING, max_tokens=1)
    for solving in (BestOf(), LookAhead()):
        (found,) = solving.solve(QUESTIONS[:1], 4, models(short))
        assert found.answer is None and {c.answer for c in found.candidates} == {None}
        assert {c.score for c in found.candidates} == {None}


def test_a_majority_needs_no_verifier_and_others_do():
    alone = Models(Tree(), None, SAMPLING)
    counted = BestOf(strategy.majority, scored=False)
    (found,) = counted.solve(QUESTIONS[:1], 16, alone)
    assert found.answer is not None and found.verifier.read == 0
    with pytest.raises(UserError, match="expected a verifier, got none"):
        BestOf().solve(QUESTIONS, 4, alone)
    with pytest.raises(UserError, match="expected a budget of at least 4, got 3"):
        LookAhead(ahead=3).solve(QUESTIONS, 3, models())
    with pytest.raises(ValueError, match="questions of different ids"):
        BestOf().solve([QUESTIONS[0]] * 2, 1, models())
    with pytest.raises(ValueError, match="width and max_rounds >= 1"):
        LookAhead(width=0)


def test_elections_by_hand():
    some = [Candidate("a", "7", 0.3), Candidate("b", "8", 0.5), Candidate("c", "7.0", 0.4)]
    some += [Candidate("d", None, 0.99)]
    texts = [vote(some).text for vote in (strategy.weighted, strategy.best, strategy.majority)]
    assert texts == ["c", "b", "c"]
    assert strategy.weighted([Candidate("d", None, 0.99)]) is None
    tied = [Candidate("a", "7", 0.1 + 0.2), Candidate("b", "8", 0.3)]
    assert strategy.weighted(tied).answer == strategy.weighted(tied[:1]).answer == "7"
