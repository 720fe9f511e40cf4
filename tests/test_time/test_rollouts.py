"""Labels by roll-out: the bias by enumeration, a planted tree, the stage stopped and resumed."""

import dataclasses
import math

import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st
from planted import SUMS, Tree

from distill.core import sums
from distill.core.errors import UserError
from distill.core.ports import Sampling
from distill.core.records import Problem, Rollouts, Trace, Verdict
from distill.core.store import Shards
from distill.grading.check import GRADERS
from distill.problems import problems as corpus
from distill.test_time import rollouts
from distill.test_time.rollouts import Beginning, Tries
from distill.text import steps
from distill.text.completions import Token, assemble

SAMPLING = Sampling(max_tokens=8, top_logprobs=0)
PROMPT = "Q: What is twice 2 + 2?"


def problem(number=0, split="train", answer="8"):
    return Problem(f"made/{split}/{number}", "made", split, "What is twice 2 + 2?", answer)


def beginnings(*prefixes, number=0):
    return [Beginning(problem(number), PROMPT, prefix) for prefix in prefixes]


def chance_of_right(text):
    """The chance that the tree goes on from `text` to the answer 8."""
    if text not in SUMS:
        return float(text.endswith("is 8"))
    return sum(odds * chance_of_right(text + step) for step, odds in SUMS[text].items())


def rolled(some, generator=None, **how):
    how = {"sampling": SAMPLING, "grader": GRADERS["default"], **how}
    return rollouts.roll_out(some, generator or Tree(), **how)


# --- How many ----------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(1, 6), st.integers(0, 6))
def test_the_bias_of_stopping_early_is_that_of_enumeration(chance, look, more):
    tries = Tries(look + more, look)
    expected = 0.0
    for first in range(look + 1):
        of_first = math.comb(look, first) * chance**first * (1 - chance) ** (look - first)
        done = first in (0, look)
        expected += of_first * (first / look if done else (first + more * chance) / (look + more))
    assert expected - chance == near(tries.bias(chance), terms=40, scale=1)
    assert abs(Tries().bias(chance)) <= 0.022


def test_tries_refuse_to_look_after_the_end():
    with pytest.raises(ValueError, match="expected 1 <= look <= most"):
        Tries(4, 5)


# --- Roll-outs ---------------------------------------------------------------------------------

INNER = [text for text in SUMS if text]


def test_the_share_of_right_roll_outs_is_the_chance_in_the_tree():
    for of_one in rolled(beginnings(*INNER), tries=Tries(600, 600)):
        chance = chance_of_right(of_one.prefix)
        deviation = math.sqrt(chance * (1 - chance) / 600)
        assert abs(of_one.right / of_one.n - chance) <= 4 * deviation, of_one


def test_unanimous_beginnings_stop_at_the_look_and_the_others_do_not():
    found = {r.prefix: r for r in rolled(beginnings(*INNER), tries=Tries(16, 4))}
    assert found["2 + 2 = 4. 4 * 2 = 8."].n == found["2 + 2 = 4. 4 * 2 = 6."].n == 4
    for of_one in found.values():
        whole = rolled(beginnings(of_one.prefix), tries=Tries(4, 4))[0]
        assert (of_one.n == 4) == (whole.right in (0, 4))
        assert of_one.n in (4, 16)


@given(st.permutations(INNER), st.integers(1, 5))
def test_roll_outs_depend_on_the_beginning_alone(order, count):
    alone = {r.prefix: r for text in order[:count] for r in rolled(beginnings(text))}
    assert rolled(beginnings(*order[:count])) == [alone[text] for text in order[:count]]


def test_the_tokens_of_roll_outs_are_those_drawn():
    tree = Tree()
    assert sum(r.tokens for r in rolled(beginnings(*INNER), tree)) == tree.tokens


def test_a_roll_out_that_does_not_end_is_wrong():
    short = dataclasses.replace(SAMPLING, max_tokens=1)
    (found,) = rolled(beginnings("2 + 2 = 4."), sampling=short, tries=Tries(8, 8))
    assert found.right == 0 and found.tokens == 8


# --- Labels ------------------------------------------------------------------------------------


@given(st.text("ab.\n 1", max_size=30))
def test_prefixes_are_the_sums_of_steps_but_the_last(text):
    found = rollouts.prefixes(text)
    assert len(found) == max(len(steps.split(text)) - 1, 0)
    assert all(text.startswith(prefix) and prefix != text for prefix in found)


def solution(text, outcome, sample, number=0):
    completion = assemble([Token(text.encode(), -1.0)])
    trace = Trace(
        f"made/train/{number}", sample, PROMPT, **completion.trace_fields(), model="m", seed=sample
    )
    return trace, Verdict(trace.problem_id, sample, outcome, None, "made up")


