"""Vocabularies of SentencePiece as tokenizers' documents, and tokenizers' documents as those."""

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distill.core.errors import UserError
from distill.models import charsmap, hugging_face_vocabulary, unigram

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "data" / "vocabularies" / "student.model"
T5 = ROOT.parent / "shared" / "tokenizers" / "t5.spiece.model"
LINES = [
    f"Tom has {n} apples and {n % 7} pears, x = {{{n}}} + \\frac{{1}}{{2}}." for n in range(300)
]


def trained(folder, **options):
    content = io.BytesIO()
    basic = dict(vocab_size=300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=content, minloglevel=2, **{**basic, **options}
    )
    path = folder / "spiece.model"
    path.write_bytes(content.getvalue())
    return path


def readers(path, extra_ids=100):
    document = unigram.tokenizer_json(path, extra_ids)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return Tokenizer.from_str(json.dumps(document)), pieces


@pytest.fixture(scope="module")
def student():
    return readers(STUDENT)


characters = st.characters(codec="utf-8") | st.sampled_from(
    [*" \t\n\u3000▁\u0301\u0323\u0328\uff9e\u210c\u017f\u200d", "a", "e", "12", "Tom", "\ufb01"]
)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(characters, max_size=30).map("".join))
def test_any_text_has_sentencepieces_ids(student, text):
    tokenizer, pieces = student
    if not any(token in pieces.normalize(text) for token in ("<pad>", "</s>", "<unk>", "<extra_")):
        assert tokenizer.encode(text).ids == [*pieces.encode(text), 1]


@pytest.mark.parametrize("path", [STUDENT, T5], ids=["student", "t5"])
def test_unusual_texts_have_sentencepieces_ids_but_for_ties(path):
    if not path.exists():
        pytest.skip(f"no {path}")
    tokenizer, pieces = readers(path)
    alphabet = frozenset("abcdefghijklmnopqrstuvwxyz ABC0123456789.,é")
    for text in unigram.unusual_texts(alphabet, 1000 if path == STUDENT else 300):
        got, wanted = tokenizer.encode(text).ids, [*pieces.encode(text), 1]
        assert got == wanted or (path == T5 and sorted(got) == sorted(wanted)), ascii(text)


def test_unusual_texts_are_always_the_same_and_as_many():
    first = list(unigram.unusual_texts(frozenset("ab "), 200))
    assert first == list(unigram.unusual_texts(frozenset("ab "), 200))
    assert len(first) == 200 and "" in first and "a" * 200 in first


OPTIONS = {
    "plain": {},
    "case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "identity": {"normalization_rule_name": "identity"},
    "bytes": {
        "byte_fallback": True,
        "vocab_size": 500,
        "normalization_rule_name": "identity",
    },
    "sentinels": {"user_defined_symbols": [f"▁<extra_id_{n}>" for n in range(5)]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_that_are_written_give_the_same_ids_and_text(tmp_path, options):
    path = trained(tmp_path, **options)
    tokenizer, pieces = readers(path, 0 if "user_defined_symbols" in options else 100)
    random.seed(1)
    for line in ("사과 😀 q", "a  b ", " x", "▁", "Tom ▁", *random.sample(LINES, 20)):
        ids = pieces.encode(line)
        assert tokenizer.encode(line).ids == [*ids, 1]
        if 2 not in ids:
            assert tokenizer.decode(ids) == pieces.decode(ids)


REFUSED = {
    "BPE": ({"model_type": "bpe"}, "a model of BPE"),
    "characters": ({"model_type": "char"}, "a model of characters"),
    "user symbols": ({"user_defined_symbols": ["\n", "{"]}, r"user-defined symbols, such as \['"),
    "kept whitespace": ({"remove_extra_whitespaces": False}, "extra whitespace kept"),
    "no prefix": ({"add_dummy_prefix": False}, "no whitespace before the text"),
    "suffix": ({"treat_whitespace_as_suffix": True}, "whitespace as a suffix"),
    "other ids": ({"pad_id": 3}, "pad 0, EOS 1 and unknown 2, as T5 has"),
    "no pad": ({"pad_id": -1}, "pad 0, EOS 1 and unknown 2"),
    "compositions of bytes": ({"byte_fallback": True, "vocab_size": 500}, "the same ids"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_tokenizers_lacks_are_refused_by_reason(tmp_path, options, message):
    path = trained(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        unigram.tokenizer_json(path)


def test_rules_of_its_own_are_refused(tmp_path):
    (tmp_path / "rules.tsv").write_text("61 70\t7A\n")
    path = trained(tmp_path, normalization_rule_tsv=str(tmp_path / "rules.tsv"))
    with pytest.raises(UserError, match=r"normalisation rules of its own, 'user_defined'"):
        unigram.tokenizer_json(path)


def test_the_map_of_characters_is_read_as_sentencepiece_follows_it():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(STUDENT))
    model = unigram.proto()
    model.ParseFromString(STUDENT.read_bytes())
    of = charsmap.rules(model.normalizer_spec.precompiled_charsmap)
    for source in random.Random(0).sample(sorted(of), 300):
        wanted = of[source].replace(" ", "▁").strip("▁")
        assert pieces.normalize(f"a{source}").removeprefix("▁a").strip("▁") == wanted or (
            f"a{source[0]}" in of
        )


@settings(max_examples=100, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 2**18), st.integers(0, 255)), min_size=1))
def test_a_damaged_map_is_read_or_refused(damage):
    model = unigram.proto()
    model.ParseFromString(STUDENT.read_bytes())
    content = bytearray(model.normalizer_spec.precompiled_charsmap[:4096])
    for place, byte in damage:
        content[place % len(content)] = byte
    with pytest.raises((ValueError, IndexError)):
        charsmap.rules(bytes(content))


# --- tokenizer.json back -----------------------------------------------------------------------


def as_transformers_5(path):
    """The document that transformers 5 writes for a T5: its own steps around the same model."""
    document = unigram.tokenizer_json(path)
    (mapping,) = [
        step for step in document["normalizer"]["normalizers"] if step["type"] == "Precompiled"
    ]
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    }
    steps = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    return {**document, "normalizer": mapping, "pre_tokenizer": steps}


