"""Beam search over tokens in one compiled loop, its outputs those of transformers; no verifier."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from distill.models import decoding, stopping
from distill.models.decoding import Network, Prompts, Vocabulary
from distill.models.layers import DecodingState, Params, Reading

_BARRED = -1e9  # finite, as transformers adds it, so that what is barred keeps an order

Stopping = Literal["full", "unlikely", "never"]


class Beams(NamedTuple):
    """What each prompt found, the best first.

    Attributes:
        ids: the tokens, EOS included where a beam has one; 0 after them.
        scores: nats of the tokens together, over their number to the power of the penalty.
    """

    ids: Int[Array, "prompts beams steps"]
    scores: Float[Array, "prompts beams"]


class _Loop(NamedTuple):
    """What the loop carries: the beams that go on, and the best that have ended."""

    index: Int[Array, ""]
    state: DecodingState
    running: Beams
    finished: Beams
    done: Bool[Array, "prompts beams"]
    improving: Bool[Array, "prompts"]


def search(
    network: Network,
    params: Params,
    prompts: Prompts,
    vocabulary: Vocabulary,
    *,
    beams: int,
    limit: int,
    length_penalty: float = 1.0,
    stop: Stopping = "unlikely",
) -> Beams:
    """Return the likeliest texts after each prompt that a beam finds.

    Args:
        network: what to run.
        params: its parameters.
        prompts: `beams` rows in turn for each prompt.
        vocabulary: which tokens may be; a beam ends at EOS alone.
        beams: beams of a prompt.
        limit: most tokens of a beam.
        length_penalty: above 0 favours long texts, below 0 short ones.
        stop: a prompt is done when as many beams have ended ("full"), when no running beam, ended
            where it is, would be better than the worst of these ("unlikely"), or when none could
            become better at any length ("never" early).

    Source:
        transformers' `GenerationMixin._beam_search`; `stop` is its `early_stopping` of True, False
        and "never".
    """
    return _search(
        network,
        params,
        decoding.read(network, params, prompts),
        prompts,
        vocabulary,
        np.float32(length_penalty),
        np.int32(limit),
        beams=beams,
        room=-(-limit // 64) * 64,
        stop=stop,
    )


@functools.partial(jax.jit, static_argnames=("network", "beams", "room", "stop"))
def _search(
    network: Network,
    params: Params,
    reading: Reading,
    prompts: Prompts,
    vocabulary: Vocabulary,
    penalty: Float[Array, ""],
    limit: Int[Array, ""],
    *,
    beams: int,
    room: int,
    stop: Stopping,
) -> Beams:
    count = len(prompts.opening) // beams
    first = decoding.first_tokens(network, prompts)

    def unfinished(loop: _Loop) -> Array:
        full = jnp.all(loop.done | ~loop.improving[:, None]) if stop == "full" else False
        return (loop.index < limit) & jnp.any(loop.improving) & ~jnp.asarray(full)

    def write(loop: _Loop) -> _Loop:
        index, running = loop.index, loop.running
        last = jax.lax.dynamic_index_in_dim(running.ids, index - 1, axis=2, keepdims=False)
        tokens = jnp.where(index == 0, first, last.reshape(-1))
        logits, state = network.step(params, loop.state, tokens, index)
        longer, origin, ended = _longer(logits, running, index, vocabulary)
        ended |= index + 1 >= limit
        scores, kept = jax.lax.top_k(longer.scores + jnp.where(ended, _BARRED, 0.0), beams)
        running = Beams(_picked(longer.ids, kept), scores)
        order = jnp.arange(count)[:, None] * beams + jnp.take_along_axis(origin, kept, 1)
        finished, done = _finished(loop, longer, ended, (index + 1) ** penalty, stop)
        length = jnp.where((penalty > 0) & (stop == "never"), limit, index + 1)
        hoped = running.scores[:, :1] / length**penalty
        worst = jnp.where(done, finished.scores.min(1, keepdims=True), _BARRED)
        improving = loop.improving & jnp.any(hoped > worst, 1)
        state = network.reordered(state, order.reshape(-1))
        return _Loop(index + 1, state, running, finished, done, improving)

    ids = jnp.zeros((count, beams, room), jnp.int32)
    state = network.start(params, reading, jnp.asarray(prompts.forced), jnp.asarray(prompts.unread))
    loop = _Loop(
        jnp.zeros((), jnp.int32),
        network.widen(state, room),
        Beams(ids, jnp.full((count, beams), _BARRED).at[:, 0].set(0.0)),
        Beams(ids, jnp.full((count, beams), _BARRED)),
        jnp.zeros((count, beams), bool),
        jnp.asarray(prompts.opening)[::beams] != stopping.ENDED,
    )
    return jax.lax.while_loop(unfinished, write, loop).finished


def _longer(
    logits: Float[Array, "rows vocab"],
    running: Beams,
    index: Int[Array, ""],
    vocabulary: Vocabulary,
) -> tuple[Beams, Int[Array, "prompts twice"], Bool[Array, "prompts twice"]]:
    """Return the best continuations, twice the beams, whence they come, and whether they end."""
    count, beams = running.scores.shape
    nats = jax.nn.log_softmax(jnp.where(vocabulary.exists, logits, -jnp.inf))
    nats = jnp.where(vocabulary.drawn, nats, -jnp.inf).reshape(count, beams, -1)
    together = (nats + running.scores[:, :, None]).reshape(count, -1)
    scores, places = decoding.top(together, 2 * beams)
    origin, tokens = jnp.divmod(places, nats.shape[2])
    ids = _picked(running.ids, origin).at[:, :, index].set(tokens)
    return Beams(ids, scores), origin, tokens == vocabulary.eos_id


def _finished(
    loop: _Loop,
    longer: Beams,
    ended: Bool[Array, "prompts twice"],
    divisor: Float[Array, ""],
    stop: Stopping,
) -> tuple[Beams, Bool[Array, "prompts beams"]]:
    """Keep the best of what had ended and of what ends now among the first half."""
    beams = loop.done.shape[1]
    ended = ended & (jnp.arange(2 * beams) < beams)
    barred = ~loop.improving[:, None] | (jnp.all(loop.done, 1, keepdims=True) & (stop == "full"))
    scores = longer.scores / divisor
    scores = scores + jnp.where(barred, _BARRED, 0.0) + jnp.where(ended, 0.0, _BARRED)
    best, at = jax.lax.top_k(jnp.concatenate([loop.finished.scores, scores], 1), beams)
    ids = _picked(jnp.concatenate([loop.finished.ids, longer.ids], 1), at)
    return Beams(ids, best), jnp.take_along_axis(jnp.concatenate([loop.done, ended], 1), at, 1)


def _picked(
    ids: Int[Array, "prompts many steps"], at: Int[Array, "prompts few"]
) -> Int[Array, "prompts few steps"]:
    return jnp.take_along_axis(ids, at[:, :, None], 1)
