"""Draws tokens from any of our models in one compiled loop; works on ids, not on text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from distill.models import stopping
from distill.models.layers import DecodingState, Params, Reading
from distill.models.rows import FIRST_ROOM

AnyArray = Array | np.ndarray
Place = Callable[[Any], Any]  # a tree of rows -> the same, on the devices where it runs
_BISECTIONS = 32  # halvings of the range of logits, to below the spacing of float32
READ_TOGETHER = 16  # prompts that are read together
_BLOCK = 64  # a vocabulary is searched block by block: sorts and long sums are slow on a CPU


class Network(Protocol):
    """What decoding and scoring ask of a model; T5Model and DecoderModel are such."""

    @property
    def config(self) -> Any:
        """Its shape; `vocab_size` is the number of logits."""
        ...

    def logical_axes(self, params: Params) -> Params:
        """Return the logical axis names of each parameter, for `distill.models.partitioning`."""
        ...

    def prompt(self, ids: Any, eos_id: int) -> list[int]:
        """Return the row that is read before the first token is written."""
        ...

    def begun(self, prompt: list[int], prefix: list[int]) -> tuple[list[int], list[int]]:
        """Return the row that is read, and the tokens that what is written begins with."""
        ...

    def first_tokens(self, prompts: Array, lengths: Array) -> Array:
        """Return what the first step is fed, where nothing is forced."""
        ...

    def read(self, params: Params, prompts: Array, lengths: Array) -> Reading:
        """Return what prompts leave for decoding, a row each."""
        ...

    def start(
        self, params: Params, reading: Reading, forced: Array, unread: Array
    ) -> DecodingState:
        """Return the state before the first step, with no room for tokens."""
        ...

    def widen(self, state: DecodingState, more: int) -> DecodingState:
        """Return the state with room for as many more tokens."""
        ...

    def step(
        self, params: Params, state: DecodingState, tokens: Array, index: Array
    ) -> tuple[Array, DecodingState]:
        """Return the logits after `tokens` and the new state."""
        ...

    def reordered(self, state: DecodingState, rows: Array) -> DecodingState:
        """Return the state whose rows are those of `rows`, each after the same prompt."""
        ...

    def continuation(self, prompts: Array, lengths: Array, inputs: Array) -> dict[str, Array]:
        """Return the batch whose last states are those of `inputs` fed after the prompts."""
        ...

    def hidden(self, params: Params, batch: Any) -> Array:
        """Return the states before the projection."""
        ...

    def project(self, params: Params, hidden: Array) -> Array:
        """Return the logits of states."""
        ...


class Vocabulary(NamedTuple):
    """Which rows of the logits are what.

    Attributes:
        exists: rows that are tokens; the others are no outcome at all.
        drawn: tokens that may be drawn or reported: those with a text, and EOS.
        hot: tokens that may be drawn hot: those with a text.
        transitions: as of `stopping.transitions`.
        eos_id: the end of a sequence.
    """

    exists: Bool[AnyArray, "vocab"]
    drawn: Bool[AnyArray, "vocab"]
    hot: Bool[AnyArray, "vocab"]
    transitions: Int[AnyArray, "states vocab"]
    eos_id: Int[AnyArray, ""]


class Prompts(NamedTuple):
    """What rows read before they write; rows with the same prompt share it.

    Attributes:
        ids: right-padded rows of `Network.prompt` or `Network.begun`.
        lengths: of the prompts, at least 1.
        prompt: of each row, the place in `ids`.
        forced: left-padded rows of what is written first; of no width where nothing is.
        unread: padding tokens of each row of `forced`.
        opening: the state of each row in `stopping.transitions`; ENDED only fills the batch.
    """

    ids: Int[AnyArray, "prompts source"]
    lengths: Int[AnyArray, "prompts"]
    prompt: Int[AnyArray, "batch"]
    forced: Int[AnyArray, "batch length"]
    unread: Int[AnyArray, "batch"]
    opening: Int[AnyArray, "batch"]


class Kept(NamedTuple):
    """Which candidates of each row are kept: top-k, of those top-p, of those min-p.

    Attributes:
        top_k: candidates kept, 0 keeps all.
        top_p: nucleus mass kept, 1 keeps all; the nucleus is the fewest with at least this mass.
        min_p: least weight as a share of the largest, 0 keeps all.
    """

    top_k: Int[AnyArray, "batch"]
    top_p: Float[AnyArray, "batch"]
    min_p: Float[AnyArray, "batch"]


class Settings(NamedTuple):
    """How each row is drawn: temperature, then what is kept. Traced, so none recompiles.

    Attributes:
        temperature: 0 is greedy.
        top_k: as of Kept.
        top_p: as of Kept.
        min_p: as of Kept.
        hot: steps drawn hot (FIRE); all false for none.
        hot_temperature: of the hot steps.
        hot_top_k: candidates of the hot steps, 0 keeps all.
    """

    temperature: Float[AnyArray, "batch"]
    top_k: Int[AnyArray, "batch"]
    top_p: Float[AnyArray, "batch"]
    min_p: Float[AnyArray, "batch"]
    hot: Bool[AnyArray, "batch steps"]
    hot_temperature: Float[AnyArray, ""]
    hot_top_k: Int[AnyArray, ""]


def greedy(batch: int) -> Settings:
    """Return the settings of rows of which each takes the likeliest token."""
    zeros = np.zeros(batch, np.float32)
    kept = (zeros.astype(np.int32), np.ones(batch, np.float32), zeros)
    hot = (np.zeros((batch, 1), bool), np.array(1, np.float32), np.array(0, np.int32))
    return Settings(zeros, *kept, *hot)


class Measured(NamedTuple):
    """What the model says of tokens, in nats at temperature 1 over the tokens that exist."""

    logprobs: Float[AnyArray, "*axes batch"]
    eos_logprobs: Float[AnyArray, "*axes batch"]
    top_ids: Int[AnyArray, "*axes batch k"]
    top_logprobs: Float[AnyArray, "*axes batch k"]


class Decoded(NamedTuple):
    """What a batch wrote; entries from `counts` on are meaningless.

    Attributes:
        ids: the drawn tokens, the ending one included.
        behaviour_logprobs: nats under the distribution that was drawn from.
        measured: nats under the model.
        counts: tokens of each row.
    """

    ids: Int[AnyArray, "steps batch"]
    behaviour_logprobs: Float[AnyArray, "steps batch"]
    measured: Measured
    counts: Int[AnyArray, "batch"]


def _blocks(
    x: Float[Array, "batch vocab"], fill: float, at_least: int = 1
) -> Float[Array, "batch blocks width"]:
    count = max(-(-x.shape[1] // _BLOCK), at_least)
    padding = ((0, 0), (0, count * _BLOCK - x.shape[1]))
    return jnp.pad(x, padding, constant_values=fill).reshape(len(x), count, _BLOCK)


def _largest(
    x: Float[Array, "batch n"], ids: Int[Array, "#batch n"], k: int
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """Return the k largest and their ids, the lower id first among equals."""
    found = []
    for _ in range(k):
        best = jnp.max(x, -1, keepdims=True)
        at = jnp.min(jnp.where(x == best, ids, jnp.iinfo(jnp.int32).max), -1, keepdims=True)
        x = jnp.where(ids == at, -jnp.inf, x)
        found.append((best, at))
    values, places = zip(*found, strict=True)
    return jnp.concatenate(values, 1), jnp.concatenate(places, 1)


def top(
    x: Float[Array, "batch vocab"], k: int
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """Return the k largest entries of each row and their places, largest first.

    They lie in the k blocks with the largest maxima, so only those are searched. At most as many
    as are above minus infinity are meaningful.
    """
    blocks = _blocks(x, -jnp.inf, at_least=k)
    _, chosen = _largest(blocks.max(-1), jnp.arange(blocks.shape[1])[None], k)
    chosen = jnp.minimum(chosen, blocks.shape[1] - 1)[:, :, None]
    candidates = jnp.take_along_axis(blocks, chosen, 1).reshape(len(x), -1)
    ids = (chosen * _BLOCK + jnp.arange(_BLOCK)).reshape(len(x), -1)
    return _largest(candidates, ids, k)


def measure(
    logits: Float[Array, "batch vocab"],
    top_logits: Float[Array, "batch k"],
    top_ids: Int[Array, "batch k"],
    ids: Int[Array, "batch"],
    vocabulary: Vocabulary,
) -> Measured:
    """Return the log-probabilities of `ids`, of EOS and of the candidates."""
    total = jax.nn.logsumexp(jnp.where(vocabulary.exists, logits, -jnp.inf), -1)
    chosen = jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]
    end = jnp.take(logits, vocabulary.eos_id, axis=1)
    return Measured(chosen - total, end - total, top_ids, top_logits - total[:, None])


def _threshold(
    logits: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    target: Float[Array, "batch"],
) -> Float[Array, "batch 1"]:
    """Return the largest logit such that those not below it weigh at least `target`.

    By bisection: sorting a vocabulary at each step costs thirty times as much on a CPU.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = (
            jnp.sum(jnp.where(logits >= middle, weights, 0), -1, keepdims=True) >= target[:, None]
        )
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.min(jnp.where(jnp.isfinite(logits), logits, jnp.inf), -1, keepdims=True)
    high = jnp.nextafter(jnp.max(logits, -1, keepdims=True), jnp.inf)
    return jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))[0]


