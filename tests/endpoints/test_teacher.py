import dataclasses
import logging
import os
import re

import numpy as np
import pytest
from closeness import near
from fake_endpoint import FAULTS, KEY, endpoint, sample
from generator_laws import keeps_the_laws, value

from distill.core.errors import UserError
from distill.core.ports import Request, Sampling
from distill.core.store import describe
from distill.endpoints.session import Budget
from distill.endpoints.teacher import OpenAICompatible
from distill.text.completions import tokens_of

REQUESTS = [Request(f"Q: number {n}?\nLet's think step by step\n", seed=n) for n in range(40)]
SAMPLING = Sampling(temperature=0.7, max_tokens=64)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def teacher(server, **settings):
    settings = {"backoff": 0.01, "timeout": 20.0, **settings}
    return OpenAICompatible(model="m", base_url=server.url, **settings)


def answers(generator, requests=REQUESTS, sampling=SAMPLING):
    found = dict(generator.generate(requests, sampling))
    assert sorted(found) == list(range(len(requests)))
    return [value(found[index]) for index in range(len(requests))]


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_an_endpoint_keeps_the_laws_of_generators(kind, quirks):
    with endpoint(quirks=quirks) as server:
        generator = teacher(server, kind=kind)
        keeps_the_laws(lambda requests: generator.generate(requests, SAMPLING), REQUESTS[:20])


def test_an_endpoint_keeps_the_laws_when_it_scores():
    requests = [Request("Q: 1 + 1?\n", completion=f"One and one is {n}.") for n in range(5)]
    with endpoint() as server:
        keeps_the_laws(teacher(server).score, requests)


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_tokens_spell_the_text_and_are_those_the_endpoint_reported(kind):
    with endpoint() as server:
        found = dict(teacher(server, kind=kind).generate(REQUESTS, SAMPLING))
    for index, completion in found.items():
        sent = sample(REQUESTS[index].prompt, REQUESTS[index].seed)
        assert b"".join(completion.tokens).decode() == completion.text
        assert completion.tokens == tuple(piece for piece, _, _ in sent)
        for token, (_, logprob, top) in zip(tokens_of(completion), sent, strict=True):
            assert token.logprob == near(logprob, dtype="float32")
            assert [name for name, _ in token.top] == [name for name, _ in top]


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_faults_of_the_endpoint_change_nothing(kind):
    requests = [Request("Q", seed) for seed in range(150)]
    with endpoint(quirks=True) as calm, endpoint(quirks=True, faults=FAULTS) as rough:
        assert answers(teacher(calm, kind=kind), requests) == answers(
            teacher(rough, kind=kind), requests
        )
        faults = [fault for *_, fault in rough.seen if fault]
    assert set(faults) == set(FAULTS)


def test_what_the_endpoint_leaves_out_is_absent_and_the_rest_is_kept():
    with endpoint(quirks=True) as server:
        found = [c for _, c in teacher(server, kind="chat").generate(REQUESTS, SAMPLING)]
    assert all(b"".join(c.tokens).decode() == c.text for c in found)
    assert {c.finish_reason for c in found} == {"stop"}
    counts = np.concatenate([np.diff(c.top_ends, prepend=0) for c in found])
    assert {2, 5} <= set(counts.tolist())
    assert any((c.logprobs == -9999.0).any() for c in found)


def test_a_completion_that_ran_into_its_length_says_so():
    with endpoint() as server:
        short = Sampling(max_tokens=6)
        for _, completion in teacher(server).generate(REQUESTS[:5], short):
            assert completion.finish_reason == "length" and len(completion.tokens) <= 6


def test_the_sampling_reaches_the_endpoint():
    sampling = Sampling(0.5, 99, top_k=16, top_p=0.9, stop=("\n\n",), top_logprobs=3, min_p=0.01)
    with endpoint() as server:
        list(teacher(server).generate(REQUESTS[:1], sampling))
        list(teacher(server, kind="chat").generate(REQUESTS[:1], sampling))
        legacy, chat = (body for _, body, *_ in server.seen)
    common = {"temperature": 0.5, "max_tokens": 99, "top_k": 16, "top_p": 0.9, "stop": ["\n\n"]}
    common["min_p"] = 0.01
    prompt = REQUESTS[0].prompt
    assert legacy == {**common, "model": "m", "prompt": prompt, "seed": 0, "logprobs": 3}
    messages = [{"role": "user", "content": prompt}]
    wanted = {"messages": messages, "logprobs": True, "top_logprobs": 3, "seed": 0, "model": "m"}
    assert chat == {**common, **wanted}


def test_scored_tokens_are_those_of_the_completion():
    requests = [Request("Q: 1 + 1?\n", completion=f"One and one is {n}.") for n in range(5)]
    with endpoint() as server:
        found = dict(teacher(server).score(requests, 5))
    for index, request in enumerate(requests):
        assert found[index].text == request.completion
        assert b"".join(found[index].tokens).decode() == request.completion
        assert found[index].end_logprob == -1.5 and found[index].finish_reason == "stop"
        assert np.diff(found[index].top_ends, prepend=0).tolist() == [2] * len(found[index].tokens)