@pytest.fixture(scope="module")
def document():
    return as_transformers_5(STUDENT)


def directory_of(folder, document):
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def test_a_document_becomes_the_model_that_it_came_from(tmp_path, document):
    found = hugging_face_vocabulary.read(directory_of(tmp_path, document))
    ours = sentencepiece.SentencePieceProcessor(model_proto=found.content)
    wanted = sentencepiece.SentencePieceProcessor(model_file=str(STUDENT))
    assert found.extra_ids == 100 and ours.get_piece_size() == wanted.get_piece_size()
    for text in unigram.unusual_texts(frozenset("abcdefgh 0123.é"), 300):
        assert ours.encode(text) == wanted.encode(text)
        assert ours.decode(ours.encode(text)) == wanted.decode(wanted.encode(text))


def edited(document, path, value):
    changed = json.loads(json.dumps(document))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


EDITS = {
    "BPE": (("model", "type"), "BPE", "a model of 'BPE'"),
    "another unknown": (("model", "unk_id"), 0, "a model of"),
    "another pad": (("model", "vocab", 0), ["<p>", 0.0], "first in"),
    "a piece twice": (("model", "vocab", 9), ["▁is", -3.0], "twice"),
    "a piece of numbers": (("model", "vocab", 9), [5, -3.0], "no text"),
    "a score in text": (("model", "vocab", 9), ["x", "y"], "a score of"),
    "no pieces": (("model", "vocab"), [], "first in"),
    "a vocabulary of numbers": (("model", "vocab"), 5, "a Unigram model"),
    "lower case": (("normalizer",), {"type": "Lowercase"}, "the normalizer"),
    "a damaged map": (("normalizer", "precompiled_charsmap"), "ALwC", "the steps of T5's"),
    "no base64": (("normalizer", "precompiled_charsmap"), "?", "the steps of T5's"),
    "digits apart": (("pre_tokenizer", "pretokenizers", 0), {"type": "Digits"}, "Digits"),
    "whitespace kept": (("pre_tokenizer", "pretokenizers", 0), {"type": "Metaspace"}, "Metaspace"),
    "no prefix": (("pre_tokenizer", "pretokenizers", 1, "prepend_scheme"), "never", "Metaspace"),
    "no steps": (("pre_tokenizer",), None, "the steps of T5's"),
    "an added token": (("added_tokens", 5, "content"), "\n", r"the added token '\\n'"),
    "another id": (("added_tokens", 5, "id"), 7, "the added token"),
    "a split piece": (("added_tokens", 5), {"id": 4, "content": "▁is"}, "the added token '▁is'"),
}


@pytest.mark.parametrize(("path", "value", "message"), EDITS.values(), ids=EDITS)
def test_a_document_that_no_sentencepiece_model_equals_is_refused(
    tmp_path, document, path, value, message
):
    with pytest.raises(UserError, match=message):
        hugging_face_vocabulary.read(directory_of(tmp_path, edited(document, path, value)))


SETTINGS = {
    "ByT5": ({"tokenizer_class": "ByT5Tokenizer"}, "'ByT5Tokenizer' in tokenizer_config.json"),
    "no class": ({"tokenizer_class": [1]}, "in tokenizer_config.json"),
    "another EOS": ({"eos_token": "<|end|>"}, "eos_token '</s>'"),
    "10^9 sentinels": ({"extra_ids": 10**9}, "extra_ids of at most 100"),
    "an added token": ({"added_tokens_decoder": {"1100": {"content": "\n"}}}, "the id 1100"),
    "damaged tokens": ({"added_tokens_decoder": {"x": 5}}, "added tokens in"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_a_tokenizer_that_is_not_t5s_is_refused_by_name(tmp_path, settings, message):
    (tmp_path / "spiece.model").write_bytes(STUDENT.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        hugging_face_vocabulary.read(tmp_path)


def test_added_tokens_and_foreign_pieces_beside_a_model_are_refused(tmp_path, document):
    (tmp_path / "spiece.model").write_bytes(STUDENT.read_bytes())
    sentinel = {"<extra_id_0>": 1099}
    (tmp_path / "added_tokens.json").write_text(json.dumps(sentinel))
    assert hugging_face_vocabulary.read(tmp_path).extra_ids == 100
    (tmp_path / "added_tokens.json").write_text(json.dumps({**sentinel, "{": 1100}))
    with pytest.raises(UserError, match=r"the added token '{' with the id 1100"):
        hugging_face_vocabulary.read(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    directory_of(tmp_path, edited(document, ("model", "vocab", 9, 1), -30.0))
    with pytest.raises(UserError, match=r"the same pieces in spiece.model and tokenizer.json"):
        hugging_face_vocabulary.read(tmp_path)
