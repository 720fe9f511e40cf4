import functools
import math
import pickle
import re
import types

import numpy as np
import pytest
from closeness import assert_close, gap, near
from greedy import GreedyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveProjection
from texts import STRESS

import tokalign
from tokalign import Kind, TeacherToken, TeacherTrace
from tokalign.report import coverage
from tokalign.simulate import NgramTeacher

WORDS = ["ab", "abc", " a", " ab", " b", "bc", "\n", "\n\n", " 12", "12", "120", "ca"]
OTHER = ["a", " abc", "ba", " ", "1", "20", "\na", "cab", " bca"]
texts = st.text(alphabet="abc 120\n", max_size=24)
SHARES = 4  # roundings of a row's sum: of its shares, each in proportion, and of the two losses
# Masses are computed in float64 and kept in float32.
stored = functools.partial(near, dtype="float32", scale=1)


@st.composite
def teacher_traces(draw, words=WORDS, alphabet="abc 120\n"):
    tokenizer = GreedyTokenizer(words)
    text = draw(st.text(alphabet=alphabet, max_size=20))
    choices = st.sampled_from([*(w.encode() for w in words), b"a", b" ", b"", b"\xf0\x9f", b"\xff"])
    tokens = []
    for token in tokenizer.segment(text).tokens():
        others = draw(st.lists(choices, max_size=4, unique=True))
        pool = list(dict.fromkeys([token, *others]))
        weights = [draw(st.floats(0.01, 1)) for _ in pool]
        total = sum(weights) * draw(st.sampled_from([1.0, 1.2]))
        nats = {c: math.log(w / total) for c, w in zip(pool, weights, strict=True)}
        top = tuple(nats.items()) if draw(st.booleans()) else tuple(nats.items())[1:]
        tokens.append(TeacherToken(token, nats[token], top))
    end = draw(st.sampled_from([float("nan"), -0.2, 0.0]))
    return TeacherTrace.from_tokens(tokens, end_logprob=end)


def dense(projection, t):
    pairs = zip(projection.top_ids[t].tolist(), projection.top_probs[t].tolist(), strict=True)
    return {i: p for i, p in pairs if p > 0}


def assert_sums_to_one(projection):
    total = projection.top_probs.sum(axis=1, dtype=np.float64) + projection.lost.sum(axis=1)
    assert_close(total, np.ones(len(total)), terms=SHARES)


def assert_same_as_naive(traces, student, **options):
    cross = options.get("cross_whitespace", True)
    found = tokalign.project_batch(traces, student, **options)
    for trace, projection in zip(traces, found, strict=True):
        naive = NaiveProjection(trace, student, cross_whitespace=cross)
        assert projection.ids.tolist() == naive.ids
        for t in range(len(naive.ids)):
            row = getattr(naive, options.get("rule", "marginal"))(t)
            probs = dense(projection, t)
            for token in probs.keys() | row["probs"].keys():
                assert probs.get(token, 0) == stored(row["probs"].get(token, 0))
            lost = [row["beyond"], row["unspelled"]]
            assert projection.lost[t].tolist() == stored(lost)
            assert (projection.kind[t] == Kind.ONE_HOT) == row["one_hot"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(teacher_traces(), max_size=3),
    st.sampled_from(["marginal", "paper"]),
    st.booleans(),
)
def test_batch_equals_the_rule_read_position_by_position(traces, rule, cross):
    assert_same_as_naive(traces, GreedyTokenizer(OTHER), rule=rule, cross_whitespace=cross)


@settings(max_examples=60, deadline=None)
@given(teacher_traces(alphabet="abc 120\n½🎉."))
def test_t5_batch_equals_the_rule_read_position_by_position(t5, trace):
    for rule in ("marginal", "paper"):
        assert_same_as_naive([trace], t5, rule=rule)


@pytest.mark.parametrize("rule", ["marginal", "paper"])
@pytest.mark.parametrize("cross", [True, False])
def test_solutions_equal_the_rule_read_position_by_position(t5, teacher, solutions, rule, cross):
    texts = [*solutions[:25], *STRESS]
    simulated = NgramTeacher(texts, teacher)
    traces = [simulated.trace(text) for text in texts]
    assert_same_as_naive(traces, t5, rule=rule, cross_whitespace=cross)