def test_labels_by_hand():
    good, bad = "2 + 2 = 4. So 8. The answer is 8", "2 + 2 = 4. The answer is 4"
    solutions = [
        solution(good, "right", 0),
        solution(bad, "wrong", 1),
        solution(good, "right", 2),
        solution("2 + 2 = 4.", "unparsed", 3),
        solution(good, "truncated", 4),
    ]
    values = [
        Rollouts("made/train/0", "2 + 2 = 4.", 3, 4, 9),
        Rollouts("made/train/0", "2 + 2 = 4. So 8.", 4, 4, 5),
    ]
    first, second = rollouts.label(solutions, values)
    assert first.labels == (0.75, 1.0, 1.0) and first.count == 2
    assert second.labels == (0.75, 0.0) and second.count == 1
    assert "".join(first.solution.steps) == good and first.solution.prompt == PROMPT


def test_a_beginning_without_roll_outs_has_no_label_and_the_end_has_one():
    (found,) = rollouts.label([solution("2 + 2 = 4. The answer is 8", "right", 0)], [])
    assert math.isnan(found.labels[0]) and found.labels[1:] == (1.0,)


# --- The stage ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Made:
    """A source of problems, of which every third has another answer than the tree's best."""

    n: int = 40

    def problems(self):
        for split in ("train", "validation", "test"):
            for number in range(self.n):
                yield problem(number, split, "8" if number % 3 else "6")


class Stopped(Exception):
    pass


@dataclasses.dataclass
class Breaking(Tree):
    """A tree that fails at one of its calls."""

    last: int = dataclasses.field(default=10**6, repr=False)  # so that it is no setting

    def generate(self, requests, sampling):
        if self.calls == self.last:
            raise Stopped
        return super().generate(requests, sampling)


ROLLED = {"train": 4, "validation": 3}


def ran(run_dir, last=10**6, **how):
    corpus.run(run_dir=run_dir, sources=[Made()])
    tree = Breaking(last=last)
    samples = {"train": 4, "validation": 6}
    settings = {
        "samples": samples,
        "rolled": ROLLED,
        "sampling": SAMPLING,
        "tries": Tries(6, 3),
        **how,
    }
    return rollouts.run(run_dir=run_dir, generator=tree, **settings), tree


def kept(run_dir):
    values = {(r.problem_id, r.prefix): r for r in rollouts.values(run_dir)}
    assert len(values) == len(rollouts.values(run_dir))
    return values


def test_the_stage_rolls_out_each_beginning_of_a_question_once(tmp_path):
    summary, tree = ran(tmp_path)
    drawn = Shards(tmp_path / "rollouts" / "solutions", Trace)
    assert len(drawn) == 40 * 4 + 40 * 6 and {t.problem_id.split("/")[1] for t in drawn} == {
        "train",
        "validation",
    }
    first = [t for t in drawn if t.sample < ROLLED[t.problem_id.split("/")[1]]]
    wanted = {(t.problem_id, prefix) for t in first for prefix in rollouts.prefixes(t.text)}
    assert kept(tmp_path).keys() == wanted
    assert summary["beginnings"] == len(wanted) and summary["questions"] == 80
    assert summary["solution_tokens"] + summary["rollout_tokens"] == tree.tokens
    assert summary["rollouts"] == sum(r.n for r in kept(tmp_path).values())
    assert len(rollouts.solutions(tmp_path, "train")) == 160
    assert len(rollouts.solutions(tmp_path, "validation")) == 240
    for split, count in {"train": 4, "validation": 6}.items():
        examples = rollouts.examples(tmp_path, split)
        assert sum(example.count for example in examples) == 40 * count
        whole = rollouts.examples(tmp_path, split, whole=True)
        assert sum(example.count for example in whole) == 40 * ROLLED[split]
        assert not any(math.isnan(label) for example in whole for label in example.labels)
        begun = [
            ((example.problem_id, prefix), label)
            for example in examples
            for prefix, label in zip(
                rollouts.prefixes("".join(example.solution.steps)), example.labels, strict=False
            )
        ]
        assert {key for key, label in begun if not math.isnan(label)} <= wanted
        assert all(math.isnan(label) for key, label in begun if key not in wanted)
    assert any(".parquet" in name for name in sums.read(sums.path_of(tmp_path, "rollouts")))


def test_a_stopped_stage_goes_on_with_what_is_missing(tmp_path):
    whole, tree = ran(tmp_path / "whole")
    with pytest.raises(Stopped):
        ran(tmp_path / "stopped", last=5)
    before = len(rollouts.values(tmp_path / "stopped"))
    with pytest.raises(UserError, match="the settings of the run"):
        ran(tmp_path / "stopped", rolled={"train": 3, "validation": 3})
    resumed, after = ran(tmp_path / "stopped")
    assert after.tokens < tree.tokens
    assert before and resumed["beginnings"] == whole["beginnings"]
    assert kept(tmp_path / "stopped") == kept(tmp_path / "whole")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"samples": {"test": 4}, "rolled": None}, "leave the others to evaluate"),
        ({"grader": "odd"}, "a grader of default"),
        ({"samples": {"train": 0}, "rolled": None}, "1 sample or more"),
        ({"rolled": {"train": 4}}, "1 sample or more"),
    ],
)
def test_the_stage_refuses(tmp_path, how, message):
    with pytest.raises(UserError, match=message):
        ran(tmp_path, **how)
