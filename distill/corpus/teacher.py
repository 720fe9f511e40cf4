"""Generators that are not models of ours: an OpenAI-compatible endpoint, and a replay from disk."""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.core.records import Trace
from distill.core.store import Shards
from distill.corpus.completions import assemble
from distill.corpus.wire import WireError, read_chat, read_completion, read_scored

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Finished = tuple[int, Completion]
MOST_SECONDS_BETWEEN_TRIES = 60.0


# --- Formats -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Format:
    """How one of the two APIs is asked and how its choices are read."""

    create: Callable[["openai.AsyncOpenAI"], Callable[..., Awaitable[Any]]]
    ask: Callable[[Request, Sampling], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], Completion]


def _sampled(sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "top_p": sampling.top_p,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k:
        body["extra_body"] = {"top_k": sampling.top_k}
    return body


def _ask_completion(request: Request, sampling: Sampling) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "logprobs": sampling.top_logprobs,
        **_sampled(sampling),
    }


def _ask_chat(request: Request, sampling: Sampling) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": request.prompt}],
        "seed": request.seed,
        "logprobs": True,
        "top_logprobs": sampling.top_logprobs,
        **_sampled(sampling),
    }


_FORMATS = {
    "completions": _Format(
        lambda client: client.completions.with_raw_response.create,
        _ask_completion,
        read_completion,
    ),
    "chat": _Format(
        lambda client: client.chat.completions.with_raw_response.create, _ask_chat, read_chat
    ),
}


