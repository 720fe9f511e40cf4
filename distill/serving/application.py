"""The HTTP application: routes, request limits and errors; loads no model, opens no socket."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from distill.core import seeds
from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request
from distill.serving import requests, responses
from distill.serving.batching import Batcher, OverloadedError, Scoring, Work
from distill.serving.connections import network_of
from distill.serving.gate import Gate, error_response
from distill.serving.requests import CompletionRequest, Limits, Read, RefusedError
from distill.serving.responses import Choice, Format
from distill.test_time.answer import Answerer

logger = logging.getLogger(__name__)

CLOSED_BY_CLIENT = 499
T = TypeVar("T")


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
    return seeds.from_names(seed, number, bits=63) if number else seed


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
        self._answering, self._questions = answering, 0
        # One question after another; one whose client leaves before its turn is not answered.
        self._turns = concurrent.futures.ThreadPoolExecutor(1)

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
        return await self._answer(request, requests.read_completion, responses.LEGACY)

    async def chat(self, request: HttpRequest) -> Response:
        """Answer the chat API."""
        return await self._answer(request, requests.read_chat, responses.CHAT)

    async def answers(self, request: HttpRequest) -> Response:
        """Answer a question by the policy and say what was spent, one question after another."""
        answering = self._answering
        if answering is None:
            raise HTTPException(404)
        wanted = requests.read_question(
            requests.parse(await _body(request, self._limits)), self._limits
        )
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
        answer = functools.partial(answering, wanted.text, wanted.budget, seed=wanted.seed)
        turn = asyncio.get_running_loop().run_in_executor(self._turns, answer)
        try:
            solved = await _unless_gone(request, [turn])
        except UserError as error:
            raise RefusedError(str(error)) from error
        finally:
            self._questions -= 1
        if solved is None:
            return Response(status_code=CLOSED_BY_CLIENT)
        head = {"id": f"answer-{uuid.uuid4().hex}", "object": "answer"}
        return JSONResponse(
            {**head, "created": int(time.time()), "model": wanted.model, **solved[0]}
        )

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
        known = {"max_model_len": self._limits.prompt_tokens, requests.PREFIX: True}
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
        wanted = read(requests.parse(await _body(request, self._limits)), self._limits)
        self._require_model(wanted.model)
        counts = await asyncio.to_thread(self._counts, wanted)
        if wanted.echo and not self._served.echoes:
            raise RefusedError(
                "expected a request without echo, as this model reads its prompt by an encoder, "
                "got echo; leave it out",
                param="echo",
            )
        needed = await asyncio.to_thread(self._needed, wanted)
        completions = await _unless_gone(request, self._submit(needed, _client(request)))
        if completions is None:
            return Response(status_code=CLOSED_BY_CLIENT)
        return await asyncio.to_thread(self._response, wanted, format_, counts, completions)

    def _response(
        self,
        wanted: CompletionRequest,
        format_: Format,
        counts: Sequence[int],
        completions: Sequence[Completion],
    ) -> Response:
        """Return the answer; for a thread, since it may be long."""
        echoed, written = _parted(wanted, completions)
        choices = _choices(wanted, echoed, written)
        usage = _usage(wanted, counts, written)
        head = {"id": f"{format_.prefix}{uuid.uuid4().hex}", "created": int(time.time())}
        head["model"] = self._served.name
        if not wanted.stream:
            return JSONResponse(responses.whole(format_, head, choices, usage))
        parts = responses.stream(format_, head, choices, usage if wanted.include_usage else None)
        return StreamingResponse(_events(parts), media_type="text/event-stream")

    def _counts(self, wanted: CompletionRequest) -> list[int]:
        return [self._counted(prompt, wanted.prefix) for prompt in wanted.prompts]

    def _counted(self, prompt: str, prefix: str) -> int:
        if len(prompt) + len(prefix) > self._limits.prompt_characters:
            raise RefusedError(
                f"expected a prompt of at most {self._limits.prompt_characters} characters, got "
                f"{len(prompt) + len(prefix)}; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
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

    def _needed(self, wanted: CompletionRequest) -> list["_Needed"]:
        """Return what a request needs: the scored prompts first, then n completions of each."""
        echoed = [Request("", completion=prompt) for prompt in wanted.prompts if wanted.echo]
        needed = []
        if echoed:
            scoring = Scoring(wanted.sampling.top_logprobs)
            needed.append(_Needed(echoed, scoring, self._batcher.programs(echoed, scoring)))
        if wanted.writes:
            firsts = [Request(prompt, 0, prefix=wanted.prefix) for prompt in wanted.prompts]
            programs = self._batcher.programs(firsts, wanted.sampling)
            rows = [
                dataclasses.replace(first, seed=seed_of(wanted.seed, number))
                for first in firsts
                for number in range(wanted.n)
            ]
            repeated = [program for program in programs for _ in range(wanted.n)]
            needed.append(_Needed(rows, wanted.sampling, repeated))
        return needed

    def _submit(self, needed: Sequence["_Needed"], client: str) -> list[asyncio.Future[Completion]]:
        answers: list[asyncio.Future[Completion]] = []
        try:
            for each in needed:
                answers += self._batcher.submit(each.requests, each.work, each.programs, client)
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


class _Needed(NamedTuple):
    """Requests that are submitted together."""

    requests: Sequence[Request]
    work: Work
    programs: Sequence[Hashable]


def _client(request: HttpRequest) -> str:
    return network_of(request.client.host) if request.client else ""


# --- Answers -----------------------------------------------------------------------------------


def _parted(
    wanted: CompletionRequest, completions: Sequence[Completion]
) -> tuple[Sequence[Completion], Sequence[Completion]]:
    """Return the scored prompts and the completions that were written."""
    echoed = len(wanted.prompts) if wanted.echo else 0
    return completions[:echoed], completions[echoed:]


def _choices(
    wanted: CompletionRequest, echoed: Sequence[Completion], written: Sequence[Completion]
) -> list[Choice]:
    choices = []
    for index in range(len(wanted.prompts) * wanted.n):
        own = written[index] if wanted.writes else None
        before = echoed[index // wanted.n] if wanted.echo else None
        choices.append(_choice(index, wanted, before, own))
    return choices


def _usage(
    wanted: CompletionRequest, counts: Sequence[int], written: Sequence[Completion]
) -> dict[str, int]:
    """Return the tokens of each prompt, once, and of every completion; the generator's own counts.

    Args:
        wanted: the request.
        counts: the tokenizer's count of each prompt, for a generator that reports none.
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


