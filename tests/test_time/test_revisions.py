"""Revisions: examples against brute force, chains over a planted reviser, costs counted."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Request, Sampling, Scores, Solution
from distill.core.records import Trace, Verdict
from distill.core.store import Shards
from distill.models import saved, scoring, weights
from distill.models.saved import open_vocabulary
from distill.models.t5 import T5Config, T5Model
from distill.problems import problems as corpus
from distill.test_time import chains, revise, revisions, strategy
from distill.test_time.revise import Revise
from distill.test_time.revisions import Revision, RevisionBatches, edit_distance
from distill.test_time.strategy import Models, Question
from distill.training.optimizers import AdamW, Constant
from tokalign.dtw import levenshtein

from planted import Tree  # isort: skip
from test_rollouts import SAMPLING, Breaking, Made, Stopped, ran  # isort: skip

VOCABULARY = paths.shipped("data/vocabularies/student.model")
TOKENIZER = open_vocabulary(VOCABULARY)
WORDS = st.text("ab 1é", max_size=12)


def solution(text, outcome, problem_id="p/train/1", sample=0):
    empty = np.zeros(0, np.float32)
    trace = Trace(
        problem_id, sample, "Q: ?", text, (), empty, (), empty, empty.astype(np.int32), 0.0,
        "stop", "m", 0,
    )  # fmt: skip
    return trace, Verdict(problem_id, sample, outcome, None, "")


# --- Examples ----------------------------------------------------------------------------------


@given(WORDS, WORDS)
def test_the_edit_distance_is_the_table_s(a, b):
    assert edit_distance(a, b) == levenshtein(a, b) == edit_distance(b, a)


@given(WORDS, WORDS, WORDS)
def test_the_edit_distance_is_a_distance(a, b, c):
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert (edit_distance(a, b) == 0) == (a == b)


@given(
    st.lists(st.tuples(WORDS, st.sampled_from(["right", "wrong", "unparsed"])), max_size=12),
    st.integers(0, 9),
)
def test_attempts_are_wrong_different_and_the_nearest_is_last(rows, seed):
    # A text has one verdict.
    rows = list(dict(rows).items())
    found = list(revisions.revisions([solution(*row) for row in rows], seed=seed))
    wrong = {text for text, outcome in rows if outcome == "wrong"}
    assert [r.solution for r in found] == [text for text, outcome in rows if outcome == "right"]
    for revision in found:
        assert set(revision.attempts) <= wrong and len(set(revision.attempts)) == len(
            revision.attempts
        )
        assert len(revision.attempts) <= min(len(wrong), 4)
        if revision.attempts:
            far = {other: levenshtein(revision.solution, other) for other in wrong}
            assert far[revision.attempts[-1]] == min(far.values())


def test_the_number_of_attempts_is_uniform():
    rows = [solution(f"right {n}", "right", f"p/train/{n}") for n in range(3000)]
    rows += [
        solution(f"wrong {n} {m}", "wrong", f"p/train/{n}") for n in range(3000) for m in range(5)
    ]
    counts = np.bincount([len(r.attempts) for r in revisions.revisions(rows)], minlength=5)
    assert (np.abs(counts - 600) < 5 * np.sqrt(600 * 0.8)).all()


def test_examples_of_a_question_do_not_depend_on_others():
    rows = [solution("a", "right"), solution("b", "wrong"), solution("c", "wrong")]
    other = [solution("x", "right", "p/train/2"), solution("y", "wrong", "p/train/2")]
    alone = list(revisions.revisions(rows))
    assert [r for r in revisions.revisions(other + rows) if r.problem_id == "p/train/1"] == alone


def test_a_batch_shows_the_attempts_and_charges_the_solution_alone():
    revision = Revision("p", "Q: What is 2 + 2?", ("It is 5.", "It is 3."), "The answer is 4")
    batch = RevisionBatches([revision], TOKENIZER, 1, 64, 16).batch(0)
    eos = TOKENIZER.eos_id
    shown = TOKENIZER.encode("Q: What is 2 + 2?\nA: It is 5.\nA: It is 3.")
    assert batch["encoder_input_tokens"][0, : len(shown) + 1].tolist() == [*shown, eos]
    target = [*TOKENIZER.encode("The answer is 4"), eos]
    assert batch["decoder_target_tokens"][0, : len(target)].tolist() == target
    assert batch["decoder_loss_weights"].sum() == (batch["decoder_segment_ids"] > 0).sum()


def test_a_row_too_short_for_all_attempts_keeps_the_last():
    revision = Revision("p", "Q: What is 2 + 2?", ("It is 5. " * 20, "It is 3."), "It is 4")
    batch = RevisionBatches([revision], TOKENIZER, 1, 40, 16).batch(0)
    shown = TOKENIZER.encode("Q: What is 2 + 2?\nA: It is 3.")
    assert batch["encoder_input_tokens"][0, : len(shown)].tolist() == shown


def test_the_late_checkpoint_is_one_beyond_the_lowest_loss():
    assert revisions.late_step({0: 3.0, 10: 2.0, 20: 2.5, 30: 2.6}) == 20
    assert revisions.late_step({0: 3.0, 10: 2.0, 20: 2.5, 30: 2.6}, later=9) == 30
    assert revisions.late_step({0: 3.0, 10: 2.0}) == 10


# --- Chains ------------------------------------------------------------------------------------


class Mender(Tree):
    """Answers 5, then 6, and so on: one more than the last attempt that it is shown."""

    prompts: tuple = ()

    def walk(self, request, sampling):
        self.prompts = (*self.prompts, request.prompt)
        shown = request.prompt.count("\nA: ")
        self.children = {"": {f"The answer is {shown}": 1.0}}
        yield from super().walk(request, sampling)


class LikesTwo:
    """Gives a solution that answers 2 a high score, and any other a low one."""

    model = "likes two"

    def __init__(self):
        self.seen = []

    def score(self, solutions):
        self.seen += solutions
        for n, each in enumerate(solutions):
            value = 0.9 if each.steps[-1].endswith("2") else 0.1
            yield n, Scores(np.full(len(each.steps), value, np.float32), 7)


QUESTIONS = [Question("p/1", "Q: one"), Question("p/2", "Q: two")]


@pytest.mark.parametrize(("length", "budget"), [(None, 6), (3, 6), (1, 4), (2, 5)])
def test_attempts_see_the_last_four_and_all_are_paid_for(length, budget):
    reviser, scorer = Mender(), LikesTwo()
    found = Revise(length).solve(QUESTIONS, budget, Models(reviser, scorer))
    each, chains = length or budget, budget // (length or budget)
    for solved in found:
        assert len(solved.candidates) == each * chains == solved.charged
        answers = [str(min(n, 4)) for n in range(each)]
        assert [c.answer for c in solved.candidates] == answers * chains
        assert [c.chain for c in solved.candidates] == [n for n in range(chains) for _ in answers]
        assert solved.generator.requests == each * chains
    assert sum(solved.generator.drawn for solved in found) == reviser.tokens
    assert sum(solved.verifier.read for solved in found) == 7 * len(scorer.seen)
    assert reviser.calls == each
    assert max(prompt.count("\nA: ") for prompt in reviser.prompts) == min(each - 1, 4)


def test_the_verifier_reads_each_attempt_after_those_before_it():
    scorer = LikesTwo()
    (solved,) = Revise().solve(QUESTIONS[:1], 4, Models(Mender(), scorer))
    assert [each.prompt.count("\nA: ") for each in scorer.seen] == [0, 1, 2, 3]
    assert solved.answer == "2"


def test_a_flat_majority_asks_no_verifier():
    (solved,) = Revise(choice=revise.flat).solve(QUESTIONS[:1], 7, Models(Mender()))
    assert solved.answer == "4" and solved.verifier.requests == 0  # three times, from the fifth on


def test_hierarchical_choice_against_enumeration():
    """Every way to lay three answers with scores into two chains."""
    for lots in itertools.product((0, 1), repeat=4):
        rows = [("1", 0.3), ("2", 0.5), ("1", 0.3), ("3", 0.55)]
        candidates = [
            strategy.Candidate("", answer, score, chain)
            for (answer, score), chain in zip(rows, lots, strict=True)
        ]
        winners = []
        for chain in (0, 1):
            sums = {}
            for c in (c for c in candidates if c.chain == chain):
                sums[c.answer] = sums.get(c.answer, 0) + c.score
            if sums:
                answer = max(sums, key=sums.get)
                best = max(c.score for c in candidates if c.chain == chain and c.answer == answer)
                winners.append((answer, best))
        sums = {}
        for answer, score in winners:
            sums[answer] = sums.get(answer, 0) + score
        assert revise.hierarchical(candidates).answer == max(sums, key=sums.get)


def test_what_a_chain_draws_does_not_depend_on_other_questions():
    tree = Models(Tree(), LikesTwo())
    both = Revise(2).solve(QUESTIONS, 4, tree)
    assert Revise(2).solve(QUESTIONS[1:], 4, tree) == both[1:]


def test_refusals():
    with pytest.raises(UserError, match=r"expected a budget of at least 3, got 2"):
        Revise(3).solve(QUESTIONS, 2, Models(Mender(), LikesTwo()))
    with pytest.raises(UserError, match=r"expected a verifier, got none.*revise\.flat"):
        Revise().solve(QUESTIONS, 2, Models(Mender()))
    with pytest.raises(ValueError, match=r"expected a length of at least 1, got 0"):
        Revise(0)


# --- The stages --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Solutions of a planted tree, and a random student."""
    root = tmp_path_factory.mktemp("revisions")
    ran(root / "run")
    model = T5Model(T5Config(1104, 16, 2, 8, 24, 1, 1))
    weights.save(root / "student", model, model.init(jax.random.key(0)), VOCABULARY)
    return root / "run"


