"""Steps: joined they are the text, and a text grown step by step is cut where it was."""

from hypothesis import given
from hypothesis import strategies as st

from distill.text import steps

TEXTS = st.text(st.sampled_from("ab1. \n=?"), max_size=40)


@given(TEXTS)
def test_steps_join_to_the_text(text: str) -> None:
    assert "".join(steps.split(text)) == text
    assert all(steps.split(text))


@given(TEXTS)
def test_a_text_of_the_first_steps_is_cut_at_the_same_places(text: str) -> None:
    pieces = steps.split(text)
    for n in range(len(pieces)):
        assert steps.split("".join(pieces[:n])) == pieces[:n]


def test_decimals_and_points_at_the_end_are_no_borders() -> None:
    assert steps.split("Half is 1.5. So 3") == ("Half is 1.5.", " So 3")
    assert steps.split("Done.") == ("Done.",)
    assert steps.split("") == ()


@given(TEXTS)
def test_a_stopped_step_is_the_step_that_split_cuts(text: str) -> None:
    """Writing up to the first stop text and then the rest gives the steps of the whole."""
    pieces = steps.split(text + "z")
    if len(pieces) > 1 and pieces[0].endswith("."):
        assert steps.ended(pieces[0] + " ") == pieces[0]
