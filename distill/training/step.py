"""One optimizer step, compiled: gradient of the whole batch, update, figures; no loop, no files."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from distill.models import partitioning
from distill.models.partitioning import RULES
from distill.training.losses import Chunked, Loss
from distill.training.metrics import Figures
from distill.training.optimizers import Optimizer

Key = Any

# XLA's CPU compiler takes the barriers that `jax.checkpoint` sets away before it looks for common
# subexpressions, and so keeps what backward shall compute anew. Left alone they do no other harm.
COMPILER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}
}


@runtime_checkable
class Model(Protocol):
    """What the trainer asks of a model."""

    def logits(
        self, params: PyTree, batch: Mapping[str, Array], *, dropout_key: Key | None = None
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits before softmax; without a key nothing is dropped."""
        ...

    def logical_axes(self, params: PyTree) -> PyTree:
        """Return the logical axis names of each parameter, for `distill.models.partitioning`."""
        ...


@runtime_checkable
class Projecting(Model, Protocol):
    """A model whose states and head are apart, so that a loss may project them in chunks."""

    def hidden(
        self, params: PyTree, batch: Mapping[str, Array], *, dropout_key: Key | None = None
    ) -> Float[Array, "batch length embed"]:
        """Return the decoder's last states."""
        ...

    def project(
        self, params: PyTree, hidden: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits of `hidden`, position by position."""
        ...


class State(NamedTuple):
    """What a step changes; donated to it."""

    params: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def compiled(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    microbatches: int,
    state: State,
    rules: Mapping[str, str | None] = RULES,
) -> Callable[[State, Any, Key], tuple[State, Figures]]:
    """A call over a stack of batches; figures come back with a leading step axis.

    Args:
        model: gives logits for a batch.
        loss: (sum of nats, sum of weights).
        optimizer: with its schedule.
        microbatches: parts of a batch whose gradients are summed.
        state: its layout, on one mesh.
        rules: logical axis to mesh axis, as of the layout.
    """
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

    mesh: Mesh = state.step.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]

    def call(state: State, stack: Mapping[str, Array], key: Key) -> tuple[State, Figures]:
        with partitioning.activations(mesh, rules):
            return steps(state, stack, key)

    def steps(state: State, stack: Mapping[str, Array], key: Key) -> tuple[State, Figures]:
        if len(next(iter(stack.values()))) > 1:
            return jax.lax.scan(lambda state, batch: step(state, batch, key), state, stack)
        state, figures = step(state, {name: array[0] for name, array in stack.items()}, key)
        return state, jax.tree.map(lambda leaf: leaf[None], figures)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    (platform,) = {device.platform for device in mesh.devices.flat}
    return jax.jit(
        call,
        donate_argnums=0,
        # Figures lie as the step counter does, on every device, so that every process reads them.
        out_shardings=(shardings, shardings.step),
        compiler_options=dict(COMPILER_OPTIONS.get(platform, {})),
    )


def _gradient(
    model: Model, loss: Loss, microbatches: int
) -> Callable[[PyTree, Mapping[str, Array], Key], tuple[Array, Array, PyTree]]:
    """(sum of nats, sum of weights, gradient of the sum), summed over microbatches."""

    def nats(params: PyTree, batch: Mapping[str, Array], key: Key) -> tuple[Array, Array]:
        if isinstance(loss, Chunked) and isinstance(model, Projecting):
            states = model.hidden(params, batch, dropout_key=key)
            return loss.of_states(functools.partial(model.project, params), states, batch)
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
