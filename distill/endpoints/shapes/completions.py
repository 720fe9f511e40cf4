r"""The legacy Completions API: a prompt goes out; a text with three lists about its tokens returns.

POST /v1/completions
{"model": "m", "prompt": "Q: 2 + 6?\n", "logprobs": 2, "seed": 7, "temperature": 0.7,
 "max_tokens": 256, "top_p": 1.0, "stop": ["\n\n"], "top_k": 16}
{"choices": [{"text": " 8", "finish_reason": "stop", "logprobs": {
    "tokens": [" 8", "</s>"],
    "token_logprobs": [-0.1, -0.2],
    "top_logprobs": [{" 8": -0.1, " 9": -2.5}, {"</s>": -0.2, ".": -1.9}]}}],
 "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.shapes.prompt_logprobs import PromptLogprobs
from distill.text.completions import (
    Token,
    after_bytes,
    failed_completion,
    first_bytes,
    fit,
    fit_scored,
    name_bytes,
    next_token,
    place_tokens,
    require_tokens,
    whole_characters,
)
from tokalign.apis import END_BYTES, completion_tokens, first_choice, json_field, known_token
from tokalign.teacher import UNSPELLABLE

if TYPE_CHECKING:
    import openai


@dataclasses.dataclass(frozen=True)
class Completions:
    """The legacy API's request and answer, as `shapes.Shape` describes them.

    A prefix is the end of the prompt, or `completion_prefix` where the model's card announces that
    field, as that of `distill serve` does.
    """

    path: str = "/completions"
    prefix_field: str = "completion_prefix"
    may_restart: bool = False

    @property
    def scorings(self) -> Mapping[str, "Echo | PromptLogprobs"]:
        """By echo, then by vLLM's field."""
        return {"echo": Echo(), "prompt_logprobs": PromptLogprobs(self)}

    def create(self, connection: "openai.AsyncOpenAI") -> Any:
        """Return the connection's method that sends a body."""
        return connection.completions.with_raw_response.create

    def request(
        self, request: Request, sampling: Sampling, *, prefix_field: bool = False
    ) -> dict[str, Any]:
        """Return a body; non-OpenAI fields are sent only when they differ from their defaults."""
        body: dict[str, Any] = {
            "prompt": request.prompt if prefix_field else request.prompt + request.prefix,
            "logprobs": sampling.top_logprobs,
            "seed": request.seed,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "top_p": sampling.top_p,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        extra = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "include_stop_str_in_output": sampling.include_stop,
            self.prefix_field: request.prefix if prefix_field else "",
        }
        if set_fields := {name: value for name, value in extra.items() if value}:
            body["extra_body"] = set_fields
        return body

    def completion(self, answer: Mapping[str, Any]) -> Completion:
        """Return the completion of an answer; raises as `shapes.Shape.completion`."""
        choice = first_choice(answer)
        text = _text(choice)
        return fit(text, _tokens(choice, text), choice.get("finish_reason"))

    def first_token(self, answer: Mapping[str, Any]) -> Token | None:
        """Return the first token of an answer, which may be its end."""
        choice = first_choice(answer)
        for token in _tokens(choice, _text(choice)):
            return token._replace(text=b"" if token.text in END_BYTES else token.text)
        return None


@dataclasses.dataclass(frozen=True)
class Echo:
    """Scores a text as the end of a prompt that the server echoes with its log-probabilities."""

    def request(self, request: Request, top_logprobs: int) -> dict[str, Any]:
        """Return the body that asks for an echo and, as some servers insist, for one token."""
        return {
            "prompt": request.prompt + (request.completion or ""),
            "echo": True,
            "logprobs": top_logprobs,
            "max_tokens": 1,
            "temperature": 0.0,
        }

    def completion(
        self, answer: Mapping[str, Any], request: Request, top_logprobs: int
    ) -> Completion:
        """Return the completion's part of an echo.

        Raises:
            UserError: the endpoint does not echo, or reports no log-probabilities.
            ReportError: the answer is malformed.
        """
        del top_logprobs
        choice, completion = first_choice(answer), request.completion or ""
        whole = request.prompt + completion
        text = _text(choice)
        if not text.startswith(whole):
            raise UserError(
                "an endpoint that echoes the prompt it scores",
                f"{text[:40]!r}",
                "sample instead, or use an endpoint that supports echo",
            )
        placed = place_tokens(whole, _without_start(_tokens(choice, text), whole))
        if placed is None:
            return failed_completion(completion)
        kept = first_bytes(placed, len(whole.encode()))
        scored = after_bytes(kept, len(request.prompt.encode()))
        return fit_scored(completion, scored, next_token(placed, kept))


def _text(choice: Mapping[str, Any]) -> str:
    return whole_characters(json_field(choice, "text", str))


def _tokens(choice: Mapping[str, Any], text: str) -> list[Token]:
    tokens = completion_tokens(choice.get("logprobs"), name_bytes, known_token)
    return list(require_tokens(text, tokens))


def _without_start(tokens: list[Token], text: str) -> list[Token]:
    """Leave out a start-of-sequence token, which is no part of the text."""
    first = tokens[0].text if tokens else b""
    starts = UNSPELLABLE in first or text.encode().startswith(first)
    return tokens if starts else tokens[1:]
