"""What a request to OpenAI's text APIs asks for, read from JSON and checked; sends nothing."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill.core.ports import Sampling

MOST_CANDIDATES = 20
# Each number of candidates is a program to compile, so there are two: OpenAI's limits.
CANDIDATES = (5, MOST_CANDIDATES)
HOTTEST, COOLEST = 100.0, 1e-3
LEAST_MASS = 1e-6
MOST_STOPS, LONGEST_STOP, MOST_STOP_BYTES = 16, 256, 1000
MOST_TOP_K = 1_000_000
SEEDS = 2**63
# Of the legacy API, and how a model's card tells that it is known; a chat has its last message.
PREFIX = "completion_prefix"
ROLES = ("system", "developer", "user", "assistant", "tool")
# What changes nothing at these values, and cannot be had at others.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class RefusedError(Exception):
    """A request that is not served, as OpenAI's error JSON says it.

    Args:
        message: expected, got, do.
        status: of HTTP.
        param: the field at fault.
        code: OpenAI's word for the fault, where it has one.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_tokens: tokens of a completion.
        prompt_tokens: tokens of a prompt.
        prompt_characters: characters of a prompt, since a tokenizer takes its time, and some
            overflow the stack on a long run of spaces.
        choices: completions of one request, over all its prompts.
        entries: log-probabilities of one answer, over all its completions: one for each token that
            may be written, and one for each candidate of it.
        budget: solutions drawn to answer one question.
        answers: questions that wait for their answer.
        body_bytes: of the request's JSON.
        body_seconds: until it has arrived.
    """

    max_tokens: int = 1024
    prompt_tokens: int = 2048
    prompt_characters: int = 1 << 16
    choices: int = 128
    entries: int = 1 << 20
    budget: int = 1024
    answers: int = 64
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A checked request.

    Attributes:
        model: the model's name.
        prompts: at least one.
        sampling: how tokens are drawn; its candidates are rounded up to one of CANDIDATES.
        n: completions of each prompt.
        seed: of the first completion of each prompt; the others' are derived from it.
        top_logprobs: candidates reported; None where no log-probabilities are.
        echo: whether the prompt precedes the completion, measured like it.
        writes: whether there is a completion at all.
        stream: whether the answer comes in pieces.
        include_usage: whether the last piece counts tokens.
        prefix: how every completion begins; it is not repeated.
    """

    model: str
    prompts: tuple[str, ...]
    sampling: Sampling
    n: int = 1
    seed: int = 0
    top_logprobs: int | None = None
    echo: bool = False
    writes: bool = True
    stream: bool = False
    include_usage: bool = False
    prefix: str = ""


Read = Callable[[Mapping[str, Any], Limits], CompletionRequest]


