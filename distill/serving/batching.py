"""Requests that wait together run together; knows generators and queues, not HTTP."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence

from distill.core.ports import Completion, Generator, Request, Sampling

LONGEST_RETRY = 60  # seconds


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


@dataclasses.dataclass(frozen=True)
class _Waiting:
    request: Request
    answer: Answer
    since: float


class Batcher:
    """A bounded queue before a generator.

    Requests of the same work run as one batch: as soon as a batch is full, or when the one that
    waits longest has waited `max_wait`. Of several works the one with the longest wait is next.
    What nobody waits for any more is not run. A completion depends on its request and work alone,
    as the Generator port promises, so batching changes none.

    Args:
        generator: what runs; one batch at a time, in a thread of its own.
        batch_size: most requests of a batch.
        max_wait: seconds that a request may wait for others.
        max_queue: most requests that wait.
    """

    def __init__(
        self, generator: Generator, *, batch_size: int, max_wait: float, max_queue: int
    ) -> None:
        if batch_size < 1 or max_wait < 0 or max_queue < 1:
            raise ValueError(
                f"expected batch_size and max_queue >= 1 and max_wait >= 0, got {batch_size}, "
                f"{max_queue} and {max_wait}"
            )
        self._generator = generator
        self._batch_size, self._max_wait, self._max_queue = batch_size, max_wait, max_queue
        self._queues: dict[Work, collections.deque[_Waiting]] = {}
        self._arrived = asyncio.Event()
        self._seconds = 1.0  # of the last batch

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._queues.values()))

    def submit(self, requests: Sequence[Request], work: Work) -> list[Answer]:
        """Queue all requests or none; return what will be their completions.

        Raises:
            OverloadedError: there is no room for all.
        """
        if self.waiting + len(requests) > self._max_queue:
            batches = self.waiting / self._batch_size
            raise OverloadedError(min(max(math.ceil(batches * self._seconds), 1), LONGEST_RETRY))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        rows = [_Waiting(request, loop.create_future(), now) for request in requests]
        self._queues.setdefault(work, collections.deque()).extend(rows)
        self._arrived.set()
        return [row.answer for row in rows]

    async def run(self) -> None:
        """Answer until cancelled; what a batch raises is raised to those who wait for it."""
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            while True:
                work = await self._ready()
                rows = self._take(work)
                if not rows:
                    continue
                begun = time.monotonic()
                asked = [row.request for row in rows]
                ran = loop.run_in_executor(thread, self._answered, asked, work)
                await asyncio.wait({ran})
                self._seconds = time.monotonic() - begun
                _deliver(rows, ran)

    async def _ready(self) -> Work:
        """Return the work to run next, once it is full or has waited long enough."""
        while not self._queues:
            self._arrived.clear()
            await self._arrived.wait()
        work = min(self._queues, key=lambda work: self._queues[work][0].since)
        deadline = self._queues[work][0].since + self._max_wait
        while len(self._queues[work]) < self._batch_size:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        return work

    def _take(self, work: Work) -> list[_Waiting]:
        rows, queue = [], self._queues[work]
        while queue and len(rows) < self._batch_size:
            row = queue.popleft()
            if not row.answer.done():
                rows.append(row)
        if not queue:
            del self._queues[work]
        return rows

    def _answered(self, requests: Sequence[Request], work: Work) -> dict[int, Completion]:
        if isinstance(work, Scoring):
            return dict(self._generator.score(requests, work.top_logprobs))
        return dict(self._generator.generate(requests, work))


def _deliver(rows: Sequence[_Waiting], ran: asyncio.Future[dict[int, Completion]]) -> None:
    error = ran.exception()
    for index, row in enumerate(rows):
        if row.answer.done():
            continue
        if error is not None:
            row.answer.set_exception(error)
        else:
            row.answer.set_result(ran.result()[index])
