import json
import re
from pathlib import Path

import numpy as np
import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import UserError
from distill.core.ports import Request, Sampling
from distill.endpoints.shapes import SHAPES, shape_of
from distill.endpoints.shapes.completions import Echo
from distill.text.completions import Token, fit, name_bytes, tokens_of
from tokalign.apis import ReportError

ROOT = Path(__file__).parents[2]
TEXTS = st.text(st.sampled_from("ab \n.é🙂한"), max_size=12)


def read_legacy(choice):
    return SHAPES["completions"].completion({"choices": [choice]})


def read_chat(choice):
    return SHAPES["chat"].completion({"choices": [choice]})


def read_scored(choice, prompt, completion):
    request = Request(prompt, completion=completion)
    return Echo().completion({"choices": [choice]}, request, 5)


def read_prompt(answer, completion, top_logprobs, following=None):
    """Read the log-probabilities of a prompt; `following` is the one token drawn after it."""
    choice = {**answer["choices"][0], **(following or {"text": ""})}
    scoring = SHAPES["completions"].scorings["prompt_logprobs"]
    whole = {**answer, "choices": [choice]}
    return scoring.completion(whole, Request("", completion=completion), top_logprobs)


@st.composite
def cuts(draw, text):
    """Cut the bytes of a text anywhere, also within a character."""
    raw = text.encode()
    places = sorted(draw(st.sets(st.integers(1, max(len(raw) - 1, 1)), max_size=8)))
    places = [place for place in places if place < len(raw)]
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True) if a < b]


def reported(piece, logprob=-0.5):
    name = name_bytes(piece.decode(errors="replace"))
    return Token(name, logprob, ((name, logprob),))


def legacy(text, tokens, nats=None, tops=None, reason="stop"):
    logprobs = {
        "tokens": tokens,
        "token_logprobs": nats or [-0.5] * len(tokens),
        "top_logprobs": tops or [{token: -0.5} for token in tokens],
    }
    return {"text": text, "finish_reason": reason, "logprobs": logprobs}


def chat(text, content, reason="stop"):
    return {
        "message": {"role": "assistant", "content": text},
        "finish_reason": reason,
        "logprobs": {"content": content},
    }


@given(TEXTS, st.data())
def test_tokens_of_known_bytes_come_back_as_they_are(text, data):
    pieces = data.draw(cuts(text))
    found = fit(text, [Token(piece, -1.0, ((piece, -1.0),)) for piece in pieces], "stop")
    assert found.text == text and found.tokens == tuple(pieces) and found.finish_reason == "stop"


@given(TEXTS, st.data())
def test_halves_of_characters_are_repaired_from_the_text(text, data):
    pieces = data.draw(cuts(text))
    found = fit(text, [reported(piece) for piece in pieces], "stop")
    assert b"".join(found.tokens).decode() == found.text == text
    assert found.finish_reason == "stop"
    assert sum(found.logprobs) == near(-0.5 * len(pieces), terms=4 * len(pieces), dtype="float32")


@given(TEXTS, st.lists(st.tuples(st.binary(max_size=3), st.floats(-9, 0))), st.data())
def test_any_tokens_with_any_text_spell_it_or_fail(text, tokens, data):
    reason = data.draw(st.sampled_from(["stop", "length"]))
    found = fit(text, [Token(raw, nats, ()) for raw, nats in tokens], reason)
    if found.finish_reason == "error":
        assert found.text == text and not found.tokens
    else:
        assert b"".join(found.tokens).decode() == found.text
        assert found.text.strip().startswith(text.rstrip("\ufffd").strip())
        assert all(found.tokens)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "message", "logprobs", "content", "tokens", "token"])
            | st.sampled_from(["token_logprobs", "top_logprobs", "logprob", "bytes"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["text", "message", "logprobs", "finish_reason"]), JSON))
def test_an_answer_of_any_form_is_read_or_refused(choice):
    for read in (read_legacy, read_chat, lambda c: read_scored(c, "a", "b")):
        try:
            found = read(choice)
        except (ReportError, UserError):
            continue
        assert not found.tokens or b"".join(found.tokens).decode() == found.text


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (" she", b" she"),
        ("bytes:\\xf0\\x9f", b"\xf0\x9f"),
        ("bytes: \\xf0\\x9f", b" \xf0\x9f"),
        ("bytes:", b"bytes:"),
        (" \ufffd", b" \xff"),
        ("\ud83d", b"\xff"),
        ("", b""),
        ("token_id:", b"token_id:"),
    ],
)
def test_a_name_stands_for_bytes(name, raw):
    assert name_bytes(name) == raw


