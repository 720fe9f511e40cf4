"""Train a model that revises: it reads wrong attempts with the question and writes a right one.

    encoder input    Q: {question} / Let's think step by step / A: {attempt} / A: {attempt}
    decoder target   {right solution}

For each right solution a number of attempts from 0 to 4 is drawn; they are wrong solutions of the
same question, the last of them the one nearest to the right solution by edit distance, the others
random. Training continues a little beyond the lowest loss on questions held out.

Source: Snell et al. 2024, arXiv 2408.03314, section 6.1 and appendix H.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from distill.core import paths
from distill.core.errors import UserError
from distill.core.records import Trace, Verdict
from distill.core.store import Stage
from distill.models import weights
from distill.models.sampling import Tokenizer
from distill.models.saved import open_vocabulary
from distill.test_time import rollouts
from distill.test_time.verifier import best_step, hold_out
from distill.training import checkpoints
from distill.training.losses import Pair, SampleMatching
from distill.training.optimizers import AdamW, Constant, Optimizer
from distill.training.packing import Example, pack
from distill.training.train import Course, fit

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("revisions", "reviser")
MOST_ATTEMPTS = 4
PAPER_OPTIMIZER = AdamW(schedule=Constant(1e-5), weight_decay=0.0)
LOSS_BATCHES = 8  # of the questions held out


# --- Examples ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Revision:
    """A right solution with the attempts that go before it.

    Attributes:
        problem_id: the question's.
        prompt: the question's prompt without attempts.
        attempts: wrong solutions, the nearest to the right one last.
        solution: the right one.
    """

    problem_id: str
    prompt: str
    attempts: tuple[str, ...]
    solution: str


def revision_prompt(prompt: str, attempts: Sequence[str]) -> str:
    r"""Return a question's prompt with the last four attempts; without any it is the prompt.

    Example:
        >>> revision_prompt("Q: What is 2 + 2?", ["It is 5.", "It is 3."])
        'Q: What is 2 + 2?\nA: It is 5.\nA: It is 3.'
    """
    return prompt + "".join(f"\nA: {text}" for text in attempts[-MOST_ATTEMPTS:])


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance, a column of its table at a time as the bits of a number.

    Example:
        >>> edit_distance("12 apples", "2 apple"), edit_distance("", "abc")
        (2, 3)

    Source: Myers 1999, in the form of Hyyrö 2003.
    """
    if not a:
        return len(b)
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    rises, falls, distance = full, 0, len(a)  # of each cell above its upper neighbour
    for letter in b:
        match = places.get(letter, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises = falls | ~(diagonal | rises) & full
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises, right_falls = right_rises << 1 | 1, right_falls << 1
        rises = (right_falls | ~(diagonal | right_rises)) & full
        falls = right_rises & diagonal & full
    return distance


def revisions(
    solutions: Sequence[tuple[Trace, Verdict]], *, most: int = MOST_ATTEMPTS, seed: int = 0
) -> Iterator[Revision]:
    """Yield each different right solution with attempts drawn for it.

    A question with fewer wrong solutions than were drawn gives all it has. What is drawn depends on
    the question's solutions and the seed, not on other questions.

    Args:
        solutions: with their verdicts; those without an answer are dropped.
        most: attempts drawn, from 0.
        seed: of the draws.
    """
    right: dict[tuple[str, str], dict[str, None]] = {}
    wrong: dict[tuple[str, str], dict[str, None]] = {}
    for trace, verdict in solutions:
        if verdict.outcome in rollouts.ANSWERED:
            of = right if verdict.outcome == "right" else wrong
            of.setdefault((trace.problem_id, trace.prompt), {})[trace.text] = None
    for key, texts in right.items():
        drawn = random.Random(f"{seed}\0{key[0]}")
        for text in texts:
            count = drawn.randint(0, most)
            yield Revision(*key, _attempts(text, list(wrong.get(key, ())), count, drawn), text)


def _attempts(text: str, wrong: list[str], count: int, drawn: random.Random) -> tuple[str, ...]:
    """Return `count` wrong solutions in random order, but the nearest to `text` last."""
    if not wrong or not count:
        return ()
    nearest = min(wrong, key=lambda other: (edit_distance(text, other), other))
    others = [other for other in wrong if other != nearest]
    return (*drawn.sample(others, min(count - 1, len(others))), nearest)


@dataclasses.dataclass(frozen=True)
class RevisionBatches:
    """Revisions drawn anew at every step, packed; see `ports.Batches`.

    Attributes:
        examples: at least one.
        tokenizer: of the model that learns.
        batch_size: rows.
        source_length: tokens of an encoder row; an example that is longer loses its first attempts.
        length: tokens of a decoder row; an example that is longer is left out.
        seed: of the draws.
    """

    examples: Sequence[Revision] = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch_size: int
    source_length: int
    length: int
    seed: int = 0

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of step `step`; leading axis batch."""
        return pack(self._drawn(step), self.batch_size, self.length, self.source_length)

    def _drawn(self, step: int) -> Iterator[Example]:
        rng = np.random.default_rng((self.seed, step))
        while True:
            yield self._example(self.examples[int(rng.integers(len(self.examples)))])

    def _example(self, revision: Revision) -> Example:
        eos = self.tokenizer.eos_id
        target = [*self.tokenizer.encode(revision.solution), eos]
        for first in range(len(revision.attempts) + 1):
            text = revision_prompt(revision.prompt, revision.attempts[first:])
            source = [*self.tokenizer.encode(text), eos]
            if len(source) <= self.source_length:
                break
        return Example(source, target, [1.0] * len(target))


# --- Training ----------------------------------------------------------------------------------


def late_step(losses: Mapping[int, float], later: int = 1) -> int:
    """Return the checkpoint that is `later` checkpoints beyond the lowest loss, or the last.

    The loss on questions held out starts to rise before revising is learnt: it is of solutions that
    another model drew.

    Example:
        >>> late_step({0: 3.0, 100: 2.0, 200: 2.1, 300: 2.4})
        200
    """
    steps = sorted(losses)
    return steps[min(steps.index(best_step(losses)) + later, len(steps) - 1)]


@functools.partial(jax.jit, static_argnames="model")
def _pair(model: Any, params: PyTree, batch: Mapping[str, Array]) -> Pair:
    return SampleMatching()(model.logits(params, batch), batch)


def mean_loss(model: Any, params: PyTree, batches: RevisionBatches) -> float:
    """Return the mean loss over LOSS_BATCHES batches, in nats a token."""
    pairs = [_pair(model, params, batches.batch(step)) for step in range(LOSS_BATCHES)]
    return sum(float(nats) for nats, _ in pairs) / sum(float(weight) for _, weight in pairs)


# --- The stage ---------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    student: str,
    steps: int,
    save_every: int,
    batch_size: int = 16,
    source_length: int = 512,
    length: int = 192,
    optimizer: Optimizer = PAPER_OPTIMIZER,
    share: float = 0.1,
    later: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a reviser on the train split's solutions; resume where an earlier run stopped.

    The model goes to RUN_DIR/reviser, where `weights.load` and `saved.SavedModel` find it.

    Args:
        run_dir: the run directory; its stage `rollouts` is complete.
        student: directory of the generator, whose weights the reviser is initialised from.
        steps: optimizer steps.
        save_every: steps between checkpoints, at which the held-out loss is computed.
        batch_size: rows of packed examples.
        source_length: tokens of an encoder row.
        length: tokens of a decoder row.
        optimizer: AdamW at 1e-5 by default, as the paper's; nothing is dropped out.
        share: of the questions, held out.
        later: checkpoints beyond the one with the lowest held-out loss.
        seed: of all draws.

    Raises:
        UserError: `rollouts` is not complete, the student is damaged, or too few questions have a
            right solution.
    """
    training = Training(
        student=student,
        steps=steps,
        save_every=save_every,
        batch_size=batch_size,
        source_length=source_length,
        length=length,
        optimizer=optimizer,
        share=share,
        later=later,
        seed=seed,
    )
    run_dir = Path(run_dir)
    with Stage.open(
        run_dir,
        "revisions",
        settings={**vars(training)},
        inputs=["rollouts"],
        reads=[student],
        outputs=OUTPUTS,
    ) as stage:
        if not stage.complete:
            examples = list(revisions(rollouts.solutions(run_dir, "train"), seed=seed))
            if not examples:
                raise UserError("a right solution", "none", "roll out more questions")
            kept, out = hold_out(examples, share, seed)
            stage.finish(**_sizes(kept, out), **_train(run_dir, kept, out, training))
        return stage.summary


@dataclasses.dataclass(frozen=True)
class Training:
    """The arguments of `run`."""

    student: str
    steps: int
    save_every: int
    batch_size: int
    source_length: int
    length: int
    optimizer: Optimizer
    share: float
    later: int
    seed: int

    def batches(self, examples: Sequence[Revision], tokenizer: Tokenizer) -> RevisionBatches:
        """Return the batches of some examples."""
        return RevisionBatches(
            examples, tokenizer, self.batch_size, self.source_length, self.length, self.seed
        )


def _train(
    run_dir: Path, kept: Sequence[Revision], out: Sequence[Revision], training: Training
) -> dict[str, Any]:
    """Train, choose a late checkpoint and write the reviser; return its step and losses."""
    model, start, vocabulary = weights.load(paths.find(training.student, "a student"))
    tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    directory = run_dir / "revisions"
    _, fit_counts = fit(
        _without_dropout(model),
        start,
        training.batches(kept, tokenizer),
        SampleMatching(),
        directory=directory,
        optimizer=training.optimizer,
        course=Course(training.steps, training.save_every),
        seed=training.seed,
        tensorboard=False,
    )
    batches = training.batches(out, tokenizer)
    losses = {
        step: mean_loss(model, checkpoints.load_params(directory, step, like=start), batches)
        for step in checkpoints.steps(directory)
    }
    step = late_step(losses, training.later)
    params = checkpoints.load_params(directory, step, like=start)
    weights.save(
        run_dir / "reviser", model, params, vocabulary.path, extra_ids=vocabulary.extra_ids
    )
    return {
        "step": step,
        "held_out_loss": {str(n): loss for n, loss in losses.items()},
        **fit_counts,
    }


def _without_dropout(model: weights.Model) -> weights.Model:
    config = dataclasses.replace(model.config, dropout_rate=0.0)
    return dataclasses.replace(model, config=config)  # pyright: ignore[reportArgumentType]


def _sizes(kept: Sequence[Revision], out: Sequence[Revision]) -> dict[str, int]:
    by_count = {f"with_{n}_attempts": 0 for n in range(MOST_ATTEMPTS + 1)}
    for revision in kept:
        by_count[f"with_{len(revision.attempts)}_attempts"] += 1
    return {"examples": len(kept), "held_out": len(out), **by_count}
