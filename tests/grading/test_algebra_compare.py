"""Exact comparison of expressions: what is proven, and what LaTeX does not say for sure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.grading.algebra_compare import compare


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 10**12), st.integers(0, 300))
def test_fractions_are_equal_exactly_when_their_values_are(one: int, other: int, power: int):
    pair = [f"\\frac{{1}}{{{number} \\cdot 10^{{{power}}}}}" for number in (one, other)]
    assert compare(*pair) == ("1" if one == other else "0")


@settings(max_examples=30, deadline=None)
@given(st.integers(-50, 50), st.integers(1, 50), st.integers(1, 40))
def test_terms_commute_and_a_changed_one_is_seen(constant: int, factor: int, root: int):
    text = f"{factor}x + \\sqrt{{{root}}} + ({constant})"
    assert compare(text, f"({constant}) + \\sqrt{{{root}}} + x \\cdot {factor}") == "1"
    assert compare(text, f"({constant + 1}) + \\sqrt{{{root}}} + {factor}x") == "0"
    assert compare(text, f"({constant}) + \\sqrt{{{root}}} + {factor}y") == "0"


@pytest.mark.parametrize(
    ("prediction", "gold", "outcome"),
    [
        ("0.1", r"\frac{1}{10}", "1"),
        ("2(3)", "6", "1"),
        ("2(3)", "5", "0"),
        ("2 sin x", r"2\sin x", "1"),
        ("-1+exp(16)", "e^{16}-1", "1"),
        (r"(0,9) \cup (9,36)", r"(9,36)\cup(0,9)", "1"),
        (r"3 \pm 2\sqrt{2}", r"3\pm\sqrt{8}", "1"),
        ("2x+4y-3=0", "4x+8y=6", "1"),
        ("2x+4y-3=0", "2x+4y-4=0", "0"),
        (r"\sqrt{x^2}", "x", "0"),
        ("2x", "2X", "0"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "0"),
    ],
)
def test_what_is_proven_is_decided(prediction: str, gold: str, outcome: str):
    assert compare(prediction, gold) == compare(gold, prediction) == outcome


@pytest.mark.parametrize(
    "text",
    [
        "x'",
        "52_8",
        "x*",
        "1 2",
        "1/2x",
        "5!!",
        "2I",
        r"\text{5}",
        r"5 \mod 3",
        "x^",
        "1, 2",
        "5%",
        r"\frac{x}",
    ],
)
def test_what_the_parser_would_guess_is_not_decided(text: str):
    for other in ("x", "52", "3", "5", "1", text):
        assert compare(text, other) == compare(other, text) == "?"


def test_the_imaginary_unit_and_a_variable_are_not_told_apart():
    assert compare("(1+i)^2", "2i") == "?"
    assert compare("6 - 5i", "6 + 5i") == "0"
