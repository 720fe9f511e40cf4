"""The T5 family (v1.0, v1.1, Flan, mT5) as functions of parameters; knows no loss and no files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from distill.models import layers
from distill.models.layers import Cache, DecodingState, Params, Reading

START_ID = 0  # T5's decoder starts from the padding token


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5. The defaults from `mlp_activations` on are those of v1.1.

    Attributes:
        vocab_size: rows of the embedding, padding rows included.
        embed_dim: width of the residual stream (d_model).
        num_heads: attention heads.
        head_dim: width of a head (d_kv).
        mlp_dim: hidden width of the feed-forward layers (d_ff).
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        mlp_activations: ("gelu", "linear") for v1.1, ("relu",) for v1.0.
        logits_via_embedding: tied head, scaled by embed_dim ** -0.5 (v1.0).
        relative_attention_num_buckets: buckets of relative positions.
        relative_attention_max_distance: distances from here on share the last bucket.
        dropout_rate: share of features dropped in training.
        dtype: of the computation; parameters are float32.
        layer_norm_epsilon: added to the mean square.
        remat: keep only what enters each layer in training and compute the rest anew backward.
        fused_attention: on TPUs, mix values in one kernel (`distill.models.attention`).
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    dtype: str = "float32"
    layer_norm_epsilon: float = 1e-6
    remat: bool = False
    fused_attention: bool = False

    def __post_init__(self) -> None:
        counts = ("vocab_size", "embed_dim", "num_heads", "head_dim", "mlp_dim")
        layers.require_shape_fields(self, (*counts, "num_encoder_layers", "num_decoder_layers"))
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets < 4 or buckets % 4 or distance <= buckets // 2:
            raise ValueError(
                "expected relative attention buckets divisible by 4 and a distance beyond half of "
                f"them, got {buckets} and {distance}"
            )


def _attention(config: T5Config) -> layers.Attention:
    """Return T5's attention: 1 / sqrt(head_dim) is in the query's first weights alone."""

    def query_init(*args: Any) -> Array:
        return layers.FAN_IN(*args) / config.head_dim**0.5

    return layers.Attention(
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        embed_dim=config.embed_dim,
        dropout_rate=config.dropout_rate,
        dtype=config.dtype,
        query_init=query_init,
        fused=config.fused_attention,
    )


def _mlp(config: T5Config) -> layers.Mlp:
    return layers.Mlp(config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype)


def _norm(config: T5Config) -> layers.RMSNorm:
    return layers.RMSNorm(config.dtype, config.layer_norm_epsilon)


def _from(first: Int[Array, "batch"], length: int) -> Bool[Array, "batch length"]:
    """Return which of `length` places are the first of each row or come after it."""
    return jnp.arange(length) >= first[:, None]


def _relpos_bias(config: T5Config, *, bidirectional: bool) -> layers.RelativePositionBias:
    return layers.RelativePositionBias(
        config.num_heads,
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        bidirectional,
    )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised before and added after."""

    config: T5Config

    def setup(self) -> None:
        """Make the submodules and parameters."""
        self.pre_attention_layer_norm = _norm(self.config)
        self.attention = _attention(self.config)
        self.pre_mlp_layer_norm = _norm(self.config)
        self.mlp = _mlp(self.config)
        self.dropout = layers.Dropout(self.config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "batch source embed"],
        bias: Float[Array, "1 heads source source"],
        mask: Bool[Array, "batch 1 #source source"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch source embed"]:
        """Return the residual stream after this layer."""
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, bias, mask, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        return x + self.dropout(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder and feed-forward."""

    config: T5Config

    def setup(self) -> None:
        """Make the submodules and parameters."""
        self.pre_self_attention_layer_norm = _norm(self.config)
        self.self_attention = _attention(self.config)
        self.pre_cross_attention_layer_norm = _norm(self.config)
        self.encoder_decoder_attention = _attention(self.config)
        self.pre_mlp_layer_norm = _norm(self.config)
        self.mlp = _mlp(self.config)
        self.dropout = layers.Dropout(self.config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Float[Array, "batch source embed"],
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "#batch 1 length length"],
        cross_mask: Bool[Array, "batch 1 #length source"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length embed"]:
        """Return the residual stream after this layer."""
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, bias, mask, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.pre_cross_attention_layer_norm(x)
        attend = self.encoder_decoder_attention
        y = attend(y, encoded, None, cross_mask, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        return x + self.dropout(y, deterministic=deterministic)

    def read(self, encoded: Float[Array, "batch source embed"]) -> tuple[Array, Array]:
        """Return keys and values of the encoder's states."""
        return self.encoder_decoder_attention.keys_values(encoded)

    def begin(
        self,
        x: Float[Array, "batch length embed"],
        read: tuple[Array, Array],
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "batch 1 length length"],
        cross_mask: Bool[Array, "batch 1 1 source"],
    ) -> tuple[Float[Array, "batch length embed"], tuple[Cache, Cache]]:
        """Run the first positions at once; return the caches of `x` and of what was `read`."""
        y = self.pre_self_attention_layer_norm(x)
        written = self.self_attention.keys_values(y)
        caches = layers.open_cache(*written), layers.open_cache(*read)
        if not x.shape[1]:
            return x, caches
        x = x + self.self_attention.attend(y, *written, bias, mask)
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.attend(y, *read, None, cross_mask)
        return x + self.mlp(self.pre_mlp_layer_norm(x), deterministic=True), caches

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        caches: tuple[Cache, Cache],
        slot: Int[Array, ""],
        bias: Float[Array, "#batch heads slots"],
        cross_bias: Float[Array, "batch 1 source"],
    ) -> tuple[Float[Array, "batch 1 embed"], tuple[Cache, Cache]]:
        """Run one position, reading the caches and writing its own keys and values to `slot`."""
        y = self.pre_self_attention_layer_norm(x)
        cache = layers.extend(caches[0], *self.self_attention.keys_values(y), slot)
        x = x + self.self_attention.recall(y, cache, bias)
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.recall(y, caches[1], cross_bias)
        return x + self.mlp(self.pre_mlp_layer_norm(x), deterministic=True), (cache, caches[1])


