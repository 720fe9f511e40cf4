"""No client keeps others out: silent, slow, unread and left connections end or make room."""

import contextlib
import dataclasses
import ipaddress
import json
import resource
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_world import (
    Echo,
    answer,
    call,
    complete,
    connect,
    everything,
    head,
    is_closed,
    request,
    running,
    until,
    waiting,
)

from distill.serving.connections import ConnectionLimits, network_of
from distill.serving.server import reserve_descriptors

QUICK = ConnectionLimits(
    total=40,
    per_address=30,
    head_seconds=0.4,
    body_seconds=0.4,
    idle_seconds=1.0,
    write_seconds=0.4,
    answer_seconds=3.0,
)
PATIENT = dataclasses.replace(QUICK, head_seconds=60.0, body_seconds=60.0, idle_seconds=60.0)
HALF_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
HALF_BODY = head(1000) + b"{"


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


@pytest.fixture(scope="module")
def quick():
    with running(limits=QUICK) as port:
        yield port


@pytest.fixture(scope="module")
def patient():
    with running(limits=PATIENT) as port:
        yield port


# --- Time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", None), (HALF_HEAD, 408), (b"G", 408)], ids=["silent", "head", "G"]
)
def test_a_head_that_does_not_arrive_ends_its_connection(quick, data, expected):
    with connect(quick, data) as end:
        assert status(everything(end, 5)) == expected


@pytest.mark.parametrize(
    ("data", "drip"), [(HALF_HEAD, b"X-a: b\r\n"), (HALF_BODY, b" ")], ids=["head", "body"]
)
def test_bytes_that_drip_in_prolong_nothing(quick, data, drip):
    begun = time.monotonic()
    with connect(quick, data) as end, contextlib.suppress(ConnectionError):
        while time.monotonic() - begun < 10:
            end.sendall(drip)
            time.sleep(0.05)
    assert time.monotonic() - begun < 6


def test_a_body_that_does_not_arrive_ends_its_connection_whatever_was_answered(quick):
    for path in ("/v1/completions", "/nowhere"):
        with connect(quick, head(1000, path=path) + b"{") as end:
            found = everything(end, 6)
        assert status(found) == (404 if path == "/nowhere" else 408)


def test_a_second_request_has_its_own_time_and_an_idle_connection_ends(quick):
    with connect(quick, request()) as end:
        assert answer(end)[0] == 200
        time.sleep(0.5)
        end.sendall(request())
        assert answer(end)[0] == 200
        end.sendall(HALF_HEAD)
        assert status(everything(end, 5)) == 408
    with connect(quick, request()) as end:
        begun = time.monotonic()
        everything(end, 6)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_not_read_ends_its_connection(stream):
    generator = Echo(repeat=2000, longer=12)
    with running(generator, limits=QUICK) as port:
        ends = []
        for _ in range(5):
            end = connect(port, receive=4096)
            end.sendall(request(prompt="a" * 500, stream=stream))
            ends.append(end)
        until(lambda: len(generator.seeds) == 5)
        time.sleep(2)
        for end in ends:
            assert len(everything(end)) < 2000 * 6000
            end.close()
        assert complete(port)[0] == 200


def test_an_answer_that_is_read_slowly_arrives_whole():
    with running(Echo(repeat=4000), limits=QUICK) as port:
        body = json.dumps({"model": "echo", "prompt": "a" * 500})
        end = connect(port, receive=1 << 16)
        with end:
            lines = head(len(body), more=["Connection: close"])
            end.sendall(lines + body.encode())
            found = b""
            while part := end.recv(1 << 16):
                found += part
                time.sleep(0.02)
    assert json.loads(found.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "a" * 2_000_000


# --- Room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", HALF_HEAD, HALF_BODY], ids=["silent", "head", "body"])
def test_many_connections_of_the_same_address_leave_room_for_it(patient, data):
    ends = [connect(patient, data) for _ in range(100)]
    assert call(patient)[0] == 200 and complete(patient)[0] == 200
    assert all(is_closed(end) for end in ends[:70])
    for end in ends:
        end.close()


def test_many_addresses_leave_room_for_another(patient):
    ends = [connect(patient, HALF_HEAD, f"127.0.1.{n % 5 + 1}") for n in range(100)]
    assert call(patient)[0] == 200 and complete(patient)[0] == 200
    for end in ends:
        end.close()


def test_an_address_whose_connections_all_work_is_refused_and_others_are_not():
    generator = Echo()
    generator.free.clear()
    limits = dataclasses.replace(PATIENT, per_address=3, total=5)
    with running(generator, limits=limits) as port:
        ends = [connect(port, request(seed=n), "127.0.2.1") for n in range(3)]
        until(lambda: call(port)[2] and len(generator.seeds) >= 1)
        until(lambda: waiting(port) + len(generator.seeds) == 3)
        with connect(port, b"", "127.0.2.1") as end:
            found = everything(end, 5)
        assert status(found) == 429 and b"rate_limit_error" in found
        ends += [connect(port, request(seed=n), f"127.0.2.{n}") for n in (3, 4)]
        time.sleep(0.2)
        with connect(port, b"", "127.0.2.5") as end:
            assert status(everything(end, 5)) == 503
        generator.free.set()
        for end in ends:
            assert answer(end)[0] == 200
            end.close()


def test_a_proxys_connections_do_not_count_by_address():
    limits = dataclasses.replace(
        PATIENT, per_address=2, proxies=(ipaddress.ip_network("127.0.3.0/24"),)
    )
    with running(limits=limits) as port, contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(port, HALF_HEAD, "127.0.3.9")) for _ in range(20)]
        other = [stack.enter_context(connect(port, HALF_HEAD, "127.0.4.9")) for _ in range(3)]
        assert is_closed(other[0])
        for end in mine:
            end.settimeout(0.01)
            with pytest.raises(TimeoutError):
                end.recv(10)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_addresses_of_ipv6_count_by_their_first_64_bits(prefix, one, other):
    first, second = (str(ipaddress.IPv6Address(prefix << 64 | rest)) for rest in (one, other))
    mapped = ipaddress.IPv6Address(prefix << 64 | one).ipv4_mapped
    assert mapped or network_of(first) == network_of(second)


