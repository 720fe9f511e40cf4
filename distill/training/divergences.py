"""Divergences of two distributions over a few outcomes, term by term, from probabilities."""

import dataclasses
import math
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

Terms = Float[Array, "batch length k"]


@runtime_checkable
class Divergence(Protocol):
    """Terms of a sum over outcomes, in nats; p is the teacher's share, q the student's."""

    undefined: ClassVar[dict[str, str]]  # why it is not defined, by what becomes of the rest

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return the terms; an outcome of p = q = 0 has none."""
        ...


NO_REST = {
    "drop": "the teacher's shares then add up to less than 1, and what it gives to each other "
    "token, which this divergence reads, is unknown"
}


@dataclasses.dataclass(frozen=True)
class KL:
    """KL(p || q), forward: the student covers what the teacher does."""

    undefined: ClassVar[dict[str, str]] = {}

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return p log(p / q)."""
        del q
        return jnp.where(p > 0, p * (_log(p) - log_q), 0.0)


@dataclasses.dataclass(frozen=True)
class ReverseKL:
    """KL(q || p): the student keeps away from what the teacher does not do (Gu et al. 2024)."""

    undefined: ClassVar[dict[str, str]] = NO_REST | {
        "renormalise": "it is infinite wherever the student gives anything to another token"
    }

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return q log(q / p)."""
        return jnp.where(p > 0, q * (log_q - _log(p)), 0.0)


@dataclasses.dataclass(frozen=True)
class JensenShannon:
    """Half of KL(p || m) and half of KL(q || m), m halfway; symmetric, at most log 2."""

    undefined: ClassVar[dict[str, str]] = NO_REST

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return (p log(p / m) + q log(q / m)) / 2; where p = 0 that is q log(2) / 2."""
        log_m = _log((p + q) / 2)
        both = p * (_log(p) - log_m) + q * (log_q - log_m)
        return 0.5 * jnp.where(p > 0, both, q * math.log(2))


@dataclasses.dataclass(frozen=True)
class SkewKL:
    """KL(p || alpha p + (1 - alpha) q), bounded by -log alpha (Ko et al. 2024, DistiLLM)."""

    alpha: float = 0.1
    undefined: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        _check_share(self.alpha)

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return p log(p / m)."""
        del log_q
        return jnp.where(p > 0, p * (_log(p) - _log(self.alpha * p + (1 - self.alpha) * q)), 0.0)


@dataclasses.dataclass(frozen=True)
class SkewReverseKL:
    """KL(q || alpha q + (1 - alpha) p), bounded by -log alpha (Ko et al. 2024, DistiLLM)."""

    alpha: float = 0.1
    undefined: ClassVar[dict[str, str]] = NO_REST

    def __post_init__(self) -> None:
        _check_share(self.alpha)

    def __call__(self, p: Terms, q: Terms, log_q: Terms) -> Terms:
        """Return q log(q / m); where p = 0 that is -q log alpha."""
        there = q * (log_q - _log(self.alpha * q + (1 - self.alpha) * p))
        return jnp.where(p > 0, there, -math.log(self.alpha) * q)


def _log(shares: Terms) -> Terms:
    """Logarithm, 0 where a share is 0; its gradient is finite there."""
    return jnp.log(jnp.where(shares > 0, shares, 1.0))


def _check_share(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"expected 0 < alpha < 1, got {alpha}")
