"""The layout of a run's state and batches on its mesh, and whether a step fits in its memory."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from distill.core.errors import UserError
from distill.core.ports import Batches
from distill.models import accelerators
from distill.models.partitioning import RULES, batch_sharding, param_shardings
from distill.models.tensors import Tensor
from distill.training.optimizers import Optimizer
from distill.training.step import Model, State

GIGABYTE = 1e9
Layout = Mapping[str, jax.ShapeDtypeStruct]


# --- State -------------------------------------------------------------------------------------


def state_layout(
    model: Model,
    params: PyTree,
    optimizer: Optimizer,
    mesh: Mesh,
    rules: Mapping[str, str | None] = RULES,
) -> State:
    """Return shape, type and place of each array of the state; nothing is computed.

    Args:
        model: names the logical axes.
        params: arrays, tensors on disk, or their shapes.
        optimizer: its state is placed with its parameters.
        mesh: of `partitioning.mesh`.
        rules: logical axis to mesh axis.

    Raises:
        UserError: an axis of a parameter is not divisible by its mesh axis.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    of_params = param_shardings(mesh, params, model.logical_axes(params), rules)
    transformation = optimizer.transformation()
    inner = jax.eval_shape(transformation.init, params)
    of_inner = optax.tree.map_params(
        transformation,
        # Adafactor's factors have other shapes than their parameter and are small: everywhere.
        lambda leaf, sharding, param: sharding if leaf.shape == param.shape else everywhere,
        inner,
        of_params,
        params,
        transform_non_params=lambda _: everywhere,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return State(_with_shardings(params, of_params), _with_shardings(inner, of_inner), step)  # type: ignore[arg-type]


def _with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def initial_state(params: PyTree, layout: State, optimizer: Optimizer) -> State:
    """Return the state before the first step; the caller's parameters are copied.

    Tensors on disk are read one at a time, so a start may be larger than the host's memory.
    """

    def start(params: PyTree) -> State:
        copy = jax.tree.map(jnp.copy, params)  # steps donate their buffers, never the caller's
        return State(copy, optimizer.transformation().init(copy), jnp.int32(0))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    return jax.jit(start, out_shardings=shardings)(spread(params, layout.params))


def spread(tree: PyTree, layout: PyTree) -> PyTree:
    """Return the arrays of a tree, which every process has or can read whole, in a layout."""

    def placed(leaf: Any, place: jax.ShapeDtypeStruct) -> jax.Array:
        whole = leaf.read() if isinstance(leaf, Tensor) else np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, place.sharding, lambda at: whole[at])

    return jax.tree.map(placed, tree, layout)


def bytes_per_device(tree: PyTree) -> int:
    """Return the bytes of a layout on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


# --- Batches -----------------------------------------------------------------------------------


@runtime_checkable
class ByRow(Protocol):
    """Batches that give some rows of a step without making the others."""

    def batch_rows(self, step: int, rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return those rows of the arrays of a step."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """The rows of each batch that the devices of this process need."""

    batches: Batches
    places: np.ndarray

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """Return this process' rows of a step, in the order of the whole batch."""
        if isinstance(self.batches, ByRow):
            return self.batches.batch_rows(step, self.places)
        return {name: array[self.places] for name, array in self.batches.batch(step).items()}


def batch_layout(batch: Mapping[str, np.ndarray], mesh: Mesh, microbatches: int = 1) -> Layout:
    """Return shape, type and place of each array of a whole batch.

    Args:
        batch: one of the run's, all of its rows.
        mesh: of `partitioning.mesh`.
        microbatches: parts of a batch.

    Raises:
        UserError: its rows cannot be divided.
    """
    sharding = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in sharding.spec[0]) * microbatches
    size = len(next(iter(batch.values())))
    if size % parts:
        raise UserError(
            f"a batch that {parts} divides (devices that share its rows times microbatches)",
            f"{size} rows",
            "change batch_size, microbatches or the mesh",
        )
    return {
        name: jax.ShapeDtypeStruct(
            array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=sharding
        )
        for name, array in batch.items()
    }


def stacked(layout: Layout, steps: int) -> Layout:
    """Return the layout of as many batches in one stack [steps, batch, ...]."""
    return {
        name: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype, sharding=_under_steps(leaf))
        for name, leaf in layout.items()
    }


def _under_steps(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    sharding = leaf.sharding
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def share(batches: Batches, layout: Layout) -> Batches:
    """Return the batches that this process feeds its devices with."""
    leaf = next(iter(layout.values()))
    size = len(leaf)
    pieces = leaf.sharding.addressable_devices_indices_map((size,)).values()
    places = np.unique(np.concatenate([np.arange(size)[at] for at in pieces]))
    return batches if len(places) == size else Share(batches, places)


def put(stack: Mapping[str, np.ndarray], layout: Layout) -> dict[str, jax.Array]:
    """Return this process' rows of a stack as arrays of the whole stack over all processes.

    Args:
        stack: [steps, rows, ...] each.
        layout: of one whole batch; the width of its rows does not matter.
    """
    placed = {}
    for name, leaf in layout.items():
        steps, _, *row = stack[name].shape
        shape = (steps, leaf.shape[0], *row)
        placed[name] = jax.make_array_from_process_local_data(
            _under_steps(leaf), stack[name], shape
        )
    return placed


# --- Room --------------------------------------------------------------------------------------


def require_room(
    advance: Any, state: State, stack: Layout, key: Any, device: Any = None
) -> tuple[int, int, int]:
    """Compile a call of the trainer and refuse it if it does not fit in a device's memory.

    The compiled program is the one that runs later; nothing is compiled twice.

    Args:
        advance: of `step.compiled`.
        state: its layout.
        stack: layout of the batches of a call.
        key: of dropout.
        device: one of those that it is compiled for; the first of this process if None.

    Returns:
        Bytes of a device: state and batch, other memory of the step, and the device's memory; zeros
        where the compiler does not report them.

    Raises:
        UserError: the step does not fit, by XLA's account.
    """
    device = jax.local_devices()[0] if device is None else device
    limit = accelerators.memory_bytes(device)
    room = f"a step within the {limit / GIGABYTE:.1f} GB of {device.device_kind}"
    advice = "raise microbatches or the mesh's fsdp or tensor, or lower batch_size"
    try:
        memory = advance.lower(state, stack, key).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(room, str(error).partition("\n")[0], advice) from error
    if memory is None:
        return 0, 0, limit
    kept = memory.argument_size_in_bytes
    work = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if kept + work > limit:
        got = f"{(kept + work) / GIGABYTE:.1f} GB, {kept / GIGABYTE:.1f} of them state and batch"
        raise UserError(room, got, advice)
    return kept, work, limit
