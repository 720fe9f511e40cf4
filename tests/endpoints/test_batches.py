import json

import pytest
from fake_endpoint import KEY, endpoint
from generator_laws import keeps_the_laws

from distill.core.errors import UserError
from distill.core.ports import Request, Sampling
from distill.core.store import describe
from distill.endpoints.batches import OpenAIBatches
from distill.endpoints.teacher import OpenAICompatible

REQUESTS = [Request(f"Q: number {n}?\n", seed=n) for n in range(25)]
SAMPLING = Sampling(temperature=0.7, max_tokens=64, top_k=5)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def batches(server, **settings):
    settings = {"poll_seconds": 0.0, "requests_per_batch": 10, **settings}
    return OpenAIBatches(model="m", base_url=server.url, **settings)


def texts(generator, requests=REQUESTS):
    found = dict(generator.generate(requests, SAMPLING))
    assert sorted(found) == list(range(len(requests)))
    return [(found[n].text, found[n].tokens, found[n].finish_reason) for n in sorted(found)]


def test_batches_keep_the_laws_of_generators():
    with endpoint(quirks=True) as server:
        generator = batches(server)
        keeps_the_laws(lambda requests: generator.generate(requests, SAMPLING), REQUESTS)


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_batches_bring_what_single_requests_bring(kind):
    with endpoint() as server:
        single = OpenAICompatible(model="m", base_url=server.url, kind=kind)
        assert texts(batches(server, kind=kind)) == texts(single)
        assert len(server.batches) == 3
        sent = server.seen[0][1]
        assert sent["top_k"] == 5 and "extra_body" not in sent


def test_what_one_round_leaves_unanswered_the_next_asks_again():
    with endpoint(faults={"limit": 0.2, "fault": 0.1}) as rough, endpoint() as calm:
        assert texts(batches(rough)) == texts(batches(calm))
        assert any(fault for *_, fault in rough.seen)


def test_a_later_start_finds_the_batches_of_an_earlier_one():
    with endpoint() as server:
        first = batches(server).generate(REQUESTS, SAMPLING)
        seen = [next(first)[0] for _ in range(3)]
        first.close()
        rest = [request for n, request in enumerate(REQUESTS) if n not in seen]
        assert len(texts(batches(server), rest)) == len(rest)
        assert len(server.batches) == 3 and len(server.seen) == len(REQUESTS)


def test_equal_requests_are_paid_for_once():
    with endpoint() as server:
        found = texts(batches(server), [REQUESTS[0]] * 3)
        assert found[0] == found[1] == found[2] and len(server.seen) == 1


def answered(server, status, error):
    """Have the first batch answered by an error alone."""
    name = json.loads(server.files["file-0"])["custom_id"]
    response = {"status_code": status, "body": {"error": error}}
    server.files["answers"] = json.dumps({"custom_id": name, "response": response}).encode()
    server.batches["batch_0"] |= {"status": "completed", "output_file_id": "answers"}


@pytest.fixture
def begun():
    """An endpoint with a batch of one request in progress."""
    with endpoint() as server:
        generator = batches(server)
        client_side = generator.generate(REQUESTS[:1], SAMPLING)
        server.quirks = False
        next(client_side)
        client_side.close()
        yield server, generator


def test_a_withheld_answer_is_filtered(begun):
    server, generator = begun
    answered(server, 400, {"code": "content_filter", "message": "no"})
    assert texts(generator, REQUESTS[:1])[0][2] == "content_filter"


def test_a_refused_request_ends_the_run(begun):
    server, generator = begun
    answered(server, 404, {"message": "no such model"})
    with pytest.raises(UserError, match="got HTTP 404: no such model"):
        texts(generator, REQUESTS[:1])


def test_a_batch_that_fails_is_told(begun):
    server, generator = begun
    server.batches["batch_0"] |= {"metadata": {}}
    server.begun_status = "failed"
    with pytest.raises(UserError, match="a batch that is accepted, got too many"):
        texts(generator, REQUESTS[:1])


def test_requests_that_no_round_answers_are_named():
    match = "each of 25 requests, got 25 without one after 3 rounds"
    with endpoint(faults={"fault": 1.0}) as server, pytest.raises(UserError, match=match):
        texts(batches(server))


def test_batches_cannot_score_and_keep_no_key():
    generator = OpenAIBatches(model="m")
    with pytest.raises(UserError, match="to score a text, got the Batch API"):
        generator.score(REQUESTS)
    assert KEY not in repr(generator) + str(describe(generator))
