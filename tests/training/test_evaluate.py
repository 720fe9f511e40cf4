import contextlib
import dataclasses
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokalign
from distill.core.errors import UserError
from distill.core.paths import shipped
from distill.core.ports import Completion
from distill.core.records import Accuracy, Prediction, Problem, Verdict
from distill.core.store import Shards, Stage, manifest, write_json
from distill.grading.check import GRADERS
from distill.models import weights
from distill.models.sampling import Beam
from distill.models.t5 import T5Config, T5Model
from distill.traces.calculator import Calculator
from distill.training.checkpoints import Checkpoints
from distill.training.evaluate import (
    Options,
    SetOptions,
    Voting,
    choose,
    evaluate,
    final,
    majority,
    predict,
    prompt,
    run,
    tally,
)

HOW = {"format": prompt("zero_shot_cot", []), "grader": GRADERS["default"]}


@dataclasses.dataclass
class Adder:
    """Adds the numbers of a question, always one too few from `limit` on; answers last first."""

    limit: int = 10
    finish_reason: str = "stop"
    asked: list = dataclasses.field(default_factory=list)
    model: str = "adder"

    def generate(self, requests, sampling):
        assert sampling.temperature == 0
        for index in reversed(range(len(requests))):
            self.asked.append(requests[index].prompt)
            total = sum(map(int, re.findall(r"\d+", requests[index].prompt)))
            yield index, completion(f"The answer is {total - (total >= self.limit)}", self)

    def score(self, requests, top_logprobs=5):
        raise AssertionError("expected evaluation to score no text, got a request for it")


def completion(text, adder):
    floats, ends = np.zeros(len(text), np.float32), np.zeros(len(text), np.int32)
    letters = tuple(letter.encode() for letter in text)
    return Completion(text, letters, floats, (), floats[:0], ends, 0.0, adder.finish_reason)


def problem(number, source="svamp", split="selection", chain=None):
    question = f"Tom has {number} pens and buys {number} more. How many pens has Tom?"
    return Problem(f"{source}/{split}/{number}", source, split, question, str(2 * number), chain)


@contextlib.contextmanager
def capture_logs(name):
    lines, sink = [], logging.Handler()
    sink.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger(name).addHandler(sink)
    yield lines
    logging.getLogger(name).removeHandler(sink)


def by_id(predictions):
    return {prediction.problem_id: prediction for prediction in predictions}


# --- Laws --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.permutations(range(8)), st.integers(0, 8))
def test_neither_order_nor_batches_of_problems_change_a_prediction(order, cut):
    problems = [problem(number) for number in range(8)]
    turned = [problems[number] for number in order]
    parts = [turned[:cut], turned[cut:]]
    found = [p for part in parts for p in evaluate(part, Adder(), **HOW)]
    assert by_id(found) == by_id(evaluate(problems, Adder(), **HOW))
    assert len(found) == len(problems)


@settings(deadline=None, max_examples=20)
@given(st.sets(st.tuples(st.sampled_from([0, 50]), st.integers(0, 7))))
def test_a_resumed_evaluation_asks_what_is_missing_and_gives_the_same(tmp_path_factory, done):
    problems, steps = [problem(number) for number in range(8)], (0, 50)
    whole = Shards(tmp_path_factory.mktemp("whole"), Prediction)
    predict(problems, steps, lambda step: Adder(step), whole, **HOW)
    left = Shards(tmp_path_factory.mktemp("resumed"), Prediction)
    for step, number in done:
        left.append(evaluate([problems[number]], Adder(step), step=step, **HOW))
    adders = {step: Adder(step) for step in steps}
    predict(problems, steps, adders.__getitem__, left, **HOW)
    assert len(left) == len(whole) == 16
    assert set(left) == set(whole)
    assert sum(len(adder.asked) for adder in adders.values()) == 16 - len(done)


def test_a_step_with_nothing_left_makes_no_generator(tmp_path):
    sink = Shards(tmp_path, Prediction)
    predict([problem(1)], [0], lambda step: Adder(), sink, **HOW)

    def refuse(step):
        raise AssertionError(step)

    predict([problem(1)], [0], refuse, sink, **HOW)
    assert len(sink) == 1


