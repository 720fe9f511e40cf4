"""The shapes of requests and answers: what a file here must offer, and the mapping by kind.

A shape is one file: it writes the body of a request and reads the answer, and sends nothing. A new
API, or a server with another report of its tokens, is a new file and a line in `SHAPES`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.endpoints.shapes.chat import Chat
from distill.endpoints.shapes.completions import Completions
from distill.text.completions import Token

if TYPE_CHECKING:
    import openai

Answer = Mapping[str, Any]
Create = Callable[..., Awaitable[Any]]


class Scoring(Protocol):
    """A way to get the log-probabilities of a given text, a request's own completion."""

    def request(self, request: Request, top_logprobs: int) -> dict[str, Any]:
        """Return the body that asks for them."""
        ...

    def completion(self, answer: Answer, request: Request, top_logprobs: int) -> Completion:
        """Return the completion with its log-probabilities.

        Raises:
            UserError: the endpoint does not score a given text.
            ReportError: the answer is malformed.
        """
        ...


class Shape(Protocol):
    """The request and the answer of one API."""

    @property
    def path(self) -> str:
        """The API's path below `/v1`."""
        ...

    @property
    def prefix_field(self) -> str | None:
        """A field for the beginning of a completion, which a model's card announces; if any."""
        ...

    @property
    def may_restart(self) -> bool:
        """Whether a server may begin a completion anew where it should continue a prefix."""
        ...

    @property
    def scorings(self) -> Mapping[str, Scoring]:
        """The ways to score a given text, by name, in the order in which they are tried."""
        ...

    def create(self, connection: "openai.AsyncOpenAI") -> Create:
        """Return the connection's method that sends a body and returns the raw response."""
        ...

    def request(
        self, request: Request, sampling: Sampling, *, prefix_field: bool = False
    ) -> dict[str, Any]:
        """Return the body of a request but for the model; `extra_body` has what OpenAI lacks.

        Args:
            request: what to complete.
            sampling: how tokens are drawn.
            prefix_field: whether the endpoint takes the prefix in `prefix_field`.
        """
        ...

    def completion(self, answer: Answer) -> Completion:
        """Return the completion of an answer's first choice, without counts of tokens.

        Raises:
            UserError: the endpoint reports no log-probabilities.
            ReportError: the answer is malformed.
        """
        ...

    def first_token(self, answer: Answer) -> Token | None:
        """Return the first token of an answer, b"" for an end; None where none is reported.

        Raises: as `completion`.
        """
        ...


SHAPES: Mapping[str, Shape] = {"completions": Completions(), "chat": Chat()}


def shape_of(kind: str) -> Shape:
    """Return the shape of a kind of endpoint.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in SHAPES:
        raise UserError(f"a kind of {', '.join(SHAPES)}", kind, "name one of them")
    return SHAPES[kind]
