"""A server on loopback whose generator is a few lines, and sockets that misbehave."""

import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

from distill.serving.application import Served, application
from distill.serving.batching import Batcher
from distill.serving.connections import ConnectionLimits
from distill.serving.requests import Limits
from distill.serving.server import serve_in_thread
from distill.text.completions import Token, assemble

KEY = "sk-serving-0123456789abcdef"
BODY = {"model": "echo", "prompt": "Q", "seed": 1}
JSON = {"Content-Type": "application/json"}


class Echo:
    """A generator that writes its prompt, `longer` times as long, `repeat` times once it is let."""

    model = "echo"

    def __init__(self, repeat=1, longer=1):
        self.repeat, self.longer = repeat, longer
        self.free, self.seeds = threading.Event(), []
        self.free.set()

    def generate(self, requests, sampling):
        self.seeds += [request.seed for request in requests]
        assert self.free.wait(60)
        for index, request in enumerate(requests):
            token = Token(request.prompt.encode() * self.longer, -1.0)
            yield index, assemble([token] * self.repeat, end_logprob=-1.0)

    def score(self, requests, top_logprobs=5):
        for index, request in enumerate(requests):
            yield index, assemble([Token(request.completion.encode(), -1.0)], end_logprob=-1.0)


@contextlib.contextmanager
def running(generator=None, *, key=None, limits=None, requests=None, patience=30, **batching):
    """Run a server; yield its port."""
    generator = generator or Echo()
    settings = {"batch_size": 4, "max_wait": 0.0, "max_queue": 64, **batching}
    batcher = Batcher(generator, **settings)
    served = Served(generator, "echo", len, echoes=True)
    gate = application(served, batcher, requests or Limits(), key=key)
    limits = limits or ConnectionLimits()
    with serve_in_thread(gate, "127.0.0.1", 0, patience=patience, limits=limits) as server:
        yield urlsplit(server.url).port


def call(port, method="GET", path="/health", body=None, headers=None, timeout=20):
    """Return (status, headers, body) of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def complete(port, headers=None, **fields):
    """Return (status, body) of a completion."""
    content = json.dumps({**BODY, **fields})
    status, _, answer = call(port, "POST", "/v1/completions", content, {**JSON, **(headers or {})})
    return status, json.loads(answer)


def connect(port, data=b"", host="127.0.0.1", receive=None):
    """Return a socket that has sent `data`."""
    end = socket.socket()
    if receive is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    end.settimeout(20)
    end.bind((host, 0))
    end.connect(("127.0.0.1", port))
    end.sendall(data)
    return end


def head(length=None, *, path="/v1/completions", key=None, more=()):
    """Return the head of a completion request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


def request(**fields):
    """Return a completion request as bytes."""
    body = json.dumps({**BODY, **fields}).encode()
    return head(len(body)) + body


def answer(end):
    """Return (status, body) of one answer."""
    found = http.client.HTTPResponse(end)
    found.begin()
    return found.status, found.read()


def is_closed(end):
    """Return whether the server ends a connection without an answer."""
    try:
        return end.recv(100) == b""
    except ConnectionError:
        return True


def everything(end, seconds=20):
    """Return what the server sends until it closes."""
    end.settimeout(seconds)
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := end.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def until(condition, seconds=20):
    """Wait for something to be so."""
    last = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < last:
        time.sleep(0.01)
    assert found
    return found


def waiting(port):
    """Return how many requests wait."""
    return json.loads(call(port)[2])["waiting"]
