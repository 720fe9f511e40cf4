import math

import pytest
from closeness import near
from greedy import GreedyTokenizer

import tokalign
from tokalign.quality import quality, total_variation
from tokalign.simulate import KnownTeacher, NgramTeacher, next_masses, word_problems


def test_total_variation_by_hand():
    assert total_variation({1: 1.0}, {1: 1.0}) == 0
    assert total_variation({1: 1.0}, {}) == 1
    assert total_variation({1: 0.5, 2: 0.5}, {1: 0.5, 3: 0.5}) == 0.5


def test_a_known_teacher_says_what_its_texts_weigh():
    words = GreedyTokenizer(["ab", " c", " d"])
    teacher = KnownTeacher({"ab c": 3.0, "ab d": 1.0}, words)
    trace = teacher.trace("ab d", k=1)
    assert trace.tokens == (b"ab", b" d") and trace.top_tokens == (b"ab", b" c")
    assert trace.logprobs.tolist() == near([0, math.log(0.25)], terms=4)
    assert trace.end_logprob == 0
    assert next_masses({(1, 2): 0.5, (1, 3): 0.5})[(1,)] == {2: 0.5, 3: 0.5}
    with pytest.raises(ValueError, match=r"expected texts of positive probability"):
        KnownTeacher({}, words)


def test_without_truncation_and_ambiguity_the_marginal_is_exact():
    """Words part where the student's do, so looking one token ahead is all there is to know."""
    teacher = KnownTeacher(
        {"ab c": 3.0, "ab d": 1.0, "b c": 2.0}, GreedyTokenizer(["ab", " c", " d"])
    )
    student = GreedyTokenizer([" c", " d", "a", "b"])
    found = quality(teacher, student, texts=40)
    assert found["marginal"]["ALL"].mean == near(0, terms=4, dtype="float32", scale=1)
    assert found["paper"]["ALL"].mean > 0.05


def test_the_marginal_is_at_most_half_as_far_off_as_the_paper(t5, p50k):
    found = quality(KnownTeacher(word_problems(), p50k), t5, texts=120)
    paper, marginal = found["paper"], found["marginal"]
    for kind in ("MERGED", "SPLIT", "INSIDE"):
        assert marginal[kind].mean <= paper[kind].mean / 2
    assert marginal["ONE_TO_ONE"].mean <= paper["ONE_TO_ONE"].mean
    assert marginal["ALL"].mean <= found["marginal, whitespace not crossed"]["ALL"].mean


def test_ngram_traces_spell_their_text(p50k, solutions):
    teacher = NgramTeacher(solutions[:20], p50k, k=3)
    for text in solutions[:20]:
        trace = teacher.trace(text)
        assert trace.text.decode() == text
        assert trace.top_ends.tolist() == [3 * (n + 1) for n in range(len(trace.tokens))]


def test_bigger_k_leaves_less_beyond(t5, p50k):
    teacher = KnownTeacher(word_problems(), p50k)
    text = next(iter(teacher.texts))
    lost = [tokalign.project(teacher.trace(text, k=k), t5).lost[:, 0].sum() for k in (1, 2, 5)]
    assert lost[0] >= lost[1] >= lost[2]
