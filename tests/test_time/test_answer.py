"""Answers in process and over a socket: the policy's strategy, what it spent, and refusals."""

import dataclasses
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest

from distill import __main__ as cli
from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Sampling, Scores
from distill.endpoints.teacher import OpenAICompatible
from distill.models import scoring, weights
from distill.serving.application import application
from distill.serving.batching import Batcher
from distill.serving.requests import Limits
from distill.serving.server import load, serve_in_thread
from distill.test_time import answer
from distill.test_time.allocate import Policy
from distill.test_time.difficulty import Linear
from distill.test_time.metropolis import Metropolis
from distill.test_time.revise import Revise, flat
from distill.test_time.search import BestOf, LookAhead
from distill.test_time.strategy import Models, Question, best, majority
from distill.text.prompts import FORMATS

SAMPLING = Sampling(max_tokens=24, top_logprobs=1)
ASKED = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
QUESTIONS = [Question(text, FORMATS["zero_shot_cot"](text)) for text in (ASKED, "What is 12 + 30?")]
STUDENT = "data/models/student_instructed"
STRATEGIES = (
    *(BestOf(), BestOf(best), BestOf(majority, scored=False)),
    *(Revise(), Revise(4, flat)),
    *(LookAhead(apart=True), LookAhead(4, 2, apart=True)),
    *(LookAhead(), LookAhead(4), LookAhead(ahead=3), LookAhead(4, 3), Metropolis(2, 1.5, 0.0)),
)


class Lengths:
    """Likes solutions of many letters, and steps that hold a 7."""

    model = "lengths"

    def score(self, solutions):
        """Yield scores in order."""
        for index, solution in enumerate(solutions):
            values = [0.1 + 0.5 * ("7" in step) + len(step) / 400 for step in solution.steps]
            yield index, Scores(np.array(values, np.float32), len(solution.steps))


@pytest.fixture(scope="module")
def served():
    return load(STUDENT, batch_size=8)


@pytest.fixture(scope="module")
def server(served):
    batcher = Batcher(served.generator, batch_size=8, max_wait=0.02, max_queue=256)
    gate = application(served, batcher, Limits(), key=None)
    with serve_in_thread(gate, "127.0.0.1", 0, patience=30) as running:
        yield running


@pytest.mark.parametrize("solving", [BestOf(), LookAhead()], ids=lambda each: each.name)
def test_a_search_over_a_socket_is_the_one_in_process(served, server, solving):
    endpoint = OpenAICompatible(served.name, server.url, api_key_variable=None)
    mine, theirs = (
        solving.solve(QUESTIONS, 4, Models(generator, Lengths(), SAMPLING), seed=3)
        for generator in (served.generator, endpoint)
    )
    assert mine == theirs
    assert all(each.generator.drawn > 4 and len(each.candidates) > 1 for each in mine)


def test_every_strategys_name_gives_it_back():
    for solving in STRATEGIES:
        assert answer.strategy_by_name(solving.name) == solving
    for wrong in ("beam-x", "best_of-luck", "oracle", "lookahead-3", "metropolis-a-b-c"):
        with pytest.raises(UserError, match="expected best_of-ELECTION, beam-M"):
            answer.strategy_by_name(wrong)


POLICY = Policy((1, 4), (("best_of-weighted", "beam-sqrt"), ("beam-4", "best_of-best")), (0.5,))


def test_the_difficulty_chooses_the_strategy_and_is_told_apart(served):
    models = Models(served.generator, Lengths(), SAMPLING)
    rows = {"budgets": POLICY.budgets, "strategies": POLICY.strategies}
    for edge, strategy, bin_ in ((0.0, "beam-sqrt", 1), (9.0, "best_of-best", 2)):
        policy = Policy(**rows, edges=(edge,), samples=2)
        found = answer.answer(QUESTIONS[0], models, policy, 7, seed=1)
        assert (found["strategy"], found["budget"], found["bin"]) == (strategy, 4, bin_)
        spent = found["spent"]
        assert (
            spent["difficulty_policy"]["requests"] == spent["difficulty_verifier"]["requests"] == 2
        )
        assert spent["policy"]["requests"] >= 4
    width = served.generator.network.config.embed_dim
    linear = Linear(np.zeros(width), 0.7)
    policy = Policy(**rows, edges=(0.5,), kind="encoder", estimator=linear)
    found = answer.answer(QUESTIONS[0], models, policy, 1)
    assert (found["ease"], found["strategy"]) == (0.7, "best_of-weighted")
    read = served.generator.tokenizer.encode(QUESTIONS[0].prompt)
    assert found["spent"]["difficulty_encoder"] == {
        "requests": 1,
        "read": len(read) + 1,
        "drawn": 0,
    }
    with pytest.raises(UserError, match="a budget of at least 1, got 0"):
        answer.answer(QUESTIONS[0], models, POLICY, 0)
    endpoint = OpenAICompatible("m", "http://127.0.0.1:1/v1", api_key_variable=None)
    with pytest.raises(UserError, match="a student in this process"):
        answer.answer(QUESTIONS[0], Models(endpoint, Lengths(), SAMPLING), policy, 1)


def verifier(directory):
    """Save a verifier that has learnt nothing."""
    network, params, vocabulary = weights.load(paths.find(STUDENT, "a model"))
    model = scoring.ScoringModel(network)
    scoring.save(directory, model, model.with_head(params), vocabulary, {"kind": "process"})
    return str(directory)