def learn(run_dir, stage, **how):
    settings = {"steps": 6, "save_every": 2, "batch_size": 4, "optimizer": AdamW(Constant(1e-2))}
    return stage(run_dir=run_dir, student=str(run_dir.parent / "student"), **settings, **how)


def test_the_stages_make_a_reviser_chains_and_a_verifier_of_them(run_dir):
    summary = learn(run_dir, revisions.run, source_length=96, length=48)
    losses = {int(step): loss for step, loss in summary["held_out_loss"].items()}
    assert summary["step"] == revisions.late_step(losses) and sorted(losses) == [0, 2, 4, 6]
    assert losses[6] < losses[0]
    assert summary["examples"] == sum(summary[f"with_{n}_attempts"] for n in range(5))
    written = saved.SavedModel(str(run_dir / "reviser"))
    (found,) = dict(written.generate([Request("Q: ?")], Sampling(max_tokens=4))).values()
    assert found.completion_tokens == 4 or found.finish_reason == "stop"

    tree = Tree()
    told = chains.run(run_dir=run_dir, reviser=tree, length=3, sampling=SAMPLING)
    attempts = list(Shards(run_dir / "chains", Trace))
    assert told["attempts"] == len(attempts) == 80 * 4 * 3
    assert told["mended"] + told["spoilt"] + told["stayed_right"] + told["stayed_wrong"] == 640
    for trace in attempts:
        assert trace.prompt.count("\nA: ") == trace.sample % 3
    assert chains.run(run_dir=run_dir, reviser=Tree(), length=3, sampling=SAMPLING) == told

    summary = learn(run_dir, chains.verifier)
    assert summary["calibration"]["questions"] == 40
    verifier = scoring.Verifier(str(run_dir / "verifier" / "chains" / "model"))
    ((_, found),) = verifier.score([Solution("Q: ?\nA: It is 5.", ("It is 6.",))])
    assert 0 < found.values[0] < 1


