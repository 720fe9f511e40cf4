"""What attention makes of queries, keys and values: by XLA, or on TPUs in one kernel.

Scores are the only arrays that grow with the product of both lengths. XLA writes them to memory and
reads them again several times, on the way to the softmax and back; the kernel never writes them. A
block of queries sees all keys at once there, so forward is one softmax, and backward computes it
anew from queries and keys.

Two things about it are T5's. The bias by distance has a gradient, which is summed over the batch
where it lies. And heads are half as wide as the 128 lanes of a register: a block takes the lanes as
they come, two heads of 64, and blanks those of the other, which costs no more than a product of 64
lanes would, and needs no array reordered.

Source: Dao et al. 2022 (arXiv 2205.14135) for scores that stay on the chip.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

MASKED = -1e9  # finite, so that a row that attends to nothing stays finite
LANES = 128  # of a vector register of a TPU
PAIRS = 2**18  # of queries and keys in a block: forward and backward fit 16 MB, as v4 has
ROWS = 32  # masks are bytes, and those are read by as many rows
# Chips of two cores share the blocks; gradients of a bias add up over rows, one after the other.
SHARED = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))

Joined = Float[Array, "batch length joined"]  # heads side by side
Bias = Float[Array, "1 heads length source"]
Mask = Bool[Array, "#batch 1 #length source"]


@jax.custom_vjp
def _together(queries: Array, bias: Array) -> tuple[Array, Array]:
    """Both as they are, whose gradients come at once, each of them done.

    Without this XLA adds up the layers' gradients of the scores before it sums any of them over
    the batch, and so holds those of all layers until the end.
    """
    return queries, bias


def _together_backward(_: None, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
    return jax.lax.optimization_barrier(gradients)


_together.defvjp(lambda *given: (given, None), _together_backward)


@jax.checkpoint
def mix(
    queries: Float[Array, "batch heads length kv"],
    keys: Float[Array, "batch kv_heads source kv"],
    values: Float[Array, "batch kv_heads source kv"],
    bias: Bias | None,
    mask: Mask,
) -> Float[Array, "batch heads length kv"]:
    """Return the values by the softmax of the scores, in fp32, which backward computes anew.

    One more product of queries and keys costs about a hundredth of a step at the lengths of
    questions and chains.

    Args:
        queries: scaled.
        keys: a head serves a group of query heads where they are fewer.
        values: as the keys.
        bias: added to the scores.
        mask: which keys a query may see.
    """
    if bias is not None:
        queries, bias = _together(queries, bias)
    shape = (*queries.shape[:3], keys.shape[2])
    grouped = queries.reshape(*keys.shape[:2], -1, keys.shape[3])
    scores = (grouped @ jnp.swapaxes(keys, 2, 3)).reshape(shape).astype(jnp.float32)
    scores = jnp.where(mask, scores if bias is None else scores + bias, MASKED)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    return (weights.reshape(*grouped.shape[:3], -1) @ values).reshape(queries.shape)


# --- One kernel --------------------------------------------------------------------------------


def fused(
    queries: Joined,
    keys: Joined,
    values: Joined,
    bias: Bias | None,
    mask: Mask,
    head: int,
    interpret: Any = None,
) -> Joined:
    """Return what `mix` returns, by the kernel where this is a TPU and it takes the shape.

    On several devices the rules of `partitioning.activations` say what each of them computes;
    where there are none, XLA does all of it, as it can cut no kernel.

    Args:
        queries: scaled, heads side by side.
        keys: with as many heads as the queries.
        values: as the keys.
        bias: as of `mix`.
        mask: as of `mix`.
        head: width of a head.
        interpret: of `pallas_call`, to run the kernel where this is no TPU.
    """
    return _fused(queries, keys, values, bias, mask, head, interpret)


def _fused_forward(
    queries: Joined,
    keys: Joined,
    values: Joined,
    bias: Bias | None,
    mask: Mask,
    head: int,
    interpret: Any,
) -> tuple[Joined, tuple[Any, ...]]:
    rows = queries, keys, values
    plain, kernel = functools.partial(unfused, head), functools.partial(forward, head, interpret)
    (mixed,) = _chosen(kernel, plain, head, interpret, rows, bias, mask, [_JOINED])
    return mixed, (*rows, bias, mask)


def _fused_backward(
    head: int, interpret: Any, kept: tuple[Any, ...], gradient: Joined
) -> tuple[Array | None, ...]:
    def plain(queries: Joined, keys: Joined, values: Joined, gradient: Joined, *rest: Any) -> Any:
        bias, mask = rest
        call = functools.partial(unfused, head, mask=mask)
        _, transposed = jax.vjp(call, queries, keys, values, bias)
        return [each for each in transposed([gradient]) if each is not None]

    *rows, bias, mask = kept
    kernel = functools.partial(backward, head, interpret)
    results = [*[_JOINED] * 3, *[_BIAS] * (bias is not None)]
    found = _chosen(kernel, plain, head, interpret, (*rows, gradient), bias, mask, results)
    return (*found, *[None] * (5 - len(found)))


_fused: Any = jax.custom_vjp(lambda *given: _fused_forward(*given)[0], nondiff_argnums=(5, 6))
_fused.defvjp(_fused_forward, _fused_backward)


def unfused(
    head: int, queries: Joined, keys: Joined, values: Joined, bias: Bias | None, mask: Mask
) -> list[Joined]:
    """Return the attention of joined heads by `mix`, which is the twin of the kernel."""

    def heads(joined: Joined) -> Array:
        return jnp.swapaxes(joined.reshape(*joined.shape[:2], -1, head), 1, 2)

    mixed = mix(heads(queries), heads(keys), heads(values), bias, mask)
    return [jnp.swapaxes(mixed, 1, 2).reshape(queries.shape)]


# --- Where it runs -----------------------------------------------------------------------------

Axes = tuple[str | None, ...]
_JOINED: Axes = ("batch", "length", "joined_kv")
_BIAS: Axes = (None, "heads", "length", None)
_MASK: Axes = ("batch", None, "length", None)


def _chosen(
    kernel: Callable[..., list[Array]],
    plain: Callable[..., list[Array]],
    head: int,
    interpret: Any,
    rows: Sequence[Joined],
    bias: Bias | None,
    mask: Mask,
    results: Sequence[Axes],
) -> list[Array]:
    """Call the kernel on each device's part, or its twin on the whole."""
    lengths = rows[0].shape[1], rows[1].shape[1]
    given = (*rows, bias, jnp.broadcast_to(mask, (len(rows[0]), 1, *lengths)))
    mesh = jax.sharding.get_abstract_mesh()
    width = rows[0].shape[2]
    if mesh.empty or mesh.size == 1:
        if jax.device_count() > 1:
            return plain(*given)
    else:
        own = _spec(_JOINED)
        kernel = jax.shard_map(
            functools.partial(kernel, summed=own[0]),
            mesh=mesh,
            in_specs=(*[own] * len(rows), None if bias is None else _spec(_BIAS), _spec(_MASK)),
            out_specs=[_spec(axes) for axes in results],
            check_vma=False,
        )
        width = NamedSharding(mesh, own).shard_shape(rows[0].shape)[2]
    if not fits(*lengths, width, head):
        return plain(*given)
    if interpret is not None:
        return kernel(*given)
    return jax.lax.platform_dependent(*given, tpu=kernel, default=plain)


