"""Meshes and where each array lies on them; how a step uses them is the trainer's part."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill.core.errors import UserError
from distill.models.layers import Params
from distill.models.tensors import Tensor

AXES = ("data", "fsdp", "tensor")
# T5X's logical axes to mesh axes: wide ones are cut by tensor, the residual stream by fsdp.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "mlp": "tensor",
    "joined_kv": "tensor",
    "heads": "tensor",
    "relpos_buckets": None,
    "score": None,
}


def mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over all devices of all processes, whose layouts the compiler carries through.

    Args:
        data: rows of a batch are cut this many ways; -1 takes what the others leave.
        fsdp: parameters and rows are cut this many ways.
        tensor: parameters are cut this many ways within a layer.
        devices: those to take instead of all.

    Raises:
        UserError: the three do not multiply to the number of devices.

    Example:
        >>> mesh().axis_names
        ('data', 'fsdp', 'tensor')
    """
    devices = jax.devices() if devices is None else devices
    count, sizes = len(devices), (data, fsdp, tensor)
    given = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError("positive mesh axes, at most one of -1", f"{sizes}", "correct the mesh")
    if count % given or (-1 not in sizes and given != count):
        raise UserError(
            f"a mesh of {count} devices",
            f"data={data}, fsdp={fsdp}, tensor={tensor}",
            f"choose axes that multiply to {count}",
        )
    shape = tuple(count // given if size == -1 else size for size in sizes)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def param_shardings(
    mesh: Mesh, params: Params, logical_axes: Params, rules: Mapping[str, str | None] = RULES
) -> Params:
    """Return where each parameter lies, by the rule of each of its logical axes.

    Args:
        mesh: of `mesh()`.
        params: arrays or their shapes.
        logical_axes: `model.logical_axes(params)`.
        rules: logical axis to mesh axis, None for a copy on each.

    Raises:
        UserError: an axis of a parameter is not divisible by its mesh axis.
    """

    def sharding(path: tuple[Any, ...], leaf: Any, names: tuple[str, ...]) -> NamedSharding:
        axes = [rules[name] for name in names]
        for size, name, axis in zip(leaf.shape, names, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"{name} of {'/'.join(key.key for key in path)} divisible by {axis}",
                    f"{size} and {mesh.shape[axis]}",
                    "choose another mesh",
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding, params, logical_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return where a batch lies: its rows are cut over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@contextlib.contextmanager
def activations(mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Iterator[None]:
    """What is traced inside keeps rows on the devices that have them, and so gathers parameters.

    A mesh axis that cuts the rows cuts nothing else of an activation; the others are as in the
    parameters' rules. On one device nothing is said, and no program changes.

    Args:
        mesh: of `mesh()`.
        rules: logical axis to mesh axis.
    """
    if mesh.size == 1:
        yield
        return
    own = (("batch", tuple(batch_sharding(mesh).spec[0])), ("length", None))
    known = nn.logical_axis_rules((*own, *rules.items()))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), known:
        yield


def spread_rows(mesh: Mesh, tree: Any) -> Any:
    """Return arrays on the mesh, cut along their first axis where it can be, else whole on each.

    Args:
        mesh: of `mesh()`.
        tree: of arrays.
    """
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    parts = math.prod(mesh.shape[axis] for axis in rows.spec[0])

    def placed(leaf: Any) -> jax.Array:
        cut = leaf.ndim and leaf.shape[0] % parts == 0
        return jax.device_put(leaf, rows if cut else whole)

    return jax.tree.map(placed, tree)


def spread_params(mesh: Mesh, params: Params, logical_axes: Params) -> Params:
    """Return parameters on the mesh as `param_shardings` says, read one at a time.

    Args:
        mesh: of `mesh()`, of this process' devices.
        params: arrays, or tensors on disk.
        logical_axes: `model.logical_axes(params)`.

    Raises:
        UserError: an axis of a parameter is not divisible by its mesh axis.
    """

    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
        return jax.device_put(leaf.read() if isinstance(leaf, Tensor) else leaf, sharding)

    return jax.tree.map(placed, params, param_shardings(mesh, params, logical_axes))
