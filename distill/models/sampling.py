"""Any of our models as a Generator: texts in, texts with log-probabilities out."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.models import beam, decoding, partitioning, stopping
from distill.models.decoding import Decoded, Measured, Network, Prompts, Settings, Vocabulary
from distill.models.layers import Params
from distill.models.rows import LONGEST, MOST_PAIRS, bucket, lengths, padded, rows_of

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What sampling asks of a vocabulary; those of tokalign are such."""

    eos_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS."""
        ...

    def spell(self, text: bytes, *, start: bool = False) -> Sequence[int] | None:
        """Return the ids of `text` that follows other text, None where it is no text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, empty for a special."""
        ...


class _Member(NamedTuple):
    """A request as the network takes it.

    Attributes:
        number: index into the requests.
        row: what is read.
        forced: what is written first.
        opens: whether the first token's leading whitespace is dropped from the completion.
        skipped: tokens of the prefix among those to score.
        scored: tokens to score, those of the prefix first.
    """

    number: int
    row: list[int]
    forced: list[int]
    opens: bool
    skipped: int = 0
    scored: Sequence[int] = ()

    @property
    def length(self) -> int:
        """Tokens that are read, forced and scored."""
        return len(self.row) + len(self.forced) + len(self.scored)

    def shape(self) -> tuple[int, int, int]:
        """Return the widths of a batch that it runs in."""
        forced = bucket(len(self.forced), 32) if self.forced else 0
        return bucket(len(self.row)), forced, bucket(len(self.scored))


class _Batch(NamedTuple):
    """Requests that run together, rows with those of padding, and the widths of the rows."""

    members: tuple[_Member, ...]
    rows: int
    source: int
    forced: int
    steps: int


class _Row(NamedTuple):
    """`decoding.Measured` of one row, on the host."""

    logprobs: np.ndarray
    eos_logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


def _seed_words(seeds: Sequence[int], batch: int) -> np.ndarray:
    """Return uint32 [batch, 2], the halves of each seed modulo 2 ** 64."""
    wide = np.array([seed % 2**64 for seed in seeds] + [0] * (batch - len(seeds)), np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(2**32 - 1)], 1).astype(np.uint32)


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search for the likeliest text in place of drawing one; its own seed-free way to decode.

    Attributes:
        beams: of a request.
        length_penalty: above 0 favours long texts, below 0 short ones.
        stop: when a request is done, as `beam.search` says.

    Raises:
        ValueError: fewer than one beam.
    """

    beams: int = 4
    length_penalty: float = 1.0
    stop: beam.Stopping = "unlikely"

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"expected beams >= 1, got {self.beams}")

    def __call__(self, generator: Any) -> "LocalGenerator":
        """Return a model of ours that searches; its batch grows to a multiple of the beams.

        Raises:
            UserError: the generator is none of ours.
        """
        local = getattr(generator, "generator", generator)  # of a `saved.SavedModel`
        if not isinstance(local, LocalGenerator):
            raise UserError("a model in this process for beam search", local.model, "sample it")
        size = -(-local.batch_size // self.beams) * self.beams
        return dataclasses.replace(local, beam=self, batch_size=size)

    def require(self, sampling: Sampling, fire: Fire | None) -> None:
        """Refuse what a beam cannot honour.

        Raises:
            UserError: a temperature above 0, stop texts or hot tokens.
        """
        if sampling.temperature or sampling.stop or fire:
            raise UserError(
                "temperature 0, no stop texts and no hot tokens for a beam",
                f"{sampling}, fire {fire}",
                "leave them out, or sample",
            )


@dataclasses.dataclass(frozen=True, eq=False)
class LocalGenerator:
    """A model of ours behind the Generator port.

    Batches have one shape for each bucket of prompt lengths, and rows do not see each other, so a
    completion depends on its request and the sampling alone. They are cut over all devices of the
    process where these divide `batch_size`, but for those that share a copy of the parameters;
    beams run on one copy. Batches of long rows have fewer of them, see `rows.rows_of`.
    Log-probabilities are over all tokens of the vocabulary; candidates are the tokens that have a
    text, so neither EOS nor specials.

    Args:
        network: T5Model or DecoderModel.
        params: its parameters; with `tensor`, they may be tensors on disk.
        tokenizer: its vocabulary; embedding rows beyond it are never drawn.
        name: what the generator calls itself.
        batch_size: rows that run together.
        fire: hot tokens, none by default.
        beam: how texts are searched for instead of drawn.
        tensor: devices that share a copy of the parameters, for models too large for one.
        longest: tokens that a request may have, prompt, prefix and scored text together; a longer
            one gets an empty completion that finished for "too_long".
        most_pairs: pairs of positions of the rows of a batch, at most; longer rows are fewer.

    Raises:
        UserError: the tokenizer has more tokens than the embedding has rows, the beams do not
            divide the batch, or, at the first use, `tensor` does not divide the devices.
    """

    network: Network
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    name: str = "local"
    batch_size: int = 128
    fire: Fire | None = None
    beam: "Beam | None" = None
    tensor: int = 1
    longest: int = LONGEST
    most_pairs: int = dataclasses.field(default=MOST_PAIRS, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.beam and self.batch_size % self.beam.beams:
            raise UserError(
                f"a batch_size that {self.beam.beams} beams divide",
                str(self.batch_size),
                "change one of them",
            )
        if self.tokenizer.vocab_size > self.network.config.vocab_size:
            raise UserError(
                f"a vocabulary of at most {self.network.config.vocab_size} tokens",
                f"{self.tokenizer.vocab_size} in {self.tokenizer!r}",
                "use the vocabulary that the model was trained with",
            )

    @property
    def model(self) -> str:
        """What the generator calls itself."""
        return self.name

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into requests, completion), batch by batch."""
        if self.beam is not None:
            yield from self._searched(self.beam, requests, sampling)
            return
        vocabulary = self.vocabulary(sampling.stop)
        members = [self._member(n, request) for n, request in enumerate(requests)]
        yield from self._left_out(members)
        batches = self._batches(members)
        decoded = _one_ahead(
            lambda batch: self._decode(batch, requests, sampling, vocabulary), batches
        )
        for batch, written in decoded:
            yield from self._generated(batch, written, sampling)

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield each request's own completion after its prefix, as its tokens spell it, measured.

        Raises:
            UserError: a request has no completion.
        """
        missing = [number for number, request in enumerate(requests) if request.completion is None]
        if missing:
            raise UserError("a completion to score", f"request {missing[0]} without one", "give it")
        members = [self._scored_member(n, request) for n, request in enumerate(requests)]
        yield from self._left_out(members)
        vocabulary = self.vocabulary(())
        k = max(top_logprobs, 1)
        measured = _one_ahead(
            lambda batch: self._score(batch, vocabulary, k), self._batches(members)
        )
        for batch, of_batch in measured:
            yield from self._scored(batch, of_batch, top_logprobs)

    @property
    def _eos(self) -> int:
        return self.tokenizer.eos_id

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        """All devices of this process, where a batch can be cut over them; None for one."""
        devices = jax.local_devices()
        if self.tensor == 1 and (len(devices) == 1 or self.batch_size % len(devices)):
            return None
        return partitioning.mesh(tensor=self.tensor, devices=devices)

    @functools.cached_property
    def placed(self) -> Params:
        """The parameters on the devices that use them."""
        mesh, params = self._mesh, self.params
        if mesh is None:
            return params
        return partitioning.spread_params(mesh, params, self.network.logical_axes(params))

    def place(self, rows: T) -> T:
        """Return rows on the devices where they run."""
        mesh = self._mesh
        return rows if mesh is None else partitioning.spread_rows(mesh, rows)

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]

    @functools.cached_property
    def _prefixed(self) -> bool:
        """Whether the vocabulary writes a space before a text that has none, as SentencePiece."""
        return self._bytes[self.tokenizer.encode("a")[0]][:1] == b" "

    def vocabulary(self, stop: tuple[str, ...]) -> Vocabulary:
        """Return which rows of the logits are tokens, and the automaton of stop texts."""
        rows = self.network.config.vocab_size
        texts = [*self._bytes, *[b""] * (rows - len(self._bytes))]
        hot = np.array([bool(text) for text in texts])
        eos = np.arange(rows) == self._eos
        exists = np.arange(rows) < len(self._bytes)
        table = stopping.transitions(stop, texts, self._eos)
        return Vocabulary(exists, hot | eos, hot & ~eos, table, np.array(self._eos, np.int32))

    def rows(self, width: int, least: int = 1) -> int:
        """Return how many rows of a padded width run together, a multiple of `least`."""
        return rows_of(self.batch_size, width, least, most_pairs=self.most_pairs)

    def shape(self, request: Request) -> tuple[int, int]:
        """Return the padded widths that a request is completed in: tokens read, tokens forced."""
        return self._member(0, request).shape()[:2]

    def scoring_shape(self, request: Request) -> tuple[int, int]:
        """Return the padded widths that a completion is scored in: tokens read, tokens scored."""
        source, _, steps = self._scored_member(0, request).shape()
        return source, steps

    def _member(self, number: int, request: Request) -> _Member:
        """Return what to read before writing; a prefix is forced."""
        prompt, prefix = self._prompt(request), self.tokenizer.encode(request.prefix)
        opens = self._opens(request.prefix, prefix)
        return _Member(number, *self.network.begun(prompt, prefix), opens)

    def _scored_member(self, number: int, request: Request) -> _Member:
        """Return what to read before scoring; a prefix is scored too, and dropped."""
        prefix, text = self.tokenizer.encode(request.prefix), request.completion or ""
        opens = self._opens(request.prefix, prefix)
        ids = self.tokenizer.spell(text.encode(), start=opens) if prefix else None
        scored = [*prefix, *(self.tokenizer.encode(text) if ids is None else ids), self._eos]
        return _Member(number, self._prompt(request), [], opens, len(prefix), scored)

    def _prompt(self, request: Request) -> list[int]:
        return self.network.prompt(self.tokenizer.encode(request.prompt), self._eos)

    def _opens(self, text: str, prefix: list[int]) -> bool:
        """Tell whether the first token after `prefix`, which spells `text`, loses its blank.

        It is the vocabulary's own mark where nothing comes before, and stands for a blank at the
        end of the prefix that the vocabulary did not keep there.
        """
        kept = bool(prefix) and self._bytes[prefix[-1]][-1:].isspace()
        return self._prefixed and (not prefix or (text[-1:].isspace() and not kept))

    def _left_out(self, members: Iterable[_Member]) -> Iterator[tuple[int, Completion]]:
        """Yield an empty completion for each request that is longer than a row may be."""
        for member in members:
            if member.length > self.longest:
                logger.warning(
                    "request %d is left out: it has %d tokens, and a row at most %d",
                    member.number,
                    member.length,
                    self.longest,
                )
                yield member.number, _too_long()

    def _batches(self, members: Iterable[_Member], rows: int = 1) -> Iterator[_Batch]:
        """Group the requests by the shapes that they run in, each group in their order.

        Those that are longer than a row may be are in none.

        Args:
            members: the requests.
            rows: of a batch that each member takes.
        """
        groups: dict[tuple[int, int, int], list[_Member]] = collections.defaultdict(list)
        for member in members:
            if member.length <= self.longest:
                groups[member.shape()].append(member)
        for shape, alike in sorted(groups.items()):
            count = self.rows(sum(shape), rows)
            size = count // rows
            for first in range(0, len(alike), size):
                yield _Batch(tuple(alike[first : first + size]), count, *shape)

    def _prompts(self, batch: _Batch) -> Prompts:
        size, members, forced = batch.rows, batch.members, [m.forced for m in batch.members]
        distinct = dict.fromkeys(tuple(member.row) for member in members)
        places = {row: number for number, row in enumerate(distinct)}
        opening = np.full(size, stopping.ENDED, np.int32)
        states = [stopping.OPENING if member.opens else stopping.INSIDE for member in members]
        opening[: len(members)] = states
        return Prompts(
            padded(list(places), size, batch.source),
            np.maximum(lengths(list(places), size), 1),
            np.pad([places[tuple(m.row)] for m in members], (0, size - len(members))),
            padded([row[::-1] for row in forced], size, batch.forced)[:, ::-1],
            batch.forced - lengths(forced, size),
            opening,
        )

    def settings(self, sampling: Sampling, batch: int) -> Settings:
        """Return how each of `batch` rows is drawn."""
        fire = self.fire or Fire(positions=())
        hot = np.isin(np.arange(max(fire.positions, default=0) + 1), fire.positions)
        return Settings(
            np.full(batch, sampling.temperature, np.float32),
            np.full(batch, sampling.top_k, np.int32),
            np.full(batch, sampling.top_p, np.float32),
            np.full(batch, sampling.min_p, np.float32),
            np.tile(hot, (batch, 1)),
            np.array(fire.temperature, np.float32),
            np.array(fire.top_k, np.int32),
        )

    def _decode(
        self,
        batch: _Batch,
        requests: Sequence[Request],
        sampling: Sampling,
        vocabulary: Vocabulary,
    ) -> Decoded:
        return decoding.decode(
            self.network,
            self.placed,
            self._prompts(batch),
            _seed_words([requests[m.number].seed for m in batch.members], batch.rows),
            self.settings(sampling, batch.rows),
            vocabulary,
            sampling.max_tokens,
            k=max(sampling.top_logprobs, 1),
            place=self.place,
        )

    def _searched(
        self, how: "Beam", requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the best text that a beam finds for each request, measured in a pass of its own."""
        how.require(sampling, self.fire)
        vocabulary, k = self.vocabulary(()), sampling.top_logprobs
        members = [self._member(number, request) for number, request in enumerate(requests)]
        yield from self._left_out(members)
        for batch in self._batches(members, how.beams):
            found = self._best(how, batch, vocabulary, sampling.max_tokens)
            pairs = list(zip(batch.members, found, strict=True))
            told = {member.number: self._told(how, member, ids) for member, ids in pairs}
            scored = [self._found_member(requests[m.number], m, ids) for m, ids in pairs]
            for alike in self._batches(scored):
                measured = self._score(alike, vocabulary, max(k, 1))
                for number, completion in self._scored(alike, measured, k):
                    yield number, dataclasses.replace(completion, **told[number])

    def _best(
        self, how: "Beam", batch: _Batch, vocabulary: Vocabulary, limit: int
    ) -> list[list[int]]:
        """Return the tokens of each member's best text, EOS included where it has one."""
        rows = tuple(member for member in batch.members for _ in range(how.beams))
        prompts = self._prompts(batch._replace(members=rows))
        found = beam.search(
            self.network,
            self.placed if self.tensor > 1 else self.params,
            prompts,
            vocabulary,
            beams=how.beams,
            limit=limit,
            length_penalty=how.length_penalty,
            stop=how.stop,
        )
        best = np.asarray(found.ids[: len(batch.members), 0, :limit]).tolist()
        return [ids[: ids.index(self._eos) + 1] if self._eos in ids else ids for ids in best]

    def _told(self, how: "Beam", member: _Member, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "finish_reason": "stop" if ids[-1] == self._eos else "length",
            "prompt_tokens": len(member.row) + len(member.forced),
            "completion_tokens": how.beams * len(ids),
        }

    def _found_member(self, request: Request, member: _Member, ids: list[int]) -> _Member:
        """Return what measures the tokens that a beam found after the request's prefix."""
        prefix = self.tokenizer.encode(request.prefix)
        scored = [*prefix, *(ids if ids[-1] == self._eos else [*ids, self._eos])]
        return _Member(member.number, self._prompt(request), [], member.opens, len(prefix), scored)

    def _score(self, batch: _Batch, vocabulary: Vocabulary, k: int) -> Measured:
        rows = [member.row for member in batch.members]
        arrays = (
            padded(rows, batch.rows, batch.source),
            np.maximum(lengths(rows, batch.rows), 1),
            padded([member.scored for member in batch.members], batch.rows, batch.steps),
        )
        measured = decoding.score(self.network, self.placed, *self.place(arrays), vocabulary, k=k)
        return jax.device_get(measured)

    def _generated(
        self, batch: _Batch, decoded: Decoded, sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        for row, member in enumerate(batch.members):
            measured = _of_row(decoded.measured, row, int(decoded.counts[row]))
            ids = decoded.ids[: decoded.counts[row], row].tolist()
            stopped = ids[-1] == self._eos
            completion = dataclasses.replace(
                self._completion(
                    ids[:-1] if stopped else ids,
                    measured,
                    sampling.top_logprobs,
                    "stop" if stopped else "length",
                    opens=member.opens,
                ),
                prompt_tokens=len(member.row) + len(member.forced),
                completion_tokens=len(ids),
            )
            if self.fire is not None:
                behaviour = decoded.behaviour_logprobs[: len(completion.tokens), row]
                completion = dataclasses.replace(completion, behaviour_logprobs=behaviour)
            cut = stopping.cut_at_text(completion, sampling, measured.eos_logprobs)
            yield member.number, cut

    def _scored(
        self, batch: _Batch, measured: Measured, k: int
    ) -> Iterator[tuple[int, Completion]]:
        for row, member in enumerate(batch.members):
            ids = list(member.scored[member.skipped : -1])
            of_row = _of_row(measured, row, len(member.scored), member.skipped)
            yield member.number, self._completion(ids, of_row, k, "stop", opens=member.opens)

    def _completion(
        self, ids: list[int], measured: _Row, k: int, finish_reason: str, *, opens: bool
    ) -> Completion:
        """Return the completion of `ids`, which hold no EOS; `measured` may go one further."""
        n = len(ids)
        tokens = [self._bytes[i] for i in ids]
        candidates = measured.top_ids[:n, :k]
        tops = [[self._bytes[i] for i in row] for row in candidates.tolist()]
        if opens and n:
            tokens[0] = tokens[0].removeprefix(b" ")
            tops[0] = [text.removeprefix(b" ") for text in tops[0]]
        spelled = np.array([bool(text) for text in itertools.chain(*tops)], bool).reshape(
            candidates.shape
        )
        completion = Completion(
            "",
            tuple(tokens),
            measured.logprobs[:n],
            tuple(text for text in itertools.chain(*tops) if text),
            measured.top_logprobs[:n, :k][spelled],
            np.cumsum(spelled.sum(1), dtype=np.int32),
            stopping.entry_at(measured.eos_logprobs, n),
            finish_reason,
        )
        return stopping.with_text(completion)


def _too_long() -> Completion:
    none = np.zeros(0, np.float32)
    return Completion("", (), none, (), none, none.astype(np.int32), float("nan"), "too_long", 0, 0)


def _of_row(measured: Measured, row: int, count: int, skipped: int = 0) -> _Row:
    return _Row(*(np.asarray(x)[skipped:count, row] for x in measured))


def _one_ahead(run: Callable[[_Batch], T], batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, T]]:
    """Yield each batch with what `run` makes of it, while the next one runs."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting: collections.deque[tuple[_Batch, concurrent.futures.Future[T]]]
        waiting = collections.deque()
        for batch in batches:
            waiting.append((batch, thread.submit(run, batch)))
            if len(waiting) > 1:
                first, made = waiting.popleft()
                yield first, made.result()
        for batch, made in waiting:
            yield batch, made.result()
