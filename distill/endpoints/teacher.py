"""A teacher behind an OpenAI-compatible API: settings that gin binds, and the client they open."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from distill.core.errors import UserError
from distill.core.in_flight import in_flight
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.core.progress import SECONDS_PER_LINE
from distill.endpoints.fire import CLIENT, SERVER, FirstToken, find_method, generate_with_fire
from distill.endpoints.prices import price_of
from distill.endpoints.probe import (
    QUESTION,
    Capabilities,
    Probe,
    find_capabilities,
    find_scoring,
    probe,
    refuse_restarts,
)
from distill.endpoints.session import (
    Budget,
    Pace,
    PromptRefused,
    Reply,
    Session,
    read_key,
    refuse_odd_address,
    refuse_odd_variable,
)
from distill.endpoints.shapes import SHAPES, Shape, shape_of
from distill.endpoints.spending import Price, Spent
from distill.text.completions import assemble

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Indexed = tuple[int, Completion]
# Some servers answer an unknown field with a fault every time.
TRIES_OF_A_PROBE = 4
CONNECTIONS_OF_A_POOL = 8


# --- The settings ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenAICompatible:
    """A model behind an endpoint that speaks OpenAI's Completions or Chat Completions API.

    Where the endpoint respects seeds, a completion depends on its request and sampling alone.
    Faults are retried, as described in `session.Session`; the number of requests in flight adapts
    to rate limits, as described in `session.Pace`. A prompt whose answer the endpoint withholds
    gives an empty completion with the finish reason "content_filter", one that is too long "error".

    A request's `prefix` is the end of a legacy prompt, a field of its own at a `distill serve`,
    and the assistant's last message in a chat, which vLLM and SGLang continue. With `fire` the
    first token is hot and a completion takes two requests (see `endpoints.fire`).

    Attributes:
        model: the model's name at the endpoint.
        base_url: the endpoint's address up to and with `/v1`; several share the requests, and a
            request that fails at one is sent to the next.
        kind: `completions` (prompts as they are) or `chat` (the prompt is the user's one message).
        fire: how the first token is drawn hot; None for a regular one.
        hot_by: who draws it, `server` or `client`; None takes the server's draw if it works.
        api_key_variable: name of the environment variable that holds the key; None where the
            endpoint needs none. The key is read when requests are sent and kept nowhere.
        concurrency: requests in flight at most.
        requests_per_minute: None for no limit.
        tokens_per_minute: of prompts and completions, None for no limit.
        budget: what may be spent; a harvest that reaches it keeps its traces on disk.
        prices: a JSON file of prices in the form of `data/prices.json`, which it precedes.
        timeout: seconds until a request is abandoned.
        max_retries: further tries of a request.
        backoff: seconds before the second try.

    Example:
        >>> OpenAICompatible(model="m", base_url="http://localhost:8000/v1", kind="chat")
        OpenAICompatible(model='m', kind='chat', fire=None)
    """

    model: str
    base_url: str | tuple[str, ...] = dataclasses.field(
        default="https://api.openai.com/v1", repr=False
    )
    kind: str = "completions"
    fire: Fire | None = None
    hot_by: str | None = dataclasses.field(default=None, repr=False)
    api_key_variable: str | None = dataclasses.field(default="OPENAI_API_KEY", repr=False)
    concurrency: int = dataclasses.field(default=16, repr=False)
    requests_per_minute: float | None = dataclasses.field(default=None, repr=False)
    tokens_per_minute: float | None = dataclasses.field(default=None, repr=False)
    budget: Budget = dataclasses.field(default=Budget(), repr=False)
    prices: str | None = dataclasses.field(default=None, repr=False)
    timeout: float = dataclasses.field(default=120.0, repr=False)
    max_retries: int = dataclasses.field(default=8, repr=False)
    backoff: float = dataclasses.field(default=0.5, repr=False)
    # Cached: searches call `generate` repeatedly.
    _capabilities: dict[tuple[bool, int], Capabilities] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for address in self._addresses:
            refuse_odd_address(address)
        refuse_odd_variable(self.api_key_variable)
        shape_of(self.kind)
        if self.hot_by not in (None, SERVER, CLIENT):
            raise UserError("hot_by server, client or None", self.hot_by, "name one of them")
        if self.fire is not None and self.fire.positions != (0,):
            raise UserError(
                "hot tokens at the first position of an endpoint's completions",
                f"positions {self.fire.positions}",
                "leave positions out, or generate in process",
            )
        if self.concurrency < 1 or self.timeout <= 0 or self.max_retries < 0 or self.backoff < 0:
            raise ValueError(
                f"expected concurrency >= 1, timeout > 0, max_retries and backoff >= 0, got "
                f"{self.concurrency}, {self.timeout}, {self.max_retries}, {self.backoff}"
            )

        if self.budget.dollars is not None and self.price is None:
            raise UserError(
                f"a price of {self.model} with a budget in dollars",
                "none",
                "give budget.dollars_per_million=(IN, OUT), or prices=FILE",
            )

    @property
    def price(self) -> Price | None:
        """The price of a token, None where it is not known."""
        given = self.budget.dollars_per_million
        return Price(self.model, *given) if given else price_of(self.model, self.prices)

    def after(self, spent: Spent) -> "OpenAICompatible":
        """Return the same endpoint with a budget from which earlier starts have spent."""
        return dataclasses.replace(self, budget=dataclasses.replace(self.budget, already=spent))

    @property
    def _addresses(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Indexed]:
        """Yield (index, completion) as answers arrive.

        Raises:
            UserError: the endpoint refuses, does not answer, reports no log-probabilities, or
                cannot continue a prefix or draw hot tokens as requested; or the budget is spent.
        """
        prefixed = any(request.prefix for request in requests)
        prepare = functools.partial(self._needed_capabilities, sampling=sampling, prefixed=prefixed)
        ask = functools.partial(Client.generate, sampling=sampling)
        return self._completions(requests, prepare, ask)

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Indexed]:
        """Yield the log-probabilities of given completions, by echo or by `prompt_logprobs`.

        The legacy API's `echo` is tried first, then vLLM's field, which chats have too. Each
        request asks for one token more: some servers insist on it, and its candidates may hold the
        log-probability of stopping after the completion. A token that straddles prompt and
        completion keeps its bytes within the completion, without a log-probability.

        Raises:
            UserError: the endpoint cannot score a given text, or as `generate`.
        """
        prepare = functools.partial(find_scoring, top_logprobs=top_logprobs)
        ask = functools.partial(Client.score, top_logprobs=top_logprobs)
        return self._completions(requests, prepare, ask)

    def probe(self, sampling: Sampling, *, scored: bool) -> dict[str, Any]:
        """Return the endpoint's capabilities, by some twenty short requests.

        Args:
            sampling: the harvest's own.
            scored: whether the harvest will score given texts.

        Raises:
            UserError: the endpoint cannot serve such a harvest.
        """

        async def one(client: Client, _: int) -> Probe:
            return await client.probe(sampling, scored=scored)

        opening = functools.partial(self._open, self._session())
        (result,) = in_flight(one, 1, limit=lambda: 1, resource=opening)
        logger.info("%s is %s", self.model, result)
        result.refuse_unfit(sampling, scored=scored)
        return dataclasses.asdict(result)

    def _completions(
        self, requests: Sequence[Request], prepare: "Prepare", ask: "Ask"
    ) -> Iterator[Indexed]:
        """Yield the completions of requests that share a session and what `prepare` returns."""
        if not requests:
            return
        session = self._session()
        completions = in_flight(
            functools.partial(_completion, requests=requests, ask=ask),
            len(requests),
            limit=lambda: session.pace.limit,
            resource=functools.partial(self._prepared, session, prepare),
        )
        try:
            yield from _with_cost_logged(completions, session, len(requests))
        finally:
            logger.info("%s", session.line())

    async def _needed_capabilities(
        self, trial: "Client", *, sampling: Sampling, prefixed: bool
    ) -> Capabilities:
        """Return the capabilities that a call needs, from the cache after the first call."""
        if not prefixed and self.fire is None:
            return Capabilities()
        key = (prefixed, sampling.top_logprobs)
        if key not in self._capabilities:
            self._capabilities[key] = await find_capabilities(
                trial, sampling, self.fire, hot_by=self.hot_by
            )
        return self._capabilities[key]

    def trial_session(self, served: set[str]) -> Session:
        """Return a session for one request of a probe; `served` collects who answers it."""
        retries = min(self.max_retries, TRIES_OF_A_PROBE)
        return dataclasses.replace(self, max_retries=retries)._session(served)

    def _session(self, served: set[str] | None = None) -> Session:
        return Session(
            f"{self.model} at {', '.join(urlsplit(url).netloc for url in self._addresses)}",
            Pace(self.concurrency, self.requests_per_minute, self.tokens_per_minute),
            max_retries=self.max_retries,
            backoff=self.backoff,
            secret=read_key(self.api_key_variable) if self.api_key_variable else "",
            budget=self.budget,
            price=self.price,
            served=served,
        )

    @contextlib.asynccontextmanager
    async def _prepared(self, session: Session, prepare: "Prepare") -> "AsyncIterator[Client]":
        async with self._open(session) as client:
            yield dataclasses.replace(client, capabilities=await prepare(client.trial()))

    @contextlib.asynccontextmanager
    async def _open(self, session: Session) -> "AsyncIterator[Client]":
        """Open connections in small pools: a pool walks over all of its own at each request.

        Those of different addresses alternate, so that the next one stands in for a failed one.
        """
        import openai

        async with contextlib.AsyncExitStack() as stack:
            key = read_key(self.api_key_variable)
            settings = {"api_key": key, "timeout": self.timeout, "max_retries": 0}
            rounds = -(-self.concurrency // (CONNECTIONS_OF_A_POOL * len(self._addresses)))
            pools = (
                openai.AsyncOpenAI(base_url=url, **settings) for url in self._addresses * rounds
            )
            connections = [await stack.enter_async_context(pool) for pool in pools]
            shape = SHAPES[self.kind]
            yield Client(self, shape, connections, lambda: session, Capabilities())


# --- The client --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Client:
    """An open endpoint; a shape writes its requests and reads its answers, a session sends them.

    Attributes:
        settings: of the endpoint.
        shape: of its API.
        connections: tried in turn.
        session: returns the session of a request: the same for all, or one each in a probe.
        capabilities: of the endpoint, as far as the requests need them.
    """

    settings: OpenAICompatible
    shape: Shape
    connections: "Sequence[openai.AsyncOpenAI]"
    session: Callable[[], Session]
    capabilities: Capabilities

    async def generate(self, request: Request, sampling: Sampling) -> Completion:
        """Return a request's completion, with a hot first token where the capabilities say how."""
        if self.capabilities.fire is not None:
            regular = dataclasses.replace(self.capabilities, fire=None)
            client = dataclasses.replace(self, capabilities=regular)
            return await generate_with_fire(client, request, sampling, self.capabilities.fire)
        body = self._body(request, sampling)
        reply = await self._send(body, self.shape.completion, request.seed)
        return reply.value.with_usage(reply.usage)

    async def first(self, request: Request, sampling: Sampling) -> FirstToken:
        """Return the first token of a request's completion."""
        body = self._body(request, sampling)
        reply = await self._send(body, self.shape.first_token, request.seed)
        return FirstToken(reply.value, reply.usage)

    async def score(
        self, request: Request, top_logprobs: int, *, scoring: str | None = None
    ) -> Completion:
        """Return a request's own completion with its log-probabilities.

        Args:
            request: with a completion.
            top_logprobs: candidates of each token.
            scoring: one of the shape's `scorings`; None for that of the capabilities.
        """
        way = self.shape.scorings[scoring or self.capabilities.scoring or ""]
        read = functools.partial(way.completion, request=request, top_logprobs=top_logprobs)
        reply = await self._send(way.request(request, top_logprobs), read, request.seed)
        return reply.value.with_usage(reply.usage)

    async def probe(self, sampling: Sampling, *, scored: bool) -> Probe:
        """Return what the endpoint can do; raises as `OpenAICompatible.probe`."""
        served: set[str] = set()
        trial = self.trial(served)
        result = await probe(trial, sampling)
        fire = self.settings.fire
        if fire is not None and not scored:
            refuse_restarts(result.continues)
            hot_by = self.settings.hot_by
            method = await find_method(trial, QUESTION, sampling, fire, drawn_by=hot_by)
            result = dataclasses.replace(result, fire=method.recorded())
        return dataclasses.replace(result, served=sorted(served))

    async def takes_prefix_field(self) -> bool:
        """Return whether the model's card announces the shape's `prefix_field` at every address."""
        if self.shape.prefix_field is None:
            return False
        servers = {str(connection.base_url): connection for connection in self.connections}
        cards = [server.models.with_raw_response.retrieve for server in servers.values()]
        read = functools.partial(_is_set, field=self.shape.prefix_field)
        body = {"model": self.settings.model}
        try:
            replies = [await self.session().answer([card], body, read, 0) for card in cards]
        except UserError:
            return False
        return all(reply.value for reply in replies)

    def trial(self, served: set[str] | None = None) -> "Client":
        """Return a client whose requests have sessions of their own: a refusal ends no other.

        Args:
            served: collects the models that answer.
        """
        session = functools.partial(
            self.settings.trial_session, set() if served is None else served
        )
        return dataclasses.replace(self, session=session)

    def starting_at(self, index: int) -> "Client":
        """Return a client that tries the connections in turn from one of them on."""
        turn = index % len(self.connections)
        turned = (*self.connections[turn:], *self.connections[:turn])
        return dataclasses.replace(self, connections=turned)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        prefix_field = self.capabilities.prefix_field
        return self.shape.request(request, sampling, prefix_field=prefix_field)

    async def _send(
        self, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Result], seed: int
    ) -> Reply[Result]:
        creates = [self.shape.create(connection) for connection in self.connections]
        whole = {"model": self.settings.model, **body}
        return await self.session().answer(creates, whole, read, seed)


Prepare = Callable[[Client], Awaitable[Capabilities]]
Ask = Callable[[Client, Request], Awaitable[Completion]]


def _is_set(card: Mapping[str, Any], field: str) -> bool:
    return card.get(field) is True


async def _completion(
    client: Client, index: int, *, requests: Sequence[Request], ask: Ask
) -> Indexed:
    """Return a request's completion with its index; an empty one if the prompt is refused."""
    try:
        return index, await ask(client.starting_at(index), requests[index])
    except PromptRefused as error:
        return index, assemble([], finish_reason=error.finish_reason)


def _with_cost_logged(
    completions: Iterator[Indexed], session: Session, count: int
) -> Iterator[Indexed]:
    """Yield the completions; each half minute log their cost and a projection for all."""
    last = time.monotonic()
    for number, completion in enumerate(completions, 1):
        yield completion
        if time.monotonic() - last >= SECONDS_PER_LINE and session.dollars:
            last = time.monotonic()
            projected = session.dollars * count / number
            logger.info("%.2f dollars so far, about %.2f in all", session.dollars, projected)