def _spec(axes: Axes) -> PartitionSpec:
    """Where an array of these axes lies, by the rules of `partitioning.activations`."""
    return logical_to_mesh_axes(axes) or PartitionSpec()


def fits(queries: int, keys: int, width: int, head: int) -> bool:
    """Return whether the kernel takes an attention of this shape.

    Args:
        queries: positions that attend.
        keys: positions that are attended to.
        width: of all heads of a device.
        head: width of one.
    """
    whole = queries % ROWS == 0 and keys % LANES == 0 and width % LANES == 0
    return whole and LANES % head == 0 and _rows(queries, keys) > 0


def _rows(queries: int, keys: int) -> int:
    """The most queries of a block, 0 where the keys are too many for any."""
    most = min(queries, PAIRS // keys)
    fitting = [rows for rows in range(LANES, most + 1, LANES) if queries % rows == 0]
    return queries if queries <= most else max(fitting, default=0)


# --- The kernel --------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """How an attention is cut; a block has some lanes, some queries and one row of the batch."""

    batch: int
    queries: int
    keys: int
    width: int  # of all heads
    head: int  # width of one
    rows: int  # queries of a block

    @classmethod
    def of(cls, queries: Joined, keys: Joined, head: int) -> "Blocks":
        """Cut these."""
        batch, length, width = queries.shape
        source = keys.shape[1]
        return cls(batch, length, source, width, head, _rows(length, source))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of lanes, of queries, of the batch; the last changes fastest, a bias stays."""
        return self.width // LANES, self.queries // self.rows, self.batch

    @property
    def heads(self) -> int:
        """Heads of a block."""
        return LANES // self.head

    def of_queries(self) -> pl.BlockSpec:
        """What lies as the queries do."""
        return pl.BlockSpec((1, self.rows, LANES), lambda lanes, block, row: (row, block, lanes))

    def of_keys(self) -> pl.BlockSpec:
        """What lies as the keys do."""
        return pl.BlockSpec((1, self.keys, LANES), lambda lanes, block, row: (row, 0, lanes))

    def of_parts(self) -> pl.BlockSpec:
        """A gradient of the keys, of one block of queries."""
        shape = (1, 1, self.keys, LANES)
        return pl.BlockSpec(shape, lambda lanes, block, row: (block, row, 0, lanes))

    def of_bias(self, *, turned: bool) -> pl.BlockSpec:
        """Every head's pairs, keys first where `turned`."""
        if turned:
            shape = (self.heads, self.keys, self.rows)
            return pl.BlockSpec(shape, lambda lanes, block, row: (lanes, 0, block))
        shape = (self.heads, self.rows, self.keys)
        return pl.BlockSpec(shape, lambda lanes, block, row: (lanes, block, 0))

    def of_mask(self, *, turned: bool) -> pl.BlockSpec:
        """A row's pairs, keys first where `turned`."""
        if turned:
            return pl.BlockSpec(
                (1, self.keys, self.rows), lambda lanes, block, row: (row, 0, block)
            )
        return pl.BlockSpec((1, self.rows, self.keys), lambda lanes, block, row: (row, block, 0))


def forward(
    head: int,
    interpret: Any,
    queries: Joined,
    keys: Joined,
    values: Joined,
    bias: Bias | None,
    mask: Mask,
    *,
    summed: Any = (),
) -> list[Joined]:
    """Call the kernel on one device; alone in a list, as `backward` returns several.

    Args:
        head: width of a head.
        interpret: of `pallas_call`.
        queries: as of `fused`.
        keys: as of `fused`.
        values: as of `fused`.
        bias: as of `fused`.
        mask: of every row and query.
        summed: the mesh axes that a bias' gradient is summed over, of no use here.
    """
    del summed
    blocks = Blocks.of(queries, keys, head)
    arrays = [queries, keys, values, mask[:, 0].astype(jnp.int8)]
    specs = [blocks.of_queries(), blocks.of_keys(), blocks.of_keys(), blocks.of_mask(turned=False)]
    if bias is not None:
        arrays, specs = [*arrays, bias[0]], [*specs, blocks.of_bias(turned=False)]
    mixed = pl.pallas_call(
        functools.partial(_forward_kernel, blocks),
        out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        grid=blocks.grid,
        in_specs=specs,
        out_specs=blocks.of_queries(),
        compiler_params=SHARED,
        interpret=interpret or False,
        name="attention_forward",
    )(*arrays)
    return [mixed]


def _forward_kernel(blocks: Blocks, queries: Any, keys: Any, values: Any, mask: Any, *rest: Any):
    *bias, mixed = rest
    query, key, value = queries[0], keys[0], values[0]
    seen = mask[0].astype(jnp.int32) != 0
    total = jnp.zeros(query.shape, jnp.float32)
    for number in range(blocks.heads):
        scores = _product(_own(query, blocks, number), key, (1, 1))
        scores = jnp.where(seen, scores + bias[0][number] if bias else scores, MASKED)
        weights = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
        inverse = 1 / jnp.sum(weights, 1, keepdims=True)
        own = _product(weights.astype(value.dtype), value, (1, 0)) * inverse
        total += _own(own, blocks, number)
    mixed[0] = total.astype(mixed.dtype)


def backward(
    head: int,
    interpret: Any,
    queries: Joined,
    keys: Joined,
    values: Joined,
    gradient: Joined,
    bias: Bias | None,
    mask: Mask,
    *,
    summed: Any = (),
) -> list[Array]:
    """Return the gradients of queries, keys, values and, where there is one, of the bias.

    Args:
        head: width of a head.
        interpret: of `pallas_call`.
        queries: as of `fused`.
        keys: as of `fused`.
        values: as of `fused`.
        gradient: of what `fused` returns.
        bias: as of `fused`.
        mask: of every row and query.
        summed: the mesh axes that rows are cut over.
    """
    blocks = Blocks.of(queries, keys, head)
    parts = blocks.grid[1]
    arrays = [queries, keys, values, gradient, jnp.swapaxes(mask[:, 0].astype(jnp.int8), 1, 2)]
    specs = [blocks.of_queries(), blocks.of_keys(), blocks.of_keys(), blocks.of_queries()]
    specs += [blocks.of_mask(turned=True)]
    part = jax.ShapeDtypeStruct((parts, *keys.shape), keys.dtype)
    shapes = [jax.ShapeDtypeStruct(queries.shape, queries.dtype), part, part]
    results = [blocks.of_queries(), blocks.of_parts(), blocks.of_parts()]
    if bias is not None:
        turned = jnp.swapaxes(bias[0], 1, 2)
        arrays, specs = [*arrays, turned], [*specs, blocks.of_bias(turned=True)]
        shapes += [jax.ShapeDtypeStruct(turned.shape, jnp.float32)]
        results += [blocks.of_bias(turned=True)]
    of_queries, of_keys, of_values, *of_bias = pl.pallas_call(
        functools.partial(_backward_kernel, blocks),
        out_shape=shapes,
        grid=blocks.grid,
        in_specs=specs,
        out_specs=results,
        compiler_params=SHARED,
        interpret=interpret or False,
        name="attention_backward",
    )(*arrays)
    of_keys, of_values = (
        each[0] if parts == 1 else jnp.sum(each, 0, dtype=jnp.float32).astype(each.dtype)
        for each in (of_keys, of_values)
    )
    of_bias = [jnp.swapaxes(each, 1, 2)[None] for each in of_bias]
    return [of_queries, of_keys, of_values, *(jax.lax.psum(of_bias, summed) if summed else of_bias)]


def _backward_kernel(
    blocks: Blocks, queries: Any, keys: Any, values: Any, gradient: Any, mask: Any, *rest: Any
) -> None:
    """Keys lie along sublanes: sums over them are cheap, and one product of five reads across."""
    bias, rest = (rest[:1], rest[1:]) if len(rest) == 5 else ((), rest)
    of_queries, of_keys, of_values, *of_bias = rest
    query, key, value, cotangent = queries[0], keys[0], values[0], gradient[0]
    seen = mask[0].astype(jnp.int32) != 0
    of_query, of_key, of_value = (
        jnp.zeros(each.shape, jnp.float32) for each in (query, key, value)
    )
    for number in range(blocks.heads):
        own, own_cotangent = (_own(each, blocks, number) for each in (query, cotangent))
        scores = _product(key, own, (1, 1))
        scores = jnp.where(seen, scores + bias[0][number] if bias else scores, MASKED)
        weights = jnp.exp(scores - jnp.max(scores, 0, keepdims=True))
        weights = weights * (1 / jnp.sum(weights, 0, keepdims=True))
        of_value += _product(weights.astype(value.dtype), own_cotangent, (1, 0))
        of_weights = _product(value, own_cotangent, (1, 1))
        mean = jnp.sum(weights * of_weights, 0, keepdims=True)
        of_scores = jnp.where(seen, weights * (of_weights - mean), 0.0)
        if of_bias:
            _add(of_bias[0], number, of_scores)
        narrow = of_scores.astype(key.dtype)
        of_query += _own(_product(narrow, key, (0, 0)), blocks, number)
        of_key += _product(narrow, own, (1, 0))
    of_queries[0] = of_query.astype(of_queries.dtype)
    of_keys[0, 0] = of_key.astype(of_keys.dtype)
    of_values[0, 0] = of_value.astype(of_values.dtype)


def _product(left: Array, right: Array, axes: tuple[int, int]) -> Array:
    """Contract an axis of each, in fp32."""
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.dot_general(
        left, right, (contracted, ((), ())), preferred_element_type=jnp.float32
    )


def _own(x: Array, blocks: Blocks, number: int) -> Array:
    """`x` in the lanes of a head, 0 in the others."""
    lane, start = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), number * blocks.head
    return jnp.where((lane >= start) & (lane < start + blocks.head), x, jnp.zeros_like(x))


def _add(sums: Any, number: int, term: Array) -> None:
    """Add to what the rows of the batch before have left; the first one finds nothing."""
    first = pl.program_id(2) == 0

    @pl.when(first)
    def _() -> None:
        sums[number] = term

    @pl.when(jnp.logical_not(first))
    def _() -> None:
        sums[number] += term
