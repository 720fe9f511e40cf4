"""Train a verifier from the student's weights on labelled solutions.

It is evaluated by `verifier_report`.

A process verifier (PRM) learns the chance that a solution ends right after each of its steps, an
outcome verifier (ORM) after the last alone. Both score all steps of a solution in one forward pass.

Source: Snell et al. 2024, arXiv 2408.03314, section 5.1 and appendix D to F.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from distill.core import paths, seeds
from distill.core.errors import UserError
from distill.core.statistics import Bootstrap
from distill.core.store import Stage
from distill.models import scoring, weights
from distill.models.reader import Reader
from distill.models.sampling import Tokenizer
from distill.models.saved import open_vocabulary
from distill.models.scoring import ScoringModel
from distill.models.weights import Model
from distill.test_time import rollouts, verifier_report
from distill.test_time.rollouts import Labelled
from distill.training import checkpoints
from distill.training.feed import epoch_rows
from distill.training.losses import Pair
from distill.training.optimizers import AdamW, Constant, Optimizer
from distill.training.train import Course, fit

logger = logging.getLogger(__name__)
PROCESS, OUTCOME = "process", "outcome"
# Files and folders of a run directory that the stage fills for each kind, as patterns.
OUTPUTS = {kind: (f"verifier/{kind}", f"reports/verifier-{kind}.*") for kind in (PROCESS, OUTCOME)}
PAPER_OPTIMIZER = AdamW(schedule=Constant(3e-5), weight_decay=0.0, b2=0.95)
COLUMNS_OF = 32  # rows are padded to a multiple of so many tokens; each width is compiled
WINDOW = 64  # batches whose rows are sorted together
LONGEST = 2048  # tokens of an example with its prompt: arrays are as wide as the longest
LOSS_ROWS = 128  # scored together where the held-out loss is measured


# --- Examples ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SoftBinary:
    r"""Binary cross-entropy of log-odds against soft labels, in nats, where the weights are not 0.

    .. math:: -l \log \sigma(z) - (1 - l) \log (1 - \sigma(z)) = \log(1 + e^z) - l z
    """

    def __call__(self, logits: Float[Array, "batch length 1"], batch: Mapping[str, Array]) -> Pair:
        """Return (sum of weighted nats, sum of weights)."""
        odds = logits[..., 0]
        nats = jax.nn.softplus(odds) - batch["score_labels"] * odds
        return jnp.sum(nats * batch["score_weights"]), jnp.sum(batch["score_weights"])


def columns(
    examples: Sequence[Labelled], model: ScoringModel, tokenizer: Tokenizer, kind: str
) -> dict[str, np.ndarray]:
    """Return the examples as arrays of one width, a row each.

    Args:
        examples: at least one.
        model: the model to train.
        tokenizer: its vocabulary.
        kind: `process` counts every step that has a label, `outcome` the last.

    Returns:
        What `scoring.solution_arrays` gives, and `score_labels` and `score_weights` [n, length]: at
        the last token of a step its label, and how often the solution was drawn.
    """
    rows = [scoring.solution_row(model.network, tokenizer, e.solution) for e in examples]
    source = _wide(max(len(row.prompt) for row in rows))
    length = _wide(max(len(row.tokens) for row in rows) + 1)
    arrays = scoring.solution_arrays(model.network, rows, len(rows), source, length)
    labels = np.zeros((len(rows), length), np.float32)
    counts = np.zeros((len(rows), length), np.float32)
    first = -1 if kind == OUTCOME else 0
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        of_steps = np.array(example.labels[first:])
        known = ~np.isnan(of_steps)
        labels[number, row.ends[first:]] = np.where(known, of_steps, 0)
        counts[number, row.ends[first:]] = example.count * known
    return {**arrays, "score_labels": labels, "score_weights": counts}


def readable(
    examples: Sequence[Labelled], network: Model, tokenizer: Tokenizer, longest: int = LONGEST
) -> list[Labelled]:
    """Return the examples of at most `longest` tokens; the others are named in the log.

    Args:
        examples: labelled solutions.
        network: the model to train.
        tokenizer: its vocabulary.
        longest: tokens of prompt and solution.

    Raises:
        UserError: all are longer.
    """
    sizes = [scoring.solution_row(network, tokenizer, e.solution).length for e in examples]
    for example, size in zip(examples, sizes, strict=True):
        if size > longest:
            logger.warning(
                "a solution of %s is left out: it has %d tokens, and an example at most %d",
                example.problem_id,
                size,
                longest,
            )
    kept = [e for e, size in zip(examples, sizes, strict=True) if size <= longest]
    if examples and not kept:
        raise UserError(
            f"solutions of at most {longest} tokens", f"{min(sizes)} and more", "draw shorter ones"
        )
    return kept


Length = TypeVar("Length", int, np.ndarray)


def _wide(length: Length) -> Length:
    return -(-length // COLUMNS_OF) * COLUMNS_OF


def _widths(columns: Mapping[str, np.ndarray]) -> Int[np.ndarray, "n 2"]:
    """Padded tokens of each row's prompt and solution."""
    lengths = columns["prompt_lengths"], columns["solution_segment_ids"].sum(1)
    return _wide(np.stack(lengths, 1))


