"""How OpenAI's two text APIs are asked and read, and what their endpoints need; sends nothing."""

import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distill.core import credentials
from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.wire import (
    Reported,
    WireError,
    first_of_chat,
    first_of_completion,
    read_chat,
    read_completion,
)

if TYPE_CHECKING:
    import openai

# Sent where the endpoint needs no key, as the client insists on one.
_NO_KEY = "no-key-needed"
# The legacy API's field for how a completion begins; a `distill serve` knows it, and its model card
# says so. Elsewhere the prefix is the end of the prompt.
PREFIX = "completion_prefix"


@dataclasses.dataclass(frozen=True)
class Format:
    """How one of the two APIs is asked and how its choices are read.

    Attributes:
        path: of the API below `/v1`.
        create: the client's method that returns the raw response.
        ask: the arguments of that method; `extra_body` holds what OpenAI's own API lacks.
        read: a choice's completion.
        read_first: the candidates of a choice's first token, and the token, if there is one.
    """

    path: str
    create: Callable[["openai.AsyncOpenAI"], Callable[..., Awaitable[Any]]]
    ask: Callable[[Request, Sampling, bool], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], Completion]
    read_first: Callable[[Mapping[str, Any]], Reported | None]


def _sampled(request: Request, sampling: Sampling, **extra: Any) -> dict[str, Any]:
    """Return what both APIs have; of what OpenAI's own lacks, what is not as ever."""
    body: dict[str, Any] = {
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
        **extra,
    }
    if asked := {name: value for name, value in extra.items() if value}:
        body["extra_body"] = asked
    return body


def _ask_completion(request: Request, sampling: Sampling, apart: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": request.prompt, "logprobs": sampling.top_logprobs}
    if apart:
        return {**asked, **_sampled(request, sampling, **{PREFIX: request.prefix})}
    return {**asked, "prompt": request.prompt + request.prefix, **_sampled(request, sampling)}


def _ask_chat(request: Request, sampling: Sampling, apart: bool) -> dict[str, Any]:
    """Return a chat that, after vLLM's manner, goes on from a prefix."""
    del apart
    messages = [{"role": "user", "content": request.prompt}]
    asked = {"messages": messages, "logprobs": True, "top_logprobs": sampling.top_logprobs}
    body = {**asked, **_sampled(request, sampling)}
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        goes_on = {"continue_final_message": True, "add_generation_prompt": False}
        body["extra_body"] = {**body.get("extra_body", {}), **goes_on}
    return body


_FORMATS = {
    "completions": Format(
        "/completions",
        lambda client: client.completions.with_raw_response.create,
        _ask_completion,
        read_completion,
        first_of_completion,
    ),
    "chat": Format(
        "/chat/completions",
        lambda client: client.chat.completions.with_raw_response.create,
        _ask_chat,
        read_chat,
        first_of_chat,
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


def read_whole(format_: Format, answer: Mapping[str, Any]) -> Completion:
    """Return an answer's completion with the tokens that the endpoint says it read and wrote.

    Raises:
        UserError: the endpoint reports no log-probabilities.
        WireError: the answer is malformed.
    """
    return counted(format_.read(first_choice(answer)), answer)


def counted(completion: Completion, answer: Mapping[str, Any]) -> Completion:
    """Return a completion with the counts of its answer's `usage`."""
    prompt, written = token_counts(answer)
    return dataclasses.replace(completion, prompt_tokens=prompt, completion_tokens=written)


def token_counts(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the tokens that were read and written, None where `usage` does not tell."""
    usage = answer.get("usage")
    found = usage if isinstance(usage, Mapping) else {}
    prompt, written = (found.get(f"{what}_tokens") for what in ("prompt", "completion"))
    return (
        prompt if isinstance(prompt, int) else None,
        written if isinstance(written, int) else None,
    )


def ask_scores(request: Request, way: str, top_logprobs: int, *, chat: bool) -> dict[str, Any]:
    """Return what asks for the log-probabilities of a request's own completion.

    Args:
        request: its completion is the end of the prompt.
        way: `echo` or `prompt_logprobs`.
        top_logprobs: candidates of each token.
        chat: whether the chat API is asked, which has no echo.
    """
    greedy = Sampling(temperature=0.0, max_tokens=1, top_logprobs=top_logprobs)
    whole = Request(request.prompt, request.seed, prefix=request.completion or "")
    if way == "echo":
        prompt = whole.prompt + whole.prefix
        body = {"prompt": prompt, "echo": True, "logprobs": top_logprobs}
        return {**body, "max_tokens": 1, "temperature": 0.0}
    body = format_of("chat" if chat else "completions").ask(whole, greedy, False)
    extra = {**body.get("extra_body", {}), "prompt_logprobs": top_logprobs}
    return {**body, "extra_body": extra}


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
    refuse_odd_variable(variable)
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


def refuse_odd_variable(name: str | None) -> None:
    """Refuse what can name no environment variable; it may be the key, so it is not shown.

    Raises:
        UserError: it is no name in capital letters, digits and underscores.
    """
    if name is not None and not credentials.is_variable(name):
        raise UserError(
            "the name of an environment variable, in capitals, as api_key_variable",
            "another text",
            "export the key and give the variable's name",
        )


def refuse_odd_address(url: str) -> None:
    """Refuse what is no address of an endpoint, or holds a secret that would be shown.

    Raises:
        UserError: it is not http(s), or has credentials or a query.
    """
    try:
        address = urlsplit(url)
        host = address.hostname if address.port != 0 else None
    except ValueError:  # a port or a bracket that is none
        host = None
    if host is None or not url.isprintable() or " " in url:
        raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
    if address.scheme not in ("http", "https") or not host:
        raise UserError("an http(s) base_url", "another", "give it as http://HOST:PORT/v1")
    if "@" in address.netloc or address.query or address.fragment:
        raise UserError("a base_url without credentials", "one with some", "use api_key_variable")