@settings(max_examples=80, deadline=None)
@given(
    teacher_traces(),
    st.sampled_from(["marginal", "paper"]),
    st.booleans(),
    st.sampled_from([None, 1, 3]),
)
def test_candidates_and_lost_mass_sum_to_one(trace, rule, cross, k):
    found = tokalign.project(
        trace, GreedyTokenizer(OTHER), rule=rule, cross_whitespace=cross, k=k, rest="other"
    )
    total = found.top_probs.sum(axis=1, dtype=np.float64)
    assert (total <= 1 + gap(SHARES)).all() and (found.lost >= 0).all()
    assert_close(total + found.lost.sum(axis=1), np.ones(len(total)), terms=SHARES)
    assert_close(total + found.other_probs, np.ones(len(total)), terms=SHARES)


@settings(max_examples=50, deadline=None)
@given(teacher_traces(), st.sampled_from(["marginal", "paper"]))
def test_renormalised_rows_sum_to_one(trace, rule):
    found = tokalign.project(trace, GreedyTokenizer(OTHER), rule=rule, rest="renormalise")
    total = found.top_probs.sum(axis=1, dtype=np.float64)
    assert_close(total, np.ones(len(total)), terms=SHARES)


@settings(max_examples=60, deadline=None)
@given(teacher_traces())
def test_every_student_token_gets_a_row_and_its_bytes(trace):
    student = GreedyTokenizer(OTHER)
    found = tokalign.project(trace, student)
    assert found.ids.tolist() == [*student.spell(trace.text), student.eos_id]
    assert found.byte_ends[-1] == len(trace.text)
    assert len(found.kind) == len(found.lost) == len(found.top_ids) == len(found.ids)
    assert found.ids.dtype == found.top_ids.dtype == np.int32
    assert found.top_probs.dtype == found.lost.dtype == np.float32
    assert found.kind.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(texts)
def test_the_same_vocabulary_on_both_sides_is_the_identity(text):
    tokenizer = GreedyTokenizer(WORDS)
    tokens = [
        # What the words of the vocabulary continue is no other token of it.
        TeacherToken(token, math.log(0.5), ((token, math.log(0.5)), (b"Z", math.log(0.25))))
        for token in tokenizer.segment(text).tokens()
    ]
    found = tokalign.project(TeacherTrace.from_tokens(tokens, end_logprob=0.0), tokenizer)
    assert found.ids.tolist() == [*tokenizer.spell(text.encode()), 0]
    assert (found.kind == Kind.ONE_TO_ONE).all()
    other = tokenizer.spell(b"Z")[0]
    for t in range(len(tokens)):
        assert dense(found, t) == stored({int(found.ids[t]): 0.5, other: 0.25})
        assert found.lost[t].tolist() == stored([0.25, 0])


@settings(max_examples=40, deadline=None)
@given(st.lists(teacher_traces(), min_size=2, max_size=4))
def test_a_trace_is_projected_alike_alone_and_among_others(traces):
    student = GreedyTokenizer(OTHER)
    together = list(tokalign.project_batch(traces, student, k=6))
    for trace, found in zip(traces, together, strict=True):
        alone = tokalign.project(trace, student, k=6)
        np.testing.assert_array_equal(found.kind, alone.kind)
        assert_close(found.top_probs, alone.top_probs, terms=1)
        assert_close(found.lost, alone.lost, terms=1)


def trace_of(*tokens, end=float("nan")):
    """Tokens as (text, {candidate: probability})."""
    return TeacherTrace.from_tokens(
        [
            TeacherToken(
                text.encode(),
                math.log(top.get(text, 0.01)),
                tuple((c.encode(), math.log(p)) for c, p in top.items()),
            )
            for text, top in tokens
        ],
        end_logprob=end,
    )


def named(student, projection, t):
    return {student._model.id_to_piece(i): p for i, p in dense(projection, t).items()}


def test_golden_merged_position_multiplies_along_the_realised_path(t5):
    trace = trace_of(
        ("She", {"She": 1.0}), (" $", {" $": 0.5, " the": 0.25}), ("12", {"12": 0.5, "48": 0.5})
    )
    found = tokalign.project(trace, t5)
    assert [Kind(k).name for k in found.kind] == ["ONE_TO_ONE", "MERGED", "ONE_HOT"]
    expected = {"▁$12": 0.25, "▁$48": 0.0, "▁the": 0.25, "▁$": 0.25}
    got = named(t5, found, 1)
    assert got.pop("▁$12") == stored(expected["▁$12"])
    assert got.pop("▁the") == stored(0.25)
    assert sum(got.values()) == stored(0.25)
    assert found.lost[1].tolist() == stored([0.25, 0])