@dataclasses.dataclass
class Drawer:
    """Says what its draw finds: an answer, or None for a text without one."""

    said: list
    seeds: set = dataclasses.field(default_factory=set)
    model: str = "drawer"
    finish_reason: str = "stop"

    def generate(self, requests, sampling):
        assert (sampling.temperature, sampling.top_p) == (0.5, 0.9)
        for index in reversed(range(len(requests))):
            self.seeds.add(requests[index].seed)
            answer = self.said[index % len(self.said)]
            text = "Who knows?" if answer is None else f"So.\nThe answer is {answer}"
            yield index, completion(text, self)

    def score(self, requests, top_logprobs=5):
        raise AssertionError("expected evaluation to score no text, got a request for it")


answered = st.lists(st.sampled_from(["8", "8.0", "9", "$9", "1", None]), min_size=1, max_size=7)


@settings(deadline=None)
@given(answered)
def test_a_vote_takes_the_key_given_most_often_and_of_these_the_first(said):
    default = GRADERS["default"]
    keys = [None if answer is None else default.key(answer) for answer in said]
    chosen = keys[majority([Verdict("p", n, "wrong", a, "") for n, a in enumerate(said)], default)]
    votes = {key: keys.count(key) for key in keys if key is not None}
    assert chosen == max(votes, key=votes.get, default=None)  # a dict keeps the order of the first


@settings(deadline=None, max_examples=30)
@given(answered)
def test_a_voted_prediction_is_that_of_the_vote_for_every_problem(said):
    problems, voting = [problem(4), problem(5)], Voting(len(said), 0.5, top_p=0.9)
    drawer = Drawer(said)
    found = by_id(evaluate(problems, drawer, voting=voting, **HOW))
    place = majority(
        [Verdict("p", n, "wrong", answer, "") for n, answer in enumerate(said)], GRADERS["default"]
    )
    assert {p.answer for p in found.values()} == {said[place]}
    assert len(found) == 2 and len(drawer.seeds) == 2 * len(said)


# --- Goldens -----------------------------------------------------------------------------------


def test_a_prediction_holds_what_was_said_and_decided():
    (right,) = evaluate([problem(4)], Adder(), step=50, **HOW)
    answer = ("The answer is 8", "right", "8")
    assert right == Prediction(50, "svamp/selection/4", "svamp", "selection", *answer)
    (wrong,) = evaluate([problem(7)], Adder(), **HOW)
    assert (wrong.step, wrong.outcome, wrong.answer) == (0, "wrong", "13")


def test_a_zero_shot_format_asks_the_question_alone():
    adder = Adder()
    list(evaluate([problem(4)], adder, **HOW))
    assert adder.asked == [f"Q: {problem(4).question}\nLet's think step by step"]


def test_an_in_context_format_shows_solved_train_problems_but_not_the_question():
    train = [problem(number, "gsm", "train", chain=f"{number} twice.") for number in range(6)]
    shown = prompt("in_context_cot", [*train, problem(9, "gsm", "train")])
    asked = dataclasses.replace(problem(3), problem_id="other")
    text = shown(asked)
    assert text == shown(asked)
    assert text.count("twice.") == 4
    assert text.count(asked.question) == 1
    assert text.endswith(f"Q: {asked.question}\nLet's think step by step")
    assert problem(9).question not in text


def test_rights_are_counted_by_step_and_set():
    problems = [problem(number, source) for number in (1, 4, 7) for source in ("asdiv", "svamp")]
    predictions = [
        *evaluate(problems, Adder(10), step=0, **HOW),
        *evaluate(problems, Adder(20), step=9, **HOW),
    ]
    two, three = Accuracy(2, 3), Accuracy(3, 3)
    assert tally(predictions) == {
        0: {"asdiv": two, "svamp": two},
        9: {"asdiv": three, "svamp": three},
    }


def test_the_first_problems_of_every_set_are_chosen():
    sets = (("asdiv", "selection"), ("svamp", "selection"), ("gsm", "test"), ("gsm", "validation"))
    problems = [problem(number, *of) for number in range(3) for of in sets]
    chosen = choose(problems, ("validation", "selection"), limit=2)
    assert [p.problem_id for p in chosen] == [
        *["asdiv/selection/0", "asdiv/selection/1"],
        *["svamp/selection/0", "svamp/selection/1"],
        *["gsm/validation/0", "gsm/validation/1"],
    ]


