import pickle

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import STRESS
from tokenizers import decoders, models, normalizers, pre_tokenizers

import tokalign
from tokalign.segmentation import without_whitespace
from tokalign.tokenizers import byte_alphabet, piece_bytes, segment_bytes


def byte_level():
    words = ["Ġshe", "Ġ", *sorted(byte_alphabet()), "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("Ġ", "s")] if "Ġs" in words else []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def metaspace():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("▁", -2.0), ("▁she", -1.0)]
    pieces += [(c, -3.0) for c in "abcdefghs12."]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.add_special_tokens(["</s>", "<pad>", "<unk>"])
    return made


@pytest.fixture(scope="session", params=["t5", "p50k", "byte-level", "metaspace", "ranks"])
def tokenizer(request, tmp_path_factory):
    if request.param in ("t5", "p50k"):
        return request.getfixturevalue(request.param)
    if request.param == "ranks":
        import base64

        path = tmp_path_factory.mktemp("ranks") / "own.tiktoken"
        tokens = [bytes([b]) for b in range(256)] + [b" s", b" sh", b" she", b"12", b"120"]
        lines = [f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(tokens)]
        path.write_text("\n".join(lines))
        return tokalign.TiktokenTokenizer(path)
    made = byte_level() if request.param == "byte-level" else metaspace()
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    made.save(str(path))
    return tokalign.HuggingFaceTokenizer(path)


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(alphabet="she 12.\n½ﬁ🎉abc", max_size=25), st.sampled_from(STRESS)))
def test_every_vocabulary_obeys_the_laws(tokenizer, text):
    found = tokenizer.segment(text)
    ids = found.ids.tolist()
    assert found.text == text.encode()
    assert ids == tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eos_id not in ids
    # All that is not whitespace is covered, once.
    covered = b"".join(found.tokens())
    assert found.text.startswith(covered)
    assert without_whitespace(found.text[len(covered) :]) == b""
    for token_id, token, cut in zip(ids, found.tokens(), found.cuts, strict=True):
        spelled = tokenizer.token_bytes(token_id)
        plain = text.isascii() and text.replace("\n", "").isprintable()
        if plain and spelled and token_id != tokenizer.unk_id:
            assert without_whitespace(spelled) == without_whitespace(token)
            assert cut or not without_whitespace(spelled)


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="she 12.", max_size=25))
def test_decoding_gives_the_text_back_but_for_blanks(tokenizer, text):
    decoded = tokenizer.decode(tokenizer.encode(text))
    if tokenizer.unk_id is None:
        assert decoded == text
    else:
        assert decoded.split() == text.split()


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="she 12.", min_size=1, max_size=12))
def test_spelling_from_the_start_is_encoding(tokenizer, text):
    assert list(tokenizer.spell(text.encode(), start=True)) == tokenizer.encode(text)


def test_what_goes_on_within_a_word_gets_no_word_mark(tokenizer):
    bytes_of = [tokenizer.token_bytes(i) for i in tokenizer.spell(b"she")]
    assert b"".join(bytes_of) == b"she"
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.spell(b" she")) == b" she"


def test_vocabularies_travel_and_compare_by_source(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer and hash(again) == hash(tokenizer)
    assert repr(again) == repr(tokenizer)
    assert again.encode("she had 12") == tokenizer.encode("she had 12")
    assert tokenizer != tokalign.HuggingFaceTokenizer(byte_level())


def test_specials_are_dropped_and_other_ids_refused(tokenizer):
    ids = tokenizer.encode("she")
    assert tokenizer.decode([*ids, tokenizer.eos_id]).strip() == "she"
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"expected an id from 0 to .*, got {bad}"):
            tokenizer.decode([bad])
        with pytest.raises(ValueError, match=f"expected an id from 0 to .*, got {bad}"):
            tokenizer.token_bytes(bad)


def test_text_that_is_none_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"got half a surrogate pair at character 1"):
        tokenizer.encode("a\ud83c")


def test_t5_facts(t5):
    assert (t5.vocab_size, t5.pad_id, t5.eos_id, t5.unk_id) == (32000, 0, 1, 2)
    with_sentinels = tokalign.SentencePieceTokenizer(t5._source[0], extra_ids=100)
    assert with_sentinels.vocab_size == 32100 and with_sentinels != t5
    assert with_sentinels.token_bytes(32099) == b"" and with_sentinels.decode([451, 32099]) == "She"


def test_t5_byte_ends_are_those_of_sentencepiece(t5, solutions):
    for text in [*solutions, *STRESS]:
        fast, slow = t5.segment(text), t5._segment_any(text.encode())
        np.testing.assert_array_equal(fast.ids, slow.ids)
        np.testing.assert_array_equal(fast.byte_ends, slow.byte_ends)
        np.testing.assert_array_equal(fast.cuts, slow.cuts)


def test_golden_t5_normaliser(t5):
    found = t5.segment("She  had\n½ ﬁne{}")
    assert found.tokens() == [b"She", b"  had", b"\n", b"", "½".encode(), " ﬁne".encode(), b"{}"]
    assert found.cuts.tolist() == [True, True, False, False, True, True, True]


def test_bytes_cut_within_a_character_keep_their_places(t5):
    for raw in (b"a \xf0\x9f", b"\xff\xfe", b"a\xc2 b", "né".encode()[:-1]):
        found = segment_bytes(t5, [raw])[0]
        assert found.text == raw
        assert (np.diff(found.byte_ends, prepend=0) >= 0).all()


def test_hugging_face_pieces():
    assert piece_bytes("Ċ", byte_level=True) == b"\n"
    assert piece_bytes("Ã©", byte_level=True) == "é".encode()
    assert piece_bytes("▁she", byte_level=False) == b" she"
    assert piece_bytes("<0xF0>", byte_level=False) == b"\xf0"


def test_unknown_vocabularies_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a SentencePiece model, got no file at"):
        tokalign.SentencePieceTokenizer(tmp_path / "none.model")
    with pytest.raises(FileNotFoundError, match=r"expected an encoding of .*'p50k_base'"):
        tokalign.TiktokenTokenizer("p99k_base")
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer.json, got no file at"):
        tokalign.HuggingFaceTokenizer(tmp_path / "none.json")
    bad = tmp_path / "bad"
    bad.write_text("not a vocabulary")
    with pytest.raises(ValueError, match=r"expected a SentencePiece model, got .*bad"):
        tokalign.SentencePieceTokenizer(bad)
    with pytest.raises(ValueError, match=r"expected a base64 token and a rank, got .* in line 1"):
        tokalign.TiktokenTokenizer(bad)
    with pytest.raises(ValueError, match=r"expected a Hugging Face tokenizer"):
        tokalign.HuggingFaceTokenizer(bad)
    bad.write_text("")
    with pytest.raises(ValueError, match=r"got an empty file"):
        tokalign.TiktokenTokenizer(bad)
    with pytest.raises(ValueError, match=r"expected an end-of-sequence token"):
        tokalign.HuggingFaceTokenizer(tokenizers.Tokenizer(models.BPE({"a": 0}, [])))
