"""The layers that T5 and the decoder are made of; no model of its own, no cache policy."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int

from distill.models import attention
from distill.models.attention import MASKED

FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}
DTYPES = ("float32", "bfloat16")

# T5X's logical axes by the last two names of a parameter's path.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "token_embedder/embedding": ("vocab", "embed"),
    "relpos_bias/rel_embedding": ("heads", "relpos_buckets"),
    "query/kernel": ("embed", "joined_kv"),
    "key/kernel": ("embed", "joined_kv"),
    "value/kernel": ("embed", "joined_kv"),
    "out/kernel": ("joined_kv", "embed"),
    "wi/kernel": ("embed", "mlp"),
    "wi_0/kernel": ("embed", "mlp"),
    "wi_1/kernel": ("embed", "mlp"),
    "wo/kernel": ("mlp", "embed"),
    "logits_dense/kernel": ("embed", "vocab"),
}

Params = dict[str, Any]
# "key" [rows kv slots] and "value" [rows slots kv], a row for each head of each batch row: as
# decoding reads them, since a step would copy a cache that it has to reshape.
Cache = dict[str, Array]
Reading = dict[str, Any]  # what prompts leave for decoding; every leaf has a row for each
DecodingState = dict[str, Any]


def logical_axes(params: Params) -> Params:
    """Return the tree of `params` with T5X's logical axis names in place of each array."""

    def axes(path: tuple[Any, ...], _: object) -> tuple[str, ...]:
        names = [key.key for key in path]
        return ("embed",) if names[-1] == "scale" else LOGICAL_AXES["/".join(names[-2:])]

    return jax.tree_util.tree_map_with_path(axes, params)


def constrain(x: Array, *names: str | None) -> Array:
    """Return `x`, to lie as the logical axes say under the rules of `partitioning.activations`.

    Without such a constraint on what flows between layers the compiler takes the layout of the
    parameters over to it, and gathers whole batches where it should gather parameters. Outside of
    `activations` nothing happens.
    """
    return with_logical_constraint(x, names)  # pyright: ignore[reportReturnType]


def by_path(params: Params) -> dict[str, Any]:
    """Return the leaves by their path, such as `encoder/layers_0/mlp/wo/kernel`."""
    return dict(flatten_dict(params, sep="/"))


def call(
    network: nn.Module, params: Params, method: Callable[..., Any], *args: Any, **named: Any
) -> Any:
    """Return what `method` of the network returns with these parameters."""
    return network.apply({"params": params}, *args, **named, method=method)


def require_shape_fields(config: Any, counts: Sequence[str]) -> None:
    """Refuse a configuration that no network can have.

    Raises:
        ValueError: a count below 1, a dropout rate outside [0, 1), an unknown activation or dtype.
    """
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"expected {name} >= 1, got {getattr(config, name)}")
    if not 0 <= config.dropout_rate < 1:
        raise ValueError(f"expected 0 <= dropout_rate < 1, got {config.dropout_rate}")
    unknown = set(config.mlp_activations) - set(ACTIVATIONS)
    if unknown or not 1 <= len(config.mlp_activations) <= 2:
        raise ValueError(
            f"expected one or two mlp_activations of {sorted(ACTIVATIONS)}, "
            f"got {config.mlp_activations}"
        )
    if config.dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {DTYPES}, got {config.dtype!r}")