def test_golden_mass_passes_over_a_newline_that_the_student_drops(t5):
    trace = trace_of(
        (".", {".": 1.0}),
        ("\n", {"\n": 0.5, " She": 0.25, " He": 0.25}),
        ("She", {"She": 0.5, "He": 0.5}),
    )
    found = tokalign.project(trace, t5)
    assert [t5._model.id_to_piece(int(i)) for i in found.ids] == ["▁", ".", "▁She", "</s>"]
    assert named(t5, found, 2) == stored({"▁She": 0.5, "▁He": 0.5})
    uncrossed = tokalign.project(trace, t5, cross_whitespace=False)
    assert uncrossed.kind[2] == Kind.ONE_HOT
    paper = tokalign.project(trace, t5, rule="paper")
    assert named(t5, paper, 2) == stored({"▁She": 0.5, "▁He": 0.5})


def test_golden_inside_position_keeps_the_candidates_that_agree(t5):
    trace = trace_of(("is", {"is": 1.0}), (" 124", {" 124": 0.5, " 127": 0.25, " the": 0.25}))
    found = tokalign.project(trace, t5)
    assert [t5._model.id_to_piece(int(i)) for i in found.ids] == ["▁is", "▁", "124", "</s>"]
    assert [Kind(k).name for k in found.kind[1:3]] == ["SPLIT", "ONE_TO_ONE"]  # whitespace aside
    assert named(t5, found, 1) == stored({"▁": 0.75, "▁the": 0.25})
    assert named(t5, found, 2) == stored({"124": 2 / 3, "127": 1 / 3})


def test_golden_losses_are_told_apart(t5):
    trace = trace_of(("He", {"He": 1.0}), (" has", {" has": 0.5, " {}": 0.25, "½": 0.125}))
    found = tokalign.project(trace, t5)
    got = named(t5, found, 1)
    assert got.pop("▁has") == stored(0.5)
    assert found.lost[1][0] == stored(0.125)
    assert sum(got.values()) + found.lost[1][1] == near(0.375, terms=SHARES, dtype="float32")


def test_the_end_takes_the_mass_that_is_told_of_it(t5):
    found = tokalign.project(trace_of(("yes", {"yes": 1.0}), end=math.log(0.75)), t5)
    assert dense(found, 1) == stored({t5.eos_id: 0.75})
    assert found.lost[1].tolist() == stored([0.25, 0])
    early = tokalign.project(trace_of(("yes", {"yes": 1.0}), (" sir", {" sir": 0.5, "": 0.5})), t5)
    assert dense(early, 1)[t5.eos_id] == stored(0.5)


def test_the_empty_text_is_its_end(t5):
    found = tokalign.project([], t5)
    assert found.ids.tolist() == [t5.eos_id] and found.kind.tolist() == [Kind.ONE_HOT]


def test_text_cut_within_a_character_is_accounted_for(t5):
    for tokens in ([b" \xf0\x9f"], [b"a", b" \xf0\x9f", b"\x8e", b"\x89"], [b"\xff", b"b"]):
        trace = TeacherTrace.from_tokens([TeacherToken(t, -0.5, ((t, -0.5),)) for t in tokens])
        found = tokalign.project(trace, t5)
        assert_sums_to_one(found)
        assert found.byte_ends[-1] == len(trace.text)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_give_the_traces_in_order(t5, p50k, solutions, processes):
    simulated = NgramTeacher(solutions, p50k)
    traces = [simulated.trace(text) for text in solutions[:120]]
    found = list(tokalign.project_batch(traces, t5, processes=processes))
    for trace, projection in zip(traces, found, strict=True):
        assert projection.ids.tolist() == [*t5.encode(trace.text.decode()), t5.eos_id]
    with pytest.raises(ValueError, match=r"log-probabilities of at most 0"):
        list(tokalign.project_batch([[TeacherToken(b"a", 0.5)]], t5, processes=processes))


