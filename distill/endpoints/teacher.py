"""Generators that are not models of ours: an OpenAI-compatible endpoint, and a replay from disk."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.core.progress import SECONDS_PER_LINE
from distill.core.records import Trace
from distill.core.store import Shards
from distill.endpoints.asking import Asking, Clients, Means, Trials
from distill.endpoints.fire import CLIENT, SERVER, generate_hot
from distill.endpoints.formats import format_of, read_key, refuse_odd_address, refuse_odd_variable
from distill.endpoints.inflight import in_flight
from distill.endpoints.pace import Pace
from distill.endpoints.prices import Price, price_of
from distill.endpoints.probe import Probe, probe
from distill.endpoints.session import Budget, PromptRefused, Session
from distill.endpoints.spending import Spent
from distill.text.completions import assemble

logger = logging.getLogger(__name__)
Finished = tuple[int, Completion]
# Some servers answer what they do not know with a fault, for ever.
TRIES_OF_A_PROBE = 4
CONNECTIONS_OF_A_CLIENT = 8


# --- An endpoint -------------------------------------------------------------------------------

Find = Callable[[Clients], Awaitable[Means]]
Ask = Callable[[Clients, Means, Session, Request], Awaitable[Completion]]


@dataclasses.dataclass(frozen=True)
class OpenAICompatible:
    """A model behind an endpoint that speaks OpenAI's Completions or Chat Completions API.

    Where the endpoint knows seeds, a completion depends on its request and sampling alone. What
    goes wrong on the way is tried again, as `session.Session` says; requests in flight adapt to
    rate limits, as `pace.Pace` says. A prompt that the endpoint withholds an answer to gives an
    empty completion that finished for "content_filter", one that is too long for "error".

    A request's `prefix` is the end of a legacy prompt, a field of its own where the server is one
    of `distill serve`, and an assistant's last message in a chat, which vLLM and SGLang go on from.
    With `fire` the first token is hot and a completion takes two requests (see `endpoints.fire`).

    Attributes:
        model: the model's name at the endpoint.
        base_url: the endpoint's address up to and with `/v1`; several share the requests, and what
            fails at one is tried at the next.
        kind: `completions` (prompts as they are) or `chat` (the prompt is the user's one message).
        fire: how the first token is drawn hot; None for a regular one.
        hot_by: who draws it, `server` or `client`; None leaves that to what the probe finds.
        api_key_variable: name of the environment variable that holds the key; None where the
            endpoint needs none. The key is read when requests are sent and kept nowhere.
        concurrency: requests in flight at most.
        requests_per_minute: None for no limit.
        tokens_per_minute: of prompts and completions, None for no limit.
        budget: what may be spent; a harvest then ends with what is there on disk.
        prices: a JSON file of prices in the form of `data/prices.json`, which is asked after it.
        timeout: seconds until a request is given up.
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
    # Asked once: whoever searches goes on from prefixes again and again.
    _found: dict[tuple[bool, int], Means] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for address in self._addresses:
            refuse_odd_address(address)
        refuse_odd_variable(self.api_key_variable)
        format_of(self.kind)
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
        """What a token costs, None where it is not known."""
        given = self.budget.dollars_per_million
        return Price(self.model, *given) if given else price_of(self.model, self.prices)

    def after(self, spent: Spent) -> "OpenAICompatible":
        """Return the same endpoint, whose budget knows what earlier starts have spent."""
        return dataclasses.replace(self, budget=dataclasses.replace(self.budget, already=spent))

    @property
    def _addresses(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        """Yield (index, completion) as answers come in.

        Raises:
            UserError: the endpoint refuses, stays away, reports no log-probabilities, or cannot go
                on from a prefix or draw hot tokens where it should; or the budget is spent.
        """

        async def find(clients: Clients) -> Means:
            begun = any(request.prefix for request in requests)
            key = (begun, sampling.top_logprobs)
            if key not in self._found:
                trials = self._trials(clients)
                found = await trials.means(sampling, self.fire, self.hot_by, begun=begun)
                self._found[key] = found
            return self._found[key]

        async def ask(
            clients: Clients, means: Means, session: Session, request: Request
        ) -> Completion:
            asking = Asking(self.model, self.kind, clients, lambda: session, means.apart)
            if self.fire is None or means.way is None:
                return await asking.generate(request, sampling)
            return await generate_hot(
                asking.first, asking.generate, request, sampling, self.fire, means.way
            )

        return self._all(requests, find, ask)

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Finished]:
        """Yield the log-probabilities of given completions, by echo or by `prompt_logprobs`.

        The legacy API's `echo` is tried first, then vLLM's field, which chats have too. One token
        more is asked for: some servers cannot do without, and its candidates may tell the
        log-probability of stopping after the completion. A token across the border of prompt and
        completion keeps its bytes within the completion, without a log-probability.

        Raises:
            UserError: the endpoint cannot score a given text, or as `generate`.
        """

        async def find(clients: Clients) -> Means:
            return Means(scoring=await self._trials(clients).scoring(top_logprobs))

        async def ask(
            clients: Clients, means: Means, session: Session, request: Request
        ) -> Completion:
            asking = Asking(self.model, self.kind, clients, lambda: session, means.apart)
            return await asking.score(request, means.scoring or "", top_logprobs)

        return self._all(requests, find, ask)

    def probe(self, sampling: Sampling, *, scored: bool) -> dict[str, Any]:
        """Return what the endpoint was found to do, asked some twenty short requests.

        Args:
            sampling: as the harvest will ask.
            scored: whether the harvest will score given texts.

        Raises:
            UserError: the endpoint cannot serve such a harvest.
        """
        sessions: list[Session] = []

        async def one(clients: Clients, _: int) -> Probe:
            trials = self._trials(clients, sessions)
            score = functools.partial(trials.score, top_logprobs=sampling.top_logprobs)
            found = await probe(trials.generate, score, sampling, chat=self.kind == "chat")
            if scored or self.fire is None:
                return found
            way = await trials.way(sampling, self.fire, self.hot_by, continues=found.continues)
            return dataclasses.replace(found, fire=way._asdict())

        (found,) = in_flight(one, 1, limit=lambda: 1, resource=lambda: self._clients())
        logger.info("%s is %s", self.model, found)
        found.refuse_unfit(sampling, scored=scored)
        served = sorted(set().union(*(session.served for session in sessions)))
        return {**dataclasses.asdict(found), "served": served}

    def _trials(self, clients: Clients, sessions: list[Session] | None = None) -> Trials:
        patient = dataclasses.replace(self, max_retries=min(self.max_retries, TRIES_OF_A_PROBE))
        kept = [] if sessions is None else sessions

        def session() -> Session:
            """Give each request its own: that one is refused says nothing of the others."""
            kept.append(patient._session())
            return kept[-1]

        return Trials(self.model, self.kind, clients, session)

    def _all(self, requests: Sequence[Request], find: Find, ask: Ask) -> Iterator[Finished]:
        if not requests:
            return
        session = self._session()

        @contextlib.asynccontextmanager
        async def found_out() -> AsyncIterator[tuple[Clients, Means]]:
            async with self._clients() as clients:
                yield clients, await find(clients)

        async def one(opened: tuple[Clients, Means], index: int) -> Finished:
            clients, means = opened
            turn = index % len(clients)
            try:
                turned = (*clients[turn:], *clients[:turn])
                return index, await ask(turned, means, session, requests[index])
            except PromptRefused as error:
                return index, assemble([], finish_reason=error.finish_reason)

        found = in_flight(one, len(requests), limit=lambda: session.pace.limit, resource=found_out)
        try:
            yield from _reported(found, session, len(requests))
        finally:
            logger.info("%s", session.line())

    def _session(self) -> Session:
        return Session(
            f"{self.model} at {', '.join(urlsplit(url).netloc for url in self._addresses)}",
            Pace(self.concurrency, self.requests_per_minute, self.tokens_per_minute),
            max_retries=self.max_retries,
            backoff=self.backoff,
            secret=read_key(self.api_key_variable) if self.api_key_variable else "",
            budget=self.budget,
            price=self.price,
        )

    @contextlib.asynccontextmanager
    async def _clients(self) -> AsyncIterator[Clients]:
        """Open clients that share the connections: a pool looks at all of its own at each request.

        Those of different addresses alternate, so that the next one stands in for a failed one.
        """
        import openai

        async with contextlib.AsyncExitStack() as stack:
            key = read_key(self.api_key_variable)
            settings = {"api_key": key, "timeout": self.timeout, "max_retries": 0}
            rounds = -(-self.concurrency // (CONNECTIONS_OF_A_CLIENT * len(self._addresses)))
            urls = self._addresses * rounds
            opened = (openai.AsyncOpenAI(base_url=url, **settings) for url in urls)
            yield [await stack.enter_async_context(client) for client in opened]


def _reported(found: Iterator[Finished], session: Session, count: int) -> Iterator[Finished]:
    """Pass the completions on; each half minute log what they cost and what all will cost."""
    last = time.monotonic()
    for done, item in enumerate(found, 1):
        yield item
        if time.monotonic() - last >= SECONDS_PER_LINE and session.dollars:
            last = time.monotonic()
            projected = session.dollars * count / done
            logger.info("%.2f dollars so far, about %.2f in all", session.dollars, projected)


# --- A replay ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Replay:
    """A generator that plays back the traces of an earlier harvest.

    Attributes:
        directory: a run's `traces`.
    """

    directory: str

    def input_files(self) -> tuple[Path, ...]:
        """Return the directory, whose files a run is known by."""
        return (Path(self.directory),)

    @property
    def model(self) -> str:
        """The model of the first trace."""
        for trace in self._traces():
            return trace.model
        raise UserError(f"traces in {self.directory}", "none", "harvest some first")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        """Yield the traces with the requests' prompts and seeds; the sampling is the trace's own.

        Raises:
            UserError: a request has no trace.
        """
        del sampling
        keys = [(request.prompt, request.seed) for request in requests]
        return self._found(keys, lambda trace: (trace.prompt, trace.seed))

    def score(self, requests: Sequence[Request], top_logprobs: int = 5) -> Iterator[Finished]:
        """Yield the traces with the requests' prompts and completions; raises as `generate`."""
        del top_logprobs
        keys = [(request.prompt, request.completion) for request in requests]
        return self._found(keys, lambda trace: (trace.prompt, trace.text))

    def _traces(self) -> Shards[Trace]:
        return Shards(Path(self.directory), Trace)

    def _found(self, keys: Sequence[Any], key_of: Callable[[Trace], Any]) -> Iterator[Finished]:
        wanted: dict[Any, list[int]] = {}
        for index, key in enumerate(keys):
            wanted.setdefault(key, []).append(index)
        fields = {field.name for field in dataclasses.fields(Trace)}
        names = [field.name for field in dataclasses.fields(Completion) if field.name in fields]
        for trace in self._traces():
            for index in wanted.pop(key_of(trace), []):
                yield index, Completion(**{name: getattr(trace, name) for name in names})
        if wanted:
            raise UserError(
                f"a trace for each of {len(keys)} requests in {self.directory}",
                f"{sum(map(len, wanted.values()))} without one",
                "replay with the problems, prompt and seed of that harvest",
            )
