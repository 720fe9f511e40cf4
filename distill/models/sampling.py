"""Any of our models as a Generator: texts in, texts with log-probabilities out."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Completion, Request, Sampling
from distill.core.store import read_json
from distill.models import decoding, weights
from distill.models.decoding import Decoded, Measured, Network, Settings, Vocabulary
from distill.models.layers import Params
from tokalign.tokenizers import SentencePieceTokenizer, TiktokenTokenizer

T = TypeVar("T")


class Tokenizer(Protocol):
    """What sampling asks of a vocabulary; those of tokalign are such."""

    eos_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without an EOS."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, empty for a special."""
        ...


@dataclasses.dataclass(frozen=True)
class Fire:
    """Hot tokens that make a set of samples diverse; not for single answers, which get worse.

    Attributes:
        temperature: of the hot tokens.
        top_k: candidates of the hot tokens; this, and not the temperature, keeps them sensible.
        positions: which tokens of a completion are hot, the first by default.

    Source:
        Chen et al. 2024, arXiv 2410.21236.
    """

    temperature: float = 30.0
    top_k: int = 16
    positions: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 1 or min(self.positions, default=0) < 0:
            raise ValueError(f"expected temperature > 0, top_k >= 1, positions >= 0, got {self}")


class _Batch(NamedTuple):
    """Rows that run together: numbers of the requests, their rows, and the rows' fixed room."""

    numbers: tuple[int, ...]
    rows: tuple[list[int], ...]
    completions: tuple[list[int], ...]
    source: int
    steps: int


class _Row(NamedTuple):
    """`decoding.Measured` of one row, on the host."""

    logprobs: np.ndarray
    eos_logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


def bucket(length: int) -> int:
    """Return the padded length of a row, from few enough that each can be compiled.

    Example:
        >>> [bucket(n) for n in (1, 64, 65, 129, 193, 700)]
        [64, 64, 128, 192, 256, 768]
    """
    size = 64
    while size < length:
        size *= 2
    return size * 3 // 4 if size >= 256 and length <= size * 3 // 4 else size


def _padded(rows: Sequence[Sequence[int]], batch: int, length: int) -> np.ndarray:
    """Return int32 [batch, length], the rows right-padded with 0."""
    out = np.zeros((batch, length), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _lengths(rows: Sequence[Sequence[int]], batch: int) -> np.ndarray:
    return np.array([len(row) for row in rows] + [0] * (batch - len(rows)), np.int32)


def _seed_words(seeds: Sequence[int], batch: int) -> np.ndarray:
    """Return uint32 [batch, 2], the halves of each seed modulo 2 ** 64."""
    wide = np.array([seed % 2**64 for seed in seeds] + [0] * (batch - len(seeds)), np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(2**32 - 1)], 1).astype(np.uint32)


