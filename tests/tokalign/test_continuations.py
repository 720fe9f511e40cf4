"""Continuations: a candidate is read as if the teacher had written it with what follows it."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from closeness import assert_close, near
from greedy import GreedyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import tokalign
from tokalign import Continuations, TeacherToken, TeacherTrace
from tokalign.quality import quality
from tokalign.simulate import KnownTeacher, NgramTeacher, word_problems

WORDS = ["ab", "abc", " a", " ab", " b", "bc", " 12", "12", "120", "ca", " $"]
STUDENT = GreedyTokenizer(["a", " abc", "ba", " ", "1", "20", "cab", " bca", " $12", " $1"])


@st.composite
def runs(draw):
    """Some traces of one teacher, with candidates of its own vocabulary."""
    tokenizer = GreedyTokenizer(WORDS)
    traces = []
    for text in draw(st.lists(st.text(alphabet="abc 120$", max_size=12), min_size=1, max_size=4)):
        tokens = []
        for token in tokenizer.segment(text).tokens():
            others = draw(st.lists(st.sampled_from([w.encode() for w in WORDS]), max_size=3))
            pool = list(dict.fromkeys([token, *others]))
            nats = {c: math.log(draw(st.floats(0.05, 1)) / len(pool)) for c in pool}
            tokens.append(TeacherToken(token, nats[token], tuple(nats.items())))
        traces.append(TeacherTrace.from_tokens(tokens, end_logprob=-0.5))
    return traces


def reported(trace, after):
    """Write each candidate that was not taken with each of its successors, as one candidate."""
    own = [b"", *trace.tokens]
    tops, nats, ends = [], [], []
    for t, token in enumerate(trace.tokens):
        first = int(trace.top_ends[t - 1]) if t else 0
        for n in range(first, int(trace.top_ends[t])):
            string, mass = trace.top_tokens[n], math.exp(trace.top_logprobs[n])
            successors = after.get((own[t], string)) or after.get((None, string)) or ((b"", 1.0),)
            for successor, share in successors if string != token else ((b"", 1.0),):
                tops.append(string + successor)
                nats.append(math.log(mass * share))
        ends.append(len(tops))
    nats, ends = np.array(nats), np.array(ends, np.int64)
    return dataclasses.replace(trace, top_tokens=tuple(tops), top_logprobs=nats, top_ends=ends)


@settings(deadline=None)
@given(runs())
def test_it_is_as_if_the_teacher_had_told_the_successors(traces):
    fitted = Continuations.fit(traces, STUDENT)
    found = list(tokalign.project_batch(traces, STUDENT, continuations=fitted))
    for trace, projection in zip(traces, found, strict=True):
        expected = tokalign.project(reported(trace, fitted.after), STUDENT)
        for t in range(len(projection.ids)):
            rows = [
                dict(zip(p.top_ids[t].tolist(), p.top_probs[t].tolist(), strict=True))
                for p in (projection, expected)
            ]
            for token in {i for row in rows for i, p in row.items() if p > 0}:
                assert rows[0].get(token, 0) == near(
                    rows[1].get(token, 0), dtype="float32", scale=1
                )


@settings(deadline=None)
@given(runs())
def test_every_mass_is_accounted_for_and_the_places_stay(traces):
    fitted = Continuations.fit(traces, STUDENT)
    plain = tokalign.project_batch(traces, STUDENT)
    for without, found in zip(
        plain, tokalign.project_batch(traces, STUDENT, continuations=fitted), strict=True
    ):
        assert found.ids.tolist() == without.ids.tolist()
        assert found.kind.tolist() == without.kind.tolist()
        total = found.top_probs.sum(axis=1, dtype=np.float64) + found.lost.sum(axis=1)
        assert_close(total, np.ones(len(total)), terms=4)


@settings(deadline=None)
@given(runs())
def test_shares_sum_to_one_and_fall(traces):
    for successors in Continuations.fit(traces, STUDENT, width=3).after.values():
        shares = [share for _, share in successors]
        assert sum(shares) == near(1, terms=6)
        assert len(shares) <= 3 and shares == sorted(shares, reverse=True)


@settings(deadline=None, max_examples=25)
@given(runs())
def test_a_trace_is_projected_as_if_alone(traces):
    fitted = Continuations.fit(traces, STUDENT)
    for trace, found in zip(
        traces, tokalign.project_batch(traces, STUDENT, continuations=fitted), strict=True
    ):
        alone = tokalign.project(trace, STUDENT, continuations=pickle.loads(pickle.dumps(fitted)))
        assert found.top_ids.tolist() == alone.top_ids.tolist()
        assert found.top_probs.tolist() == alone.top_probs.tolist()


def test_nothing_fitted_changes_nothing():
    trace = [TeacherToken(b" $", -0.1, ((b" $", -0.1), (b" 12", -3.0)))]
    for continuations in (Continuations({}), Continuations.fit([], STUDENT)):
        found = tokalign.project(trace, STUDENT, continuations=continuations)
        assert found.top_probs.tolist() == tokalign.project(trace, STUDENT).top_probs.tolist()


def test_a_sign_is_read_with_the_figures_that_follow_it_elsewhere():
    """` $` was followed by 12 and by 10 in equal shares, which the student cuts ` $12`, ` $1`."""
    half = math.log(0.5)
    taken = [
        TeacherToken(b"a", 0.0),
        TeacherToken(b" $", half, ((b" $", half), (b" b", half))),
        TeacherToken(b"12", half, ((b"12", half), (b"10", half))),
    ]
    other = [TeacherToken(b"a", 0.0), TeacherToken(b" b", half, ((b" b", half), (b" $", half)))]
    fitted = Continuations.fit([taken, other], STUDENT)
    assert fitted.after[b"a", b" $"] == ((b"10", 0.5), (b"12", 0.5))
    found = tokalign.project(other, STUDENT, continuations=fitted)
    masses = {
        STUDENT.token_bytes(i): p
        for i, p in zip(found.top_ids[1].tolist(), found.top_probs[1].tolist(), strict=True)
    }
    assert masses[b" $12"] == masses[b" $1"] == near(0.25, dtype="float32")


def test_with_continuations_no_kind_is_more_than_half_as_far_off_as_the_paper(t5, teacher):
    found = quality(KnownTeacher(word_problems(), teacher), t5, texts=120)
    paper, marginal = found["paper"], found["marginal, with continuations"]
    for kind in ("MERGED", "SPLIT", "INSIDE"):
        assert marginal[kind].mean <= paper[kind].mean / 2
    assert marginal["ONE_TO_ONE"].mean <= paper["ONE_TO_ONE"].mean
    assert marginal["ALL"].mean <= found["marginal"]["ALL"].mean


def test_processes_give_what_one_gives(t5, p50k, solutions):
    simulated = NgramTeacher(solutions[:60], p50k)
    traces = [simulated.trace(text) for text in solutions[:60]]
    fitted = Continuations.fit(traces, t5)
    rows = [
        [p.top_probs.tolist() for p in tokalign.project_batch(traces, t5, **options)]
        for options in (
            {"continuations": fitted},
            {"continuations": fitted, "processes": 2},
        )
    ]
    assert rows[0] == rows[1]


def test_refusals():
    with pytest.raises(ValueError, match=r"expected a width of at least 1, got 0"):
        Continuations.fit([], STUDENT, width=0)
    with pytest.raises(ValueError, match=r"expected continuations with the rule marginal alone"):
        tokalign.project([], STUDENT, rule="paper", continuations=Continuations({}))