def test_chains_resume_where_they_stopped(tmp_path):
    for name in ("whole", "stopped"):
        ran(tmp_path / name)
    how = {"length": 2, "sampling": SAMPLING, "shard_questions": 8}
    whole = chains.run(run_dir=tmp_path / "whole", reviser=Breaking(), **how)
    with pytest.raises(Stopped):
        chains.run(run_dir=tmp_path / "stopped", reviser=Breaking(last=7), **how)
    some = len(Shards(tmp_path / "stopped" / "chains", Trace))
    assert 0 < some < whole["attempts"]
    assert chains.run(run_dir=tmp_path / "stopped", reviser=Breaking(), **how) == whole
    texts = [
        {
            (t.problem_id, t.sample): (t.prompt, t.text)
            for t in Shards(tmp_path / n / "chains", Trace)
        }
        for n in ("whole", "stopped")
    ]
    assert texts[0] == texts[1]


def test_stages_refuse(tmp_path, run_dir):
    corpus.run(run_dir=tmp_path, sources=[Made()])
    with pytest.raises(UserError, match=r"expected stage rollouts complete"):
        learn(tmp_path, revisions.run)
    with pytest.raises(UserError, match=r"expected a grader of default, .*got x"):
        chains.run(run_dir=run_dir, reviser=Tree(), grader="x")
    with pytest.raises(UserError, match=r"expected problems of selection, got none"):
        chains.run(run_dir=tmp_path, reviser=Tree(), chains={"selection": 1})
