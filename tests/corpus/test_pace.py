import asyncio
import contextlib
import threading
import time

import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.corpus.inflight import in_flight
from distill.corpus.pace import Pace, retry_after, seconds_until_reset


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@given(st.integers(1, 64), st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=60))
def test_requests_in_flight_stay_between_one_and_the_most(most, events):
    clock = Clock()
    pace = Pace(most, clock=clock)
    for answered, seconds in events:
        clock.now += seconds
        pace.answered(9, {}) if answered else pace.limited(seconds)
        assert 1 <= pace.limit <= most and pace.reserve() >= 0


def test_rate_limits_halve_once_a_second_and_answers_raise_again():
    clock = Clock()
    pace = Pace(16, clock=clock)
    for _ in range(5):
        pace.limited(0.0)
    assert pace.limit == 8
    clock.now += 1
    pace.limited(0.0)
    assert pace.limit == 4
    for _ in range(5):
        pace.answered(0, {})
    assert pace.limit == 5
    for _ in range(500):
        pace.answered(0, {})
    assert pace.limit == 16


def test_requests_a_minute_are_spread_over_it():
    pace = Pace(16, requests_per_minute=120, clock=Clock())
    assert [pace.reserve() for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]


def test_tokens_a_minute_hold_back_the_next_request():
    pace = Pace(16, tokens_per_minute=600, clock=Clock())
    assert pace.reserve() == 0.0
    pace.answered(30, {})
    assert pace.reserve() == near(3.0, terms=16)


def test_a_used_up_limit_holds_back_until_its_reset():
    pace = Pace(16, clock=Clock())
    pace.answered(1, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "250ms"})
    assert pace.reserve() == near(0.25, terms=16)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "20", "retry-after": "9"}, 0.02),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_a_server_s_wish_to_wait_is_read(headers, seconds):
    assert retry_after(headers) == seconds


def test_what_is_left_needs_no_reset():
    headers = {"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "6m0s"}
    assert seconds_until_reset(headers) == 0.0


def shared():
    return contextlib.nullcontext(None)


@given(st.integers(0, 30), st.integers(1, 8))
def test_each_is_run_once_and_no_more_than_allowed_at_once(count, limit):
    running, most = 0, 0

    async def one(_, number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    found = in_flight(one, count, limit=lambda: limit, resource=shared)
    assert sorted(found) == list(range(count)) and most <= limit


def test_what_is_in_flight_beside_a_failure_is_yielded_before_it():
    async def one(_, number):
        await asyncio.sleep(0.001 if number == 1 else 0.02)
        if number == 1:
            raise ValueError("one")
        return number

    found = []
    with pytest.raises(ValueError, match="one"):
        for item in in_flight(one, 50, limit=lambda: 4, resource=shared):
            found.append(item)
    assert sorted(found) == [0, 2, 3]


def test_closing_cancels_and_ends_the_thread():
    cancelled = []

    async def one(_, number):
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    before = threading.active_count()
    found = in_flight(one, 9, limit=lambda: 3, resource=shared)
    assert next(found) == 0
    start = time.monotonic()
    found.close()
    assert time.monotonic() - start < 5 and len(cancelled) >= 2
    assert threading.active_count() == before


def test_it_works_where_a_loop_runs():
    async def one(_, number):
        return number

    async def notebook():
        return list(in_flight(one, 3, limit=lambda: 3, resource=shared))

    assert sorted(asyncio.run(notebook())) == [0, 1, 2]