def test_a_legacy_answer_by_hand():
    choice = legacy(
        "4🙂",
        ["4", "bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "<|endoftext|>"],
        [-0.25, -9999.0, None, -0.125],
        [{"4": -0.25, "5": -1.5}, {" w": -1.0, "x": -9999.0}, None, {"<|endoftext|>": -0.125}],
    )
    found = read_legacy(choice)
    assert found.tokens == (b"4", b"\xf0\x9f", b"\x99\x82") and found.end_logprob == -0.125
    np.testing.assert_array_equal(found.logprobs, np.array([-0.25, -9999.0, np.nan], "f4"))
    assert found.top_tokens == (b"4", b"5", b" w") and found.top_ends.tolist() == [2, 3, 3]


def test_a_chat_answer_by_hand():
    def item(token, raw, logprob, top=()):
        return {"token": token, "bytes": raw, "logprob": logprob, "top_logprobs": list(top)}

    end = item("<|im_end|>", None, -0.5)
    half = item("\ufffd", None, -0.25, [item("\ufffd", None, -0.25), item("x", [120], -2.0)])
    late = item("\ufffd", None, -0.5)
    four = item("4", [52], -0.125, [item("4", [52], -0.125), end])
    found = read_chat(chat("4🙂!", [four, half, late, item("!", None, -1.0), end]))
    assert found.tokens == (b"4", "🙂".encode(), b"!")
    assert found.logprobs.tolist() == [-0.125, -0.75, -1.0]
    assert found.top_tokens == (b"4", b"") and found.top_ends.tolist() == [2, 2, 2]
    assert found.end_logprob == -0.5


def test_candidates_of_equal_bytes_join():
    top = [("</s>", -1.0), ("<|im_end|>", -2.0), ("a", -0.75), ("a", -0.75)]
    items = [{"token": token, "logprob": logprob} for token, logprob in top]
    content = [{"token": "a", "logprob": -0.75, "top_logprobs": items}]
    (token,) = tokens_of(read_chat(chat("a", content)))
    assert [name for name, _ in token.top] == [b"", b"a"]
    assert token.top[0][1] == near(np.logaddexp(-1, -2), terms=2, dtype="float32")


def test_a_stop_within_a_token_cuts_it_and_hides_the_end():
    found = read_legacy(legacy("8", ["8.\n", "Q"]))
    assert found.tokens == (b"8",) and np.isnan(found.end_logprob)


def test_a_text_that_ends_within_a_character_ends_before_it():
    for text in ("ok", "ok\ufffd"):
        found = read_legacy(legacy(text, ["ok", "bytes:\\xf0\\x9f"], reason="length"))
        assert (found.text, found.tokens, found.finish_reason) == ("ok", (b"ok",), "length")


def test_an_empty_token_after_half_a_character_is_no_border():
    found = read_legacy(legacy("🙂", ["\ufffd", "\ufffd", ""], [-1.0, -2.0, -0.5]))
    assert found.tokens == ("🙂".encode(),) and found.logprobs.tolist() == [-3.0]
    assert found.end_logprob == -0.5


def test_a_text_that_was_stripped_gets_its_whitespace_back():
    assert read_legacy(legacy("8.", [" 8", ".", "\n"])).text == " 8.\n"


def test_a_token_that_spells_nothing_joins_the_next():
    found = read_legacy(legacy("ab", ["a", "", "b"], [-1.0, -2.0, -3.0]))
    assert found.tokens == (b"a", b"b") and found.logprobs.tolist() == [-1.0, -5.0]


def test_tokens_that_do_not_spell_the_text_fail_and_keep_the_text():
    found = read_legacy(legacy("eight", ["n", "ine"]))
    assert (found.text, found.tokens, found.finish_reason) == ("eight", (), "error")


def test_an_unknown_reason_to_finish_is_an_error():
    assert read_legacy(legacy("8", ["8"], reason="abort")).finish_reason == "error"


def entry(text, nats, **others):
    told = {"1": {"logprob": nats, "rank": 1, "decoded_token": text}}
    return {**told, **{str(n): {"logprob": x, "decoded_token": t} for n, (t, x) in others.items()}}


def prompt_of(*entries):
    return {"choices": [{"prompt_logprobs": [None, *entries]}]}


def test_a_prompts_logprobs_by_hand():
    following = legacy(".", ["."], tops=[{".": -0.1, "</s>": -2.0}])
    answer = prompt_of(
        entry("Q", -3.0), entry("?\n", -1.0), entry("8", -0.5, a=("9", -1.5)), entry("!", -0.2)
    )
    found = read_prompt(answer, "8!", 5, following)
    assert (found.tokens, found.end_logprob) == ((b"8", b"!"), -2.0)
    assert found.logprobs.tolist() == near([-0.5, -0.2], dtype="float32")
    assert found.top_tokens == (b"8", b"9", b"!") and found.top_ends.tolist() == [2, 3]
    across = read_prompt(answer, "\n8!", 1)
    assert across.tokens == (b"\n", b"8", b"!") and np.isnan(across.logprobs[0])
    assert np.isnan(across.end_logprob) and across.top_tokens == (b"8", b"!")


def test_halves_of_characters_in_a_prompt_are_repaired_from_the_completion():
    halves = [entry("\ufffd", -1.0), entry("\ufffd", -0.5)]
    found = read_prompt(prompt_of(entry("Q", -1.0), *halves, entry("!", -0.2)), "🙂!", 5)
    assert found.tokens == ("🙂".encode(), b"!") and found.logprobs[0] == -1.5


@given(st.lists(st.sampled_from(["a", "b", " é", "\ufffd", "", "<s>"]), max_size=8), TEXTS)
def test_any_prompt_spells_the_completion_or_fails(pieces, completion):
    found = read_prompt(prompt_of(*(entry(p, -1.0) for p in pieces)), completion, 5)
    spelled = b"".join(found.tokens).decode()
    assert found.text == completion
    assert spelled == completion or (found.finish_reason, spelled) == ("error", "")


def test_a_prompt_without_logprobs_is_refused():
    with pytest.raises(UserError, match="prompt_logprobs with the answer, got NoneType"):
        read_prompt({"choices": [{}]}, "8", 5)
    for odd in ([3], "8", {"1": 3}):
        with pytest.raises(ReportError, match="in the place of an object"):
            read_prompt(prompt_of(odd), "8", 5)


def test_scored_tokens_begin_where_the_prompt_ends():
    choice = legacy("Q: a\nb c", ["<s>", "Q", ":", " a", "\nb", " c"], [None, *[-1.0] * 5])
    found = read_scored(choice, "Q: a\n", "b c")
    assert found.tokens == (b"b", b" c") and np.isnan(found.logprobs[0])
    assert found.logprobs[1] == -1.0 and found.top_ends.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("choice", "error", "match"),
    [
        ({"text": "8", "logprobs": None}, UserError, "expected log-probabilities"),
        (legacy("8", ["token_id:8"]), UserError, "expected tokens by their text, got token_id:8"),
        (legacy("8", ["8"], [0.5]), ReportError, "a log-probability of 0.5"),
        (legacy("8", ["8"], [-0.5, -0.5]), ReportError, "got 1 tokens, 2 log-probabilities"),
        ({}, ReportError, "text is NoneType, not str"),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused(choice, error, match):
    with pytest.raises(error, match=match):
        read_legacy(choice)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.builds(Request, st.text(max_size=5), st.integers(0, 99), prefix=st.text(max_size=3)),
    st.builds(Sampling, top_k=st.integers(0, 3), stop=st.lists(st.just("Q")).map(tuple)),
)
def test_fields_beyond_openai_s_are_sent_only_when_they_differ_from_their_defaults(
    kind, request, sampling
):
    body = SHAPES[kind].request(request, sampling)
    assert ("stop" in body) == bool(sampling.stop)
    assert all(body.get("extra_body", {"none": 1}).values() or [False]) or request.prefix
    assert ("top_k" in body.get("extra_body", {})) == bool(sampling.top_k)
    written = body["prompt"] if kind == "completions" else body["messages"][0]["content"]
    assert written.startswith(request.prompt)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_a_shape_names_its_ways_to_score_and_whether_a_prefix_may_be_ignored(kind):
    shape = shape_of(kind)
    assert ("echo" in shape.scorings) == (kind == "completions")
    assert shape.may_restart == (shape.prefix_field is None) == (kind == "chat")


def test_the_call_that_the_design_walks_through_is_written_and_read_as_it_says():
    page = (ROOT / "docs/design/endpoints.md").read_text()
    body, answer = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.S))
    request = Request(body["messages"][0]["content"], body["seed"])
    sampling = Sampling(temperature=0.7, top_logprobs=2)
    assert {"model": "m", **SHAPES["chat"].request(request, sampling)} == body
    found = SHAPES["chat"].completion(answer)
    assert found.text == "The answer is 8." and found.tokens == (b"The answer is", b" 8", b".")
    np.testing.assert_allclose(found.logprobs, [-0.30, -0.10, -0.03], atol=0.005)
    assert found.top_tokens == (b" 8", b" 9", b".") and found.top_ends.tolist() == [0, 2, 3]
