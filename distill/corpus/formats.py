"""How OpenAI's two text APIs are asked and read, and what their endpoints need; sends nothing."""

import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.corpus.wire import WireError, read_chat, read_completion

if TYPE_CHECKING:
    import openai

# Sent where the endpoint needs no key, as the client insists on one.
_NO_KEY = "no-key-needed"


@dataclasses.dataclass(frozen=True)
class Format:
    """How one of the two APIs is asked and how its choices are read.

    Attributes:
        path: of the API below `/v1`.
        create: the client's method that returns the raw response.
        ask: the arguments of that method; `extra_body` holds what OpenAI's own API lacks.
        read: a choice's completion.
    """

    path: str
    create: Callable[["openai.AsyncOpenAI"], Callable[..., Awaitable[Any]]]
    ask: Callable[[Request, Sampling], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], Completion]


def _sampled(request: Request, sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        "seed": request.seed,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "top_p": sampling.top_p,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    extra = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    if asked := {name: value for name, value in extra.items() if value}:
        body["extra_body"] = asked
    return body


def _ask_completion(request: Request, sampling: Sampling) -> dict[str, Any]:
    asked = {"prompt": request.prompt, "logprobs": sampling.top_logprobs}
    return {**asked, **_sampled(request, sampling)}


def _ask_chat(request: Request, sampling: Sampling) -> dict[str, Any]:
    messages = [{"role": "user", "content": request.prompt}]
    asked = {"messages": messages, "logprobs": True, "top_logprobs": sampling.top_logprobs}
    return {**asked, **_sampled(request, sampling)}


_FORMATS = {
    "completions": Format(
        "/completions",
        lambda client: client.completions.with_raw_response.create,
        _ask_completion,
        read_completion,
    ),
    "chat": Format(
        "/chat/completions",
        lambda client: client.chat.completions.with_raw_response.create,
        _ask_chat,
        read_chat,
    ),
}


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer's first choice.

    Raises:
        WireError: it has none.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise WireError("no choice")
    return choices[0]


def format_of(kind: str) -> Format:
    """Return the format of a kind of endpoint.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in _FORMATS:
        raise UserError(f"a kind of {', '.join(_FORMATS)}", kind, "name one of them")
    return _FORMATS[kind]


def read_key(variable: str | None) -> str:
    """Return the key that an environment variable holds, a placeholder where none is needed.

    Raises:
        UserError: the variable is not set, or no header can carry what it holds.
    """
    if variable is None:
        return _NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"an API key in the environment variable {variable}",
            "none",
            "export it, or set api_key_variable=None where the endpoint needs no key",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"an API key of printable ASCII in {variable}",
            "one with other characters",
            "export it again",
        )
    return key


def refuse_odd_address(url: str) -> None:
    """Refuse what is no address of an endpoint, or holds a secret that would be shown.

    Raises:
        UserError: it is not http(s), or has credentials or a query.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
    if address.username or address.password or address.query:
        raise UserError("a base_url without credentials", "one with some", "use api_key_variable")
