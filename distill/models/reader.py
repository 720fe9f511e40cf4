"""Layers that read a question and a network's states of its solution; they judge nothing.

A network of few layers that has read a wrong sum cannot both work the sum out and compare: what it
would have written is known in its last state alone, one position earlier; and of the question it
keeps what it needed to go on. So these layers are given the tokens of both, the states, and the
log-probability of each token, and may learn which surprise is a mistake (a digit) and which is none
(another word), and whether what is written is what was asked.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from distill.models import layers
from distill.models.decoder import DecoderConfig, DecoderStack
from distill.models.layers import Params

SURPRISES = 3  # nats of the token, of the likeliest one, and the entropy
_POSITIONS = 16  # whose logits exist at once


@dataclasses.dataclass(frozen=True)
class Reader:
    """The shape of the layers.

    Attributes:
        width: of their residual stream; the hidden width of their feed-forward layers is twice it.
        depth: layers.
        heads: of attention.
        dropout_rate: share of features dropped in training.
        prompt: whether the tokens of the prompt are read too, before the solution's; long prompts
            cost as long a pass of the layers.

    Raises:
        ValueError: a count below 1, or heads of an odd or unequal width.
    """

    width: int = 96
    depth: int = 1
    heads: int = 2
    dropout_rate: float = 0.0
    prompt: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(f"expected twice the heads to divide the width, got {self}")
        _ = self.stack

    @property
    def stack(self) -> DecoderConfig:
        """The layers as those of a decoder."""
        return DecoderConfig(
            1,
            self.width,
            self.heads,
            self.width // self.heads,
            2 * self.width,
            self.depth,
            num_kv_heads=self.heads,
            dropout_rate=self.dropout_rate,
        )

    def init(self, key: Array, embed_dim: int) -> Params:
        """Return fresh parameters for a network of this width."""
        row = jnp.zeros((1, 1, embed_dim))
        given = Given(row, jnp.ones(1, jnp.int32), row, row, jnp.zeros((1, 1, SURPRISES)))
        return jax.jit(_Reading(self).init)(key, given)["params"]

    def read(
        self, params: Params, given: "Given", *, dropout_key: Array | None = None
    ) -> Float[Array, "batch length width"]:
        """Return a state for each position of the solution, which depends on those up to it alone.

        Args:
            params: of `init`.
            given: what is read.
            dropout_key: nothing is dropped without it.
        """
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        deterministic = dropout_key is None
        return _Reading(self).apply(
            {"params": params}, given, deterministic=deterministic, rngs=rngs
        )  # pyright: ignore[reportReturnType]

    def logical_axes(self, params: Params) -> Params:
        """Return the logical axis names of each parameter; they lie whole on every device."""
        return jax.tree.map(lambda leaf: ("score",) * leaf.ndim, params)


class Given(NamedTuple):
    """What is read of a batch.

    Attributes:
        question: embeddings of the prompts' tokens, right-padded.
        lengths: tokens of each prompt.
        words: embeddings of the solutions' tokens; the first is no token of the text.
        states: the network's last ones.
        nats: as of `surprises`.
    """

    question: Float[Array, "batch source embed"]
    lengths: Int[Array, "batch"]
    words: Float[Array, "batch length embed"]
    states: Float[Array, "batch length embed"]
    nats: Float[Array, "batch length 3"]


class _Reading(nn.Module):
    reader: Reader

    @nn.compact
    def __call__(
        self, given: Given, *, deterministic: bool = True
    ) -> Float[Array, "batch length width"]:
        if not self.reader.prompt:
            given = given._replace(question=given.question[:, :0], lengths=0 * given.lengths)
        width, source, length = self.reader.width, given.question.shape[1], given.words.shape[1]
        before = jnp.pad(given.states, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        norm = layers.RMSNorm("float32", name="norm")  # of embeddings, whose scale is a network's
        solution = jnp.concatenate([norm(given.words), given.states, before, given.nats], -1)
        asked = layers.Dense(width, "float32", name="question")(norm(given.question))
        written = layers.Dense(width, "float32", name="inputs")(solution)
        places = jnp.arange(source + length)
        padding = (places >= given.lengths[:, None]) & (places < source)
        skipped = jnp.where(places < source, 0, source - given.lengths[:, None])
        mask = layers.causal_mask(source + length) & ~padding[:, None, None]
        x, positions = jnp.concatenate([asked, written], 1), places - skipped
        stack = DecoderStack(self.reader.stack, name="stack")
        return stack(x, positions, mask, deterministic=deterministic)[0][:, source:]


def surprises(
    project: Callable[[Array], Array],
    states: Float[Array, "batch length embed"],
    tokens: Int[Array, "batch length"],
) -> Float[Array, "batch length 3"]:
    """Return how a network saw each token when it had read those before it.

    Args:
        project: states -> logits.
        states: state i has read token i.
        tokens: the first is no token of the text.

    Returns:
        Nats of the token, of the likeliest token, and the entropy; all 0 at the first position.
    """
    follow = (jnp.swapaxes(states[:, :-1], 0, 1), tokens[:, 1:].T)
    found = jax.lax.map(functools.partial(_surprise, project), follow, batch_size=_POSITIONS)
    return jnp.pad(jnp.swapaxes(found, 0, 1), ((0, 0), (1, 0), (0, 0)))


def _surprise(
    project: Callable[[Array], Array], state_and_token: tuple[Array, Array]
) -> Float[Array, "batch 3"]:
    state, token = state_and_token
    nats = jax.nn.log_softmax(project(state))
    own = jnp.take_along_axis(nats, token[:, None], 1)[:, 0]
    return jnp.stack([own, jnp.max(nats, -1), -jnp.sum(jnp.exp(nats) * nats, -1)], -1)
