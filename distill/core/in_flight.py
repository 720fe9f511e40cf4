"""Run many awaitables at once behind a plain iterator."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

Item = TypeVar("Item")
Resource = TypeVar("Resource")


def in_flight(
    one: Callable[[Resource, int], Awaitable[Item]],
    count: int,
    *,
    limit: Callable[[], int],
    resource: Callable[[], AbstractAsyncContextManager[Resource]],
) -> Iterator[Item]:
    """Yield the results of `one(shared, 0)` to `one(shared, count - 1)` as they finish.

    They run in an event loop of a thread of its own, so this also works within a running loop, as
    in a notebook, and they continue while the caller writes to disk. After a failure no more are
    started; those in flight are awaited and yielded, then the failure is raised. Closing the
    iterator cancels the rest.

    Args:
        one: what to run, by number.
        count: how many.
        limit: returns how many may be in flight; called each time one has finished.
        resource: opens an object they share, such as a client, until the last has finished.

    Example:
        >>> async def power(base, n):
        ...     return base ** n
        >>> shared = lambda: contextlib.nullcontext(2)
        >>> sorted(in_flight(power, 4, limit=lambda: 3, resource=shared))
        [1, 2, 4, 8]
    """
    if not count:
        return
    with _loop() as wait:
        source = _batches(one, count, limit, resource)
        while batch := wait(_next(source)):
            yield from batch


async def _batches(
    one: Callable[[Resource, int], Awaitable[Item]],
    count: int,
    limit: Callable[[], int],
    resource: Callable[[], AbstractAsyncContextManager[Resource]],
) -> AsyncIterator[list[Item]]:
    """Yield lists of the results that finished since the last list."""
    finished: asyncio.Queue[asyncio.Future[Item]] = asyncio.Queue()
    running: set[asyncio.Future[Item]] = set()
    failures: list[BaseException] = []
    numbers = iter(range(count))
    async with resource() as shared:
        try:
            while True:
                room = 0 if failures else max(limit(), 1) - len(running)
                for number in itertools.islice(numbers, max(room, 0)):
                    task = asyncio.ensure_future(one(shared, number))
                    task.add_done_callback(finished.put_nowait)
                    running.add(task)
                if not running:
                    break
                tasks = [await finished.get()]
                while not finished.empty():
                    tasks.append(finished.get_nowait())
                running.difference_update(tasks)
                failures += filter(None, (task.exception() for task in tasks))
                yield [task.result() for task in tasks if task.exception() is None]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    if failures:
        raise failures[0]


async def _next(source: AsyncIterator[list[Item]]) -> list[Item]:
    """Return the next results, none at the end."""
    async for batch in source:
        if batch:
            return batch
    return []


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Any], Any]]:
    """Yield a function that waits for a coroutine in the loop of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="in flight", daemon=True)
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