# --- Leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_what_a_client_has_left_frees_its_place_in_the_queue(stream, reset):
    generator = Echo()
    generator.free.clear()
    with running(generator, max_queue=64, batch_size=1) as port:
        ends = [connect(port, request(seed=n, n=8, stream=stream)) for n in range(5)]
        until(lambda: waiting(port) == 39)
        for end in ends[1:]:
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
        until(lambda: waiting(port) == 7)
        generator.free.set()
        assert complete(port, seed=77)[0] == 200
        assert len(generator.seeds) == 9 and generator.seeds[-1] == 77
        ends[0].close()


def test_streams_that_break_in_the_middle_harm_nobody():
    with running(Echo(repeat=2000)) as port:
        for _ in range(20):
            end = connect(port, request(prompt="a" * 50, stream=True, n=4))
            end.recv(100)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
        assert complete(port)[0] == 200
        until(lambda: waiting(port) == 0)


def test_one_client_does_not_fill_the_queue():
    generator = Echo()
    generator.free.clear()
    with running(generator, max_queue=8, batch_size=1) as port, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(port, request(seed=1), "127.0.5.1"))
        until(lambda: generator.seeds)
        greedy = stack.enter_context(connect(port, request(seed=2, n=7), "127.0.5.1"))
        assert answer(greedy)[0] == 429
        greedy.sendall(request(seed=3, n=6))
        until(lambda: waiting(port) == 6)
        other = stack.enter_context(connect(port, request(seed=4), "127.0.5.2"))
        until(lambda: waiting(port) == 7)
        generator.free.set()
        for end in (first, greedy, other):
            assert answer(end)[0] == 200


def test_forwarded_clients_of_a_proxy_share_the_queue_and_those_of_others_do_not():
    generator = Echo()
    generator.free.clear()
    limits = dataclasses.replace(PATIENT, proxies=(ipaddress.ip_network("127.0.6.1/32"),))
    with running(generator, limits=limits, max_queue=8, batch_size=1) as port:

        def asked(client, address, seed, n):
            body = json.dumps({"model": "echo", "prompt": "Q", "seed": seed, "n": n}).encode()
            lines = head(len(body), more=[f"X-Forwarded-For: {client}"])
            return connect(port, lines + body, address)

        ends = [asked("192.0.2.1", "127.0.6.1", 1, 1)]
        until(lambda: generator.seeds)
        ends.append(asked("192.0.2.1", "127.0.6.1", 2, 6))
        until(lambda: waiting(port) == 6)
        with asked("192.0.2.1", "127.0.6.1", 3, 1) as end:
            assert answer(end)[0] == 429
        ends.append(asked("192.0.2.2", "127.0.6.1", 4, 1))
        until(lambda: waiting(port) == 7)
        generator.free.set()
        for end in ends:
            assert answer(end)[0] == 200
            end.close()


@pytest.mark.parametrize(
    ("soft", "hard", "connections"),
    [(1024, 4096, 1000), (256, 1024, 768), (256, 256, 1), (4096, 4096, 1000)],
)
def test_connections_fit_the_limit_of_descriptors(monkeypatch, soft, hard, connections):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    assert reserve_descriptors(1000) == connections
    assert all(soft < new <= hard and last == hard for new, last in given)
