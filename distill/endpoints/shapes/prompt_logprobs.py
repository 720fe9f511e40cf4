"""vLLM's `prompt_logprobs`: a field of either API that scores the end of a prompt.

    {..., "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 2}
    {"choices": [...], "prompt_logprobs": [
        null, {"578": {"logprob": -0.1, "rank": 1, "decoded_token": " The"}, ...}]}

The legacy API has the list in its choice, a chat at the top of its answer. Each token has a map
keyed by ids, first its own, then those of the likeliest tokens.

Source:
    vLLM, OpenAI-compatible server, extra parameter `prompt_logprobs`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.text.completions import Token, after_bytes, fit_scored, name_bytes, place_tokens
from tokalign.apis import first_choice, is_object, known_token, named_bytes
from tokalign.teacher import UNSPELLABLE


class TextShape(Protocol):
    """The part of a `shapes.Shape` that this extends."""

    def request(
        self, request: Request, sampling: Sampling, *, prefix_field: bool = False
    ) -> dict[str, Any]:
        """Return the body of a request."""
        ...

    def first_token(self, answer: Mapping[str, Any]) -> Token | None:
        """Return the first token of an answer."""
        ...


@dataclasses.dataclass(frozen=True)
class PromptLogprobs:
    """Scores a text as the prefix of a completion, whose log-probabilities the server reports.

    Attributes:
        shape: of the API that is extended.
    """

    shape: TextShape

    def request(self, request: Request, top_logprobs: int) -> dict[str, Any]:
        """Return the body that asks for one greedy token after the text to score."""
        greedy = Sampling(temperature=0.0, max_tokens=1, top_logprobs=top_logprobs)
        whole = Request(request.prompt, request.seed, prefix=request.completion or "")
        body = self.shape.request(whole, greedy)
        extra = {**body.get("extra_body", {}), "prompt_logprobs": top_logprobs}
        return {**body, "extra_body": extra}

    def completion(
        self, answer: Mapping[str, Any], request: Request, top_logprobs: int
    ) -> Completion:
        """Return the end of the prompt as a completion.

        The completion is counted from the end, so neither a chat's template nor a start of sequence
        matters. The candidates of the token drawn after it hold the log-probability of stopping.

        Raises:
            UserError: the endpoint reports no log-probabilities of the prompt.
            ReportError: they are malformed.
        """
        following = self.shape.first_token(answer)
        entries = answer.get("prompt_logprobs") or first_choice(answer).get("prompt_logprobs")
        if not isinstance(entries, list):
            raise UserError(
                "prompt_logprobs with the answer",
                type(entries).__name__,
                "sample instead, or use an endpoint that scores a given text",
            )
        completion = request.completion or ""
        return fit_scored(completion, _ending(entries, completion, top_logprobs), following)


def _ending(entries: Sequence[Any], completion: str, top_logprobs: int) -> list[Token] | None:
    """Return the last tokens of a prompt, which spell its completion; None where they cannot."""
    wanted = completion.encode()
    tokens: list[Token] = []
    for entry in reversed(entries):
        tokens.insert(0, _token(entry, top_logprobs))
        spelled = b"".join(token.text for token in tokens)
        if not tokens[0].text or len(spelled) > len(wanted) + len(tokens[0].text):
            return None
        if UNSPELLABLE in spelled:
            placed = place_tokens(completion, tokens)
            if placed and b"".join(token.text for token in placed) == wanted:
                return placed
        elif len(spelled) >= len(wanted):
            fits = spelled.endswith(wanted)
            return after_bytes(tokens, len(spelled) - len(wanted)) if fits else None
    return None


def _token(entry: Any, top_logprobs: int) -> Token:
    """Read a prompt's token; the first of all has no log-probabilities and so no text."""
    named = [
        {"token": item.get("decoded_token"), "logprob": item.get("logprob")}
        for item in (entry.values() if entry and is_object(entry) else ())
        if is_object(item)
    ]
    if not named:
        return Token(b"")
    candidates = ((named_bytes(item, name_bytes), item["logprob"]) for item in named)
    token = known_token(named_bytes(named[0], name_bytes), named[0]["logprob"], candidates)
    return token._replace(top=token.top[:top_logprobs])
