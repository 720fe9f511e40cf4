"""Worker processes that start from the libraries alone, without the caller's script.

A spawned process imports the script that the parent runs, so that objects of the script's classes
can be sent to it. A script without `if __name__ == "__main__"` then runs once more in each worker.
Here a worker imports the script only where it is sent such an object.
"""

import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.context
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

_exchange = threading.Lock()
_SEEN = 100  # values of a container that are looked at


class _Process(multiprocessing.context.SpawnProcess):
    """A spawned process that is not reported where the parent's script lies."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - the name that multiprocessing calls
        with _exchange:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                return multiprocessing.context.SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = script


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def pool(
    workers: int, start: Callable[..., None], given: tuple[Any, ...]
) -> concurrent.futures.ProcessPoolExecutor:
    """Return a pool of spawned processes; threads of the caller are not copied, as a fork would.

    Args:
        workers: how many.
        start: called once in each worker, of a module.
        given: its arguments. Where one is of a class of the caller's script, or holds such a value,
            the workers import the script, which then needs its main guard.
    """
    context = _plain if _needs_script(given) else _apart
    return concurrent.futures.ProcessPoolExecutor(workers, context, start, given)


_plain = multiprocessing.get_context("spawn")
_apart = _Context()


def _needs_script(value: object, depth: int = 6) -> bool:
    """Whether a value, or one that it holds, is of the script; long containers are seen in part."""
    named = value if isinstance(value, types.FunctionType | type) else type(value)
    if named.__module__ == "__main__":
        return True
    if depth == 0 or isinstance(value, types.ModuleType | type):
        return False
    held = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, list | tuple | set | frozenset):
        held += itertools.islice(value, _SEEN)
    elif isinstance(value, dict):
        held += itertools.islice(itertools.chain(value.values(), value), _SEEN)
    return any(_needs_script(each, depth - 1) for each in held)