def test_the_command_answers_from_a_directory_and_from_an_endpoint(
    server, served, tmp_path, capsys
):
    Policy(POLICY.budgets, POLICY.strategies, (0.0,), samples=1).save(tmp_path / "policy.json")
    command = ["answer", ASKED, f"--policy={tmp_path / 'policy.json'}", "--budget=4", "--json"]
    command += [
        "--max_tokens=24",
        "--batch_size=8",
        f"--verifier={verifier(tmp_path / 'verifier')}",
    ]
    sides = [f"--student={STUDENT}"], [f"--endpoint={server.url}", f"--model={served.name}"]
    found = []
    for side in sides:
        assert cli.main([*command, *side]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0]["strategy"] == "beam-sqrt"
    assert cli.main([each for each in [*command, *sides[0]] if each != "--json"]) == 0
    told = capsys.readouterr().out
    assert "by beam-sqrt at 4, difficulty bin 1" in told and "policy:" in told
    assert cli.main(command) == 2
    assert "expected one of --student and --endpoint" in capsys.readouterr().err


def test_a_policy_that_revises_needs_its_reviser(tmp_path, capsys):
    revising = (("best_of-weighted", "revise-4-hierarchical"), POLICY.strategies[1])
    Policy(POLICY.budgets, revising, (0.5,), samples=1).save(tmp_path / "policy.json")
    policy = f"--policy={tmp_path / 'policy.json'}"
    for command in (["answer", ASKED, f"--student={STUDENT}"], ["serve", STUDENT, "--port=0"]):
        assert cli.main([*command, policy]) == 2
        assert "--reviser and --history, as the policy revises" in capsys.readouterr().err


# --- Served ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering(served):
    policy = Policy(POLICY.budgets, POLICY.strategies, POLICY.edges, samples=2)
    models = Models(served.generator, Lengths(), SAMPLING)
    return answer.Answerer(policy, models, FORMATS["zero_shot_cot"])


@pytest.fixture(scope="module")
def counsel(served, answering):
    """A server that answers by the policy too."""
    batcher = Batcher(served.generator, batch_size=8, max_wait=0.02, max_queue=256)
    limits = Limits(prompt_tokens=60, budget=8, answers=2)
    gate = application(served, batcher, limits, key="sk-counsel", answering=answering)
    with serve_in_thread(gate, "127.0.0.1", 0, patience=30) as running:
        yield running


def post(server, path="/answers", key="sk-counsel", **body):
    url = urlsplit(server.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", url.path + path, json.dumps(body), headers)
    found = connection.getresponse()
    return found.status, json.loads(found.read())


def test_a_served_policy_answers_as_in_process_whoever_else_asks(served, counsel, answering):
    asked = {"model": served.name, "budget": 7}
    questions = [(ASKED, 3), ("What is 12 + 30?", 4)]
    with ThreadPoolExecutor(2) as threads:
        found = list(
            threads.map(
                lambda pair: post(counsel, question=pair[0], seed=pair[1], **asked), questions
            )
        )
    for (text, seed), (status, told) in zip(questions, found, strict=True):
        mine = answering(text, 7, seed=seed)
        assert status == 200 and told.items() >= json.loads(json.dumps(mine)).items()
        assert told["object"] == "answer" and told["model"] == served.name
        assert told["spent"]["policy"]["drawn"] > 0 and told["budget"] == 4


def test_the_models_card_tells_the_budgets(counsel, server):
    cards = []
    for running in (counsel, server):
        client = openai.OpenAI(base_url=running.url, api_key="sk-counsel")
        cards.append(client.models.list().data[0].model_dump())
    assert cards[0]["answer_budgets"] == [1, 4] and "answer_budgets" not in cards[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"question": "x"}, "expected of model a text, got nothing"),
        ({"model": "other", "question": "x"}, "expected the model student_instructed, got 'other'"),
        ({}, "expected of question a text, got nothing"),
        ({"question": "x", "budget": 0}, "a whole number from 1 to 8, got 0"),
        ({"question": "x", "budget": 9}, "a whole number from 1 to 8, got 9"),
        ({"question": "x", "seed": -1}, "expected of seed a whole number"),
        ({"question": "x", "tools": 1}, "expected of tools its default"),
        ({"question": "far " * 100}, "expected a prompt of at most 60 tokens"),
    ],
)
def test_questions_that_are_refused(served, counsel, body, message):
    named = {"model": served.name} if "expected of model" not in message else {}
    status, told = post(counsel, **{**named, **body})
    assert status in (400, 404) and message in told["error"]["message"]


def test_without_key_or_policy_there_is_no_answer(served, server, counsel):
    asked = {"model": served.name, "question": ASKED}
    assert post(counsel, key="sk-other", **asked)[0] == 401
    assert post(server, **asked)[0] == 404


def test_what_the_policy_cannot_do_is_told(served, answering):
    """A policy of verified strategies without a verifier."""
    bare = dataclasses.replace(answering, models=dataclasses.replace(answering.models, scorer=None))
    batcher = Batcher(served.generator, batch_size=8, max_wait=0.02, max_queue=256)
    gate = application(served, batcher, Limits(), key=None, answering=bare)
    with serve_in_thread(gate, "127.0.0.1", 0, patience=30) as running:
        status, told = post(running, model=served.name, question=ASKED)
    assert status == 400 and "a verifier" in told["error"]["message"]