def test_coverage_of_solutions_reaches_what_is_claimed(t5, p50k, solutions):
    plain = [re.sub("<<.*?>>", "", text).split("\n####")[0] for text in solutions]
    simulated = NgramTeacher(plain, p50k)
    traces = [simulated.trace(text) for text in plain]
    shares = {
        rule: coverage(tokalign.project_batch(traces, t5, rule=rule), t5)[0].shares()["covered"]
        for rule in ("paper", "marginal")
    }
    assert shares["paper"] >= 0.79 and shares["marginal"] >= 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "expected a rule of .*'paper'.*, got 'best'"),
        ({"rest": "keep"}, "expected a rest of .*'drop'.*, got 'keep'"),
        ({"k": 0}, "expected a k of at least 1, got 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tokalign.project([], GreedyTokenizer([]), **options)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (TeacherToken(b"a", float("nan")), r"got nan in logprobs\[0\]"),
        (TeacherToken(b"a", 0.5), r"got 0.5 in logprobs\[0\]"),
        (TeacherToken(b"a", -1.0, ((b"b", float("nan")),)), r"got nan in top_logprobs\[0\]"),
        (TeacherToken(b"a", -1.0, ((b"b", 2.0),)), r"got 2.0 in top_logprobs\[0\]"),
        (TeacherToken(b"", -1.0), "got an empty one at 0; give the end of the text"),
    ],
)
def test_bad_traces_are_refused(token, message):
    with pytest.raises(ValueError, match=message):
        tokalign.project([token], GreedyTokenizer([]))


def test_flat_traces_with_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"expected as many tokens as log-probabilities and ends"):
        TeacherTrace((b"a",), np.zeros(2), (), np.zeros(0), np.zeros(1, int))
    with pytest.raises(ValueError, match=r"expected 2 candidates, got 1 tokens and 1"):
        TeacherTrace((b"a",), np.zeros(1), (b"a",), np.zeros(1), np.array([2]))
    with pytest.raises(ValueError, match=r"ends that do not decrease"):
        TeacherTrace((b"a", b"b"), np.zeros(2), (b"a",), np.zeros(1), np.array([2, 1]))
    with pytest.raises(ValueError, match=r"expected end_logprob of at most 0"):
        TeacherTrace((), np.zeros(0), (), np.zeros(0), np.zeros(0, int), end_logprob=1.0)


FRAGMENTS = [b" ", b"\n", b"\xf0", b"\x9f", b"\x8e\x89", "½".encode(), "ﬁ".encode(), b"12", b" $"]
FRAGMENTS += [b"{", b"\x00", b"\xff", b"</s>", "▁".encode(), "\u0301\u200b".encode(), b"She", b"."]
nats = st.sampled_from([-0.1, -1.0, -3.0, -9999.0, -math.inf, 0.0])
pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=3).map(b"".join)
wild_token = st.builds(
    TeacherToken,
    pieces.filter(bool),
    nats,
    st.lists(st.tuples(pieces, nats), max_size=5).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(wild_token, max_size=10), max_size=3),
    st.sampled_from(["marginal", "paper"]),
    st.booleans(),
    st.sampled_from([math.nan, -math.inf, -0.1, 0.0]),
)
def test_any_bytes_and_any_masses_are_accounted_for(t5, p50k, tokens, rule, cross, end):
    traces = [TeacherTrace.from_tokens(t, end_logprob=end) for t in tokens]
    for student in (t5, p50k):
        for found in tokalign.project_batch(traces, student, rule=rule, cross_whitespace=cross):
            assert_sums_to_one(found)
            assert (found.top_probs >= 0).all() and (found.lost >= -gap(1)).all()


def test_impossible_candidates_have_no_mass_and_do_no_harm(t5):
    trace = trace_of(("a", {"a": 1.0}))
    trace = TeacherTrace(
        trace.tokens, np.array([-math.inf]), (b"b", b"a"), np.array([-math.inf, -9999.0]), [2]
    )
    found = tokalign.project(trace, t5)
    assert_sums_to_one(found)


def test_any_record_with_the_fields_of_a_trace_is_projected(t5):
    trace = trace_of(("yes", {"yes": 0.5, "no": 0.25}), end=-0.5)
    fields = {name: getattr(trace, name) for name in trace.__dataclass_fields__}
    fields["top_logprobs"] = trace.top_logprobs.astype(np.float32)
    found = tokalign.project(types.SimpleNamespace(**fields, problem_id="p"), t5)
    assert_close(found.top_probs, tokalign.project(trace, t5).top_probs, terms=2)


def test_projections_travel_between_processes(t5):
    found = tokalign.project(trace_of(("a", {"a": 1.0})), t5)
    assert pickle.loads(pickle.dumps(found)).ids.tolist() == found.ids.tolist()