# --- An endpoint -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenAICompatible:
    """A model behind an endpoint that speaks OpenAI's Completions or Chat Completions API.

    Requests that meet a rate limit (429), a fault of the server (5xx), a time-out, a broken
    connection or a malformed answer are sent again after a pause that doubles, drawn between half
    of it and all of it, and never shorter than the server's `Retry-After`. Where the endpoint
    knows seeds, a completion depends on its request and sampling alone.

    Attributes:
        model: the model's name at the endpoint.
        base_url: the endpoint's address up to and with `/v1`.
        kind: `completions` (prompts as they are, can score) or `chat` (the prompt is the user's
            one message, cannot score).
        api_key_variable: name of the environment variable that holds the key; None where the
            endpoint needs none. The key is read when requests are sent and kept nowhere.
        concurrency: requests in flight.
        timeout: seconds until a request is given up.
        max_retries: further tries of a request.
        backoff: seconds before the second try.

    Example:
        >>> OpenAICompatible(model="m", base_url="http://localhost:8000/v1", kind="chat").kind
        'chat'
    """

    model: str
    base_url: str = dataclasses.field(default="https://api.openai.com/v1", repr=False)
    kind: str = "completions"
    api_key_variable: str | None = dataclasses.field(default="OPENAI_API_KEY", repr=False)
    concurrency: int = dataclasses.field(default=16, repr=False)
    timeout: float = dataclasses.field(default=120.0, repr=False)
    max_retries: int = dataclasses.field(default=8, repr=False)
    backoff: float = dataclasses.field(default=0.5, repr=False)

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
        if address.username or address.password or address.query:
            raise UserError(
                "a base_url without credentials", "one with some", "use api_key_variable"
            )
        if self.kind not in _FORMATS:
            raise UserError(f"a kind of {', '.join(_FORMATS)}", self.kind, "name one of them")
        if self.concurrency < 1 or self.timeout <= 0 or self.max_retries < 0 or self.backoff < 0:
            raise ValueError(
                f"expected concurrency >= 1, timeout > 0, max_retries and backoff >= 0, got "
                f"{self.concurrency}, {self.timeout}, {self.max_retries}, {self.backoff}"
            )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        """Yield (index, completion) as answers come in.

        Raises:
            UserError: the endpoint refuses, stays away, or reports no log-probabilities.
        """
        format_ = _FORMATS[self.kind]

        async def ask(client: "openai.AsyncOpenAI", request: Request) -> Completion:
            body = format_.ask(request, sampling)
            return await self._tried(format_.create(client), body, request, format_.read)

        return self._all(requests, ask)

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Finished]:
        """Yield the log-probabilities of given completions, by the legacy API's `echo`.

        A token across the border of prompt and completion keeps its bytes within the completion,
        without a log-probability.

        Raises:
            UserError: the endpoint cannot score a given text, or as `generate`.
        """
        if self.kind != "completions":
            raise UserError("kind completions to score a text", self.kind, "sample, or change it")
        create = _FORMATS[self.kind].create

        async def ask(client: "openai.AsyncOpenAI", request: Request) -> Completion:
            completion = request.completion or ""
            body = {
                "prompt": request.prompt + completion,
                "echo": True,
                "max_tokens": 0,
                "logprobs": top_logprobs,
            }
            read = lambda choice: read_scored(choice, request.prompt, completion)  # noqa: E731
            return await self._tried(create(client), body, request, read)

        return self._all(requests, ask)

    def _all(
        self,
        requests: Sequence[Request],
        ask: Callable[["openai.AsyncOpenAI", Request], Awaitable[Completion]],
    ) -> Iterator[Finished]:
        key = self._key()

        async def batches() -> AsyncIterator[list[Finished]]:
            async with self._client(key) as client:

                async def one(index: int) -> Finished:
                    return index, await ask(client, requests[index])

                async for batch in _concurrently(one, len(requests), self.concurrency):
                    yield batch

        with _loop() as wait:
            source = batches()
            while requests and (batch := wait(_next(source))):
                yield from batch

    def _key(self) -> str:
        if self.api_key_variable is None:
            return "none"
        key = os.environ.get(self.api_key_variable, "")
        if not key:
            raise UserError(
                f"an API key in the environment variable {self.api_key_variable}",
                "none",
                "export it, or set api_key_variable=None where the endpoint needs no key",
            )
        return key

    def _client(self, key: str) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=0
        )

    async def _tried(
        self,
        create: Callable[..., Awaitable[Any]],
        body: dict[str, Any],
        request: Request,
        read: Callable[[Mapping[str, Any]], Completion],
    ) -> Completion:
        """Send one request until it is answered; return the answer's first choice."""
        import openai

        drawn = random.Random(request.seed)
        for tries in range(self.max_retries + 1):
            try:
                answer = await create(model=self.model, **body)
                return read(_first_choice(answer.http_response.content))
            except openai.APIStatusError as error:
                if not _worth_another(error):
                    return self._refused(error)
                fault, pause = f"HTTP {error.status_code}", _retry_after(error.response.headers)
            except openai.APIConnectionError as error:
                fault, pause = type(error.__cause__ or error).__name__, 0.0
            except WireError as error:
                fault, pause = f"a malformed answer ({error})", 0.0
            if tries < self.max_retries:
                logger.debug("%s: %s, try %d", self.model, fault, tries + 1)
                doubled = min(self.backoff * 2**tries, MOST_SECONDS_BETWEEN_TRIES)
                await asyncio.sleep(max(pause, doubled * drawn.uniform(0.5, 1.0)))
        raise UserError(
            f"an answer from {urlsplit(self.base_url).netloc}",
            f"{fault} {self.max_retries + 1} times",
            "check the endpoint and run the same command again, it goes on from here",
        )

    def _refused(self, error: "openai.APIStatusError") -> Completion:
        """Return the empty completion of a request whose prompt is at fault, or end the run."""
        reason = _PROMPT_AT_FAULT.get(str(error.code))
        if reason is not None:
            return assemble([], finish_reason=reason)
        message = " ".join(str(error.message).split())[:300]
        raise UserError(
            f"{urlsplit(self.base_url).netloc} to serve {self.model}",
            f"HTTP {error.status_code}: {message.replace(self._key(), '***')}",
            "check the model, the key and the sampling against what the endpoint offers",
        ) from None


