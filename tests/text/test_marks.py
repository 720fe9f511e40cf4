"""Where an answer stands in a text, and what beside it is kept because it changes it."""

import time

import pytest

from distill.grading.graders import GRADERS, judge
from distill.text import answers


def verdict(text: str, gold: str) -> str:
    return judge(text, gold, GRADERS["default"]).outcome


RIGHT = [
    ("The final answer is: 5", "5"),
    ("**Final answer: 5**", "5"),
    ("The answer (arabic numerals) is 5.\n\nJosh eats 4", "5"),
    ("The answer to the question is 5.", "5"),
    ("The answer is\n\n5", "5"),
    ("The answer is 5, because 2 + 3 = 5.", "5"),
    ("The answer is 5 = 2 + 3.", "5"),
    ("The answer is that 5 fish remained.", "5"),
    ("The answer is 5. Wait, no, it is 6.", "6"),
    ("**Answer:** 5 (out of 10)", "5"),
    ("<answer>5</answer> I used 9 steps.", "5"),
    ("#### Final Answer: 5", "5"),
    ("##### Final Answer\n**5**", "5"),
    ("#### Step 1: add\n2 + 3 = 5\nSo there are 5 apples.", "5"),
    ("\\boxed{5}\n\n#### Verification\n6 * 7 = 42", "5"),
    ("\\boxed{6}\nThe answer is above.", "6"),
    ("\\fbox{5} of 100", "5"),
    ("\\boxed{5}, \\boxed{6}", "5, 6"),
    ("\\boxed{5} million", "5000000"),
    ("Put the final answer in \\boxed{answer}. It is 12.", "12"),
    ("The value is $\\frac{3}{4}$.", "3/4"),
    ("It is 12 million.", "12000000"),
    ("It is \u221212.", "-12"),
]
NOT_FIVE = [
    "The answer isn't 5.",
    "The answer isn\u2019t 5",
    "The answer cannot be 5.",
    "The answer might be 5.",
    "I do not think that the answer is 5.",
    "If the answer is 5 then x is 6.",
    "A wrong answer is 5.",
    "Is the answer 5? No.",
    "The answers are 3 and 5.",
    "The answer is either 5 or 6.",
    "The answer is from 3 to 5.",
    "The answer is >= 5.",
    "The answer is 10 - 3 != 5.",
    "The answer is 5 except on Mondays.",
    "The answer is 5, if x is even.",
    "The answer is 5 = 6.",
    "The answer is 5. Wait, no, it is 6.",
    "The answer is 5. But that is incorrect.",
    "The answer is 5. Actually, 7.",
    "\\boxed{5",
    "not \\boxed{5}",
    "x \\ne \\boxed{5}",
    "-\\boxed{5}",
    "10^{\\boxed{5}}",
    "2\\boxed{5}",
    "at least \\boxed{5}",
    "\\boxed{5}!",
    "\\boxed{5}^2",
    "\\boxed{5} or 6",
    "\\boxed{5} crore",
    "\\boxed{6} or \\boxed{5}",
    "#### 5 or 6",
    "#### Step 5",
    "So x = 10^{-5}.",
    "So x = 10^{5}.",
    "The value is $\\frac{3}{5}$.",
    "x >= 5",
    "It is the 5th.",
    "It is 5k.",
    "It is 12:05.",
    "It is twelve and 5.",
    "It is about 5.",
    "It is 10 - 5",
]


@pytest.mark.parametrize(("text", "gold"), RIGHT)
def test_what_belongs_to_the_answer_is_found(text: str, gold: str):
    assert verdict(text, gold) == "right"


@pytest.mark.parametrize("text", NOT_FIVE)
def test_what_denies_or_changes_an_answer_is_kept(text: str):
    assert verdict(text, "5") != "right"


def test_a_box_that_is_not_closed_holds_no_answer():
    assert answers.extract("The answer is 3, so \\boxed{12") is None


@pytest.mark.parametrize(
    "piece", ["the ", "(", "\\boxed{", "answer is ", "1,", "$", "#### ", "**", "x = ", "9"]
)
def test_time_is_linear_in_the_length(piece: str):
    for text in (piece * 40_000, f"The answer is {piece * 40_000}", f"\\boxed{{{piece * 40_000}}}"):
        start = time.process_time()
        judge(text, "5", GRADERS["default"])
        judge("The answer is 5.", text, GRADERS["default"])
        assert time.process_time() - start < 2
