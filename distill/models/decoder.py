"""A small decoder-only transformer, the built-in teacher's network; knows no loss and no files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from distill.models import layers
from distill.models.layers import Cache, DecodingState, Params, Reading

START_ID = 0  # rows are shifted right with 0 first, as for T5


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
        vocab_size: rows of the embedding, padding rows included.
        embed_dim: width of the residual stream.
        num_heads: attention heads.
        head_dim: width of a head, even.
        mlp_dim: hidden width of the feed-forward layers.
        num_layers: layers.
        num_kv_heads: heads of keys and values; fewer make decoding read less memory.
        mlp_activations: two names make it gated.
        logits_via_embedding: tied head.
        dropout_rate: share of features dropped in training.
        dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int
    num_kv_heads: int = 1
    mlp_activations: tuple[str, ...] = ("silu", "linear")
    logits_via_embedding: bool = True
    dropout_rate: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        counts = ("vocab_size", "embed_dim", "num_heads", "head_dim", "mlp_dim", "num_layers")
        layers.require_shape_fields(self, (*counts, "num_kv_heads"))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"expected num_kv_heads to divide num_heads, got {self.num_kv_heads} "
                f"and {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"expected an even head_dim for rotation, got {self.head_dim}")


class Layer(nn.Module):
    """Causal self-attention and feed-forward, each normalised before and added after."""

    config: DecoderConfig

    def setup(self) -> None:
        """Make the submodules and parameters."""
        config = self.config
        self.pre_self_attention_layer_norm = layers.RMSNorm(config.dtype)
        self.self_attention = layers.Attention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            embed_dim=config.embed_dim,
            dropout_rate=config.dropout_rate,
            dtype=config.dtype,
            query_scale=config.head_dim**-0.5,
        )
        self.pre_mlp_layer_norm = layers.RMSNorm(config.dtype)
        self.mlp = layers.Mlp(
            config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype
        )
        self.dropout = layers.Dropout(config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        mask: Bool[Array, "#batch 1 length length"],
        rotation: tuple[Array, Array],
        *,
        deterministic: bool,
    ) -> tuple[Float[Array, "batch length embed"], tuple[Array, Array]]:
        """Return the residual stream after this layer, and the layer's keys and values."""
        y = self.pre_self_attention_layer_norm(x)
        keys_values = self.self_attention.keys_values(y, rotation)
        y = self.self_attention.attend(
            y, *keys_values, None, mask, rotation, deterministic=deterministic
        )
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        return x + self.dropout(y, deterministic=deterministic), keys_values

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        cache: Cache,
        slot: Int[Array, ""],
        bias: Float[Array, "batch 1 slots"],
        rotation: tuple[Array, Array],
    ) -> tuple[Float[Array, "batch 1 embed"], Cache]:
        """Run one position, reading the cache and writing its own keys and values to `slot`."""
        y = self.pre_self_attention_layer_norm(x)
        keys_values = self.self_attention.keys_values(y, rotation)
        cache = layers.extend(cache, *keys_values, slot)
        x = x + self.self_attention.recall(y, cache, bias, rotation)
        return x + self.mlp(self.pre_mlp_layer_norm(x), deterministic=True), cache