def _cut(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows, without the columns that are padding in all of them."""
    some = {name: column[rows] for name, column in columns.items()}
    source, length = _widths(some).max(0)
    widths = dict.fromkeys(some, length) | {"prompt_tokens": source}
    return {
        name: column[:, : widths[name]] if column.ndim > 1 else column
        for name, column in some.items()
    }


class _OfProblem(Protocol):
    @property
    def problem_id(self) -> str: ...


Of = TypeVar("Of", bound=_OfProblem)


def hold_out(examples: Sequence[Of], share: float, seed: int) -> tuple[list[Of], list[Of]]:
    """Return the examples of most questions, and those of a share of the questions.

    Which they are depends on the questions' ids and the seed; at least one is held out.

    Raises:
        UserError: there are fewer than two questions.
    """
    ids = {example.problem_id for example in examples}
    if len(ids) < 2:
        raise UserError("solutions of two questions or more", str(len(ids)), "roll out more")
    order = seeds.shuffled(ids, seed)
    out = set(order[: max(round(share * len(order)), 1)])
    kept = [example for example in examples if example.problem_id not in out]
    return kept, [example for example in examples if example.problem_id in out]


class ByLength:
    """Rows in a new order each epoch, rows of like length together; see `ports.Batches`.

    Epochs follow each other without a gap. The rows of WINDOW batches at a time are sorted by
    length and cut into batches, which change places; columns that are padding in all rows of a
    batch are cut off. The first batch of all is the widest of its window, since a trainer judges
    by that one whether a step has room.

    Args:
        columns: as of `columns`.
        batch_size: rows of a batch.
        seed: of the orders.
        right_per_wrong: most solutions that end right which an epoch takes for each that ends
            wrong, others each epoch; they weigh as many times more, so that the expected loss
            stays what it is. None takes all.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int = 0,
        right_per_wrong: float | None = None,
    ) -> None:
        ends = columns["solution_segment_ids"].sum(1) - 1
        self._right = columns["score_labels"][np.arange(len(ends)), ends] == 1
        right, wrong = int(self._right.sum()), int((~self._right).sum())
        most = math.ceil(right_per_wrong * wrong) if right_per_wrong and wrong else right
        self._taken = min(most, right)
        weight = np.where(self._right, right / max(self._taken, 1), 1).astype(np.float32)
        weights = columns["score_weights"] * weight[:, None]
        self._columns, self._widths = {**columns, "score_weights": weights}, _widths(columns)
        self.size, self.batch_size, self.seed = wrong + self._taken, batch_size, seed
        self._sorted = -1, np.zeros((0, 0), int)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the arrays of step `step`; leading axis batch."""
        number, place = divmod(step, WINDOW)
        if self._sorted[0] != number:
            self._sorted = number, self._window(number)
        return _cut(self._columns, self._sorted[1][place])

    def _window(self, number: int) -> np.ndarray:
        """The rows of each batch of a window."""
        size = WINDOW * self.batch_size
        places = np.arange(number * size, (number + 1) * size)
        rows = epoch_rows(places, self.size, self._order)
        batches = rows[np.lexsort(self._widths[rows].T)].reshape(WINDOW, self.batch_size)
        batches = np.random.default_rng((self.seed, number)).permutation(batches)
        if number == 0:
            widest = self._widths[batches].max(1).prod(1).argmax()
            batches[[0, widest]] = batches[[widest, 0]]
        return batches

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        right = rng.permutation(np.flatnonzero(self._right))[: self._taken]
        return rng.permutation(np.concatenate([np.flatnonzero(~self._right), right]))


# --- Training ----------------------------------------------------------------------------------


def mean_loss(model: ScoringModel, params: PyTree, columns: Mapping[str, np.ndarray]) -> float:
    """Return the mean loss over all rows, in nats a step."""
    order = np.lexsort(_widths(columns).T)
    nats = weight = 0.0
    for first in range(0, len(order), LOSS_ROWS):
        some = _cut(columns, order[first : first + LOSS_ROWS])
        of_batch = _pair(model, params, {name: _padded(x) for name, x in some.items()})
        nats, weight = nats + float(of_batch[0]), weight + float(of_batch[1])
    return nats / weight


def _padded(rows: np.ndarray) -> np.ndarray:
    """LOSS_ROWS rows; those beyond the given ones are 0, and so are their weights."""
    return np.pad(rows, [(0, LOSS_ROWS - len(rows)), *[(0, 0)] * (rows.ndim - 1)])


@functools.partial(jax.jit, static_argnames="model")
def _pair(model: ScoringModel, params: PyTree, batch: Mapping[str, Array]) -> Pair:
    return SoftBinary()(model.logits(params, batch), batch)


def best_step(losses: Mapping[int, float]) -> int:
    """Return the step with the lowest loss on the questions held out, the first of equals."""
    return min(sorted(losses), key=lambda step: losses[step])


# --- The stage ---------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    student: str,
    kind: str = PROCESS,
    steps: int,
    save_every: int,
    batch_size: int = 128,
    reader: Reader | None = None,
    optimizer: Optimizer = PAPER_OPTIMIZER,
    dropout_rate: float = 0.05,
    share: float = 0.1,
    right_per_wrong: float | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Train a verifier on the train split's roll-outs, and report it on the validation split's.

    Early stopping is by choice: of the checkpoints, the one with the lowest loss on the questions
    held out becomes the verifier in RUN_DIR/verifier/KIND/model. How it is calibrated on the
    validation split's solutions, and how its votes do, goes to RUN_DIR/reports/verifier-KIND.json,
    .md and .png, where that split was rolled out.

    Args:
        run_dir: the run directory; its stage `rollouts` is complete.
        student: directory of the generator, whose weights the verifier is initialised from.
        kind: `process` or `outcome`.
        steps: optimizer steps.
        save_every: steps between checkpoints, at which the held-out loss is computed.
        batch_size: solutions of a step.
        reader: layers that learn in the network's place; for a student of few layers.
        optimizer: AdamW at 3e-5 with betas (0.9, 0.95) by default, as the paper's.
        dropout_rate: of what learns.
        share: of the train questions, held out.
        right_per_wrong: most solutions that end right for each that ends wrong; see `ByLength`.
        seed: of the order, of dropout, of what is held out and of the bootstrap.
        resamples: of the bootstrap over questions.

    Raises:
        UserError: `rollouts` is not complete, the student is damaged, there is no such kind,
            `right_per_wrong` is not positive, or too few questions have a solution with an answer.
    """
    if kind not in (PROCESS, OUTCOME):
        raise UserError(f"a kind of {PROCESS}, {OUTCOME}", kind, "name one of them")
    if right_per_wrong is not None and right_per_wrong <= 0:
        raise UserError("right_per_wrong above 0", str(right_per_wrong), "raise it, or use None")
    training = Training(
        student=student,
        kind=kind,
        steps=steps,
        save_every=save_every,
        batch_size=batch_size,
        optimizer=optimizer,
        dropout_rate=dropout_rate,
        share=share,
        seed=seed,
        reader=reader,
    )
    settings = {**vars(training), "right_per_wrong": right_per_wrong, "resamples": resamples}
    require_no_decay(reader, optimizer)
    run_dir = Path(run_dir)
    with Stage.open(
        run_dir,
        f"verifier-{kind}",
        settings=settings,
        inputs=["rollouts"],
        reads=[student],
        outputs=OUTPUTS[kind],
    ) as stage:
        if not stage.complete:
            directory = run_dir / "verifier" / kind
            examples = rollouts.examples(run_dir, "train")
            fitted = train(examples, directory, training, right_per_wrong=right_per_wrong)
            scorer = scoring.load(directory / "model")
            report = verifier_report.report(run_dir, scorer, Bootstrap(resamples, seed))
            verifier_report.write(run_dir / "reports", f"verifier-{kind}", {**fitted, **report})
            stage.finish(
                step=fitted["step"], **fitted["training"], **verifier_report.headline(report)
            )
        return stage.summary


