import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.models.stopping import ENDED, INSIDE, OPENING, states_of, transitions

TEXTS = st.text(alphabet="ab .é", max_size=4)


@given(st.lists(TEXTS.filter(bool), max_size=3), st.lists(TEXTS, min_size=1, max_size=6), st.data())
def test_a_row_ends_with_the_token_that_completes_a_stop_text(stop, tokens, data):
    table = transitions(stop, [*(text.encode() for text in tokens), b""], eos_id=len(tokens))
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=12))
    for state, opening in ((INSIDE, False), (OPENING, True)):
        text = ""
        for place, i in enumerate(ids):
            piece = tokens[i].removeprefix(" ") if opening and place == 0 else tokens[i]
            state, text = table[state, i], text + piece
            assert (state == ENDED) == any(each in text for each in stop)
    assert (table[:, len(tokens)] == ENDED).all()


def test_states_are_the_beginnings_of_stop_texts():
    table = transitions(["ab", "bc"], [b"a", b"b", b"c", b"xa", b""], eos_id=4)
    a, b = INSIDE + 1, INSIDE + 3
    assert table[INSIDE].tolist() == [a, b, INSIDE, a, ENDED]
    assert table[a].tolist() == [a, ENDED, INSIDE, a, ENDED]
    assert table[b].tolist() == [a, b, ENDED, a, ENDED]


def test_few_stop_texts_share_one_shape():
    shapes = {transitions(stop, [b"a"], 0).shape for stop in ((), ("\n",), ("\n", ". "))}
    assert shapes == {(8, 1)}
    assert transitions(["\n\nQuestion:"], [b"a"], 0).shape == (16, 1)
    assert np.issubdtype(transitions((), [b"a"], 0).dtype, np.int32)


def test_long_stop_texts_take_time_linear_in_their_length():
    stop = [chr(97 + number) * 256 for number in range(16)]
    begun = time.perf_counter()
    assert transitions(stop, [b"ab"] * 100, 0).shape == (8192, 100) == (states_of(stop), 100)
    assert time.perf_counter() - begun < 20