class DecoderStack(nn.Module):
    """The layers and the last norm."""

    config: DecoderConfig

    def setup(self) -> None:
        """Make the submodules and parameters."""
        self.layers = [Layer(self.config) for _ in range(self.config.num_layers)]
        self.decoder_norm = layers.RMSNorm(self.config.dtype)
        if not self.config.logits_via_embedding:
            self.logits_dense = layers.Dense(self.config.vocab_size, self.config.dtype)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        positions: Int[Array, "batch length"],
        mask: Bool[Array, "#batch 1 length length"],
        *,
        deterministic: bool,
    ) -> tuple[Float[Array, "batch length embed"], list[tuple[Array, Array]]]:
        """Return the normalised states, and each layer's keys and values."""
        kept = []
        rotation = layers.rotary_angles(positions, self.config.head_dim)
        for layer in self.layers:
            x, keys_values = layer(x, mask, rotation, deterministic=deterministic)
            kept.append(keys_values)
        return self.decoder_norm(x), kept

    def step(
        self,
        x: Float[Array, "batch 1 embed"],
        caches: list[Cache],
        slot: Int[Array, ""],
        positions: Int[Array, "batch"],
        visible: Bool[Array, "batch slots"],
    ) -> tuple[Float[Array, "batch embed"], list[Cache]]:
        """Return the normalised state of one position and the extended caches."""
        bias, kept = layers.mask_bias(visible)[:, None], []
        rotation = layers.rotary_angles(positions[:, None], self.config.head_dim)
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer.step(x, cache, slot, bias, rotation)
            kept.append(cache)
        return self.decoder_norm(x)[:, 0], kept

    def project(self, hidden: Float[Array, "*axes embed"]) -> Float[Array, "*axes vocab"]:
        """Return the untied head's logits."""
        return self.logits_dense(hidden).astype(jnp.float32)