# --- The stages --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of random weights with three checkpoints, the start among them."""
    run_dir = tmp_path_factory.mktemp("run")
    vocabulary = shipped("data/vocabularies/student.model")
    rows = tokalign.SentencePieceTokenizer(vocabulary, 100).vocab_size
    shape = {"embed_dim": 8, "num_heads": 1, "head_dim": 8, "mlp_dim": 8}
    model = T5Model(T5Config(rows, **shape, num_encoder_layers=1, num_decoder_layers=1))
    start = model.init(jax.random.key(0))
    weights.save(run_dir / "start", model, start, vocabulary)
    with Checkpoints(run_dir / "checkpoints") as saved:
        for step in (3, 6):
            params = jax.tree.map(lambda leaf, step=step: leaf * (1 + step), start)
            saved.save(step, params, {"count": np.zeros(1)})
    sets = (("gsm", "train"), ("gsm", "validation"), ("gsm", "test"))
    sets += (("svamp", "selection"), ("svamp", "report"))
    problems = [problem(number, *of) for of in sets for number in range(6)]
    Shards(run_dir / "problems", Problem).append(problems)
    for name in ("problems", "train"):
        with Stage.open(run_dir, name, settings={"student": str(run_dir / "start")}) as stage:
            stage.finish()
    return run_dir


def copied(run_dir, to):
    return shutil.copytree(run_dir, to, dirs_exist_ok=True)


def arguments(run_dir, batch_size=4, **options):
    return {"run_dir": run_dir, "options": Options(max_tokens=8, batch_size=batch_size, **options)}


def test_every_checkpoint_is_evaluated_with_one_program_and_no_test_problem(trained, tmp_path):
    run_dir = copied(trained, tmp_path)
    jax.clear_caches()
    jax.config.update("jax_log_compiles", True)  # in every thread, unlike the context manager
    try:
        with capture_logs("jax") as lines:
            summary = run(**arguments(run_dir))
    finally:
        jax.config.update("jax_log_compiles", False)
    for program in ("_start", "_extend"):
        assert sum(f"Compiling jit({program})" in line for line in lines) == 1, program
    assert set(summary["accuracy"]) == {"0", "3", "6"}
    assert summary["accuracy"]["6"].keys() == {"gsm", "svamp"}
    assert (summary["checkpoints"], summary["predictions"]) == (3, 36)
    found = list(Shards(run_dir / "predictions", Prediction))
    assert {p.split for p in found} == {"validation", "selection"}
    texts = {(p.step, p.problem_id): p.text for p in found}
    assert any(texts[0, name] != texts[6, name] for _, name in texts)
    assert manifest(run_dir, "evaluate")["summary"] == summary == run(**arguments(run_dir))


def test_final_asks_start_and_choice_what_steered_nothing(trained, tmp_path):
    run_dir = copied(trained, tmp_path)
    write_json(run_dir / "reports/selection.json", {"chosen_step": 6, "validation_step": 0})
    with Stage.open(run_dir, "select", settings={}) as stage:
        stage.finish()
    summary = final(**arguments(run_dir))
    assert set(summary["accuracy"]) == {"0", "6"}
    found = list(Shards(run_dir / "final", Prediction))
    assert {(p.source, p.split) for p in found} == {("gsm", "test"), ("svamp", "report")}
    assert not (run_dir / "predictions").exists()


def test_a_run_that_lost_shards_and_changed_its_batches_ends_the_same(trained, tmp_path):
    whole, resumed = (copied(trained, tmp_path / name) for name in ("whole", "resumed"))
    summary = run(**arguments(whole))
    first = next(iter(Shards(whole / "predictions", Prediction)))
    Shards(resumed / "predictions", Prediction).append([first])
    moved = str(resumed / "start")
    assert run(**arguments(resumed, batch_size=3), student=moved) == summary
    both = [set(Shards(of / "predictions", Prediction)) for of in (whole, resumed)]
    assert both[0] == both[1]


