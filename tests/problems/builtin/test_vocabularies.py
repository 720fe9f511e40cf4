"""Laws of the two built-in vocabularies, and that the shipped files are what the recipe makes."""

import base64
import hashlib
import re
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from distill.core import paths
from distill.problems.builtin import vocabularies

FOLDER = paths.shipped("data/vocabularies")
TEACHER, STUDENT = vocabularies.load_teacher(), vocabularies.load_student()
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126))


def pieces(text: str) -> list[str]:
    return [TEACHER.decode_single_token_bytes(i).decode() for i in TEACHER.encode(text)]


@given(st.text())
def test_the_teacher_round_trips_any_text(text: str):
    assert TEACHER.decode(TEACHER.encode(text, disallowed_special=())) == text


@given(printable)
def test_the_student_knows_printable_ascii_and_collapses_blanks(text: str):
    ids = STUDENT.encode(text)
    assert STUDENT.unk_id() not in ids
    assert STUDENT.decode(ids) == " ".join(text.split())


@given(st.text(st.sampled_from("Tom has 48 cups.\n"), max_size=40))
def test_the_teachers_ranks_merge_as_another_implementation_merges(text: str):
    assert [TEACHER.decode_single_token_bytes(i) for i in TEACHER.encode(text)] == [
        bytes(_BYTE_OF[letter] for letter in token) for token in _TWIN.encode(text).tokens
    ]


def _byte_letters() -> dict[int, str]:
    """Return the letters that stand for bytes in Hugging Face's byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _twin() -> tokenizers.Tokenizer:
    """Build the same BPE in the `tokenizers` package: a token's merge is how its parts are cut."""
    ranks = vocabularies.read_ranks((FOLDER / "teacher.tiktoken").read_bytes())
    spelt = {token: "".join(_LETTERS[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = _last_merge(token, {t: r for t, r in ranks.items() if r < rank})
            merges.append((spelt[left], spelt[right]))
    model = tokenizers.models.BPE({spelt[t]: r for t, r in ranks.items()}, merges)
    twin = tokenizers.Tokenizer(model)
    twin.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(vocabularies.TEACHER_PATTERN), behavior="isolated"
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return twin


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts))]
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


_LETTERS = _byte_letters()
_BYTE_OF = {letter: byte for byte, letter in _LETTERS.items()}
_TWIN = _twin()


@pytest.mark.parametrize("number", range(vocabularies.LARGEST_NUMBER + 1))
def test_a_number_is_one_teacher_token_and_one_student_piece_a_digit(number: int):
    assert pieces(str(number)) == [str(number)]
    assert pieces(f" {number}") == [f" {number}"]
    assert STUDENT.encode(str(number), out_type=str) == ["\u2581", *str(number)]


def test_a_text_cut_by_both():
    text = "There are 48 cups.\nThe answer is 48"
    assert pieces(text) == (
        ["There", " are", " 48", " cups", ".", "\n", "The", " answer", " is", " 48"]
    )
    cut = " ".join(STUDENT.encode(text, out_type=str)).replace("\u2581", "_")
    assert cut == "_There _are _ 4 8 _cups . _The _answer _is _ 4 8"


def test_the_teachers_file_is_tiktokens_with_the_bytes_first_and_the_end_last():
    lines = (FOLDER / "teacher.tiktoken").read_text().splitlines()
    tokens = [base64.b64decode(line.split()[0]) for line in lines]
    assert [int(line.split()[1]) for line in lines] == list(range(1279))
    assert sorted(tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert len(set(tokens)) == len(tokens)
    assert TEACHER.eot_token == 1279 == TEACHER.n_vocab - 1
    assert not [token for token in tokens if b"\n" in token and len(token) > 1]


def test_the_student_has_t5s_habits():
    assert (STUDENT.pad_id(), STUDENT.eos_id(), STUDENT.unk_id(), STUDENT.bos_id()) == (0, 1, 2, -1)
    assert STUDENT.vocab_size() == 1000
    assert STUDENT.encode("a  b\n c\td") == STUDENT.encode("a b c d")
    assert STUDENT.encode("\ufb01ve") == STUDENT.encode("five")
    spelt = [STUDENT.id_to_piece(i) for i in range(3, 1000)]
    assert not [piece for piece in spelt if re.search(r"[\n\t]|<0x|\d.|.\d", piece)]
    assert not [i for i in range(1000) if STUDENT.is_byte(i)]


def test_the_shipped_files_have_the_digests_beside_them():
    listed = dict(re.findall(r"\| ([\w.]+) \| (\w{64}) \|", (FOLDER / "README.md").read_text()))
    assert set(listed) == {"teacher.tiktoken", "teacher.json", "student.model"}
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest


def test_training_is_deterministic_and_learns_the_commonest_words(tmp_path):
    sums = [
        vocabularies.run(out_dir=tmp_path / str(i), n=600, teacher_size=700, student_size=500)
        for i in range(2)
    ]
    assert sums[0] == sums[1]
    made = vocabularies.load_teacher(tmp_path / "0/teacher.tiktoken")
    assert made.n_vocab == 701
    assert len(made.encode(" dollars")) == 1
    assert vocabularies.load_student(tmp_path / "1/student.model").vocab_size() == 500


@pytest.mark.slow
def test_the_recipe_makes_the_shipped_files(tmp_path):
    for name, digest in vocabularies.run(out_dir=tmp_path).items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_merges_go_by_frequency_and_ties_to_the_later_pair():
    ranks = vocabularies.train_bpe(["ab ab ab cd cd"], 256 + 232 + 2)
    assert list(ranks)[-2:] == [b"ab", b"cd"]


def test_too_few_merges_are_refused():
    with pytest.raises(ValueError, match="expected texts with 1000 tokens, got 489"):
        vocabularies.train_bpe(["ab"], 1000)
