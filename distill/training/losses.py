"""A student's distance from sparse targets: (sum of nats, sum of weights), never a mean."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

RESTS = ("drop", "renormalise", "other")
SMALLEST_SHARE = 1e-7  # of mass outside the candidates; fp32 resolves no less beside 1

Pair = tuple[Float[Array, ""], Float[Array, ""]]


@runtime_checkable
class Loss(Protocol):
    """Logits and the batch they belong to -> (sum of nats, sum of token weights)."""

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return the pair over the whole batch; the trainer divides."""
        ...


@jax.custom_vjp
def candidate_logprobs(
    logits: Float[Array, "batch length vocab"], ids: Int[Array, "batch length k"]
) -> Float[Array, "batch length k"]:
    """Return log softmax(logits) at `ids`, in nats and fp32.

    Every loss here is a function of these few numbers. Backward recomputes the softmax from the
    logits, so no probabilities over the vocabulary are kept between the two passes.

    Args:
        logits: of any float type; reduced in fp32.
        ids: candidates, each in 0 .. vocab - 1; an id may stand twice in a row.

    Returns:
        Nats, at most 0.
    """
    return _forward(logits, ids)[0]


def _forward(logits, ids):
    wide = logits.astype(jnp.float32)
    peak = jnp.max(wide, axis=-1, keepdims=True)
    normaliser = peak + jnp.log(jnp.sum(jnp.exp(wide - peak), axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(logits, ids, axis=-1).astype(jnp.float32)
    return chosen - normaliser, (logits, ids, normaliser)


def _backward(residuals, cotangent):
    logits, ids, normaliser = residuals
    share = jnp.exp(logits.astype(jnp.float32) - normaliser)
    gradient = -share * jnp.sum(cotangent, axis=-1, keepdims=True)
    # A scatter ends the fusion, so both products that follow read one array instead of computing
    # the exponential anew in their own layouts.
    scattered = jax.vmap(jax.vmap(lambda row, places, values: row.at[places].add(values)))
    return scattered(gradient, ids, cotangent).astype(logits.dtype), None


candidate_logprobs.defvjp(_forward, _backward)


def token_nll(
    logits: Float[Array, "batch length vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
) -> Pair:
    """Return the negative log-likelihood of `targets`.

    Args:
        logits: the student's, before softmax.
        targets: token ids.
        weights: of each token; 0 on padding.

    Returns:
        (sum of weighted nats, sum of weights).
    """
    nats = -candidate_logprobs(logits, targets[..., None])[..., 0]
    return _weighted(nats, weights)


def sparse_kl(
    logits: Float[Array, "batch length vocab"],
    top_ids: Int[Array, "batch length k"],
    top_probs: Float[Array, "batch length k"],
    weights: Float[Array, "batch length"],
    *,
    rest: str = "drop",
    temperature: float = 1.0,
) -> Pair:
    """Return the forward KL divergence of sparse targets p from the student's full softmax q.

    sum_k p_k (log p_k - log q_k), where q is normalised over the whole vocabulary, so mass that
    the student puts outside the candidates costs. An entry with p = 0 contributes nothing, and a
    one-hot row is the token's negative log-likelihood, whatever `rest` is.

    Args:
        logits: the student's, before softmax.
        top_ids: candidates; those with p > 0 are distinct within a row.
        top_probs: their probabilities, summing to at most 1.
        weights: of each token; 0 on padding.
        rest: what becomes of the mass 1 - sum(p). "drop" leaves it out, as Fu et al. do, so the
            value may be negative; "renormalise" divides it among the candidates; "other" adds one
            outcome with 1 - sum(p) against 1 - sum(q) over the candidates.
        temperature: divides the logits and the candidates' log-probabilities; the mass of the
            candidates together stays. Not multiplied by its square.

    Returns:
        (sum of weighted nats, sum of weights).

    Raises:
        ValueError: `rest` or `temperature` is unknown or not positive.

    Source:
        Fu et al. 2023 (arXiv 2301.12726), section 4; the other outcome follows Sparse Logit
        Sampling (ACL 2025), which shows that dropping the rest is biased.
    """
    _check(rest, temperature)
    probs = _tempered(top_probs.astype(jnp.float32), rest, temperature)
    logits = logits if temperature == 1.0 else logits / temperature
    logprobs = candidate_logprobs(logits, top_ids)
    nats = jnp.sum(_relative(probs, logprobs), axis=-1)
    if rest == "other":
        nats += _other(probs, logprobs)
    return _weighted(nats, weights)


def _check(rest: str, temperature: float) -> None:
    if rest not in RESTS:
        raise ValueError(f"expected a rest of {RESTS}, got {rest!r}")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")


def _tempered(probs, rest, temperature):
    mass = jnp.sum(probs, axis=-1, keepdims=True)
    kept = jnp.where(mass > 0, 1.0, 0.0) if rest == "renormalise" else mass
    if temperature != 1.0:
        present = probs > 0
        probs = jnp.where(present, jnp.where(present, probs, 1.0) ** (1 / temperature), 0.0)
        mass = jnp.sum(probs, axis=-1, keepdims=True)
    elif rest != "renormalise":
        return probs
    return probs * kept / jnp.where(mass > 0, mass, 1.0)


def _relative(probs, logprobs):
    present = probs > 0
    return jnp.where(present, probs * (jnp.log(jnp.where(present, probs, 1.0)) - logprobs), 0.0)


def _other(probs, logprobs):
    """[batch, length]: (1 - sum p) log of its ratio to (1 - sum q), nats."""
    p = 1.0 - jnp.sum(probs, axis=-1)
    present = (p > SMALLEST_SHARE) & jnp.any(probs > 0, axis=-1)
    q = jnp.sum(jnp.where(probs > 0, jnp.exp(logprobs), 0.0), axis=-1)
    outside = jnp.log(jnp.maximum(1.0 - q, SMALLEST_SHARE))
    return jnp.where(present, p * (jnp.log(jnp.where(present, p, 1.0)) - outside), 0.0)


def _weighted(nats: Float[Array, "batch length"], weights: Float[Array, "batch length"]) -> Pair:
    weights = weights.astype(jnp.float32)
    return jnp.sum(jnp.where(weights > 0, nats * weights, 0.0)), jnp.sum(weights)


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """KL from the teacher's sparse distributions; `rest` and `temperature` as in `sparse_kl`."""

    rest: str = "drop"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.rest, self.temperature)

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return `sparse_kl` against decoder_target_top_ids and decoder_target_top_probs."""
        return sparse_kl(
            logits,
            batch["decoder_target_top_ids"],
            batch["decoder_target_top_probs"],
            batch["decoder_loss_weights"],
            rest=self.rest,
            temperature=self.temperature,
        )


@dataclasses.dataclass(frozen=True)
class SampleMatching:
    """Likelihood of the sampled tokens themselves; the teacher's distributions are not read."""

    def __call__(
        self, logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
    ) -> Pair:
        """Return `token_nll` of decoder_target_tokens."""
        return token_nll(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])


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
