"""What is asked of an OpenAI-compatible endpoint, and what is found out before; it knows no money.

A request is a body and a way to read its answer; `session.Session` sends it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.endpoints.fire import First, Way, way_of
from distill.endpoints.formats import (
    PREFIX,
    Format,
    ask_scores,
    counted,
    first_choice,
    format_of,
    read_whole,
    token_counts,
)
from distill.endpoints.probe import QUESTION, SCORINGS, continues, scoring
from distill.endpoints.session import Session
from distill.endpoints.wire import read_prompt, read_scored

if TYPE_CHECKING:
    import openai

Result = TypeVar("Result")
Clients = Sequence["openai.AsyncOpenAI"]


class Means(NamedTuple):
    """What is found out about an endpoint before the requests of a start are sent.

    Attributes:
        apart: whether how a completion begins has a field of its own in the legacy API.
        way: how hot tokens are drawn, None where none are asked for.
        scoring: how a given text is scored, None where none is.
    """

    apart: bool = False
    way: Way | None = None
    scoring: str | None = None


@dataclasses.dataclass(frozen=True)
class Asking:
    """One endpoint's requests.

    Attributes:
        model: the model's name there.
        kind: of the API.
        clients: tried in turn.
        session: gives what sends a request.
        apart: as of Means.
    """

    model: str
    kind: str
    clients: Clients
    session: Callable[[], Session]
    apart: bool = False

    @property
    def format(self) -> Format:
        """How the endpoint is asked."""
        return format_of(self.kind)

    async def generate(self, request: Request, sampling: Sampling) -> Completion:
        """Return a request's completion."""
        body = self.format.ask(request, sampling, self.apart)
        return await self._sent(body, lambda answer: read_whole(self.format, answer), request.seed)

    async def first(self, request: Request, sampling: Sampling) -> First:
        """Return the first token of a request's completion."""

        def read(answer: Mapping[str, Any]) -> First:
            told = self.format.read_first(first_choice(answer))
            return First(told, *token_counts(answer))

        body = self.format.ask(request, sampling, self.apart)
        return await self._sent(body, read, request.seed)

    async def score(self, request: Request, way: str, top_logprobs: int) -> Completion:
        """Return the log-probabilities of a request's own completion, by one of SCORINGS."""
        chat = self.kind == "chat"
        if way == "echo" and chat:
            raise UserError("kind completions for an echo", "chat", "change it")
        completion = request.completion or ""
        body = ask_scores(request, way, top_logprobs, chat=chat)

        def read(answer: Mapping[str, Any]) -> Completion:
            choice = first_choice(answer)
            if way == "echo":
                found = read_scored(choice, request.prompt, completion)
            else:
                beyond = self.format.read_first(choice)
                found = read_prompt(answer, completion, top_logprobs, beyond)
            return counted(found, answer)

        return await self._sent(body, read, request.seed)

    async def _sent(
        self, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Result], seed: int
    ) -> Result:
        creates = [self.format.create(client) for client in self.clients]
        return await self.session().answer(creates, {"model": self.model, **body}, read, seed)


@dataclasses.dataclass(frozen=True)
class Trials(Asking):
    """Requests that find out what an endpoint does, each by a session of its own."""

    async def means(
        self, sampling: Sampling, fire: Fire | None, hot_by: str | None, *, begun: bool
    ) -> Means:
        """Find out what completions need that go on from a beginning or begin hot.

        Raises:
            UserError: the endpoint cannot do it.
        """
        if not begun and fire is None:
            return Means()
        goes_on = self.kind != "chat" or await continues(self.generate, sampling)
        if not goes_on:
            raise _begins_anew()
        apart = await self._knows_prefixes()
        if fire is None:
            return Means(apart)
        trials = dataclasses.replace(self, apart=apart)
        return Means(apart, await trials.way(sampling, fire, hot_by, continues=True))

    async def way(
        self, sampling: Sampling, fire: Fire, hot_by: str | None, *, continues: bool
    ) -> Way:
        """Find out how hot tokens are drawn.

        Raises:
            UserError: they cannot be.
        """
        if not continues:
            raise _begins_anew()
        return await way_of(self.first, QUESTION, sampling, fire, hot_by)

    async def scoring(self, top_logprobs: int) -> str:
        """Find out how given texts are scored.

        Raises:
            UserError: they cannot be.
        """
        way = await scoring(functools.partial(self.score, top_logprobs=top_logprobs))
        if way is None:
            raise UserError(
                f"an endpoint that scores a given text, by {' or '.join(SCORINGS)}",
                "one that does not",
                "sample instead, or use kind completions or another endpoint",
            )
        return way

    async def _knows_prefixes(self) -> bool:
        """Return whether every endpoint's card of the model says that it takes a prefix apart."""
        if self.kind == "chat":
            return False
        servers = {str(client.base_url): client for client in self.clients}
        cards = [client.models.with_raw_response.retrieve for client in servers.values()]
        name = {"model": self.model}
        try:
            return all(
                [await self.session().answer([card], name, _knows_prefix, 0) for card in cards]
            )
        except UserError:
            return False


def _knows_prefix(card: Mapping[str, Any]) -> bool:
    return card.get(PREFIX) is True


def _begins_anew() -> UserError:
    return UserError(
        "an endpoint that goes on from how a completion begins",
        "one that refuses to, or begins anew",
        "use kind completions, or a server that knows continue_final_message",
    )
