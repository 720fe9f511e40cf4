import itertools
import time

import numpy as np
import pytest
from greedy import GreedyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import STRESS

import tokalign
from tokalign.align import _align_apart, align_segmentations
from tokalign.bench import true_pairs
from tokalign.edit import differences
from tokalign.segmentation import Segmentation, spelled_mask, without_whitespace

alphabet = "ab \n▁.½é"
token_lists = st.lists(st.text(alphabet=alphabet, max_size=4), max_size=12)


@st.composite
def two_cuts(draw):
    """One text cut twice, whitespace of one side dropped or doubled."""
    text = draw(st.text(alphabet="ab \n.é", max_size=30))
    sides = []
    for whitespace in (False, draw(st.booleans())):
        spelled = text.replace("\n", " ").replace("  ", " ") if whitespace else text
        places = sorted(draw(st.sets(st.integers(0, len(spelled)), max_size=12)))
        cuts = [0, *places, len(spelled)]
        sides.append([spelled[a:b] for a, b in itertools.pairwise(cuts)])
    return sides


def assert_covers(alignment, teacher, student):
    chunks = alignment.chunks
    for side, tokens in ((0, teacher), (2, student)):
        ends = [0, *chunks[:, side + 1].tolist()]
        assert chunks[:, side].tolist() == ends[:-1]
        assert ends[-1] == len(tokens)
    assert (np.diff(chunks[:, ::2], axis=0) >= 0).all()
    sizes = chunks[:, 1::2] - chunks[:, ::2]
    assert sizes.any(axis=1).all()


@given(token_lists, token_lists, st.sampled_from(["exact", "dp"]))
def test_chunks_cover_every_token_of_both_sides_once(teacher, student, method):
    assert_covers(tokalign.align(teacher, student, method=method), teacher, student)


@given(two_cuts())
def test_chunks_of_one_text_agree_on_bytes_and_pairs_are_the_single_ones(sides):
    teacher, student = sides
    alignment = tokalign.align(teacher, student)
    assert alignment.cost == 0
    pairs = []
    for i0, i1, j0, j1 in alignment.chunks.tolist():
        a, b = "".join(teacher[i0:i1]).encode(), "".join(student[j0:j1]).encode()
        assert without_whitespace(a) == without_whitespace(b)
        if without_whitespace(a) and i1 - i0 == j1 - j0 == 1:
            pairs.append([i0, j0])
    assert alignment.pairs.tolist() == pairs


@given(two_cuts())
def test_chunks_cannot_be_cut_further(sides):
    teacher, student = sides
    spelled = [
        np.cumsum([len(without_whitespace(t.encode())) for t in side]).tolist() for side in sides
    ]
    shared = {0} | (set(spelled[0]) & set(spelled[1]))
    places = {
        spelled[0][i1 - 1] if i1 else 0
        for _, i1, _, _ in tokalign.align(teacher, student).chunks.tolist()
    }
    assert {p for p in shared if p} <= places | {0}


@given(two_cuts())
def test_the_walk_equals_the_edit_path_wherever_both_apply(sides):
    walked, edited = tokalign.align(*sides), _align_apart(*sides)
    np.testing.assert_array_equal(walked.chunks, edited.chunks)
    np.testing.assert_array_equal(walked.pairs, edited.pairs)


@given(st.lists(st.one_of(two_cuts(), st.tuples(token_lists, token_lists)), max_size=6))
def test_a_pair_is_aligned_alike_alone_and_among_others(pairs):
    for pair, found in zip(pairs, tokalign.align_batch(pairs), strict=True):
        alone = tokalign.align(*pair)
        np.testing.assert_array_equal(found.chunks, alone.chunks)
        np.testing.assert_array_equal(found.pairs, alone.pairs)
        assert found.cost == alone.cost


@given(two_cuts())
def test_bytes_and_text_align_alike(sides):
    as_bytes = [[token.encode() for token in side] for side in sides]
    a, b = tokalign.align(*sides), tokalign.align(as_bytes[0], sides[1])
    np.testing.assert_array_equal(a.chunks, b.chunks)


@given(st.text(alphabet="ab\n .1½", max_size=30))
def test_the_same_tokens_on_both_sides_pair_one_to_one(text):
    tokens = GreedyTokenizer(["ab", " a", "1.", "\n\n"]).segment(text).tokens()
    found = tokalign.align(tokens, tokens)
    spelled = [i for i, token in enumerate(tokens) if without_whitespace(token)]
    if not text.isascii():
        return
    assert [i for i, j in found.pairs.tolist() if i == j] == spelled


