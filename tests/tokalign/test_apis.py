import math

import numpy as np
import pytest
from closeness import assert_close
from greedy import GreedyTokenizer

import tokalign
from tokalign.apis import token_bytes, whole_text
from tokalign.teacher import UNSPELLABLE


def test_strings_of_apis_are_read():
    assert token_bytes(" she") == b" she"
    assert token_bytes("bytes:\\xf0\\x9f") == b"\xf0\x9f"
    assert token_bytes("bytes: \\xe2\\x80") == b" \xe2\x80"
    assert token_bytes("\\x8e\\x89") == b"\x8e\x89"
    assert token_bytes("\\xi") == b"\\xi"
    assert token_bytes("\ufffd") == UNSPELLABLE
    teacher = GreedyTokenizer([" she"])
    assert token_bytes("token_id:257", tokenizer=teacher) == b" she"
    assert token_bytes("token_id:") == b"token_id:"


def test_chat_content_with_null_bytes_sentinels_and_few_alternatives():
    trace = tokalign.from_openai_chat(
        [
            {
                "token": " Nat",
                "logprob": -0.5,
                "bytes": [32, 78, 97, 116],
                "top_logprobs": [
                    {"token": " Nat", "logprob": -0.5, "bytes": [32, 78, 97, 116]},
                    {"token": " she", "logprob": -9999.0, "bytes": None},
                    {"token": "\\xf0\\x9f", "logprob": -2.0, "bytes": None},
                ],
            },
            {"token": "\ufffd", "logprob": -9999.0, "bytes": None, "top_logprobs": None},
            {"token": "<|im_end|>", "logprob": -0.1, "bytes": None, "top_logprobs": []},
        ]
    )
    assert trace.tokens == (b" Nat", UNSPELLABLE)
    assert trace.top_tokens == (b" Nat", b"\xf0\x9f")
    assert trace.top_ends.tolist() == [2, 2]
    assert trace.end_logprob == -0.1


def test_completions_with_collapsed_texts_and_escapes():
    trace = tokalign.from_completions(
        {
            "tokens": [" ", "bytes:\\xe2", "<|endoftext|>"],
            "token_logprobs": [-0.1, -1.0, -0.2],
            "top_logprobs": [{" ": -0.1, "<|endoftext|>": -3.0}, None, {}],
        }
    )
    assert trace.tokens == (b" ", b"\xe2") and trace.top_tokens == (b" ", b"")
    assert trace.end_logprob == -0.2


def test_completions_that_name_ids(t5, p50k):
    ids = p50k.encode("She had 🎉")
    trace = tokalign.from_completions(
        {
            "tokens": [f"token_id:{i}" for i in ids],
            "token_logprobs": [-0.5] * len(ids),
            "top_logprobs": [{f"token_id:{i}": -0.5} for i in ids],
        },
        tokenizer=p50k,
    )
    assert trace.text.decode() == "She had 🎉"
    found = tokalign.project(trace, t5)
    total = found.top_probs.sum(axis=1, dtype=np.float64) + found.lost.sum(axis=1)
    assert_close(total, np.ones(len(total)), terms=4)


def test_hugging_face_pieces_are_read():
    top = [[("Ġshe", -0.1)], [("Ċ", -0.2), ("</s>", -1.0)]]
    trace = tokalign.from_pieces(["Ġshe", "Ċ"], [-0.1, -0.2], top, byte_level=True)
    assert trace.tokens == (b" she", b"\n") and trace.top_tokens == (b" she", b"\n", b"")
    trace = tokalign.from_pieces(["▁she", "<0x0A>"], [-0.1, -0.2], [[], []], byte_level=False)
    assert trace.tokens == (b" she", b"\n")


def test_unreported_bytes_are_filled_in_from_the_text():
    content = [
        {"token": t, "logprob": -1.0, "bytes": list(t.encode()) if t != "\ufffd" else None}
        for t in ("a", "\ufffd", "\ufffd", "!")
    ]
    trace = whole_text(tokalign.from_openai_chat(content), "a🎉!")
    assert b"".join(trace.tokens).decode() == "a🎉!"
    with pytest.raises(ValueError, match=r"expected b'a' at byte 0 of the text"):
        whole_text(tokalign.from_openai_chat(content), "b🎉!")
    with pytest.raises(ValueError, match=r"expected bytes for 2 unreported tokens at byte 1"):
        whole_text(tokalign.from_openai_chat(content), "a!")


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ({"tokens": ["a"], "token_logprobs": []}, "got 1 tokens, 0 log-probabilities and 1 maps"),
        ({"tokens": ["a"], "token_logprobs": [None]}, "got null at 0; leave out an echoed prompt"),
        ({"tokens": ["a"], "token_logprobs": [math.nan]}, "got nan in logprobs"),
        ({"tokens": ["a"], "token_logprobs": [0.5]}, "got 0.5 in logprobs"),
        (
            {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": math.nan}]},
            "got nan in top_logprobs",
        ),
        ({"tokens": ["token_id:3"], "token_logprobs": [-1.0]}, "expected the teacher's tokenizer"),
    ],
)
def test_bad_answers_are_refused(logprobs, message):
    with pytest.raises(ValueError, match=message):
        tokalign.from_completions(logprobs)
