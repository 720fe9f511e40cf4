"""A generator that plays back the traces of an earlier harvest."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.core.records import Trace
from distill.core.store import Shards


@dataclasses.dataclass(frozen=True)
class Replay:
    """A generator that plays back the traces of an earlier harvest.

    Attributes:
        directory: a run's `traces`.
    """

    directory: str

    def input_files(self) -> tuple[Path, ...]:
        """Return the directory, whose files a run is known by."""
        return (Path(self.directory),)

    @property
    def model(self) -> str:
        """The model of the first trace."""
        for trace in self._traces():
            return trace.model
        raise UserError(f"traces in {self.directory}", "none", "harvest some first")

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the traces with the requests' prompts and seeds; the sampling is the trace's own.

        Raises:
            UserError: a request has no trace.
        """
        del sampling
        keys = [(request.prompt, request.seed) for request in requests]
        return self._completions(keys, lambda trace: (trace.prompt, trace.seed))

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the traces with the requests' prompts and completions; raises as `generate`."""
        del top_logprobs
        keys = [(request.prompt, request.completion) for request in requests]
        return self._completions(keys, lambda trace: (trace.prompt, trace.text))

    def _traces(self) -> Shards[Trace]:
        return Shards(Path(self.directory), Trace)

    def _completions(
        self, keys: Sequence[Any], key_of: Callable[[Trace], Any]
    ) -> Iterator[tuple[int, Completion]]:
        wanted: dict[Any, list[int]] = {}
        for index, key in enumerate(keys):
            wanted.setdefault(key, []).append(index)
        for trace in self._traces():
            for index in wanted.pop(key_of(trace), []):
                yield index, Completion.from_trace(trace)
        if wanted:
            raise UserError(
                f"a trace for each of {len(keys)} requests in {self.directory}",
                f"{sum(map(len, wanted.values()))} without one",
                "replay with the problems, prompt and seed of that harvest",
            )