class Encoder(nn.Module):
    """The tower that reads."""

    config: T5Config

    def setup(self) -> None:
        """Make the submodules and parameters."""
        self.relpos_bias = _relpos_bias(self.config, bidirectional=True)
        self.layers = [EncoderLayer(self.config) for _ in range(self.config.num_encoder_layers)]
        self.encoder_norm = _norm(self.config)
        self.dropout = layers.Dropout(self.config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "batch source embed"],
        mask: Bool[Array, "batch 1 #source source"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch source embed"]:
        """Return the encoder's normalised states."""
        bias = self.relpos_bias(x.shape[1])
        x = self.dropout(x, deterministic=deterministic)
        run = layers.runner(deterministic=deterministic, remat=self.config.remat)
        for layer in self.layers:
            x = run(layer, x, bias, mask)
        return self.dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(nn.Module):
    """The tower that writes, with the untied head of v1.1."""

    config: T5Config

    def setup(self) -> None:
        """Make the submodules and parameters."""
        self.relpos_bias = _relpos_bias(self.config, bidirectional=False)
        self.layers = [DecoderLayer(self.config) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = _norm(self.config)
        self.dropout = layers.Dropout(self.config.dropout_rate)
        if not self.config.logits_via_embedding:
            self.logits_dense = layers.Dense(self.config.vocab_size, self.config.dtype)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Float[Array, "batch source embed"],
        mask: Bool[Array, "#batch 1 length length"],
        cross_mask: Bool[Array, "batch 1 #length source"],
        *,
        deterministic: bool,
    ) -> Float[Array, "batch length embed"]:
        """Return the decoder's normalised states."""
        bias = self.relpos_bias(x.shape[1])
        x = self.dropout(x, deterministic=deterministic)
        run = layers.runner(deterministic=deterministic, remat=self.config.remat)
        for layer in self.layers:
            x = run(layer, x, encoded, bias, mask, cross_mask)
        return self.dropout(self.decoder_norm(x), deterministic=deterministic)

    def read(self, encoded: Float[Array, "batch source embed"]) -> list[tuple[Array, Array]]:
        """Return each layer's keys and values of the encoder's states."""
        return [layer.read(encoded) for layer in self.layers]

    def start(
        self,
        x: Float[Array, "batch length embed"],
        unread: Int[Array, "batch"],
        read: Sequence[tuple[Array, Array]],
        visible: Bool[Array, "batch source"],
    ) -> DecodingState:
        """Return the state after the positions of `x`, of which the first `unread` are padding."""
        length, caches = x.shape[1], []
        mask = layers.causal_mask(length) & _from(unread, length)[:, None, None]
        bias = self.relpos_bias(length + 1)[:, :, :length, :length]
        for layer, keys_values in zip(self.layers, read, strict=True):
            x, of_layer = layer.begin(x, keys_values, bias, mask, visible[:, None, None])
            caches.append(of_layer)
        cross_bias = layers.mask_bias(visible)[:, None]
        state = {"caches": caches, "cross_bias": cross_bias, "read": jnp.asarray(length)}
        return {**state, "unread": unread} if length else state

    def step(
        self, x: Float[Array, "batch 1 embed"], state: DecodingState, index: Int[Array, ""]
    ) -> tuple[Float[Array, "batch embed"], DecodingState]:
        """Return the normalised state of the `index`-th position and the extended caches."""
        slot, slots = state["read"] + index, state["caches"][0][0]["key"].shape[2]
        by_distance = self.relpos_bias.by_distance(np.arange(1 - slots, slots))
        bias = jax.lax.dynamic_slice_in_dim(by_distance, slots - 1 - slot, slots, axis=1)
        mask = (jnp.arange(slots) <= slot)[None]
        if "unread" in state:
            mask &= _from(state["unread"], slots)
        bias, kept = bias + layers.mask_bias(mask)[:, None], []
        for layer, caches in zip(self.layers, state["caches"], strict=True):
            x, caches = layer.step(x, caches, slot, bias, state["cross_bias"])
            kept.append(caches)
        return self.decoder_norm(x)[:, 0], {**state, "caches": kept}

    def project(self, hidden: Float[Array, "*axes embed"]) -> Float[Array, "*axes vocab"]:
        """Return the untied head's logits."""
        return self.logits_dense(hidden).astype(jnp.float32)


class T5(nn.Module):
    """The network behind `T5Model`; parameters and arrays are named as in T5X."""

    config: T5Config

    def setup(self) -> None:
        """Make the submodules and parameters."""
        config = self.config
        self.token_embedder = layers.Embedding(config.vocab_size, config.embed_dim, config.dtype)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def __call__(
        self, batch: Mapping[str, Any], *, deterministic: bool = True
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits of a batch."""
        return self.project(self.hidden(batch, deterministic=deterministic))

    def hidden(
        self, batch: Mapping[str, Any], *, deterministic: bool = True
    ) -> Float[Array, "batch length embed"]:
        """Return the decoder's last states; attention stays within a segment where given."""
        sources, tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        source_segments = batch.get("encoder_segment_ids", sources != 0).astype(jnp.int32)
        segments = batch.get("decoder_segment_ids", np.ones(tokens.shape, np.int32))
        encoded = self.encode(sources, source_segments, deterministic=deterministic)
        mask = layers.causal_mask(tokens.shape[1]) & layers.segment_mask(segments, segments)
        cross_mask = layers.segment_mask(segments, source_segments)
        return self.decoder(
            self.token_embedder(tokens), encoded, mask, cross_mask, deterministic=deterministic
        )

    def encode(
        self,
        sources: Int[Array, "batch source"],
        segments: Int[Array, "batch source"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "batch source embed"]:
        """Return the encoder's states."""
        mask = layers.segment_mask(segments, segments)
        return self.encoder(self.token_embedder(sources), mask, deterministic=deterministic)

    def read(self, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]) -> Reading:
        """Return what the decoder attends to of the prompts."""
        visible = ~_from(lengths, prompts.shape[1])
        encoded = self.encode(prompts, visible.astype(jnp.int32))
        return {"keys_values": self.decoder.read(encoded), "visible": visible}

    def start(
        self, reading: Reading, forced: Int[Array, "batch length"], unread: Int[Array, "batch"]
    ) -> DecodingState:
        """Return the state before the last forced token; the row is shifted by the start token."""
        before = jnp.pad(forced, ((0, 0), (1, 0)), constant_values=START_ID)[:, : forced.shape[1]]
        x = self.token_embedder(before)
        return self.decoder.start(x, unread, reading["keys_values"], reading["visible"])

    def step(
        self, state: DecodingState, tokens: Int[Array, "batch"], index: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], DecodingState]:
        """Return the logits after `tokens`, the `index`-th since the start, and the new state."""
        x, state = self.decoder.step(self.token_embedder(tokens[:, None]), state, index)
        return self.project(x), state

    def project(self, hidden: Float[Array, "*axes embed"]) -> Float[Array, "*axes vocab"]:
        """Return the logits of decoder states, in float32."""
        if not self.config.logits_via_embedding:
            return self.decoder.project(hidden)
        return self.token_embedder.attend(hidden * self.config.embed_dim**-0.5)


@dataclasses.dataclass(frozen=True)
class T5Model:
    """A T5 without its parameters: what the trainer, the sampler and the exporter hold.

    Batches are mappings with T5X's names: `encoder_input_tokens`, `decoder_input_tokens`, and for
    packed rows `encoder_segment_ids`, `decoder_segment_ids` (0 is padding); positions are accepted
    and not needed, since relative positions within a segment are differences of indices. Without
    segments, token 0 is the encoder's padding.

    Example:
        >>> config = T5Config(32, 8, 2, 4, 16, 1, 1)
        >>> params = T5Model(config).init(jax.random.key(0))
        >>> tokens = np.array([[5, 6, 1]])
        >>> batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
        >>> T5Model(config).logits(params, batch).shape
        (1, 3, 32)
    """

    config: T5Config

    @property
    def network(self) -> T5:
        """The Flax module."""
        return T5(self.config)

    def init(self, key: Array) -> Params:
        """Return fresh float32 parameters, named as in T5X."""
        token = jnp.ones((1, 1), jnp.int32)
        batch = {"encoder_input_tokens": token, "decoder_input_tokens": token}
        return jax.jit(self.network.init)(key, batch)["params"]

    def logits(
        self, params: Params, batch: Mapping[str, Any], *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length vocab"]:
        """Return float32 logits; dropout only with a key."""
        return self.project(params, self.hidden(params, batch, dropout_key=dropout_key))

    def hidden(
        self, params: Params, batch: Mapping[str, Any], *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length embed"]:
        """Return the states before the projection, so that a loss may project them in chunks."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        deterministic = dropout_key is None
        return layers.call(
            self.network, params, T5.hidden, batch, rngs=rngs, deterministic=deterministic
        )

    def project(
        self, params: Params, hidden: Float[Array, "*axes embed"]
    ) -> Float[Array, "*axes vocab"]:
        """Return the float32 logits of `hidden`."""
        return layers.call(self.network, params, T5.project, hidden)

    def prompt(self, ids: Sequence[int], eos_id: int) -> list[int]:
        """Return the row that the encoder reads."""
        return [*ids, eos_id]

    def begun(self, prompt: list[int], prefix: list[int]) -> tuple[list[int], list[int]]:
        """Return the row that the encoder reads, and the tokens that the decoder is forced to."""
        return prompt, prefix

    def first_tokens(
        self, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]
    ) -> Int[Array, "batch"]:
        """Return what the first step is fed."""
        del prompts
        return jnp.full_like(lengths, START_ID)

    def read(
        self, params: Params, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]
    ) -> Reading:
        """Return what right-padded prompts leave for decoding, a row each."""
        return layers.call(self.network, params, T5.read, prompts, lengths)

    def start(
        self,
        params: Params,
        reading: Reading,
        forced: Int[Array, "batch length"],
        unread: Int[Array, "batch"],
    ) -> DecodingState:
        """Return the state after the prompts and all but the last forced token, without room.

        Args:
            params: the network's parameters.
            reading: as of `read`.
            forced: left-padded with START_ID, so that all rows go on at the same position.
            unread: padding tokens of each row of `forced`.
        """
        return layers.call(self.network, params, T5.start, reading, forced, unread)

    def widen(self, state: DecodingState, more: int) -> DecodingState:
        """Return the state with room for as many more tokens."""
        caches = [(layers.widen(cache, more), cross) for cache, cross in state["caches"]]
        return {**state, "caches": caches}

    def step(
        self,
        params: Params,
        state: DecodingState,
        tokens: Int[Array, "batch"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "batch vocab"], DecodingState]:
        """Return the logits after `tokens`, the `index`-th since the start, and the new state."""
        return layers.call(self.network, params, T5.step, state, tokens, index)

    def reordered(self, state: DecodingState, rows: Int[Array, "batch"]) -> DecodingState:
        """Return the state whose rows are those of `rows`, each after the same prompt."""
        caches = [(layers.reordered(cache, rows), cross) for cache, cross in state["caches"]]
        return {**state, "caches": caches}

    def continuation(
        self,
        prompts: Int[Array, "batch source"],
        lengths: Int[Array, "batch"],
        inputs: Int[Array, "batch length"],
    ) -> dict[str, Array]:
        """Return the batch whose states are those of `inputs` fed after the prompts."""
        visible = jnp.arange(prompts.shape[1]) < lengths[:, None]
        return {
            "encoder_input_tokens": prompts,
            "encoder_segment_ids": visible.astype(jnp.int32),
            "decoder_input_tokens": inputs,
        }

    def logical_axes(self, params: Params) -> Params:
        """Return the logical axis names of each parameter."""
        return layers.logical_axes(params)