def test_several_endpoints_share_the_requests_and_stand_in_for_each_other():
    with endpoint() as one, endpoint() as two:
        both = OpenAICompatible(model="m", base_url=(one.url, two.url), backoff=0.01)
        whole = answers(both)
        assert min(len(one.seen), len(two.seen)) == len(REQUESTS) // 2
        assert answers(teacher(one)) == whole
        two.override = refusing(503, {"message": "busy"})
        assert answers(both) == whole


def test_closing_early_leaves_no_request_behind():
    with endpoint() as server:
        results = teacher(server, concurrency=4).generate(REQUESTS, SAMPLING)
        next(results)
        results.close()
        assert len(server.seen) < len(REQUESTS)


def refusing(status, error, headers=None):
    return lambda path, body: (status, {"error": error}, headers or {})


def test_a_withheld_answer_is_filtered_and_a_prompt_too_long_an_error():
    with endpoint() as server:
        server.override = refusing(400, {"message": "no", "code": "content_filter"})
        assert [c.finish_reason for _, c in teacher(server).generate(REQUESTS[:1], SAMPLING)] == [
            "content_filter"
        ]
        server.override = refusing(400, {"message": "no", "code": "context_length_exceeded"})
        assert [c.finish_reason for _, c in teacher(server).generate(REQUESTS[:1], SAMPLING)] == [
            "error"
        ]


@pytest.mark.parametrize(
    ("override", "match"),
    [
        (refusing(404, {"message": "no model m"}), "HTTP 404: .*no model m"),
        (refusing(401, {"message": f"bad key {KEY}"}), r"HTTP 401: .*bad key \*\*\*"),
        (refusing(429, {"message": "pay", "code": "insufficient_quota"}), "HTTP 429: .*pay"),
        (refusing(503, {"message": "busy"}), "got HTTP 503 3 times; .* to resume"),
        (lambda *_: (200, {"choices": []}), r"malformed answer \(no choice\) 3 times"),
        (
            lambda *_: (200, {"choices": [{"text": "8", "finish_reason": "stop"}]}),
            "expected log-probabilities with every completion, got a text without them",
        ),
    ],
)
def test_an_endpoint_that_cannot_serve_is_refused(override, match, caplog):
    caplog.set_level(logging.DEBUG)
    with endpoint() as server, pytest.raises(UserError, match=match) as raised:
        server.override = override
        list(teacher(server, max_retries=2).generate(REQUESTS[:3], SAMPLING))
    assert KEY not in str(raised.value) and KEY not in caplog.text


def test_what_was_answered_comes_before_a_refusal():
    with endpoint() as server:
        good = dict(teacher(server).generate(REQUESTS[:1], SAMPLING))
        assert good
        results = teacher(server, concurrency=1).generate(REQUESTS[:2], SAMPLING)
        next(results)
        server.override = refusing(404, {"message": "gone"})
        with pytest.raises(UserError, match="gone"):
            list(results)


def test_a_start_ends_at_its_budget_and_shows_what_it_spent(caplog):
    caplog.set_level(logging.INFO)
    budget = Budget(dollars=0.01, dollars_per_million=(10.0, 100.0))
    found = []
    with endpoint() as server, pytest.raises(UserError, match=r"budget of 0\.01 dollars, got 0\.0"):
        for item in teacher(server, budget=budget, concurrency=2).generate(REQUESTS, SAMPLING):
            found.append(item)
    assert 2 <= len(found) < 10
    assert len(found) == len(server.seen), "an answer that was paid for is lost"
    assert re.search(
        r"answers by m fp_1, 0 tried again, \d+ prompt and \d+ compl.* tokens, 0\.01", caplog.text
    )


def test_a_budget_of_tokens_needs_no_prices():
    with endpoint() as server, pytest.raises(UserError, match="budget of 100 tokens, got 120 "):
        list(teacher(server, budget=Budget(tokens=100), concurrency=1).generate(REQUESTS, SAMPLING))
    with pytest.raises(UserError, match="a price of m with a budget in dollars, got none"):
        OpenAICompatible(model="m", budget=Budget(dollars=1.0))
    assert OpenAICompatible(model="gpt-4o-mini", budget=Budget(dollars=1.0)).price.prompt == 0.15


def test_an_endpoint_that_is_not_there_is_named():
    with endpoint() as server:
        gone = teacher(server, max_retries=1)
    with pytest.raises(UserError, match=r"an answer from m at 127\.0\.0\.1:\d+, got \w+ 2 times"):
        list(gone.generate(REQUESTS[:1], SAMPLING))


