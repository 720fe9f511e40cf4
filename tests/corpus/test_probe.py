import pytest
from fake_endpoint import KEY, endpoint

from distill.core.errors import UserError
from distill.core.ports import Sampling
from distill.corpus.teacher import OpenAICompatible

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
            "scores": True,
            "served": ["m fp_1"],
        }


def test_what_a_strict_endpoint_refuses_is_found():
    with endpoint() as server:
        server.override = limited
        found = teacher(server).probe(SAMPLING, scored=False)
        assert (found["hottest"], found["takes_top_k"], found["scores"]) == (2.0, False, False)
        with pytest.raises(UserError, match="an endpoint that scores a given text, got one that"):
            teacher(server).probe(SAMPLING, scored=True)


def test_chat_is_never_asked_to_score():
    with endpoint() as server:
        found = teacher(server, kind="chat").probe(SAMPLING, scored=False)
        assert not found["scores"] and all("chat" in path for path, *_ in server.seen)


def test_logprobs_that_are_heated_are_told_from_the_model_s_own():
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
