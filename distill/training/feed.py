"""Batches for the trainer, prepared ahead of its steps; NumPy only, so that workers start fast."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TypeVar

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Batches
from distill.core.records import PackedExample
from tokalign import spawning

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


class PackedBatches:
    """Packed examples held in memory, in a new order each epoch.

    Batch `step` depends on (examples, batch_size, seed, step) alone. Epochs follow each other
    without a gap: a batch may hold the end of one and the start of the next, and every example is
    seen once in each.

    Args:
        examples: at least one; all of the same lengths.
        batch_size: rows of a batch.
        seed: of the orders.
    """

    def __init__(self, examples: Iterable[PackedExample], batch_size: int, seed: int = 0) -> None:
        rows = list(examples)
        if not rows or batch_size < 1:
            raise UserError(
                "examples to train on and batch_size >= 1",
                f"{len(rows)} examples, {batch_size}",
                "build a dataset with rows, or correct batch_size",
            )
        names = [field.name for field in dataclasses.fields(PackedExample)]
        self._columns = {name: np.stack([getattr(row, name) for row in rows]) for name in names}
        self.size, self.batch_size, self.seed = len(rows), batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    @property
    def largest_id(self) -> int:
        """The largest token id of any row, candidates included."""
        ids = [name for name in self._columns if name.endswith(("_tokens", "_top_ids"))]
        return max(int(self._columns[name].max()) for name in ids)

    def batch(self, step: int) -> Arrays:
        """Return the arrays of step `step`; leading axis batch."""
        return self.batch_rows(step, np.arange(self.batch_size))

    def batch_rows(self, step: int, rows: np.ndarray) -> Arrays:
        """Return some rows of the arrays of a step, for a process that feeds a part of it."""
        places = epoch_rows(step * self.batch_size + rows, self.size, self._order)
        return {name: column[places] for name, column in self._columns.items()}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {old: self._orders[old] for old in self._orders if old == epoch - 1}
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return self._orders[epoch]


def epoch_rows(places: np.ndarray, size: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the rows at some places of epochs that follow each other without a gap.

    Args:
        places: counted from the start of the first epoch.
        size: rows of an epoch.
        order: epoch -> its rows in their order.
    """
    epochs, offsets = np.divmod(places, size)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = order(int(epoch))[offsets[epochs == epoch]]
    return rows


def in_order(batches: Batches, calls: Iterable[range], *, workers: int = 0) -> Generator[Arrays]:
    """Yield the batches of each call's steps, stacked on a leading step axis, in order.

    ```
    calls     [range(0, 4)], [range(4, 5)]
    yields    {name: [4, batch, ...]}, {name: [1, batch, ...]}
    ```

    Args:
        batches: picklable where `workers` > 0.
        calls: the steps that one call of the trainer takes.
        workers: processes that make batches; 0 makes them here.
    """
    if workers == 0:
        yield from (_stacked(batches, steps) for steps in calls)
        return
    with spawning.pool(workers, _start_worker, (batches,)) as pool:
        pending = iter(calls)
        queue = collections.deque(
            pool.submit(_work, steps) for steps in itertools.islice(pending, 2 * workers)
        )
        try:
            while queue:
                yield queue.popleft().result()
                queue.extend(pool.submit(_work, steps) for steps in itertools.islice(pending, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Generator[T], depth: int = 2) -> Generator[T]:
    """Yield `items`, made by one thread up to `depth` ahead; its exceptions are raised here."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        queue = collections.deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := queue.popleft().result()) is not None:
                queue.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in queue:
                future.cancel()
            thread.submit(items.close).result()


def _stacked(batches: Batches, steps: range) -> Arrays:
    each = [batches.batch(step) for step in steps]
    return {name: np.stack([arrays[name] for arrays in each]) for name in each[0]}


def _start_worker(batches: Batches) -> None:
    global _batches
    _batches = batches
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent stops us when it has saved
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed trainer must not leave workers behind


def _work(steps: range) -> Arrays:
    return _stacked(_batches, steps)


_batches: Batches