def _choice(
    index: int, wanted: CompletionRequest, before: Completion | None, own: Completion | None
) -> Choice:
    k = wanted.top_logprobs or 0
    tokens = list(responses.reported_tokens(own, k)) if own else []
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
        text, tokens = before.text + text, [*responses.reported_tokens(echo, k), *tokens]
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
    request: HttpRequest, answers: Sequence[asyncio.Future[T]]
) -> list[T] | None:
    """Return the answers, or None once the client has gone, which cancels what waits."""
    gone = asyncio.ensure_future(_gone(request))
    every = asyncio.gather(*answers)
    every.add_done_callback(lambda _: every.cancelled() or every.exception())
    try:
        await asyncio.wait({gone, every}, return_when=asyncio.FIRST_COMPLETED)
        return list(every.result()) if every.done() else None
    finally:
        gone.cancel()
        for answer in answers:
            answer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- The application ---------------------------------------------------------------------------


async def _refused(request: HttpRequest, error: Exception) -> Response:
    return (
        error_response(error) if isinstance(error, RefusedError) else await _failed(request, error)
    )


async def _of_http(request: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    answer = error_response(RefusedError(f"{detail}; see /v1/models", status=status))
    answer.headers.update((isinstance(error, HTTPException) and error.headers) or {})
    return answer


async def _failed(request: HttpRequest, error: Exception) -> Response:
    return error_response(RefusedError("the server failed to answer; its log says why", status=500))


async def _left(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=CLOSED_BY_CLIENT)


def application(
    served: Served,
    batcher: Batcher,
    limits: Limits,
    *,
    key: str | None,
    answering: Answerer | None = None,
) -> Gate:
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
    return Gate(Starlette(routes=routes, lifespan=running, exception_handlers=handlers), key)
