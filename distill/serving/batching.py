"""A bounded queue that groups waiting requests into batches for a generator, without HTTP."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from distill.core.ports import Completion, Generator, Request, Sampling

LONGEST_RETRY = 60  # seconds
CLIENTS_SHARE = 0.75  # of the queue, that one client's requests may fill

K = TypeVar("K")


class OverloadedError(Exception):
    """The queue has no room.

    Args:
        retry_after: whole seconds after which there may be some.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after} seconds")
        self.retry_after = retry_after


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The wish that given completions be measured, with so many candidates a token."""

    top_logprobs: int


Work = Sampling | Scoring
Answer = asyncio.Future[Completion]


class Programs(Protocol):
    """What a generator has to compile before it can run requests."""

    def program(self, request: Request, sampling: Sampling) -> Hashable:
        """Return the program that completes a request."""
        ...

    def scoring_program(self, request: Request, top_logprobs: int) -> Hashable:
        """Return the program that measures a request's own completion."""
        ...

    def is_compiled(self, program: Any) -> bool:
        """Return whether a program runs without delay."""
        ...

    def compile(self, program: Any) -> None:
        """Compile a program; for a thread of its own."""
        ...


class EverythingCompiled:
    """The programs of a generator that compiles nothing."""

    def program(self, request: Request, sampling: Sampling) -> Hashable:
        """Return the one program."""
        return None

    def scoring_program(self, request: Request, top_logprobs: int) -> Hashable:
        """Return the one program."""
        return None

    def is_compiled(self, program: Any) -> bool:
        """Return True."""
        return True

    def compile(self, program: Any) -> None:
        """Do nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    request: Request
    work: Work
    program: Hashable
    answer: Answer
    since: float
    client: str


Rows = dict[_Row, None]  # in their order, each removed at once


class Batcher:
    """A bounded queue before a generator.

    Requests of the same work run as one batch: as soon as a batch is full, or when the one that
    waits longest has waited `max_wait`. Of several works the one with the longest wait is next.
    What nobody waits for any more leaves the queue. A completion depends on its request and work
    alone, as the Generator port promises, so batching changes none.

    Requests whose program is not compiled wait apart until it is. Programs are compiled in another
    thread, one after another, while batches of compiled ones run.

    Args:
        generator: what runs; one batch at a time, in a thread of its own.
        batch_size: most requests of a batch.
        max_wait: seconds that a request may wait for others.
        max_queue: most requests that wait; those of one client are at most three quarters.
        programs: what the generator compiles; None for nothing.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        batch_size: int,
        max_wait: float,
        max_queue: int,
        programs: Programs | None = None,
    ) -> None:
        if batch_size < 1 or max_wait < 0 or max_queue < 1:
            raise ValueError(
                f"expected batch_size and max_queue >= 1 and max_wait >= 0, got {batch_size}, "
                f"{max_queue} and {max_wait}"
            )
        self._generator, self._programs = generator, programs or EverythingCompiled()
        self._batch_size, self._max_wait, self._max_queue = batch_size, max_wait, max_queue
        self._queues: dict[Work, Rows] = {}
        self._uncompiled: dict[Hashable, Rows] = {}
        self._clients: collections.Counter[str] = collections.Counter()
        self._arrived, self._missed = asyncio.Event(), asyncio.Event()
        self._seconds = 1.0  # of the last batch

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._clients.total()

    def programs(self, requests: Sequence[Request], work: Work) -> list[Hashable]:
        """Return the program of each request; for any thread, since it reads their texts."""
        if isinstance(work, Scoring):
            return [self._programs.scoring_program(each, work.top_logprobs) for each in requests]
        return [self._programs.program(each, work) for each in requests]

    def submit(
        self,
        requests: Sequence[Request],
        work: Work,
        programs: Sequence[Hashable] | None = None,
        client: str = "",
    ) -> list[Answer]:
        """Queue all requests or none; return what will be their completions.

        Args:
            requests: what is asked.
            work: what is done with all of them.
            programs: that of each request, as `programs` returns them; None to find them here.
            client: who asks; "" is nobody in particular and may fill the queue.

        Raises:
            OverloadedError: there is no room for all.
        """
        if len(requests) > self._room(client):
            batches = self.waiting / self._batch_size
            raise OverloadedError(min(max(math.ceil(batches * self._seconds), 1), LONGEST_RETRY))
        programs = self.programs(requests, work) if programs is None else programs
        loop, now = asyncio.get_running_loop(), time.monotonic()
        rows = [
            _Row(request, work, program, loop.create_future(), now, client)
            for request, program in zip(requests, programs, strict=True)
        ]
        for row in rows:
            self._clients[client] += 1
            row.answer.add_done_callback(functools.partial(self._forget, row))
            self._enqueue(row)
        return [row.answer for row in rows]

    async def run(self) -> None:
        """Answer until cancelled; what a batch raises is raised to those who wait for it.

        What a thread is in the middle of when this is cancelled, it finishes for nobody.
        """
        compiling = asyncio.ensure_future(self._compile())
        try:
            await self._run_batches()
        finally:
            compiling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await compiling

    async def _run_batches(self) -> None:
        with _thread() as run:
            while True:
                rows = self._take(await self._ready())
                begun = time.monotonic()
                asked = [row.request for row in rows]
                ran = run(self._answered, asked, rows[0].work)
                await asyncio.wait({ran})
                self._seconds = time.monotonic() - begun
                _deliver(rows, ran)

    async def _compile(self) -> None:
        """Compile what requests wait for, in the order of their arrival, and let these run."""
        with _thread() as run:
            while True:
                while not self._uncompiled:
                    self._missed.clear()
                    await self._missed.wait()
                program = next(iter(self._uncompiled))
                compiled = run(self._programs.compile, program)
                await asyncio.wait({compiled})
                self._release(program, compiled.exception())

    def _release(self, program: Hashable, error: BaseException | None) -> None:
        """Let the requests run that waited for a program, or raise to them why it is missing."""
        for row in self._uncompiled.pop(program, {}):
            if error is None:
                self._queues.setdefault(row.work, {})[row] = None
                self._arrived.set()
            else:
                self._clients -= collections.Counter([row.client])
                row.answer.set_exception(error)

    def _room(self, client: str) -> int:
        room = self._max_queue - self.waiting
        share = math.ceil(CLIENTS_SHARE * self._max_queue)
        return min(room, share - self._clients[client]) if client else room

    def _enqueue(self, row: _Row) -> None:
        if self._programs.is_compiled(row.program):
            self._queues.setdefault(row.work, {})[row] = None
            self._arrived.set()
        else:
            self._uncompiled.setdefault(row.program, {})[row] = None
            self._missed.set()

    def _forget(self, row: _Row, answer: Answer) -> None:
        """Take a row out of the queue that its client has left, if it is still there."""
        if row in self._queues.get(row.work, {}):
            _remove(self._queues, row.work, row)
        elif row in self._uncompiled.get(row.program, {}):
            _remove(self._uncompiled, row.program, row)
        else:
            return
        self._clients -= collections.Counter([row.client])

    async def _ready(self) -> Work:
        """Return the work to run next, once it is full or has waited long enough."""
        while True:
            if not self._queues:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            work = min(self._queues, key=lambda work: _first(self._queues[work]).since)
            rows = self._queues[work]
            left = _first(rows).since + self._max_wait - time.monotonic()
            if left <= 0 or len(rows) >= self._batch_size:
                return work
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _take(self, work: Work) -> list[_Row]:
        rows = list(itertools.islice(self._queues[work], self._batch_size))
        for row in rows:
            _remove(self._queues, work, row)
        self._clients -= collections.Counter(row.client for row in rows)
        return rows

    def _answered(self, requests: Sequence[Request], work: Work) -> dict[int, Completion]:
        if isinstance(work, Scoring):
            return dict(self._generator.score(requests, work.top_logprobs))
        return dict(self._generator.generate(requests, work))


def _first(rows: Rows) -> _Row:
    return next(iter(rows))


def _remove(queues: dict[K, Rows], key: K, row: _Row) -> None:
    del queues[key][row]
    if not queues[key]:
        del queues[key]


@contextlib.contextmanager
def _thread() -> Iterator[Callable[..., asyncio.Future[Any]]]:
    """Yield what runs a call in one thread, which is not waited for in the end."""
    loop, thread = asyncio.get_running_loop(), concurrent.futures.ThreadPoolExecutor(1)
    try:
        yield functools.partial(loop.run_in_executor, thread)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _deliver(rows: Sequence[_Row], ran: asyncio.Future[dict[int, Completion]]) -> None:
    error = ran.exception()
    for index, row in enumerate(rows):
        if row.answer.done():
            continue
        if error is not None:
            row.answer.set_exception(error)
        else:
            row.answer.set_result(ran.result()[index])