_PROMPT_AT_FAULT = {
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "context_length_exceeded": "error",
}


def _first_choice(content: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WireError("no JSON") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise WireError("no choice")
    return choices[0]


def _worth_another(error: "openai.APIStatusError") -> bool:
    if error.status_code == 429:
        return str(error.code) != "insufficient_quota"
    return error.status_code in (408, 409) or error.status_code >= 500


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0 where it does not."""
    with contextlib.suppress(KeyError, ValueError):
        return max(float(headers["retry-after-ms"]) / 1000, 0.0)
    with contextlib.suppress(KeyError, ValueError):
        return max(float(headers["retry-after"]), 0.0)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(date.timestamp() - time.time(), 0.0)
    return 0.0


# --- Asynchronous inside, an iterator outside --------------------------------------------------


async def _concurrently(
    one: Callable[[int], Awaitable[Item]], count: int, concurrency: int
) -> AsyncIterator[list[Item]]:
    """Yield the results of `one(0)` to `one(count - 1)`, those together that are at hand together.

    What has been finished beside a failure is yielded before the failure is raised.
    """
    finished: asyncio.Queue[asyncio.Future[Item]] = asyncio.Queue()
    running: set[asyncio.Future[Item]] = set()
    started = 0
    try:
        while running or started < count:
            while len(running) < concurrency and started < count:
                task = asyncio.ensure_future(one(started))
                task.add_done_callback(finished.put_nowait)
                running.add(task)
                started += 1
            tasks = [await finished.get()]
            while not finished.empty():
                tasks.append(finished.get_nowait())
            yield [task.result() for task in tasks if task.exception() is None]
            for task in tasks:
                task.result()
            running.difference_update(tasks)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _next(source: AsyncIterator[list[Item]]) -> list[Item]:
    """Return the next results, none at the end."""
    async for batch in source:
        if batch:
            return batch
    return []


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Any], Any]]:
    """Yield a function that waits for a coroutine in a loop of a thread of its own.

    So it also works where a loop runs already, as in a notebook, and what is in flight goes on
    while the caller writes to disk. Leaving cancels what is left.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        yield wait
    finally:
        wait(_cancel_all())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


# --- A replay ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Replay:
    """A generator that plays back the traces of an earlier harvest.

    Attributes:
        directory: a run's `traces`.
    """

    directory: str

    @property
    def model(self) -> str:
        """The model of the first trace."""
        for trace in self._traces():
            return trace.model
        raise UserError(f"traces in {self.directory}", "none", "harvest some first")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        """Yield the traces with the requests' prompts and seeds; the sampling is the trace's own.

        Raises:
            UserError: a request has no trace.
        """
        del sampling
        keys = [(request.prompt, request.seed) for request in requests]
        return self._found(keys, lambda trace: (trace.prompt, trace.seed))

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Finished]:
        """Yield the traces with the requests' prompts and completions; raises as `generate`."""
        del top_logprobs
        keys = [(request.prompt, request.completion) for request in requests]
        return self._found(keys, lambda trace: (trace.prompt, trace.text))

    def _traces(self) -> Shards[Trace]:
        return Shards(Path(self.directory), Trace)

    def _found(self, keys: Sequence[Any], key_of: Callable[[Trace], Any]) -> Iterator[Finished]:
        wanted: dict[Any, list[int]] = {}
        for index, key in enumerate(keys):
            wanted.setdefault(key, []).append(index)
        names = [field.name for field in dataclasses.fields(Completion)]
        for trace in self._traces():
            for index in wanted.pop(key_of(trace), []):
                yield index, Completion(**{name: getattr(trace, name) for name in names})
        if wanted:
            raise UserError(
                f"a trace for each of {len(keys)} requests in {self.directory}",
                f"{sum(map(len, wanted.values()))} without one",
                "replay with the problems, prompt and seed of that harvest",
            )
