import pytest
from closeness import near
from hypothesis import given
from hypothesis import strategies as st

from distill.endpoints.session import Pace, retry_after, seconds_until_reset


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
        pace.count_answer(9, {}) if answered else pace.count_limit(seconds)
        assert 1 <= pace.limit <= most and pace.reserve() >= 0


def test_rate_limits_halve_once_a_second_and_answers_raise_again():
    clock = Clock()
    pace = Pace(16, clock=clock)
    for _ in range(5):
        pace.count_limit(0.0)
    assert pace.limit == 8
    clock.now += 1
    pace.count_limit(0.0)
    assert pace.limit == 4
    for _ in range(5):
        pace.count_answer(0, {})
    assert pace.limit == 5
    for _ in range(500):
        pace.count_answer(0, {})
    assert pace.limit == 16


def test_requests_a_minute_are_spread_over_it():
    pace = Pace(16, requests_per_minute=120, clock=Clock())
    assert [pace.reserve() for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]


def test_tokens_a_minute_hold_back_the_next_request():
    pace = Pace(16, tokens_per_minute=600, clock=Clock())
    assert pace.reserve() == 0.0
    pace.count_answer(30, {})
    assert pace.reserve() == near(3.0, terms=16)


def test_a_used_up_limit_holds_back_until_its_reset():
    pace = Pace(16, clock=Clock())
    pace.count_answer(
        1, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "250ms"}
    )
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
