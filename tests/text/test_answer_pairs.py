"""Laws of grading on answers of known value: none is right for another, and spellings do not "
"count."""

import answer_pairs as pairs
import pytest
from answer_pairs import Said
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill.grading.graders import GRADERS, judge
from distill.text import answers

STATED = ("The answer is {}.", "So it is clear.\nAnswer: {}", "#### {}", "hence $\\boxed{{{}}}$.")


@st.composite
def near(draw: st.DrawFn) -> tuple[Said, Said]:
    """A pair whose texts share a number, so that a grader is tempted."""
    number = draw(st.integers(2, 99))
    changed = draw(
        st.sampled_from(
            [f"{b}{number}" for b in pairs.BEFORE] + [f"{number}{a}" for a in pairs.AFTER]
        )
    )
    shown = draw(st.sampled_from(pairs.spellings(pairs.Fraction(number))))
    return Said(changed, ("other", changed)), Said(shown, ("number", pairs.Fraction(number)))


@settings(max_examples=600)
@given(pairs.said(), pairs.said())
def test_answers_of_different_value_are_never_right(one: Said, other: Said):
    assume(not pairs.may_be_equal(one.value, other.value))
    assert answers.equal(one.text, other.text) is not True


@settings(max_examples=200)
@given(near())
def test_what_changes_a_number_is_never_dropped(pair: tuple[Said, Said]):
    changed, plain = pair
    assert answers.equal(changed.text, plain.text) is not True
    assert answers.equal(plain.text, changed.text) is not True
    assert answers.canonical(changed.text) != answers.canonical(plain.text)


@settings(max_examples=200)
@given(near(), st.sampled_from(STATED))
def test_what_changes_a_number_is_found_with_it(pair: tuple[Said, Said], stated: str):
    changed, plain = pair
    assume("{" not in changed.text or "}" in changed.text)
    assert judge(stated.format(changed.text), plain.text, GRADERS["default"]).outcome != "right"


@settings(max_examples=200)
@given(st.data())
def test_spellings_of_one_number_are_right(data: st.DataObject):
    number = data.draw(pairs.numbers)
    spelling = st.sampled_from(pairs.spellings(number))
    one, other = data.draw(spelling), data.draw(spelling)
    assert answers.equal(one, other) is True
    assert answers.canonical(one) == str(number)
    stated = data.draw(st.sampled_from(STATED)).format(one)
    assert judge(stated, other, GRADERS["default"]).outcome == "right"


@settings(max_examples=200)
@given(st.one_of(pairs.scaled_numbers(), pairs.powers(), pairs.scientific_numbers()))
def test_scales_powers_and_exponents_have_their_value(said: Said):
    assert answers.equal(said.text, str(said.value[1])) is True
    assert answers.equal(str(said.value[1]), said.text) is True


@settings(max_examples=200)
@given(st.sampled_from(sorted(pairs.UNITS)), st.integers(1, 500), st.data())
def test_units_of_one_dimension_are_converted(kind: str, count: int, data: st.DataObject):
    units = pairs.UNITS[kind]
    one, other = (data.draw(st.sampled_from(sorted(units))) for _ in range(2))
    size = pairs.Fraction(count * units[one], units[other])
    assert answers.equal(f"{count} {one}", f"{size} {other}") is True
    assert answers.equal(f"{count} {one}", f"{size + 1} {other}") is False


@given(st.sampled_from(pairs.THINGS), st.integers(0, 10**6))
def test_counted_things_may_be_left_out(things: str, count: int):
    assert answers.equal(f"{count} {things}", str(count)) is True
    assert answers.equal(str(count), f"{count} ({things})") is True
    assert answers.equal(f"{count + 1} {things}", str(count)) is False


@settings(max_examples=200)
@given(pairs.said(), pairs.said())
def test_answers_of_one_key_are_not_different(one: Said, other: Said):
    if answers.canonical(one.text) == answers.canonical(other.text):
        assert answers.equal(one.text, other.text) is not False


@given(pairs.said())
def test_the_key_of_a_known_value_is_its_own_key(said: Said):
    key = answers.canonical(said.text)
    assert answers.canonical(key) == key


@pytest.mark.parametrize("brackets", ["()", "[]", "[)", "(]"])
def test_order_and_brackets_of_a_list_count(brackets: str):
    opening, closing = brackets
    assert answers.equal(f"{opening}1, 2{closing}", f"{opening}2, 1{closing}") is False
    assert answers.equal("\\{1, 2\\}", f"{opening}1, 2{closing}") is False
    assert answers.equal("1, 2", "2, 1") is None
    assert answers.equal("\\{1, 2\\}", "\\{2, 1\\}") is True