@dataclasses.dataclass(frozen=True, eq=False)
class LocalGenerator:
    """A model of ours behind the Generator port.

    Batches have one shape for each bucket of prompt lengths, and rows do not see each other, so a
    completion depends on its request and the sampling alone. Log-probabilities are over all tokens
    of the vocabulary; candidates are the tokens that have a text, so neither EOS nor specials.

    Args:
        network: T5Model or DecoderModel.
        params: its parameters.
        tokenizer: its vocabulary; embedding rows beyond it are never drawn.
        name: what the generator calls itself.
        batch_size: rows that run together.
        fire: hot tokens, none by default.

    Raises:
        UserError: the tokenizer has more tokens than the embedding has rows.
    """

    network: Network
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    name: str = "local"
    batch_size: int = 128
    fire: Fire | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {self.batch_size}")
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
        vocabulary = self._vocabulary(sampling.stop)
        batches = self._batches(requests, [[]] * len(requests))
        decoded = _one_ahead(
            lambda batch: self._decode(batch, requests, sampling, vocabulary), batches
        )
        for batch, written in decoded:
            yield from self._generated(batch, written, sampling)

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield each request's own completion, as its tokens spell it, measured.

        Raises:
            UserError: a request has no completion.
        """
        missing = [number for number, request in enumerate(requests) if request.completion is None]
        if missing:
            raise UserError("a completion to score", f"request {missing[0]} without one", "give it")
        ids = [[*self.tokenizer.encode(r.completion or ""), self._eos] for r in requests]
        vocabulary = self._vocabulary(())
        k = max(top_logprobs, 1)
        measured = _one_ahead(
            lambda batch: self._score(batch, vocabulary, k), self._batches(requests, ids)
        )
        for batch, of_batch in measured:
            yield from self._scored(batch, of_batch, top_logprobs)

    @property
    def _eos(self) -> int:
        return self.tokenizer.eos_id

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]

    @functools.cached_property
    def _prefixed(self) -> bool:
        """Whether the vocabulary writes a blank before a text that has none, as SentencePiece."""
        return self._bytes[self.tokenizer.encode("a")[0]][:1] == b" "

    def _vocabulary(self, stop: tuple[str, ...]) -> Vocabulary:
        rows = self.network.config.vocab_size
        texts = [*self._bytes, *[b""] * (rows - len(self._bytes))]
        hot = np.array([bool(text) for text in texts])
        eos = np.arange(rows) == self._eos
        ends = [any(end.encode() in text for end in stop) for text in texts]
        exists = np.arange(rows) < len(self._bytes)
        return Vocabulary(
            exists, hot | eos, hot & ~eos, np.array(ends) | eos, np.array(self._eos, np.int32)
        )

    def _batches(
        self, requests: Sequence[Request], completions: Sequence[list[int]]
    ) -> Iterator[_Batch]:
        """Group the requests by the shapes that they run in, each group in their order."""
        groups: dict[tuple[int, int], list[tuple[int, list[int]]]] = collections.defaultdict(list)
        for number, request in enumerate(requests):
            row = self.network.prompt(self.tokenizer.encode(request.prompt), self._eos)
            shape = bucket(len(row)), bucket(len(completions[number]))
            groups[shape].append((number, row))
        for (source, steps), members in sorted(groups.items()):
            for first in range(0, len(members), self.batch_size):
                numbers, rows = zip(*members[first : first + self.batch_size], strict=True)
                yield _Batch(numbers, rows, tuple(completions[n] for n in numbers), source, steps)

    def _settings(self, sampling: Sampling) -> Settings:
        fire, batch = self.fire or Fire(positions=()), self.batch_size
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
            self.params,
            _padded(batch.rows, self.batch_size, batch.source),
            _lengths(batch.rows, self.batch_size),
            _seed_words([requests[n].seed for n in batch.numbers], self.batch_size),
            self._settings(sampling),
            vocabulary,
            sampling.max_tokens,
            k=max(sampling.top_logprobs, 1),
        )

    def _score(self, batch: _Batch, vocabulary: Vocabulary, k: int) -> Measured:
        measured = decoding.score(
            self.network,
            self.params,
            _padded(batch.rows, self.batch_size, batch.source),
            np.maximum(_lengths(batch.rows, self.batch_size), 1),
            _padded(batch.completions, self.batch_size, batch.steps),
            vocabulary,
            k=k,
        )
        return jax.device_get(measured)

    def _generated(
        self, batch: _Batch, decoded: Decoded, sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        for row, number in enumerate(batch.numbers):
            measured = _of_row(decoded.measured, row, int(decoded.counts[row]))
            ids = decoded.ids[: decoded.counts[row], row].tolist()
            stopped = ids[-1] == self._eos
            completion = self._completion(
                ids[:-1] if stopped else ids,
                measured,
                sampling.top_logprobs,
                "stop" if stopped else "length",
            )
            yield number, cut_at_text(completion, sampling.stop, measured.eos_logprobs)

    def _scored(
        self, batch: _Batch, measured: Measured, k: int
    ) -> Iterator[tuple[int, Completion]]:
        for row, number in enumerate(batch.numbers):
            ids = batch.completions[row]
            of_row = _of_row(measured, row, len(ids))
            yield number, self._completion(ids[:-1], of_row, k, "stop")

    def _completion(self, ids: list[int], measured: _Row, k: int, finish_reason: str) -> Completion:
        """Return the completion of `ids`, which hold no EOS; `measured` may go one further."""
        n = len(ids)
        tokens = [self._bytes[i] for i in ids]
        candidates = measured.top_ids[:n, :k]
        tops = [[self._bytes[i] for i in row] for row in candidates.tolist()]
        if self._prefixed and n:
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
            _at(measured.eos_logprobs, n),
            finish_reason,
        )
        return _with_text(completion)


def _of_row(measured: Measured, row: int, count: int) -> _Row:
    return _Row(*(np.asarray(x)[:count, row] for x in measured))


def _at(nats: np.ndarray, step: int) -> float:
    """Return the entry of `step`, NaN beyond the last."""
    return float(nats[step]) if step < len(nats) else float("nan")


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


def _with_text(completion: Completion) -> Completion:
    """Give a completion the text of its tokens; what is not UTF-8 is cut off, and is an error.

    A character whose last bytes are still to come is merely cut off.
    """
    raw = b"".join(completion.tokens)
    try:
        return dataclasses.replace(completion, text=raw.decode())
    except UnicodeDecodeError as error:
        whole = error.reason == "unexpected end of data"
        cut = _cut(completion, error.start, np.array([]))
        reason = completion.finish_reason if whole else "error"
        return dataclasses.replace(cut, text=raw[: error.start].decode(), finish_reason=reason)


def cut_at_text(
    completion: Completion, stop: tuple[str, ...], eos_logprobs: np.ndarray
) -> Completion:
    """Cut a completion where the first of the stop texts begins.

    A token across the cut keeps its bytes before it, and its log-probability.

    Args:
        completion: of any length.
        stop: the texts.
        eos_logprobs: [steps] nats of ending at each step, of which the cut takes its own.
    """
    found = [at for text in stop if (at := completion.text.find(text)) >= 0]
    if not found:
        return completion
    text = completion.text[: min(found)]
    cut = _cut(completion, len(text.encode()), eos_logprobs)
    return dataclasses.replace(cut, text=text, finish_reason="stop")


def _cut(completion: Completion, size: int, eos_logprobs: np.ndarray) -> Completion:
    """Keep the tokens of the first `size` bytes; ending within a token has no probability."""
    ends = np.cumsum([len(token) for token in completion.tokens], dtype=np.int64)
    n = int(np.searchsorted(ends, size)) + 1 if size else 0
    tokens = list(completion.tokens[:n])
    whole = not n or int(ends[n - 1]) == size
    if not whole:
        tokens[-1] = tokens[-1][: size - int(ends[n - 1])]
    last = int(completion.top_ends[n - 1]) if n else 0
    return dataclasses.replace(
        completion,
        tokens=tuple(tokens),
        logprobs=completion.logprobs[:n],
        top_tokens=completion.top_tokens[:last],
        top_logprobs=completion.top_logprobs[:last],
        top_ends=completion.top_ends[:n],
        end_logprob=_at(eos_logprobs, n) if whole else float("nan"),
    )


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A directory that `weights.save` wrote, as a Generator that is loaded at its first use.

    Args:
        path: the directory; one that does not exist here is looked up among what ships.
        batch_size: rows that run together.
        fire: hot tokens, none by default.

    Raises:
        UserError: at the first use, the directory is missing or damaged.
    """

    path: str
    batch_size: int = 128
    fire: Fire | None = None

    @property
    def model(self) -> str:
        """The directory's name."""
        return Path(self.path).name

    @functools.cached_property
    def generator(self) -> LocalGenerator:
        """The loaded model."""
        loaded = local_generator(paths.find(self.path, "the directory of a model"))
        return dataclasses.replace(loaded, batch_size=self.batch_size, fire=self.fire)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into requests, completion), batch by batch."""
        return self.generator.generate(requests, sampling)

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield each request's own completion, as its tokens spell it, measured."""
        return self.generator.score(requests, top_logprobs)


def local_generator(directory: Path) -> LocalGenerator:
    """Return the model of a directory that `weights.save` wrote, ready to generate.

    Raises:
        UserError: the directory is missing or damaged.
    """
    network, params, vocabulary = weights.load(Path(directory))
    tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    return LocalGenerator(network, params, tokenizer, Path(directory).name)


def open_vocabulary(path: Path, extra_ids: int = 100) -> Tokenizer:
    """Return the tokenizer of a `.tiktoken` file or else of a SentencePiece model.

    Args:
        path: a `.tiktoken` file may have a `.json` beside it with `pattern` and `special_tokens`.
        extra_ids: sentinels after the pieces of a SentencePiece model.
    """
    if path.suffix != ".tiktoken":
        return SentencePieceTokenizer(path, extra_ids)
    side = path.with_suffix(".json")
    return TiktokenTokenizer(path, **(read_json(side) if side.is_file() else {}))
