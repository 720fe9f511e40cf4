"""Laws of drawing demonstrations, and the four formats against texts written out by hand."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.records import Problem
from distill.problems.builtin import arithmetic
from distill.text import answers, completions, prompts

POOL = [Problem(f"t/{i}", "t", "train", f"What is {i} + 1?", str(i + 1), "c") for i in range(9)]
ASKED = Problem("a/1", "a", "train", "What is 4 + 4?", "8", "4 + 4 = 8.\nThe answer is 8")
SHOWN = Problem("a/2", "a", "train", "What is 2 + 3?", "5", "2 + 3 = 5.\nThe answer is 5")


@pytest.mark.parametrize(
    ("name", "asked", "target"),
    [
        ("zero_shot_answer", "Q: What is 4 + 4? A:", "The answer is 8"),
        (
            "zero_shot_cot",
            "Q: What is 4 + 4?\nLet's think step by step",
            "4 + 4 = 8.\nThe answer is 8",
        ),
        (
            "in_context_answer",
            "Q: What is 2 + 3?\nA: The answer is 5\n\nQ: What is 4 + 4?\nA:",
            "The answer is 8",
        ),
        (
            "in_context_cot",
            "Q: What is 2 + 3?\nLet's think step by step\n2 + 3 = 5.\nThe answer is 5\n\n"
            "Q: What is 4 + 4?\nLet's think step by step",
            "4 + 4 = 8.\nThe answer is 8",
        ),
    ],
)
def test_the_four_formats(name: str, asked: str, target: str):
    made = prompts.FORMATS[name]
    shown = [SHOWN] if made.in_context else []
    assert made.name == name
    assert made.encoder_input(ASKED, shown) == asked
    assert made.target(ASKED) == target


def test_the_teachers_prompt_ends_where_the_chain_begins():
    few = prompts.TeacherPrompt((SHOWN,))(ASKED.question)
    assert prompts.TeacherPrompt()("Why?") == "Q: Why?\nLet's think step by step\n"
    assert few == prompts.FORMATS["in_context_cot"](ASKED.question, [SHOWN]) + "\n"


@given(st.integers(0, 8), st.integers(0, 4), st.integers(0, 1000))
def test_demonstrations_are_distinct_and_exclude_the_question(place: int, n: int, seed: int):
    drawn = prompts.draw(POOL * 2, POOL[place], demonstrations=n, seed=seed)
    questions = {problem.question for problem in drawn}
    assert len(questions) == n
    assert POOL[place].question not in questions
    assert drawn == prompts.draw(POOL * 2, POOL[place], demonstrations=n, seed=seed)


def test_another_seed_and_another_problem_draw_others():
    draws = {prompts.draw(POOL, POOL[p], seed=seed) for p in range(5) for seed in range(5)}
    assert len(draws) > 20


def test_a_pool_too_small_is_refused():
    with pytest.raises(ValueError, match="pool of more than 4 questions, got 4"):
        prompts.draw(POOL[:4], POOL[0], seed=0)
    with pytest.raises(ValueError, match="got 0 problems"):
        prompts.draw([], POOL[0], seed=0)


def test_demonstrations_where_none_belong_are_refused():
    with pytest.raises(ValueError, match="in-context formats alone, got 1 for zero_shot_cot"):
        prompts.FORMATS["zero_shot_cot"]("Why?", [SHOWN])
    with pytest.raises(ValueError, match="alone, got 0 for in_context_cot"):
        prompts.FORMATS["in_context_cot"]("Why?")
    with pytest.raises(ValueError, match="got a/1 for itself"):
        prompts.FORMATS["in_context_cot"].encoder_input(ASKED, [ASKED])


def test_a_chain_format_refuses_a_problem_without_chain():
    bare = dataclasses.replace(ASKED, chain=None)
    with pytest.raises(ValueError, match="expected a chain, got none in a/1"):
        prompts.FORMATS["zero_shot_cot"].target(bare)
    assert prompts.FORMATS["zero_shot_answer"].target(bare) == "The answer is 8"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("So 8.\nThe answer is 8.\n\nQ: next", "So 8.\nThe answer is 8."),
        ("the answer is 8\nThe answer is 9", "the answer is 8"),
        ("no end\nyet", "no end\nyet"),
        ("The answer is 8", "The answer is 8"),
    ],
)
def test_the_text_is_cut_after_the_first_line_with_the_answer(text: str, kept: str):
    assert completions.cut(text) == kept


@given(st.integers(0, 10**6))
def test_gold_chains_pass_the_cut_whole_and_end_in_their_answer(seed: int):
    drawn = arithmetic.problem("gsm", "train", seed)
    chain = prompts.FORMATS["zero_shot_cot"].target(drawn)
    assert completions.cut(chain + "\n\nQ: next") == chain
    assert chain.splitlines()[-1] == prompts.answer_sentence(drawn.answer)
    assert answers.extract(chain) == drawn.answer


def test_the_shipped_demonstrations_are_right():
    shipped = prompts.demonstrations()
    assert len(shipped) == 6
    for shown in shipped:
        assert answers.extract(prompts.FORMATS["zero_shot_cot"].target(shown)) == shown.answer
