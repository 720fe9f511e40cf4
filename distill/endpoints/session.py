"""Send requests to an OpenAI-compatible endpoint until they are answered: pace, retries, budget."""

import asyncio
import contextlib
import dataclasses
import email.utils
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from distill.core import credentials, files
from distill.core.errors import UserError
from distill.core.ports import Completion, Usage
from distill.endpoints.spending import Price, Spent, usage_of
from tokalign.apis import ReportError

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Answer = Mapping[str, Any]
Create = Callable[..., Awaitable[Any]]
MOST_SECONDS_BETWEEN_TRIES = 60.0
# A wait of so many seconds is logged, once between two answers.
LONG_WAIT = 30.0
# A server that changes its fingerprint with every answer must not fill the memory or the log.
_SHOWN_MODELS = 8
# Sent where the endpoint needs no key, as the OpenAI library requires one.
_NO_KEY = "no-key-needed"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# A rate limit that follows another within this time concerns requests sent before the first.
SECONDS_BETWEEN_CUTS = 1.0


class PromptRefused(UserError):  # noqa: N818
    """The endpoint serves, but not this prompt; `finish_reason` is what its completion gets."""

    def __init__(self, finish_reason: str) -> None:
        super().__init__("a prompt that is answered", finish_reason, "change the prompt")
        self.finish_reason = finish_reason


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent before no further request is sent; those in flight are still answered.

    Attributes:
        dollars: None for no limit.
        tokens: of prompts and completions, None for no limit.
        total: whether the limits hold for all starts of a harvest together, rather than for each.
        dollars_per_million: of prompt tokens and of completion tokens; None takes the model's price
            from the tables.
        already: what earlier starts have spent; a harvest sets it.
    """

    dollars: float | None = None
    tokens: int | None = None
    total: bool = False
    dollars_per_million: tuple[float, float] | None = None
    already: Spent = dataclasses.field(default=Spent(), repr=False)

    @property
    def scope(self) -> str:
        """What the limits hold for, in errors."""
        return "harvest" if self.total else "start"


# --- Keys and addresses -------------------------------------------------------------------------


def read_key(variable: str | None) -> str:
    """Return the key in an environment variable, or a placeholder where no key is needed.

    Raises:
        UserError: the variable is not set, or no header can carry what it holds.
    """
    if variable is None:
        return _NO_KEY
    refuse_odd_variable(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"an API key in the environment variable {variable}",
            "none",
            "export it, or set api_key_variable=None where the endpoint needs no key",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"an API key of printable ASCII in {variable}",
            "one with other characters",
            "export it again",
        )
    return key


def refuse_odd_variable(name: str | None) -> None:
    """Refuse a text that names no environment variable; it may be the key and is not shown.

    Raises:
        UserError: it is no name in capital letters, digits and underscores.
    """
    if name is not None and not credentials.is_variable(name):
        raise UserError(
            "the name of an environment variable, in capitals, as api_key_variable",
            "another text",
            "export the key and give the variable's name",
        )


def refuse_odd_address(url: str) -> None:
    """Refuse an address that is none of an endpoint, or that holds a secret.

    Raises:
        UserError: it is not http(s), or has credentials or a query.
    """
    try:
        address = urlsplit(url)
        host = address.hostname if address.port != 0 else None
    except ValueError:  # a port or a bracket that is none
        host = None
    if host is None or not url.isprintable() or " " in url:
        raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
    if address.scheme not in ("http", "https") or not host:
        raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
    if "@" in address.netloc or address.query or address.fragment:
        raise UserError("a base_url without credentials", "one with some", "use api_key_variable")


# --- Pace ---------------------------------------------------------------------------------------


class Pace:
    """The number of requests in flight, which a rate limit halves and answers raise again.

    Additive increase, multiplicative decrease, as in TCP: one more for each round of answers, half
    at a rate limit, at most once a second. A pause that the server asks for and the limits per
    minute delay the next request, whichever it is.

    Args:
        most: requests in flight at most, and at first.
        requests_per_minute: None for no limit.
        tokens_per_minute: of prompts and completions, None for no limit; each answer is charged
            on arrival, so the limit holds over minutes, not over seconds.
        clock: seconds.

    Example:
        >>> pace = Pace(8, clock=lambda: 0.0)
        >>> pace.count_limit(2.0)
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
        """The number of requests that may be in flight now."""
        return int(self._in_flight)

    def reserve(self) -> float:
        """Reserve the next request's start and return the seconds until it."""
        now = self._clock()
        start = max(self._next, now)
        self._next = start + self._seconds_per_request
        return start - now

    def count_answer(self, tokens: int, headers: Mapping[str, str]) -> None:
        """Count an answer: allow one more request, charge its tokens, obey its headers."""
        self._in_flight = min(self._in_flight + 1 / self._in_flight, self._most)
        now = self._clock()
        self._next = max(self._next, now) + tokens * self._seconds_per_token
        self._next = max(self._next, now + seconds_until_reset(headers))

    def count_limit(self, pause: float) -> None:
        """Count a rate limit that asks for `pause` seconds."""
        now = self._clock()
        self._next = max(self._next, now + pause)
        if now >= self._uncut_until:
            self._in_flight = max(self._in_flight / 2, 1.0)
            self._uncut_until = now + max(pause, SECONDS_BETWEEN_CUTS)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks a client to wait, 0 if it asks for none.

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
    """Return the seconds until an exhausted limit is reset, 0 where something is left.

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


# --- Tries --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reply(Generic[Result]):
    """What an answer was read to, and the tokens that it took."""

    value: Result
    usage: Usage


class Session:
    """One start's traffic with an endpoint.

    A rate limit (429), a fault of the server (5xx), a time-out, a broken connection or a malformed
    answer is retried after a pause that doubles, drawn between half of it and all of it, and never
    shorter than the server asks for. Once one request has failed for good, no other is retried.

    Args:
        place: the endpoint's name in errors.
        pace: of the requests.
        max_retries: further tries of a request.
        backoff: seconds before the second try.
        secret: the key, which no error, log or trace may show; empty for none.
        budget: what may be spent.
        price: of the tokens, None where it is not known.
        served: collects the models that answered, with their fingerprints.
    """

    def __init__(
        self,
        place: str,
        pace: Pace,
        *,
        max_retries: int,
        backoff: float,
        secret: str,
        budget: Budget,
        price: Price | None,
        served: set[str] | None = None,
    ) -> None:
        self.place, self.pace, self.budget, self.price = place, pace, budget, price
        self._max_retries, self._backoff, self._secret = max_retries, backoff, secret
        self.spent = Spent(dollars=0.0 if price else None)
        self.faults: Counter[str] = Counter()
        self.served = set() if served is None else served
        self._ended = self._waiting = False

    async def answer(
        self,
        creates: Sequence[Create],
        body: Mapping[str, Any],
        read: Callable[[Answer], Result],
        seed: int,
    ) -> Reply[Result]:
        """Send a body until it is answered; return the value read from the answer.

        Args:
            creates: methods of connections that return the raw response, tried in turn.
            body: their arguments.
            read: returns the value; raises ReportError where the answer is malformed.
            seed: of the pauses.

        Raises:
            UserError: no answer after all tries, a refusal, or the budget is spent.
            PromptRefused: the fault is the prompt's alone.
        """
        import openai

        drawn = random.Random(seed)
        for tries in range(self._max_retries + 1):
            await self._wait(self.pace.reserve())
            self._refuse_overspending()
            try:
                response = (await creates[tries % len(creates)](**body)).http_response
                answer = _json(response.content)
                reply = Reply(read(answer), usage_of(answer))
                self._refuse_repeated_key(reply.value)
                self._count(answer, reply.usage, response.headers)
                return reply
            except openai.APIStatusError as error:
                if not _worth_another(error):
                    raise self._refusal(error) from None
                fault, pause = f"HTTP {error.status_code}", retry_after(error.response.headers)
                if error.status_code == 429:
                    self.pace.count_limit(pause)
            except openai.APIConnectionError as error:
                fault, pause = type(error.__cause__ or error).__name__, 0.0
            except ReportError as error:
                fault, pause = self._public(f"a malformed answer ({error})"), 0.0
            self.faults[fault] += 1
            if self._ended:
                break
            if tries < self._max_retries:
                logger.debug("%s: %s, try %d", self.place, fault, tries + 1)
                doubled = min(self._backoff * 2**tries, MOST_SECONDS_BETWEEN_TRIES)
                await self._wait(max(pause, doubled * drawn.uniform(0.5, 1.0)))
        self._ended = True
        raise UserError(
            f"an answer from {self.place}",
            f"{fault} {tries + 1} times",
            "check the endpoint and run the same command again to resume",
        )

    @property
    def dollars(self) -> float:
        """What the answers have cost, 0 where the price is not known."""
        prompt, completion = self.spent.prompt_tokens, self.spent.completion_tokens
        return self.price.cost(prompt, completion) if self.price else 0.0

    def line(self) -> str:
        """Return the session's traffic in one line, for the log."""
        faults = ", ".join(f"{name} {n}" for name, n in self.faults.most_common())
        spent = self.spent
        tokens = f"{spent.prompt_tokens} prompt and {spent.completion_tokens} completion tokens"
        cost = f", {self.dollars:.2f} dollars" if self.price else ""
        retried = f"{self.faults.total()} tried again" + (f" ({faults})" if faults else "")
        served = ", ".join(sorted(self.served)) or "none"
        return f"{self.place}: {spent.completions} answers by {served}, {retried}, {tokens}{cost}"

    async def _wait(self, seconds: float) -> None:
        if seconds >= LONG_WAIT and not self._waiting:
            self._waiting = True
            logger.info("%s: waiting for %.0f s", self.place, seconds)
        await asyncio.sleep(seconds)

    def _count(self, answer: Answer, usage: Usage, headers: Mapping[str, str]) -> None:
        before = self.spent
        self.spent = before.plus(usage, self.price)
        self._waiting = False
        if "model" in answer and len(self.served) < _SHOWN_MODELS:
            served = f"{answer.get('model')} {answer.get('system_fingerprint') or ''}"
            self.served.add(self._public(served).strip())
        self.pace.count_answer(self.spent.tokens - before.tokens, headers)

    def _refuse_overspending(self) -> None:
        before = self.budget.already if self.budget.total else Spent()
        spent = before.tokens + self.spent.tokens
        dollars = (before.dollars or 0.0) + self.dollars
        if self.budget.tokens is not None and spent >= self.budget.tokens:
            limit, got = f"{self.budget.tokens} tokens", f"{spent} spent"
        elif self.budget.dollars is not None and dollars >= self.budget.dollars:
            limit, got = f"{self.budget.dollars:.2f} dollars", f"{dollars:.2f} spent"
        else:
            return
        self._ended = True
        raise UserError(
            f"a {self.budget.scope} within its budget of {limit}",
            got,
            "raise it and run the command again",
        )

    def _public(self, text: str) -> str:
        """Return a text of the endpoint's with the key masked, should it repeat it."""
        return credentials.mask_secret(text, self._secret)

    def _refuse_repeated_key(self, result: object) -> None:
        """Refuse a completion that would carry the key into the run's traces."""
        if not self._secret or not isinstance(result, Completion):
            return
        written = (result.text.encode(), b"".join(result.tokens), *result.top_tokens)
        if any(self._secret.encode() in each for each in written):
            self._ended = True
            raise UserError(
                f"completions of {self.place} without the API key",
                "one that repeats it",
                "use an endpoint that you trust, and replace the key",
            )

    def _refusal(self, error: "openai.APIStatusError") -> UserError:
        reason = PROMPT_AT_FAULT.get(str(error.code))
        if reason is not None:
            return PromptRefused(reason)
        self._ended = True
        message = " ".join(str(error.message).split())[:300]
        return UserError(
            f"{self.place} to serve",
            f"HTTP {error.status_code}: {self._public(message)}",
            "check the model, the key and the sampling against what the endpoint offers",
        )


PROMPT_AT_FAULT = {
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "context_length_exceeded": "error",
}


def _json(content: bytes) -> Answer:
    try:
        return files.parse_object(content, "an answer")
    except UserError as error:
        raise ReportError(f"no JSON object, {error.got[:80]}") from error


def _worth_another(error: "openai.APIStatusError") -> bool:
    if error.status_code == 429:
        return str(error.code) != "insufficient_quota"
    return error.status_code in (408, 409) or error.status_code >= 500
