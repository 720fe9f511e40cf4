"""The HTTP API: equal to the generator behind it, whatever the batch; strict; never half closed."""

import collections
import contextlib
import dataclasses
import functools
import http.client
import itertools
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import jax
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.__main__ import main
from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Fire, Request, Sampling
from distill.core.records import Problem
from distill.core.store import Stage, write_json
from distill.endpoints.shapes import SHAPES
from distill.endpoints.shapes.completions import Echo
from distill.endpoints.teacher import OpenAICompatible
from distill.interop import export
from distill.models import weights
from distill.models.t5 import T5Config, T5Model
from distill.serving import requests, responses, serve
from distill.serving.application import Served, application, seed_of
from distill.serving.batching import Batcher
from distill.serving.requests import Limits, RefusedError
from distill.serving.server import Running, load, read_key, serve_in_thread
from distill.text.completions import Token, assemble, tokens_of
from distill.traces.harvest import harvest, score
from distill.training.checkpoints import Checkpoints

KEY = "sk-serve-0123456789abcdef"
ADDING = "Q: What is {} + {}?\nLet's think step by step\n"
PROMPT = ADDING.format(12, 30)
LIMITS = Limits()
SAMPLING = Sampling(temperature=0.7, max_tokens=48)
ASKED = {"model": "teacher", "temperature": 0.7, "max_tokens": 48}


@contextlib.contextmanager
def running(served, *, key=None, limits=LIMITS, batch_size=4, max_wait=0.02, max_queue=256):
    batcher = Batcher(
        served.generator, batch_size=batch_size, max_wait=max_wait, max_queue=max_queue
    )
    gate = application(served, batcher, limits, key=key)
    with serve_in_thread(gate, "127.0.0.1", 0, patience=30) as server:
        yield server


def client(server, key=KEY):
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=60)


