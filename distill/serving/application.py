"""The HTTP application: keys, limits, routes, errors; it knows no model and opens no socket."""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request
from distill.scaling.answer import Answerer
from distill.serving import answered, asked
from distill.serving.answered import Choice, Format
from distill.serving.asked import Asked, Limits, Read, RefusedError
from distill.serving.batching import Batcher, OverloadedError, Scoring

logger = logging.getLogger(__name__)

CLOSED_BY_CLIENT = 499


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served, and under which name.

    Attributes:
        generator: what answers.
        name: the model's, for clients.
        count_tokens: tokens of a text.
        echoes: whether a text is scored as what follows an empty prompt, as in a language model;
            not so where an encoder reads the prompt.
    """

    generator: Generator
    name: str
    count_tokens: Callable[[str], int]
    echoes: bool


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a request's completion; the first has the request's own.

    Example:
        >>> seed_of(7, 0), seed_of(7, 1) == seed_of(7, 1), seed_of(7, 1) == seed_of(7, 2)
        (7, True, False)
    """
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Endpoint:
    """The API's routes.

    Args:
        served: what answers.
        batcher: the queue before it.
        limits: of a request.
        answering: answers questions by a policy, None where there is no such route.
    """

    def __init__(
        self, served: Served, batcher: Batcher, limits: Limits, answering: Answerer | None = None
    ) -> None:
        self._served, self._batcher, self._limits = served, batcher, limits
        self._created = int(time.time())
        self._answering, self._turn, self._questions = answering, asyncio.Lock(), 0

    def routes(self) -> list[Route]:
        """Return what is answered where."""
        return [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            *([Route("/v1/answers", self.answers, methods=["POST"])] if self._answering else []),
        ]

    async def completions(self, request: HttpRequest) -> Response:
        """Answer the legacy API."""
        return await self._answer(request, asked.read_completion, answered.LEGACY)

    async def chat(self, request: HttpRequest) -> Response:
        """Answer the chat API."""
        return await self._answer(request, asked.read_chat, answered.CHAT)

    async def answers(self, request: HttpRequest) -> Response:
        """Answer a question by the policy and say what was spent, one question after another."""
        answering = self._answering
        if answering is None:
            raise HTTPException(404)
        wanted = asked.read_question(asked.parse(await _body(request, self._limits)), self._limits)
        self._require_model(wanted.model)
        await asyncio.to_thread(self._counted, answering.prompt(wanted.text), "")
        if self._questions >= self._limits.answers:
            raise RefusedError(
                "expected room among the questions that wait, got none; try again in 5 seconds",
                status=429,
                code="rate_limit_exceeded",
                retry_after=5,
            )
        self._questions += 1
        try:
            async with self._turn:
                found = await asyncio.to_thread(
                    answering, wanted.text, wanted.budget, seed=wanted.seed
                )
        except UserError as error:
            raise RefusedError(str(error)) from error
        finally:
            self._questions -= 1
        head = {"id": f"answer-{uuid.uuid4().hex}", "object": "answer"}
        return JSONResponse({**head, "created": int(time.time()), "model": wanted.model, **found})

    async def models(self, request: HttpRequest) -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: HttpRequest) -> Response:
        """Describe the one model."""
        self._require_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def health(self, request: HttpRequest) -> Response:
        """Say that requests are taken, and how many wait."""
        return JSONResponse({"status": "ok", "waiting": self._batcher.waiting})

    def _card(self) -> dict[str, Any]:
        card = {"id": self._served.name, "object": "model", "created": self._created}
        known = {"max_model_len": self._limits.prompt_tokens, asked.PREFIX: True}
        if self._answering:
            known["answer_budgets"] = list(self._answering.policy.budgets)
        return {**card, "owned_by": "distill", **known}

    def _require_model(self, name: str) -> None:
        if name != self._served.name:
            raise RefusedError(
                f"expected the model {self._served.name}, got {ascii(name)[:60]}; see /v1/models",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def _answer(self, request: HttpRequest, read: Read, format_: Format) -> Response:
        wanted = read(asked.parse(await _body(request, self._limits)), self._limits)
        self._require_model(wanted.model)
        counts = [
            await asyncio.to_thread(self._counted, prompt, wanted.prefix)
            for prompt in wanted.prompts
        ]
        if wanted.echo and not self._served.echoes:
            raise RefusedError(
                "expected a request without echo, as this model reads its prompt by an encoder, "
                "got echo; leave it out",
                param="echo",
            )
        completions = await _unless_gone(request, self._submit(wanted))
        if completions is None:
            return Response(status_code=CLOSED_BY_CLIENT)
        echoed, written = _parted(wanted, completions)
        choices = _choices(wanted, echoed, written)
        usage = _usage(wanted, counts, written)
        head = {"id": f"{format_.prefix}{uuid.uuid4().hex}", "created": int(time.time())}
        head["model"] = self._served.name
        if not wanted.stream:
            return JSONResponse(answered.whole(format_, head, choices, usage))
        parts = answered.stream(format_, head, choices, usage if wanted.include_usage else None)
        return StreamingResponse(_events(parts), media_type="text/event-stream")

    def _counted(self, prompt: str, prefix: str) -> int:
        count = self._served.count_tokens(prompt)
        count += self._served.count_tokens(prefix) if prefix else 0
        if count > self._limits.prompt_tokens:
            raise RefusedError(
                f"expected a prompt of at most {self._limits.prompt_tokens} tokens, got {count}; "
                "shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
        return count

    def _submit(self, wanted: Asked) -> list[asyncio.Future[Completion]]:
        """Queue what a request needs: the scored prompts first, then n completions of each."""
        rows = [
            Request(prompt, seed_of(wanted.seed, number), prefix=wanted.prefix)
            for prompt in wanted.prompts
            for number in range(wanted.n if wanted.writes else 0)
        ]
        echoed = [Request("", completion=prompt) for prompt in wanted.prompts if wanted.echo]
        answers: list[asyncio.Future[Completion]] = []
        try:
            if echoed:
                answers += self._batcher.submit(echoed, Scoring(wanted.sampling.top_logprobs))
            if rows:
                answers += self._batcher.submit(rows, wanted.sampling)
            return answers
        except OverloadedError as error:
            for answer in answers:
                answer.cancel()
            raise RefusedError(
                f"expected room in the queue, got none; try again in {error.retry_after} seconds",
                status=429,
                code="rate_limit_exceeded",
                retry_after=error.retry_after,
            ) from error


# --- Answers -----------------------------------------------------------------------------------


def _parted(
    wanted: Asked, completions: Sequence[Completion]
) -> tuple[Sequence[Completion], Sequence[Completion]]:
    """Return the scored prompts and the completions that were written."""
    echoed = len(wanted.prompts) if wanted.echo else 0
    return completions[:echoed], completions[echoed:]


def _choices(
    wanted: Asked, echoed: Sequence[Completion], written: Sequence[Completion]
) -> list[Choice]:
    choices = []
    for index in range(len(wanted.prompts) * wanted.n):
        own = written[index] if wanted.writes else None
        before = echoed[index // wanted.n] if wanted.echo else None
        choices.append(_choice(index, wanted, before, own))
    return choices


def _usage(wanted: Asked, counts: Sequence[int], written: Sequence[Completion]) -> dict[str, int]:
    """Return the tokens of each prompt, once, and of every completion; the generator's own counts.

    Args:
        wanted: the request.
        counts: the tokenizer's count of each prompt, for a generator that tells none.
        written: the completions, those of the first prompt first.
    """
    read = [made.prompt_tokens for made in written[:: wanted.n]]
    drawn = [
        len(made.tokens) if made.completion_tokens is None else made.completion_tokens
        for made in written
    ]
    told = [count for count in read if count is not None]
    prompt = sum(told) if read and len(told) == len(read) else sum(counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sum(drawn),
        "total_tokens": prompt + sum(drawn),
    }


def _choice(index: int, wanted: Asked, before: Completion | None, own: Completion | None) -> Choice:
    k = wanted.top_logprobs or 0
    tokens = list(answered.told(own, k)) if own else []
    text, reason = (own.text, own.finish_reason) if own else ("", "length")
    if before is not None:
        if before.text != wanted.prompts[index // wanted.n]:
            raise RefusedError(
                "expected a prompt that the vocabulary spells as it is, got another; drop echo",
                param="echo",
            )
        if tokens and k:
            # What follows the echo tells the log-probability of ending there.
            end = (b"", before.end_logprob)
            tokens[0] = tokens[0]._replace(top=(*tokens[0].top, end))
        echo = dataclasses.replace(before, end_logprob=float("nan"))
        text, tokens = before.text + text, [*answered.told(echo, k), *tokens]
    return Choice(index, text, tuple(tokens), reason, wanted.top_logprobs is not None)


def _events(parts: Iterator[Any]) -> Iterator[str]:
    """Yield server-sent events."""
    for part in parts:
        yield f"data: {json.dumps(part, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


# --- Requests ----------------------------------------------------------------------------------


async def _body(request: HttpRequest, limits: Limits) -> bytes:
    """Return the body, given up where it is too large or too slow."""
    refused = RefusedError(
        f"expected a body of at most {limits.body_bytes} bytes, got a larger one; send less",
        status=413,
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise refused
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise refused
    except TimeoutError as error:
        raise RefusedError(
            f"expected a body within {limits.body_seconds:g} seconds, got a part; send it at once",
            status=408,
        ) from error
    return bytes(body)


async def _unless_gone(
    request: HttpRequest, answers: Sequence[asyncio.Future[Completion]]
) -> list[Completion] | None:
    """Return the completions, or None once the client has gone, which cancels what waits."""
    gone = asyncio.ensure_future(_gone(request))
    every = asyncio.gather(*answers)
    try:
        await asyncio.wait({gone, every}, return_when=asyncio.FIRST_COMPLETED)
        return every.result() if every.done() else None
    finally:
        gone.cancel()
        for answer in answers:
            answer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- The door ----------------------------------------------------------------------------------


class Door:
    """What every request passes: the key, and whether the server still takes requests.

    Args:
        inner: the application behind.
        key: the bearer token of all routes under /v1; None where none is needed.

    Attributes:
        answers: how many requests got each status.
    """

    def __init__(self, inner: ASGIApp, key: str | None) -> None:
        self._inner, self._key = inner, key
        self.answers: collections.Counter[int] = collections.Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        self._loop = asyncio.get_running_loop()
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answers[message["status"]] += 1
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await _error(refused)(scope, receive, counted)
            return
        self._inside += 1
        try:
            await self._inner(scope, receive, counted)
        finally:
            self._inside -= 1

    def close(self, patience: float) -> bool:
        """Refuse new requests; return whether those inside left within so many seconds.

        For another thread than the event loop's; what never began has nobody inside.
        """
        if self._loop is None or self._loop.is_closed():
            return True
        return asyncio.run_coroutine_threadsafe(self._emptied(patience), self._loop).result()

    async def _emptied(self, patience: float) -> bool:
        self._closing = True
        until = time.monotonic() + patience
        while self._inside and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return not self._inside

    def _refusal(self, scope: Scope) -> RefusedError | None:
        if scope["path"].startswith("/v1") and not self._knows_key(scope):
            return RefusedError(
                "expected the API key of this server as a bearer token, got none or another; "
                "send Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )
        if self._closing:
            return RefusedError("the server is shutting down; try again", status=503, retry_after=5)
        return None

    def _knows_key(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        same = hmac.compare_digest(token.strip(), self._key.encode())
        return scheme.lower() == b"bearer" and same


def _error(error: RefusedError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


async def _refused(request: HttpRequest, error: Exception) -> Response:
    return _error(error) if isinstance(error, RefusedError) else await _failed(request, error)


async def _of_http(request: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    return _error(RefusedError(f"{detail}; see /v1/models", status=status))


async def _failed(request: HttpRequest, error: Exception) -> Response:
    return _error(RefusedError("the server failed to answer; its log says why", status=500))


async def _left(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=CLOSED_BY_CLIENT)


def application(
    served: Served,
    batcher: Batcher,
    limits: Limits,
    *,
    key: str | None,
    answering: Answerer | None = None,
) -> Door:
    """Return the ASGI application, which runs the queue for as long as it lives.

    Args:
        served: what answers.
        batcher: the queue before it.
        limits: of a request.
        key: the bearer token; None where none is needed.
        answering: answers questions by a policy at /v1/answers, None for no such route.
    """

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.ensure_future(batcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    handlers = {
        RefusedError: _refused,
        HTTPException: _of_http,
        ClientDisconnect: _left,
        500: _failed,
    }
    routes = Endpoint(served, batcher, limits, answering).routes()
    return Door(Starlette(routes=routes, lifespan=running, exception_handlers=handlers), key)
