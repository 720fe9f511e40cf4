"""Keys and passwords, and what steers a terminal: refused or made visible wherever they may be."""

import base64
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core import credentials, terminal
from distill.core.errors import UserError

KEY = "Kq7-fake/0123456789+leak"


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter22@host/v1",
        "https://user@host/v1",
        "x = ('http://a/v1', 'http://:p@b/v1')",
        "http://host/v1?api_key=1",
        "http://host/v1?a=1&token=2",
        "http://host/v1#access_token=2",
        "HTTPS://host/v1?X-Amz-Signature=abc",
        f"before {KEY} after",
        "sk-proj-0123456789abcdefgh",
        "Authorization: Bearer abcdefgh.ijklmnop-0",
        "AKIA0123456789ABCDEF",
    ],
)
def test_a_credential_is_refused_and_not_repeated(text, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", KEY)
    with pytest.raises(UserError, match="no credentials in the configuration") as raised:
        credentials.refuse(text, "the configuration")
    for part in ("hunter22", KEY, "0123456789", "abcdefgh"):
        assert part not in str(raised.value)
    assert credentials.HIDDEN in credentials.mask(text) and KEY not in credentials.mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/v1",
        "gs://bucket/run@3/x",
        "a@b.example",
        "task-oriented-dialogue-2-large",
        "hf_checkpoint_of_the_student_number_2",
        "max_tokens = 128",
        "http://host/v1?page=2",
    ],
)
def test_what_is_no_credential_passes(text):
    credentials.refuse(text, "it")
    assert credentials.mask(text) == text


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_encoding_of_a_key_stays_in_a_text(before, after):
    raw = KEY.encode()
    shown = [KEY, KEY[:-1], KEY[::-1], raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode()]
    shown += [base64.b64encode(f"{before}{KEY}".encode()).decode()]
    for form in shown:
        left = credentials.mask_secret(f"{before} {form} {after}", KEY)
        assert credentials.HIDDEN in left
        assert form[6:-6] not in left


@given(st.text())
def test_a_shown_text_steers_no_terminal_and_keeps_the_rest(text):
    shown = terminal.visible(text)
    assert all(
        char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        for char in shown
    )
    assert terminal.visible(shown) == shown
    assert "\n" not in terminal.line(text) and "\t" not in terminal.line(text)


@pytest.mark.parametrize("code", ["\x1b[31m", "\x9b1m", "\r", "\b", "\u202e", "\u2066", "\x7f"])
def test_codes_are_spelled_in_what_is_logged_and_printed(code, capsys):
    record = logging.LogRecord("x", logging.INFO, "", 0, "a %s b", (code,), None)
    assert code not in terminal.Formatter("%(message)s").format(record)
    terminal.show(f"a{code}b")
    printed = capsys.readouterr().out
    assert code not in printed and printed.startswith("a\\")
