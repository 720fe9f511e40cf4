"""Batches that train the built-in starts, generated step by step; `run` alone imports JAX."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from distill.core import paths
from distill.core.ports import Batches
from distill.core.records import Problem
from distill.core.store import Stage
from distill.core.vocabulary_digest import require_same
from distill.problems.builtin import arithmetic
from distill.text import prompts
from distill.training.packing import Arrays, Example, Tower, arrays, pack

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("checkpoints",)
SPLIT = "train"
TEACHER_PROMPT = prompts.TeacherPrompt()
# Problem seeds are laid out as (seed, step, number of the problem in its step).
PROBLEMS_PER_STEP = 1 << 20
STEPS_PER_SEED = 1 << 32


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a tokenizer that batches need; those of `tokalign.tokenizers` have it."""

    @property
    def eos_id(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    def encode(self, text: str) -> Sequence[int]: ...  # noqa: D102


# --- Texts -------------------------------------------------------------------------------------


def training_problems(shares: Mapping[str, float], seed: int, step: int) -> Iterator[Problem]:
    """Yield the train problems of a step, endlessly, with families sampled by their shares."""
    first = (seed * STEPS_PER_SEED + step) * PROBLEMS_PER_STEP
    picks = _picks(shares, np.random.default_rng((seed, step)))
    for number, family in enumerate(picks, first):
        yield arithmetic.problem(family, SPLIT, number)


def _picks(shares: Mapping[str, float], rng: np.random.Generator) -> Iterator[str]:
    names, borders = list(shares), np.cumsum(list(shares.values()))
    while True:
        for place in np.searchsorted(borders, rng.random(64) * borders[-1], side="right"):
            yield names[place]


def _check_shares(shares: Mapping[str, float], known: Sequence[str]) -> None:
    unknown = set(shares) - set(known)
    if unknown or not sum(shares.values()) > 0 or min(shares.values()) < 0:
        raise ValueError(f"expected shares >= 0 of {tuple(known)}, got {dict(shares)}")


def families() -> tuple[str, ...]:
    """Return the families that a start may learn from: those with a train split."""
    every = (*arithmetic.FAMILIES, *arithmetic.GENERAL, arithmetic.SINGLE_STEP)
    return tuple(family for family in every if SPLIT in arithmetic.splits(family))


# --- Batches -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LanguageModelBatches:
    """Questions with their chains for a decoder-only teacher, packed.

    A document is the zero-shot prompt, a newline, the chain and EOS. Prompt and chain are cut into
    tokens separately, as they are when the teacher generates.

    ```
    Q: Tom has 3 cups and buys 2 more. How many cups has he?
    Let's think step by step
    He has 3 + 2 = 5 cups.
    The answer is 5<|endoftext|>
    ```

    Attributes:
        tokenizer: the teacher's.
        shares: of the families among the documents.
        batch_size: rows.
        length: tokens of a row.
        seed: of the problems.
        prompt_weight: what a token of the prompt counts in the loss; one of the chain counts 1.
    """

    tokenizer: Tokenizer = dataclasses.field(repr=False)
    shares: Mapping[str, float]
    batch_size: int
    length: int
    seed: int = 0
    prompt_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_shares(self.shares, families())

    def batch(self, step: int) -> Arrays:
        """Return the arrays of step `step`; leading axis batch."""
        problems = training_problems(self.shares, self.seed, step)
        return pack(map(self._example, problems), self.batch_size, self.length)

    def _example(self, problem: Problem) -> Example:
        prompt = self.tokenizer.encode(TEACHER_PROMPT(problem.question))
        chain = self.tokenizer.encode(prompts.FORMATS["zero_shot_cot"].target(problem))
        weights = [self.prompt_weight] * len(prompt) + [1.0] * (len(chain) + 1)
        return Example((), [*prompt, *chain, self.tokenizer.eos_id], weights)


@dataclasses.dataclass(frozen=True)
class InstructionBatches:
    """Prompts with answers or chains for an encoder-decoder, in the four data formats, packed.

    Attributes:
        tokenizer: the student's.
        shares: of the families among the examples.
        formats: shares of the formats of `distill.text.prompts`.
        batch_size: rows.
        source_length: tokens of an encoder row.
        length: tokens of a decoder row.
        seed: of the problems.
        demonstrations: solved examples in an in-context prompt, of the same family.
    """

    tokenizer: Tokenizer = dataclasses.field(repr=False)
    shares: Mapping[str, float]
    formats: Mapping[str, float]
    batch_size: int
    source_length: int
    length: int
    seed: int = 0
    demonstrations: int = 4

    def __post_init__(self) -> None:
        _check_shares(self.shares, families())
        _check_shares(self.formats, tuple(prompts.FORMATS))

    def batch(self, step: int) -> Arrays:
        """Return the arrays of step `step`; leading axis batch."""
        return pack(self._examples(step), self.batch_size, self.length, self.source_length)

    def _examples(self, step: int) -> Iterator[Example]:
        rng = np.random.default_rng((self.seed, step, 1))
        shown: dict[str, dict[str, Problem]] = {}
        problems = training_problems(self.shares, self.seed, step)
        for problem, name in zip(problems, _picks(self.formats, rng), strict=False):
            before = shown.setdefault(problem.source, {})
            others = [other for other in before.values() if other.question != problem.question]
            in_context = prompts.FORMATS[name].in_context
            if not in_context or len(others) >= self.demonstrations:
                yield self._example(problem, name, others[: self.demonstrations * in_context])
            newest = {problem.question: problem, **before}
            shown[problem.source] = dict(itertools.islice(newest.items(), self.demonstrations + 1))

    def _example(self, problem: Problem, name: str, others: Sequence[Problem]) -> Example:
        text = prompts.FORMATS[name].encoder_input(problem, others)
        source = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
        answer = prompts.FORMATS[name].target(problem)
        target = [*self.tokenizer.encode(answer), self.tokenizer.eos_id]
        return Example(source, target, [1.0] * len(target))


@dataclasses.dataclass(frozen=True)
class SpanCorruptionBatches:
    """T5's objective on built-in texts: spans leave the encoder's input, the decoder writes them.

    Texts (question and chain) are laid end to end and cut into pieces of one size, chosen so that
    what is left fills an encoder row. Sentinels count down from the highest id:

    ```
    piece                 She had 3 cups and found 2 more .
    encoder_input_tokens  She had <0> and found 2 <1> EOS
    decoder_target_tokens <0> 3 cups <1> more . EOS
    ```

    Attributes:
        tokenizer: the student's; its highest ids are the sentinels.
        shares: of the families among the texts.
        batch_size: rows.
        source_length: tokens of an encoder row, EOS among them.
        seed: of the problems and the spans.
        noise: share of the tokens that leave the input.
        mean_span: tokens of a span, on average.
        sentinels: how many the vocabulary has.

    Source:
        Raffel et al. 2020, section 3.1.4; counts of spans and lengths as in T5's own code, so that
        every row is full and needs no padding.
    """

    tokenizer: Tokenizer = dataclasses.field(repr=False)
    shares: Mapping[str, float]
    batch_size: int
    source_length: int
    seed: int = 0
    noise: float = 0.15
    mean_span: float = 3.0
    sentinels: int = 100

    def __post_init__(self) -> None:
        _check_shares(self.shares, families())
        if not 0 < self.noise < 1 or self.mean_span < 1 or self.source_length < 4:
            raise ValueError(
                f"expected 0 < noise < 1, mean_span >= 1 and source_length >= 4, got {self}"
            )
        if self.sizes[2] > self.sentinels:
            raise ValueError(f"expected at most {self.sentinels} spans, got {self.sizes[2]}")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens of a piece, of them noise, and spans."""
        sizes = (1, 0, 0)
        for size in itertools.count(2):
            noise = min(max(round(size * self.noise), 1), size - 1)
            spans = min(max(round(noise / self.mean_span), 1), noise, size - noise)
            if size - noise + spans + 1 > self.source_length:
                return sizes
            sizes = size, noise, spans
        raise AssertionError

    def batch(self, step: int) -> Arrays:
        """Return the arrays of step `step`; leading axis batch."""
        size, noise, spans = self.sizes
        rng = np.random.default_rng((self.seed, step, 2))
        pieces = self._pieces(step, size)
        kept = cuts(rng, self.batch_size, size - noise, spans)
        is_noise = mask(kept, cuts(rng, self.batch_size, noise, spans))
        source = self._replaced(pieces, is_noise)
        target = self._replaced(pieces, ~is_noise)
        return arrays(Tower.of(target), Tower.of(source), np.ones(target.shape, np.float32))

    def _pieces(self, step: int, size: int) -> np.ndarray:
        """[batch, size] tokens; what is left of the last text is dropped with the step."""
        ids: list[int] = []
        for problem in training_problems(self.shares, self.seed, step):
            ids += self.tokenizer.encode(TEACHER_PROMPT(problem.question))
            ids += self.tokenizer.encode(prompts.FORMATS["zero_shot_cot"].target(problem))
            if len(ids) >= self.batch_size * size:
                break
        return np.array(ids[: self.batch_size * size], np.int32).reshape(self.batch_size, size)

    def _replaced(self, pieces: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Rows in which each run of `gone` is one sentinel; EOS ends them."""
        starts = gone.copy()
        starts[:, 1:] &= ~gone[:, :-1]
        number = np.cumsum(starts, axis=1) - 1
        sentinels = self.tokenizer.vocab_size - 1 - number
        kept = np.where(starts, sentinels, pieces)[~gone | starts]
        rows = kept.reshape(len(pieces), -1)
        return np.pad(rows, ((0, 0), (0, 1)), constant_values=self.tokenizer.eos_id)


def cuts(rng: np.random.Generator, rows: int, total: int, parts: int) -> np.ndarray:
    """Return [rows, parts] lengths >= 1 that sum to `total`, all such rows as likely."""
    marks = np.zeros((rows, total), np.int64)
    marks[:, 1:parts] = 1
    number = np.cumsum(np.hstack([marks[:, :1], rng.permuted(marks[:, 1:], axis=1)]), axis=1)
    return (number[:, :, None] == np.arange(parts)).sum(axis=1)


def mask(kept: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return [rows, size] whether a token is noise; kept and noise runs take turns, kept first."""
    lengths = np.stack([kept, noise], axis=2).reshape(len(kept), -1)
    starts = np.cumsum(lengths, axis=1)
    number = np.zeros((len(kept), starts[0, -1]), np.int64)
    np.put_along_axis(number, starts[:, :-1], 1, axis=1)
    return np.cumsum(number, axis=1) % 2 == 1


# --- The stage ---------------------------------------------------------------------------------


def vocabulary(*, path: str, extra_ids: int = 100) -> Any:
    """Return the tokenizer of a SentencePiece model or a `.tiktoken` file, for the batches.

    Args:
        path: of a file here, or of one that ships, such as data/vocabularies/student.model.
        extra_ids: sentinels after a SentencePiece model's pieces.

    Raises:
        UserError: there is no such file.
    """
    from distill.models.saved import open_vocabulary

    return open_vocabulary(paths.find(path, "the file of a vocabulary"), extra_ids)


def run(
    *,
    run_dir: Path,
    out_dir: str,
    model: Any,
    batches: Batches,
    vocabulary_path: str,
    optimizer: Any,
    steps: int,
    save_every: int,
    loss: Any = None,
    start: str | None = None,
    dtype: str = "float32",
    extra_ids: int = 100,
    seed: int = 0,
    microbatches: int = 1,
    steps_per_call: int = 1,
    log_every: int = 10,
    workers: int = 0,
    keep_last: int | None = 3,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train a start on generated batches and write it for `weights.load`.

    Args:
        run_dir: receives checkpoints and metrics.jsonl.
        out_dir: receives the trained model and its vocabulary.
        model: a `DecoderModel` or `T5Model`.
        batches: of this module.
        vocabulary_path: file of the vocabulary that the batches are made with.
        optimizer: of `distill.training.optimizers`.
        steps: optimizer steps in all.
        save_every: steps between checkpoints.
        loss: likelihood of the targets if None.
        start: directory of a model of the same shape to start from; random from the seed if None.
        dtype: in which the parameters are written.
        extra_ids: sentinels of a SentencePiece vocabulary.
        seed: of the first parameters and of dropout.
        microbatches: parts of a batch whose gradients are summed, to save memory.
        steps_per_call: optimizer steps compiled into one call, to save dispatches.
        log_every: steps between fetches of the figures.
        workers: processes that make batches; 0 makes them in a thread.
        keep_last: checkpoints kept; all if None.
        tensorboard: write event files too.

    Returns:
        `steps`, `tokens`, `loss_first`, `loss_last` as `train.fit` returns them, and `parameters`.

    Raises:
        UserError: a file is missing, the start has another shape or another vocabulary, or the
            loss is not finite.
    """
    import jax

    from distill.models import weights
    from distill.training.losses import SampleMatching
    from distill.training.train import Course, fit

    course = Course(steps, save_every, log_every, microbatches, steps_per_call, workers)
    loss = loss or SampleMatching()
    settings = {"model": model, "batches": batches, "vocabulary": vocabulary_path, "loss": loss}
    settings |= {"optimizer": optimizer, "steps": steps, "seed": seed, "start": start}
    settings |= {"microbatches": microbatches}
    with Stage.open(
        run_dir,
        "pretrain",
        settings=settings,
        reads=[start, vocabulary_path],
        outputs=OUTPUTS,
    ) as stage:
        if stage.complete:
            return stage.summary
        file = paths.find(vocabulary_path, "the file of a vocabulary")
        if start is None:
            params = model.init(jax.random.key(seed))
        else:
            directory = paths.find(start, "the directory of a start")
            _, params, theirs = weights.load(directory)
            weights.require_shapes(model, params, directory)
            ours = weights.Vocabulary(file, extra_ids).recorded(f"the batches, {vocabulary_path}")
            do = "give the vocabulary that the start was saved with"
            require_same(theirs.recorded(f"the start in {directory}"), ours, do)
        params, summary = fit(
            model,
            params,
            batches,
            loss,
            directory=Path(run_dir) / "checkpoints",
            optimizer=optimizer,
            course=course,
            seed=seed,
            keep_last=keep_last,
            tensorboard=tensorboard,
        )
        weights.save(Path(out_dir), model, params, file, dtype=dtype, extra_ids=extra_ids)
        stage.finish(parameters=sum(leaf.size for leaf in jax.tree.leaves(params)), **summary)
        return stage.summary
