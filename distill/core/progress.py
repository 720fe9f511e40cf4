"""Show progress: a bar on a terminal, a log line every 30 seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
logger = logging.getLogger(__name__)
SECONDS_PER_LINE = 30.0


def progress(
    items: Iterable[Item], *, name: str, total: int | None = None, done: int = 0, unit: str = "it"
) -> Iterator[Item]:
    """Yield the items and show progress.

    Args:
        items: the items to yield.
        name: label of the bar.
        total: number of items over all starts, if known.
        done: number of items that earlier starts finished.
        unit: the name of an item.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, total=total, initial=done, unit=unit, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_PER_LINE:
            rate = count / (now - start)
            logger.info("%s: %d of %s %s, %.1f/s", name, done + count, total or "?", unit, rate)
            last = now
