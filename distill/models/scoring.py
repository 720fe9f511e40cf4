"""Networks with a head that says how likely a solution ends right; they are trained elsewhere."""

import collections
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Scores, Solution
from distill.core.store import read_json
from distill.models import weights
from distill.models.layers import Params, by_path
from distill.models.reader import Given, Reader, surprises
from distill.models.rows import LONGEST, bucket, rows_of
from distill.models.sampling import Tokenizer
from distill.models.saved import open_vocabulary
from distill.models.weights import Model

logger = logging.getLogger(__name__)
HEAD, SCORER = "head.safetensors", "scorer.json"


# --- The model ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ScoringModel:
    """A network whose last states go through one linear head instead of the vocabulary's.

    Its parameters are {"network": ..., "head": {"kernel", "bias"}}. A batch holds what
    `solution_arrays` makes; the state of position i has read the prompt and the first i tokens of
    the solution, so one forward pass scores all steps:

    ```
    solution_tokens   START  5  + 7 = 12 .   12 / 3 = 4 .
    logits              .    .  . . .  . a   .  . . . . b     a, b: after the first and second step
    ```

    With a reader the network stays as it is, so that its log-probabilities stay a language model's,
    and the head reads the reader's states; the head has its parameters as "reader" too.

    Attributes:
        network: T5Model or DecoderModel.
        reader: layers between the network and the head, none as in the paper.
    """

    network: Model
    reader: Reader | None = None

    def with_head(self, params: Params, key: Array | None = None) -> Params:
        """Return a network's parameters with a head that gives everything an even chance.

        Args:
            params: the network's.
            key: of the reader's first parameters; that of seed 0 where None.
        """
        embed_dim = self.network.config.embed_dim
        width = self.reader.width if self.reader else embed_dim
        head: Params = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)}
        if self.reader:
            key = jax.random.key(0) if key is None else key
            head["reader"] = self.reader.init(key, embed_dim)
        return {"network": params, "head": head}

    def logits(
        self, params: Params, batch: Mapping[str, Any], *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length 1"]:
        """Return the log-odds, in nats, that the solution ends right, after each position."""
        tokens = batch["solution_tokens"]
        read = self.network.continuation(batch["prompt_tokens"], batch["prompt_lengths"], tokens)
        if self.reader is None:
            hidden = self.network.hidden(params["network"], read, dropout_key=dropout_key)
            states = hidden[:, -tokens.shape[1] :].astype(jnp.float32)
        else:
            fixed = jax.lax.stop_gradient(params["network"])
            hidden = self.network.hidden(fixed, read)[:, -tokens.shape[1] :]
            nats = surprises(functools.partial(self.network.project, fixed), hidden, tokens)
            rows = fixed["token_embedder"]["embedding"]
            question, words = (
                jnp.take(rows, x, axis=0).astype(jnp.float32)
                for x in (batch["prompt_tokens"], tokens)
            )
            given = Given(
                question, batch["prompt_lengths"], words, hidden.astype(jnp.float32), nats
            )
            states = self.reader.read(params["head"]["reader"], given, dropout_key=dropout_key)
        return states @ params["head"]["kernel"] + params["head"]["bias"]

    def logical_axes(self, params: Params) -> Params:
        """Return the logical axis names of each parameter, for `distill.models.partitioning`."""
        width = "score" if self.reader else "embed"
        head: Params = {"kernel": (width, "score"), "bias": ("score",)}
        if self.reader:
            head["reader"] = self.reader.logical_axes(params["head"]["reader"])
        return {"network": self.network.logical_axes(params["network"]), "head": head}

    def with_dropout(self, rate: float) -> "ScoringModel":
        """Return the model whose trained part drops this share of its features."""
        if self.reader:
            reader = dataclasses.replace(self.reader, dropout_rate=rate)
            return dataclasses.replace(self, reader=reader)
        config = dataclasses.replace(self.network.config, dropout_rate=rate)  # pyright: ignore[reportArgumentType]
        return ScoringModel(dataclasses.replace(self.network, config=config))


class Row(NamedTuple):
    """A solution in a network's tokens.

    Attributes:
        prompt: the row that is read before the solution.
        tokens: the solution's.
        ends: how many of them each step ends after.
    """

    prompt: list[int]
    tokens: list[int]
    ends: list[int]

    @property
    def length(self) -> int:
        """Tokens that are read: the prompt, the first token and the solution."""
        return len(self.prompt) + 1 + len(self.tokens)


def solution_row(network: Model, tokenizer: Tokenizer, solution: Solution) -> Row:
    """Return a solution in tokens, each step cut by itself.

    So a step has the same tokens whatever follows, and the scores of a solution's beginning are
    those of the whole at these steps.
    """
    prompt = network.prompt(tokenizer.encode(solution.prompt), tokenizer.eos_id)
    pieces = [tokenizer.encode(step) for step in solution.steps]
    ends = itertools.accumulate(map(len, pieces))
    return Row(prompt, list(itertools.chain(*pieces)), list(ends))


def solution_arrays(
    network: Model, rows: Sequence[Row], batch: int, source: int, length: int
) -> dict[str, np.ndarray]:
    """Return what `ScoringModel.logits` reads, right-padded with 0.

    Args:
        network: whose first token comes before each solution.
        rows: at most `batch` of them; the rest is padding.
        batch: rows of the arrays.
        source: columns of the prompts.
        length: columns of the solutions, the first token among them.

    Returns:
        `prompt_tokens` [batch, source], `prompt_lengths` [batch], at least 1, `solution_tokens` and
        `solution_segment_ids` [batch, length], 0 on padding.
    """
    arrays = {
        "prompt_tokens": np.zeros((batch, source), np.int32),
        "prompt_lengths": np.ones(batch, np.int32),
        "solution_tokens": np.zeros((batch, length), np.int32),
        "solution_segment_ids": np.zeros((batch, length), np.int32),
    }
    for number, row in enumerate(rows):
        arrays["prompt_tokens"][number, : len(row.prompt)] = row.prompt
        arrays["prompt_lengths"][number] = len(row.prompt)
        arrays["solution_tokens"][number, 1 : len(row.tokens) + 1] = row.tokens
        arrays["solution_segment_ids"][number, : len(row.tokens) + 1] = 1
    read = jnp.array(arrays["prompt_tokens"]), jnp.array(arrays["prompt_lengths"])
    arrays["solution_tokens"][:, 0] = network.first_tokens(*read)
    return arrays


@functools.partial(jax.jit, static_argnames="model")
def chances(
    model: ScoringModel, params: Params, batch: Mapping[str, Int[Array, "..."]]
) -> Float[Array, "batch length"]:
    """Return the probability that the solution ends right, after each position."""
    return jax.nn.sigmoid(model.logits(params, batch)[..., 0])


# --- The port ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class LocalScorer:
    """A scoring model of ours behind the Scorer port.

    Batches have one shape for each bucket of lengths, and rows do not see each other, so scores
    depend on the solution alone. Each solution is in one batch, so in one forward pass. Batches of
    long rows have fewer of them, see `rows.rows_of`.

    Args:
        network: the model, with its head.
        params: its parameters, head included.
        tokenizer: its vocabulary.
        name: what the scorer calls itself.
        batch_size: solutions that run together.
        longest: tokens that a solution may have with its prompt; a longer one gets no scores.
    """

    network: ScoringModel
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    name: str = "local"
    batch_size: int = 64
    longest: int = LONGEST

    def __post_init__(self) -> None:
        for name in ("batch_size", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")

    @property
    def model(self) -> str:
        """What the scorer calls itself."""
        return self.name

    def score(self, solutions: Sequence[Solution]) -> Iterator[tuple[int, Scores]]:
        """Yield (index into solutions, scores), batch by batch.

        A solution that is longer than a row may be comes first, with no values.
        """
        rows = [solution_row(self.network.network, self.tokenizer, each) for each in solutions]
        for number, row in enumerate(rows):
            if row.length > self.longest:
                logger.warning(
                    "solution %d to %.60r gets no score: it has %d tokens, and a row at most %d",
                    number,
                    solutions[number].prompt,
                    row.length,
                    self.longest,
                )
                yield number, Scores(np.zeros(0, np.float32), 0)
        for source, length, numbers in self._batches(rows):
            of_batch = [rows[n] for n in numbers]
            count = rows_of(self.batch_size, source + length)
            arrays = solution_arrays(self.network.network, of_batch, count, source, length)
            found = np.asarray(chances(self.network, self.params, arrays))
            for number, of_row in zip(numbers, found, strict=False):
                row = rows[number]
                yield number, Scores(of_row[row.ends], row.length)

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[int, int, list[int]]]:
        """Yield (source, length, numbers of rows) of rows that run in one shape, in their order."""
        groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for number, row in enumerate(rows):
            if row.length <= self.longest:
                groups[bucket(len(row.prompt)), bucket(len(row.tokens) + 1)].append(number)
        for (source, length), numbers in sorted(groups.items()):
            size = rows_of(self.batch_size, source + length)
            for first in range(0, len(numbers), size):
                yield source, length, numbers[first : first + size]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """A directory that `save` wrote, as a Scorer that is loaded at its first use.

    Args:
        path: the directory; one that does not exist here is looked up among what ships.
        batch_size: solutions that run together.

    Raises:
        UserError: at the first use, the directory is missing or damaged.

    Example:
        >>> Verifier("runs/mine/verifier/process", batch_size=8).batch_size
        8
    """

    path: str
    batch_size: int = 64

    @property
    def model(self) -> str:
        """The directory's name."""
        return Path(self.path).name

    @functools.cached_property
    def scorer(self) -> LocalScorer:
        """The loaded model."""
        directory = paths.find(self.path, "the directory of a verifier")
        return dataclasses.replace(load(directory), batch_size=self.batch_size)

    def score(self, solutions: Sequence[Solution]) -> Iterator[tuple[int, Scores]]:
        """Yield (index into solutions, scores), batch by batch."""
        return self.scorer.score(solutions)


# --- The directory -----------------------------------------------------------------------------


def save(
    directory: Path,
    scoring: ScoringModel,
    params: Params,
    vocabulary: weights.Vocabulary,
    about: Mapping[str, Any],
) -> None:
    """Write a scoring model so that `load` needs nothing else.

    ```
    DIRECTORY/...               the network as `weights.save` writes it
    DIRECTORY/head.safetensors  kernel, bias and the reader's by path
    DIRECTORY/scorer.json       the reader's shape, and what it was trained for and on
    ```

    Args:
        directory: made; where it exists its files of these names are replaced.
        scoring: of `params`.
        params: float32.
        vocabulary: the network's.
        about: JSON, for people.
    """
    with weights.whole_directory(directory) as temporary:
        weights.save(
            temporary,
            scoring.network,
            params["network"],
            vocabulary.path,
            extra_ids=vocabulary.extra_ids,
        )
        head = {name: jnp.asarray(x) for name, x in by_path(params["head"]).items()}
        save_file(head, temporary / HEAD)
        shape = {"reader": dataclasses.asdict(scoring.reader)} if scoring.reader else {}
        text = json.dumps({**about, **shape}, indent=1, allow_nan=False)
        (temporary / SCORER).write_text(text + "\n", encoding="utf-8")


def load(directory: Path) -> LocalScorer:
    """Return the scorer of a directory that `save` wrote.

    Raises:
        UserError: a file is missing or damaged, or the head is of another width.
    """
    network, params, vocabulary = weights.load(directory)
    scoring = ScoringModel(network, _reader(directory / SCORER))
    head = _head(directory / HEAD, jax.eval_shape(scoring.with_head, params)["head"])
    tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    return LocalScorer(scoring, {"network": params, "head": head}, tokenizer, directory.name)


def _reader(path: Path) -> Reader | None:
    """Return the reader's shape, which a directory without one need not tell."""
    told = read_json(path).get("reader") if path.is_file() else None
    try:
        return Reader(**told) if told else None
    except (TypeError, ValueError) as error:
        raise UserError(f"the shape of a reader in {path}", str(error), "restore it") from error


def _head(path: Path, wanted: Params) -> Params:
    if not path.is_file():
        raise UserError(f"a head in {path}", "none", "give the directory of a verifier")
    try:
        head = load_file(path)
    except SafetensorError as error:
        raise UserError(f"whole safetensors in {path}", str(error), "restore the file") from error
    shapes = {name: array.shape for name, array in head.items()}
    if shapes != {name: array.shape for name, array in by_path(wanted).items()}:
        raise UserError(
            f"a head of width {len(wanted['kernel'])} in {path}",
            ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "nothing",
            "use the files of one verifier",
        )
    return unflatten_dict(head, sep="/")
