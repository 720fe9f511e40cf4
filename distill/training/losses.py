"""A student's distance from sparse targets: (sum of nats, sum of weights), never a mean."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.core.errors import UserError
from distill.training.divergences import KL, Divergence

RESTS = ("drop", "renormalise", "other")
FORWARD_KL = KL()
SMALLEST_SHARE = 1e-7  # of mass outside the candidates; fp32 resolves no less beside 1

Pair = tuple[Float[Array, ""], Float[Array, ""]]
Project = Callable[[Float[Array, "batch length embed"]], Float[Array, "batch length vocab"]]


@runtime_checkable
class Loss(Protocol):
    """Logits and the batch they belong to -> (sum of nats, sum of token weights)."""

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return the pair over the whole batch; the trainer divides."""
        ...


# --- From logits to a few numbers ---------------------------------------------------------------


@jax.custom_vjp
def candidate_logprobs(
    logits: Float[Array, "batch length vocab"], ids: Int[Array, "batch length k"]
) -> tuple[Float[Array, "batch length k"], Float[Array, "batch length"]]:
    """Return log softmax(logits) at `ids` and its mean over the vocabulary, in nats and fp32.

    Every loss here is a function of these few numbers. Backward recomputes the softmax from the
    logits, so no probabilities over the vocabulary are kept between the two passes.

    Args:
        logits: of any float type; reduced in fp32.
        ids: candidates, each in 0 .. vocab - 1; an id may stand twice in a row.

    Returns:
        Nats at the candidates, at most 0, and the mean that label smoothing charges.
    """
    return _forward(logits, ids)[0]


