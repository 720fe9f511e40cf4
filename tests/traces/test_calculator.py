"""The calculator: its arithmetic against Python's, and what it does to a generator."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from generator_laws import keeps_the_laws
from hypothesis import given
from hypothesis import strategies as st

from distill.core.ports import Completion, Request, Sampling
from distill.models.saved import SavedModel
from distill.text.completions import Token, assemble, tokens_of
from distill.text.prompts import FORMATS
from distill.traces.calculator import Calculator, result

STUDENT = "data/models/student_instructed"
GREEDY = Sampling(temperature=0.0, max_tokens=64, top_logprobs=2)


@st.composite
def expressions(draw, depth=3):
    """A text and its value, None where it divides by zero."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 9999))
        return (f"{number:,}" if draw(st.booleans()) else str(number)), Fraction(number)
    sign = draw(st.sampled_from("+-*/"))
    (left, a), (right, b) = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    text = f"({left}) {sign} ({right})"
    if a is None or b is None or (sign == "/" and b == 0):
        return text, None
    return text, {"+": a + b, "-": a - b, "*": a * b, "/": a / b if sign == "/" else a}[sign]


@given(expressions())
def test_a_result_is_the_exact_value_or_absent(expression):
    text, value = expression
    found = result(f"So it is {text} =")
    if found is not None:
        assert Fraction(found.replace(",", "")) == value
    short = value is not None and (value * 10**6).denominator == 1 and abs(value) < 10**15
    assert (found is not None) == (short and any(sign in text for sign in "+-*/"))


@given(st.text(alphabet="0123456789.,+-*/x()$ =\n%a\u00d7", max_size=80))
def test_any_text_has_a_number_or_none(text):
    found = result(text + "=")
    assert found is None or Fraction(found) is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("There are 3 + 4 * 5 =", " 23"),
        ("10 - 2 - 3=", "5"),
        ("It costs $1,200.50 * 2 =", " 2401"),
        ("a box 5 x 3 =", " 15"),
        ("5 + 7 = 12 - 4 =", " 8"),
        ("Total - 5 + 3 =", " 8"),
        ("He has 5. 3 + 4 =", " 7"),
        ("-3 / 8 =", " -0.375"),
        ("10 / 3 =", None),
        ("7 / 0 =", None),
        ("10% of 50 =", None),
        ("He has 12 =", None),
        ("(5 + 3 =", None),
        ("1,23 + 4 =", None),
        ("9999999999999999 + 1 =", None),
        ("5 + 7", None),
    ],
)
def test_results_by_hand(text, found):
    assert result(text) == found


# --- Beside a generator ------------------------------------------------------------------------


class Careless:
    """Writes a plan token by token, going on after any prefix, with wrong results after signs."""

    model = "careless"
    plan = (b"Tom", b" has", b" 17", b" *", b" 24", b" =", b" 418", b".", b" Is 7 =", b" 7")

    def __init__(self):
        self.seeds = []

    def generate(self, requests, sampling):
        for index, request in enumerate(requests):
            self.seeds.append(request.seed)
            yield index, self.written(request, sampling)

    def written(self, request, sampling):
        """After a prefix with a result it goes on behind its own."""
        done, tokens = request.prefix, list(self.plan)
        while done and tokens:
            piece = tokens.pop(0).decode()
            done = done.removeprefix(" 408" if piece == " 418" and done[:4] == " 408" else piece)
        made = []
        for text in tokens[: sampling.max_tokens]:
            made.append(Token(text, -0.5, ((text, -0.5), (b"!", -1.5))))
            if any(text.decode().endswith(stop) for stop in sampling.stop):
                return self.told(made, "stop")
        return self.told(made, "length" if len(tokens) > sampling.max_tokens else "stop")

    def told(self, tokens, reason):
        made = assemble(tokens, finish_reason=reason, end_logprob=-3.0)
        return dataclasses.replace(made, prompt_tokens=2, completion_tokens=len(tokens))

    def score(self, requests, top_logprobs=5):
        raise AssertionError("expected generating alone, got a request for scores")


def careless(sampling=GREEDY, prefix=""):
    ((_, made),) = Calculator()(Careless()).generate([Request("Q:", prefix=prefix)], sampling)
    return made


def test_the_result_stands_where_the_model_would_have_erred():
    made = careless()
    assert made.text == "Tom has 17 * 24 = 408. Is 7 = 7"
    assert made.finish_reason == "stop" and made.end_logprob == -3.0
    # Three parts were asked for: up to each sign, and the rest; 408 was drawn by nobody.
    assert (made.prompt_tokens, made.completion_tokens) == (6, 9)
    (written,) = [token for token in tokens_of(made) if token.text == b" 408"]
    assert np.isnan(written.logprob) and written.top == ()


def test_the_seeds_of_later_parts_stay_what_they_were():
    model = Careless()
    list(Calculator()(model).generate([Request("Q:", seed=7)], GREEDY))
    assert model.seeds[:2] == [7, 1_719_440_957]


def test_an_expression_across_the_prefix_is_computed():
    assert careless(prefix="Tom has 17 *").text == " 24 = 408. Is 7 = 7"


@pytest.mark.parametrize(
    ("limit", "text"), [(6, "Tom has 17 * 24 ="), (8, "Tom has 17 * 24 = 408.")]
)
def test_results_count_among_the_tokens(limit, text):
    made = careless(dataclasses.replace(GREEDY, max_tokens=limit))
    assert (made.text, made.finish_reason) == (text, "length")


@pytest.mark.parametrize(
    ("stop", "kept", "text"),
    [
        (".", False, "Tom has 17 * 24 = 408"),
        (".", True, "Tom has 17 * 24 = 408."),
        ("=", False, "Tom has 17 * 24 "),
        ("=", True, "Tom has 17 * 24 ="),
    ],
)
def test_stop_texts_are_the_users_own(stop, kept, text):
    made = careless(dataclasses.replace(GREEDY, stop=(stop,), include_stop=kept))
    assert (made.text, made.finish_reason) == (text, "stop")


def test_a_real_student_keeps_the_laws_and_its_results_are_right():
    questions = [f"What is {a} + {b}?" for a, b in ((17, 25), (348, 275), (9, 4))]
    requests = [Request(FORMATS["zero_shot_cot"](question), seed=7) for question in questions]
    student = Calculator()(SavedModel(STUDENT, batch_size=4))
    keeps_the_laws(lambda asked: student.generate(asked, GREEDY), requests)
    sampling = dataclasses.replace(GREEDY, temperature=1.0)
    made = [completion for _, completion in student.generate(requests * 4, sampling)]
    checked = 0
    for completion in made:
        assert isinstance(completion, Completion)
        parts = completion.text.split("=")
        for before, after in itertools.pairwise(parts):
            computed = result(before + "=")
            if computed is not None and after.strip():
                assert after.startswith(computed)
                checked += 1
    assert checked >= 6