def truncate(
    logits: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    kept: Kept,
) -> Float[Array, "batch vocab"]:
    """Return `weights` with 0 for what is not kept.

    Candidates that tie with the last kept one are kept.

    Args:
        logits: minus infinity where nothing may be drawn.
        weights: proportional to the probabilities at the temperature of the draw.
        kept: which candidates are kept.
    """
    top_k, top_p, min_p = (jnp.asarray(each) for each in kept)

    def keep_k(weights: Array) -> Array:
        best = logits >= _threshold(logits, jnp.ones_like(weights), top_k.astype(jnp.float32))
        return jnp.where(best | (top_k == 0)[:, None], weights, 0)

    def keep_p(weights: Array) -> Array:
        nucleus = logits >= _threshold(logits, weights, top_p * weights.sum(-1))
        return jnp.where(nucleus | (top_p >= 1)[:, None], weights, 0)

    weights = jax.lax.cond(jnp.any(top_k > 0), keep_k, lambda same: same, weights)
    weights = jax.lax.cond(jnp.any(top_p < 1), keep_p, lambda same: same, weights)
    least = min_p[:, None] * jnp.max(weights, -1, keepdims=True)
    return jnp.where(weights >= least, weights, 0)


def draw(
    logits: Float[Array, "batch vocab"],
    uniform: Float[Array, "batch"],
    temperature: Float[Array, "batch"],
    kept: Kept,
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
    """Draw one token a row by inverting its distribution function.

    Args:
        logits: minus infinity where nothing may be drawn.
        uniform: in [0, 1), the only randomness.
        temperature: above 0.
        kept: which candidates are kept.

    Returns:
        The ids, and their nats under the distribution that was drawn from.
    """
    best = jnp.max(logits, -1, keepdims=True)
    weights = truncate(logits, jnp.exp((logits - best) / temperature[:, None]), kept)
    blocks = _blocks(weights, 0.0)
    sums = jnp.cumsum(blocks.sum(-1), -1)
    total = sums[:, -1]
    block, before = _passed(sums, uniform * total)
    within = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
    place, _ = _passed(jnp.cumsum(within, -1), uniform * total - before)
    chosen = jnp.take_along_axis(within, place[:, None], 1)[:, 0]
    return block * _BLOCK + place, jnp.log(chosen / total)


def _passed(
    sums: Float[Array, "batch n"], target: Float[Array, "batch"]
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
    """Return the first place whose running sum exceeds `target`, and the sum before it.

    A target that rounding has put at the last sum or below zero gives the last or first place with
    any weight.
    """
    last = sums[:, -1]
    target = jnp.clip(target, 0.0, jnp.nextafter(last, jnp.zeros_like(last)))
    passed = sums <= target[:, None]
    return passed.sum(-1, dtype=jnp.int32), jnp.max(jnp.where(passed, sums, 0.0), -1)


def choose(
    logits: Float[Array, "batch vocab"],
    greedy_ids: Int[Array, "batch"],
    uniform: Float[Array, "batch"],
    settings: Settings,
    hot: Bool[Array, "batch"],
    vocabulary: Vocabulary,
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
    """Draw one token a row as its settings say, hot or not.

    A hot row is drawn at `hot_temperature` among the `hot_top_k` likeliest texts, whatever its
    temperature, top-p and min-p are elsewhere; EOS, padding and sentinels cannot be drawn hot.

    Source:
        Chen et al. 2024 (FIRE), algorithm 1; the masking is ours.
    """
    allowed = jnp.where(hot[:, None], vocabulary.hot, vocabulary.drawn)
    temperature = jnp.where(hot, settings.hot_temperature, settings.temperature)
    greedy = temperature == 0
    ids, logprobs = draw(
        jnp.where(allowed, logits, -jnp.inf),
        uniform,
        jnp.where(greedy, 1.0, temperature),
        Kept(
            jnp.where(hot, settings.hot_top_k, settings.top_k),
            jnp.where(hot, 1.0, settings.top_p),
            jnp.where(hot, 0.0, settings.min_p),
        ),
    )
    return jnp.where(greedy, greedy_ids, ids), jnp.where(greedy, 0.0, logprobs)


class _Loop(NamedTuple):
    """What the decoding loop carries."""

    index: Int[Array, ""]
    tokens: Int[Array, "batch"]
    stage: Int[Array, "batch"]
    state: DecodingState
    written: Decoded


@functools.partial(jax.jit, static_argnames="network")
def _read(network: Network, params: Params, ids: Array, lengths: Array) -> Reading:
    return network.read(params, ids, lengths)


@jax.jit
def _of_rows(readings: Sequence[Reading], prompt: Int[Array, "batch"]) -> Reading:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[prompt], *readings)


def read(
    network: Network,
    params: Params,
    prompts: Prompts,
    place: Place = lambda rows: rows,
    *,
    together: int = READ_TOGETHER,
) -> Reading:
    """Read each prompt once, and return what it leaves for each row.

    As many prompts are read at a time in every batch, since the last bits of a product depend on
    its shape: so a row stays a function of its own prompt.

    Args:
        network: what to run.
        params: its parameters.
        prompts: what is read.
        place: puts rows where they are read.
        together: prompts that are read at a time.
    """
    count = len(prompts.prompt)
    together = min(together, count)
    used = int(np.max(prompts.prompt)) + 1
    readings = []
    for first in range(0, used, together):
        ids, lengths = (x[first : first + together] for x in (prompts.ids, prompts.lengths))
        free = together - len(ids)
        ids = np.pad(ids, ((0, free), (0, 0)))
        lengths = np.pad(lengths, (0, free), constant_values=1)
        readings.append(_read(network, params, *place((ids, lengths))))
    return place(_of_rows(readings, place(prompts.prompt)))


def first_tokens(network: Network, prompts: Prompts) -> Int[Array, "batch"]:
    """Return what the first step is fed: the last forced token, or what follows the prompt."""
    if prompts.forced.shape[1]:
        return jnp.asarray(prompts.forced)[:, -1]
    first = network.first_tokens(jnp.asarray(prompts.ids), jnp.asarray(prompts.lengths))
    return first.astype(jnp.int32)[prompts.prompt]


@functools.partial(jax.jit, static_argnames=("network", "k"))
def _start(
    network: Network,
    params: Params,
    reading: Reading,
    prompts: Prompts,
    *,
    k: int,
) -> _Loop:
    """Read what is forced; nothing is written, and there is no room for it."""
    forced, batch = jnp.asarray(prompts.forced), len(prompts.forced)
    ids, nats = jnp.zeros((0, batch), jnp.int32), jnp.zeros((0, batch))
    top_ids, top_nats = jnp.zeros((0, batch, k), jnp.int32), jnp.zeros((0, batch, k))
    counts = jnp.zeros(batch, jnp.int32)
    return _Loop(
        jnp.zeros((), jnp.int32),
        first_tokens(network, prompts),
        jnp.asarray(prompts.opening),
        network.start(params, reading, forced, jnp.asarray(prompts.unread)),
        Decoded(ids, nats, Measured(nats, nats, top_ids, top_nats), counts),
    )


@functools.partial(jax.jit, static_argnames=("network", "room", "k"))
def _extend(
    network: Network,
    params: Params,
    loop: _Loop,
    seeds: UInt[Array, "batch 2"],
    settings: Settings,
    vocabulary: Vocabulary,
    limit: Int[Array, ""],
    *,
    room: int,
    k: int,
) -> _Loop:
    """Write until every row has ended or has `limit` tokens, at most `room`."""
    keys = jax.random.wrap_key_data(seeds, impl="threefry2x32")

    def unfinished(loop: _Loop) -> Array:
        return (loop.index < limit) & jnp.any(loop.stage != stopping.ENDED)

    def write(loop: _Loop) -> _Loop:
        index, before = loop.index, loop.written
        logits, state = network.step(params, loop.state, loop.tokens, index)
        candidates = top(jnp.where(vocabulary.drawn, logits, -jnp.inf), k)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, index)))(keys)
        hot = jax.lax.dynamic_index_in_dim(settings.hot, index, axis=1, keepdims=False)
        ids, nats = choose(logits, candidates[1][:, 0], uniform, settings, hot, vocabulary)
        counts = before.counts + (loop.stage != stopping.ENDED)
        drawn = Decoded(ids, nats, measure(logits, *candidates, ids, vocabulary), counts)
        written = _by_step(lambda rows, row: rows.at[index].set(row), before, drawn)
        stage = vocabulary.transitions[loop.stage, ids]
        return _Loop(index + 1, ids, stage, state, written._replace(counts=counts))

    def widen(rows: Array) -> Array:
        return jnp.pad(rows, ((0, room - len(rows)), *[(0, 0)] * (rows.ndim - 1)))

    more = room - len(loop.written.ids)
    wide = loop._replace(
        state=network.widen(loop.state, more), written=_by_step(widen, loop.written)
    )
    return jax.lax.while_loop(unfinished, write, wide)