def mask_bias(mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return 0 where `mask` is true and a large negative number elsewhere, to add to scores."""
    return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


def segment_mask(
    queries: Int[Array, "batch length"], keys: Int[Array, "batch source"]
) -> Bool[Array, "batch 1 length source"]:
    """Return which keys a query may see: those of its own segment; segment 0 is padding."""
    same = queries[:, :, None] == keys[:, None, :]
    return (same & (keys > 0)[:, None, :])[:, None]


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """Return which of `length` keys a query may see: itself and those before."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


class RMSNorm(nn.Module):
    """Scaling by the root mean square, without bias or mean (Zhang and Sennrich 2019)."""

    dtype: str
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*axes embed"]) -> Float[Array, "*axes embed"]:
        """Return `x` at unit root mean square, times the scale."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
        return (wide * inverse * scale).astype(self.dtype)


@jax.custom_vjp
def linear(
    x: Float[Array, "*axes embed"], kernel: Float[Array, "embed out"]
) -> Float[Array, "*axes out"]:
    """Return `x` times the kernel.

    The kernel's gradient is written with the inputs transposed, not the cotangent: one transposed
    copy then serves all kernels that read `x`, and no activation's gradient is fused into a
    transposed write, where XLA's CPU backend computes it slowly.
    """
    return x @ kernel


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _linear_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows = x.reshape(-1, x.shape[-1])
    return cotangent @ kernel.T, rows.T @ cotangent.reshape(-1, cotangent.shape[-1])


linear.defvjp(_linear_forward, _linear_backward)


class Dense(nn.Module):
    """A linear map without bias."""

    features: int
    dtype: str
    init: Callable[..., Array] = FAN_IN

    @nn.compact
    def __call__(self, x: Float[Array, "*axes embed"]) -> Float[Array, "*axes out"]:
        """Return `x` times the kernel."""
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features))
        return linear(x, kernel.astype(self.dtype))


class Embedding(nn.Module):
    """Rows by token; also the tied projection back to the vocabulary."""

    vocab_size: int
    embed_dim: int
    dtype: str
    stddev: float = 1.0

    def setup(self) -> None:
        """Make the submodules and parameters."""
        init = nn.initializers.normal(self.stddev)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.embed_dim))

    def __call__(self, tokens: Int[Array, "*axes"]) -> Float[Array, "*axes embed"]:
        """Return the rows of `tokens`."""
        rows = jnp.take(constrain(self.embedding, "vocab", None), tokens, axis=0).astype(self.dtype)
        return constrain(rows, "batch", "length", "embed")

    def attend(self, x: Float[Array, "*axes embed"]) -> Float[Array, "*axes vocab"]:
        """Return the product with every row, in float32."""
        rows = self.embedding.astype(self.dtype)
        return jnp.einsum("...e,ve->...v", x, rows, preferred_element_type=jnp.float32)


@functools.partial(jax.checkpoint, static_argnums=0)
def activated(
    names: tuple[str, ...], *hidden: Float[Array, "*axes mlp"]
) -> Float[Array, "*axes mlp"]:
    """Return the product of the named activations of `hidden`; backward computes them anew."""
    gates = [ACTIVATIONS[name](x) for name, x in zip(names, hidden, strict=True)]
    return math.prod(gates[1:], start=gates[0])


class Mlp(nn.Module):
    """Feed-forward layer: the product of one or two activated projections, then one back."""

    mlp_dim: int
    activations: tuple[str, ...]
    dropout_rate: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], *, deterministic: bool
    ) -> Float[Array, "batch length embed"]:
        """Return the update of the residual stream."""
        names = ["wi"] if len(self.activations) == 1 else ["wi_0", "wi_1"]
        hidden = [Dense(self.mlp_dim, self.dtype, name=name)(x) for name in names]
        hidden = [constrain(each, "batch", "length", "mlp") for each in hidden]
        y = activated(self.activations, *hidden)
        y = Dropout(self.dropout_rate)(y, deterministic=deterministic)
        return constrain(Dense(x.shape[-1], self.dtype, name="wo")(y), "batch", "length", "embed")


def Dropout(rate: float) -> nn.Dropout:  # noqa: N802 (made where a layer is made)
    """Return dropout that drops the same features at every position of a row, as T5 does."""
    return nn.Dropout(rate, broadcast_dims=(-2,))


def runner(*, deterministic: bool, remat: bool) -> Callable[..., Array]:
    """Return a call of a layer; with `remat`, backward knows its inputs alone and runs it again."""

    def run(layer: nn.Module, *inputs: Array) -> Array:
        return layer(*inputs, deterministic=deterministic)

    return nn.remat(run) if remat else run


class Attention(nn.Module):
    """Multi-head attention; with fewer key heads than query heads each serves a group of them.

    `keys_values` and `attend` are apart so that cached decoding goes through the same code. Where
    `fused`, a kernel of TPUs does what `attention.mix` does.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    dropout_rate: float
    dtype: str
    query_init: Callable[..., Array] = FAN_IN
    query_scale: float = 1.0
    fused: bool = False

    def setup(self) -> None:
        """Make the submodules and parameters."""
        kv_features = self.num_kv_heads * self.head_dim
        self.query = Dense(self.num_heads * self.head_dim, self.dtype, self.query_init)
        self.key = Dense(kv_features, self.dtype)
        self.value = Dense(kv_features, self.dtype)
        self.out = Dense(self.embed_dim, self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))

    def keys_values(
        self,
        x: Float[Array, "batch source embed"],
        rotation: tuple[Array, Array] | None = None,
    ) -> tuple[Float[Array, "batch source kv_heads kv"], Float[Array, "batch source kv_heads kv"]]:
        """Return the keys, rotated to their positions where `rotation` is given, and values."""
        split = (*x.shape[:2], self.num_kv_heads, self.head_dim)
        keys, values = (_heads(y, split) for y in (self.key(x), self.value(x)))
        return (keys if rotation is None else rotate(keys, *rotation)), values

    def attend(
        self,
        x: Float[Array, "batch length embed"],
        keys: Float[Array, "batch source kv_heads kv"],
        values: Float[Array, "batch source kv_heads kv"],
        bias: Float[Array, "1 heads length source"] | None,
        mask: Bool[Array, "#batch 1 #length source"],
        rotation: tuple[Array, Array] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch length embed"]:
        """Return the values that the queries of `x` select among the keys that `mask` shows them.

        Dropout takes whole keys from a head, for every query of the row, as T5 does; it acts on
        the values, which are fewer than the weights.
        """
        split = (*x.shape[:2], self.num_heads, self.head_dim)
        queries = _heads(self.query(x), split)
        if rotation is not None:
            queries = rotate(queries, *rotation)
        queries = queries * self.query_scale
        if self.fused:
            queries, keys, values = (y.reshape(*y.shape[:2], -1) for y in (queries, keys, values))
            values = values if deterministic else self.dropped(values)
            mixed = attention.fused(queries, keys, values, bias, mask, self.head_dim)
        else:
            queries, keys, values = (jnp.swapaxes(y, 1, 2) for y in (queries, keys, values))
            values = self.dropout(values, deterministic=deterministic)
            mixed = attention.mix(queries, keys, values, bias, mask)
            mixed = jnp.swapaxes(mixed, 1, 2).reshape(*split[:2], -1)
        mixed = constrain(mixed, "batch", "length", "joined_kv")
        return constrain(self.out(mixed), "batch", "length", "embed")

    def dropped(
        self, values: Float[Array, "batch source joined"]
    ) -> Float[Array, "batch source joined"]:
        """Return the values without the keys that dropout takes, heads side by side.

        A product with a table of which lanes are whose spreads a head's choice over its lanes: a
        TPU would reorder the array twice where it is spread along an axis of its own.
        """
        kept, (batch, source, _) = 1 - self.dropout_rate, values.shape
        shape = (batch, source, self.num_kv_heads)
        chosen = jax.random.bernoulli(self.make_rng("dropout"), kept, shape).astype(values.dtype)
        lanes = np.repeat(np.eye(self.num_kv_heads), self.head_dim, 1).astype(values.dtype)
        spread = constrain(chosen @ lanes, "batch", "length", "joined_kv")
        return jnp.where(spread > 0, values / kept, 0).astype(values.dtype)

    def recall(
        self,
        x: Float[Array, "batch 1 embed"],
        cache: Cache,
        bias: Float[Array, "#batch #heads source"],
        rotation: tuple[Array, Array] | None = None,
    ) -> Float[Array, "batch 1 embed"]:
        """Return what `attend` returns for one query, from the layout that is fast to read."""
        batch, groups = x.shape[0], self.num_heads // self.num_kv_heads
        queries = self.query(x).reshape(batch, 1, self.num_heads, self.head_dim)
        if rotation is not None:
            queries = rotate(queries, *rotation)
        queries = queries.reshape(batch * self.num_kv_heads, groups, self.head_dim)
        scores = jnp.einsum("ngd,ndk->ngk", queries * self.query_scale, cache["key"])
        scores = scores.reshape(batch, self.num_heads, -1).astype(jnp.float32) + bias
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = weights.reshape(batch * self.num_kv_heads, groups, -1)
        mixed = jnp.einsum("ngk,nkd->ngd", weights, cache["value"])
        return self.out(mixed.reshape(batch, 1, -1))

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        sources: Float[Array, "batch source embed"],
        bias: Float[Array, "1 heads length source"] | None,
        mask: Bool[Array, "#batch 1 #length source"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length embed"]:
        """Return what `x` attends to in `sources`."""
        keys, values = self.keys_values(sources)
        return self.attend(x, keys, values, bias, mask, deterministic=deterministic)


def _heads(joined: Array, split: tuple[int, ...]) -> Array:
    """[batch, length, heads kv] -> [batch, length, heads, kv]."""
    return constrain(joined.reshape(split), "batch", "length", "heads", None)


def rotary_angles(
    positions: Int[Array, "batch length"], head_dim: int, base: float = 10_000.0
) -> tuple[Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]]:
    """Return cosine and sine of each position's rotation in each plane (Su et al. 2021)."""
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch length heads kv"],
    cosine: Float[Array, "batch length 1 half"],
    sine: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads kv"]:
    """Rotate each pair (feature i, feature i + half) of `x` by its angle."""
    left, right = jnp.split(x, 2, axis=-1)
    turned = [left * cosine - right * sine, right * cosine + left * sine]
    return jnp.concatenate(turned, -1).astype(x.dtype)


def relative_buckets(
    relative: Int[np.ndarray, "*axes"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[np.ndarray, "*axes"]:
    """Return T5's bucket of each relative position (key minus query).

    Half of the buckets hold one distance each, the rest grow logarithmically up to `max_distance`.
    A unidirectional table gives bucket 0 to keys ahead of the query.

    Source: Raffel et al. 2020, section 2.1; the rounding is that of the released models.
    """
    sides = buckets // 2 if bidirectional else buckets
    ahead = np.where(relative > 0, sides, 0) if bidirectional else 0
    distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
    exact = sides // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(math.log(max_distance / exact)) * np.float32(sides - exact)
    far = np.minimum(exact + scaled.astype(np.int32), sides - 1)
    return (ahead + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """T5's bias on attention scores by bucketed distance, shared by the layers of a tower."""

    num_heads: int
    buckets: int
    max_distance: int
    bidirectional: bool

    def setup(self) -> None:
        """Make the submodules and parameters."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.rel_embedding = self.param("rel_embedding", init, (self.num_heads, self.buckets))

    def by_distance(self, relative: Int[np.ndarray, "source"]) -> Float[Array, "heads source"]:
        """Return the bias of each relative position."""
        index = relative_buckets(
            relative,
            bidirectional=self.bidirectional,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )
        return jnp.take(self.rel_embedding, index, axis=1)

    def __call__(self, length: int) -> Float[Array, "1 heads length length"]:
        """Return the bias of every pair of positions below `length`.

        One row of 2 length biases, repeated and cut one short of its width, slides by one with
        each query, so that the gradient is a sum and not a scatter over all pairs.
        """
        width = 2 * length
        relative = np.concatenate([np.arange(length), np.arange(-length, 0)])
        row = jnp.tile(self.by_distance(relative), (1, length))
        pairs = row[:, : length * (width - 1)].reshape(self.num_heads, length, width - 1)
        return pairs[None, :, :, :length]


def open_cache(
    keys: Float[Array, "batch source kv_heads kv"],
    values: Float[Array, "batch source kv_heads kv"],
) -> Cache:
    """Return a cache of these keys and values, with no free slot."""
    return {"key": _by_head(keys, (0, 2, 3, 1)), "value": _by_head(values, (0, 2, 1, 3))}


def widen(cache: Cache, free: int) -> Cache:
    """Return `cache` with as many more slots after its own."""
    return {
        "key": jnp.pad(cache["key"], ((0, 0), (0, 0), (0, free))),
        "value": jnp.pad(cache["value"], ((0, 0), (0, free), (0, 0))),
    }


def reordered(cache: Cache, rows: Int[Array, "batch"]) -> Cache:
    """Return the cache whose batch rows are those of `rows`."""

    def picked(x: Array) -> Array:
        return x.reshape(len(rows), -1, *x.shape[1:])[rows].reshape(x.shape)

    return {name: picked(x) for name, x in cache.items()}


def extend(
    cache: Cache,
    keys: Float[Array, "batch 1 kv_heads kv"],
    values: Float[Array, "batch 1 kv_heads kv"],
    slot: Int[Array, ""],
) -> Cache:
    """Return `cache` with the keys and values of one position written to `slot`."""
    write = jax.lax.dynamic_update_slice_in_dim
    return {
        "key": write(cache["key"], _by_head(keys, (0, 2, 3, 1)), slot, axis=2),
        "value": write(cache["value"], _by_head(values, (0, 2, 1, 3)), slot, axis=1),
    }


def _by_head(
    x: Float[Array, "batch source kv_heads kv"], order: tuple[int, ...]
) -> Float[Array, "rows left right"]:
    """Reorder the axes and join the first two, batch and heads."""
    x = x.transpose(order)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