def parse(body: bytes) -> Mapping[str, Any]:
    """Return the object of a request's body.

    Raises:
        RefusedError: it is no UTF-8, no JSON, nested too deeply, no object, or has a name twice;
            NaN is no JSON.

    Example:
        >>> parse(b'{"n": 1}')
        {'n': 1}
    """
    try:
        found = json.loads(body.decode(), parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise RefusedError(
            f"expected a JSON object in UTF-8, got a body that is none: {reason}"
        ) from (error)
    if not isinstance(found, dict):
        raise RefusedError(f"expected a JSON object, got {_shown(found)}")
    return found


def read_completion(body: Mapping[str, Any], limits: Limits) -> CompletionRequest:
    """Read a request of the legacy Completions API.

    Its own field here is `completion_prefix`, with which every completion begins: where an encoder
    reads the prompt, that is not the prompt's end.

    Raises:
        RefusedError: a field is missing, unknown, or not as it must be.
    """
    fields = _Fields(body)
    given = fields.take("prompt")
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not 0 < len(prompts) <= limits.choices:
        raise _odd("prompt", f"a text or a list of 1 to {limits.choices} texts", given)
    echo = fields.flag("echo")
    prefix = _text(PREFIX, fields.take(PREFIX) or "")
    if prefix and echo:
        raise _odd(PREFIX, "none with echo", prefix)
    max_tokens = fields.integer("max_tokens", 16, 0 if echo else 1, limits.max_tokens)
    top_logprobs = fields.integer("logprobs", None, 0, MOST_CANDIDATES)
    common = _common(fields, limits, max(max_tokens or 0, 1), top_logprobs)
    n = common["n"] * len(prompts)
    if n > limits.choices:
        raise _odd("n", f"at most {limits.choices} completions of all prompts", n)
    texts = tuple(_text("prompt", prompt) for prompt in prompts)
    _require_room(n, common, limits)
    return CompletionRequest(
        prompts=texts, echo=echo, writes=max_tokens != 0, prefix=prefix, **common
    )


def read_chat(body: Mapping[str, Any], limits: Limits) -> CompletionRequest:
    """Read a request of the Chat Completions API.

    The last message is the user's and is the prompt, as it is: these models know no roles, and what
    was said before is not read. With `continue_final_message` an assistant's message follows it,
    and the answer goes on from there, as vLLM has it.

    Raises:
        RefusedError: as `read_completion`; the last message is not the user's.
    """
    fields = _Fields(body)
    prompt, prefix = _last_messages(fields)
    default = min(256, limits.max_tokens)
    named = fields.integer("max_tokens", None, 1, limits.max_tokens)
    newer = fields.integer("max_completion_tokens", None, 1, limits.max_tokens)
    wanted = fields.flag("logprobs")
    top_logprobs = fields.integer("top_logprobs", None, 0, MOST_CANDIDATES)
    if top_logprobs is not None and not wanted:
        raise _odd("top_logprobs", "logprobs true with it", top_logprobs)
    top_logprobs = (top_logprobs or 0) if wanted else None
    common = _common(fields, limits, newer or named or default, top_logprobs)
    _require_room(common["n"], common, limits)
    return CompletionRequest(prompts=(prompt,), prefix=prefix, **common)


@dataclasses.dataclass(frozen=True)
class Question:
    """A checked question for the policy.

    Attributes:
        model: the model's name.
        text: what is asked, without a prompt around it.
        budget: solutions that may be drawn.
        seed: of everything drawn.
    """

    model: str
    text: str
    budget: int
    seed: int


def read_question(body: Mapping[str, Any], limits: Limits) -> Question:
    """Read a request for an answer by the policy; not of OpenAI's API.

    Raises:
        RefusedError: a field is missing, unknown, or not as it must be.
    """
    fields = _Fields(body)
    model, text = (_text(name, fields.take(name)) for name in ("model", "question"))
    budget = fields.integer("budget", min(16, limits.budget), 1, limits.budget)
    seed = fields.integer("seed", 0, 0, SEEDS - 1)
    fields.refuse_others()
    return Question(model, text, budget or 1, seed or 0)


def _common(
    fields: "_Fields", limits: Limits, max_tokens: int, top_logprobs: int | None
) -> dict[str, Any]:
    """Read what both APIs have; nothing else may be left."""
    sampling = Sampling(
        temperature=_temperature(fields),
        max_tokens=max_tokens,
        top_k=max(fields.integer("top_k", 0, -1, MOST_TOP_K) or 0, 0),
        top_p=fields.number("top_p", 1.0, LEAST_MASS, 1.0),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        stop=_stop(fields.take("stop")),
        top_logprobs=next(k for k in CANDIDATES if k >= (top_logprobs or 0)),
        include_stop=fields.flag("include_stop_str_in_output"),
    )
    stream = fields.flag("stream")
    options = fields.take("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise _odd("stream_options", "an object, with stream true", options)
    usage = _Fields(options or {}).flag("include_usage")
    seed = fields.integer("seed", None, -SEEDS, SEEDS - 1)
    found = {
        "model": _text("model", fields.take("model")),
        "sampling": sampling,
        "n": fields.integer("n", 1, 1, limits.choices),
        "seed": secrets.randbits(63) if seed is None else seed,
        "top_logprobs": top_logprobs,
        "stream": stream,
        "include_usage": usage,
    }
    fields.refuse_others()
    return found


def _require_room(choices: int, common: Mapping[str, Any], limits: Limits) -> None:
    """Refuse what would be a very large answer."""
    most = choices * common["sampling"].max_tokens * (1 + (common["top_logprobs"] or 0))
    if most > limits.entries:
        expected = f"completions, tokens and candidates whose product is at most {limits.entries}"
        raise _odd("n", expected, most)


def _temperature(fields: "_Fields") -> float:
    found = fields.number("temperature", 1.0, 0.0, HOTTEST)
    if 0 < found < COOLEST:
        raise _odd("temperature", f"0 or at least {COOLEST}", found)
    return found


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given if given is not None else []
    if not isinstance(texts, list) or len(texts) > MOST_STOPS:
        raise _odd("stop", f"a text or a list of at most {MOST_STOPS}", given)
    for text in texts:
        if not 0 < len(_text("stop", text)) <= LONGEST_STOP:
            raise _odd("stop", f"texts of 1 to {LONGEST_STOP} characters", text)
    if (size := sum(len(text.encode()) for text in texts)) > MOST_STOP_BYTES:
        raise _odd("stop", f"texts of at most {MOST_STOP_BYTES} bytes in all", size)
    return tuple(texts)


def _last_messages(fields: "_Fields") -> tuple[str, str]:
    """Return the prompt and what its answer begins with."""
    messages, goes_on = fields.take("messages"), fields.flag("continue_final_message")
    if fields.flag("add_generation_prompt", not goes_on) == goes_on:
        expected = "the opposite of continue_final_message"
        raise _odd("add_generation_prompt", expected, goes_on)
    if not isinstance(messages, list) or not messages:
        raise _odd("messages", "a list of messages", messages)
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _odd("messages", f"objects with a role of {', '.join(ROLES)}", message)
    if not goes_on:
        return _content(messages, "user"), ""
    return _content(messages[:-1], "user"), _content(messages, "assistant")


def _content(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """Return the text of the last message, which must be of a role."""
    last = messages[-1] if messages else {}
    if last.get("role") != role:
        raise _odd("messages", f"the {role}'s message there", last.get("role"))
    content = last.get("content")
    if not isinstance(content, list):
        return _text("messages", content)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _odd("messages", "parts of type text", part)
    return "".join(_text("messages", part.get("text")) for part in content)


class _Fields:
    """The fields of a request, of which each is taken once; null is as good as absent."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise _odd(name, "true or false", value)
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self._left.pop(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _odd(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._left.pop(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise _odd(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def refuse_others(self) -> None:
        for name, value in self._left.items():
            if name in IGNORED or any(_same(value, neutral) for neutral in NEUTRAL.get(name, ())):
                continue
            what = "its default" if name in NEUTRAL else "no such field"
            raise _odd(name, f"{what}, as this server knows no other", value)


def _same(value: Any, neutral: Any) -> bool:
    return not isinstance(value, bool) and value == neutral


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _odd(name, "a text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _odd(name, "whole characters", value) from error
    return value


def _odd(name: str, expected: str, got: Any) -> RefusedError:
    param = name if name.isidentifier() and name.isascii() and len(name) < 64 else None
    return RefusedError(
        f"expected of {param or 'a field'} {expected}, got {_shown(got)}; change the request",
        param=param,
    )


def _shown(value: Any) -> str:
    """Return a value in few characters of ASCII; of what may be large, only the kind."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of over 20 digits"
    return "nothing" if value is None else ascii(value)[:60]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RefusedError("expected each name once in an object, got one twice; drop one")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
