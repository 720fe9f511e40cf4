import asyncio
import contextlib
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.in_flight import in_flight


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
