"""Whatever is sent, the answer is a refusal in one sentence, and the next request is answered."""

import gzip
import json
import logging
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import (
    BODY,
    JSON,
    KEY,
    Echo,
    answer,
    call,
    complete,
    connect,
    everything,
    head,
    running,
    until,
)

from distill.core.errors import UserError
from distill.serving import origins
from distill.serving.requests import Limits, RefusedError, parse, read_completion
from distill.serving.server import bind


@pytest.fixture(scope="module")
def port():
    with running() as port:
        yield port


@pytest.fixture(scope="module")
def keyed():
    with running(key=KEY) as port:
        yield port


def is_refusal(status, content):
    assert 400 <= status < 500, (status, content)
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    text = error["message"]
    assert "\n" not in text and "Traceback" not in text and len(text) < 400


# --- Who asks, where there is no key -------------------------------------------------------------

OWN_HOSTS = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "localhost.:1",
    "127.0.0.1",
    "127.0.0.1:65535",
    "127.8.9.10",
    "127.0.0.1.",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:80",
    "[::ffff:127.0.0.1]",
    "localhost:",
]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example.localhost",
    "localhost@evil.example",
    "evil.example:80@localhost",
    "localhost:80:80",
    "localhost:99999",
    "localhost:8a",
    "localhost..",
    "localhost%00",
    "localhost/",
    "localhost, evil.example",
    "0.0.0.0",
    "[::]",
    "192.0.2.7",
    "[2001:db8::1]",
    "[::ffff:192.0.2.7]",
    "[fe80::1%25lo]",
    "::1",
    "[127.0.0.1]",
    "[::1",
    "0177.0.0.1",
    "2130706433",
    "localhost\u00e9",
    "xn--lcalhost-54a",
    "",
    " ",
    "x",
]


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_this_machines_names_are_served(port, host):
    assert call(port, headers={"Host": host})[0] == 200
    assert complete(port, {"Host": host})[0] == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS, ids=ascii)
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
def test_a_foreign_host_is_refused_on_every_route(port, host, path):
    lines = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with connect(port, lines.encode("latin-1")) as end:
        first, _, content = everything(end).partition(b"\r\n\r\n")
    assert int(first.split()[1]) in (400, 403)
    is_refusal(int(first.split()[1]), content)


@given(st.text(max_size=20))
def test_no_other_name_is_this_machine(host):
    name = host.lower().partition(":")[0].removesuffix(".")
    if origins.is_loopback(host):
        assert name == "localhost" or name.startswith("127.") or host.startswith("[")


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /v1/models HTTP/1.1"],
        ["GET /v1/models HTTP/1.1", "Host: localhost", "Host: localhost"],
        ["GET /v1/models HTTP/1.1", "Host: localhost", "Host: evil.example"],
        ["GET /v1/models HTTP/1.0"],
        ["GET http://evil.example/v1/models HTTP/1.1", "Host: localhost"],
    ],
    ids=["none", "twice", "another", "HTTP/1.0", "absolute"],
)
def test_a_request_without_one_host_is_refused(port, lines):
    with connect(port, "\r\n".join([*lines, "Connection: close", "", ""]).encode()) as end:
        first, _, content = everything(end).partition(b"\r\n\r\n")
    is_refusal(int(first.split()[1]), content)