class Decoder(nn.Module):
    """The network behind `DecoderModel`, its parameters named in T5X's manner."""

    config: DecoderConfig

    def setup(self) -> None:
        """Make the submodules and parameters."""
        config = self.config
        self.token_embedder = layers.Embedding(
            config.vocab_size, config.embed_dim, config.dtype, config.embed_dim**-0.5
        )
        self.decoder = DecoderStack(config)

    def __call__(
        self, batch: Mapping[str, Any], *, deterministic: bool = True
    ) -> Float[Array, "batch length vocab"]:
        """Return the logits of a batch."""
        return self.project(self.hidden(batch, deterministic=deterministic))

    def embed(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Return the tokens' rows at unit scale, which leaves the tied head's logits at theirs."""
        return self.token_embedder(tokens) * self.config.embed_dim**0.5

    def hidden(
        self, batch: Mapping[str, Any], *, deterministic: bool = True
    ) -> Float[Array, "batch length embed"]:
        """Return the last states; attention stays within a segment where segments are given."""
        tokens = batch["decoder_input_tokens"]
        mask = layers.causal_mask(tokens.shape[1])
        if "decoder_segment_ids" in batch:
            segments = batch["decoder_segment_ids"]
            mask = mask & layers.segment_mask(segments, segments)
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        positions = batch.get("decoder_positions", places)
        return self.decoder(self.embed(tokens), positions, mask, deterministic=deterministic)[0]

    def read(self, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]) -> Reading:
        """Return the keys and values of each prompt, of which all but the last token are read."""
        positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
        mask = layers.causal_mask(prompts.shape[1])
        _, kept = self.decoder(self.embed(prompts), positions, mask, deterministic=True)
        return {"keys_values": kept, "read": lengths - 1}

    def step(
        self, state: DecodingState, tokens: Int[Array, "batch"], index: Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocab"], DecodingState]:
        """Return the logits after `tokens`, the `index`-th since the start, and the new state."""
        read = state["read"]
        slots = state["caches"][0]["key"].shape[2]
        slot = state["source"] + index
        places = jnp.arange(slots)
        written = (places >= state["source"]) & (places <= slot)
        visible = (places < read[:, None]) | written
        x, caches = self.decoder.step(
            self.embed(tokens[:, None]), state["caches"], slot, read + index, visible
        )
        return self.project(x), {**state, "caches": caches}

    def project(self, hidden: Float[Array, "*axes embed"]) -> Float[Array, "*axes vocab"]:
        """Return the logits of the last states, in float32."""
        if self.config.logits_via_embedding:
            return self.token_embedder.attend(hidden)
        return self.decoder.project(hidden)


@dataclasses.dataclass(frozen=True)
class DecoderModel:
    """A decoder without its parameters: what the trainer and the sampler hold.

    Batches are mappings with T5X's names: `decoder_input_tokens`, and for packed rows
    `decoder_segment_ids` (0 is padding) and `decoder_positions`.

    Example:
        >>> model = DecoderModel(DecoderConfig(32, 8, 2, 4, 16, 1))
        >>> params = model.init(jax.random.key(0))
        >>> model.logits(params, {"decoder_input_tokens": jnp.array([[0, 5, 6]])}).shape
        (1, 3, 32)
    """

    config: DecoderConfig

    @property
    def network(self) -> Decoder:
        """The Flax module."""
        return Decoder(self.config)

    def init(self, key: Array) -> Params:
        """Return fresh float32 parameters."""
        batch = {"decoder_input_tokens": jnp.ones((1, 1), jnp.int32)}
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
            self.network, params, Decoder.hidden, batch, rngs=rngs, deterministic=deterministic
        )

    def project(
        self, params: Params, hidden: Float[Array, "*axes embed"]
    ) -> Float[Array, "*axes vocab"]:
        """Return the float32 logits of `hidden`."""
        return layers.call(self.network, params, Decoder.project, hidden)

    def prompt(self, ids: Sequence[int], eos_id: int) -> list[int]:
        """Return the row that is read before the first token is written."""
        del eos_id
        return [START_ID, *ids]

    def begun(self, prompt: list[int], prefix: list[int]) -> tuple[list[int], list[int]]:
        """Return the row that is read before the first token; nothing is forced after it."""
        return [*prompt, *prefix], []

    def first_tokens(
        self, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]
    ) -> Int[Array, "batch"]:
        """Return what the first step is fed: each prompt's last token."""
        return jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]

    def read(
        self, params: Params, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"]
    ) -> Reading:
        """Return what right-padded prompts leave for decoding, a row each."""
        return layers.call(self.network, params, Decoder.read, prompts, lengths)

    def start(
        self,
        params: Params,
        reading: Reading,
        forced: Int[Array, "batch length"],
        unread: Int[Array, "batch"],
    ) -> DecodingState:
        """Return the state after what was read, with no room for tokens yet."""
        del params, forced, unread
        source = jnp.asarray(reading["keys_values"][0][0].shape[1])
        caches = [layers.open_cache(*keys_values) for keys_values in reading["keys_values"]]
        return {"caches": caches, "read": reading["read"], "source": source}

    def widen(self, state: DecodingState, more: int) -> DecodingState:
        """Return the state with room for as many more tokens."""
        caches = [layers.widen(cache, more) for cache in state["caches"]]
        return {**state, "caches": caches}

    def step(
        self,
        params: Params,
        state: DecodingState,
        tokens: Int[Array, "batch"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "batch vocab"], DecodingState]:
        """Return the logits after `tokens`, the `index`-th since the start, and the new state."""
        return layers.call(self.network, params, Decoder.step, state, tokens, index)

    def reordered(self, state: DecodingState, rows: Int[Array, "batch"]) -> DecodingState:
        """Return the state whose rows are those of `rows`, each after the same prompt."""
        caches = [layers.reordered(cache, rows) for cache in state["caches"]]
        return {**state, "caches": caches}

    def continuation(
        self, prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"], inputs: Array
    ) -> dict[str, Array]:
        """Return the batch whose last states are those of `inputs` fed after the prompts."""
        places, steps = jnp.arange(prompts.shape[1]), jnp.arange(inputs.shape[1])
        read = lengths[:, None] - 1
        positions = [jnp.broadcast_to(places, prompts.shape), read + steps]
        segments = [places < read, jnp.ones_like(inputs, bool)]
        return {
            "decoder_input_tokens": jnp.concatenate([prompts, inputs], 1),
            "decoder_positions": jnp.concatenate(positions, 1),
            "decoder_segment_ids": jnp.concatenate(segments, 1).astype(jnp.int32),
        }

    def logical_axes(self, params: Params) -> Params:
        """Return the logical axis names of each parameter."""
        return layers.logical_axes(params)
