"""Send requests to an OpenAI-compatible endpoint until they are answered; counts what they cost."""

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from distill.core import credentials, files
from distill.core.errors import UserError
from distill.core.ports import Completion
from distill.endpoints.pace import Pace, retry_after
from distill.endpoints.prices import Price
from distill.endpoints.spending import Spent
from distill.endpoints.wire import WireError

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Answer = Mapping[str, Any]
Create = Callable[..., Awaitable[Any]]
MOST_SECONDS_BETWEEN_TRIES = 60.0
# A wait of so many seconds is told, once between two answers.
LONG_WAIT = 30.0
# A server that changes its fingerprint with every answer must not fill the memory or the log.
_SHOWN_MODELS = 8


class PromptRefused(UserError):  # noqa: N818
    """The endpoint serves, but not this prompt; `finish_reason` is what its completion gets."""

    def __init__(self, finish_reason: str) -> None:
        super().__init__("a prompt that is answered", finish_reason, "ask something else")
        self.finish_reason = finish_reason


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent before no more is sent; what is in flight then comes on top.

    Attributes:
        dollars: None for no limit.
        tokens: of prompts and completions, None for no limit.
        total: whether the limits are of all starts of a harvest together, rather than of each.
        dollars_per_million: of prompt tokens and of completion tokens; None looks the model up in
            the tables of prices.
        already: what earlier starts have spent; a harvest fills it in.
    """

    dollars: float | None = None
    tokens: int | None = None
    total: bool = False
    dollars_per_million: tuple[float, float] | None = None
    already: Spent = dataclasses.field(default=Spent(), repr=False)

    @property
    def scope(self) -> str:
        """What the limits are of, for errors."""
        return "harvest" if self.total else "start"


class Session:
    """One start's traffic with an endpoint.

    A rate limit (429), a fault of the server (5xx), a time-out, a broken connection or a malformed
    answer is tried again after a pause that doubles, drawn between half of it and all of it, and
    never shorter than the server asks for. Once one request has failed for good, the others are
    not tried again.

    Args:
        place: what to call the endpoint in errors.
        pace: how fast.
        max_retries: further tries of a request.
        backoff: seconds before the second try.
        secret: what never to show; empty for none.
        budget: what may be spent.
        price: of the tokens, None where it is not known.
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
    ) -> None:
        self.place, self.pace, self.budget, self.price = place, pace, budget, price
        self._max_retries, self._backoff, self._secret = max_retries, backoff, secret
        self.answers = self.prompt_tokens = self.completion_tokens = 0
        self.faults: Counter[str] = Counter()
        self.served: set[str] = set()
        self._ended = self._waiting = False

    async def answer(
        self,
        creates: Sequence[Create],
        body: Mapping[str, Any],
        read: Callable[[Answer], Result],
        seed: int,
    ) -> Result:
        """Send a body until it is answered and return what is read from the answer.

        Args:
            creates: methods of clients that return the raw response, tried in turn.
            body: its arguments.
            read: raises WireError where the answer is malformed.
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
                result = read(answer)
                self._refuse_repeated_key(result)
                self._count(answer, response.headers)
                return result
            except openai.APIStatusError as error:
                if not _worth_another(error):
                    raise self._refusal(error) from None
                fault, pause = f"HTTP {error.status_code}", retry_after(error.response.headers)
                if error.status_code == 429:
                    self.pace.limited(pause)
            except openai.APIConnectionError as error:
                fault, pause = type(error.__cause__ or error).__name__, 0.0
            except WireError as error:
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
            "check the endpoint and run the same command again, it goes on from here",
        )

    @property
    def dollars(self) -> float:
        """What the answers have cost, 0 where the price is not known."""
        return self.price.cost(self.prompt_tokens, self.completion_tokens) if self.price else 0.0

    def line(self) -> str:
        """Return what happened in one line."""
        faults = ", ".join(f"{name} {n}" for name, n in self.faults.most_common())
        tokens = f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens"
        cost = f", {self.dollars:.2f} dollars" if self.price else ""
        tried = f"{self.faults.total()} tried again" + (f" ({faults})" if faults else "")
        served = ", ".join(sorted(self.served)) or "none"
        return f"{self.place}: {self.answers} answers by {served}, {tried}, {tokens}{cost}"

    async def _wait(self, seconds: float) -> None:
        if seconds >= LONG_WAIT and not self._waiting:
            self._waiting = True
            logger.info("%s: waiting for %.0f s", self.place, seconds)
        await asyncio.sleep(seconds)

    def _count(self, answer: Answer, headers: Mapping[str, str]) -> None:
        usage = answer.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        prompt, completion = (
            n if isinstance(n := counts.get(f"{what}_tokens"), int) else 0
            for what in ("prompt", "completion")
        )
        self.answers += 1
        self._waiting = False
        if "model" in answer and len(self.served) < _SHOWN_MODELS:
            served = f"{answer.get('model')} {answer.get('system_fingerprint') or ''}"
            self.served.add(self._public(served).strip())
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.pace.answered(prompt + completion, headers)

    def _refuse_overspending(self) -> None:
        before = self.budget.already if self.budget.total else Spent()
        spent = before.tokens + self.prompt_tokens + self.completion_tokens
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
        """Return a text of the endpoint's without the key, should it repeat it."""
        return credentials.without(text, self._secret)

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
        raise WireError(f"no JSON object, {error.got[:80]}") from error


def _worth_another(error: "openai.APIStatusError") -> bool:
    if error.status_code == 429:
        return str(error.code) != "insufficient_quota"
    return error.status_code in (408, 409) or error.status_code >= 500