def require_no_decay(reader: Reader | None, optimizer: Optimizer) -> None:
    """Refuse an optimizer that would change the network that a reader reads.

    Raises:
        UserError: the optimizer decays weights.
    """
    decay = getattr(optimizer, "weight_decay", 0.0)
    if reader and decay:
        raise UserError("no weight decay beside a reader", str(decay), "set weight_decay to 0")


@dataclasses.dataclass(frozen=True)
class Training:
    """The arguments of `run` and `chains.verifier` that decide what is learnt."""

    student: str
    kind: str
    steps: int
    save_every: int
    batch_size: int
    optimizer: Optimizer
    dropout_rate: float
    share: float
    seed: int
    reader: Reader | None


def train(
    examples: Sequence[Labelled],
    directory: Path,
    training: Training,
    *,
    right_per_wrong: float | None = None,
) -> dict[str, Any]:
    """Train, choose a checkpoint and write the verifier to DIRECTORY/model.

    Args:
        examples: labelled solutions.
        directory: receives the checkpoints too.
        training: the arguments.
        right_per_wrong: see `ByLength`.

    Returns:
        The checkpoint's step, the held-out losses, both parts' sizes, and the counts of `fit`.
    """
    network, params, vocabulary = weights.load(paths.find(training.student, "a student"))
    tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    some = readable(examples, network, tokenizer)
    kept, out = hold_out(some, training.share, training.seed)
    model = ScoringModel(network, training.reader)
    start = model.with_head(params, jax.random.key(training.seed))
    of_kept, of_out = (columns(some, model, tokenizer, training.kind) for some in (kept, out))
    _, fit_counts = fit(
        model.with_dropout(training.dropout_rate),
        start,
        ByLength(
            of_kept,
            training.batch_size,
            training.seed,
            right_per_wrong,
        ),
        SoftBinary(),
        directory=directory / "checkpoints",
        optimizer=training.optimizer,
        course=Course(training.steps, training.save_every),
        seed=training.seed,
        tensorboard=False,
    )
    losses, params = _select(directory / "checkpoints", model, start, of_out)
    about = {"kind": training.kind, "step": best_step(losses), "losses": losses}
    scoring.save(directory / "model", model, params, vocabulary, about)
    long = {"too_long": len(examples) - len(some)} if len(examples) > len(some) else {}
    return {**about, "train": _sizes(kept), "held_out": _sizes(out), **long, "training": fit_counts}


def _select(
    directory: Path, model: ScoringModel, like: PyTree, columns: Mapping[str, np.ndarray]
) -> tuple[dict[int, float], PyTree]:
    """Return the held-out loss of every checkpoint, and the parameters of the best."""
    losses = {
        step: mean_loss(model, checkpoints.load_params(directory, step, like=like), columns)
        for step in checkpoints.steps(directory)
    }
    return losses, checkpoints.load_params(directory, best_step(losses), like=like)


def _sizes(examples: Sequence[Labelled]) -> dict[str, int]:
    return {
        "questions": len({example.problem_id for example in examples}),
        "solutions": sum(example.count for example in examples),
        "different": len(examples),
    }
