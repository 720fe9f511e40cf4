"""The one trainer, for the student and the built-in starts; it knows no files and no tokenizer."""

import contextlib
import dataclasses
import logging
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from distill.core.errors import UserError
from distill.core.ports import Batches
from distill.core.records import PackedExample
from distill.core.store import Shards, Stage
from distill.models import partitioning, weights
from distill.models.partitioning import batch_sharding, param_shardings
from distill.training import initialise, metrics
from distill.training.checkpoints import Checkpoints
from distill.training.feed import PackedBatches, ahead, in_order
from distill.training.losses import DistributionMatching, Loss
from distill.training.metrics import Metrics, Record
from distill.training.optimizers import AdamW, Constant, Optimizer
from distill.training.step import Key, Model, State, compiled

logger = logging.getLogger(__name__)

# Fu et al. 2023, section 4 and the public code.
PAPER_LOSS = DistributionMatching()
PAPER_OPTIMIZER = AdamW(schedule=Constant(5e-4, warmup=10))


@dataclasses.dataclass(frozen=True)
class Course:
    """How long a run is and how it is cut; only `steps` and `microbatches` touch the result.

    Attributes:
        steps: optimizer steps in all.
        save_every: steps between checkpoints; step 0 and the last are saved besides.
        log_every: steps between fetches of the figures, the only times the host waits.
        microbatches: parts of a batch whose gradients are summed, to save memory.
        steps_per_call: optimizer steps compiled into one call, to save dispatches.
        workers: processes that make batches; 0 makes them in a thread.
    """

    steps: int
    save_every: int
    log_every: int = 10
    microbatches: int = 1
    steps_per_call: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        least = {name: 0 if name == "workers" else 1 for name in dataclasses.asdict(self)}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} >= {bound}, got {getattr(self, name)}")

    def calls(self, start: int) -> Iterator[range]:
        """Yield the steps of each call from `start` on.

        Calls begin at multiples of `steps_per_call` and end at checkpoints; what does not fill one
        is taken in single steps, so a resumed run computes what an undisturbed one does.
        """
        step = start
        while step < self.steps:
            border = min(self.steps, (step // self.save_every + 1) * self.save_every)
            whole = step % self.steps_per_call == 0 and step + self.steps_per_call <= border
            stop = step + (self.steps_per_call if whole else 1)
            yield range(step, stop)
            step = stop

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows the step that makes `step` finished ones."""
        return step % self.save_every == 0 or step == self.steps


def train(
    model: Model,
    params: PyTree,
    batches: Batches,
    loss: Loss,
    *,
    optimizer: Optimizer,
    course: Course,
    key: Key,
    checkpoints: Checkpoints,
    sinks: Sequence[Metrics] = (),
    mesh: Mesh | None = None,
) -> PyTree:
    """Train from `params`, or from the newest checkpoint there is, to the end of the course.

    The loss of a step is sum over count of the whole global batch, over all devices and
    microbatches. Dropout's randomness is folded from `key` and the step, batches are addressed by
    step, so a run that is killed and started again computes what an undisturbed one does, bit for
    bit on CPU.

    Args:
        model: gives logits for a batch.
        params: the start; copied, so the caller may keep it.
        batches: the input; picklable where the course has workers.
        loss: (sum of nats, sum of weights) of logits and a batch.
        optimizer: with its schedule.
        course: length, checkpoints and cuts.
        key: of dropout.
        checkpoints: the start is saved as step 0.
        sinks: of one line a step; they forget lines after the resumed step.
        mesh: of `partitioning.mesh`; without it all devices share the batch.

    Returns:
        The parameters after the last step.

    Raises:
        UserError: the loss or the gradient is not finite (no checkpoint is made of that), or the
            batch cannot be divided.
        SystemExit: with code 0, after SIGTERM; the finished steps are saved.
    """
    mesh = mesh or partitioning.mesh()
    mesh = Mesh(mesh.devices, mesh.axis_names)  # axes whose layouts the compiler carries through
    state = _start(model, params, optimizer, mesh, checkpoints)
    start = int(state.step)
    for sink in sinks:
        sink.resume(start)
    advance = compiled(model, loss, optimizer, course.microbatches, state)
    record = Record(sinks)
    place = _placement(mesh, course.microbatches)
    stacks = _placed(in_order(batches, course.calls(start), workers=course.workers), place)
    with _termination() as terminated, contextlib.closing(ahead(stacks)) as feed:
        for steps, stack in zip(course.calls(start), feed, strict=True):
            state, figures = advance(state, stack, key)
            record.add(steps, figures)
            saves = course.saves(steps.stop) or terminated.is_set()
            if saves or steps.stop // course.log_every > steps.start // course.log_every:
                record.flush()
            if saves:
                checkpoints.save(steps.stop, state.params, state.optimizer)
            if terminated.is_set():
                _end(checkpoints, sinks)
                logger.info("terminated: step %d is saved", steps.stop)
                raise SystemExit(0)
    _end(checkpoints, sinks)
    return state.params


def _end(checkpoints: Checkpoints, sinks: Sequence[Metrics]) -> None:
    checkpoints.wait()
    for sink in sinks:
        sink.close()


# --- State -------------------------------------------------------------------------------------


def _start(
    model: Model, params: PyTree, optimizer: Optimizer, mesh: Mesh, checkpoints: Checkpoints
) -> State:
    """The newest checkpoint's state, or the given start, saved as step 0."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    of_params = param_shardings(mesh, params, model.logical_axes(params))
    transformation = optimizer.transformation()
    of_optimizer = optax.tree.map_params(
        transformation,
        # Adafactor's factors have other shapes than their parameter and are small: everywhere.
        lambda leaf, sharding, param: sharding if leaf.shape == param.shape else everywhere,
        jax.eval_shape(transformation.init, params),
        of_params,
        params,
        transform_non_params=lambda _: everywhere,
    )

    def begin(start: PyTree) -> tuple[PyTree, PyTree]:
        copy = jax.tree.map(jnp.copy, start)  # steps take over their buffers, never the caller's
        return copy, transformation.init(copy)

    placed = jax.device_put(params, of_params)
    fresh, inner = jax.jit(begin, out_shardings=(of_params, of_optimizer))(placed)
    found = checkpoints.restore(fresh, inner)
    if found is None:
        checkpoints.save(0, fresh, inner)
        checkpoints.wait()
        found = 0, fresh, inner
    elif found[0]:
        logger.info("train: goes on from step %d", found[0])
    step, fresh, inner = found
    return State(fresh, inner, jax.device_put(jnp.int32(step), everywhere))


def _placement(mesh: Mesh, microbatches: int) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Puts a stack [steps, batch, ...] on the devices, each with its rows."""
    (axes,) = batch_sharding(mesh).spec
    parts = math.prod(mesh.shape[axis] for axis in axes) * microbatches
    rows = NamedSharding(mesh, PartitionSpec(None, axes))

    def place(stack: Mapping[str, np.ndarray]) -> Any:
        batch = next(iter(stack.values())).shape[1]
        if batch % parts:
            raise UserError(
                f"a batch that {parts} divides (devices times microbatches)",
                f"{batch} rows",
                "change batch_size or microbatches",
            )
        return jax.device_put(dict(stack), rows)

    return place


def _placed(stacks: Generator[Mapping[str, np.ndarray]], place: Callable) -> Generator[Any]:
    with contextlib.closing(stacks):
        for stack in stacks:
            yield place(stack)


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; outside the main thread nobody may ask for signals."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


# --- The stage ---------------------------------------------------------------------------------


def fit(
    model: Model,
    params: PyTree,
    batches: Batches,
    loss: Loss,
    *,
    directory: Path,
    optimizer: Optimizer,
    course: Course,
    seed: int = 0,
    keep_last: int | None = None,
    keep_every: int | None = None,
    tensorboard: bool = True,
) -> tuple[PyTree, dict[str, Any]]:
    """Train in a directory of one's own: checkpoints, metrics.jsonl and TensorBoard events.

    Returns:
        The parameters after the last step, and the counts that a stage reports: steps, tokens (sum
        of loss weights), first and last loss (nats per token, mean over a tenth of the steps).
    """
    lines = metrics.JsonLines(directory / "metrics.jsonl")
    sinks: list[metrics.Metrics] = [lines, metrics.Progress("train", course.steps)]
    if tensorboard:
        sinks += metrics.tensorboard(directory)
    with Checkpoints(directory, keep_last=keep_last, keep_every=keep_every) as checkpoints:
        params = train(
            model,
            params,
            batches,
            loss,
            optimizer=optimizer,
            course=course,
            key=jax.random.key(seed),
            checkpoints=checkpoints,
            sinks=sinks,
        )
    return params, _summary(metrics.read_lines(lines.path))


def _summary(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    tenth = max(len(lines) // 10, 1)
    return {
        "steps": len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "loss_first": _mean_loss(lines[:tenth]),
        "loss_last": _mean_loss(lines[-tenth:]),
    }


def _mean_loss(lines: Sequence[Mapping[str, float]]) -> float:
    nats = sum(line["loss"] * line["tokens"] for line in lines)
    return nats / sum(line["tokens"] for line in lines)


def run(
    *,
    run_dir: Path,
    steps: int,
    save_every: int,
    student: str | None = None,
    batch_size: int = 32,
    loss: Loss = PAPER_LOSS,
    optimizer: Optimizer = PAPER_OPTIMIZER,
    seed: int = 0,
    microbatches: int = 1,
    steps_per_call: int = 1,
    log_every: int = 10,
    workers: int = 0,
    keep_last: int | None = None,
    keep_every: int | None = None,
    tensorboard: bool = True,
) -> dict[str, Any]:
    """Train the student on RUN_DIR/dataset and keep checkpoints in RUN_DIR/checkpoints.

    Args:
        run_dir: the run; its stage `dataset` is complete.
        steps: optimizer steps in all.
        save_every: steps between checkpoints; the start is step 0.
        student: directory of the start, as `distill.models.weights.save` writes it; what stage
            `initialise` left in the run if None.
        batch_size: packed rows of an optimizer step, over all devices.
        loss: distribution matching by default; see `distill.training.losses`.
        optimizer: AdamW at 5e-4 by default, as Fu et al. 2023.
        seed: of the order of rows and of dropout.
        microbatches: parts of a batch whose gradients are summed, to save memory.
        steps_per_call: optimizer steps compiled into one call, to save dispatches.
        log_every: steps between fetches of the figures.
        workers: processes that make batches; 0 makes them in a thread.
        keep_last: checkpoints kept, the newest; all where None.
        keep_every: besides, keep the steps that this divides.
        tensorboard: write event files too, where TensorFlow and tensorboard are installed.

    Returns:
        `steps`, `tokens`, `loss_first` and `loss_last`, as `fit` says.

    Raises:
        UserError: `dataset` is not complete or of another vocabulary, the start is damaged, the
            batch cannot be divided, or the loss is not finite.
        SystemExit: with code 0, after SIGTERM; the same command goes on.
    """
    course = Course(steps, save_every, log_every, microbatches, steps_per_call, workers)
    settings = {"student": student, "steps": steps, "save_every": save_every, "seed": seed}
    settings |= {"batch_size": batch_size, "microbatches": microbatches}
    settings |= {"loss": loss, "optimizer": optimizer}
    inputs = ["dataset"] if student else ["initialise", "dataset"]
    with Stage.open(run_dir, "train", settings=settings, inputs=inputs) as stage:
        if stage.complete:
            return stage.summary
        model, params, _ = weights.load(initialise.directory(run_dir, student))
        rows = Shards(Path(run_dir) / "dataset", PackedExample)
        batches = PackedBatches(rows, batch_size, seed)
        _refuse_other_vocabulary(batches.largest_id, model.config.vocab_size)
        _, summary = fit(
            model,
            params,
            batches,
            loss,
            directory=Path(run_dir) / "checkpoints",
            optimizer=optimizer,
            course=course,
            seed=seed,
            keep_last=keep_last,
            keep_every=keep_every,
            tensorboard=tensorboard,
        )
        stage.finish(**summary)
        return stage.summary


def _refuse_other_vocabulary(largest: int, vocab_size: int) -> None:
    if largest >= vocab_size:
        raise UserError(
            f"ids below the student's {vocab_size} rows",
            f"{largest} in the dataset",
            "align and build the dataset with the student's own vocabulary",
        )
