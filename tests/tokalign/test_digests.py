import io
import struct

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tokalign import HuggingFaceTokenizer, SentencePieceTokenizer, TiktokenTokenizer, digests

# Messages that say one thing more, which a serialised model takes at its end.
NO_PREFIX, PREFIX = b"\x1a\x02\x18\x00", b"\x1a\x02\x18\x01"
BYTE_FALLBACK, NO_BYTE_FALLBACK = b"\x12\x03\x98\x02\x01", b"\x12\x03\x98\x02\x00"
BPE, TRAINED_ON = b"\x12\x02\x18\x02", b"\x12\x04\x0a\x02me"
KEEPS_BLANKS, CHARSMAP = b"\x1a\x02\x20\x00", b"\x1a\x03\x12\x01x"


def message(number, value):
    return bytes([number << 3 | 2, len(value)]) + value


def piece(text, score=-1.0, kind=None):
    tail = b"" if kind is None else bytes([0x18, kind])
    return message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + tail


def model(*pieces):
    return b"".join(message(1, each) for each in pieces)


PLAIN = [piece("<unk>", 0.0, 2), piece("a"), piece("b", -2.0), piece("ab", -3.0)]


@given(st.permutations(range(4)), st.sampled_from(["", "elsewhere"]))
def test_a_digest_says_which_piece_has_which_id(order, _):
    same = order == [0, 1, 2, 3]
    moved = digests.of_sentencepiece(model(*(PLAIN[n] for n in order)))
    assert (moved == digests.of_sentencepiece(model(*PLAIN))) == same


@pytest.mark.parametrize("tail", [PREFIX, NO_BYTE_FALLBACK, TRAINED_ON, b""])
def test_what_changes_no_encoding_changes_no_digest(tail):
    assert digests.of_sentencepiece(model(*PLAIN) + tail) == digests.of_sentencepiece(model(*PLAIN))
    explicit = [PLAIN[0], piece("a", kind=1), *PLAIN[2:]]
    assert digests.of_sentencepiece(model(*explicit)) == digests.of_sentencepiece(model(*PLAIN))


@pytest.mark.parametrize(
    "changed",
    [
        *(model(*PLAIN) + tail for tail in (NO_PREFIX, BYTE_FALLBACK, BPE, KEEPS_BLANKS, CHARSMAP)),
        model(*PLAIN[:2], piece("b", -2.5), PLAIN[3]),
        model(*PLAIN[:2], piece("c", -2.0), PLAIN[3]),
        model(*PLAIN[:2], piece("b", -2.0, 4), PLAIN[3]),
        model(*PLAIN, piece("more")),
    ],
)
def test_what_changes_encoding_changes_the_digest(changed):
    assert digests.of_sentencepiece(changed) != digests.of_sentencepiece(model(*PLAIN))


@given(st.integers(0, len(model(*PLAIN)) - 1))
def test_a_model_cut_short_is_refused_or_another(size):
    try:
        found = digests.of_sentencepiece(model(*PLAIN)[:size])
    except ValueError:
        return
    assert found != digests.of_sentencepiece(model(*PLAIN))


@given(st.binary(max_size=40))
def test_no_bytes_end_in_anything_but_a_digest_or_a_refusal(content):
    try:
        assert len(digests.of_sentencepiece(content)) == 64
    except ValueError as error:
        assert "expected" in str(error)


def trained(seed):
    words = [f"w{chr(97 + (seed * n) % 26)}{n}" for n in range(200)]
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([" ".join(words)] * 3),
        model_writer=content,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return content.getvalue()


def test_a_tokenizer_has_the_digest_of_its_content_wherever_it_lies(tmp_path):
    one, other = trained(1), trained(5)
    for name, content in (("one", one), ("copy", one), ("other", other)):
        (tmp_path / name).write_bytes(content)
    of = {p.name: SentencePieceTokenizer(p).digest for p in tmp_path.iterdir()}
    assert of["one"] == of["copy"] == digests.of_sentencepiece(one) != of["other"]
    assert SentencePieceTokenizer(tmp_path / "one", 100).digest == of["one"]
    (tmp_path / "one").write_bytes(other)
    assert SentencePieceTokenizer(tmp_path / "one").digest == of["other"]
    assert digests.pieces(one)[0] == "<unk>"


def test_byte_level_vocabularies_have_digests_of_ranks_pattern_and_specials(tmp_path):
    path = tmp_path / "v.tiktoken"
    path.write_text("YQ== 0\nYg== 1\n")
    plain = TiktokenTokenizer(path).digest
    assert TiktokenTokenizer(path, pattern=".").digest != plain
    assert TiktokenTokenizer(path, special_tokens={"<|endoftext|>": 7}).digest != plain
    path.write_text("YQ== 1\nYg== 0\n")
    assert TiktokenTokenizer(path).digest != plain


def test_a_tokenizer_json_has_the_digest_of_its_vocabulary(tmp_path):
    import tokenizers

    def of(vocab, padding=None):
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0, False))
        made.add_special_tokens(["</s>"])
        if padding:
            made.enable_padding(length=padding)
        return HuggingFaceTokenizer(made).digest

    vocab = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0)]
    assert of(vocab) == of(vocab, padding=8)
    assert of(vocab) != of([vocab[0], vocab[2], vocab[1]])