def post(server, body, path="/v1/completions", headers=()):
    """Send raw bytes; return (status, headers, parsed body)."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", path, content, {**own, **dict(headers)})
    answer = connection.getresponse()
    found = answer.status, answer.headers, json.loads(answer.read())
    connection.close()
    return found


# --- The built-in teacher behind a socket --------------------------------------------------------


@pytest.fixture(scope="module")
def teacher():
    return load("data/models/teacher", batch_size=4)


@pytest.fixture(scope="module")
def server(teacher):
    with running(teacher, key=KEY) as server:
        yield server


def own(teacher, requests, sampling=SAMPLING):
    found = dict(teacher.generator.generate(requests, sampling))
    return [found[index] for index in range(len(requests))]


def same(one, other, *, ending=True):
    assert (one.text, one.tokens, one.finish_reason) == (
        other.text,
        other.tokens,
        other.finish_reason,
    )
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)
    assert one.top_ends.tolist() == other.top_ends.tolist()
    for mine, theirs in zip(tokens_of(one), tokens_of(other), strict=True):
        assert [nats for _, nats in mine.top] == pytest.approx(
            [nats for _, nats in theirs.top], abs=1e-3
        )
    assert {*one.top_tokens} == {*other.top_tokens}
    if ending:
        assert one.end_logprob == pytest.approx(other.end_logprob, abs=1e-3, nan_ok=True)


def read(kind, choice):
    """Read a choice as a client of the endpoint does."""
    return SHAPES[kind].completion({"choices": [choice]})


def read_echo(choice, completion):
    request = Request(PROMPT, completion=completion)
    return Echo().completion({"choices": [choice]}, request, 5)


def test_completions_and_chats_are_the_generators_own(teacher, server):
    (mine,) = own(teacher, [Request(PROMPT, 5)])
    legacy = client(server).completions.create(prompt=PROMPT, seed=5, logprobs=5, **ASKED)
    chat = client(server).chat.completions.create(
        messages=[{"role": "user", "content": PROMPT}],
        seed=5,
        logprobs=True,
        top_logprobs=5,
        **ASKED,
    )
    same(read("completions", legacy.choices[0].model_dump()), mine)
    same(read("chat", chat.choices[0].model_dump()), mine)
    assert legacy.choices[0].finish_reason == mine.finish_reason
    for usage in (legacy.usage, chat.usage):
        assert usage.prompt_tokens == mine.prompt_tokens
        assert usage.completion_tokens == mine.completion_tokens
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert b"".join(bytes(item.bytes) for item in chat.choices[0].logprobs.content) == (
        mine.text.encode()
    )


def test_offsets_point_at_the_tokens(server):
    choice = (
        client(server).completions.create(prompt=PROMPT, seed=1, logprobs=0, **ASKED).choices[0]
    )
    told = choice.logprobs
    for name, offset in zip(told.tokens[:-1], told.text_offset, strict=False):
        assert choice.text.startswith(name, offset)
    assert told.tokens[-1] == responses.END and told.top_logprobs[0] == {}


def test_n_choices_of_several_prompts_are_those_of_the_derived_seeds(teacher, server):
    prompts = [PROMPT, ADDING.format(7, 8)]
    found = client(server).completions.create(prompt=prompts, n=3, seed=9, **ASKED)
    requests = [Request(prompt, seed_of(9, n)) for prompt in prompts for n in range(3)]
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [c.text for c in found.choices] == [c.text for c in own(teacher, requests)]
    assert found.choices[0].logprobs is None


def test_the_same_request_gives_the_same_text_whoever_else_asks(server):
    def ask(number):
        seed = number // 2
        found = client(server).completions.create(
            prompt=ADDING.format(seed, 40), seed=seed, **ASKED
        )
        return seed, found.choices[0].text

    alone = [ask(2 * seed) for seed in range(6)]
    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(ask, range(12))) == set(alone)


def test_a_stop_text_ends_the_completion_and_is_not_part_of_it(teacher, server):
    stop = ["\n", "answer"]
    found = client(server).completions.create(prompt=PROMPT, seed=3, stop=stop, logprobs=5, **ASKED)
    sampling = dataclasses.replace(SAMPLING, stop=tuple(stop))
    (mine,) = own(teacher, [Request(PROMPT, 3)], sampling)
    same(read("completions", found.choices[0].model_dump()), mine)
    assert found.choices[0].finish_reason == "stop" and "\n" not in mine.text


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_prefixes_and_stop_texts_are_served_as_the_generator_has_them(
    teacher, server, kind, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    remote = OpenAICompatible(model="teacher", base_url=server.url, kind=kind)
    sampling = dataclasses.replace(SAMPLING, stop=("\n",), include_stop=True)
    requests = [Request(PROMPT, seed, prefix=prefix) for seed in (2, 3) for prefix in ("", "12 +")]
    here, there = (dict(g.generate(requests, sampling)) for g in (teacher.generator, remote))
    assert any(made.text.endswith("\n") for made in here.values())
    for number, made in here.items():
        same(there[number], made)
        assert there[number].prompt_tokens == made.prompt_tokens
        assert there[number].completion_tokens == made.completion_tokens
    assert here[1].prompt_tokens > here[0].prompt_tokens


def test_sampling_reaches_the_generator(teacher, server):
    found = client(server).completions.create(
        model="teacher",
        prompt=PROMPT,
        seed=4,
        max_tokens=6,
        temperature=2.0,
        top_p=0.9,
        extra_body={"top_k": 3, "min_p": 0.05},
    )
    sampling = Sampling(temperature=2.0, max_tokens=6, top_p=0.9, top_k=3, min_p=0.05)
    (mine,) = own(teacher, [Request(PROMPT, 4)], sampling)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (mine.text, "length")


def test_pieces_of_a_completion_join_to_the_whole(server):
    wanted = {"prompt": PROMPT, "seed": 6, "n": 2, "logprobs": 2, **ASKED}
    whole = client(server).completions.create(**wanted)
    options = {"include_usage": True}
    parts = list(client(server).completions.create(stream=True, stream_options=options, **wanted))
    for choice in whole.choices:
        own_parts = [
            p.choices[0] for p in parts if p.choices and p.choices[0].index == choice.index
        ]
        assert "".join(part.text for part in own_parts) == choice.text
        told = [part.logprobs for part in own_parts if part.logprobs]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [item for part in told for item in getattr(part, name)]
            assert joined == getattr(choice.logprobs, name)
        reasons = [part.finish_reason for part in own_parts]
        assert reasons == [None] * (len(reasons) - 1) + [choice.finish_reason]
    assert len(parts) > 20 and parts[-1].usage == whole.usage


def test_pieces_of_a_chat_join_to_the_whole(server):
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": PROMPT}]
    wanted = {"messages": messages, "seed": 6, "logprobs": True, "top_logprobs": 2, **ASKED}
    whole = client(server).chat.completions.create(**wanted).choices[0]
    parts = [p.choices[0] for p in client(server).chat.completions.create(stream=True, **wanted)]
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    told = [item for part in parts if part.logprobs for item in part.logprobs.content]
    assert told == whole.logprobs.content
    assert parts[0].delta.role == "assistant" and parts[-1].finish_reason == "stop"


def test_an_echo_scores_the_prompt(teacher, server):
    solution = "12 + 30 = 42.\nThe answer is 42"
    request = Request(PROMPT, completion=solution)
    ((_, mine),) = teacher.generator.score([request])
    wanted = {"prompt": PROMPT + solution, "echo": True, "logprobs": 5, "model": "teacher"}
    none = client(server).completions.create(max_tokens=0, **wanted).choices[0]
    one = client(server).completions.create(max_tokens=1, temperature=0, **wanted).choices[0]
    assert none.text == PROMPT + solution and none.finish_reason == "length"
    assert len(one.logprobs.tokens) == len(none.logprobs.tokens) + 1
    same(read_echo(none.model_dump(), solution), mine, ending=False)
    same(read_echo(one.model_dump(), solution), mine)


PROBLEMS = [
    Problem(f"own/train/{n}", "own", "train", f"What is {n} + 31?", str(n + 31), f"It is {n + 31}.")
    for n in range(3)
]


def question(text):
    return f"Q: {text}\nLet's think step by step\n"


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_harvest_over_the_socket_is_the_harvest_in_process(teacher, server, kind, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    remote = OpenAICompatible(model="teacher", base_url=server.url, kind=kind)

    def traces(generator):
        found = harvest(PROBLEMS, generator, samples=3, sampling=SAMPLING, prompt=question)
        return {(trace.problem_id, trace.sample): trace for trace in found}

    here, there = traces(teacher.generator), traces(remote)
    assert here.keys() == there.keys() and len(here) == 9
    for key, trace in here.items():
        same(there[key], trace)
    probe = remote.probe(SAMPLING, scored=kind == "completions")
    assert probe["tells_bytes"] and probe["keeps_seeds"] and probe["before_temperature"]
    assert (probe["top_logprobs"], probe["hottest"], probe["takes_top_k"]) == (5, 30.0, True)


def hot_firsts(generator, seeds):
    one = dataclasses.replace(SAMPLING, max_tokens=1)
    requests = [Request(PROMPT, seed) for seed in seeds]
    return [made.tokens[0] for _, made in sorted(generator.generate(requests, one))]


def test_hot_first_tokens_over_the_socket_are_distributed_as_those_in_process(
    teacher, server, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fire, count = Fire(temperature=6.0, top_k=8), 400
    local = dataclasses.replace(teacher.generator, fire=fire, batch_size=200)
    remote = functools.partial(
        OpenAICompatible, "teacher", server.url, "completions", fire, concurrency=8
    )
    here = collections.Counter(hot_firsts(local, range(count)))
    assert len(here) == fire.top_k
    for hot_by in ("client", "server"):
        there = collections.Counter(hot_firsts(remote(hot_by=hot_by), range(count, 2 * count)))
        assert there.keys() <= here.keys()
        chi2 = sum((here[name] - there[name]) ** 2 / (here[name] + there[name]) for name in here)
        assert chi2 < 24.3, "99.9 % of equal distributions on eight outcomes stay below"


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_hot_completions_over_the_socket_go_on_as_the_generator_does(
    teacher, server, kind, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fire = Fire(top_k=8)
    remote = OpenAICompatible("teacher", server.url, kind, fire, hot_by="client")
    found = dict(remote.generate([Request(PROMPT, seed) for seed in range(3)], SAMPLING))
    assert remote.probe(SAMPLING, scored=False)["fire"] == {"drawn_by": "client", "candidates": 9}
    shorter = dataclasses.replace(SAMPLING, max_tokens=SAMPLING.max_tokens - 1)
    for seed, made in found.items():
        prefix = made.tokens[0].decode()
        (mine,) = own(teacher, [Request(PROMPT, seed, prefix=prefix)], shorter)
        assert made.text == prefix + mine.text and made.finish_reason == mine.finish_reason
        assert math.log(1 / 9) < made.behaviour_logprobs[0] < 0


def test_chains_scored_over_the_socket_are_those_scored_in_process(teacher, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    remote = OpenAICompatible(model="teacher", base_url=server.url)
    settings = {"top_logprobs": 5, "prompt": question}
    here = {t.problem_id: t for t in score(PROBLEMS, teacher.generator, **settings)}
    there = {t.problem_id: t for t in score(PROBLEMS, remote, **settings)}
    assert here.keys() == there.keys()
    for key, trace in here.items():
        same(there[key], trace)


def test_the_model_is_listed_and_another_is_not_found(server):
    assert [model.id for model in client(server).models.list()] == ["teacher"]
    assert client(server).models.retrieve("teacher").id == "teacher"
    with pytest.raises(openai.NotFoundError, match="expected the model teacher") as refused:
        client(server).completions.create(model="other", prompt="a")
    assert refused.value.code == "model_not_found"


# --- Keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk-other", KEY + "x", KEY[:-1], "ä".encode().decode("latin-1")])
def test_a_wrong_key_is_refused_and_no_key_is_logged(server, key, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    status, headers, answer = post(server, ASKED, headers={"Authorization": f"Bearer {key}"})
    assert status == 401 and answer["error"]["code"] == "invalid_api_key"
    assert headers["www-authenticate"] == "Bearer"
    assert key not in json.dumps(answer)
    for scheme in ({"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        assert post(server, ASKED, headers=scheme)[0] == 401
    assert post(server, b"{", headers={"Authorization": f"bearer {KEY}"})[0] == 400
    printed = "".join(capfd.readouterr())
    told = printed + "".join(r.getMessage() for r in caplog.records if r.name != "httpcore")
    assert KEY not in told and key not in told


def test_a_key_is_needed_off_loopback_and_where_one_is_named(monkeypatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert read_key(None, host, fallback=serve.KEY_VARIABLE) is None
    for variable, host in ((None, "0.0.0.0"), (None, "example.org"), ("OTHER_KEY", "127.0.0.1")):
        with pytest.raises(UserError, match="an API key in the environment variable"):
            read_key(variable, host, fallback=serve.KEY_VARIABLE)
    monkeypatch.setenv(serve.KEY_VARIABLE, KEY)
    assert read_key(None, "127.0.0.1", fallback=serve.KEY_VARIABLE) == KEY


# --- Bad requests --------------------------------------------------------------------------------

CHAT = {"model": "teacher", "messages": [{"role": "user", "content": "Q"}]}
DEEP = b'{"model": "teacher", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
RAW = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[1]",
    "a text": b'"a"',
    "no UTF-8": b'{"model": "teacher", "prompt": "\xff"}',
    "UTF-16": json.dumps({**ASKED, "prompt": "Q"}).encode("utf-16"),
    "nested deeply": DEEP,
    "a number too long": b'{"model": "teacher", "prompt": "Q", "seed": ' + b"9" * 5000 + b"}",
    "NaN": b'{"model": "teacher", "prompt": "Q", "temperature": NaN}',
    "infinite": b'{"model": "teacher", "prompt": "Q", "temperature": 1e999}',
    "a lone surrogate": b'{"model": "teacher", "prompt": "\\ud800"}',
}
FIELDS = [
    {"prompt": None},
    {"prompt": 5},
    {"prompt": []},
    {"prompt": [1, 2]},
    {"prompt": ["a", {}]},
    {"prompt": ["a"] * 200},
    {"prompt": " a" * 5000},
    {"model": 3},
    {"model": None},
    {"n": 0},
    {"n": 10**30},
    {"n": True},
    {"n": "2"},
    {"n": 100, "prompt": ["a", "b"]},
    {"max_tokens": 0},
    {"max_tokens": 10**9},
    {"max_tokens": 1.5},
    {"temperature": -1},
    {"temperature": "hot"},
    {"temperature": 1e-30},
    {"temperature": 101},
    {"top_p": 0},
    {"top_p": 1.01},
    {"top_k": 10**12},
    {"top_k": -2},
    {"min_p": 1.1},
    {"min_p": False},
    {"seed": 2**64},
    {"seed": 1.0},
    {"stop": ""},
    {"stop": ["a"] * 17},
    {"stop": [3]},
    {"stop": {"a": 1}},
    {"logprobs": 21},
    {"logprobs": True},
    {"echo": 1},
    {"stream": "yes"},
    {"stream_options": {"include_usage": True}},
    {"best_of": 4},
    {"logit_bias": {"5": 100}},
    {"presence_penalty": 0.5},
    {"include_stop_str_in_output": 1},
    {"completion_prefix": 5},
    {"completion_prefix": "12", "echo": True},
    {"beams": 4},
    {"\n<script>": 1},
]
CHATS = [
    {"messages": None},
    {"messages": []},
    {"messages": "Q"},
    {"messages": ["Q"]},
    {"messages": [{"role": "poet", "content": "Q"}]},
    {"messages": [*CHAT["messages"], {"role": "assistant", "content": "So"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    {"messages": CHAT["messages"], "add_generation_prompt": False},
    {"messages": CHAT["messages"], "continue_final_message": True},
    {"messages": [{"role": "assistant", "content": "So"}], "continue_final_message": True},
    {"continue_final_message": True, "add_generation_prompt": True},
    {"completion_prefix": "12"},
    {"logprobs": 5},
    {"top_logprobs": 5},
    {"logprobs": True, "top_logprobs": 21},
    {"max_completion_tokens": 0},
    {"tools": [{"type": "function"}]},
    {"response_format": {"type": "json_object"}},
    {"prompt": "Q"},
]


def is_refusal(answer, status, *, expected=400):
    assert status == expected
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    text = json.dumps(answer)
    assert "Traceback" not in text and ".py" not in text and len(text) < 600


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_no_request_is_refused(server, name):
    status, _, answer = post(server, RAW[name])
    is_refusal(answer, status)


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ascii(fields)[:40])
def test_a_completion_that_cannot_be_had_is_refused_by_its_field(server, fields):
    status, _, answer = post(server, {**ASKED, "prompt": "Q", **fields})
    is_refusal(answer, status)
    name = next(iter(fields))
    assert answer["error"]["param"] == (name if name.isidentifier() else None)


@pytest.mark.parametrize("fields", CHATS, ids=lambda fields: ascii(fields)[:40])
def test_a_chat_that_cannot_be_had_is_refused(server, fields):
    status, _, answer = post(server, {**CHAT, **fields}, "/v1/chat/completions")
    is_refusal(answer, status)


def test_a_prompt_that_is_too_long_says_so_as_clients_expect(server):
    _, _, answer = post(server, {**ASKED, "prompt": " a" * 5000})
    assert answer["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1, "min_p": 0, "frequency_penalty": 0.0, "user": "me", "logit_bias": {}},
        {"stop": None, "seed": None, "n": None, "logprobs": None, "stream": None},
        {"seed": -(2**63), "prompt": ""},
        {"prompt": "\0\u2028 🙂 <|endoftext|>", "logprobs": 20, "echo": True},
    ],
    ids=ascii,
)
def test_odd_but_whole_requests_are_answered(server, fields):
    status, _, answer = post(server, {**ASKED, "max_tokens": 2, "prompt": "Q", **fields})
    assert status == 200, answer
    assert len(answer["choices"]) == 1


def test_what_is_nowhere_or_another_method_is_refused_as_json(server):
    is_refusal(post(server, b"", "/v1/nothing")[2], 404, expected=404)
    is_refusal(post(server, b"", "/v1/models")[2], 405, expected=405)


def test_a_body_that_is_too_large_is_not_read(server):
    status, _, answer = post(server, b" " * (1 << 20) + b"{}")
    is_refusal(answer, status, expected=413)
    declared = {"Content-Length": "9" * 18}
    assert post(server, b"", headers=declared)[0] == 413
    with socket.create_connection(urlsplit(server.url).netloc.split(":")) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                raw.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert b" 413 " in raw.recv(100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ("model", "prompt", "messages", "n", "seed", "stop", "temperature", "top_p", "top_k")
NAMES += ("logprobs", "top_logprobs", "echo", "stream", "stream_options", "max_tokens", "tools")


@given(body=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), chat=st.booleans())
def test_whatever_is_asked_is_read_or_refused(body, chat):
    read = requests.read_chat if chat else requests.read_completion
    whole = {"model": "m", **({"messages": CHAT["messages"]} if chat else {"prompt": "Q"}), **body}
    try:
        found = read(whole, Limits())
    except RefusedError as error:
        assert error.status == 400 and error.body["error"]["message"].isascii()
    else:
        assert 1 <= found.n * len(found.prompts) <= 128 and math.isfinite(
            found.sampling.temperature
        )


@given(st.binary(max_size=40))
def test_whatever_is_sent_is_an_object_or_refused(body):
    try:
        assert isinstance(requests.parse(body), dict)
    except RefusedError as error:
        assert error.status == 400


# --- Pieces and names ----------------------------------------------------------------------------


@given(text=st.text(max_size=30), data=st.data())
def test_pieces_join_to_the_text_wherever_tokens_end(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(raw) - 1, 1)))))
    edges = [0, *(cut for cut in cuts if cut < len(raw)), len(raw)]
    parts = [raw[a:b] for a, b in itertools.pairwise(edges) if b > a]
    tokens = [Token(part, -1.0, ((part, -1.0), (b"zz", -2.0))) for part in parts]
    completion = assemble(tokens, end_logprob=-0.5)
    choice = responses.Choice(
        0, text, responses.reported_tokens(completion, 2), "stop", reported=True
    )
    found = list(responses.pieces(choice))
    assert "".join(piece for piece, _, _ in found) == text
    assert [at for _, first, last in found for at in range(first, last)] == [*range(len(parts) + 1)]
    for written, kind in (
        (responses.LEGACY.whole(choice), "completions"),
        (responses.CHAT.whole(choice), "chat"),
    ):
        back = read(kind, json.loads(json.dumps(written)))
        assert (back.text, back.tokens, back.end_logprob) == (text, completion.tokens, -0.5)


# --- Queues --------------------------------------------------------------------------------------


class Slow:
    """A generator that echoes its seeds once it is let, and notes its batches."""

    model = "slow"

    def __init__(self):
        self.free, self.batches, self.error = threading.Event(), [], None

    def generate(self, requests, sampling):
        self.batches.append([request.seed for request in requests])
        assert self.free.wait(30)
        if self.error:
            raise self.error
        for index, request in enumerate(requests):
            text = f"{request.prompt} {request.seed}"
            yield index, assemble([Token(text.encode(), -1.0)], end_logprob=-1.0)

    def score(self, requests, top_logprobs=5):
        raise UserError("a generator that scores", "this one", "sample")


@pytest.fixture
def slow():
    generator = Slow()
    yield Served(generator, "slow", len, echoes=True)
    generator.free.set()


def ask(server, seed, **fields):
    return post(server, {"model": "slow", "prompt": "Q", "seed": seed, **fields})


def begun(generator, count=1):
    until = time.monotonic() + 20
    while len(generator.batches) < count and time.monotonic() < until:
        time.sleep(0.005)
    assert len(generator.batches) >= count


def queued(server, count):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        connection.request("GET", "/health")
        if json.loads(connection.getresponse().read())["waiting"] == count:
            return
        time.sleep(0.01)
    raise AssertionError(f"never {count} in the queue")


def test_requests_that_wait_together_and_share_their_sampling_run_as_one_batch(slow):
    generator = slow.generator
    with running(slow, batch_size=3) as server, ThreadPoolExecutor(16) as threads:
        first = threads.submit(ask, server, 0)
        begun(generator)
        warm = [threads.submit(ask, server, seed, temperature=1.0) for seed in range(1, 6)]
        cold = [threads.submit(ask, server, seed, temperature=0.5) for seed in range(6, 8)]
        queued(server, 7)
        generator.free.set()
        for seed, found in enumerate([first, *warm, *cold]):
            status, _, answer = found.result()
            assert status == 200 and answer["choices"][0]["text"] == f"Q {seed}"
    assert generator.batches[0] == [0]
    assert sorted(map(len, generator.batches[1:])) == [2, 2, 3]
    assert {6, 7} in map(set, generator.batches)


def test_a_full_queue_refuses_with_a_time_to_wait_and_recovers(slow):
    with running(slow, max_queue=2, batch_size=1) as server, ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(ask, server, 0)]
        begun(slow.generator)
        waiting += [threads.submit(ask, server, seed) for seed in (1, 2)]
        queued(server, 2)
        status, headers, answer = ask(server, 3)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client(server).completions.create(model="slow", prompt="Q", n=2)
        slow.generator.free.set()
        assert [found.result()[0] for found in waiting] == [200] * 3
        assert ask(server, 3)[0] == 200


def test_what_nobody_waits_for_is_not_run(slow):
    with running(slow, batch_size=1) as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, server, 0)
        begun(slow.generator)
        body = json.dumps({"model": "slow", "prompt": "Q", "seed": 1})
        gone = http.client.HTTPConnection(urlsplit(server.url).netloc)
        gone.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        queued(server, 1)
        gone.close()
        time.sleep(0.2)
        slow.generator.free.set()
        assert first.result()[0] == 200 and ask(server, 2)[0] == 200
    assert slow.generator.batches == [[0], [2]]


def test_a_fault_of_the_generator_is_a_500_without_its_reason_and_the_next_is_answered(slow):
    slow.generator.free.set()
    slow.generator.error = RuntimeError("a secret of line 7")
    with running(slow) as server:
        status, _, answer = ask(server, 0)
        assert status == 500 and answer["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(answer)
        slow.generator.error = None
        assert ask(server, 0)[0] == 200
        assert ask(server, 0, echo=True)[0] == 500


def test_an_encoder_cannot_echo(slow):
    slow.generator.free.set()
    with running(dataclasses.replace(slow, echoes=False)) as server:
        status, _, answer = ask(server, 0, echo=True)
        is_refusal(answer, status)
        assert answer["error"]["param"] == "echo"


# --- Beginning and ending ------------------------------------------------------------------------


def test_closing_answers_what_is_in_flight_and_refuses_what_comes(slow):
    with ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as stack:
        server = stack.enter_context(running(slow))
        inside = threads.submit(ask, server, 1)
        begun(slow.generator)
        closing = threads.submit(stack.close)
        until = time.monotonic() + 20
        while (found := ask_health(server))[0] != 503 and time.monotonic() < until:
            time.sleep(0.01)
        assert found[0] == 503 and found[1]["retry-after"] == "5"
        assert ask(server, 2)[0] == 503
        assert not inside.done() and not closing.done()
        slow.generator.free.set()
        assert inside.result()[2]["choices"][0]["text"] == "Q 1"
        closing.result()
    assert server.answered_all
    with pytest.raises(ConnectionRefusedError):
        ask(server, 3)


def ask_health(server):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What makes the second of two commands take the programs of the first."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_after_the_request_in_flight(number, tmp_path, compiled):
    model = smallest(tmp_path / "tiny")
    command = [sys.executable, "-m", "distill", "serve", str(model), "--port=0"]
    environment = {**os.environ, **compiled, serve.KEY_VARIABLE: KEY}
    options = ["--batch_size=2", "--max_wait_ms=1500", "--compile_prompt_tokens=0"]
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"serving tiny at (http://\S+), with a key", line):
                break
        server = Running(found[1])
        with ThreadPoolExecutor(1) as threads:
            body = {"model": "tiny", "prompt": "a b", "max_tokens": 8, "temperature": 2}
            inside = threads.submit(post, server, body)
            queued(server, 1)
            process.send_signal(number)
            status, _, answer = inside.result()
        assert status == 200 and len(answer["choices"]) == 1
        lines += process.stderr.readlines()
        assert process.wait(30) == 0
    told = "".join(lines)
    assert KEY not in told and "Traceback" not in told
    assert "shutting down" in told and re.search(r"answered \d+ requests: \d+ x 200", told)


def test_an_address_that_is_taken_is_the_users_to_mend(slow):
    with running(slow) as server:
        port = urlsplit(server.url).port
        gate = application(
            slow,
            Batcher(slow.generator, batch_size=1, max_wait=0, max_queue=1),
            Limits(),
            key=None,
        )
        with (
            pytest.raises(UserError, match="expected to listen"),
            serve_in_thread(gate, "127.0.0.1", port),
        ):
            pass


# --- Models --------------------------------------------------------------------------------------

VOCABULARY = paths.shipped("data/vocabularies/student.model")
TINY = T5Model(T5Config(1152, 8, 1, 8, 8, 1, 1))


@functools.cache
def tiny_params(seed):
    return jax.jit(TINY.init)(jax.random.key(seed))


def smallest(directory, seed=0):
    weights.save(directory, TINY, tiny_params(seed), VOCABULARY)
    return directory


def trained(run_dir):
    """A run whose chosen checkpoint is step 3."""
    start = smallest(run_dir / "own")
    with Stage.open(run_dir, "train", settings={"student": str(start)}) as stage:
        stage.finish()
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save(3, tiny_params(3), {"nothing": np.zeros(1)})
        checkpoints.wait()
    write_json(run_dir / "reports" / "selection.json", {"chosen_step": 3})
    return run_dir


def exported(directory):
    export.export(directory, TINY, tiny_params(3), VOCABULARY, card="")
    return directory


def test_a_saved_model_a_runs_choice_and_an_export_are_served_alike(tmp_path):
    (tmp_path / "run").mkdir()
    directories = [
        smallest(tmp_path / "saved", seed=3),
        trained(tmp_path / "run"),
        exported(tmp_path / "exported"),
    ]
    found = [load(directory, batch_size=1) for directory in directories]
    assert [served.name for served in found] == ["saved", "run", "exported"]
    assert [served.generator.model for served in found] == ["saved", "run", "exported"]
    for served in found:
        jax.tree.map(np.testing.assert_array_equal, served.generator.params, tiny_params(3))
        assert served.generator.network == TINY and served.generator.batch_size == 1
        assert served.generator.tokenizer.encode("She had 48.") == (
            found[0].generator.tokenizer.encode("She had 48.")
        )
        assert served.count_tokens("She had") > 1 and not served.echoes


def test_a_server_takes_prompts_and_completions_as_long_as_its_limits_allow():
    assert load("data/models/teacher", tokens=9000).generator.longest == 9000
    assert load("data/models/teacher", tokens=10).generator.longest > 10


def test_what_holds_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such path"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="a model or a run with a chosen checkpoint"):
        load(tmp_path)
    directory = exported(tmp_path / "exported")
    (directory / "spiece.model").unlink()
    with pytest.raises(UserError, match="a vocabulary"):
        load(directory)


def test_help_answers_without_loading_anything_heavy():
    code = (
        "import sys; from distill.__main__ import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "sys.exit(bool({'numpy', 'jax', 'starlette', 'uvicorn', 'openai'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "usage: distill serve" in found.stdout and "--max_queue" in found.stdout


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert "no such path" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--api_key_variable=NO_SUCH_KEY"]) == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    for wrong in ("--port=70000", "--batch_size=0", "--max_queue=many"):
        with pytest.raises(SystemExit, match="2"):
            main(["serve", str(tmp_path), wrong])
