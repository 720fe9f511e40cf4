"""The Chat Completions API: messages go out; a message returns with a list of its tokens.

POST /v1/chat/completions
{"model": "m", "messages": [{"role": "user", "content": "2 + 6?"}], "logprobs": true,
 "top_logprobs": 2, "seed": 7, "temperature": 0.7, "max_tokens": 256, "top_p": 1.0}
{"choices": [{"message": {"role": "assistant", "content": " 8"}, "finish_reason": "stop",
  "logprobs": {"content": [{"token": " 8", "bytes": [32, 56], "logprob": -0.1,
    "top_logprobs": [{"token": " 8", "bytes": [32, 56], "logprob": -0.1}]}]}}],
 "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.shapes.prompt_logprobs import PromptLogprobs
from distill.text.completions import Token, fit, name_bytes, require_tokens, whole_characters
from tokalign.apis import END_BYTES, chat_tokens, first_choice, json_field, known_token

if TYPE_CHECKING:
    import openai


@dataclasses.dataclass(frozen=True)
class Chat:
    """The chat API's request and answer, as `shapes.Shape` describes them.

    The prompt is the user's one message. A prefix is the assistant's last message, which vLLM and
    SGLang continue.
    """

    path: str = "/chat/completions"
    prefix_field: None = None
    may_restart: bool = True

    @property
    def scorings(self) -> Mapping[str, PromptLogprobs]:
        """By vLLM's field alone: a chat cannot echo."""
        return {"prompt_logprobs": PromptLogprobs(self)}

    def create(self, connection: "openai.AsyncOpenAI") -> Any:
        """Return the connection's method that sends a body."""
        return connection.chat.completions.with_raw_response.create

    def request(
        self, request: Request, sampling: Sampling, *, prefix_field: bool = False
    ) -> dict[str, Any]:
        """Return a body; non-OpenAI fields are sent only when they differ from their defaults."""
        del prefix_field
        body: dict[str, Any] = {
            "messages": _messages(request),
            "logprobs": True,
            "top_logprobs": sampling.top_logprobs,
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
        }
        set_fields = {name: value for name, value in extra.items() if value}
        if request.prefix:
            set_fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if set_fields:
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


def _messages(request: Request) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": request.prompt}]
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
    return messages


def _text(choice: Mapping[str, Any]) -> str:
    message = json_field(choice, "message", Mapping)
    content = json_field(message, "content", str) if message.get("content") else ""
    return whole_characters(content)


def _tokens(choice: Mapping[str, Any], text: str) -> list[Token]:
    tokens = chat_tokens(choice.get("logprobs"), name_bytes, known_token)
    return list(require_tokens(text, tokens))