def test_a_set_is_prompted_and_graded_by_its_own_options_and_by_a_second_grader(trained, tmp_path):
    run_dir = copied(trained, tmp_path)
    plain = run(**arguments(run_dir))
    shutil.rmtree(run_dir / "predictions")
    (run_dir / "manifests/evaluate.json").unlink()
    of_svamp = SetOptions(format=_as_it_is, grader="exact", beside="caseless")
    summary = run(**arguments(run_dir, set_options={"svamp": of_svamp}))
    assert summary["accuracy"].keys() == plain["accuracy"].keys()
    assert summary["accuracy_beside"]["3"].keys() == {"svamp"}
    found = [p for p in Shards(run_dir / "predictions", Prediction) if p.source == "svamp"]
    assert all(
        p.answer == (p.text.strip().split("\n")[0].strip().removesuffix(".") or None)
        for p in found
        if p.outcome != "truncated" and "answer is" not in p.text
    )
    written = manifest(run_dir, "evaluate")["settings"]["set_options"]["svamp"]
    assert written["grader"] == "exact" and written["format"].endswith("_as_it_is")


def _as_it_is(problem):
    return problem.question


def test_a_student_of_no_training_answers_as_it_is(trained, tmp_path):
    run_dir = tmp_path / "bare"
    shutil.copytree(trained / "problems", run_dir / "problems")
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        stage.finish()
    for stage in (run, final):
        summary = stage(**arguments(run_dir), student=str(trained / "start"))
        assert summary["accuracy"].keys() == {"0"}
    assert summary["accuracy"]["0"].keys() == {"gsm", "svamp"}
    assert manifest(run_dir, "final")["settings"]["student"] == str(trained / "start")


def test_voting_runs_through_the_stage(trained, tmp_path):
    run_dir = copied(trained, tmp_path)
    summary = run(**arguments(run_dir, voting=Voting(3), limit=2))
    assert (summary["checkpoints"], summary["predictions"]) == (3, 12)
    assert manifest(run_dir, "evaluate")["settings"]["voting"]["samples"] == 3


@pytest.mark.parametrize("wrap", [Calculator(), Beam(beams=2)])
def test_a_calculator_and_a_beam_run_through_the_stage(trained, tmp_path, wrap):
    run_dir = copied(trained, tmp_path)
    summary = run(**arguments(run_dir, wrap=wrap, limit=2))
    assert (summary["checkpoints"], summary["predictions"]) == (3, 12)
    written = manifest(run_dir, "evaluate")["settings"]["wrap"]
    assert written["type"] == type(wrap).__name__


# --- Refusals ----------------------------------------------------------------------------------


def test_a_split_without_problems_is_refused():
    with pytest.raises(UserError, match="expected problems of split report or test, got none"):
        choose([problem(1)], ("report", "test"))


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match=r"a format of zero_shot_answer, .*, got few_shot"):
        prompt("few_shot", [])


def test_too_few_problems_to_show_are_refused():
    train = [problem(number, split="train", chain="4") for number in range(4)]
    with pytest.raises(UserError, match="expected more than 4 train problems to show, got 4"):
        prompt("in_context_cot", train)


def test_options_without_meaning_are_refused():
    wrong = {
        "a grader of default, fu2023, .*, got strict": {"grader": "strict"},
        "a format of zero_shot_answer, .* got chat": {"format": "chat"},
        "max_tokens and limit of at least 1, got max_tokens 0": {"max_tokens": 0},
        "max_tokens and limit of at least 1, got .* limit 0": {"limit": 0},
    }
    for line, choice in wrong.items():
        with pytest.raises(UserError, match=line):
            Options(**choice)


def test_options_of_an_unknown_set_is_refused(trained, tmp_path):
    run_dir = copied(trained, tmp_path)
    with pytest.raises(UserError, match="a set of gsm, svamp, got multi"):
        run(**arguments(run_dir, set_options={"multi": SetOptions()}))
    assert not (run_dir / "manifests" / "evaluate.json").exists()


def test_set_options_and_votes_without_meaning_are_refused():
    with pytest.raises(UserError, match=r"a format of zero_shot_answer, .* got chat"):
        SetOptions(format="chat")
    with pytest.raises(UserError, match=r"a grader of default, .* got strict"):
        SetOptions(beside="strict")
    with pytest.raises(UserError, match="a temperature above 0, got 8 and 0"):
        Voting(temperature=0)


def test_final_before_select_is_refused(trained):
    with pytest.raises(UserError, match="stage select complete"):
        final(run_dir=trained)