KINDS = [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]
KINDS += ["", "application/jsonp", "text/json", "text/plain; application/json", "json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/health", "/nowhere"])
def test_a_body_that_is_not_declared_as_json_is_refused(port, kind, path):
    headers = {} if kind is None else {"Content-Type": kind}
    status, _, content = call(port, "POST", path, json.dumps(BODY).encode(), headers)
    assert status == 415
    is_refusal(status, content)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_body_that_is_declared_as_json_is_read(port, kind):
    assert complete(port, {"Content-Type": kind})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_what_another_page_sends_is_refused(port, headers):
    headers = {"Host": "localhost", **headers}
    for method, path in (("GET", "/health"), ("OPTIONS", "/v1/completions")):
        status, got, content = call(port, method, path, headers=headers)
        assert status == 403 and "access-control-allow-origin" not in got
        is_refusal(status, content)
    assert complete(port, headers)[0] == 403
    own = {"Host": "localhost", "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert complete(port, own)[0] == 200


def test_with_a_key_any_host_is_served_and_every_route_but_health_needs_it(keyed):
    headers = {"Host": "models.example", "Authorization": f"Bearer {KEY}"}
    assert complete(keyed, headers)[0] == 200
    assert call(keyed, headers={"Host": "models.example"})[0] == 200
    for path in ("/v1/models", "/v1/nowhere", "/", "/docs", "//v1/models", "/%761/models"):
        assert call(keyed, path=path)[0] == 401
        assert call(keyed, path=path, headers={"Authorization": "Bearer "})[0] == 401


def test_a_key_is_asked_for_before_the_body_is_read(keyed):
    with connect(keyed, head(10**6, more=["Expect: 100-continue"])) as end:
        found = end.recv(4096)
    assert b" 401 " in found and b" 100 " not in found
    twice = f"Authorization: Bearer {KEY}"
    with connect(keyed, head(0, key=KEY, more=[twice, "Connection: close"])) as end:
        assert b" 401 " in everything(end)


def test_no_key_is_in_an_answer_or_a_log(keyed, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    for data in (
        head(2, key=KEY + "x") + b"{}",
        head(2, key=KEY) + b"{}",
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n",
        head(None, key=KEY, more=["Transfer-Encoding: chunked", "Connection: close"]) + b"xyz\r\n",
    ):
        with connect(keyed, data.replace(b"Host:", b"Connection: close\r\nHost:", 1)) as end:
            assert KEY.encode() not in everything(end)
    printed = "".join(capfd.readouterr()) + "".join(
        record.getMessage() for record in caplog.records
    )
    assert KEY not in printed


# --- What is asked -------------------------------------------------------------------------------


def body(**fields):
    return json.dumps({**BODY, **fields}).encode()


BODIES = {
    "no JSON": b'{"model":',
    "nothing": b"",
    "deep": b"[" * 500_000 + b"]" * 500_000,
    "deep within": b'{"model": "echo", "prompt": "x", "metadata": ' + b'{"a":' * 90_000 + b"1}",
    "latin-1": b'{"model": "\xff"}',
    "UTF-16": '{"model": "echo"}'.encode("utf-16"),
    "a mark of bytes": b"\xef\xbb\xbf" + body(),
    "NaN": b'{"model": "echo", "prompt": "x", "temperature": NaN}',
    "NaN elsewhere": b'{"model": "echo", "prompt": "x", "metadata": [-Infinity]}',
    "1e999": b'{"model": "echo", "prompt": "x", "temperature": 1e999}',
    "many digits": b'{"model": "echo", "prompt": "x", "n": ' + b"9" * 5000 + b"}",
    "4,000 digits": b'{"model": "echo", "prompt": "x", "n": ' + b"9" * 4000 + b"}",
    "a name twice": b'{"model": "echo", "prompt": "x", "max_tokens": 2, "max_tokens": 1000000}',
    "a name twice within": b'{"model": "echo", "prompt": "x", "metadata": {"a": 1, "a": 2}}',
    "a surrogate": b'{"model": "echo", "prompt": "\\ud800"}',
    "a surrogate as a name": b'{"model": "echo", "prompt": "x", "\\ud800": 1}',
    "a surrogate as a model": b'{"model": "\\ud800", "prompt": "x"}',
    "gzip": gzip.compress(body()),
    "a list": b"[]",
    "a number": b"1",
    "n": body(n=10**9),
    "negative n": body(n=-1),
    "n is true": body(n=True),
    "n is 1.0": body(n=1.0),
    "max_tokens": body(max_tokens=10**9),
    "negative max_tokens": body(max_tokens=-1),
    "logprobs": body(logprobs=10**9),
    "negative logprobs": body(logprobs=-1),
    "100,000 stops": body(stop=[f"a{n}" for n in range(10**5)]),
    "long stops": body(stop=[chr(97 + n) * 256 for n in range(16)]),
    "wide stops": body(stop=["🙂" * 256]),
    "an empty stop": body(stop=[""]),
    "a stop that is null": body(stop=[None]),
    "top_k": body(top_k=10**9),
    "a wide answer": body(n=128, max_tokens=1024, logprobs=20),
    "whitespace": body(prompt=" " * 10**6),
    "a long prompt": body(prompt="word " * 3000),
    "a long prefix": body(completion_prefix="a" * 10**5),
    "tokens": body(prompt=[1, 2, 3]),
    "lists of tokens": body(prompt=[[1, 2]]),
    "10,000 prompts": body(prompt=["x"] * 10**4),
    "a path": body(model="../../etc/passwd"),
    "an unknown field": body(foo=1),
    "a truthy option": body(stream=True, stream_options={"include_usage": "no"}),
    "2 MB": body(prompt="a" * 2**21),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_any_shape_is_refused_in_one_sentence(port, name):
    status, _, content = call(port, "POST", "/v1/completions", BODIES[name], JSON)
    is_refusal(status, content)


def message(*contents):
    messages = [{"role": "user", "content": content} for content in contents]
    return {"model": "echo", "messages": messages}


@pytest.mark.parametrize(
    "fields",
    [
        message(),
        message(None),
        message(5),
        message([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:22/"}}]),
        message([{"type": "text", "text": "\ud800"}]),
        message([{"type": "text"}]),
        message(["a"]),
        {**message("x"), "tools": [{"type": "function"}]},
        {**message("x"), "parallel_tool_calls": True},
        {"model": "echo", "messages": {"role": "user"}},
        {"model": "echo", "messages": [{"role": ["user"], "content": "x"}]},
        {"model": "echo", "messages": [{"role": "user", "content": "x"}, None]},
    ],
    ids=lambda fields: ascii(fields)[:60],
)
def test_a_chat_of_any_shape_is_refused_in_one_sentence(port, fields):
    status, _, content = call(port, "POST", "/v1/chat/completions", json.dumps(fields), JSON)
    is_refusal(status, content)


@pytest.mark.parametrize(
    "fields",
    [message(*["x"] * 10**4), message([{"type": "text", "text": "x"}] * 10**3)],
    ids=["messages", "parts"],
)
def test_many_messages_and_parts_are_read(port, fields):
    assert call(port, "POST", "/v1/chat/completions", json.dumps(fields), JSON)[0] == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.sampled_from(["n", "seed", "stop", "max_tokens", "logprobs", "model", "prompt", "stream"]),
    VALUES,
)
@settings(max_examples=60, deadline=None)
def test_a_field_of_any_value_is_answered_or_refused(port, name, value):
    content = json.dumps({**BODY, "max_tokens": 2, name: value})
    status, _, found = call(port, "POST", "/v1/completions", content, JSON)
    if status != 200:
        is_refusal(status, found)


def test_an_answer_is_no_larger_than_its_limit():
    narrow = {**BODY, "n": 8, "max_tokens": 16}
    assert read_completion({**narrow, "logprobs": 3}, Limits(entries=512)).n == 8
    with pytest.raises(RefusedError, match="product is at most 512, got 640"):
        read_completion({**narrow, "logprobs": 4}, Limits(entries=512))


def test_a_name_is_in_an_object_once():
    with pytest.raises(RefusedError, match="each name once"):
        parse(b'{"a": 1, "a": 1}')


# --- What is no HTTP -----------------------------------------------------------------------------

CHUNKED = ["Transfer-Encoding: chunked"]
AFTER = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
MALFORMED = {
    "a length and chunks": head(5, more=CHUNKED) + AFTER,
    "two lengths": head(5, more=["Content-Length: 6"]) + b"hello!",
    "a list of lengths": head("5, 6") + b"hello!",
    "a negative length": head(-5),
    "a length with a sign": head("+5") + b"hello",
    "a length in hexadecimal": head("0x5") + b"hello",
    "a length of many digits": head("9" * 100),
    "two encodings": head(more=[*CHUNKED, *CHUNKED]) + AFTER,
    "another encoding": head(more=["Transfer-Encoding: gzip, chunked"]) + AFTER,
    "an encoding after a space": head(5, more=["Transfer-Encoding : chunked"]) + AFTER,
    "an obsolete encoding": head(5, more=["Transfer-Encoding: xchunked"]) + AFTER,
    "a chunk of no number": head(more=CHUNKED) + b"xyz\r\n\r\n",
    "a negative chunk": head(more=CHUNKED) + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk of many digits": head(more=CHUNKED) + b"f" * 100 + b"\r\n",
    "a chunk that is longer": head(more=CHUNKED) + b"2\r\n{} \r\n0\r\n\r\n",
    "chunks of one byte": head(more=CHUNKED) + b"1\r\n \r\n" * 10_000,
    "large chunks": head(more=CHUNKED) + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 20,
    "a large header": head(0, more=["X: " + "a" * 200_000]),
    "many headers": head(0, more=["a: b"] * 2000),
    "a header of two lines": head(0, more=["X: a\n b\r c"]),
    "a nul": head(0, more=["X: a\0b"]),
    "a bare line end": b"GET /health HTTP/1.1\nHost: localhost\nX\n\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a long path": f"GET /{'a' * 5000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "a very long path": f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method of many letters": b"A" * 9000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_refused_and_nothing_after_it_is_answered(port, name):
    with connect(port) as end:
        try:
            end.sendall(MALFORMED[name])
            end.shutdown(1)
        except ConnectionError:
            pass
        found = everything(end)
    assert len(re.findall(rb"HTTP/1.1 \d", found)) <= 1 and b'"status"' not in found
    if found:
        is_refusal(int(found.split()[1]), found.partition(b"\r\n\r\n")[2])
    assert call(port)[0] == 200


def test_small_chunks_of_a_body_are_read(port):
    content = body()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    with connect(port, head(more=[*CHUNKED, "Connection: close"]) + chunks) as end:
        assert b" 200 " in everything(end)


def test_requests_that_come_together_are_answered_in_order(port):
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connect(port, one * 200 + last) as end:
        assert everything(end).count(b" 200 OK") == 201


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models/echo", 415),
        ("OPTIONS", "/v1/completions", 405),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/%ff%fe", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/V1/models", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/../health", 404),
        ("GET", "/metrics", 404),
        ("GET", "/" + "a" * 3000, 414),
    ],
)
def test_what_is_nowhere_is_refused(port, method, path, expected):
    status, headers, content = call(port, method, path)
    assert status == expected and "server" not in headers
    is_refusal(status, content)
    if status == 405:
        assert "POST" in headers["allow"]


def test_nothing_of_all_this_is_logged_as_a_fault(port, caplog):
    for name in ("TLS", "a chunk of no number", "two lengths"):
        with connect(port, MALFORMED[name]) as end:
            end.shutdown(1)
            everything(end)
    call(port, "POST", "/v1/completions", BODIES["deep"], JSON)
    assert not caplog.records


# --- Beginning and ending ------------------------------------------------------------------------


def test_an_end_waits_no_longer_than_its_patience_and_says_so(caplog):
    generator = Echo()
    generator.free.clear()
    with running(generator, patience=0.5) as port:
        end = connect(port, head(len(body())) + body())
        until(lambda: generator.seeds)
        begun = time.monotonic()
    status, content = answer(end)
    assert status == 503 and json.loads(content)["error"]["type"] == "server_error"
    assert time.monotonic() - begun < 15 and not caplog.records
    end.close()
    generator.free.set()


@pytest.mark.parametrize("host", ["a" * 80, "no such host", "192.0.2.1"])
def test_an_address_that_is_none_of_this_machine_is_refused(host):
    with pytest.raises(UserError, match="expected to listen at"):
        bind(host, 0)
