"""A generator behind OpenAI's Batch API: cheaper, within a day, with no state on this disk."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distill.core import credentials, files
from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.session import (
    PROMPT_AT_FAULT,
    read_key,
    refuse_odd_address,
    refuse_odd_variable,
)
from distill.endpoints.shapes import SHAPES, shape_of
from distill.endpoints.spending import usage_of
from distill.text.completions import assemble
from tokalign.apis import ReportError

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

logger = logging.getLogger(__name__)
Indexed = tuple[int, Completion]
ENDED = ("completed", "failed", "expired", "cancelled")
# A request without an answer after so many is one that the endpoint cannot answer.
ROUNDS = 3
# Marks this project's batches in the account, so that a later start finds them.
LABEL = "distill"


@dataclasses.dataclass(frozen=True)
class OpenAIBatches:
    """A model behind OpenAI's Batch API.

    Requests are uploaded in files; the answers are merged by each request's own name, a digest of
    its body. A start first looks for batches of an earlier start with the same requests, so a kill
    loses no request that was paid for: the state is in the account, not on disk.

        requests -> file -> batch -> polled until it ends -> output file -> completions
                      ^                                          |
                      +---- those without an answer, next round -+

    Attributes:
        model: the model's name.
        base_url: the address up to and with `/v1`.
        kind: `chat` or `completions`.
        api_key_variable: name of the environment variable that holds the key.
        requests_per_batch: at most 50,000 and 200 MB, by OpenAI's limits.
        poll_seconds: seconds between two polls of the batches.
    """

    model: str
    base_url: str = dataclasses.field(default="https://api.openai.com/v1", repr=False)
    kind: str = "chat"
    api_key_variable: str | None = dataclasses.field(default="OPENAI_API_KEY", repr=False)
    requests_per_batch: int = dataclasses.field(default=10_000, repr=False)
    poll_seconds: float = dataclasses.field(default=60.0, repr=False)

    def __post_init__(self) -> None:
        refuse_odd_address(self.base_url)
        refuse_odd_variable(self.api_key_variable)
        shape_of(self.kind)
        if self.requests_per_batch < 1 or self.poll_seconds < 0:
            raise ValueError("expected requests_per_batch >= 1 and poll_seconds >= 0")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Indexed]:
        """Yield (index, completion) batch by batch as they end.

        Raises:
            UserError: the endpoint refuses a batch or leaves a request without an answer, or a
                chat has a prefix, from which OpenAI's chats would begin anew.
        """
        import openai

        if self.kind == "chat" and any(request.prefix for request in requests):
            raise UserError(
                "batches of whole chats", "a prefix to continue", "use kind completions"
            )

        key = read_key(self.api_key_variable)
        place = f"{self.model} at {urlsplit(self.base_url).netloc}"
        lines = [self._line(request, sampling) for request in requests]
        try:
            with openai.OpenAI(api_key=key, base_url=self.base_url, max_retries=8) as client:
                for index, completion in self._merge(client, lines):
                    if self.api_key_variable and key in completion.text:
                        raise UserError(
                            f"completions of {place} without the API key",
                            "one that repeats it",
                            "use an endpoint that you trust, and replace the key",
                        )
                    yield index, completion
        except openai.APIError as error:
            message = credentials.mask_secret(" ".join(str(error.message).split())[:300], key)
            raise UserError(
                f"{place} to serve batches", message, "check the key and what the endpoint offers"
            ) from None

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Indexed]:
        """Refuse: batches cannot score a given text.

        Raises:
            UserError: always.
        """
        raise UserError(
            "an endpoint to score a text", "the Batch API", "use teacher.OpenAICompatible"
        )

    def _line(self, request: Request, sampling: Sampling) -> str:
        shape = SHAPES[self.kind]
        fields = shape.request(request, sampling)
        extra = fields.pop("extra_body", {})
        body = {"model": self.model, **fields, **extra}
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path = "/v1" + shape.path
        line = {"custom_id": name, "method": "POST", "url": path, "body": body}
        return json.dumps(line) + "\n"

    def _merge(self, client: "openai.OpenAI", lines: Sequence[str]) -> Iterator[Indexed]:
        wanted: dict[str, list[int]] = {}
        for index, line in enumerate(lines):
            wanted.setdefault(_name(line), []).append(index)
        for round_ in range(ROUNDS):
            if not wanted:
                return
            open_lines = {name: lines[indices[0]] for name, indices in wanted.items()}
            for name, completion in self._answers(client, open_lines, reuse=round_ == 0):
                for index in wanted.pop(name, []):
                    yield index, completion
        if wanted:
            raise UserError(
                f"an answer to each of {len(lines)} requests",
                f"{len(wanted)} without one after {ROUNDS} rounds of batches",
                "run the same command again to request those",
            )

    def _answers(
        self, client: "openai.OpenAI", open_lines: Mapping[str, str], *, reuse: bool
    ) -> Iterator[tuple[str, Completion]]:
        """Yield (name, completion) of one round, and wait for its batches to end."""
        waiting, covered = self._earlier(client, open_lines) if reuse else ([], set())
        lines = [line for name, line in open_lines.items() if name not in covered]
        for start in range(0, len(lines), self.requests_per_batch):
            waiting.append(self._submit(client, lines[start : start + self.requests_per_batch]))
        logger.info("%s: %d batches, %d new requests", self.model, len(waiting), len(lines))
        while waiting:
            batches = [client.batches.retrieve(batch_id) for batch_id in waiting]
            for batch in batches:
                if batch.status in ENDED:
                    yield from self._read(client, batch)
            waiting = [batch.id for batch in batches if batch.status not in ENDED]
            if waiting:
                time.sleep(self.poll_seconds)

    def _submit(self, client: "openai.OpenAI", lines: Sequence[str]) -> str:
        file = client.files.create(
            file=("requests.jsonl", "".join(lines).encode()), purpose="batch"
        )
        endpoint: Any = "/v1" + SHAPES[self.kind].path
        return client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,
            completion_window="24h",
            metadata={LABEL: self.model},
        ).id

    def _earlier(
        self, client: "openai.OpenAI", open_lines: Mapping[str, str]
    ) -> tuple[list[str], set[str]]:
        """Return the batches of earlier starts with some of these requests, and those requests."""
        earlier: list[str] = []
        covered: set[str] = set()
        for batch in client.batches.list(limit=100):
            if (batch.metadata or {}).get(LABEL) != self.model or batch.status == "failed":
                continue
            lines = client.files.content(batch.input_file_id).text.splitlines()
            names = {_name(line) for line in lines} & open_lines.keys()
            if names - covered:
                earlier.append(batch.id)
                covered |= names
        return earlier, covered

    def _read(self, client: "openai.OpenAI", batch: "Batch") -> Iterator[tuple[str, Completion]]:
        if batch.status == "failed":
            errors = (batch.errors.data if batch.errors else None) or []
            raise UserError(
                "a batch that is accepted",
                f"{errors[0].message if errors else 'a failed one'}",
                "check the model and the sampling against what the endpoint offers",
            )
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in client.files.content(file_id).text.splitlines():
                answer = files.parse_object(line, f"a line of the results of {self.model}")
                completion = self._completion(answer.get("response") or {})
                if completion is not None:
                    yield str(answer.get("custom_id")), completion

    def _completion(self, response: Mapping[str, Any]) -> Completion | None:
        """Return the completion of a response, None where another round may bring one."""
        body, status = response.get("body") or {}, response.get("status_code")
        if status == 200:
            try:
                return SHAPES[self.kind].completion(body).with_usage(usage_of(body))
            except ReportError:
                return None
        error = body.get("error") or {}
        reason = PROMPT_AT_FAULT.get(str(error.get("code")))
        if reason is not None:
            return assemble([], finish_reason=reason)
        if status is None or status in (408, 409, 429) or status >= 500:
            return None
        raise UserError(
            f"{self.model} to answer in a batch",
            f"HTTP {status}: {' '.join(str(error.get('message')).split())[:300]}",
            "check the model and the sampling against what the endpoint offers",
        )


def _name(line: str) -> str:
    return str(files.parse_object(line, "a line of a batch").get("custom_id"))