def _by_step(change: Callable[..., Array], *decoded: Decoded) -> Decoded:
    """Apply `change` to what has an axis of steps; the counts are the first's."""
    stepped = jax.tree.map(change, *(each._replace(counts=()) for each in decoded))
    return stepped._replace(counts=decoded[0].counts)


def decode(
    network: Network,
    params: Params,
    prompts: Prompts,
    seeds: UInt[np.ndarray, "batch 2"],
    settings: Settings,
    vocabulary: Vocabulary,
    limit: int,
    *,
    k: int,
    place: Place = lambda rows: rows,
    compile_only: bool = False,
    together: int = READ_TOGETHER,
    first_room: int = FIRST_ROOM,
) -> Decoded:
    """Write after each prompt until every row has ended or has `limit` tokens.

    Each room in turn is one compiled loop, since a step costs what the room costs, and few rows
    write as much as they may. A row is a function of its own prompt, seed and settings, given the
    batch's shape.

    Args:
        network: what to run.
        params: its parameters.
        prompts: what is read.
        seeds: high and low half of each row's seed.
        settings: how tokens are drawn; steps beyond the width of `hot` are not hot.
        vocabulary: which tokens may be.
        limit: most tokens of a row.
        k: candidates measured for each token, at least 1.
        place: puts rows where they run; nothing by default.
        compile_only: write nothing, but compile every room up to `limit`.
        together: prompts that are read at a time.
        first_room: tokens of the first room; each one after it is twice as wide.
    """
    reading = read(network, params, prompts, place, together=together)
    loop, room = _start(network, params, reading, place(prompts), k=k), 0
    seeds = place(seeds)
    while room < limit and not (room and (np.asarray(loop.stage) == stopping.ENDED).all()):
        room = 2 * room or first_room
        hot = settings.hot[:, :room]
        hot = np.pad(hot, ((0, 0), (0, room - hot.shape[1])))
        loop = _extend(
            network,
            params,
            loop,
            seeds,
            place(settings._replace(hot=hot)),
            vocabulary,
            np.array(0 if compile_only else min(limit, room), np.int32),
            room=room,
            k=k,
        )
    return jax.device_get(loop.written)