def test_a_missing_key_is_asked_for(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    generator = OpenAICompatible(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="environment variable OPENAI_API_KEY, got none"):
        next(generator.generate(REQUESTS[:1], SAMPLING))
    assert list(generator.generate([], SAMPLING)) == []


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nx")
    with endpoint() as server, pytest.raises(UserError, match="an API key of printable") as raised:
        list(teacher(server).generate(REQUESTS[:1], SAMPLING))
    assert KEY not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with endpoint() as server:
        list(teacher(server).generate(REQUESTS[:1], SAMPLING))
        assert server.seen[0][2] == f"Bearer {KEY}"


def test_the_key_is_sent_and_kept_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    with endpoint() as server:
        generator = teacher(server)
        list(generator.generate(REQUESTS[:2], SAMPLING))
        assert {sent for _, _, sent, _ in server.seen} == {f"Bearer {KEY}"}
    kept = [repr(generator), str(vars(generator)), str(describe(generator)), caplog.text]
    assert not any(KEY in text for text in kept)
    assert os.environ["OPENAI_API_KEY"] == KEY


def test_an_endpoint_without_a_key_needs_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with endpoint() as server:
        assert answers(teacher(server, api_key_variable=None), REQUESTS[:2])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"base_url": "localhost:8000"}, "expected an http"),
        ({"base_url": "http://user:word@localhost/v1"}, "without credentials, got one with some"),
        ({"kind": "assistants"}, "a kind of completions, chat, got assistants"),
    ],
)
def test_an_odd_address_or_kind_is_refused(settings, match):
    with pytest.raises(UserError, match=match) as raised:
        OpenAICompatible(model="m", **settings)
    assert "word" not in str(raised.value)


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_prompt_logprobs_score_what_an_echo_would(kind):
    requests = [Request("Q: 1 + 1?\n", completion=f"One and one is {n}.") for n in range(5)]
    with endpoint() as server:
        by_echo = dict(teacher(server).score(requests))
        server.override = refusing_field("echo")
        found = dict(teacher(server, kind=kind).score(requests))
        asked = server.seen[-1][1]
        keeps_the_laws(teacher(server, kind=kind).score, requests)
    assert asked["prompt_logprobs"] == 5 and "echo" not in asked
    for index, completion in found.items():
        assert completion.tokens == by_echo[index].tokens
        np.testing.assert_array_equal(completion.logprobs, by_echo[index].logprobs)
        assert completion.finish_reason == "stop" and completion.prompt_tokens == 10


def refusing_field(name):
    def override(path, body):
        return (400, {"error": {"message": f"no {name}"}}) if name in body else None

    return override


def test_an_endpoint_without_either_cannot_score():
    with (
        endpoint() as server,
        pytest.raises(UserError, match="by echo or prompt_logprobs, got one"),
    ):
        server.override = lambda *_: (200, {"choices": [{"text": "", "finish_reason": "length"}]})
        list(teacher(server).score([Request("Q", completion="A")]))


def test_a_prefix_ends_a_legacy_prompt_or_is_apart_where_the_card_says_so():
    request = dataclasses.replace(REQUESTS[0], prefix="I add")
    with endpoint() as server:
        ((_, joined),) = teacher(server).generate([request], SAMPLING)
        body = server.seen[-1][1]
        assert body["prompt"] == request.prompt + "I add" and "completion_prefix" not in body
        server.card = {"id": "m", "completion_prefix": True}
        ((_, apart),) = teacher(server).generate([request], SAMPLING)
        body = server.seen[-1][1]
        assert (body["prompt"], body["completion_prefix"]) == (request.prompt, "I add")
        whole = sample(request.prompt, request.seed)
    assert apart.tokens == tuple(piece for piece, *_ in whole)[2:]
    assert joined.text != apart.text


def test_what_a_prefix_needs_is_found_out_once():
    request = dataclasses.replace(REQUESTS[0], prefix="I add")
    with endpoint() as server:
        generator = teacher(server, kind="chat")
        list(generator.generate([request], SAMPLING))
        asked = len(server.seen)
        list(generator.generate([request], SAMPLING))
        assert len(server.seen) == asked + 1 < 5


def test_a_chat_continues_its_last_message_or_is_refused():
    request = dataclasses.replace(REQUESTS[0], prefix="I add")
    with endpoint() as server:
        ((_, found),) = teacher(server, kind="chat").generate([request], SAMPLING)
        body = server.seen[-1][1]
        assert body["messages"][-1] == {"role": "assistant", "content": "I add"}
        assert body["continue_final_message"] and not body["add_generation_prompt"]
        assert ("I add" + found.text).encode() == b"".join(
            piece for piece, *_ in sample(request.prompt, request.seed)
        )
        server.override = refusing_field("continue_final_message")
        with pytest.raises(UserError, match="that continues the prefix of a completion, got one"):
            list(teacher(server, kind="chat").generate([request], SAMPLING))


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_the_stop_text_is_asked_for_and_tokens_are_counted(kind):
    sampling = dataclasses.replace(SAMPLING, stop=("\n",), include_stop=True)
    with endpoint() as server:
        ((_, found),) = teacher(server, kind=kind).generate(REQUESTS[:1], sampling)
        assert server.seen[-1][1]["include_stop_str_in_output"] is True
    assert (found.prompt_tokens, found.completion_tokens) == (10, 20)
