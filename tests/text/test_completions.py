import numpy as np
from closeness import gap, near
from hypothesis import given
from hypothesis import strategies as st

from distill.text.completions import Token, assemble, cut_after_answer, shorten, tokens_of

PIECES = ["a", " b", "\n", ".\n\n", "é", "the answer is 8", "answer", " is", "\n\nQ", "."]


@st.composite
def completions(draw):
    tokens = []
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=12)):
        others = draw(st.lists(st.sampled_from(PIECES), unique=True, max_size=5))
        probs = np.array(draw(st.lists(st.floats(0.01, 1), min_size=6, max_size=6)))
        names = dict(zip([piece, *(o for o in others if o != piece)], probs / 6.01, strict=False))
        top = sorted(
            ((n.encode(), float(np.log(p))) for n, p in names.items()), key=lambda x: -x[1]
        )
        tokens.append(Token(piece.encode(), float(np.log(names[piece])), tuple(top)))
    return assemble(tokens, finish_reason=draw(st.sampled_from(["stop", "length"])))


@given(completions())
def test_tokens_come_back_as_they_were_assembled(completion):
    again = assemble(tokens_of(completion), finish_reason=completion.finish_reason)
    assert again.text == completion.text and again.top_tokens == completion.top_tokens
    np.testing.assert_array_equal(again.logprobs, completion.logprobs)
    np.testing.assert_array_equal(again.top_ends, completion.top_ends)


@given(completions())
def test_a_cut_text_ends_with_the_first_answer_line_and_its_tokens_spell_it(completion):
    cut = cut_after_answer(completion)
    lines = completion.text.split("\n")
    first = next((n for n, line in enumerate(lines) if "answer is" in line), len(lines))
    assert cut.text == "\n".join(lines[: first + 1])
    assert b"".join(cut.tokens).decode() == cut.text
    assert cut_after_answer(cut).tokens == cut.tokens


@given(completions(), st.data())
def test_a_cut_changes_no_token_before_it_and_keeps_all_mass(completion, data):
    text = completion.text
    end = len(text[: data.draw(st.integers(0, len(text)))].encode())
    before, after = tokens_of(completion), tokens_of(shorten(completion, end))
    assert b"".join(token.text for token in after) == text.encode()[:end]
    assert after[:-1] == before[: max(len(after) - 1, 0)]
    for old, new in zip(before, after, strict=False):
        assert sum(np.exp([x for _, x in new.top])) == near(
            sum(np.exp([x for _, x in old.top])), terms=8, dtype="float32", scale=9
        )
        assert new.logprob >= old.logprob - gap(2) * abs(old.logprob)
        assert [x for _, x in new.top] == sorted((x for _, x in new.top), reverse=True)


def test_equal_outcomes_join_at_the_cut():
    names = [(b".\n\n", 0.6), (b".\n", 0.2), (b".", 0.1), (b" d", 0.05)]
    top = tuple((name, float(np.log(p))) for name, p in names)
    last = Token(b".\n\n", float(np.log(0.6)), top)
    cut = cut_after_answer(assemble([Token(b"The answer is 8"), last, Token(b"Q:")]))
    assert cut.tokens == (b"The answer is 8", b".") and cut.top_tokens == (b".", b" d")
    assert np.exp(cut.top_logprobs).tolist() == near([0.9, 0.05], terms=4, dtype="float32", scale=1)
    assert np.exp(cut.logprobs[1]) == near(0.9, terms=4, dtype="float32") and np.isnan(
        cut.end_logprob
    )


def test_a_sampled_token_outside_its_candidates_adds_its_own_mass():
    top = ((b".", float(np.log(0.5))), (b"!", float(np.log(0.3))))
    token = Token(b".\n", float(np.log(0.1)), top)
    cut = cut_after_answer(assemble([Token(b"answer is 8"), token]))
    assert np.exp(cut.top_logprobs).tolist() == near([0.6, 0.3], terms=4, dtype="float32", scale=1)


def test_a_finished_answer_line_counts_as_stopped():
    tokens = [Token(b"The answer is 8"), Token(b"\n"), Token(b"Q: next")]
    assert cut_after_answer(assemble(tokens, finish_reason="length")).finish_reason == "stop"
    open_line = assemble(tokens[:1], finish_reason="length")
    assert cut_after_answer(open_line).finish_reason == "length"
