"""Files of others: whatever lies there, reading ends in the content or in one sentence."""

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core import files, journal, sums
from distill.core.errors import UserError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_json_comes_back_as_it_was_written(value):
    assert files.parse_json(files.json_text(value), "x") == value
    assert files.parse_json(json.dumps(value), "x") == value


@given(st.binary(max_size=60) | st.text('[]{}"\\,:0e1-.nulNaIfty', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_one_sentence(content):
    try:
        files.parse_json(content, "x")
    except UserError as error:
        assert "JSON in x" in str(error)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100 + "1" + "}" * 100, "more than 64 deep"),
        ("[NaN]", "NaN, which is no number"),
        ("1e999", "beyond float64"),
        ("-1e999", "beyond float64"),
        ("9" * 5000, "digits"),
        ('{"a": "\\ud800"}', "surrogates"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_json_with_a_trap_is_refused(text, got):
    with pytest.raises(UserError, match=rf"JSON in x, got .*{got}"):
        files.parse_json(text, "x")


@given(st.lists(st.tuples(st.text("ab", max_size=2), st.integers()), max_size=4), st.booleans())
def test_a_key_that_occurs_twice_is_refused_at_any_depth_where_keys_are_unique(pairs, nested):
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"
    text = f'{{"outer": [{text}]}}' if nested else text
    value = {"outer": [dict(pairs)]} if nested else dict(pairs)
    assert files.parse_json(text, "x") == value
    if len(dict(pairs)) == len(pairs):
        assert files.parse_json(text, "x", unique_keys=True) == value
    else:
        with pytest.raises(UserError, match=r"JSON in x, got the key '.*' twice"):
            files.parse_object(text, "x", unique_keys=True)


def test_a_document_of_a_model_directory_is_an_object_with_unique_keys(tmp_path):
    (tmp_path / "x").write_text('{"a": {"b": 1}}')
    assert files.read_document(tmp_path / "x") == {"a": {"b": 1}}
    (tmp_path / "x").write_text('{"a": {"b": 1, "b": 1}}')
    with pytest.raises(UserError, match=r"JSON in .*x, got the key 'b' twice"):
        files.read_document(tmp_path / "x")
    (tmp_path / "x").write_text("[]")
    with pytest.raises(UserError, match=r"a JSON object in .*x, got list"):
        files.read_document(tmp_path / "x")


def test_brackets_in_strings_are_not_depth():
    assert files.parse_json(json.dumps(["[" * 10_000]), "x") == ["[" * 10_000]


def fifo(path):
    os.mkfifo(path)


def bound(path):
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # addresses of sockets are short
        server.bind(path.name)


KINDS = {
    "FIFO": fifo,
    "directory": lambda path: path.mkdir(),
    "socket": bound,
    "none": lambda path: None,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "x")
    with pytest.raises(UserError, match=r"a file .*x"):
        files.read_bytes(tmp_path / "x", follow=False)
    if kind not in ("none", "directory"):
        with pytest.raises(UserError, match=r"files and directories alone at .*x"):
            files.require_plain(tmp_path)


def test_a_link_is_followed_where_the_user_names_it(tmp_path):
    (tmp_path / "y").write_text("text")
    (tmp_path / "x").symlink_to(tmp_path / "y")
    assert files.read_text(tmp_path / "x") == "text"


def test_a_file_beyond_the_limit_and_one_that_is_no_utf_8_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff" * 11)
    with pytest.raises(UserError, match=r"at most 10 bytes in .*x, got more"):
        files.read_bytes(tmp_path / "x", limit=10)
    with pytest.raises(UserError, match=r"UTF-8 in .*x"):
        files.read_text(tmp_path / "x", limit=11)


def test_a_name_with_a_nul_is_no_file(tmp_path):
    with pytest.raises(UserError, match="a file"):
        files.read_bytes(tmp_path / "x\0y")


# --- Lists and journals ------------------------------------------------------------------------

NAMES = st.text("ab /.é", min_size=1, max_size=8).filter(
    lambda name: not name.startswith("/") and ".." not in name.split("/")
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1))
def test_a_list_comes_back_as_written_and_no_flipped_bit_leaves_it_the_same(tmp_path_factory, all_):
    path = tmp_path_factory.mktemp("sums") / "x.sha256"
    path.write_text(sums.text(all_))
    assert sums.read(path) == all_
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << (len(content) % 8)
    path.write_bytes(content)
    try:
        assert sums.read(path) != all_
    except UserError as error:
        assert "x.sha256" in str(error)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_list_that_leads_out_of_the_run_is_refused(tmp_path, name):
    (tmp_path / "x.sha256").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(UserError, match="a path in each line"):
        sums.read(tmp_path / "x.sha256")


@given(
    st.lists(st.text("ab\n# ", min_size=1, max_size=20).map(lambda text: text + "\n"), max_size=4)
)
@settings(max_examples=30, deadline=None)
def test_a_journal_grows_and_every_prefix_stays(tmp_path_factory, entries):
    path, before = tmp_path_factory.mktemp("journal") / "x", ""
    for entry in entries:
        journal.append(path, entry)
        after = path.read_text()
        assert after.startswith(before) and entry in after[len(before) :]
        before = after
    assert len(journal.seals(before, path)) == len(entries)
    assert list(journal.entries(before)) == entries


@given(st.data())
@settings(deadline=None)
def test_no_bit_of_a_journal_flips_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "x"
    journal.append(path, "first = 1\n")
    journal.append(path, "second = 2\n")
    content = bytearray(path.read_bytes())
    seals = journal.seals(content.decode(), path)
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    try:
        assert journal.seals(content.decode("utf-8"), path) != seals
    except (UserError, UnicodeDecodeError):
        return