def _forward(logits: Array, ids: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    wide = logits.astype(jnp.float32)
    peak = jnp.max(wide, axis=-1, keepdims=True)
    normaliser = peak + jnp.log(jnp.sum(jnp.exp(wide - peak), axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(logits, ids, axis=-1).astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1) - normaliser[..., 0]
    return (chosen - normaliser, mean), (logits, ids, normaliser)


def _backward(
    residuals: tuple[Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, ids, normaliser = residuals
    of_chosen, of_mean = cotangents[0], cotangents[1][..., None]
    share = jnp.exp(logits.astype(jnp.float32) - normaliser)
    total = jnp.sum(of_chosen, axis=-1, keepdims=True) + of_mean
    gradient = of_mean / logits.shape[-1] - share * total
    # A scatter ends the fusion, so both products that follow read one array instead of computing
    # the exponential anew in their own layouts.
    scattered = jax.vmap(jax.vmap(lambda row, places, values: row.at[places].add(values)))
    return scattered(gradient, ids, of_chosen).astype(logits.dtype), None


candidate_logprobs.defvjp(_forward, _backward)


def token_nll(
    logits: Float[Array, "batch length vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    *,
    smoothing: float = 0.0,
) -> Pair:
    """Return the negative log-likelihood of `targets`.

    Args:
        logits: the student's, before softmax.
        targets: token ids.
        weights: of each token; 0 on padding.
        smoothing: share of the target that is spread evenly over the vocabulary.

    Returns:
        (sum of weighted nats, sum of weights).

    Source:
        Szegedy et al. 2016 (arXiv 1512.00567), section 7, for `smoothing`.
    """
    logprobs, mean = candidate_logprobs(logits, targets[..., None])
    return _weighted(_smoothed(-logprobs[..., 0], mean, smoothing), weights)


def sparse_divergence(
    logits: Float[Array, "batch length vocab"],
    top_ids: Int[Array, "batch length k"],
    top_probs: Float[Array, "batch length k"],
    weights: Float[Array, "batch length"],
    *,
    divergence: Divergence = FORWARD_KL,
    rest: str = "drop",
    temperature: float = 1.0,
    smoothing: float = 0.0,
) -> Pair:
    """Return the divergence of sparse targets p from the student's full softmax q.

    Forward KL is sum_k p_k (log p_k - log q_k), where q is normalised over the whole vocabulary,
    so mass that the student puts outside the candidates costs. An entry with p = 0 contributes
    nothing. A one-hot row is a token and no distribution: it is charged by likelihood, whatever
    `divergence` and `rest` are.

    Args:
        logits: the student's, before softmax.
        top_ids: candidates; those with p > 0 are distinct within a row.
        top_probs: their probabilities, summing to at most 1.
        weights: of each token; 0 on padding.
        divergence: one of `distill.training.divergences`.
        rest: what becomes of the mass 1 - sum(p). "drop" leaves it out, as Fu et al. do, so the
            value may be negative; "renormalise" divides it among the candidates; "other" adds one
            outcome with 1 - sum(p) against 1 - sum(q) over the candidates.
        temperature: divides the logits and the candidates' log-probabilities; the mass of the
            candidates together stays. Not multiplied by its square.
        smoothing: share of the value that is cross-entropy with an even distribution instead.

    Returns:
        (sum of weighted nats, sum of weights).

    Raises:
        ValueError: `rest`, `temperature` or `smoothing` is unknown or out of range.
        UserError: the divergence is not defined for this `rest`.

    Source:
        Fu et al. 2023 (arXiv 2301.12726), section 4; the other outcome follows Sparse Logit
        Sampling (ACL 2025), which shows that dropping the rest is biased.
    """
    _check(divergence, rest, temperature, smoothing)
    top_probs = top_probs.astype(jnp.float32)
    logits = logits if temperature == 1.0 else logits / temperature
    logprobs, mean = candidate_logprobs(logits, top_ids)
    outcomes = _outcomes(_tempered(top_probs, rest, temperature), logprobs, rest)
    nats = jnp.sum(divergence(*outcomes), axis=-1)
    one_hot = top_probs > 1 - SMALLEST_SHARE
    likelihood = -jnp.sum(jnp.where(one_hot, logprobs, 0.0), axis=-1)
    nats = jnp.where(jnp.any(one_hot, axis=-1), likelihood, nats)
    return _weighted(_smoothed(nats, mean, smoothing), weights)


def _check(divergence: Divergence, rest: str, temperature: float, smoothing: float) -> None:
    if rest not in RESTS:
        raise ValueError(f"expected a rest of {RESTS}, got {rest!r}")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    _check_smoothing(smoothing)
    if rest in divergence.undefined:
        raise UserError(
            f"a rest that {type(divergence).__name__} is defined for",
            f"{rest!r}: {divergence.undefined[rest]}",
            f"choose a rest of {[name for name in RESTS if name not in divergence.undefined]}, "
            "or KL",
        )


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"expected 0 <= smoothing < 1, got {smoothing}")


def _tempered(probs: Array, rest: str, temperature: float) -> Array:
    mass = jnp.sum(probs, axis=-1, keepdims=True)
    kept = jnp.where(mass > 0, 1.0, 0.0) if rest == "renormalise" else mass
    if temperature != 1.0:
        present = probs > 0
        probs = jnp.where(present, jnp.where(present, probs, 1.0) ** (1 / temperature), 0.0)
        mass = jnp.sum(probs, axis=-1, keepdims=True)
    elif rest != "renormalise":
        return probs
    return probs * kept / jnp.where(mass > 0, mass, 1.0)


def _outcomes(
    probs: Float[Array, "batch length k"], logprobs: Float[Array, "batch length k"], rest: str
) -> tuple[Array, Array, Array]:
    """(p, q, log q) of the candidates and, unless it is dropped, of everything else as one."""
    present = probs > 0
    logprobs = jnp.where(present, logprobs, 0.0)
    q = jnp.where(present, jnp.exp(logprobs), 0.0)
    if rest == "drop":
        return probs, q, logprobs
    some = jnp.any(present, axis=-1, keepdims=True)
    p_other, q_other = (
        jnp.where(some, jnp.maximum(1 - jnp.sum(x, -1, keepdims=True), SMALLEST_SHARE), 0.0)
        for x in (probs, q)
    )
    if rest == "renormalise":
        p_other = jnp.zeros_like(p_other)
    log_q_other = jnp.log(jnp.where(some, q_other, 1.0))
    pairs = ((probs, p_other), (q, q_other), (logprobs, log_q_other))
    p, q, log_q = (jnp.concatenate(pair, axis=-1) for pair in pairs)
    return p, q, log_q


def _smoothed(
    nats: Float[Array, "batch length"], mean: Float[Array, "batch length"], smoothing: float
) -> Float[Array, "batch length"]:
    return nats if smoothing == 0 else (1 - smoothing) * nats - smoothing * mean


def _weighted(nats: Float[Array, "batch length"], weights: Float[Array, "batch length"]) -> Pair:
    weights = weights.astype(jnp.float32)
    return jnp.sum(jnp.where(weights > 0, nats * weights, 0.0)), jnp.sum(weights)


# --- Losses of the trainer ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """A divergence from the teacher's sparse distributions, as `sparse_divergence` computes it.

    Forward KL with the rest dropped and nothing else is the loss of Fu et al. 2023.
    """

    rest: str = "drop"
    temperature: float = 1.0
    divergence: Divergence = FORWARD_KL
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check(self.divergence, self.rest, self.temperature, self.smoothing)

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return the pair against decoder_target_top_ids and decoder_target_top_probs."""
        return sparse_divergence(
            logits,
            batch["decoder_target_top_ids"],
            batch["decoder_target_top_probs"],
            batch["decoder_loss_weights"],
            divergence=self.divergence,
            rest=self.rest,
            temperature=self.temperature,
            smoothing=self.smoothing,
        )


@dataclasses.dataclass(frozen=True)
class SampleMatching:
    """Likelihood of the sampled tokens themselves; the teacher's distributions are not read."""

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return `token_nll` of decoder_target_tokens."""
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        return token_nll(logits, targets, weights, smoothing=self.smoothing)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A weighted sum of losses that count the same tokens.

    Example:
        >>> Mixture(losses=(DistributionMatching(), SampleMatching()), shares=(0.9, 0.1)).shares
        (0.9, 0.1)
    """

    losses: tuple[Loss, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.losses or len(self.losses) != len(self.shares):
            raise ValueError(f"expected a share for each loss, got {len(self.shares)} shares")

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return (sum of shares times each loss's nats, the first loss's count)."""
        pairs = [loss(logits, batch) for loss in self.losses]
        nats = sum(share * pair[0] for share, pair in zip(self.shares, pairs, strict=True))
        return jnp.asarray(nats), pairs[0][1]


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Another loss, for which the logits of a few positions of each row exist at a time.

    Value and gradient are the other loss's. The gradient with respect to the states and to the
    head is taken chunk by chunk in the forward pass, so neither logits nor probabilities of the
    whole batch ever exist, and none are computed twice.

    Attributes:
        loss: a sum over positions, as all here are.
        positions: of each row in a chunk; batch times `positions` times the vocabulary logits
            exist at once.
    """

    loss: Loss
    positions: int = 32

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ValueError(f"expected positions >= 1, got {self.positions}")

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return the loss of logits that exist already."""
        return self.loss(logits, batch)

    def of_states(
        self,
        project: Project,
        states: Float[Array, "batch length embed"],
        batch: Mapping[str, Array],
    ) -> Pair:
        """Return the loss of the logits that `project` makes of `states`.

        Args:
            project: states -> logits, position by position; differentiated with respect to what
                it closes over too.
            states: of the decoder.
            batch: its arrays named decoder_… are [batch, length, …] and belong to the states.
        """
        targets = {name: batch[name] for name in batch if name.startswith("decoder_")}
        chunks = jax.tree.map(
            functools.partial(_chunks, positions=self.positions), (states, targets)
        )

        def charge(states: Array, targets: Mapping[str, Array]) -> Pair:
            return self.loss(project(states), targets)

        example = jax.tree.map(lambda chunk: chunk[0], chunks)
        charge, head = jax.closure_convert(charge, *example)
        return _charged(charge, *chunks, head)


def _chunks(array: Array, positions: int) -> Array:
    """[batch, length, ...] -> [chunks, batch, positions, ...]; what is added weighs 0."""
    batch, length, *rest = array.shape
    padding = [(0, 0), (0, -length % positions)] + [(0, 0)] * len(rest)
    return jnp.swapaxes(jnp.pad(array, padding).reshape(batch, -1, positions, *rest), 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _charged(charge: Callable[..., Pair], states: Array, targets: Any, head: Any) -> Pair:
    pairs = jax.lax.map(lambda chunk: charge(*chunk, *head), (states, targets))
    return jnp.sum(pairs[0]), jnp.sum(pairs[1])


def _charged_forward(
    charge: Callable[..., Pair], states: Array, targets: Any, head: Any
) -> tuple[Pair, tuple[Array, Any]]:
    def nats(states: Array, head: Any, targets: Any) -> Pair:
        return charge(states, targets, *head)

    def add(sums: Any, chunk: Any) -> tuple[Any, Array]:
        states, targets = chunk
        call = jax.value_and_grad(nats, argnums=(0, 1), has_aux=True)
        pair, (of_states, of_head) = call(states, head, targets)
        return jax.tree.map(jnp.add, sums, (pair, of_head)), of_states

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, head)
    (pair, of_head), of_states = jax.lax.scan(add, zeros, (states, targets))
    return pair, (of_states, of_head)


def _charged_backward(
    charge: Callable[..., Pair], gradients: tuple[Array, Any], cotangents: Pair
) -> tuple[Array, None, Any]:
    del charge
    of_states, of_head = jax.tree.map(
        lambda gradient: (gradient * cotangents[0]).astype(gradient.dtype), gradients
    )
    return of_states, None, of_head


_charged.defvjp(_charged_forward, _charged_backward)