@functools.partial(jax.jit, static_argnames=("network", "k"))
def score(
    network: Network,
    params: Params,
    prompts: Int[Array, "batch source"],
    lengths: Int[Array, "batch"],
    ids: Int[Array, "batch steps"],
    vocabulary: Vocabulary,
    *,
    k: int,
) -> Measured:
    """Measure given tokens after each prompt in one forward pass, one position at a time.

    Args:
        network: what to run.
        params: its parameters.
        prompts: right-padded rows of `network.prompt`.
        lengths: of the rows, at least 1.
        ids: the tokens to measure, right-padded.
        vocabulary: which tokens are reported as candidates.
        k: candidates measured for each token, at least 1.

    Returns:
        Step by step, as of `decode`.
    """
    first = network.first_tokens(prompts, lengths)[:, None]
    inputs = jnp.concatenate([first, ids[:, :-1]], 1)
    hidden = network.hidden(params, network.continuation(prompts, lengths, inputs))

    def position(state_ids: tuple[Array, Array]) -> Measured:
        state, chosen = state_ids
        logits = network.project(params, state)
        candidates = top(jnp.where(vocabulary.drawn, logits, -jnp.inf), k)
        return measure(logits, *candidates, chosen, vocabulary)

    states = hidden[:, -ids.shape[1] :].swapaxes(0, 1)
    return jax.lax.map(position, (states, ids.T))