def test_golden_line_start_and_merged_word():
    found = tokalign.align(
        [" Nat", "alia", ".", "\n", "She", " $", "12"], ["▁Natalia", ".", "▁She", "▁$12"]
    )
    assert found.chunks.tolist() == [
        [0, 2, 0, 1],
        [2, 3, 1, 2],
        [3, 4, 2, 2],
        [4, 5, 2, 3],
        [5, 7, 3, 4],
    ]
    assert found.pairs.tolist() == [[2, 1], [4, 2]]


def test_golden_sides_that_spell_apart():
    found = tokalign.align(
        ["½", " cups", " of", " ﬁne"], ["▁1", "\u2044", "2", "▁cups", "▁of", "▁fine"]
    )
    assert found.pairs.tolist() == [[1, 3], [2, 4], [3, 5]]
    assert found.cost > 0


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_outside_the_differences_both_strings_are_equal(a, b):
    x = y = 0
    for i0, i1, j0, j1 in differences(a, b):
        assert x <= i0 <= i1 and y <= j0 <= j1 and (i1 > i0 or j1 > j0)
        assert a[x:i0] == b[y:j0]
        x, y = i1, j1
    assert a[x:] == b[y:]


@given(st.text("abc", min_size=1, max_size=8), st.integers(0, 8), st.text("xyz", max_size=3))
def test_a_single_insertion_is_the_only_difference(text, place, added):
    place = min(place, len(text))
    changed = text[:place] + added + text[place:]
    regions = differences(text.encode(), changed.encode())
    assert sum(j1 - j0 - (i1 - i0) for i0, i1, j0, j1 in regions) == len(added)


def test_a_long_unlike_stretch_is_passed_at_the_next_anchor():
    end = b"and then both go on together."
    a, b = b"x" * 3000 + end, b"y" * 3500 + end
    regions = differences(a, b)
    assert regions[-1][1] <= len(a) - 16 and a[regions[-1][1] :] == b[regions[-1][3] :]


def test_pairs_of_real_vocabularies_are_the_true_ones(t5, teacher, shared, solutions):
    import json

    data = shared / "datasets"
    texts = [*solutions, *STRESS]
    texts += [p.read_text() for p in sorted((data / "bbh" / "cot-prompts").iterdir())]
    lines = (data / "math500" / "math500.jsonl").read_text().splitlines()
    texts += [json.loads(line)["prompt"] for line in lines[:150]]
    lines = (data / "mbpp" / "mbpp.jsonl").read_text().splitlines()
    texts += [json.loads(line)["code"] for line in lines[:150]]
    for text in texts:
        student = t5.segment(text)
        ends = teacher.segment(text).byte_ends
        found = align_segmentations(ends, student)
        assert_covers(found, ends, student)
        assert {tuple(pair) for pair in found.pairs.tolist()} == true_pairs(ends.tolist(), student)


def test_a_trace_of_8192_tokens_takes_little_longer_than_eight_of_1024(t5, p50k, solutions):
    tokens = p50k.segment("\n".join(solutions)).tokens()[:8192]
    assert len(tokens) == 8192

    def least(size):
        text = b"".join(tokens[:size]).decode(errors="ignore")
        student = [t5.token_bytes(i) or b"<" for i in t5.encode(text)]
        pair = [(tokens[:size], student)]
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            tokalign.align_batch(pair)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert least(8192) < 32 * least(1024)


@given(st.text(alphabet="a ▁\u00a0\u2003\u3000é\n", max_size=20))
def test_blanks_are_the_bytes_that_the_mask_leaves_out(text):
    raw = text.encode()
    mask = spelled_mask(raw)
    assert bytes(b for b, kept in zip(raw, mask, strict=True) if kept) == without_whitespace(raw)


def test_unknown_methods_mixed_tokens_and_bad_segmentations_are_refused():
    with pytest.raises(ValueError, match=r"expected a method of .*'exact', 'dp'.*, got 'fast'"):
        tokalign.align(["a"], ["a"], method="fast")
    with pytest.raises(
        TypeError, match=r"expected str instance, bytes found|expected a bytes-like"
    ):
        tokalign.align(["a", b"b"], ["ab"])
    with pytest.raises(ValueError, match=r"expected as many ids as ends and cuts, got 1, 0 and 1"):
        Segmentation(b"a", np.zeros(1, int), np.zeros(0, int), np.ones(1, bool))
    with pytest.raises(ValueError, match=r"expected byte ends that do not decrease within 0 and 1"):
        Segmentation(b"a", np.zeros(1, int), np.array([2]), np.ones(1, bool))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=8), st.lists(st.text(max_size=6), max_size=8))
def test_any_text_is_aligned_without_a_crash(teacher, student):
    assert_covers(tokalign.align(teacher, student), teacher, student)
