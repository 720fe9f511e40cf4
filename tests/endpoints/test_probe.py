import pytest
from fake_endpoint import KEY, endpoint

from distill.core.errors import UserError
from distill.core.ports import Fire, Sampling
from distill.endpoints.teacher import OpenAICompatible

SAMPLING = Sampling(temperature=0.7)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def teacher(server, **settings):
    return OpenAICompatible(model="m", base_url=server.url, backoff=0.01, **settings)


def limited(path, body):
    """An endpoint as strict as OpenAI's own: no hot draws, no top_k, no echo."""
    for name, wrong in (
        ("temperature", body.get("temperature", 1.0) > 2.0),
        ("top_k", "top_k" in body),
        ("echo", "echo" in body),
        ("prompt_logprobs", "prompt_logprobs" in body),
        ("logprobs", max(body.get("logprobs", 0), body.get("top_logprobs", 0)) > 5),
        ("continue_final_message", "continue_final_message" in body),
    ):
        if wrong:
            return 400, {"error": {"message": f"bad {name}"}}
    return None


def test_what_an_open_endpoint_does_is_found():
    with endpoint() as server:
        assert teacher(server).probe(SAMPLING, scored=True) == {
            "top_logprobs": 5,
            "tells_bytes": True,
            "keeps_seeds": True,
            "before_temperature": True,
            "hottest": 30.0,
            "takes_top_k": True,
            "scores": "echo",
            "continues": True,
            "fire": None,
            "served": ["m fp_1"],
        }


def test_what_a_strict_endpoint_refuses_is_found():
    with endpoint() as server:
        server.override = limited
        found = teacher(server).probe(SAMPLING, scored=False)
        assert (found["hottest"], found["takes_top_k"], found["scores"]) == (2.0, False, None)
        with pytest.raises(UserError, match="an endpoint that scores a given text, got one that"):
            teacher(server).probe(SAMPLING, scored=True)


def test_a_chat_scores_by_prompt_logprobs_and_continues_a_prefix_where_the_server_can():
    with endpoint() as server:
        found = teacher(server, kind="chat").probe(SAMPLING, scored=True)
        assert (found["scores"], found["continues"]) == ("prompt_logprobs", True)
        assert all("chat" in path for path, *_ in server.seen)


def test_a_chat_that_begins_anew_is_distinguished_from_one_that_continues():
    def forgets(path, body):
        body.pop("continue_final_message", None)

    for override in (forgets, limited):
        with endpoint() as server:
            server.override = override
            found = teacher(server, kind="chat").probe(SAMPLING, scored=False)
            assert found["continues"] is False


def test_the_method_of_fire_is_found_and_an_endpoint_without_one_is_refused():
    fire = Fire(top_k=4)
    for override, drawn_by in ((None, "server"), (limited, "client")):
        with endpoint() as server:
            server.override = override
            found = teacher(server, fire=fire).probe(SAMPLING, scored=False)
            assert found["fire"] == {"drawn_by": drawn_by, "candidates": 5}
    with endpoint() as server, pytest.raises(UserError, match="one that refuses to, or begins"):
        server.override = limited
        teacher(server, fire=fire, kind="chat").probe(SAMPLING, scored=False)


def test_an_endpoint_that_only_seems_hot_is_not_taken_for_it():
    def cooled(path, body):
        body["temperature"] = min(body["temperature"], 2.0)

    with endpoint() as server:
        server.override = cooled
        found = teacher(server, fire=Fire(top_k=4)).probe(SAMPLING, scored=False)
        assert found["fire"]["drawn_by"] == "client" and found["hottest"] == 30.0


def test_logprobs_that_are_heated_are_distinguished_from_the_model_s_own():
    with endpoint() as server:
        server.tempered = True
        assert teacher(server).probe(SAMPLING, scored=False)["before_temperature"] is False


def test_a_server_that_draws_anew_each_time_does_not_keep_seeds():
    with endpoint() as server:
        server.override = lambda path, body: body.update(seed=len(server.seen))
        assert teacher(server).probe(SAMPLING, scored=False)["keeps_seeds"] is False


def test_too_few_candidates_are_refused():
    with (
        endpoint() as server,
        pytest.raises(UserError, match="9 candidates a token, got at most 5"),
    ):
        teacher(server).probe(Sampling(top_logprobs=9), scored=False)


def test_an_endpoint_without_logprobs_is_refused():
    choice = {"text": "8", "finish_reason": "stop", "logprobs": None}
    with endpoint() as server, pytest.raises(UserError, match="log-probabilities with every"):
        server.override = lambda path, body: (200, {"choices": [choice]})
        teacher(server).probe(SAMPLING, scored=False)
