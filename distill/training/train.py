"""The one trainer, for the student and the built-in starts; it knows no files and no tokenizer."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from distill.core.errors import UserError
from distill.core.ports import Batches
from distill.training.checkpoints import Checkpoints
from distill.training.feed import ahead, in_order
from distill.training.losses import Loss
from distill.training.metrics import Figures, Metrics, Record
from distill.training.optimizers import Optimizer

logger = logging.getLogger(__name__)
Key = Any


@runtime_checkable
class Model(Protocol):
    """What the trainer asks of a model."""

    def logits(
        self, params: PyTree, batch: Mapping[str, Array], *, dropout_key: Key | None = None
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits before softmax; without a key nothing is dropped."""
        ...


class State(NamedTuple):
    """What a step changes; donated to it."""

    params: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


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
    metrics: Sequence[Metrics] = (),
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
        metrics: sinks of one line a step; they forget lines after the resumed step.
        mesh: devices whose first axis divides the batch; all local ones without it.

    Returns:
        The parameters after the last step.

    Raises:
        UserError: the loss or the gradient is not finite (no checkpoint is made of that), or the
            batch cannot be divided.
        SystemExit: with code 0, after SIGTERM; the finished steps are saved.
    """
    mesh = mesh or Mesh(np.array(jax.devices()), ("data",))
    state = _start(params, optimizer, mesh, checkpoints)
    start = int(state.step)
    for sink in metrics:
        sink.resume(start)
    advance = _compiled(model, loss, optimizer, course.microbatches, state)
    record = Record(metrics)
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
                _end(checkpoints, metrics)
                logger.info("terminated: step %d is saved", steps.stop)
                raise SystemExit(0)
    _end(checkpoints, metrics)
    return state.params


def _end(checkpoints: Checkpoints, metrics: Sequence[Metrics]) -> None:
    checkpoints.wait()
    for sink in metrics:
        sink.close()


# --- State -------------------------------------------------------------------------------------


def _start(params: PyTree, optimizer: Optimizer, mesh: Mesh, checkpoints: Checkpoints) -> State:
    """The newest checkpoint's state, or the given start, saved as step 0."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    init = jax.jit(
        lambda tree: (tree, optimizer.transformation().init(tree)), out_shardings=everywhere
    )
    params, optimizer_state = init(jax.device_put(params, everywhere))
    found = checkpoints.restore(params, optimizer_state)
    if found is None:
        checkpoints.save(0, params, optimizer_state)
        checkpoints.wait()
        found = 0, params, optimizer_state
    else:
        logger.info("resumed from step %d", found[0])
    step = jax.device_put(jnp.int32(found[0]), everywhere)
    return State(found[1], found[2], step)


def _placement(mesh: Mesh, microbatches: int) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Puts a stack [steps, batch, ...] on the devices, each with its rows."""
    rows = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
    parts = mesh.shape[mesh.axis_names[0]] * microbatches

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


# --- Step --------------------------------------------------------------------------------------


def _compiled(
    model: Model, loss: Loss, optimizer: Optimizer, microbatches: int, state: State
) -> Callable[[State, Any, Key], tuple[State, Figures]]:
    """A call over a stack of batches; figures come back with a leading step axis."""
    transformation = optimizer.transformation()
    gradient = _gradient(model, loss, microbatches)

    def step(state: State, batch: Mapping[str, Array], key: Key) -> tuple[State, Figures]:
        nats, weight, total = gradient(state.params, batch, jax.random.fold_in(key, state.step))
        mean = jax.tree.map(lambda leaf: leaf / weight, total)
        updates, inner = transformation.update(mean, state.optimizer, state.params)
        figures = Figures(
            nats=nats,
            weight=weight,
            tokens=_real_tokens(batch),
            gradient_norm=optax.global_norm(mean),
            learning_rate=jnp.asarray(optimizer.schedule(state.step)),
        )
        return State(optax.apply_updates(state.params, updates), inner, state.step + 1), figures

    def call(state: State, stack: Mapping[str, Array], key: Key) -> tuple[State, Figures]:
        if len(next(iter(stack.values()))) > 1:
            return jax.lax.scan(lambda state, batch: step(state, batch, key), state, stack)
        state, figures = step(state, {name: array[0] for name, array in stack.items()}, key)
        return state, jax.tree.map(lambda leaf: leaf[None], figures)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(call, donate_argnums=0, out_shardings=(shardings, None))


def _gradient(
    model: Model, loss: Loss, microbatches: int
) -> Callable[[PyTree, Mapping[str, Array], Key], tuple[Array, Array, PyTree]]:
    """(sum of nats, sum of weights, gradient of the sum), summed over microbatches."""

    def nats(params: PyTree, batch: Mapping[str, Array], key: Key) -> tuple[Array, Array]:
        return loss(model.logits(params, batch, dropout_key=key), batch)

    def whole(params: PyTree, batch: Mapping[str, Array], key: Key) -> tuple[Array, Array, PyTree]:
        (total, weight), gradient = jax.value_and_grad(nats, has_aux=True)(params, batch, key)
        return total, weight, gradient

    def parts(params: PyTree, batch: Mapping[str, Array], key: Key) -> tuple[Array, Array, PyTree]:
        def add(sums: Any, part: Any) -> tuple[Any, None]:
            number, rows = part
            found = whole(params, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, sums, found), None

        zeros = jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        split = {name: _split(array, microbatches) for name, array in batch.items()}
        return jax.lax.scan(add, zeros, (jnp.arange(microbatches), split))[0]

    return whole if microbatches == 1 else parts


def _split(array: Array, parts: int) -> Array:
    """[batch, ...] -> [parts, batch / parts, ...]; every part takes rows of every device."""
    return jnp.swapaxes(array.reshape(-1, parts, *array.shape[1:]), 0, 1)


def _real_tokens(batch: Mapping[str, Array]) -> Int[Array, ""]:
    towers = [batch[name] for name in batch if name.endswith("_segment_ids")]
    return sum((jnp.sum(ids > 0) for ids in towers), start=jnp.int32(0))


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
