"""How many requests are in flight and when the next may start; knows no API but its headers."""

import contextlib
import email.utils
import re
import time
from collections.abc import Callable, Mapping

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# After a cut the answers of requests that were sent before it say nothing new.
SECONDS_BETWEEN_CUTS = 1.0


class Pace:
    """A number of requests in flight that a rate limit halves and that answers raise again.

    Additive increase, multiplicative decrease, as TCP does it: one more for each round of answers,
    half at a rate limit, at most once a second. A pause that the server asks for, and the limits
    per minute, hold back the next request whoever sends it.

    Args:
        most: requests in flight at most, and at first.
        requests_per_minute: None for no limit.
        tokens_per_minute: of prompts and completions, None for no limit; each answer is charged
            when it has come, so the limit holds over minutes, not over seconds.
        clock: seconds.

    Example:
        >>> pace = Pace(8, clock=lambda: 0.0)
        >>> pace.limited(2.0)
        >>> pace.limit, pace.reserve()
        (4, 2.0)
    """

    def __init__(
        self,
        most: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = self._in_flight = float(most)
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._next = self._uncut_until = clock()

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._in_flight)

    def reserve(self) -> float:
        """Take the next place in time and return the seconds until it."""
        now = self._clock()
        start = max(self._next, now)
        self._next = start + self._seconds_per_request
        return start - now

    def answered(self, tokens: int, headers: Mapping[str, str]) -> None:
        """Count an answer: one more may fly, its tokens are charged, its headers are obeyed."""
        self._in_flight = min(self._in_flight + 1 / self._in_flight, self._most)
        now = self._clock()
        self._next = max(self._next, now) + tokens * self._seconds_per_token
        self._next = max(self._next, now + seconds_until_reset(headers))

    def limited(self, pause: float) -> None:
        """Count a rate limit that asks for `pause` seconds."""
        now = self._clock()
        self._next = max(self._next, now + pause)
        if now >= self._uncut_until:
            self._in_flight = max(self._in_flight / 2, 1.0)
            self._uncut_until = now + max(pause, SECONDS_BETWEEN_CUTS)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0 where it does not.

    Example:
        >>> retry_after({"retry-after": "2"}), retry_after({"retry-after-ms": "250"})
        (2.0, 0.25)
    """
    with contextlib.suppress(KeyError, ValueError):
        return max(float(headers["retry-after-ms"]) / 1000, 0.0)
    with contextlib.suppress(KeyError, ValueError):
        return max(float(headers["retry-after"]), 0.0)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(date.timestamp() - time.time(), 0.0)
    return 0.0


def seconds_until_reset(headers: Mapping[str, str]) -> float:
    """Return the seconds until a used-up limit is lifted, 0 where something is left.

    Example:
        >>> seconds_until_reset({"x-ratelimit-remaining-tokens": "0",
        ...                      "x-ratelimit-reset-tokens": "1m30.5s"})
        90.5

    Source:
        OpenAI, Rate limits: headers `x-ratelimit-remaining-*` and `x-ratelimit-reset-*`.
    """
    resets = (
        headers.get(f"x-ratelimit-reset-{what}", "")
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
    )
    return max(
        (sum(float(n) * _SECONDS[u] for n, u in _DURATION.findall(reset)) for reset in resets),
        default=0.0,
    )
